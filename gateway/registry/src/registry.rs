//! The registry: one struct, one entry, one line per operation.
//!
//! Owns the dispatch and what holds for every operation: a mirrored repository is never written, and a write runs to its end
//! even when the client that asked for it goes away.

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use gantry_model::{Change, Digest, Operation, OperationKind, Permit, Repository, Requester};
use moka::sync::Cache;
use tracing::Instrument as _;

use crate::{
    body::Body,
    error::Error,
    mirror::Mirrors,
    outcome::Outcome,
    ports::{Admission, MirrorSettings, Ports, Settings},
    presence::Presence,
    staging::TrackedStore,
    upload::session::Uploads,
};

/// The domain behind its ports. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) shared: Arc<Shared>,
}

/// What is under way, and what was done since the process started. Metric names are the binary's business.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct RegistryStats {
    /// Upload sessions open, as far as this process has seen them.
    pub uploads_open: u64,
    /// Fills under way.
    pub fills_running: u64,
    /// Bytes written to the blob store, by pushes and fills.
    pub blob_bytes_written: u64,
}

/// What every operation needs.
pub(crate) struct Shared {
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    /// The store of `ports`, which also knows the staging files that are being written.
    pub(crate) staging: Arc<TrackedStore>,
    pub(crate) uploads: Arc<Uploads>,
    pub(crate) mirrors: Mirrors,
    /// Verified bytes of manifests. Never asked whether a manifest exists.
    pub(crate) manifests: Cache<Digest, Bytes>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shared")
            .field("ports", &self.ports)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// One permitted request. The families of operations are its methods.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) requester: Requester,
    /// Whether the operation's optional scope was granted: the right to read a mount's source.
    pub(crate) optional_granted: bool,
}

