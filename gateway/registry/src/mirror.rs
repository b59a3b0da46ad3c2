//! The proxy cache: serves a mirrored repository from what is here, and fetches each missing byte once.
//!
//! Map: `manifest` finds, fetches and stores manifests; `freshness` decides whether a tag may be served, `age` whether it may
//! name what is new, `negotiation` what it names to clients that accept further types; `blob` says who may have
//! which blob, `fill` is a fill as readers see it and `fetch` the task behind it, `parts` a fetch in several requests, `sink` where
//! the bytes go; `pass` is a fill without space to
//! keep it, `window` its memory; `listing` is tags and referrers, `walk` how an upstream's lists are read; `keep` is what stays,
//! `operator` what somebody orders and `selection` how that is written, `sweep` frees what nobody has, `prefetch` begins fills early; `flight` runs one
//! piece of work for many callers; `misses` bounds questions for what is not there, `turns` what one mirror takes; `failure` is why there is no answer. Knows nothing of HTTP or permits.
//! Invariants: only a verified digest is stored or served whole; only the upstream's own 404 is "unknown"; no caller's leaving stops
//! work that others wait for.

mod age;
mod blob;
mod failure;
mod fetch;
mod fill;
mod flight;
mod freshness;
mod keep;
mod listing;
mod manifest;
mod misses;
mod negotiation;
mod operator;
mod parts;
mod pass;
mod prefetch;
mod selection;
mod sink;
mod sweep;
#[cfg(test)]
mod tests;
mod turns;
mod walk;
mod window;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use gantry_model::{
    AcceptedTypes, Digest, Page, Reference, Repository, RepositoryName, Requester, Source, Tag,
    TagState, glob::Glob,
};
use gantry_storage::{Blob, BlobStore, CacheIndex, ContentOrigin, ManifestRecord, MetadataStore};
use tokio::sync::{Semaphore, mpsc};

use self::{failure::Failure, flight::Flights, flight::lock};
pub(crate) use self::{
    fill::Fill,
    listing::{ReferrersFound, TagsFound},
    walk::Derived,
};
pub use self::{
    keep::{CacheUsage, Evicted},
    operator::{CacheEntry, EvictOrder, EvictedItem, EvictedWhat},
    selection::Selection,
    sweep::Swept,
};
use crate::{
    cache_counts::{CacheContent, CacheOutcome},
    error::Error,
    leases::Leases,
    outcome::Staleness,
    ports::{Admission, Clock, Freshness, MirrorSettings, Ports, Settings},
};

/// A manifest of a mirrored repository, stored here.
#[derive(Clone, Debug)]
pub(crate) struct MirroredManifest {
    /// The stored facts.
    pub(crate) record: ManifestRecord,
    /// The bytes, as the upstream sent them.
    pub(crate) bytes: Bytes,
    /// Set when the upstream could not confirm the tag.
    pub(crate) stale: Option<Staleness>,
    /// What the tag names, when a tag was asked for.
    pub(crate) tag: Option<TagState>,
    /// How it was come by.
    via: CacheOutcome,
}

/// A blob of a mirrored repository.
#[derive(Debug)]
pub(crate) struct MirroredBlob {
    /// The whole blob's length; `None` only while a fill's upstream has not said.
    pub(crate) size: Option<u64>,
    /// Where its bytes come from.
    pub(crate) content: MirroredContent,
}

impl MirroredBlob {
    fn published(blob: Arc<dyn Blob>) -> Self {
        Self {
            size: Some(blob.size()),
            content: MirroredContent::Published(blob),
        }
    }
}

/// Where a mirrored blob's bytes come from.
#[derive(Debug)]
pub(crate) enum MirroredContent {
    /// It is here.
    Published(Arc<dyn Blob>),
    /// It is arriving.
    Filling(Fill),
}

/// Every mirror. Cheap to clone; clones share fills and caches.
#[derive(Clone, Debug)]
pub(crate) struct Mirrors {
    engine: Arc<Engine>,
}

