//! Names that are pushed here under a mirror's prefix: a repository is wholly its own once a manifest was pushed, and the upstream's before.
//!
//! Owns that question, asked once per read; writes are never the upstream's. Whole repositories, because a tag that is not here must not
//! be looked for elsewhere once its repository is: that is how a stranger's image gets a local name. For good, because the deletion of the last
//! tag is no reason to give the name away: only an operator's release is (`release`).

use gantry_model::{Operation, Repository, Source};

use crate::{error::Error, registry::Shared};

impl Shared {
    /// The read with its repository hosted or mirrored, whichever it is now.
    pub(crate) async fn settle(&self, mut operation: Operation) -> Result<Operation, Error> {
        if let Some(repository) = read_repository(&mut operation)
            && matches!(repository.source, Source::Layered { .. })
        {
            *repository = self.settled(repository.clone()).await?;
        }
        Ok(operation)
    }

    /// The repository as a read of it finds it: hosted or mirrored.
    pub(crate) async fn settled(&self, mut repository: Repository) -> Result<Repository, Error> {
        if let Source::Layered { mirror, remote } = repository.source.clone() {
            let known = self.ports.metadata.repository(&repository.name).await?;
            repository.source = match known.is_some_and(|known| known.claimed) {
                true => Source::Hosted,
                false => Source::Mirror { mirror, remote },
            };
        }
        Ok(repository)
    }
}

/// The repository that a read reads.
fn read_repository(operation: &mut Operation) -> Option<&mut Repository> {
    match operation {
        Operation::PullManifest { repository, .. }
        | Operation::PullBlob { repository, .. }
        | Operation::ListTags { repository, .. }
        | Operation::ListReferrers { repository, .. } => Some(repository),
        Operation::Ping
        | Operation::ListCatalog { .. }
        | Operation::PushManifest { .. }
        | Operation::DeleteManifest { .. }
        | Operation::DeleteTag { .. }
        | Operation::DeleteBlob { .. }
        | Operation::StartUpload { .. }
        | Operation::PushBlob { .. }
        | Operation::MountBlob { .. }
        | Operation::UploadStatus { .. }
        | Operation::AppendChunk { .. }
        | Operation::CommitUpload { .. }
        | Operation::CancelUpload { .. } => None,
    }
}
