//! Everything that one configuration decides: names, mirrors, chains, tokens, settings.
//!
//! Made beside the generation that serves, swapped in whole, and freed when the last request that holds it ends.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use anyhow::Context as _;
use gantry_model::Namespaces;
use gantry_plugin_host::Hook;
use gantry_registry::{MirrorSettings, Registry, Settings};
use gantry_storage::CachedMetadata;
use gantry_upstream::RegistryClient;
use prometheus_client::metrics::gauge::Gauge;

use super::{EdgeSettings, Lasting};
use crate::{
    auth::{Authentication, token::Tokens},
    callers::{AskedMirror, Callers},
    config::{self, Config},
    events::{Events, Receiver},
    hooks::{AdmissionChain, EventHook},
    origins::upstream_origin,
    policy::{Policy, binding::Binding},
    server::Shares,
    telemetry::{MeasuredUpstream, Telemetry},
};

/// Everything a request needs.
#[derive(Debug)]
pub struct Generation {
    /// Counts from 1; raised by every swap.
    pub number: u64,
    /// What it was made from.
    pub config: Config,
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
    /// What is told to whom.
    pub events: Arc<Events>,
    /// Who is told of events.
    pub receivers: Vec<Arc<dyn Receiver>>,
    /// What the edge enforces.
    pub edge: Arc<EdgeSettings>,
    /// Whether no credential can be known: there is no authenticator, and no mirror whose upstream knows callers.
    pub is_open: bool,
    /// Requests in flight that trusted proxies brought, by client.
    pub shares: Arc<Shares>,
    /// Every plugin, in the order of the configuration.
    pub bindings: Vec<Arc<Binding>>,
    clients: Clients,
    _counted: Counted,
}

/// Upstream clients by mirror.
type Clients = HashMap<Arc<str>, Arc<RegistryClient>>;

/// A generation in the gauge, until it is freed.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Counted")
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Generation {
    /// Joins a configuration with its loaded plugins. Changes nothing of what serves.
    pub(super) fn assemble(
        lasting: &Lasting,
        config: &Config,
        bindings: Vec<Arc<Binding>>,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let taking_part = |hook| {
            bindings
                .iter()
                .filter(|binding| binding.plugin.hooks().has(hook))
                .cloned()
                .collect::<Vec<_>>()
        };
        let clients = clients(config, before)?;
        let policy = Policy::new(
            taking_part(Hook::Authorize),
            Arc::clone(&lasting.decisions),
            lasting.shadows.clone(),
            Arc::new(callers(lasting, config, &clients)),
        );
        let tokens = Tokens::open(
            &config.tokens.keys,
            &config.tokens.issuer,
            config.tokens.lifetime,
            Arc::clone(&lasting.revocation),
        )?;
        let authenticators = taking_part(Hook::Authenticate);
        let knows_callers = |mirror: &config::Mirror| mirror.callers != config::Callers::ByPlugins;
        let is_open = authenticators.is_empty() && !config.mirrors.iter().any(knows_callers);
        let verified = lasting.verified.of_chain(&authenticators);
        let admission = AdmissionChain::new(
            taking_part(Hook::Admit),
            Arc::clone(&lasting.serves),
            lasting.shadows.clone(),
        );
        let receivers = receivers(&taking_part(Hook::Observe));
        let registry = lasting.registry.reconfigured(
            Arc::new(admission),
            mirrors(config, &clients, &lasting.telemetry),
            registry_settings(config),
        );
        Ok(Self {
            number: before.map_or(1, |before| before.number + 1),
            namespaces: config.namespaces(),
            registry,
            authentication: Authentication::new(
                authenticators,
                verified,
                lasting.logins.clone(),
                Arc::clone(&lasting.revocation),
                tokens,
            ),
            policy: Arc::new(policy),
            telemetry: Arc::clone(&lasting.telemetry),
            events: Arc::clone(&lasting.events),
            receivers,
            edge: Arc::new(edge_settings(config)),
            is_open,
            shares: Arc::clone(&lasting.shares),
            config: config.clone(),
            bindings,
            clients,
            _counted: Counted::new(&lasting.generations),
        })
    }
}

fn receivers(bindings: &[Arc<Binding>]) -> Vec<Arc<dyn Receiver>> {
    let hooks = bindings.iter().flat_map(EventHook::all_of);
    hooks.map(|hook| Arc::new(hook) as _).collect()
}