impl Mirrors {
    /// Mirrors on `ports`. No upstream is asked before somebody pulls.
    pub(crate) fn new(ports: &Ports, settings: &Settings) -> Self {
        Self::with(ports, settings, Arc::new(Running::new(settings)))
    }

    /// The same cache under other mirrors, admission and settings: fills and flights go on, and whoever asks for what is under way
    /// joins it. What was "not found" is asked again, because another upstream may know it.
    pub(crate) fn reconfigured(&self, ports: &Ports, settings: &Settings) -> Self {
        let running = Arc::clone(&self.engine.running);
        running.not_found.forget();
        running.negotiated.forget();
        Self::with(ports, settings, running)
    }

    fn with(ports: &Ports, settings: &Settings, running: Arc<Running>) -> Self {
        let engine = Engine {
            blobs: Arc::clone(&ports.blobs),
            metadata: Arc::clone(&ports.metadata),
            admission: Arc::clone(&ports.admission),
            clock: Arc::clone(&ports.clock),
            mirrors: ports.mirrors.clone(),
            settings: *settings,
            running,
            cache: Arc::clone(&ports.cache),
            leases: ports.leases.clone(),
        };
        Self {
            engine: Arc::new(engine),
        }
    }

    /// Fills under way.
    pub(crate) fn fill_count(&self) -> usize {
        lock(&self.engine.running.fills).len()
    }

    /// Parts of blobs that may be in memory before their turn.
    #[cfg(test)]
    pub(crate) fn parts_ahead(&self) -> usize {
        parts::MAX_AHEAD - self.engine.running.ahead.available_permits()
    }

