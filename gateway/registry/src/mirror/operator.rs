//! What an operator asks of the cache: what is in it, what is pinned, and what is to go now.
//!
//! Owns how a selection becomes a list of steps. Each step is the automatic eviction's own: a commit, and then the bytes, when nobody
//! has them (`keep`). Invariant: what is pinned stays, whoever asks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use gantry_model::{Digest, Page, RepositoryName, Tag, glob::Glob};
use gantry_storage::{
    CacheIndex, CacheQuery, Cached, CachedRepository, Commit, ContentOrigin, Pin, TagRecord, Within,
};
use tokio::sync::mpsc;

use super::{
    Engine,
    failure::Failure,
    keep::{Evicted, Pinned, committed},
    manifest::millis,
    selection::{Selection, What},
};
use crate::{
    cache_counts::{CacheContent, EvictionReason},
    ports::MirrorSettings,
};

/// Repositories looked at in one go.
const PAGE: usize = 200;

/// A mirrored repository that holds something.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// Its mirror.
    pub mirror: String,
    /// What it holds.
    pub holds: CachedRepository,
    /// Its tags, and whether each is pinned.
    pub tags: Vec<(TagRecord, bool)>,
    /// Whether anything of it is pinned.
    pub pinned: bool,
}

/// What is to go.
#[derive(Clone, Debug)]
pub struct EvictOrder {
    /// Which content.
    pub selection: Selection,
    /// Only what nobody asked for in so long.
    pub older_than: Option<Duration>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// One thing that went, or would go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EvictedItem {
    /// From where.
    pub repository: RepositoryName,
    /// What.
    pub what: EvictedWhat,
    /// Bytes that were freed: none while another repository, or somebody who reads it in, needs them. In a dry run, its length.
    pub bytes: u64,
}

/// What went.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EvictedWhat {
    /// A tag whose manifest stays, because something else names it.
    Tag(Tag),
    /// A manifest, with the tags that named it.
    Manifest(Digest, Vec<Tag>),
    /// A blob.
    Blob(Digest),
}

/// Repositories that hold something, page by page.
struct Pages {
    after: Option<RepositoryName>,
    ended: bool,
}

impl Pages {
    async fn next(
        &mut self,
        cache: &dyn CacheIndex,
    ) -> Result<Option<Vec<CachedRepository>>, Failure> {
        if self.ended {
            return Ok(None);
        }
        let page = cache.holding_repositories(self.after.as_ref(), PAGE);
        let page = page.await?;
        self.ended = page.len() < PAGE;
        self.after = page.last().map(|last| last.repository.clone());
        Ok(Some(page))
    }
}

/// What is cached, as it is put together.
struct Listing<'a> {
    engine: &'a Engine,
    glob: Option<&'a Glob>,
    limit: usize,
    entries: Vec<CacheEntry>,
    /// Of each mirror that was met.
    pins: BTreeMap<String, Pinned>,
}

impl Listing<'_> {
    /// Adds what is wanted of a page. Whether that is enough.
    async fn add(&mut self, page: &[CachedRepository]) -> Result<bool, Failure> {
        for holds in page {
            if self.entries.len() >= self.limit {
                break;
            }
            self.add_one(holds).await?;
        }
        Ok(self.entries.len() >= self.limit)
    }

    async fn add_one(&mut self, holds: &CachedRepository) -> Result<(), Failure> {
        let (engine, name) = (self.engine, &holds.repository);
        let is_wanted = self.glob.is_none_or(|glob| glob.matches(name.as_str()));
        let Some((mirror, settings)) = engine.mirror_of(name).filter(|_| is_wanted) else {
            return Ok(());
        };
        if !self.pins.contains_key(mirror) {
            let pinned = engine.pinned(settings).await?;
            self.pins.insert(mirror.to_owned(), pinned);
        }
        let entry = engine.entry(mirror, holds, self.pins.get(mirror));
        self.entries.push(entry.await?);
        Ok(())
    }
}

impl Engine {
    /// The mirror that a stored name belongs to; none when it is pushed here.
    fn mirror_of(&self, repository: &RepositoryName) -> Option<(&str, &MirrorSettings)> {
        let mirrors = self.mirrors.iter().filter_map(|(mirror, settings)| {
            repository.strip_prefix(&settings.prefix)?;
            let mut pushed = settings.keep.pushed.iter();
            let is_cache = !pushed.any(|glob| glob.matches(repository.as_str()));
            is_cache.then_some((&**mirror, settings))
        });
        mirrors.max_by_key(|(_, settings)| settings.prefix.as_str().len())
    }

