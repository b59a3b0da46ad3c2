//! A released tag stays what it was, on every way to change it, and however many race for it.

use std::{sync::Barrier, thread};

use tests::{
    Gateway, Image, Wire,
    gateway::{USER, usual_config},
    image::{Content, MANIFEST},
};

const SENTENCE: &str = "v1 is released; push a new version";

#[test]
fn the_same_bytes_may_be_pushed_again_and_others_may_not() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let (first, second) = (Image::random(100), Image::random(100));
    wire.push_image("apps/web", "v1", &first);
    wire.push_image("apps/web", "v1", &first);
    second
        .blobs()
        .for_each(|blob| drop(wire.push_blob("apps/web", blob).expect(201)));
    let refused = wire
        .push_manifest("apps/web", "v1", MANIFEST, second.manifest.bytes.clone())
        .expect(403);
    assert_eq!(
        (refused.code().as_str(), refused.message().as_str()),
        ("DENIED", SENTENCE)
    );
    wire.pull_image("apps/web", "v1", &first);
}

#[test]
fn latest_and_release_candidates_and_signatures_may_move() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let signature = format!("sha256-{}.sig", "a".repeat(64));
    for tag in ["latest", "v1-rc1", &signature] {
        let (first, second) = (Image::random(100), Image::random(100));
        wire.push_image("apps/web", tag, &first);
        wire.push_image("apps/web", tag, &second);
        wire.pull_image("apps/web", tag, &second);
    }
}

#[test]
fn a_released_tag_cannot_be_deleted_by_any_form() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(100);
    wire.push_image("apps/web", "v1", &image);
    wire.push_manifest("apps/web", "latest", MANIFEST, image.manifest.bytes.clone())
        .expect(201);
    assert_eq!(
        wire.delete("/v2/apps/web/manifests/v1")
            .expect(403)
            .message(),
        SENTENCE
    );
    let by_digest = format!("/v2/apps/web/manifests/{}", image.manifest.digest);
    assert_eq!(wire.delete(&by_digest).expect(403).code(), "DENIED");
    wire.delete("/v2/apps/web/manifests/latest").expect(202);
    wire.pull_image("apps/web", "v1", &image);
}

#[test]
fn a_released_tag_cannot_be_moved_by_the_tag_parameter_and_nothing_of_the_push_happens() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let (first, second) = (Image::random(100), Image::random(100));
    wire.push_image("apps/web", "v1", &first);
    second
        .blobs()
        .for_each(|blob| drop(wire.push_blob("apps/web", blob).expect(201)));
    let path = format!("{}?tag=new&tag=v1", second.manifest.digest);
    assert_eq!(
        wire.push_manifest("apps/web", &path, MANIFEST, second.manifest.bytes.clone())
            .expect(403)
            .message(),
        SENTENCE
    );
    assert_eq!(
        wire.get("/v2/apps/web/manifests/new").expect(404).code(),
        "MANIFEST_UNKNOWN"
    );
    wire.pull_image("apps/web", "v1", &first);
}

#[test]
fn audit_mode_decides_and_never_enforces() {
    let config = usual_config("", "").replace(
        "    repositories: [\"apps/**\"]\n",
        "    repositories: [\"apps/**\"]\n    mode: audit\n",
    );
    let gateway = Gateway::start(&config);
    let wire = Wire::basic(gateway.port, USER);
    let second = Image::random(100);
    wire.push_image("apps/web", "v1", &Image::random(100));
    wire.push_image("apps/web", "v1", &second);
    wire.pull_image("apps/web", "v1", &second);
    assert!(
        gateway.log().contains("immutable-tags"),
        "the audit log names the rule that would have refused"
    );
}

#[test]
fn of_two_racing_pushes_to_one_released_tag_exactly_one_wins_a_thousand_times() {
    const ROUNDS: usize = 1000;
    let gateway = Gateway::usual();
    let config = Content::new("{}");
    let wire = Wire::basic(gateway.port, USER);
    wire.push_blob("apps/race", &config).expect(201);
    let manifest = |racer: usize, round: usize| {
        let document = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
            "config": config.descriptor("application/vnd.oci.empty.v1+json"),
            "annotations": { "racer": format!("{racer}-{round}") },
        });
        Content::new(document.to_string())
    };
    let start = Barrier::new(2);
    let results: Vec<Vec<u16>> = thread::scope(|scope| {
        let race = |racer: usize| {
            let (wire, start, manifest) = (wire.clone(), &start, &manifest);
            scope.spawn(move || {
                let push = |round| {
                    let content = manifest(racer, round).bytes;
                    let tag = format!("v{round}");
                    start.wait();
                    loop {
                        let answer =
                            wire.push_manifest("apps/race", &tag, MANIFEST, content.clone());
                        // A plugin that gets no processor for its whole limit decided nothing.
                        if answer.status != 503 {
                            return answer.status.as_u16();
                        }
                    }
                };
                // The other racer would wait for ever for one that panics.
                (0..ROUNDS).map(push).collect()
            })
        };
        let racers = [race(0), race(1)];
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .collect()
    });
    for (round, won) in results[0].iter().zip(&results[1]).enumerate() {
        let winner = match won {
            (201, 403) => 0,
            (403, 201) => 1,
            both => panic!("round {round}: {both:?}"),
        };
        let stored = wire
            .get(&format!("/v2/apps/race/manifests/v{round}"))
            .expect(200);
        assert_eq!(
            stored.body,
            manifest(winner, round).bytes,
            "the winner's bytes are there"
        );
    }
}
