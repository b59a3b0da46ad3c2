//! One base URL of an upstream: sends a request there, with the proof of identity it asks for and along its redirects.
//!
//! Owns the tokens, what was learned of the registry's authentication, and the breaker and budget of that base URL. Does not know
//! what a response is good for.
//! Invariant: `Authorization` of ours is added only while the request stays on the base URL's origin; a registry that a redirect led to
//! gets a token that was got there, as nobody.

use std::{borrow::Cow, future::Future, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use gantry_model::RepositoryName;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use tokio::time::Instant;
use url::Url;

use crate::{
    answer,
    body::{Body, Pace},
    breaker::Breaker,
    challenge::Challenge,
    credential::{Credential, CredentialSource, Credentials, Origin},
    error::{Call, Cause, Earlier, Kind, UpstreamError},
    rate::{self, Leave, Quota},
    realm::{Carries, Realm},
    redirect::{self, RedirectError},
    session::{CallerBudgets, Proof, Scheme, Session},
    settings::{BuildError, ClientSettings},
    token::{Fetched, MAX_TOKEN_BODY_BYTES, Token, TokenKey},
    transport::{Transport, drain},
};

/// Without a token, with a kept one that turns out stale, with a fresh one, with a password.
const MAX_ROUNDS: usize = 4;

/// What is asked of a registry, whichever base URL it has.
#[derive(Clone)]
pub(crate) struct Ask<'a> {
    pub(crate) call: Call,
    pub(crate) method: Method,
    /// A repository, and the path segments after its name; `None` = the registry itself, `/v2/`.
    pub(crate) about: Option<(&'a RepositoryName, [&'a str; 2])>,
    pub(crate) query: Vec<(&'static str, String)>,
    /// A query as the upstream wrote it, instead.
    pub(crate) raw_query: Option<&'a str>,
    pub(crate) accept: Option<Cow<'static, str>>,
    pub(crate) offset: u64,
    /// The last byte that is wanted; `None` for all of them.
    pub(crate) last: Option<u64>,
    /// As whom; `None` = as ourselves.
    pub(crate) session: Option<&'a Arc<Session>>,
}

impl Ask<'_> {
    fn repository(&self) -> Option<&RepositoryName> {
        self.about.map(|(repository, _path)| repository)
    }

    /// What the `Range` header says; nothing when everything is wanted.
    pub(crate) fn range(&self) -> Option<String> {
        match (self.offset, self.last) {
            (first, Some(last)) => Some(format!("bytes={first}-{last}")),
            (0, None) => None,
            (first, None) => Some(format!("bytes={first}-")),
        }
    }
}

/// One base URL.
pub(crate) struct Endpoint {
    base: Url,
    /// What its registry calls the repositories before their names; empty or ending in a slash.
    prefix: String,
    transport: Transport,
    ours: Arc<Session>,
    /// At registries that redirects lead to.
    away: Arc<Session>,
    callers: CallerBudgets,
    realms: Vec<Origin>,
    /// Sent to the origin of the settings' URL, and nowhere else.
    headers: HeaderMap,
    breaker: Breaker,
    pace: Pace,
}

/// How one base URL fares.
#[derive(Clone, Debug)]
pub struct EndpointStats {
    /// The base URL.
    pub url: Url,
    /// What it said last about its quota, as Docker Hub does.
    pub quota: Option<Quota>,
    /// For how long some requests are not sent there, because it asked for that.
    pub paused_for: Option<Duration>,
    /// Whether it is left alone because it failed too often.
    pub is_broken: bool,
}

/// A response, and whether it comes from another origin than was asked.
struct Answer {
    response: Response,
    is_foreign: bool,
    /// Whether the upstream asked for a proof and got one.
    is_proven: bool,
}

impl Endpoint {
    /// Builds the client for `base`. Sends nothing.
    pub(crate) fn new(base: &Url, settings: &ClientSettings) -> Result<Self, BuildError> {
        let origin = origin_of_base(base)?;
        let is_home = origin == origin_of_base(&settings.url)?;
        let source = settings.credentials.clone().filter(|_| is_home);
        let realms: Option<Vec<Origin>> = settings.token_realms.iter().map(Origin::of).collect();
        let (base, prefix) = split_base(base);
        let headers = settings.headers.iter().filter(|_| is_home).cloned();
        Ok(Self {
            base,
            prefix,
            transport: Transport::new(origin.clone(), is_home, settings)?,
            away: Arc::new(Session::away(origin.clone())),
            ours: Arc::new(Session::ours(origin, source)),
            callers: CallerBudgets::default(),
            realms: realms.ok_or(BuildError::Url)?,
            headers: headers.collect(),
            breaker: Breaker::default(),
            pace: Pace {
                idle_timeout: settings.idle_timeout,
                minimum_rate: settings.minimum_rate,
            },
        })
    }

