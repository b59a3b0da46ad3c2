//! The sentence we sell: a denied image is denied on its very first proxied pull, on every way in, and nothing of it leaves.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, usual_config},
    guests::component,
    image::{Content, INDEX, MANIFEST, annotated_index, index_of},
    origin::Fault,
    tools::{free_port, wait_until},
    wire::Answer,
};

const GATE: &str = r#"
  - name: gate
    from: ./deny_image.wasm
    repositories: ["up/**"]
    changes: [serve-manifest, serve-blob]
    grants: { registry: ["up/**"] }
    config: CONFIG
"#;

fn gated(origin: &Origin, config: &str) -> Gateway {
    let plugins = GATE.replace("CONFIG", config);
    Gateway::start_with(
        &usual_config(&origin.mirror_entry("up", ""), &plugins),
        |folder| {
            fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
        },
    )
}

/// An image whose layer is a text that must never leave.
fn secret_image() -> Image {
    Image::of_layers(vec![Content::new(format!(
        "secret bytes {}",
        Content::random(8).digest
    ))])
}

/// Asks in one way and holds the whole answer against the image.
fn denied(wire: &Wire, method: &str, path: &str, image: &Image) {
    let answer = wire.send(method, path, &[], "");
    assert_eq!(answer.status, 403, "{method} {path}: {answer:?}");
    let shown = format!(
        "{:?}{}",
        answer.headers,
        String::from_utf8_lossy(&answer.body)
    );
    for content in image.blobs().chain([&image.manifest]) {
        assert!(
            !shown.contains(&*String::from_utf8_lossy(&content.bytes)),
            "{method} {path} lets bytes out"
        );
        assert!(
            answer.header("docker-content-digest") != content.digest,
            "{method} {path} tells the digest"
        );
    }
}

