//! Pulls: manifests by tag or digest, blobs and parts of them, and their headers.
//!
//! Owns the order in which a pull happens: find, ask the serve admission, only then open or fetch what leaves. Hosted and mirrored
//! repositories differ in the finding alone.
//! Invariant: nothing is handed out, not even headers, before the admission accepted it.

use std::ops::RangeInclusive;

use bytes::{Bytes, BytesMut};
use gantry_model::{
    AcceptedTypes, Admitted, ByteRange, Change, Digest, EventKind, Reference, Repository,
    RepositoryName, Source, Tag, TagState,
};
use gantry_storage::{Blob, ContentOrigin, ManifestRecord, Named, digest_of, naming};

use crate::{
    admit::{Content, Question},
    error::Error,
    events::Told,
    mirror::{MirroredBlob, MirroredContent, MirroredManifest},
    outcome::{BlobContent, Outcome, ServedBlob, ServedManifest, Staleness},
    registry::{Call, Shared},
};

/// Images of a blob that are looked at to find one of the principal's.
const MAX_IMAGES_LOOKED_AT: usize = 64;

/// A manifest that may leave, once it is admitted.
struct Found {
    record: ManifestRecord,
    bytes: Bytes,
    stale: Option<Staleness>,
    tag: Option<TagState>,
}

impl From<MirroredManifest> for Found {
    fn from(mirrored: MirroredManifest) -> Self {
        Self {
            record: mirrored.record,
            bytes: mirrored.bytes,
            stale: mirrored.stale,
            tag: mirrored.tag,
        }
    }
}

/// The part of a blob that leaves.
struct Part {
    size: Option<u64>,
    range: Option<RangeInclusive<u64>>,
    content: BlobContent,
}

// --- manifests ---

impl Call {
    /// A manifest or its headers.
    pub(crate) async fn pull_manifest(
        &self,
        repository: Repository,
        reference: &Reference,
        accepts: &AcceptedTypes,
        wanted: bool,
    ) -> Result<Outcome, Error> {
        let found = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                self.hosted_manifest(&repository.name, reference).await?
            }
            Source::Mirror { .. } => {
                let mirrors = &self.shared.mirrors;
                let requester = &self.requester;
                let manifest = mirrors.manifest(&repository, reference, accepts, requester);
                Found::from(manifest.await?)
            }
        };
        let tag = reference.tag().map(|tag| (tag, found.tag.as_ref()));
        let admitted = self
            .admit(Question {
                repository: &repository,
                change: Change::ServeManifest,
                tag,
                content: Content::Manifest(&found.record, Some(&found.bytes)),
            })
            .await?;
        if wanted {
            let tag = reference.tag();
            let content = Told {
                tag,
                ..Told::manifest(&found.record)
            };
            self.tell_pull(&repository, EventKind::ManifestPulled, content)?;
            let mirrors = &self.shared.mirrors;
            mirrors.prefetch(&repository, &found.record, &found.bytes, &self.requester);
        }
        self.shared.mirrors.used(&repository, &found.record.digest);
        Ok(Outcome::Manifest(Box::new(ServedManifest {
            repository,
            digest: found.record.digest,
            media_type: found.record.media_type,
            bytes: found.bytes,
            body: wanted,
            stale: found.stale,
            warnings: admitted.warnings,
        })))
    }

    async fn hosted_manifest(
        &self,
        name: &RepositoryName,
        reference: &Reference,
    ) -> Result<Found, Error> {
        let (digest, tag) = match reference {
            Reference::Tag(tag) => {
                let state = self.hosted_tag(name, tag).await?;
                (state.digest.clone(), Some(state))
            }
            Reference::Digest(digest) => (digest.clone(), None),
        };
        let record = self.hosted_record(name, &digest).await?;
        let bytes = self.shared.manifest_bytes(&record).await?;
        Ok(Found {
            record,
            bytes,
            stale: None,
            tag,
        })
    }

    /// What a hosted tag names. One that an upstream said, before the name was hosted, is none.
    pub(crate) async fn hosted_tag(
        &self,
        name: &RepositoryName,
        tag: &Tag,
    ) -> Result<TagState, Error> {
        match self.shared.ports.metadata.tag(name, tag).await? {
            Some(record) if !record.is_cached() => Ok(record.state),
            Some(_) | None => Err(self.manifest_unknown(name).await?),
        }
    }

    /// A hosted manifest's record.
    pub(crate) async fn hosted_record(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<ManifestRecord, Error> {
        let metadata = &self.shared.ports.metadata;
        let pushed = metadata.manifest(name, &ContentOrigin::Pushed, digest);
        match pushed.await? {
            Some(record) => Ok(record),
            None => Err(self.manifest_unknown(name).await?),
        }
    }

    /// Which of the two is unknown, the manifest or the whole repository.
    async fn manifest_unknown(&self, name: &RepositoryName) -> Result<Error, Error> {
        let repository = self.shared.ports.metadata.repository(name).await?;
        Ok(match repository {
            Some(_) => Error::ManifestUnknown,
            None => Error::NameUnknown,
        })
    }
}