    /// Uses other credentials from now on.
    pub(crate) fn replace_credentials(&self, source: Option<CredentialSource>) {
        self.ours.account.replace(source);
    }

    /// A session of somebody else, for one question.
    pub(crate) fn caller_session(&self, caller: Option<&Credentials>) -> Arc<Session> {
        // Where we are nobody ourselves, a limit of nobody's is ours.
        let budget = match caller {
            None if !self.ours.account.is_known() => Arc::clone(&self.ours.budget),
            _ => self.callers.of(caller),
        };
        let origin = self.transport.origin().clone();
        Arc::new(Session::of_caller(origin, caller, budget))
    }

    fn session<'a>(&'a self, ask: &Ask<'a>) -> &'a Arc<Session> {
        ask.session.unwrap_or(&self.ours)
    }

    /// Whether it is the origin of that URL.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        Origin::of(url).as_ref() == Some(self.transport.origin())
    }

    pub(crate) fn stats(&self, now: Instant) -> EndpointStats {
        EndpointStats {
            url: self.base.clone(),
            quota: self.ours.budget.quota(),
            paused_for: self.ours.budget.rests_for(now),
            is_broken: self.breaker.is_open(),
        }
    }

    /// Runs `attempt` unless the upstream asked for a pause or the breaker is open, and tells the breaker how it went.
    pub(crate) async fn guarded<T>(
        &self,
        ask: &Ask<'_>,
        attempt: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let call = &ask.call;
        let _leave = leave(self.session(ask), call)?;
        let pass = self.breaker.admit(Instant::now()).map_err(|pause| {
            let earlier = self.breaker.last_fault().map(Earlier);
            let answer = "not tried, it failed too often just now";
            let error = match earlier {
                Some(earlier) => call.fail_with(Kind::Unavailable, answer, earlier),
                None => call.fail(Kind::Unavailable, answer),
            };
            error.because(Cause::Breaker).retry_after(pause)
        })?;
        let result = attempt.await;
        let unavailable = result.as_ref().err();
        let unavailable = unavailable.filter(|error| error.kind == Kind::Unavailable);
        pass.settle(unavailable.map(UpstreamError::fault), Instant::now());
        result
    }

    /// The response to `ask`, when its status is `wanted`.
    pub(crate) async fn fetch(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        wanted: &[StatusCode],
    ) -> Result<Response, UpstreamError> {
        self.wanted(ask, wanted).await.map(|answer| answer.response)
    }

    /// Whether `ask` is answered with that status after a proof was asked for and given. The body is of no interest.
    pub(crate) async fn accepts(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        wanted: StatusCode,
    ) -> Result<bool, UpstreamError> {
        let answer = self.wanted(ask, &[wanted]).await?;
        drain(answer.response).await;
        Ok(answer.is_proven)
    }

    async fn wanted(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        wanted: &[StatusCode],
    ) -> Result<Answer, UpstreamError> {
        let answer = self.ask(ask).await?;
        let (response, is_foreign) = (&answer.response, answer.is_foreign);
        hear(self.session(ask), &ask.call, response, is_foreign);
        if wanted.contains(&response.status()) {
            return Ok(answer);
        }
        let error = answer::failure(&ask.call, response.status(), response.headers(), is_foreign);
        drain(answer.response).await;
        Err(error)
    }

    /// The body of a response of this endpoint.
    pub(crate) fn body(&self, call: &Call, response: Response, expected: Option<u64>) -> Body {
        Body::new(response, call.clone(), self.pace, expected)
    }

    // --- authentication ---

    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn ask(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let began = Instant::now();
        let session = self.session(ask);
        let mut proof = self.remembered_proof(ask).await?;
        let mut rounds = 1..=MAX_ROUNDS;
        let mut is_renewed = false;
        loop {
            let answer = self.send(ask, &proof).await?;
            if answer.is_foreign || !is_challenge(&answer.response, &proof) {
                return Ok(answer);
            }
            rounds.next();
            // What was fetched or sent for this very call and is refused all the same will not do better again.
            let is_final = match &proof {
                Proof::None | Proof::Bearer(..) => false,
                Proof::Basic(_) if is_renewed => true,
                Proof::Basic(refused) => {
                    is_renewed = true;
                    !session.account.renew(&ask.call, refused).await?
                }
            };
            if is_final || rounds.is_empty() {
                return Ok(answer);
            }
            if let Proof::Bearer(key, token) = &proof {
                if token.issued() >= began {
                    let Some(basic) = self.basic_instead(ask, &answer.response).await else {
                        return Ok(answer);
                    };
                    drain(answer.response).await;
                    proof = basic;
                    continue;
                }
                session.tokens.discard(key, token).await;
            }
            let scheme = self.choose(ask, answer.response.headers())?;
            drain(answer.response).await;
            proof = self.prove(ask, scheme).await?;
        }
    }

    /// After a token of now was not enough: the password, where the upstream offers to take it.
    async fn basic_instead(self: &Arc<Self>, ask: &Ask<'_>, response: &Response) -> Option<Proof> {
        let mut offers = challenges(response.headers()).into_iter();
        if !offers.any(|challenge| challenge.scheme == "basic") {
            return None;
        }
        match self.prove(ask, Scheme::Basic).await {
            Ok(proof @ Proof::Basic(_)) => Some(proof),
            Ok(_) | Err(_) => None,
        }
    }

    async fn remembered_proof(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Proof, UpstreamError> {
        let remembered = &self.session(ask).remembered;
        match ask.repository().and_then(|name| remembered.get(name)) {
            None => Ok(Proof::None),
            Some(scheme) => self.prove(ask, scheme).await,
        }
    }

    /// Picks a challenge that may be answered; Bearer before Basic, as all clients do.
    fn choose(&self, ask: &Ask<'_>, headers: &HeaderMap) -> Result<Scheme, UpstreamError> {
        let refused = |answer: &str| ask.call.fail(Kind::Refused, format_args!("401, {answer}"));
        let challenges = challenges(headers);
        if let Some((challenge, realm)) = bearer(&challenges) {
            let carries = match self.session(ask).account.is_known() {
                true => Carries::Secret,
                false => Carries::Nothing,
            };
            let realm = self.realm(&ask.call, realm, self.transport.origin(), carries)?;
            return Ok(Scheme::Bearer(Arc::new(TokenKey {
                realm,
                service: challenge.parameter("service").map(str::to_owned),
                scope: scope(&self.prefix, ask.repository(), challenge),
                generation: self.session(ask).account.generation(),
            })));
        }
        match challenges
            .iter()
            .any(|challenge| challenge.scheme == "basic")
        {
            true if self.session(ask).account.is_known() => Ok(Scheme::Basic),
            true => Err(refused(
                "it wants a user and there are no credentials for it",
            )),
            false => Err(refused("without a challenge that can be answered")),
        }
    }

    /// A realm, when what is to be sent may go there.
    fn realm(
        &self,
        call: &Call,
        realm: &str,
        named_by: &Origin,
        carries: Carries,
    ) -> Result<Realm, UpstreamError> {
        Realm::admit(realm, named_by, &self.realms, carries).map_err(|error| {
            let origin = realm.parse().ok().as_ref().and_then(Origin::of);
            let origin = origin.filter(|_| error.is_mended_by_listing());
            let to_do = origin.map_or_else(String::new, |origin| {
                let mirror = call.upstream();
                format!("; if it is the upstream's, write `token_realms: [\"{origin}\"]` below mirrors.{mirror}")
            });
            let answer = format_args!("401, {error}; nothing was sent to it{to_do}");
            call.fail_with(Kind::Refused, answer, error)
                .because(Cause::Realm)
        })
    }

    /// Gets what the scheme wants, and remembers the scheme while that works.
    async fn prove(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        scheme: Scheme,
    ) -> Result<Proof, UpstreamError> {
        let session = self.session(ask);
        let remember = |scheme| {
            if let Some(repository) = ask.repository() {
                session.remembered.insert(repository.clone(), scheme);
            }
        };
        let Scheme::Bearer(key) = scheme else {
            let proof = basic(session, &ask.call).await?;
            remember(scheme);
            return Ok(proof);
        };
        let key = Arc::new(TokenKey {
            generation: session.account.generation(),
            ..(*key).clone()
        });
        match self.token(session, &ask.call, &key).await {
            Ok(token) => {
                remember(Scheme::Bearer(Arc::clone(&key)));
                Ok(Proof::Bearer(key, token))
            }
            Err(error) => {
                // A limit says nothing about the realm; forgetting it would cost a challenge for every call until then.
                if let Some(name) = ask.repository().filter(|_| error.kind != Kind::RateLimited) {
                    session.remembered.invalidate(name);
                }
                let cause = match error.cause {
                    Cause::Answer => Cause::Token,
                    cause => cause,
                };
                Err(UpstreamError {
                    retry_after: error.retry_after,
                    cause,
                    ..ask.call.fail_with(error.kind, "no token", error)
                })
            }
        }
    }

    /// The token that is kept for the session, or one that is fetched, once for all who want it.
    async fn token(
        self: &Arc<Self>,
        session: &Arc<Session>,
        call: &Call,
        key: &TokenKey,
    ) -> Fetched {
        let call = call.instead(match session.is_ours {
            true => "GET token",
            false => "GET token for a caller",
        });
        let fetch = || -> BoxFuture<'static, Result<Token, UpstreamError>> {
            let (endpoint, session) = (Arc::clone(self), Arc::clone(session));
            let (call, key) = (call.clone(), key.clone());
            async move { endpoint.fetch_token(&session, &call, &key).await }.boxed()
        };
        session.tokens.get(&call, key, fetch).await
    }

    async fn fetch_token(
        &self,
        session: &Session,
        call: &Call,
        key: &TokenKey,
    ) -> Result<Token, UpstreamError> {
        let _leave = leave(session, call)?;
        let issued = Instant::now();
        let credential = session.account.current(call).await?;
        let token = TokenAsk {
            call,
            key,
            is_ours: session.is_ours,
        };
        let mut response = self.ask_for_token(&token, credential.as_ref()).await?;
        let is_refusal = matches!(
            response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        );
        if let Some(refused) = credential.filter(|_| is_refusal)
            && session.account.renew(call, &refused).await?
        {
            drain(response).await;
            let other = session.account.current(call).await?;
            response = self.ask_for_token(&token, other.as_ref()).await?;
        }
        hear(session, call, &response, false);
        if response.status() != StatusCode::OK {
            let error = answer::failure(call, response.status(), response.headers(), false);
            drain(response).await;
            // A missing token endpoint says nothing about the content.
            return Err(match error.kind {
                Kind::NotFound => UpstreamError {
                    kind: Kind::Invalid,
                    ..error
                },
                _ => error,
            });
        }
        answer::check_encoding(call, response.headers())?;
        if answer::is_html(response.headers()) {
            drain(response).await;
            return Err(call.fail(Kind::Unavailable, answer::HTML));
        }
        let body = self.body(call, response, None);
        let body = body.read_capped(MAX_TOKEN_BODY_BYTES).await?;
        Token::parse(&body, issued)
            .ok_or_else(|| call.fail(Kind::Invalid, "the answer has no usable token"))
    }

    async fn ask_for_token(
        &self,
        ask: &TokenAsk<'_>,
        credential: Option<&Credential>,
    ) -> Result<Response, UpstreamError> {
        let TokenAsk { call, key, is_ours } = *ask;
        let mut url = key.realm.url().clone();
        let service = key.service.iter().map(|service| ("service", &**service));
        let scope = Some(("scope", &*key.scope)).filter(|(_, scope)| !scope.is_empty());
        let asked = service.chain(scope);
        let form = credential.and_then(|credential| credential.refresh_form(&key.realm));
        let request = if let Some(form) = form {
            let form: Vec<(&str, &str)> = asked.chain(form).collect();
            let request = self.transport.request(call, Method::POST, &url, is_ours)?;
            request.form(&form)
        } else {
            url.query_pairs_mut().extend_pairs(asked);
            let request = self.transport.request(call, Method::GET, &url, is_ours)?;
            match credential {
                Some(credential) => credential.attach_to_realm(request, &key.realm),
                None => request,
            }
        };
        self.transport.dispatch(call, request).await
    }

    // --- sending ---

    /// Sends `ask` and follows its redirects. Once a redirect leaves the origin, the proof stays behind for good.
    async fn send(self: &Arc<Self>, ask: &Ask<'_>, proof: &Proof) -> Result<Answer, UpstreamError> {
        let mut url = self.url(ask);
        let mut is_foreign = false;
        let mut away: Option<(Origin, Token)> = None;
        for _ in 0..=redirect::MAX_REDIRECTS {
            let mut request = self.begin(ask, &url, is_foreign)?;
            if !is_foreign {
                request = self.attach(request, proof);
            } else if let Some((origin, token)) = &away
                && Origin::of(&url).as_ref() == Some(origin)
            {
                request = token.attach(request);
            }
            let mut response = self.transport.dispatch(&ask.call, request).await?;
            if is_foreign
                && away.is_none()
                && response.status() == StatusCode::UNAUTHORIZED
                && let Some(found) = self.token_away(&ask.call, &url, response.headers()).await?
            {
                drain(response).await;
                let request = self.begin(ask, &url, is_foreign)?;
                let request = found.1.attach(request);
                away = Some(found);
                response = self.transport.dispatch(&ask.call, request).await?;
            }
            if !redirect::is_redirect(response.status()) {
                return Ok(Answer {
                    response,
                    is_foreign,
                    is_proven: !matches!(proof, Proof::None),
                });
            }
            let target = redirect::target(&url, response.headers(), self.transport.bounds());
            url = target.map_err(|error| {
                let cause = match error {
                    RedirectError::Blocked(_) => Cause::Blocked,
                    _ => Cause::Answer,
                };
                ask.call.fail(Kind::Invalid, error).because(cause)
            })?;
            is_foreign |= !self.is_at(&url);
            drain(response).await;
        }
        Err(ask.call.fail(Kind::Invalid, "too many redirects"))
    }

    /// A request of `ask` without a proof.
    fn begin(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        is_foreign: bool,
    ) -> Result<RequestBuilder, UpstreamError> {
        let is_ours = self.session(ask).is_ours;
        let method = ask.method.clone();
        let mut request = self.transport.request(&ask.call, method, url, is_ours)?;
        if let Some(accept) = ask.accept.as_deref() {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(range) = ask.range() {
            request = request.header(header::RANGE, range);
        }
        if is_ours && !is_foreign && !self.headers.is_empty() {
            request = request.headers(self.headers.clone());
        }
        Ok(request)
    }

    /// The token that a registry gives to nobody, when a redirect led to one that asks for one. Nothing of the mirror's own goes there.
    async fn token_away(
        self: &Arc<Self>,
        call: &Call,
        at: &Url,
        headers: &HeaderMap,
    ) -> Result<Option<(Origin, Token)>, UpstreamError> {
        let challenges = challenges(headers);
        let (Some((challenge, realm)), Some(origin)) = (bearer(&challenges), Origin::of(at)) else {
            return Ok(None);
        };
        let key = TokenKey {
            realm: self.realm(call, realm, &origin, Carries::Nothing)?,
            service: challenge.parameter("service").map(str::to_owned),
            scope: pull_scope(challenge),
            generation: self.away.account.generation(),
        };
        match self.token(&self.away, call, &key).await {
            Ok(token) => Ok(Some((origin, token))),
            Err(error) => {
                // Where a redirect led cannot say that the upstream refuses.
                let kind = match error.kind {
                    Kind::Refused => Kind::Invalid,
                    kind => kind,
                };
                Err(UpstreamError {
                    retry_after: error.retry_after,
                    cause: error.cause,
                    ..call.fail_with(kind, "no token after a redirect", error)
                })
            }
        }
    }

    fn attach(&self, request: RequestBuilder, proof: &Proof) -> RequestBuilder {
        match proof {
            Proof::Bearer(_, token) => token.attach(request),
            Proof::Basic(credential) => credential.attach_to(request, self.transport.origin()),
            Proof::None => request,
        }
    }

    fn url(&self, ask: &Ask<'_>) -> Url {
        let mut url = self.base.clone();
        // Only a URL that cannot be a base has no segments; an http URL always can.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v2");
            match ask.about {
                Some((repository, path)) => segments
                    .extend(self.prefix.split_terminator('/'))
                    .extend(repository.as_str().split('/'))
                    .extend(path),
                None => segments.push(""),
            };
        }
        if ask.raw_query.is_some() {
            url.set_query(ask.raw_query);
        } else if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        url
    }
}

