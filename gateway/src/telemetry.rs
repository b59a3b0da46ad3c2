//! Logs, metrics, audit: the only place that names them.
//!
//! Owns metric names, log targets and field names. Invariants: labels are bounded (no name, tag or address is one); text from
//! outside is recorded as a string value, which every format escapes.

mod hooks;
mod lines;
mod logging;

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

pub use self::{
    hooks::{audit_admission, audit_rejected},
    lines::{AccessLine, AuditLine},
    logging::{LogFormat, LoggingError, init},
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
    /// Open connections over all listeners.
    pub connections: Gauge,
    /// Requests whose code panicked.
    pub panics: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RequestLabels {
    operation: &'static str,
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
        let telemetry = Self {
            registry: Mutex::new(Registry::with_prefix("gantry")),
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            bytes: Family::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
        };
        telemetry.register(|registry| {
            registry.register(
                "requests",
                "Requests answered, by operation and status",
                telemetry.requests.clone(),
            );
            registry.register(
                "request_seconds",
                "Time to the response's head, by operation",
                telemetry.seconds.clone(),
            );
            registry.register(
                "bytes",
                "Bytes of bodies, in = from clients, out = to clients",
                telemetry.bytes.clone(),
            );
            registry.register(
                "connections",
                "Open connections",
                telemetry.connections.clone(),
            );
            registry.register(
                "panics",
                "Requests whose code panicked",
                telemetry.panics.clone(),
            );
        });
        telemetry
    }

    /// Lets another part register metrics of its own; names get the prefix `gantry_`.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut registry);
    }

    /// Every metric as `OpenMetrics` text.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        if encode(&mut text, &registry).is_err() {
            // Writing to a string fails only when a metric's own encoder does.
            text.clear();
            if writeln!(text, "# EOF").is_err() {
                return String::new();
            }
        }
        text
    }

    /// Counts an answered request.
    pub fn count_request(&self, operation: &'static str, status: u16, elapsed: Duration) {
        self.requests
            .get_or_create(&RequestLabels { operation, status })
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
}

/// From half a millisecond to half a minute.
fn histogram() -> Histogram {
    Histogram::new([
        0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        30.0,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_and_counted() {
        let telemetry = Telemetry::new();
        telemetry.count_request("pull-blob", 200, Duration::from_millis(3));
        telemetry.count_request("pull-blob", 200, Duration::from_millis(3));
        telemetry.count_bytes(7, 11);
        telemetry.connections.inc();
        let text = telemetry.metrics_text();
        for line in [
            "gantry_requests_total{operation=\"pull-blob\",status=\"200\"} 2",
            "gantry_request_seconds_count{operation=\"pull-blob\"} 2",
            "gantry_bytes_total{direction=\"in\"} 7",
            "gantry_bytes_total{direction=\"out\"} 11",
            "gantry_connections 1",
            "gantry_panics_total 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn others_may_register_too() {
        let telemetry = Telemetry::new();
        let hits = Counter::<u64>::default();
        telemetry.register(|registry| registry.register("hits", "Hits", hits.clone()));
        hits.inc();
        assert!(telemetry.metrics_text().contains("gantry_hits_total 1"));
    }
}
