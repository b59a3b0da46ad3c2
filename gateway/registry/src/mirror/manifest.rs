//! Manifests of mirrored repositories: found here, or fetched, verified, admitted and stored.
//!
//! Owns what makes an upstream's bytes a manifest of ours. Does not decide whether a tag is fresh: `freshness` does.
//! Invariants: bytes are stored only under a digest they hash to. What an upstream sends for a tag is stored only when it is a document of
//! a type that somebody could ask for: an error page is an outage, whatever its status was.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use gantry_model::{
    AdmissionRequest, Algorithm, Change, Descriptor, Digest, Document, Form, MediaType, Reference,
    RepositoryName, Requester, Tag, TagState, Version,
};
use gantry_storage::{
    Blob, Commit, CommitError, ContentOrigin, ManifestRecord, PushManifest, ReferenceRecord,
    StorageError, Stored, TagMove, annotations_in, digest_of, indexes_of,
};
use gantry_upstream::FetchedManifest;

use super::{Engine, MirroredManifest, Origin, failure::Failure, flight::contained};
use crate::{
    cache_counts::{CacheContent, CacheOutcome},
    staging::new_upload_id,
};

/// A document whose bytes hash to its digest, with the type that it is served as.
#[derive(Debug)]
pub(super) struct Verified {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
    pub(super) media_type: MediaType,
    document: Document,
}

impl Engine {
    /// See [`super::Mirrors::manifest`].
    pub(super) async fn manifest(
        self: &Arc<Self>,
        origin: &Origin,
        reference: &Reference,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        self.manifest_for(origin, reference, requester, None).await
    }

    /// As [`Engine::manifest`], for `asker`, whose questions for what is not there are counted.
    pub(super) async fn manifest_for(
        self: &Arc<Self>,
        origin: &Origin,
        reference: &Reference,
        requester: &Requester,
        asker: Option<&Requester>,
    ) -> Result<MirroredManifest, Failure> {
        let mut joined = true;
        let result = self
            .manifest_or_flight(origin, reference, (requester, asker), &mut joined)
            .await;
        let outcome = match &result {
            Ok(manifest) if joined && manifest.via != CacheOutcome::Hit => CacheOutcome::Joined,
            Ok(manifest) => manifest.via,
            Err(Failure::NotFound) => CacheOutcome::NotFound,
            Err(_) => CacheOutcome::Failed,
        };
        origin.count(CacheContent::Manifest, outcome);
        result
    }

    /// Clears `joined` when this call starts the flight.
    async fn manifest_or_flight(
        self: &Arc<Self>,
        origin: &Origin,
        reference: &Reference,
        (requester, asker): (&Requester, Option<&Requester>),
        joined: &mut bool,
    ) -> Result<MirroredManifest, Failure> {
        if let Some(known) = self.known(origin, reference).await? {
            return Ok(known);
        }
        let key = origin.asked(reference);
        if self.running.not_found.remembers(&key, self.now_ms()) {
            return Err(Failure::NotFound);
        }
        if let Some(asker) = asker {
            self.may_miss(&key.0, reference, asker).await?;
        }
        let meanwhile = self.meanwhile(origin, reference).await?;
        let span = tracing::info_span!(
            parent: None,
            "mirror_manifest",
            repository.name = %origin.name(),
            reference = %reference,
            request.id = %requester.request_id,
        );
        let flight = self.flight(origin, reference, requester, meanwhile.is_some());
        if let Some(stale) = meanwhile {
            *joined = false;
            self.running.manifests.start(key, span, || flight);
            return Ok(stale);
        }
        let flight = || {
            *joined = false;
            flight
        };
        let landed = self.running.manifests.run(key.clone(), span, flight).await;
        if let (Err(Failure::NotFound), Some(asker)) = (&landed, asker) {
            self.missed(&key.0, &key.1, asker).await;
        }
        landed
    }

    /// A tag's manifest that is served while the upstream is asked.
    async fn meanwhile(
        &self,
        origin: &Origin,
        reference: &Reference,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let Reference::Tag(tag) = reference else {
            return Ok(None);
        };
        let stale = self.tag_to_revalidate(origin, tag).await?;
        Ok(stale.filter(|stale| origin.accepts.takes(&stale.record.media_type)))
    }