/// A question to a token endpoint.
struct TokenAsk<'a> {
    call: &'a Call,
    key: &'a TokenKey,
    is_ours: bool,
}

async fn basic(session: &Session, call: &Call) -> Result<Proof, UpstreamError> {
    match session.account.current(call).await? {
        Some(credential) if !credential.is_identity_token() => Ok(Proof::Basic(credential)),
        Some(_) => Err(call.fail(
            Kind::Refused,
            "401, it wants a user and there is only an identity token",
        )),
        None => Ok(Proof::None),
    }
}

/// The scope to ask for: pulling the repository, by the name its registry knows it under. A gateway below a path prefix calls it
/// by its own longer name, which is taken over from the challenge; nothing else in a challenge's scope is.
fn scope(prefix: &str, repository: Option<&RepositoryName>, challenge: &Challenge) -> String {
    // Nothing but an identity is asked.
    let Some(repository) = repository else {
        return String::new();
    };
    let own = format!("repository:{prefix}{repository}:pull");
    let Some(asked) = challenge.parameter("scope") else {
        return own;
    };
    let name = asked
        .strip_prefix("repository:")
        .and_then(|rest| rest.strip_suffix(":pull"));
    let is_ours = |name: &str| {
        name.parse::<RepositoryName>().is_ok()
            && name
                .strip_suffix(repository.as_str())
                .is_some_and(|prefix| prefix.ends_with('/'))
    };
    if name.is_some_and(is_ours) {
        asked.to_owned()
    } else {
        own
    }
}