    /// Mirrored repositories that hold something and match, by name, after `after`; at most `limit`.
    pub(super) async fn cached(
        &self,
        glob: Option<&Glob>,
        after: Option<RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CacheEntry>, Failure> {
        self.record_uses().await?;
        let mut listing = Listing {
            engine: self,
            glob,
            limit,
            entries: Vec::new(),
            pins: BTreeMap::new(),
        };
        let mut pages = Pages {
            after,
            ended: false,
        };
        while let Some(page) = pages.next(&*self.cache).await? {
            if listing.add(&page).await? {
                break;
            }
        }
        Ok(listing.entries)
    }

    async fn entry(
        &self,
        mirror: &str,
        holds: &CachedRepository,
        pinned: Option<&Pinned>,
    ) -> Result<CacheEntry, Failure> {
        let name = &holds.repository;
        let is_pinned = |digest: &Digest| {
            pinned.is_some_and(|pinned| pinned.contains(&(name.clone(), digest.clone())))
        };
        let tags = self.metadata.tags(name, None, &EVERYTHING).await?;
        let tags = tags.into_iter().map(|record| {
            let pinned = is_pinned(&record.state.digest);
            (record, pinned)
        });
        let anything = pinned.is_some_and(|pinned| pinned.iter().any(|(other, _)| other == name));
        Ok(CacheEntry {
            mirror: mirror.to_owned(),
            holds: holds.clone(),
            tags: tags.collect(),
            pinned: anything,
        })
    }

    /// Pins content, also what comes later. Whether it was not pinned by this text, and how many repositories it covers now.
    pub(super) async fn pin_selection(
        &self,
        selection: &Selection,
        by: &str,
    ) -> Result<(bool, u64), Failure> {
        let pin = Pin {
            pattern: selection.as_str().to_owned(),
            at_ms: self.now_ms(),
            by: by.to_owned(),
        };
        let is_new = self.cache.pin(pin).await?;
        let covered = self.covered(selection).await?.len() as u64;
        Ok((is_new, covered))
    }

    /// Mirrored repositories that a selection covers and that hold something of it.
    async fn covered(&self, selection: &Selection) -> Result<Vec<RepositoryName>, Failure> {
        let mut pages = Pages {
            after: None,
            ended: false,
        };
        let mut holding = Vec::new();
        while let Some(page) = pages.next(&*self.cache).await? {
            holding.extend(page.into_iter().map(|holds| holds.repository));
        }
        holding.retain(|name| selection.covers(name) && self.mirror_of(name).is_some());
        let mut covered = Vec::new();
        for repository in holding {
            if self.has_any(&repository, selection).await? {
                covered.push(repository);
            }
        }
        Ok(covered)
    }

    async fn has_any(
        &self,
        repository: &RepositoryName,
        selection: &Selection,
    ) -> Result<bool, Failure> {
        Ok(match &selection.what {
            What::Everything => true,
            What::Tags(_) => {
                let tags = self.metadata.tags(repository, None, &EVERYTHING).await?;
                tags.iter().any(|record| selection.covers_tag(&record.tag))
            }
            What::Digest(digest) => match self.mirror_of(repository) {
                Some((_, settings)) => {
                    let manifest = self.metadata.manifest(repository, &settings.origin, digest);
                    manifest.await?.is_some()
                }
                None => false,
            },
        })
    }

    /// Takes out what the order means, telling of each thing; stops when nobody listens any more.
    pub(super) async fn evict_selected(
        &self,
        order: &EvictOrder,
        tell: &mpsc::Sender<EvictedItem>,
    ) -> Result<Evicted, Failure> {
        self.record_uses().await?;
        let mut evicted = Evicted::default();
        for repository in self.covered(&order.selection).await? {
            if !self
                .evict_in(&repository, order, tell, &mut evicted)
                .await?
            {
                break;
            }
        }
        Ok(evicted)
    }

    /// The order in one repository. Whether somebody listens still.
    async fn evict_in(
        &self,
        repository: &RepositoryName,
        order: &EvictOrder,
        tell: &mpsc::Sender<EvictedItem>,
        evicted: &mut Evicted,
    ) -> Result<bool, Failure> {
        let Some((_, settings)) = self.mirror_of(repository) else {
            return Ok(true);
        };
        let pinned = self.pinned_in(repository, settings).await?;
        let mut plan = Plan::new(self, (repository, &settings.origin), order).await?;
        plan.make(&order.selection, &pinned).await?;
        evicted.pinned += plan.spared;
        for step in plan.steps {
            let done = match order.dry_run {
                true => Some(step.told(repository, step.size)),
                false => self.take_step(repository, &step).await?,
            };
            let Some(item) = done else { continue };
            evicted.add(&item);
            if !order.dry_run {
                count(settings, &item);
            }
            if tell.send(item).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does one step; nothing when somebody changed meanwhile what it is about.
    async fn take_step(
        &self,
        repository: &RepositoryName,
        step: &Step,
    ) -> Result<Option<EvictedItem>, Failure> {
        let (repository_name, at_ms) = (repository.clone(), self.now_ms());
        let by = "gantry:operator".to_owned();
        let (commit, frees) = match &step.what {
            EvictedWhat::Tag(tag) => (
                Commit::DeleteTag {
                    repository: repository_name,
                    tag: tag.clone(),
                    expected: step.digest.clone(),
                    at_ms,
                    by,
                },
                false,
            ),
            EvictedWhat::Manifest(digest, tags) => (
                Commit::DeleteManifest {
                    repository: repository_name,
                    digest: digest.clone(),
                    tags: tags.clone(),
                    at_ms,
                    by,
                },
                true,
            ),
            EvictedWhat::Blob(digest) => (
                Commit::UnlinkBlob {
                    repository: repository_name,
                    digest: digest.clone(),
                },
                true,
            ),
        };
        if !committed(self.metadata.commit(commit).await)? {
            return Ok(None);
        }
        let bytes = match frees {
            true => self.free(&step.digest).await?,
            false => 0,
        };
        Ok(Some(step.told(repository, bytes)))
    }
}

fn count(settings: &MirrorSettings, item: &EvictedItem) {
    let content = match item.what {
        EvictedWhat::Tag(_) => return,
        EvictedWhat::Manifest(..) => CacheContent::Manifest,
        EvictedWhat::Blob(_) => CacheContent::Blob,
    };
    let counts = &settings.counts;
    counts.count_eviction(EvictionReason::Operator, content, item.bytes);
}

/// One change of a repository.
struct Step {
    what: EvictedWhat,
    digest: Digest,
    size: u64,
}

impl Step {
    fn told(&self, repository: &RepositoryName, bytes: u64) -> EvictedItem {
        EvictedItem {
            repository: repository.clone(),
            what: self.what.clone(),
            bytes,
        }
    }
}

/// What is to leave one repository, manifests before what they name.
struct Plan<'a> {
    engine: &'a Engine,
    repository: &'a RepositoryName,
    origin: &'a ContentOrigin,
    /// What is old enough to go, with its length.
    manifests: BTreeMap<Digest, u64>,
    blobs: BTreeMap<Digest, u64>,
    goes: BTreeSet<Digest>,
    steps: Vec<Step>,
    spared: u64,
}

impl<'a> Plan<'a> {
    async fn new(
        engine: &'a Engine,
        (repository, origin): (&'a RepositoryName, &'a ContentOrigin),
        order: &EvictOrder,
    ) -> Result<Self, Failure> {
        let query = CacheQuery {
            within: Within::Only(repository.clone()),
            except: Vec::new(),
            before_ms: order.older_than.map_or(u64::MAX, |age| {
                engine
                    .now_ms()
                    .saturating_sub(millis(age))
                    .saturating_add(1)
            }),
            limit: usize::MAX,
        };
        let sizes = |cached: Vec<Cached>| {
            let sizes = cached.into_iter().map(|it| (it.digest, it.size));
            sizes.collect::<BTreeMap<_, _>>()
        };
        Ok(Self {
            engine,
            repository,
            origin,
            manifests: sizes(engine.cache.least_used_manifests(&query).await?),
            blobs: sizes(engine.cache.least_used_blobs(&query).await?),
            goes: BTreeSet::new(),
            steps: Vec::new(),
            spared: 0,
        })
    }

    async fn make(
        &mut self,
        selection: &Selection,
        pinned: &BTreeSet<Digest>,
    ) -> Result<(), Failure> {
        self.manifests.retain(|digest, _| !pinned.contains(digest));
        self.blobs.retain(|digest, _| !pinned.contains(digest));
        let mut queue: VecDeque<Digest> = VecDeque::new();
        match &selection.what {
            What::Everything => {
                self.spared += pinned.len() as u64;
                queue.extend(self.manifests.keys().cloned());
            }
            What::Tags(_) => {
                let tags = self.tags(None).await?.into_iter();
                let covered = tags.filter(|tag| selection.covers_tag(&tag.tag));
                let covered: Vec<Digest> = covered.map(|tag| tag.state.digest).collect();
                let is_pinned = |digest: &&Digest| pinned.contains(*digest);
                self.spared += covered.iter().filter(is_pinned).count() as u64;
                queue.extend(covered.into_iter().collect::<BTreeSet<_>>());
            }
            What::Digest(digest) => {
                self.spared += u64::from(pinned.contains(digest));
                queue.push_back(digest.clone());
            }
        }
        let roots: BTreeSet<Digest> = queue.iter().cloned().collect();
        while let Some(digest) = queue.pop_front() {
            if self.goes.contains(&digest) {
                continue;
            }
            if !self.manifests.contains_key(&digest) {
                continue;
            }
            let is_root = roots.contains(&digest);
            queue.extend(self.drop_manifest(&digest, selection, is_root).await?);
        }
        if selection.what == What::Everything {
            let rest: Vec<Digest> = self.blobs.keys().cloned().collect();
            rest.iter().for_each(|digest| self.drop_blob(digest));
        }
        Ok(())
    }

    async fn tags(&self, digest: Option<&Digest>) -> Result<Vec<TagRecord>, Failure> {
        let metadata = &self.engine.metadata;
        Ok(metadata.tags(self.repository, digest, &EVERYTHING).await?)
    }

    /// Plans a manifest's end when nothing else names it; gives the manifests it names. Only what was selected loses its tags.
    async fn drop_manifest(
        &mut self,
        digest: &Digest,
        selection: &Selection,
        is_root: bool,
    ) -> Result<Vec<Digest>, Failure> {
        let tags = self.tags(Some(digest)).await?;
        let by_digest = matches!(selection.what, What::Digest(_));
        let (selected, others): (Vec<_>, Vec<_>) = tags
            .into_iter()
            .map(|record| record.tag)
            .partition(|tag| is_root && (by_digest || selection.covers_tag(tag)));
        let is_whole = selection.what == What::Everything;
        if !others.is_empty() || (!is_whole && self.is_named(digest).await?) {
            for tag in selected {
                self.steps.push(Step {
                    what: EvictedWhat::Tag(tag),
                    digest: digest.clone(),
                    size: 0,
                });
            }
            return Ok(Vec::new());
        }
        self.goes.insert(digest.clone());
        self.steps.push(Step {
            what: EvictedWhat::Manifest(digest.clone(), selected),
            digest: digest.clone(),
            size: self.manifests.get(digest).copied().unwrap_or(0),
        });
        let mut children = Vec::new();
        let named = self.engine.named_by(self.repository, self.origin, digest);
        for named in named.await? {
            if self.manifests.contains_key(&named) {
                children.push(named);
            } else if !self.is_named(&named).await? {
                self.drop_blob(&named);
            }
        }
        // A signature is of no use without what it signs.
        let metadata = &self.engine.metadata;
        let referrers = metadata.referrers(self.repository, self.origin, digest);
        let referrers = referrers.await?.into_iter();
        children.extend(referrers.map(|referrer| referrer.manifest.digest));
        Ok(children)
    }

    fn drop_blob(&mut self, digest: &Digest) {
        let Some(size) = self.blobs.get(digest).copied() else {
            return;
        };
        if self.goes.insert(digest.clone()) {
            self.steps.push(Step {
                what: EvictedWhat::Blob(digest.clone()),
                digest: digest.clone(),
                size,
            });
        }
    }

    /// Whether a manifest that stays names the content.
    async fn is_named(&self, digest: &Digest) -> Result<bool, Failure> {
        let metadata = &self.engine.metadata;
        let parents = metadata
            .parents(self.repository, self.origin, digest)
            .await?;
        Ok(parents
            .iter()
            .any(|(parent, _)| !self.goes.contains(parent)))
    }
}

/// All of a list.
pub(super) const EVERYTHING: Page = Page {
    limit: None,
    after: None,
};
