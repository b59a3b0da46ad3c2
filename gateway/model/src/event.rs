//! Facts worth telling: what happened, to which content, by whom, and what a receiver answered.
//!
//! Owns the kinds and the payload that receivers' formats are made from. Knows nothing of queues, formats or HTTP.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    decision::{Denial, Requester},
    digest::Digest,
    name::RepositoryName,
    namespace::Repository,
    reference::Tag,
};

/// What happened.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum EventKind {
    /// A manifest was pushed, also one that was there: once per tag it was pushed under, or once without a tag.
    ManifestPushed,
    /// A tag was made, or names another digest now; [`Payload::previous`] is what it named.
    TagMoved,
    /// A blob was uploaded, also one that was there.
    BlobPushed,
    /// A blob of another repository was linked; [`Payload::from_repository`] is where it came from.
    BlobMounted,
    /// A manifest was asked for with `GET` and may leave.
    ManifestPulled,
    /// A blob, or a part of one, was asked for with `GET` and may leave.
    BlobPulled,
    /// A manifest was deleted. Its tags have events of their own, before this one.
    ManifestDeleted,
    /// A tag was deleted, alone or with its manifest; the digest is what it named.
    TagDeleted,
    /// A blob is no longer readable in the repository.
    BlobDeleted,
    /// A policy or an admission refused a request; [`Payload::reason`] says why.
    RequestDenied,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::ManifestPushed,
        Self::TagMoved,
        Self::BlobPushed,
        Self::BlobMounted,
        Self::ManifestPulled,
        Self::BlobPulled,
        Self::ManifestDeleted,
        Self::TagDeleted,
        Self::BlobDeleted,
        Self::RequestDenied,
    ];

    /// The spelling that plugins and operators see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ManifestPushed => "manifest.pushed",
            Self::TagMoved => "tag.moved",
            Self::BlobPushed => "blob.pushed",
            Self::BlobMounted => "blob.mounted",
            Self::ManifestPulled => "manifest.pulled",
            Self::BlobPulled => "blob.pulled",
            Self::ManifestDeleted => "manifest.deleted",
            Self::TagDeleted => "tag.deleted",
            Self::BlobDeleted => "blob.deleted",
            Self::RequestDenied => "request.denied",
        }
    }

    /// Whether the fact changed nothing: such events are written without a commit of their own, and go first when space is short.
    #[must_use]
    pub fn is_droppable(self) -> bool {
        matches!(
            self,
            Self::ManifestPulled | Self::BlobPulled | Self::RequestDenied
        )
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// The text is no [`EventKind`].
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a kind of event")]
pub struct UnknownKind;

impl FromStr for EventKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownKind)
    }
}

/// One fact, after its commit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Unique: the same id may be delivered twice, never for two facts. In UUID's form.
    pub id: String,
    /// What.
    pub kind: EventKind,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Where: the canonical name.
    pub repository: RepositoryName,
    /// The content concerned.
    pub digest: Option<Digest>,
    /// The tag concerned.
    pub tag: Option<Tag>,
    /// The principal that caused it: [`crate::Principal::id`].
    pub actor: String,
    /// More, by kind.
    pub payload: Payload,
}

/// What else is known of a fact. As JSON its keys are the fields' names; what is not known is left out.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct Payload {
    /// The content's media type; `application/octet-stream` for blobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The content's length in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where the content can be fetched, as the client spelled the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// What a pushed manifest names: config, layers, or children.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<ReferencedContent>,
    /// For mounts: the canonical name of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_repository: Option<String>,
    /// For tag moves: the digest the tag named before; none when it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// For denials: the operation's kind, as policies see it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// For denials: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DenialReason>,
    /// The request that caused it; none for the gateway's own work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<RequestFacts>,
    /// The node that took the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceFacts>,
}

impl Payload {
    /// What every event of a request says: the request, and the node that took it.
    #[must_use]
    pub fn of(requester: &Requester) -> Self {
        let Some(arrival) = &requester.arrival else {
            return Self::default();
        };
        let client = &requester.client;
        Self {
            request: Some(RequestFacts {
                id: requester.request_id.to_string(),
                addr: client.address.to_string(),
                host: shortened(&arrival.host),
                method: shortened(&arrival.method),
                useragent: shortened(client.user_agent.as_deref().unwrap_or_default()),
            }),
            source: Some(arrival.source.clone()),
            ..Self::default()
        }
    }
}

