//! Answers of a metadata store kept in memory for as long as nothing was committed to their repository.
//!
//! Owns the one rule that makes this right: the repository's version is taken before the store is asked, and an answer counts only while
//! the version is still that. A store that has no versions is asked every time. What is not there is not remembered.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_model::{Digest, Page, RepositoryName, Tag};
use moka::{Equivalent, sync::Cache};

use crate::{
    error::StorageError,
    metadata::{
        Commit, CommitError, ManifestRecord, MetadataStore, ReferenceRecord, ReferrerRecord,
        RepositoryRecord, TagRecord,
    },
};

/// A metadata store with its last answers.
#[derive(Clone, Debug)]
pub struct CachedMetadata {
    store: Arc<dyn MetadataStore>,
    manifests: Answers<Digest, ManifestRecord>,
    tags: Answers<Tag, TagRecord>,
    blobs: Answers<Digest, u64>,
    parents: Answers<Digest, Vec<(Digest, ReferenceRecord)>>,
}

impl CachedMetadata {
    /// Puts the cache before a store. A commit that goes by another way to the same store counts as well.
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>) -> Self {
        Self {
            store,
            manifests: Answers::new(),
            tags: Answers::new(),
            blobs: Answers::new(),
            parents: Answers::new(),
        }
    }
}

/// Answers to one question.
#[derive(Clone, Debug)]
struct Answers<
    K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
> {
    kept: Cache<(RepositoryName, K), Arc<(u64, A)>>,
}

/// A key that is looked up; hashes as the pair that is kept.
#[derive(Hash)]
struct Named<'a, K>(&'a RepositoryName, &'a K);

impl<K: Eq> Equivalent<(RepositoryName, K)> for Named<'_, K> {
    fn equivalent(&self, (repository, key): &(RepositoryName, K)) -> bool {
        self.0 == repository && self.1 == key
    }
}

impl<K, A> Answers<K, A>
where
    K: Clone + std::fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static,
    A: Clone + Send + Sync + 'static,
{
    fn new() -> Self {
        Self {
            kept: Cache::new(MAX_ANSWERS),
        }
    }

    async fn get(
        &self,
        store: &dyn MetadataStore,
        repository: &RepositoryName,
        key: &K,
        ask: impl Future<Output = Result<Option<A>, StorageError>>,
    ) -> Result<Option<A>, StorageError> {
        // Before asking: whatever is committed while the store answers makes this version an old one.
        let Some(version) = store.version(repository) else {
            return ask.await;
        };
        if let Some(kept) = self.kept.get(&Named(repository, key))
            && kept.0 == version
        {
            return Ok(Some(kept.1.clone()));
        }
        let answer = ask.await?;
        if let Some(answer) = &answer {
            let key = (repository.clone(), key.clone());
            self.kept.insert(key, Arc::new((version, answer.clone())));
        }
        Ok(answer)
    }
}

#[async_trait]
impl MetadataStore for CachedMetadata {
    async fn repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryRecord>, StorageError> {
        self.store.repository(name).await
    }

    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError> {
        self.store.repositories(page).await
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        let ask = self.store.manifest(repository, digest);
        let answer = self.manifests.get(&*self.store, repository, digest, ask);
        answer.await
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError> {
        let ask = self.store.tag(repository, tag);
        self.tags.get(&*self.store, repository, tag, ask).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        digest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<TagRecord>, StorageError> {
        self.store.tags(repository, digest, page).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        self.store.referrers(repository, subject).await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let ask = self.store.blob(repository, digest);
        self.blobs.get(&*self.store, repository, digest, ask).await
    }

    async fn parents(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError> {
        let ask = async { self.store.parents(repository, digest).await.map(Some) };
        let answer = self.parents.get(&*self.store, repository, digest, ask);
        Ok(answer.await?.unwrap_or_default())
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        self.store.commit(commit).await
    }

    fn version(&self, repository: &RepositoryName) -> Option<u64> {
        self.store.version(repository)
    }
}

/// Of each question; a record takes about half a KiB.
const MAX_ANSWERS: u64 = 8192;
