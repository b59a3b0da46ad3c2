//! Pushes a manifest: read, verify, parse, hold against what the repository has, store the bytes, admit, commit.
//!
//! Owns the loop between admission and commit: the hooks are told what each tag names, the commit holds the store to it, and a tag
//! that moved meanwhile is asked about again. So of two racing pushes that a hook would not let follow each other, one wins.
//! Invariant: all tags of a push move, or none.

use std::collections::BTreeMap;

use bytes::Bytes;
use gantry_model::{
    Algorithm, Change, Digest, Document, Event, EventKind, Manifest, ManifestError, MediaType,
    Reference, Repository, Tag, WrittenDescriptor,
};
use gantry_storage::{
    Commit, CommitError, ContentOrigin, ManifestRecord, PushManifest, ReferenceRecord, Stored,
    TagMove, annotations_in, digest_of,
};

use crate::{
    admit::{Content, Question, refuse_immutable},
    body::{Body, BodyError},
    error::Error,
    events::Told,
    outcome::Outcome,
    registry::Call,
};

/// How often admission is asked again because a tag moved, before the client is told that somebody else keeps moving it.
pub(crate) const MAX_ROUNDS: usize = 16;

/// A manifest that is verified and parsed, and everything that becomes of it.
struct Pushed {
    record: ManifestRecord,
    /// See [`PushManifest::annotations`].
    annotations: String,
    bytes: Bytes,
    references: Vec<ReferenceRecord>,
    required: Vec<Digest>,
    tags: Vec<Tag>,
}

impl Call {
    /// Stores a manifest and moves its tags.
    pub(crate) async fn push_manifest(
        &self,
        repository: Repository,
        reference: Reference,
        further_tags: Vec<Tag>,
        media_type: Option<MediaType>,
        body: Body,
    ) -> Result<Outcome, Error> {
        let bytes = self.read_manifest(body).await?;
        let digest = verify(&reference, &bytes)?;
        let most = self.shared.settings.max_annotation_bytes;
        let manifest = parse(media_type.as_ref(), &bytes, most).map_err(Error::ManifestInvalid)?;
        let required = self.check_content(&repository, &manifest).await?;
        let _lease = self.shared.ports.leases.take(&digest).await;
        self.store_bytes(&digest, &bytes).await?;
        let mut tags = further_tags.clone();
        tags.extend(reference.tag().cloned());
        tags.sort();
        tags.dedup();
        let stored = Stored {
            digest: digest.clone(),
            media_type: manifest.media_type.clone(),
            size: bytes.len() as u64,
        };
        let document = Document::Manifest(Box::new(manifest));
        let pushed = Pushed {
            references: ReferenceRecord::all_in(&document),
            annotations: annotations_in(&document),
            record: self.record(&document, stored),
            bytes,
            required,
            tags,
        };
        let warnings = self.admit_and_commit(&repository, &pushed).await?;
        let Pushed { record, bytes, .. } = pushed;
        self.shared.manifests.insert(digest.clone(), bytes);
        Ok(Outcome::ManifestPushed {
            repository,
            digest,
            subject: record.subject,
            tags: further_tags,
            warnings,
        })
    }

    async fn read_manifest(&self, body: Body) -> Result<Bytes, Error> {
        let max_bytes = self.shared.settings.max_manifest_bytes;
        body.read_capped(max_bytes)
            .await
            .map_err(|error| match error {
                BodyError::TooLarge => Error::ManifestTooLarge { max_bytes },
                BodyError::Disconnected
                | BodyError::Malformed(_)
                | BodyError::TooSlow
                | BodyError::Revoked => error.into(),
            })
    }

