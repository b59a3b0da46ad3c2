//! What leaves the cache is what nobody asked for longest; what is pinned, shared or open stays readable.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::{Digest, RepositoryName, Tag, glob::Glob, media_type::OCI_INDEX};
use gantry_storage::Commit;
use serde_json::json;

use super::world::{World, content, drain, image, repository};
use crate::{mirror::Evicted, ports::Keep};

const KIB: usize = 1 << 10;
const DAY: Duration = Duration::from_secs(86_400);

/// An image of one layer upstream, which was pulled once through the cache.
async fn pulled(world: &World, name: &str, tag: &str, seed: u64) -> (Digest, Digest, Bytes) {
    let bytes = content(100 * KIB, seed);
    let layer = world.blob(name, &bytes);
    let manifest = world.manifest(name, tag, &image(&[(&layer, bytes.len())]));
    serve(world, name, tag, &layer).await;
    (manifest, layer, bytes)
}

/// Pulls as a client of the registry does: what is served is used.
async fn serve(world: &World, name: &str, tag: &str, layer: &Digest) {
    let repository = repository(name);
    let manifest = world.pull(name, tag).await.unwrap();
    world.mirrors.used(&repository, &manifest.record.digest);
    world.read(name, layer).await.unwrap();
    world.mirrors.used(&repository, layer);
}

fn keep(world: &mut World, keep: &Keep) {
    for mirror in world.ports.mirrors.values_mut() {
        mirror.keep = keep.clone();
    }
    world.restart();
}

fn at_most(blobs: usize) -> Keep {
    Keep {
        max_bytes: Some((blobs * 100 * KIB) as u64),
        ..Keep::default()
    }
}

