//! gantry.yaml as written: every key, its form and its manual.
//!
//! Owns the shape only: everything is optional here, defaults and meaning are made by the modules beside. The JSON Schema is
//! generated from these types, and their comments are its descriptions, so write them for the operator.

mod upstream;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::text::{
    BindingName, ChangeName, DurationText, FromText, GlobText, HostText, HttpAddress, IdText,
    LevelText, ListenText, NetworkText, PrefixText, RateText, SizeString, SocketText, UrlText,
};

pub(crate) use upstream::{
    AuthorizedByText, CallersFile, CredentialsFile, ParallelFile, ProxyEntry, ProxyFile,
    UpstreamLimitsFile, UpstreamTlsFile,
};

/// The configuration of Gantry. Relative paths start at the folder of this file. Every scalar can be set by an environment
/// variable, such as `GANTRY_STORAGE__METADATA__SQLITE`: the path in capitals, joined by two underscores.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "gantry.yaml")]
pub(crate) struct ConfigFile {
    /// Where clients are served: one address or many. Default: 127.0.0.1:5000.
    pub(crate) listen: Option<OneOrMany<ListenEntry>>,
    /// Where /metrics, /readyz and the admin API are served: an address, a map with `address` and `hosts`, or `off`. Never open this to
    /// clients. Default: 127.0.0.1:5001.
    pub(crate) admin: Option<AdminEntry>,
    /// The URL by which clients reach Gantry: the token realm names its host, and a path in it, such as `/registry` where a proxy serves other
    /// things beside Gantry, stands before the paths in the realm, Location and Link. Default: the request's host, or what trusted proxies say.
    pub(crate) external_url: Option<UrlText>,
    /// Peers whose forwarding headers are believed, X-Forwarded-* unless `http.proxy_headers` says otherwise. Default: none.
    pub(crate) trusted_proxies: Option<Vec<NetworkText>>,
    /// Headers of requests and responses.
    pub(crate) http: Option<HttpFile>,
    /// Where everything is kept.
    pub(crate) storage: Option<StorageFile>,
    /// Repositories that are pushed here. A name is resolved by virtual host, then a mirror's prefix, then ?ns=, then these
    /// patterns, then the default mirror; nothing else is dialed.
    pub(crate) hosted: Option<HostedFile>,
    /// Upstream registries by name. The short form is `NAME: URL`.
    pub(crate) mirrors: Option<BTreeMap<String, MirrorEntry>>,
    /// The plugins, in order. What a component exports says which hooks it takes part in. At least one must decide who may do what.
    #[schemars(required)]
    pub(crate) plugins: Option<Vec<PluginFile>>,
    /// The tokens of docker's login flow.
    pub(crate) tokens: Option<TokensFile>,
    /// What one client or request may use.
    pub(crate) limits: Option<LimitsFile>,
    /// What plugins that take part in `events` are told, and how long it waits for them.
    pub(crate) events: Option<EventsFile>,
    /// What is logged.
    pub(crate) log: Option<LogFile>,
    /// A file of every decision, besides the log.
    pub(crate) audit: Option<AuditFile>,
    /// What is told to other systems.
    pub(crate) telemetry: Option<TelemetryFile>,
}

/// Headers of requests and responses.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Http")]
pub(crate) struct HttpFile {
    /// Headers that every response carries, each with a value or a list of values: `Access-Control-Allow-Origin: https://ui.example` lets a web
    /// interface of that origin read answers. A header that a response has by itself is not replaced. Default: none.
    pub(crate) headers: Option<BTreeMap<String, OneOrMany<String>>>,
    /// By which headers trusted proxies name their clients: `x-forwarded`, or `forwarded` for RFC 7239. Only the chosen kind is read: a proxy
    /// passes on the other kind as the client wrote it. Default: x-forwarded.
    pub(crate) proxy_headers: Option<ProxyHeadersText>,
}

