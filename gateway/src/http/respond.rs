//! Outcome → status, headers, body; failure → OCI error JSON. The only code that makes response bytes.
//!
//! Invariants: `Content-Length` is exact, also for HEAD; nothing is compressed, converted or given a charset; `Location` and `Link` are
//! paths without a host, so that no proxy in front can make that wrong, below the path of the external URL.

mod failure;
mod paths;
#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "tables")]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::{Digest, RepositoryName, media_type};
use gantry_registry::{BlobContent, Outcome, ServedBlob, ServedManifest, Stale, UploadState};
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

pub use self::failure::failure;
pub(super) use self::paths::encode;
use super::{body::ResponseBody, challenge::Challenge};

/// What of the request the answer depends on.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Echoed in `X-Request-Id` and in 5xx bodies.
    pub request_id: Arc<str>,
    /// Whether the method is HEAD.
    pub head: bool,
    /// `If-None-Match`, all lines joined.
    pub if_none_match: Option<String>,
    /// The `?ns=` value that decided, when one did.
    pub namespace: Option<Arc<str>>,
    /// How a 401 invites.
    pub challenge: Challenge,
}

/// A response under construction.
pub type Reply = Response<ResponseBody>;

/// Headers that only registries send, as the distribution specification and Docker's registry spell them. Made once: a name made from text
/// is hashed and compared with every well-known one.
mod names {
    use http::HeaderName;

    pub(super) const DOCKER_CONTENT_DIGEST: HeaderName =
        HeaderName::from_static("docker-content-digest");
    pub(super) const DOCKER_DISTRIBUTION_API_VERSION: HeaderName =
        HeaderName::from_static("docker-distribution-api-version");
    pub(super) const DOCKER_UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
    pub(super) const OCI_FILTERS_APPLIED: HeaderName =
        HeaderName::from_static("oci-filters-applied");
    pub(super) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
    pub(super) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
    pub(super) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
    pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
}

/// Renders an outcome.
#[must_use]
#[expect(clippy::too_many_lines, reason = "a table, or a story told in order")]
pub fn outcome(frame: &Frame, outcome: Outcome) -> Reply {
    let mut reply = match outcome {
        Outcome::Alive => document(frame, "application/json", Bytes::from_static(b"{}")),
        Outcome::Catalog { repositories, next } => catalog(frame, &repositories, next),
        Outcome::Manifest(served) => manifest(frame, *served),
        Outcome::ManifestPushed {
            repository,
            digest,
            subject,
            tags,
            warnings,
        } => {
            let mut reply = created(&paths::manifest(&repository, &digest), &digest);
            if let Some(subject) = subject {
                set(&mut reply, names::OCI_SUBJECT, subject.as_str());
            }
            for tag in tags {
                append(&mut reply, names::OCI_TAG, tag.as_str());
            }
            warn(&mut reply, &warnings);
            reply
        }
        Outcome::Deleted => empty(StatusCode::ACCEPTED),
        Outcome::Blob(served) => blob(frame, *served),
        Outcome::UploadAccepted(state) => upload(StatusCode::ACCEPTED, &state),
        Outcome::UploadStatus(state) => upload(StatusCode::NO_CONTENT, &state),
        Outcome::UploadCancelled => empty(StatusCode::NO_CONTENT),
        Outcome::BlobPushed { repository, digest } => {
            created(&paths::blob(&repository, &digest), &digest)
        }
        Outcome::Tags {
            repository,
            tags,
            next,
            stale,
        } => {
            let body = json!({ "name": repository.spelled.as_str(), "tags":
                tags.iter().map(gantry_model::Tag::as_str).collect::<Vec<_>>() });
            let mut reply = document(frame, "application/json", body.to_string());
            if let (Some(size), Some(last)) = (next, tags.last()) {
                let link = paths::next_tags(&repository, last, size);
                set(&mut reply, header::LINK, &link);
            }
            stale_list(&mut reply, stale);
            reply
        }
        Outcome::Referrers(listed) => {
            let mut reply = document(frame, media_type::OCI_INDEX, listed.index.clone());
            if listed.artifact_type.is_some() {
                set(&mut reply, names::OCI_FILTERS_APPLIED, "artifactType");
            }
            if let Some(last) = &listed.next {
                set(
                    &mut reply,
                    header::LINK,
                    &paths::next_referrers(&listed, last),
                );
            }
            stale_list(&mut reply, listed.stale);
            reply
        }
    };
    if let Some(namespace) = &frame.namespace {
        set(&mut reply, names::OCI_NAMESPACE, namespace);
    }
    finish(frame, &mut reply);
    reply
}