fn origin_of_base(base: &Url) -> Result<Origin, BuildError> {
    let is_plain = base.username().is_empty()
        && base.password().is_none()
        && base.query().is_none()
        && base.fragment().is_none();
    Origin::of(base).filter(|_| is_plain).ok_or(BuildError::Url)
}

/// The part of a base URL before `/v2`, and the names' prefix after it: `https://harbor.example/v2/hub-proxy` is one project of a
/// registry at `https://harbor.example`.
fn split_base(base: &Url) -> (Url, String) {
    let path = base.path().trim_end_matches('/');
    let (before, after) = match path.find("/v2/") {
        Some(at) => path.split_at(at),
        None => (path.strip_suffix("/v2").unwrap_or(path), ""),
    };
    let mut prefix = after.trim_start_matches("/v2/").to_owned();
    if !prefix.is_empty() {
        prefix.push('/');
    }
    let mut url = base.clone();
    url.set_path(before);
    (url, prefix)
}

/// Leave of the upstream's limits to send a request now.
fn leave<'a>(session: &'a Session, call: &Call) -> Result<Leave<'a>, UpstreamError> {
    let leave = session.budget.admit(call.class(), Instant::now());
    leave.map_err(|(kind, left)| {
        call.fail(kind, "not tried, it asked to come back later")
            .because(rate::cause_of(kind))
            .retry_after(left)
    })
}

