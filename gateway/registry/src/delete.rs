//! Deletes a tag, a manifest with its tags, or a blob's link. The bytes stay: other repositories may have them.
//!
//! Owns the loop between admission and commit, as a push does. A manifest goes only with every tag that names it, and each of those
//! tags is asked about: what protects a tag protects its manifest.

use gantry_model::{Change, Digest, Event, EventKind, Page, Repository, Tag};
use gantry_storage::{Commit, CommitError, ContentOrigin, ManifestRecord, TagRecord};

use crate::{
    admit::{Content, Question, refuse_immutable},
    error::Error,
    events::Told,
    outcome::Outcome,
    push::MAX_ROUNDS,
    registry::Call,
};

/// Tags read at once.
const TAGS_PAGE: usize = 1000;

impl Call {
    /// Deletes a tag.
    pub(crate) async fn delete_tag(
        &self,
        repository: &Repository,
        tag: &Tag,
    ) -> Result<Outcome, Error> {
        self.refuse_when_disabled()?;
        for _round in 0..MAX_ROUNDS {
            let state = self.hosted_tag(&repository.name, tag).await?;
            let record = self.hosted_record(&repository.name, &state.digest).await?;
            let tagged = TagRecord {
                tag: tag.clone(),
                state,
                checked_at_ms: 0,
            };
            self.admit_tag_deletion(repository, &tagged, &record)
                .await?;
            let mut events = self.events(repository);
            let content = Told {
                tag: Some(tag),
                ..Told::manifest(&record)
            };
            events.tell(EventKind::TagDeleted, content)?;
            let commit = Commit::DeleteTag {
                repository: repository.name.clone(),
                tag: tag.clone(),
                expected: tagged.state.digest,
                at_ms: self.shared.ports.clock.now_ms(),
                by: self.requester.principal.id.clone(),
            };
            if self.deleted(commit, events.told()).await? {
                return Ok(Outcome::Deleted);
            }
        }
        Err(Error::Conflict)
    }

    /// Deletes a manifest and every tag that names it.
    pub(crate) async fn delete_manifest(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Outcome, Error> {
        self.refuse_when_disabled()?;
        for _round in 0..MAX_ROUNDS {
            let record = self.hosted_record(&repository.name, digest).await?;
            let tags = self.tags_of(repository, digest).await?;
            self.admit(Question {
                repository,
                change: Change::DeleteManifest,
                tag: None,
                content: Content::Manifest(&record, None),
            })
            .await?;
            for tagged in &tags {
                self.admit_tag_deletion(repository, tagged, &record).await?;
            }
            let events = self.deletion_events(repository, &record, &tags)?;
            let commit = Commit::DeleteManifest {
                repository: repository.name.clone(),
                digest: digest.clone(),
                tags: tags.into_iter().map(|tagged| tagged.tag).collect(),
                at_ms: self.shared.ports.clock.now_ms(),
                by: self.requester.principal.id.clone(),
            };
            if self.deleted(commit, events).await? {
                return Ok(Outcome::Deleted);
            }
        }
        Err(Error::Conflict)
    }

    /// Makes a blob unreadable in the repository. One that a manifest of the repository names stays: what protects a tag protects its layers.
    pub(crate) async fn delete_blob(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Outcome, Error> {
        self.refuse_when_disabled()?;
        self.admit_blob_deletion(repository, &digest).await?;
        let mut events = self.events(repository);
        events.tell(EventKind::BlobDeleted, Told::blob(&digest, None))?;
        let commit = Commit::DeleteBlob {
            repository: repository.name.clone(),
            digest: digest.clone(),
        };
        match self.commit(commit, events.told()).await {
            Ok(()) => Ok(Outcome::Deleted),
            Err(error) => Err(Error::from_commit(error, Error::BlobUnknown { digest })),
        }
    }

    /// Asks about a deletion that can happen. The commit refuses the others: of a blob that is missing, or that a manifest names.
    async fn admit_blob_deletion(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Error> {
        let ports = &self.shared.ports;
        if !ports.admission.asks(repository, Change::DeleteBlob) {
            return Ok(());
        }
        let (name, pushed) = (&repository.name, &ContentOrigin::Pushed);
        let Some(size) = ports.metadata.blob(name, pushed, digest).await? else {
            return Ok(());
        };
        if !ports
            .metadata
            .parents(name, pushed, digest)
            .await?
            .is_empty()
        {
            return Ok(());
        }
        let question = Question {
            repository,
            change: Change::DeleteBlob,
            tag: None,
            content: Content::Blob {
                digest,
                size,
                described_in: repository,
            },
        };
        self.admit(question).await.map(drop)
    }

    /// The tags go before the manifest they name.
    fn deletion_events(
        &self,
        repository: &Repository,
        record: &ManifestRecord,
        tags: &[TagRecord],
    ) -> Result<Vec<Event>, Error> {
        let mut events = self.events(repository);
        let content = Told::manifest(record);
        for tagged in tags {
            let tag = Some(&tagged.tag);
            events.tell(EventKind::TagDeleted, Told { tag, ..content })?;
        }
        events.tell(EventKind::ManifestDeleted, content)?;
        Ok(events.told())
    }

    fn refuse_when_disabled(&self) -> Result<(), Error> {
        if self.shared.settings.delete_enabled {
            Ok(())
        } else {
            Err(Error::Unsupported("deleting is disabled here".to_owned()))
        }
    }

    async fn admit_tag_deletion(
        &self,
        repository: &Repository,
        tagged: &TagRecord,
        record: &ManifestRecord,
    ) -> Result<(), Error> {
        refuse_immutable(&tagged.tag, &tagged.state)?;
        let question = Question {
            repository,
            change: Change::DeleteTag,
            tag: Some((&tagged.tag, Some(&tagged.state))),
            content: Content::Manifest(record, None),
        };
        self.admit(question).await.map(drop)
    }

    async fn tags_of(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Vec<TagRecord>, Error> {
        let metadata = &self.shared.ports.metadata;
        let mut all: Vec<TagRecord> = Vec::new();
        loop {
            let page = Page {
                limit: Some(TAGS_PAGE),
                after: all.last().map(|last| last.tag.to_string()),
            };
            let tags = metadata.tags(&repository.name, Some(digest), &page).await?;
            let last = tags.len() < TAGS_PAGE;
            all.extend(tags);
            if last {
                return Ok(all);
            }
        }
    }

    /// Commits a deletion; false when a tag moved and admission has to be asked again.
    async fn deleted(&self, commit: Commit, events: Vec<Event>) -> Result<bool, Error> {
        match self.commit(commit, events).await {
            Ok(()) => Ok(true),
            Err(CommitError::TagMoved { .. }) => Ok(false),
            Err(error) => Err(Error::from_commit(error, Error::ManifestUnknown)),
        }
    }
}
