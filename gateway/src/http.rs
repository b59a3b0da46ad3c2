//! The life of a request. Start reading here.
//!
//! [`handle`] is the spine: parse → authenticate → authorize → perform → respond. Owns the order of these; each step lives in the file
//! that its name says. Invariant: every request is answered, logged and counted exactly once, whatever fails.

pub mod admin;
pub mod body;
pub mod challenge;
pub mod credential;
pub mod error;
pub mod exchange;
pub mod forwarded;
pub mod pace;
mod probe;
pub mod respond;
pub mod route;
mod site;
pub mod token;

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc};

use futures_util::FutureExt as _;
use gantry_model::{Operation, namespace::Address};
use gantry_registry::{BlobContent, Body, Outcome};
use http::{Method, Request, StatusCode, Uri, request::Parts, uri::PathAndQuery};
use tracing::Instrument as _;

use self::{
    error::Error,
    exchange::{Done, Exchange},
    pace::Rate,
    probe::Probe,
    respond::Reply,
    route::{RouteError, Routed},
    site::OwnNames,
};
use crate::{
    app::{App, EdgeSettings, Generation},
    auth::{self, Identified, revocation::Proof},
    policy::{self, downloads::Download},
    server::{Handler, Peer, RequestBody},
};

/// Answers one request.
pub async fn handle(generation: &Generation, request: Request<RequestBody>, peer: &Peer) -> Reply {
    let (mut parts, body) = request.into_parts();
    let mut exchange = Exchange::begin(generation, &parts, peer, body.received());
    strip_path(generation, &mut parts.uri);
    let span = exchange.span();
    let answer = Box::pin(async {
        exchange.take_share(&generation.shares)?;
        of_own_site(generation, &mut exchange, &parts)?;
        match parts.uri.path() {
            "/token" if parts.method == Method::OPTIONS => Ok(Done::Options("GET, POST")),
            "/token" => Box::pin(token(generation, &mut exchange, &parts, body)).await,
            "/healthz" => Ok(health(&mut exchange)),
            // Where load balancers look that were set up for registry:2.
            "/" if [Method::GET, Method::HEAD].contains(&parts.method) => Ok(health(&mut exchange)),
            "/.well-known/jwks.json" => Ok(keys(generation, &mut exchange)),
            _ => operate(generation, &mut exchange, &parts, body).await,
        }
    });
    let result = AssertUnwindSafe(answer).catch_unwind().instrument(span);
    let result = result.await.unwrap_or_else(|_panic| {
        generation.telemetry.panics.inc();
        Err(Error::Panicked)
    });
    let mut reply = exchange.finish(result);
    respond::add_headers(&mut reply, &generation.edge.headers);
    reply
}

/// Refuses a change that a page of another site made a browser send.
fn of_own_site(
    generation: &Generation,
    exchange: &mut Exchange,
    parts: &Parts,
) -> Result<(), Error> {
    let edge = &*generation.edge;
    let host = exchange.origin().host.as_deref();
    let judged = site::traffic(parts, host, OwnNames::from(edge), &edge.headers);
    judged.map_err(|(status, message)| {
        exchange.begin_audit(None, None);
        Error::OtherSite { status, message }
    })
}

/// Takes the path of the external URL off a request of a proxy that passes it on; a mirror's prefix of that name is no such path.
fn strip_path(generation: &Generation, uri: &mut Uri) {
    let Some(external) = &generation.edge.external_url else {
        return;
    };
    let path = external.path().trim_end_matches('/');
    let mut mirrors = generation.namespaces.mirrors.iter();
    if path.is_empty()
        || mirrors.any(|mirror| path.strip_prefix('/') == Some(mirror.prefix.as_str()))
    {
        return;
    }
    let inner = uri
        .path_and_query()
        .and_then(|whole| whole.as_str().strip_prefix(path))
        .filter(|inner| inner.starts_with('/'))
        .and_then(|inner| PathAndQuery::try_from(inner).ok());
    if let Some(inner) = inner {
        *uri = Uri::from(inner);
    }
}

