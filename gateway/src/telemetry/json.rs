//! One JSON object a line, each with the request it belongs to.
//!
//! Owns the form of machine-readable lines: `timestamp`, `level`, `target`, `message`, the event's fields under their dotted names, and
//! `request.id` from the request around it when the event has none of its own. Text is a JSON string, so it can forge no line.

use std::{cell::RefCell, error::Error, fmt, io};

use rustix::io::Errno;
use serde_json::{Map, Value};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id},
};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::{LookupSpan, SpanRef},
};

/// The field that ties lines together.
pub(super) const REQUEST_ID: &str = "request.id";

/// Where whole lines go.
pub(super) trait Lines: Send + Sync {
    /// Writes one line, its line break included.
    fn write(&self, line: &[u8]);
}

/// Standard error. A line that cannot be written has nowhere else to be told of.
#[derive(Debug)]
pub(super) struct Stderr;

impl Lines for Stderr {
    fn write(&self, line: &[u8]) {
        let held = HELD.with_borrow_mut(|held| held.as_mut().map(|held| held.extend(line)));
        if held.is_none() {
            Self::write_now(line);
        }
    }
}

thread_local! {
    /// Lines of this thread that leave together.
    static HELD: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

/// Lets the lines of the log that `tell` makes leave in one write; nothing else is held back by it.
pub fn in_one_write(tell: impl FnOnce()) {
    /// Writes also when `tell` panics.
    struct Held;
    impl Drop for Held {
        fn drop(&mut self) {
            if let Some(lines) = HELD.take() {
                Stderr::write_now(&lines);
            }
        }
    }
    HELD.set(Some(Vec::with_capacity(1024)));
    let _held = Held;
    tell();
}

impl Stderr {
    /// One write and no lock: the system keeps a line in one piece, in a file always and in a pipe up to `PIPE_BUF`, and a lock that is
    /// held over it makes threads wait for each other at every request.
    fn write_now(line: &[u8]) {
        let mut rest = line;
        if line.len() <= PIPE_BUF {
            match rustix::io::write(io::stderr(), line) {
                Ok(written) => rest = line.get(written..).unwrap_or_default(),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_closed) => return,
            }
        }
        if !rest.is_empty() {
            io::Write::write_all(&mut io::stderr().lock(), rest).ok();
        }
    }
}

/// What Linux writes to a pipe in one piece.
const PIPE_BUF: usize = 4096;

/// Writes each event it is shown.
pub(super) struct JsonLayer<L>(pub(super) L);

struct RequestId(String);

impl<S, L> Layer<S> for JsonLayer<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Lines + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().fields().field(REQUEST_ID).is_none() {
            return;
        }
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        let Some(Value::String(request)) = fields.0.remove(REQUEST_ID) else {
            return;
        };
        if let Some(span) = context.span(id) {
            // Two layers may find it.
            span.extensions_mut().replace(RequestId(request));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        let mut line = Fields::default();
        let now = jiff::Timestamp::now();
        line.put("timestamp", format!("{now:.6}"));
        line.put("level", metadata.level().as_str());
        line.put("target", metadata.target());
        event.record(&mut line);
        if normalized.is_some() {
            line.0.retain(|name, _| !name.starts_with("log."));
        }
        if !line.0.contains_key(REQUEST_ID) {
            let request = context
                .event_scope(event)
                .and_then(|mut scope| scope.find_map(|span| request_of(&span)));
            if let Some(request) = request {
                line.put(REQUEST_ID, request);
            }
        }
        let mut text = Value::Object(line.0).to_string();
        text.push('\n');
        self.0.write(text.as_bytes());
    }
}

fn request_of<'a>(span: &SpanRef<'a, impl LookupSpan<'a>>) -> Option<String> {
    let extensions = span.extensions();
    extensions
        .get::<RequestId>()
        .map(|request| request.0.clone())
}

#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut chain = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            chain.push_str(": ");
            chain.push_str(&cause.to_string());
            source = cause.source();
        }
        self.put(field.name(), chain);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}"));
    }
}
