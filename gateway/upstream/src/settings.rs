//! What a registry client is told about its upstream, and why it may refuse to be built from that.

use std::{fmt, num::NonZeroU32, time::Duration};

use http::{HeaderName, HeaderValue};
use url::Url;
use zeroize::Zeroizing;

use crate::{credential::CredentialSource, error::BoxError};

/// One upstream, as configured.
#[derive(Clone, Eq, PartialEq)]
pub struct ClientSettings {
    /// The mirror's name, for errors.
    pub name: String,
    /// Where the registry lies. A path in it goes before `/v2`; what comes after a `/v2` of its own goes before every repository's
    /// name (`https://harbor.example/v2/hub-proxy`).
    pub url: Url,
    /// Other places of the same content, asked in order when the one before is unavailable or rate limited.
    pub alternatives: Vec<Url>,
    /// For the origin of `url` only. Alternatives on another origin are asked anonymously.
    pub credentials: Option<CredentialSource>,
    /// Origins of token endpoints that the upstream may name beside those of its own domain.
    pub token_realms: Vec<Url>,
    /// Sent with every request of ours to the origin of `url`, and to nothing else: no token endpoint, no redirect, no alternative.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Resolving, connecting and the TLS handshake, together.
    pub connect_timeout: Duration,
    /// The longest silence: before the response's head, and between two parts of its body.
    pub idle_timeout: Duration,
    /// Bytes per second a body must bring, measured over half of `idle_timeout`; 0 switches the rule off.
    pub minimum_rate: u64,
    /// Requests and bodies under way at once; 0 counts as 1.
    pub max_concurrency: usize,
    /// How long a request may wait for its turn, by either limit, before it fails.
    pub queue_timeout: Duration,
    /// Requests per second over time; `None` = as many as come.
    pub requests_per_second: Option<NonZeroU32>,
    /// What TLS rests on.
    pub tls: Tls,
    /// The proxies to go through; `None` = straight on.
    pub proxy: Option<Proxy>,
    /// The `User-Agent` header.
    pub user_agent: String,
}

/// What TLS rests on.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Tls {
    /// PEM certificates trusted beside the platform's own roots.
    pub roots: Option<Vec<u8>>,
    /// Who we are, PEM: the certificate and its chain, and the private key. Shown to the origin of the URL only.
    pub identity: Option<Zeroizing<Vec<u8>>>,
    /// Whether TLS 1.2 is refused.
    pub only_1_3: bool,
}

/// The proxies to go through. `CONNECT` for https; a user and password in a proxy's URL are for that proxy.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Proxy {
    /// For https URLs.
    pub https: Option<Url>,
    /// For http URLs.
    pub http: Option<Url>,
    /// Hosts, domains and networks that are reached without, as in `NO_PROXY`.
    pub bypass: String,
}

impl ClientSettings {
    /// Whether a client made from the one can serve as a client of the other once its credentials are replaced.
    #[must_use]
    pub fn same_but_for_credentials(&self, other: &Self) -> bool {
        let other = Self {
            credentials: self.credentials.clone(),
            ..other.clone()
        };
        *self == other
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tls")
            .field("only_1_3", &self.only_1_3)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Proxy {
    /// Leaves out the URLs, which carry passwords.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Proxy").finish_non_exhaustive()
    }
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
    /// A proxy's URL is none, or not http or https.
    #[error("the proxy's URL must be http or https, with a host")]
    Proxy,
    /// `tls.identity` is no certificate with its key.
    #[error("the client certificate and its key are not PEM, or not each other's")]
    Identity(#[source] BoxError),
    /// `tls.roots` has no certificate, or a broken one.
    #[error("the root certificates are not PEM certificates")]
    RootCertificates(#[source] Option<BoxError>),
    /// The TLS stack refuses: a certificate is no certificate, the platform has no roots, or the user agent is no header value.
    #[error("cannot set up the HTTP client")]
    Client(#[source] BoxError),
}
