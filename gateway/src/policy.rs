//! (Principal, Operation) → decision → permit. Authorizer plugins in order: any deny wins, all abstain = denied.
//!
//! Owns the chain and what a refusal means to the client. Knows nothing of the wire: `http` renders. The gateway has no rule of its
//! own beyond the ping: everything else is a plugin's word, cut to what the credential allows and, in `confirm`, to what the upstream of
//! a caller-authorized mirror does.

pub mod binding;
mod confirm;
pub(crate) mod decisions;
pub(crate) mod downloads;
pub(crate) mod parents;
pub(crate) mod shadow;
pub(crate) mod unenforced;

use std::{slice::from_ref, sync::Arc};

use gantry_model::{
    AttributeValue, Decision, Denial, DenialCode, Grant, Operation, OperationKind, Permit, Reason,
    Repository, Requester, Scope,
};
use gantry_plugin_host::{AuthorizeAnswer, AuthorizeRequest, CallError};

use self::{
    binding::Binding,
    decisions::{About, Cached, Decisions, Given, Question},
    shadow::Shadows,
    unenforced::Unenforced,
};
use crate::{
    app::Generation,
    auth::Identified,
    callers::Callers,
    config::Mode,
    http::error::{ChallengeError, Error},
};

/// The authorizer bindings and the decision cache.
#[derive(Debug)]
pub struct Policy {
    /// Enforced and audited, in order.
    chain: Vec<Arc<Binding>>,
    /// Beside the chain.
    beside: Vec<Arc<Binding>>,
    decisions: Arc<Decisions<AuthorizeAnswer>>,
    shadows: Shadows,
    /// Whose upstreams have a say.
    callers: Arc<Callers>,
}

tokio::task_local! {
    /// Set while an authorizer runs: what it reads of the registry must not ask authorizers again.
    static AUTHORIZING: ();
}

/// What is asked of the authorizers.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub requester: &'a Requester,
    /// What kind of operation.
    pub operation: OperationKind,
    /// What is asked, on canonical names.
    pub scopes: Vec<Scope>,
    /// The tag or digest concerned.
    pub reference: Option<String>,
    /// The repository, when it is one.
    pub repository: Option<&'a Repository>,
}

impl Policy {
    /// A chain in the order of the configuration. Kept answers outlive it: their keys name the plugin that gave them.
    #[must_use]
    pub(crate) fn new(
        authorizers: Vec<Arc<Binding>>,
        decisions: Arc<Decisions<AuthorizeAnswer>>,
        shadows: Shadows,
        callers: Arc<Callers>,
    ) -> Self {
        let (beside, chain) = authorizers
            .into_iter()
            .partition(|binding| binding.mode == Mode::Shadow);
        Self {
            chain,
            beside,
            decisions,
            shadows,
            callers,
        }
    }

    /// Asks the chain.
    ///
    /// # Errors
    /// The first failure that its binding does not skip.
    pub async fn decide(&self, request: &Request<'_>) -> Result<Decision, CallError> {
        let mut enforced = Enforced::default();
        let mut unenforced = Vec::new();
        for binding in concerned(&self.chain, request) {
            if binding.mode == Mode::Audit {
                unenforced.push((binding, ask(&self.decisions, binding, request).await));
            } else if enforced.is_open() {
                enforced.hear(binding, ask(&self.decisions, binding, request).await);
            }
        }
        let decision = enforced.decision(&request.scopes);
        for (binding, answer) in unenforced {
            Unenforced::authorizer(binding, &answer, &decision).record(request.requester);
        }
        self.ask_shadows(request, &decision);
        decision
    }

    /// Has the shadows asked the same, later.
    fn ask_shadows(&self, request: &Request<'_>, enforced: &Result<Decision, CallError>) {
        for binding in concerned(&self.beside, request) {
            let (binding, decisions) = (Arc::clone(binding), Arc::clone(&self.decisions));
            let (asked, enforced) = (asked(request), enforced.clone());
            self.shadows.later(async move {
                let answer = match known(&decisions, &binding, &asked.requester, question(&asked)) {
                    Some(answer) => Ok(answer),
                    None => ask_now(&decisions, &binding, &asked).await,
                };
                Unenforced::authorizer(&binding, &answer, &enforced).record(&asked.requester);
            });
        }
    }

