//! Logs, metrics, audit, traces: the only place that names them.
//!
//! Owns metric names, log targets and field names. Invariants: labels are bounded (no repository, tag, user or address is one); text
//! from outside is recorded as a string value, which every format escapes. ARCHITECTURE.md lists every metric; a test compares.

mod audit;
mod events;
mod hooks;
mod human;
mod json;
mod lines;
mod logging;
mod operator;
mod plugins;
mod process;
mod readings;
mod traces;
mod upstreams;

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gantry_registry::{CacheCounts, Swept};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

pub use self::{
    audit::AuditSink,
    events::{DeliveryOutcome, EventMeter},
    hooks::{audit_admission, audit_failure, audit_rejected},
    json::in_one_write,
    lines::{AccessLine, AuditLine},
    logging::{LogFormat, Logging, LoggingError, audits_apart, init},
    operator::{CacheChange, audit_cache, audit_revoked},
    plugins::{Asked, PluginMeter},
    readings::Reading,
    traces::{OtlpSettings, Traces, TracesError, adopt_parent, describe},
    upstreams::MeasuredUpstream,
};

/// What the text format of [`Telemetry::metrics_text`] is called.
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Metrics. Everything is an atomic; nothing here blocks a request.
#[derive(Debug)]
pub struct Telemetry {
    /// Guards registration and encoding, never the counters.
    registry: Mutex<Registry>,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<OperationLabels, Histogram>,
    bytes: Family<DirectionLabels, Counter>,
    plugins: plugins::PluginFamilies,
    upstreams: upstreams::UpstreamFamilies,
    commit_jobs: Histogram,
    commit_seconds: Histogram,
    readings: Arc<readings::Readings>,
    caches: upstreams::Caches,
    /// Open connections over all listeners.
    pub connections: Gauge,
    /// Connections closed because another client had none and all places were taken.
    pub connections_closed_for_room: Counter,
    /// Connections refused because all places were taken.
    pub connections_refused: Counter,
    /// Requests whose code panicked.
    pub panics: Counter,
    swept_blobs: Counter,
    swept_bytes: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    operation: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OperationLabels {
    operation: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DirectionLabels {
    direction: &'static str,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Makes and registers the gateway's own metrics.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::Process));
        let own = registry.sub_registry_with_prefix("gantry");
        let telemetry = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(request_seconds),
            bytes: Family::default(),
            plugins: plugins::PluginFamilies::register(own),
            upstreams: upstreams::UpstreamFamilies::register(own),
            commit_jobs: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
            commit_seconds: Histogram::new(COMMIT_SECONDS),
            readings: Arc::default(),
            caches: upstreams::Caches::default(),
            connections: Gauge::default(),
            connections_closed_for_room: Counter::default(),
            connections_refused: Counter::default(),
            panics: Counter::default(),
            swept_blobs: Counter::default(),
            swept_bytes: Counter::default(),
            registry: Mutex::default(),
        };
        telemetry.register_own(own);
        *telemetry.registry() = registry;
        telemetry.read(Reading::AuditErrors, audit::errors);
        let in_requests = telemetry.panics.clone();
        telemetry.read(Reading::BackgroundPanics, move || {
            logging::panics().saturating_sub(in_requests.get())
        });
        telemetry
    }

    fn register_own(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests answered; 499: the client left before",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "request",
            "Time to the response's head",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "bytes",
            "Bytes of bodies; in: from clients, out: to clients",
            self.bytes.clone(),
        );
        self.register_connections(registry);
        registry.register(
            "panics",
            "Requests whose code panicked",
            self.panics.clone(),
        );
        registry.register(
            "swept_blobs",
            "Blobs freed because no repository had them",
            self.swept_blobs.clone(),
        );
        registry.register("swept_bytes", "Their bytes", self.swept_bytes.clone());
        registry.register(
            "commit_jobs",
            "Writes that shared one transaction of the metadata",
            self.commit_jobs.clone(),
        );
        registry.register_with_unit(
            "commit",
            "Time of one transaction of the metadata, its fsync included",
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        registry.register_collector(Box::new(self.caches.clone()));
        registry.register_collector(Box::new(Arc::clone(&self.readings)));
    }

    fn register_connections(&self, registry: &mut Registry) {
        registry.register("connections", "Open connections", self.connections.clone());
        registry.register(
            "connections_closed_for_room",
            "Connections closed for another client's because all places were taken",
            self.connections_closed_for_room.clone(),
        );
        registry.register(
            "connections_refused",
            "Connections refused because all places were taken",
            self.connections_refused.clone(),
        );
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets another part register metrics of its own; names get the prefix `gantry_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(self.registry().sub_registry_with_prefix("gantry"));
    }

    /// Every metric as `OpenMetrics` text.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry()).is_err() {
            // Writing to a string fails only when a metric's own encoder does.
            text.clear();
            if writeln!(text, "# EOF").is_err() {
                return String::new();
            }
        }
        text
    }

    /// Counts an answered request.
    pub fn count_request(
        &self,
        operation: &'static str,
        method: &http::Method,
        status: u16,
        elapsed: Duration,
    ) {
        let method = method_label(method);
        self.requests
            .get_or_create(&RequestLabels {
                operation,
                method,
                status,
            })
            .inc();
        self.seconds
            .get_or_create(&OperationLabels { operation })
            .observe(elapsed.as_secs_f64());
    }

    /// Counts the bytes of a request's two bodies.
    pub fn count_bytes(&self, received: u64, sent: u64) {
        for (direction, bytes) in [("in", received), ("out", sent)] {
            self.bytes
                .get_or_create(&DirectionLabels { direction })
                .inc_by(bytes);
        }
    }

    /// Counts what a sweep of the blob store freed.
    pub fn count_swept(&self, swept: Swept) {
        self.swept_blobs.inc_by(swept.blobs);
        self.swept_bytes.inc_by(swept.bytes);
    }

    /// Counts a transaction of the metadata that served `jobs` writes.
    pub fn count_commit(&self, jobs: usize, took: Duration) {
        self.commit_jobs
            .observe(u32::try_from(jobs).map_or(f64::MAX, f64::from));
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// The counters of a binding's calls. Those of an earlier binding of that name go on.
    #[must_use]
    pub fn plugin(&self, name: &Arc<str>) -> PluginMeter {
        self.plugins.meter(name)
    }

    /// The counters of a mirror's cache. Those of an earlier mirror of that name go on.
    #[must_use]
    pub fn mirror_cache(&self, mirror: &Arc<str>) -> Arc<CacheCounts> {
        self.caches.of(mirror)
    }

    /// Says where a number is read at each scrape; takes the place of what said so before.
    pub fn read(&self, reading: Reading, from: impl Fn() -> u64 + Send + Sync + 'static) {
        self.readings.set(reading, Box::new(from));
    }
}

/// Methods that are no registry's are one label: a client may invent as many as it likes.
fn method_label(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// From half a millisecond to half a minute.
fn request_seconds() -> Histogram {
    Histogram::new([
        0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        30.0,
    ])
}

const COMMIT_SECONDS: [f64; 9] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

#[cfg(test)]
mod tests;
