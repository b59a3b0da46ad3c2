//! A plugin may fail at any instant: the answer is 503, nobody becomes anonymous, and others go on.

use std::fs;

use tests::{
    Gateway, Image, Wire,
    gateway::{OTHER, USER, usual_config},
    guests::component,
};

/// The usual gateway, with the hostile guest last in its list, doing `what` in the hook `at`.
fn with_hostile(what: &str, at: &str, more: &str) -> Gateway {
    let plugin = format!(
        "  - name: hostile\n    from: ./hostile.wasm\n{more}    config: {{ do: {what}, at: {at} }}\n"
    );
    Gateway::start_with(&usual_config("", &plugin), |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    })
}

#[test]
fn a_failing_authenticator_is_503_never_anonymous_and_known_users_go_on() {
    for what in ["trap", "loop", "memory", "stack"] {
        let gateway = with_hostile(
            what,
            "authenticate",
            "    limits: { cpu: 50ms, deadline: 500ms }\n",
        );
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
        let gateway = with_hostile(what, "admit", "    repositories: [\"team/gated/**\"]\n");
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
fn what_a_failing_gate_means_is_its_bindings_word() {
    // Without a grant to read manifests this policy cannot judge a blob: it fails.
    let plugin = |on_error: &str| {
        format!(
            "  - name: gate\n    from: ./deny_image.wasm\n    repositories: [\"team/**\"]\n    changes: [serve-blob]\n    on_error: {on_error}\n    config: {{ annotations: {{ org.example: \"x*\" }} }}\n"
        )
    };
    for (on_error, status) in [("deny", 503), ("{ skip: clients_can_force_this }", 200)] {
        let gateway = Gateway::start_with(&usual_config("", &plugin(on_error)), |folder| {
            fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
        });
        let wire = Wire::basic(gateway.port, USER);
        let image = Image::random(10);
        wire.push_image("team/web", "latest", &image);
        let _served = wire.get("/v2/team/web/manifests/latest").expect(200);
        let blob = format!("/v2/team/web/blobs/{}", image.layers[0].digest);
        assert_eq!(wire.get(&blob).status, status, "on_error: {on_error}");
    }
}

#[test]
fn a_gate_that_fails_after_it_accepted_counts_with_its_last_answer_where_its_binding_says() {
    let plugin = |on_error: &str| {
        format!(
            "  - name: moody\n    from: ./moody.wasm\n    repositories: [\"team/**\"]\n    changes: [serve-manifest]\n    on_error: {on_error}\n    grants: {{ registry: [\"apps/mood\"] }}\n"
        )
    };
    for (on_error, status) in [("deny", 503), ("last_known", 200)] {
        let gateway = Gateway::start_with(&usual_config("", &plugin(on_error)), |folder| {
            fs::copy(component("moody"), folder.join("moody.wasm")).unwrap();
        });
        let wire = Wire::basic(gateway.port, USER);
        for tag in ["known", "new"] {
            wire.push_image("team/web", tag, &Image::random(10));
        }
        let known = "/v2/team/web/manifests/known";
        wire.get(known).expect(200);
        wire.push_image("apps/mood", "bad", &Image::random(10));
        assert_eq!(wire.get(known).status, status, "on_error: {on_error}");
        // No answer is known about this one, and none of somebody else's counts.
        wire.get("/v2/team/web/manifests/new").expect(503);
        Wire::basic(gateway.port, OTHER).get(known).expect(503);
    }
}
