//! The one shared state, built once from a valid configuration.
//!
//! Owns the composition: which store, which upstreams, which plugins in which chain. Every crate that does not know its sibling is
//! introduced to it here.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use gantry_model::Namespaces;
use gantry_plugin_host::{Hook, HostPorts, Plugin, PluginHost, PluginSource};
use gantry_registry::{Clock as _, Leases, MirrorSettings, Ports, Registry, Settings};
use gantry_storage::{FsBlobStore, SqliteKv, SqliteStore};
use gantry_upstream::{ClientSettings, Credentials, RegistryClient};

use crate::{
    auth::{Authentication, token::Tokens},
    builtin,
    clock::SystemClock,
    config::{self, BlobStorage, Config, MetadataStorage, PluginFrom},
    hooks::{AdmissionChain, PluginValues, StoredContent},
    policy::{
        Policy,
        binding::{Binding, default_changes},
    },
    telemetry::{MeasuredUpstream, Reading, Telemetry},
};

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
    pub policy: Arc<Policy>,
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
    pub trusted_proxies: Vec<config::Network>,
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

impl App {
    /// Opens the stores, loads the plugins, and joins everything. Dials nothing: it starts with every upstream down.
    ///
    /// # Errors
    /// A sentence for the operator: which folder, file or plugin, and why not.
    pub async fn build(config: &Config) -> anyhow::Result<Arc<Self>> {
        let telemetry = Arc::new(Telemetry::new());
        let stores = Stores::open(config).await?;
        let policy_to_come = Arc::new(OnceLock::new());
        let host = stores.plugin_host(&policy_to_come)?;
        watch(&telemetry, &host, &stores.metadata);
        let bindings = load_plugins(&host, config, &telemetry).await?;
        let taking_part = |hook| {
            bindings
                .iter()
                .filter(|binding| binding.plugin.hooks().has(hook))
                .cloned()
                .collect::<Vec<_>>()
        };
        let policy = Arc::new(Policy::new(taking_part(Hook::Authorize)));
        policy_to_come.get_or_init(|| Arc::clone(&policy));
        let tokens = Tokens::open(
            &config.tokens.keys,
            &config.tokens.issuer,
            config.tokens.lifetime,
        )?;
        let authentication = Authentication::new(taking_part(Hook::Authenticate), tokens)?;
        let admission = AdmissionChain::new(taking_part(Hook::Admit));
        let registry = Registry::new(
            stores.registry_ports(admission, mirrors(config, &telemetry)?),
            registry_settings(config),
        );
        watch_registry(&telemetry, &registry);
        Ok(Arc::new(Self {
            namespaces: config.namespaces(),
            registry,
            authentication,
            policy,
            telemetry,
            edge: edge_settings(config),
        }))
    }
}

/// The opened stores.
struct Stores {
    blobs: Arc<FsBlobStore>,
    metadata: Arc<SqliteStore>,
    values: Arc<SqliteKv>,
    state: PathBuf,
}