impl Registry {
    /// Makes a registry on its ports.
    #[must_use]
    pub fn new(mut ports: Ports, settings: Settings) -> Self {
        let staging = Arc::new(TrackedStore::new(Arc::clone(&ports.blobs)));
        ports.blobs = Arc::clone(&staging) as _;
        let manifests = Cache::builder()
            .max_capacity(settings.manifest_cache_bytes)
            .weigher(|_digest, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            .build();
        let shared = Shared {
            mirrors: Mirrors::new(&ports, &settings),
            uploads: Arc::new(Uploads::new()),
            manifests,
            staging,
            settings,
            ports,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The same registry under another configuration: stores, open uploads, fills and caches are shared, admission, mirrors and settings
    /// are the new ones. What is under way keeps to the configuration it began with.
    #[must_use]
    pub fn reconfigured(
        &self,
        admission: Arc<dyn Admission>,
        mirrors: HashMap<Arc<str>, MirrorSettings>,
        settings: Settings,
    ) -> Self {
        let shared = &self.shared;
        let ports = Ports {
            admission,
            mirrors,
            ..shared.ports.clone()
        };
        let shared = Shared {
            mirrors: shared.mirrors.reconfigured(&ports, &settings),
            uploads: Arc::clone(&shared.uploads),
            manifests: shared.manifests.clone(),
            staging: Arc::clone(&shared.staging),
            settings,
            ports,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Whether the metadata store answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Internal`] when it does not.
    pub async fn check(&self) -> Result<(), Error> {
        let page = gantry_model::Page {
            limit: Some(1),
            after: None,
        };
        self.shared.ports.metadata.repositories(&page).await?;
        Ok(())
    }

    /// Plain numbers of what is under way.
    #[must_use]
    pub fn stats(&self) -> RegistryStats {
        RegistryStats {
            uploads_open: self.shared.uploads.open_count() as u64,
            fills_running: self.shared.mirrors.fill_count() as u64,
            blob_bytes_written: self.shared.staging.written_bytes(),
        }
    }

    /// Judges a download that another configuration began: whether this one's admission lets the blob of `permit` leave. Other operations are
    /// never denied.
    ///
    /// # Errors
    /// [`Error::Denied`] or [`Error::Held`]; another one when it is not known.
    pub async fn judge_download(&self, permit: Permit, size: Option<u64>) -> Result<(), Error> {
        let (operation, requester, _granted) = permit.into_parts();
        let Operation::PullBlob {
            repository, digest, ..
        } = operation
        else {
            return Ok(());
        };
        let call = Call {
            shared: Arc::clone(&self.shared),
            requester,
            optional_granted: false,
        };
        Box::pin(call.judge_download(repository, &digest, size)).await
    }

    /// Whether the admission may refuse reads of the repository's blobs.
    #[must_use]
    pub fn judges_blobs(&self, repository: &Repository) -> bool {
        let admission = &self.shared.ports.admission;
        let mut serves = [Change::ServeBlob, Change::ServeList].into_iter();
        serves.any(|change| admission.asks(repository, change))
    }

    /// The headers of a blob that the principal uploaded or mounted itself for an image that it has not pushed yet, for a permit to upload to its
    /// repository. No admission is asked. `None`: the principal pushed an image that names the blob.
    ///
    /// # Errors
    /// [`Error::BlobUnknown`] for a blob that is not the principal's.
    pub async fn stat_own(&self, permit: Permit, digest: Digest) -> Result<Option<Outcome>, Error> {
        let (operation, requester, _granted) = permit.into_parts();
        let Operation::StartUpload { repository, .. } = operation else {
            return Err(Error::BlobUnknown { digest });
        };
        let call = Call {
            shared: Arc::clone(&self.shared),
            requester,
            optional_granted: false,
        };
        Box::pin(call.stat_own(repository, digest)).await
    }

    /// Performs what `permit` allows.
    ///
    /// # Errors
    /// [`Error`], in the words of the distribution spec.
    pub async fn perform(&self, permit: Permit, body: Body) -> Result<Outcome, Error> {
        let writes = is_write(permit.operation().kind());
        if let Some(repository) = permit.operation().repository().filter(|_| writes) {
            refuse_mirrored(repository)?;
        }
        let optional = permit.operation().optional_scope();
        let optional_granted = optional.is_some_and(|scope| permit.allows(&scope));
        let (operation, requester, _granted) = permit.into_parts();
        let operation = if writes {
            operation
        } else {
            self.shared.settle(operation).await?
        };
        let call = Call {
            shared: Arc::clone(&self.shared),
            requester,
            optional_granted,
        };
        let presence = Presence::of(&self.shared, &operation, &call.requester);
        if let Some(presence) = &presence {
            Box::pin(presence.admit_list()).await?;
        }
        let outcome = match operation {
            // The commonest by far: in its own room, which is a fraction of what the largest operation takes.
            Operation::PullManifest {
                repository,
                reference,
                body: wanted,
                accepts,
            } => Box::pin(call.pull_manifest(repository, &reference, &accepts, wanted)).await,
            operation if writes => {
                let call = Box::pin(call.run(operation, body));
                run_to_its_end(call).await
            }
            operation => Box::pin(call.run(operation, body)).await,
        };
        match (outcome, presence) {
            (Err(error), Some(presence)) => Err(Box::pin(presence.shown(error)).await),
            (outcome, _) => outcome,
        }
    }
}

impl Call {
    #[expect(clippy::too_many_lines, reason = "one flat arm per operation")]
    async fn run(self, operation: Operation, body: Body) -> Result<Outcome, Error> {
        match operation {
            Operation::Ping => Ok(Outcome::Alive),
            Operation::ListCatalog { page } => self.list_catalog(page).await,
            Operation::PullManifest {
                repository,
                reference,
                body: wanted,
                accepts,
            } => {
                self.pull_manifest(repository, &reference, &accepts, wanted)
                    .await
            }
            Operation::PushManifest {
                repository,
                reference,
                tags,
                media_type,
            } => {
                self.push_manifest(repository, reference, tags, media_type, body)
                    .await
            }
            Operation::DeleteManifest { repository, digest } => {
                self.delete_manifest(&repository, &digest).await
            }
            Operation::DeleteTag { repository, tag } => self.delete_tag(&repository, &tag).await,
            Operation::PullBlob {
                repository,
                digest,
                range,
                body: wanted,
            } => self.pull_blob(repository, digest, range, wanted).await,
            Operation::DeleteBlob { repository, digest } => {
                self.delete_blob(&repository, digest).await
            }
            Operation::StartUpload {
                repository,
                algorithm,
            } => self.start_upload(repository, algorithm).await,
            Operation::PushBlob { repository, digest } => {
                self.push_blob(repository, digest, body).await
            }
            Operation::MountBlob {
                repository,
                digest,
                from,
            } => self.mount_blob(repository, digest, from).await,
            Operation::UploadStatus { repository, upload } => {
                self.upload_status(repository, upload).await
            }
            Operation::AppendChunk {
                repository,
                upload,
                range,
            } => self.append_chunk(repository, upload, range, body).await,
            Operation::CommitUpload {
                repository,
                upload,
                digest,
                range,
            } => {
                self.commit_upload(repository, upload, digest, range, body)
                    .await
            }
            Operation::CancelUpload { repository, upload } => {
                self.cancel_upload(&repository, upload).await
            }
            Operation::ListTags { repository, page } => self.list_tags(repository, page).await,
            Operation::ListReferrers {
                repository,
                digest,
                artifact_type,
                page,
            } => {
                let filter = artifact_type;
                self.list_referrers(repository, digest, filter, page).await
            }
        }
    }
}

fn is_write(kind: OperationKind) -> bool {
    match kind {
        OperationKind::PushManifest
        | OperationKind::DeleteManifest
        | OperationKind::DeleteTag
        | OperationKind::PushBlob
        | OperationKind::MountBlob
        | OperationKind::DeleteBlob => true,
        OperationKind::Ping
        | OperationKind::Catalog
        | OperationKind::ListTags
        | OperationKind::ListReferrers
        | OperationKind::PullManifest
        | OperationKind::PullBlob
        | OperationKind::Token
        | OperationKind::Admin => false,
    }
}

fn refuse_mirrored(repository: &Repository) -> Result<(), Error> {
    match repository.mirror() {
        None => Ok(()),
        Some(mirror) => Err(Error::Unsupported(format!(
            "{} is a mirror of {mirror}; push to a hosted name instead",
            repository.name
        ))),
    }
}

/// Runs a write in a task of its own: a client that goes away ends its body, never a step between two stores.
async fn run_to_its_end(
    write: impl Future<Output = Result<Outcome, Error>> + Send + 'static,
) -> Result<Outcome, Error> {
    let task = tokio::spawn(write.instrument(tracing::Span::current()));
    task.await.unwrap_or_else(|failed| {
        Err(Error::Internal {
            source: failed.into(),
        })
    })
}
