//! What the binary must bring: stores, upstreams, admission, a clock, and settings.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use gantry_model::{
    AdmissionRequest, Admitted, Change, Event, EventKind, Refusal, Repository, RepositoryName, Tag,
    glob::Glob,
};
use gantry_storage::{BlobStore, CacheIndex, ContentOrigin, MetadataStore, UploadSessions};
use gantry_upstream::Upstream;

use crate::{cache_counts::CacheCounts, leases::Leases};

/// The admission hooks. Asked after a digest is verified and before anything is visible, and before a served byte leaves.
#[async_trait]
pub trait Admission: Debug + Send + Sync {
    /// Whether any hook listens to this change here. A false answer saves making the question.
    fn asks(&self, repository: &Repository, change: Change) -> bool;

    /// Asks every hook that listens; any refusal wins.
    ///
    /// # Errors
    /// The first [`Refusal`].
    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal>;
}

/// Who wants to know of events. Those of a change are written with its commit; the others are handed over here.
pub trait EventSink: Debug + Send + Sync {
    /// Whether anybody is to be told of this kind, this time: pulls may be sampled. A false answer saves making the event.
    fn wants(&self, kind: EventKind) -> bool;

    /// Takes a fact that has no commit. Never waits: what finds no place is lost, and counted.
    fn record(&self, event: Event);

    /// Says that a commit wrote events.
    fn committed(&self);
}

/// Nobody wants to know.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn wants(&self, _kind: EventKind) -> bool {
        false
    }

    fn record(&self, _event: Event) {}

    fn committed(&self) {}
}

/// Wall-clock time.
pub trait Clock: Debug + Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// How one mirror behaves.
#[derive(Clone, Debug)]
pub struct MirrorSettings {
    /// The upstream behind it.
    pub upstream: Arc<dyn Upstream>,
    /// What its repositories' names begin with, before a slash.
    pub prefix: RepositoryName,
    /// What stays in the cache.
    pub keep: Keep,
    /// What is believed of a tag that no rule names.
    pub freshness: Freshness,
    /// What is believed of tags by pattern; the first that matches counts.
    pub rules: Vec<TagRule>,
    /// Whether the fills of a manifest's blobs begin when it comes, before a client asks for them.
    pub prefetch: bool,
    /// Whether large blobs are fetched in several requests at once; `None` = each in one.
    pub parallel: Option<Parallel>,
    /// How long the upstream's own 404 is remembered.
    pub not_found_for: Duration,
    /// Whether the list of all repositories holds this mirror's: not where each reader's right is its upstream's to say.
    pub is_listed: bool,
    /// What its upstream delivers counts as this: the upstream's URL in one spelling. Content of another origin is never served here.
    pub origin: ContentOrigin,
    /// Where its answers are counted.
    pub counts: Arc<CacheCounts>,
}

impl MirrorSettings {
    /// Whether the repository is one of this mirror's that the list of all repositories leaves out.
    pub(crate) fn hides(&self, name: &RepositoryName) -> bool {
        let is_pushed = |pattern: &Glob| pattern.matches(name.as_str());
        !self.is_listed
            && name.strip_prefix(&self.prefix).is_some()
            && !self.keep.pushed.iter().any(is_pushed)
    }

    /// What is believed of a tag of the upstream's repository `remote`.
    #[must_use]
    pub fn freshness(&self, remote: &RepositoryName, tag: &Tag) -> &Freshness {
        let name = format!("{remote}:{tag}");
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.tags.iter().any(|glob| glob.matches(&name)));
        rule.map_or(&self.freshness, |rule| &rule.freshness)
    }
}

/// How a large blob is fetched in several requests at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parallel {
    /// Requests at once, at most.
    pub ranges: usize,
    /// How long a blob must be, by the manifests that name it.
    pub from_bytes: u64,
    /// What one request asks for. So much may be in memory for each request but one; not 0.
    pub part_bytes: u64,
}