impl Stores {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let BlobStorage::Filesystem(root) = config.storage.blobs.clone();
        let MetadataStorage::Sqlite(database) = config.storage.metadata.clone();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&root, &database));
        let stores = opened.await??;
        let adopted = gantry_storage::adopt(&stores.blobs, &stores.metadata).await;
        if let Some(adopted) =
            adopted.context("cannot adopt the repositories in the blob folder")?
        {
            tracing::info!(
                ?adopted,
                "adopted the repositories that another registry left in the blob folder"
            );
        }
        Ok(stores)
    }

    fn open_blocking(root: &Path, database: &Path) -> anyhow::Result<Self> {
        let state = database
            .parent()
            .unwrap_or_else(|| Path::new("."))
            .to_owned();
        std::fs::create_dir_all(&state)
            .with_context(|| format!("cannot make the folder {}", state.display()))?;
        let blobs = FsBlobStore::open(root)
            .with_context(|| format!("cannot open the blob folder {}", root.display()))?;
        let metadata = SqliteStore::open(database)
            .with_context(|| format!("cannot open the database {}", database.display()))?;
        let beside = state.join("plugins.db");
        let values = SqliteKv::open(&beside)
            .with_context(|| format!("cannot open the plugins' database {}", beside.display()))?;
        Ok(Self {
            blobs: Arc::new(blobs),
            metadata: Arc::new(metadata),
            values: Arc::new(values),
            state,
        })
    }

    fn plugin_host(&self, policy: &Arc<OnceLock<Arc<Policy>>>) -> anyhow::Result<PluginHost> {
        let stored = StoredContent {
            blobs: Arc::<FsBlobStore>::clone(&self.blobs),
            metadata: Arc::<SqliteStore>::clone(&self.metadata),
            policy: Arc::clone(policy),
        };
        let host = PluginHost::new(HostPorts {
            kv: Arc::new(PluginValues(Arc::<SqliteKv>::clone(&self.values))),
            registry: Arc::new(stored),
            now_ms: Arc::new(|| SystemClock.now_ms()),
            cache_directory: Some(self.state.join("compiled")),
            password_checks: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        })?;
        Ok(host)
    }

    fn registry_ports(
        &self,
        admission: AdmissionChain,
        mirrors: HashMap<Arc<str>, MirrorSettings>,
    ) -> Ports {
        Ports {
            blobs: Arc::<FsBlobStore>::clone(&self.blobs),
            metadata: Arc::<SqliteStore>::clone(&self.metadata),
            uploads: Arc::<SqliteStore>::clone(&self.metadata),
            cache: Arc::<SqliteStore>::clone(&self.metadata),
            leases: Leases::default(),
            admission: Arc::new(admission),
            clock: Arc::new(SystemClock),
            mirrors,
        }
    }
}

/// Numbers of what lives as long as the process.
fn watch(telemetry: &Arc<Telemetry>, host: &PluginHost, metadata: &SqliteStore) {
    let uses = |host: &PluginHost| {
        let host = host.clone();
        move || host.usage()
    };
    let (instances, most, checks) = (uses(host), uses(host), uses(host));
    telemetry.read(Reading::PoolInUse, move || instances().instances);
    telemetry.read(Reading::PoolSize, move || most().max_instances);
    telemetry.read(Reading::PasswordChecks, move || checks().password_checks);
    let commits = Arc::clone(telemetry);
    metadata.on_commit(move |jobs, took| commits.count_commit(jobs, took));
}

fn watch_registry(telemetry: &Telemetry, registry: &Registry) {
    let stats = |registry: &Registry| {
        let registry = registry.clone();
        move || registry.stats()
    };
    let (uploads, fills, bytes) = (stats(registry), stats(registry), stats(registry));
    telemetry.read(Reading::Uploads, move || uploads().uploads_open);
    telemetry.read(Reading::Fills, move || fills().fills_running);
    telemetry.read(Reading::BlobBytes, move || bytes().blob_bytes_written);
}

/// Loads every plugin, in the order of the configuration.
async fn load_plugins(
    host: &PluginHost,
    config: &Config,
    telemetry: &Telemetry,
) -> anyhow::Result<Vec<Arc<Binding>>> {
    let mut bindings = Vec::with_capacity(config.plugins.len());
    for binding in &config.plugins {
        bindings.push(Arc::new(bind(host, binding, telemetry).await?));
    }
    Ok(bindings)
}

