//! `GET /admin/v1/events`, `POST /admin/v1/events/replay` and `POST /admin/v1/events/drop`: what waits for receivers, and what to do
//! with it.
//!
//! Owns how deliveries are named from outside. Nothing here waits for a receiver.

use futures_util::future::BoxFuture;
use gantry_model::{Digest, RepositoryName, Tag};
use gantry_storage::{
    EventFilter, StorageError,
    outbox::{EventCursor, EventEntry, MAX_CHANGED, receiver_of},
};
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answered, Call, Problem, Route, plugins::rfc3339};
use crate::{events::Events, http::route::Query};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/admin/v1/events",
        run: list,
    },
    Route {
        method: Method::POST,
        path: "/admin/v1/events/replay",
        run: replay,
    },
    Route {
        method: Method::POST,
        path: "/admin/v1/events/drop",
        run: discard,
    },
];

/// Deliveries of one answer, unless `limit` says otherwise.
const PAGE: usize = 100;
/// Deliveries of one answer at most.
const MAX_PAGE: usize = 1000;

// --- listing ---

fn list(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let asked = Listing::parse(&call.query).map_err(Problem::bad_request)?;
        let outbox = call.generation.events.outbox();
        let listed = outbox.list(&asked.filter, &asked.after, asked.limit);
        let entries = listed.await.map_err(|error| failed(&error))?;
        let next = entries.last().filter(|_| entries.len() == asked.limit);
        let document = json!({
            "events": entries.iter().map(entry).collect::<Vec<_>>(),
            "next": next.map(cursor),
        });
        Ok((StatusCode::OK, document))
    })
}

/// What a query asks for.
#[derive(Debug, Eq, PartialEq)]
struct Listing {
    filter: EventFilter,
    after: EventCursor,
    limit: usize,
}

impl Listing {
    fn parse(query: &str) -> Result<Self, String> {
        let query = Query::parse(query).map_err(|error| error.to_string())?;
        let one = |key| query.single(key).map_err(|error| error.to_string());
        let limit = one("limit")?.map(|text| {
            let limit = text.parse::<usize>().ok();
            limit
                .filter(|limit| (1..=MAX_PAGE).contains(limit))
                .ok_or_else(|| format!("limit is 1 to {MAX_PAGE}"))
        });
        let filter = EventFilter {
            sink: one("receiver")?.map(str::to_owned),
            dead: one("state")?.map(is_dead).transpose()?.flatten(),
            repository: one("repository")?.map(repository).transpose()?,
            id: one("id")?.map(str::to_owned),
        };
        Ok(Self {
            filter,
            after: one("after")?.map(after).transpose()?.unwrap_or_default(),
            limit: limit.transpose()?.unwrap_or(PAGE),
        })
    }
}

fn is_dead(state: &str) -> Result<Option<bool>, String> {
    match state {
        "dead" => Ok(Some(true)),
        "waiting" => Ok(Some(false)),
        "all" => Ok(None),
        _ => Err("state is waiting, dead or all".to_owned()),
    }
}

fn repository(name: &str) -> Result<RepositoryName, String> {
    name.parse().map_err(|error| format!("repository: {error}"))
}

/// The form of [`cursor`].
fn after(text: &str) -> Result<EventCursor, String> {
    let place = text.split_once(':').and_then(|(sequence, sink)| {
        Some(EventCursor {
            sequence: sequence.parse().ok()?,
            sink: sink.to_owned(),
        })
    });
    place.ok_or_else(|| "after is what `next` of another answer said".to_owned())
}

fn cursor(entry: &EventEntry) -> String {
    format!("{}:{}", entry.waiting.sequence, entry.sink)
}

fn entry(entry: &EventEntry) -> Value {
    let event = &entry.waiting.event;
    let endpoint = entry.sink.split_once('/').map(|(_receiver, part)| part);
    json!({
        "id": event.id,
        "receiver": receiver_of(&entry.sink),
        "endpoint": endpoint,
        "state": if entry.dead { "dead" } else { "waiting" },
        "kind": event.kind.as_str(),
        "at": rfc3339(event.at_ms),
        "repository": event.repository.as_str(),
        "tag": event.tag.as_ref().map(Tag::as_str),
        "digest": event.digest.as_ref().map(Digest::as_str),
        "actor": event.actor,
        "attempts": entry.waiting.attempts,
        "attempted_at": entry.attempted_at_ms.and_then(rfc3339),
        "error": entry.error,
    })
}

