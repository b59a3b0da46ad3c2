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

/// What one mirror's cache did since the process started.
#[derive(Debug, Default)]
pub struct CacheCounts {
    counts: [[AtomicU64; CacheOutcome::ALL.len()]; CacheContent::ALL.len()],
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

    /// Every count, zeros included.
    pub fn read(&self) -> impl Iterator<Item = (CacheContent, CacheOutcome, u64)> {
        let contents = CacheContent::ALL.into_iter().zip(&self.counts);
        contents.flat_map(|(content, counts)| {
            let outcomes = CacheOutcome::ALL.into_iter().zip(counts);
            outcomes.map(move |(outcome, count)| (content, outcome, count.load(Ordering::Relaxed)))
        })
    }
}