/// The headers by which trusted proxies name their clients.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub(crate) enum ProxyHeadersText {
    /// X-Forwarded-For, -Proto, -Host and -Port.
    XForwarded,
    /// Forwarded (RFC 7239).
    Forwarded,
}

/// One or many.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

/// An address, with TLS where it is spelled out.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum ListenEntry {
    Address(ListenText),
    Full(ListenFile),
}

/// A listener.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Listen")]
pub(crate) struct ListenFile {
    /// `IP:PORT` or `unix:/path/to/socket`.
    #[schemars(required)]
    pub(crate) address: Option<ListenText>,
    /// Serves HTTPS. Default: plain HTTP.
    pub(crate) tls: Option<TlsFile>,
    /// The mirror that everything here is: for clients that send `/v2/library/alpine` to a mirror and do not say whose. Every name is its
    /// upstream's, and nothing else is there. Default: names are resolved.
    pub(crate) mirror: Option<String>,
}

/// A listener's certificate. The files are PEM.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Tls")]
pub(crate) struct TlsFile {
    /// The certificate and its chain.
    #[schemars(required)]
    pub(crate) certificate: Option<String>,
    /// The private key.
    #[schemars(required)]
    pub(crate) key: Option<String>,
    /// Certificates that sign clients' certificates; every client must show one, and is known to plugins by its subject. A connection ends with its
    /// client's certificate, and when a reload finds other authorities here, after the request that runs; sessions are not resumed. Default: none.
    pub(crate) client_ca: Option<String>,
    /// The oldest version of TLS. Default: "1.2".
    pub(crate) minimum: Option<TlsMinimum>,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum TlsMinimum {
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// An address, a map, or `off`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum AdminEntry {
    Off(Off),
    Address(SocketText),
    Full(AdminFile),
}

/// The admin listener.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Admin")]
pub(crate) struct AdminFile {
    /// `IP:PORT`. Default: 127.0.0.1:5001.
    pub(crate) address: Option<SocketText>,
    /// Host names under which the admin API may be asked, such as `gantry-admin.internal`, and under which a web page may change a
    /// repository. A request that names another host is refused with 421, so that no web page reaches the gateway through a browser by a name
    /// of its own. IP addresses, `localhost` and the host of `external_url` always pass; /metrics, /healthz and /readyz answer under any
    /// name, and so do the registry's listeners to a client that is no browser. Default: none.
    pub(crate) hosts: Option<Vec<HostText>>,
}

/// Not at all.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum Off {
    #[serde(rename = "off")]
    Off,
}

/// Where everything is kept.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Storage")]
pub(crate) struct StorageFile {
    /// Layers, configs and manifests. Default: { filesystem: ./data }.
    pub(crate) blobs: Option<BlobsFile>,
    /// Repositories, tags and links. Default: { sqlite: gantry.db } in the folder of the blobs.
    pub(crate) metadata: Option<MetadataFile>,
    /// What the repositories that another registry left in the folder of the blobs become at the first start. `hosted`: hosted repositories
    /// of the same names, also in a folder that Distribution filled as a pull-through cache (its root has scheduler-state.json). Default:
    /// hosted repositories, and in a pull-through cache's folder those of the default mirror, or of the only one.
    pub(crate) adopt: Option<AdoptText>,
}

/// What adopted repositories become.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(crate) enum AdoptText {
    Hosted,
}

/// One of the places for blobs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Blobs", extend("minProperties" = 1, "maxProperties" = 1))]
pub(crate) struct BlobsFile {
    /// A folder, in the layout of Distribution (registry:2).
    pub(crate) filesystem: Option<String>,
    /// An S3 bucket. Not available yet.
    #[schemars(schema_with = "not_yet")]
    #[expect(dead_code, reason = "the key is known so that its error is honest")]
    s3: Option<serde_json::Value>,
    /// A Google Cloud Storage bucket. Not available yet.
    #[schemars(schema_with = "not_yet")]
    #[expect(dead_code, reason = "the key is known so that its error is honest")]
    gcs: Option<serde_json::Value>,
    /// An Azure container. Not available yet.
    #[schemars(schema_with = "not_yet")]
    #[expect(dead_code, reason = "the key is known so that its error is honest")]
    azure: Option<serde_json::Value>,
}

