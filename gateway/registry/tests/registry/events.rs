//! Each verb tells exactly what it did, in its own commit.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use gantry_model::{Event, EventKind, Operation};
use gantry_registry::{EventSink, Settings};
use gantry_storage::{
    EventFilter, EventOutbox as _, Kind, MemoryBlobStore, MemoryMetadata, OutboxSettings,
    faulty::{Call, Faults, FaultyMetadata},
    outbox::EventCursor,
};

use crate::harness::{Client, World, hosted, image, name, sha256, stores};

/// Wants everything, and keeps what has no commit.
#[derive(Debug, Default)]
struct Listener {
    recorded: Mutex<Vec<Event>>,
    commits: AtomicUsize,
}

impl EventSink for Listener {
    fn wants(&self, _kind: EventKind) -> bool {
        true
    }

    fn record(&self, event: Event) {
        self.recorded.lock().unwrap().push(event);
    }

    fn committed(&self) {
        self.commits.fetch_add(1, Ordering::SeqCst);
    }
}

struct Told {
    world: World,
    alice: Client,
    listener: Arc<Listener>,
    store: Arc<MemoryMetadata>,
    faults: Faults,
}

impl Told {
    async fn new() -> Self {
        let store = Arc::new(MemoryMetadata::new());
        let settings = OutboxSettings {
            sinks: vec!["hook".to_owned()],
            max_events: 1000,
            max_bytes: 1 << 20,
        };
        store.register(&settings).await.unwrap();
        let faults = Faults::none();
        let faulty = Arc::new(FaultyMetadata::new(Arc::clone(&store), faults.clone()));
        let mut ports = stores(Arc::new(MemoryBlobStore::new()), &faulty);
        let listener = Arc::new(Listener::default());
        ports.events = Arc::clone(&listener) as _;
        let world = World::on(ports, Settings::default());
        let alice = world.client("alice");
        let alice = alice.granted(Operation::pull_scope(&name("apps/web")));
        Self {
            world,
            alice,
            listener,
            store,
            faults,
        }
    }

    /// What was told since the last asking.
    async fn events(&self) -> Vec<Event> {
        let all = EventFilter::default();
        let listed = self.store.list(&all, &EventCursor::default(), 1000).await;
        self.store.discard(&all).await.unwrap();
        let events = listed.unwrap().into_iter();
        events.map(|entry| entry.waiting.event).collect()
    }

    /// The same, as kind and tag.
    async fn kinds(&self) -> Vec<(EventKind, Option<String>)> {
        let events = self.events().await;
        let kinds = events.into_iter();
        kinds
            .map(|event| (event.kind, event.tag.map(|tag| tag.to_string())))
            .collect()
    }
}

fn tagged(kind: EventKind, tag: &str) -> (EventKind, Option<String>) {
    (kind, Some(tag.to_owned()))
}

#[tokio::test]
async fn a_push_tells_of_the_manifest_and_of_each_tag_that_moved() {
    let told = Told::new().await;
    let old = told.alice.push_image("apps/web", "v1", "old").await;
    let kinds = told.kinds().await;
    assert_eq!(
        kinds,
        [
            (EventKind::BlobPushed, None),
            (EventKind::BlobPushed, None),
            tagged(EventKind::ManifestPushed, "v1"),
            tagged(EventKind::TagMoved, "v1"),
        ]
    );
    assert_eq!(told.listener.commits.load(Ordering::SeqCst), 3);
    told.alice.push("apps/web", "v1", &old).await.unwrap();
    let again = told.kinds().await;
    assert_eq!(again, [tagged(EventKind::ManifestPushed, "v1")]);
    let new = told.alice.push_image("apps/web", "v1", "new").await;
    let events = told.events().await;
    let [_config, _layer, pushed, moved] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(pushed.actor, "alice");
    assert_eq!(pushed.repository, name("apps/web"));
    assert_eq!(pushed.digest, Some(sha256(&new.bytes)));
    assert_eq!(pushed.payload.size, Some(new.bytes.len() as u64));
    assert_eq!(pushed.payload.references.len(), 2);
    assert_eq!(
        pushed.payload.media_type.as_deref(),
        Some(new.media_type.as_str())
    );
    assert_eq!(moved.kind, EventKind::TagMoved);
    assert_eq!(moved.payload.previous, Some(sha256(&old.bytes).to_string()));
    assert_ne!(pushed.id, moved.id);
}

