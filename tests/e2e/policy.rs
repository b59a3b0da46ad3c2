//! The sentence we sell: a denied image is denied on its very first proxied pull, on every way in, and nothing of it leaves.

use std::fs;

use tests::{
    Gateway, Image, Origin, Wire,
    gateway::usual_config,
    guests::component,
    image::{Content, INDEX, MANIFEST, annotated_index, index_of},
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
    let wire = Wire::basic(gateway.port, tests::gateway::USER);
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
