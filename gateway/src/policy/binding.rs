//! A plugin as the configuration binds it: which repositories and changes it sees, what its failure means, whether it is heard.

use std::{collections::BTreeSet, sync::Arc};

use gantry_model::{AdmissionRequest, Change, Requester, glob::Glob};
use gantry_plugin_host::{
    AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest,
    CallError, Hook, Plugin,
};
use tracing::Instrument as _;

use crate::{
    config::{Mode, OnError},
    telemetry::{self, Asked, PluginMeter},
};

/// A plugin in its place in the chain.
#[derive(Debug)]
pub struct Binding {
    /// The loaded component.
    pub plugin: Plugin,
    /// Canonical repository names it sees.
    pub repositories: Vec<Glob>,
    /// Changes it is asked about, when it exports `admission`.
    pub changes: BTreeSet<Change>,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What its failure means.
    pub on_error: OnError,
    /// Digest of component and configuration: part of every cache key, so that a reload empties what it must.
    pub fingerprint: Arc<str>,
    /// Counts its calls.
    pub meter: PluginMeter,
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

    /// Whether a failure ends the chain.
    pub(crate) fn failure_denies(&self) -> bool {
        self.mode == Mode::Enforce && self.on_error != OnError::Skip
    }

    /// Asks the plugin; the call is counted, and a failure is in the audit.
    pub(crate) async fn authenticate(
        &self,
        request: &AuthenticateRequest,
    ) -> Result<AuthenticateAnswer, CallError> {
        let call = self.plugin.authenticate(request);
        self.ask(Hook::Authenticate, None, call, |answer| match answer {
            AuthenticateAnswer::Authenticated(_) => Asked::Authenticated,
            AuthenticateAnswer::NotMine => Asked::NotMine,
            AuthenticateAnswer::Rejected(_) => Asked::Rejected,
        })
        .await
    }

    /// Asks the plugin; the call is counted, and a failure is in the audit.
    pub(crate) async fn authorize(
        &self,
        request: &AuthorizeRequest,
    ) -> Result<AuthorizeAnswer, CallError> {
        let requester = Some(&request.requester);
        let call = self.plugin.authorize(request);
        self.ask(Hook::Authorize, requester, call, authorized).await
    }

    /// An authorizer's answer was in the cache.
    pub(crate) fn authorized_by_cache(&self, answer: &AuthorizeAnswer) {
        self.meter.cached(Hook::Authorize, authorized(answer));
    }

    /// Asks the plugin; the call is counted, and a failure is in the audit.
    pub(crate) async fn admit(&self, request: &AdmissionRequest) -> Result<AdmitAnswer, CallError> {
        let requester = Some(&request.requester);
        let call = self.plugin.admit(request);
        self.ask(Hook::Admit, requester, call, admitted).await
    }

    /// An admission's answer was in the cache.
    pub(crate) fn admitted_by_cache(&self, answer: &AdmitAnswer) {
        self.meter.cached(Hook::Admit, admitted(answer));
    }

    async fn ask<A>(
        &self,
        hook: Hook,
        requester: Option<&Requester>,
        call: impl Future<Output = Result<A, CallError>>,
        outcome: impl FnOnce(&A) -> Asked,
    ) -> Result<A, CallError> {
        let span = tracing::debug_span!("plugin", plugin.name = &**self.name(), hook = ?hook);
        let answer = self
            .meter
            .measured(hook, call.instrument(span), outcome)
            .await;
        if let Err(error) = &answer {
            telemetry::audit_failure(error, hook, requester, self.failure_denies());
        }
        answer
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