/// One of the places for metadata.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Metadata", extend("minProperties" = 1, "maxProperties" = 1))]
pub(crate) struct MetadataFile {
    /// A database file.
    pub(crate) sqlite: Option<String>,
    /// A PostgreSQL server, for replicas. Not available yet.
    #[schemars(schema_with = "not_yet")]
    #[expect(dead_code, reason = "the key is known so that its error is honest")]
    postgres: Option<serde_json::Value>,
}

/// Repositories that are pushed here.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Hosted")]
pub(crate) struct HostedFile {
    /// Names that a push may create; such a name never falls through to an upstream. One below a mirror's prefix, such as
    /// `docker.io/library/internal-*`, hides the upstream's. Default: none.
    pub(crate) names: Option<Vec<GlobText>>,
    /// Names below a mirror's prefix that a push may create, and that are the upstream's until a manifest is pushed, by tag or by digest. From
    /// then on the whole repository is the pushed one, also when its tags are deleted. Default: none.
    pub(crate) or_upstream: Option<Vec<GlobText>>,
    /// Whether manifests, tags and blobs can be deleted by those who may. Default: true.
    pub(crate) delete: Option<bool>,
}

/// A URL, or all of a mirror.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum MirrorEntry {
    Url(UrlText),
    Full(Box<MirrorFile>),
}

/// An upstream registry. Its repositories have one name here however a client spells it: PREFIX/NAME.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Mirror")]
pub(crate) struct MirrorFile {
    /// Where the upstream is.
    #[schemars(required)]
    pub(crate) url: Option<UrlText>,
    /// Other servers with the same content, tried in order while the one before fails. Default: none.
    pub(crate) alternatives: Option<Vec<UrlText>>,
    /// The first part of its names. Default: the mirror's name.
    pub(crate) prefix: Option<PrefixText>,
    /// `?ns=` values that mean it, as containerd sends them. Default: the mirror's name and the URL's host.
    pub(crate) ns: Option<Vec<HostText>>,
    /// Host headers that mean it: every name there is its upstream's. Default: none.
    pub(crate) hosts: Option<Vec<HostText>>,
    /// Whether it answers names that nothing else covers, as docker's registry-mirrors sends them. Default: false.
    pub(crate) default: Option<bool>,
    /// Whether `alpine` means `library/alpine`. Default: true for Docker Hub, else false.
    pub(crate) library: Option<bool>,
    /// The account here at the upstream, sent to the origin of `url` and its token endpoint only. Default: anonymous.
    pub(crate) credentials: Option<CredentialsFile>,
    /// Token endpoints on other hosts that the upstream may name, such as `https://ghcr.io` for lscr.io, or `https://gitlab.corp.example` for a
    /// GitLab's registry. With `credentials`, the password goes to no other host but those and the ones that public registries document; without, the
    /// upstream's own domain is fine, too. Default: none.
    pub(crate) token_realms: Option<Vec<UrlText>>,
    /// Headers sent with each request to the origin of `url`, such as an API gateway's key: never to a token endpoint, a redirect or an
    /// alternative. Values are texts, or secrets as `{ file: … }` or `{ env: … }`. Default: none.
    pub(crate) headers: Option<BTreeMap<String, HeaderEntry>>,
    /// Who decides what those who ask may have. Default: the plugins alone.
    pub(crate) callers: Option<CallersFile>,
    /// What TLS to the upstream rests on.
    pub(crate) tls: Option<UpstreamTlsFile>,
    /// The proxy to go through: a URL, `environment` for `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, or all of it. Default: none.
    pub(crate) proxy: Option<ProxyEntry>,
    /// How much and how slowly the upstream is asked.
    pub(crate) limits: Option<UpstreamLimitsFile>,
    /// How long an upstream's answer about a tag is believed, and whether its moves are followed.
    pub(crate) tags: Option<TagsFile>,
    /// The same for some tags; the first rule that matches counts, and what it leaves out is as in `tags`. Default: none.
    pub(crate) tag_rules: Option<Vec<TagRuleFile>>,
    /// What stays in the cache. Default: everything.
    pub(crate) keep: Option<KeepFile>,
    /// Whether the layers of a manifest are fetched as soon as it is pulled for the first time, before a client asks for them. Default: false.
    pub(crate) prefetch: Option<bool>,
    /// Whether a large blob is fetched in several requests at once, for upstreams that throttle each connection. Default: in one.
    pub(crate) parallel: Option<ParallelFile>,
}

