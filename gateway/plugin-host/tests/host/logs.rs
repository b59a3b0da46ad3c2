//! What a guest writes reaches the log bounded, on one line, and under its plugin's name.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use gantry_plugin_host::Redaction;
use serde_json::json;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    guest::{self, SECRET, doing, generous, source},
    isolation::told,
};

/// Keeps every event of the target `plugin` as `name=value` texts.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.push_str(&format!("{}={value:?};", field.name()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push_str(&format!("{}={value};", field.name()));
    }
}

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "plugin"
    }

    fn new_span(&self, _attributes: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

/// What the guest logs while it does `what`, and what it told.
async fn logged(what: &str) -> (Vec<String>, String) {
    let plugin = doing(what, generous()).await;
    let kept = Kept::default();
    let guard = tracing::subscriber::set_default(kept.clone());
    let told = told(&plugin).await;
    drop(guard);
    let lines = kept.0.lock().unwrap().clone();
    (lines, told)
}

#[tokio::test]
async fn a_guests_line_is_one_line_under_its_name_and_request() {
    let (lines, _) = logged("secret-log").await;
    let [line] = &*lines else {
        panic!("{lines:?}");
    };
    assert!(line.contains("plugin.name=hostile;"), "{line}");
    assert!(line.contains("request.id=request-1;"), "{line}");
    assert!(line.contains("message=a line with a [31mbreak;"), "{line}");
    assert!(line.contains("key=\"a  b\""), "{line}");
    assert!(!line.contains(SECRET), "{line}");
    assert!(!line.chars().any(char::is_control), "{line}");
}

#[tokio::test]
async fn a_guest_that_logs_its_configuration_shows_no_secret_of_it() {
    let mut source = source(json!({ "do": "secret-log", "key": SECRET }), generous());
    source.grants = guest::grants();
    source.redaction = Redaction::of([SECRET.to_owned()]);
    let plugin = guest::host().load(source).await.unwrap();
    let kept = Kept::default();
    let guard = tracing::subscriber::set_default(kept.clone());
    told(&plugin).await;
    drop(guard);
    let lines = kept.0.lock().unwrap().clone();
    assert!(!lines.concat().contains(SECRET), "{lines:?}");
    assert!(lines.concat().contains("***"), "{lines:?}");
}

#[tokio::test]
async fn a_flood_of_lines_is_cut_and_the_call_answers() {
    let (lines, told) = logged("log-flood").await;
    assert_eq!(told, "survived");
    let bytes: usize = lines.iter().map(String::len).sum();
    assert!(bytes < 16 << 10, "{bytes}");
    let last = lines.last().unwrap();
    assert!(
        last.contains("further log lines of this call are dropped"),
        "{last}"
    );
}

#[tokio::test]
async fn a_flood_of_standard_error_goes_nowhere_and_the_call_answers() {
    let (lines, told) = logged("stderr-flood").await;
    assert_eq!((lines.len(), &*told), (0, ""));
}