/// The beginning of a text that a client chose, in whole characters and at most [`MAX_TEXT_BYTES`]: events of one client must not take
/// the space of others'.
#[must_use]
pub fn shortened(text: &str) -> String {
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    text.get(..end).unwrap_or_default().to_owned()
}

/// Bytes of a text of an event that a client chose.
pub const MAX_TEXT_BYTES: usize = 512;

/// Bytes of a content's URL; an event says none that is longer.
const MAX_URL_BYTES: usize = 2048;

/// Content that a manifest names.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ReferencedContent {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length in bytes.
    pub size: u64,
}

/// Why something was refused.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct DenialReason {
    /// Stable: a rule's name.
    pub code: String,
    /// A sentence.
    pub text: String,
    /// The plugin that refused, when one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plugin: Option<String>,
}

impl From<&Denial> for DenialReason {
    fn from(denial: &Denial) -> Self {
        Self {
            code: denial.reason.code.to_string(),
            text: denial.reason.text.to_string(),
            plugin: denial.plugin.as_ref().map(ToString::to_string),
        }
    }
}

/// A request, as Distribution's notifications tell it.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default)]
pub struct RequestFacts {
    /// Ties the event to log and audit lines.
    pub id: String,
    /// The client's address, trusted proxies taken off.
    pub addr: String,
    /// The host the client asked for, with its port when it named one. This and the two texts below are [`shortened`].
    pub host: String,
    /// The method.
    pub method: String,
    /// What the client calls itself; empty when it does not say.
    pub useragent: String,
}

/// A node of the gateway.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(default)]
pub struct SourceFacts {
    /// Its host and port.
    pub addr: String,
    /// Another one after each start. In UUID's form.
    pub instance_id: String,
}

/// How a request reached the gateway: what the edge knows and the domain passes on to events.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// The method.
    pub method: String,
    /// The host the client asked for, with its port when it named one.
    pub host: String,
    /// `scheme://host[:port]` that clients reach the gateway by.
    pub url: String,
    /// The node that took it.
    pub source: SourceFacts,
}

impl Arrival {
    /// Where clients fetch content of a repository, spelled as this client did; none when that is absurdly long.
    #[must_use]
    pub fn content_url(
        &self,
        repository: &Repository,
        kind: &str,
        digest: &Digest,
    ) -> Option<String> {
        let Repository { base, spelled, .. } = repository;
        let url = format!("{}{base}/{spelled}/{kind}/{digest}", self.url);
        (url.len() <= MAX_URL_BYTES).then_some(url)
    }
}

/// What became of an event that was handed to a receiver.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// It arrived.
    Delivered,
    /// Again after so long; zero leaves the time to the gateway.
    Retry(Duration),
    /// Never, because.
    Drop(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_parsed_from_its_own_spelling() {
        for kind in EventKind::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        assert_eq!("manifest.eaten".parse::<EventKind>(), Err(UnknownKind));
    }

    #[test]
    fn a_text_is_cut_at_the_last_whole_character_that_fits() {
        assert_eq!(shortened("docker/29"), "docker/29");
        assert_eq!(shortened(&"u".repeat(50_000)).len(), MAX_TEXT_BYTES);
        // Three bytes each: 512 is no boundary.
        assert_eq!(shortened(&"€".repeat(1000)), "€".repeat(170));
    }

    #[test]
    fn a_payload_says_only_what_is_known() {
        let payload = Payload {
            size: Some(3),
            ..Payload::default()
        };
        let text = serde_json::to_string(&payload).unwrap();
        assert_eq!(text, r#"{"size":3}"#);
        assert_eq!(serde_json::from_str::<Payload>(&text).unwrap(), payload);
    }

    #[test]
    fn a_payload_of_a_later_version_is_read_as_far_as_it_is_known() {
        let payload: Payload = serde_json::from_str(r#"{"size":3,"color":"red"}"#).unwrap();
        assert_eq!(payload.size, Some(3));
    }
}
