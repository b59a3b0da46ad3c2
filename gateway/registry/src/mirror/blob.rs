//! Blobs of mirrored repositories: what is here, who may have it, and when to start a fill.
//!
//! Owns the rule of possession: a repository answers from bytes that are here only when its own upstream delivered them. Delivered to this
//! repository, they are its own. Delivered to another repository of the same upstream, the upstream's HEAD for this one decides, with the
//! length. Anything else, such as a push to a hosted repository or another mirror's fill, says nothing (CVE-2024-39897): the blob is fetched
//! in full. Invariant: a name in a manifest, a HEAD alone, or a length is never possession.

use std::sync::Arc;

use gantry_model::{AdmissionRequest, Change, Descriptor, Digest, MediaType, Requester, Version};
use gantry_storage::{Blob, Commit, Named, naming};

use super::{
    CacheContent, CacheOutcome, Engine, MirroredBlob, MirroredContent, Origin, failure::Failure,
};

/// What the manifests of a repository say about the length of a blob.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sizes {
    /// When they all say the same.
    pub(super) agreed: Option<u64>,
    /// The largest.
    pub(super) most: Option<u64>,
}

impl Engine {
    /// The blob's content: published, or a fill that has its first bytes.
    pub(super) async fn blob(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<MirroredBlob, Failure> {
        if let Some(blob) = self.linked(origin, digest).await? {
            origin.count(CacheContent::Blob, CacheOutcome::Hit);
            return Ok(MirroredBlob::published(blob));
        }
        self.admit_blob(origin, digest, requester).await?;
        let fill = self.join_or_start(origin, digest);
        if fill.ready().await?
            && let Some(blob) = self.blobs.open(digest).await?
        {
            return Ok(MirroredBlob::published(blob));
        }
        Ok(MirroredBlob {
            size: fill.known_size(),
            content: MirroredContent::Filling(fill),
        })
    }

    /// The blob's length, without fetching it; `None` when it exists and nobody says how long it is.
    pub(super) async fn stat_blob(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<u64>, Failure> {
        // In this order: a fill leaves the table after it is linked, and a client may ask when it has the last byte.
        if let Some(size) = self.filling_size(origin, digest) {
            return Ok(Some(size));
        }
        if let Some(blob) = self.linked(origin, digest).await? {
            return Ok(Some(blob.size()));
        }
        self.upstream_size(origin, digest).await
    }

    /// As [`Engine::stat_blob`], for a blob whose read follows: what the repository's manifests agree on saves the question.
    pub(super) async fn expected_size(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<u64>, Failure> {
        if let Some(size) = self.filling_size(origin, digest) {
            return Ok(Some(size));
        }
        if let Some(blob) = self.linked(origin, digest).await? {
            return Ok(Some(blob.size()));
        }
        match self.sizes(origin, digest).await?.agreed {
            Some(size) => Ok(Some(size)),
            None => self.upstream_size(origin, digest).await,
        }
    }

    /// What the upstream says of the blob's length in this repository.
    async fn upstream_size(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<u64>, Failure> {
        let key = (origin.place(), digest.clone());
        let (upstream, remote) = (Arc::clone(&origin.settings.upstream), origin.remote.clone());
        let asked = digest.clone();
        let span = tracing::info_span!(parent: None, "stat_blob", repository.name = %origin.name(), blob.digest = %digest);
        self.running
            .stats
            .run(key, span, || async move {
                Ok(upstream.stat_blob(&remote, &asked).await?)
            })
            .await
    }

    /// The published blob, when this repository's upstream delivered it to this repository.
    async fn linked(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Arc<dyn Blob>>, Failure> {
        let (name, content) = (origin.name(), origin.content());
        if self.metadata.blob(name, content, digest).await?.is_none() {
            return Ok(None);
        }
        Ok(self.blobs.open(digest).await?)
    }

    /// The published blob, when its bytes need not be fetched: this repository's upstream delivered them to it, or to another repository, and
    /// says of the same length that this one has them too. Then they are linked.
    pub(super) async fn held(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Arc<dyn Blob>>, Failure> {
        let Some(blob) = self.blobs.open(digest).await? else {
            return Ok(None);
        };
        let (name, content) = (origin.name(), origin.content());
        if self.metadata.blob(name, content, digest).await?.is_some() {
            return Ok(Some(blob));
        }
        if self.metadata.delivered(content, digest).await? != Some(blob.size()) {
            return Ok(None);
        }
        let upstream = &origin.settings.upstream;
        let said = upstream.stat_blob(&origin.remote, digest).await?;
        if said != Some(blob.size()) {
            return Ok(None);
        }
        match self.link(origin, digest, blob.size()).await {
            // The upstream said so, so a database without space costs the next caller another question, not this one its bytes.
            Err(failure @ Failure::Full(_)) => self.store_is_full(&failure),
            linked => linked?,
        }
        Ok(Some(blob))
    }

    pub(super) async fn link(
        &self,
        origin: &Origin,
        digest: &Digest,
        size: u64,
    ) -> Result<(), Failure> {
        let link = Commit::LinkBlob {
            repository: origin.name().clone(),
            origin: origin.content().clone(),
            digest: digest.clone(),
            size,
            upload: None,
            principal: None,
        };
        Ok(self.metadata.commit(link).await?)
    }

    pub(super) async fn sizes(&self, origin: &Origin, digest: &Digest) -> Result<Sizes, Failure> {
        let (name, content) = (origin.name(), origin.content());
        let parents = self.metadata.parents(name, content, digest).await?;
        // A mention says nothing of the length.
        let said = parents.iter().filter(|(_, it)| it.named != Named::Mention);
        let most = said.clone().map(|(_, reference)| reference.size).max();
        let least = said.map(|(_, reference)| reference.size).min();
        Ok(Sizes {
            agreed: most.filter(|_| most == least),
            most,
        })
    }

    /// Asks the admission hooks before an upstream's blob enters this repository. Every caller is asked for, so that one who may
    /// not cause a fill gets nothing from somebody else's.
    pub(super) async fn admit_blob(
        &self,
        origin: &Origin,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<(), Failure> {
        if !self.admission.asks(&origin.repository, Change::Fill) {
            return Ok(());
        }
        let (name, content) = (origin.name(), origin.content());
        let parents = self.metadata.parents(name, content, digest).await?;
        let own = parents
            .iter()
            .find(|(_, reference)| reference.named == Named::Blob);
        let target = match own {
            Some((_, named)) => {
                Descriptor::new(named.media_type.clone(), digest.clone(), named.size)
            }
            None => Descriptor::new(MediaType::octet_stream(), digest.clone(), 0),
        };
        let request = AdmissionRequest {
            requester: requester.clone(),
            repository: origin.repository.clone(),
            change: Change::Fill,
            tag: None,
            previous: None,
            target: Some(target),
            manifest: None,
            parents: naming(parents, Named::Blob),
            version: Version::Unknown,
        };
        let admitted = self.admission.admit(request).await;
        admitted
            .map(drop)
            .map_err(|refusal| Failure::Policy(Box::new(refusal)))
    }
}
