//! Questions to the admission hooks: what is about to happen, to which content, and what a tag names now.
//!
//! Owns how a question is made, and the registry's own rule that a tag marked immutable stays. Makes nothing when no hook listens.

use bytes::Bytes;
use gantry_model::{
    AdmissionRequest, Admitted, Change, Denial, DenialCode, Descriptor, Digest, MediaType,
    Repository, Tag, TagState, Version,
};
use gantry_storage::{ManifestRecord, Named, indexes_of, naming};

use crate::{error::Error, registry::Call};

/// What is about to happen.
pub(crate) struct Question<'a> {
    pub(crate) repository: &'a Repository,
    pub(crate) change: Change,
    /// The tag concerned, and what it names now.
    pub(crate) tag: Option<(&'a Tag, Option<&'a TagState>)>,
    pub(crate) content: Content<'a>,
}

/// The content that is concerned.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    /// A manifest; without bytes they are read when a hook listens.
    Manifest(&'a ManifestRecord, Option<&'a Bytes>),
    /// A blob, and where its parents say what it is.
    Blob {
        digest: &'a Digest,
        size: u64,
        described_in: &'a Repository,
    },
    /// None: the question is about what the client learns. The digest is the one that the client named.
    Named(Option<&'a Digest>),
}

impl Call {
    /// Asks the hooks; accepted when none listens.
    ///
    /// # Errors
    /// The refusal; a store's failure while the question is made.
    pub(crate) async fn admit(&self, question: Question<'_>) -> Result<Admitted, Error> {
        let admission = &self.shared.ports.admission;
        if !admission.asks(question.repository, question.change) {
            return Ok(Admitted::default());
        }
        let request = self.request(question).await?;
        Ok(admission.admit(request).await?)
    }

    /// A question about what the client learns.
    fn without_content(
        &self,
        question: &Question<'_>,
        named: Option<&Digest>,
        version: Version,
    ) -> AdmissionRequest {
        let target =
            named.map(|digest| Descriptor::new(MediaType::octet_stream(), digest.clone(), 0));
        AdmissionRequest {
            requester: self.requester.clone(),
            repository: question.repository.clone(),
            change: question.change,
            tag: question.tag.map(|(tag, _previous)| tag.clone()),
            previous: None,
            target,
            manifest: None,
            parents: Vec::new(),
            version,
        }
    }

    async fn request(&self, question: Question<'_>) -> Result<AdmissionRequest, Error> {
        let metadata = &self.shared.ports.metadata;
        let version = metadata.version(&question.repository.name).await?;
        let (target, manifest) = match question.content {
            Content::Named(digest) => return Ok(self.without_content(&question, digest, version)),
            Content::Manifest(record, bytes) => {
                let bytes = match bytes {
                    Some(bytes) => bytes.clone(),
                    None => self.shared.manifest_bytes(record).await?,
                };
                (descriptor_of(record), Some(bytes))
            }
            Content::Blob {
                digest,
                size,
                described_in,
            } => {
                let origin = self.shared.mirrors.content_origin(described_in)?;
                let described = metadata.parents(&described_in.name, &origin, digest);
                let described = described.await?;
                let media_type = described
                    .into_iter()
                    .find(|(_parent, reference)| reference.named == Named::Blob)
                    .map_or_else(MediaType::octet_stream, |(_parent, reference)| {
                        reference.media_type
                    });
                (Descriptor::new(media_type, digest.clone(), size), None)
            }
        };
        let origin = self.shared.mirrors.content_origin(question.repository)?;
        let (name, digest) = (&question.repository.name, &target.digest);
        let parents = match &manifest {
            Some(bytes) => indexes_of(&**metadata, (name, &origin), digest, bytes).await?,
            None => naming(metadata.parents(name, &origin, digest).await?, Named::Blob),
        };
        let (tag, previous) = question.tag.unzip();
        Ok(AdmissionRequest {
            requester: self.requester.clone(),
            repository: question.repository.clone(),
            change: question.change,
            tag: tag.cloned(),
            previous: previous.flatten().cloned(),
            target: Some(target),
            manifest,
            parents,
            version,
        })
    }
}

/// Refuses to move or delete a tag that an admission marked immutable.
pub(crate) fn refuse_immutable(tag: &Tag, state: &TagState) -> Result<(), Error> {
    if !state.immutable {
        return Ok(());
    }
    Err(Error::Denied(Box::new(Denial::new(
        DenialCode::Denied,
        "immutable",
        format!("tag {tag} is immutable"),
    ))))
}

/// The descriptor of a stored manifest, without its annotations.
pub(crate) fn descriptor_of(record: &ManifestRecord) -> Descriptor {
    Descriptor {
        artifact_type: record.artifact_type.clone(),
        ..Descriptor::new(
            record.media_type.clone(),
            record.digest.clone(),
            record.size,
        )
    }
}
