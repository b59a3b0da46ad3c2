//! Metadata in memory. A commit checks everything before it changes anything, under one lock.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use gantry_model::{Digest, Page, RepositoryName, Tag, UploadId};

use super::outbox::Outbox;
use crate::{
    blocking::lock,
    cache::Pin,
    error::{Kind, StorageError},
    metadata::{
        Commit, CommitError, ContentOrigin, ManifestRecord, MetadataStore, PushManifest,
        ReferenceRecord, ReferrerRecord, RepositoryRecord, TagRecord, UploadRecord, UploadSessions,
    },
};

/// Metadata and upload sessions in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryMetadata {
    pub(super) facts: Arc<Mutex<Facts>>,
}

#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) outbox: Outbox,
    pub(super) repositories: BTreeMap<RepositoryName, Repository>,
    uploads: BTreeMap<UploadId, UploadRecord>,
    pub(super) pins: BTreeMap<String, Pin>,
    pub(super) began_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Repository {
    generation: u64,
    claimed: bool,
    pub(super) manifests: BTreeMap<Digest, Stored>,
    pub(super) tags: BTreeMap<Tag, TagRecord>,
    pub(super) blobs: BTreeMap<Digest, Linked>,
    pub(super) uses: BTreeMap<Digest, u64>,
}

