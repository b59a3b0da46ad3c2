//! The cache in an operator's hands: seen, pinned, evicted, warmed; and what a crash leaves is found.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, program, usual_config},
    guests::component,
    image::{Content, INDEX, MANIFEST, sha256},
    origin::Fault,
    tools::{Run, run, wait_until},
    wire::runtime,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The usual configuration with a mirror `up`, whose admin API alice may use, and an audit file.
fn config(origin: &Origin, more: &str, plugins: &str) -> String {
    let usual = usual_config(&origin.mirror_entry("up", more), plugins).replace(
        "        - { who: [\"user:*\"]",
        "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]",
    );
    format!("{usual}audit: {{ file: ./audit.jsonl }}\n")
}

/// `gantry cache`, as an operator calls it.
fn cache(gateway: &Gateway, arguments: &[&str]) -> Run {
    let file = gateway.folder().join("password");
    fs::write(&file, USER.1).unwrap();
    run(Command::new(program())
        .arg("cache")
        .args(arguments)
        .args(["--user", USER.0, "--config"])
        .arg(gateway.config_path())
        .arg("--password-file")
        .arg(&file))
}

/// Its document.
fn asked(gateway: &Gateway, arguments: &[&str]) -> Value {
    let done = cache(gateway, &[arguments, &["--output", "json"]].concat());
    serde_json::from_str(&done.ok()).unwrap()
}

/// Its lines.
fn lines(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn evicted(gateway: &Gateway, arguments: &[&str]) -> Value {
    let done = cache(
        gateway,
        &[&["evict"], arguments, &["--output", "json"]].concat(),
    );
    lines(&done.ok()).pop().unwrap()
}

fn changes(gateway: &Gateway) -> Vec<(String, String, String)> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let audit = gateway.audit().into_iter();
    let audit = audit.filter(|line| line["message"] == "cache");
    audit
        .map(|line| {
            let keys = ["change", "reference", "decision"];
            let [change, reference, decision] = keys.map(|key| text(&line, key));
            (change, reference, decision)
        })
        .collect()
}

