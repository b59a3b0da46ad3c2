//! Gives a claimed name back to its upstream, on an operator's order.
//!
//! Owns when that is possible. What was pushed goes with the claim: under the upstream's name it would be a stranger's image again.

use gantry_model::{Denial, DenialCode, Repository, Source};
use gantry_storage::{Commit, CommitError};

use crate::{error::Error, registry::Registry};

impl Registry {
    /// Takes out everything that was pushed to a repository below `or_upstream`, so that its reads are the upstream's again.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the repository has no upstream, [`Error::NameUnknown`] when nothing was pushed, [`Error::Denied`] when a
    /// pushed tag is immutable.
    pub async fn release(&self, repository: &Repository, by: &str) -> Result<(), Error> {
        let Source::Layered { .. } = &repository.source else {
            return Err(Error::Unsupported(format!(
                "{} is not below `hosted.or_upstream`: there is no upstream to give it back to",
                repository.name
            )));
        };
        let ports = &self.shared.ports;
        let release = Commit::ReleaseRepository {
            repository: repository.name.clone(),
            at_ms: ports.clock.now_ms(),
            by: by.to_owned(),
        };
        match ports.metadata.commit(release).await {
            Err(CommitError::TagMoved { tag, .. }) => {
                let message = format!("tag {tag} is immutable");
                let denial = Denial::new(DenialCode::Denied, "immutable", message);
                Err(Error::Denied(Box::new(denial)))
            }
            released => released.map_err(|error| Error::from_commit(error, Error::NameUnknown)),
        }
    }
}
