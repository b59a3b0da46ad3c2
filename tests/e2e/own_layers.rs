//! A layer that a policy denies to a client is absent for that client's pushes: it uploads the layer, and then owns it.

use std::fs;

use serde_json::Value;
use tests::{
    Gateway, Image, Wire,
    gateway::{OTHER, USER, usual_config},
    guests::component,
    image::{Content, MANIFEST},
};

use crate::clients::dockerd;

/// A gateway that denies images which carry a mark. With `hide`, it also rejects lists.
fn gateway(hide: bool) -> Gateway {
    let gate = format!(
        r#"  - name: gate
    from: ./deny_image.wasm
    repositories: ["team/**"]
    changes: [serve-manifest, serve-blob, serve-list]
    grants: {{ registry: ["team/**"] }}
    config: {{ annotations: {{ org.example.support: "ended" }}, hide: {hide} }}
"#
    );
    let config = usual_config("", &gate).replace(
        "      rules:\n",
        "      rules:\n        - { who: [anonymous], may: [pull], what: [\"team/**\"] }\n",
    );
    Gateway::start_with(&config, |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    })
}

/// Pushes, as alice, the same blobs under a manifest that the policy denies.
fn push_denied(gateway: &Gateway, blobs: Vec<Content>) -> Image {
    let mark = serde_json::json!({ "org.example.support": "ended" });
    let image = Image::annotated(blobs, &mark);
    Wire::basic(gateway.port, USER).push_image("team/web", "denied", &image);
    image
}

#[test]
fn a_denied_layer_is_absent_for_whoever_may_push_and_can_be_uploaded_anew() {
    for hide in [false, true] {
        let gateway = gateway(hide);
        let image = push_denied(&gateway, vec![Content::random(200)]);
        let layer = &image.layers[0];
        let path = format!("/v2/team/web/blobs/{}", layer.digest);
        let missing = format!("/v2/team/web/blobs/{}", Content::random(20).digest);
        let (alice, bob, reader) = (
            Wire::basic(gateway.port, USER),
            Wire::basic(gateway.port, OTHER),
            Wire::anonymous(gateway.port),
        );
        bob.head(&path).expect(404);
        bob.head(&missing).expect(404);
        bob.get(&path).expect(403);
        reader.head(&path).expect(403);
        // It is a part of a denied image, whoever uploaded it.
        alice.head(&path).expect(403);
        alice.get(&path).expect(403);
        // A push that broke off goes on.
        let begun = Content::random(30);
        let begun_path = format!("/v2/team/web/blobs/{}", begun.digest);
        bob.push_blob("team/web", &begun).expect(201);
        let own = bob.head(&begun_path).expect(200);
        assert_eq!(own.header("content-length"), "30");
        alice.head(&begun_path).expect(404);
        reader.head(&begun_path).expect(403);

        let allowed = Image::of_layers(vec![layer.clone()]);
        bob.push_blob("team/web", &allowed.config).expect(201);
        let push =
            || bob.push_manifest("team/web", "bob", MANIFEST, allowed.manifest.bytes.clone());
        assert_eq!(push().has(400).code(), "MANIFEST_BLOB_UNKNOWN");
        bob.push_blob("team/web", layer).expect(201);
        bob.head(&path).expect(200);
        push().expect(201);
        bob.head(&path).expect(200);
        reader.pull_image("team/web", "bob", &allowed);
    }
}

#[test]
fn docker_uploads_a_layer_that_a_policy_denies_to_it_and_its_push_works() {
    let gateway = gateway(false);
    let (host, docker) = (gateway.host(), dockerd());
    let base = format!("{host}/team/web:base");
    docker.make_image(&base, "the base layer");
    docker.login(&host, USER).ok();
    docker.docker(&["push", &base]).ok();
    // Alice's image is denied from now on: only a manifest that carries the mark names its blobs.
    let alice = Wire::basic(gateway.port, USER);
    let pushed = alice.get("/v2/team/web/manifests/base").expect(200);
    let mut marked: Value = pushed.json();
    let digest = pushed.header("docker-content-digest");
    marked["annotations"] = serde_json::json!({ "org.example.support": "ended" });
    let media_type = pushed.header("content-type");
    alice
        .push_manifest("team/web", "base", &media_type, marked.to_string())
        .expect(201);
    alice
        .delete(&format!("/v2/team/web/manifests/{digest}"))
        .expect(202);
    let layer = marked["layers"][0]["digest"].as_str().unwrap();
    let bob = Wire::basic(gateway.port, OTHER);
    bob.head(&format!("/v2/team/web/blobs/{layer}")).expect(404);

    let (own, container) = (
        format!("{host}/team/web:own"),
        format!("own-{}", gateway.port),
    );
    docker
        .docker(&["create", "--name", &container, &base, "/content"])
        .ok();
    docker.docker(&["commit", &container, &own]).ok();
    docker.docker(&["rm", &container]).ok();
    docker.login(&host, OTHER).ok();
    docker.docker(&["push", &own]).ok();
    let pushed = bob.get("/v2/team/web/manifests/own").expect(200).json();
    let layers = pushed["layers"].as_array().unwrap();
    assert!(layers.iter().any(|own| own["digest"] == layer), "{pushed}");
    bob.get(&format!("/v2/team/web/blobs/{layer}")).expect(200);
}