#[test]
fn an_operator_sees_pins_and_evicts_and_a_pin_survives_a_restart() {
    let origin = Origin::start();
    let (kept, gone) = (Image::random(300_000), Image::random(200_000));
    origin.push("a/kept", "v1", &kept);
    origin.push("a/gone", "v1", &gone);
    let mut gateway = Gateway::start(&config(&origin, ", keep: { at_most: 1GiB }", ""));
    let wire = Wire::anonymous(gateway.port);
    for _pull in 0..2 {
        wire.pull_image("up/a/kept", "v1", &kept);
        wire.pull_image("up/a/gone", "v1", &gone);
        gateway.settled();
    }
    let listed = asked(&gateway, &["ls", "up/a/*"]);
    let named = |document: &Value| -> Vec<String> {
        let listed = document["repositories"].as_array().unwrap().iter();
        listed
            .map(|it| it["repository"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(named(&listed), ["up/a/gone", "up/a/kept"]);
    assert_eq!(
        listed["repositories"][0]["tags"][0]["digest"],
        gone.manifest.digest
    );
    let table = cache(&gateway, &["ls"]).ok();
    assert!(table.contains("up/a/kept   v1"), "{table}");
    let stats = asked(&gateway, &["stats"]);
    assert_eq!(stats["mirrors"][0]["max_bytes"], 1 << 30);
    assert!(stats["bytes"].as_u64() > Some(500_000), "{stats}");
    assert_eq!(stats["hit_ratio"], 0.5, "{stats}");

    let pinned = asked(&gateway, &["pin", "up/a/kept:v*"]);
    assert_eq!(pinned["repositories"], 1);
    gateway.restart();
    assert_eq!(
        asked(&gateway, &["pins"])["pins"][0]["what"],
        "up/a/kept:v*"
    );
    let dry = evicted(&gateway, &["up/**", "--dry-run"]);
    assert_eq!((&dry["manifests"], &dry["blobs"]), (&json!(1), &json!(2)));
    let nothing = evicted(&gateway, &["up/**", "--older-than", "1h"]);
    assert_eq!(
        (&nothing["manifests"], &nothing["blobs"]),
        (&json!(0), &json!(0))
    );
    let done = evicted(&gateway, &["up/**"]);
    assert_eq!((&done["manifests"], &done["blobs"]), (&json!(1), &json!(2)));
    assert!(
        done["bytes"].as_u64() > Some(200_000) && done["pinned"].as_u64() > Some(0),
        "{done}"
    );
    assert_eq!(named(&asked(&gateway, &["ls"])), ["up/a/kept"]);
    let count = |content| {
        format!(
            "gantry_cache_evicted_total{{mirror=\"up\",content=\"{content}\",reason=\"operator\"}}"
        )
    };
    assert_eq!(
        gateway.metric(&count("manifest")),
        1.0,
        "{}",
        gateway.metrics()
    );
    assert_eq!(gateway.metric(&count("blob")), 2.0);
    let freed = "gantry_cache_evicted_bytes_total{mirror=\"up\",reason=\"operator\"}";
    assert!(gateway.metric(freed) > 200_000.0);
    asked(&gateway, &["stats"]);
    let bytes = gateway.metric("gantry_cache_bytes{mirror=\"up\"}");
    assert!((300_000.0..400_000.0).contains(&bytes), "{bytes}");

    origin.reset_counts();
    Wire::anonymous(gateway.port).pull_image("up/a/kept", "v1", &kept);
    assert_eq!(origin.count("GET", "blobs"), 0, "what was pinned is here");
    assert_eq!(
        asked(&gateway, &["unpin", "up/a/kept:v*"])["unpinned"],
        "up/a/kept:v*"
    );
    let unknown = cache(&gateway, &["unpin", "up/a/kept:v*"]).fails();
    assert!(unknown.contains("no pin says"), "{unknown}");
    assert_eq!(evicted(&gateway, &["up/a/kept"])["manifests"], 1);
    let said = |change: &str, reference: &str| {
        (change.to_owned(), reference.to_owned(), "allow".to_owned())
    };
    let expected = [
        said("cache-pin", "up/a/kept:v*"),
        said("cache-evict", "up/**"),
        said("cache-evict", "up/**"),
        said("cache-unpin", "up/a/kept:v*"),
        said("cache-evict", "up/a/kept"),
    ];
    assert_eq!(changes(&gateway), expected);
}

#[test]
fn nobody_uses_the_cache_commands_without_the_right() {
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin, "", ""));
    let order = json!({ "what": "up/**" }).to_string();
    for path in ["evict", "warm", "pins"] {
        let path = format!("/admin/v1/cache/{path}");
        for (wire, status) in [
            (Wire::anonymous(gateway.admin_port), 401),
            (Wire::basic(gateway.admin_port, tests::gateway::OTHER), 403),
        ] {
            wire.send("POST", &path, &[], order.clone()).expect(status);
        }
        let admin = Wire::basic(gateway.admin_port, USER);
        admin.send("POST", &path, &[], "{").expect(400);
    }
    let admin = Wire::basic(gateway.admin_port, USER);
    admin.get("/admin/v1/cache/evict").expect(405);
    admin.get("/admin/v1/cache?limit=0").expect(400);
}

#[test]
fn an_image_that_is_evicted_under_a_slow_reader_is_read_to_its_end() {
    let origin = Origin::start();
    let image = Image::random(24 << 20);
    origin.push("a/b", "v1", &image);
    let gateway = Gateway::start(&config(&origin, "", ""));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/b", "v1", &image);
    // A fill that still runs keeps its blob.
    wait_until("both blobs at rest", Duration::from_secs(60), || {
        gateway.metric("gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"filled\"}")
            >= 2.0
    });
    let layer = &image.layers[0];
    let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
    let (mut read, mut pieces) = runtime().block_on(async {
        let answer = wire.request("GET", &path, &[]).send().await.unwrap();
        let mut pieces = answer.bytes_stream();
        (pieces.next().await.unwrap().unwrap().to_vec(), pieces)
    });
    let done = evicted(&gateway, &["up/a/b:v1"]);
    assert_eq!(done["blobs"], 2);
    assert!(done["bytes"].as_u64() >= Some(24 << 20), "{done}");
    assert!(
        read.len() < layer.bytes.len(),
        "the reader is not at its end yet"
    );
    runtime().block_on(async {
        while let Some(piece) = pieces.next().await {
            read.extend_from_slice(&piece.unwrap());
        }
    });
    assert_eq!(sha256(&read), layer.digest);
    wire.pull_image("up/a/b", "v1", &image);
    assert_eq!(origin.count("GET", &layer.digest), 2, "it was gone");
}

#[test]
fn a_blob_of_two_upstream_repositories_stays_when_one_of_them_is_evicted() {
    let origin = Origin::start();
    let shared = Content::random(100_000);
    let one = Image::of_layers(vec![shared.clone(), Content::random(1000)]);
    let other = Image::of_layers(vec![shared.clone(), Content::random(1000)]);
    origin.push("a/one", "v1", &one);
    origin.push("a/other", "v1", &other);
    let mut gateway = Gateway::start(&config(&origin, "", ""));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/one", "v1", &one);
    wire.pull_image("up/a/other", "v1", &other);
    let done = evicted(&gateway, &["up/a/one"]);
    assert_eq!((&done["manifests"], &done["blobs"]), (&json!(1), &json!(3)));
    assert!(
        done["bytes"].as_u64() < Some(100_000),
        "the shared bytes stay: {done}"
    );
    origin.reset_counts();
    for _restart in 0..2 {
        Wire::anonymous(gateway.port).pull_image("up/a/other", "v1", &other);
        assert_eq!(origin.count("GET", "blobs"), 0);
        gateway.restart();
    }
}

/// An index of two images for two processors.
fn two_platforms(origin: &Origin) -> [Image; 2] {
    let images = [Image::random(50_000), Image::random(50_000)];
    let entries = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            let mut entry = image.manifest.descriptor(MANIFEST);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture });
            entry
        });
    let index =
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries.collect::<Vec<_>>() });
    for image in &images {
        origin.push("a/multi", &image.manifest.digest, image);
    }
    let index = Content::new(index.to_string());
    let direct = origin.direct();
    direct
        .push_manifest("a/multi", "v1", INDEX, index.bytes.clone())
        .expect(201);
    images
}