impl MirrorFile {
    /// What `NAME: URL` means.
    pub(crate) fn short(url: UrlText) -> Self {
        Self {
            url: Some(url),
            ..Self::default()
        }
    }
}

/// A header's value: a text, or a secret.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum HeaderEntry {
    Text(String),
    Secret(SecretFile),
}

/// A secret: exactly one of `file` and `env`, never the secret itself.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Secret", extend("format" = "secret", "minProperties" = 1, "maxProperties" = 1))]
pub(crate) struct SecretFile {
    /// A file that holds it; one line break at its end is not part of it.
    pub(crate) file: Option<String>,
    /// An environment variable that holds it.
    pub(crate) env: Option<String>,
}

/// How long an upstream's answer about a tag is believed.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Tags")]
pub(crate) struct TagsFile {
    /// Served without asking again. Default: 10m.
    pub(crate) fresh_for: Option<DurationText>,
    /// Served at once while the upstream is asked, counted from the end of `fresh_for`. Default: 0s, every client waits for the answer.
    pub(crate) stale_while_revalidate: Option<DurationText>,
    /// Served when the upstream fails, counted from the end of `fresh_for`. Default: 7d.
    pub(crate) stale_if_error: Option<DurationText>,
    /// When the upstream's tag names something else than what is here. Default: follow.
    pub(crate) moves: Option<MovesText>,
    /// How long a manifest must have been here before a tag may name it; until then the tag names what it did, and one that named nothing is
    /// refused. Counted from when this repository first had it; dates inside images are their publishers' word. Default: 0s.
    pub(crate) min_age: Option<DurationText>,
    /// How long "not found" is believed. Default: 30s.
    pub(crate) not_found_for: Option<DurationText>,
}

/// What stays in a mirror's cache. Looked at once a minute; content that another repository holds too is never lost.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Keep")]
pub(crate) struct KeepFile {
    /// How long content stays that nobody asks for. Default: for ever.
    #[serde(rename = "for")]
    pub(crate) keep_for: Option<DurationText>,
    /// Bytes of blobs at most; the least recently used go first. Default: no limit.
    pub(crate) at_most: Option<SizeEntry>,
    /// What these tags name stays: globs on `REPOSITORY:TAG`, with the upstream's own name of the repository. Default: none.
    pub(crate) pinned: Option<Vec<GlobText>>,
}

/// What is believed of some tags.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "TagRule")]
pub(crate) struct TagRuleFile {
    /// Which: globs on `REPOSITORY:TAG`, with the upstream's own name of the repository, such as `library/*:*-rc*`.
    #[schemars(required)]
    pub(crate) tags: Option<Vec<GlobText>>,
    /// Never asked about again once it is here. Default: false.
    pub(crate) immutable: Option<bool>,
    /// Served without asking again. Not beside `immutable`.
    pub(crate) fresh_for: Option<DurationText>,
    /// Served at once while the upstream is asked, counted from the end of `fresh_for`.
    pub(crate) stale_while_revalidate: Option<DurationText>,
    /// Served when the upstream fails, counted from the end of `fresh_for`.
    pub(crate) stale_if_error: Option<DurationText>,
    /// When the upstream's tag names something else than what is here.
    pub(crate) moves: Option<MovesText>,
    /// How long a manifest must have been here before the tag may name it.
    pub(crate) min_age: Option<DurationText>,
}

