//! The admin listener: `/healthz`, `/readyz`, `/metrics`. Never on the traffic listener, and no OCI there.

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode};

use super::respond::{self, Reply};
use crate::{
    server::{Handler, Peer, RequestBody},
    telemetry::{METRICS_CONTENT_TYPE, Telemetry},
};

/// Asks whether traffic should come here; `Err` says in a sentence what is missing.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Answers the admin listener.
#[derive(Clone)]
pub struct Admin {
    telemetry: Arc<Telemetry>,
    ready: Readiness,
}

impl fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Makes the handler.
    #[must_use]
    pub fn new(telemetry: Arc<Telemetry>, ready: Readiness) -> Self {
        Self { telemetry, ready }
    }
}

impl Handler for Admin {
    async fn handle(&self, request: Request<RequestBody>, _peer: &Peer) -> Reply {
        let reply = |status, kind, text: String| respond::plain("admin", status, kind, text);
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let text = "only GET\n".to_owned();
            let mut reply = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", text);
            reply.headers_mut().insert(
                http::header::ALLOW,
                http::HeaderValue::from_static("GET, HEAD"),
            );
            return reply;
        }
        match request.uri().path() {
            "/healthz" => reply(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => match (self.ready)().await {
                Ok(()) => reply(StatusCode::OK, "text/plain", "ready\n".to_owned()),
                Err(missing) => {
                    let text = format!("{missing}\n");
                    reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
                }
            },
            "/metrics" => reply(
                StatusCode::OK,
                METRICS_CONTENT_TYPE,
                self.telemetry.metrics_text(),
            ),
            _ => reply(
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found\n".to_owned(),
            ),
        }
    }
}