#[test]
fn a_warmed_image_is_pulled_while_its_upstream_is_down() {
    let mut origin = Origin::start();
    let [amd64, arm64] = two_platforms(&origin);
    let gateway = Gateway::start(&config(&origin, "", ""));
    let list = gateway.folder().join("images.txt");
    fs::write(&list, "up/a/multi:v1 # both\nup/a/none:v1\n").unwrap();
    let list = list.to_str().unwrap();
    let warm = [
        "warm",
        "--file",
        list,
        "--platform",
        "linux/arm64",
        "--output",
        "json",
    ];
    let said = cache(&gateway, &warm).fails();
    let told = lines(&said);
    let events = |event: &'static str| told.iter().filter(move |line| line["event"] == event);
    let warmed = events("warmed").next().unwrap();
    assert_eq!(
        (&warmed["manifests"], &warmed["blobs"]),
        (&json!(2), &json!(2))
    );
    let fetched: usize = arm64.blobs().map(|blob| blob.bytes.len()).sum();
    assert_eq!(warmed["fetched_bytes"], fetched);
    let failed = events("failed").next().unwrap();
    assert_eq!(
        (&failed["image"], &failed["code"]),
        (&json!("up/a/none:v1"), &json!("MANIFEST_UNKNOWN"))
    );
    assert_eq!(events("end").next().unwrap()["failed"], 1);
    assert!(said.contains("1 of 2 images could not be pulled"), "{said}");
    assert_eq!(origin.count("GET", &amd64.layers[0].digest), 0);
    let text = cache(
        &gateway,
        &["warm", "up/a/multi:v1", "--platform", "linux/arm64"],
    )
    .ok();
    assert!(
        text.contains("up/a/multi:v1: 2 manifests, 2 blobs") && text.contains("0 B came"),
        "{text}"
    );
    let none = cache(
        &gateway,
        &["warm", "up/a/multi:v1", "--platform", "linux/s390x"],
    )
    .fails();
    assert!(none.contains("it has linux/amd64, linux/arm64"), "{none}");
    origin.stop();
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/multi/manifests/v1").expect(200);
    wire.pull_image("up/a/multi", &arm64.manifest.digest, &arm64);
}

const GATE: &str = r#"
  - name: gate
    from: ./deny_image.wasm
    repositories: ["up/**"]
    changes: [serve-manifest, serve-blob]
    grants: { registry: ["up/**"] }
    config: { repositories: ["up/bad/**"] }
"#;

