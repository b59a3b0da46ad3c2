//! The short form of what a hook is asked: everything that is not said has a default.
//!
//! Owns those defaults and the shorthand for digests (`sha256:1` is filled up with zeros), principals and manifests.

mod observe;

use std::{net::IpAddr, sync::Arc};

use aws_lc_rs::digest;
use bytes::Bytes;
use gantry_model::{
    AdmissionRequest, Algorithm, AttributeValue, Cause, Change, Client, Descriptor, Digest, Event,
    MediaType, OperationKind, Principal, Repository, RepositoryName, Requester, Scope, Source, Tag,
    TagState, Version,
};
use gantry_plugin_host::{AuthenticateRequest, AuthorizeRequest, Credential, Hook};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value, json};

/// What a plugin is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// Hook `authenticate`.
    Authenticate(AuthenticateRequest),
    /// Of `principals`: an id.
    Current(String),
    /// Hook `authorize`.
    Authorize(AuthorizeRequest),
    /// Hook `admit`.
    Admit(Box<AdmissionRequest>),
    /// Hook `observe`.
    Observe(Batch),
}

/// What a plugin is told of.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The events, in order.
    pub events: Vec<Event>,
    /// Whether they were written as a list; then the answer is one too.
    pub is_list: bool,
}

impl Question {
    /// Reads the short form for a hook.
    ///
    /// # Errors
    /// The keys that lead to what is wrong, and a sentence.
    pub fn read(hook: Hook, form: Value) -> Result<Self, (Vec<String>, String)> {
        match hook {
            Hook::Authenticate => Ok(Self::Authenticate(
                read::<Authenticate>(form)?
                    .question()
                    .map_err(|message| (Vec::new(), message))?,
            )),
            Hook::Principals => Ok(Self::Current(read::<Current>(form)?.id)),
            Hook::Authorize => Ok(Self::Authorize(read::<Authorize>(form)?.question())),
            Hook::Admit => Ok(Self::Admit(Box::new(
                read::<Admit>(form)?
                    .question()
                    .map_err(|message| (Vec::new(), message))?,
            ))),
            Hook::Observe => observe::read_batch(form).map(Self::Observe),
            Hook::Scan | Hook::Manage => Err((
                Vec::new(),
                "this host does not call this hook, so it cannot be tried".to_owned(),
            )),
        }
    }
}

