//! Authentication at one base URL: answers its challenges with tokens and passwords.
//!
//! Owns which proof is tried after which, and the requests for tokens. Sends requests to the registry itself by `endpoint`.
//! Invariant: a secret leaves only in a request to the own origin, or to a realm that was admitted for it.

use std::sync::Arc;

use futures_util::{FutureExt as _, future::BoxFuture};
use gantry_model::RepositoryName;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Response;
use tokio::time::Instant;
use url::Url;

use super::{Answer, Ask, Endpoint, hear, leave};
use crate::{
    answer,
    challenge::Challenge,
    credential::{Credential, Origin},
    error::{Call, Cause, Kind, UpstreamError},
    realm::{Carries, Realm},
    redirect,
    session::{Proof, Scheme, Session},
    token::{Fetched, MAX_TOKEN_BODY_BYTES, Token, TokenKey},
    transport::drain,
};

/// Without a token, with a kept one that turns out stale, with a fresh one, with a password.
const MAX_ROUNDS: usize = 4;

/// The state of one call's login.
struct Login {
    began: Instant,
    /// Whether other credentials were looked for.
    is_renewed: bool,
}

/// What comes after a challenge.
enum Next {
    /// Nothing: this is the answer.
    Final(Answer),
    /// The same request with this proof.
    Again(Proof),
}

impl Endpoint {
    /// Sends `ask` with ever better proofs, for as long as the upstream asks for one.
    pub(super) async fn ask(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let mut login = Login {
            began: Instant::now(),
            is_renewed: false,
        };
        let mut proof = self.remembered_proof(ask).await?;
        for _round in 1..MAX_ROUNDS {
            let answer = self.send(ask, &proof).await?;
            if answer.is_foreign || !is_challenge(&answer.response, &proof) {
                return Ok(answer);
            }
            match self
                .answer_challenge(ask, &proof, answer, &mut login)
                .await?
            {
                Next::Final(answer) => return Ok(answer),
                Next::Again(better) => proof = better,
            }
        }
        self.send(ask, &proof).await
    }

    /// A token that was fetched for this call, or a password that it sent, is not sent again after the registry has refused it.
    async fn answer_challenge(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        proof: &Proof,
        answer: Answer,
        login: &mut Login,
    ) -> Result<Next, UpstreamError> {
        let session = self.session(ask);
        match proof {
            Proof::None => {}
            Proof::Basic(_) if login.is_renewed => return Ok(Next::Final(answer)),
            Proof::Basic(refused) => {
                login.is_renewed = true;
                if !session.account.renew(&ask.call, refused).await? {
                    return Ok(Next::Final(answer));
                }
            }
            Proof::Bearer(_, token) if token.issued() >= login.began => {
                let Some(basic) = self.basic_instead(ask, &answer.response).await else {
                    return Ok(Next::Final(answer));
                };
                drain(answer.response).await;
                return Ok(Next::Again(basic));
            }
            Proof::Bearer(key, token) => session.tokens.discard(key, token).await,
        }
        let scheme = self.choose(ask, answer.response.headers())?;
        drain(answer.response).await;
        self.prove(ask, scheme).await.map(Next::Again)
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
            false if challenges.is_empty() && answer::is_html(headers) => {
                Err(ask.call.fail(Kind::Unavailable, answer::HTML))
            }
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
        if let Some(form) = form {
            let form: Vec<(&str, &str)> = asked.chain(form).collect();
            let request = self.transport.request(call, Method::POST, &url, is_ours)?;
            let request = request.with(|request| request.form(&form));
            return self.transport.dispatch(call, request).await;
        }
        url.query_pairs_mut().extend_pairs(asked);
        self.follow_to_token(ask, credential, url).await
    }

    /// Follows the redirects of a token endpoint within its origin. Another origin was never admitted as a realm.
    async fn follow_to_token(
        &self,
        ask: &TokenAsk<'_>,
        credential: Option<&Credential>,
        mut url: Url,
    ) -> Result<Response, UpstreamError> {
        let TokenAsk { call, key, is_ours } = *ask;
        for _ in 0..=redirect::MAX_REDIRECTS {
            let mut request = self.transport.request(call, Method::GET, &url, is_ours)?;
            if let Some(credential) = credential {
                request = request.with(|request| credential.attach_to_realm(request, &key.realm));
            }
            let response = self.transport.dispatch(call, request).await?;
            if !redirect::is_redirect(response.status()) {
                return Ok(response);
            }
            let target = redirect::target(&url, response.headers(), self.transport.bounds());
            let target = target.map_err(|error| call.fail(Kind::Invalid, error))?;
            if Origin::of(&target) != Origin::of(&url) {
                let answer = "a redirect of the token endpoint to another origin";
                return Err(call.fail(Kind::Invalid, answer));
            }
            drain(response).await;
            url = target;
        }
        Err(call.fail(Kind::Invalid, "too many redirects"))
    }

    /// An anonymous token of the registry that a redirect led to. The mirror's credentials and headers do not go there.
    pub(super) async fn token_away(
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
    // Without a repository the token proves an identity and has no scope.
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
