//! What an operation produced, free of HTTP. `http/respond.rs` alone turns it into bytes.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use gantry_model::{Digest, MediaType, Repository, RepositoryName, Tag, UploadId};
use gantry_storage::Blob;

use crate::error::Error;

/// An answer was served from the cache although its upstream did not confirm it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Staleness {
    /// How long ago the upstream last confirmed it.
    pub age: Duration,
    /// Why it was served all the same.
    pub why: Stale,
}

/// Why something stale was served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Stale {
    /// The upstream is being asked behind the client's back.
    Revalidating,
    /// The upstream could not be asked.
    UpstreamFails,
    /// The upstream's tag names this now, and the tag here is pinned.
    Pinned(Digest),
    /// The upstream's tag names this now, which is not here for long enough.
    TooYoung(Digest),
}

/// A manifest that may leave.
#[derive(Clone, Debug)]
pub struct ServedManifest {
    /// Where.
    pub repository: Repository,
    /// Its digest.
    pub digest: Digest,
    /// Its media type, exactly as stored.
    pub media_type: MediaType,
    /// Its bytes, exactly as pushed.
    pub bytes: Bytes,
    /// Whether the bytes are wanted, or only the headers.
    pub body: bool,
    /// Set when the upstream could not confirm the tag.
    pub stale: Option<Staleness>,
    /// From admission hooks.
    pub warnings: Vec<String>,
}

/// The next bytes of a blob that is arriving. All of them can be had at once.
#[derive(Clone, Debug)]
pub enum Arrived {
    /// They lie in a blob that grows.
    Stored {
        /// Where.
        blob: Arc<dyn Blob>,
        /// The first of them.
        offset: u64,
        /// How many: at least one.
        length: u64,
    },
    /// They lie nowhere else.
    Loose(Bytes),
}

impl Arrived {
    /// How many bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Stored { length, .. } => *length,
            Self::Loose(bytes) => bytes.len() as u64,
        }
    }
}

/// Where a blob's bytes come from.
pub enum BlobContent {
    /// A published blob.
    Published(Arc<dyn Blob>),
    /// A fill in progress: exactly the bytes of the range. An error aborts the connection; nothing is appended or padded.
    Filling(BoxStream<'static, Result<Arrived, Error>>),
    /// Nothing was asked for but the headers.
    HeadersOnly,
}

impl std::fmt::Debug for BlobContent {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Published(_) => "Published",
            Self::Filling(_) => "Filling",
            Self::HeadersOnly => "HeadersOnly",
        })
    }
}

/// A blob that may leave.
#[derive(Debug)]
pub struct ServedBlob {
    /// Where.
    pub repository: Repository,
    /// Its digest.
    pub digest: Digest,
    /// The whole blob's length; `None` only while a fill's upstream has not said.
    pub size: Option<u64>,
    /// The part that is served, when not the whole.
    pub range: Option<RangeInclusive<u64>>,
    /// Its bytes.
    pub content: BlobContent,
    /// From admission hooks.
    pub warnings: Vec<String>,
}

/// How far an upload session is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UploadState {
    /// Where.
    pub repository: Repository,
    /// Which session.
    pub upload: UploadId,
    /// Bytes received.
    pub received: u64,
}

/// A page of what refers to a manifest.
#[derive(Debug)]
pub struct ListedReferrers {
    /// Where.
    pub repository: Repository,
    /// To what.
    pub subject: Digest,
    /// The index's bytes.
    pub index: Bytes,
    /// The artifact type by which it was filtered.
    pub artifact_type: Option<String>,
    /// The digest after which `Link` goes on, when there are more.
    pub next: Option<String>,
    /// Set when the upstream could not be asked: how long ago it was.
    pub stale: Option<Duration>,
}

/// What an operation produced.
#[derive(Debug)]
pub enum Outcome {
    /// The registry speaks the API.
    Alive,
    /// Repositories, sorted.
    Catalog {
        /// Their names.
        repositories: Vec<RepositoryName>,
        /// The page size to repeat in `Link`, when there are more.
        next: Option<usize>,
    },
    /// A manifest or its headers.
    Manifest(Box<ServedManifest>),
    /// A manifest is stored.
    ManifestPushed {
        /// Where.
        repository: Repository,
        /// Its digest.
        digest: Digest,
        /// What it refers to, for `OCI-Subject`.
        subject: Option<Digest>,
        /// Tags from `?tag=` that were moved, for `OCI-Tag`.
        tags: Vec<Tag>,
        /// From admission hooks.
        warnings: Vec<String>,
    },
    /// A manifest, tag or blob is gone.
    Deleted,
    /// A blob, a part of it, or its headers.
    Blob(Box<ServedBlob>),
    /// An upload session is open and stands here (answered 202).
    UploadAccepted(UploadState),
    /// An upload session stands here (answered 204).
    UploadStatus(UploadState),
    /// An upload session is gone.
    UploadCancelled,
    /// A blob is readable in the repository.
    BlobPushed {
        /// Where.
        repository: Repository,
        /// Its digest.
        digest: Digest,
    },
    /// Tags, sorted.
    Tags {
        /// Where.
        repository: Repository,
        /// The tags.
        tags: Vec<Tag>,
        /// The page size to repeat in `Link`, when there are more.
        next: Option<usize>,
        /// Set when the upstream could not be asked: how long ago it was.
        stale: Option<Duration>,
    },
    /// An image index of referrers.
    Referrers(Box<ListedReferrers>),
}
