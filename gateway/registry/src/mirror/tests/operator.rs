//! What an operator orders goes, and nothing beside it; what is pinned stays; bytes that nobody has are found.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::{Digest, media_type::OCI_INDEX};
use gantry_storage::Commit;
use serde_json::json;
use tokio::sync::mpsc;

use super::world::{World, content, image, repository};
use crate::mirror::{EvictOrder, Evicted, EvictedItem, EvictedWhat, Selection, Swept};

const KIB: usize = 1 << 10;
const DAY: Duration = Duration::from_secs(86_400);

/// An image of these layers upstream, which was pulled once through the cache.
async fn pulled(world: &World, name: &str, tag: &str, layers: &[u64]) -> (Digest, Vec<Digest>) {
    let contents = layers.iter().map(|seed| content(KIB, *seed));
    let layers: Vec<Digest> = contents.map(|bytes| world.blob(name, &bytes)).collect();
    let described: Vec<(&Digest, usize)> = layers.iter().map(|layer| (layer, KIB)).collect();
    let manifest = world.manifest(name, tag, &image(&described));
    let stored = world.pull(name, tag).await.unwrap().record.digest;
    world.mirrors.used(&repository(name), &stored);
    for layer in &layers {
        world.read(name, layer).await.unwrap();
    }
    (manifest, layers)
}

fn order(what: &str) -> EvictOrder {
    EvictOrder {
        selection: Selection::parse(what).unwrap(),
        older_than: None,
        dry_run: false,
    }
}

/// What went, and the sum.
async fn evict(world: &World, order: &EvictOrder) -> (Vec<EvictedItem>, Evicted) {
    let (tell, mut told) = mpsc::channel(100);
    let evicted = world.mirrors.evict_selected(order, &tell).await.unwrap();
    drop(tell);
    let mut items = Vec::new();
    while let Some(item) = told.recv().await {
        items.push(item);
    }
    (items, evicted)
}

async fn is_here(world: &World, digest: &Digest) -> bool {
    world.stored(digest).await.is_some()
}

