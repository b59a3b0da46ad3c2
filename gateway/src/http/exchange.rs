//! One request and its answer: what is known about it, the deadline of its decisions, and its lines and counts at the end.
//!
//! Invariant: one access line and one count per request, also when the client leaves; one audit line per decision.

use std::{
    cell::RefCell,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use gantry_model::{
    Arrival, Cause, Client, Denial, Operation, Permit, Principal, Reason, RepositoryName, Requester,
};
use gantry_registry::Error as RegistryError;
use http::request::Parts;
use tokio::time::Instant;

use super::{
    challenge::Challenge,
    error::Error,
    forwarded::{self, Origin},
    respond::{self, Frame, Reply},
};
use crate::{
    app::Generation,
    auth::{
        Identified,
        revocation::{Grounds, Proof},
    },
    events::Events,
    policy::downloads::Download,
    server::{Peer, Share, Shares},
    telemetry::{self, AccessLine, AuditLine, Telemetry},
};

/// One request and its answer.
#[derive(Debug)]
pub struct Exchange {
    telemetry: Arc<Telemetry>,
    started: Instant,
    deadline: Instant,
    origin: Origin,
    /// The mirror whose listener the request came in by.
    mirror: Option<Arc<str>>,
    client: Arc<Client>,
    frame: Frame,
    received: Arc<AtomicU64>,
    events: Arc<Events>,
    principal: Option<Arc<Principal>>,
    /// What the principal was proved with: whoever is revoked loses a response that still runs.
    proof: Option<Arc<Proof>>,
    /// The content that a later configuration may deny.
    download: Option<Arc<Download>>,
    /// `None` once it was handed to the response's body.
    access: Option<AccessLine>,
    audit: Option<AuditLine>,
    /// The client's share of what comes by proxies.
    share: Option<Share>,
    span: tracing::Span,
}

impl Exchange {
    /// Reads from the request's head what the whole exchange needs.
    #[must_use]
    pub fn begin(
        generation: &Generation,
        parts: &Parts,
        peer: &Peer,
        received: Arc<AtomicU64>,
    ) -> Self {
        let origin = forwarded::origin(parts, peer.address, peer.tls, &generation.edge);
        let user_agent = parts
            .headers
            .get(http::header::USER_AGENT)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let client = Arc::new(Client {
            address: origin.address,
            user_agent,
            tls_subject: peer.tls_subject.clone(),
        });
        let request_id = request_id();
        let external_url = generation.edge.external_url.as_ref();
        let challenge = match peer.mirror {
            Some(_) => Challenge::of_listener(&origin),
            None => Challenge::new(external_url, &origin, &generation.namespaces),
        };
        let started = Instant::now();
        // An error's level: whatever the log shows, its lines say which request they belong to.
        let span = tracing::error_span!("request", request.id = &*request_id);
        telemetry::adopt_parent(&span, &parts.headers);
        Self {
            span,
            telemetry: Arc::clone(&generation.telemetry),
            started,
            deadline: started + generation.edge.decision_deadline,
            client: Arc::clone(&client),
            access: Some(AccessLine {
                request_id: Arc::clone(&request_id),
                client,
                method: parts.method.clone(),
                uri: parts.uri.clone(),
                operation: "none",
                repository: None,
                principal: None,
                status: 499,
                received: 0,
                sent: 0,
                duration: std::time::Duration::ZERO,
                complete: false,
            }),
            frame: Frame {
                request_id,
                head: parts.method == http::Method::HEAD,
                if_none_match: respond::if_none_match(&parts.headers),
                namespace: None,
                challenge,
            },
            origin,
            mirror: peer.mirror.clone(),
            received,
            events: Arc::clone(&generation.events),
            principal: None,
            proof: None,
            download: None,
            audit: None,
            share: None,
        }
    }

    /// Counts a request that came by a trusted proxy for the client behind it, until its last byte has left.
    ///
    /// # Errors
    /// [`Error::Crowded`] when that client has its share in flight.
    pub fn take_share(&mut self, shares: &Arc<Shares>) -> Result<(), Error> {
        if self.origin.by_proxy {
            self.share = Some(shares.enter(self.origin.address).ok_or(Error::Crowded)?);
        }
        Ok(())
    }

    /// Ties lines together.
    #[must_use]
    pub fn request_id(&self) -> &Arc<str> {
        &self.frame.request_id
    }

    /// The machine at the other end.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Address, host and scheme as the client sees them.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The mirror whose listener the request came in by.
    #[must_use]
    pub fn mirror(&self) -> Option<&str> {
        self.mirror.as_deref()
    }

    /// What the answer depends on.
    #[must_use]
    pub fn frame(&self) -> &Frame {
        &self.frame
    }

    /// The span of everything done for this request.
    #[must_use]
    pub fn span(&self) -> tracing::Span {
        self.span.clone()
    }

    /// Names what is asked when it is no [`Operation`].
    pub fn names(&mut self, operation: &'static str) {
        if let Some(access) = &mut self.access {
            access.operation = operation;
        }
    }

    /// Names what is asked.
    pub fn asks(&mut self, operation: &Operation) {
        self.names(operation.kind().as_str());
        let repository = operation.repository();
        let name = repository.map(|repository| repository.name.clone());
        if let Some(namespace) = repository.and_then(|repository| repository.namespace.as_ref()) {
            self.frame.challenge = self.frame.challenge.clone().in_namespace(namespace);
            self.frame.namespace = Some(Arc::clone(namespace));
        }
        self.begin_audit(name, operation.reference());
    }

    /// From here on the exchange ends with an audit line.
    pub fn begin_audit(&mut self, repository: Option<RepositoryName>, reference: Option<String>) {
        let Some(access) = &mut self.access else {
            return;
        };
        access.repository.clone_from(&repository);
        self.audit = Some(AuditLine {
            request_id: Arc::clone(&self.frame.request_id),
            client: Arc::clone(&self.client),
            principal: None,
            operation: access.operation,
            repository,
            reference,
            decision: "fail",
            reason: Reason::new("cancelled", "the client left before the decision"),
            plugin: None,
        });
    }

    /// Runs a step of the decision; all steps together have one deadline.
    ///
    /// # Errors
    /// The step's own, or [`Error::Unavailable`] when the deadline passed.
    pub async fn deadline<T>(
        &self,
        step: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        tokio::time::timeout_at(self.deadline, step)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(Error::Unavailable {
                    retry_after: None,
                    source: "the decision took longer than its deadline".into(),
                })
            })
    }

    /// Notes who asks.
    pub fn identified(&mut self, identified: &Identified) {
        let principal = &identified.principal;
        self.proof.clone_from(&identified.proof);
        self.principal = Some(Arc::clone(principal));
        if let Some(access) = &mut self.access {
            access.principal = Some(Arc::clone(principal));
        }
        if let Some(audit) = &mut self.audit {
            audit.principal = Some(Arc::clone(principal));
        }
    }

    /// Who asks, for policy.
    #[must_use]
    pub fn requester(&self, principal: Arc<Principal>) -> Requester {
        Requester {
            arrival: self.arrival(),
            request_id: Arc::clone(&self.frame.request_id),
            client: Arc::clone(&self.client),
            principal,
            confirmed: None,
            cause: Cause::Request,
        }
    }

    /// Notes the content that leaves.
    pub(crate) fn downloads(&mut self, download: Arc<Download>) {
        self.download = Some(download);
    }

    /// Notes a permit.
    pub fn permitted(&mut self, permit: &Permit) {
        self.allowed(permit.reason());
    }

    /// Notes an allowing decision.
    pub fn allowed(&mut self, reason: &Reason) {
        self.decided("allow", reason.clone(), None);
    }

    /// Notes that the request was refused before authentication.
    pub(crate) fn refused(&mut self, code: &str, text: &str) {
        self.decided("deny", Reason::new(code, text), None);
    }

    fn denied(&mut self, denial: &Denial) {
        self.tell_denial(denial);
        self.decided("deny", denial.reason.clone(), denial.plugin.clone());
    }

    /// How the request arrived, when events will say it.
    fn arrival(&self) -> Option<Arc<Arrival>> {
        if !self.events.listening() {
            return None;
        }
        Some(Arc::new(Arrival {
            method: self.access.as_ref()?.method.to_string(),
            host: self.origin.host.clone().unwrap_or_default(),
            url: self.frame.challenge.origin(),
            source: self.events.source().clone(),
        }))
    }

    /// Tells receivers of events, when the principal and the repository are known.
    fn tell_denial(&self, denial: &Denial) {
        let (Some(principal), Some(access)) = (&self.principal, &self.access) else {
            return;
        };
        let Some(name) = &access.repository else {
            return;
        };
        let requester = self.requester(Arc::clone(principal));
        self.events
            .denied(&requester, name, access.operation, denial);
    }

    fn decided(&mut self, decision: &'static str, reason: Reason, plugin: Option<Arc<str>>) {
        if let Some(audit) = &mut self.audit {
            audit.decision = decision;
            audit.reason = reason;
            audit.plugin = plugin;
        }
    }

    /// Renders the result; the lines follow when the last byte has left.
    #[must_use]
    pub fn finish(mut self, result: Result<Done, Error>) -> Reply {
        let span = self.span.clone();
        let _entered = span.enter();
        let reply = match result {
            Ok(Done::Outcome(outcome)) => respond::outcome(&self.frame, outcome),
            Ok(Done::Options(allow)) => respond::options(&self.frame, allow),
            Ok(Done::Plain(reply)) => *reply,
            Err(error) => {
                self.failed(&error);
                respond::failure(&self.frame, &error)
            }
        };
        let Some(mut access) = self.access.take() else {
            return reply;
        };
        let mut audit = self.audit.take();
        // The lines of an answer that is at hand leave together a moment later; audit lines that go elsewhere too, before the answer.
        let together = reply.body().is_at_hand() && !telemetry::audits_apart();
        if let Some(audit) = audit.take_if(|_| !together) {
            audit.log();
        }
        access.status = reply.status().as_u16();
        self.telemetry.count_request(
            access.operation,
            &access.method,
            access.status,
            self.started.elapsed(),
        );
        let (telemetry, started) = (Arc::clone(&self.telemetry), self.started);
        let received = Arc::clone(&self.received);
        telemetry::describe(&self.span, &access);
        let span = span.clone();
        let share = self.share.take();
        let ending = move |sent, complete| {
            drop(share);
            access.received = received.load(Ordering::Relaxed);
            access.sent = sent;
            access.complete = complete;
            access.duration = started.elapsed();
            telemetry.count_bytes(access.received, sent);
            telemetry::in_one_write(|| {
                audit.iter().for_each(AuditLine::log);
                access.log();
            });
            // Until here the body was part of the request.
            drop(span);
        };
        let grounds = Grounds::of(self.proof.take(), self.download.take());
        reply.map(|body| body.ending(Box::new(ending)).resting_on(grounds))
    }

    /// Logs a failure once, with its whole chain, and notes it for the audit line when it is a decision.
    fn failed(&mut self, error: &Error) {
        match error {
            Error::Denied(denial) => self.denied(denial),
            Error::Unauthorized { message, error, .. } => {
                let code = error.map_or("unauthorized", super::error::ChallengeError::as_str);
                self.decided("deny", Reason::new(code, message.as_str()), None);
            }
            Error::Unavailable { source, .. } => {
                let reason = Reason::new("unavailable", source.to_string());
                self.decided("fail", reason, None);
            }
            Error::Panicked => {
                let reason = Reason::new("panic", "the request's code panicked");
                self.decided("fail", reason, None);
            }
            Error::OtherSite { message, .. } => self.refused("other-site", message),
            Error::Crowded => {
                self.decided("deny", Reason::new("crowded", error.to_string()), None);
            }
            Error::Limited { source, .. } => {
                let reason = Reason::new("upstream-limited", source.to_string());
                self.decided("fail", reason, None);
            }
            Error::Registry(error) => match &**error {
                RegistryError::Denied(denial) => self.denied(denial),
                RegistryError::Held { reason, .. } => {
                    self.decided("hold", Reason::new("held", reason.as_str()), None);
                }
                // The decision was made before; what happened after it is not the audit's.
                _ => {}
            },
            Error::Route(_) => {}
        }
        log(error);
    }
}

