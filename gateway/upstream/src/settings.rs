//! What a registry client is told about its upstream, and why it may refuse to be built from that.

use std::{fmt, time::Duration};

use url::Url;

use crate::credential::Credentials;

/// One upstream, as configured.
#[derive(Clone)]
pub struct ClientSettings {
    /// The mirror's name, for errors.
    pub name: String,
    /// Where the registry lies, without `/v2`; a path in it goes before `/v2`.
    pub url: Url,
    /// Other places of the same content, asked in order when the one before is unavailable or rate limited.
    pub alternatives: Vec<Url>,
    /// For the origin of `url` only. Alternatives on another origin are asked anonymously.
    pub credentials: Option<Credentials>,
    /// Resolving, connecting and the TLS handshake, together.
    pub connect_timeout: Duration,
    /// The longest silence: before the response's head, and between two parts of its body.
    pub idle_timeout: Duration,
    /// Bytes per second a body must bring, measured over half of `idle_timeout`; 0 switches the rule off.
    pub minimum_rate: u64,
    /// Requests and bodies under way at once; 0 counts as 1.
    pub max_concurrency: usize,
    /// PEM certificates trusted beside the platform's own roots.
    pub root_certificates: Option<Vec<u8>>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

impl fmt::Debug for ClientSettings {
    /// Leaves out the URLs, which a mistaken configuration may have put a password in.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ClientSettings")
            .field("name", &self.name)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

/// No client can be built from these settings.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `url` or one of `alternatives` cannot be the base of a registry.
    #[error(
        "an upstream's URL must be http or https, with a host and without user, query or fragment"
    )]
    Url,
    /// `root_certificates` has no certificate, or a broken one.
    #[error("the root certificates are not PEM certificates")]
    RootCertificates(#[source] Option<reqwest::Error>),
    /// The TLS stack refuses: a certificate is no certificate, the platform has no roots, or the user agent is no header value.
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}