    /// Whether the requester may pull from a repository, for reads that a plugin makes in its name. An authorizer's own reads are
    /// refused: they would ask authorizers again.
    ///
    /// # Errors
    /// As [`authorize`].
    pub async fn may_read(&self, requester: &Requester, repository: &str) -> Result<bool, Error> {
        if AUTHORIZING.try_with(|()| ()).is_ok() {
            return Ok(false);
        }
        let scope = Scope {
            kind: "repository".to_owned(),
            name: repository.to_owned(),
            actions: ["pull".to_owned()].into(),
        };
        let request = Request {
            requester,
            operation: OperationKind::PullManifest,
            scopes: vec![scope.clone()],
            reference: None,
            repository: None,
        };
        match self.decide(&request).await? {
            Decision::Allow(grant) if Scope::all_covered(from_ref(&scope), &grant.granted) => {
                self.is_confirmed(requester, scope).await
            }
            Decision::Allow(_) | Decision::Deny(_) | Decision::Abstain => Ok(false),
        }
    }
}

/// What the enforced bindings have said so far.
#[derive(Debug, Default)]
struct Enforced {
    allowed: Vec<Arc<AuthorizeAnswer>>,
    /// What ended the chain.
    end: Option<Result<Decision, CallError>>,
}

impl Enforced {
    fn is_open(&self) -> bool {
        self.end.is_none()
    }

    fn hear(&mut self, binding: &Binding, answer: Result<Arc<AuthorizeAnswer>, CallError>) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) if binding.failure_denies() => {
                self.end = Some(Err(error));
                return;
            }
            Err(_skipped) => return,
        };
        match &*answer {
            AuthorizeAnswer::Abstain(_) => {}
            AuthorizeAnswer::Deny(denial, _) => {
                self.end = Some(Ok(Decision::Deny(denial.clone())));
            }
            AuthorizeAnswer::Allow(..) => self.allowed.push(answer),
        }
    }

    /// The first that allowed says why; what is granted is what all of them grant together, of what was asked.
    fn decision(self, asked: &[Scope]) -> Result<Decision, CallError> {
        if let Some(end) = self.end {
            return end;
        }
        let grants = self.allowed.iter().filter_map(|answer| match &**answer {
            AuthorizeAnswer::Allow(grant, _) => Some(grant),
            AuthorizeAnswer::Deny(..) | AuthorizeAnswer::Abstain(_) => None,
        });
        let Some(first) = grants.clone().next() else {
            return Ok(Decision::Abstain);
        };
        let granted = match self.allowed.len() {
            1 => Scope::intersect(asked, &first.granted),
            _ => Scope::intersect(asked, &merged(grants)),
        };
        Ok(Decision::Allow(Grant {
            granted,
            reason: first.reason.clone(),
            plugin: first.plugin.clone(),
        }))
    }
}

/// The request as authorizers see it.
fn asked(request: &Request<'_>) -> AuthorizeRequest {
    let mirror = request.repository.and_then(Repository::mirror);
    AuthorizeRequest {
        requester: request.requester.clone(),
        operation: request.operation,
        scopes: request.scopes.clone(),
        reference: request.reference.clone(),
        attributes: mirror
            .map(|mirror| ("mirror".to_owned(), AttributeValue::Text(mirror.to_owned())))
            .into_iter()
            .collect(),
    }
}

/// Asks one binding, or takes an answer that it allowed to be reused.
async fn ask(
    decisions: &Decisions<AuthorizeAnswer>,
    binding: &Binding,
    request: &Request<'_>,
) -> Result<Arc<AuthorizeAnswer>, CallError> {
    let question = Question::Authorize {
        operation: request.operation,
        scopes: &request.scopes,
        reference: request.reference.as_deref(),
    };
    if let Some(answer) = known(decisions, binding, request.requester, question) {
        return Ok(answer);
    }
    let asked = asked(request);
    // Boxed: most answers are known, and whoever waits for one need not keep room for a call.
    Box::pin(ask_now(decisions, binding, &asked)).await
}

/// An answer that may be used instead of asking.
fn known(
    decisions: &Decisions<AuthorizeAnswer>,
    binding: &Binding,
    requester: &Requester,
    question: Question<'_>,
) -> Option<Arc<AuthorizeAnswer>> {
    let key = decisions.key(
        &binding.fingerprint,
        &requester.principal,
        &requester.client,
        question,
    );
    let Some(Cached::Fresh(answer)) = decisions.get(&key, About::Configuration) else {
        return None;
    };
    binding.authorized_by_cache(&answer);
    Some(answer)
}

