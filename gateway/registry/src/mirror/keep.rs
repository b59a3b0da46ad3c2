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

use gantry_model::{Digest, Manifest, Page, RepositoryName};
use gantry_storage::{CacheQuery, CacheSize, Cached, Commit, CommitError, Use};

use super::{Engine, failure::Failure, flight::lock, manifest::millis};
use crate::ports::MirrorSettings;

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
type Pinned = BTreeSet<(RepositoryName, Digest)>;

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
            usage.push(CacheUsage {
                mirror: mirror.to_string(),
                size: self
                    .cache
                    .cache_size(&settings.prefix, &self.pushed(settings).await?)
                    .await?,
                max_bytes: settings.keep.max_bytes,
            });
        }
        usage.sort_by(|one, other| one.mirror.cmp(&other.mirror));
        Ok(usage)
    }

    /// Writes what was used, and takes out of every mirror what it need not keep.
    pub(super) async fn evict(&self) -> Result<Evicted, Failure> {
        self.cache.record_uses(self.running.uses.take()).await?;
        let mut evicted = Evicted::default();
        for settings in self.mirrors.values() {
            if settings.keep.is_everything() {
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
        }
        Ok(evicted)
    }

    /// Repositories below the mirror's prefix that are pushed here.
    async fn pushed(&self, settings: &MirrorSettings) -> Result<Vec<RepositoryName>, Failure> {
        let patterns = &settings.keep.pushed;
        if patterns.is_empty() {
            return Ok(Vec::new());
        }
        let mut pushed = self.repositories().await?;
        pushed.retain(|name| patterns.iter().any(|glob| glob.matches(name.as_str())));
        Ok(pushed)
    }

    async fn repositories(&self) -> Result<Vec<RepositoryName>, Failure> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page = Page {
                limit: Some(PAGE),
                after,
            };
            let repositories = self.metadata.repositories(&page).await?;
            let is_last = repositories.len() < PAGE;
            all.extend(repositories);
            match all.last() {
                Some(last) if !is_last => after = Some(last.to_string()),
                _ => return Ok(all),
            }
        }
    }

    /// Everything that the mirror's pinned tags name.
    async fn pinned(&self, settings: &MirrorSettings) -> Result<Pinned, Failure> {
        let mut pinned = Pinned::new();
        if settings.keep.pinned.is_empty() {
            return Ok(pinned);
        }
        for repository in &self.repositories().await? {
            self.pin(repository, settings, &mut pinned).await?;
        }
        Ok(pinned)
    }

    /// Adds what the pinned tags of a repository name, if it is this mirror's.
    async fn pin(
        &self,
        repository: &RepositoryName,
        settings: &MirrorSettings,
        pinned: &mut Pinned,
    ) -> Result<(), Failure> {
        let Some(remote) = repository.strip_prefix(&settings.prefix) else {
            return Ok(());
        };
        let everything = Page {
            limit: None,
            after: None,
        };
        let globs = &settings.keep.pinned;
        let mut tags = self.metadata.tags(repository, None, &everything).await?;
        tags.retain(|record| {
            let name = format!("{remote}:{}", record.tag);
            globs.iter().any(|glob| glob.matches(&name))
        });
        let mut named: Vec<Digest> = tags.into_iter().map(|tag| tag.state.digest).collect();
        while let Some(digest) = named.pop() {
            if pinned.insert((repository.clone(), digest.clone())) {
                named.extend(self.named_by(repository, &digest).await?);
            }
        }
        Ok(())
    }

    /// What a stored manifest names; nothing of what is no stored manifest.
    async fn named_by(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<Digest>, Failure> {
        let Some((record, bytes)) = self.stored_manifest(repository, digest).await? else {
            return Ok(Vec::new());
        };
        let manifest = Manifest::parse(Some(&record.media_type), &bytes);
        let manifest = manifest.map_err(Failure::invalid)?;
        let named = manifest.references();
        Ok(named.map(|descriptor| descriptor.digest.clone()).collect())
    }

    /// Deletes the bytes of content that nobody has any more; how many there were.
    async fn free(&self, digest: &Digest) -> Result<u64, Failure> {
        let Some(_condemned) = self.leases.condemn(digest) else {
            return Ok(0);
        };
        if self.cache.is_held(digest).await? {
            return Ok(0);
        }
        let size = self.blobs.stat(digest).await?.unwrap_or(0);
        self.blobs.delete(digest).await?;
        Ok(size)
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
            let gone = self.drop_blobs(&blobs, u64::MAX).await?;
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
            if self.drop_blobs(&blobs, excess).await? == 0 {
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
            prefix: self.settings.prefix.clone(),
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
                self.evicted.bytes += self.engine.free(&cached.digest).await?;
            }
        }
        Ok(gone)
    }

    /// Whether it went: a tag that came meanwhile keeps it.
    async fn drop_manifest(&self, cached: &Cached) -> Result<bool, Failure> {
        let everything = Page {
            limit: None,
            after: None,
        };
        let metadata = &self.engine.metadata;
        let tags = metadata.tags(&cached.repository, Some(&cached.digest), &everything);
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
    async fn drop_blobs(&mut self, blobs: &[Cached], enough: u64) -> Result<usize, Failure> {
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
                self.evicted.bytes += self.engine.free(&cached.digest).await?;
            }
        }
        Ok(gone)
    }
}

/// Whether a commit happened; somebody else having been faster is no failure.
fn committed(result: Result<(), CommitError>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(true),
        Err(CommitError::Absent | CommitError::TagMoved { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
