//! What every test stands on: stores, a clock that is moved by hand, a scripted upstream, and content.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use gantry_model::{
    AcceptedTypes, AdmissionRequest, Admitted, Algorithm, Change, Denial, DenialCode, Digest,
    Reference, Refusal, Repository, RepositoryName, Source, Tag, glob::Glob,
    media_type::OCI_MANIFEST,
};
use gantry_storage::{
    BlobStore, CacheIndex, ContentOrigin, FsBlobStore, MetadataStore, SqliteStore, UploadSessions,
    digest_of,
    faulty::{Faults, FaultyBlobStore},
    memory::{MemoryBlobStore, MemoryMetadata},
};
use serde_json::{Value, json};

use super::upstream::{ScriptedUpstream, fetched};
use crate::{
    cache_counts::{CacheContent, CacheOutcome},
    error::Error,
    leases::Leases,
    mirror::{Fill, MirroredBlob, MirroredContent, MirroredManifest, Mirrors, listing::system},
    outcome::Arrived,
    ports::{
        Admission, Clock, Freshness, Keep, MirrorSettings, Moves, Parallel, Ports, Settings,
        TagRule,
    },
};

/// When the tests begin, in milliseconds since 1970.
const START_MS: u64 = 1_700_000_000_000;

pub(super) const FRESH_FOR: Duration = Duration::from_secs(60);
pub(super) const STALE_IF_ERROR: Duration = Duration::from_secs(3600);
pub(super) const FRESHNESS: Freshness = Freshness {
    fresh_for: FRESH_FOR,
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: STALE_IF_ERROR,
    moves: Moves::Follow,
    min_age: Duration::ZERO,
};
pub(super) const NOT_FOUND_FOR: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct ManualClock(AtomicU64);

