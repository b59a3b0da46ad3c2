//! Stores that fail on purpose: the N-th call of an operation, before or after the store behind has done it.
//!
//! What a failing call leaves behind follows the ports: a writer that failed takes nothing more, a commit that failed frees its staging bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

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

    /// Counts a call; the fault it meets.
    fn meet(&self, call: Call) -> Option<Fault> {
        let mut plan = lock(&self.plan);
        let count = plan.counts.entry(call).or_default();
        *count += 1;
        let count = *count;
        let index = plan
            .faults
            .iter()
            .position(|fault| fault.call == call && fault.at == count)?;
        Some(plan.faults.swap_remove(index))
    }

    /// Does the work, unless a fault prevents it.
    async fn around<T, E: From<StorageError>>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let fault = self.meet(call);
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
