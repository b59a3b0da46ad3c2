//! How a mirror's upstream is reached, as written: account, TLS, proxy, limits.
//!
//! Owns the form only; `resolve/upstream.rs` owns the meaning. The doc comments are the manual.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{SecretFile, SizeEntry, TlsMinimum};
use crate::config::text::{BindingName, DurationText, HostText, ProxyText, RateText, UrlText};

/// An account at an upstream: `username` and `password`, or one of `identity_token`, `helper` and `exec`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Credentials")]
pub(crate) struct CredentialsFile {
    /// The user name.
    pub(crate) username: Option<String>,
    /// The password or access token.
    pub(crate) password: Option<SecretFile>,
    /// An identity (refresh) token, exchanged at the upstream's token endpoint.
    pub(crate) identity_token: Option<SecretFile>,
    /// A docker credential helper: `ecr-login` runs `docker-credential-ecr-login get`.
    pub(crate) helper: Option<BindingName>,
    /// A program and its arguments that does what a helper does: reads `server`, prints {"Username": …, "Secret": …}.
    #[schemars(length(min = 1))]
    pub(crate) exec: Option<Vec<String>>,
    /// What the helper is asked for. Default: the host of `url`, or `https://index.docker.io/v1/` for Docker Hub.
    pub(crate) server: Option<String>,
    /// Environment variables the helper may see beside PATH and HOME. Default: none.
    pub(crate) pass_environment: Option<Vec<String>>,
    /// How long the helper may take. Default: 10s.
    pub(crate) timeout: Option<DurationText>,
    /// How long its answer is used; a refusal by the upstream asks it sooner. Default: 15m.
    pub(crate) refresh: Option<DurationText>,
}

/// Who decides what those who ask may have of a mirror.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Callers")]
pub(crate) struct CallersFile {
    /// Whose word is needed before anything of a repository is served. Default: plugins.
    pub(crate) authorized_by: Option<AuthorizedByText>,
    /// How long the upstream's yes is believed, and the longest life of a token that rests on it; with `authorized_by: upstream`.
    /// Default: 60s.
    pub(crate) remember_for: Option<DurationText>,
}

/// Whose word is needed.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum AuthorizedByText {
    /// The authorizer plugins'.
    Plugins,
    /// Theirs, and the upstream's about the caller: who shows nothing, or a user of this gateway, gets what is public there; who
    /// shows a credential of the upstream's gets what that may pull.
    Upstream,
}

/// What TLS to an upstream rests on. The files are PEM.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamTls")]
pub(crate) struct UpstreamTlsFile {
    /// Certificates trusted beside the system's own, also of the servers it redirects to. Default: none.
    pub(crate) ca: Option<String>,
    /// The client certificate and its chain, shown to the origin of `url` only. Default: none.
    pub(crate) certificate: Option<String>,
    /// Its private key.
    pub(crate) key: Option<String>,
    /// The oldest version of TLS. Default: "1.2".
    pub(crate) minimum: Option<TlsMinimum>,
}

/// A URL, `environment`, or all of a proxy.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum ProxyEntry {
    Text(ProxyText),
    Full(ProxyFile),
}

/// A proxy. Behind it names are resolved by the proxy, so that it is the proxy that must keep upstreams from leading to private
/// addresses; what is written as an address, or as a name that cannot be public, is still refused here.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Proxy")]
pub(crate) struct ProxyFile {
    /// Where it is.
    #[schemars(required)]
    pub(crate) url: Option<UrlText>,
    /// The user name there. Default: none.
    pub(crate) username: Option<String>,
    /// Its password.
    pub(crate) password: Option<SecretFile>,
    /// Hosts that are reached without it; `example.com` also covers what is below it. Default: none.
    pub(crate) bypass: Option<Vec<HostText>>,
}

/// How much and how slowly an upstream is asked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpstreamLimits")]
pub(crate) struct UpstreamLimitsFile {
    /// Requests and bodies under way at once. Default: 64.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) concurrency: Option<u32>,
    /// Requests per second over time; a second's worth may go at once. Default: as many as come.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) requests_per_second: Option<NonZeroU32>,
    /// How long a request may wait for its turn before it fails. Default: 30s.
    pub(crate) queue_timeout: Option<DurationText>,
    /// For resolving, connecting and TLS together. Default: 10s.
    pub(crate) connect_timeout: Option<DurationText>,
    /// The longest silence, before an answer and within a body. Default: 30s.
    pub(crate) silence_timeout: Option<DurationText>,
    /// Bodies slower than this for half of `silence_timeout` are given up. Default: 1KiB/s.
    pub(crate) slowest_rate: Option<RateText>,
}

/// How a large blob is fetched in several requests at once. Each counts in `limits`, and is made only while there is a place for it there.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Parallel")]
pub(crate) struct ParallelFile {
    /// Requests at once for one blob, each for 8 MiB of it; for each but one so much may be in memory. Default: 4.
    #[schemars(range(min = 2, max = 16))]
    pub(crate) ranges: Option<u32>,
    /// How large a blob must be, by its manifest; at least 16MiB. Default: 64MiB.
    pub(crate) from: Option<SizeEntry>,
}