impl ManualClock {
    pub(super) fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_millis()).unwrap();
        self.0.fetch_add(by, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Hooks that accept every fill until they are told to refuse them.
#[derive(Debug, Default)]
pub(super) struct ScriptedAdmission {
    refuses: AtomicBool,
    asked: Mutex<Vec<AdmissionRequest>>,
}

impl ScriptedAdmission {
    pub(super) fn refuse(&self) {
        self.refuses.store(true, Ordering::SeqCst);
    }

    /// What was asked since this was last called.
    pub(super) fn asked(&self) -> Vec<AdmissionRequest> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

#[async_trait]
impl Admission for ScriptedAdmission {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        change == Change::Fill
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        self.asked.lock().unwrap().push(request);
        if self.refuses.load(Ordering::SeqCst) {
            let denial = Denial::new(DenialCode::Denied, "test", "not here");
            return Err(Refusal::Denied(Box::new(denial)));
        }
        Ok(Admitted::default())
    }
}

pub(super) struct World {
    pub(super) mirrors: Mirrors,
    pub(super) ports: Ports,
    pub(super) upstream: Arc<ScriptedUpstream>,
    pub(super) clock: Arc<ManualClock>,
    pub(super) admission: Arc<ScriptedAdmission>,
}

impl World {
    /// A world with one cold blob, whose store does as it is told.
    pub(super) fn faulty(name: &str, length: usize) -> (Self, Faults, Bytes, Digest) {
        let faults = Faults::none();
        let store = FaultyBlobStore::new(Arc::new(MemoryBlobStore::new()), faults.clone());
        let world = Self::on(Arc::new(store));
        let bytes = content(length, 1);
        let digest = world.blob(name, &bytes);
        (world, faults, bytes, digest)
    }

    /// How many blobs ended so.
    pub(super) fn ended(&self, how: CacheOutcome) -> u64 {
        let counts = Arc::clone(&self.ports.mirrors["hub"].counts);
        let mut counts = counts.read();
        let wanted = (CacheContent::Blob, how);
        counts
            .find_map(|(content, outcome, count)| ((content, outcome) == wanted).then_some(count))
            .unwrap()
    }

    /// On memory stores.
    pub(super) fn new() -> Self {
        Self::on(Arc::new(MemoryBlobStore::new()))
    }

    /// On any blob store, with metadata in memory.
    pub(super) fn on(blobs: Arc<dyn BlobStore>) -> Self {
        let metadata = Arc::new(MemoryMetadata::new());
        Self::build(
            blobs,
            Arc::clone(&metadata) as _,
            Arc::clone(&metadata) as _,
            metadata,
        )
    }

    /// On the stores that outlive the process, in this folder.
    pub(super) fn durable(folder: &Path) -> Self {
        let blobs = Arc::new(FsBlobStore::open(folder).unwrap());
        let metadata = Arc::new(SqliteStore::open(&folder.join("metadata.db")).unwrap());
        Self::build(
            blobs,
            Arc::clone(&metadata) as _,
            Arc::clone(&metadata) as _,
            metadata,
        )
    }

    fn build(
        blobs: Arc<dyn BlobStore>,
        metadata: Arc<dyn MetadataStore>,
        uploads: Arc<dyn UploadSessions>,
        cache: Arc<dyn CacheIndex>,
    ) -> Self {
        let upstream = Arc::new(ScriptedUpstream::default());
        let clock = Arc::new(ManualClock(AtomicU64::new(START_MS)));
        let admission = Arc::new(ScriptedAdmission::default());
        let settings = MirrorSettings {
            counts: Arc::default(),
            upstream: Arc::clone(&upstream) as _,
            prefix: "hub.test".parse().unwrap(),
            keep: Keep::default(),
            freshness: FRESHNESS,
            rules: Vec::new(),
            prefetch: false,
            parallel: None,
            not_found_for: NOT_FOUND_FOR,
            is_listed: true,
            origin: upstream_of("https://hub.test"),
        };
        let ports = Ports {
            blobs,
            metadata,
            uploads,
            cache,
            leases: Leases::default(),
            admission: Arc::clone(&admission) as _,
            events: Arc::new(crate::NoEvents),
            clock: Arc::clone(&clock) as _,
            mirrors: HashMap::from([("hub".into(), settings)]),
        };
        Self {
            mirrors: Mirrors::new(&ports, &Settings::default()),
            ports,
            upstream,
            clock,
            admission,
        }
    }

    /// Forgets everything that is only in memory, as a restart does.
    pub(super) fn restart(&mut self) {
        self.restart_with(&Settings::default());
    }

    pub(super) fn restart_with(&mut self, settings: &Settings) {
        self.mirrors = Mirrors::new(&self.ports, settings);
    }

    /// Restarts with rules about some tags: patterns, and how they differ from [`FRESHNESS`].
    pub(super) fn rule(&mut self, tags: &[&str], freshness: Freshness) {
        let tags = tags.iter().map(|glob| Glob::parse(glob).unwrap()).collect();
        for mirror in self.ports.mirrors.values_mut() {
            mirror.rules.push(TagRule {
                tags: Vec::clone(&tags),
                freshness,
            });
        }
        self.restart();
    }

    /// Restarts with large blobs fetched in parts.
    pub(super) fn parallel(&mut self, parallel: Parallel) {
        for mirror in self.ports.mirrors.values_mut() {
            mirror.parallel = Some(parallel);
        }
        self.restart();
    }

    /// Puts a blob into an upstream repository.
    pub(super) fn blob(&self, name: &str, bytes: &Bytes) -> Digest {
        let digest = sha256(bytes);
        let key = (name.parse().unwrap(), digest.clone());
        self.upstream.script().blobs.insert(key, bytes.clone());
        digest
    }

    /// Puts a manifest into an upstream repository, by digest and by tag.
    pub(super) fn manifest(&self, name: &str, tag: &str, bytes: &Bytes) -> Digest {
        self.manifest_of(OCI_MANIFEST, name, tag, bytes)
    }

    pub(super) fn manifest_of(
        &self,
        media_type: &str,
        name: &str,
        tag: &str,
        bytes: &Bytes,
    ) -> Digest {
        let digest = sha256(bytes);
        let remote: RepositoryName = name.parse().unwrap();
        let mut script = self.upstream.script();
        for reference in [Reference::Digest(digest.clone()), tagged(tag)] {
            let manifest = fetched(media_type, &digest, bytes);
            let key = (remote.clone(), reference);
            script.manifests.insert(key, manifest);
        }
        digest
    }

    /// Takes a tag out of an upstream repository.
    pub(super) fn untag(&self, name: &str, tag: &str) {
        let key = (name.parse().unwrap(), tagged(tag));
        self.upstream.script().manifests.remove(&key).unwrap();
    }

    pub(super) async fn pull(&self, name: &str, tag: &str) -> Result<MirroredManifest, Error> {
        self.pull_as(name, tagged(tag), "").await
    }

    /// Pulls as a client with this `Accept`.
    pub(super) async fn pull_as(
        &self,
        name: &str,
        reference: Reference,
        accept: &str,
    ) -> Result<MirroredManifest, Error> {
        let (repository, accepts) = (repository(name), AcceptedTypes::read([accept]));
        self.mirrors
            .manifest(&repository, &reference, &accepts, &system())
            .await
    }

    pub(super) async fn pull_digest(
        &self,
        name: &str,
        digest: &Digest,
    ) -> Result<MirroredManifest, Error> {
        self.pull_as(name, Reference::Digest(digest.clone()), "")
            .await
    }

    pub(super) async fn open(&self, name: &str, digest: &Digest) -> Result<MirroredBlob, Error> {
        let repository = repository(name);
        self.mirrors.blob(&repository, digest, &system()).await
    }

    /// The blob's length as the mirror knows it, without a fill.
    pub(super) async fn stat_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        self.mirrors.stat_blob(repository, digest, &system()).await
    }

    /// Reads a whole blob, and waits until what is to be done with it is done.
    pub(super) async fn read(&self, name: &str, digest: &Digest) -> Result<Vec<u8>, Error> {
        let (bytes, end) = drain(self.open(name, digest).await?).await;
        // Whether it is kept is no reader's concern.
        self.kept(name, digest).await.ok();
        end.map(|()| bytes)
    }

    /// Waits until the blob's fill is over.
    pub(super) async fn kept(&self, name: &str, digest: &Digest) -> Result<(), Error> {
        self.mirrors.kept(&repository(name), digest).await
    }

    /// How long the blob in the store is, whoever may read it.
    pub(super) async fn stored(&self, digest: &Digest) -> Option<u64> {
        self.ports.blobs.stat(digest).await.unwrap()
    }

    /// Staging files that exist.
    pub(super) async fn staged(&self) -> usize {
        self.ports.blobs.staged().await.unwrap().len()
    }
}

