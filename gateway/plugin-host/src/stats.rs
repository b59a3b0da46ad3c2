//! Plain counters of a plugin's calls. Metric names are the binary's business.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::error::Failure;

/// What a plugin's calls came to since it was loaded. Calls that were dropped by their caller are in no count.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Calls that gave a decision.
    pub answered_count: u64,
    /// Calls that failed, by how; every kind is listed.
    pub failed_counts: Vec<(Failure, u64)>,
    /// Wall time of all finished calls together, waiting for a place included.
    pub total: Duration,
    /// Instances alive now.
    pub live_count: u64,
}

impl Stats {
    /// How many calls failed like this.
    #[must_use]
    pub fn failed(&self, failure: Failure) -> u64 {
        self.failed_counts
            .iter()
            .find(|(kind, _)| *kind == failure)
            .map_or(0, |(_, count)| *count)
    }
}

const FAILURES: [Failure; 7] = [
    Failure::Trap,
    Failure::Deadline,
    Failure::Memory,
    Failure::HostQuota,
    Failure::Saturated,
    Failure::Contract,
    Failure::Plugin,
];

#[derive(Debug, Default)]
pub(crate) struct Counters {
    answered: AtomicU64,
    failed: [AtomicU64; FAILURES.len()],
    total_microseconds: AtomicU64,
    live: Arc<AtomicU64>,
}

impl Counters {
    pub(crate) fn count(&self, failure: Option<Failure>, took: Duration) {
        let counter = match failure {
            None => Some(&self.answered),
            Some(failure) => FAILURES
                .iter()
                .zip(&self.failed)
                .find(|(kind, _)| **kind == failure)
                .map(|(_, counter)| counter),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.total_microseconds
            .fetch_add(microseconds, Ordering::Relaxed);
    }

    /// Counts an instance until the guard is dropped.
    pub(crate) fn live(&self) -> Live {
        self.live.fetch_add(1, Ordering::Relaxed);
        Live(Arc::clone(&self.live))
    }

    pub(crate) fn read(&self) -> Stats {
        let failed = FAILURES.iter().zip(&self.failed);
        Stats {
            answered_count: self.answered.load(Ordering::Relaxed),
            failed_counts: failed
                .map(|(failure, counter)| (*failure, counter.load(Ordering::Relaxed)))
                .collect(),
            total: Duration::from_micros(self.total_microseconds.load(Ordering::Relaxed)),
            live_count: self.live.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Live(Arc<AtomicU64>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
