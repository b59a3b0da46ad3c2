//! A failure → OCI error JSON, with the headers its status obliges to.

use gantry_registry::Error as RegistryError;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{Frame, Reply, finish, set, upload_headers, with_status};
use crate::http::{
    body::ResponseBody,
    error::{Answer, Error},
    route::RouteError,
};

/// Renders a failure.
#[must_use]
pub fn failure(frame: &Frame, error: &Error) -> Reply {
    let answer = error.answer();
    let mut reply = with_status(answer.status);
    let body = document(frame, &answer);
    set(&mut reply, header::CONTENT_TYPE, "application/json");
    set(&mut reply, header::CONTENT_LENGTH, &body.len().to_string());
    if !frame.head {
        *reply.body_mut() = ResponseBody::bytes(body);
    }
    if let Some(after) = answer.retry_after {
        // Rounded up: a client that comes a moment too early is told to wait again.
        let seconds = after.as_millis().div_ceil(1000).max(1);
        set(&mut reply, header::RETRY_AFTER, &seconds.to_string());
    }
    if answer.status == StatusCode::UNAUTHORIZED {
        challenge(frame, error, &mut reply);
    }
    oblige(error, &mut reply);
    finish(frame, &mut reply);
    reply
}

fn document(frame: &Frame, answer: &Answer) -> String {
    let id = &*frame.request_id;
    let message = match &answer.upstream {
        // Most clients print the message alone.
        Some(_) => format!("{} (request {id})", answer.message),
        None => answer.message.clone(),
    };
    let entry = |detail: Option<&Value>| {
        let mut entry = json!({ "code": answer.code, "message": message });
        if let (Some(detail), Some(entry)) = (detail, entry.as_object_mut()) {
            entry.insert("detail".to_owned(), detail.clone());
        }
        entry
    };
    let errors: Vec<Value> = if let Some(fault) = &answer.upstream {
        let (mirror, kind) = (&fault.mirror, fault.kind);
        let detail = json!({ "request_id": id, "mirror": mirror, "kind": kind });
        vec![entry(Some(&detail))]
    } else if answer.status.is_server_error() {
        let detail = json!({ "request_id": id });
        vec![entry(Some(&detail))]
    } else if answer.details.is_empty() {
        vec![entry(None)]
    } else {
        answer
            .details
            .iter()
            .map(|detail| entry(Some(detail)))
            .collect()
    };
    json!({ "errors": errors }).to_string()
}

/// Bearer alone: a docker daemon without a password takes a Basic challenge beside it for a demand and gives up. Basic is accepted from
/// whoever sends it unasked.
fn challenge(frame: &Frame, error: &Error, reply: &mut Reply) {
    let (scopes, reason) = match error {
        Error::Unauthorized { scopes, error, .. } => (scopes.as_slice(), *error),
        _ => (Default::default(), None),
    };
    if let Ok(value) = HeaderValue::from_str(&frame.challenge.bearer(scopes, reason)) {
        reply.headers_mut().append(header::WWW_AUTHENTICATE, value);
    }
}

/// Headers that a status is not complete without.
fn oblige(error: &Error, reply: &mut Reply) {
    match error {
        Error::Route(RouteError::MethodNotAllowed { allow }) => set(reply, header::ALLOW, allow),
        Error::Registry(error) => oblige_registry(error, reply),
        _ => {}
    }
    if reply.status() == StatusCode::METHOD_NOT_ALLOWED && !reply.headers().contains_key("allow") {
        set(reply, header::ALLOW, "GET, HEAD");
    }
}

fn oblige_registry(error: &RegistryError, reply: &mut Reply) {
    match error {
        RegistryError::RangeUnsatisfiable { size } => {
            set(reply, header::CONTENT_RANGE, &format!("bytes */{size}"));
        }
        RegistryError::ChunkOutOfOrder(state) => upload_headers(reply, state),
        _ => {}
    }
}
