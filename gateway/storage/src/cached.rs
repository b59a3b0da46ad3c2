//! Answers of a metadata store kept in memory for as long as nothing was committed to their repository.
//!
//! Owns the one rule that makes this right: the repository's version is taken before the store is asked, and an answer counts only while
//! the version is still that. A store that has no versions is asked every time. What is not there is not remembered.
//! Invariant: each kind of answer takes at most `MAX_ANSWER_BYTES`, whatever a record holds.

use std::{mem::size_of, sync::Arc};

use async_trait::async_trait;
use gantry_model::{Digest, Page, RepositoryName, Tag, Version};
use moka::{Equivalent, sync::Cache};

use crate::{
    error::StorageError,
    metadata::{
        Commit, CommitError, ContentOrigin, ManifestRecord, MetadataStore, ReferenceRecord,
        ReferrerRecord, RepositoryRecord, TagRecord,
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
    repositories: Answers<(), RepositoryRecord>,
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
            repositories: Answers::new(),
        }
    }
}

/// Answers to one question.
#[derive(Clone, Debug)]
struct Answers<
    K: Clone + Eq + std::hash::Hash + Send + Sync + 'static,
    A: Clone + Footprint + Send + Sync + 'static,
> {
    kept: Cache<(RepositoryName, ContentOrigin, K), Arc<(Version, A)>>,
}

/// A key that is looked up; hashes as the tuple that is kept.
#[derive(Hash)]
struct Named<'a, K>(&'a RepositoryName, &'a ContentOrigin, &'a K);

impl<K: Eq> Equivalent<(RepositoryName, ContentOrigin, K)> for Named<'_, K> {
    fn equivalent(&self, (repository, origin, key): &(RepositoryName, ContentOrigin, K)) -> bool {
        self.0 == repository && self.1 == origin && self.2 == key
    }
}

impl<K, A> Answers<K, A>
where
    K: Clone + std::fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static,
    A: Clone + Footprint + Send + Sync + 'static,
{
    fn new() -> Self {
        // An origin's text is one for all entries of its mirror.
        let weigh = |(repository, _, _): &(RepositoryName, ContentOrigin, K),
                     kept: &Arc<(Version, A)>| {
            let bytes = ENTRY_BYTES + size_of::<K>() + repository.as_str().len() + kept.1.bytes();
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        Self {
            kept: Cache::builder()
                .max_capacity(MAX_ANSWER_BYTES)
                .weigher(weigh)
                .build(),
        }
    }

    async fn get(
        &self,
        store: &dyn MetadataStore,
        (repository, origin, key): (&RepositoryName, &ContentOrigin, &K),
        ask: impl Future<Output = Result<Option<A>, StorageError>>,
    ) -> Result<Option<A>, StorageError> {
        // Before asking: whatever is committed while the store answers makes this version an old one.
        let version = store.version(repository).await?;
        if let Some(kept) = self.kept.get(&Named(repository, origin, key))
            && version.is_still(kept.0)
        {
            return Ok(Some(kept.1.clone()));
        }
        let answer = ask.await?;
        if let (Some(answer), Version::Known(_)) = (&answer, version) {
            let key = (repository.clone(), origin.clone(), key.clone());
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
        let ask = self.store.repository(name);
        let key = (name, &ContentOrigin::Pushed, &());
        self.repositories.get(&*self.store, key, ask).await
    }

    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError> {
        self.store.repositories(page).await
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        let ask = self.store.manifest(repository, origin, digest);
        let answer = self
            .manifests
            .get(&*self.store, (repository, origin, digest), ask);
        answer.await
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError> {
        let ask = self.store.tag(repository, tag);
        let key = (repository, &ContentOrigin::Pushed, tag);
        self.tags.get(&*self.store, key, ask).await
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
        origin: &ContentOrigin,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        self.store.referrers(repository, origin, subject).await
    }

    async fn referrer(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ReferrerRecord>, StorageError> {
        self.store.referrer(repository, origin, digest).await
    }

    async fn referrers_after(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
        after: Option<&str>,
        max_bytes: usize,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let store = &self.store;
        store
            .referrers_after(repository, origin, subject, after, max_bytes)
            .await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let ask = self.store.blob(repository, origin, digest);
        let key = (repository, origin, digest);
        self.blobs.get(&*self.store, key, ask).await
    }

    async fn parents(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError> {
        let ask = async {
            self.store
                .parents(repository, origin, digest)
                .await
                .map(Some)
        };
        let answer = self
            .parents
            .get(&*self.store, (repository, origin, digest), ask);
        Ok(answer.await?.unwrap_or_default())
    }

    async fn delivered(
        &self,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        self.store.delivered(origin, digest).await
    }

    async fn has_pushed(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        principal: &str,
    ) -> Result<bool, StorageError> {
        self.store.has_pushed(repository, digest, principal).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        self.store.commit(commit).await
    }

    async fn version(&self, repository: &RepositoryName) -> Result<Version, StorageError> {
        self.store.version(repository).await
    }
}

/// Memory that the answers to one kind of question may take.
const MAX_ANSWER_BYTES: u64 = 8 << 20;

/// What the cache's own tables take for an entry, about.
const ENTRY_BYTES: usize = 256;

/// The memory that a record takes, about.
trait Footprint {
    fn bytes(&self) -> usize;
}

impl Footprint for RepositoryRecord {
    fn bytes(&self) -> usize {
        0
    }
}

impl Footprint for u64 {
    fn bytes(&self) -> usize {
        size_of::<Self>()
    }
}

impl Footprint for TagRecord {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.tag.as_str().len() + self.state.pushed_by.len()
    }
}

impl Footprint for ManifestRecord {
    fn bytes(&self) -> usize {
        let artifact_type = self.artifact_type.as_ref().map_or(0, String::len);
        let texts = self.media_type.as_str().len() + self.pushed_by.len();
        size_of::<Self>() + artifact_type + texts
    }
}

impl Footprint for Vec<(Digest, ReferenceRecord)> {
    fn bytes(&self) -> usize {
        let each = size_of::<(Digest, ReferenceRecord)>();
        let texts = self
            .iter()
            .map(|(_, named)| named.media_type.as_str().len());
        self.len() * each + texts.sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_any_size_take_a_bounded_memory() {
        let answers: Answers<Tag, Vec<(Digest, ReferenceRecord)>> = Answers::new();
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
        let named = ReferenceRecord {
            digest: digest.clone(),
            media_type: gantry_model::MediaType::octet_stream(),
            size: 1,
            named: crate::metadata::Named::Blob,
        };
        let large = vec![(digest, named); 1 << 12];
        let repository: RepositoryName = "a/b".parse().unwrap();
        for index in 0..64 {
            let key = (
                repository.clone(),
                ContentOrigin::Pushed,
                format!("t{index}").parse().unwrap(),
            );
            answers
                .kept
                .insert(key, Arc::new((Version::Known(1), large.clone())));
        }
        answers.kept.run_pending_tasks();
        assert!(large.bytes() > (1 << 18), "{}", large.bytes());
        assert!(answers.kept.weighted_size() <= MAX_ANSWER_BYTES);
        assert!(answers.kept.entry_count() < 64);
    }
}
