//! What a tried plugin meets: stored content, key-value pairs, time and secrets, as a case file writes them.
//!
//! Owns the ports behind a trial. Reads answer as the gateway's do; nothing here reaches a network or a disk.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Descriptor, Digest, MediaType, Requester, TagState};
use gantry_plugin_host::{
    HostPorts, KeyValue, RegistryReads, Secret,
    ports::{
        Addition, KeyValueEntry, Outbound, OutboundError, OutboundRequest, OutboundResponse,
        PortError, PutOutcome, PutRules, ReadError,
    },
};
use gantry_storage::memory::MemoryKv;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use super::{
    answer::matches,
    question::{DigestText, Previous, content, media_type, written},
};
use crate::hooks::PluginValues;

/// The binding's name in a trial.
pub(super) const BINDING: &str = "trial";

/// What the host answers, as written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct World {
    now: Now,
    secrets: BTreeMap<String, String>,
    kv: BTreeMap<String, BTreeMap<String, Value>>,
    registry: BTreeMap<String, Stored>,
    http: Vec<Reply>,
    /// Ports that fail.
    fails: Vec<Port>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Port {
    Http,
    Kv,
    Registry,
}

/// What another service answers to a URL.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    #[serde(default)]
    method: Option<String>,
    url: String,
    /// The request's body, in which `*` stands for anything; any when it is not said.
    #[serde(default)]
    asked: Option<String>,
    #[serde(default)]
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
}

/// One repository.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Stored {
    tags: BTreeMap<String, Tagged>,
    manifests: BTreeMap<DigestText, Value>,
    referrers: BTreeMap<DigestText, Vec<Referrer>>,
    blobs: BTreeMap<DigestText, String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Referrer {
    digest: DigestText,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// A digest, or everything about the tag.
#[derive(Clone, Debug)]
struct Tagged(TagState);

impl<'de> Deserialize<'de> for Tagged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let full = match Value::deserialize(deserializer)? {
            Value::String(digest) => Previous {
                digest: DigestText::try_from(digest).map_err(D::Error::custom)?,
                ..Previous::default()
            },
            other => serde_json::from_value(other).map_err(D::Error::custom)?,
        };
        Ok(Self(full.state()))
    }
}

/// RFC 3339, or milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
struct Now(u64);

impl Default for Now {
    /// 2026-01-01T00:00:00Z: a case answers the same on every day.
    fn default() -> Self {
        Self(1_767_225_600_000)
    }
}