/// Takes in what a response says about how often its session may ask.
fn hear(session: &Session, call: &Call, response: &Response, is_foreign: bool) {
    let word = answer::word(response.status(), response.headers(), is_foreign);
    session.budget.hear(call.class(), word, Instant::now());
}

/// Whether a response asks for a proof, or for a better one than it got.
fn is_challenge(response: &Response, proof: &Proof) -> bool {
    match response.status() {
        StatusCode::UNAUTHORIZED => true,
        // RFC 6750 section 3.1: a token without the scope.
        StatusCode::FORBIDDEN => {
            matches!(proof, Proof::Bearer(..))
                && response.headers().contains_key(header::WWW_AUTHENTICATE)
        }
        _ => false,
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let lines = headers.get_all(header::WWW_AUTHENTICATE);
    Challenge::parse(lines.iter().filter_map(|line| line.to_str().ok()))
}

fn bearer(challenges: &[Challenge]) -> Option<(&Challenge, &str)> {
    let mut bearers = challenges.iter().filter(|it| it.scheme == "bearer");
    bearers.find_map(|challenge| Some((challenge, challenge.parameter("realm")?)))
}

/// Pulling what a challenge of another registry is about; nothing when it does not say.
fn pull_scope(challenge: &Challenge) -> String {
    let asked = challenge.parameter("scope").unwrap_or_default();
    let name = asked.split_whitespace().find_map(|scope| {
        let (name, _actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        name.parse::<RepositoryName>().ok()
    });
    name.map_or_else(String::new, |name| format!("repository:{name}:pull"))
}
