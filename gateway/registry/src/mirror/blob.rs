//! Blobs of mirrored repositories: what is here, who may have it, and when to start a fill.
//!
//! Owns the rule that content which is here for one repository is not thereby readable in another: the other must name it in a
//! manifest of its own, or its upstream must say that it has it (CVE-2024-39897 is what happens otherwise). Where upstreams decide who may
//! read, only the latter counts.

use std::sync::Arc;

use gantry_model::{AdmissionRequest, Change, Descriptor, Digest, Manifest, MediaType, Requester};
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
        if self.is_named(origin, digest).await? {
            let agreed = self.sizes(origin, digest).await?.agreed;
            if agreed.is_some() {
                return Ok(agreed);
            }
        }
        let key = (origin.name().clone(), digest.clone());
        let (upstream, remote) = (Arc::clone(&origin.settings.upstream), origin.remote.clone());
        let asked = digest.clone();
        let span = tracing::info_span!(parent: None, "stat_blob", repository.name = %key.0, blob.digest = %digest);
        self.running
            .stats
            .run(key, span, || async move {
                Ok(upstream.stat_blob(&remote, &asked).await?)
            })
            .await
    }

    /// The published blob, when this repository is known to hold it.
    async fn linked(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Arc<dyn Blob>>, Failure> {
        let name = origin.name();
        if self.metadata.blob(name, digest).await?.is_none() {
            return Ok(None);
        }
        Ok(self.blobs.open(digest).await?)
    }

    /// The published blob, when this repository holds it or proves that it does; proven content is linked without being fetched.
    pub(super) async fn held(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Arc<dyn Blob>>, Failure> {
        let Some(blob) = self.blobs.open(digest).await? else {
            return Ok(None);
        };
        let name = origin.name();
        if self.metadata.blob(name, digest).await?.is_some() {
            return Ok(Some(blob));
        }
        if !origin.settings.names_prove || !self.is_named(origin, digest).await? {
            let upstream = &origin.settings.upstream;
            let _size = upstream.stat_blob(&origin.remote, digest).await?;
        }
        match self.link(origin, digest, blob.size()).await {
            // It is proven, so a database without space costs the next caller another proof, not this one its bytes.
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
            digest: digest.clone(),
            size,
            upload: None,
        };
        Ok(self.metadata.commit(link).await?)
    }

    pub(super) async fn sizes(&self, origin: &Origin, digest: &Digest) -> Result<Sizes, Failure> {
        let name = origin.name();
        let parents = self.metadata.parents(name, digest).await?;
        let most = parents.iter().map(|(_, reference)| reference.size).max();
        let least = parents.iter().map(|(_, reference)| reference.size).min();
        Ok(Sizes {
            agreed: most.filter(|_| most == least),
            most,
        })
    }

    /// Whether a manifest of this repository names the content as its own. A layer with `urls` is not: registries accept manifests
    /// that name such layers without having them, so anybody may name any digest there.
    async fn is_named(&self, origin: &Origin, digest: &Digest) -> Result<bool, Failure> {
        let name = origin.name();
        for (parent, _) in self.metadata.parents(name, digest).await? {
            let Some((record, bytes)) = self.local_manifest(origin, &parent).await? else {
                continue;
            };
            let Ok(manifest) = Manifest::parse(Some(&record.media_type), &bytes) else {
                continue;
            };
            let own = |descriptor: &Descriptor| descriptor.digest == *digest;
            if manifest.required_blobs().any(own) || manifest.manifests.iter().any(own) {
                return Ok(true);
            }
        }
        Ok(false)
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
        let name = origin.name();
        let parents = self.metadata.parents(name, digest).await?;
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
            target,
            manifest: None,
            parents: naming(parents, Named::Blob),
            version: None,
        };
        let admitted = self.admission.admit(request).await;
        admitted
            .map(drop)
            .map_err(|refusal| Failure::Policy(Box::new(refusal)))
    }
}
