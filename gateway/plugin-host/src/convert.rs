//! WIT values to the model's and back: the only place where the two meet.
//!
//! Owns what an answer may be. What can be cut is cut (texts, cache times, grants); what would lie about who somebody is fails the
//! call. Nothing a guest answers ever widens what was asked.

pub(crate) mod text;

use std::{collections::BTreeMap, time::Duration};

use gantry_model::{
    AdmissionRequest, Algorithm, AttributeValue, Change, Client, Denial, DenialCode, Descriptor,
    Digest, Document, Grant, Manifest, ManifestKind, MediaType, OperationKind, Platform, Principal,
    Reason, Scope, TagState, WrittenDescriptor,
    event::{Delivery, Event},
};

use crate::{
    bindings::{
        exports::gantry::plugin::{admission, authenticator, authorizer, events},
        gantry::plugin::{kv, types},
    },
    error::Failure,
    hook::{
        AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest,
        CacheHint, Credential, Identity, Varies,
    },
    limits::Stop,
    ports::KeyValueEntry,
};

/// JSON text handed to a guest: the largest manifest.
const MAX_JSON_BYTES: usize = gantry_model::manifest::MAX_MANIFEST_BYTES;
const MAX_MESSAGE_BYTES: usize = 512;
const MAX_REASON_BYTES: usize = 1024;
const MAX_CODE_BYTES: usize = 128;
const MAX_DETAIL_BYTES: usize = 4096;
const MAX_WARNINGS: usize = 8;
const MAX_NAME_BYTES: usize = 255;
const MAX_GENERATION_BYTES: usize = 128;
const MAX_GROUPS: usize = 1024;
const MAX_ATTRIBUTES: usize = 64;
const MAX_SCOPES: usize = 1024;
const MAX_TTL: Duration = Duration::from_secs(60);
const MAX_DENIAL_TTL: Duration = Duration::from_secs(5);
const MAX_STALE: Duration = Duration::from_secs(60 * 60);
const MAX_RETRY: Duration = Duration::from_secs(24 * 60 * 60);

// --- model to guest ---

pub(crate) fn authenticate_request(request: &AuthenticateRequest) -> authenticator::AuthnRequest {
    authenticator::AuthnRequest {
        client: client(&request.client),
        credential: match &request.credential {
            Credential::Anonymous => authenticator::Credential::Anonymous,
            Credential::Basic(shown) => authenticator::Credential::Basic((
                shown.username().to_owned(),
                shown.password().to_owned(),
            )),
            Credential::Bearer(token) => authenticator::Credential::Bearer(token.clone()),
        },
        service: request.service.clone(),
        scopes: scopes(&request.scopes),
    }
}

pub(crate) fn authorize_request(request: &AuthorizeRequest) -> authorizer::AuthzRequest {
    authorizer::AuthzRequest {
        request_id: request.requester.request_id.to_string(),
        client: client(&request.requester.client),
        principal: principal(&request.requester.principal),
        operation: operation(request.operation),
        scopes: scopes(&request.scopes),
        reference: request.reference.clone(),
        attributes: attributes(&request.attributes),
    }
}

pub(crate) fn admit_request(
    request: &AdmissionRequest,
) -> Result<admission::AdmissionRequest, Stop> {
    let bytes = request.manifest.as_deref();
    let target = request.target.as_ref();
    let document = bytes
        .zip(target)
        .map(|(bytes, target)| document(&target.media_type, bytes));
    let document = document.transpose()?;
    Ok(admission::AdmissionRequest {
        request_id: request.requester.request_id.to_string(),
        client: client(&request.requester.client),
        principal: principal(&request.requester.principal),
        repository: request.repository.name.to_string(),
        mirror: request.repository.mirror().map(str::to_owned),
        change: change(request.change),
        tag: request.tag.as_ref().map(ToString::to_string),
        previous: request.previous.as_ref().map(tag_state),
        target: target.map_or_else(no_content, |target| described(target, document.as_ref())),
        digests: target.map_or_else(Vec::new, |target| digests(&target.digest, bytes)),
        document,
        parents: request.parents.iter().map(ToString::to_string).collect(),
        attributes: Vec::new(),
    })
}