#[test]
fn warming_a_denied_image_says_why_and_leaks_nothing() {
    let origin = Origin::start();
    let image = Image::of_layers(vec![Content::new("secret bytes of a layer")]);
    let good = Image::random(1000);
    origin.push("bad/image", "v1", &image);
    origin.push("good/image", "v1", &good);
    let gateway = Gateway::start_with(&config(&origin, "", GATE), |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    });
    let both = ["warm", "up/bad/image:v1", "up/good/image:v1"];
    for output in ["json", "text"] {
        let said = cache(&gateway, &[&both[..], &["--output", output]].concat()).fails();
        assert!(
            said.contains("DENIED") && said.contains("this image is denied here"),
            "{said}"
        );
        assert!(said.contains("1 of 2 images could not be pulled"), "{said}");
        for content in image.blobs().chain([&image.manifest]) {
            assert!(!said.contains(&content.digest), "{said}");
        }
        assert!(!said.contains("secret bytes"), "{said}");
    }
    assert_eq!(origin.count("GET", &image.layers[0].digest), 0);
    assert_eq!(origin.count("GET", &good.layers[0].digest), 1);
    let denied = (
        "cache-warm".to_owned(),
        "up/bad/image:v1".to_owned(),
        "deny".to_owned(),
    );
    assert!(changes(&gateway).contains(&denied));
}

#[test]
fn warming_ends_when_the_client_leaves() {
    let origin = Origin::start();
    let (held, next) = (Image::random(1 << 20), Image::random(1000));
    origin.push("a/held", "v1", &held);
    origin.push("a/next", "v1", &next);
    let gateway = Gateway::start(&config(&origin, "", ""));
    origin.break_paths(&held.layers[0].digest, Fault::HoldAt(1 << 19));
    let admin = Wire::basic(gateway.admin_port, USER);
    let body = json!({ "images": ["up/a/held:v1", "up/a/next:v1"] }).to_string();
    let request = admin
        .request("POST", "/admin/v1/cache/warm", &[])
        .body(body);
    runtime().block_on(async {
        let mut lines = request.send().await.unwrap().bytes_stream();
        let first = lines.next().await.unwrap().unwrap();
        assert!(first.starts_with(b"{\"event\":\"manifest\""));
    });
    wait_until("the end of the work", PATIENCE, || {
        gateway.log().contains("the client left")
    });
    origin.release();
    assert_eq!(origin.count("GET", "a/next"), 0);
}

fn blob_path(gateway: &Gateway, digest: &str) -> PathBuf {
    let hex = digest.trim_start_matches("sha256:");
    let blobs = "data/docker/registry/v2/blobs/sha256";
    gateway
        .folder()
        .join(blobs)
        .join(hex.get(..2).unwrap())
        .join(hex)
        .join("data")
}

/// Puts bytes into the store's folder, as if they had been there for so long.
fn leave(gateway: &Gateway, content: &Content, age: Duration) {
    let path = blob_path(gateway, &content.digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &content.bytes).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    file.set_modified(written - age).unwrap();
}

/// Makes the registry's facts older by so much.
fn began_earlier(gateway: &Gateway, by: Duration) {
    let database = rusqlite::Connection::open(gateway.folder().join("data/gantry.db")).unwrap();
    let change = format!(
        "DROP TRIGGER tag_journal_is_not_changed; UPDATE tag_journal SET at_ms = at_ms - {}",
        by.as_millis()
    );
    database.execute_batch(&change).unwrap();
}

fn staged(gateway: &Gateway) -> usize {
    let uploads: &Path = &gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    fs::read_dir(uploads).unwrap().count()
}

