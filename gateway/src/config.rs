//! `gantry.yaml`: `ConfigFile` as written, [`Config`] as valid.
//!
//! Owns every default and every meaning of the configuration, and is the only place that reads it, the environment and the
//! files it names. A `Config` that exists is complete: no `Option` where there is a default, no path that is still relative.
//! Map: `tree` reads YAML with places, `environment` overrides scalars, `schema` and `check` find every mistake of form, `file`
//! is the form itself, `text` its grammars; `resolve` and what is below it find mistakes of meaning; `report` says all of them.

mod check;
mod environment;
pub(crate) mod file;
pub(crate) mod report;
mod resolve;
mod schema;
mod suggest;
pub(crate) mod text;
pub(crate) mod tree;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gantry_model::{Change, Namespaces, glob::Glob, namespace::MirrorNames};
use gantry_plugin_host::{Grants, Limits as PluginLimits};
use gantry_registry::{Freshness, Keep, Parallel, TagRule};
use gantry_upstream::ClientSettings;
use url::Url;

pub use self::{
    environment::Environment,
    report::{Problem, Report, Warnings},
    schema::schema,
};
use crate::{auth::ids::IdPattern, events::EventSettings};

/// What `gantry serve` is without a file: `examples/quickstart.yaml`.
pub const QUICKSTART: &str = include_str!("../../examples/quickstart.yaml");

/// A valid configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients are served; never empty.
    pub listen: Vec<Listen>,
    /// Where metrics, readiness and the admin API are served; `None` = nowhere.
    pub admin: Option<SocketAddr>,
    /// Names under which the admin API may be asked, besides IP addresses, `localhost` and the host of `external_url`; without ports.
    pub admin_hosts: Vec<String>,
    /// What `Location`, `Link` and the token realm say; `None` = from the request.
    pub external_url: Option<Url>,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<Network>,
    /// Headers in both directions.
    pub http: Http,
    /// Where everything is kept.
    pub storage: Storage,
    /// Repositories that are pushed here.
    pub hosted: Hosted,
    /// Upstream registries, by name.
    pub mirrors: Vec<Mirror>,
    /// Plugins, in order.
    pub plugins: Vec<Binding>,
    /// Our own tokens.
    pub tokens: Tokens,
    /// What the edge enforces.
    pub limits: Limits,
    /// What is told of what happens, and how long it waits.
    pub events: EventSettings,
    /// What is logged.
    pub log: Log,
    /// Where every decision goes besides the log; `None` = nowhere.
    pub audit: Option<AuditTo>,
    /// Where traces go; `None` = there are none.
    pub otlp: Option<Otlp>,
    /// Every file that was read for it, or looked for, besides itself: absolute, to be watched.
    pub files: Vec<PathBuf>,
    /// What is legal and probably not meant.
    pub warnings: Warnings,
}

/// Where every decision goes besides the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuditTo {
    /// Standard output.
    Stdout,
    /// A file, to be appended to.
    File(PathBuf),
}

/// Where traces go.
#[derive(Clone, Debug)]
pub struct Otlp {
    /// The collector's base URL.
    pub endpoint: Url,
    /// One request in so many is traced; at least 1.
    pub one_in: u32,
}

/// A listener.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where.
    pub address: ListenAddress,
    /// `None` = plain HTTP.
    pub tls: Option<Tls>,
    /// The mirror that every name there belongs to; `None` = names are resolved.
    pub mirror: Option<Arc<str>>,
}

/// Where a listener listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListenAddress {
    /// An address and a port; port 0 is chosen by the system.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// A listener's TLS; the files are PEM and were readable when the configuration was.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The certificate and its chain.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
    /// Who signs clients' certificates; `None` = clients are not asked.
    pub client_ca: Option<PathBuf>,
    /// The oldest version spoken.
    pub minimum: TlsVersion,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsVersion {
    /// 1.2.
    Tls12,
    /// 1.3.
    Tls13,
}

/// Where everything is kept.
#[derive(Clone, Debug)]
pub struct Storage {
    /// Layers, configs, manifests.
    pub blobs: BlobStorage,
    /// Repositories, tags, links.
    pub metadata: MetadataStorage,
    /// Whether another registry's folder is adopted as hosted repositories even where a pull-through cache filled it.
    pub adopt_as_hosted: bool,
}

/// Where blobs are kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BlobStorage {
    /// A folder in Distribution's layout.
    Filesystem(PathBuf),
}

/// Where metadata is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MetadataStorage {
    /// A database file.
    Sqlite(PathBuf),
}

/// Repositories that are pushed here.
#[derive(Clone, Debug)]
pub struct Hosted {
    /// Patterns of names a push may create; an upstream is never asked for them.
    pub names: Vec<Glob>,
    /// Patterns of names below a mirror's prefix that a push may create, and that are the upstream's until then.
    pub or_upstream: Vec<Glob>,
    /// Whether anything can be deleted.
    pub delete: bool,
}

