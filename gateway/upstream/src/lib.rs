//! Client of other registries: challenges, tokens, retries, credentials bound to an origin.
//!
//! Map: this file is the port; `error` what can go wrong and what a caller can do about it; `settings` what a client is told.
//! `client` speaks the distribution API over one or several base URLs, `endpoint` sends a request to one of them, `answer` and `body`
//! read what comes back, `list` and `elements` a list page by page, `transport` holds the connections, `outgoing` makes them, `breaker` spares an upstream that fails and `rate` one that limits.
//! `challenge`, `token`, `realm`, `credential`, `account` and `helper` are authentication; `redirect` and `address` say where an
//! upstream may send us. `session` is as whom it is asked, `rights` asks it as somebody else. Knows nothing of storage, freshness or policy.
//! Invariant: a credential leaves only for the origin it is bound to, or a realm that origin is allowed to name.

pub mod client;
pub mod error;

mod account;
mod address;
mod answer;
mod body;
mod breaker;
mod challenge;
mod credential;
mod elements;
mod endpoint;
mod helper;
mod list;
mod outgoing;
mod rate;
mod realm;
mod redirect;
mod rights;
mod session;
mod settings;
mod token;
mod transport;

use std::fmt::Debug;

pub use address::Reach;
use async_trait::async_trait;
use bytes::Bytes;
pub use client::{EndpointStats, RegistryClient, Stats};
pub use credential::{CredentialSource, Credentials};
pub use error::{Cause, Fault, Kind, UpstreamError, causes};
use futures_util::stream::BoxStream;
use gantry_model::{AcceptedTypes, Digest, MediaType, Reference, RepositoryName};
pub use helper::Helper;
pub use list::{ListMemory, ListPage, ListRoom, ListUse, NextPage, Texts};
pub use outgoing::{EndlessHead, HttpClient, HttpError, HttpSettings, requests, tls_config};
pub use rate::Quota;
pub use settings::{BuildError, ClientSettings, Proxy, Tls};

/// What a HEAD of a manifest told. HEADs are not counted by Docker Hub's pull limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`; some registries leave it out.
    pub digest: Option<Digest>,
    /// `Content-Type`, parameters taken off.
    pub media_type: Option<MediaType>,
    /// `Content-Length`.
    pub size: Option<u64>,
}

/// A manifest as the upstream sent it, not yet held against a digest.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    /// `Content-Type`, parameters taken off.
    pub media_type: Option<MediaType>,
    /// `Docker-Content-Digest`, when sent.
    pub digest: Option<Digest>,
    /// The bytes, at most [`gantry_model::manifest::MAX_MANIFEST_BYTES`].
    pub bytes: Bytes,
}

/// A blob's bytes as they arrive, not verified.
pub struct BlobStream {
    /// Length of the whole blob, when the upstream says.
    pub size: Option<u64>,
    /// Where the first byte lies: the offset asked for, or 0 when the upstream ignores ranges.
    pub offset: u64,
    /// Where the last byte lies, when a part was asked for and is sent; `None` when the bytes go on to the blob's end.
    pub last: Option<u64>,
    /// What the upstream calls this state of the content, when it says (`ETag`).
    pub etag: Option<String>,
    /// The bytes. An error ends it; so does an upstream slower than the configured minimum rate.
    pub bytes: BoxStream<'static, Result<Bytes, UpstreamError>>,
}

impl Debug for BlobStream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BlobStream")
            .field("size", &self.size)
            .field("offset", &self.offset)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// A part of a blob that is asked for by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Part {
    /// Its first byte.
    pub first: u64,
    /// Its last byte.
    pub last: u64,
    /// Whether it waits for its turn, as every other request does. If not, it is [`Cause::Saturated`] when there is none at once.
    pub waits: bool,
}

/// Another registry.
#[async_trait]
pub trait Upstream: Debug + Send + Sync {
    /// What the reference names now, of the types that are read here and the further ones of `accepts`.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`Kind::NotFound`] only when the upstream itself said so.
    async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<ManifestHead, UpstreamError>;

    /// The manifest's bytes, of the types that [`Upstream::head_manifest`] asks for.
    ///
    /// # Errors
    /// [`UpstreamError`].
    async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<FetchedManifest, UpstreamError>;

    /// The blob's length, by HEAD.
    ///
    /// # Errors
    /// [`UpstreamError`].
    async fn stat_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError>;

    /// The blob's bytes from `offset` on.
    ///
    /// # Errors
    /// [`UpstreamError`].
    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError>;

    /// Some of the blob's bytes, or all of them from an upstream that ignores ranges.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`Kind::Invalid`] for another part than was asked for.
    async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Part,
    ) -> Result<BlobStream, UpstreamError>;

    /// A page of tags: the first, or the one that the page before it named. A document for which there is no room is an error.
    ///
    /// # Errors
    /// [`UpstreamError`].
    async fn tags(
        &self,
        repository: &RepositoryName,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError>;

    /// A page of the descriptors of what refers to a manifest, unfiltered, as JSON texts. Each is an object with a digest.
    ///
    /// # Errors
    /// [`UpstreamError`]; [`Kind::NotFound`] when the upstream has no referrers API, however it says that.
    async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError>;
}

/// What an upstream lets others do. A trait of its own: a cache fills itself without it.
#[async_trait]
pub trait CallerRights: Debug + Send + Sync {
    /// Whether the credential is one of the upstream's. `false` also where the upstream asked for no proof: then it vouches for nobody.
    ///
    /// # Errors
    /// [`UpstreamError`] when the upstream did not say.
    async fn knows(&self, caller: &Credentials) -> Result<bool, UpstreamError>;

    /// Whether the caller may pull from the repository; `None` = somebody who shows nothing. `known` is a manifest that it had lately,
    /// which is cheaper to ask for than a list.
    ///
    /// # Errors
    /// [`UpstreamError`] when the upstream did not say.
    async fn may_pull(
        &self,
        caller: Option<&Credentials>,
        repository: &RepositoryName,
        known: Option<&Reference>,
    ) -> Result<bool, UpstreamError>;
}
