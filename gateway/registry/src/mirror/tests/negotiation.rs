//! Promise: a client gets the type of manifest that it asks for, and no client's `Accept` changes what a tag names to others.

use bytes::Bytes;
use gantry_model::{Digest, Reference, media_type::OCI_MANIFEST};
use gantry_upstream::Kind;

use super::{
    upstream::{Call, fetched},
    world::{FRESH_FOR, FRESHNESS, NOT_FOUND_FOR, STALE_IF_ERROR, World, image, sha256, tagged},
};
use crate::{
    error::Error,
    mirror::MirroredManifest,
    outcome::Stale,
    ports::{Freshness, Moves},
};

const NAME: &str = "charts/app";
const OWN: &str = "application/vnd.example.own+json";
const OTHER: &str = "application/vnd.example.other+json";

/// A document that the upstream sends only to those who list its type.
fn negotiated(world: &World, media_type: &str, bytes: &Bytes) -> Digest {
    let digest = sha256(bytes);
    for reference in [tagged("latest"), Reference::Digest(digest.clone())] {
        let key = (NAME.parse().unwrap(), reference);
        let manifest = fetched(media_type, &digest, bytes);
        world.upstream.script().negotiated.insert(key, manifest);
    }
    digest
}

async fn pull(world: &World, accept: &str) -> Result<MirroredManifest, Error> {
    world.pull_as(NAME, tagged("latest"), accept).await
}

fn own() -> Bytes {
    Bytes::from_static(br#"{"own":"document"}"#)
}

#[tokio::test(start_paused = true)]
async fn a_type_that_only_one_client_accepts_is_asked_for_and_served_to_that_client() {
    let world = World::new();
    let digest = negotiated(&world, OWN, &own());
    let refused = pull(&world, OCI_MANIFEST).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestUnknown), "{refused:?}");
    // A 404 that was remembered for another list of types does not answer this client.
    let served = pull(&world, OWN).await.unwrap();
    assert_eq!(served.bytes, own());
    assert_eq!(served.record.media_type.as_str(), OWN);
    assert_eq!(served.tag.unwrap().digest, digest);
    let by_digest = Reference::Digest(digest.clone());
    let served = world.pull_as(NAME, by_digest, OWN).await.unwrap();
    assert_eq!(served.bytes, own());
    world.clock.advance(NOT_FOUND_FOR);
    let refused = pull(&world, OCI_MANIFEST).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestUnknown), "{refused:?}");
    let refused = pull(&world, OTHER).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestUnknown), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_digest_that_only_one_client_may_ask_for_by_its_type_is_fetched_for_that_client() {
    let world = World::new();
    let digest = Reference::Digest(negotiated(&world, OWN, &own()));
    let refused = world.pull_as(NAME, digest.clone(), "*/*").await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused, Error::ManifestUnknown), "{refused:?}");
    let served = world.pull_as(NAME, digest, OWN).await.unwrap();
    assert_eq!(served.bytes, own());
}

#[tokio::test(start_paused = true)]
async fn what_one_client_negotiates_does_not_become_what_the_tag_names_to_others() {
    let image = image(&[]);
    for first_is_particular in [true, false] {
        let world = World::new();
        world.manifest(NAME, "latest", &image);
        negotiated(&world, OWN, &own());
        if first_is_particular {
            assert_eq!(pull(&world, OWN).await.unwrap().bytes, own());
        }
        for accept in ["", "*/*", OCI_MANIFEST, OTHER] {
            let served = pull(&world, accept).await.unwrap();
            assert_eq!(served.bytes, image, "{accept:?}");
        }
        assert_eq!(pull(&world, OWN).await.unwrap().bytes, own());
        world.clock.advance(FRESH_FOR);
        assert_eq!(pull(&world, "").await.unwrap().bytes, image);
        assert_eq!(pull(&world, OWN).await.unwrap().bytes, own());
        // A client that takes both gets what is here.
        let both = format!("{OCI_MANIFEST}, {OWN}");
        assert_eq!(pull(&world, &both).await.unwrap().bytes, image);
    }
}

#[tokio::test(start_paused = true)]
async fn a_negotiated_answer_is_kept_as_long_as_a_tag_is() {
    let world = World::new();
    negotiated(&world, OWN, &own());
    pull(&world, OWN).await.unwrap();
    world.upstream.calls();
    pull(&world, OWN).await.unwrap();
    assert_eq!(world.upstream.calls(), [], "fresh");
    world.clock.advance(FRESH_FOR);
    pull(&world, OWN).await.unwrap();
    let calls = world.upstream.calls();
    assert!(
        !calls.contains(&Call::Manifest(tagged("latest"))),
        "{calls:?}"
    );
    world.clock.advance(FRESH_FOR);
    world.upstream.fail(Kind::Unavailable);
    let stale = pull(&world, OWN).await.unwrap();
    assert_eq!(stale.bytes, own());
    assert_eq!(stale.stale.unwrap().why, Stale::UpstreamFails);
    world.clock.advance(STALE_IF_ERROR + FRESH_FOR);
    pull(&world, OWN).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_everybody_gets_is_the_tags_whoever_asked_first() {
    let mut world = World::new();
    let digest = world.manifest_of(OWN, NAME, "latest", &own());
    let served = pull(&world, OWN).await.unwrap();
    assert_eq!(served.tag.unwrap().digest, digest);
    // Stored with the tag, so it outlives the process and the upstream.
    world.restart();
    world.upstream.fail(Kind::Unavailable);
    for accept in [OWN, "", "*/*"] {
        assert_eq!(pull(&world, accept).await.unwrap().bytes, own());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pinned_tag_stays_what_it_is_for_clients_of_further_types() {
    let mut world = World::new();
    let pinned = Freshness {
        moves: Moves::Refuse,
        ..FRESHNESS
    };
    world.rule(&["charts/*:latest"], pinned);
    let image = image(&[]);
    world.manifest(NAME, "latest", &image);
    pull(&world, "").await.unwrap();
    let moved = negotiated(&world, OWN, &own());
    let served = pull(&world, OWN).await.unwrap();
    assert_eq!(served.bytes, image);
    assert_eq!(served.stale.unwrap().why, Stale::Pinned(moved));
}

#[tokio::test(start_paused = true)]
async fn clients_that_accept_different_types_do_not_wait_for_each_others_answer() {
    let world = World::new();
    let image = image(&[]);
    world.manifest(NAME, "latest", &image);
    negotiated(&world, OWN, &own());
    let gate = world.upstream.gate();
    let (particular, common) = (pull(&world, OWN), pull(&world, ""));
    let open = async {
        world.upstream.asked(2).await;
        gate.add_permits(1000);
    };
    let (particular, common, ()) = tokio::join!(particular, common, open);
    assert_eq!(particular.unwrap().bytes, own());
    assert_eq!(common.unwrap().bytes, image);
}
