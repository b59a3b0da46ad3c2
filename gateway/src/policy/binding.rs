//! A plugin as the configuration binds it: which repositories and changes it sees, what its failure means, whether it is heard, and how
//! it does.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gantry_model::{AdmissionRequest, Change, Requester, glob::Glob};
use gantry_plugin_host::{
    AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest,
    CallError, Failure, Hook, Plugin, Redaction,
};
use gantry_registry::Clock as _;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::{
    auth::ids::IdPattern,
    clock::SystemClock,
    config::{Mode, OnError, PluginFrom},
    telemetry::{self, Asked, PluginMeter},
};

/// So many failures of the guest's own…
const TRIPS_AFTER: usize = 5;
/// …within so long make a binding trip.
const TRIPS_WITHIN: Duration = Duration::from_secs(10);

/// A plugin in its place in the chain.
#[derive(Debug)]
pub struct Binding {
    /// The loaded component. Called through this binding only, so that its failures are seen.
    pub plugin: Plugin,
    /// How its calls go.
    pub health: Arc<Health>,
    /// The generation that loaded it.
    pub generation: u64,
    /// Where the component is from.
    pub from: PluginFrom,
    /// Canonical repository names it sees.
    pub repositories: Vec<Glob>,
    /// Ids of principals that it may make, when it exports `authenticator`.
    pub ids: Vec<IdPattern>,
    /// Changes it is asked about, when it exports `admission`.
    pub changes: BTreeSet<Change>,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What its failure means.
    pub on_error: OnError,
    /// How long a serve waits where it answers `hold`.
    pub hold_for: Duration,
    /// Digest of component and configuration: part of every cache key, so that a reload empties what it must.
    pub fingerprint: Arc<str>,
    /// Counts its calls.
    pub meter: PluginMeter,
    /// What its failures may not say.
    pub redaction: Redaction,
}

