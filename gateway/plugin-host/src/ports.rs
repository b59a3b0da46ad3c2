//! What the binary brings: the plugins' key-value store, reads of the registry, a way out to other services, secrets, limits.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Descriptor, Digest, Requester, TagState, glob::Glob};
use http::{HeaderMap, Method};
use url::Url;

use crate::{grant::HttpGrant, redaction::Redaction};

/// A secret's bytes. `Debug` never shows them.
#[derive(Clone)]
pub struct Secret(pub Arc<[u8]>);

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(***)")
    }
}

/// What a binding grants. Everything not named is refused with the interface's own `not-granted`.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    /// Key-value buckets by name; private to the binding.
    pub kv: Vec<String>,
    /// Repositories whose manifests, tags, referrers and blobs may be read, by glob on canonical names. A read is made as the
    /// requesting principal and this grant together.
    pub registry: Vec<Glob>,
    /// Outbound requests.
    pub http: Vec<HttpGrant>,
    /// Named secrets.
    pub secrets: BTreeMap<String, Secret>,
    /// Whether `secret-ref.reveal` gives the bytes.
    pub secret_reveal: bool,
}

/// What one call may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Wall time of a call, host calls included, but not the wait for a password check.
    pub deadline: Duration,
    /// Time the guest itself may compute.
    pub cpu: Duration,
    /// Wall time of a call that takes a batch of events: nobody waits for its answer, and it waits for other services.
    pub batch_deadline: Duration,
    /// Time the guest itself may compute over a batch of events.
    pub batch_cpu: Duration,
    /// Linear memory, in bytes.
    pub memory_bytes: usize,
    /// Calls at once.
    pub concurrency: usize,
    /// Bytes the guest may make the host hold per call.
    pub hostcall_bytes: usize,
    /// Resource handles.
    pub handles: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_millis(250),
            cpu: Duration::from_millis(20),
            batch_deadline: Duration::from_secs(30),
            batch_cpu: Duration::from_secs(1),
            memory_bytes: 64 << 20,
            concurrency: 64,
            hostcall_bytes: 1 << 20,
            handles: 256,
        }
    }
}

/// A component to load. `Debug` shows neither its bytes nor its configuration, which may hold the text of secret files.
#[derive(Clone)]
pub struct PluginSource {
    /// The binding's name.
    pub name: Arc<str>,
    /// The component's bytes.
    pub component: Bytes,
    /// The binding's `config`, with every `{ file: … }` replaced by the file's text.
    pub config: serde_json::Value,
    /// What it may use.
    pub grants: Grants,
    /// How much of it.
    pub limits: Limits,
    /// What its log lines must not show.
    pub redaction: Redaction,
}

