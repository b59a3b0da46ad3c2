//! The words that the hooks share, from the contract's `types`, with helpers to make them.

use std::time::Duration;

pub use crate::bindings::imports::gantry::plugin::types::{
    AttrValue, Attributes, CacheHint, Client, Denial, DenialCode, Descriptor, Document,
    ManifestFacts, ManifestKind, OpaqueDocument, Operation, Platform, PluginError, Principal,
    Reason, Scope, TagState, Vary,
};
use crate::bindings::imports::gantry::plugin::{http, kv, registry};

impl Principal {
    /// Somebody with an id, a kind (`user`, `robot`, `ci-job`, `workload`) and the authenticator's own word; no groups, no attributes, no
    /// end.
    pub fn new(id: impl Into<String>, kind: impl Into<String>, issuer: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind: kind.into(),
            issuer: issuer.into(),
            groups: Vec::new(),
            attributes: Vec::new(),
            expires_at: None,
        }
    }
}

impl Document {
    /// The manifest, unless the document is opaque.
    #[must_use]
    pub fn manifest(&self) -> Option<&ManifestFacts> {
        match self {
            Self::Manifest(facts) => Some(facts),
            Self::Opaque(_) => None,
        }
    }
}

impl ManifestFacts {
    /// An annotation of the manifest.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        let found = self.annotations.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str())
    }
}

impl Reason {
    /// A stable code and a sentence.
    pub fn new(code: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            text: text.into(),
        }
    }
}

impl Denial {
    /// A refusal with a sentence for the client, which is also the recorded reason until one is set.
    pub fn new(code: DenialCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            reason: Reason::new("policy", message.clone()),
            message,
            detail: None,
            retry_after_ms: None,
            docs_url: None,
        }
    }

    /// Names the rule that refused.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.reason.code = code.into();
        self
    }
}

impl CacheHint {
    /// Not to be reused.
    #[must_use]
    pub fn none() -> Self {
        Self::lasting(Duration::ZERO)
    }

    /// May be reused for `ttl`.
    #[must_use]
    pub fn lasting(ttl: Duration) -> Self {
        Self {
            ttl_ms: u32::try_from(ttl.as_millis()).unwrap_or(u32::MAX),
            stale_if_error_ms: 0,
            also: Vary::empty(),
        }
    }
}

impl From<registry::ReadError> for PluginError {
    /// For a guest that cannot decide without the read. One that can matches on the error instead.
    fn from(error: registry::ReadError) -> Self {
        match error {
            registry::ReadError::NotGranted => Self::Misconfigured(
                "the binding does not grant this read of the registry".to_owned(),
            ),
            registry::ReadError::NotFound => {
                Self::Upstream("the content is not stored here".to_owned())
            }
            registry::ReadError::TooLarge => {
                Self::Upstream("the content is too large to read".to_owned())
            }
            registry::ReadError::Unavailable(detail) => Self::Upstream(detail),
        }
    }
}

impl From<kv::KvError> for PluginError {
    fn from(error: kv::KvError) -> Self {
        match error {
            kv::KvError::NotGranted => {
                Self::Misconfigured("the binding does not grant this bucket".to_owned())
            }
            kv::KvError::Quota => Self::Upstream("the bucket is full".to_owned()),
            kv::KvError::TooLarge => Self::Upstream("the key or the value is too large".to_owned()),
            kv::KvError::Unavailable(detail) => Self::Upstream(detail),
        }
    }
}

impl From<http::Error> for PluginError {
    fn from(error: http::Error) -> Self {
        match error {
            http::Error::NotAllowed(address) => {
                Self::Misconfigured(format!("the binding does not grant requests to {address}"))
            }
            http::Error::Timeout => Self::Deadline,
            other => Self::Upstream(other.to_string()),
        }
    }
}
