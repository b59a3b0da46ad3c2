//! The one shared state, built once from a valid configuration.

use std::{sync::Arc, time::Duration};

use gantry_model::Namespaces;
use gantry_registry::Registry;

use crate::{auth::Authentication, policy::Policy, telemetry::Telemetry};

/// Everything a request needs. Shared behind one `Arc`.
#[derive(Debug)]
pub struct App {
    /// Every name the gateway answers to.
    pub namespaces: Namespaces,
    /// The domain.
    pub registry: Registry,
    /// Credentials to principals, and our own tokens.
    pub authentication: Authentication,
    /// Operations to permits.
    pub policy: Policy,
    /// Log, metrics, audit.
    pub telemetry: Arc<Telemetry>,
    /// What the edge enforces.
    pub edge: EdgeSettings,
}

/// What the edge enforces.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// `scheme://host[:port]` that clients reach us by; `None` = from the request and trusted proxies.
    pub external_url: Option<url::Url>,
    /// Peers whose `X-Forwarded-*` headers are believed.
    pub trusted_proxies: Vec<crate::config::Network>,
    /// How long a connection may take to send its first byte, and its whole request head.
    pub header_timeout: Duration,
    /// How long an idle keep-alive connection is kept.
    pub idle_timeout: Duration,
    /// Bodies in either direction slower than this are aborted, in bytes per second; 0 = never.
    pub minimum_rate: u64,
    /// Over how much waiting for the client the rate is measured; 30 s.
    pub minimum_rate_window: Duration,
    /// How long authentication and authorization may take together.
    pub decision_deadline: Duration,
    /// How long a drain waits for requests in flight.
    pub drain_timeout: Duration,
    /// Connections at once, over all listeners.
    pub max_connections: usize,
    /// Bytes of a single uploaded blob at most; `None` = no limit.
    pub max_blob_bytes: Option<u64>,
}