impl Binding {
    /// The binding's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        self.plugin.name()
    }

    /// Whether the binding sees this repository.
    #[must_use]
    pub fn sees(&self, repository: &str) -> bool {
        self.repositories
            .iter()
            .any(|glob| glob.matches(repository))
    }

    /// Whether the binding is asked about this change in this repository.
    #[must_use]
    pub fn asks(&self, repository: &str, change: Change) -> bool {
        self.changes.contains(&change) && self.sees(repository)
    }

    /// Whether it may make a principal of this id.
    #[must_use]
    pub fn makes(&self, id: &str) -> bool {
        self.ids.iter().any(|pattern| pattern.allows(id))
    }

    /// Asks who a credential belongs to. An id that is not the binding's to make is a failure.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn authenticate(
        &self,
        request: &AuthenticateRequest,
    ) -> Result<AuthenticateAnswer, CallError> {
        let call = Box::pin(async {
            let answer = self.plugin.authenticate(request).await?;
            match &answer {
                AuthenticateAnswer::Authenticated(identity)
                    if !self.makes(&identity.principal.id) =>
                {
                    Err(self.foreign_id(&identity.principal.id))
                }
                _ => Ok(answer),
            }
        });
        self.ask(Hook::Authenticate, None, call, |answer| match answer {
            AuthenticateAnswer::Authenticated(_) => Asked::Authenticated,
            AuthenticateAnswer::NotMine => Asked::NotMine,
            AuthenticateAnswer::Rejected(_) => Asked::Rejected,
        })
        .await
    }

    fn foreign_id(&self, id: &str) -> CallError {
        let mut allowed: Vec<String> = self.ids.iter().map(|it| format!("\"{it}\"")).collect();
        let is = allowed.join(", ");
        let beginning = id.split_once(':').map_or(id, |(kind, _)| kind);
        allowed.push(format!("\"{beginning}:*\""));
        let needed = allowed.join(", ");
        CallError {
            plugin: Arc::clone(self.name()),
            failure: Failure::Contract,
            detail: format!(
                "answered the principal {id}; its binding allows `ids: [{is}]`: if that principal is its own to make, write `ids: [{needed}]`"
            ),
        }
    }

    /// Asks which generation a principal has now; `None` when it is gone.
    ///
    /// # Errors
    /// [`CallError`]; never that it is gone.
    pub async fn current(&self, id: &str) -> Result<Option<Arc<str>>, CallError> {
        let call = Box::pin(self.plugin.current(id));
        self.ask(Hook::Principals, None, call, |_| Asked::Done)
            .await
    }

    /// Asks whether a principal may do something.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn authorize(
        &self,
        request: &AuthorizeRequest,
    ) -> Result<AuthorizeAnswer, CallError> {
        let requester = Some(&request.requester);
        let call = Box::pin(self.plugin.authorize(request));
        self.ask(Hook::Authorize, requester, call, authorized).await
    }

    /// Asks whether content may enter, change or leave.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn admit(&self, request: &AdmissionRequest) -> Result<AdmitAnswer, CallError> {
        let requester = Some(&request.requester);
        let call = Box::pin(self.plugin.admit(request));
        self.ask(Hook::Admit, requester, call, admitted).await
    }

    /// An authorizer's answer was in the cache.
    pub(crate) fn authorized_by_cache(&self, answer: &AuthorizeAnswer) {
        self.meter.cached(Hook::Authorize, authorized(answer));
    }

    /// An admission's answer was in the cache.
    pub(crate) fn admitted_by_cache(&self, answer: &AdmitAnswer) {
        self.meter.cached(Hook::Admit, admitted(answer));
    }

    /// Every call goes through here: it is counted, it is part of the trace, and a failure is in the audit.
    async fn ask<A>(
        &self,
        hook: Hook,
        requester: Option<&Requester>,
        call: impl Future<Output = Result<A, CallError>>,
        outcome: impl FnOnce(&A) -> Asked,
    ) -> Result<A, CallError> {
        let span = tracing::debug_span!("plugin", plugin.name = &**self.name(), hook = ?hook);
        let call = call.instrument(span);
        let answer = self.meter.measured(hook, call, outcome).await;
        let answer = answer.map_err(|error| CallError {
            detail: self.redaction.clean(error.detail),
            ..error
        });
        if let Err(error) = &answer {
            telemetry::audit_failure(error, hook, requester, self.failure_denies());
        }
        self.health.note(answer)
    }

    /// Whether a failure ends the chain.
    pub(crate) fn failure_denies(&self) -> bool {
        self.mode == Mode::Enforce && self.on_error != OnError::Skip
    }
}

/// A binding failed so often that the one before should take its place.
#[derive(Clone, Debug)]
pub struct Trip {
    /// Which.
    pub plugin: Arc<str>,
    /// Whose calls failed: by now another may run under the name.
    pub health: Arc<Health>,
    /// The last failure.
    pub error: String,
}

/// How a loaded plugin's calls go.
#[derive(Debug)]
pub struct Health {
    plugin: Arc<str>,
    trips: mpsc::Sender<Trip>,
    /// Held for single operations, never over an await.
    failures: Mutex<Failures>,
}

#[derive(Debug, Default)]
struct Failures {
    recent: VecDeque<Instant>,
    last: Option<LastError>,
}

/// The newest failure.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LastError {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// How and why; for operators.
    pub text: String,
}

impl Health {
    /// Nothing failed yet. Trips are told to `trips`.
    #[must_use]
    pub fn new(plugin: Arc<str>, trips: mpsc::Sender<Trip>) -> Self {
        Self {
            plugin,
            trips,
            failures: Mutex::default(),
        }
    }

