//! A client that may pull one image gets its layers, however many denied images name them and however many layers the image has.

use std::{fs, path::Path};

use tests::{
    Gateway, Image, Wire,
    gateway::{OTHER, USER, usual_config},
    guests::component,
    image::{Content, MANIFEST},
};

const GATE: &str = r#"  - name: gate
    from: ./deny_image.wasm
    repositories: ["team/**"]
    changes: [serve-manifest, serve-blob]
    grants: { registry: ["team/**"] }
    config: { annotations: { org.example.support: "ended*" } }
"#;

fn start(prepare: impl FnOnce(&Path)) -> Gateway {
    Gateway::start_with(&usual_config("", GATE), |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
        prepare(folder);
    })
}

/// Pushes an image of the layer that the policy denies.
fn push_denied(wire: &Wire, layer: &Content, number: usize) {
    let mark = serde_json::json!({ "org.example.support": format!("ended {number}") });
    let image = Image::annotated(vec![layer.clone()], &mark);
    wire.push_manifest(
        "team/web",
        &image.manifest.digest,
        MANIFEST,
        image.manifest.bytes.clone(),
    )
    .expect(201);
}

#[test]
fn an_allowed_image_is_pulled_whole_beside_three_hundred_denied_ones_of_the_same_layer() {
    let gateway = start(|_folder| {});
    let (alice, bob) = (
        Wire::basic(gateway.port, USER),
        Wire::basic(gateway.port, OTHER),
    );
    let allowed = Image::random(100);
    alice.push_image("team/web", "allowed", &allowed);
    let layer = &allowed.layers[0];
    let path = format!("/v2/team/web/blobs/{}", layer.digest);
    for number in 0..300 {
        push_denied(&alice, layer, number);
    }
    // Also by a client that has pulled nothing before.
    bob.get(&path).expect(200);
    alice.pull_image("team/web", "allowed", &allowed);
    alice
        .delete(&format!(
            "/v2/team/web/manifests/{}",
            allowed.manifest.digest
        ))
        .expect(202);
    for wire in [&alice, &bob] {
        assert_eq!(
            wire.get(&path).has(403).message(),
            "this image is denied here"
        );
    }
}

/// Lays an image out as Distribution does.
fn lay_out(root: &Path, image: &Image) {
    let registry = root.join("docker/registry/v2");
    let write = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let repository = registry.join("repositories/team/large");
    for content in image.blobs().chain([&image.manifest]) {
        let hex = content.digest.strip_prefix("sha256:").unwrap();
        let data = registry.join(format!("blobs/sha256/{hex:.2}/{hex}/data"));
        write(&data, &content.bytes);
        let link = repository.join(format!("_layers/sha256/{hex}/link"));
        write(&link, content.digest.as_bytes());
    }
    let hex = image.manifest.digest.strip_prefix("sha256:").unwrap();
    for link in [
        format!("_manifests/revisions/sha256/{hex}/link"),
        "_manifests/tags/v1/current/link".to_owned(),
        format!("_manifests/tags/v1/index/sha256/{hex}/link"),
    ] {
        write(&repository.join(link), image.manifest.digest.as_bytes());
    }
}

#[test]
fn an_image_of_twenty_five_thousand_layers_is_pulled_through_a_policy() {
    let layers = (0..25_000).map(|number| Content::new(format!("{number:05}")));
    let image = Image::of_layers(layers.collect());
    let gateway = start(|folder| lay_out(&folder.join("data"), &image));
    let wire = Wire::basic(gateway.port, USER);
    let manifest = wire.get("/v2/team/large/manifests/v1").expect(200);
    assert_eq!(manifest.body, image.manifest.bytes);
    // Each costs the policy the whole manifest: ten of them stand for all.
    for layer in image.layers.iter().step_by(2_500) {
        let path = format!("/v2/team/large/blobs/{}", layer.digest);
        assert_eq!(wire.get(&path).expect(200).body, layer.bytes);
        wire.head(&path).expect(200);
    }
}
