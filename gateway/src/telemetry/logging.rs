//! Where log and audit lines and traces go, and how lines look.

use std::{
    io::IsTerminal as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use tracing::Metadata;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterFn, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use super::{
    AuditSink, Traces,
    human::HumanLayer,
    json::{JsonLayer, REQUEST_ID, Stderr},
};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What is logged, and where else it goes.
#[derive(Debug, Default)]
pub struct Logging<'a> {
    /// How a line of the log looks.
    pub format: LogFormat,
    /// `info`, or tracing directives.
    pub level: &'a str,
    /// Where audit lines go besides the log.
    pub audit: Option<AuditSink>,
    /// Who records spans.
    pub traces: Option<&'a Traces>,
}

/// Logging cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is not `error`, `warn`, `info`, `debug`, `trace` or a list of `target=level`.
    #[error("not a log level")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// Something set up logging before.
    #[error("logging is set up already")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Compilers tell thousands of lines about each plugin; who wants them names them.
const COMPILERS: &str = "cranelift_codegen=info,wasmtime_internal_cranelift=info,regalloc2=info";

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Whether audit lines go somewhere besides the log.
static AUDITED: AtomicBool = AtomicBool::new(false);

/// Whether audit lines go somewhere besides the log, where each must be before its request is answered.
pub fn audits_apart() -> bool {
    AUDITED.load(Ordering::Relaxed)
}

/// Panics since the process started, of requests and of everything else.
pub(super) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

/// Sends log lines to standard error, audit lines and traces where they are wanted, and panics with the log.
///
/// # Errors
/// [`LoggingError`].
pub fn init(logging: Logging<'_>) -> Result<(), LoggingError> {
    let filter = EnvFilter::try_new(format!("{COMPILERS},{}", logging.level))?;
    let lines: Boxed = match logging.format {
        LogFormat::Human => HumanLayer {
            lines: Stderr,
            ansi: std::io::stderr().is_terminal(),
        }
        .boxed(),
        LogFormat::Json => JsonLayer(Stderr).boxed(),
    };
    let mut beside: Vec<Boxed> = Vec::new();
    if let Some(sink) = logging.audit {
        AUDITED.store(true, Ordering::Relaxed);
        beside.push(JsonLayer(sink).with_filter(audited()).boxed());
    }
    if let Some(traces) = logging.traces {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(traces.tracer())
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        beside.push(layer.with_filter(filter_fn(is_own_span)).boxed());
    }
    if beside.is_empty() {
        // One filter for everything: what it keeps out costs a look at one flag, and no layer is asked again at each event.
        Registry::default().with(lines).with(filter).try_init()?;
    } else {
        beside.push(lines.with_filter(filter).boxed());
        Registry::default().with(beside).try_init()?;
    }
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        let place = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or("a panic without text");
        tracing::error!(
            panic.place = place.as_deref(),
            panic.text = text,
            "panicked"
        );
    }));
    Ok(())
}

/// Audit lines, and the spans that say which request they belong to.
pub(super) fn audited() -> FilterFn {
    filter_fn(|metadata| {
        let names_request = metadata.is_span() && metadata.fields().field(REQUEST_ID).is_some();
        names_request || metadata.target() == "audit"
    })
}

fn is_own_span(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target().starts_with("gantry")
}
