//! `gantry events`: what waits for the receivers of a running gateway, and what to do with it.

use std::io::{self, Write as _};

use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{
    Failure,
    admin::{Output, Target, aligned, at, cell, pretty},
};

/// What to do with events.
#[derive(Debug, Subcommand)]
pub(crate) enum EventsCommand {
    /// List events that wait for a receiver, and those that were given up.
    List(List),
    /// Let events that were given up wait again, from their first attempt on.
    Replay(Change),
    /// Forget events that were given up; with --state also those that wait.
    Drop(Drop),
}

/// Arguments of `gantry events list`.
#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    which: Which,
    /// Only those that wait, or only those that were given up.
    #[arg(long, value_enum, default_value_t)]
    state: State,
    /// At most so many, up to 1000.
    #[arg(long, default_value_t = 100)]
    limit: u16,
    /// Go on where another list ended.
    #[arg(long, value_name = "PLACE")]
    after: Option<String>,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Arguments of `gantry events replay`.
#[derive(Args, Debug)]
pub(crate) struct Change {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    which: Which,
    /// How to print how many.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Arguments of `gantry events drop`.
#[derive(Args, Debug)]
pub(crate) struct Drop {
    #[command(flatten)]
    change: Change,
    /// Which of them.
    #[arg(long, value_enum, default_value_t = State::Dead)]
    state: State,
}

#[derive(Args, Debug)]
struct Which {
    /// The event with this id.
    #[arg(long)]
    id: Option<String>,
    /// Those of this receiver: a plugin's name, or NAME/ENDPOINT for one of its endpoints.
    #[arg(long)]
    receiver: Option<String>,
    /// Those of this repository.
    #[arg(long)]
    repository: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum State {
    /// Both.
    #[default]
    All,
    /// Those that wait.
    Waiting,
    /// Those that were given up.
    Dead,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Waiting => "waiting",
            Self::Dead => "dead",
        }
    }
}

impl Which {
    /// What was said, by the names of the API.
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let said = [
            ("id", self.id.as_deref()),
            ("receiver", self.receiver.as_deref()),
            ("repository", self.repository.as_deref()),
        ];
        said.into_iter()
            .filter_map(|(key, value)| Some((key, value?)))
    }

    fn body(&self, state: State) -> Value {
        let mut body: Map<String, Value> = self
            .pairs()
            .map(|(key, value)| (key.to_owned(), json!(value)))
            .collect();
        body.insert("state".to_owned(), json!(state.as_str()));
        Value::Object(body)
    }
}

/// Does it.
pub(super) fn run(command: &EventsCommand) -> Result<(), Failure> {
    let text = match command {
        EventsCommand::List(arguments) => list(arguments)?,
        EventsCommand::Replay(change) => {
            let body = change.which.body(State::Dead);
            let path = "/admin/v1/events/replay";
            let done = change.target.send(Method::POST, path, &[], Some(&body))?;
            changed(&done, change.output, "replayed")?
        }
        EventsCommand::Drop(Drop { change, state }) => {
            let body = change.which.body(*state);
            let path = "/admin/v1/events/drop";
            let done = change.target.send(Method::POST, path, &[], Some(&body))?;
            changed(&done, change.output, "dropped")?
        }
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn list(arguments: &List) -> Result<String, Failure> {
    let limit = arguments.limit.to_string();
    let mut query: Vec<(&str, &str)> = arguments.which.pairs().collect();
    query.push(("state", arguments.state.as_str()));
    query.push(("limit", &limit));
    query.extend(arguments.after.as_deref().map(|after| ("after", after)));
    let document = arguments
        .target
        .send(Method::GET, "/admin/v1/events", &query, None)?;
    match arguments.output {
        Output::Json => pretty(&document),
        Output::Text => Ok(table(&document)),
    }
}

fn changed(done: &Value, output: Output, what: &str) -> Result<String, Failure> {
    match output {
        Output::Json => pretty(done),
        Output::Text => Ok(format!("{what}: {}\n", at(done, &format!("/{what}")))),
    }
}

/// One line per delivery, and how to see more.
fn table(document: &Value) -> String {
    let head = [
        "ID",
        "RECEIVER",
        "ENDPOINT",
        "STATE",
        "KIND",
        "AT",
        "REPOSITORY",
        "TAG",
        "ATTEMPTS",
        "ERROR",
    ];
    let keys = [
        "id",
        "receiver",
        "endpoint",
        "state",
        "kind",
        "at",
        "repository",
        "tag",
        "attempts",
        "error",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for event in at(document, "/events").as_array().into_iter().flatten() {
        rows.push(keys.map(|key| cell(at(event, &format!("/{key}")))));
    }
    let mut text = aligned(&rows);
    if let Some(next) = at(document, "/next").as_str() {
        text.push_str(&format!("\nThere are more: --after {next}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_waits_and_where_to_go_on() {
        let document = json!({
            "events": [
                { "id": "a1", "receiver": "hook", "endpoint": "1f", "state": "dead", "kind": "manifest-pushed", "at": "2026-01-01T00:00:00Z",
                  "repository": "team/web", "tag": "v1", "attempts": 2, "error": "answered 410\nGone" },
                { "id": "b2", "receiver": "hook", "state": "waiting", "kind": "blob-pushed", "at": "2026-01-01T00:00:01Z",
                  "repository": "x", "tag": null, "attempts": 0, "error": null },
            ],
            "next": "7:hook",
        });
        assert_eq!(
            table(&document),
            "ID  RECEIVER  ENDPOINT  STATE    KIND             AT                    REPOSITORY  TAG  ATTEMPTS  ERROR\n\
             a1  hook      1f        dead     manifest-pushed  2026-01-01T00:00:00Z  team/web    v1   2         answered 410 Gone\n\
             b2  hook      -         waiting  blob-pushed      2026-01-01T00:00:01Z  x           -    0         -\n\
             \n\
             There are more: --after 7:hook\n"
        );
    }

    #[test]
    fn a_change_says_what_was_said_and_its_state() {
        let which = Which {
            id: None,
            receiver: Some("hook".to_owned()),
            repository: None,
        };
        assert_eq!(
            which.body(State::Dead),
            json!({ "receiver": "hook", "state": "dead" })
        );
    }
}
