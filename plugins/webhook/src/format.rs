//! Events as bodies: Distribution's envelope, CloudEvents 1.0, Slack texts.
//!
//! Owns the spelling that receivers parse. An envelope's fields stand in the order of Distribution's own, three blanks an indentation.

use gantry_plugin::events::Event;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::{Endpoint, Format},
    time,
};

/// A body and what it is.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// The parts of an event's payload that formats use.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Payload {
    media_type: Option<String>,
    size: Option<u64>,
    url: Option<String>,
    references: Vec<Content>,
    from_repository: Option<String>,
    reason: Reason,
    request: Request,
    source: SourceFacts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Content {
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reason {
    text: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SourceFacts {
    addr: String,
    instance_id: String,
}

// --- Distribution ---

#[derive(Serialize)]
struct Envelope<'a> {
    events: [Notification<'a>; 1],
}

#[derive(Serialize)]
struct Notification<'a> {
    id: &'a str,
    timestamp: String,
    action: &'static str,
    target: Target<'a>,
    request: &'a Request,
    actor: Actor<'a>,
    source: Source<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Target<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    repository: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    references: Vec<Descriptor>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Request {
    id: String,
    addr: String,
    host: String,
    method: String,
    useragent: String,
}

#[derive(Serialize)]
struct Actor<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct Source<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    addr: &'a str,
    #[serde(skip_serializing_if = "str::is_empty", rename = "instanceID")]
    instance_id: &'a str,
}

/// Distribution's action; other formats have kinds of their own.
fn action(kind: &str) -> &'static str {
    match kind {
        "blob.mounted" => "mount",
        kind if kind.ends_with(".pulled") => "pull",
        kind if kind.ends_with(".deleted") => "delete",
        _ => "push",
    }
}

/// Distribution names a user as he logs in, and nobody not at all.
fn actor_name(actor: &str) -> Option<&str> {
    match actor {
        "" | "anonymous" => None,
        named => Some(named.strip_prefix("user:").unwrap_or(named)),
    }
}

fn envelope(event: &Event, payload: &Payload, references: bool) -> Vec<u8> {
    // A deleted tag is told by its name alone: receivers take a digest for the manifest's own end.
    let digest = event.digest.as_deref();
    let digest = digest.filter(|_| event.kind != "tag.deleted");
    let size = payload.size.filter(|_| digest.is_some());
    let described = references.then_some(&payload.references);
    let descriptor = |content: &Content| Descriptor {
        media_type: content.media_type.clone(),
        digest: content.digest.clone(),
        size: content.size,
    };
    let envelope = Envelope {
        events: [Notification {
            id: &event.id,
            timestamp: time::rfc3339(event.at, 9),
            action: action(&event.kind),
            target: Target {
                media_type: payload.media_type.as_deref(),
                digest,
                size,
                length: size,
                repository: &event.repository,
                from_repository: payload.from_repository.as_deref(),
                url: payload.url.as_deref(),
                tag: event.tag.as_deref(),
                references: described.into_iter().flatten().map(descriptor).collect(),
            },
            request: &payload.request,
            actor: Actor {
                name: actor_name(&event.actor),
            },
            source: Source {
                addr: &payload.source.addr,
                instance_id: &payload.source.instance_id,
            },
        }],
    };
    let mut bytes = Vec::new();
    let indented = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, indented);
    // Writing plain fields into memory cannot fail.
    envelope.serialize(&mut serializer).ok();
    bytes
}

// --- CloudEvents ---