impl Drop for Exchange {
    /// The client left before there was a response.
    fn drop(&mut self) {
        if let Some(audit) = self.audit.take() {
            audit.log();
        }
        if let Some(mut access) = self.access.take() {
            access.received = self.received.load(Ordering::Relaxed);
            access.duration = self.started.elapsed();
            self.telemetry.count_request(
                access.operation,
                &access.method,
                access.status,
                access.duration,
            );
            telemetry::describe(&self.span, &access);
            self.telemetry.count_bytes(access.received, 0);
            access.log();
        }
    }
}

/// What answers a request that did not fail.
#[derive(Debug)]
pub enum Done {
    /// The registry's outcome.
    Outcome(gantry_registry::Outcome),
    /// `OPTIONS`.
    Options(&'static str),
    /// An answer outside `/v2/`.
    Plain(Box<Reply>),
}

fn log(error: &Error) {
    use std::error::Error as _;
    if let Error::Registry(error) = error
        && let Some(failure) = error.upstream()
    {
        let causes = gantry_upstream::causes(&*failure.source);
        tracing::warn!(
            mirror.name = failure.mirror,
            upstream.fault = failure.fault.as_str(),
            config.key = failure.setting,
            error = causes,
            "an upstream failed"
        );
        return;
    }
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        chain.push_str(": ");
        chain.push_str(&cause.to_string());
        source = cause.source();
    }
    let (code, chain) = (error.answer().code, chain.as_str());
    match error.answer().level {
        tracing::Level::ERROR => tracing::error!(error.code = code, error = chain, "failed"),
        tracing::Level::WARN => tracing::warn!(error.code = code, error = chain, "failed"),
        _ => tracing::debug!(error.code = code, error = chain, "refused"),
    }
}