/// When an upstream's tag moves.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum MovesText {
    /// The tag here moves too.
    Follow,
    /// It moves too, with a warning in the log.
    Alert,
    /// It stays what it was when it was first pulled here; log and client are told.
    Refuse,
}

/// A plugin and what it sees and may do.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Plugin")]
pub(crate) struct PluginFile {
    /// Its name in logs, metrics and reasons.
    #[schemars(required)]
    pub(crate) name: Option<BindingName>,
    /// `builtin:NAME` or the path of a .wasm file. `oci://HOST/REPO@DIGEST` is not available yet.
    #[schemars(required)]
    pub(crate) from: Option<FromText>,
    /// Which repositories it is asked about, by canonical name. Default: all.
    pub(crate) repositories: Option<Vec<GlobText>>,
    /// Whether its answers count. Default: enforce.
    pub(crate) mode: Option<ModeText>,
    /// What its failure means: a trap, a deadline, an error. Default: deny, the only value for authenticators, authorizers and changes. A client can
    /// make a plugin that judges serves fail, for example with a manifest that takes too long to read: to serve without it all the same, write
    /// `{ skip: clients_can_force_this }`.
    pub(crate) on_error: Option<OnErrorEntry>,
    /// How long a pull waits where an admission plugin answers `hold`, which asks it again meanwhile; then the client is told to come back
    /// (503 and Retry-After). Default: 0s, at once.
    pub(crate) hold_for: Option<DurationText>,
    /// For authenticators: ids of the principals it may make, such as `user:*`; `*` stands only at the end. Another id makes the call fail,
    /// and two plugins cannot make the same id. Default: `user:*` for builtin:htpasswd, none for a plugin of your own.
    pub(crate) ids: Option<Vec<IdText>>,
    /// For admission plugins: which changes and serves ask it. Default: every change; no fill and no serve.
    pub(crate) changes: Option<Vec<ChangeName>>,
    /// What it may reach. Default: nothing.
    pub(crate) grants: Option<GrantsFile>,
    /// What one call may use.
    pub(crate) limits: Option<PluginLimitsFile>,
    /// The plugin's own configuration. { file: PATH } anywhere in it becomes the file's text.
    pub(crate) config: Option<serde_json::Value>,
}

/// Whether a plugin's answers count.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum ModeText {
    /// They count.
    Enforce,
    /// They are recorded, and do not count.
    Audit,
    /// Beside an enforcing plugin. Not available yet.
    Shadow,
}

/// What a plugin's failure means.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum OnErrorEntry {
    Word(OnErrorText),
    Skip(SkipFile),
}

/// A failure counts as if the plugin were not there, for serves.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(crate) struct SkipFile {
    /// That a client which can make the plugin fail gets what the plugin would deny.
    #[schemars(required)]
    pub(crate) skip: Option<SkipConsent>,
}

/// What the operator accepts with `skip`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum SkipConsent {
    /// A client can make the plugin fail, and then gets the content.
    ClientsCanForceThis,
}

/// What a plugin's failure means.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum OnErrorText {
    /// The request is refused with 503.
    Deny,
    /// Not enough: a client can force it. Write `{ skip: clients_can_force_this }`.
    Skip,
    /// The last answer to the same question, for serves.
    LastKnown,
}