fn gone(manifests: u64, blobs: u64, bytes: usize) -> Evicted {
    Evicted {
        manifests,
        blobs,
        bytes: bytes as u64,
        pinned: 0,
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_nothing_goes() {
    let world = World::new();
    let (_, layer, _) = pulled(&world, "a/a", "latest", 1).await;
    world.clock.advance(DAY * 3650);
    assert_eq!(world.mirrors.evict().await.unwrap(), Evicted::default());
    assert!(world.stored(&layer).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_blob_goes_first_and_comes_back_when_asked_for() {
    let mut world = World::new();
    keep(&mut world, &at_most(2));
    let (_, first, bytes) = pulled(&world, "a/first", "latest", 1).await;
    world.clock.advance(Duration::from_secs(1));
    let (_, second, _) = pulled(&world, "a/second", "latest", 2).await;
    world.clock.advance(Duration::from_secs(1));
    // The first is used again, by its manifest alone: a client that has the layer already.
    let manifest = world.pull("a/first", "latest").await.unwrap();
    world
        .mirrors
        .used(&repository("a/first"), &manifest.record.digest);
    assert_eq!(world.mirrors.evict().await.unwrap(), Evicted::default());
    world.clock.advance(Duration::from_secs(1));
    let (_, third, _) = pulled(&world, "a/third", "latest", 3).await;
    assert_eq!(world.mirrors.evict().await.unwrap(), gone(0, 1, 100 * KIB));
    assert_eq!(world.stored(&second).await, None);
    for kept in [&first, &third] {
        assert!(world.stored(kept).await.is_some());
    }
    let usage = world.mirrors.usage().await.unwrap();
    assert_eq!(usage[0].size.bytes, 200 * KIB as u64);
    assert_eq!(
        world.read("a/second", &second).await.unwrap().len(),
        bytes.len()
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_asked_for_in_its_time_goes_with_its_tag_and_manifest() {
    let mut world = World::new();
    keep(
        &mut world,
        &Keep {
            keep_for: Some(DAY),
            ..Keep::default()
        },
    );
    let (old_manifest, old, _) = pulled(&world, "a/old", "latest", 1).await;
    let (new_manifest, new, _) = pulled(&world, "a/new", "latest", 2).await;
    world.mirrors.evict().await.unwrap();
    world.clock.advance(DAY / 2);
    serve(&world, "a/new", "latest", &new).await;
    world.mirrors.evict().await.unwrap();
    world.clock.advance(DAY / 2 + Duration::from_millis(1));
    let evicted = world.mirrors.evict().await.unwrap();
    assert_eq!((evicted.manifests, evicted.blobs), (1, 1));
    for digest in [&old_manifest, &old] {
        assert_eq!(world.stored(digest).await, None);
    }
    for digest in [&new_manifest, &new] {
        assert!(world.stored(digest).await.is_some());
    }
    let (name, tag): (RepositoryName, Tag) =
        ("hub.test/a/old".parse().unwrap(), "latest".parse().unwrap());
    let tag = world.ports.metadata.tag(&name, &tag);
    assert_eq!(tag.await.unwrap(), None);
    serve(&world, "a/old", "latest", &old).await;
}

#[tokio::test(start_paused = true)]
async fn an_index_that_is_used_keeps_its_children() {
    let mut world = World::new();
    let bytes = content(100 * KIB, 1);
    let layer = world.blob("a/a", &bytes);
    let child = world.manifest("a/a", "child", &image(&[(&layer, bytes.len())]));
    let index: Bytes = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": child, "size": image(&[(&layer, bytes.len())]).len()}
    ]})
    .to_string()
    .into();
    world.manifest_of(OCI_INDEX, "a/a", "latest", &index);
    world.pull_digest("a/a", &child).await.unwrap();
    world.read("a/a", &layer).await.unwrap();
    keep(
        &mut world,
        &Keep {
            keep_for: Some(DAY),
            ..Keep::default()
        },
    );
    world.clock.advance(DAY * 2);
    let pulled = world.pull("a/a", "latest").await.unwrap();
    world
        .mirrors
        .used(&repository("a/a"), &pulled.record.digest);
    assert_eq!(world.mirrors.evict().await.unwrap(), Evicted::default());
    assert!(world.stored(&layer).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn what_pinned_tags_name_stays_however_old_and_large() {
    let mut world = World::new();
    let pinned = Keep {
        keep_for: Some(DAY),
        max_bytes: Some(0),
        pinned: vec![Glob::parse("a/*:v*").unwrap()],
        ..Keep::default()
    };
    keep(&mut world, &pinned);
    let (manifest, layer, _) = pulled(&world, "a/a", "v1", 1).await;
    let (_, other, _) = pulled(&world, "a/b", "latest", 2).await;
    world.clock.advance(DAY * 9);
    let evicted = world.mirrors.evict().await.unwrap();
    assert_eq!((evicted.manifests, evicted.blobs), (1, 1));
    assert_eq!(world.stored(&other).await, None);
    for digest in [&manifest, &layer] {
        assert!(world.stored(digest).await.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_another_repository_holds_keeps_its_bytes() {
    let mut world = World::new();
    keep(&mut world, &at_most(0));
    let (_, layer, bytes) = pulled(&world, "a/a", "latest", 1).await;
    let hosted = Commit::LinkBlob {
        repository: "apps/web".parse().unwrap(),
        origin: gantry_storage::ContentOrigin::Pushed,
        digest: layer.clone(),
        size: bytes.len() as u64,
        upload: None,
        principal: None,
    };
    world.ports.metadata.commit(hosted).await.unwrap();
    assert_eq!(world.mirrors.evict().await.unwrap(), gone(0, 1, 0));
    assert_eq!(world.stored(&layer).await, Some(bytes.len() as u64));
    let name = "hub.test/a/a".parse().unwrap();
    let origin = super::world::upstream_of("https://hub.test");
    let link = world.ports.metadata.blob(&name, &origin, &layer);
    assert_eq!(link.await.unwrap(), None, "the mirror has let go of it");
}

#[tokio::test(start_paused = true)]
async fn an_open_reader_reads_to_the_end_of_what_is_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::durable(folder.path());
    keep(&mut world, &at_most(0));
    let (_, layer, bytes) = pulled(&world, "a/a", "latest", 1).await;
    let open = world.open("a/a", &layer).await.unwrap();
    assert_eq!(world.mirrors.evict().await.unwrap(), gone(0, 1, 100 * KIB));
    assert_eq!(world.stored(&layer).await, None);
    let (read, end) = drain(open).await;
    end.unwrap();
    assert_eq!(read, bytes);
}

#[tokio::test(start_paused = true)]
async fn leased_content_is_let_go_of_and_keeps_its_bytes() {
    let mut world = World::new();
    keep(&mut world, &at_most(0));
    let (_, layer, _) = pulled(&world, "a/a", "latest", 1).await;
    let lease = world.ports.leases.take(&layer).await;
    assert_eq!(world.mirrors.evict().await.unwrap(), gone(0, 1, 0));
    assert!(world.stored(&layer).await.is_some());
    drop(lease);
}

/// Pulls the layers in turn, each whole.
async fn pull_in_turn(world: Arc<World>, layers: Arc<Vec<(String, Digest, Bytes)>>, first: usize) {
    for round in 0..25 {
        let (name, layer, bytes) = &layers[(first + round) % layers.len()];
        assert_eq!(world.read(name, layer).await.unwrap(), *bytes);
        world.mirrors.used(&repository(name), layer);
        world.clock.advance(Duration::from_millis(1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn evictions_among_pulls_never_break_a_pull() {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::durable(folder.path());
    keep(&mut world, &at_most(1));
    let mut layers = Vec::new();
    for seed in 0..4 {
        let name = format!("a/image{seed}");
        let (_, layer, bytes) = pulled(&world, &name, "latest", seed).await;
        layers.push((name, layer, bytes));
    }
    let (world, layers) = (Arc::new(world), Arc::new(layers));
    let mut pulls = tokio::task::JoinSet::new();
    for first in 0..8 {
        pulls.spawn(pull_in_turn(Arc::clone(&world), Arc::clone(&layers), first));
    }
    let mut evicted = 0;
    while !pulls.is_empty() {
        evicted += world.mirrors.evict().await.unwrap().blobs;
        while let Some(pulled) = pulls.try_join_next() {
            pulled.unwrap();
        }
    }
    assert!(evicted > 0, "something was evicted meanwhile");
}
