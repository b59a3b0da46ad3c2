//! The port for facts: which repository holds which manifests, tags, blobs and referrers, and which uploads are open.
//!
//! One [`MetadataStore::commit`] per acknowledged verb; a tag moves only by compare-and-set. Knows nothing of policy.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc};

use async_trait::async_trait;
use gantry_model::{
    Algorithm, Digest, Document, Event, Manifest, MediaType, Page, RepositoryName, Tag, TagState,
    UploadId, Version,
};

use crate::{error::StorageError, hash::digest_of};

/// How a repository came to have content. Content is readable through a repository only by the origin that the repository reads from: a
/// mirror reads what its own upstream delivered, a hosted repository what was pushed to it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ContentOrigin {
    /// A client pushed it, or mounted it from a repository that it may read.
    Pushed,
    /// The upstream with this URL delivered it. The caller normalises the URL: equal text is the same upstream.
    Upstream(Arc<str>),
}

impl ContentOrigin {
    /// The text in a store: the upstream's URL, or nothing.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Pushed => "",
            Self::Upstream(url) => url,
        }
    }
}

/// A repository that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RepositoryRecord {
    /// Whether a manifest was ever pushed to it, by tag or by digest, and no operator released the name since.
    pub claimed: bool,
    /// Raised by deletion, so that tokens and caches of a former repository of that name do not apply; starts at 1.
    pub generation: u64,
}

/// A manifest of a repository. Its bytes are a blob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestRecord {
    /// Its digest.
    pub digest: Digest,
    /// Its media type, served as `Content-Type`.
    pub media_type: MediaType,
    /// Its length in bytes.
    pub size: u64,
    /// See [`gantry_model::Manifest::artifact_type`].
    pub artifact_type: Option<String>,
    /// The manifest it refers to.
    pub subject: Option<Digest>,
    /// When it was first stored here, in milliseconds since 1970.
    pub pushed_at_ms: u64,
    /// The principal that pushed it, or the mirror that filled it.
    pub pushed_by: String,
}

/// Which bytes a manifest is, and as what they are served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    /// The digest of the bytes.
    pub digest: Digest,
    /// Their media type.
    pub media_type: MediaType,
    /// How many there are.
    pub size: u64,
}

impl ManifestRecord {
    /// The record of a document that is stored. An opaque one has no artifact type and no subject.
    #[must_use]
    pub fn of(document: &Document, stored: Stored, pushed_at_ms: u64, pushed_by: String) -> Self {
        let manifest = document.manifest();
        let subject = manifest.and_then(|manifest| manifest.subject.as_ref());
        let Stored {
            digest,
            media_type,
            size,
        } = stored;
        Self {
            digest,
            media_type,
            size,
            artifact_type: manifest.and_then(|manifest| manifest.artifact_type.clone()),
            subject: subject.and_then(|subject| subject.digest.known()).cloned(),
            pushed_at_ms,
            pushed_by,
        }
    }
}

/// A document's annotations as a JSON object; an opaque one has none.
#[must_use]
pub fn annotations_in(document: &Document) -> String {
    let manifest = document.manifest();
    manifest.map_or_else(
        || "{}".to_owned(),
        |manifest| serde_json::json!(manifest.annotations).to_string(),
    )
}

/// Content that a manifest names: a config, layer or child manifest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReferenceRecord {
    /// Which content.
    pub digest: Digest,
    /// What the parent says it is.
    pub media_type: MediaType,
    /// How long the parent says it is.
    pub size: u64,
    /// As what the parent names it.
    pub named: Named,
}

/// As what a manifest names content. Whoever may push a manifest may write any digest into it, so not every naming is a claim to the content.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Named {
    /// The config or a layer of an image.
    Blob,
    /// A manifest of an index.
    Child,
    /// A layer with `urls`: it lies elsewhere, and the repository need not have it.
    Elsewhere,
    /// Its digest is written in an opaque document, which may name it as anything.
    Mention,
}

impl ReferenceRecord {
    /// What a document names. An opaque one may name whatever it mentions, so that stays as long as it does; it is never fetched for that.
    #[must_use]
    pub fn all_in(document: &Document) -> Vec<Self> {
        let mentioned = |digest: &Digest| Self {
            digest: digest.clone(),
            media_type: MediaType::octet_stream(),
            size: 0,
            named: Named::Mention,
        };
        match document {
            Document::Manifest(manifest) => Self::all_of(manifest),
            Document::Opaque(opaque) => opaque.mentions.iter().map(mentioned).collect(),
        }
    }

