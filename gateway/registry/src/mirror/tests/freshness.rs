//! A tag costs the upstream as little as it can: one GET when cold, one HEAD when it must be confirmed, nothing while it is fresh.

use std::{sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use gantry_model::{Digest, Reference, RepositoryName};
use gantry_storage::{Commit, TagMove};
use gantry_upstream::Kind;

use super::{
    upstream::{Call, fetched},
    world::{
        FRESH_FOR, FRESHNESS, NOT_FOUND_FOR, STALE_IF_ERROR, World, content, image, repository,
        sha256, tagged,
    },
};
use crate::{
    error::Error,
    outcome::Stale,
    ports::{Clock as _, Freshness, Moves},
};

const NAME: &str = "library/alpine";

fn by_digest(digest: &Digest) -> Reference {
    Reference::Digest(digest.clone())
}

/// Two different images.
fn images() -> (bytes::Bytes, bytes::Bytes) {
    let (old, new) = (sha256(b"old"), sha256(b"new"));
    (image(&[(&old, 3)]), image(&[(&new, 3)]))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_cold_pulls_of_a_tag_cost_one_get() {
    let world = Arc::new(World::new());
    let manifest = image(&[]);
    world.manifest(NAME, "latest", &manifest);
    let pulls = (0..1000).map(|_| {
        let world = Arc::clone(&world);
        tokio::spawn(async move { world.pull(NAME, "latest").await.unwrap() })
    });
    for pulled in join_all(pulls).await {
        let pulled = pulled.unwrap();
        assert_eq!(pulled.bytes, manifest);
        assert_eq!(pulled.tag.unwrap().digest, sha256(&manifest));
    }
    assert_eq!(world.upstream.calls(), [Call::Manifest(tagged("latest"))]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_does_not_cancel_the_pull_of_others() {
    let world = World::new();
    let manifest = image(&[]);
    world.manifest(NAME, "latest", &manifest);
    let gate = world.upstream.gate();
    assert!(world.pull(NAME, "latest").now_or_never().is_none());
    world.upstream.asked(1).await;
    let mut second = Box::pin(world.pull(NAME, "latest"));
    assert!((&mut second).now_or_never().is_none());
    gate.add_permits(1);
    assert_eq!(second.await.unwrap().bytes, manifest);
    assert_eq!(world.upstream.calls(), [Call::Manifest(tagged("latest"))]);
}

#[tokio::test(start_paused = true)]
async fn a_fresh_tag_asks_nothing_and_an_old_one_a_head() {
    let world = World::new();
    let manifest = image(&[]);
    world.manifest(NAME, "latest", &manifest);
    world.pull(NAME, "latest").await.unwrap();
    world.upstream.calls();
    world.clock.advance(FRESH_FOR - Duration::from_millis(1));
    world.pull(NAME, "latest").await.unwrap();
    assert_eq!(world.upstream.calls(), []);
    world.clock.advance(Duration::from_millis(1));
    let confirmed = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(confirmed.bytes, manifest);
    assert_eq!(confirmed.stale, None);
    assert_eq!(world.upstream.calls(), [Call::Head(tagged("latest"))]);
    world.clock.advance(FRESH_FOR - Duration::from_millis(1));
    world.pull(NAME, "latest").await.unwrap();
    assert_eq!(world.upstream.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_costs_a_head_and_a_get_by_digest() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    let digest = world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    world.upstream.calls();
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, new);
    let asked = [
        Call::Head(tagged("latest")),
        Call::Manifest(by_digest(&digest)),
    ];
    assert_eq!(world.upstream.calls(), asked);
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, new);
    assert_eq!(world.upstream.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_moves_to_known_content_costs_a_head() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.manifest(NAME, "edge", &new);
    world.pull(NAME, "latest").await.unwrap();
    world.pull(NAME, "edge").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    world.upstream.calls();
    let pulled = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(pulled.bytes, new);
    assert_eq!(pulled.tag.unwrap().digest, sha256(&new));
    assert_eq!(world.upstream.calls(), [Call::Head(tagged("latest"))]);
}

#[tokio::test(start_paused = true)]
async fn a_head_without_a_digest_costs_a_get_of_the_tag() {
    let world = World::new();
    let (old, new) = images();
    world.upstream.script().head_hides_digest = true;
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    for manifest in [&old, &new] {
        world.manifest(NAME, "latest", manifest);
        world.clock.advance(FRESH_FOR);
        world.upstream.calls();
        assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, manifest);
        let asked = [
            Call::Head(tagged("latest")),
            Call::Manifest(tagged("latest")),
        ];
        assert_eq!(world.upstream.calls(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_names_what_is_not_there_is_no_unknown_tag() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    let digest = world.manifest(NAME, "latest", &new);
    let key = (NAME.parse().unwrap(), by_digest(&digest));
    world.upstream.script().manifests.remove(&key).unwrap();
    world.clock.advance(FRESH_FOR);
    let stale = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(stale.bytes, old);
    assert!(stale.stale.is_some());
    world
        .clock
        .advance(STALE_IF_ERROR + Duration::from_millis(1));
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_served_stale_only_so_long() {
    let world = World::new();
    world.manifest(NAME, "latest", &image(&[]));
    world.pull(NAME, "latest").await.unwrap();
    world.upstream.fail(Kind::Unavailable);
    world.clock.advance(FRESH_FOR + STALE_IF_ERROR);
    let stale = world.pull(NAME, "latest").await.unwrap().stale.unwrap();
    assert_eq!(stale.age, FRESH_FOR + STALE_IF_ERROR);
    assert_eq!(stale.why, Stale::UpstreamFails);
    world.clock.advance(Duration::from_millis(1));
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    world.upstream.recover();
    assert_eq!(world.pull(NAME, "latest").await.unwrap().stale, None);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_reference_is_not_asked_for_again_at_once() {
    let world = World::new();
    let digest = sha256(b"nothing");
    for _ in 0..3 {
        let error = world.pull(NAME, "gone").await.unwrap_err();
        assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
        let error = world.pull_digest(NAME, &digest).await.unwrap_err();
        assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
    }
    let asked = [
        Call::Manifest(tagged("gone")),
        Call::Manifest(by_digest(&digest)),
    ];
    assert_eq!(world.upstream.calls(), asked);
    world.manifest(NAME, "gone", &image(&[]));
    world.clock.advance(NOT_FOUND_FOR);
    world.pull(NAME, "gone").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_moved_the_tag_meanwhile_wins() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    let elsewhere = world.manifest(NAME, "edge", &image(&[(&sha256(b"x"), 1)]));
    world.pull(NAME, "latest").await.unwrap();
    world.pull(NAME, "edge").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    let gate = world.upstream.gate();
    let mut pull = Box::pin(world.pull(NAME, "latest"));
    assert!((&mut pull).now_or_never().is_none());
    world.upstream.asked(3).await;
    move_tag(&world, "latest", &sha256(&old), &elsewhere).await;
    gate.add_permits(2);
    let pulled = pull.await.unwrap();
    assert_eq!(pulled.record.digest, elsewhere);
    assert_eq!(pulled.tag.unwrap().digest, elsewhere);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_was_deleted_meanwhile_is_made_again() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    let digest = world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    let gate = world.upstream.gate();
    let mut pull = Box::pin(world.pull(NAME, "latest"));
    assert!((&mut pull).now_or_never().is_none());
    world.upstream.asked(2).await;
    let delete = Commit::DeleteTag {
        repository: repository(NAME).name,
        tag: "latest".parse().unwrap(),
        expected: sha256(&old),
        at_ms: world.clock.now_ms(),
        by: "somebody".to_owned(),
    };
    world.ports.metadata.commit(delete).await.unwrap();
    gate.add_permits(2);
    assert_eq!(pull.await.unwrap().record.digest, digest);
}

/// Moves a tag as another process on the same stores would.
async fn move_tag(world: &World, tag: &str, from: &Digest, to: &Digest) {
    let name = repository(NAME).name;
    let metadata = &world.ports.metadata;
    let origin = super::world::upstream_of("https://hub.test");
    let manifest = metadata
        .manifest(&name, &origin, to)
        .await
        .unwrap()
        .unwrap();
    let push = gantry_storage::PushManifest {
        repository: name,
        origin,
        manifest,
        annotations: "{}".to_owned(),
        references: Vec::new(),
        tags: vec![TagMove {
            tag: tag.parse().unwrap(),
            expected: Some(from.clone()),
            set_immutable: false,
            checked_at_ms: world.clock.now_ms(),
        }],
        required: Vec::new(),
    };
    let commit = metadata.commit(Commit::PushManifest(Box::new(push)));
    commit.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_move_leaves_the_tag_where_it_was() {
    let world = World::new();
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    world.admission.refuse();
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    assert_eq!(world.stored(&sha256(&new)).await, None);
    let (name, latest) = (repository(NAME).name, "latest".parse().unwrap());
    let tag = world.ports.metadata.tag(&name, &latest);
    assert_eq!(tag.await.unwrap().unwrap().state.digest, sha256(&old));
}

// --- manifests that cannot be accepted ---

/// A world whose upstream answers with this for the tag and for the digest.
fn sending(media_type: &str, stated: &Digest, bytes: &bytes::Bytes) -> World {
    let world = World::new();
    let remote: RepositoryName = NAME.parse().unwrap();
    for reference in [tagged("latest"), by_digest(stated)] {
        let manifest = fetched(media_type, stated, bytes);
        let key = (remote.clone(), reference);
        world.upstream.script().manifests.insert(key, manifest);
    }
    world
}

/// Expects that nothing is kept of this.
async fn refuses(media_type: &str, stated: &Digest, bytes: &bytes::Bytes) {
    let world = sending(media_type, stated, bytes);
    for error in [
        world.pull(NAME, "latest").await.unwrap_err(),
        world.pull_digest(NAME, stated).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    }
    assert_eq!(world.stored(stated).await, None);
    assert_eq!(world.stored(&sha256(bytes)).await, None);
    assert_eq!(world.staged().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_is_not_what_it_says_is_refused() {
    let oci = gantry_model::media_type::OCI_MANIFEST;
    let index = gantry_model::media_type::OCI_INDEX;
    let (one, other) = images();
    refuses(oci, &sha256(&other), &one).await;
    refuses(index, &sha256(&one), &one).await;
    let large = content((4 << 20) + 1, 1);
    refuses(oci, &sha256(&large), &large).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_under_a_tag_is_an_outage_whatever_its_type_and_under_its_digest_it_is_what_was_asked_for()
 {
    let oci = gantry_model::media_type::OCI_MANIFEST;
    let page = bytes::Bytes::from_static(b"<html>please log in</html>");
    let denied = bytes::Bytes::from_static(br#"{"errors":[{"code":"DENIED"}]}"#);
    for (media_type, bytes) in [
        (oci, &page),
        ("text/html", &page),
        ("text/plain", &page),
        ("application/octet-stream", &denied),
        ("application/json", &denied),
    ] {
        let world = sending(media_type, &sha256(bytes), bytes);
        let error = world.pull(NAME, "latest").await.unwrap_err();
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
        assert_eq!(world.stored(&sha256(bytes)).await, None);
        let pulled = world.pull_digest(NAME, &sha256(bytes)).await.unwrap();
        assert_eq!(pulled.record.media_type.as_str(), media_type);
        assert_eq!(pulled.bytes, *bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_type_that_says_nothing_is_none_where_the_document_says_more() {
    let (one, _) = images();
    for media_type in [
        "application/json",
        "text/plain",
        "text/html",
        "application/octet-stream",
    ] {
        let world = sending(media_type, &sha256(&one), &one);
        let pulled = world.pull(NAME, "latest").await.unwrap();
        let oci = gantry_model::media_type::OCI_MANIFEST;
        assert_eq!(pulled.record.media_type.as_str(), oci, "{media_type}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_document_that_is_not_understood_is_passed_on_with_its_type() {
    let (one, _) = images();
    let text = std::str::from_utf8(&one).unwrap();
    let oci = gantry_model::media_type::OCI_MANIFEST;
    let twice = text.replacen('{', r#"{"x":1,"x":2,"#, 1);
    for (media_type, document) in [
        (oci, twice),
        (oci, format!("\u{feff}{text}")),
        ("application/vnd.example.thing.v1+json", "{}".to_owned()),
        (
            "application/vnd.cncf.oras.artifact.manifest.v1+json",
            r#"{"blobs":null}"#.to_owned(),
        ),
    ] {
        let bytes = bytes::Bytes::from(document);
        let world = sending(media_type, &sha256(&bytes), &bytes);
        for pulled in [
            world.pull(NAME, "latest").await.unwrap(),
            world.pull_digest(NAME, &sha256(&bytes)).await.unwrap(),
        ] {
            assert_eq!(pulled.record.media_type.as_str(), media_type);
            assert_eq!(pulled.bytes, bytes);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn schema_1_is_refused_with_a_sentence_and_is_no_outage() {
    let schema1 = bytes::Bytes::from_static(br#"{"schemaVersion":1,"fsLayers":[]}"#);
    for media_type in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
        gantry_model::media_type::DOCKER_MANIFEST,
    ] {
        let world = sending(media_type, &sha256(&schema1), &schema1);
        for error in [
            world.pull(NAME, "latest").await.unwrap_err(),
            world
                .pull_digest(NAME, &sha256(&schema1))
                .await
                .unwrap_err(),
        ] {
            assert!(
                matches!(
                    error,
                    Error::ManifestInvalid(gantry_model::ManifestError::Schema1)
                ),
                "{error:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_manifest_without_a_header_is_what_its_document_says() {
    let world = World::new();
    let manifest = image(&[]);
    let digest = world.manifest(NAME, "latest", &manifest);
    for stored in world.upstream.script().manifests.values_mut() {
        stored.media_type = None;
        stored.digest = None;
    }
    let pulled = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(pulled.record.digest, digest);
    assert_eq!(
        pulled.record.media_type.as_str(),
        gantry_model::media_type::OCI_MANIFEST
    );
}

/// [`FRESHNESS`] with a time in which a stale tag is served at once.
fn revalidating(within: Duration) -> Freshness {
    Freshness {
        stale_while_revalidate: within,
        ..FRESHNESS
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_tag_is_served_at_once_while_the_upstream_is_asked() {
    let mut world = World::new();
    world.rule(&["**"], revalidating(Duration::from_secs(600)));
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR + Duration::from_secs(1));
    world.upstream.calls();
    let gate = world.upstream.gate();
    for _ in 0..3 {
        let served = world.pull(NAME, "latest").await.unwrap();
        assert_eq!(served.bytes, old);
        let stale = served.stale.unwrap();
        assert_eq!(stale.why, Stale::Revalidating);
        assert_eq!(stale.age, FRESH_FOR + Duration::from_secs(1));
    }
    // The first was the cold pull's.
    world.upstream.asked(2).await;
    assert_eq!(world.upstream.calls(), [Call::Head(tagged("latest"))]);
    gate.add_permits(2);
    loop {
        let served = world.pull(NAME, "latest").await.unwrap();
        if served.bytes == new {
            assert_eq!(served.stale, None);
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_that_time_a_client_waits_for_the_upstream() {
    let mut world = World::new();
    world.rule(&["**"], revalidating(Duration::from_secs(600)));
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR + Duration::from_secs(600));
    let served = world.pull(NAME, "latest").await.unwrap();
    assert_eq!(served.bytes, new);
    assert_eq!(served.stale, None);
}

#[tokio::test(start_paused = true)]
async fn an_immutable_tag_is_never_asked_about_again() {
    let mut world = World::new();
    let forever = Freshness {
        fresh_for: Duration::MAX,
        ..FRESHNESS
    };
    world.rule(&["library/*:v*"], forever);
    let (old, new) = images();
    for tag in ["v1", "latest"] {
        world.manifest(NAME, tag, &old);
        world.pull(NAME, tag).await.unwrap();
        world.manifest(NAME, tag, &new);
    }
    world.clock.advance(Duration::from_secs(3650 * 86_400));
    world.upstream.calls();
    assert_eq!(world.pull(NAME, "v1").await.unwrap().bytes, old);
    assert_eq!(world.upstream.calls(), []);
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, new);
}

#[tokio::test(start_paused = true)]
async fn a_pinned_tag_stays_and_the_client_is_told_what_its_upstream_says() {
    for hides in [false, true] {
        let mut world = World::new();
        world.upstream.script().head_hides_digest = hides;
        let pinned = Freshness {
            moves: Moves::Refuse,
            ..FRESHNESS
        };
        world.rule(&["library/*:latest"], pinned);
        let (old, new) = images();
        world.manifest(NAME, "latest", &old);
        world.pull(NAME, "latest").await.unwrap();
        let moved = world.manifest(NAME, "latest", &new);
        world.clock.advance(FRESH_FOR);
        let served = world.pull(NAME, "latest").await.unwrap();
        assert_eq!(served.bytes, old);
        assert_eq!(served.tag.unwrap().digest, sha256(&old));
        assert_eq!(served.stale.unwrap().why, Stale::Pinned(moved));
    }
}

#[tokio::test(start_paused = true)]
async fn an_alerting_tag_moves() {
    let mut world = World::new();
    let alerting = Freshness {
        moves: Moves::Alert,
        ..FRESHNESS
    };
    world.rule(&["**"], alerting);
    let (old, new) = images();
    world.manifest(NAME, "latest", &old);
    world.pull(NAME, "latest").await.unwrap();
    world.manifest(NAME, "latest", &new);
    world.clock.advance(FRESH_FOR);
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, new);
}
