//! The admin listener: `/healthz`, `/readyz`, `/metrics`, and the admin API under `/admin/v1/`. Never on the traffic listener, and no OCI
//! there.
//!
//! Owns who may use the API: whoever the authenticators know and the authorizers allow `registry:admin:*`. Being on loopback is no
//! identity, and no page of another site may use a browser on this machine (`http/site.rs`). What it can do is one table, `ROUTES`; each family of routes is a file below.

mod cache;
mod call;
mod events;
mod lines;
mod plugins;
mod principals;
mod reload;
mod repositories;
mod warm;

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use gantry_model::{OperationKind, Requester};
use http::{HeaderValue, Method, Request, StatusCode, header, request::Parts};

use self::call::{Match, body_of, find, render};
pub use self::{
    call::{Answered, Call, Problem, Route},
    lines::{LineRoute, Lines},
};
use super::{
    body, credential,
    error::Error,
    exchange::{Done, Exchange},
    pace::Rate,
    respond::{self, Reply},
    site::{self, OwnNames},
};
use crate::{
    app::{App, Generation},
    auth,
    callers::ShownFor,
    policy,
    reload::Reloader,
    server::{Handler, Peer, RequestBody},
    telemetry::METRICS_CONTENT_TYPE,
};

/// Everything the API can do.
const ROUTES: &[&[Route]] = &[
    cache::ROUTES,
    events::ROUTES,
    plugins::ROUTES,
    principals::ROUTES,
    reload::ROUTES,
    repositories::ROUTES,
];

/// What takes long: it answers line by line, and ends when the client leaves.
const LINE_ROUTES: &[LineRoute] = &[cache::EVICT, warm::WARM];

/// Bytes of a request's body at most.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// How long the metrics wait for the outbox.
const MEASURE_FOR: Duration = Duration::from_secs(1);

/// Where the API begins.
const API: &str = "/admin/v1/";

/// Asks whether traffic should come here; `Err` says in a sentence what is missing.
pub type Readiness = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// Answers the admin listener.
#[derive(Clone)]
pub struct Admin {
    reloader: Arc<Reloader>,
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
    pub fn new(reloader: Arc<Reloader>, ready: Readiness) -> Self {
        Self { reloader, ready }
    }

    /// What anybody may ask.
    async fn open(&self, method: &Method, path: &str) -> Reply {
        let reply = |status, kind, text: String| respond::plain("admin", status, kind, text);
        if method != Method::GET && method != Method::HEAD {
            let text = "only GET\n".to_owned();
            let mut reply = reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", text);
            reply
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match path {
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
                metrics(self.reloader.app()).await,
            ),
            _ => reply(
                StatusCode::NOT_FOUND,
                "text/plain",
                "not found\n".to_owned(),
            ),
        }
    }

    /// The API: authenticate → authorize → route. Nobody learns what there is before showing who they are.
    async fn api(&self, request: Request<RequestBody>, peer: &Peer) -> Reply {
        let generation = self.reloader.app().current();
        let (parts, body) = request.into_parts();
        let mut exchange = Exchange::begin(&generation, &parts, peer, body.received());
        exchange.names(OperationKind::Admin.as_str());
        let about = format!("{} {}", parts.method, parts.uri.path());
        exchange.begin_audit(None, Some(about));
        let span = exchange.span();
        let answer = Box::pin(self.answer(&generation, &mut exchange, &parts, body));
        let result = AssertUnwindSafe(answer).catch_unwind();
        let result = tracing::Instrument::instrument(result, span).await;
        let result = result.unwrap_or_else(|_panic| {
            generation.telemetry.panics.inc();
            Err(Error::Panicked)
        });
        let mut reply = exchange.finish(result);
        if reply.status() == StatusCode::UNAUTHORIZED {
            // The challenge of `/v2/` names a token endpoint that is not on this listener.
            reply.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Basic realm=\"gantry admin\", charset=\"UTF-8\""),
            );
        }
        reply
    }

    async fn answer(
        &self,
        generation: &Arc<Generation>,
        exchange: &mut Exchange,
        parts: &Parts,
        body: RequestBody,
    ) -> Result<Done, Error> {
        let names = OwnNames::from(&*generation.edge);
        if let Err((status, text)) = site::admin(parts, names) {
            exchange.refused("other-site", &text);
            let answered = Err(Problem::site(status, text));
            let reply = render(exchange.request_id(), answered);
            return Ok(Done::Plain(Box::new(reply)));
        }
        let (identified, requester) = permit(generation, exchange, parts).await?;
        let (method, path) = (&parts.method, parts.uri.path());
        let call = |captured, body| Call {
            reloader: Arc::clone(&self.reloader),
            generation: Arc::clone(generation),
            principal: Arc::clone(&identified.principal),
            identified: identified.clone(),
            requester: requester.clone(),
            captured,
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body,
        };
        let rate = Rate {
            bytes_per_second: generation.edge.minimum_rate,
            window: generation.edge.minimum_rate_window,
        };
        let body = body_of(body::capped(body, Some(MAX_BODY_BYTES), rate));
        if let Some(route) = LINE_ROUTES.iter().find(|route| route.path == path) {
            let answered = match *method == Method::POST {
                true => (route.run)(call(Vec::new(), body.await)),
                false => Err(Problem::method("POST".to_owned())),
            };
            let reply = lines::render(exchange.request_id(), answered);
            return Ok(Done::Plain(Box::new(reply)));
        }
        let answered = match find(ROUTES, method, path) {
            Match::Found(route, captured) => {
                run_to_its_end((route.run)(call(captured, body.await))).await
            }
            Match::Methods(allow) => Err(Problem::method(allow)),
            Match::Nothing => Err(Problem::not_found("there is nothing here")),
        };
        let reply = render(exchange.request_id(), answered);
        Ok(Done::Plain(Box::new(reply)))
    }
}

/// Every metric, with what waits for receivers now; a store that is slow does not hold up the page.
async fn metrics(app: &App) -> String {
    let events = Arc::clone(&app.current().events);
    let measured = tokio::time::timeout(MEASURE_FOR, events.measure()).await;
    if measured.is_err() {
        tracing::debug!("the outbox takes too long to be measured");
    }
    app.telemetry.metrics_text()
}

/// Runs a route in a task of its own: a client that goes away stops nothing half way.
async fn run_to_its_end(route: impl Future<Output = Answered> + Send + 'static) -> Answered {
    let task = tracing::Instrument::in_current_span(route);
    tokio::spawn(task)
        .await
        .unwrap_or_else(|_panicked| Err(Problem::internal()))
}

/// Who asks, when they may.
async fn permit(
    generation: &Generation,
    exchange: &mut Exchange,
    parts: &Parts,
) -> Result<(auth::Identified, Requester), Error> {
    let credential = credential::parse(&parts.headers)?;
    let client = Arc::clone(exchange.client());
    let identified = exchange
        .deadline(Box::pin(auth::authenticate(
            generation,
            &client,
            credential,
            // Only who is known here has a say here.
            ShownFor::Nobody,
        )))
        .await?;
    exchange.identified(&identified);
    let requester = exchange.requester(Arc::clone(&identified.principal));
    let reason = exchange
        .deadline(Box::pin(policy::authorize_admin(
            generation,
            &requester,
            &identified,
        )))
        .await?;
    exchange.allowed(&reason);
    Ok((identified, requester))
}

impl Handler for Admin {
    async fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> Reply {
        let path = request.uri().path();
        if path.starts_with(API) {
            return self.api(request, peer).await;
        }
        self.open(request.method(), path).await
    }
}
