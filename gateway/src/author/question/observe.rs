//! The short form of events that a receiver is told of: one as a map, several as `events: [ … ]`.
//!
//! Owns their defaults. Ids are numbered, so that a case says the same on every day.

use gantry_model::{Digest, Event, EventKind, RepositoryName, Tag, event::Payload};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Batch, DigestText, NameText, TagText, parsed, read, unknown};

/// The time of an event that names none: 2026-01-01T00:00:00Z, which is also the trial's `now`.
const AT_MS: u64 = 1_767_225_600_000;

/// The keys of [`Payload`]. It takes unknown ones, from later versions; a case that misspells one should hear of it.
const PAYLOAD_KEYS: [&str; 10] = [
    "media_type",
    "size",
    "url",
    "references",
    "from_repository",
    "previous",
    "operation",
    "reason",
    "request",
    "source",
];

/// Reads a case's `request`.
pub(super) fn read_batch(form: Value) -> Result<Batch, (Vec<String>, String)> {
    let is_list = form.get("events").is_some();
    let forms = if is_list {
        let list: List = read(form)?;
        list.events
    } else {
        vec![read(form)?]
    };
    let events = forms.into_iter().zip(1..);
    Ok(Batch {
        events: events.map(|(form, number)| form.event(number)).collect(),
        is_list,
    })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    events: Vec<Told>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Told {
    id: Option<String>,
    kind: KindText,
    at_ms: Option<u64>,
    repository: NameText,
    digest: Option<DigestText>,
    tag: Option<TagText>,
    actor: Option<String>,
    payload: PayloadForm,
}

impl Told {
    fn event(self, number: u32) -> Event {
        let repository: RepositoryName = self.repository.0;
        let digest: Option<Digest> = self.digest.map(|digest| digest.0);
        let tag: Option<Tag> = self.tag.map(|tag| tag.0);
        Event {
            id: self
                .id
                .unwrap_or_else(|| format!("00000000-0000-4000-8000-{number:012}")),
            kind: self.kind.0,
            at_ms: self.at_ms.unwrap_or(AT_MS),
            repository,
            digest,
            tag,
            actor: self.actor.unwrap_or_else(|| "anonymous".to_owned()),
            payload: self.payload.0,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct KindText(EventKind);

impl Default for KindText {
    fn default() -> Self {
        Self(EventKind::ManifestPushed)
    }
}

impl TryFrom<String> for KindText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        parsed(&text)
            .map(Self)
            .map_err(|_unknown| unknown("kind", EventKind::ALL.into_iter().map(EventKind::as_str)))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
struct PayloadForm(Payload);

impl TryFrom<Map<String, Value>> for PayloadForm {
    type Error = String;

    fn try_from(written: Map<String, Value>) -> Result<Self, String> {
        for key in written.keys() {
            if !PAYLOAD_KEYS.contains(&key.as_str()) {
                let known = PAYLOAD_KEYS.join(", ");
                return Err(format!("unknown key `{key}`; keys known here: {known}"));
            }
        }
        let payload = serde_json::from_value(Value::Object(written));
        payload.map(Self).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_key_of_a_payload_is_known() {
        let full = json!({
            "media_type": "a/b", "size": 1, "url": "u", "from_repository": "f", "previous": "p", "operation": "o",
            "references": [{ "media_type": "a/b", "digest": "d", "size": 1 }],
            "reason": { "code": "c", "text": "t" }, "request": { "id": "r" }, "source": { "addr": "s" },
        });
        let batch = read_batch(json!({ "payload": full })).unwrap();
        let payload = serde_json::to_value(&batch.events[0].payload).unwrap();
        let payload = payload.as_object().unwrap();
        assert_eq!(payload.len(), PAYLOAD_KEYS.len());
        assert!(
            payload
                .keys()
                .all(|key| PAYLOAD_KEYS.contains(&key.as_str()))
        );
    }

    #[test]
    fn nothing_said_is_a_push_and_ids_differ() {
        let batch =
            read_batch(json!({ "events": [{}, { "kind": "tag.moved", "tag": "v1" }] })).unwrap();
        assert!(batch.is_list);
        let [first, second] = &batch.events[..] else {
            panic!("{batch:?}");
        };
        assert_eq!(first.kind, EventKind::ManifestPushed);
        assert_eq!(first.repository.as_str(), "team/app");
        assert_eq!(second.kind, EventKind::TagMoved);
        assert_ne!(first.id, second.id);
        assert!(!read_batch(Value::Null).unwrap().is_list);
    }

    #[test]
    fn mistakes_name_the_key() {
        for (form, keys, expected) in [
            (
                json!({ "kind": "tag.eaten" }),
                "kind",
                "no kind of that name; there are: manifest.pushed, ",
            ),
            (
                json!({ "payload": { "sise": 1 } }),
                "payload",
                "unknown key `sise`",
            ),
            (
                json!({ "events": [{}, { "digest": "x" }] }),
                "events.1.digest",
                "not a digest",
            ),
            (
                json!({ "events": [], "kind": "tag.moved" }),
                "kind",
                "unknown field `kind`",
            ),
        ] {
            let (path, message) = read_batch(form).unwrap_err();
            assert_eq!(path.join("."), keys);
            assert!(message.contains(expected), "{message}");
        }
    }
}