impl Default for Repository {
    fn default() -> Self {
        Self {
            generation: 1,
            claimed: false,
            manifests: BTreeMap::new(),
            tags: BTreeMap::new(),
            blobs: BTreeMap::new(),
            uses: BTreeMap::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Stored {
    pub(super) record: ManifestRecord,
    annotations: String,
    pub(super) references: Vec<ReferenceRecord>,
    origins: BTreeSet<ContentOrigin>,
}

impl Stored {
    fn referrer(&self) -> ReferrerRecord {
        ReferrerRecord {
            manifest: self.record.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

/// A blob of a repository. Not empty.
#[derive(Debug, Default)]
pub(super) struct Linked {
    /// Its length, as each origin said it when it was linked.
    origins: BTreeMap<ContentOrigin, u64>,
    principals: BTreeSet<String>,
}

impl Linked {
    pub(super) fn size(&self) -> u64 {
        self.origins.values().copied().max().unwrap_or_default()
    }
}

impl MemoryMetadata {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read<T: Default>(
        &self,
        repository: &RepositoryName,
        read: impl FnOnce(&Repository) -> T,
    ) -> T {
        let facts = lock(&self.facts);
        facts
            .repositories
            .get(repository)
            .map(read)
            .unwrap_or_default()
    }
}

#[async_trait]
impl MetadataStore for MemoryMetadata {
    async fn repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryRecord>, StorageError> {
        Ok(self.read(name, |repository| {
            Some(RepositoryRecord {
                claimed: repository.claimed,
                generation: repository.generation,
            })
        }))
    }

    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError> {
        let facts = lock(&self.facts);
        let names = facts
            .repositories
            .iter()
            .filter(|(_, repository)| !repository.manifests.is_empty())
            .map(|(name, _)| name);
        let listed = cut(names, page, |name| name.as_str());
        Ok(listed.cloned().collect())
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        Ok(self.read(repository, |repository| {
            let stored = repository.manifests.get(digest)?;
            let has = stored.origins.contains(origin);
            has.then(|| stored.record.clone())
        }))
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError> {
        Ok(self.read(repository, |repository| repository.tags.get(tag).cloned()))
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        digest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<TagRecord>, StorageError> {
        Ok(self.read(repository, |repository| {
            let asked = |record: &&TagRecord| digest.is_none_or(|it| *it == record.state.digest);
            let tags = repository.tags.values().filter(asked);
            cut(tags, page, |record| record.tag.as_str())
                .cloned()
                .collect()
        }))
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        Ok(self.read(repository, |repository| {
            let manifests = repository.manifests.values();
            manifests
                .filter(|stored| stored.origins.contains(origin))
                .filter(|stored| stored.record.subject.as_ref() == Some(subject))
                .map(Stored::referrer)
                .collect()
        }))
    }

    async fn referrer(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ReferrerRecord>, StorageError> {
        Ok(self.read(repository, |repository| {
            let stored = repository.manifests.get(digest)?;
            let has = stored.origins.contains(origin);
            has.then(|| stored.referrer())
        }))
    }

    async fn referrers_after(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
        after: Option<&str>,
        max_bytes: usize,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let mut bytes = 0;
        let all = self
            .referrers(repository, origin, subject)
            .await?
            .into_iter();
        let rest = all.filter(|it| after.is_none_or(|after| it.manifest.digest.as_str() > after));
        let some = rest.take_while(|it| {
            let has_room = bytes < max_bytes;
            bytes += it.annotations.len() + 512;
            has_room
        });
        Ok(some.collect())
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        Ok(self.read(repository, |repository| repository.blob(origin, digest)))
    }

    async fn parents(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError> {
        Ok(self.read(repository, |repository| {
            let mut parents = Vec::new();
            let manifests = repository.manifests.iter();
            for (parent, stored) in manifests.filter(|(_, it)| it.origins.contains(origin)) {
                let named = stored.references.iter().filter(|it| it.digest == *digest);
                parents.extend(named.map(|reference| (parent.clone(), reference.clone())));
            }
            parents
        }))
    }

    async fn delivered(
        &self,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let facts = lock(&self.facts);
        let mut repositories = facts.repositories.values();
        Ok(repositories.find_map(|repository| repository.blob(origin, digest)))
    }

    async fn has_pushed(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        principal: &str,
    ) -> Result<bool, StorageError> {
        Ok(self.read(repository, |repository| {
            let linked = repository.blobs.get(digest);
            linked.is_some_and(|linked| linked.principals.contains(principal))
        }))
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        lock(&self.facts).apply(commit)
    }
}

impl Facts {
    fn apply(&mut self, commit: Commit) -> Result<(), CommitError> {
        match commit {
            Commit::Telling { commit, events } => {
                self.apply(*commit)?;
                self.outbox.insert(events);
                Ok(())
            }
            Commit::PushManifest(push) => self.push_manifest(*push),
            Commit::LinkBlob {
                repository,
                origin,
                digest,
                size,
                upload,
                principal,
            } => {
                let repository = self.repositories.entry(repository).or_default();
                let linked = repository.blobs.entry(digest).or_default();
                linked.origins.entry(origin).or_insert(size);
                linked.principals.extend(principal);
                upload.map(|upload| self.uploads.remove(&upload));
                Ok(())
            }
            Commit::DeleteManifest {
                repository,
                digest,
                tags,
                ..
            } => self.existing(&repository)?.delete_manifest(&digest, &tags),
            Commit::DeleteTag {
                repository,
                tag,
                expected,
                ..
            } => self.existing(&repository)?.delete_tag(&tag, &expected),
            Commit::UnlinkBlob { repository, digest } => {
                let repository = self.existing(&repository)?;
                repository.uses.remove(&digest);
                let blob = repository.blobs.remove(&digest);
                blob.map(|_size| ()).ok_or(CommitError::Absent)
            }
            Commit::DeleteBlob { repository, digest } => {
                self.existing(&repository)?.delete_blob(&digest)
            }
            Commit::ReleaseRepository { repository, .. } => self.existing(&repository)?.release(),
            Commit::ConfirmTag {
                repository,
                tag,
                digest,
                checked_at_ms,
            } => {
                let repository = self.repositories.get_mut(&repository);
                let record = repository.and_then(|repository| repository.tags.get_mut(&tag));
                if let Some(record) = record.filter(|record| record.state.digest == digest) {
                    record.checked_at_ms = record.checked_at_ms.max(checked_at_ms);
                }
                Ok(())
            }
        }
    }

    fn existing(&mut self, name: &RepositoryName) -> Result<&mut Repository, CommitError> {
        self.repositories.get_mut(name).ok_or(CommitError::Absent)
    }

    fn push_manifest(&mut self, push: PushManifest) -> Result<(), CommitError> {
        let none = Repository::default();
        let repository = self.repositories.get(&push.repository).unwrap_or(&none);
        for to in &push.tags {
            let current = repository.tags.get(&to.tag);
            if !to.is_possible(current, &push.manifest.digest) {
                return Err(moved(&to.tag, current));
            }
        }
        if let Some(digest) = push
            .required
            .iter()
            .find(|it| !repository.holds(&push.origin, it))
        {
            let digest = digest.clone();
            return Err(CommitError::MissingReference { digest });
        }
        let repository = self
            .repositories
            .entry(push.repository.clone())
            .or_default();
        for to in &push.tags {
            let record = to.applied(&push.manifest, repository.tags.get(&to.tag));
            self.began_ms.get_or_insert(record.state.pushed_at_ms);
            repository.tags.insert(to.tag.clone(), record);
        }
        repository.claimed |= push.origin == ContentOrigin::Pushed;
        repository.store(push);
        Ok(())
    }
}

impl Repository {
    fn blob(&self, origin: &ContentOrigin, digest: &Digest) -> Option<u64> {
        self.blobs.get(digest)?.origins.get(origin).copied()
    }

    fn holds(&self, origin: &ContentOrigin, digest: &Digest) -> bool {
        let stored = self.manifests.get(digest);
        self.blob(origin, digest).is_some() || stored.is_some_and(|it| it.origins.contains(origin))
    }

    fn delete_blob(&mut self, digest: &Digest) -> Result<(), CommitError> {
        if self.blob(&ContentOrigin::Pushed, digest).is_none() {
            return Err(CommitError::Absent);
        }
        let names = |stored: &Stored| {
            let mut named = stored.references.iter();
            stored.origins.contains(&ContentOrigin::Pushed) && named.any(|it| it.digest == *digest)
        };
        let mut manifests = self.manifests.iter();
        if let Some((manifest, _)) = manifests.find(|(_, stored)| names(stored)) {
            let manifest = manifest.clone();
            return Err(CommitError::StillNamed { manifest });
        }
        self.blobs.retain(|linked_digest, linked| {
            if linked_digest == digest {
                linked.origins.remove(&ContentOrigin::Pushed);
                linked.principals.clear();
            }
            !linked.origins.is_empty()
        });
        if !self.blobs.contains_key(digest) {
            self.uses.remove(digest);
        }
        Ok(())
    }

    fn release(&mut self) -> Result<(), CommitError> {
        if !self.claimed {
            return Err(CommitError::Absent);
        }
        let mut pushed = self.tags.values().filter(|record| !record.is_cached());
        if let Some(kept) = pushed.find(|record| record.state.immutable) {
            return Err(moved(&kept.tag, Some(kept)));
        }
        self.tags.retain(|_, record| record.is_cached());
        let tagged: BTreeSet<_> = self
            .tags
            .values()
            .map(|it| it.state.digest.clone())
            .collect();
        self.manifests.retain(|digest, stored| {
            stored.origins.remove(&ContentOrigin::Pushed);
            !stored.origins.is_empty() || tagged.contains(digest)
        });
        self.blobs.retain(|_, linked| {
            linked.origins.remove(&ContentOrigin::Pushed);
            linked.principals.clear();
            !linked.origins.is_empty()
        });
        self.claimed = false;
        self.generation += 1;
        Ok(())
    }

    /// Keeps what is there; otherwise keeps once whatever the manifest says twice.
    fn store(&mut self, push: PushManifest) {
        let (record, mut references) = (push.manifest, push.references);
        let stored = self
            .manifests
            .entry(record.digest.clone())
            .or_insert_with(|| {
                references.sort_by(|one, other| sort_key(one).cmp(&sort_key(other)));
                references.dedup();
                Stored {
                    record,
                    annotations: push.annotations,
                    references,
                    origins: BTreeSet::new(),
                }
            });
        stored.origins.insert(push.origin);
    }

    fn delete_manifest(&mut self, digest: &Digest, tags: &[Tag]) -> Result<(), CommitError> {
        if !self.manifests.contains_key(digest) {
            return Err(CommitError::Absent);
        }
        let named = self.tags.values().filter(|it| it.state.digest == *digest);
        let named: BTreeSet<&Tag> = named.map(|record| &record.tag).collect();
        let asked: BTreeSet<&Tag> = tags.iter().collect();
        if let Some(tag) = named.symmetric_difference(&asked).next() {
            return Err(moved(tag, self.tags.get(*tag)));
        }
        let kept = |tag: &&Tag| self.tags.get(*tag).is_some_and(|it| !it.may_go(digest));
        if let Some(tag) = tags.iter().find(kept) {
            return Err(moved(tag, self.tags.get(tag)));
        }
        self.manifests.remove(digest);
        self.uses.remove(digest);
        for tag in tags {
            self.tags.remove(tag);
        }
        Ok(())
    }

    fn delete_tag(&mut self, tag: &Tag, expected: &Digest) -> Result<(), CommitError> {
        let current = self.tags.get(tag).ok_or(CommitError::Absent)?;
        if !current.may_go(expected) {
            return Err(moved(tag, Some(current)));
        }
        self.tags.remove(tag);
        Ok(())
    }
}

fn sort_key(reference: &ReferenceRecord) -> (&Digest, &str, u64) {
    let media_type = reference.media_type.as_str();
    (&reference.digest, media_type, reference.size)
}

fn moved(tag: &Tag, current: Option<&TagRecord>) -> CommitError {
    CommitError::TagMoved {
        tag: tag.clone(),
        current: current.cloned().map(Box::new),
    }
}

/// The entries of a sorted list that a page holds.
fn cut<'a, T: 'a>(
    entries: impl Iterator<Item = &'a T>,
    page: &Page,
    name: impl Fn(&T) -> &str,
) -> impl Iterator<Item = &'a T> {
    let after = page.after.clone().unwrap_or_default();
    entries
        .filter(move |entry| name(entry) > after.as_str())
        .take(page.limit.unwrap_or(usize::MAX))
}

#[async_trait]
impl UploadSessions for MemoryMetadata {
    async fn start_upload(&self, record: &UploadRecord) -> Result<(), StorageError> {
        let mut facts = lock(&self.facts);
        if facts.uploads.contains_key(&record.upload) {
            let attempt = "record an upload";
            return Err(StorageError::new(
                Kind::Internal,
                attempt,
                "it exists already",
            ));
        }
        facts.uploads.insert(record.upload, record.clone());
        Ok(())
    }

    async fn upload(&self, upload: UploadId) -> Result<Option<UploadRecord>, StorageError> {
        Ok(lock(&self.facts).uploads.get(&upload).cloned())
    }

    async fn end_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        lock(&self.facts).uploads.remove(&upload);
        Ok(())
    }

    async fn stale_uploads(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<UploadRecord>, StorageError> {
        let facts = lock(&self.facts);
        let old = facts
            .uploads
            .values()
            .filter(|it| it.started_at_ms < before_ms);
        let mut stale: Vec<UploadRecord> = old.cloned().collect();
        stale.sort_by_key(|record| (record.started_at_ms, record.upload));
        stale.truncate(limit);
        Ok(stale)
    }
}
