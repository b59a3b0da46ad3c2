//! A registry on real stores; `client` speaks to it, `content` is what is pushed, `hooks` do what a test says.

#[path = "harness/client.rs"]
mod client;
#[path = "harness/content.rs"]
mod content;
#[path = "harness/hooks.rs"]
mod hooks;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use gantry_registry::{Admission, Clock, Leases, Ports, Registry, Settings};
use gantry_storage::{
    BlobStore, CacheIndex, FsBlobStore, MemoryBlobStore, MemoryMetadata, MetadataStore,
    SqliteStore, UploadSessions,
};

pub(crate) use self::{
    client::{Client, bytes_of},
    content::{
        CONFIG, Content, LAYER, MIRRORED, artifact, descriptor, hosted, image, image_document,
        index, mirrored, name, page, reference, sha256, sha512, streamed, tag, unreadable, whole,
    },
    hooks::{Hooks, denied},
};

/// A registry, and what it stands on.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<TestClock>,
}

impl World {
    /// On memory stores, with no hook.
    pub(crate) fn new() -> Self {
        Self::with_admission(Arc::new(Hooks::none()))
    }

    /// On stores in a folder.
    pub(crate) fn durable(folder: &Path) -> Self {
        let blobs = FsBlobStore::open(folder).expect("a folder");
        let metadata = SqliteStore::open(&folder.join("metadata.db")).expect("a database");
        let stores = stores(Arc::new(blobs), &Arc::new(metadata));
        Self::on(stores, Settings::default())
    }

    pub(crate) fn with_admission(admission: Arc<dyn Admission>) -> Self {
        Self::build(admission, Settings::default())
    }

    pub(crate) fn with_settings(settings: Settings) -> Self {
        Self::build(Arc::new(Hooks::none()), settings)
    }

    pub(crate) fn build(admission: Arc<dyn Admission>, settings: Settings) -> Self {
        let blobs = Arc::new(MemoryBlobStore::new());
        let stores = stores(blobs, &Arc::new(MemoryMetadata::new()));
        Self::on(
            Ports {
                admission,
                ..stores
            },
            settings,
        )
    }

    pub(crate) fn on(mut ports: Ports, settings: Settings) -> Self {
        let clock = Arc::new(TestClock::default());
        ports.clock = Arc::clone(&clock) as _;
        Self {
            registry: Registry::new(ports.clone(), settings),
            ports,
            settings,
            clock,
        }
    }

    /// The same stores under a new registry, as after a restart. Clients of the old one have to be dropped before.
    pub(crate) fn restarted(self) -> Self {
        let Self {
            ports,
            settings,
            clock,
            registry,
        } = self;
        drop(registry);
        Self {
            registry: Registry::new(ports.clone(), settings),
            ports,
            settings,
            clock,
        }
    }
}

/// Ports on stores, with no hook and no mirror.
pub(crate) fn stores<M: CacheIndex + MetadataStore + UploadSessions + 'static>(
    blobs: Arc<dyn BlobStore>,
    metadata: &Arc<M>,
) -> Ports {
    Ports {
        blobs,
        metadata: Arc::clone(metadata) as _,
        uploads: Arc::clone(metadata) as _,
        cache: Arc::clone(metadata) as _,
        leases: Leases::default(),
        admission: Arc::new(Hooks::none()),
        clock: Arc::new(TestClock::default()),
        mirrors: HashMap::new(),
    }
}

/// A clock that stands until it is moved.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl Default for TestClock {
    fn default() -> Self {
        Self(AtomicU64::new(1_700_000_000_000))
    }
}

impl TestClock {
    pub(crate) fn advance_ms(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}
