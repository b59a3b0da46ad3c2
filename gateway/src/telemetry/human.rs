//! One line of text an event, for people and for files that people read.
//!
//! Owns that form: time, level, the spans around, target, message, fields. It is on every request's way twice, so a line is made in one
//! buffer that its thread keeps and leaves in one write. Text from outside is quoted or escaped, so it can neither forge a line nor
//! move a terminal.

use std::{
    cell::{Cell, RefCell},
    error::Error,
    fmt::{self, Write as _},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_log::NormalizeEvent as _;
use tracing_subscriber::{
    layer::{Context, Layer},
    registry::LookupSpan,
};

use super::json::{Lines, REQUEST_ID};

/// Writes each event it is shown.
pub(super) struct HumanLayer<L> {
    pub(super) lines: L,
    /// Whether levels are colored.
    pub(super) ansi: bool,
}

/// A span as lines show it: `name{field=value}`.
struct SpanText(String);

thread_local! {
    static LINE: Cell<String> = const { Cell::new(String::new()) };
    /// The second the last line was of, and how it is written.
    static SECOND: RefCell<(i64, String)> = const { RefCell::new((i64::MIN, String::new())) };
}

/// A line that was longer does not keep its buffer.
const MAX_KEPT_BYTES: usize = 16 << 10;

impl<S, L> Layer<S> for HumanLayer<L>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    L: Lines + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        let mut text = String::with_capacity(64);
        text.push_str(span.name());
        if !attributes.fields().is_empty() {
            text.push('{');
            attributes.record(&mut Fields::of(&mut text));
            text.push('}');
        }
        span.extensions_mut().replace(SpanText(text));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else {
            return;
        };
        if let Some(SpanText(text)) = span.extensions_mut().get_mut::<SpanText>() {
            let closed = text.pop().filter(|last| *last != '}');
            text.extend(closed);
            text.push(if closed.is_some() { '{' } else { ' ' });
            values.record(&mut Fields::of(text));
            text.push('}');
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let normalized = event.normalized_metadata();
        let metadata = normalized.as_ref().unwrap_or_else(|| event.metadata());
        // Taken, not borrowed: a value's own `Debug` may log.
        let mut line = LINE.take();
        push_time(&mut line);
        self.push_level(&mut line, *metadata.level());
        // An event that says its request itself need not be told where it belongs.
        if event.metadata().fields().field(REQUEST_ID).is_none() {
            push_spans(&mut line, event, &context);
        }
        line.push_str(metadata.target());
        line.push_str(": ");
        event.record(&mut Fields::of(&mut line));
        line.push('\n');
        self.lines.write(line.as_bytes());
        if line.capacity() <= MAX_KEPT_BYTES {
            line.clear();
            LINE.set(line);
        }
    }
}

impl<L> HumanLayer<L> {
    fn push_level(&self, line: &mut String, level: Level) {
        let (word, color) = match level {
            Level::ERROR => ("ERROR", "\u{1b}[31m"),
            Level::WARN => (" WARN", "\u{1b}[33m"),
            Level::INFO => (" INFO", "\u{1b}[32m"),
            Level::DEBUG => ("DEBUG", "\u{1b}[34m"),
            _ => ("TRACE", "\u{1b}[35m"),
        };
        let (color, plain) = if self.ansi {
            (color, "\u{1b}[0m")
        } else {
            ("", "")
        };
        line.extend([" ", color, word, plain, " "]);
    }
}

fn push_time(line: &mut String) {
    let now = jiff::Timestamp::now();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *text = format!("{now:.0}").trim_end_matches('Z').to_owned();
        }
        line.push_str(text);
    });
    let micros = now.subsec_nanosecond() / 1000;
    write!(line, ".{micros:06}Z").ok();
}

/// The spans around, the outermost first.
fn push_spans<S>(line: &mut String, event: &Event<'_>, context: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let Some(scope) = context.event_scope(event) else {
        return;
    };
    for span in scope.from_root() {
        if let Some(SpanText(text)) = span.extensions().get::<SpanText>() {
            line.extend([text, ": "]);
        }
    }
}

/// Writes ` name=value` for each field, and the message as it is.
struct Fields<'a> {
    text: &'a mut String,
    any: bool,
}

impl<'a> Fields<'a> {
    fn of(text: &'a mut String) -> Self {
        Self { text, any: false }
    }

