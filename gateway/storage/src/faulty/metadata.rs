//! Metadata that fails on purpose.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_model::{Digest, Page, RepositoryName, Tag, UploadId, Version};

use super::{Call, Faults};
use crate::{
    CacheIndex, CacheQuery, CacheSize, Cached, CachedRepository, Commit, CommitError,
    ContentOrigin, ManifestRecord, MetadataStore, Pin, ReferenceRecord, ReferrerRecord,
    RepositoryRecord, StorageError, TagRecord, UploadRecord, UploadSessions, Use,
};

/// Fails as [`Faults`] says; otherwise the stores behind.
#[derive(Clone, Debug)]
pub struct FaultyMetadata {
    metadata: Arc<dyn MetadataStore>,
    uploads: Arc<dyn UploadSessions>,
    cache: Arc<dyn CacheIndex>,
    faults: Faults,
}

impl FaultyMetadata {
    /// Puts faults before a store that is all of them.
    #[must_use]
    pub fn new<S: CacheIndex + MetadataStore + UploadSessions + 'static>(
        store: Arc<S>,
        faults: Faults,
    ) -> Self {
        let metadata: Arc<dyn MetadataStore> = Arc::<S>::clone(&store);
        let cache: Arc<dyn CacheIndex> = Arc::<S>::clone(&store);
        Self {
            metadata,
            uploads: store,
            cache,
            faults,
        }
    }
}

#[async_trait]
impl MetadataStore for FaultyMetadata {
    async fn repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryRecord>, StorageError> {
        let read = self.metadata.repository(name);
        self.faults.around(Call::Repository, read).await
    }

    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError> {
        let read = self.metadata.repositories(page);
        self.faults.around(Call::Repositories, read).await
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        let read = self.metadata.manifest(repository, origin, digest);
        self.faults.around(Call::Manifest, read).await
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError> {
        let read = self.metadata.tag(repository, tag);
        self.faults.around(Call::Tag, read).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        digest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<TagRecord>, StorageError> {
        let read = self.metadata.tags(repository, digest, page);
        self.faults.around(Call::Tags, read).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let read = self.metadata.referrers(repository, origin, subject);
        self.faults.around(Call::Referrers, read).await
    }

    async fn referrer(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ReferrerRecord>, StorageError> {
        let read = self.metadata.referrer(repository, origin, digest);
        self.faults.around(Call::Referrers, read).await
    }

    async fn referrers_after(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
        after: Option<&str>,
        max_bytes: usize,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let read = self
            .metadata
            .referrers_after(repository, origin, subject, after, max_bytes);
        self.faults.around(Call::Referrers, read).await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let read = self.metadata.blob(repository, origin, digest);
        self.faults.around(Call::Blob, read).await
    }

    async fn parents(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError> {
        let read = self.metadata.parents(repository, origin, digest);
        self.faults.around(Call::Parents, read).await
    }

    async fn delivered(
        &self,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let read = self.metadata.delivered(origin, digest);
        self.faults.around(Call::Delivered, read).await
    }

    async fn has_pushed(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        principal: &str,
    ) -> Result<bool, StorageError> {
        let read = self.metadata.has_pushed(repository, digest, principal);
        self.faults.around(Call::HasPushed, read).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let commit = self.metadata.commit(commit);
        self.faults.around(Call::Commit, commit).await
    }

    async fn version(&self, repository: &RepositoryName) -> Result<Version, StorageError> {
        self.metadata.version(repository).await
    }
}

#[async_trait]
impl UploadSessions for FaultyMetadata {
    async fn start_upload(&self, record: &UploadRecord) -> Result<(), StorageError> {
        let start = self.uploads.start_upload(record);
        self.faults.around(Call::StartUpload, start).await
    }

    async fn upload(&self, upload: UploadId) -> Result<Option<UploadRecord>, StorageError> {
        let read = self.uploads.upload(upload);
        self.faults.around(Call::Upload, read).await
    }

    async fn end_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        let end = self.uploads.end_upload(upload);
        self.faults.around(Call::EndUpload, end).await
    }

    async fn stale_uploads(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<UploadRecord>, StorageError> {
        let read = self.uploads.stale_uploads(before_ms, limit);
        self.faults.around(Call::StaleUploads, read).await
    }
}

#[async_trait]
impl CacheIndex for FaultyMetadata {
    async fn record_uses(&self, uses: Vec<Use>) -> Result<(), StorageError> {
        let record = self.cache.record_uses(uses);
        self.faults.around(Call::RecordUses, record).await
    }

    async fn cache_size(
        &self,
        prefix: &RepositoryName,
        except: &[RepositoryName],
    ) -> Result<CacheSize, StorageError> {
        let read = self.cache.cache_size(prefix, except);
        self.faults.around(Call::CacheSize, read).await
    }

    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let read = self.cache.least_used_blobs(query);
        self.faults.around(Call::LeastUsedBlobs, read).await
    }

    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let read = self.cache.least_used_manifests(query);
        self.faults.around(Call::LeastUsedManifests, read).await
    }

    async fn is_held(&self, digest: &Digest) -> Result<bool, StorageError> {
        let read = self.cache.is_held(digest);
        self.faults.around(Call::IsHeld, read).await
    }

    async fn holding_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CachedRepository>, StorageError> {
        let read = self.cache.holding_repositories(after, limit);
        self.faults.around(Call::HoldingRepositories, read).await
    }

    async fn began_ms(&self) -> Result<Option<u64>, StorageError> {
        let read = self.cache.began_ms();
        self.faults.around(Call::Began, read).await
    }

    async fn unheld(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StorageError> {
        let read = self.cache.unheld(digests);
        self.faults.around(Call::Unheld, read).await
    }

    async fn pins(&self) -> Result<Vec<Pin>, StorageError> {
        self.faults.around(Call::Pins, self.cache.pins()).await
    }

    async fn pin(&self, pin: Pin) -> Result<bool, StorageError> {
        self.faults.around(Call::Pin, self.cache.pin(pin)).await
    }

    async fn unpin(&self, pattern: &str) -> Result<bool, StorageError> {
        let unpin = self.cache.unpin(pattern);
        self.faults.around(Call::Unpin, unpin).await
    }
}
