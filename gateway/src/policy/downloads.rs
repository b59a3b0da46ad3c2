//! Downloads that run while the configuration changes: judged again by the new one, and ended where it denies them.
//!
//! Owns what a new judgement needs to know of a download, and which answers end it. A failure of a plugin ends nothing: the download is judged
//! again at the next look.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::StreamExt as _;
use gantry_model::{Digest, Operation, Repository, Requester};
use gantry_registry::{Error as RegistryError, ServedBlob};

use super::authorize;
use crate::{
    app::Generation,
    auth::{Identified, revocation::Revocation},
    http::error::Error,
};

/// Downloads judged at once.
const AT_ONCE: usize = 16;

/// A blob on its way to a client.
pub(crate) struct Download {
    revocation: Arc<Revocation>,
    identified: Identified,
    requester: Requester,
    repository: Repository,
    digest: Digest,
    size: Option<u64>,
    /// The number of the generation that allowed it last.
    allowed_by: AtomicU64,
}

impl fmt::Debug for Download {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Download")
            .field("repository", &self.repository.name)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Download {
    /// A blob that the generation allowed.
    pub(crate) fn of(
        generation: &Generation,
        identified: Identified,
        requester: Requester,
        served: &ServedBlob,
    ) -> Arc<Self> {
        Arc::new(Self {
            revocation: Arc::clone(generation.authentication.revocation()),
            identified,
            requester,
            repository: served.repository.clone(),
            digest: served.digest.clone(),
            size: served.size,
            allowed_by: AtomicU64::new(generation.number),
        })
    }

    pub(crate) fn revocation(&self) -> &Arc<Revocation> {
        &self.revocation
    }

    /// Whether a generation before this one allowed it last.
    pub(crate) fn is_older_than(&self, generation: u64) -> bool {
        self.allowed_by.load(Ordering::Relaxed) < generation
    }

    /// Whether the generation denies it. `None`: it cannot tell now.
    async fn is_denied_by(&self, generation: &Generation) -> Option<bool> {
        let operation = Operation::PullBlob {
            repository: self.repository.clone(),
            digest: self.digest.clone(),
            range: None,
            body: true,
        };
        let requester = self.requester.clone();
        let permit = authorize(generation, requester, &self.identified, operation);
        let judged = match permit.await {
            Ok(permit) => generation.registry.judge_download(permit, self.size).await,
            Err(Error::Denied(_) | Error::Unauthorized { .. }) => return Some(true),
            Err(_unknown) => return None,
        };
        match judged {
            Ok(()) => Some(false),
            Err(RegistryError::Denied(_)) => Some(true),
            // Not decided yet, which is not denied.
            Err(RegistryError::Held { .. }) => Some(false),
            Err(_unknown) => None,
        }
    }
}

/// Judges the downloads that generations before this one allowed, and ends those that it denies.
pub(crate) async fn judge_again(revocation: &Revocation, generation: &Generation) {
    let running = revocation.downloads_before(generation.number);
    let judged = futures_util::stream::iter(running).map(|(transfer, download)| async move {
        let is_denied = Box::pin(download.is_denied_by(generation)).await;
        (transfer, download, is_denied)
    });
    let mut judged = std::pin::pin!(judged.buffer_unordered(AT_ONCE));
    while let Some((transfer, download, is_denied)) = judged.next().await {
        match is_denied {
            Some(true) => {
                tracing::info!(
                    request.id = &*download.requester.request_id,
                    principal.subject = download.identified.principal.id,
                    repository.name = %download.repository.name,
                    blob.digest = %download.digest,
                    "the new configuration denies a running download; it ends"
                );
                revocation.end(transfer);
            }
            Some(false) => download
                .allowed_by
                .store(generation.number, Ordering::Relaxed),
            None => {}
        }
    }
}