#[tokio::test(start_paused = true)]
async fn an_evicted_tag_takes_what_only_it_names() {
    let world = World::new();
    let (first, one) = pulled(&world, "a/a", "v1", &[1, 2]).await;
    let (second, two) = pulled(&world, "a/a", "v2", &[2, 3]).await;
    assert_eq!(one[1], two[0]);
    let dry = EvictOrder {
        dry_run: true,
        ..order("hub.test/a/a:v1")
    };
    let (planned, _) = evict(&world, &dry).await;
    assert!(is_here(&world, &one[0]).await, "a dry run changes nothing");
    let (items, evicted) = evict(&world, &order("hub.test/a/a:v1")).await;
    let what = |items: &[EvictedItem]| {
        let what = items.iter().map(|item| item.what.clone());
        what.collect::<Vec<_>>()
    };
    let tags = vec!["v1".parse().unwrap()];
    let expected = [
        EvictedWhat::Manifest(first.clone(), tags),
        EvictedWhat::Blob(one[0].clone()),
    ];
    assert_eq!(what(&items), expected);
    assert_eq!(what(&planned), expected);
    assert_eq!(
        (evicted.manifests, evicted.blobs, evicted.pinned),
        (1, 1, 0)
    );
    assert!(evicted.bytes > KIB as u64);
    for gone in [&first, &one[0]] {
        assert!(!is_here(&world, gone).await);
    }
    for kept in [&second, &two[0], &two[1]] {
        assert!(is_here(&world, kept).await);
    }
    world.pull("a/a", "v1").await.unwrap();
    world.read("a/a", &one[0]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_manifest_with_another_name_loses_the_tag_alone() {
    let world = World::new();
    let (manifest, layers) = pulled(&world, "a/a", "v1", &[1]).await;
    pulled(&world, "a/a", "latest", &[1]).await;
    let (items, evicted) = evict(&world, &order("hub.test/a/a:v1")).await;
    assert_eq!(items[0].what, EvictedWhat::Tag("v1".parse().unwrap()));
    assert_eq!((items.len(), evicted), (1, Evicted::default()));
    assert!(is_here(&world, &manifest).await && is_here(&world, &layers[0]).await);
}

#[tokio::test(start_paused = true)]
async fn an_index_goes_with_the_children_that_nothing_else_names() {
    let world = World::new();
    let bytes = content(KIB, 7);
    let layer = world.blob("a/a", &bytes);
    let child = world.manifest("a/a", "child", &image(&[(&layer, KIB)]));
    let size = image(&[(&layer, KIB)]).len();
    let index: Bytes = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": child, "size": size}
    ]})
    .to_string()
    .into();
    let index = world.manifest_of(OCI_INDEX, "a/a", "latest", &index);
    world.pull("a/a", "latest").await.unwrap();
    world.pull_digest("a/a", &child).await.unwrap();
    world.read("a/a", &layer).await.unwrap();
    let (items, _) = evict(&world, &order(&format!("hub.test/a/a@{child}"))).await;
    assert_eq!(items, [], "the index names it");
    let (_, evicted) = evict(&world, &order("hub.test/a/a:latest")).await;
    assert_eq!((evicted.manifests, evicted.blobs), (2, 1));
    for gone in [&index, &child, &layer] {
        assert!(!is_here(&world, gone).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_two_upstream_repositories_hold_stays_readable_in_the_other() {
    let world = World::new();
    let (_, layers) = pulled(&world, "a/a", "v1", &[1]).await;
    pulled(&world, "b/b", "v1", &[1]).await;
    let (_, evicted) = evict(&world, &order("hub.test/a/**")).await;
    // The manifest and the layer have the same digests in both.
    assert_eq!((evicted.manifests, evicted.blobs, evicted.bytes), (1, 1, 0));
    assert!(is_here(&world, &layers[0]).await);
    let _before = world.upstream.calls();
    world.read("b/b", &layers[0]).await.unwrap();
    assert!(world.upstream.calls().is_empty(), "it is still a hit");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_old_goes_when_an_age_is_said() {
    let world = World::new();
    let (old, _) = pulled(&world, "a/a", "v1", &[1]).await;
    world.clock.advance(DAY * 2);
    let (new, _) = pulled(&world, "a/a", "v2", &[2]).await;
    let aged = EvictOrder {
        older_than: Some(DAY),
        ..order("**")
    };
    let (_, evicted) = evict(&world, &aged).await;
    assert_eq!((evicted.manifests, evicted.blobs), (1, 1));
    assert!(!is_here(&world, &old).await);
    assert!(is_here(&world, &new).await);
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_pinned_stays_whoever_evicts_and_after_a_restart() {
    let mut world = World::new();
    let (manifest, layers) = pulled(&world, "a/a", "v1", &[1]).await;
    let (other, _) = pulled(&world, "a/a", "v2", &[2]).await;
    let pin = Selection::parse("hub.test/a/*:v1").unwrap();
    assert_eq!(world.mirrors.pin(&pin, "alice").await.unwrap(), (true, 1));
    assert_eq!(world.mirrors.pin(&pin, "bob").await.unwrap(), (false, 1));
    for mirror in world.ports.mirrors.values_mut() {
        mirror.keep.keep_for = Some(DAY);
        mirror.keep.max_bytes = Some(0);
    }
    world.restart();
    world.clock.advance(DAY * 9);
    let (_, ordered) = evict(&world, &order("hub.test/a/a:v1")).await;
    assert_eq!((ordered.manifests, ordered.pinned), (0, 1));
    world.mirrors.evict().await.unwrap();
    assert!(!is_here(&world, &other).await);
    assert!(is_here(&world, &manifest).await && is_here(&world, &layers[0]).await);
    let listed = world.mirrors.cached(None, None, 10).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert!(listed[0].pinned && listed[0].tags[0].1);
    assert!(world.ports.cache.unpin("hub.test/a/*:v1").await.unwrap());
    world.mirrors.evict().await.unwrap();
    assert!(!is_here(&world, &manifest).await);
}

#[tokio::test(start_paused = true)]
async fn pins_of_a_digest_and_of_a_whole_repository_keep_what_has_no_tag() {
    let mut world = World::new();
    let (first, one) = pulled(&world, "a/a", "v1", &[1]).await;
    let (second, two) = pulled(&world, "b/b", "v1", &[2]).await;
    for what in [format!("hub.test/a/a@{first}"), "hub.test/b/*".to_owned()] {
        let pin = Selection::parse(&what).unwrap();
        world.mirrors.pin(&pin, "alice").await.unwrap();
    }
    for mirror in world.ports.mirrors.values_mut() {
        mirror.keep.keep_for = Some(DAY);
    }
    world.restart();
    world.clock.advance(DAY * 9);
    assert_eq!(world.mirrors.evict().await.unwrap(), Evicted::default());
    for kept in [&first, &one[0], &second, &two[0]] {
        assert!(is_here(&world, kept).await);
    }
}

#[tokio::test(start_paused = true)]
async fn an_order_ends_when_nobody_listens() {
    let world = World::new();
    pulled(&world, "a/a", "v1", &[1, 2, 3, 4]).await;
    let (tell, told) = mpsc::channel(100);
    drop(told);
    let evicted = world.mirrors.evict_selected(&order("**"), &tell).await;
    let evicted = evicted.unwrap();
    assert_eq!((evicted.manifests, evicted.blobs), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_is_mirrored_matches_and_is_paged() {
    let world = World::new();
    for name in ["a/a", "a/b", "c/c"] {
        pulled(&world, name, "v1", &[1]).await;
    }
    let hosted = Commit::LinkBlob {
        repository: "apps/web".parse().unwrap(),
        origin: gantry_storage::ContentOrigin::Pushed,
        digest: super::world::sha256(b"x"),
        size: 1,
        upload: None,
        principal: None,
    };
    world.ports.metadata.commit(hosted).await.unwrap();
    let glob = gantry_model::glob::Glob::parse("hub.test/a/*").unwrap();
    let names = |listed: &[crate::mirror::CacheEntry]| {
        let names = listed.iter().map(|it| it.holds.repository.to_string());
        names.collect::<Vec<_>>()
    };
    let all = world.mirrors.cached(None, None, 10).await.unwrap();
    assert_eq!(
        names(&all),
        ["hub.test/a/a", "hub.test/a/b", "hub.test/c/c"]
    );
    assert_eq!(all[0].holds.bytes, KIB as u64);
    let some = world.mirrors.cached(Some(&glob), None, 1).await.unwrap();
    assert_eq!(names(&some), ["hub.test/a/a"]);
    let after = Some(some[0].holds.repository.clone());
    let more = world.mirrors.cached(Some(&glob), after, 10).await.unwrap();
    assert_eq!(names(&more), ["hub.test/a/b"]);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_no_repository_has_are_freed_unless_they_are_leased_or_new() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::durable(folder.path());
    let (manifest, layers) = pulled(&world, "a/a", "v1", &[1]).await;
    let (unowned, _) = pulled(&world, "b/b", "v1", &[2]).await;
    let (leased, _) = pulled(&world, "c/c", "v1", &[3]).await;
    // As a crash between the commit and the deletion of the bytes leaves it.
    for (name, digest) in [("b/b", &unowned), ("c/c", &leased)] {
        let gone = Commit::DeleteManifest {
            repository: repository(name).name,
            digest: digest.clone(),
            tags: vec!["v1".parse().unwrap()],
            at_ms: 0,
            by: "test".to_owned(),
        };
        world.ports.metadata.commit(gone).await.unwrap();
    }
    let lease = world.ports.leases.take(&leased).await;
    // The clock of the tests stands in the past, so the files are from its future.
    let sweep = || world.mirrors.sweep_unowned();
    assert_eq!(sweep().await.unwrap(), Swept::default());
    world.clock.advance(DAY * 36_500);
    let swept = sweep().await.unwrap();
    assert_eq!(swept.blobs, 1);
    assert!(!is_here(&world, &unowned).await);
    for kept in [&manifest, &layers[0], &leased] {
        assert!(is_here(&world, kept).await);
    }
    drop(lease);
    assert_eq!(sweep().await.unwrap().blobs, 1);
    assert!(!is_here(&world, &leased).await);
}

/// Lets other tasks run until it is so.
async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _turn in 0..100_000 {
        if done().await {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("waited for {what}");
}

async fn prefetched(world: &World, name: &str) {
    let pulled = world.pull(name, "v1").await.unwrap();
    let requester = crate::mirror::listing::system();
    let (record, bytes) = (&pulled.record, &pulled.bytes);
    let repository = repository(name);
    world
        .mirrors
        .prefetch(&repository, record, bytes, &requester);
}

fn prefetching() -> World {
    let mut world = World::new();
    for mirror in world.ports.mirrors.values_mut() {
        mirror.prefetch = true;
    }
    world.restart();
    world
}

fn layered(world: &World, name: &str, seeds: std::ops::Range<u64>) -> Vec<Digest> {
    let layers: Vec<Digest> = seeds
        .map(|seed| world.blob(name, &content(KIB, seed)))
        .collect();
    let described: Vec<(&Digest, usize)> = layers.iter().map(|layer| (layer, KIB)).collect();
    world.manifest(name, "v1", &image(&described));
    layers
}

#[tokio::test]
async fn a_manifests_layers_come_before_anybody_asks_when_the_mirror_says_so() {
    let world = prefetching();
    let layers = layered(&world, "a/a", 1..40);
    prefetched(&world, "a/a").await;
    eventually("every layer", async || {
        let stored = futures_util::future::join_all(layers.iter().map(|it| world.stored(it)));
        stored.await.iter().all(Option::is_some)
    })
    .await;
    let asked = world.admission.asked().into_iter();
    let asked: Vec<Digest> = asked
        .map(|request| request.target.unwrap().digest)
        .collect();
    assert!(layers.iter().all(|layer| asked.contains(layer)));
}

#[tokio::test]
async fn without_the_setting_or_for_an_old_manifest_nothing_is_prefetched() {
    let mut world = World::new();
    let layers = layered(&world, "a/a", 1..3);
    prefetched(&world, "a/a").await;
    for mirror in world.ports.mirrors.values_mut() {
        mirror.prefetch = true;
    }
    world.restart();
    world.clock.advance(Duration::from_secs(61));
    prefetched(&world, "a/a").await;
    for _turn in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!is_here(&world, &layers[0]).await);
}

#[tokio::test]
async fn what_admission_refuses_is_not_prefetched() {
    let world = prefetching();
    let layers = layered(&world, "a/a", 1..3);
    world.pull("a/a", "v1").await.unwrap();
    world.admission.asked();
    world.admission.refuse();
    prefetched(&world, "a/a").await;
    let mut asked = 0;
    eventually("the questions", async || {
        asked += world.admission.asked().len();
        asked >= layers.len()
    })
    .await;
    for _turn in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!is_here(&world, &layers[0]).await);
}

#[tokio::test]
async fn a_client_never_waits_behind_prefetches() {
    let world = prefetching();
    let (many, one) = (
        layered(&world, "a/a", 1..200),
        layered(&world, "b/b", 900..901),
    );
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    // As many as can be under way at once: each prefetch that begins hangs.
    let hanging = super::upstream::BodyPlan::gated(&gate);
    world.upstream.script().bodies = std::iter::repeat_n(hanging, 16).collect();
    prefetched(&world, "a/a").await;
    eventually("the prefetches to hang", async || {
        world.mirrors.fill_count() >= 16
    })
    .await;
    eventually("their requests", async || {
        world.upstream.script().bodies.is_empty()
    })
    .await;
    let read = world.read("b/b", &one[0]).await.unwrap();
    assert_eq!(read.len(), KIB);
    assert_eq!(world.mirrors.fill_count(), 16, "the rest waits for places");
    gate.add_permits(100_000);
    // As many as one manifest may have fetched before a client asks, in its order; its config is the first.
    let (wanted, others) = many.split_at(63);
    eventually("the rest", async || {
        let stored = futures_util::future::join_all(wanted.iter().map(|it| world.stored(it)));
        stored.await.iter().all(Option::is_some)
    })
    .await;
    for other in others {
        assert!(
            world.stored(other).await.is_none(),
            "{other} was not asked for"
        );
    }
}
