//! A plugin may fail at any instant: the answer is 503, nobody becomes anonymous, and others go on.

use std::fs;

use tests::{
    Gateway, Image, Wire,
    gateway::{USER, usual_config},
    guests::component,
};

/// The usual gateway, with the hostile guest as `name` in its list, doing `what`.
fn with_hostile(what: &str, more: &str) -> Gateway {
    let plugin = format!(
        "  - name: hostile\n    from: ./hostile.wasm\n{more}    config: {{ do: {what} }}\n"
    );
    Gateway::start_with(&usual_config("", &plugin), |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    })
}

#[test]
fn a_failing_authenticator_is_503_never_anonymous_and_known_users_go_on() {
    for what in ["trap", "loop", "memory", "stack", "bad-identity"] {
        let gateway = with_hostile(what, "    limits: { cpu: 50ms, deadline: 500ms }\n");
        // The htpasswd plugin comes first and knows alice; the hostile one is asked about strangers only.
        Wire::basic(gateway.port, USER).push_image("team/web", "latest", &Image::random(10));
        let stranger = Wire::basic(gateway.port, ("stranger", "x"));
        for path in ["/v2/", "/v2/apps/public/x/tags/list", "/token?service=x"] {
            let answer = stranger.get(path).expect(503);
            assert!(
                !String::from_utf8_lossy(&answer.body).contains("hostile"),
                "{what}: {answer:?}"
            );
        }
        Wire::anonymous(gateway.port)
            .get("/v2/apps/public/x/tags/list")
            .expect(404);
        assert!(
            gateway.log().contains("hostile"),
            "{what}: the log names the plugin"
        );
    }
}

#[test]
fn a_failing_admission_is_503_and_nothing_is_visible() {
    for what in ["trap", "loop", "memory"] {
        let gateway = with_hostile(what, "    repositories: [\"team/gated/**\"]\n");
        let wire = Wire::basic(gateway.port, USER);
        let image = Image::random(10);
        image
            .blobs()
            .for_each(|blob| drop(wire.push_blob("team/gated/web", blob).expect(201)));
        wire.push_manifest(
            "team/gated/web",
            "latest",
            tests::image::MANIFEST,
            image.manifest.bytes.clone(),
        )
        .expect(503);
        wire.get("/v2/team/gated/web/manifests/latest").expect(404);
        wire.push_image("team/web", "latest", &image);
    }
}

#[test]
fn a_failing_plugin_that_may_be_skipped_is_skipped() {
    let gateway = with_hostile(
        "trap",
        "    repositories: [\"team/gated/**\"]\n    changes: [serve-manifest]\n    on_error: skip\n",
    );
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(10);
    wire.push_image("team/gated/web", "latest", &image);
    wire.pull_image("team/gated/web", "latest", &image);
}