/// `OPTIONS`.
#[must_use]
pub fn options(frame: &Frame, allow: &'static str) -> Reply {
    let mut reply = empty(StatusCode::OK);
    set(&mut reply, header::ALLOW, allow);
    finish(frame, &mut reply);
    reply
}

/// JSON or text outside `/v2/`: the token endpoint, health, metrics.
#[must_use]
pub fn plain(
    request_id: &str,
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Reply {
    let body = body.into();
    let mut reply = with_status(status);
    set(&mut reply, header::CONTENT_TYPE, content_type);
    set(&mut reply, header::CONTENT_LENGTH, &body.len().to_string());
    set(&mut reply, names::X_REQUEST_ID, request_id);
    *reply.body_mut() = ResponseBody::bytes(body);
    reply
}

fn catalog(frame: &Frame, repositories: &[RepositoryName], next: Option<usize>) -> Reply {
    let names: Vec<&str> = repositories.iter().map(RepositoryName::as_str).collect();
    let body = json!({ "repositories": names });
    let mut reply = document(frame, "application/json", body.to_string());
    if let (Some(size), Some(last)) = (next, repositories.last()) {
        set(&mut reply, header::LINK, &paths::next_catalog(last, size));
    }
    reply
}

fn manifest(frame: &Frame, served: ServedManifest) -> Reply {
    let length = served.bytes.len();
    let mut reply = if matches(frame, &served.digest) {
        with_status(StatusCode::NOT_MODIFIED)
    } else {
        let mut reply = with_status(StatusCode::OK);
        set(&mut reply, header::CONTENT_TYPE, served.media_type.as_str());
        set(&mut reply, header::CONTENT_LENGTH, &length.to_string());
        if served.body && !frame.head {
            *reply.body_mut() = ResponseBody::bytes(served.bytes);
        }
        reply
    };
    identify(&mut reply, &served.digest);
    if let Some(stale) = &served.stale {
        set(&mut reply, header::AGE, &stale.age.as_secs().to_string());
        append(&mut reply, header::WARNING, &stale_warning(&stale.why));
    }
    warn(&mut reply, &served.warnings);
    reply
}

/// Says that a list is one of before, because its upstream could not be asked.
fn stale_list(reply: &mut Reply, age: Option<Duration>) {
    if let Some(age) = age {
        set(reply, header::AGE, &age.as_secs().to_string());
        append(reply, header::WARNING, "110 - \"Response is Stale\"");
    }
}

/// RFC 7234, section 5.5.
fn stale_warning(why: &Stale) -> String {
    match why {
        Stale::Revalidating => "110 - \"Response is Stale\"".to_owned(),
        Stale::UpstreamFails => "111 - \"Revalidation Failed\"".to_owned(),
        Stale::Pinned(digest) => {
            format!("199 - \"the tag is pinned; its upstream names {digest} now\"")
        }
        Stale::TooYoung(digest) => {
            format!("199 - \"its upstream names {digest} now, which is too new\"")
        }
    }
}

fn blob(frame: &Frame, served: ServedBlob) -> Reply {
    if matches(frame, &served.digest) {
        let mut reply = with_status(StatusCode::NOT_MODIFIED);
        identify(&mut reply, &served.digest);
        return reply;
    }
    let mut reply = with_status(StatusCode::OK);
    set(&mut reply, header::CONTENT_TYPE, media_type::OCTET_STREAM);
    set(&mut reply, header::ACCEPT_RANGES, "bytes");
    identify(&mut reply, &served.digest);
    warn(&mut reply, &served.warnings);
    let (offset, length) = match &served.range {
        None => (0, served.size),
        Some(range) => {
            *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
            let total = served
                .size
                .map_or_else(|| "*".to_owned(), |size| size.to_string());
            let (first, last) = (range.start(), range.end());
            set(
                &mut reply,
                header::CONTENT_RANGE,
                &format!("bytes {first}-{last}/{total}"),
            );
            (*first, Some((last - first).saturating_add(1)))
        }
    };
    if let Some(length) = length {
        set(&mut reply, header::CONTENT_LENGTH, &length.to_string());
    }
    if !frame.head {
        *reply.body_mut() = match served.content {
            BlobContent::Published(blob) => {
                let length = length.unwrap_or_else(|| blob.size());
                ResponseBody::blob(blob, offset, length)
            }
            BlobContent::Filling(arriving) => ResponseBody::filling(arriving, length),
            BlobContent::HeadersOnly => ResponseBody::empty(),
        };
    }
    reply
}

/// Whether `If-None-Match` names this content: quoted, unquoted, weak or `*`.
fn matches(frame: &Frame, digest: &Digest) -> bool {
    let Some(tags) = &frame.if_none_match else {
        return false;
    };
    tags.split(',').map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        tag == "*" || tag == digest.as_str()
    })
}

