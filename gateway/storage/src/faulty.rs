//! Stores that fail on purpose, or take their time: the N-th call of an operation, before or after the store behind has done it.
//!
//! What a failing call leaves behind follows the ports: a writer that failed takes nothing more, a commit that failed frees its staging bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::Semaphore;

use crate::{
    blocking::lock,
    error::{Kind, StorageError},
};

mod blob;
mod metadata;

pub use blob::FaultyBlobStore;
pub use metadata::FaultyMetadata;

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Call {
    /// [`crate::BlobStore::stat`].
    Stat,
    /// [`crate::BlobStore::open`].
    Open,
    /// [`crate::Blob::read_at`], of blobs and tails.
    ReadAt,
    /// [`crate::BlobStore::create`].
    Create,
    /// [`crate::BlobStore::resume`].
    Resume,
    /// [`crate::BlobStore::discard`].
    Discard,
    /// [`crate::BlobStore::delete`].
    Delete,
    /// [`crate::BlobStore::staged`].
    Staged,
    /// [`crate::BlobStore::published`].
    Published,
    /// [`crate::BlobWriter::write`].
    Write,
    /// [`crate::BlobWriter::flush`].
    Flush,
    /// [`crate::BlobWriter::commit`].
    Publish,
    /// [`crate::MetadataStore::repository`].
    Repository,
    /// [`crate::MetadataStore::repositories`].
    Repositories,
    /// [`crate::MetadataStore::manifest`].
    Manifest,
    /// [`crate::MetadataStore::tag`].
    Tag,
    /// [`crate::MetadataStore::tags`].
    Tags,
    /// [`crate::MetadataStore::referrers`].
    Referrers,
    /// [`crate::MetadataStore::blob`].
    Blob,
    /// [`crate::MetadataStore::parents`].
    Parents,
    /// [`crate::MetadataStore::delivered`].
    Delivered,
    /// [`crate::MetadataStore::has_pushed`].
    HasPushed,
    /// [`crate::MetadataStore::commit`].
    Commit,
    /// [`crate::UploadSessions::start_upload`].
    StartUpload,
    /// [`crate::UploadSessions::upload`].
    Upload,
    /// [`crate::UploadSessions::end_upload`].
    EndUpload,
    /// [`crate::UploadSessions::stale_uploads`].
    StaleUploads,
    /// [`crate::CacheIndex::record_uses`].
    RecordUses,
    /// [`crate::CacheIndex::cache_size`].
    CacheSize,
    /// [`crate::CacheIndex::least_used_blobs`].
    LeastUsedBlobs,
    /// [`crate::CacheIndex::least_used_manifests`].
    LeastUsedManifests,
    /// [`crate::CacheIndex::is_held`].
    IsHeld,
    /// [`crate::CacheIndex::holding_repositories`].
    HoldingRepositories,
    /// [`crate::CacheIndex::unheld`].
    Unheld,
    /// [`crate::CacheIndex::began_ms`].
    Began,
    /// [`crate::CacheIndex::pins`].
    Pins,
    /// [`crate::CacheIndex::pin`].
    Pin,
    /// [`crate::CacheIndex::unpin`].
    Unpin,
}

/// Which calls fail. Clones share the plan.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Calls so far.
    counts: HashMap<Call, u64>,
    faults: Vec<Fault>,
    /// Which call, counted from the first ever, waits for a permit of what.
    holds: Vec<(Call, u64, Arc<Semaphore>)>,
}

#[derive(Clone, Copy, Debug)]
struct Fault {
    call: Call,
    /// Which call, counted from the first ever.
    at: u64,
    kind: Kind,
    moment: Moment,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    Before,
    After,
}

impl Faults {
    /// Nothing fails.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The `nth` call from now fails (the next is the first), and does nothing.
    pub fn fail(&self, call: Call, nth: u64, kind: Kind) {
        self.plan(call, nth, kind, Moment::Before);
    }

    /// The `nth` call from now does its work, and then says that it failed: an answer that got lost.
    pub fn fail_after(&self, call: Call, nth: u64, kind: Kind) {
        self.plan(call, nth, kind, Moment::After);
    }

    /// The `nth` call from now begins when the returned gate is given a permit.
    #[must_use]
    pub fn hold(&self, call: Call, nth: u64) -> Arc<Semaphore> {
        let at = self.count(call) + nth;
        let gate = Arc::new(Semaphore::new(0));
        let held = (call, at, Arc::clone(&gate));
        lock(&self.plan).holds.push(held);
        gate
    }

    /// How often an operation was called.
    #[must_use]
    pub fn count(&self, call: Call) -> u64 {
        lock(&self.plan).counts.get(&call).copied().unwrap_or(0)
    }

    /// Faults that were planned and have not happened.
    #[must_use]
    pub fn left(&self) -> usize {
        lock(&self.plan).faults.len()
    }

    fn plan(&self, call: Call, nth: u64, kind: Kind, moment: Moment) {
        let at = self.count(call) + nth;
        lock(&self.plan).faults.push(Fault {
            call,
            at,
            kind,
            moment,
        });
    }

    /// Counts a call; the fault it meets, and what it waits for.
    fn meet(&self, call: Call) -> (Option<Fault>, Option<Arc<Semaphore>>) {
        let mut plan = lock(&self.plan);
        let count = plan.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        let mut faults = plan.faults.iter();
        let fault = faults.position(|fault| fault.call == call && fault.at == count);
        let mut holds = plan.holds.iter();
        let hold = holds.position(|(held, at, _)| *held == call && *at == count);
        (
            fault.map(|index| plan.faults.swap_remove(index)),
            hold.map(|index| plan.holds.swap_remove(index).2),
        )
    }

    /// Does the work when it may begin, unless a fault prevents it.
    async fn around<T, E: From<StorageError>>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let (fault, gate) = self.meet(call);
        if let Some(gate) = gate {
            // Nobody closes it.
            drop(gate.acquire().await);
        }
        if let Some(fault) = fault
            && fault.moment == Moment::Before
        {
            return Err(fault.error().into());
        }
        let result = work.await;
        match fault {
            Some(fault) if result.is_ok() => Err(fault.error().into()),
            _ => result,
        }
    }
}

impl Fault {
    fn error(self) -> StorageError {
        let reason = format!("{:?} was made to fail", self.call);
        StorageError::new(self.kind, "do what a test made fail", reason)
    }
}
