//! The binding's `config`: as written, and as endpoints that can be used.

use std::collections::BTreeMap;

use gantry_plugin::{Issues, events::Event, glob::Glob, glob::any_matches};
use serde::Deserialize;

const DEFAULT_TIMEOUT_MS: u32 = 5_000;
const MAX_TIMEOUT_MS: u32 = 60_000;

/// The binding's `config`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    endpoints: Vec<EndpointConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointConfig {
    url: String,
    events: Option<Vec<Group>>,
    repositories: Option<Vec<Glob>>,
    format: Format,
    blobs: Option<bool>,
    references: bool,
    headers: BTreeMap<String, HeaderValue>,
    sign_with: Option<String>,
    timeout_ms: Option<u32>,
}

/// What an endpoint is told about.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    Push,
    Pull,
    Delete,
    Mount,
    Tag,
    Denial,
}

/// How a body is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    #[default]
    Distribution,
    Cloudevents,
    CloudeventsBatch,
    Slack,
}

/// A configured header.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(untagged)]
pub(crate) enum HeaderValue {
    Text(String),
    Secret { secret: String },
}

/// A receiver.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) url: String,
    pub(crate) format: Format,
    pub(crate) references: bool,
    pub(crate) headers: Vec<(String, HeaderValue)>,
    pub(crate) sign_with: Option<String>,
    pub(crate) timeout_ms: u32,
    groups: Vec<Group>,
    repositories: Option<Vec<Glob>>,
    blobs: bool,
}

impl Group {
    const ALL: [Self; 6] = [
        Self::Push,
        Self::Pull,
        Self::Delete,
        Self::Mount,
        Self::Tag,
        Self::Denial,
    ];
    /// What Distribution has a word for.
    const DISTRIBUTION: [Self; 4] = [Self::Push, Self::Pull, Self::Delete, Self::Mount];

    /// The group of an event's kind; none of a kind that this plugin does not know.
    pub(crate) fn of(kind: &str) -> Option<Self> {
        Some(match kind {
            "manifest.pushed" | "blob.pushed" => Self::Push,
            "manifest.pulled" | "blob.pulled" => Self::Pull,
            "manifest.deleted" | "tag.deleted" | "blob.deleted" => Self::Delete,
            "blob.mounted" => Self::Mount,
            "tag.moved" => Self::Tag,
            "request.denied" => Self::Denial,
            _ => return None,
        })
    }
}

impl Config {
    /// The endpoints, with an issue for each that cannot be used.
    pub(crate) fn endpoints(self, issues: &mut Issues) -> Vec<Endpoint> {
        if self.endpoints.is_empty() {
            issues.fatal("/endpoints", "no endpoint: events would go nowhere");
        }
        let written = self.endpoints.into_iter().enumerate();
        written
            .map(|(index, endpoint)| endpoint.check(&format!("/endpoints/{index}"), issues))
            .collect()
    }
}

impl EndpointConfig {
    fn check(self, at: &str, issues: &mut Issues) -> Endpoint {
        // A URL from a file ends with a line break.
        let url = self.url.trim();
        if !url.starts_with("https://") && !url.starts_with("http://") {
            issues.fatal(format!("{at}/url"), "is not an http or https URL");
        }
        let is_distribution = self.format == Format::Distribution;
        let groups = self.events.unwrap_or_else(|| {
            if is_distribution {
                Group::DISTRIBUTION.to_vec()
            } else {
                Group::ALL.to_vec()
            }
        });
        let foreign = |group: &Group| !Group::DISTRIBUTION.contains(group);
        if is_distribution && groups.iter().any(foreign) {
            issues.fatal(
                format!("{at}/events"),
                "the format distribution has no word for tag and denial; use cloudevents",
            );
        }
        let timeout_ms = self.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS);
        if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) {
            issues.fatal(
                format!("{at}/timeout_ms"),
                format!("is not between 1 and {MAX_TIMEOUT_MS}"),
            );
        }
        Endpoint {
            url: url.to_owned(),
            format: self.format,
            references: self.references,
            headers: self.headers.into_iter().collect(),
            sign_with: self.sign_with,
            timeout_ms,
            groups,
            repositories: self.repositories,
            blobs: self.blobs.unwrap_or(is_distribution),
        }
    }
}

impl Endpoint {
    /// Whether it is told about an event.
    pub(crate) fn wants(&self, event: &Event) -> bool {
        let told = Group::of(&event.kind).is_some_and(|group| self.groups.contains(&group));
        told && self.covers(&event.repository) && (self.blobs || !event.kind.starts_with("blob."))
    }

    /// Whether it may learn this repository's name.
    pub(crate) fn covers(&self, repository: &str) -> bool {
        let globs = self.repositories.as_ref();
        globs.is_none_or(|globs| any_matches(globs, repository))
    }

    /// The names of the secrets it uses.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &str> {
        let headers = self.headers.iter().filter_map(|(_, value)| match value {
            HeaderValue::Secret { secret } => Some(secret.as_str()),
            HeaderValue::Text(_) => None,
        });
        headers.chain(self.sign_with.as_deref())
    }

    /// Names it in the log, as the gateway does: FNV-1a of the URL, which may hold a token.
    pub(crate) fn mark(&self) -> String {
        let hash = self
            .url
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("{hash:016x}")
    }
}
