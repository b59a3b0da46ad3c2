//! A tag names nothing that is newer here than it may, and nothing that exists is called unknown for that.

use std::time::Duration;

use bytes::Bytes;
use gantry_model::{Denial, Digest};
use gantry_upstream::Kind;

use super::{
    upstream::Call,
    world::{FRESH_FOR, FRESHNESS, World, image, sha256, tagged},
};
use crate::{error::Error, outcome::Stale, ports::Freshness};

const NAME: &str = "library/alpine";
const MIN_AGE: Duration = Duration::from_secs(7 * 86_400);

fn images() -> [Bytes; 3] {
    [&b"a"[..], b"b", b"c"].map(|layer| image(&[(&sha256(layer), 1)]))
}

fn cautious() -> World {
    let mut world = World::new();
    let cautious = Freshness {
        min_age: MIN_AGE,
        ..FRESHNESS
    };
    world.rule(&["library/*:latest"], cautious);
    world
}

async fn refused(world: &World) -> Denial {
    match world.pull(NAME, "latest").await {
        Err(Error::Denied(denial)) => *denial,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_named_nothing_is_refused_with_a_sentence_until_its_content_is_old_enough() {
    let world = cautious();
    let [old, ..] = images();
    let digest = world.manifest(NAME, "latest", &old);
    let denial = refused(&world).await;
    assert!(denial.message.contains(digest.as_str()), "{denial:?}");
    assert!(denial.message.contains("another 168 h"), "{denial:?}");
    world.clock.advance(MIN_AGE - Duration::from_secs(1));
    world.upstream.calls();
    refused(&world).await;
    assert_eq!(world.upstream.calls(), [Call::Head(tagged("latest"))]);
    world.clock.advance(Duration::from_secs(1));
    let served = world.pull(NAME, "latest").await.unwrap();
    assert_eq!((served.bytes, served.stale), (old, None));
}

#[tokio::test(start_paused = true)]
async fn a_moved_tag_names_what_it_did_until_the_new_content_is_old_enough() {
    for hides in [false, true] {
        let world = cautious();
        world.upstream.script().head_hides_digest = hides;
        let [old, new, _] = images();
        world.manifest(NAME, "latest", &old);
        refused(&world).await;
        world.clock.advance(MIN_AGE);
        world.pull(NAME, "latest").await.unwrap();
        let moved = world.manifest(NAME, "latest", &new);
        world.clock.advance(FRESH_FOR);
        for _again in 0..2 {
            let served = world.pull(NAME, "latest").await.unwrap();
            assert_eq!(served.bytes, old);
            assert_eq!(served.tag.unwrap().digest, sha256(&old));
            assert_eq!(served.stale.unwrap().why, Stale::TooYoung(moved.clone()));
            world.clock.advance(MIN_AGE / 2 - Duration::from_secs(1));
        }
        world.clock.advance(Duration::from_secs(2));
        let served = world.pull(NAME, "latest").await.unwrap();
        assert_eq!((served.bytes, served.stale), (new, None));
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_goes_back_to_known_content_goes_at_once() {
    let world = cautious();
    let [old, new, _] = images();
    for content in [&old, &new] {
        let digest = world.manifest(NAME, "latest", content);
        world.pull_digest(NAME, &digest).await.unwrap();
    }
    world.clock.advance(MIN_AGE);
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, new);
    world.manifest(NAME, "latest", &old);
    world.clock.advance(FRESH_FOR);
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, old);
}

#[tokio::test(start_paused = true)]
async fn content_that_is_too_young_can_be_had_by_its_digest_and_by_tags_of_no_rule() {
    let world = cautious();
    let [old, ..] = images();
    let digest: Digest = world.manifest(NAME, "latest", &old);
    world.manifest(NAME, "edge", &old);
    refused(&world).await;
    assert_eq!(world.pull_digest(NAME, &digest).await.unwrap().bytes, old);
    assert_eq!(world.pull(NAME, "edge").await.unwrap().bytes, old);
}

#[tokio::test(start_paused = true)]
async fn age_outlives_a_restart_and_an_upstream_in_trouble_is_no_refusal() {
    let mut world = cautious();
    let [old, ..] = images();
    world.manifest(NAME, "latest", &old);
    refused(&world).await;
    world.clock.advance(MIN_AGE);
    world.restart();
    world.upstream.fail(Kind::Unavailable);
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    world.upstream.recover();
    assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, old);
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_its_upstream_does_not_have_is_unknown() {
    let world = cautious();
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert!(matches!(error, Error::ManifestUnknown), "{error:?}");
}
