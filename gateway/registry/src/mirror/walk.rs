//! A list of an upstream, as far as it was read: pages come when somebody needs what they hold, and are read once for everybody.
//!
//! Owns how long a list is believed, how much memory lists take, and how many of one mirror are read at once. A list that was read to
//! its end stays beside the one that is read anew, for the time that the upstream cannot be asked.
//! Invariant: nothing is taken for the end of a list but the upstream's own end of it.

use std::{
    collections::HashSet,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex},
    time::Duration,
};

use gantry_model::{Digest, RepositoryName};
use gantry_upstream::{ListMemory, ListPage, ListRoom, NextPage, Texts};
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    Engine, Origin, Place,
    failure::Failure,
    flight::{Flights, lock},
    manifest::millis,
    turns::Turns,
};

/// Bytes of documents that one list may have.
const MAX_LIST_BYTES: u64 = 64 << 20;
/// Bytes of lists kept in memory.
const MAX_KEPT_BYTES: u64 = 64 << 20;
/// What a single list counts for at most, so that there is always room for it.
const MAX_WEIGHT: u64 = 48 << 20;
/// What a list costs beside its entries.
const OVERHEAD_BYTES: u64 = 1 << 10;
/// Lists of one mirror, or of hosted names, that are made, and pages of a mirror that are read at once.
const AT_ONCE: usize = 8;
/// Lists of more than a few MiB that are read or looked at at once, beside those that are kept.
const LARGE_AT_ONCE: usize = 2;
/// How long a read waits for its turn.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// How old a list may be for somebody who begins to read it: whoever goes on in it keeps it for as long as a tag is fresh.
const NEW_FOR: Duration = Duration::from_secs(30);

/// Which list.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum ListKey {
    Tags(Place),
    Referrers(Place, Digest),
}

impl ListKey {
    fn repository(&self) -> &RepositoryName {
        match self {
            Self::Tags((repository, _)) | Self::Referrers((repository, _), _) => repository,
        }
    }
}

/// A list as far as it was read.
#[derive(Debug)]
pub(super) struct List {
    /// Tags in the upstream's order; or, once they are whole, `DIGEST DESCRIPTOR` by digest, each digest once.
    pub(super) entries: Arc<Texts>,
    /// Whether `entries` are in the order of their bytes.
    pub(super) is_sorted: bool,
    pub(super) is_whole: bool,
    next: Option<NextPage>,
    /// Hashes of the queries of its pages: a link back is no progress.
    seen: HashSet<u64>,
    hasher: RandomState,
    bytes: u64,
    memory: Arc<ListMemory>,
    /// When its last page came.
    pub(super) read_at_ms: u64,
}

impl List {
    fn new(now_ms: u64, large: &Arc<Semaphore>) -> Self {
        Self {
            memory: ListMemory::new(large),
            entries: Arc::default(),
            is_sorted: true,
            is_whole: false,
            next: None,
            seen: HashSet::new(),
            hasher: RandomState::new(),
            bytes: 0,
            read_at_ms: now_ms,
        }
    }

    /// Takes a page in.
    fn add(&mut self, page: ListPage, now_ms: u64) -> Result<(), Failure> {
        self.read_at_ms = now_ms;
        self.bytes = self.bytes.saturating_add(page.bytes);
        let first = page.entries.get(0);
        // An upstream without links that has no next page either sends the first one again.
        let is_repeated = self.next.as_ref().is_some_and(NextPage::is_guess)
            && first.is_some()
            && first == self.entries.get(0);
        if is_repeated {
            self.next = None;
            self.is_whole = true;
            return Ok(());
        }
        let last = self.entries.iter().next_back();
        let all = last.into_iter().chain(page.entries.iter());
        self.is_sorted &= all.is_sorted_by(|one, other| one < other);
        match self.entries.is_empty() {
            // Most lists are one page, which is not held twice.
            true => self.entries = Arc::new(page.entries),
            false => Arc::make_mut(&mut self.entries).extend(page.entries.iter()),
        }
        if let Some(next) = &page.next
            && !self.seen.insert(self.hasher.hash_one(next.query()))
        {
            return Err(Failure::invalid(
                "the links between the list's pages lead in a circle",
            ));
        }
        self.is_whole = page.next.is_none();
        self.next = page.next;
        Ok(())
    }

    /// Gives it all of its entries at once.
    fn complete(&mut self, entries: Texts) {
        self.entries = Arc::new(entries);
        self.is_sorted = true;
        self.is_whole = true;
        self.next = None;
    }

    fn weight(&self) -> u64 {
        self.entries.weight() as u64 + self.seen.len() as u64 * 16 + OVERHEAD_BYTES
    }
}

/// What is kept of one list.
#[derive(Clone, Debug)]
struct Kept {
    current: Arc<Mutex<List>>,
    /// The last one that was read to its end.
    whole: Option<Arc<Mutex<List>>>,
}