    /// What a manifest names, except its subject. The same said twice is kept once, as the stronger of the two. What has a digest of an
    /// unknown algorithm can never be here, so nothing is kept of it.
    fn all_of(manifest: &Manifest) -> Vec<Self> {
        let blobs = manifest.config.iter().chain(&manifest.layers);
        let blobs = blobs.map(|blob| match blob.urls.is_empty() {
            true => (blob, Named::Blob),
            false => (blob, Named::Elsewhere),
        });
        let children = manifest.manifests.iter().map(|child| (child, Named::Child));
        let mut all = BTreeMap::new();
        for (descriptor, named) in blobs.chain(children) {
            let Some(digest) = descriptor.digest.known() else {
                continue;
            };
            let said = (digest, &descriptor.media_type, descriptor.size);
            let kept = all.entry(said).or_insert(named);
            *kept = named.min(*kept);
        }
        let records = all
            .into_iter()
            .map(|((digest, media_type, size), named)| Self {
                digest: digest.clone(),
                media_type: media_type.clone(),
                size,
                named,
            });
        records.collect()
    }
}

/// The parents that name the content as `named`, each once: those that make it a part of theirs, or may do so.
#[must_use]
pub fn naming(parents: Vec<(Digest, ReferenceRecord)>, named: Named) -> Vec<Digest> {
    let claiming = parents
        .into_iter()
        .filter(|(_, reference)| [named, Named::Mention].contains(&reference.named));
    let mut digests: Vec<Digest> = claiming.map(|(parent, _)| parent).collect();
    digests.sort();
    digests.dedup();
    digests
}

/// The indexes that name a manifest: by the digest it is asked for by, and by its sha256, which is how indexes name it.
///
/// # Errors
/// [`StorageError`].
pub async fn indexes_of(
    metadata: &dyn MetadataStore,
    (repository, origin): (&RepositoryName, &ContentOrigin),
    digest: &Digest,
    bytes: &[u8],
) -> Result<Vec<Digest>, StorageError> {
    let mut parents = metadata.parents(repository, origin, digest).await?;
    if digest.algorithm() != Algorithm::Sha256 {
        let canonical = digest_of(Algorithm::Sha256, bytes);
        parents.extend(metadata.parents(repository, origin, &canonical).await?);
    }
    Ok(naming(parents, Named::Child))
}

/// A tag.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TagRecord {
    /// The tag.
    pub tag: Tag,
    /// What it names.
    pub state: TagState,
    /// When an upstream last confirmed it, in milliseconds since 1970; 0 in hosted repositories.
    pub checked_at_ms: u64,
}

impl TagRecord {
    /// Whether an upstream said it. Nobody pushed it here.
    #[must_use]
    pub fn is_cached(&self) -> bool {
        self.checked_at_ms > 0
    }

    /// Whether the tag may be deleted by somebody who saw it name `expected`.
    pub(crate) fn may_go(&self, expected: &Digest) -> bool {
        self.state.digest == *expected && !self.state.immutable
    }
}

/// A manifest that refers to a subject.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReferrerRecord {
    /// The referring manifest.
    pub manifest: ManifestRecord,
    /// Its annotations as a JSON object. They may have megabytes, so that no cache holds them.
    pub annotations: String,
}

/// An open upload session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UploadRecord {
    /// Its name.
    pub upload: UploadId,
    /// The repository it belongs to.
    pub repository: RepositoryName,
    /// The principal it belongs to.
    pub principal: String,
    /// The algorithm its bytes are hashed with.
    pub algorithm: Algorithm,
    /// When it was opened, in milliseconds since 1970.
    pub started_at_ms: u64,
}

/// A tag to be pointed at a manifest by the same commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TagMove {
    /// The tag.
    pub tag: Tag,
    /// What it must name now: the digest the admission was told, or `None` = it must not exist.
    pub expected: Option<Digest>,
    /// Mark it immutable.
    pub set_immutable: bool,
    /// For mirrors: when the upstream confirmed it, in milliseconds since 1970; 0 otherwise.
    pub checked_at_ms: u64,
}

impl TagMove {
    /// Whether a tag with this record may move to `target`: it names what was expected, and no admission marked it immutable under
    /// another digest while this move was asked about.
    pub(crate) fn is_possible(&self, current: Option<&TagRecord>, target: &Digest) -> bool {
        let named = current.map(|record| &record.state.digest);
        let is_kept = current.is_some_and(|record| record.state.immutable) && named != Some(target);
        named == self.expected.as_ref() && !is_kept
    }