/// 128 random bits in hex. A client's own id is not taken over: it could be another request's.
fn request_id() -> Arc<str> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut id = String::with_capacity(2 * ID_BYTES);
    for byte in random_bits() {
        for nibble in [byte >> 4, byte & 0x0f] {
            id.extend(
                DIGITS
                    .get(usize::from(nibble))
                    .map(|digit| char::from(*digit)),
            );
        }
    }
    id.into()
}

const ID_BYTES: usize = 16;
/// A call of the system's generator costs as much as twenty ids take of it.
const IDS_AT_ONCE: usize = 32;

thread_local! {
    /// Random bits that no id has had yet, and how many bytes of them are left.
    static UNUSED: RefCell<([u8; ID_BYTES * IDS_AT_ONCE], usize)> =
        const { RefCell::new(([0; ID_BYTES * IDS_AT_ONCE], 0)) };
}

fn random_bits() -> [u8; ID_BYTES] {
    UNUSED.with_borrow_mut(|(bits, left)| {
        if *left < ID_BYTES {
            if aws_lc_rs::rand::fill(bits).is_err() {
                tracing::error!("no randomness for request ids");
            }
            *left = bits.len();
        }
        *left -= ID_BYTES;
        let unused = bits.get(*left..).and_then(<[u8]>::first_chunk);
        unused.copied().unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_128_bits_in_hex_and_never_the_same() {
        let ids: Vec<Arc<str>> = (0..1000).map(|_| request_id()).collect();
        let elsewhere: Vec<Arc<str>> = std::thread::spawn(|| {
            let ids = (0..1000).map(|_| request_id());
            ids.collect()
        })
        .join()
        .unwrap();
        let all: HashSet<&str> = ids.iter().chain(&elsewhere).map(|id| &**id).collect();
        assert_eq!(all.len(), 2000);
        let is_id = |id: &&str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(all.iter().all(is_id), "{all:?}");
    }
}
