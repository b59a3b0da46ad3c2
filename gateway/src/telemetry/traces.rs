//! Traces, sent to a collector by OTLP over HTTP when one is configured; otherwise nothing of this runs.
//!
//! Owns the exporter and what of a request's head and answer a trace says. A client's W3C `traceparent` is its parent. Nothing of a
//! trace is sent to upstreams: they are somebody else's.
//! Invariant: no query, header, credential or body is an attribute; `http.path` and names are what the access line shows too.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use http::HeaderMap;
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::TracerProvider as _,
};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use url::Url;

use super::AccessLine;

/// Whether traces are recorded; spares every request the look into its span.
static RECORDING: AtomicBool = AtomicBool::new(false);

/// How long one export may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where traces go.
#[derive(Clone, Debug)]
pub struct OtlpSettings {
    /// The collector's base URL; `/v1/traces` is added.
    pub endpoint: Url,
    /// Of requests without a parent that decided it, one in so many is recorded; at least 1.
    pub one_in: u32,
}

/// Traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// The HTTP client cannot be made.
    #[error("cannot make the HTTP client of the traces")]
    Client(#[source] reqwest::Error),
    /// The exporter cannot be made.
    #[error("cannot make the exporter of the traces")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// The running exporter.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the exporter's thread. Dials nothing before there is something to send. Must be called outside the runtime.
    ///
    /// # Errors
    /// [`TracesError`].
    pub fn start(settings: &OtlpSettings) -> Result<Self, TracesError> {
        let client = reqwest::blocking::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(TracesError::Client)?;
        let base = settings.endpoint.as_str().trim_end_matches('/');
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{base}/v1/traces"))
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        let ratio = 1.0 / f64::from(settings.one_in.max(1));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                ratio,
            ))))
            .with_resource(Resource::builder().with_service_name("gantry").build())
            .build();
        RECORDING.store(true, Ordering::Relaxed);
        Ok(Self(provider))
    }

    pub(super) fn tracer(&self) -> SdkTracer {
        self.0.tracer("gantry")
    }

    /// Sends what is left. Blocks.
    pub fn finish(&self) {
        RECORDING.store(false, Ordering::Relaxed);
        if let Err(error) = self.0.shutdown_with_timeout(EXPORT_TIMEOUT) {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// Makes the span a child of the `traceparent` that the client sent, if it sent one.
pub fn adopt_parent(span: &Span, headers: &HeaderMap) {
    if RECORDING.load(Ordering::Relaxed) && headers.contains_key("traceparent") {
        let parent = TraceContextPropagator::new().extract(&Headers(headers));
        // A span that is filtered out has no parent to set.
        span.set_parent(parent).ok();
    }
}

/// Notes on the span what the access line says of the request.
pub fn describe(span: &Span, access: &AccessLine) {
    if !RECORDING.load(Ordering::Relaxed) {
        return;
    }
    span.set_attribute("request.id", access.request_id.to_string());
    span.set_attribute("http.request.method", access.method.to_string());
    span.set_attribute("url.path", access.uri.path().to_owned());
    span.set_attribute("http.response.status_code", i64::from(access.status));
    span.set_attribute("operation", access.operation);
    if let Some(repository) = &access.repository {
        span.set_attribute("repository.name", repository.to_string());
    }
    if access.status >= 500 {
        span.set_status(opentelemetry::trace::Status::error(""));
    }
}