/// What stays in a mirror's cache.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    /// How long content stays that nobody asks for; `None` = for ever.
    pub keep_for: Option<Duration>,
    /// Bytes of blobs at most, each digest once; the least recently used go first. Looked at now and then, so it may be passed for a
    /// while. `None` = no limit.
    pub max_bytes: Option<u64>,
    /// Globs on `REPOSITORY:TAG`, with the upstream's own name of the repository: what these tags name stays.
    pub pinned: Vec<Glob>,
    /// Patterns on canonical names that are pushed here although they lie below the mirror's prefix: they are no cache.
    pub pushed: Vec<Glob>,
}

impl Keep {
    /// Whether nothing is ever taken out.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.keep_for.is_none() && self.max_bytes.is_none()
    }
}

/// How long an upstream's answer about a tag is believed (RFC 5861 for the two kinds of staleness), and whether its moves are followed.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// How long a tag is served without asking the upstream, from its last confirmation; [`Duration::MAX`] = for ever.
    pub fresh_for: Duration,
    /// How long after that it is still served at once, while the upstream is asked behind the client's back.
    pub stale_while_revalidate: Duration,
    /// How long after `fresh_for` it is served when the upstream fails.
    pub stale_if_error: Duration,
    /// What happens when the upstream's tag names something else than the one stored here.
    pub moves: Moves,
    /// How long a manifest must have been here before the tag may name it; until then the tag names what it did.
    pub min_age: Duration,
}

/// What happens when an upstream's tag moves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Moves {
    /// The tag here moves too.
    Follow,
    /// It moves too, and the log says so at `warn`.
    Alert,
    /// It stays what it was when it was first pulled here; the log and the client are told.
    Refuse,
}

/// What is believed of some tags.
#[derive(Clone, Debug)]
pub struct TagRule {
    /// Globs on `REPOSITORY:TAG`, with the upstream's own name of the repository.
    pub tags: Vec<Glob>,
    /// What is believed of them.
    pub freshness: Freshness,
}

/// The registry's own limits.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Manifest bytes accepted at most.
    pub max_manifest_bytes: usize,
    /// Bytes of annotations that a pushed manifest may carry in all.
    pub max_annotation_bytes: usize,
    /// Entries of a list page at most, and when the client does not say.
    pub max_page_entries: usize,
    /// Whether hosted content may be deleted.
    pub delete_enabled: bool,
    /// Open upload sessions of one principal at most.
    pub max_uploads_per_principal: usize,
    /// How long an upload session lives without being closed.
    pub upload_lifetime: Duration,
    /// Bytes of manifests kept in memory.
    pub manifest_cache_bytes: u64,
    /// Fills under way at once.
    pub max_fills: usize,
    /// Requests to an upstream that a request for a list may cause.
    pub max_derived_requests: u32,
    /// Blobs of one manifest that are fetched before a client asks for them.
    pub max_prefetched_blobs: usize,
    /// Questions of one address and minute for what no upstream has.
    pub max_misses: u32,
    /// The same, about one repository.
    pub max_misses_of_repository: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_manifest_bytes: gantry_model::manifest::MAX_MANIFEST_BYTES,
            max_annotation_bytes: gantry_model::manifest::MAX_ANNOTATION_BYTES,
            max_page_entries: 1000,
            delete_enabled: true,
            max_uploads_per_principal: 64,
            upload_lifetime: Duration::from_secs(7 * 24 * 3600),
            manifest_cache_bytes: 32 << 20,
            max_fills: 64,
            max_derived_requests: 64,
            max_prefetched_blobs: 64,
            max_misses: 600,
            max_misses_of_repository: 60,
        }
    }
}

/// Everything the registry stands on.
#[derive(Clone, Debug)]
pub struct Ports {
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Facts.
    pub metadata: Arc<dyn MetadataStore>,
    /// Open uploads.
    pub uploads: Arc<dyn UploadSessions>,
    /// What eviction asks.
    pub cache: Arc<dyn CacheIndex>,
    /// Content that is about to be named. One table for everything that shares these stores.
    pub leases: Leases,
    /// Admission hooks.
    pub admission: Arc<dyn Admission>,
    /// Who is told of what happens.
    pub events: Arc<dyn EventSink>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Mirrors by name.
    pub mirrors: HashMap<Arc<str>, MirrorSettings>,
}
