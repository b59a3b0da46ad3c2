//! What stays in the cache: uses are remembered, and what nobody asked for longest goes first.
//!
//! Owns the order of an eviction: the repository's own link or manifest goes in a commit; the bytes go after it, and only when no
//! repository, hosted or mirrored, has them and nobody leases them. A reader that has them open reads on.
//! Invariant: pinned tags keep everything they name.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use gantry_model::{Digest, Document, Page, RepositoryName};
use gantry_storage::{
    CacheQuery, CacheSize, Cached, Commit, CommitError, ContentOrigin, Use, Within,
};

use super::{
    Engine,
    failure::Failure,
    flight::lock,
    manifest::millis,
    operator::{EVERYTHING, EvictedItem, EvictedWhat},
    selection::{Selection, What},
};
use crate::{
    cache_counts::{CacheContent, EvictionReason},
    ports::MirrorSettings,
};

/// Entries looked at in one go.
const BATCH: usize = 256;

/// Uses remembered in memory at most; then they are written.
const MAX_PENDING: usize = 50_000;

/// Entries of a page when everything is looked through.
const PAGE: usize = 1_000;

/// What one eviction took out.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Evicted {
    /// Manifests that left their repository.
    pub manifests: u64,
    /// Blobs that left their repository.
    pub blobs: u64,
    /// Bytes that were freed.
    pub bytes: u64,
    /// What an operator's order meant and a pin kept: manifests and blobs.
    pub pinned: u64,
}

impl Evicted {
    pub(super) fn add(&mut self, item: &EvictedItem) {
        match item.what {
            EvictedWhat::Tag(_) => {}
            EvictedWhat::Manifest(..) => self.manifests += 1,
            EvictedWhat::Blob(_) => self.blobs += 1,
        }
        self.bytes += item.bytes;
    }
}

/// A mirror's cache.
#[derive(Clone, Debug)]
pub struct CacheUsage {
    /// The mirror.
    pub mirror: String,
    /// What it holds.
    pub size: CacheSize,
    /// What it may hold, in bytes of blobs; `None` = anything.
    pub max_bytes: Option<u64>,
    /// Answers from here, and answers that had to be fetched, since the process started.
    pub hits: u64,
    /// See [`CacheUsage::hits`].
    pub misses: u64,
}

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Uses {
    /// Protects: when each content was last given to somebody, since the last write. Held for one call.
    pending: Mutex<HashMap<(RepositoryName, Digest), u64>>,
}

impl Uses {
    fn take(&self) -> Vec<Use> {
        let pending = std::mem::take(&mut *lock(&self.pending));
        let uses = pending.into_iter();
        uses.map(|((repository, digest), at_ms)| Use {
            repository,
            digest,
            at_ms,
        })
        .collect()
    }
}

/// Content of pinned tags.
pub(super) type Pinned = BTreeSet<(RepositoryName, Digest)>;

impl Engine {
    /// Remembers that content was given to somebody. Costs no I/O.
    pub(super) fn used(&self, repository: &RepositoryName, digest: &Digest) {
        let mut pending = lock(&self.running.uses.pending);
        if pending.len() < MAX_PENDING {
            pending.insert((repository.clone(), digest.clone()), self.now_ms());
        }
    }

    /// How much each mirror holds.
    pub(super) async fn usage(&self) -> Result<Vec<CacheUsage>, Failure> {
        let mut usage = Vec::new();
        for (mirror, settings) in &self.mirrors {
            let size = self.size(settings).await?;
            settings.counts.measured(size.bytes);
            let (hits, misses) = settings.counts.hits_and_misses();
            usage.push(CacheUsage {
                mirror: mirror.to_string(),
                size,
                max_bytes: settings.keep.max_bytes,
                hits,
                misses,
            });
        }
        usage.sort_by(|one, other| one.mirror.cmp(&other.mirror));
        Ok(usage)
    }

    /// Writes what was used since the last time.
    pub(super) async fn record_uses(&self) -> Result<(), Failure> {
        Ok(self.cache.record_uses(self.running.uses.take()).await?)
    }

