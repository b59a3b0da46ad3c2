//! Tells what happened: the events of a change go into its commit, those of a pull to whoever counts pulls.
//!
//! Owns what an event says. Makes nothing when nobody wants to know; knows nothing of receivers.

use gantry_model::{
    Digest, Event, EventKind, MediaType, Repository, RepositoryName, Tag, UploadId,
    event::{Payload, ReferencedContent, shortened},
};
use gantry_storage::{Commit, CommitError, ManifestRecord, ReferenceRecord};

use crate::{error::Error, registry::Call};

/// Manifests that name more than so much content are told without it: an event has to stay small.
const MAX_REFERENCES: usize = 128;

/// What an event is about.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) digest: &'a Digest,
    /// `None` for blobs.
    pub(crate) media_type: Option<&'a MediaType>,
    pub(crate) size: Option<u64>,
    pub(crate) tag: Option<&'a Tag>,
    /// What the tag named before.
    pub(crate) previous: Option<&'a Digest>,
    /// Where a mounted blob came from.
    pub(crate) from: Option<&'a RepositoryName>,
    /// What a pushed manifest names.
    pub(crate) references: &'a [ReferenceRecord],
}

impl<'a> Told<'a> {
    pub(crate) fn manifest(record: &'a ManifestRecord) -> Self {
        Self {
            media_type: Some(&record.media_type),
            ..Self::blob(&record.digest, Some(record.size))
        }
    }

    pub(crate) fn blob(digest: &'a Digest, size: Option<u64>) -> Self {
        Self {
            digest,
            media_type: None,
            size,
            tag: None,
            previous: None,
            from: None,
            references: &[],
        }
    }
}

/// The events of one change, in the order in which they are told.
pub(crate) struct Events<'a> {
    call: &'a Call,
    repository: &'a Repository,
    told: Vec<Event>,
}

impl Events<'_> {
    /// Adds one, when anybody wants to know.
    pub(crate) fn tell(&mut self, kind: EventKind, content: Told<'_>) -> Result<(), Error> {
        if self.call.shared.ports.events.wants(kind) {
            self.told
                .push(self.call.event(kind, self.repository, content)?);
        }
        Ok(())
    }

    pub(crate) fn told(self) -> Vec<Event> {
        self.told
    }
}

impl Call {
    /// Begins to tell of a change in a repository.
    pub(crate) fn events<'a>(&'a self, repository: &'a Repository) -> Events<'a> {
        Events {
            call: self,
            repository,
            told: Vec::new(),
        }
    }

    /// Commits a change with its events: both or neither.
    pub(crate) async fn commit(
        &self,
        commit: Commit,
        events: Vec<Event>,
    ) -> Result<(), CommitError> {
        let ports = &self.shared.ports;
        let tells = !events.is_empty();
        ports.metadata.commit(commit.telling(events)).await?;
        if tells {
            ports.events.committed();
        }
        Ok(())
    }

    /// Tells of a pull, when anybody wants to know of this one.
    pub(crate) fn tell_pull(
        &self,
        repository: &Repository,
        kind: EventKind,
        content: Told<'_>,
    ) -> Result<(), Error> {
        let mut events = self.events(repository);
        events.tell(kind, content)?;
        for event in events.told() {
            self.shared.ports.events.record(event);
        }
        Ok(())
    }

    fn event(
        &self,
        kind: EventKind,
        repository: &Repository,
        content: Told<'_>,
    ) -> Result<Event, Error> {
        Ok(Event {
            id: random_uuid()?,
            kind,
            at_ms: self.shared.ports.clock.now_ms(),
            repository: repository.name.clone(),
            digest: Some(content.digest.clone()),
            tag: content.tag.cloned(),
            actor: self.requester.principal.id.clone(),
            payload: self.payload(repository, content),
        })
    }

    fn payload(&self, repository: &Repository, content: Told<'_>) -> Payload {
        let kind = match content.media_type {
            Some(_) => "manifests",
            None => "blobs",
        };
        let arrival = self.requester.arrival.as_ref();
        let media_type = content.media_type.cloned();
        let media_type = media_type.unwrap_or_else(MediaType::octet_stream);
        let references = match content.references.len() {
            0..=MAX_REFERENCES => content.references,
            _ => &[],
        };
        Payload {
            media_type: Some(media_type.to_string()),
            size: content.size,
            url: arrival.and_then(|arrival| arrival.content_url(repository, kind, content.digest)),
            references: references.iter().map(referenced).collect(),
            from_repository: content.from.map(ToString::to_string),
            previous: content.previous.map(ToString::to_string),
            ..Payload::of(&self.requester)
        }
    }
}

fn referenced(reference: &ReferenceRecord) -> ReferencedContent {
    ReferencedContent {
        media_type: shortened(&reference.media_type.to_string()),
        digest: reference.digest.to_string(),
        size: reference.size,
    }
}

/// A version 4 UUID, for an event's id.
///
/// # Errors
/// [`Error::Internal`] when the system gives no randomness.
pub fn random_uuid() -> Result<String, Error> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|unspecified| Error::Internal {
        source: unspecified.into(),
    })?;
    Ok(UploadId::from_random(bytes).to_string())
}
