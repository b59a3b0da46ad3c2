//! Real registries as upstreams: they negotiate types, lead elsewhere for tokens, put anything into an index and send lists of any size.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::Command,
    sync::{Arc, Barrier},
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use tests::{
    Gateway, Scripted, Wire,
    gateway::{USER, program, usual_config},
    image::{Content, INDEX, MANIFEST},
    scripted::{Asked, Reply},
    tools::{run, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(60);
const OWN: &str = "application/vnd.example.own.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

fn image() -> Content {
    let empty = Content::new("{}");
    let image = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": empty.descriptor(EMPTY), "layers": [] });
    Content::new(image.to_string())
}

fn document(media_type: &str, content: &Content) -> Reply {
    Reply::new(200, content.bytes.clone())
        .with("Content-Type", media_type)
        .with("Docker-Content-Digest", &content.digest)
}

fn accepts(asked: &Asked, media_type: &str) -> bool {
    asked
        .header("accept")
        .split(", ")
        .any(|it| it == media_type)
}

/// Sends a document of its own type to those who ask for that by name, and an image to everybody else.
fn negotiating() -> (Scripted, Content, Content) {
    let (own, image) = (Content::new(r#"{"own":"document"}"#), image());
    let (sent, other) = (own.clone(), image.clone());
    let registry = Scripted::start(move |asked| {
        if accepts(asked, OWN)
            && (asked.target.ends_with("/v1") || asked.target.ends_with(&sent.digest))
        {
            return document(OWN, &sent);
        }
        match asked.target.ends_with("/manifests/v1") {
            true => document(MANIFEST, &other),
            false => Reply::new(404, "{}"),
        }
    });
    (registry, own, image)
}

#[test]
fn a_type_that_a_client_asks_for_reaches_the_upstream_and_changes_no_other_clients_answer() {
    let (registry, own, image) = negotiating();
    let gateway = Gateway::start(&usual_config(&registry.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    let pull = |reference: &str, accept: &str| {
        let path = format!("/v2/up/lib/app/manifests/{reference}");
        wire.send("GET", &path, &[("accept", accept)], "")
    };
    let all = format!("{MANIFEST}, {INDEX}, */*");
    for _round in 0..2 {
        let answer = pull("v1", OWN).has(200);
        assert_eq!(
            (answer.header("content-type").as_str(), &answer.body),
            (OWN, &own.bytes)
        );
        let answer = pull("v1", &all).has(200);
        assert_eq!(
            (answer.header("content-type").as_str(), &answer.body),
            (MANIFEST, &image.bytes)
        );
        let answer = pull("v1", "").has(200);
        assert_eq!(answer.body, image.bytes);
    }
    let other = "application/vnd.example.other.v1+json";
    assert_eq!(
        pull("v1", other).has(200).body,
        image.bytes,
        "the upstream's own answer to it"
    );
    let by_digest = pull(&own.digest, OWN).has(200);
    assert_eq!(by_digest.body, own.bytes);
    let asked = registry.asked();
    assert!(
        asked
            .iter()
            .all(|asked| accepts(asked, MANIFEST) && !accepts(asked, "*/*"))
    );
}

#[test]
fn a_client_that_lists_many_types_has_a_few_of_them_asked_for() {
    let (registry, _own, _image) = negotiating();
    let gateway = Gateway::start(&usual_config(&registry.mirror_entry("up", ""), ""));
    let many: Vec<String> = (0..50)
        .map(|index| format!("application/vnd.t{index}"))
        .collect();
    let wire = Wire::anonymous(gateway.port);
    let headers = [("accept", &*many.join(","))];
    wire.send("GET", "/v2/up/lib/app/manifests/v1", &headers, "")
        .expect(200);
    let asked = registry.asked();
    let longest = asked.iter().map(|asked| asked.header("accept").len()).max();
    assert!(longest.unwrap() < 2048, "{asked:?}");
    assert!(accepts(&asked[0], "application/vnd.t0") && !accepts(&asked[0], "application/vnd.t49"));
}

/// The entry of README's `mirrors:` that is called `name`.
fn readme_entry(name: &str) -> String {
    let readme = include_str!("../../README.md");
    let begin = format!("  {name}:\n");
    let entry = readme.split_once(&begin).unwrap().1;
    let lines = entry.lines().take_while(|line| line.starts_with("    "));
    lines.fold(begin, |text, line| text + line + "\n")
}

#[test]
fn readmes_lscr_io_pulls_by_a_redirect_to_a_registry_that_wants_an_anonymous_token() {
    let (layer, image) = (Content::random(10_000), image());
    for asks_first in [false, true] {
        let (manifest, blob) = (image.clone(), layer.clone());
        let ghcr = Scripted::start(move |asked| {
            if asked.target.starts_with("/token") {
                return Reply::new(200, r#"{"token":"anonymous"}"#);
            }
            if asked.header("authorization") != "Bearer anonymous" {
                let host = asked.header("host");
                let challenge = format!(
                    "Bearer realm=\"http://{host}/token\",service=\"{host}\",scope=\"repository:linuxserver/app:pull\""
                );
                return Reply::new(401, "{}").with("WWW-Authenticate", challenge);
            }
            match asked.target.contains("/blobs/") {
                true => Reply::new(200, blob.bytes.clone()),
                false => document(MANIFEST, &manifest),
            }
        });
        let there = ghcr.url();
        let realm = format!(
            "Bearer realm=\"{there}/token\",service=\"ghcr.io\",scope=\"repository:user/image:pull\""
        );
        let lscr = Scripted::start(move |asked| {
            if asks_first && asked.header("authorization").is_empty() {
                return Reply::new(401, "{}").with("WWW-Authenticate", &*realm);
            }
            Reply::new(307, "").with("Location", format!("{there}{}", asked.target))
        });
        let entry = readme_entry("lscr.io")
            .replace("https://lscr.io", &lscr.url())
            .replace("https://ghcr.io", &ghcr.url());
        let gateway = Gateway::start(&usual_config(&entry, ""));
        let wire = Wire::basic(gateway.port, USER);
        let base = "/v2/lscr.io/linuxserver/app";
        let pulled = wire.get(&format!("{base}/manifests/latest")).has(200);
        assert_eq!(pulled.body, image.bytes, "asks first: {asks_first}");
        let pulled = wire.get(&format!("{base}/blobs/{}", layer.digest)).has(200);
        assert_eq!(pulled.body, layer.bytes);
        // What the client showed here is nobody else's.
        let shown = [ghcr.asked(), lscr.asked()].concat();
        assert!(
            shown
                .iter()
                .all(|asked| !asked.header("authorization").starts_with("Basic"))
        );
    }
}

/// An index whose children are of types that do not say what they are, or say the wrong thing.
fn odd_index() -> (BTreeMap<&'static str, Content>, Content) {
    let own = Content::new(r#"{"a":"document of its own"}"#);
    let parts = BTreeMap::from([
        ("manifest", own),
        ("blob", Content::random(5000)),
        ("layer", Content::random(6000)),
        ("mistyped", image()),
    ]);
    let types = [
        ("manifest", OWN),
        ("blob", "application/vnd.example.state"),
        ("layer", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("mistyped", "application/vnd.oci.image.layer.v1.tar"),
    ];
    let children: Vec<_> = types
        .iter()
        .map(|(part, media_type)| parts[part].descriptor(media_type))
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
    (parts, Content::new(index.to_string()))
}

fn odd_registry(parts: &BTreeMap<&'static str, Content>, index: &Content) -> Scripted {
    let (parts, index) = (parts.clone(), index.clone());
    Scripted::start(move |asked| {
        let target = &asked.target;
        let named =
            |part: &str, kind: &str| target.ends_with(&format!("/{kind}/{}", parts[part].digest));
        if target.ends_with("/manifests/v1") || target.ends_with(&index.digest) {
            return document(INDEX, &index);
        }
        if named("manifest", "manifests") && accepts(asked, OWN) {
            return document(OWN, &parts["manifest"]);
        }
        if named("mistyped", "manifests") {
            return document(MANIFEST, &parts["mistyped"]);
        }
        for part in ["blob", "layer"] {
            if named(part, "blobs") {
                return Reply::new(200, parts[part].bytes.clone());
            }
        }
        Reply::new(404, "{}")
    })
}

/// The usual configuration with a mirror `up`, whose admin API alice may use.
fn operated(registry: &Scripted, more: &str) -> String {
    let usual = usual_config(&registry.mirror_entry("up", more), "");
    let admin = "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]";
    usual.replace("        - { who: [\"user:*\"]", admin)
}

/// `gantry cache`, as an operator calls it.
fn cache(gateway: &Gateway, arguments: &[&str]) -> String {
    let file = gateway.folder().join("password");
    fs::write(&file, USER.1).unwrap();
    let mut command = Command::new(program());
    command.arg("cache").args(arguments);
    command
        .args(["--user", USER.0, "--config"])
        .arg(gateway.config_path());
    run(command.arg("--password-file").arg(&file)).ok()
}

#[test]
fn a_child_of_unknown_type_is_fetched_as_what_the_upstream_has_it_as() {
    let (parts, index) = odd_index();
    for by_prefetch in [false, true] {
        let registry = odd_registry(&parts, &index);
        let more = if by_prefetch { ", prefetch: true" } else { "" };
        let gateway = Gateway::start(&operated(&registry, more));
        let wire = Wire::basic(gateway.port, USER);
        match by_prefetch {
            true => {
                wire.get("/v2/up/lib/cache/manifests/v1").expect(200);
                // A blob by its type is prefetched as one; a client that knows better asks for the manifest.
                wait_until("the prefetch", PATIENCE, || {
                    let asked = registry.asked();
                    let kinds = [
                        ("manifest", "manifests"),
                        ("blob", "blobs"),
                        ("layer", "blobs"),
                    ];
                    kinds.iter().all(|(part, kind)| {
                        let path = format!("/{kind}/{}", parts[part].digest);
                        asked
                            .iter()
                            .any(|it| it.method == "GET" && it.target.ends_with(&path))
                    })
                });
                gateway.settled();
            }
            false => {
                cache(&gateway, &["warm", "up/lib/cache:v1"]);
            }
        }
        let before = registry.asked().len();
        let get = |path: &str, accept: &str| {
            wire.send(
                "GET",
                &format!("/v2/up/lib/cache/{path}"),
                &[("accept", accept)],
                "",
            )
        };
        let manifest = format!("manifests/{}", parts["manifest"].digest);
        assert_eq!(get(&manifest, OWN).has(200).header("content-type"), OWN);
        for part in ["blob", "layer"] {
            let answer = get(&format!("blobs/{}", parts[part].digest), "").has(200);
            assert_eq!(answer.body, parts[part].bytes);
        }
        if !by_prefetch {
            get(&format!("manifests/{}", parts["mistyped"].digest), MANIFEST).expect(200);
        }
        let after: Vec<String> = registry
            .asked()
            .into_iter()
            .skip(before)
            .map(|asked| asked.target)
            .collect();
        assert!(after.is_empty(), "by prefetch: {by_prefetch}: {after:?}");
    }
}

#[test]
fn a_pinned_index_keeps_children_of_every_type() {
    let (parts, index) = odd_index();
    let registry = odd_registry(&parts, &index);
    let gateway = Gateway::start(&operated(&registry, ""));
    cache(&gateway, &["warm", "up/lib/cache:v1"]);
    cache(&gateway, &["pin", "up/lib/cache:v1"]);
    cache(&gateway, &["evict", "up/**"]);
    let before = registry.asked().len();
    let wire = Wire::basic(gateway.port, USER);
    let get = |kind: &str, part: &str| {
        wire.get(&format!("/v2/up/lib/cache/{kind}/{}", parts[part].digest))
            .has(200)
    };
    for part in ["manifest", "mistyped"] {
        assert_eq!(get("manifests", part).body, parts[part].bytes);
    }
    for part in ["blob", "layer"] {
        assert_eq!(get("blobs", part).body, parts[part].bytes);
    }
    assert_eq!(registry.asked().len(), before, "all of it is here");
}

#[test]
fn large_lists_of_many_upstreams_take_a_bounded_amount_of_memory() {
    const MIRRORS: usize = 6;
    let mut list = String::from(r#"{"child":[],"manifest":{"sha256:0":{}"#);
    for index in 0..150_000 {
        write!(
            list,
            r#","sha256:{index:064}":{{"imageSizeBytes":"1","tag":["v"]}}"#
        )
        .unwrap();
    }
    list.push_str(r#"},"name":"a","tags":["0""#);
    for index in 0..300_000 {
        write!(list, r#","release-{index:0100}""#).unwrap();
    }
    list.push_str("]}");
    assert!((40 << 20..64 << 20).contains(&list.len()), "{}", list.len());
    let list = Bytes::from(list);
    let registries: Vec<Scripted> = (0..MIRRORS)
        .map(|_| {
            let list = list.clone();
            Scripted::start(move |_asked| Reply::new(200, list.clone()))
        })
        .collect();
    let entries: String = registries
        .iter()
        .enumerate()
        .map(|(index, registry)| registry.mirror_entry(&format!("up{index}"), ""))
        .collect();
    let gateway = Gateway::start(&usual_config(&entries, ""));
    let (start, port) = (Arc::new(Barrier::new(MIRRORS)), gateway.port);
    let clients: Vec<_> = (0..MIRRORS)
        .map(|index| {
            let start = Arc::clone(&start);
            std::thread::spawn(move || {
                let wire = Wire::basic(port, USER);
                start.wait();
                let path = format!(
                    "/v2/up{index}/lib/a/tags/list?n=10&last=release-{:0100}",
                    299_000
                );
                // A list waits for others; when that takes too long, the answer says to come again.
                let mut answers = (0..60).map(|_| wire.get(&path));
                let answer = answers
                    .find(|answer| answer.status != 503)
                    .unwrap()
                    .has(200);
                assert_eq!(
                    answer.json()["tags"][0],
                    format!("release-{:0100}", 299_001)
                );
            })
        })
        .collect();
    let mut most = 0;
    wait_until("the lists", PATIENCE * 4, || {
        most = most.max(gateway.anonymous_memory());
        clients.iter().all(std::thread::JoinHandle::is_finished)
    });
    for client in clients {
        client.join().unwrap();
    }
    // Two lists of some 33 MB of tags at once, and what growing them takes; six would be more than 400 MiB.
    assert!(most < 300 << 20, "{} MiB", most >> 20);
}
