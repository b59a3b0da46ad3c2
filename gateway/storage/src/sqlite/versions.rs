//! How often each repository was committed to, as far as a cache needs to know: repositories share a few counters.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::atomic::{AtomicU64, Ordering},
};

use gantry_model::RepositoryName;

const COUNTERS: usize = 256;

/// The counters.
#[derive(Debug)]
pub(super) struct Versions([AtomicU64; COUNTERS]);

impl Default for Versions {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTERS])
    }
}

impl Versions {
    pub(super) fn of(&self, repository: &RepositoryName) -> u64 {
        self.counter(repository).load(Ordering::Acquire)
    }

    /// A commit is durable, and nobody was told of it yet.
    pub(super) fn moved(&self, repository: &RepositoryName) {
        self.counter(repository).fetch_add(1, Ordering::AcqRel);
    }

    /// As [`Versions::moved`], of every repository.
    pub(super) fn all_moved(&self) {
        for counter in &self.0 {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn counter(&self, repository: &RepositoryName) -> &AtomicU64 {
        let mut hasher = DefaultHasher::new();
        repository.hash(&mut hasher);
        let [index, ..] = hasher.finish().to_le_bytes();
        #[expect(
            clippy::indexing_slicing,
            reason = "there are as many counters as a byte has values"
        )]
        &self.0[usize::from(index)]
    }
}