/// Reads a form; a mistake comes with the keys that lead to it.
pub(crate) fn read<T: serde::de::DeserializeOwned>(
    form: Value,
) -> Result<T, (Vec<String>, String)> {
    use serde_path_to_error::Segment;
    let form = if form.is_null() {
        Value::Object(Map::new())
    } else {
        form
    };
    serde_path_to_error::deserialize(form).map_err(|error| {
        let keys = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        });
        (keys.collect(), error.inner().to_string())
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Authenticate {
    client: ClientForm,
    username: Option<String>,
    password: Option<String>,
    bearer: Option<String>,
    service: Option<String>,
    scopes: Vec<ScopeText>,
}

impl Authenticate {
    fn question(self) -> Result<AuthenticateRequest, String> {
        let credential = match (self.bearer, self.username, self.password) {
            (Some(token), ..) => Credential::Bearer(token),
            (None, None, None) => Credential::Anonymous,
            (None, username, password) => {
                Credential::basic(username.unwrap_or_default(), password.unwrap_or_default())
                    .map_err(|malformed| malformed.to_string())?
            }
        };
        Ok(AuthenticateRequest {
            client: self.client.client(),
            credential,
            service: self.service.unwrap_or_else(|| "gantry".to_owned()),
            scopes: scopes(self.scopes),
        })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Current {
    id: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Authorize {
    request_id: Option<String>,
    client: ClientForm,
    principal: PrincipalForm,
    operation: OperationText,
    repository: Option<NameText>,
    scopes: Option<Vec<ScopeText>>,
    reference: Option<String>,
    mirror: Option<String>,
    attributes: Map<String, Value>,
}

impl Authorize {
    fn question(self) -> AuthorizeRequest {
        let name = self.repository.unwrap_or_default().0;
        let operation = self.operation.0;
        let needed = || match operation {
            OperationKind::Ping | OperationKind::Token => Vec::new(),
            OperationKind::Catalog => vec![registry_scope("catalog")],
            OperationKind::Admin => vec![registry_scope("admin")],
            OperationKind::PushManifest | OperationKind::PushBlob | OperationKind::MountBlob => {
                vec![Scope::repository(&name, &["pull", "push"])]
            }
            OperationKind::DeleteManifest
            | OperationKind::DeleteTag
            | OperationKind::DeleteBlob => vec![Scope::repository(&name, &["delete"])],
            OperationKind::ListTags
            | OperationKind::ListReferrers
            | OperationKind::PullManifest
            | OperationKind::PullBlob => vec![Scope::repository(&name, &["pull"])],
        };
        let mut attributes = attributes(self.attributes);
        attributes.extend(
            self.mirror
                .map(|mirror| ("mirror".to_owned(), AttributeValue::Text(mirror))),
        );
        AuthorizeRequest {
            requester: requester(self.request_id, &self.client, self.principal),
            operation,
            scopes: self.scopes.map_or_else(needed, scopes),
            reference: self.reference,
            attributes,
        }
    }
}

fn registry_scope(name: &str) -> Scope {
    Scope {
        kind: "registry".to_owned(),
        name: name.to_owned(),
        actions: std::iter::once("*".to_owned()).collect(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Admit {
    request_id: Option<String>,
    client: ClientForm,
    principal: PrincipalForm,
    repository: NameText,
    mirror: Option<String>,
    change: ChangeText,
    tag: Option<TagText>,
    previous: Option<Previous>,
    target: Target,
    manifest: Option<Value>,
    parents: Vec<DigestText>,
}

impl Admit {
    fn question(self) -> Result<AdmissionRequest, String> {
        let manifest = self.manifest.as_ref().map(content).transpose()?;
        let name = self.repository.0;
        let source = match self.mirror {
            None => Source::Hosted,
            Some(mirror) => Source::Mirror {
                mirror: Arc::from(mirror),
                remote: name.clone(),
            },
        };
        Ok(AdmissionRequest {
            requester: requester(self.request_id, &self.client, self.principal),
            repository: Repository {
                spelled: name.clone(),
                name,
                base: Arc::from("/v2"),
                source,
                namespace: None,
            },
            change: self.change.0,
            tag: self.tag.map(|tag| tag.0),
            previous: self.previous.map(Previous::state),
            target: match self.change.0 {
                Change::ServeList => self.target.named(),
                _ => Some(self.target.descriptor(manifest.as_deref())),
            },
            manifest: manifest.map(Bytes::from),
            parents: self.parents.into_iter().map(|digest| digest.0).collect(),
            version: Version::Unknown,
        })
    }
}

/// The bytes of a value of a case: a text as it is, anything else as compact JSON.
pub(crate) fn written(value: &Value) -> Result<Vec<u8>, String> {
    match value {
        Value::String(text) => Ok(text.clone().into_bytes()),
        other => serde_json::to_vec(other).map_err(|error| error.to_string()),
    }
}

/// The bytes of a manifest: a text as it is, anything else as compact JSON. What every manifest has is added to an object that lacks it, so that
/// a case names only what it is about; short digests are filled up.
pub(crate) fn content(manifest: &Value) -> Result<Vec<u8>, String> {
    let mut whole = manifest.clone();
    if let Value::Object(fields) = &mut whole {
        complete(fields);
    }
    written(&whole)
}

fn complete(manifest: &mut Map<String, Value>) {
    for field in ["config", "layers", "manifests", "blobs", "subject"] {
        for descriptor in descriptors(manifest, field) {
            fill_up(descriptor);
        }
    }
    let own = manifest.get("mediaType").and_then(Value::as_str);
    if own.is_some_and(|own| own.contains("artifact.manifest")) {
        return;
    }
    manifest.entry("schemaVersion").or_insert_with(|| 2.into());
    if manifest.contains_key("manifests") {
        manifest
            .entry("mediaType")
            .or_insert_with(|| gantry_model::media_type::OCI_INDEX.into());
    } else {
        manifest.entry("config").or_insert_with(|| {
            json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": EMPTY, "size": 2 })
        });
    }
}

/// The descriptors of a field that holds one or a list of them.
fn descriptors<'a>(
    manifest: &'a mut Map<String, Value>,
    field: &str,
) -> Vec<&'a mut Map<String, Value>> {
    match manifest.get_mut(field) {
        Some(Value::Array(list)) => list.iter_mut().filter_map(Value::as_object_mut).collect(),
        Some(Value::Object(one)) => vec![one],
        _ => Vec::new(),
    }
}

fn fill_up(descriptor: &mut Map<String, Value>) {
    let digest = descriptor.get("digest").and_then(Value::as_str);
    let digest = digest.and_then(|text| DigestText::try_from(text.to_owned()).ok());
    if let Some(DigestText(digest)) = digest {
        descriptor.insert("digest".to_owned(), digest.to_string().into());
    }
    descriptor.entry("size").or_insert_with(|| 0.into());
}

/// The digest of `{}`.
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// What a manifest is: its own word, or an image.
pub(crate) fn media_type(manifest: Option<&[u8]>) -> MediaType {
    let Some(bytes) = manifest else {
        return MediaType::octet_stream();
    };
    let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let own = document.get("mediaType").and_then(Value::as_str);
    own.unwrap_or("application/vnd.oci.image.manifest.v1+json")
        .parse()
        .unwrap_or_else(|_unreadable| MediaType::octet_stream())
}

/// The SHA-256 digest of bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    let hash = digest::digest(&digest::SHA256, bytes);
    Digest::from_bytes(Algorithm::Sha256, hash.as_ref()).unwrap_or_else(zero)
}

/// The digest of a form that names none.
fn zero() -> Digest {
    DigestText::default().0
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ClientForm {
    address: Option<IpAddr>,
    user_agent: Option<String>,
    tls_subject: Option<String>,
}

impl ClientForm {
    fn client(&self) -> Arc<Client> {
        Arc::new(Client {
            address: self.address.unwrap_or_else(|| IpAddr::from([192, 0, 2, 1])),
            user_agent: self.user_agent.clone(),
            tls_subject: self.tls_subject.clone(),
        })
    }
}

fn requester(id: Option<String>, client: &ClientForm, principal: PrincipalForm) -> Requester {
    Requester {
        request_id: Arc::from(id.unwrap_or_else(|| "trial".to_owned())),
        client: client.client(),
        principal: Arc::new(principal.0),
        arrival: None,
        confirmed: None,
        cause: Cause::Request,
    }
}

/// `alice`, `robot:ci`, `anonymous`, or all fields.
#[derive(Debug)]
struct PrincipalForm(Principal);

impl Default for PrincipalForm {
    fn default() -> Self {
        Self(Principal::anonymous())
    }
}

impl<'de> Deserialize<'de> for PrincipalForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Full {
            id: String,
            kind: Option<String>,
            #[serde(default)]
            issuer: String,
            #[serde(default)]
            groups: Vec<String>,
            #[serde(default)]
            attributes: Map<String, Value>,
            expires_at_ms: Option<u64>,
        }
        let full = match Value::deserialize(deserializer)? {
            Value::String(id) => Full {
                id,
                kind: None,
                issuer: String::new(),
                groups: Vec::new(),
                attributes: Map::new(),
                expires_at_ms: None,
            },
            other => serde_json::from_value(other).map_err(D::Error::custom)?,
        };
        if full.id == "anonymous" {
            return Ok(Self::default());
        }
        let by_id = full.id.split_once(':').map_or("user", |(kind, _)| kind);
        Ok(Self(Principal {
            kind: full.kind.unwrap_or_else(|| by_id.to_owned()),
            id: full.id,
            issuer: full.issuer,
            groups: full.groups,
            attributes: attributes(full.attributes),
            expires_at_ms: full.expires_at_ms,
        }))
    }
}

fn attributes(written: Map<String, Value>) -> Vec<(String, AttributeValue)> {
    let value = |value: Value| match value {
        Value::Bool(flag) => AttributeValue::Flag(flag),
        Value::Number(number) if number.is_i64() => {
            AttributeValue::Number(number.as_i64().unwrap_or_default())
        }
        Value::Array(texts) => AttributeValue::Texts(texts.into_iter().map(plain).collect()),
        other => AttributeValue::Text(plain(other)),
    };
    let pair = |(key, written): (String, Value)| (key, value(written));
    written.into_iter().map(pair).collect()
}

fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Previous {
    pub(crate) digest: DigestText,
    pub(crate) pushed_at_ms: u64,
    pub(crate) pushed_by: Option<String>,
    pub(crate) immutable: bool,
}

impl Previous {
    pub(crate) fn state(self) -> TagState {
        TagState {
            digest: self.digest.0,
            pushed_at_ms: self.pushed_at_ms,
            pushed_by: self.pushed_by.unwrap_or_else(|| "anonymous".to_owned()),
            immutable: self.immutable,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Target {
    media_type: Option<String>,
    digest: Option<DigestText>,
    size: Option<u64>,
    artifact_type: Option<String>,
    annotations: std::collections::BTreeMap<String, String>,
}

impl Target {
    /// What the client named, of a question without content.
    fn named(self) -> Option<Descriptor> {
        let digest = self.digest?.0;
        Some(Descriptor::new(media_type(None), digest, 0))
    }

    fn descriptor(self, manifest: Option<&[u8]>) -> Descriptor {
        let media_type = self
            .media_type
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| media_type(manifest));
        let digest = self
            .digest
            .map_or_else(|| manifest.map_or_else(zero, digest_of), |digest| digest.0);
        let size = self
            .size
            .unwrap_or_else(|| manifest.map_or(0, |bytes| bytes.len() as u64));
        Descriptor {
            artifact_type: self.artifact_type,
            annotations: self.annotations,
            ..Descriptor::new(media_type, digest, size)
        }
    }
}

/// `sha256:` and up to 64 digits; the rest is zeros.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub(crate) struct DigestText(pub(crate) Digest);

impl Default for DigestText {
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "32 bytes are a SHA-256 digest")]
        let digest = Digest::from_bytes(Algorithm::Sha256, &[0; 32]).expect("32 bytes");
        Self(digest)
    }
}

impl TryFrom<String> for DigestText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let filled = match text.strip_prefix("sha256:") {
            Some(hex) => format!("sha256:{hex:0<64}"),
            None => text,
        };
        filled.parse().map(Self).map_err(|_error| {
            "not a digest: `sha256:` and up to 64 hexadecimal digits, the rest is zeros".to_owned()
        })
    }
}