/// What a plugin may reach.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Grants")]
pub(crate) struct GrantsFile {
    /// Key-value buckets, each this plugin's own.
    pub(crate) kv: Option<Vec<BindingName>>,
    /// Repositories whose content it may read, as far as the one who asks may.
    pub(crate) registry: Option<Vec<GlobText>>,
    /// Addresses it may call, `scheme://host[:port]/path-prefix`. A name leads to public addresses only; an IP address and `localhost`
    /// mean what they say.
    pub(crate) http: Option<Vec<HttpAddress>>,
    /// Whether names in `http` may lead to private addresses. Link-local ones and the clouds' metadata services stay out. Default: false.
    pub(crate) http_private: Option<bool>,
    /// Secrets it may use by name, without seeing them.
    pub(crate) secrets: Option<BTreeMap<String, SecretFile>>,
    /// Whether it may see the bytes of its secrets. Default: false.
    pub(crate) reveal_secrets: Option<bool>,
}

/// What one call of a plugin may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "PluginLimits")]
pub(crate) struct PluginLimitsFile {
    /// Time to compute. Default: 20ms; 1s for a batch of events.
    pub(crate) cpu: Option<DurationText>,
    /// Time until its answer, host calls included, the wait for a password check not. Default: 250ms; 30s for a batch of events.
    pub(crate) deadline: Option<DurationText>,
    /// Memory. Default: 64MiB.
    pub(crate) memory: Option<SizeEntry>,
    /// Calls at once. Default: 64.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) concurrency: Option<u32>,
}

/// What becomes of a running download that a new configuration denies.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum DeniedDownloadsText {
    /// It breaks off.
    End,
    /// It finishes.
    Keep,
}

/// The tokens of docker's login flow.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Tokens")]
pub(crate) struct TokensFile {
    /// The `iss` of our tokens. Default: gantry.
    pub(crate) issuer: Option<String>,
    /// A folder of P-256 private keys in PKCS#8 PEM, `*.pem`: the last by name signs, all verify. The first is made at first start.
    /// Default: `keys` in the folder of the blobs.
    pub(crate) keys: Option<String>,
    /// How long one is valid; at least 60s, what docker assumes. Default: 5m.
    pub(crate) lifetime: Option<DurationText>,
}

/// What one client or request may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub(crate) struct LimitsFile {
    /// A pushed manifest. Default and at most: 4MiB.
    pub(crate) manifest: Option<SizeEntry>,
    /// The annotations of a pushed manifest, keys and values of its own and of its descriptors together. Lists of referrers repeat them, so a
    /// larger limit costs clients and memory. At most 4MiB. Default: 512KiB.
    pub(crate) annotations: Option<SizeEntry>,
    /// A pushed blob. Default: no limit.
    pub(crate) blob: Option<SizeEntry>,
    /// Unfinished uploads of one client. Default: 256.
    #[schemars(range(min = 1, max = 100_000))]
    pub(crate) uploads_per_client: Option<u32>,
    /// Until a request's head is there, and the first byte of a connection. Default: 10s.
    pub(crate) header_timeout: Option<DurationText>,
    /// Until an idle connection is closed. Default: 2m.
    pub(crate) idle_timeout: Option<DurationText>,
    /// Bodies slower than this for 30 seconds are given up, in both directions. Default: 1KiB/s.
    pub(crate) minimum_rate: Option<RateText>,
    /// Connections at once, over all listeners; fewer where the system allows the process too few open files. At the limit a client address (an
    /// IPv6 network of 64 bits) has an equal share: the longest idle connections of those above theirs are closed first. The connections of
    /// `trusted_proxies` are not; as many requests by them may be in flight, counted by the client that the proxy names. Default: 10000.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) connections: Option<u32>,
    /// For authentication and authorization together. Default: 5s.
    pub(crate) decision_deadline: Option<DurationText>,
    /// What becomes of a running download that a new configuration or a replaced policy denies: `end` breaks it off within 5 seconds, `keep` lets
    /// it finish. Default: end.
    pub(crate) denied_downloads: Option<DeniedDownloadsText>,
    /// How long a stop waits for requests in flight. Default: 30s.
    pub(crate) drain_timeout: Option<DurationText>,
    /// Requests to an upstream that one request for a list may cause: pages of the list, and referrers that a policy judges. Default: 64.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) derived_requests: Option<u32>,
    /// Blobs of one manifest that `prefetch` fetches. Default: 64.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) prefetched_blobs: Option<u32>,
    /// Scopes of one request to `/token` that upstreams are asked about; later ones are left out. Default: 8.
    #[schemars(range(min = 1, max = 64))]
    pub(crate) scope_confirmations: Option<u32>,
    /// Questions of one address and minute for what no upstream has; then 429. What is remembered as missing, and signature tags of stored
    /// manifests, do not count. An IPv6 address is its /64. Default: 600.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) not_found_per_address: Option<u32>,
    /// The same, about one repository. Default: 60.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) not_found_per_repository: Option<u32>,
}