/// Asks one binding, and keeps what it says as long as it says.
async fn ask_now(
    decisions: &Decisions<AuthorizeAnswer>,
    binding: &Binding,
    asked: &AuthorizeRequest,
) -> Result<Arc<AuthorizeAnswer>, CallError> {
    let answer = AUTHORIZING.scope((), binding.authorize(asked)).await?;
    let answer = Arc::new(answer);
    if let AuthorizeAnswer::Allow(_, hint) | AuthorizeAnswer::Deny(_, hint) = &*answer {
        let requester = &asked.requester;
        let key = decisions.key(
            &binding.fingerprint,
            &requester.principal,
            &requester.client,
            question(asked),
        );
        let given = Given {
            answer: Arc::clone(&answer),
            hint: within_identity(*hint, requester),
            about: About::Configuration,
        };
        decisions.keep(key, &requester.client, given);
    }
    Ok(answer)
}

fn question(asked: &AuthorizeRequest) -> Question<'_> {
    Question::Authorize {
        operation: asked.operation,
        scopes: &asked.scopes,
        reference: asked.reference.as_deref(),
    }
}

/// The bindings that see something of what is asked.
fn concerned<'a>(
    bindings: &'a [Arc<Binding>],
    request: &Request<'_>,
) -> impl Iterator<Item = &'a Arc<Binding>> {
    bindings
        .iter()
        .filter(|binding| request.scopes.iter().any(|scope| concerns(binding, scope)))
}

/// A decision never outlives the identity it was made for.
fn within_identity(
    hint: gantry_plugin_host::CacheHint,
    requester: &Requester,
) -> gantry_plugin_host::CacheHint {
    use gantry_registry::Clock as _;
    let Some(end) = requester.principal.expires_at_ms else {
        return hint;
    };
    let left =
        std::time::Duration::from_millis(end.saturating_sub(crate::clock::SystemClock.now_ms()));
    gantry_plugin_host::CacheHint {
        ttl: hint.ttl.min(left),
        stale_if_error: hint.stale_if_error.min(left),
        ..hint
    }
}

/// A binding is asked about repositories it sees, and about everything that has no repository.
fn concerns(binding: &Binding, scope: &Scope) -> bool {
    scope.kind != "repository" || binding.sees(&scope.name)
}

/// What several grants give together.
fn merged<'a>(grants: impl Iterator<Item = &'a Grant>) -> Vec<Scope> {
    let mut granted: Vec<Scope> = Vec::new();
    for scope in grants.flat_map(|grant| &grant.granted) {
        let same = |have: &&mut Scope| have.kind == scope.kind && have.name == scope.name;
        match granted.iter_mut().find(same) {
            Some(have) => have.actions.extend(scope.actions.iter().cloned()),
            None => granted.push(scope.clone()),
        }
    }
    granted
}

/// Decides, and makes the permit.
///
/// # Errors
/// [`Error::Unauthorized`] when an anonymous caller or a too narrow token could do better with another credential;
/// [`Error::Denied`] when no credential helps; [`Error::Unavailable`] when a hook failed.
pub async fn authorize(
    generation: &Generation,
    requester: Requester,
    identified: &Identified,
    operation: Operation,
) -> Result<Permit, Error> {
    if matches!(operation, Operation::Ping) {
        return permit_ping(requester, identified, generation.is_open);
    }
    let mut scopes = operation.required_scopes();
    if let Some(limits) = &identified.at_most
        && !Scope::all_covered(&scopes, limits)
    {
        return Err(too_narrow(spelled_scopes(&operation), identified));
    }
    scopes.extend(operation.optional_scope());
    let request = Request {
        requester: &requester,
        operation: operation.kind(),
        scopes,
        reference: operation.reference(),
        repository: operation.repository(),
    };
    let mut grant = match generation.policy.decide(&request).await? {
        Decision::Allow(grant) => grant,
        Decision::Deny(denial) => return Err(refused(&operation, identified, denial)),
        Decision::Abstain => return Err(refused(&operation, identified, nobody_allowed())),
    };
    if let Some(limits) = &identified.at_most {
        grant.granted = Scope::intersect(&grant.granted, limits);
    }
    let policy = &generation.policy;
    let requester = match policy.callers.are_concerned_by(identified) {
        true => Box::pin(policy.confirm(identified, &operation, requester, &mut grant)).await?,
        false => requester,
    };
    // The operation is gone into the permit; only somebody anonymous is told what to ask for.
    let spelled = match identified.principal.is_anonymous() {
        true => spelled_scopes(&operation),
        false => Vec::new(),
    };
    Permit::new(operation, requester, grant)
        .map_err(|denial| refused_with(spelled, identified, *denial))
}

