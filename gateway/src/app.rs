//! What lives as long as the process, and the generation that serves now.
//!
//! Owns the composition: which store, which upstreams, which plugins in which chain. Every crate that does not know its sibling is
//! introduced to it here. Map: `generation` is everything that a configuration decides, `plugins` loads its components. Invariant: a
//! request takes [`App::current`] once and keeps it, so it never sees two configurations.

mod adoption;
mod generation;
pub(crate) mod plugins;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use gantry_model::event::SourceFacts;
use gantry_plugin_host::{AuthorizeAnswer, HostPorts, PluginHost};
use gantry_registry::{Clock as _, Leases, Registry};
use gantry_storage::{CachedMetadata, FsBlobStore, SqliteKv, SqliteStore};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{mpsc, watch};

pub use self::{
    adoption::{AdoptionPlan, is_pull_through, uncovered},
    generation::Generation,
};
use crate::{
    auth::{logins::Logins, revocation::Revocation, verified::VerifiedCredentials},
    callers::memory::Memory,
    clock::SystemClock,
    config::{self, BlobStorage, Config, MetadataStorage},
    events::Events,
    hooks::{PluginValues, Serves, StoredContent},
    modes,
    origins::Origins,
    outbound::{Names, Requests, SystemNames},
    policy::{
        Policy,
        binding::{Binding, Trip},
        decisions::Decisions,
        shadow::Shadows,
    },
    server::Shares,
    telemetry::{EventMeter, Reading, Telemetry},
};

/// Trips that wait to be looked at; more than these are of bindings that trip again.
const MAX_TRIPS: usize = 64;

/// Memory that kept decisions of authorizers may take, and as much again those of admissions about serves: about 15,000 each.
const MAX_DECISION_BYTES: u64 = 16 << 20;

/// The process. Shared behind one `Arc`.
#[derive(Debug)]
pub struct App {
    /// Log, metrics, audit.
    pub telemetry: Arc<Telemetry>,
    generation_current: ArcSwap<Generation>,
    pub(crate) lasting: Lasting,
}

/// What no reload touches.
#[derive(Debug)]
pub(crate) struct Lasting {
    telemetry: Arc<Telemetry>,
    host: PluginHost,
    /// The registry's running state, under the first configuration's settings.
    registry: Registry,
    /// The authorizers that judge plugins' reads: those of the serving generation.
    policy_current: Arc<ArcSwapOption<Policy>>,
    origins_current: Arc<ArcSwapOption<Origins>>,
    metadata: Arc<CachedMetadata>,
    callers: Memory,
    decisions: Arc<Decisions<AuthorizeAnswer>>,
    serves: Arc<Serves>,
    verified: VerifiedCredentials,
    logins: Logins,
    pub(crate) revocation: Arc<Revocation>,
    shadows: Shadows,
    trips: mpsc::Sender<Trip>,
    generations: Gauge,
    events: Arc<Events>,
    shares: Arc<Shares>,
    swapped: watch::Sender<u64>,
}

/// What the edge enforces.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// `scheme://host[:port][/path]` that clients reach us by; `None` = from the request and trusted proxies.
    pub external_url: Option<url::Url>,
    /// Names under which the admin API may be asked, besides addresses, `localhost` and the host of `external_url`.
    pub admin_hosts: Vec<String>,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<config::Network>,
    /// Which forwarding headers those are.
    pub proxy_headers: config::ProxyHeaders,
    /// Headers of every response, where the response has none of that name.
    pub headers: http::HeaderMap,
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
    /// Whether a running download that a new configuration denies ends.
    pub ends_denied_downloads: bool,
    /// How long a drain waits for requests in flight.
    pub drain_timeout: Duration,
    /// Connections at once, over all listeners.
    pub max_connections: usize,
    /// Bytes of a single uploaded blob at most; `None` = no limit.
    pub max_blob_bytes: Option<u64>,
}