pub(crate) fn events(events: &[Event]) -> Result<Vec<events::Event>, Stop> {
    events.iter().map(event).collect()
}

fn event(event: &Event) -> Result<events::Event, Stop> {
    let payload = serde_json::to_string(&event.payload)
        .map_err(|error| contract(format!("an event's payload is not JSON: {error}")))?;
    Ok(events::Event {
        id: event.id.clone(),
        kind: event.kind.as_str().to_owned(),
        at: event.at_ms,
        repository: event.repository.to_string(),
        digest: event.digest.as_ref().map(ToString::to_string),
        tag: event.tag.as_ref().map(ToString::to_string),
        actor: event.actor.clone(),
        payload,
    })
}

/// What guests learn of a manifest's bytes.
pub(crate) fn document(media_type: &MediaType, bytes: &[u8]) -> Result<types::Document, Stop> {
    if bytes.len() > MAX_JSON_BYTES {
        return Err(Stop::quota(format!(
            "the manifest has {} bytes; guests get at most {MAX_JSON_BYTES}",
            bytes.len()
        )));
    }
    Ok(match Document::read(media_type, bytes) {
        Document::Manifest(manifest) => types::Document::Manifest(facts(&manifest, bytes)),
        Document::Opaque(opaque) => types::Document::Opaque(types::OpaqueDocument {
            why: text::clean(&opaque.why.to_string(), MAX_REASON_BYTES),
            mentions: opaque.mentions.iter().map(ToString::to_string).collect(),
        }),
    })
}

/// The descriptor of content, with the annotations of its document.
fn described(target: &Descriptor, document: Option<&types::Document>) -> types::Descriptor {
    let annotations = match document {
        Some(types::Document::Manifest(facts)) => facts.annotations.clone(),
        Some(types::Document::Opaque(_)) | None => Vec::new(),
    };
    types::Descriptor {
        annotations,
        ..descriptor(target)
    }
}

/// How long a document is, about.
pub(crate) fn length(document: &types::Document) -> usize {
    match document {
        types::Document::Manifest(facts) => facts.text.len(),
        types::Document::Opaque(opaque) => opaque.mentions.iter().map(String::len).sum(),
    }
}

