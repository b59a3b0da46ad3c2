//! What an upstream's failure means to a client, by what is cached. Nothing is ever "unknown" unless the upstream said so.

use std::time::Duration;

use gantry_upstream::Kind;

use super::world::{FRESH_FOR, World, content, image, repository};
use crate::error::Error;

const NAME: &str = "library/alpine";

const TROUBLES: [Kind; 4] = [
    Kind::RateLimited,
    Kind::Refused,
    Kind::Unavailable,
    Kind::Invalid,
];

fn assert_says(error: &Error, kind: Kind) {
    let right = match kind {
        Kind::RateLimited => matches!(
            error,
            Error::UpstreamLimited { retry_after, .. } if *retry_after == Some(Duration::from_secs(30))
        ),
        Kind::Refused => matches!(error, Error::UpstreamRefused { .. }),
        Kind::Unavailable => matches!(error, Error::Unavailable { .. }),
        Kind::Invalid => matches!(error, Error::UpstreamInvalid { .. }),
        Kind::NotFound => matches!(error, Error::ManifestUnknown | Error::BlobUnknown { .. }),
    };
    assert!(right, "{kind:?} became {error:?}");
    let failure = error.upstream();
    assert_eq!(failure.is_some(), kind != Kind::NotFound, "{error:?}");
    if let Some(failure) = failure {
        assert_eq!(failure.mirror, "hub");
        assert!(failure.setting.starts_with("mirrors.hub."), "{failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn uncached_content_fails_as_the_upstream_did() {
    for kind in TROUBLES.into_iter().chain([Kind::NotFound]) {
        let world = World::new();
        let manifest = world.manifest(NAME, "latest", &image(&[]));
        let blob = world.blob(NAME, &content(100, 1));
        world.upstream.fail(kind);
        assert_says(&world.pull(NAME, "latest").await.unwrap_err(), kind);
        assert_says(&world.pull_digest(NAME, &manifest).await.unwrap_err(), kind);
        assert_says(&world.open(NAME, &blob).await.unwrap_err(), kind);
        let size = world.stat_blob(&repository(NAME), &blob).await;
        assert_says(&size.unwrap_err(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_forgotten_when_the_upstream_is_well_again() {
    for kind in TROUBLES {
        let world = World::new();
        let manifest = image(&[]);
        world.manifest(NAME, "latest", &manifest);
        let bytes = content(100, 1);
        let blob = world.blob(NAME, &bytes);
        world.upstream.fail(kind);
        world.pull(NAME, "latest").await.unwrap_err();
        world.read(NAME, &blob).await.unwrap_err();
        world.upstream.recover();
        assert_eq!(world.pull(NAME, "latest").await.unwrap().bytes, manifest);
        assert_eq!(world.read(NAME, &blob).await.unwrap(), bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cached_digest_is_served_whatever_the_upstream_says() {
    for kind in TROUBLES.into_iter().chain([Kind::NotFound]) {
        let mut world = World::new();
        let bytes = content(100, 1);
        let blob = world.blob(NAME, &bytes);
        let manifest = image(&[(&blob, 100)]);
        let digest = world.manifest(NAME, "latest", &manifest);
        world.pull_digest(NAME, &digest).await.unwrap();
        world.read(NAME, &blob).await.unwrap();
        world.upstream.fail(kind);
        world.clock.advance(FRESH_FOR * 1000);
        world.restart();
        world.upstream.calls();
        let served = world.pull_digest(NAME, &digest).await.unwrap();
        assert_eq!(served.bytes, manifest);
        assert_eq!(served.stale, None);
        assert_eq!(world.read(NAME, &blob).await.unwrap(), bytes);
        assert_eq!(world.upstream.calls(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cached_tag_is_served_stale_when_the_upstream_is_in_trouble() {
    for kind in TROUBLES {
        let mut world = World::new();
        let manifest = image(&[]);
        world.manifest(NAME, "latest", &manifest);
        world.pull(NAME, "latest").await.unwrap();
        world.upstream.fail(kind);
        world.clock.advance(FRESH_FOR * 2);
        world.restart();
        let served = world.pull(NAME, "latest").await.unwrap();
        assert_eq!(served.bytes, manifest);
        assert_eq!(served.stale.unwrap().age, FRESH_FOR * 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_cached_tag_is_unknown_when_the_upstream_says_so() {
    let world = World::new();
    let digest = world.manifest(NAME, "latest", &image(&[]));
    world.pull(NAME, "latest").await.unwrap();
    world.untag(NAME, "latest");
    world.clock.advance(FRESH_FOR * 2);
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert_says(&error, Kind::NotFound);
    world.pull_digest(NAME, &digest).await.unwrap();
    world.upstream.fail(Kind::Unavailable);
    world.clock.advance(FRESH_FOR * 2);
    let error = world.pull(NAME, "latest").await.unwrap_err();
    assert_says(&error, Kind::Unavailable);
}
