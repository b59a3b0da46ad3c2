//! `POST /admin/v1/principals/revoke`: everything that was proved for an id until now is void: its tokens, its remembered credentials and
//! its running transfers. A credential that is still good proves it anew.

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Answered, Call, Problem, Route};
use crate::telemetry;

pub(super) const ROUTES: &[Route] = &[Route {
    method: Method::POST,
    path: "/admin/v1/principals/revoke",
    run: revoke,
}];

/// Longest id.
const MAX_ID_BYTES: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    id: String,
}

fn revoke(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let Order { id } = serde_json::from_slice(&call.body?)
            .map_err(|error| Problem::bad_request(format!("the body is not an order: {error}")))?;
        if id.is_empty() || id.len() > MAX_ID_BYTES || id.chars().any(char::is_control) {
            let message = format!("id: 1 to {MAX_ID_BYTES} bytes without control characters");
            return Err(Problem::bad_request(message));
        }
        let revocation = call.generation.authentication.revocation();
        match revocation.revoke(&id).await {
            Ok(()) => {
                telemetry::audit_revoked(&call.requester, &id);
                Ok((StatusCode::OK, json!({ "id": id })))
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(principal.subject = id, error, "cannot revoke");
                Err(Problem::unavailable())
            }
        }
    })
}