impl App {
    /// Opens the stores, loads the plugins, and joins everything. Dials nothing: it starts with every upstream down. Bindings that keep
    /// failing are told to the receiver.
    ///
    /// # Errors
    /// A sentence for the operator: which folder, file or plugin, and why not.
    pub async fn build(config: &Config) -> anyhow::Result<(Arc<Self>, mpsc::Receiver<Trip>)> {
        let telemetry = Arc::new(Telemetry::new());
        let (trips, tripped) = mpsc::channel(MAX_TRIPS);
        // Beside the stores, which wait for the disk.
        let _engine = tokio::task::spawn_blocking(PluginHost::prepare);
        let stores = Stores::open(config).await?;
        let values = Arc::<SqliteKv>::clone(&stores.values);
        let revocation = Revocation::open(values).await?;
        let lasting = stores.lasting(config, &telemetry, trips, revocation)?;
        watch(&telemetry, &lasting.host, &stores.database);
        watch_registry(&telemetry, &lasting.registry);
        let bindings = plugins::load(&lasting, config, None)
            .await
            .map_err(|mistakes| anyhow::anyhow!(mistakes.to_string()))?;
        let first = Generation::assemble(&lasting, config, bindings, None)?;
        lasting
            .policy_current
            .store(Some(Arc::clone(&first.policy)));
        lasting
            .origins_current
            .store(Some(Arc::new(Origins::new(config))));
        let app = Self {
            telemetry,
            generation_current: ArcSwap::from_pointee(first),
            lasting,
        };
        Ok((Arc::new(app), tripped))
    }

    /// The generation that serves now. To be taken once per request.
    #[must_use]
    pub fn current(&self) -> Arc<Generation> {
        self.generation_current.load_full()
    }

    /// Makes a generation out of a configuration and loaded plugins, beside the one that serves.
    pub(crate) fn prepare(
        &self,
        config: &Config,
        bindings: Vec<Arc<Binding>>,
    ) -> anyhow::Result<Generation> {
        Generation::assemble(&self.lasting, config, bindings, Some(&self.current()))
    }

    /// The one swap: every request from here on is the new generation's.
    pub(crate) fn swap(&self, next: Generation) -> Arc<Generation> {
        let next = Arc::new(next);
        self.lasting
            .policy_current
            .store(Some(Arc::clone(&next.policy)));
        let origins = Origins::new(&next.config);
        self.lasting.origins_current.store(Some(Arc::new(origins)));
        self.generation_current.store(Arc::clone(&next));
        self.lasting.revocation.reconfigured();
        self.lasting.swapped.send_replace(next.number);
        next
    }

    /// Follows the swaps, by the number of the generation that serves.
    #[must_use]
    pub fn swaps(&self) -> watch::Receiver<u64> {
        self.lasting.swapped.subscribe()
    }
}

impl Lasting {
    pub(crate) fn trips(&self) -> &mpsc::Sender<Trip> {
        &self.trips
    }

    pub(crate) fn host(&self) -> &PluginHost {
        &self.host
    }
}

/// The opened stores.
struct Stores {
    blobs: Arc<FsBlobStore>,
    metadata: Arc<CachedMetadata>,
    database: Arc<SqliteStore>,
    values: Arc<SqliteKv>,
    state: PathBuf,
}