/// An upstream registry.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Its key in the file.
    pub name: Arc<str>,
    /// How clients address it.
    pub names: MirrorNames,
    /// How its upstream is reached: where, as whom, through what.
    pub upstream: ClientSettings,
    /// Who decides what those who ask may have.
    pub callers: Callers,
    /// Whether it answers names that nothing else covers; at most one does.
    pub default: bool,
    /// What stays in its cache.
    pub keep: Keep,
    /// Whether a manifest's layers are fetched when it is.
    pub prefetch: bool,
    /// Whether its large blobs are fetched in several requests at once.
    pub parallel: Option<Parallel>,
    /// What is believed of its tags.
    pub freshness: Freshness,
    /// What is believed of some of them.
    pub tag_rules: Vec<TagRule>,
    /// How long "not found" is believed.
    pub not_found_for: Duration,
}

/// Who decides what those who ask a mirror may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Callers {
    /// The authorizer plugins.
    ByPlugins,
    /// The plugins, and its upstream about each caller.
    ByUpstream {
        /// How long the upstream's yes is believed; at least 60 s.
        remember_for: Duration,
    },
}

/// A plugin, what it sees and what it may do. `Debug` leaves its configuration out: secrets' files are part of it.
#[derive(Clone)]
pub struct Binding {
    /// Its name in logs, metrics and reasons; unique.
    pub name: Arc<str>,
    /// Where the component is.
    pub from: PluginFrom,
    /// Which repositories it is asked about, by canonical name.
    pub repositories: Vec<Glob>,
    /// Whether its answers count.
    pub mode: Mode,
    /// What its failure means. Anything but `Deny` is only possible where `changes` holds nothing but serves.
    pub on_error: OnError,
    /// How long a serve waits where it answers `hold`.
    pub hold_for: Duration,
    /// Ids of principals it may make, for authenticators; `None` = a built-in's own, or none.
    pub ids: Option<Vec<IdPattern>>,
    /// What asks it, for admission plugins; `None` = every change, no fill and no serve.
    pub changes: Option<BTreeSet<Change>>,
    /// What it may reach.
    pub grants: Grants,
    /// What one call may use.
    pub limits: PluginLimits,
    /// Its own configuration, `{ file: … }` replaced by the file's text; an empty map when none is written.
    pub config: serde_json::Value,
    /// The files whose text is in `config`, to be watched.
    pub files: Vec<PathBuf>,
    /// That text, which nobody is to be shown.
    pub included: Vec<String>,
}

impl fmt::Debug for Binding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Binding")
            .field("name", &self.name)
            .field("from", &self.from)
            .field("repositories", &self.repositories)
            .field("mode", &self.mode)
            .field("on_error", &self.on_error)
            .field("ids", &self.ids)
            .field("changes", &self.changes)
            .field("grants", &self.grants)
            .field("limits", &self.limits)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// Where a component is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PluginFrom {
    /// Inside the binary, by name.
    Builtin(String),
    /// A file.
    File(PathBuf),
}

/// Whether a plugin's answers count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// They count.
    Enforce,
    /// They are asked for in the chain and recorded, and do not count.
    Audit,
    /// As `Audit`, but beside the chain and off the request's path: it adds no time.
    Shadow,
}

/// What a plugin's failure means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnError {
    /// Refused with 503.
    Deny,
    /// As if the plugin were not there.
    Skip,
    /// The last answer to the same question.
    LastKnown,
}

/// Our own tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// `iss`.
    pub issuer: String,
    /// The folder of signing keys; the first is made at first start.
    pub keys: PathBuf,
    /// How long a token is valid; at least 60 s.
    pub lifetime: Duration,
}

/// Headers in both directions.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// What trusted proxies say about their clients.
    pub proxy_headers: ProxyHeaders,
    /// Headers of every response.
    pub headers: http::HeaderMap,
}

/// The headers by which trusted proxies say who their clients are.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ProxyHeaders {
    /// `X-Forwarded-For`, `-Proto`, `-Host` and `-Port`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// What the edge enforces.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A manifest's bytes.
    pub max_manifest_bytes: u64,
    /// Bytes of annotations that a pushed manifest may carry in all.
    pub max_annotation_bytes: u64,
    /// An uploaded blob's bytes; `None` = no limit.
    pub max_blob_bytes: Option<u64>,
    /// Unfinished uploads of one client.
    pub uploads_per_client: u32,
    /// Until a connection's first byte, and a request's whole head.
    pub header_timeout: Duration,
    /// Until an idle connection is closed.
    pub idle_timeout: Duration,
    /// Bytes per second that a body must reach.
    pub minimum_rate: u64,
    /// Connections at once, over all listeners.
    pub max_connections: usize,
    /// For authentication and authorization together.
    pub decision_deadline: Duration,
    /// Whether a running download that a new configuration denies ends.
    pub ends_denied_downloads: bool,
    /// How long a drain waits for requests in flight.
    pub drain_timeout: Duration,
    /// What one request may cause at upstreams.
    pub upstream: Amplification,
}

