//! Plain counters of what a mirror's cache did. Metric names are the binary's business.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum CacheContent {
    /// A manifest, by GET or HEAD.
    Manifest,
    /// A blob, by GET.
    Blob,
}

impl CacheContent {
    const ALL: [Self; 2] = [Self::Manifest, Self::Blob];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
        }
    }
}

/// Where the answer came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum CacheOutcome {
    /// From here; no upstream was asked.
    Hit,
    /// From here, after the upstream confirmed the tag.
    Revalidated,
    /// From here, because the upstream is in trouble.
    Stale,
    /// Fetched for this request.
    Filled,
    /// Fetched for another request that came first.
    Joined,
    /// Fetched for this request and not kept: there is no space.
    Passed,
    /// The upstream said that it is not there.
    NotFound,
    /// There was no answer.
    Failed,
}

impl CacheOutcome {
    const ALL: [Self; 8] = [
        Self::Hit,
        Self::Revalidated,
        Self::Stale,
        Self::Filled,
        Self::Joined,
        Self::Passed,
        Self::NotFound,
        Self::Failed,
    ];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Revalidated => "revalidated",
            Self::Stale => "stale",
            Self::Filled => "filled",
            Self::Joined => "joined",
            Self::Passed => "passed",
            Self::NotFound => "not_found",
            Self::Failed => "failed",
        }
    }
}

/// Why content left the cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum EvictionReason {
    /// Nobody asked for it in so long.
    Age,
    /// The cache was larger than it may be.
    Size,
    /// Somebody ordered it.
    Operator,
}

impl EvictionReason {
    const ALL: [Self; 3] = [Self::Age, Self::Size, Self::Operator];

    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Size => "size",
            Self::Operator => "operator",
        }
    }
}

/// What left one mirror's cache for one reason.
#[derive(Debug, Default)]
struct Evictions {
    contents: [AtomicU64; CacheContent::ALL.len()],
    bytes: AtomicU64,
}

/// What one mirror's cache did since the process started, and how large it is.
#[derive(Debug, Default)]
pub struct CacheCounts {
    counts: [[AtomicU64; CacheOutcome::ALL.len()]; CacheContent::ALL.len()],
    evictions: [Evictions; EvictionReason::ALL.len()],
    /// Bytes of blobs when they were last measured.
    bytes: AtomicU64,
    /// What [`CacheCounts::changes`] was then, and one more: zero before the first time.
    changes_measured: AtomicU64,
}

impl CacheCounts {
    /// Counts an answer.
    pub fn count(&self, content: CacheContent, outcome: CacheOutcome) {
        let counter = self
            .counts
            .get(content as usize)
            .and_then(|counts| counts.get(outcome as usize));
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts something that left, and the bytes that this freed.
    pub fn count_eviction(&self, reason: EvictionReason, content: CacheContent, bytes: u64) {
        let Some(evictions) = self.evictions.get(reason as usize) else {
            return;
        };
        if let Some(counter) = evictions.contents.get(content as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        evictions.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What left, by reason and content, zeros included.
    pub fn evicted(&self) -> impl Iterator<Item = (EvictionReason, CacheContent, u64)> {
        let reasons = EvictionReason::ALL.into_iter().zip(&self.evictions);
        reasons.flat_map(|(reason, evictions)| {
            let contents = CacheContent::ALL.into_iter().zip(&evictions.contents);
            contents.map(move |(content, count)| (reason, content, count.load(Ordering::Relaxed)))
        })
    }

    /// Bytes that evictions freed, by reason, zeros included.
    pub fn evicted_bytes(&self) -> impl Iterator<Item = (EvictionReason, u64)> {
        let reasons = EvictionReason::ALL.into_iter().zip(&self.evictions);
        reasons.map(|(reason, evictions)| (reason, evictions.bytes.load(Ordering::Relaxed)))
    }

    /// Answers that were here, and those that had to be fetched. A failure and an upstream's own 404 are neither.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        let (mut hits, mut misses) = (0, 0);
        for (_, outcome, count) in self.read() {
            match outcome {
                CacheOutcome::Hit | CacheOutcome::Revalidated | CacheOutcome::Stale => {
                    hits += count;
                }
                CacheOutcome::Filled | CacheOutcome::Joined | CacheOutcome::Passed => {
                    misses += count;
                }
                CacheOutcome::NotFound | CacheOutcome::Failed => {}
            }
        }
        (hits, misses)
    }

    /// Bytes of blobs in the cache when it was last measured.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Notes how large the cache is.
    pub(crate) fn measured(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        let measured = self.changes().saturating_add(1);
        self.changes_measured.store(measured, Ordering::Relaxed);
    }

    /// Whether something came or went since it was measured.
    pub(crate) fn changed(&self) -> bool {
        self.changes().saturating_add(1) != self.changes_measured.load(Ordering::Relaxed)
    }

    fn changes(&self) -> u64 {
        let came = self.read();
        let came = came.filter(|(_, outcome, _)| *outcome == CacheOutcome::Filled);
        let came: u64 = came.map(|(.., count)| count).sum();
        came + self.evicted().map(|(.., count)| count).sum::<u64>()
    }

    /// Every count, zeros included.
    pub fn read(&self) -> impl Iterator<Item = (CacheContent, CacheOutcome, u64)> {
        let contents = CacheContent::ALL.into_iter().zip(&self.counts);
        contents.flat_map(|(content, counts)| {
            let outcomes = CacheOutcome::ALL.into_iter().zip(counts);
            outcomes.map(move |(outcome, count)| (content, outcome, count.load(Ordering::Relaxed)))
        })
    }
}