impl Shared {
    /// The bytes of a manifest that the metadata knows, verified once and then kept in memory.
    ///
    /// # Errors
    /// [`Error::Internal`] when the bytes are not what was stored; as the store.
    pub(crate) async fn manifest_bytes(&self, record: &ManifestRecord) -> Result<Bytes, Error> {
        if let Some(bytes) = self.manifests.get(&record.digest) {
            return Ok(bytes);
        }
        let blob = self.ports.blobs.open(&record.digest).await?;
        let blob = blob.ok_or_else(|| Error::corrupt("find a stored manifest's bytes"))?;
        if blob.size() != record.size {
            return Err(Error::corrupt("find a stored manifest in its whole length"));
        }
        let bytes = read_whole(&*blob).await?;
        if digest_of(record.digest.algorithm(), &bytes) != record.digest {
            return Err(Error::corrupt("verify a stored manifest's bytes"));
        }
        self.manifests.insert(record.digest.clone(), bytes.clone());
        Ok(bytes)
    }
}

async fn read_whole(blob: &dyn Blob) -> Result<Bytes, Error> {
    let size = blob.size();
    let mut whole = BytesMut::new();
    while (whole.len() as u64) < size {
        let offset = whole.len() as u64;
        let missing = usize::try_from(size - offset).unwrap_or(usize::MAX);
        let bytes = blob.read_at(offset, missing).await?;
        if bytes.is_empty() {
            return Err(Error::corrupt("read a stored manifest to its end"));
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole.freeze())
}

// --- blobs ---

impl Call {
    /// A blob, a part of it, or its headers.
    pub(crate) async fn pull_blob(
        &self,
        repository: Repository,
        digest: Digest,
        range: Option<ByteRange>,
        wanted: bool,
    ) -> Result<Outcome, Error> {
        let size = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                Some(self.hosted_blob_size(&repository, &digest).await?)
            }
            Source::Mirror { .. } if wanted => {
                let mirrors = &self.shared.mirrors;
                mirrors
                    .expected_size(&repository, &digest, &self.requester)
                    .await?
            }
            Source::Mirror { .. } => {
                let mirrors = &self.shared.mirrors;
                let requester = &self.requester;
                mirrors.stat_blob(&repository, &digest, requester).await?
            }
        };
        let admitted = self.admit_blob(&repository, &digest, size).await?;
        let part = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                self.hosted_part(&repository, &digest, size, range, wanted)
                    .await?
            }
            Source::Mirror { .. } if !wanted => headers_only(size),
            Source::Mirror { .. } => {
                let mirrors = &self.shared.mirrors;
                let blob = mirrors.blob(&repository, &digest, &self.requester);
                mirrored_part(blob.await?, range).await?
            }
        };
        if wanted {
            let content = Told::blob(&digest, part.size);
            self.tell_pull(&repository, EventKind::BlobPulled, content)?;
        }
        self.shared.mirrors.used(&repository, &digest);
        Ok(Outcome::Blob(Box::new(ServedBlob {
            repository,
            digest,
            size: part.size,
            range: part.range,
            content: part.content,
            warnings: admitted.warnings,
        })))
    }

    /// Asks whether a blob of the repository may leave.
    async fn admit_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Admitted, Error> {
        self.admit(Question {
            repository,
            change: Change::ServeBlob,
            tag: None,
            content: Content::Blob {
                digest,
                size: size.unwrap_or(0),
                described_in: repository,
            },
        })
        .await
    }

    /// Judges a blob that is on its way by the admission of this configuration.
    pub(crate) async fn judge_download(
        &self,
        repository: Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<(), Error> {
        let repository = self.shared.settled(repository).await?;
        let admitted = self.admit_blob(&repository, digest, size).await;
        admitted.map(drop)
    }

    /// As [`crate::Registry::stat_own`].
    pub(crate) async fn stat_own(
        &self,
        repository: Repository,
        digest: Digest,
    ) -> Result<Option<Outcome>, Error> {
        let metadata = &self.shared.ports.metadata;
        let name = &repository.name;
        let principal = &self.requester.principal.id;
        if !metadata.has_pushed(name, &digest, principal).await? {
            return Err(Error::BlobUnknown { digest });
        }
        if self.has_pushed_image_of(name, &digest).await? {
            return Ok(None);
        }
        let size = Some(self.hosted_blob_size(&repository, &digest).await?);
        let part = self
            .hosted_part(&repository, &digest, size, None, false)
            .await?;
        Ok(Some(Outcome::Blob(Box::new(ServedBlob {
            repository,
            digest,
            size: part.size,
            range: None,
            content: part.content,
            warnings: Vec::new(),
        }))))
    }

    /// Whether the principal itself pushed a manifest that names the blob, as far as few manifests do.
    async fn has_pushed_image_of(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, Error> {
        let (metadata, pushed) = (&self.shared.ports.metadata, &ContentOrigin::Pushed);
        let parents = naming(metadata.parents(name, pushed, digest).await?, Named::Blob);
        for parent in parents.iter().take(MAX_IMAGES_LOOKED_AT) {
            let image = metadata.manifest(name, pushed, parent).await?;
            if image.is_some_and(|image| image.pushed_by == self.requester.principal.id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn hosted_blob_size(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<u64, Error> {
        let metadata = &self.shared.ports.metadata;
        let size = metadata.blob(&repository.name, &ContentOrigin::Pushed, digest);
        size.await?.ok_or_else(|| Error::BlobUnknown {
            digest: digest.clone(),
        })
    }

    /// A blob of the repository whose length there is `linked`. The bytes are looked for even when only headers are wanted: a client that is told
    /// a blob is here does not send it again.
    async fn hosted_part(
        &self,
        repository: &Repository,
        digest: &Digest,
        linked: Option<u64>,
        range: Option<ByteRange>,
        wanted: bool,
    ) -> Result<Part, Error> {
        let blobs = &self.shared.ports.blobs;
        let (found, content) = if wanted {
            let blob = blobs.open(digest).await?;
            blob.as_ref().map_or(Ok(()), |blob| blob.prepare())?;
            let size = blob.as_ref().map(|blob| blob.size());
            (size, blob.map(BlobContent::Published))
        } else {
            (blobs.stat(digest).await?, Some(BlobContent::HeadersOnly))
        };
        let (Some(size), Some(content)) = (found, content) else {
            tracing::error!(repository.name = %repository.name, blob.digest = %digest, "a blob of the repository has lost its bytes");
            return Err(Error::BlobUnknown {
                digest: digest.clone(),
            });
        };
        if linked != Some(size) {
            return Err(Error::corrupt("find a blob in its whole length"));
        }
        // RFC 9110 section 14.2 defines ranges for GET alone.
        let range = range.filter(|_| wanted);
        Ok(Part {
            size: Some(size),
            range: resolve(range, size)?,
            content,
        })
    }
}

fn headers_only(size: Option<u64>) -> Part {
    Part {
        size,
        range: None,
        content: BlobContent::HeadersOnly,
    }
}

async fn mirrored_part(blob: MirroredBlob, range: Option<ByteRange>) -> Result<Part, Error> {
    let size = match (&blob.content, blob.size) {
        (MirroredContent::Published(blob), _) => Some(blob.size()),
        // A part's headers name the whole's length, so the upstream must have said it.
        (MirroredContent::Filling(fill), None) if range.is_some() => Some(fill.size().await?),
        (MirroredContent::Filling(_), size) => size,
    };
    let range = match size {
        Some(size) => resolve(range, size)?,
        None => None,
    };
    let content = match blob.content {
        MirroredContent::Published(blob) => {
            blob.prepare()?;
            BlobContent::Published(blob)
        }
        MirroredContent::Filling(fill) => BlobContent::Filling(match &range {
            Some(range) => fill.stream(*range.start(), Some(*range.end())),
            None => fill.stream(0, None),
        }),
    };
    Ok(Part {
        size,
        range,
        content,
    })
}

fn resolve(range: Option<ByteRange>, size: u64) -> Result<Option<RangeInclusive<u64>>, Error> {
    let Some(range) = range else {
        return Ok(None);
    };
    match range.resolve(size) {
        Some(range) => Ok(Some(range)),
        None => Err(Error::RangeUnsatisfiable { size }),
    }
}
