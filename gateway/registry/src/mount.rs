//! Mounts a blob of another repository without transfer, or opens an upload for it.
//!
//! Invariant: what the principal could not pull from the source, whether by scope, by serve admission or because the source does not have
//! it by its own origin, is not mounted from it.

use gantry_model::{Change, Digest, Repository};

use crate::{
    admit::{Content, Question},
    error::Error,
    outcome::Outcome,
    registry::Call,
    upload::Came,
};

impl Call {
    /// Links the blob when it can be read at the source; otherwise opens an upload (distribution-spec, "Mounting a blob from another
    /// repository"). Only a refusal by the mount's own admission is an error.
    pub(crate) async fn mount_blob(
        &self,
        repository: Repository,
        digest: Digest,
        from: Option<Repository>,
    ) -> Result<Outcome, Error> {
        let _lease = self.shared.ports.leases.take(&digest).await;
        let source = match from {
            Some(from) if self.optional_granted => {
                let from = self.shared.settled(from).await?;
                let size = self.readable_size(&from, &digest).await?;
                size.map(|size| (from, size))
            }
            Some(_) | None => None,
        };
        let Some((from, size)) = source else {
            return self.start_upload(repository, digest.algorithm()).await;
        };
        self.admit(Question {
            repository: &repository,
            change: Change::Mount,
            tag: None,
            content: Content::Blob {
                digest: &digest,
                size,
                described_in: &from,
            },
        })
        .await?;
        self.link(&repository, &digest, size, Came::From(&from))
            .await
    }

    /// The length of a blob that the principal could pull from `from` right now.
    async fn readable_size(
        &self,
        from: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let ports = &self.shared.ports;
        // Whoever pulled it a moment ago has its last byte before it is linked.
        self.shared.mirrors.published(from, digest).await;
        let origin = self.shared.mirrors.content_origin(from)?;
        let linked = ports.metadata.blob(&from.name, &origin, digest).await?;
        let Some(size) = linked else {
            return Ok(None);
        };
        if ports.blobs.stat(digest).await? != Some(size) {
            return Ok(None);
        }
        let served = self.admit(Question {
            repository: from,
            change: Change::ServeBlob,
            tag: None,
            content: Content::Blob {
                digest,
                size,
                described_in: from,
            },
        });
        match served.await {
            Ok(_admitted) => Ok(Some(size)),
            Err(Error::Denied(_) | Error::Held { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