    /// The tag's record after the move to `manifest`: one that named it already keeps who pushed it and when, and the mark of
    /// immutability is never taken away.
    pub(crate) fn applied(
        &self,
        manifest: &ManifestRecord,
        current: Option<&TagRecord>,
    ) -> TagRecord {
        let same = current.filter(|record| record.state.digest == manifest.digest);
        let (pushed_at_ms, pushed_by) = match same {
            Some(record) => (record.state.pushed_at_ms, &record.state.pushed_by),
            None => (manifest.pushed_at_ms, &manifest.pushed_by),
        };
        // A push makes a cached tag one that was pushed.
        let is_push = self.checked_at_ms == 0;
        let was_checked_at_ms = same.filter(|_| !is_push);
        let was_checked_at_ms = was_checked_at_ms.map_or(0, |record| record.checked_at_ms);
        TagRecord {
            tag: self.tag.clone(),
            state: TagState {
                digest: manifest.digest.clone(),
                pushed_at_ms,
                pushed_by: pushed_by.clone(),
                immutable: self.set_immutable
                    || current.is_some_and(|record| record.state.immutable),
            },
            checked_at_ms: self.checked_at_ms.max(was_checked_at_ms),
        }
    }
}

/// A manifest becomes part of a repository, with its tags, references and referrer entry. Repeating it is harmless: the stored
/// manifest record is kept, the tags move.
#[derive(Clone, Debug)]
pub struct PushManifest {
    /// Where; made when it does not exist.
    pub repository: RepositoryName,
    /// How the repository came to have the manifest. [`ContentOrigin::Pushed`] claims the repository.
    pub origin: ContentOrigin,
    /// The manifest.
    pub manifest: ManifestRecord,
    /// Its annotations as a JSON object, for lists of referrers.
    pub annotations: String,
    /// What it names.
    pub references: Vec<ReferenceRecord>,
    /// Tags to move.
    pub tags: Vec<TagMove>,
    /// Digests that must be linked (blobs) or stored (manifests) in this repository, by the same origin, at the moment of the commit.
    pub required: Vec<Digest>,
}

/// One transaction.
#[derive(Clone, Debug)]
pub enum Commit {
    /// A commit, and the events that tell of it: both or neither. See [`crate::EventOutbox`].
    Telling {
        /// What changes.
        commit: Box<Self>,
        /// In the order in which it happened.
        events: Vec<Event>,
    },
    /// See [`PushManifest`].
    PushManifest(Box<PushManifest>),
    /// A blob becomes readable in a repository (made when it does not exist); closes the upload session it came by.
    LinkBlob {
        /// Where.
        repository: RepositoryName,
        /// How the repository came to have the blob.
        origin: ContentOrigin,
        /// Which.
        digest: Digest,
        /// Its length in bytes.
        size: u64,
        /// The session to close.
        upload: Option<UploadId>,
        /// The principal that uploaded or mounted the blob; see [`MetadataStore::has_pushed`].
        principal: Option<String>,
    },
    /// A manifest and exactly these tags go; fails with [`CommitError::TagMoved`] when other tags name it, or one of these does not, or
    /// is marked immutable.
    DeleteManifest {
        /// Where.
        repository: RepositoryName,
        /// Which.
        digest: Digest,
        /// The tags that name it, as the admissions were told.
        tags: Vec<Tag>,
        /// When, for the journal, in milliseconds since 1970.
        at_ms: u64,
        /// By whom, for the journal.
        by: String,
    },
    /// A tag goes, unless it is marked immutable.
    DeleteTag {
        /// Where.
        repository: RepositoryName,
        /// Which.
        tag: Tag,
        /// What it must name now.
        expected: Digest,
        /// When, for the journal, in milliseconds since 1970.
        at_ms: u64,
        /// By whom, for the journal.
        by: String,
    },
    /// A blob is no longer readable in a repository, whatever its origin.
    UnlinkBlob {
        /// Where.
        repository: RepositoryName,
        /// Which.
        digest: Digest,
    },
    /// A pushed blob is no longer readable in a repository, unless a pushed manifest names it: then it fails with [`CommitError::StillNamed`].
    DeleteBlob {
        /// Where.
        repository: RepositoryName,
        /// Which.
        digest: Digest,
    },
    /// Everything that was pushed to a repository goes, so that the name is its upstream's again. Fails with [`CommitError::TagMoved`] when a
    /// pushed tag is marked immutable, with [`CommitError::Absent`] when nothing was pushed.
    ReleaseRepository {
        /// Which.
        repository: RepositoryName,
        /// When, for the journal, in milliseconds since 1970.
        at_ms: u64,
        /// By whom, for the journal.
        by: String,
    },
    /// An upstream confirmed a tag.
    ConfirmTag {
        /// Where.
        repository: RepositoryName,
        /// Which.
        tag: Tag,
        /// What it must name now; otherwise nothing changes and the commit succeeds.
        digest: Digest,
        /// When, in milliseconds since 1970.
        checked_at_ms: u64,
    },
}

