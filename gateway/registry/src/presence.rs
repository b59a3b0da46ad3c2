//! Hides what a repository has and what it lacks from a client for which the admission rejects `serve-list`.
//!
//! Owns when the admission is called about that: before a list of tags or referrers, and before a failure that depends on what is stored.
//! Invariant: where it is rejected, missing content, denied content, and content that cannot be fetched now get the same rejection. An
//! upload session is no content: it belongs to a principal, and its status is never hidden.

use std::sync::Arc;

use gantry_model::{Change, Operation, Reference, Repository, Requester};

use crate::{
    admit::{Content, Question},
    error::Error,
    registry::{Call, Shared},
};

/// A read or a deletion whose failure may be hidden.
pub(crate) struct Presence {
    call: Call,
    repository: Repository,
    /// What the client named.
    reference: Option<Reference>,
    is_list: bool,
}

impl Presence {
    /// `None` for an operation that tells nothing of a repository's content, and where no hook listens.
    pub(crate) fn of(
        shared: &Arc<Shared>,
        operation: &Operation,
        requester: &Requester,
    ) -> Option<Box<Self>> {
        let repository = operation.repository()?;
        if !shared.ports.admission.asks(repository, Change::ServeList) {
            return None;
        }
        let (reference, is_list) = named(operation)?;
        Some(Box::new(Self {
            call: Call {
                shared: Arc::clone(shared),
                requester: requester.clone(),
                optional_granted: false,
            },
            repository: repository.clone(),
            reference,
            is_list,
        }))
    }

    /// Before a list: the upstream is not asked for one that may not leave.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) async fn admit_list(&self) -> Result<(), Error> {
        match self.is_list {
            true => self.admit().await,
            false => Ok(()),
        }
    }

    /// The failure that the client may see: the refusal, where `serve-list` is not accepted.
    pub(crate) async fn shown(&self, error: Error) -> Error {
        if self.is_list || !tells_of_content(&error) {
            return error;
        }
        match self.admit().await {
            Ok(()) => error,
            Err(refusal) => {
                tracing::debug!(repository.name = %self.repository.name, hidden = %error, "a rejected list hides this answer");
                refusal
            }
        }
    }

    async fn admit(&self) -> Result<(), Error> {
        let reference = self.reference.as_ref();
        let question = Question {
            repository: &self.repository,
            change: Change::ServeList,
            tag: reference.and_then(Reference::tag).map(|tag| (tag, None)),
            content: Content::Named(reference.and_then(Reference::digest)),
        };
        self.call.admit(question).await.map(drop)
    }
}

/// What the operation names, and whether it is a list.
fn named(operation: &Operation) -> Option<(Option<Reference>, bool)> {
    let reference = match operation {
        Operation::PullManifest { reference, .. } => reference.clone(),
        Operation::DeleteTag { tag, .. } => Reference::Tag(tag.clone()),
        Operation::PullBlob { digest, .. }
        | Operation::DeleteManifest { digest, .. }
        | Operation::DeleteBlob { digest, .. } => Reference::Digest(digest.clone()),
        Operation::ListTags { .. } => return Some((None, true)),
        Operation::ListReferrers { digest, .. } => {
            return Some((Some(Reference::Digest(digest.clone())), true));
        }
        Operation::Ping
        | Operation::ListCatalog { .. }
        | Operation::PushManifest { .. }
        | Operation::StartUpload { .. }
        | Operation::PushBlob { .. }
        | Operation::MountBlob { .. }
        | Operation::UploadStatus { .. }
        | Operation::AppendChunk { .. }
        | Operation::CommitUpload { .. }
        | Operation::CancelUpload { .. } => return None,
    };
    Some((Some(reference), false))
}

/// Whether the failure differs between content that is here and content that is not.
fn tells_of_content(error: &Error) -> bool {
    match error {
        Error::BlobUnknown { .. }
        | Error::ManifestUnknown
        | Error::NameUnknown
        | Error::Denied(_)
        | Error::Held { .. }
        | Error::Unsupported(_)
        | Error::Conflict
        | Error::TooManyRequests { .. }
        | Error::Unavailable { .. }
        | Error::UpstreamLimited { .. }
        | Error::UpstreamRefused { .. }
        | Error::UpstreamInvalid { .. }
        | Error::Internal { .. } => true,
        // Only of content that the hooks accepted, or of a body, which no read and no deletion has.
        Error::RangeUnsatisfiable { .. }
        | Error::BlobUploadUnknown
        | Error::DigestInvalid { .. }
        | Error::SizeInvalid
        | Error::ManifestInvalid(_)
        | Error::ManifestTooLarge { .. }
        | Error::ManifestBlobUnknown { .. }
        | Error::ChunkOutOfOrder(_)
        | Error::Body(_) => false,
    }
}