async fn bind(
    host: &PluginHost,
    binding: &config::Binding,
    telemetry: &Telemetry,
) -> anyhow::Result<Binding> {
    let source = PluginSource {
        name: Arc::clone(&binding.name),
        component: component(&binding.from).await?,
        config: binding.config.clone(),
        grants: binding.grants.clone(),
        limits: binding.limits,
    };
    let plugin = host.load(source).await?;
    let name = &binding.name;
    if binding.changes.is_some() && !plugin.hooks().has(Hook::Admit) {
        anyhow::bail!(
            "plugin {name} has `changes`, but the component does not take part in admission"
        );
    }
    if plugin.hooks().has(Hook::Authenticate)
        && (binding.on_error != config::OnError::Deny || binding.mode != config::Mode::Enforce)
    {
        anyhow::bail!(
            "plugin {name} is an authenticator: `on_error` can only be deny and `mode` only enforce"
        );
    }
    tracing::info!(plugin.name = %name, plugin.digest = %plugin.digest(), "plugin loaded");
    Ok(Binding {
        fingerprint: fingerprint(&plugin, binding),
        meter: telemetry.plugin(name),
        plugin,
        repositories: binding.repositories.clone(),
        changes: binding.changes.clone().unwrap_or_else(default_changes),
        mode: binding.mode,
        on_error: binding.on_error,
    })
}

async fn component(from: &PluginFrom) -> anyhow::Result<Bytes> {
    match from {
        PluginFrom::Builtin(name) => {
            let component = builtin::builtin(name)
                .with_context(|| format!("there is no built-in plugin {name}"))?;
            Ok(Bytes::from_static(component))
        }
        PluginFrom::File(path) => {
            let bytes = tokio::fs::read(path)
                .await
                .with_context(|| format!("cannot read the plugin {}", path.display()))?;
            Ok(bytes.into())
        }
    }
}

/// Digest of everything that decides what a binding answers.
fn fingerprint(plugin: &Plugin, binding: &config::Binding) -> Arc<str> {
    let text = format!(
        "{}\n{}\n{:?}\n{:?}",
        plugin.digest(),
        binding.config,
        binding.grants,
        binding.limits
    );
    URL_SAFE_NO_PAD
        .encode(digest(&SHA256, text.as_bytes()).as_ref())
        .into()
}

fn mirrors(
    config: &Config,
    telemetry: &Telemetry,
) -> anyhow::Result<HashMap<Arc<str>, MirrorSettings>> {
    let mut mirrors = HashMap::new();
    for mirror in &config.mirrors {
        let client = RegistryClient::new(client_settings(mirror))
            .with_context(|| format!("mirror {}", mirror.name))?;
        let settings = MirrorSettings {
            upstream: Arc::new(MeasuredUpstream::new(telemetry, &mirror.name, client)),
            counts: telemetry.mirror_cache(&mirror.name),
            prefix: mirror.names.prefix.clone(),
            keep: mirror.keep.clone(),
            freshness: mirror.freshness,
            rules: mirror.tag_rules.clone(),
            not_found_for: mirror.not_found_for,
        };
        mirrors.insert(Arc::clone(&mirror.name), settings);
    }
    Ok(mirrors)
}

fn client_settings(mirror: &config::Mirror) -> ClientSettings {
    let credentials = mirror.credentials.as_ref().map(|credentials| {
        let password = String::from_utf8_lossy(&credentials.password.0).into_owned();
        Credentials {
            username: credentials.username.clone(),
            password: password.into(),
        }
    });
    ClientSettings {
        name: mirror.name.to_string(),
        url: mirror.url.clone(),
        alternatives: mirror.alternatives.clone(),
        credentials,
        connect_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(30),
        minimum_rate: 1024,
        max_concurrency: 64,
        root_certificates: None,
        user_agent: concat!("gantry/", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

fn registry_settings(config: &Config) -> Settings {
    Settings {
        max_manifest_bytes: usize::try_from(config.limits.max_manifest_bytes).unwrap_or(usize::MAX),
        delete_enabled: config.hosted.delete,
        max_uploads_per_principal: config.limits.uploads_per_client as usize,
        ..Settings::default()
    }
}

fn edge_settings(config: &Config) -> EdgeSettings {
    let limits = &config.limits;
    EdgeSettings {
        external_url: config.external_url.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        minimum_rate: limits.minimum_rate,
        minimum_rate_window: Duration::from_secs(30),
        decision_deadline: limits.decision_deadline,
        drain_timeout: limits.drain_timeout,
        max_connections: limits.max_connections,
        max_blob_bytes: limits.max_blob_bytes,
    }
}