/// Declares a text read by its own grammar.
macro_rules! word {
    ($name:ident($inner:ty), $parse:expr) => {
        #[derive(Clone, Debug, Deserialize)]
        #[serde(try_from = "String")]
        struct $name($inner);

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                let parse: fn(&str) -> Result<$inner, String> = $parse;
                parse(&text).map(Self)
            }
        }
    };
}

word!(ChangeText(Change), |text| {
    let known = || Change::ALL.into_iter();
    known()
        .find(|change| change.as_str() == text)
        .ok_or_else(|| unknown("change", known().map(Change::as_str)))
});
word!(OperationText(OperationKind), |text| {
    let known = || OperationKind::ALL.into_iter();
    known()
        .find(|operation| operation.as_str() == text)
        .ok_or_else(|| unknown("operation", known().map(OperationKind::as_str)))
});
word!(NameText(RepositoryName), |text| parsed(text));
word!(TagText(Tag), |text| parsed(text));
word!(ScopeText(Scope), |text| parsed(text));

impl Default for ChangeText {
    fn default() -> Self {
        Self(Change::CreateTag)
    }
}

impl Default for OperationText {
    fn default() -> Self {
        Self(OperationKind::PullManifest)
    }
}

impl Default for NameText {
    #[expect(clippy::expect_used, reason = "a constant in the grammar of names")]
    fn default() -> Self {
        Self("team/app".parse().expect("a repository name"))
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn scopes(written: Vec<ScopeText>) -> Vec<Scope> {
    written.into_iter().map(|scope| scope.0).collect()
}

fn unknown<'a>(what: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.collect();
    format!("no {what} of that name; there are: {}", known.join(", "))
}