    /// The newest failure.
    #[must_use]
    pub fn last_error(&self) -> Option<LastError> {
        self.failures().last.clone()
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(self: &Arc<Self>, answer: Result<T, CallError>) -> Result<T, CallError> {
        if let Err(error) = &answer
            && self.failed(error, Instant::now())
        {
            let trip = Trip {
                plugin: Arc::clone(&self.plugin),
                health: Arc::clone(self),
                error: format!("{}: {}", error.failure.as_str(), error.detail),
            };
            if self.trips.try_send(trip).is_err() {
                tracing::debug!(plugin.name = &*self.plugin, "too many trips at once");
            }
        }
        answer
    }

    /// Records a failure, and says whether it is one too many. Being late or out of place is not the guest's code being wrong: load makes
    /// any plugin late.
    fn failed(&self, error: &CallError, now: Instant) -> bool {
        let mut failures = self.failures();
        failures.last = Some(LastError {
            at_ms: SystemClock.now_ms(),
            text: format!("{}: {}", error.failure.as_str(), error.detail),
        });
        if !matches!(
            error.failure,
            Failure::Trap | Failure::Memory | Failure::Contract
        ) {
            return false;
        }
        let recent = &mut failures.recent;
        recent.push_back(now);
        while recent
            .front()
            .is_some_and(|at| now.duration_since(*at) > TRIPS_WITHIN)
        {
            recent.pop_front();
        }
        let trips = recent.len() >= TRIPS_AFTER;
        if trips {
            recent.clear();
        }
        trips
    }
}

fn authorized(answer: &AuthorizeAnswer) -> Asked {
    match answer {
        AuthorizeAnswer::Allow(..) => Asked::Allowed,
        AuthorizeAnswer::Deny(..) => Asked::Denied,
        AuthorizeAnswer::Abstain(_) => Asked::Abstained,
    }
}

fn admitted(answer: &AdmitAnswer) -> Asked {
    match answer {
        AdmitAnswer::Accept { .. } => Asked::Allowed,
        AdmitAnswer::Reject(_) => Asked::Rejected,
        AdmitAnswer::Hold { .. } => Asked::Held,
        AdmitAnswer::Abstain => Asked::Abstained,
    }
}

/// The changes a binding is asked about when it does not list any: those of hosted content. Fills and serves must be listed.
#[must_use]
pub fn default_changes() -> BTreeSet<Change> {
    Change::ALL
        .into_iter()
        .filter(|change| !change.is_serve() && *change != Change::Fill)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(failure: Failure) -> CallError {
        CallError {
            plugin: "p".into(),
            failure,
            detail: "why".to_owned(),
        }
    }

    fn health() -> (Health, mpsc::Receiver<Trip>) {
        let (trips, tripped) = mpsc::channel(4);
        (Health::new("p".into(), trips), tripped)
    }

    #[test]
    fn five_traps_within_ten_seconds_are_one_too_many() {
        let (health, _tripped) = health();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let trap = failure(Failure::Trap);
        for second in [0, 1, 2, 3] {
            assert!(!health.failed(&trap, at(second)));
        }
        assert!(health.failed(&trap, at(4)));
        assert!(!health.failed(&trap, at(5)), "it counts from the start");
    }

    #[test]
    fn slow_trickles_and_late_answers_do_not_trip() {
        let (health, _tripped) = health();
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        for step in 0..40 {
            assert!(!health.failed(&failure(Failure::Trap), at(step * 3)));
        }
        for late in [
            Failure::Deadline,
            Failure::Saturated,
            Failure::Plugin,
            Failure::HostQuota,
        ] {
            for _ in 0..20 {
                assert!(!health.failed(&failure(late), at(200)));
            }
        }
        assert_eq!(health.last_error().unwrap().text, "host_quota: why");
    }

    #[test]
    fn a_trip_names_the_plugin_and_why() {
        let (health, mut tripped) = health();
        let health = Arc::new(health);
        for _ in 0..5 {
            let answer: Result<(), _> = health.note(Err(failure(Failure::Contract)));
            answer.unwrap_err();
        }
        let trip = tripped.try_recv().unwrap();
        assert_eq!((&*trip.plugin, &*trip.error), ("p", "contract: why"));
        assert!(Arc::ptr_eq(&trip.health, &health));
        assert!(tripped.try_recv().is_err());
    }
}
