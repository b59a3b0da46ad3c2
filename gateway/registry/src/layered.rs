//! Names that are pushed here under a mirror's prefix: a repository is wholly its own once something was pushed, and the upstream's before.
//!
//! Owns that question, asked once per read; writes are never the upstream's. Whole repositories, because a tag that is not here must not
//! be looked for elsewhere once its repository is: that is how a stranger's image gets a local name.

use gantry_model::{Operation, Page, Repository, Source};

use crate::{error::Error, registry::Shared};

/// Tags looked at in one go.
const TAGS_PAGE: usize = 1_000;

impl Shared {
    /// The read with its repository hosted or mirrored, whichever it is now.
    pub(crate) async fn settle(&self, mut operation: Operation) -> Result<Operation, Error> {
        let Some(repository) = read_repository(&mut operation) else {
            return Ok(operation);
        };
        if let Source::Layered { mirror, remote } = repository.source.clone() {
            repository.source = if self.was_pushed(repository).await? {
                Source::Hosted
            } else {
                Source::Mirror { mirror, remote }
            };
        }
        Ok(operation)
    }

    /// Whether a tag of the repository was pushed here.
    async fn was_pushed(&self, repository: &Repository) -> Result<bool, Error> {
        let mut after = None;
        loop {
            let page = Page {
                limit: Some(TAGS_PAGE),
                after,
            };
            let tags = self.ports.metadata.tags(&repository.name, None, &page);
            let tags = tags.await?;
            if tags.iter().any(|record| !record.is_cached()) {
                return Ok(true);
            }
            match tags.last() {
                Some(last) if tags.len() == TAGS_PAGE => after = Some(last.tag.to_string()),
                _ => return Ok(false),
            }
        }
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
