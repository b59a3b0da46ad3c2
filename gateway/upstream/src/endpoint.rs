//! One base URL of an upstream: sends a request there, with the proof of identity it asks for and along its redirects.
//!
//! Owns the HTTP client, the tokens, what was learned of the registry's authentication, and the breaker of that base URL. Does not
//! know what a response is good for.
//! Invariant: `Authorization` is added only while the request stays on the base URL's origin.

use std::{future::Future, sync::Arc, time::Duration};

use gantry_model::RepositoryName;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use moka::sync::Cache;
use reqwest::{Client, RequestBuilder, Response};
use tokio::time::{Instant, timeout};
use url::Url;

use crate::{
    address::Bounds,
    answer,
    body::{Body, Pace},
    breaker::Breaker,
    challenge::Challenge,
    credential::{Credential, Origin},
    error::{Call, Kind, UpstreamError},
    realm::Realm,
    redirect,
    settings::{BuildError, ClientSettings},
    token::{MAX_TOKEN_BODY_BYTES, Token, TokenKey, Tokens},
};

/// Without a token, with a kept one that turns out stale, with a fresh one.
const MAX_ROUNDS: usize = 3;
/// Repositories whose way of authentication is remembered.
const MAX_REMEMBERED: u64 = 10_000;
/// The largest list of response headers over HTTP/2; over HTTP/1 hyper stops at 100 headers and about 400 KiB.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// An unwanted body up to this size is read away, so that the connection can be used again.
const MAX_DRAINED_BYTES: usize = 16 << 10;
/// How long reading one away may take.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// What is asked of a registry, whichever base URL it has.
pub(crate) struct Ask<'a> {
    pub(crate) call: Call,
    pub(crate) method: Method,
    pub(crate) repository: &'a RepositoryName,
    /// Path segments after the repository's name.
    pub(crate) path: [&'a str; 2],
    pub(crate) query: Vec<(&'static str, String)>,
    pub(crate) accept: Option<&'static str>,
    pub(crate) offset: u64,
}

/// One base URL.
pub(crate) struct Endpoint {
    base: Url,
    origin: Origin,
    bounds: Bounds,
    http: Client,
    credential: Option<Credential>,
    tokens: Tokens,
    remembered: Cache<RepositoryName, Scheme>,
    breaker: Breaker,
    head_timeout: Duration,
    pace: Pace,
}

/// How a repository wants to be asked.
#[derive(Clone)]
enum Scheme {
    Basic,
    Bearer(Arc<TokenKey>),
}

/// What a request proves its sender with.
enum Proof {
    None,
    Basic,
    Bearer(Arc<TokenKey>, Token),
}

/// A response, and whether it comes from another origin than was asked.
struct Answer {
    response: Response,
    is_foreign: bool,
}

impl Endpoint {
    /// Builds the client for `base`. Sends nothing.
    pub(crate) fn new(base: &Url, settings: &ClientSettings) -> Result<Self, BuildError> {
        let origin = origin_of_base(base)?;
        let home = origin_of_base(&settings.url)?;
        let bounds = Bounds::around(origin.host());
        let secret = settings.credentials.clone().filter(|_| origin == home);
        Ok(Self {
            base: base.clone(),
            credential: secret.map(|secret| Credential::bind(secret, home)),
            http: build_http(settings, bounds.clone())?,
            origin,
            bounds,
            tokens: Tokens::new(),
            remembered: Cache::new(MAX_REMEMBERED),
            breaker: Breaker::default(),
            head_timeout: settings
                .connect_timeout
                .saturating_add(settings.idle_timeout),
            pace: Pace {
                idle_timeout: settings.idle_timeout,
                minimum_rate: settings.minimum_rate,
            },
        })
    }

    /// Whether its breaker is open.
    pub(crate) fn is_resting(&self) -> bool {
        self.breaker.is_open()
    }

    /// Runs `attempt` unless the breaker is open, and tells the breaker how it went.
    pub(crate) async fn guarded<T>(
        &self,
        call: &Call,
        attempt: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let pass = match self.breaker.admit(Instant::now()) {
            Ok(pass) => pass,
            Err(pause) => {
                let error = call.fail(Kind::Unavailable, "not tried, it failed too often just now");
                return Err(UpstreamError {
                    retry_after: Some(pause),
                    ..error
                });
            }
        };
        let result = attempt.await;
        let is_unavailable = matches!(&result, Err(error) if error.kind == Kind::Unavailable);
        pass.settle(!is_unavailable, Instant::now());
        result
    }

    /// The response to `ask`, when its status is `wanted`.
    pub(crate) async fn fetch(
        &self,
        ask: &Ask<'_>,
        wanted: &[StatusCode],
    ) -> Result<Response, UpstreamError> {
        let Answer {
            response,
            is_foreign,
        } = self.ask(ask).await?;
        if wanted.contains(&response.status()) {
            return Ok(response);
        }
        let error = answer::failure(&ask.call, response.status(), response.headers(), is_foreign);
        drain(response).await;
        Err(error)
    }

    /// The body of a response of this endpoint.
    pub(crate) fn body(&self, call: &Call, response: Response, expected: Option<u64>) -> Body {
        Body::new(response, call.clone(), self.pace, expected)
    }

    // --- authentication ---

    async fn ask(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let began = Instant::now();
        let mut proof = self.remembered_proof(ask).await?;
        let mut rounds = 1..=MAX_ROUNDS;
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
                Proof::Basic => true,
                Proof::Bearer(_, token) => token.issued() >= began,
            };
            if is_final || rounds.is_empty() {
                return Ok(answer);
            }
            if let Proof::Bearer(key, token) = &proof {
                self.tokens.discard(key, token).await;
            }
            let scheme = self.choose(ask, answer.response.headers())?;
            drain(answer.response).await;
            proof = self.prove(ask, scheme).await?;
        }
    }

    async fn remembered_proof(&self, ask: &Ask<'_>) -> Result<Proof, UpstreamError> {
        match self.remembered.get(ask.repository) {
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
            let realm = Realm::admit(realm, &self.origin).map_err(|error| {
                let answer = format_args!("401, {error}; nothing was sent to it");
                ask.call.fail_with(Kind::Refused, answer, error)
            })?;
            return Ok(Scheme::Bearer(Arc::new(TokenKey {
                realm,
                service: challenge.parameter("service").map(str::to_owned),
                scope: scope(ask.repository, challenge),
            })));
        }
        match challenges
            .iter()
            .any(|challenge| challenge.scheme == "basic")
        {
            true if self.credential.is_some() => Ok(Scheme::Basic),
            true => Err(refused(
                "it wants a user and there are no credentials for it",
            )),
            false => Err(refused("without a challenge that can be answered")),
        }
    }

    /// Gets what the scheme wants, and remembers the scheme while that works.
    async fn prove(&self, ask: &Ask<'_>, scheme: Scheme) -> Result<Proof, UpstreamError> {
        let repository = ask.repository.clone();
        let Scheme::Bearer(key) = scheme else {
            self.remembered.insert(repository, scheme);
            return Ok(Proof::Basic);
        };
        let fetch = self.fetch_token(&ask.call, &key);
        match self.tokens.get(&key, fetch).await {
            Ok(token) => {
                self.remembered
                    .insert(repository, Scheme::Bearer(Arc::clone(&key)));
                Ok(Proof::Bearer(key, token))
            }
            Err(error) => {
                self.remembered.invalidate(ask.repository);
                Err(UpstreamError {
                    retry_after: error.retry_after,
                    ..ask.call.fail_with(error.kind, "no token", error)
                })
            }
        }
    }

    async fn fetch_token(&self, call: &Call, key: &TokenKey) -> Result<Token, UpstreamError> {
        let call = call.instead("GET token");
        let issued = Instant::now();
        let mut url = key.realm.url().clone();
        let service = key.service.iter().map(|service| ("service", service));
        url.query_pairs_mut()
            .extend_pairs(service.chain([("scope", &key.scope)]));
        let request = self.request(&call, Method::GET, &url)?;
        let request = match &self.credential {
            Some(credential) => credential.attach_to_realm(request, &key.realm),
            None => request,
        };
        let response = self.dispatch(&call, request).await?;
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

    // --- sending ---

    /// Sends `ask` and follows its redirects. Once a redirect leaves the origin, the proof stays behind for good.
    async fn send(&self, ask: &Ask<'_>, proof: &Proof) -> Result<Answer, UpstreamError> {
        let mut url = self.url(ask);
        let mut is_foreign = false;
        for _ in 0..=redirect::MAX_REDIRECTS {
            let mut request = self.request(&ask.call, ask.method.clone(), &url)?;
            if let Some(accept) = ask.accept {
                request = request.header(header::ACCEPT, accept);
            }
            if ask.offset > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.offset));
            }
            if !is_foreign {
                request = self.attach(request, proof);
            }
            let response = self.dispatch(&ask.call, request).await?;
            if !redirect::is_redirect(response.status()) {
                return Ok(Answer {
                    response,
                    is_foreign,
                });
            }
            let target = redirect::target(&url, response.headers(), &self.bounds);
            url = target.map_err(|error| ask.call.fail(Kind::Invalid, error))?;
            is_foreign |= Origin::of(&url).as_ref() != Some(&self.origin);
            drain(response).await;
        }
        Err(ask.call.fail(Kind::Invalid, "too many redirects"))
    }

    fn attach(&self, request: RequestBuilder, proof: &Proof) -> RequestBuilder {
        match (proof, &self.credential) {
            (Proof::Bearer(_, token), _) => token.attach(request),
            (Proof::Basic, Some(credential)) => credential.attach_to(request, &self.origin),
            (Proof::Basic | Proof::None, _) => request,
        }
    }

    /// The one place where a request is begun: an address out of bounds does not get past it.
    fn request(
        &self,
        call: &Call,
        method: Method,
        url: &Url,
    ) -> Result<RequestBuilder, UpstreamError> {
        let blocked = |error| call.fail_with(Kind::Refused, error, error);
        self.bounds.check(url).map_err(blocked)?;
        Ok(self.http.request(method, url.clone()))
    }

    async fn dispatch(
        &self,
        call: &Call,
        request: RequestBuilder,
    ) -> Result<Response, UpstreamError> {
        match timeout(self.head_timeout, request.send()).await {
            Ok(sent) => sent.map_err(|error| call.transport(error)),
            Err(silence) => Err(call.fail_with(Kind::Unavailable, "no answer in time", silence)),
        }
    }

    fn url(&self, ask: &Ask<'_>) -> Url {
        let mut url = self.base.clone();
        // Only a URL that cannot be a base has no segments; an http URL always can.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments
                .pop_if_empty()
                .push("v2")
                .extend(ask.repository.as_str().split('/'))
                .extend(ask.path);
        }
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&ask.query);
        }
        url
    }
}