fn facts(manifest: &Manifest, bytes: &[u8]) -> types::ManifestFacts {
    let list = |descriptors: &[WrittenDescriptor]| descriptors.iter().map(written).collect();
    types::ManifestFacts {
        kind: match manifest.kind {
            ManifestKind::Image => types::ManifestKind::Image,
            ManifestKind::Index => types::ManifestKind::Index,
            ManifestKind::Artifact => types::ManifestKind::Artifact,
        },
        artifact_type: manifest.artifact_type.clone(),
        config: manifest.config.as_ref().map(written),
        layers: list(&manifest.layers),
        manifests: list(&manifest.manifests),
        subject: manifest.subject.as_ref().map(written),
        annotations: pairs(&manifest.annotations),
        // What was read is UTF-8.
        text: String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn written(descriptor: &WrittenDescriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.to_string(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
        artifact_type: descriptor.artifact_type.clone(),
        annotations: pairs(&descriptor.annotations),
        urls: descriptor.urls.clone(),
        platform: descriptor.platform.as_ref().map(platform),
    }
}

fn platform(platform: &Platform) -> types::Platform {
    types::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        cpu_variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn pairs(map: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let pairs = map.iter();
    pairs
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Every digest of the content that is known: of a manifest under both algorithms, of a blob what it is asked for by.
pub(crate) fn digests(target: &Digest, bytes: Option<&[u8]>) -> Vec<String> {
    let Some(bytes) = bytes else {
        return vec![target.to_string()];
    };
    let algorithms = [
        (Algorithm::Sha256, &aws_lc_rs::digest::SHA256),
        (Algorithm::Sha512, &aws_lc_rs::digest::SHA512),
    ];
    let hashed = algorithms.map(|(algorithm, hash)| {
        Digest::from_bytes(algorithm, aws_lc_rs::digest::digest(hash, bytes).as_ref())
    });
    let mut digests: Vec<String> = hashed.iter().flatten().map(ToString::to_string).collect();
    if !digests.iter().any(|digest| digest == target.as_str()) {
        // In a case of an author the bytes are not what their digest says.
        digests.insert(0, target.to_string());
    }
    digests
}

fn client(client: &Client) -> types::Client {
    types::Client {
        remote_addr: client.address.to_string(),
        user_agent: client.user_agent.clone(),
        tls_peer_subject: client.tls_subject.clone(),
    }
}

fn principal(principal: &Principal) -> types::Principal {
    types::Principal {
        id: principal.id.clone(),
        kind: principal.kind.clone(),
        issuer: principal.issuer.clone(),
        groups: principal.groups.clone(),
        attributes: attributes(&principal.attributes),
        expires_at: principal.expires_at_ms,
    }
}

fn attributes(attributes: &[(String, AttributeValue)]) -> Vec<(String, types::AttrValue)> {
    let value = |value: &AttributeValue| match value {
        AttributeValue::Text(text) => types::AttrValue::Text(text.clone()),
        AttributeValue::Number(number) => types::AttrValue::Number(*number),
        AttributeValue::Flag(flag) => types::AttrValue::Flag(*flag),
        AttributeValue::Texts(texts) => types::AttrValue::Texts(texts.clone()),
    };
    attributes
        .iter()
        .map(|(key, attribute)| (key.clone(), value(attribute)))
        .collect()
}

fn scopes(scopes: &[Scope]) -> Vec<types::Scope> {
    scopes
        .iter()
        .map(|scope| types::Scope {
            kind: scope.kind.clone(),
            name: scope.name.clone(),
            actions: scope.actions.iter().cloned().collect(),
        })
        .collect()
}

pub(crate) fn descriptor(descriptor: &Descriptor) -> types::Descriptor {
    types::Descriptor {
        media_type: descriptor.media_type.to_string(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size,
        artifact_type: descriptor.artifact_type.clone(),
        annotations: pairs(&descriptor.annotations),
        urls: Vec::new(),
        platform: None,
    }
}

/// The target of a question that is about no content.
fn no_content() -> types::Descriptor {
    types::Descriptor {
        media_type: String::new(),
        digest: String::new(),
        size: 0,
        artifact_type: None,
        annotations: Vec::new(),
        urls: Vec::new(),
        platform: None,
    }
}

pub(crate) fn tag_state(state: &TagState) -> types::TagState {
    types::TagState {
        digest: state.digest.to_string(),
        pushed_at_ms: state.pushed_at_ms,
        pushed_by: state.pushed_by.clone(),
        immutable: state.immutable,
    }
}

pub(crate) fn entry(entry: KeyValueEntry) -> kv::Entry {
    kv::Entry {
        value: entry.value,
        version: entry.version,
        expires_at_ms: entry.expires_at_ms,
    }
}

fn operation(operation: OperationKind) -> types::Operation {
    match operation {
        OperationKind::Ping => types::Operation::Ping,
        OperationKind::Catalog => types::Operation::Catalog,
        OperationKind::ListTags => types::Operation::ListTags,
        OperationKind::ListReferrers => types::Operation::ListReferrers,
        OperationKind::PullManifest => types::Operation::PullManifest,
        OperationKind::PushManifest => types::Operation::PushManifest,
        OperationKind::DeleteManifest => types::Operation::DeleteManifest,
        OperationKind::DeleteTag => types::Operation::DeleteTag,
        OperationKind::PullBlob => types::Operation::PullBlob,
        OperationKind::PushBlob => types::Operation::PushBlob,
        OperationKind::MountBlob => types::Operation::MountBlob,
        OperationKind::DeleteBlob => types::Operation::DeleteBlob,
        OperationKind::Token => types::Operation::Token,
        OperationKind::Admin => types::Operation::Admin,
    }
}

fn change(change: Change) -> admission::Change {
    match change {
        Change::CreateTag => admission::Change::CreateTag,
        Change::MoveTag => admission::Change::MoveTag,
        Change::PushByDigest => admission::Change::PushByDigest,
        Change::Mount => admission::Change::Mount,
        Change::DeleteTag => admission::Change::DeleteTag,
        Change::DeleteManifest => admission::Change::DeleteManifest,
        Change::DeleteBlob => admission::Change::DeleteBlob,
        Change::Fill => admission::Change::Fill,
        Change::ServeManifest => admission::Change::ServeManifest,
        Change::ServeBlob => admission::Change::ServeBlob,
        Change::ServeList => admission::Change::ServeList,
    }
}

// --- guest to model ---

/// An authenticator's answer; fails when it claims to be somebody no plugin may vouch for.
pub(crate) fn authenticate_answer(
    plugin: &std::sync::Arc<str>,
    outcome: authenticator::Outcome,
) -> Result<AuthenticateAnswer, Stop> {
    Ok(match outcome {
        authenticator::Outcome::NotMine => AuthenticateAnswer::NotMine,
        authenticator::Outcome::Rejected(refusal) => {
            AuthenticateAnswer::Rejected(denial(plugin, refusal))
        }
        authenticator::Outcome::Authenticated(identity) => {
            AuthenticateAnswer::Authenticated(Identity {
                principal: vouched(identity.principal)?,
                generation: generation(identity.generation)?,
                at_most: identity.at_most.map(answered_scopes).transpose()?,
                cache: cache_hint(identity.cache, MAX_TTL),
            })
        }
    })
}

/// An authorizer's answer to `asked`; a wider grant is cut.
pub(crate) fn authorize_answer(
    plugin: &std::sync::Arc<str>,
    asked: &[Scope],
    decision: authorizer::Decision,
) -> Result<AuthorizeAnswer, Stop> {
    Ok(match decision {
        authorizer::Decision::Abstain(why) => AuthorizeAnswer::Abstain(why.map(reason)),
        authorizer::Decision::Deny((refusal, hint)) => {
            AuthorizeAnswer::Deny(denial(plugin, refusal), denial_hint(hint))
        }
        authorizer::Decision::Allow(grant) => {
            let granted = answered_scopes(grant.granted)?;
            AuthorizeAnswer::Allow(
                Grant {
                    granted: Scope::intersect(asked, &granted),
                    reason: reason(grant.reason),
                    plugin: Some(std::sync::Arc::clone(plugin)),
                },
                cache_hint(grant.cache, MAX_TTL),
            )
        }
    })
}

/// An admission's answer.
pub(crate) fn admit_answer(
    plugin: &std::sync::Arc<str>,
    decision: admission::Decision,
) -> AdmitAnswer {
    match decision {
        admission::Decision::Abstain => AdmitAnswer::Abstain,
        admission::Decision::Reject(refusal) => AdmitAnswer::Reject(denial(plugin, refusal)),
        admission::Decision::Hold(held) => AdmitAnswer::Hold {
            retry_after: retry(held.retry_after_ms).max(Duration::from_secs(1)),
            reason: message(&held.reason, "this content is not decided yet"),
        },
        admission::Decision::Accept(accepted) => AdmitAnswer::Accept {
            warnings: accepted
                .warnings
                .iter()
                .map(|warning| text::clean(warning, MAX_MESSAGE_BYTES))
                .filter(|warning| !warning.trim().is_empty())
                .take(MAX_WARNINGS)
                .collect(),
            set_immutable: accepted.set_immutable,
            cache: cache_hint(accepted.cache, MAX_TTL),
        },
    }
}

/// What became of `count` events; fails when there is not exactly one outcome for each.
pub(crate) fn deliveries(
    count: usize,
    outcomes: Vec<events::Outcome>,
) -> Result<Vec<Delivery>, Stop> {
    if outcomes.len() != count {
        return Err(contract(format!(
            "answered {} outcomes for {count} events",
            outcomes.len()
        )));
    }
    let delivery = |outcome| match outcome {
        events::Outcome::Delivered => Delivery::Delivered,
        events::Outcome::Retry(milliseconds) => Delivery::Retry(retry(milliseconds)),
        events::Outcome::Drop(why) => Delivery::Drop(message(&why, "dropped by the plugin")),
    };
    Ok(outcomes.into_iter().map(delivery).collect())
}

/// A plugin's own failure.
pub(crate) fn plugin_error(error: &types::PluginError) -> Stop {
    let detail = match error {
        types::PluginError::Misconfigured(why) => format!("misconfigured: {why}"),
        types::PluginError::Upstream(why) => format!("upstream: {why}"),
        types::PluginError::Deadline => "ran out of time".to_owned(),
        types::PluginError::Internal(why) => format!("internal: {why}"),
    };
    Stop::new(Failure::Plugin, text::clean(&detail, MAX_REASON_BYTES))
}

/// A generation; cut, it would be another one.
pub(crate) fn generation(generation: String) -> Result<std::sync::Arc<str>, Stop> {
    let plain = text::clean(&generation, MAX_GENERATION_BYTES) == generation;
    if plain && generation.len() <= MAX_GENERATION_BYTES {
        return Ok(generation.into());
    }
    Err(contract(format!(
        "answered a generation longer than {MAX_GENERATION_BYTES} bytes or not plain text"
    )))
}

/// A principal that a plugin may vouch for: named, and neither the gateway nor nobody nor an upstream's.
fn vouched(principal: types::Principal) -> Result<Principal, Stop> {
    let named = |what: &str, text: &str| {
        let plain = !text.is_empty() && text.len() <= MAX_NAME_BYTES;
        if plain && text::clean(text, MAX_NAME_BYTES) == text {
            return Ok(());
        }
        Err(contract(format!(
            "answered a principal whose {what} is empty, longer than {MAX_NAME_BYTES} bytes or not plain text"
        )))
    };
    named("id", &principal.id)?;
    named("kind", &principal.kind)?;
    if !principal.issuer.is_empty() {
        named("issuer", &principal.issuer)?;
    }
    let reserved = |id: &str| {
        let id = id.trim();
        id.eq_ignore_ascii_case("anonymous") || id.eq_ignore_ascii_case("system")
    };
    if reserved(&principal.id)
        || reserved(&principal.kind)
        || principal.id.trim().starts_with("upstream:")
    {
        return Err(contract(
            "answered a principal that only the gateway may name: anonymous, system or upstream:…",
        ));
    }
    if principal.groups.len() > MAX_GROUPS || principal.attributes.len() > MAX_ATTRIBUTES {
        return Err(contract(format!(
            "answered a principal with more than {MAX_GROUPS} groups or {MAX_ATTRIBUTES} attributes"
        )));
    }
    for group in &principal.groups {
        named("group", group)?;
    }
    Ok(Principal {
        id: principal.id,
        kind: principal.kind,
        issuer: principal.issuer,
        groups: principal.groups,
        attributes: principal
            .attributes
            .into_iter()
            .map(|(key, value)| (key, attribute(value)))
            .collect(),
        expires_at_ms: principal.expires_at,
    })
}

fn attribute(value: types::AttrValue) -> AttributeValue {
    match value {
        types::AttrValue::Text(text) => AttributeValue::Text(text),
        types::AttrValue::Number(number) => AttributeValue::Number(number),
        types::AttrValue::Flag(flag) => AttributeValue::Flag(flag),
        types::AttrValue::Texts(texts) => AttributeValue::Texts(texts),
    }
}

fn answered_scopes(scopes: Vec<types::Scope>) -> Result<Vec<Scope>, Stop> {
    if scopes.len() > MAX_SCOPES {
        return Err(contract(format!("answered more than {MAX_SCOPES} scopes")));
    }
    Ok(scopes
        .into_iter()
        .map(|scope| Scope {
            kind: scope.kind,
            name: scope.name,
            actions: scope.actions.into_iter().collect(),
        })
        .collect())
}

fn denial(plugin: &std::sync::Arc<str>, refusal: types::Denial) -> Denial {
    let mut shown = message(&refusal.message, "denied by policy");
    let docs = refusal.docs_url.filter(|url| is_plain_url(url));
    if let Some(url) = docs
        && shown.len() + url.len() + 6 <= MAX_MESSAGE_BYTES
    {
        shown = format!("{shown} (see {url})");
    }
    Denial {
        code: match refusal.code {
            types::DenialCode::Unauthorized => DenialCode::Unauthorized,
            types::DenialCode::Denied => DenialCode::Denied,
            types::DenialCode::TooManyRequests => DenialCode::TooManyRequests,
            types::DenialCode::NameInvalid => DenialCode::NameInvalid,
            types::DenialCode::ManifestInvalid => DenialCode::ManifestInvalid,
            types::DenialCode::Unsupported => DenialCode::Unsupported,
            types::DenialCode::Unavailable => DenialCode::Unavailable,
        },
        reason: reason(refusal.reason),
        message: shown,
        // A refusal with a broken detail is still a refusal.
        detail: refusal.detail.filter(|detail| {
            detail.len() <= MAX_DETAIL_BYTES
                && serde_json::from_str::<serde::de::IgnoredAny>(detail).is_ok()
        }),
        retry_after: refusal.retry_after_ms.map(retry),
        plugin: Some(std::sync::Arc::clone(plugin)),
    }
}

fn is_plain_url(url: &str) -> bool {
    (url.starts_with("https://") || url.starts_with("http://"))
        && url.bytes().all(|byte| byte.is_ascii_graphic())
}

fn message(text: &str, otherwise: &str) -> String {
    let cleaned = text::clean(text, MAX_MESSAGE_BYTES);
    match cleaned.trim() {
        "" => otherwise.to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function of `map`")]
fn reason(reason: types::Reason) -> Reason {
    Reason::new(
        text::clean(&reason.code, MAX_CODE_BYTES),
        text::clean(&reason.text, MAX_REASON_BYTES),
    )
}

fn retry(milliseconds: u32) -> Duration {
    Duration::from_millis(u64::from(milliseconds)).min(MAX_RETRY)
}

fn denial_hint(hint: types::CacheHint) -> CacheHint {
    CacheHint {
        stale_if_error: Duration::ZERO,
        ..cache_hint(hint, MAX_DENIAL_TTL)
    }
}

fn cache_hint(hint: types::CacheHint, max_ttl: Duration) -> CacheHint {
    CacheHint {
        ttl: Duration::from_millis(u64::from(hint.ttl_ms)).min(max_ttl),
        stale_if_error: Duration::from_millis(u64::from(hint.stale_if_error_ms)).min(MAX_STALE),
        varies: Varies {
            client_address: hint.also.contains(types::Vary::CLIENT_ADDR),
            user_agent: hint.also.contains(types::Vary::USER_AGENT),
            time_of_day: hint.also.contains(types::Vary::TIME_OF_DAY),
        },
    }
}

fn contract(detail: impl Into<String>) -> Stop {
    Stop::new(Failure::Contract, detail)
}