impl Commit {
    /// The repository it changes.
    #[must_use]
    pub fn repository(&self) -> &RepositoryName {
        match self {
            Self::PushManifest(push) => &push.repository,
            Self::LinkBlob { repository, .. }
            | Self::DeleteManifest { repository, .. }
            | Self::DeleteTag { repository, .. }
            | Self::UnlinkBlob { repository, .. }
            | Self::DeleteBlob { repository, .. }
            | Self::ReleaseRepository { repository, .. }
            | Self::ConfirmTag { repository, .. } => repository,
            Self::Telling { commit, .. } => commit.repository(),
        }
    }

    /// The same, telling of it.
    #[must_use]
    pub fn telling(self, events: Vec<Event>) -> Self {
        if events.is_empty() {
            return self;
        }
        Self::Telling {
            commit: Box::new(self),
            events,
        }
    }
}

/// A commit did not happen; nothing of it did.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// A tag names something else than expected, or was marked immutable and is to go elsewhere: ask admission again with what it is now.
    #[error("tag {tag} moved meanwhile")]
    TagMoved {
        /// Which.
        tag: Tag,
        /// What it names now.
        current: Option<Box<TagRecord>>,
    },
    /// A required blob or manifest is not in the repository.
    #[error("{digest} is not in the repository")]
    MissingReference {
        /// Which.
        digest: Digest,
    },
    /// A blob was to be deleted that a manifest of the repository names.
    #[error("manifest {manifest} names it")]
    StillNamed {
        /// One of the manifests.
        manifest: Digest,
    },
    /// What was to be deleted is not there.
    #[error("nothing there to delete")]
    Absent,
    /// The store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Facts about repositories. Lists are sorted by bytes; a page holds entries after [`Page::after`], at most
/// [`Page::limit`], which a store takes literally: `None` is all of them.
#[async_trait]
pub trait MetadataStore: Debug + Send + Sync {
    /// The repository; `None` when nothing was ever stored in it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryRecord>, StorageError>;

    /// Names of repositories that hold at least one manifest.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError>;

    /// A manifest that a repository has by this origin.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError>;

    /// A tag of a repository.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError>;

    /// Tags of a repository; only those that name `digest`, when one is given.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn tags(
        &self,
        repository: &RepositoryName,
        digest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<TagRecord>, StorageError>;

    /// Manifests that the repository has by this origin and whose subject is `subject`, whether or not that manifest exists.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn referrers(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError>;

    /// One manifest as a list of referrers shows it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn referrer(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ReferrerRecord>, StorageError>;

    /// The next of [`MetadataStore::referrers`], by digest, after `after`: at least one where there are any, and no more once their
    /// annotations have `max_bytes`. None at the end.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn referrers_after(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
        after: Option<&str>,
        max_bytes: usize,
    ) -> Result<Vec<ReferrerRecord>, StorageError>;

    /// The length of a blob that the repository has by this origin.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn blob(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError>;

    /// Manifests that the repository has by this origin and that name `digest`, with what each says it is.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn parents(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError>;

    /// The length of a blob that this origin delivered to any repository which still has it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn delivered(
        &self,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError>;

    /// Whether the principal itself uploaded the blob to the repository, or mounted it there.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn has_pushed(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        principal: &str,
    ) -> Result<bool, StorageError>;

    /// Performs one transaction: all of it, durably, or nothing.
    ///
    /// # Errors
    /// [`CommitError`].
    async fn commit(&self, commit: Commit) -> Result<(), CommitError>;

    /// The repository's version. It moves with every commit to the repository, after that is durable and before the commit returns. An
    /// answer that was requested after this version was taken is right for as long as the version stays.
    ///
    /// # Errors
    /// [`StorageError`], where the store must be asked.
    async fn version(&self, _repository: &RepositoryName) -> Result<Version, StorageError> {
        Ok(Version::Unknown)
    }
}

/// Upload sessions that outlive a restart.
#[async_trait]
pub trait UploadSessions: Debug + Send + Sync {
    /// Records a session.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn start_upload(&self, record: &UploadRecord) -> Result<(), StorageError>;

    /// A session that was started and not ended.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn upload(&self, upload: UploadId) -> Result<Option<UploadRecord>, StorageError>;

    /// Forgets a session; forgetting twice succeeds.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn end_upload(&self, upload: UploadId) -> Result<(), StorageError>;

    /// Sessions opened before `before_ms`, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn stale_uploads(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<UploadRecord>, StorageError>;
}