/// Decides about the admin API.
///
/// # Errors
/// As [`authorize`].
pub async fn authorize_admin(
    generation: &Generation,
    requester: &Requester,
    identified: &Identified,
) -> Result<Reason, Error> {
    let scopes = vec![Scope::admin()];
    if let Some(limits) = &identified.at_most
        && !Scope::all_covered(&scopes, limits)
    {
        return Err(too_narrow(scopes, identified));
    }
    let request = Request {
        requester,
        operation: OperationKind::Admin,
        scopes: scopes.clone(),
        reference: None,
        repository: None,
    };
    let denial = match generation.policy.decide(&request).await? {
        Decision::Allow(grant) if Scope::all_covered(&scopes, &grant.granted) => {
            return Ok(grant.reason);
        }
        Decision::Allow(_) | Decision::Abstain => nobody_allowed(),
        Decision::Deny(denial) => denial,
    };
    Err(refused_with(scopes, identified, denial))
}

/// `/v2/` answers 401 to a client that shows nothing, also where anonymous pulls are allowed: clients take their challenge from it. Where
/// no credential can be known there is nothing to challenge for.
fn permit_ping(
    requester: Requester,
    identified: &Identified,
    is_open: bool,
) -> Result<Permit, Error> {
    if !is_open && identified.principal.is_anonymous() && !identified.by_token {
        return Err(Error::Unauthorized {
            scopes: Vec::new(),
            error: None,
            message: "authentication required".to_owned(),
        });
    }
    let grant = Grant {
        granted: Vec::new(),
        reason: Reason::new(
            "ping",
            "every client with a known credential may ask, and every client where none can be known",
        ),
        plugin: None,
    };
    Permit::new(Operation::Ping, requester, grant).map_err(Error::Denied)
}

fn nobody_allowed() -> Denial {
    let mut denial = Denial::new(
        DenialCode::Denied,
        "no-rule",
        "requested access to the resource is denied",
    );
    denial.reason.text = "no authorizer allows this".into();
    denial
}

fn refused(operation: &Operation, identified: &Identified, denial: Denial) -> Error {
    refused_with(spelled_scopes(operation), identified, denial)
}

/// Somebody anonymous is invited to show a credential; somebody known is refused.
fn refused_with(scopes: Vec<Scope>, identified: &Identified, denial: Denial) -> Error {
    if identified.principal.is_anonymous() {
        let error = identified
            .by_token
            .then_some(ChallengeError::InsufficientScope);
        return Error::Unauthorized {
            scopes,
            error,
            message: denial.message,
        };
    }
    Error::Denied(Box::new(denial))
}

fn too_narrow(scopes: Vec<Scope>, identified: &Identified) -> Error {
    let message = "the credential does not cover this operation".to_owned();
    if identified.by_token {
        let error = Some(ChallengeError::InsufficientScope);
        return Error::Unauthorized {
            scopes,
            error,
            message,
        };
    }
    Error::Denied(Box::new(Denial::new(
        DenialCode::Denied,
        "credential-scope",
        message,
    )))
}

/// What a token must hold, in the client's spelling; a mount also asks for its source.
fn spelled_scopes(operation: &Operation) -> Vec<Scope> {
    let rename = |mut scope: Scope, repository: &Repository| {
        repository.spelled.as_str().clone_into(&mut scope.name);
        scope
    };
    let mut scopes: Vec<Scope> = match operation.repository() {
        Some(repository) => operation
            .required_scopes()
            .into_iter()
            .map(|scope| rename(scope, repository))
            .collect(),
        None => operation.required_scopes(),
    };
    if let (
        Some(scope),
        Operation::MountBlob {
            from: Some(from), ..
        },
    ) = (operation.optional_scope(), operation)
    {
        scopes.push(rename(scope, from));
    }
    scopes
}