    /// Holds what the manifest names against the repository. Returns what must still be there when it is committed: the blobs of
    /// an image. The children of an index may be missing (distribution-spec, "Pushing Manifests": sparse indexes), and so may a
    /// subject.
    async fn check_content(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<Vec<Digest>, Error> {
        let name = &repository.name;
        let metadata = &self.shared.ports.metadata;
        let mut required = Vec::new();
        let mut missing = Vec::new();
        for (digest, descriptor) in distinct(manifest.required_blobs()) {
            let size = self.own_blob(repository, digest).await?;
            match self.lawful(repository, digest, size).await? {
                None if descriptor.media_type.is_foreign_layer() => {
                    return Err(foreign_without_urls(digest));
                }
                None => missing.push(digest.clone()),
                Some(size) => check_size(descriptor, size)?,
            }
            required.push(digest.clone());
        }
        for (digest, descriptor) in distinct(manifest.children()) {
            let child = metadata.manifest(name, &ContentOrigin::Pushed, digest);
            if let Some(child) = child.await? {
                check_size(descriptor, child.size)?;
            }
        }
        if missing.is_empty() {
            Ok(required)
        } else {
            Err(Error::ManifestBlobUnknown { digests: missing })
        }
    }

    /// The length of a blob of the repository. Where reads were the upstream's until now, what it delivered to this repository becomes the
    /// repository's own: everybody who may read there could fetch and push it.
    async fn own_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let metadata = &self.shared.ports.metadata;
        let pushed = metadata.blob(&repository.name, &ContentOrigin::Pushed, digest);
        if let Some(size) = pushed.await? {
            return Ok(Some(size));
        }
        let settled = self.shared.settled(repository.clone()).await?;
        let origin = self.shared.mirrors.content_origin(&settled)?;
        let Some(size) = metadata.blob(&repository.name, &origin, digest).await? else {
            return Ok(None);
        };
        let link = Commit::LinkBlob {
            repository: repository.name.clone(),
            origin: ContentOrigin::Pushed,
            digest: digest.clone(),
            size,
            upload: None,
            principal: None,
        };
        let linked = self.commit(link, Vec::new()).await;
        linked.map_err(|error| Error::from_commit(error, Error::ManifestUnknown))?;
        Ok(Some(size))
    }

