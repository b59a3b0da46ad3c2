//! Who needs content to stay before any fact of the metadata names it.
//!
//! Whoever publishes content, or finds it published and is about to name it, leases its digest until the commit; eviction condemns
//! only what nobody leases, one condemner at a time, and who comes meanwhile waits. So bytes never go between a look and a commit
//! (reliability: exclusive condemnation is the variant of the lease scheme that holds under every schedule).
//! Leases are of this process: a restart has nothing that waits for its commit.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gantry_model::Digest;
use tokio::sync::Notify;

/// The table of leased and condemned digests. Cheap to clone; clones are one table.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    table: Arc<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Protects: the state of each digest that has one. Held for a look-up, never over an await.
    states: Mutex<HashMap<Digest, State>>,
    /// Told whenever a condemnation ends.
    spared: Notify,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Leased(usize),
    Condemned,
}

impl Leases {
    /// Leases a digest; waits while it is condemned.
    pub(crate) async fn take(&self, digest: &Digest) -> Lease {
        loop {
            let spared = self.table.spared.notified();
            if self.try_take(digest) {
                return Lease {
                    table: Arc::clone(&self.table),
                    digest: digest.clone(),
                };
            }
            spared.await;
        }
    }

    fn try_take(&self, digest: &Digest) -> bool {
        let mut states = self.table.lock();
        match states.entry(digest.clone()).or_insert(State::Leased(0)) {
            State::Leased(count) => {
                *count += 1;
                true
            }
            State::Condemned => false,
        }
    }

    /// Condemns a digest; `None` when somebody leases it or condemned it already.
    pub(crate) fn condemn(&self, digest: &Digest) -> Option<Condemned> {
        let mut states = self.table.lock();
        if states.contains_key(digest) {
            return None;
        }
        states.insert(digest.clone(), State::Condemned);
        Some(Condemned {
            table: Arc::clone(&self.table),
            digest: digest.clone(),
        })
    }
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, State>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Content stays until this is dropped.
#[derive(Debug)]
#[must_use = "a lease that is dropped at once holds nothing"]
pub(crate) struct Lease {
    table: Arc<Table>,
    digest: Digest,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut states = self.table.lock();
        match states.get_mut(&self.digest) {
            Some(State::Leased(count)) if *count > 1 => *count -= 1,
            _ => {
                states.remove(&self.digest);
            }
        }
    }
}

/// Nobody leases the content until this is dropped.
#[derive(Debug)]
pub(crate) struct Condemned {
    table: Arc<Table>,
    digest: Digest,
}

impl Drop for Condemned {
    fn drop(&mut self) {
        self.table.lock().remove(&self.digest);
        self.table.spared.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use futures_util::FutureExt as _;
    use gantry_model::Algorithm;
    use gantry_storage::digest_of;

    use super::*;

    fn digest() -> Digest {
        digest_of(Algorithm::Sha256, b"content")
    }

    #[tokio::test]
    async fn what_is_leased_is_not_condemned() {
        let leases = Leases::default();
        let (one, two) = (leases.take(&digest()).await, leases.take(&digest()).await);
        assert!(leases.condemn(&digest()).is_none());
        drop(one);
        assert!(leases.condemn(&digest()).is_none());
        drop(two);
        let condemned = leases.condemn(&digest());
        assert!(condemned.is_some());
        assert!(
            leases.condemn(&digest()).is_none(),
            "one condemner at a time"
        );
    }

    #[tokio::test]
    async fn a_lease_of_condemned_content_waits_until_that_is_decided() {
        let leases = Leases::default();
        let condemned = leases.condemn(&digest()).unwrap();
        let digest = digest();
        let mut lease = Box::pin(leases.take(&digest));
        assert!((&mut lease).now_or_never().is_none());
        drop(condemned);
        let _lease = lease.await;
        assert!(leases.condemn(&digest).is_none());
    }

    const CONDEMNED: usize = 100;

    /// Is inside with others of its kind only.
    async fn inside(count: &AtomicUsize, weight: usize) {
        let before = count.fetch_add(weight, SeqCst);
        match weight {
            CONDEMNED => assert_eq!(before, 0, "condemned while leased"),
            _ => assert!(before < CONDEMNED, "leased while condemned"),
        }
        tokio::task::yield_now().await;
        count.fetch_sub(weight, SeqCst);
    }

    async fn lease_often(leases: Leases, count: Arc<AtomicUsize>) {
        for _round in 0..2_000 {
            let _lease = leases.take(&digest()).await;
            inside(&count, 1).await;
        }
    }

    async fn condemn_often(leases: Leases, count: Arc<AtomicUsize>) {
        for _round in 0..2_000 {
            if let Some(_condemned) = leases.condemn(&digest()) {
                inside(&count, CONDEMNED).await;
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_ever_sees_both() {
        let (leases, count) = (Leases::default(), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _pair in 0..4 {
            tasks.spawn(lease_often(leases.clone(), Arc::clone(&count)));
            tasks.spawn(condemn_often(leases.clone(), Arc::clone(&count)));
        }
        tasks.join_all().await;
    }
}