impl Kept {
    fn weight(&self) -> u64 {
        let whole = self
            .whole
            .as_ref()
            .filter(|whole| !Arc::ptr_eq(whole, &self.current));
        let whole = whole.map_or(0, |whole| lock(whole).weight());
        lock(&self.current).weight().saturating_add(whole)
    }
}

/// Lists of upstreams.
pub(super) struct Lists {
    kept: Cache<ListKey, Kept>,
    pages: Flights<ListKey, ()>,
    reads: Turns,
    /// Of lists of more than a few MiB, over all mirrors.
    large: Arc<Semaphore>,
    /// Of requests for lists, which hold theirs while they wait for reads.
    requests: Turns,
}

impl fmt::Debug for Lists {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lists").finish_non_exhaustive()
    }
}

impl Default for Lists {
    fn default() -> Self {
        let weigh = |_key: &ListKey, kept: &Kept| {
            u32::try_from(kept.weight().min(MAX_WEIGHT)).unwrap_or(u32::MAX)
        };
        Self {
            kept: Cache::builder()
                .max_capacity(MAX_KEPT_BYTES)
                .eviction_policy(EvictionPolicy::lru())
                .weigher(weigh)
                .build(),
            pages: Flights::default(),
            reads: Turns::new(AT_ONCE),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            requests: Turns::new(AT_ONCE),
        }
    }
}

impl Lists {
    /// The turn of a request for a list of that mirror; of hosted names without one.
    pub(super) async fn request(
        &self,
        mirror: Option<&str>,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        let key = Arc::from(mirror.unwrap_or_default());
        let turn = tokio::time::timeout(TURN_PATIENCE, self.requests.take(&key));
        let busy = || match mirror {
            Some(mirror) => {
                Failure::over_budget(mirror, "too many of its lists are asked for".to_owned())
            }
            None => Failure::busy("too many lists are being made"),
        };
        turn.await.unwrap_or_else(|_elapsed| Err(busy()))
    }

    /// Keeps a list as it is after a page was read, or was not.
    fn settle(&self, key: &ListKey, current: &Arc<Mutex<List>>, read: &Result<(), Failure>) {
        match read {
            // Its place may be one that the upstream does not know any more.
            Err(Failure::Invalid(_) | Failure::NotFound) => self.give_up(key, current),
            Err(Failure::Upstream(error)) if !error.is_retryable() => self.give_up(key, current),
            Err(_) => {}
            // Once more, because it weighs more.
            Ok(()) => {
                let kept = self.kept.get(key);
                if let Some(kept) = kept.filter(|kept| Arc::ptr_eq(&kept.current, current)) {
                    self.kept.insert(key.clone(), kept);
                }
            }
        }
    }

    /// Forgets what is being read, and keeps what was whole.
    fn give_up(&self, key: &ListKey, current: &Arc<Mutex<List>>) {
        let Some(kept) = self
            .kept
            .get(key)
            .filter(|kept| Arc::ptr_eq(&kept.current, current))
        else {
            return;
        };
        match kept.whole.filter(|whole| !Arc::ptr_eq(whole, current)) {
            Some(whole) => self.kept.insert(
                key.clone(),
                Kept {
                    current: Arc::clone(&whole),
                    whole: Some(whole),
                },
            ),
            None => self.kept.invalidate(key),
        }
    }
}

/// What a list had, and for how long the upstream has not confirmed it when it could not be asked.
pub(super) struct Found<T> {
    pub(super) found: T,
    pub(super) stale: Option<Duration>,
}

/// Requests to an upstream that one client request may cause beside those for what it names.
#[derive(Debug)]
pub(crate) struct Derived {
    left: Mutex<u32>,
}

impl Derived {
    pub(crate) fn new(most: u32) -> Self {
        Self {
            left: Mutex::new(most),
        }
    }

    /// Takes one; `false` when none is left.
    pub(crate) fn take(&self) -> bool {
        let mut left = lock(&self.left);
        match left.checked_sub(1) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        }
    }
}

