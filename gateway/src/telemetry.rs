//! Logs, metrics, audit: the only place that names them.

/// Metrics and the audit sink.
#[derive(Debug, Default)]
pub struct Telemetry {}