#[test]
fn a_denied_image_is_denied_on_its_first_pull_by_every_way_in() {
    let origin = Origin::start();
    let image = secret_image();
    origin.push("bad/image", "latest", &image);
    let digest = &image.manifest.digest;
    let ways = [
        ("GET", "/v2/up/bad/image/manifests/latest".to_owned()),
        ("HEAD", "/v2/up/bad/image/manifests/latest".to_owned()),
        ("GET", format!("/v2/up/bad/image/manifests/{digest}")),
        ("HEAD", format!("/v2/up/bad/image/manifests/{digest}")),
        (
            "GET",
            format!("/v2/up/bad/image/blobs/{}", image.layers[0].digest),
        ),
        (
            "HEAD",
            format!("/v2/up/bad/image/blobs/{}", image.layers[0].digest),
        ),
        (
            "GET",
            format!("/v2/up/bad/image/blobs/{}", image.config.digest),
        ),
        ("GET", format!("/up/v2/bad/image/manifests/{digest}")),
        ("GET", "/v2/bad/image/manifests/latest?ns=up".to_owned()),
    ];
    for (method, path) in &ways {
        // A gateway of its own for each: every way is the very first pull.
        let gateway = gated(&origin, r#"{ repositories: ["up/bad/**"] }"#);
        denied(&Wire::anonymous(gateway.port), method, path, &image);
    }
    let gateway = gated(&origin, r#"{ repositories: ["up/bad/**"] }"#);
    for _round in 0..2 {
        for (method, path) in &ways {
            denied(&Wire::anonymous(gateway.port), method, path, &image);
        }
    }
}

#[test]
fn a_range_of_a_denied_blob_is_denied_too() {
    let origin = Origin::start();
    let image = secret_image();
    origin.push("bad/image", "latest", &image);
    let gateway = gated(&origin, r#"{ repositories: ["up/bad/**"] }"#);
    let path = format!("/v2/up/bad/image/blobs/{}", image.layers[0].digest);
    let answer = Wire::anonymous(gateway.port).send("GET", &path, &[("range", "bytes=0-3")], "");
    assert_eq!(answer.status, 403);
}

#[test]
fn an_index_is_denied_and_so_are_its_children_and_their_blobs() {
    let origin = Origin::start();
    let (good, bad) = (Image::random(50), secret_image());
    let index = index_of(&[&good, &bad]);
    for image in [&good, &bad] {
        origin.push("mixed/image", "child", image);
    }
    origin
        .direct()
        .push_manifest("mixed/image", "multi", INDEX, index.bytes.clone())
        .expect(201);
    let gateway = gated(&origin, &format!(r#"{{ digests: ["{}"] }}"#, index.digest));
    let wire = Wire::anonymous(gateway.port);
    denied(&wire, "GET", "/v2/up/mixed/image/manifests/multi", &bad);
    denied(&wire, "HEAD", "/v2/up/mixed/image/manifests/multi", &bad);
    denied(
        &wire,
        "GET",
        &format!("/v2/up/mixed/image/manifests/{}", bad.manifest.digest),
        &bad,
    );
    denied(
        &wire,
        "GET",
        &format!("/v2/up/mixed/image/blobs/{}", bad.layers[0].digest),
        &bad,
    );
}

#[test]
fn what_only_the_index_says_counts_for_the_layers_of_its_children() {
    let origin = Origin::start();
    let bad = secret_image();
    let index = annotated_index(&[&bad], "org.example.support", "ended-2024");
    origin.push("old/image", "child", &bad);
    origin
        .direct()
        .push_manifest("old/image", "multi", INDEX, index.bytes.clone())
        .expect(201);
    let config = r#"{ annotations: { "org.example.support": "ended*" } }"#;
    let gateway = gated(&origin, config);
    let wire = Wire::anonymous(gateway.port);
    // Nothing here knows the index yet, and the child says nothing of itself.
    wire.pull_image("up/old/image", "child", &bad);
    denied(&wire, "GET", "/v2/up/old/image/manifests/multi", &bad);
    for blob in bad.blobs() {
        for method in ["GET", "HEAD"] {
            let path = format!("/v2/up/old/image/blobs/{}", blob.digest);
            denied(&wire, method, &path, &bad);
        }
    }
    let child = format!("/v2/up/old/image/manifests/{}", bad.manifest.digest);
    denied(&wire, "GET", &child, &bad);
    denied(&wire, "GET", "/v2/up/old/image/manifests/child", &bad);
}

#[test]
fn an_image_that_is_not_denied_is_served_whole() {
    let origin = Origin::start();
    let image = Image::random(70_000);
    origin.push("good/image", "latest", &image);
    let gateway = gated(&origin, r#"{ repositories: ["up/bad/**"] }"#);
    Wire::anonymous(gateway.port).pull_image("up/good/image", "latest", &image);
}

#[test]
fn a_blob_of_no_known_image_does_not_leave_through_a_gate() {
    let origin = Origin::start();
    let image = secret_image();
    origin.push("some/image", "latest", &image);
    let gateway = gated(
        &origin,
        &format!(r#"{{ digests: ["{}"] }}"#, image.manifest.digest),
    );
    let wire = Wire::anonymous(gateway.port);
    denied(
        &wire,
        "GET",
        &format!("/v2/up/some/image/blobs/{}", image.layers[0].digest),
        &image,
    );
    let _tried = wire.get("/v2/up/some/image/manifests/latest").expect(403);
    denied(
        &wire,
        "GET",
        &format!("/v2/up/some/image/blobs/{}", image.layers[0].digest),
        &image,
    );
}

#[test]
fn a_hosted_image_is_gated_as_a_mirrored_one() {
    let plugins = GATE
        .replace("CONFIG", r#"{ repositories: ["apps/bad"] }"#)
        .replace("up/**", "apps/**");
    let gateway = Gateway::start_with(&usual_config("", &plugins), |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    let image = secret_image();
    for blob in image.blobs() {
        wire.push_blob("apps/bad", blob).expect(201);
    }
    wire.push_manifest("apps/bad", "latest", MANIFEST, image.manifest.bytes.clone())
        .expect(201);
    denied(&wire, "GET", "/v2/apps/bad/manifests/latest", &image);
    denied(
        &wire,
        "HEAD",
        &format!("/v2/apps/bad/blobs/{}", image.layers[0].digest),
        &image,
    );
}

// --- every read path ---

/// One way to ask for something of the denied repository.
struct Way {
    method: &'static str,
    path: String,
    header: Option<(&'static str, &'static str)>,
    /// At the listener that is the mirror's own.
    bound: bool,
}

/// Every way to read the denied image: each content by each spelling, and what only some content can be asked by.
fn every_way(image: &Image, index: &Content) -> Vec<Way> {
    let contents = [
        "manifests/latest".to_owned(),
        format!("manifests/{}", image.manifest.digest),
        "manifests/multi".to_owned(),
        format!("manifests/{}", index.digest),
        format!("blobs/{}", image.layers[0].digest),
        format!("blobs/{}", image.config.digest),
    ];
    let mut ways = Vec::new();
    let mut add = |method, path: String, header, bound| {
        ways.push(Way {
            method,
            path,
            header,
            bound,
        });
    };
    for content in &contents {
        for method in ["GET", "HEAD"] {
            add(method, format!("/v2/up/bad/image/{content}"), None, false);
            add(method, format!("/up/v2/bad/image/{content}"), None, false);
            add(
                method,
                format!("/v2/bad/image/{content}?ns=up"),
                None,
                false,
            );
            add(method, format!("/v2/bad/image/{content}"), None, false);
            let host = Some(("host", "up.example"));
            add(method, format!("/v2/bad/image/{content}"), host, false);
            add(method, format!("/v2/bad/image/{content}"), None, true);
        }
        for range in ["bytes=0-3", "bytes=-5", "bytes=2-"] {
            let range = content.starts_with("blobs/").then_some(("range", range));
            add("GET", format!("/v2/up/bad/image/{content}"), range, false);
        }
    }
    ways
}

/// How many bytes of the blobs are in an answer, in runs of at least sixteen: shorter ones are chance.
fn leaked(shown: &[u8], image: &Image) -> usize {
    let windows = image.blobs().flat_map(|blob| blob.bytes.windows(16));
    windows
        .filter(|window| shown.windows(16).any(|part| part == *window))
        .count()
}

fn assert_denied(ports: (u16, u16), way: &Way, image: &Image, when: &str) {
    let wire = Wire::anonymous(if way.bound { ports.1 } else { ports.0 });
    let headers: Vec<(&str, &str)> = way.header.into_iter().collect();
    let answer = wire.send(way.method, &way.path, &headers, "");
    let what = format!("{when}: {} {} {:?}", way.method, way.path, way.header);
    assert_eq!(answer.status, 403, "{what}: {answer:?}");
    let mut shown = format!("{:?}", answer.headers).into_bytes();
    shown.extend_from_slice(&answer.body);
    assert_eq!(leaked(&shown, image), 0, "{what} lets bytes out");
    let manifest = &image.manifest.bytes[..];
    assert!(!shown.windows(manifest.len()).any(|part| part == manifest));
    assert_eq!(answer.header("docker-content-digest"), "", "{what}");
    assert_eq!(answer.header("etag"), "", "{what}");
}

/// What is not refused, because it gives nothing away: a mount is an upload from nothing, and lists name only what was asked.
fn assert_lists_and_mounts_give_nothing(gateway: &Gateway, image: &Image, when: &str) {
    let wire = Wire::basic(gateway.port, USER);
    let digest = &image.layers[0].digest;
    let mount = format!("/v2/apps/thief/blobs/uploads/?mount={digest}&from=up/bad/image");
    let mounted = wire.send("POST", &mount, &[], "");
    assert_eq!(mounted.status, 202, "{when}: {mounted:?}");
    wire.get(&format!("/v2/apps/thief/blobs/{digest}"))
        .expect(404);
    for path in [
        format!("/v2/up/bad/image/referrers/{}", image.manifest.digest),
        "/v2/up/bad/image/tags/list".to_owned(),
    ] {
        let answer = wire.get(&path);
        assert_eq!(leaked(&answer.body, image), 0, "{when}: {path}");
    }
}

#[test]
fn a_denied_image_leaks_not_one_byte_on_any_read_path() {
    let mut origin = Origin::start();
    let image = secret_image();
    let index = index_of(&[&image]);
    for repository in ["bad/image", "good/image"] {
        origin.push(repository, "latest", &image);
        let direct = origin.direct();
        let pushed = direct.push_manifest(repository, "multi", INDEX, index.bytes.clone());
        pushed.expect(201);
    }
    let bound = free_port();
    let config = |plugins: &str| {
        let mirror = origin.mirror_entry("up", ", default: true, hosts: [up.example]");
        format!(
            "listen:\n  - 127.0.0.1:PORT\n  - {{ address: \"127.0.0.1:{bound}\", mirror: up }}\n{}",
            usual_config(&mirror, plugins)
        )
    };
    let gate = GATE.replace("CONFIG", r#"{ repositories: ["up/bad/**"] }"#);
    let (open, gated) = (config(""), config(&gate));
    let mut gateway = Gateway::start_with(&gated, |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    });
    let ports = (gateway.port, bound);
    let ways = every_way(&image, &index);
    let check = |gateway: &Gateway, when: &str| {
        for way in &ways {
            assert_denied(ports, way, &image, when);
        }
        assert_lists_and_mounts_give_nothing(gateway, &image, when);
    };
    check(&gateway, "nothing is cached");
    Wire::anonymous(gateway.port).pull_image("up/good/image", "latest", &image);
    check(&gateway, "its bytes are here for another repository");
    gateway.write_config(&open);
    gateway.restart();
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/bad/image", "latest", &image);
    wire.get("/v2/up/bad/image/manifests/multi").expect(200);
    gateway.write_config(&gated);
    gateway.restart();
    check(&gateway, "it was served before it was denied");
    origin.stop();
    check(&gateway, "the upstream is down");
}

#[test]
fn a_denied_blob_is_denied_while_it_is_being_filled_for_others() {
    let origin = Origin::start();
    let image = Image::random(500_000);
    for repository in ["bad/image", "good/image"] {
        origin.push(repository, "latest", &image);
    }
    let gateway = gated(&origin, r#"{ repositories: ["up/bad/**"] }"#);
    let wire = Wire::anonymous(gateway.port);
    let layer = &image.layers[0];
    wire.get("/v2/up/good/image/manifests/latest").expect(200);
    origin.break_paths(&layer.digest, Fault::HoldAt(100_000));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| wire.get(&format!("/v2/up/good/image/blobs/{}", layer.digest)));
        wait_until("the fill", Duration::from_secs(30), || {
            gateway.metric("gantry_fills_running") > 0.0
        });
        let path = format!("/v2/up/bad/image/blobs/{}", layer.digest);
        denied(&wire, "GET", &path, &image);
        denied(&wire, "HEAD", &path, &image);
        let part = wire.send("GET", &path, &[("range", "bytes=0-99")], "");
        assert_eq!(part.status, 403);
        assert!(
            gateway.metric("gantry_fills_running") > 0.0,
            "it is still being filled"
        );
        origin.heal();
        assert_eq!(reader.join().unwrap().expect(200).body, layer.bytes);
    });
}

// --- what tells of a denied image, or vouches for it ---

const ENDED: &str = "org.example.support";

/// A gateway that denies images whose manifest says that their support ended, in both kinds of repositories.
fn gated_by_annotation(origin: &Origin) -> Gateway {
    let plugins = GATE
        .replace(
            "CONFIG",
            r#"{ annotations: { "org.example.support": "ended*" } }"#,
        )
        .replace(r#""up/**""#, r#""up/**", "apps/**""#);
    Gateway::start_with(
        &usual_config(&origin.mirror_entry("up", ""), &plugins),
        |folder| {
            fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
        },
    )
}

/// Something that refers to `subject`, with what it says of itself.
fn referrer(subject: &Image, artifact_type: &str, annotations: &Value) -> Image {
    let mut image = Image::random(50);
    let mut document: Value = serde_json::from_slice(&image.manifest.bytes).unwrap();
    document["subject"] = subject.manifest.descriptor(MANIFEST);
    document["artifactType"] = artifact_type.into();
    document["annotations"] = annotations.clone();
    image.manifest = Content::new(document.to_string());
    image
}

/// The digests that a list of referrers names, and its whole text.
fn listed(wire: &Wire, path: &str) -> (Vec<String>, String) {
    let answer = wire.get(path).expect(200);
    let index = answer.json();
    let descriptors = index["manifests"].as_array().unwrap();
    let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap().to_owned();
    (descriptors.iter().map(digest).collect(), index.to_string())
}

#[test]
fn a_list_of_referrers_does_not_tell_of_one_that_is_denied() {
    let origin = Origin::start();
    let gateway = gated_by_annotation(&origin);
    let wire = Wire::basic(gateway.port, USER);
    let subject = Image::random(100);
    let good = referrer(&subject, "application/x.sbom", &json!({}));
    let said = json!({ ENDED: "ended-2024", "secret": "what nobody may read" });
    let bad = referrer(&subject, "application/x.sbom", &said);
    let direct = origin.direct();
    for (wire, repository) in [(&direct, "lib/image"), (&wire, "apps/image")] {
        wire.push_image(repository, "latest", &subject);
        for referrer in [&good, &bad] {
            wire.push_image(repository, &referrer.manifest.digest, referrer);
        }
    }
    // The origin has no referrers API, so its clients keep the list themselves.
    let mut index: Value = serde_json::from_slice(&index_of(&[&good, &bad]).bytes).unwrap();
    for descriptor in index["manifests"].as_array_mut().unwrap() {
        descriptor["artifactType"] = "application/x.sbom".into();
    }
    index["manifests"][1]["annotations"] = said;
    let tag = subject.manifest.digest.replace(':', "-");
    direct
        .push_manifest("lib/image", &tag, INDEX, index.to_string())
        .expect(201);
    for repository in ["up/lib/image", "apps/image"] {
        let list = format!("/v2/{repository}/referrers/{}", subject.manifest.digest);
        let types = ["", "?artifactType=application/x.sbom"];
        for path in types.map(|filter| format!("{list}{filter}")) {
            for _round in 0..2 {
                let (digests, text) = listed(&wire, &path);
                assert_eq!(
                    digests,
                    std::slice::from_ref(&good.manifest.digest),
                    "{path}"
                );
                assert!(!text.contains("nobody may read"), "{path}: {text}");
            }
        }
        denied(
            &wire,
            "GET",
            &format!("/v2/{repository}/manifests/{}", bad.manifest.digest),
            &bad,
        );
    }
}

/// An image manifest that names `layer` as one that lies elsewhere, and an index that lists it as if it were a manifest.
fn vouchers(config: &Content, layer: &Content) -> [(&'static str, String); 2] {
    let mut elsewhere = layer.descriptor("application/vnd.oci.image.layer.v1.tar");
    elsewhere["urls"] = json!(["https://example.invalid/layer"]);
    let image = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [elsewhere],
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [layer.descriptor(MANIFEST)],
    });
    [(MANIFEST, image.to_string()), (INDEX, index.to_string())]
}

#[test]
fn a_layer_of_a_denied_image_is_not_freed_by_who_names_it_without_having_it() {
    let origin = Origin::start();
    let gateway = gated_by_annotation(&origin);
    let wire = Wire::basic(gateway.port, USER);
    let layer = secret_image().layers.remove(0);
    let bad = Image::annotated(vec![layer.clone()], &json!({ ENDED: "ended-2024" }));
    let config = Content::new("{}");
    for (to, repository) in [(&origin.direct(), "lib/image"), (&wire, "apps/image")] {
        to.push_image(repository, "latest", &bad);
        to.push_blob(repository, &config).expect(201);
    }
    for (number, (kind, document)) in vouchers(&config, &layer).into_iter().enumerate() {
        let tag = format!("mine-{number}");
        let pushed = wire.push_manifest("apps/image", &tag, kind, document.clone());
        pushed.expect(201);
        // Distribution wants the manifests of an index, so upstream there is only the image.
        if kind == MANIFEST {
            let pushed = origin
                .direct()
                .push_manifest("lib/image", &tag, kind, document);
            pushed.expect(201);
            wire.get(&format!("/v2/up/lib/image/manifests/{tag}"))
                .expect(200);
        }
    }
    for repository in ["up/lib/image", "apps/image"] {
        denied(
            &wire,
            "GET",
            &format!("/v2/{repository}/manifests/latest"),
            &bad,
        );
        for method in ["GET", "HEAD"] {
            let path = format!("/v2/{repository}/blobs/{}", layer.digest);
            denied(&wire, method, &path, &bad);
        }
    }
}

// --- hold ---

/// A gateway whose plugin answers about every served manifest of `up`, and one pull: its answer and how long it took.
fn held(answer: &str, hold_for: &str) -> (Answer, Duration) {
    let origin = Origin::start();
    let image = Image::random(100);
    origin.push("a/b", "latest", &image);
    let plugins = format!(
        "  - name: scan\n    from: ./hostile.wasm\n    repositories: [\"up/**\"]\n    changes: [serve-manifest]\n    hold_for: {hold_for}\n    grants: {{ kv: [granted] }}\n    config: {{ answer: {answer} }}\n"
    );
    let config = usual_config(&origin.mirror_entry("up", ""), &plugins);
    let gateway = Gateway::start_with(&config, |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    });
    let begun = Instant::now();
    let answer = Wire::anonymous(gateway.port).get("/v2/up/a/b/manifests/latest");
    let took = begun.elapsed();
    if answer.status == 200 {
        assert_eq!(answer.body, image.manifest.bytes);
    } else {
        assert_eq!(leaked(&answer.body, &image), 0);
    }
    (answer, took)
}

#[test]
fn a_pull_that_is_held_waits_and_is_served_when_it_is_let_go() {
    let (answer, took) = held("hold-once", "30s");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(took >= Duration::from_millis(200), "{took:?}");
}

#[test]
fn a_hold_that_lasts_is_503_with_the_plugins_retry_after_within_its_bound() {
    let (answer, took) = held("hold", "600ms");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("retry-after"), "5");
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let (answer, _at_once) = held("hold", "0s");
    assert_eq!(answer.status, 503, "{answer:?}");
}