/// Everything under `/v2/`.
async fn operate(
    generation: &Generation,
    exchange: &mut Exchange,
    parts: &Parts,
    body: RequestBody,
) -> Result<Done, Error> {
    let host = exchange.origin().host.clone();
    if host.is_none() && forwarded::says_host(parts) {
        return Err(RouteError::Host.into());
    }
    let address = Address {
        mirror: exchange.mirror(),
        host: host.as_deref(),
        ..Address::default()
    };
    let operation = match route::parse(parts, address, &generation.namespaces)? {
        Routed::Operation(operation) => operation,
        Routed::Options(allow) => return Ok(Done::Options(allow)),
    };
    let shown_for = generation
        .policy
        .callers()
        .of_operation(&operation, address);
    exchange.asks(&operation);
    let credential = credential::shown_to(generation, &parts.headers)?;
    let client = Arc::clone(exchange.client());
    // Each step is pinned where it is made: wrapped by value, its whole room would be copied once for every wrapper.
    let authenticate = pin!(auth::authenticate(
        generation, &client, credential, shown_for
    ));
    let identified = exchange
        .deadline(authenticate)
        .instrument(tracing::debug_span!("authenticate"))
        .await?;
    exchange.identified(&identified);
    let proof = identified.proof.as_ref();
    let body = domain_body(&operation, body, &generation.edge, proof);
    let requester = exchange.requester(Arc::clone(&identified.principal));
    let probe = Probe::of(&generation.registry, &operation);
    let authorize = pin!(policy::authorize(
        generation,
        requester,
        &identified,
        operation
    ));
    let permit = exchange
        .deadline(authorize)
        .instrument(tracing::debug_span!("authorize"))
        .await?;
    exchange.permitted(&permit);
    let perform = pin!(generation.registry.perform(permit, body));
    let outcome = perform.instrument(tracing::debug_span!("perform")).await;
    answered(generation, exchange, &identified, outcome, probe).await
}

/// What an operation came to: a push's probe may find a blob absent that was refused, and a download is noted, because a later configuration may
/// deny it.
async fn answered(
    generation: &Generation,
    exchange: &mut Exchange,
    identified: &Identified,
    outcome: Result<Outcome, gantry_registry::Error>,
    probe: Option<Probe>,
) -> Result<Done, Error> {
    let outcome = match (outcome, probe) {
        (Err(refusal), Some(probe)) => {
            let requester = exchange.requester(Arc::clone(&identified.principal));
            Box::pin(probe.answer(generation, requester, identified, refusal)).await?
        }
        (outcome, _) => outcome?,
    };
    if let Outcome::Blob(served) = &outcome
        && !matches!(served.content, BlobContent::HeadersOnly)
    {
        let requester = exchange.requester(Arc::clone(&identified.principal));
        exchange.downloads(Download::of(
            generation,
            identified.clone(),
            requester,
            served,
        ));
    }
    Ok(Done::Outcome(outcome))
}

/// The token endpoint.
async fn token(
    generation: &Generation,
    exchange: &mut Exchange,
    parts: &Parts,
    body: RequestBody,
) -> Result<Done, Error> {
    exchange.names("token");
    exchange.begin_audit(None, None);
    let body = body::capped(body, None, rate(&generation.edge));
    let reply = token::answer(generation, exchange, parts, body).await?;
    Ok(Done::Plain(Box::new(reply)))
}

/// Load balancers ask the traffic port itself.
fn health(exchange: &mut Exchange) -> Done {
    exchange.names("health");
    let reply = respond::plain(exchange.request_id(), StatusCode::OK, "text/plain", "ok\n");
    Done::Plain(Box::new(reply))
}

/// The public keys that our tokens are verified with; nobody is asked who they are.
fn keys(generation: &Generation, exchange: &mut Exchange) -> Done {
    exchange.names("keys");
    let keys = generation.authentication.published_keys();
    let reply = respond::plain(
        exchange.request_id(),
        StatusCode::OK,
        "application/json",
        keys,
    );
    Done::Plain(Box::new(reply))
}

/// The body, for operations that take one. A manifest's own limit is the registry's; what nobody takes is never read.
fn domain_body(
    operation: &Operation,
    body: RequestBody,
    edge: &EdgeSettings,
    proof: Option<&Arc<Proof>>,
) -> Body {
    match operation {
        Operation::PushManifest { .. }
        | Operation::PushBlob { .. }
        | Operation::AppendChunk { .. }
        | Operation::CommitUpload { .. } => {
            body::capped_of(body, edge.max_blob_bytes, rate(edge), proof)
        }
        Operation::Ping
        | Operation::ListCatalog { .. }
        | Operation::PullManifest { .. }
        | Operation::DeleteManifest { .. }
        | Operation::DeleteTag { .. }
        | Operation::PullBlob { .. }
        | Operation::DeleteBlob { .. }
        | Operation::StartUpload { .. }
        | Operation::MountBlob { .. }
        | Operation::UploadStatus { .. }
        | Operation::CancelUpload { .. }
        | Operation::ListTags { .. }
        | Operation::ListReferrers { .. } => Body::empty(),
    }
}

fn rate(edge: &EdgeSettings) -> Rate {
    Rate {
        bytes_per_second: edge.minimum_rate,
        window: edge.minimum_rate_window,
    }
}

impl Handler for App {
    async fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> Reply {
        // Taken once: a request never sees two configurations, and its own stays until it ends.
        let generation = self.current();
        handle(&generation, request, peer).await
    }

    fn edge(&self) -> Option<Arc<EdgeSettings>> {
        Some(Arc::clone(&self.current().edge))
    }
}