/// The scope to ask for: pulling the repository, by the name its registry knows it under. A gateway below a path prefix calls it
/// by its own longer name, which is taken over from the challenge; nothing else in a challenge's scope is.
fn scope(repository: &RepositoryName, challenge: &Challenge) -> String {
    let own = format!("repository:{repository}:pull");
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

fn build_http(settings: &ClientSettings, bounds: Bounds) -> Result<Client, BuildError> {
    let identity = HeaderValue::from_static("identity");
    let builder = Client::builder()
        .user_agent(&settings.user_agent)
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]))
        .connect_timeout(settings.connect_timeout)
        .dns_resolver(bounds)
        .redirect(reqwest::redirect::Policy::none())
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .referer(false)
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate();
    let builder = match &settings.root_certificates {
        None => builder,
        Some(pem) => {
            let broken = |error| BuildError::RootCertificates(Some(error));
            let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(broken)?;
            if roots.is_empty() {
                return Err(BuildError::RootCertificates(None));
            }
            builder.tls_certs_merge(roots)
        }
    };
    builder.build().map_err(BuildError::Client)
}

/// Reads an unwanted body away when it is small and quick; else its connection is closed.
async fn drain(mut response: Response) {
    let read = async {
        let mut left = MAX_DRAINED_BYTES;
        while let Ok(Some(part)) = response.chunk().await {
            let Some(rest) = left.checked_sub(part.len()) else {
                return;
            };
            left = rest;
        }
    };
    timeout(DRAIN_TIMEOUT, read).await.unwrap_or_default();
}