/// An unchanged mirror keeps its client; one with other credentials too, so that what it fetches goes on.
fn clients(config: &Config, before: Option<&Generation>) -> anyhow::Result<Clients> {
    let mut clients = HashMap::new();
    for mirror in &config.mirrors {
        let kept = before.and_then(|before| before.client_of(mirror));
        let client = match kept {
            Some(client) => client,
            None => Arc::new(
                RegistryClient::new(mirror.upstream.clone())
                    .with_context(|| format!("mirror {}", mirror.name))?,
            ),
        };
        clients.insert(Arc::clone(&mirror.name), client);
    }
    Ok(clients)
}

impl Generation {
    /// The client of the same upstream, with the mirror's credentials from now on.
    fn client_of(&self, mirror: &config::Mirror) -> Option<Arc<RegistryClient>> {
        let mut mirrors = self.config.mirrors.iter();
        let known = mirrors.find(|known| known.name == mirror.name)?;
        if !known.upstream.same_but_for_credentials(&mirror.upstream) {
            return None;
        }
        let client = self.clients.get(&mirror.name)?;
        if known.upstream.credentials != mirror.upstream.credentials {
            client.replace_credentials(mirror.upstream.credentials.as_ref());
        }
        Some(Arc::clone(client))
    }
}

/// The mirrors whose upstreams have a say about those who ask.
fn callers(lasting: &Lasting, config: &Config, clients: &Clients) -> Callers {
    let asked = |mirror: &config::Mirror| {
        let config::Callers::ByUpstream { remember_for } = mirror.callers else {
            return None;
        };
        let client = Arc::clone(clients.get(&mirror.name)?);
        let rights = MeasuredUpstream::new(&lasting.telemetry, &mirror.name, client);
        Some(AskedMirror {
            name: Arc::clone(&mirror.name),
            upstream: mirror.upstream.url.to_string(),
            remember_for,
            rights: Arc::new(rights),
        })
    };
    Callers::new(
        config.mirrors.iter().filter_map(asked).collect(),
        config.namespaces(),
        Arc::<CachedMetadata>::clone(&lasting.metadata),
        lasting.callers.clone(),
    )
    .asking_at_most(config.limits.upstream.scope_confirmations)
}

fn mirrors(
    config: &Config,
    clients: &Clients,
    telemetry: &Telemetry,
) -> HashMap<Arc<str>, MirrorSettings> {
    let is_open = |mirror: &config::Mirror| mirror.callers == config::Callers::ByPlugins;
    let settings = |mirror: &config::Mirror| {
        let client = clients.get(&mirror.name)?;
        let settings = MirrorSettings {
            upstream: Arc::new(MeasuredUpstream::new(
                telemetry,
                &mirror.name,
                Arc::clone(client),
            )),
            counts: telemetry.mirror_cache(&mirror.name),
            prefix: mirror.names.prefix.clone(),
            keep: mirror.keep.clone(),
            prefetch: mirror.prefetch,
            parallel: mirror.parallel,
            freshness: mirror.freshness,
            rules: mirror.tag_rules.clone(),
            not_found_for: mirror.not_found_for,
            is_listed: is_open(mirror),
            origin: upstream_origin(&mirror.upstream.url),
        };
        Some((Arc::clone(&mirror.name), settings))
    };
    config.mirrors.iter().filter_map(settings).collect()
}

pub(super) fn registry_settings(config: &Config) -> Settings {
    let other = Settings::default();
    Settings {
        max_manifest_bytes: usize::try_from(config.limits.max_manifest_bytes).unwrap_or(usize::MAX),
        max_annotation_bytes: usize::try_from(config.limits.max_annotation_bytes)
            .unwrap_or(usize::MAX),
        delete_enabled: config.hosted.delete,
        max_uploads_per_principal: config.limits.uploads_per_client as usize,
        max_derived_requests: config.limits.upstream.derived_requests,
        max_prefetched_blobs: config.limits.upstream.prefetched_blobs,
        max_misses: config.limits.upstream.not_found_per_address,
        max_misses_of_repository: config.limits.upstream.not_found_per_repository,
        max_fills: crate::server::fills_that_fit(other.max_fills),
        ..other
    }
}

fn edge_settings(config: &Config) -> EdgeSettings {
    let limits = &config.limits;
    EdgeSettings {
        external_url: config.external_url.clone(),
        admin_hosts: config.admin_hosts.clone(),
        trusted_proxies: config.trusted_proxies.clone(),
        proxy_headers: config.http.proxy_headers,
        headers: config.http.headers.clone(),
        header_timeout: limits.header_timeout,
        idle_timeout: limits.idle_timeout,
        minimum_rate: limits.minimum_rate,
        minimum_rate_window: Duration::from_secs(30),
        decision_deadline: limits.decision_deadline,
        ends_denied_downloads: limits.ends_denied_downloads,
        drain_timeout: limits.drain_timeout,
        max_connections: limits.max_connections,
        max_blob_bytes: limits.max_blob_bytes,
    }
}