    /// Writes what was used, takes out of every mirror what it need not keep, and measures what changed.
    pub(super) async fn evict(&self) -> Result<Evicted, Failure> {
        self.record_uses().await?;
        let mut evicted = Evicted::default();
        for settings in self.mirrors.values() {
            if settings.keep.is_everything() {
                self.measure(settings).await?;
                continue;
            }
            let mut sweep = Sweep {
                engine: self,
                settings,
                pinned: self.pinned(settings).await?,
                pushed: self.pushed(settings).await?,
                evicted: Evicted::default(),
            };
            sweep.run().await?;
            evicted.manifests += sweep.evicted.manifests;
            evicted.blobs += sweep.evicted.blobs;
            evicted.bytes += sweep.evicted.bytes;
            self.measure(settings).await?;
        }
        Ok(evicted)
    }

    /// Measures a mirror's cache when it may have changed since the last time.
    async fn measure(&self, settings: &MirrorSettings) -> Result<(), Failure> {
        if settings.counts.changed() {
            let size = self.size(settings).await?;
            settings.counts.measured(size.bytes);
        }
        Ok(())
    }

    async fn size(&self, settings: &MirrorSettings) -> Result<CacheSize, Failure> {
        let pushed = self.pushed(settings).await?;
        Ok(self.cache.cache_size(&settings.prefix, &pushed).await?)
    }

    /// Repositories below the mirror's prefix that are pushed here.
    async fn pushed(&self, settings: &MirrorSettings) -> Result<Vec<RepositoryName>, Failure> {
        let patterns = &settings.keep.pushed;
        if patterns.is_empty() {
            return Ok(Vec::new());
        }
        let mut pushed = self.repositories(settings).await?;
        pushed.retain(|name| patterns.iter().any(|glob| glob.matches(name.as_str())));
        Ok(pushed)
    }

    /// Repositories below the mirror's prefix.
    async fn repositories(
        &self,
        settings: &MirrorSettings,
    ) -> Result<Vec<RepositoryName>, Failure> {
        let below = format!("{}/", settings.prefix);
        let (mut all, mut after) = (Vec::new(), Some(below.clone()));
        loop {
            let page = Page {
                limit: Some(PAGE),
                after,
            };
            let repositories = self.metadata.repositories(&page).await?;
            after = repositories.last().map(ToString::to_string);
            let found = repositories.len();
            let here = |name: &RepositoryName| name.as_str().starts_with(&below);
            let before = all.len();
            all.extend(repositories.into_iter().take_while(here));
            if all.len() - before < PAGE || found < PAGE {
                return Ok(all);
            }
        }
    }

    /// What operators pinned. A pin that this version does not understand pins nothing, and is told.
    async fn selected_pins(&self) -> Result<Vec<Selection>, Failure> {
        let pins = self.cache.pins().await?.into_iter();
        let selections = pins.filter_map(|pin| match Selection::parse(&pin.pattern) {
            Ok(selection) => Some(selection),
            Err(error) => {
                tracing::warn!(error, "a pin is not understood");
                None
            }
        });
        Ok(selections.collect())
    }

    /// Everything of a mirror that the configuration or an operator pinned.
    pub(super) async fn pinned(&self, settings: &MirrorSettings) -> Result<Pinned, Failure> {
        let mut pinned = Pinned::new();
        let pins = self.selected_pins().await?;
        if settings.keep.pinned.is_empty() && pins.is_empty() {
            return Ok(pinned);
        }
        for repository in self.repositories(settings).await? {
            let kept = self.kept_in(&repository, settings, &pins).await?;
            let kept = kept.into_iter();
            pinned.extend(kept.map(|digest| (repository.clone(), digest)));
        }
        Ok(pinned)
    }

    /// The same of one repository.
    pub(super) async fn pinned_in(
        &self,
        repository: &RepositoryName,
        settings: &MirrorSettings,
    ) -> Result<BTreeSet<Digest>, Failure> {
        let pins = self.selected_pins().await?;
        self.kept_in(repository, settings, &pins).await
    }