/// What plugins that take part in `events` are told, and how long it waits for them. Changes and refusals are always told.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Events")]
pub(crate) struct EventsFile {
    /// Which pulls are told: `off`, `all`, or one of so many. Default: off.
    pub(crate) pulls: Option<PullsEntry>,
    /// Events kept at most, waiting and undeliverable. When it is full, pulls and refusals go first, then the oldest. Default: 100000.
    #[schemars(range(min = 100, max = 10_000_000))]
    pub(crate) max_events: Option<u32>,
    /// Their size at most. Default: 256MiB.
    pub(crate) max_size: Option<SizeEntry>,
    /// Attempts before an event is set aside. Default: 50.
    #[schemars(range(min = 1, max = 10_000))]
    pub(crate) max_attempts: Option<u32>,
    /// How old an event is at most when it is tried again. Default: 72h.
    pub(crate) max_age: Option<DurationText>,
}

/// Which pulls are told.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum PullsEntry {
    Word(PullsText),
    Sampled(PullsSampled),
}

/// All pulls or none.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum PullsText {
    /// None.
    Off,
    /// Every one.
    All,
}

/// A random part of the pulls.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(crate) struct PullsSampled {
    /// One pull of so many is told.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) one_of: u32,
}

/// A size with a unit, or bytes.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum SizeEntry {
    Text(SizeString),
    Bytes(u64),
}

impl SizeEntry {
    /// Bytes.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Text(SizeString(bytes)) | Self::Bytes(bytes) => *bytes,
        }
    }
}

/// What is logged.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Log")]
pub(crate) struct LogFile {
    /// For people or for machines. Default: human.
    pub(crate) format: Option<LogFormatText>,
    /// How much. Default: info.
    pub(crate) level: Option<LevelText>,
}

/// A file of every decision, as JSON lines, whatever the log's level is.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Audit")]
pub(crate) struct AuditFile {
    /// A file that lines are appended to, or `stdout`. A file that is moved away is made anew within a second.
    #[schemars(required)]
    pub(crate) file: Option<String>,
}

/// What is told to other systems.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Telemetry")]
pub(crate) struct TelemetryFile {
    /// Traces for a collector of OpenTelemetry. Default: none.
    pub(crate) otlp: Option<OtlpFile>,
}

/// Traces for a collector of OpenTelemetry, as protobuf over HTTP.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Otlp")]
pub(crate) struct OtlpFile {
    /// The collector's base URL, such as `http://127.0.0.1:4318`; /v1/traces is added.
    #[schemars(required)]
    pub(crate) endpoint: Option<UrlText>,
    /// Traces one request in so many, unless its `traceparent` decides. Default: 1.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) one_in: Option<u32>,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum LogFormatText {
    /// One readable line per event.
    Human,
    /// One JSON object per event.
    Json,
}

/// A key that the product will have: editors and the check refuse it, with a sentence.
fn not_yet(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "not": {} })
}