    /// The manifest, from here when it may be, else from the upstream; stored before it is returned.
    ///
    /// # Errors
    /// [`Error::ManifestUnknown`] only when the upstream said so; otherwise what kept the upstream from answering.
    pub(crate) async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accepts: &AcceptedTypes,
        requester: &Requester,
    ) -> Result<MirroredManifest, Error> {
        let origin = self.engine.origin(repository)?.accepting(accepts.clone());
        let asker = Some(requester);
        let manifest = self
            .engine
            .manifest_for(&origin, reference, requester, asker);
        let manifest = manifest.await;
        manifest.map_err(|failure| failure.into_manifest_error().of_mirror(origin.mirror()))
    }

    /// As [`Mirrors::manifest`], of what a list names: the requester did not ask for it.
    ///
    /// # Errors
    /// As [`Mirrors::manifest`].
    pub(crate) async fn listed_manifest(
        &self,
        repository: &Repository,
        digest: Digest,
        accepts: &AcceptedTypes,
        requester: &Requester,
    ) -> Result<MirroredManifest, Error> {
        let origin = self.engine.origin(repository)?.accepting(accepts.clone());
        let reference = Reference::Digest(digest);
        let manifest = self.engine.manifest(&origin, &reference, requester).await;
        manifest.map_err(|failure| failure.into_manifest_error().of_mirror(origin.mirror()))
    }

    /// Remembers that content of a mirrored repository was given to somebody.
    pub(crate) fn used(&self, repository: &Repository, digest: &Digest) {
        if repository.mirror().is_some() {
            self.engine.used(&repository.name, digest);
        }
    }

    /// How much each mirror holds.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn usage(&self) -> Result<Vec<CacheUsage>, Error> {
        let usage = self.engine.usage().await;
        usage.map_err(Failure::into_manifest_error)
    }

    /// Takes out of every mirror what it need not keep.
    ///
    /// # Errors
    /// As the stores; what went before is gone all the same.
    pub(crate) async fn evict(&self) -> Result<Evicted, Error> {
        let evicted = self.engine.evict().await;
        evicted.map_err(Failure::into_manifest_error)
    }

    /// What is cached: mirrored repositories that match, by name, after `after`; at most `limit`.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn cached(
        &self,
        glob: Option<&Glob>,
        after: Option<RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CacheEntry>, Error> {
        let cached = self.engine.cached(glob, after, limit).await;
        cached.map_err(Failure::into_manifest_error)
    }

    /// Pins content. Whether it was not pinned by this text, and how many repositories it covers now.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn pin(&self, selection: &Selection, by: &str) -> Result<(bool, u64), Error> {
        let pinned = self.engine.pin_selection(selection, by).await;
        pinned.map_err(Failure::into_manifest_error)
    }

    /// Takes out what an operator wants to go.
    ///
    /// # Errors
    /// As the stores; what went before is gone all the same.
    pub(crate) async fn evict_selected(
        &self,
        order: &EvictOrder,
        tell: &mpsc::Sender<EvictedItem>,
    ) -> Result<Evicted, Error> {
        let evicted = self.engine.evict_selected(order, tell).await;
        evicted.map_err(Failure::into_manifest_error)
    }

    /// Frees bytes that no repository has.
    ///
    /// # Errors
    /// As the stores.
    pub(crate) async fn sweep_unowned(&self) -> Result<Swept, Error> {
        let swept = self.engine.sweep_unowned().await;
        swept.map_err(Failure::into_manifest_error)
    }

    /// Begins the fills of what a manifest names, when its mirror says so and it came a moment ago. Never waits.
    pub(crate) fn prefetch(
        &self,
        repository: &Repository,
        record: &ManifestRecord,
        bytes: &Bytes,
        requester: &Requester,
    ) {
        let mirrors = &self.engine.mirrors;
        let settings = repository.mirror().and_then(|mirror| mirrors.get(mirror));
        if settings.is_some_and(|settings| settings.prefetch)
            && let Ok(origin) = self.engine.origin(repository)
        {
            self.engine.prefetch(&origin, record, bytes, requester);
        }
    }

    /// The blob's length without a fill; `None` when the upstream has it and does not say how long it is.
    ///
    /// # Errors
    /// [`Error::BlobUnknown`] only when the upstream said so; [`Error::TooManyRequests`] for too many such answers; otherwise what kept it
    /// from answering.
    pub(crate) async fn stat_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<Option<u64>, Error> {
        let origin = self.engine.origin(repository)?;
        let size = self.engine.stat_blob(&origin, digest);
        self.engine
            .counted((&origin, digest), requester, size)
            .await
    }

    /// The length of a blob that is about to be read: as a manifest of the repository says it, where one does, so that the upstream is
    /// asked once. The read itself says whether the repository has the blob.
    ///
    /// # Errors
    /// As [`Mirrors::stat_blob`].
    pub(crate) async fn expected_size(
        &self,
        repository: &Repository,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<Option<u64>, Error> {
        let origin = self.engine.origin(repository)?;
        let size = self.engine.expected_size(&origin, digest);
        self.engine
            .counted((&origin, digest), requester, size)
            .await
    }

    /// The origin of the content that a repository is read by.
    ///
    /// # Errors
    /// [`Error::Internal`] when its mirror is not configured.
    pub(crate) fn content_origin(&self, repository: &Repository) -> Result<ContentOrigin, Error> {
        match &repository.source {
            Source::Hosted | Source::Layered { .. } => Ok(ContentOrigin::Pushed),
            Source::Mirror { .. } => Ok(self.engine.origin(repository)?.settings.origin),
        }
    }

    /// The blob: published, or the fill that is under way for it.
    ///
    /// # Errors
    /// As [`Mirrors::stat_blob`]; a fill that fails later says so in its stream.
    pub(crate) async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<MirroredBlob, Error> {
        let origin = self.engine.origin(repository)?;
        let blob = self.engine.blob(&origin, digest, requester);
        self.engine
            .counted((&origin, digest), requester, blob)
            .await
    }

    /// Waits until the fill that runs for the blob, if one does, is over: its last bytes leave before it is published.
    ///
    /// # Errors
    /// Why the fill failed, or its content was not kept.
    pub(crate) async fn kept(&self, repository: &Repository, digest: &Digest) -> Result<(), Error> {
        let origin = self.engine.origin(repository)?;
        match self.engine.filling(&origin, digest) {
            Some(fill) => fill.finished().await,
            None => Ok(()),
        }
        .map_err(|failure| failure.into_blob_error(digest))
    }

    /// Waits for the publication of a blob that readers may have whole by now; not for one that still arrives.
    pub(crate) async fn published(&self, repository: &Repository, digest: &Digest) {
        let origin = self.engine.origin(repository).ok();
        let fill = origin.and_then(|origin| self.engine.filling(&origin, digest));
        if let Some(fill) = fill.filter(Fill::is_verified) {
            // The fill has logged it.
            fill.finished().await.ok();
        }
    }

    /// Waits until all that readers may have whole by now is published, or is known not to be.
    pub(crate) async fn settled(&self) {
        let fills: Vec<Fill> = lock(&self.engine.running.fills).values().cloned().collect();
        for fill in fills.into_iter().filter(Fill::is_verified) {
            // The fill has logged it.
            fill.finished().await.ok();
        }
    }

    /// A page of the upstream's tags, in its order, and whether there are more; stale when it cannot answer.
    ///
    /// # Errors
    /// [`Error::NameUnknown`] only when the upstream said so; otherwise what kept it from answering, when the list was never whole here.
    pub(crate) async fn tags(
        &self,
        repository: &Repository,
        page: &Page,
        derived: &Derived,
    ) -> Result<TagsFound, Error> {
        let origin = self.engine.origin(repository)?;
        let tags = self.engine.tags(&origin, page, derived).await;
        tags.map_err(|failure| {
            let error = failure.into_error(|| Error::NameUnknown);
            error.of_mirror(origin.mirror())
        })
    }

    /// All that refers to `digest`, as the upstream lists it; stale when it cannot answer.
    ///
    /// # Errors
    /// What kept the upstream from answering, when the list was never whole here. Never "unknown": without referrers the list is empty.
    pub(crate) async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        derived: &Derived,
    ) -> Result<ReferrersFound, Error> {
        let origin = self.engine.origin(repository)?;
        let referrers = self.engine.referrers(&origin, digest, derived).await;
        referrers.map_err(|failure| failure.into_manifest_error().of_mirror(origin.mirror()))
    }

    /// Waits for the turn of a request for a list.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when that takes too long.
    pub(crate) async fn list_turn(
        &self,
        repository: &Repository,
    ) -> Result<tokio::sync::OwnedSemaphorePermit, Error> {
        let turn = self.engine.running.lists.request(repository.mirror()).await;
        turn.map_err(Failure::into_manifest_error)
    }

    /// Whether the manifest is here, so that serving it asks no upstream.
    ///
    /// # Errors
    /// As the store.
    pub(crate) async fn holds(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let origin = self.engine.origin(repository)?;
        let held = self.engine.local_manifest(&origin, digest).await;
        Ok(held.map_err(Failure::into_manifest_error)?.is_some())
    }
}