    /// What pins keep of a repository: what they name, and all that this names.
    async fn kept_in(
        &self,
        repository: &RepositoryName,
        settings: &MirrorSettings,
        pins: &[Selection],
    ) -> Result<BTreeSet<Digest>, Failure> {
        let mut kept = BTreeSet::new();
        let Some(remote) = repository.strip_prefix(&settings.prefix) else {
            return Ok(kept);
        };
        let pins: Vec<&Selection> = pins.iter().filter(|pin| pin.covers(repository)).collect();
        let globs = &settings.keep.pinned;
        let mut named = Vec::new();
        if !(globs.is_empty() && pins.is_empty()) {
            let tags = self.metadata.tags(repository, None, &EVERYTHING).await?;
            let tags = tags.into_iter().filter(|record| {
                let name = format!("{remote}:{}", record.tag);
                globs.iter().any(|glob| glob.matches(&name))
                    || pins.iter().any(|pin| pin.covers_tag(&record.tag))
            });
            named.extend(tags.map(|record| record.state.digest));
        }
        for pin in pins {
            match &pin.what {
                What::Digest(digest) => named.push(digest.clone()),
                What::Everything => named.extend(self.held_in(repository).await?),
                What::Tags(_) => {}
            }
        }
        while let Some(digest) = named.pop() {
            if kept.insert(digest.clone()) {
                named.extend(self.named_by(repository, &settings.origin, &digest).await?);
            }
        }
        Ok(kept)
    }

    /// Every manifest and blob of a repository.
    async fn held_in(&self, repository: &RepositoryName) -> Result<Vec<Digest>, Failure> {
        let query = CacheQuery {
            within: Within::Only(repository.clone()),
            except: Vec::new(),
            before_ms: u64::MAX,
            limit: usize::MAX,
        };
        let mut held = self.cache.least_used_manifests(&query).await?;
        held.extend(self.cache.least_used_blobs(&query).await?);
        Ok(held.into_iter().map(|cached| cached.digest).collect())
    }

    /// What a stored manifest names; nothing of what is no stored manifest.
    pub(super) async fn named_by(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<Digest>, Failure> {
        let stored = self.stored_manifest(repository, origin, digest).await?;
        let Some((record, bytes)) = stored else {
            return Ok(Vec::new());
        };
        Ok(match Document::read(&record.media_type, &bytes) {
            Document::Manifest(manifest) => manifest.references().cloned().collect(),
            // Too much is kept rather than too little: it may name whatever digest is written in it.
            Document::Opaque(opaque) => opaque.mentions.into_iter().collect(),
        })
    }

    /// Deletes the bytes of content that nobody has any more; how many there were.
    pub(super) async fn free(&self, digest: &Digest) -> Result<u64, Failure> {
        Ok(self.free_whole(digest).await?.unwrap_or(0))
    }

    /// As [`Engine::free`]; `None` when somebody has them, is about to, or was faster.
    pub(super) async fn free_whole(&self, digest: &Digest) -> Result<Option<u64>, Failure> {
        let Some(_condemned) = self.leases.condemn(digest) else {
            return Ok(None);
        };
        if self.cache.is_held(digest).await? {
            return Ok(None);
        }
        let size = self.blobs.stat(digest).await?.unwrap_or(0);
        let was_there = self.blobs.delete(digest).await?;
        Ok(was_there.then_some(size))
    }
}

/// One mirror's eviction.
struct Sweep<'a> {
    engine: &'a Engine,
    settings: &'a MirrorSettings,
    pinned: Pinned,
    pushed: Vec<RepositoryName>,
    evicted: Evicted,
}