    /// See [`Engine::land`]. When something is served meanwhile nobody waits for the answer, so its failure is logged here.
    fn flight(
        self: &Arc<Self>,
        origin: &Origin,
        reference: &Reference,
        requester: &Requester,
        is_served_meanwhile: bool,
    ) -> impl Future<Output = Result<MirroredManifest, Failure>> + Send + 'static {
        let (engine, origin) = (Arc::clone(self), origin.clone());
        let (reference, requester) = (reference.clone(), requester.clone());
        async move {
            let landed = engine.land(&origin, &reference, &requester).await;
            match &landed {
                Err(failure) if is_served_meanwhile && failure.is_upstream_trouble() => {
                    let what = "a tag that is served meanwhile could not be confirmed";
                    failure.warn(origin.mirror(), what);
                }
                Ok(_) | Err(_) => {}
            }
            landed
        }
    }

    /// The flight of a manifest: looks again, because another may have landed since, and then asks the upstream.
    async fn land(
        &self,
        origin: &Origin,
        reference: &Reference,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        if let Some(known) = self.known(origin, reference).await? {
            return Ok(known);
        }
        let result = match reference {
            Reference::Digest(digest) => self.pull_digest(origin, digest, requester).await,
            Reference::Tag(tag) if origin.accepts.further().is_some() => {
                self.check_negotiated(origin, tag, requester).await
            }
            Reference::Tag(tag) => self.check_tag(origin, tag, requester).await,
        };
        // Other failures are logged by the requests that wait for them.
        if let Err(Failure::NotFound) = &result {
            let until_ms = self
                .now_ms()
                .saturating_add(millis(origin.settings.not_found_for));
            let key = origin.asked(reference);
            self.running.not_found.remember(key, until_ms);
        }
        result
    }

    /// What may be served without asking the upstream: any digest that is here, any tag that is fresh.
    async fn known(
        &self,
        origin: &Origin,
        reference: &Reference,
    ) -> Result<Option<MirroredManifest>, Failure> {
        match reference {
            Reference::Digest(digest) => {
                let local = self.local_manifest(origin, digest).await?;
                Ok(local.map(|(record, bytes)| MirroredManifest {
                    record,
                    bytes,
                    stale: None,
                    tag: None,
                    via: CacheOutcome::Hit,
                }))
            }
            Reference::Tag(tag) => {
                let fresh = self.fresh_tag(origin, tag).await?;
                match fresh.filter(|fresh| origin.accepts.takes(&fresh.record.media_type)) {
                    Some(fresh) => Ok(Some(fresh)),
                    None => self.fresh_negotiated(origin, tag).await,
                }
            }
        }
    }

    pub(super) async fn pull_digest(
        &self,
        origin: &Origin,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let verified = self.fetch_digest(origin, digest).await?;
        self.admit_manifest(origin, &verified, None, requester)
            .await?;
        match self.store(origin, &verified, None).await {
            Err(StoreError::Failed(failure @ Failure::Full(_))) => {
                self.store_is_full(&failure);
                return Ok(self.unstored(origin, &verified, None));
            }
            stored => stored?,
        }
        let local = self.local_manifest(origin, digest).await?;
        let (record, bytes) = local.ok_or(Failure::Conflict)?;
        Ok(MirroredManifest {
            record,
            bytes,
            stale: None,
            tag: None,
            via: CacheOutcome::Filled,
        })
    }

    /// What was fetched, for those who wait for it: there is no space to keep it.
    pub(super) fn unstored(
        &self,
        origin: &Origin,
        verified: &Verified,
        tag: Option<TagState>,
    ) -> MirroredManifest {
        let pushed_by = format!("mirror:{}", origin.mirror());
        MirroredManifest {
            record: verified.record(self.now_ms(), pushed_by),
            bytes: verified.bytes.clone(),
            stale: None,
            tag,
            via: CacheOutcome::Passed,
        }
    }

    /// A manifest of this repository with its bytes; `None` unless both are here.
    pub(super) async fn local_manifest(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<(ManifestRecord, Bytes)>, Failure> {
        self.stored_manifest(origin.name(), origin.content(), digest)
            .await
    }

    /// As [`Engine::local_manifest`], by the repository's canonical name.
    pub(super) async fn stored_manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<(ManifestRecord, Bytes)>, Failure> {
        let Some(record) = self.metadata.manifest(repository, origin, digest).await? else {
            return Ok(None);
        };
        if let Some(bytes) = self.running.bytes.get(digest) {
            return Ok(Some((record, bytes)));
        }
        let Some(blob) = self.blobs.open(digest).await? else {
            return Ok(None);
        };
        let bytes = read_whole(blob.as_ref(), self.settings.max_manifest_bytes).await?;
        if digest_of(digest.algorithm(), &bytes) != *digest {
            return Err(StorageError::corrupt("verify a stored manifest's bytes").into());
        }
        self.running.bytes.insert(digest.clone(), bytes.clone());
        Ok(Some((record, bytes)))
    }

    pub(super) async fn fetch_digest(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Verified, Failure> {
        let reference = Reference::Digest(digest.clone());
        let upstream = &origin.settings.upstream;
        let fetched = upstream.manifest(&origin.remote, &reference, &origin.accepts);
        self.verify(fetched.await?, Some(digest))
    }

    /// Fetches what the tag names. The digest is the one the upstream states, which the bytes must hash to, or their SHA-256.
    pub(super) async fn fetch_tag(&self, origin: &Origin, tag: &Tag) -> Result<Verified, Failure> {
        let reference = Reference::Tag(tag.clone());
        let upstream = &origin.settings.upstream;
        let fetched = upstream.manifest(&origin.remote, &reference, &origin.accepts);
        self.verify(fetched.await?, None)
    }

    fn verify(
        &self,
        fetched: FetchedManifest,
        asked: Option<&Digest>,
    ) -> Result<Verified, Failure> {
        let FetchedManifest {
            media_type,
            digest: stated,
            bytes,
        } = fetched;
        if bytes.len() > self.settings.max_manifest_bytes {
            return Err(Failure::invalid("the manifest is too large"));
        }
        let claimed = asked.or(stated.as_ref());
        let algorithm = claimed.map_or(Algorithm::Sha256, Digest::algorithm);
        let found = digest_of(algorithm, &bytes);
        if claimed.is_some_and(|claimed| *claimed != found) {
            return Err(Failure::invalid(format!("the manifest hashes to {found}")));
        }
        let media_type = type_of(media_type, &bytes, asked.is_some())?;
        Ok(Verified::new(media_type, found, bytes))
    }

    /// Asks the admission hooks before an upstream's manifest enters this repository.
    pub(super) async fn admit_manifest(
        &self,
        origin: &Origin,
        verified: &Verified,
        tag: Option<(&Tag, Option<TagState>)>,
        requester: &Requester,
    ) -> Result<(), Failure> {
        if !self.admission.asks(&origin.repository, Change::Fill) {
            return Ok(());
        }
        let (digest, bytes) = (&verified.digest, &verified.bytes);
        let held = (origin.name(), origin.content());
        let parents = indexes_of(&*self.metadata, held, digest, bytes);
        let (tag, previous) = tag.unzip();
        let request = AdmissionRequest {
            requester: requester.clone(),
            repository: origin.repository.clone(),
            change: Change::Fill,
            tag: tag.cloned(),
            previous: previous.flatten(),
            target: Some(verified.descriptor()),
            manifest: Some(verified.bytes.clone()),
            parents: parents.await?,
            version: Version::Unknown,
        };
        let admitted = self.admission.admit(request).await;
        admitted
            .map(drop)
            .map_err(|refusal| Failure::Policy(Box::new(refusal)))
    }

    /// Makes the bytes durable and then, in one commit, the manifest part of the repository and the tag point at it.
    pub(super) async fn store(
        &self,
        origin: &Origin,
        verified: &Verified,
        tag: Option<TagMove>,
    ) -> Result<(), StoreError> {
        let _lease = self.leases.take(&verified.digest).await;
        self.store_bytes(&verified.digest, &verified.bytes).await?;
        let push = PushManifest {
            repository: origin.name().clone(),
            origin: origin.content().clone(),
            manifest: verified.record(self.now_ms(), format!("mirror:{}", origin.mirror())),
            annotations: annotations_in(&verified.document),
            references: ReferenceRecord::all_in(&verified.document),
            tags: tag.into_iter().collect(),
            // An upstream's index is complete there, not here: children and blobs come when they are asked for.
            required: Vec::new(),
        };
        let pushed = self
            .metadata
            .commit(Commit::PushManifest(Box::new(push)))
            .await;
        pushed.map_err(|error| match error {
            CommitError::TagMoved { current, .. } => {
                StoreError::TagMoved(current.map(|record| record.state.digest))
            }
            other => StoreError::Failed(other.into()),
        })
    }

    async fn store_bytes(&self, digest: &Digest, bytes: &Bytes) -> Result<(), Failure> {
        if self.blobs.stat(digest).await?.is_some() {
            return Ok(());
        }
        let upload = new_upload_id().map_err(Failure::internal)?;
        let publish = async {
            let algorithm = digest.algorithm();
            let mut writer = self.blobs.create(upload, algorithm).await?;
            writer.write(bytes.clone()).await?;
            writer.commit(digest).await?;
            Ok(())
        };
        let published = contained(publish).await;
        if published.is_err() {
            self.discard(upload).await;
        }
        published
    }
}

/// A manifest was not stored.
#[derive(Debug)]
pub(super) enum StoreError {
    /// The tag names something else than was seen: this, or nothing.
    TagMoved(Option<Digest>),
    /// Anything else.
    Failed(Failure),
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::TagMoved(_) => Self::Conflict,
            StoreError::Failed(failure) => failure,
        }
    }
}