// --- changing ---

/// Which deliveries a body means.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    id: Option<String>,
    receiver: Option<String>,
    repository: Option<String>,
    state: Option<String>,
}

impl Which {
    /// The state is dead unless the body says another.
    fn parse(body: &[u8]) -> Result<EventFilter, String> {
        let which: Self = serde_json::from_slice(body).map_err(|error| format!("body: {error}"))?;
        if which.id.is_none() && which.receiver.is_none() {
            return Err("body: say an id, a receiver or both".to_owned());
        }
        Ok(EventFilter {
            sink: which.receiver,
            dead: is_dead(which.state.as_deref().unwrap_or("dead"))?,
            repository: which.repository.as_deref().map(repository).transpose()?,
            id: which.id,
        })
    }
}

fn replay(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let filter = Which::parse(&call.body?).map_err(Problem::bad_request)?;
        if filter.dead != Some(true) {
            return Err(Problem::bad_request("only dead letters are replayed"));
        }
        let events = &call.generation.events;
        let replayed = change(events, &filter, Change::Replay).await;
        events.wake();
        let count = replayed?;
        tracing::info!(
            principal.subject = call.principal.id,
            count,
            "dead letters wait again"
        );
        Ok((StatusCode::OK, json!({ "replayed": count })))
    })
}

fn discard(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let filter = Which::parse(&call.body?).map_err(Problem::bad_request)?;
        let events = &call.generation.events;
        let count = change(events, &filter, Change::Discard).await?;
        tracing::info!(
            principal.subject = call.principal.id,
            count,
            "events are dropped"
        );
        Ok((StatusCode::OK, json!({ "dropped": count })))
    })
}

#[derive(Clone, Copy)]
enum Change {
    Replay,
    Discard,
}

/// In steps, so that pushes go on between them. An event that is named has to be there.
async fn change(events: &Events, filter: &EventFilter, change: Change) -> Result<u64, Problem> {
    let mut changed = 0;
    loop {
        let step = match change {
            Change::Replay => events.outbox().replay(filter).await,
            Change::Discard => events.outbox().discard(filter).await,
        };
        let step = step.map_err(|error| failed(&error))?;
        changed += step;
        if step < MAX_CHANGED {
            break;
        }
    }
    if changed == 0 && filter.id.is_some() {
        return Err(Problem::not_found("no such event"));
    }
    Ok(changed)
}

fn failed(error: &StorageError) -> Problem {
    tracing::warn!(error = ?error, "the outbox failed");
    Problem::unavailable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_deliveries_or_says_what_is_wrong() {
        let asked = Listing::parse(
            "state=dead&receiver=hook&repository=team%2Fweb&id=7&after=12:hook&limit=5",
        );
        let filter = EventFilter {
            sink: Some("hook".to_owned()),
            dead: Some(true),
            repository: Some("team/web".parse().unwrap()),
            id: Some("7".to_owned()),
        };
        let after = EventCursor {
            sequence: 12,
            sink: "hook".to_owned(),
        };
        let limit = 5;
        assert_eq!(
            asked,
            Ok(Listing {
                filter,
                after,
                limit
            })
        );
        let all = Listing::parse("").unwrap();
        assert_eq!(
            (all.filter, all.after, all.limit),
            (EventFilter::default(), EventCursor::default(), PAGE)
        );
        for wrong in [
            "state=gone",
            "limit=0",
            "limit=1001",
            "limit=x",
            "after=hook",
            "after=x:hook",
            "repository=UPPER",
            "state=dead&state=waiting",
            "id=%zz",
        ] {
            assert!(Listing::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_body_means_dead_letters_of_somebody_unless_it_says_more() {
        let filter = Which::parse(br#"{"receiver":"hook"}"#).unwrap();
        assert_eq!(
            (filter.sink.as_deref(), filter.dead),
            (Some("hook"), Some(true))
        );
        let filter = Which::parse(br#"{"id":"7","state":"all"}"#).unwrap();
        assert_eq!((filter.id.as_deref(), filter.dead), (Some("7"), None));
        for wrong in [
            "",
            "{}",
            r#"{"repository":"team/web"}"#,
            r#"{"id":"7","reciever":"hook"}"#,
            r#"{"id":"7","state":"gone"}"#,
        ] {
            assert!(Which::parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