impl Sweep<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        if let Some(keep_for) = self.settings.keep.keep_for {
            self.expire(keep_for).await?;
        }
        if let Some(max_bytes) = self.settings.keep.max_bytes {
            self.shrink(max_bytes).await?;
        }
        Ok(())
    }

    /// Takes out what nobody asked for in so long: manifests with their tags, then blobs.
    async fn expire(&mut self, keep_for: Duration) -> Result<(), Failure> {
        let before_ms = self.engine.now_ms().saturating_sub(millis(keep_for));
        loop {
            let query = self.query(before_ms);
            let manifests = self.engine.cache.least_used_manifests(&query).await?;
            let last = manifests.len() < query.limit;
            let gone = self.drop_manifests(&manifests).await?;
            if last || gone == 0 {
                break;
            }
        }
        loop {
            let query = self.query(before_ms);
            let blobs = self.engine.cache.least_used_blobs(&query).await?;
            let last = blobs.len() < query.limit;
            let gone = self
                .drop_blobs(&blobs, u64::MAX, EvictionReason::Age)
                .await?;
            if last || gone == 0 {
                return Ok(());
            }
        }
    }

    /// Takes blobs out until the rest is small enough, or only pinned ones are left.
    async fn shrink(&mut self, max_bytes: u64) -> Result<(), Failure> {
        loop {
            let cache = &self.engine.cache;
            let size = cache.cache_size(&self.settings.prefix, &self.pushed);
            let size = size.await?;
            let Some(excess) = size.bytes.checked_sub(max_bytes).filter(|it| *it > 0) else {
                return Ok(());
            };
            let query = self.query(u64::MAX);
            let blobs = self.engine.cache.least_used_blobs(&query).await?;
            let reason = EvictionReason::Size;
            if self.drop_blobs(&blobs, excess, reason).await? == 0 {
                tracing::warn!(
                    prefix = %self.settings.prefix,
                    excess_bytes = excess,
                    "what is pinned is larger than the mirror may be"
                );
                return Ok(());
            }
        }
    }

    /// So many that some of them are not pinned, if there are such.
    fn query(&self, before_ms: u64) -> CacheQuery {
        CacheQuery {
            within: Within::Below(self.settings.prefix.clone()),
            except: self.pushed.clone(),
            before_ms,
            limit: BATCH + self.pinned.len(),
        }
    }

    fn is_pinned(&self, cached: &Cached) -> bool {
        let key = (cached.repository.clone(), cached.digest.clone());
        self.pinned.contains(&key)
    }

    /// How many went.
    async fn drop_manifests(&mut self, manifests: &[Cached]) -> Result<usize, Failure> {
        let mut gone = 0;
        for cached in manifests {
            if !self.is_pinned(cached) && self.drop_manifest(cached).await? {
                gone += 1;
                self.evicted.manifests += 1;
                let content = CacheContent::Manifest;
                self.freed(cached, content, EvictionReason::Age).await?;
            }
        }
        Ok(gone)
    }

    /// Whether it went: a tag that came meanwhile keeps it.
    async fn drop_manifest(&self, cached: &Cached) -> Result<bool, Failure> {
        let metadata = &self.engine.metadata;
        let tags = metadata.tags(&cached.repository, Some(&cached.digest), &EVERYTHING);
        let delete = Commit::DeleteManifest {
            repository: cached.repository.clone(),
            digest: cached.digest.clone(),
            tags: tags.await?.into_iter().map(|record| record.tag).collect(),
            at_ms: self.engine.now_ms(),
            by: "gantry:eviction".to_owned(),
        };
        committed(metadata.commit(delete).await)
    }

    /// Drops blobs until so many bytes went; how many blobs.
    async fn drop_blobs(
        &mut self,
        blobs: &[Cached],
        enough: u64,
        reason: EvictionReason,
    ) -> Result<usize, Failure> {
        let (mut gone, mut bytes) = (0, 0_u64);
        for cached in blobs {
            if bytes >= enough {
                break;
            }
            if self.is_pinned(cached) {
                continue;
            }
            let unlink = Commit::UnlinkBlob {
                repository: cached.repository.clone(),
                digest: cached.digest.clone(),
            };
            if committed(self.engine.metadata.commit(unlink).await)? {
                gone += 1;
                bytes += cached.size;
                self.evicted.blobs += 1;
                self.freed(cached, CacheContent::Blob, reason).await?;
            }
        }
        Ok(gone)
    }

    /// Frees the bytes of what went, and counts it.
    async fn freed(
        &mut self,
        cached: &Cached,
        content: CacheContent,
        reason: EvictionReason,
    ) -> Result<(), Failure> {
        let bytes = self.engine.free(&cached.digest).await?;
        self.evicted.bytes += bytes;
        let counts = &self.settings.counts;
        counts.count_eviction(reason, content, bytes);
        Ok(())
    }
}

/// Whether a commit happened; somebody else having been faster is no failure.
pub(super) fn committed(result: Result<(), CommitError>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(CommitError::Absent | CommitError::TagMoved { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