#[test]
fn what_kill_9_left_without_an_owner_is_freed_at_the_next_start() {
    let mut origin = Origin::start();
    let (cached, held) = (Image::random(10_000), Image::random(1 << 20));
    origin.push("a/cached", "v1", &cached);
    origin.push("a/held", "v1", &held);
    let mut gateway = Gateway::start(&config(&origin, "", ""));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/cached", "v1", &cached);
    gateway.settled();
    origin.break_paths(&held.layers[0].digest, Fault::HoldAt(1 << 19));
    wire.get("/v2/up/a/held/manifests/v1").expect(200);
    let path = format!("/v2/up/a/held/blobs/{}", held.layers[0].digest);
    let first = runtime().block_on(async {
        let answer = wire.request("GET", &path, &[]).send().await.unwrap();
        answer.bytes_stream().next().await.unwrap().unwrap().len()
    });
    assert!(first > 0);
    assert_eq!(staged(&gateway), 1, "the fill is on its way");
    gateway.kill9();
    let hour = Duration::from_secs(3600);
    let (old, new) = (Content::random(5000), Content::random(5000));
    let older_than_the_database = Content::random(5000);
    began_earlier(&gateway, hour * 2);
    leave(&gateway, &older_than_the_database, hour * 3);
    leave(&gateway, &old, hour);
    leave(&gateway, &new, Duration::ZERO);
    for content in cached.blobs().chain([&cached.manifest]) {
        // Old too, and somebody's.
        leave(&gateway, content, hour);
    }
    gateway.restart();
    wait_until("the sweep", PATIENCE, || {
        !blob_path(&gateway, &old.digest).exists() && staged(&gateway) == 0
    });
    assert!(
        blob_path(&gateway, &new.digest).exists(),
        "it may be about to be named"
    );
    assert!(
        blob_path(&gateway, &older_than_the_database.digest).exists(),
        "another database may have known it"
    );
    wait_until("the counts", PATIENCE, || {
        gateway.metric("gantry_swept_bytes_total") == 5000.0
    });
    assert_eq!(gateway.metric("gantry_swept_blobs_total"), 1.0);
    origin.stop();
    Wire::anonymous(gateway.port).pull_image("up/a/cached", "v1", &cached);
}

#[test]
fn layers_come_with_the_manifest_when_the_mirror_prefetches() {
    let mut origin = Origin::start();
    let layers = (0..6).map(|_layer| Content::random(50_000)).collect();
    let image = Image::of_layers(layers);
    origin.push("a/b", "v1", &image);
    let gateway = Gateway::start(&config(&origin, ", prefetch: true", ""));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/b/manifests/v1").expect(200);
    wait_until("every blob", PATIENCE, || {
        let listed = asked(&gateway, &["ls", "up/a/b"]);
        listed["repositories"][0]["blobs"] == 7
    });
    origin.stop();
    wire.pull_image("up/a/b", "v1", &image);
    for blob in image.blobs() {
        assert_eq!(origin.count("GET", &blob.digest), 1);
    }
}

#[test]
fn the_children_of_a_build_cache_are_fetched_pinned_and_evicted_as_the_blobs_they_are() {
    let origin = Origin::start();
    let (layer, described) = (Content::random(50_000), Content::random(500));
    let document = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
            described.descriptor("application/vnd.buildkit.cacheconfig.v0"),
        ],
    });
    let direct = origin.direct();
    for blob in [&layer, &described] {
        direct.push_blob("a/cache", blob).expect(201);
    }
    let index = Content::new(document.to_string());
    direct
        .push_manifest("a/cache", "main", INDEX, index.bytes.clone())
        .expect(201);
    let gateway = Gateway::start(&config(&origin, ", prefetch: true", ""));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/cache/manifests/main").expect(200);
    wait_until("the prefetched blobs", PATIENCE, || {
        asked(&gateway, &["ls", "up/a/cache"])["repositories"][0]["blobs"] == 2
    });
    evicted(&gateway, &["up/**"]);
    let said = cache(&gateway, &["warm", "up/a/cache:main", "--output", "json"]).ok();
    let warmed = lines(&said);
    let warmed = warmed
        .iter()
        .find(|line| line["event"] == "warmed")
        .unwrap();
    assert_eq!(
        (&warmed["manifests"], &warmed["blobs"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(warmed["fetched_bytes"], 50_500);
    for blob in [&layer, &described] {
        let pulled = wire
            .get(&format!("/v2/up/a/cache/blobs/{}", blob.digest))
            .expect(200);
        assert_eq!(pulled.body, blob.bytes);
    }
    asked(&gateway, &["pin", "up/a/cache:main"]);
    let kept = evicted(&gateway, &["up/**"]);
    assert_eq!((&kept["manifests"], &kept["blobs"]), (&json!(0), &json!(0)));
    asked(&gateway, &["unpin", "up/a/cache:main"]);
    let gone = evicted(&gateway, &["up/a/cache:main"]);
    assert_eq!((&gone["manifests"], &gone["blobs"]), (&json!(1), &json!(2)));
}
