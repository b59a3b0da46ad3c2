//! Uploads a blob: sessions that take it in chunks, and the single request that carries the whole.
//!
//! Owns the order of a session's steps: one writer at a time, a chunk only where the last one ended, bytes handed to the operating
//! system before they are acknowledged, the link only after the bytes are published under their verified digest.
//! Invariant: a session answers only the principal that opened it, in the repository it was opened in.

pub(crate) mod session;
mod sweep;

use gantry_model::{Algorithm, ContentRange, Digest, EventKind, Repository, UploadId};
use gantry_storage::{BlobWriter, Commit, ContentOrigin, Kind, StorageError};

use self::session::Turn;
use crate::{
    body::{Body, BodyError},
    error::Error,
    events::Told,
    outcome::{Outcome, UploadState},
    registry::Call,
    staging::publish_error,
};

/// How a blob came to a repository.
#[derive(Clone, Copy)]
pub(crate) enum Came<'a> {
    /// In one request.
    Whole,
    /// By a session, which ends with the link.
    InSession(UploadId),
    /// From another repository.
    From(&'a Repository),
}

/// A chunk that did not arrive as it should.
enum ChunkError {
    /// The client's: what arrived is good, and the session goes on.
    Body(BodyError),
    /// The client's: the chunk is not what its range said, and its bytes cannot be taken back.
    Length,
    /// The store's: what it holds has to be read again.
    Storage(StorageError),
}

impl Call {
    /// Opens a session.
    pub(crate) async fn start_upload(
        &self,
        repository: Repository,
        algorithm: Algorithm,
    ) -> Result<Outcome, Error> {
        let upload = self.open_session(&repository.name, algorithm).await?;
        Ok(Outcome::UploadAccepted(UploadState {
            repository,
            upload,
            received: 0,
        }))
    }

    /// How far a session is. While a chunk arrives, that is what was acknowledged before it.
    pub(crate) async fn upload_status(
        &self,
        repository: Repository,
        upload: UploadId,
    ) -> Result<Outcome, Error> {
        let session = self.find_session(&repository.name, upload).await?;
        if let Some(turn) = Turn::take(&session) {
            let writer = self.open_writer(&turn).await?;
            self.park(&turn, writer);
        }
        Ok(Outcome::UploadStatus(UploadState {
            repository,
            upload,
            received: session.received(),
        }))
    }

    /// Appends a chunk.
    pub(crate) async fn append_chunk(
        &self,
        repository: Repository,
        upload: UploadId,
        range: Option<ContentRange>,
        body: Body,
    ) -> Result<Outcome, Error> {
        let (turn, writer) = self.continue_session(&repository, upload).await?;
        let writer = self.append(&turn, writer, &repository, range, body).await?;
        self.park(&turn, writer);
        Ok(Outcome::UploadAccepted(UploadState {
            repository,
            upload,
            received: turn.received(),
        }))
    }

    /// Appends the last chunk, verifies the whole and links it.
    pub(crate) async fn commit_upload(
        &self,
        repository: Repository,
        upload: UploadId,
        digest: Digest,
        range: Option<ContentRange>,
        body: Body,
    ) -> Result<Outcome, Error> {
        let (turn, writer) = self.continue_session(&repository, upload).await?;
        let writer = self.append(&turn, writer, &repository, range, body).await?;
        let _lease = self.shared.ports.leases.take(&digest).await;
        let size = match writer.commit(&digest).await {
            Ok(size) => size,
            Err(error) => {
                // The client does not know which of its bytes are wrong; a new session is the only way on.
                self.shared.drop_session(&turn).await;
                return Err(publish_error(error));
            }
        };
        let linked = self
            .link(&repository, &digest, size, Came::InSession(upload))
            .await;
        match &linked {
            Ok(_) => self.shared.uploads.forget(upload),
            Err(_) => self.shared.drop_session(&turn).await,
        }
        linked
    }

    /// Drops a session and its bytes.
    pub(crate) async fn cancel_upload(
        &self,
        repository: &Repository,
        upload: UploadId,
    ) -> Result<Outcome, Error> {
        let session = self.find_session(&repository.name, upload).await?;
        let turn = Turn::take(&session).ok_or(Error::Conflict)?;
        self.shared.end_session(&turn).await?;
        Ok(Outcome::UploadCancelled)
    }