/// Everything a client gets of a blob, and how it ended.
pub(super) async fn drain(blob: MirroredBlob) -> (Vec<u8>, Result<(), Error>) {
    let mut bytes = Vec::new();
    match blob.content {
        MirroredContent::Published(blob) => {
            while (bytes.len() as u64) < blob.size() {
                let more = blob.read_at(bytes.len() as u64, 1 << 20).await.unwrap();
                assert!(!more.is_empty(), "a published blob is whole");
                bytes.extend_from_slice(&more);
            }
        }
        MirroredContent::Filling(fill) => {
            let mut stream = fill.stream(0, None);
            while let Some(more) = stream.next().await {
                match more {
                    Ok(more) => bytes.extend_from_slice(&read(more).await),
                    Err(error) => return (bytes, Err(error)),
                }
            }
        }
    }
    (bytes, Ok(()))
}

/// The bytes that arrived.
pub(super) async fn read(arrived: Arrived) -> Bytes {
    match arrived {
        Arrived::Loose(bytes) => bytes,
        Arrived::Stored {
            blob,
            offset,
            length,
        } => {
            let mut bytes = Vec::new();
            while (bytes.len() as u64) < length {
                let at = bytes.len() as u64;
                let left = usize::try_from(length - at).unwrap();
                let more = blob.read_at(offset + at, left).await.unwrap();
                assert!(!more.is_empty(), "what arrived can be read");
                bytes.extend_from_slice(&more);
            }
            bytes.into()
        }
    }
}

/// The fill behind a blob that is not published yet.
pub(super) fn filling(blob: MirroredBlob) -> Fill {
    match blob.content {
        MirroredContent::Filling(fill) => fill,
        MirroredContent::Published(_) => panic!("the blob is published"),
    }
}

/// The origin of what the upstream with this URL delivers.
pub(super) fn upstream_of(url: &str) -> ContentOrigin {
    ContentOrigin::Upstream(url.into())
}

/// A repository of the mirror `hub`.
pub(super) fn repository(remote: &str) -> Repository {
    let name: RepositoryName = format!("hub.test/{remote}").parse().unwrap();
    Repository {
        spelled: name.clone(),
        name,
        base: "/v2".into(),
        source: Source::Mirror {
            mirror: "hub".into(),
            remote: remote.parse().unwrap(),
        },
        namespace: None,
    }
}

pub(super) fn tagged(tag: &str) -> Reference {
    Reference::Tag(tag.parse::<Tag>().unwrap())
}

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha256, bytes)
}

/// Bytes that look random and are the same in every run.
pub(super) fn content(length: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(length);
    bytes.into()
}

/// An image manifest with the empty config and these layers.
pub(super) fn image(layers: &[(&Digest, usize)]) -> Bytes {
    let layers = layers.iter().map(|(digest, size)| layer(digest, *size));
    image_of(&layers.collect::<Vec<_>>())
}

/// A layer's descriptor.
pub(super) fn layer(digest: &Digest, size: usize) -> Value {
    json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": digest,
        "size": size,
    })
}

/// An image manifest with the empty config and layers of these descriptors.
pub(super) fn image_of(layers: &[Value]) -> Bytes {
    let config = sha256(b"{}");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": layers,
    });
    manifest.to_string().into()
}