/// What every part of the cache stands on.
struct Engine {
    blobs: Arc<dyn BlobStore>,
    metadata: Arc<dyn MetadataStore>,
    admission: Arc<dyn Admission>,
    clock: Arc<dyn Clock>,
    mirrors: HashMap<Arc<str>, MirrorSettings>,
    settings: Settings,
    cache: Arc<dyn CacheIndex>,
    leases: Leases,
    running: Arc<Running>,
}

/// What is under way and what is remembered: it outlives every configuration.
struct Running {
    /// Protects: which blobs are being filled, by place and digest. Held for a look-up, never over an await.
    fills: Mutex<HashMap<(Place, Digest), Fill>>,
    fill_slots: Semaphore,
    /// What of them one mirror may have.
    fill_turns: turns::Turns,
    /// Room for parts of blobs that come before their turn.
    ahead: Semaphore,
    prefetches: prefetch::Prefetches,
    stats: Flights<(Place, Digest), Option<u64>>,
    manifests: Flights<Asked, MirroredManifest>,
    /// Verified bytes of manifests. Never asked whether a manifest exists.
    bytes: moka::sync::Cache<Digest, Bytes>,
    not_found: freshness::NotFound,
    negotiated: negotiation::Negotiated,
    lists: walk::Lists,
    misses: misses::Misses,
    uses: keep::Uses,
    fullness: pass::Fullness,
}