#[tokio::test]
async fn a_push_of_several_tags_or_none_tells_of_each() {
    let told = Told::new().await;
    let image = told.alice.push_image("apps/web", "v1", "one").await;
    told.events().await;
    told.alice
        .push_tagged("apps/web", "v1", &["latest"], &image)
        .await
        .unwrap();
    assert_eq!(
        told.kinds().await,
        [
            tagged(EventKind::ManifestPushed, "latest"),
            tagged(EventKind::TagMoved, "latest"),
            tagged(EventKind::ManifestPushed, "v1"),
        ]
    );
    let digest = sha256(&image.bytes).to_string();
    told.alice.push("apps/web", &digest, &image).await.unwrap();
    assert_eq!(told.kinds().await, [(EventKind::ManifestPushed, None)]);
}

#[tokio::test]
async fn a_mount_tells_where_the_blob_came_from() {
    let told = Told::new().await;
    let digest = told.alice.push_blob("apps/web", b"layer").await.unwrap();
    told.events().await;
    let from = Some(hosted("apps/web"));
    told.alice.mount("apps/api", &digest, from).await.unwrap();
    let events = told.events().await;
    let [mounted] = events.as_slice() else {
        panic!("{events:?}");
    };
    assert_eq!(mounted.kind, EventKind::BlobMounted);
    assert_eq!(mounted.repository, name("apps/api"));
    assert_eq!(mounted.payload.from_repository.as_deref(), Some("apps/web"));
    assert_eq!(
        mounted.payload.media_type.as_deref(),
        Some("application/octet-stream")
    );
}

#[tokio::test]
async fn a_deleted_manifest_tells_of_its_tags_first() {
    let told = Told::new().await;
    let image = told.alice.push_image("apps/web", "v1", "one").await;
    told.alice.push("apps/web", "v2", &image).await.unwrap();
    told.alice.push("apps/web", "v3", &image).await.unwrap();
    told.events().await;
    told.alice.delete_tag("apps/web", "v3").await.unwrap();
    assert_eq!(told.kinds().await, [tagged(EventKind::TagDeleted, "v3")]);
    let digest = sha256(&image.bytes);
    told.alice
        .delete_manifest("apps/web", &digest)
        .await
        .unwrap();
    assert_eq!(
        told.kinds().await,
        [
            tagged(EventKind::TagDeleted, "v1"),
            tagged(EventKind::TagDeleted, "v2"),
            (EventKind::ManifestDeleted, None),
        ]
    );
    let layer = sha256(b"layer of one");
    told.alice.delete_blob("apps/web", &layer).await.unwrap();
    assert_eq!(told.kinds().await, [(EventKind::BlobDeleted, None)]);
}

#[tokio::test]
async fn an_upload_in_chunks_tells_once() {
    let told = Told::new().await;
    let upload = told.alice.start("apps/web").await.unwrap();
    let body = || gantry_registry::Body::from_bytes("chunk".into());
    told.alice
        .append("apps/web", upload, None, body())
        .await
        .unwrap();
    assert_eq!(told.kinds().await, []);
    let digest = sha256(b"chunkchunk");
    told.alice
        .commit("apps/web", upload, &digest, body())
        .await
        .unwrap();
    assert_eq!(told.kinds().await, [(EventKind::BlobPushed, None)]);
}

#[tokio::test]
async fn a_commit_that_fails_tells_nothing() {
    let told = Told::new().await;
    let image = image("config", &["layer"]);
    told.alice.push_blob("apps/web", b"config").await.unwrap();
    told.alice.push_blob("apps/web", b"layer").await.unwrap();
    told.events().await;
    let commits = told.listener.commits.load(Ordering::SeqCst);
    told.faults.fail(Call::Commit, 1, Kind::Unavailable);
    told.alice.push("apps/web", "v1", &image).await.unwrap_err();
    assert_eq!(told.kinds().await, []);
    assert_eq!(told.listener.commits.load(Ordering::SeqCst), commits);
    told.alice.push("apps/web", "v1", &image).await.unwrap();
    assert_eq!(told.kinds().await.len(), 2);
    drop(told.world);
}

#[tokio::test]
async fn pulls_are_told_without_a_commit_and_heads_are_not() {
    let told = Told::new().await;
    told.alice.push_image("apps/web", "v1", "one").await;
    told.events().await;
    told.alice.pull("apps/web", "v1").await.unwrap();
    told.alice.head("apps/web", "v1").await.unwrap();
    let layer = sha256(b"layer of one");
    told.alice
        .pull_blob("apps/web", &layer, None)
        .await
        .unwrap();
    told.alice.head_blob("apps/web", &layer).await.unwrap();
    told.alice.pull("apps/web", "v2").await.unwrap_err();
    let recorded = std::mem::take(&mut *told.listener.recorded.lock().unwrap());
    let kinds: Vec<EventKind> = recorded.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::ManifestPulled, EventKind::BlobPulled]);
    assert_eq!(
        recorded[0].tag.as_ref().map(ToString::to_string).as_deref(),
        Some("v1")
    );
    assert_eq!(recorded[1].payload.size, Some(12));
    assert_eq!(told.kinds().await, []);
}