fn identify(reply: &mut Reply, digest: &Digest) {
    set(reply, names::DOCKER_CONTENT_DIGEST, digest.as_str());
    set(reply, header::ETAG, &format!("\"{digest}\""));
}

fn document(frame: &Frame, content_type: &str, body: impl Into<Bytes>) -> Reply {
    let body = body.into();
    let mut reply = with_status(StatusCode::OK);
    set(&mut reply, header::CONTENT_TYPE, content_type);
    set(&mut reply, header::CONTENT_LENGTH, &body.len().to_string());
    if !frame.head {
        *reply.body_mut() = ResponseBody::bytes(body);
    }
    reply
}

fn created(location: &str, digest: &Digest) -> Reply {
    let mut reply = empty(StatusCode::CREATED);
    set(&mut reply, header::LOCATION, location);
    set(&mut reply, names::DOCKER_CONTENT_DIGEST, digest.as_str());
    reply
}

fn upload(status: StatusCode, state: &UploadState) -> Reply {
    let mut reply = empty(status);
    upload_headers(&mut reply, state);
    reply
}

/// Where an upload stands. `0-0` is both "nothing" and "one byte": docker parses two numbers and needs them to be there.
fn upload_headers(reply: &mut Reply, state: &UploadState) {
    set(
        reply,
        header::LOCATION,
        &paths::upload(&state.repository, state.upload),
    );
    let last = state.received.saturating_sub(1);
    set(reply, header::RANGE, &format!("0-{last}"));
    set(reply, names::DOCKER_UPLOAD_UUID, &state.upload.to_string());
}

fn empty(status: StatusCode) -> Reply {
    let mut reply = with_status(status);
    if status != StatusCode::NO_CONTENT {
        set(&mut reply, header::CONTENT_LENGTH, "0");
    }
    reply
}

fn with_status(status: StatusCode) -> Reply {
    let mut reply = Response::new(ResponseBody::empty());
    *reply.status_mut() = status;
    reply
}

/// What every answer under `/v2/` carries.
fn finish(frame: &Frame, reply: &mut Reply) {
    set(
        reply,
        names::DOCKER_DISTRIBUTION_API_VERSION,
        "registry/2.0",
    );
    set(reply, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(reply, names::X_REQUEST_ID, &frame.request_id);
    for name in [header::LOCATION, header::LINK] {
        put_below(&frame.challenge.path, reply, &name);
    }
}

/// Puts a path that the client is given below the path of the external URL.
fn put_below(path: &str, reply: &mut Reply, name: &HeaderName) {
    if path.is_empty() {
        return;
    }
    let own = reply.headers().get(name).and_then(|own| own.to_str().ok());
    let below = own.and_then(|own| match own.strip_prefix('<') {
        Some(link) => link.starts_with('/').then(|| format!("<{path}{link}")),
        None => own.starts_with('/').then(|| format!("{path}{own}")),
    });
    if let Some(below) = below {
        set(reply, name.clone(), &below);
    }
}

/// Adds the operator's headers, where the response has none of that name.
pub(super) fn add_headers(reply: &mut Reply, headers: &http::HeaderMap) {
    for name in headers.keys() {
        if !reply.headers().contains_key(name) {
            for value in headers.get_all(name) {
                reply.headers_mut().append(name.clone(), value.clone());
            }
        }
    }
}

/// `Warning: 299 - "…"` (distribution-spec, "Warnings"): at most 4096 bytes in all.
fn warn(reply: &mut Reply, warnings: &[String]) {
    let mut left = 4096_usize;
    for warning in warnings {
        let value = format!("299 - \"{}\"", quotable(warning, 512));
        let Some(rest) = left.checked_sub(value.len()) else {
            return;
        };
        left = rest;
        append(reply, header::WARNING, &value);
    }
}

/// At most `max` characters that may stand between quotes in a header.
pub(super) fn quotable(text: &str, max: usize) -> String {
    let mut quoted = String::with_capacity(text.len().min(max));
    for character in text.chars().take(max) {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ if character.is_whitespace() => quoted.push(' '),
            _ => quoted.push('?'),
        }
    }
    quoted
}

/// Sets a header. Every value comes from parsed types; one that still cannot stand in a header is left out rather than broken.
fn set(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().insert(name, value);
    }
}

fn append(reply: &mut Reply, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        reply.headers_mut().append(name, value);
    }
}

/// Every line of `If-None-Match`, joined as one list.
#[must_use]
pub fn if_none_match(headers: &http::HeaderMap) -> Option<String> {
    let lines: Vec<&str> = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    (!lines.is_empty()).then(|| lines.join(","))
}
