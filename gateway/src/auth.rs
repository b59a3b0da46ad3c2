//! Credential → authenticator plugins in order → principal; and our own tokens.
//!
//! No credential is anonymous; a credential that nobody claims is refused, never anonymous; a failed authenticator is 503.

pub mod ids;
pub(crate) mod keyed;
pub(crate) mod logins;
pub(crate) mod revocation;
pub mod token;
pub(crate) mod verified;

use std::sync::Arc;

use gantry_model::{
    Cause, Client, Decision, Denial, DenialCode, OperationKind, Principal, Requester, Scope,
};
use gantry_plugin_host::{AuthenticateAnswer, AuthenticateRequest, Credential, Identity};
use gantry_registry::Clock as _;

use self::{
    logins::{Attempt, Logins},
    revocation::{Proof, Revocation},
    token::{TokenError, Tokens},
    verified::{Verified, VerifiedCredentials},
};
use crate::{
    app::Generation,
    callers::{ShownFor, Standing, UpstreamCaller},
    clock::SystemClock,
    http::error::{ChallengeError, Error},
    policy::{Request, binding::Binding},
    telemetry,
};

/// Authenticator bindings, the verified-credential cache and the token keys.
#[derive(Debug)]
pub struct Authentication {
    authenticators: Vec<Arc<Binding>>,
    verified: VerifiedCredentials,
    logins: Logins,
    revocation: Arc<Revocation>,
    /// Issues and verifies our tokens.
    pub tokens: Tokens,
}

/// Who asks, and what the credential allows at most.
#[derive(Clone, Debug)]
pub struct Identified {
    /// The principal.
    pub principal: Arc<Principal>,
    /// What the credential itself allows at most, on canonical names; `None` = no limit of its own.
    pub at_most: Option<Arc<[Scope]>>,
    /// Whether a token of ours was shown: then a lack of scope is answered `insufficient_scope`.
    pub by_token: bool,
    /// When that token ends, in seconds since 1970; a token got with it ends no later.
    pub token_ends: Option<u64>,
    /// What the principal was proved with; `None` = nobody was.
    pub proof: Option<Arc<Proof>>,
    /// The upstream that vouches for the principal, when it is neither a plugin nor nobody.
    pub upstream: Option<Arc<UpstreamCaller>>,
}

impl Identified {
    /// Whose word about rights counts for the principal.
    pub(crate) fn standing(&self) -> Standing<'_> {
        match &self.upstream {
            Some(caller) => caller.standing(),
            None => Standing::Local,
        }
    }

    fn anonymous() -> Self {
        Self {
            principal: Arc::new(Principal::anonymous()),
            at_most: None,
            by_token: false,
            token_ends: None,
            proof: None,
            upstream: None,
        }
    }
}

impl Authentication {
    /// A chain in the order of the configuration, with what is remembered for it.
    #[must_use]
    pub(crate) fn new(
        authenticators: Vec<Arc<Binding>>,
        verified: VerifiedCredentials,
        logins: Logins,
        revocation: Arc<Revocation>,
        tokens: Tokens,
    ) -> Self {
        Self {
            authenticators,
            verified,
            logins,
            revocation,
            tokens,
        }
    }

    /// What became of principals.
    pub(crate) fn revocation(&self) -> &Arc<Revocation> {
        &self.revocation
    }

    /// The authenticators, in order.
    pub(crate) fn chain(&self) -> &[Arc<Binding>] {
        &self.authenticators
    }

    /// Who a credential was found to belong to a moment ago, if that still holds.
    async fn known(
        &self,
        client: &Client,
        credential: &Credential,
    ) -> Result<Option<Identified>, Error> {
        let Some(known) = self.verified.known(client, credential).await else {
            return Ok(None);
        };
        if self.stands(&known).await? {
            return Ok(Some(known));
        }
        self.verified.forget(client, credential).await;
        Ok(None)
    }

    /// Whether what was proved before still holds.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the authenticator cannot tell.
    async fn stands(&self, identified: &Identified) -> Result<bool, Error> {
        match &identified.proof {
            Some(proof) => Ok(self.revocation.stands(&self.authenticators, proof).await?),
            None => Ok(true),
        }
    }

    /// The public keys of our tokens, as a JWK set.
    pub(crate) fn published_keys(&self) -> String {
        self.tokens.published().to_owned()
    }

