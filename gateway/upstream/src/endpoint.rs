//! One base URL of an upstream: sends a request there, with the proof of identity it asks for and along its redirects.
//!
//! Owns the tokens, what was learned of the registry's authentication, and the breaker and budget of that base URL. Does not know
//! what a response is good for.
//! Invariant: `Authorization` is added only while the request stays on the base URL's origin.

use std::{future::Future, sync::Arc, time::Duration};

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
    error::{Call, Cause, Kind, UpstreamError},
    rate::{self, Budget, Quota},
    realm::{Realm, RealmError},
    redirect::{self, RedirectError},
    session::{Proof, Scheme, Session},
    settings::{BuildError, ClientSettings},
    token::{MAX_TOKEN_BODY_BYTES, Token, TokenKey},
    transport::{Transport, drain},
};

/// Without a token, with a kept one that turns out stale, with a fresh one.
const MAX_ROUNDS: usize = 3;

/// What is asked of a registry, whichever base URL it has.
pub(crate) struct Ask<'a> {
    pub(crate) call: Call,
    pub(crate) method: Method,
    /// A repository, and the path segments after its name; `None` = the registry itself, `/v2/`.
    pub(crate) about: Option<(&'a RepositoryName, [&'a str; 2])>,
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) accept: Option<&'static str>,
    pub(crate) offset: u64,
    /// The last byte that is wanted; `None` for all of them.
    pub(crate) last: Option<u64>,
    /// As whom; `None` = as ourselves.
    pub(crate) session: Option<&'a Session>,
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
    ours: Session,
    realms: Vec<Origin>,
    breaker: Breaker,
    budget: Budget,
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
        Ok(Self {
            base,
            prefix,
            transport: Transport::new(origin.clone(), is_home, settings)?,
            ours: Session::ours(origin, source),
            realms: realms.ok_or(BuildError::Url)?,
            breaker: Breaker::default(),
            budget: Budget::default(),
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
    pub(crate) fn caller_session(&self, caller: Option<&Credentials>) -> Session {
        Session::of_caller(self.transport.origin().clone(), caller)
    }

    fn session<'a>(&'a self, ask: &Ask<'a>) -> &'a Session {
        ask.session.unwrap_or(&self.ours)
    }

    /// Whether it is the origin of that URL.
    pub(crate) fn is_at(&self, url: &Url) -> bool {
        Origin::of(url).as_ref() == Some(self.transport.origin())
    }

    pub(crate) fn stats(&self, now: Instant) -> EndpointStats {
        EndpointStats {
            url: self.base.clone(),
            quota: self.budget.quota(),
            paused_for: self.budget.paused_for(now),
            is_broken: self.breaker.is_open(),
        }
    }

    /// Runs `attempt` unless the upstream asked for a pause or the breaker is open, and tells the breaker how it went.
    pub(crate) async fn guarded<T>(
        &self,
        call: &Call,
        attempt: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        self.check_pause(call)?;
        let pass = self.breaker.admit(Instant::now()).map_err(|pause| {
            call.fail(Kind::Unavailable, "not tried, it failed too often just now")
                .because(Cause::Breaker)
                .retry_after(pause)
        })?;
        let result = attempt.await;
        let is_unavailable = matches!(&result, Err(error) if error.kind == Kind::Unavailable);
        pass.settle(!is_unavailable, Instant::now());
        result
    }

    fn check_pause(&self, call: &Call) -> Result<(), UpstreamError> {
        let admitted = self.budget.admit(call.verb(), Instant::now());
        admitted.map_err(|(kind, left)| {
            call.fail(kind, "not tried, it asked to come back later")
                .because(rate::cause_of(kind))
                .retry_after(left)
        })
    }

    fn hear(&self, ask: &Ask<'_>, call: &Call, response: &Response, is_foreign: bool) {
        if !self.session(ask).shares_our_limits() {
            return;
        }
        let word = answer::word(response.status(), response.headers(), is_foreign);
        self.budget.hear(call.verb(), word, Instant::now());
    }

    /// The response to `ask`, when its status is `wanted`.
    pub(crate) async fn fetch(
        &self,
        ask: &Ask<'_>,
        wanted: &[StatusCode],
    ) -> Result<Response, UpstreamError> {
        self.wanted(ask, wanted).await.map(|answer| answer.response)
    }

    /// Whether `ask` is answered with that status after a proof was asked for and given. The body is of no interest.
    pub(crate) async fn accepts(
        &self,
        ask: &Ask<'_>,
        wanted: StatusCode,
    ) -> Result<bool, UpstreamError> {
        let answer = self.wanted(ask, &[wanted]).await?;
        drain(answer.response).await;
        Ok(answer.is_proven)
    }

    async fn wanted(&self, ask: &Ask<'_>, wanted: &[StatusCode]) -> Result<Answer, UpstreamError> {
        let answer = self.ask(ask).await?;
        let (response, is_foreign) = (&answer.response, answer.is_foreign);
        self.hear(ask, &ask.call, response, is_foreign);
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

    async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let began = Instant::now();
        let session = self.session(ask);
        let mut proof = self.remembered_proof(ask).await?;
        let mut rounds = 1..=MAX_ROUNDS;
        let mut is_renewed = false;
        loop {
            let answer = self.send(ask, &proof).await?;
            let is_challenge = answer.response.status() == StatusCode::UNAUTHORIZED;
            if answer.is_foreign || !is_challenge {
                return Ok(answer);
            }
            rounds.next();
            // What was fetched or sent for this very call and is refused all the same will not do better again.
            let is_final = match &proof {
                Proof::None => false,
                Proof::Basic(_) if is_renewed => true,
                Proof::Basic(refused) => {
                    is_renewed = true;
                    !session.account.renew(&ask.call, refused).await?
                }
                Proof::Bearer(_, token) => token.issued() >= began,
            };
            if is_final || rounds.is_empty() {
                return Ok(answer);
            }
            if let Proof::Bearer(key, token) = &proof {
                session.tokens.discard(key, token).await;
            }
            let scheme = self.choose(ask, answer.response.headers())?;
            drain(answer.response).await;
            proof = self.prove(ask, scheme).await?;
        }
    }

    async fn remembered_proof(&self, ask: &Ask<'_>) -> Result<Proof, UpstreamError> {
        let remembered = &self.session(ask).remembered;
        match ask.repository().and_then(|name| remembered.get(name)) {
            None => Ok(Proof::None),
            Some(scheme) => self.prove(ask, scheme).await,
        }
    }

    /// Picks a challenge that may be answered; Bearer before Basic, as all clients do.
    fn choose(&self, ask: &Ask<'_>, headers: &HeaderMap) -> Result<Scheme, UpstreamError> {
        let refused = |answer: &str| ask.call.fail(Kind::Refused, format_args!("401, {answer}"));
        let lines = headers.get_all(header::WWW_AUTHENTICATE);
        let challenges = Challenge::parse(lines.iter().filter_map(|line| line.to_str().ok()));
        let bearer = challenges
            .iter()
            .filter(|challenge| challenge.scheme == "bearer")
            .find_map(|challenge| Some((challenge, challenge.parameter("realm")?)));
        if let Some((challenge, realm)) = bearer {
            let realm = Realm::admit(realm, self.transport.origin(), &self.realms)
                .map_err(|error| unadmitted(&ask.call, error))?;
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

    /// Gets what the scheme wants, and remembers the scheme while that works.
    async fn prove(&self, ask: &Ask<'_>, scheme: Scheme) -> Result<Proof, UpstreamError> {
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
        let fetch = self.fetch_token(ask, &key);
        match session.tokens.get(&key, fetch).await {
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

    async fn fetch_token(&self, ask: &Ask<'_>, key: &TokenKey) -> Result<Token, UpstreamError> {
        let session = self.session(ask);
        let call = ask.call.instead(match session.is_ours {
            true => "GET token",
            false => "GET token for a caller",
        });
        self.check_pause(&call)?;
        let issued = Instant::now();
        let credential = session.account.current(&call).await?;
        let token = TokenAsk {
            call: &call,
            key,
            is_ours: session.is_ours,
        };
        let mut response = self.ask_for_token(&token, credential.as_ref()).await?;
        let is_refusal = matches!(
            response.status(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
        );
        if let Some(refused) = credential.filter(|_| is_refusal)
            && session.account.renew(&call, &refused).await?
        {
            drain(response).await;
            let other = session.account.current(&call).await?;
            response = self.ask_for_token(&token, other.as_ref()).await?;
        }
        self.hear(ask, &call, &response, false);
        if response.status() != StatusCode::OK {
            let error = answer::failure(&call, response.status(), response.headers(), false);
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
        answer::check_encoding(&call, response.headers())?;
        let body = self.body(&call, response, None);
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
    async fn send(&self, ask: &Ask<'_>, proof: &Proof) -> Result<Answer, UpstreamError> {
        let mut url = self.url(ask);
        let mut is_foreign = false;
        let is_ours = self.session(ask).is_ours;
        for _ in 0..=redirect::MAX_REDIRECTS {
            let method = ask.method.clone();
            let mut request = self.transport.request(&ask.call, method, &url, is_ours)?;
            if let Some(accept) = ask.accept {
                request = request.header(header::ACCEPT, accept);
            }
            if let Some(range) = ask.range() {
                request = request.header(header::RANGE, range);
            }
            if !is_foreign {
                request = self.attach(request, proof);
            }
            let response = self.transport.dispatch(&ask.call, request).await?;
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
        if !ask.query.is_empty() {
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

fn unadmitted(call: &Call, error: RealmError) -> UpstreamError {
    let answer = format_args!("401, {error}; nothing was sent to it");
    call.fail_with(Kind::Refused, answer, error)
        .because(Cause::Blocked)
}