impl<'de> Deserialize<'de> for Now {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong =
            || D::Error::custom("not a time: 2026-01-01T00:00:00Z, or milliseconds since 1970");
        match Value::deserialize(deserializer)? {
            Value::Number(number) => number.as_u64().map(Self).ok_or_else(wrong),
            Value::String(text) => text
                .parse::<jiff::Timestamp>()
                .ok()
                .and_then(|time| u64::try_from(time.as_millisecond()).ok())
                .map(Self)
                .ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

impl World {
    /// The secrets it grants.
    pub(super) fn secrets(&self) -> BTreeMap<String, Secret> {
        let secret = |text: &String| Secret(Arc::from(text.as_bytes()));
        let pairs = self.secrets.iter();
        pairs
            .map(|(name, text)| (name.clone(), secret(text)))
            .collect()
    }

    /// The ports of a host in this world. Key-value pairs are a trial's own.
    pub(super) async fn ports(&self, cache: &std::path::Path) -> Result<HostPorts, PortError> {
        let now_ms = self.now.0;
        Ok(HostPorts {
            kv: self.values().await?,
            registry: Arc::new(Content {
                repositories: self.registry.clone(),
                fails: self.fails.contains(&Port::Registry),
            }),
            outbound: Arc::new(Services {
                replies: self.http.clone(),
                fails: self.fails.contains(&Port::Http),
            }),
            now_ms: Arc::new(move || now_ms),
            cache_directory: Some(cache.to_owned()),
            password_checks: 1,
        })
    }

    async fn values(&self) -> Result<Arc<dyn KeyValue>, PortError> {
        if self.fails.contains(&Port::Kv) {
            return Ok(Arc::new(NoValues));
        }
        let values = PluginValues(Arc::new(MemoryKv::new()));
        let rules = PutRules {
            now_ms: self.now.0,
            expires_at_ms: None,
            max_bytes: u64::MAX,
        };
        for (bucket, pairs) in &self.kv {
            let bucket = format!("{BINDING}/{bucket}");
            for (key, value) in pairs {
                let value = written(value).map_err(PortError)?;
                values.put(&bucket, key, &value, None, rules).await?;
            }
        }
        Ok(Arc::new(values))
    }
}

/// Stored content.
#[derive(Debug)]
struct Content {
    repositories: BTreeMap<String, Stored>,
    fails: bool,
}

impl Content {
    fn stored(&self, repository: &str) -> Result<&Stored, ReadError> {
        if self.fails {
            return Err(ReadError::Unavailable("the case says so".to_owned()));
        }
        self.repositories.get(repository).ok_or(ReadError::NotFound)
    }

    fn blob(&self, repository: &str, digest: &str) -> Result<&[u8], ReadError> {
        let stored = self.stored(repository)?;
        let digest = parsed(digest)?;
        stored
            .blobs
            .get(&digest)
            .map(String::as_bytes)
            .ok_or(ReadError::NotFound)
    }
}

/// Whether a manifest as a case writes it, with short digests, names the content: as its child, or else as its config or a layer that does not
/// lie elsewhere.
fn names(manifest: &Value, wanted: &DigestText, as_child: bool) -> bool {
    let document = match manifest {
        Value::String(text) => serde_json::from_str(text).unwrap_or_default(),
        other => other.clone(),
    };
    let list = |key| {
        document
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
    };
    let named: Vec<&Value> = if as_child {
        list("manifests").collect()
    } else {
        let is_elsewhere = |layer: &&Value| {
            let urls = layer.get("urls").and_then(Value::as_array);
            urls.is_some_and(|urls| !urls.is_empty())
        };
        let own = list("layers").filter(|layer| !is_elsewhere(layer));
        own.chain(document.get("config")).collect()
    };
    named
        .into_iter()
        .filter_map(|descriptor| descriptor.get("digest")?.as_str())
        .filter_map(|digest| DigestText::try_from(digest.to_owned()).ok())
        .any(|digest| digest.0 == wanted.0)
}

fn parsed(digest: &str) -> Result<DigestText, ReadError> {
    let parsed = digest.parse::<Digest>().map(DigestText);
    parsed.map_err(|_malformed| ReadError::NotFound)
}

#[async_trait]
impl RegistryReads for Content {
    async fn resolve_tag(
        &self,
        _requester: &Requester,
        repository: &str,
        tag: &str,
    ) -> Result<Option<TagState>, ReadError> {
        let stored = match self.stored(repository) {
            Err(ReadError::NotFound) => return Ok(None),
            stored => stored?,
        };
        Ok(stored.tags.get(tag).map(|tagged| tagged.0.clone()))
    }

    async fn manifest(
        &self,
        _requester: &Requester,
        repository: &str,
        reference: &str,
    ) -> Result<(Descriptor, Bytes), ReadError> {
        let stored = self.stored(repository)?;
        let digest = match stored.tags.get(reference) {
            Some(tagged) => DigestText(tagged.0.digest.clone()),
            None => parsed(reference)?,
        };
        let manifest = stored.manifests.get(&digest).ok_or(ReadError::NotFound)?;
        let bytes = content(manifest).map_err(ReadError::Unavailable)?;
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(media_type(Some(&bytes)), digest.0, size);
        Ok((descriptor, bytes.into()))
    }

    async fn referrers(
        &self,
        _requester: &Requester,
        repository: &str,
        digest: &str,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ReadError> {
        let stored = match self.stored(repository) {
            Err(ReadError::NotFound) => return Ok(Vec::new()),
            stored => stored?,
        };
        let found = stored.referrers.get(&parsed(digest)?);
        let wanted = |referrer: &&Referrer| {
            artifact_type.is_none() || referrer.artifact_type.as_deref() == artifact_type
        };
        let found = found.into_iter().flatten().filter(wanted);
        Ok(found.map(Referrer::descriptor).collect())
    }

    async fn parents(
        &self,
        _requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<Vec<Digest>, ReadError> {
        let stored = match self.stored(repository) {
            Err(ReadError::NotFound) => return Ok(Vec::new()),
            stored => stored?,
        };
        let digest = parsed(digest)?;
        let is_manifest = stored.manifests.contains_key(&digest);
        let parents = stored
            .manifests
            .iter()
            .filter(|(_, manifest)| names(manifest, &digest, is_manifest));
        Ok(parents.map(|(parent, _)| parent.0.clone()).collect())
    }

    async fn blob_size(
        &self,
        _requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<u64, ReadError> {
        Ok(self.blob(repository, digest)?.len() as u64)
    }

    async fn read_blob(
        &self,
        _requester: &Requester,
        repository: &str,
        digest: &str,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ReadError> {
        let bytes = self.blob(repository, digest)?;
        let start = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let end = start.saturating_add(length as usize).min(bytes.len());
        Ok(Bytes::copy_from_slice(
            bytes.get(start..end).unwrap_or_default(),
        ))
    }
}

impl Referrer {
    fn descriptor(&self) -> Descriptor {
        let written = self.media_type.as_ref().and_then(|text| text.parse().ok());
        let media_type: MediaType = written.unwrap_or_else(|| media_type(Some(b"{}")));
        Descriptor {
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
            ..Descriptor::new(media_type, self.digest.0.clone(), self.size)
        }
    }
}

/// The services that a case knows; nobody else answers.
#[derive(Debug)]
struct Services {
    replies: Vec<Reply>,
    fails: bool,
}

#[async_trait]
impl Outbound for Services {
    async fn send(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        let asked = |reply: &&Reply| {
            let method = reply.method.as_deref();
            let body = || String::from_utf8_lossy(&request.body);
            let asked = reply.asked.as_ref();
            reply.url == request.url.as_str()
                && asked.is_none_or(|asked| matches(asked, &body()))
                && method.is_none_or(|method| method.eq_ignore_ascii_case(request.method.as_str()))
        };
        let reply = self.replies.iter().find(asked);
        let reply = reply
            .filter(|_| !self.fails)
            .ok_or(OutboundError::Connect)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &reply.headers {
            let wrong = |_wrong| OutboundError::Other(format!("{name} is no header"));
            let name = HeaderName::try_from(name).map_err(|_wrong| wrong(()))?;
            let value = HeaderValue::try_from(value).map_err(|_wrong| wrong(()))?;
            headers.insert(name, value);
        }
        let body = match &reply.body {
            Value::Null => Vec::new(),
            body => written(body).map_err(OutboundError::Other)?,
        };
        if body.len() > request.max_response_bytes {
            return Err(OutboundError::TooLarge);
        }
        Ok(OutboundResponse {
            status: reply.status.unwrap_or(200),
            headers,
            body: body.into(),
        })
    }
}

/// A key-value store that is down.
#[derive(Debug)]
struct NoValues;

fn down<T>() -> Result<T, PortError> {
    Err(PortError("the case says so".to_owned()))
}

#[async_trait]
impl KeyValue for NoValues {
    async fn get(&self, _: &str, _: &str, _: u64) -> Result<Option<KeyValueEntry>, PortError> {
        down()
    }

    async fn put(
        &self,
        _: &str,
        _: &str,
        _: &[u8],
        _: Option<Option<u64>>,
        _: PutRules,
    ) -> Result<PutOutcome, PortError> {
        down()
    }

    async fn delete(&self, _: &str, _: &str) -> Result<(), PortError> {
        down()
    }

    async fn increment(&self, _: &str, _: &str, _: Addition) -> Result<Option<u64>, PortError> {
        down()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gantry_plugin_host::ports::Reach;
    use serde_json::json;

    use super::*;
    use crate::author::question::read;

    fn world(form: Value) -> World {
        read(form).unwrap()
    }

    /// What a service of the world answers to a request.
    async fn asked(
        world: &World,
        method: &str,
        url: &str,
        body: &'static str,
    ) -> Result<OutboundResponse, OutboundError> {
        let folder = tempfile::tempdir().unwrap();
        let ports = world.ports(folder.path()).await.unwrap();
        let request = OutboundRequest {
            method: method.parse().unwrap(),
            url: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(body.as_bytes()),
            reach: Reach::Public,
            timeout: Duration::from_secs(1),
            max_response_bytes: 100,
        };
        ports.outbound.send(request).await
    }

    #[tokio::test]
    async fn a_service_answers_what_the_case_says() {
        let world = world(json!({ "http": [
            { "method": "post", "url": "https://a.example/x", "status": 201, "headers": { "X-Y": "z" }, "body": { "ok": true } },
            { "url": "https://a.example/text", "body": "as it is" },
        ] }));
        let answer = asked(&world, "POST", "https://a.example/x", "")
            .await
            .unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(answer.headers["x-y"], "z");
        assert_eq!(&answer.body[..], br#"{"ok":true}"#);
        let answer = asked(&world, "PUT", "https://a.example/text", "")
            .await
            .unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(&answer.body[..], b"as it is");
    }

    #[tokio::test]
    async fn the_first_reply_whose_method_url_and_body_fit_is_taken() {
        let world = world(json!({ "http": [
            { "method": "POST", "url": "https://a.example/x", "asked": "*\"tag\":\"v1\"*", "status": 204 },
            { "method": "POST", "url": "https://a.example/x", "asked": "", "status": 400 },
            { "method": "POST", "url": "https://a.example/x", "status": 409 },
        ] }));
        let status = async |body| {
            let answer = asked(&world, "POST", "https://a.example/x", body).await;
            answer.unwrap().status
        };
        assert_eq!(status(r#"{"tag":"v1"}"#).await, 204);
        assert_eq!(status("").await, 400);
        assert_eq!(status(r#"{"tag":"v2"}"#).await, 409);
    }

    #[tokio::test]
    async fn nobody_else_answers() {
        let world = world(json!({ "http": [{ "method": "GET", "url": "https://a.example/x" }] }));
        for (method, url) in [
            ("POST", "https://a.example/x"),
            ("GET", "https://a.example/x/y"),
            ("GET", "https://a.example/x?y"),
            ("GET", "http://a.example/x"),
            ("GET", "https://b.example/x"),
        ] {
            let answer = asked(&world, method, url, "").await;
            assert!(
                matches!(answer, Err(OutboundError::Connect)),
                "{method} {url}"
            );
        }
    }

    #[tokio::test]
    async fn a_service_may_be_down_answer_too_much_or_be_written_wrong() {
        let reply = json!({ "url": "https://a.example/", "body": "x".repeat(101) });
        let large = world(json!({ "http": [reply] }));
        let answer = asked(&large, "GET", "https://a.example/", "").await;
        assert!(matches!(answer, Err(OutboundError::TooLarge)));

        let down = world(json!({ "http": [{ "url": "https://a.example/" }], "fails": ["http"] }));
        let answer = asked(&down, "GET", "https://a.example/", "").await;
        assert!(matches!(answer, Err(OutboundError::Connect)));

        let wrong = json!({ "url": "https://a.example/", "headers": { "X Y": "z" } });
        let answer = asked(
            &world(json!({ "http": [wrong] })),
            "GET",
            "https://a.example/",
            "",
        )
        .await;
        let Err(OutboundError::Other(why)) = answer else {
            panic!("a header with a space in its name");
        };
        assert_eq!(why, "X Y is no header");
    }

    #[test]
    fn a_manifest_names_what_is_its_own_and_no_more() {
        let digest = |text: &str| DigestText::try_from(text.to_owned()).unwrap();
        let image = json!({
            "config": { "digest": "sha256:1" },
            "layers": [
                { "digest": "sha256:2", "urls": [] },
                { "digest": "sha256:3", "urls": ["https://a.example/"] },
            ],
        });
        let index = json!({ "manifests": [{ "digest": "sha256:2" }] });
        for (blob, expect) in [("sha256:1", true), ("sha256:2", true), ("sha256:3", false)] {
            assert_eq!(names(&image, &digest(blob), false), expect, "{blob}");
            assert!(!names(&image, &digest(blob), true), "{blob}");
        }
        assert!(names(&index, &digest("sha256:2"), true));
        assert!(!names(&index, &digest("sha256:2"), false));
    }
}