impl fmt::Debug for PluginSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PluginSource")
            .field("name", &self.name)
            .field("grants", &self.grants)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A value of the key-value store, or of a counter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyValueEntry {
    /// The bytes.
    pub value: Vec<u8>,
    /// Raised by every put.
    pub version: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

/// A port failed; the guest sees `unavailable`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct PortError(pub String);

/// The plugins' key-value store. `bucket` is `<binding>/<bucket>`.
#[async_trait]
pub trait KeyValue: fmt::Debug + Send + Sync {
    /// The value.
    ///
    /// # Errors
    /// [`PortError`].
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KeyValueEntry>, PortError>;
    /// Writes under a condition; see `gantry-storage`'s `KeyValueStore::put`.
    ///
    /// # Errors
    /// [`PortError`].
    async fn put(
        &self,
        bucket: &str,
        key: &str,
        value: &[u8],
        expected: Option<Option<u64>>,
        rules: PutRules,
    ) -> Result<PutOutcome, PortError>;
    /// Deletes.
    ///
    /// # Errors
    /// [`PortError`].
    async fn delete(&self, bucket: &str, key: &str) -> Result<(), PortError>;
    /// Adds to a window counter; none when there is no room for a new one.
    ///
    /// # Errors
    /// [`PortError`].
    async fn increment(
        &self,
        bucket: &str,
        key: &str,
        addition: Addition,
    ) -> Result<Option<u64>, PortError>;
}

/// When a put happens, when its value ends, and how much its bucket may take.
#[derive(Clone, Copy, Debug)]
pub struct PutRules {
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// The end, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// Bytes of the bucket.
    pub max_bytes: u64,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PutOutcome {
    /// It is written, as this version.
    Written(u64),
    /// Its condition did not hold.
    Lost,
    /// The bucket is full.
    Full,
}

/// An addition to a window counter.
#[derive(Clone, Copy, Debug)]
pub struct Addition {
    /// How much.
    pub by: u32,
    /// The window's length.
    pub window_ms: u32,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// Bytes of the bucket.
    pub max_bytes: u64,
}

/// A read of the registry failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The requesting principal may not read there.
    #[error("not granted")]
    NotGranted,
    /// Not there.
    #[error("not found")]
    NotFound,
    /// More than a guest may take at once.
    #[error("too large")]
    TooLarge,
    /// Not now.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Reads of what is stored here. Never asks an upstream, never runs hooks: a hook that reads must not cause a hook.
#[async_trait]
pub trait RegistryReads: fmt::Debug + Send + Sync {
    /// What a tag names.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn resolve_tag(
        &self,
        requester: &Requester,
        repository: &str,
        tag: &str,
    ) -> Result<Option<TagState>, ReadError>;
    /// A stored manifest by tag or digest.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn manifest(
        &self,
        requester: &Requester,
        repository: &str,
        reference: &str,
    ) -> Result<(Descriptor, Bytes), ReadError>;
    /// Referrers of a digest.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn referrers(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ReadError>;
    /// Stored manifests that name a digest.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn parents(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<Vec<Digest>, ReadError>;
    /// The length of a stored blob.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn blob_size(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<u64, ReadError>;
    /// A part of a stored blob.
    ///
    /// # Errors
    /// [`ReadError`].
    async fn read_blob(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ReadError>;
}

/// How far away an outbound request may lead, judged by the address that is dialed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reach {
    /// Addresses of the internet only.
    Public,
    /// Private addresses too; link-local ones and the metadata services of clouds never.
    Private,
    /// This machine only: `localhost`.
    Loopback,
    /// The address that the URL itself holds, whichever it is: the grant holds the same one.
    Literal,
}

/// A request to another service: one exchange, no redirects. The plugin host has held the URL against the binding's grants.
/// `Debug` shows neither header values, which may be secrets, nor the query.
pub struct OutboundRequest {
    /// The method.
    pub method: Method,
    /// The URL; http or https, without user name and fragment.
    pub url: Url,
    /// Headers of the guest. Secrets are marked sensitive.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Where the URL's name may lead.
    pub reach: Reach,
    /// How long until the whole response is there.
    pub timeout: Duration,
    /// Bytes of the response's body at most.
    pub max_response_bytes: usize,
}

impl fmt::Debug for OutboundRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OutboundRequest")
            .field("method", &self.method)
            .field("host", &self.url.host_str())
            .field("path", &self.url.path())
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("body_bytes", &self.body.len())
            .field("reach", &self.reach)
            .finish_non_exhaustive()
    }
}

/// What another service answered.
#[derive(Clone, Debug)]
pub struct OutboundResponse {
    /// The status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// Why there is no response.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OutboundError {
    /// The name leads to an address that the request may not reach.
    #[error("the address is out of reach")]
    Refused,
    /// The name does not resolve.
    #[error("the name does not resolve")]
    Dns,
    /// No connection.
    #[error("cannot connect")]
    Connect,
    /// No trusted connection.
    #[error("no trusted connection")]
    Tls,
    /// No response in time.
    #[error("no response in time")]
    Timeout,
    /// A body over the limit.
    #[error("the body is too large")]
    TooLarge,
    /// Anything else, for a person.
    #[error("{0}")]
    Other(String),
}

/// The way out to other services.
#[async_trait]
pub trait Outbound: fmt::Debug + Send + Sync {
    /// Sends a request and waits for the whole response; follows nothing.
    ///
    /// # Errors
    /// [`OutboundError`].
    async fn send(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError>;
}

/// What every plugin of a host shares.
#[derive(Clone)]
pub struct HostPorts {
    /// The plugins' key-value store.
    pub kv: Arc<dyn KeyValue>,
    /// Reads of the registry.
    pub registry: Arc<dyn RegistryReads>,
    /// The way out to other services.
    pub outbound: Arc<dyn Outbound>,
    /// Milliseconds since 1970.
    pub now_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Where compiled components are kept; `None` compiles at every load.
    pub cache_directory: Option<std::path::PathBuf>,
    /// Password checks at once.
    pub password_checks: usize,
}

impl fmt::Debug for HostPorts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HostPorts")
            .field("cache_directory", &self.cache_directory)
            .finish_non_exhaustive()
    }
}