impl Engine {
    /// Reads a list until `look` finds what it looks for in it, one page after the other, for as long as `derived` allows. While the
    /// upstream is in trouble, a list that was once whole is looked at.
    pub(super) async fn walk<T>(
        self: &Arc<Self>,
        origin: &Origin,
        key: &ListKey,
        begins: bool,
        derived: &Derived,
        look: impl Fn(&List) -> Option<T>,
    ) -> Result<Found<T>, Failure> {
        // One list to the end of the walk: another one may take its place meanwhile.
        let current = self.current(origin, key, begins);
        let _use = lock(&current).memory.in_use();
        loop {
            if let Some(found) = look(&lock(&current)) {
                return Ok(Found { found, stale: None });
            }
            let read = match derived.take() {
                true => self.read_on(origin, key, &current).await,
                false => {
                    let attempt =
                        "the list has more pages than one request may cause requests".to_owned();
                    Err(Failure::over_budget(origin.mirror(), attempt))
                }
            };
            match read {
                Ok(()) => {}
                Err(failure) if failure.is_upstream_trouble() => {
                    return self.stale_list(origin, key, failure, look);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// The list that is being read, or a new one when that is too old.
    fn current(&self, origin: &Origin, key: &ListKey, begins: bool) -> Arc<Mutex<List>> {
        let lists = &self.running.lists;
        let kept = lists.kept.get(key);
        let believed = origin.settings.freshness.fresh_for;
        let most = millis(if begins {
            believed.min(NEW_FOR)
        } else {
            believed
        });
        if let Some(kept) = &kept {
            let age_ms = self.now_ms().saturating_sub(lock(&kept.current).read_at_ms);
            if age_ms < most || matches!(key, ListKey::Referrers(..)) && age_ms < millis(believed) {
                return Arc::clone(&kept.current);
            }
        }
        let current = Arc::new(Mutex::new(List::new(self.now_ms(), &lists.large)));
        let kept = Kept {
            current: Arc::clone(&current),
            whole: kept.and_then(|kept| match lock(&kept.current).is_whole {
                true => Some(Arc::clone(&kept.current)),
                false => kept.whole.clone(),
            }),
        };
        lists.kept.insert(key.clone(), kept);
        current
    }

    /// Reads the next page, or waits for the one who does.
    async fn read_on(
        self: &Arc<Self>,
        origin: &Origin,
        key: &ListKey,
        current: &Arc<Mutex<List>>,
    ) -> Result<(), Failure> {
        let span =
            tracing::info_span!(parent: None, "mirror_list", repository.name = %key.repository());
        let (engine, origin, asked) = (Arc::clone(self), origin.clone(), key.clone());
        let current = Arc::clone(current);
        let read = || async move {
            let read = engine.read_page(&origin, &asked, &current).await;
            engine.running.lists.settle(&asked, &current, &read);
            read
        };
        self.running.lists.pages.run(key.clone(), span, read).await
    }

    async fn read_page(
        self: &Arc<Self>,
        origin: &Origin,
        key: &ListKey,
        current: &Arc<Mutex<List>>,
    ) -> Result<(), Failure> {
        let _turn = self.running.lists.reads.take(&origin.mirror).await?;
        // The request that needs the page may be gone before it comes.
        let _use = lock(current).memory.in_use();
        let (next, room) = {
            let list = lock(current);
            if list.is_whole {
                return Ok(());
            }
            let room = ListRoom {
                max_bytes: MAX_LIST_BYTES.saturating_sub(list.bytes),
                taken_bytes: list.entries.weight(),
                memory: Arc::clone(&list.memory),
            };
            (list.next.clone(), room)
        };
        let (upstream, remote) = (&origin.settings.upstream, &origin.remote);
        let answer = match key {
            ListKey::Tags(_) => upstream.tags(remote, next.as_ref(), &room).await,
            ListKey::Referrers(_, subject) => {
                upstream
                    .referrers(remote, subject, next.as_ref(), &room)
                    .await
            }
        };
        let page = match (answer.map_err(Failure::from), key) {
            (Err(Failure::NotFound), _) if next.is_some() => {
                return Err(Failure::invalid("a page of the list is not there"));
            }
            (Err(Failure::NotFound), ListKey::Referrers(_, subject)) => {
                let entries = self.referrers_by_tag(origin, subject).await?;
                let mut list = lock(current);
                list.read_at_ms = self.now_ms();
                list.complete(entries);
                return Ok(());
            }
            (answer, _) => answer?,
        };
        let mut list = lock(current);
        list.add(page, self.now_ms())?;
        if list.is_whole && matches!(key, ListKey::Referrers(..)) {
            let entries = super::listing::by_digest(list.entries.iter());
            list.complete(entries?);
        }
        Ok(())
    }

    /// What a list that was once whole has, while the upstream cannot be asked.
    fn stale_list<T>(
        &self,
        origin: &Origin,
        key: &ListKey,
        failure: Failure,
        look: impl Fn(&List) -> Option<T>,
    ) -> Result<Found<T>, Failure> {
        let Some(whole) = self.running.lists.kept.get(key).and_then(|kept| kept.whole) else {
            return Err(failure);
        };
        let list = lock(&whole);
        let age_ms = self.now_ms().saturating_sub(list.read_at_ms);
        let freshness = &origin.settings.freshness;
        let most = freshness.fresh_for.saturating_add(freshness.stale_if_error);
        match look(&list) {
            Some(found) if age_ms <= millis(most) => {
                failure.warn(origin.mirror(), "serving a stale list");
                let stale = Some(Duration::from_millis(age_ms));
                Ok(Found { found, stale })
            }
            _ => Err(failure),
        }
    }
}
