//! HEAD of a blob before a push: a blob that the client may not read is absent for a client that may push, so that it uploads the blob.
//!
//! Owns when that question arises: only where the admission refused the HEAD. A blob that the client uploaded or mounted itself is here, so that
//! its push can go on; docker looks after each upload. The refusal stands when the client has pushed an image with it, which is then denied.

use gantry_model::{Digest, Operation, Repository, Requester, Source};
use gantry_registry::{Error as RegistryError, Outcome, Registry};

use super::error::Error;
use crate::{app::Generation, auth::Identified, policy};

/// A HEAD of a blob in a repository that takes pushes.
#[derive(Debug)]
pub(super) struct Probe {
    repository: Repository,
    digest: Digest,
}

impl Probe {
    /// `None` where no admission may refuse the operation, or it is another one.
    pub(super) fn of(registry: &Registry, operation: &Operation) -> Option<Self> {
        let Operation::PullBlob {
            repository,
            digest,
            body: false,
            ..
        } = operation
        else {
            return None;
        };
        let takes_pushes = !matches!(repository.source, Source::Mirror { .. });
        (takes_pushes && registry.judges_blobs(repository)).then(|| Self {
            repository: repository.clone(),
            digest: digest.clone(),
        })
    }

    /// The answer to a client that may push; the refusal to any other.
    pub(super) async fn answer(
        self,
        generation: &Generation,
        requester: Requester,
        identified: &Identified,
        refusal: RegistryError,
    ) -> Result<Outcome, Error> {
        if !matches!(
            refusal,
            RegistryError::Denied(_) | RegistryError::Held { .. }
        ) {
            return Err(refusal.into());
        }
        let upload = Operation::StartUpload {
            repository: self.repository,
            algorithm: self.digest.algorithm(),
        };
        let Ok(permit) = policy::authorize(generation, requester, identified, upload).await else {
            return Err(refusal.into());
        };
        let own = generation.registry.stat_own(permit, self.digest).await?;
        own.ok_or_else(|| refusal.into())
    }
}
