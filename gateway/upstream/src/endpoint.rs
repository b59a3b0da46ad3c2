//! One base URL of an upstream: sends a request there, with the proof of identity it asks for and along its redirects.
//!
//! Owns the tokens, what was learned of the registry's authentication (`login` is how that is used), and the breaker and budget of that
//! base URL. Does not know what a response is good for.
//! Invariant: `Authorization` of ours is added only while the request stays on the base URL's origin; a registry that a redirect led to
//! gets a token that was got there, as nobody.

mod login;

use std::{borrow::Cow, future::Future, sync::Arc, time::Duration};

use gantry_model::RepositoryName;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{RequestBuilder, Response};
use tokio::time::Instant;
use url::Url;

use crate::{
    answer,
    body::{Body, Pace},
    breaker::Breaker,
    credential::{CredentialSource, Credentials, Origin},
    error::{Call, Cause, Earlier, Kind, UpstreamError},
    rate::{self, Leave, Quota},
    redirect::{self, RedirectError},
    session::{CallerBudgets, Proof, Session},
    settings::{BuildError, ClientSettings},
    token::Token,
    transport::{Transport, UpstreamRequest, drain},
};

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

    /// Sends `ask` and follows its redirects. Once a redirect leaves the origin, the proof stays behind for good.
    async fn send(self: &Arc<Self>, ask: &Ask<'_>, proof: &Proof) -> Result<Answer, UpstreamError> {
        let mut url = self.url(ask);
        let mut is_foreign = false;
        let mut away: Option<(Origin, Token)> = None;
        for _ in 0..=redirect::MAX_REDIRECTS {
            let mut request = self.begin(ask, &url, is_foreign)?;
            if !is_foreign {
                request = request.with(|request| self.attach(request, proof));
            } else if let Some((origin, token)) = &away
                && Origin::of(&url).as_ref() == Some(origin)
            {
                request = request.with(|request| token.attach(request));
            }
            let mut response = self.transport.dispatch(&ask.call, request).await?;
            if is_foreign
                && away.is_none()
                && response.status() == StatusCode::UNAUTHORIZED
                && let Some(found) = self.token_away(&ask.call, &url, response.headers()).await?
            {
                drain(response).await;
                let request = self.begin(ask, &url, is_foreign)?;
                let request = request.with(|request| found.1.attach(request));
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
    ) -> Result<UpstreamRequest<'_>, UpstreamError> {
        let is_ours = self.session(ask).is_ours;
        let method = ask.method.clone();
        let mut request = self.transport.request(&ask.call, method, url, is_ours)?;
        if let Some(accept) = ask.accept.as_deref() {
            request = request.with(|request| request.header(header::ACCEPT, accept));
        }
        if let Some(range) = ask.range() {
            request = request.with(|request| request.header(header::RANGE, range));
        }
        if is_ours && !is_foreign && !self.headers.is_empty() {
            request = request.with(|request| request.headers(self.headers.clone()));
        }
        Ok(request)
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