impl Running {
    fn new(settings: &Settings) -> Self {
        Self {
            fills: Mutex::default(),
            fill_slots: Semaphore::new(settings.max_fills.clamp(1, Semaphore::MAX_PERMITS)),
            fill_turns: turns::Turns::new(settings.max_fills * 3 / 4),
            ahead: Semaphore::new(parts::MAX_AHEAD),
            prefetches: prefetch::Prefetches::new(settings.max_fills),
            stats: Flights::default(),
            manifests: Flights::default(),
            bytes: manifest::bytes_cache(settings.manifest_cache_bytes),
            not_found: freshness::NotFound::default(),
            negotiated: negotiation::Negotiated::default(),
            lists: walk::Lists::default(),
            misses: misses::Misses::default(),
            uses: keep::Uses::default(),
            fullness: pass::Fullness::default(),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Engine")
            .field("mirrors", &self.mirrors)
            .field("fills", &lock(&self.running.fills).len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    fn origin(&self, repository: &Repository) -> Result<Origin, Error> {
        let Source::Mirror { mirror, remote } = &repository.source else {
            return Err(Error::Internal {
                source: "a hosted repository has no upstream".into(),
            });
        };
        let settings = self.mirrors.get(mirror).ok_or_else(|| Error::Internal {
            source: format!("mirror {mirror} is not configured").into(),
        })?;
        Ok(Origin {
            repository: repository.clone(),
            mirror: Arc::clone(mirror),
            remote: remote.clone(),
            settings: settings.clone(),
            accepts: AcceptedTypes::default(),
        })
    }

    fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }
}

/// A repository and the origin it is read by. What is under way or remembered for one upstream is nothing to a mirror that has the same
/// repository from another, as after a change of its `url`.
type Place = (RepositoryName, ContentOrigin);

/// A manifest that an upstream is asked for: where, which, and the further types that are accepted, by which its answer may differ.
type Asked = (Place, Reference, Option<Arc<str>>);

/// A mirrored repository and the upstream behind it.
#[derive(Clone, Debug)]
struct Origin {
    repository: Repository,
    mirror: Arc<str>,
    remote: RepositoryName,
    settings: MirrorSettings,
    /// What its manifests are asked for as.
    accepts: AcceptedTypes,
}

impl Origin {
    /// The same for a request that accepts these types of manifests.
    fn accepting(self, accepts: AcceptedTypes) -> Self {
        Self { accepts, ..self }
    }

    fn asked(&self, reference: &Reference) -> Asked {
        let further = self.accepts.further().cloned();
        (self.place(), reference.clone(), further)
    }

    fn mirror(&self) -> &str {
        &self.mirror
    }

    fn name(&self) -> &RepositoryName {
        &self.repository.name
    }

    /// How content comes to this repository.
    fn content(&self) -> &ContentOrigin {
        &self.settings.origin
    }

    fn place(&self) -> Place {
        (self.name().clone(), self.content().clone())
    }

    /// Whether the repository is pushed to here, too.
    fn may_be_pushed(&self) -> bool {
        let mut patterns = self.settings.keep.pushed.iter();
        patterns.any(|pattern| pattern.matches(self.name().as_str()))
    }

    fn count(&self, content: CacheContent, outcome: CacheOutcome) {
        self.settings.counts.count(content, outcome);
    }

    fn freshness(&self, tag: &Tag) -> &Freshness {
        self.settings.freshness(&self.remote, tag)
    }
}
