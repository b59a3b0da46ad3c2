//! The gateway holds no policy of its own: a third party's component, built from wit/ alone, takes the place of every built-in and keeps
//! the same promises.

use std::fs;

use tests::{
    Gateway, Image, Wire,
    dockerd::Dockerd,
    gateway::{USER, usual_config},
    guests::component,
    image::MANIFEST,
};

const THIRD_PARTY: &str = r#"
hosted: { names: ["apps/**", "team/**"] }
plugins:
  - name: people
    from: ./third_party.wasm
    ids: ["user:*"]
    config: { users: { file: ./htpasswd } }
  - name: access
    from: ./third_party.wasm
    config:
      rules:
        - { who: [anonymous], may: [pull], what: ["apps/public/**"] }
        - { who: ["user:*"], may: [pull, push, delete, catalog], what: ["**"] }
  - name: releases
    from: ./third_party.wasm
    repositories: ["apps/**"]
    config: { immutable: ["v*"], except: ["*-rc*"], message: "{{tag}} is released; push a new version" }
"#;

fn third_party() -> Gateway {
    Gateway::start_with(THIRD_PARTY, |folder| {
        fs::copy(
            component("guest-third-party"),
            folder.join("third_party.wasm"),
        )
        .unwrap();
    })
}

/// What htpasswd, access and immutable-tags promise together.
fn keeps_the_promises(gateway: &Gateway) {
    let (known, anonymous) = (
        Wire::basic(gateway.port, USER),
        Wire::anonymous(gateway.port),
    );
    known.get("/v2/").expect(200);
    for stranger in [(USER.0, "wrong"), ("nobody", "x")] {
        let refused = Wire::basic(gateway.port, stranger)
            .get("/token?service=x")
            .expect(401);
        assert_eq!(refused.message(), "invalid username or password");
    }
    let (first, second) = (Image::random(10), Image::random(10));
    for name in ["apps/public/x", "apps/web"] {
        known.push_image(name, "v1", &first);
        known.push_image(name, "v1", &first);
        known.push_image(name, "v1-rc1", &first);
        known.push_image(name, "v1-rc1", &second);
        let refused = known
            .push_manifest(name, "v1", MANIFEST, second.manifest.bytes.clone())
            .expect(403);
        assert_eq!(refused.code(), "DENIED");
        known
            .delete(&format!("/v2/{name}/manifests/v1"))
            .expect(403);
    }
    anonymous.pull_image("apps/public/x", "v1", &first);
    anonymous.get("/v2/apps/web/manifests/v1").expect(401);
    anonymous
        .send("POST", "/v2/apps/public/x/blobs/uploads/", &[], "")
        .expect(401);
    known.get("/v2/_catalog").expect(200);
    anonymous.get("/v2/_catalog").expect(401);
}

#[test]
fn a_third_party_keeps_every_promise_of_the_built_in_plugins() {
    keeps_the_promises(&Gateway::start(&usual_config("", "")));
    keeps_the_promises(&third_party());
}

#[test]
fn docker_logs_in_to_a_third_partys_users() {
    let gateway = third_party();
    let docker = Dockerd::start(None);
    docker.login(&gateway.host(), (USER.0, "wrong")).fails();
    docker.login(&gateway.host(), USER).ok();
}