    /// Takes a blob in one request.
    pub(crate) async fn push_blob(
        &self,
        repository: Repository,
        digest: Digest,
        body: Body,
    ) -> Result<Outcome, Error> {
        let _lease = self.shared.ports.leases.take(&digest).await;
        let size = self.shared.publish(&digest, body).await?;
        self.link(&repository, &digest, size, Came::Whole).await
    }

    /// Makes a published blob readable in a repository, and closes the session it came by.
    pub(crate) async fn link(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: u64,
        came: Came<'_>,
    ) -> Result<Outcome, Error> {
        let mut events = self.events(repository);
        let content = Told::blob(digest, Some(size));
        let (upload, kind, from) = match came {
            Came::Whole => (None, EventKind::BlobPushed, None),
            Came::InSession(upload) => (Some(upload), EventKind::BlobPushed, None),
            Came::From(source) => (None, EventKind::BlobMounted, Some(&source.name)),
        };
        events.tell(kind, Told { from, ..content })?;
        let commit = Commit::LinkBlob {
            repository: repository.name.clone(),
            origin: ContentOrigin::Pushed,
            digest: digest.clone(),
            size,
            upload,
            principal: Some(self.requester.principal.id.clone()),
        };
        match self.commit(commit, events.told()).await {
            Ok(()) => Ok(Outcome::BlobPushed {
                repository: repository.clone(),
                digest: digest.clone(),
            }),
            Err(error) => Err(Error::from_commit(error, Error::BlobUploadUnknown)),
        }
    }

    async fn continue_session(
        &self,
        repository: &Repository,
        upload: UploadId,
    ) -> Result<(Turn, Box<dyn BlobWriter>), Error> {
        let session = self.find_session(&repository.name, upload).await?;
        let turn = Turn::take(&session).ok_or(Error::Conflict)?;
        let writer = self.open_writer(&turn).await?;
        Ok((turn, writer))
    }

    /// Appends a body where the upload stands and gives the writer back; on an error the session is left as that error says.
    async fn append(
        &self,
        turn: &Turn,
        mut writer: Box<dyn BlobWriter>,
        repository: &Repository,
        range: Option<ContentRange>,
        body: Body,
    ) -> Result<Box<dyn BlobWriter>, Error> {
        if let Some(error) = refuse_chunk(writer.written(), range, &body) {
            self.park(turn, writer);
            return Err(match error {
                Misplaced::Start => Error::ChunkOutOfOrder(Box::new(UploadState {
                    repository: repository.clone(),
                    upload: turn.upload(),
                    received: turn.received(),
                })),
                Misplaced::Length => Error::SizeInvalid,
            });
        }
        match write_chunk(&mut *writer, range, body).await {
            Ok(()) => Ok(writer),
            Err(ChunkError::Body(error)) => {
                self.park(turn, writer);
                Err(error.into())
            }
            Err(ChunkError::Length) => {
                drop(writer);
                self.shared.drop_session(turn).await;
                Err(Error::SizeInvalid)
            }
            Err(ChunkError::Storage(error)) => {
                drop(writer);
                // A full disk gets its space back at once; after any other failure the staging file is read again.
                if error.kind() == Kind::Full {
                    self.shared.drop_session(turn).await;
                }
                Err(error.into())
            }
        }
    }
}

/// A chunk that can be refused before a byte of it is read.
enum Misplaced {
    Start,
    Length,
}

fn refuse_chunk(written: u64, range: Option<ContentRange>, body: &Body) -> Option<Misplaced> {
    let range = range?;
    if range.first != written {
        return Some(Misplaced::Start);
    }
    let declared = body.length()?;
    (declared != range.length()).then_some(Misplaced::Length)
}

/// Writes a body to its end and hands it to the operating system, so that what is acknowledged, or what arrived before the client
/// went away, is still there after a restart.
async fn write_chunk(
    writer: &mut dyn BlobWriter,
    range: Option<ContentRange>,
    mut body: Body,
) -> Result<(), ChunkError> {
    let mut expected = range.map(ContentRange::length);
    let mut ended = Ok(());
    while let Some(bytes) = body.next().await {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                ended = Err(ChunkError::Body(error));
                break;
            }
        };
        if let Some(left) = &mut expected {
            *left = left
                .checked_sub(bytes.len() as u64)
                .ok_or(ChunkError::Length)?;
        }
        writer.write(bytes).await.map_err(ChunkError::Storage)?;
    }
    writer.flush().await.map_err(ChunkError::Storage)?;
    ended?;
    match expected {
        Some(left) if left > 0 => Err(ChunkError::Length),
        Some(_) | None => Ok(()),
    }
}