    /// Begins a field; `false` when it is not shown.
    fn begin(&mut self, name: &str) -> bool {
        if name.starts_with("log.") {
            return false;
        }
        if self.any {
            self.text.push(' ');
        }
        self.any = true;
        if name != "message" {
            self.text.push_str(name);
            self.text.push('=');
        }
        true
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if !self.begin(field.name()) {
        } else if field.name() == "message" {
            push_debug(self.text, &format_args!("{value}"));
        } else if value.bytes().all(is_plain) {
            self.text.extend(["\"", value, "\""]);
        } else {
            push_debug(self.text, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if self.begin(field.name()) {
            push_debug(self.text, &format_args!("{value}"));
            let mut source = value.source();
            while let Some(cause) = source {
                push_debug(self.text, &format_args!(": {cause}"));
                source = cause.source();
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.begin(field.name()) {
            push_debug(self.text, value);
        }
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

/// Appends a value as it shows itself, control characters escaped.
fn push_debug(text: &mut String, value: &dyn fmt::Debug) {
    let before = text.len();
    // A value whose own `Debug` fails is shown as far as it came.
    write!(text, "{value:?}").ok();
    let harmless = |byte: &u8| matches!(byte, b' '..=b'~');
    if text.as_bytes().iter().skip(before).all(harmless) {
        return;
    }
    let written = text.split_off(before);
    for character in written.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<String>>);

    impl Lines for Written {
        fn write(&self, line: &[u8]) {
            let line = std::str::from_utf8(line).unwrap();
            self.0.lock().unwrap().push_str(line);
        }
    }

    /// What is logged, without the times, which must be there.
    fn logged(ansi: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let lines = written.clone();
        let layer = HumanLayer { lines, ansi };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = written.0.lock().unwrap().clone();
        let without_time = |line: &str| {
            let (time, rest) = line.split_at(27);
            time.parse::<jiff::Timestamp>().unwrap();
            assert!(time.ends_with('Z'));
            format!("{rest}\n")
        };
        text.lines().map(without_time).collect()
    }

    #[test]
    fn a_line_says_level_place_message_and_fields() {
        let text = logged(false, || {
            tracing::info!(target: "access", { status = 200_u16, path = "/v2/", took = 1.5 }, "request");
            tracing::warn!(target: "t", error = &std::io::Error::other("broken") as &dyn Error, "failed");
        });
        assert_eq!(
            text,
            "  INFO access: request status=200 path=\"/v2/\" took=1.5\n  WARN t: failed error=broken\n"
        );
    }

    #[test]
    fn a_line_says_which_spans_it_is_in_unless_it_names_its_request() {
        let text = logged(false, || {
            let request = tracing::error_span!("request", request.id = "12");
            let _request = request.enter();
            let plugin = tracing::error_span!("plugin", name = "a", more = tracing::field::Empty);
            plugin.record("more", 7);
            let _plugin = plugin.enter();
            let _bare = tracing::error_span!("bare").entered();
            tracing::error!(target: "t", "inside");
            tracing::info!(target: "t", { request.id = "12" }, "named");
        });
        let expected =
            "ERROR request{request.id=\"12\"}: plugin{name=\"a\" more=7}: bare: t: inside\n";
        assert_eq!(
            text,
            format!(" {expected}  INFO t: named request.id=\"12\"\n")
        );
    }

    #[test]
    fn control_characters_are_escaped_wherever_they_come_from() {
        let hostile = "a\n\u{1b}[31m\u{9b}é\"";
        let text = logged(false, || {
            tracing::info!(target: "t", text = hostile, shown = %hostile, "{hostile}");
        });
        let escaped = "a\\n\\u{1b}[31m\\u{9b}é";
        assert_eq!(
            text,
            format!("  INFO t: {escaped}\" text=\"{escaped}\\\"\" shown={escaped}\"\n")
        );
    }

    #[test]
    fn a_value_that_logs_while_it_is_shown_spoils_no_line() {
        struct Talks;
        impl fmt::Debug for Talks {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                tracing::info!(target: "t", "inner");
                formatter.write_str("outer")
            }
        }
        let text = logged(
            false,
            || tracing::info!(target: "t", value = ?Talks, "line"),
        );
        assert!(text.ends_with("  INFO t: line value=outer\n"), "{text}");
    }

    #[test]
    fn only_a_terminal_gets_colors() {
        let text = logged(true, || tracing::info!(target: "t", "line"));
        assert_eq!(text, " \u{1b}[32m INFO\u{1b}[0m t: line\n");
    }
}