/// What one request may cause at upstreams.
#[derive(Clone, Copy, Debug)]
pub struct Amplification {
    /// Requests for one list.
    pub derived_requests: u32,
    /// Blobs of one manifest that are fetched before a client asks for them.
    pub prefetched_blobs: usize,
    /// Scopes of one token request that upstreams are asked about.
    pub scope_confirmations: usize,
    /// Questions of one address and minute for what is not there.
    pub not_found_per_address: u32,
    /// The same, about one repository.
    pub not_found_per_repository: u32,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// A level or tracing directives; was accepted by `tracing_subscriber::EnvFilter`.
    pub level: String,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// For machines.
    Json,
}

/// An address range in CIDR form, such as `127.0.0.0/8`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Network {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}

impl Network {
    /// Whether `address` lies in the range. An IPv4 address in IPv6 form (`::ffff:10.0.0.1`, as a dual-stack listener sees
    /// it) is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |width: u32| width.saturating_sub(u32::from(self.prefix));
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(shift(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let differing = own.to_bits() ^ other.to_bits();
                differing.checked_shr(shift(128)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl Config {
    /// Reads a file, under the process' environment. Relative paths in it start at its folder.
    ///
    /// # Errors
    /// A [`Report`] with every mistake.
    pub fn load(path: &Path) -> Result<Self, Report> {
        Self::load_with(path, &environment::of_process())
    }

    /// As [`Config::load`], under a given environment.
    ///
    /// # Errors
    /// A [`Report`] with every mistake.
    pub fn load_with(path: &Path, environment: &Environment) -> Result<Self, Report> {
        let name = path.display().to_string();
        let text = resolve::read_text(path, tree::MAX_BYTES)
            .map_err(|reason| Report::unreadable(&name, &reason))?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        Self::parse(&name, &text, folder, environment)
    }

    /// The configuration of `gantry serve` without a file: [`QUICKSTART`], with paths from the working directory. A password
    /// file that is not there yet counts as empty.
    ///
    /// # Errors
    /// A [`Report`]: the environment may override the quickstart with something wrong.
    pub fn quickstart() -> Result<Self, Report> {
        Self::quickstart_in(Path::new(""), &environment::of_process())
    }

    /// As [`Config::quickstart`], with paths from `folder` and under a given environment.
    ///
    /// # Errors
    /// A [`Report`] with every mistake.
    pub fn quickstart_in(folder: &Path, environment: &Environment) -> Result<Self, Report> {
        let missing_files = resolve::MissingFiles::AreEmpty;
        resolve::config(
            "quickstart.yaml",
            QUICKSTART,
            folder,
            environment,
            missing_files,
        )
    }

    /// As [`Config::load`], from a text already read. `name` is what messages call the file.
    ///
    /// # Errors
    /// A [`Report`] with every mistake.
    pub fn parse(
        name: &str,
        text: &str,
        folder: &Path,
        environment: &Environment,
    ) -> Result<Self, Report> {
        let missing_files = resolve::MissingFiles::AreMistakes;
        resolve::config(name, text, folder, environment, missing_files)
    }

    /// Where the gateway of this file has its admin listener, also when the rest of the file is wrong: then most of all somebody wants to
    /// ask it. `None` = nowhere, or not said legibly.
    #[must_use]
    pub fn admin_address(path: &Path) -> Option<SocketAddr> {
        let text = resolve::read_text(path, tree::MAX_BYTES).ok()?;
        resolve::admin_address(&text, &environment::of_process())
    }

    /// Every name the gateway answers to.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        let default = self.mirrors.iter().find(|mirror| mirror.default);
        Namespaces {
            mirrors: self
                .mirrors
                .iter()
                .map(|mirror| mirror.names.clone())
                .collect(),
            hosted: self.hosted.names.clone(),
            default_mirror: default.map(|mirror| Arc::clone(&mirror.name)),
        }
    }
}

impl BlobStorage {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        match self {
            Self::Filesystem(folder) => folder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn a_network_contains_what_shares_its_leading_bits() {
        let check = |address: &str, prefix, other: &str, expect: bool| {
            let network = Network {
                address: address.parse().unwrap(),
                prefix,
            };
            let other = other.parse().unwrap();
            assert_eq!(network.contains(other), expect, "{network:?} {other}");
        };
        check("10.0.0.0", 8, "10.255.0.1", true);
        check("10.0.0.0", 8, "11.0.0.1", false);
        check("10.1.2.3", 32, "10.1.2.3", true);
        check("10.1.2.3", 32, "10.1.2.2", false);
        check("0.0.0.0", 0, "203.0.113.9", true);
        check("0.0.0.0", 0, "2001:db8::1", false);
        check("10.0.0.0", 8, "::ffff:10.0.0.1", true);
        check("2001:db8::", 32, "2001:db8:ffff::1", true);
        check("2001:db8::", 32, "2001:db9::1", false);
        check("::", 0, "2001:db9::1", true);
    }
}