    /// Asks the chain about a credential, in order, until one claims it.
    async fn ask(&self, request: &AuthenticateRequest) -> Result<Option<Verified>, Error> {
        for binding in &self.authenticators {
            match binding.authenticate(request).await {
                Ok(AuthenticateAnswer::Authenticated(identity)) => {
                    return self.vouched(binding, identity).map(Some);
                }
                Ok(AuthenticateAnswer::NotMine) => {}
                Ok(AuthenticateAnswer::Rejected(denial))
                    if denial.code == DenialCode::TooManyRequests =>
                {
                    return Err(Error::Denied(Box::new(denial)));
                }
                Ok(AuthenticateAnswer::Rejected(denial)) => {
                    telemetry::audit_rejected(binding.name(), &denial);
                    return Err(bad_credential());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// What a credential other than a token of ours proves.
    fn vouched(&self, binding: &Binding, identity: Identity) -> Result<Verified, Error> {
        let principal = &identity.principal;
        if principal
            .expires_at_ms
            .is_some_and(|end| end <= SystemClock.now_ms())
        {
            let message = "the identity has ended";
            let denial = Denial::new(DenialCode::Unauthorized, "identity-ended", message);
            telemetry::audit_rejected(binding.name(), &denial);
            return Err(bad_credential());
        }
        let by = Some(Arc::clone(binding.name()));
        let generation = Arc::clone(&identity.generation);
        let proof = self.revocation.prove(by, &principal.id, generation);
        Ok(Verified::new(identity, proof))
    }
}

/// One text for every bad credential, so that it tells nothing of who exists.
fn bad_credential() -> Error {
    Error::Unauthorized {
        scopes: Vec::new(),
        error: None,
        message: "invalid username or password".to_owned(),
    }
}

/// Finds the principal. No credential is anonymous; a credential that nobody claims is refused, unless the upstream that it is shown for
/// does. What an authenticator claims or rejects is shown to no upstream.
///
/// # Errors
/// [`Error::Unauthorized`] for a bad credential, [`Error::Unavailable`] when an authenticator failed.
pub async fn authenticate(
    generation: &Generation,
    client: &Arc<Client>,
    credential: Credential,
    shown_for: ShownFor,
) -> Result<Identified, Error> {
    let authentication = &generation.authentication;
    if let Credential::Bearer(token) = &credential
        && let Some(verdict) = authentication.tokens.verify(token)
    {
        let identified = verdict.map_err(invalid_token)?;
        return match authentication.stands(&identified).await? {
            true => Ok(identified),
            false => Err(invalid_token(TokenError::Revoked)),
        };
    }
    let anonymous = credential == Credential::Anonymous;
    if anonymous && client.tls_subject.is_none() {
        return Ok(Identified::anonymous());
    }
    if let Some(known) = authentication.known(client, &credential).await? {
        return Ok(known);
    }
    // Boxed: most credentials are known, or tokens, and whoever shows one need not keep room for the chain.
    Box::pin(log_in(generation, client, &credential, shown_for)).await
}

/// Checks a credential that is not known, when its turn comes.
async fn log_in(
    generation: &Generation,
    client: &Arc<Client>,
    credential: &Credential,
    shown_for: ShownFor,
) -> Result<Identified, Error> {
    let authentication = &generation.authentication;
    let attempt = authentication.logins.begin(client, credential).await?;
    // The turn before may have been of the same credential.
    if let Some(known) = authentication.known(client, credential).await? {
        return Ok(known);
    }
    let identified = match ask_chain(authentication, client, credential, &attempt).await {
        Ok(Some(identified)) => Ok(identified),
        Ok(None) => match credential {
            Credential::Anonymous => Ok(Identified::anonymous()),
            Credential::Bearer(_) => Err(invalid_token(TokenError::Unknown)),
            Credential::Basic(_) => identify_upstream(generation, credential, shown_for).await,
        },
        Err(error) => Err(error),
    };
    authentication.logins.settle(attempt, &identified);
    identified
}

async fn ask_chain(
    authentication: &Authentication,
    client: &Arc<Client>,
    credential: &Credential,
    attempt: &Attempt,
) -> Result<Option<Identified>, Error> {
    let request = AuthenticateRequest {
        client: Arc::clone(client),
        credential: credential.clone(),
        service: String::new(),
        scopes: Vec::new(),
    };
    let ask = async {
        let _place = authentication.logins.place(attempt).await?;
        authentication.ask(&request).await
    };
    let verified = &authentication.verified;
    verified.get_or_ask(client, credential, ask).await
}

/// Asks the upstream that a credential was shown for: nobody here knows it.
async fn identify_upstream(
    generation: &Generation,
    credential: &Credential,
    shown_for: ShownFor,
) -> Result<Identified, Error> {
    let Credential::Basic(shown) = credential else {
        return Err(bad_credential());
    };
    let mirror = match shown_for {
        ShownFor::Mirror(mirror) => mirror,
        ShownFor::Nobody => return Err(bad_credential()),
        ShownFor::Several => return Err(for_several()),
    };
    let callers = generation.policy.callers();
    let identified = callers.identify(&mirror, shown.username(), shown.password());
    let Some((principal, caller)) = identified.await? else {
        telemetry::audit_rejected(&upstream_name(&mirror), &unknown_upstream());
        return Err(bad_credential());
    };
    let revocation = &generation.authentication.revocation;
    let proof = revocation.prove(None, &principal.id, Arc::from(""));
    Ok(Identified {
        principal: Arc::new(principal),
        at_most: None,
        by_token: false,
        token_ends: None,
        proof: Some(proof),
        upstream: Some(Arc::new(caller)),
    })
}

/// What the audit calls an upstream beside plugins.
fn upstream_name(mirror: &str) -> Arc<str> {
    format!("upstream:{mirror}").into()
}

fn unknown_upstream() -> Denial {
    let message = "the upstream does not know the credential";
    Denial::new(DenialCode::Unauthorized, "upstream-rejected", message)
}

/// A password is shown to the one upstream it is for, and never tried out on several.
fn for_several() -> Error {
    Error::Unauthorized {
        scopes: Vec::new(),
        error: None,
        message: "nobody here knows this user, and it could be any of several upstreams': log in at an address that is one mirror's"
            .to_owned(),
    }
}

fn invalid_token(error: TokenError) -> Error {
    Error::Unauthorized {
        scopes: Vec::new(),
        error: Some(ChallengeError::InvalidToken),
        message: error.to_string(),
    }
}

/// A signed token, as the token endpoint answers it.
#[derive(Clone)]
pub struct IssuedToken {
    /// The JWT.
    pub token: String,
    /// Seconds it is valid; at least 60, unless the identity, or the token it was got with, ends before.
    pub expires_in: u64,
    /// Seconds since 1970.
    pub issued_at: u64,
    /// What it holds, in the client's spelling.
    pub scopes: Vec<Scope>,
}

impl std::fmt::Debug for IssuedToken {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("IssuedToken")
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

/// A request of the token endpoint, after the credential was checked.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Ties log and audit lines together.
    pub request_id: Arc<str>,
    /// The machine.
    pub client: Arc<Client>,
    /// Who asks.
    pub identified: Identified,
    /// What is asked, in the client's spelling, merged and deduplicated, with the repository each means.
    pub scopes: Vec<(Scope, Option<gantry_model::Repository>)>,
    /// The `service` of the realm: the host the client addresses.
    pub service: String,
}

/// Makes a token for what the principal may do of what is asked; granting less than asked is no error.
///
/// # Errors
/// [`Error::Unavailable`] when a hook failed or the token cannot be signed.
#[expect(
    clippy::excessive_nesting,
    reason = "each level is one case, and a function for one would hide the order"
)]
pub async fn issue_token(
    generation: &Generation,
    request: TokenRequest,
) -> Result<IssuedToken, Error> {
    let identified = &request.identified;
    let requester = Requester {
        request_id: Arc::clone(&request.request_id),
        client: Arc::clone(&request.client),
        principal: Arc::clone(&identified.principal),
        arrival: None,
        confirmed: None,
        cause: Cause::Request,
    };
    // Of an upstream's caller: as long as its word is good.
    let mut longest = identified.upstream.as_ref().map(|it| it.remember_for);
    let tokens = &generation.authentication.tokens;
    let mut draft = tokens.draft(identified, &request.service)?;
    let mut confirmations = generation.policy.callers().max_confirmations;
    'scopes: for (scope, repository) in request.scopes {
        let canonical = match &repository {
            Some(repository) => Scope {
                name: repository.name.to_string(),
                ..scope.clone()
            },
            None if scope.kind == "repository" => continue,
            None => scope.clone(),
        };
        let grants = grantable(
            generation,
            &requester,
            identified,
            canonical,
            repository.as_ref(),
        )
        .await?;
        for scope_granted in grants {
            // Later scopes that an upstream would be asked about are left out, as those are that nobody knows.
            if generation.policy.callers().are_asked_about(&scope_granted) {
                let Some(left) = confirmations.checked_sub(1) else {
                    continue;
                };
                confirmations = left;
            }
            let confirmation = generation
                .policy
                .confirm_for_token(identified, scope_granted)
                .await?;
            let Some((scope_granted, good_for)) = confirmation else {
                continue;
            };
            let canonical = scope_granted.name;
            let spelled = Scope {
                name: scope.name.clone(),
                kind: scope_granted.kind,
                actions: scope_granted.actions,
            };
            // What a token cannot hold is left out from the end.
            if draft.hold(spelled, &canonical).is_err() {
                break 'scopes;
            }
            longest = longest.map(|longest| good_for.map_or(longest, |it| it.min(longest)));
        }
    }
    tokens.sign(draft, longest)
}

/// What the authorizers, and the credential, allow of one scope.
async fn grantable(
    generation: &Generation,
    requester: &Requester,
    identified: &Identified,
    scope: Scope,
    repository: Option<&gantry_model::Repository>,
) -> Result<Vec<Scope>, Error> {
    let request = Request {
        requester,
        operation: OperationKind::Token,
        scopes: vec![scope],
        reference: None,
        repository,
    };
    Ok(
        match generation
            .policy
            .decide(&request)
            .await
            .map_err(Error::from)?
        {
            Decision::Allow(grant) => match &identified.at_most {
                Some(limits) => Scope::intersect(&grant.granted, limits),
                None => grant.granted,
            },
            Decision::Deny(_) | Decision::Abstain => Vec::new(),
        },
    )
}