impl Verified {
    /// Bytes that are known to hash to `digest`.
    pub(super) fn new(media_type: MediaType, digest: Digest, bytes: Bytes) -> Self {
        Self {
            document: Document::read(&media_type, &bytes),
            digest,
            bytes,
            media_type,
        }
    }

    fn descriptor(&self) -> Descriptor {
        let media_type = self.media_type.clone();
        Descriptor::new(media_type, self.digest.clone(), self.bytes.len() as u64)
    }

    fn record(&self, pushed_at_ms: u64, pushed_by: String) -> ManifestRecord {
        ManifestRecord::of(
            &self.document,
            Stored {
                digest: self.digest.clone(),
                media_type: self.media_type.clone(),
                size: self.bytes.len() as u64,
            },
            pushed_at_ms,
            pushed_by,
        )
    }
}

/// What the bytes that an upstream sent are served as. A type that says nothing (`text/html`) counts as absent, because real servers send
/// such with manifests; then the document itself must say what it is, unless it was asked for by the digest that it has.
fn type_of(
    declared: Option<MediaType>,
    bytes: &[u8],
    asked_by_digest: bool,
) -> Result<MediaType, Failure> {
    let specific = declared.clone().filter(|declared| !declared.is_generic());
    let form = Form::of(bytes);
    if form == Form::Schema1 || specific.as_ref().is_some_and(MediaType::is_schema1) {
        return Err(Failure::Schema1);
    }
    if let Some(declared) = specific {
        if form == Form::NotJson && declared.is_manifest() && !asked_by_digest {
            return Err(Failure::invalid("what was sent as a manifest is no JSON"));
        }
        return match Form::stated(bytes) {
            // CVE-2021-41190: one document, two meanings.
            Some(own)
                if own != declared && own.is_image_or_index() && declared.is_image_or_index() =>
            {
                Err(Failure::invalid(format!(
                    "the manifest was sent as {declared} and is {own}"
                )))
            }
            _ => Ok(declared),
        };
    }
    match form {
        Form::Manifest(media_type) => Ok(media_type),
        Form::Other(own) if asked_by_digest => {
            Ok(own.or(declared).unwrap_or_else(MediaType::octet_stream))
        }
        Form::NotJson if asked_by_digest => Ok(declared.unwrap_or_else(MediaType::octet_stream)),
        Form::Other(_) | Form::NotJson | Form::Schema1 => Err(Failure::invalid(
            "what was sent is no manifest, and nothing says what else it is",
        )),
    }
}

/// A cache of manifests' bytes that weighs them.
pub(super) fn bytes_cache(max_bytes: u64) -> moka::sync::Cache<Digest, Bytes> {
    moka::sync::Cache::builder()
        .max_capacity(max_bytes)
        .weigher(|_digest, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
        .build()
}

pub(super) fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn read_whole(blob: &dyn Blob, max_bytes: usize) -> Result<Bytes, Failure> {
    let size = usize::try_from(blob.size())
        .ok()
        .filter(|size| *size <= max_bytes)
        .ok_or_else(|| StorageError::corrupt("read a manifest"))?;
    let mut whole = BytesMut::with_capacity(size);
    while whole.len() < size {
        let bytes = blob.read_at(whole.len() as u64, size - whole.len()).await?;
        if bytes.is_empty() {
            return Err(StorageError::corrupt("read a manifest").into());
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(whole.freeze())
}