    /// The length of a blob that the principal may name. One that it neither uploaded nor mounted here itself must be one that it could
    /// pull; otherwise it counts as absent, so that a client uploads it: a manifest would make another image's denied layer its own.
    async fn lawful(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
    ) -> Result<Option<u64>, Error> {
        let ports = &self.shared.ports;
        let Some(size) = size.filter(|_| ports.admission.asks(repository, Change::ServeBlob))
        else {
            return Ok(size);
        };
        let principal = &self.requester.principal.id;
        let own = ports
            .metadata
            .has_pushed(&repository.name, digest, principal);
        if own.await? {
            return Ok(Some(size));
        }
        let served = self.admit(Question {
            repository,
            change: Change::ServeBlob,
            tag: None,
            content: Content::Blob {
                digest,
                size,
                described_in: repository,
            },
        });
        match served.await {
            Ok(_admitted) => Ok(Some(size)),
            Err(Error::Denied(_) | Error::Held { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A repeated push finds its bytes stored: content under a digest never changes.
    async fn store_bytes(&self, digest: &Digest, bytes: &Bytes) -> Result<(), Error> {
        if self.shared.ports.blobs.stat(digest).await? != Some(bytes.len() as u64) {
            let body = Body::from_bytes(bytes.clone());
            self.shared.publish(digest, body).await?;
        }
        Ok(())
    }

    fn record(&self, document: &Document, stored: Stored) -> ManifestRecord {
        let pushed_by = self.requester.principal.id.clone();
        let now_ms = self.shared.ports.clock.now_ms();
        ManifestRecord::of(document, stored, now_ms, pushed_by)
    }

    async fn admit_and_commit(
        &self,
        repository: &Repository,
        pushed: &Pushed,
    ) -> Result<Vec<String>, Error> {
        for _round in 0..MAX_ROUNDS {
            let (tags, warnings) = self.admit_push(repository, pushed).await?;
            let events = self.push_events(repository, pushed, &tags)?;
            let commit = Commit::PushManifest(Box::new(PushManifest {
                repository: repository.name.clone(),
                origin: ContentOrigin::Pushed,
                manifest: pushed.record.clone(),
                annotations: pushed.annotations.clone(),
                references: pushed.references.clone(),
                tags,
                required: pushed.required.clone(),
            }));
            match self.commit(commit, events).await {
                Ok(()) => return Ok(warnings),
                Err(CommitError::TagMoved { .. }) => {}
                Err(error) => return Err(Error::from_commit(error, Error::ManifestUnknown)),
            }
        }
        Err(Error::Conflict)
    }

    /// One push per tag, as Distribution tells it, and a move for each tag that names something else now.
    fn push_events(
        &self,
        repository: &Repository,
        pushed: &Pushed,
        tags: &[TagMove],
    ) -> Result<Vec<Event>, Error> {
        let mut events = self.events(repository);
        let content = Told {
            references: &pushed.references,
            ..Told::manifest(&pushed.record)
        };
        if tags.is_empty() {
            events.tell(EventKind::ManifestPushed, content)?;
        }
        for to in tags {
            let content = Told {
                tag: Some(&to.tag),
                ..content
            };
            events.tell(EventKind::ManifestPushed, content)?;
            if to.expected.as_ref() != Some(&pushed.record.digest) {
                let previous = to.expected.as_ref();
                let content = Told {
                    previous,
                    references: &[],
                    ..content
                };
                events.tell(EventKind::TagMoved, content)?;
            }
        }
        Ok(events.told())
    }

    /// Asks about every tag before anything is committed; the first refusal refuses all.
    async fn admit_push(
        &self,
        repository: &Repository,
        pushed: &Pushed,
    ) -> Result<(Vec<TagMove>, Vec<String>), Error> {
        let content = Content::Manifest(&pushed.record, Some(&pushed.bytes));
        let mut moves = Vec::new();
        let mut warnings = Vec::new();
        for tag in &pushed.tags {
            let known = self.shared.ports.metadata.tag(&repository.name, tag);
            let known = known.await?;
            let expected = known.as_ref().map(|record| record.state.digest.clone());
            // What an upstream said before the name was hosted is nothing that a push moves.
            let previous = known.filter(|record| !record.is_cached());
            let previous = previous.map(|record| record.state);
            if let Some(state) = &previous
                && state.digest != pushed.record.digest
            {
                refuse_immutable(tag, state)?;
            }
            let change = match previous {
                None => Change::CreateTag,
                Some(_) => Change::MoveTag,
            };
            let admitted = self
                .admit(Question {
                    repository,
                    change,
                    tag: Some((tag, previous.as_ref())),
                    content,
                })
                .await?;
            warnings.extend(admitted.warnings);
            moves.push(TagMove {
                tag: tag.clone(),
                expected,
                set_immutable: admitted.set_immutable,
                checked_at_ms: 0,
            });
        }
        if pushed.tags.is_empty() {
            let question = Question {
                repository,
                change: Change::PushByDigest,
                tag: None,
                content,
            };
            warnings.extend(self.admit(question).await?.warnings);
        }
        Ok((moves, warnings))
    }
}

/// The content's digest: under the algorithm of the digest it is pushed by, which it must match, or else sha256.
fn verify(reference: &Reference, bytes: &[u8]) -> Result<Digest, Error> {
    match reference {
        Reference::Tag(_) => Ok(digest_of(Algorithm::Sha256, bytes)),
        Reference::Digest(declared) => {
            let found = digest_of(declared.algorithm(), bytes);
            if found == *declared {
                Ok(found)
            } else {
                Err(Error::DigestInvalid { found: Some(found) })
            }
        }
    }
}

/// The manifest, when a push of it can be accepted.
fn parse(
    declared: Option<&MediaType>,
    bytes: &[u8],
    most: usize,
) -> Result<Manifest, ManifestError> {
    let manifest = Manifest::parse(declared, bytes)?;
    let bytes = manifest.annotation_bytes();
    if bytes > most {
        return Err(ManifestError::TooManyAnnotations { bytes, most });
    }
    Ok(manifest)
}

/// Descriptors by digest: a manifest may name the same content often.
fn distinct<'a>(
    descriptors: impl Iterator<Item = (&'a Digest, &'a WrittenDescriptor)>,
) -> BTreeMap<&'a Digest, &'a WrittenDescriptor> {
    descriptors.collect()
}

fn check_size(descriptor: &WrittenDescriptor, size: u64) -> Result<(), Error> {
    if descriptor.size == size {
        return Ok(());
    }
    Err(invalid(format!(
        "the size in the descriptor is wrong: {} has {size} bytes, not {}",
        descriptor.digest, descriptor.size
    )))
}

/// A foreign layer that says nowhere where it is can be had from here only, so it is a layer like any other.
fn foreign_without_urls(digest: &Digest) -> Error {
    invalid(format!(
        "the foreign layer {digest} has no `urls` and is not in this repository: push it, or name in `urls` where it is"
    ))
}

fn invalid(why: String) -> Error {
    Error::ManifestInvalid(ManifestError::Malformed(why))
}