impl Stores {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let BlobStorage::Filesystem(root) = config.storage.blobs.clone();
        let MetadataStorage::Sqlite(database) = config.storage.metadata.clone();
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&root, &database));
        let stores = opened.await??;
        let origins = Origins::new(config);
        let owner_of = {
            let origins = origins.clone();
            move |name: &_| origins.owner_of(name)
        };
        let decided = stores.database.decide_origins(owner_of).await;
        if let Some(decided) = decided.context("cannot decide which upstream delivered what")? {
            tracing::info!(
                ?decided,
                "decided which upstream delivered the stored content; content that another mirror or a hosted repository holds too is fetched again"
            );
        }
        adoption::adopt(config, &stores.blobs, &stores.database).await?;
        Ok(stores)
    }

    fn open_blocking(root: &Path, database: &Path) -> anyhow::Result<Self> {
        let state = database
            .parent()
            .unwrap_or_else(|| Path::new("."))
            .to_owned();
        let keys = root.join("keys");
        let beside = state.join("plugins.db");
        // Before anything is made: what was there keeps its mode.
        let kept = BTreeSet::from([
            root,
            state.as_path(),
            database,
            beside.as_path(),
            keys.as_path(),
        ]);
        modes::warn_of_open(kept);
        std::fs::create_dir_all(&state)
            .with_context(|| format!("cannot make the folder {}", state.display()))?;
        let blobs = FsBlobStore::open(root)
            .with_context(|| format!("cannot open the blob folder {}", root.display()))?;
        let metadata = SqliteStore::open(database)
            .with_context(|| format!("cannot open the database {}", database.display()))?;
        let values = SqliteKv::open(&beside)
            .with_context(|| format!("cannot open the plugins' database {}", beside.display()))?;
        let metadata = Arc::new(metadata);
        Ok(Self {
            blobs: Arc::new(blobs),
            metadata: Arc::new(CachedMetadata::new(Arc::<SqliteStore>::clone(&metadata))),
            database: metadata,
            values: Arc::new(values),
            state,
        })
    }

    fn lasting(
        &self,
        config: &Config,
        telemetry: &Arc<Telemetry>,
        trips: mpsc::Sender<Trip>,
        revocation: Arc<Revocation>,
    ) -> anyhow::Result<Lasting> {
        let policy_current = Arc::new(ArcSwapOption::empty());
        let origins_current = Arc::new(ArcSwapOption::empty());
        let serves = Arc::new(Serves::new(MAX_DECISION_BYTES));
        let generations = Gauge::default();
        let shadows = Shadows::start();
        let events = self.events(config, telemetry)?;
        telemetry.register(|registry| {
            registry.register(
                "generations",
                "Configurations in memory: the one that serves and those that requests still hold",
                generations.clone(),
            );
            registry.register(
                "shadow_dropped",
                "Questions that shadow plugins were not asked because too many waited",
                shadows.dropped.clone(),
            );
        });
        Ok(Lasting {
            telemetry: Arc::clone(telemetry),
            host: self.plugin_host(&policy_current, &origins_current, &serves)?,
            registry: self.registry(config, &events),
            policy_current,
            origins_current,
            metadata: Arc::clone(&self.metadata),
            callers: Memory::new()?,
            decisions: Arc::new(Decisions::new(MAX_DECISION_BYTES)),
            serves,
            verified: VerifiedCredentials::new()?,
            logins: Logins::new()?,
            revocation,
            shadows,
            trips,
            generations,
            events,
            shares: Shares::new(config.limits.max_connections),
            swapped: watch::Sender::new(1),
        })
    }

    fn plugin_host(
        &self,
        policy: &Arc<ArcSwapOption<Policy>>,
        origins: &Arc<ArcSwapOption<Origins>>,
        serves: &Arc<Serves>,
    ) -> anyhow::Result<PluginHost> {
        let stored = StoredContent {
            blobs: Arc::<FsBlobStore>::clone(&self.blobs),
            metadata: Arc::<CachedMetadata>::clone(&self.metadata),
            policy_current: Arc::clone(policy),
            origins_current: Arc::clone(origins),
            serves: Arc::clone(serves),
        };
        let host = PluginHost::new(HostPorts {
            kv: Arc::new(PluginValues(Arc::<SqliteKv>::clone(&self.values))),
            registry: Arc::new(stored),
            outbound: Arc::new(Requests::new(&(Arc::new(SystemNames) as Arc<dyn Names>))),
            now_ms: Arc::new(|| SystemClock.now_ms()),
            cache_directory: Some(self.state.join("compiled")),
            password_checks: std::thread::available_parallelism().map_or(2, std::num::NonZero::get),
        })?;
        Ok(host)
    }

    fn events(&self, config: &Config, telemetry: &Telemetry) -> anyhow::Result<Arc<Events>> {
        let source = SourceFacts {
            addr: config
                .listen
                .first()
                .map_or_else(String::new, |listen| listen.address.to_string()),
            instance_id: gantry_registry::random_uuid()?,
        };
        let outbox = Arc::<SqliteStore>::clone(&self.database);
        let meter = EventMeter::default();
        telemetry.register(|registry| meter.register(registry));
        Ok(Events::new(outbox, Arc::new(SystemClock), source, meter))
    }

    /// A registry without mirrors and admissions: each generation brings its own.
    fn registry(&self, config: &Config, events: &Arc<Events>) -> Registry {
        let ports = gantry_registry::Ports {
            blobs: Arc::<FsBlobStore>::clone(&self.blobs),
            metadata: Arc::<CachedMetadata>::clone(&self.metadata),
            uploads: Arc::<SqliteStore>::clone(&self.database),
            cache: Arc::<SqliteStore>::clone(&self.database),
            leases: Leases::default(),
            admission: Arc::new(crate::hooks::AdmissionChain::nobody()),
            events: Arc::<Events>::clone(events),
            clock: Arc::new(SystemClock),
            mirrors: std::collections::HashMap::new(),
        };
        Registry::new(ports, generation::registry_settings(config))
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