fn cloud_event(event: &Event, payload: &Payload) -> Value {
    let mut data: Value = serde_json::from_str(&event.payload).unwrap_or_else(|_| json!({}));
    if let Some(data) = data.as_object_mut() {
        data.insert("repository".to_owned(), json!(event.repository));
        data.insert("actor".to_owned(), json!(event.actor));
        if let Some(digest) = &event.digest {
            data.insert("digest".to_owned(), json!(digest));
        }
        if let Some(tag) = &event.tag {
            data.insert("tag".to_owned(), json!(tag));
        }
    }
    let source = match payload.source.addr.as_str() {
        "" => "/gantry".to_owned(),
        addr => format!("//{addr}"),
    };
    let mut written = json!({
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": format!("gantry.{}", event.kind),
        "subject": subject(event),
        "time": time::rfc3339(event.at, 3),
        "datacontenttype": "application/json",
    });
    if let Some(written) = written.as_object_mut() {
        if !payload.request.id.is_empty() {
            written.insert("requestid".to_owned(), json!(payload.request.id));
        }
        written.insert("data".to_owned(), data);
    }
    written
}

/// `apps/web:v1`, `apps/web@sha256:…` or `apps/web`.
fn subject(event: &Event) -> String {
    match (&event.tag, &event.digest) {
        (Some(tag), _) => format!("{}:{tag}", event.repository),
        (None, Some(digest)) => format!("{}@{digest}", event.repository),
        (None, None) => event.repository.clone(),
    }
}

// --- Slack ---

fn slack(event: &Event, payload: &Payload) -> Value {
    let done = match event.kind.as_str() {
        "tag.moved" => "now names",
        "request.denied" => "refused for",
        "blob.mounted" => "mounted by",
        kind if kind.ends_with(".pulled") => "pulled by",
        kind if kind.ends_with(".deleted") => "deleted by",
        _ => "pushed by",
    };
    let what = escape(&subject(event));
    let actor = escape(&event.actor);
    let digest = event.digest.as_deref().unwrap_or_default();
    let short: String = digest.chars().take(19).collect();
    let text = match event.kind.as_str() {
        "tag.moved" => format!("*{what}* {done} `{short}` (by {actor})"),
        "request.denied" => {
            format!("*{what}* {done} {actor}: {}", escape(&payload.reason.text))
        }
        _ if event.tag.is_some() && !short.is_empty() => {
            format!("*{what}* {done} {actor} (`{short}`)")
        }
        _ => format!("*{what}* {done} {actor}"),
    };
    json!({ "text": text })
}

/// Slack's three control characters.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The event without the name of a mount's source, where the endpoint does not cover that repository.
fn shown(endpoint: &Endpoint, event: &Event) -> Event {
    let mut shown = event.clone();
    let payload: Value = serde_json::from_str(&event.payload).unwrap_or_default();
    let source = payload.get("from_repository").and_then(Value::as_str);
    if source.is_some_and(|source| !endpoint.covers(source)) {
        let mut payload = payload;
        if let Some(fields) = payload.as_object_mut() {
            fields.remove("from_repository");
        }
        shown.payload = payload.to_string();
    }
    shown
}

/// The body for `events`: one, except for a batch.
pub(crate) fn body(endpoint: &Endpoint, events: &[&Event]) -> Body {
    let shown: Vec<Event> = events.iter().map(|event| shown(endpoint, event)).collect();
    let events = &shown;
    let payload = |event: &Event| serde_json::from_str(&event.payload).unwrap_or_default();
    let json_bytes = |value: &Value| value.to_string().into_bytes();
    let first = events.first();
    let (content_type, bytes) = match endpoint.format {
        Format::Distribution => (
            "application/vnd.docker.distribution.events.v1+json",
            first.map(|event| envelope(event, &payload(event), endpoint.references)),
        ),
        Format::Cloudevents => (
            "application/cloudevents+json; charset=utf-8",
            first.map(|event| json_bytes(&cloud_event(event, &payload(event)))),
        ),
        Format::CloudeventsBatch => {
            let all = events
                .iter()
                .map(|event| cloud_event(event, &payload(event)));
            (
                "application/cloudevents-batch+json; charset=utf-8",
                Some(json_bytes(&Value::Array(all.collect()))),
            )
        }
        Format::Slack => (
            "application/json; charset=utf-8",
            first.map(|event| json_bytes(&slack(event, &payload(event)))),
        ),
    };
    Body {
        content_type,
        bytes: bytes.unwrap_or_default(),
    }
}
