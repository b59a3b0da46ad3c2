//! Bearer tokens: reading the token endpoint's answer, and keeping tokens while they are fresh.
//!
//! Owns how long a token is used and that one is fetched once, however many callers wait for it. Sends nothing itself.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant as StdInstant},
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use moka::{Expiry, future::Cache};
use reqwest::RequestBuilder;
use tokio::time::Instant;
use tracing::Instrument as _;
use zeroize::Zeroizing;

use crate::{
    error::{Call, Kind, UpstreamError},
    realm::Realm,
};

/// The largest answer of a token endpoint that is read, as go-containerregistry has it.
pub(crate) const MAX_TOKEN_BODY_BYTES: usize = 64 << 10;
/// When the endpoint does not say (token spec, `expires_in`).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// No token is trusted to last longer.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Tokens kept for one base URL.
const MAX_TOKENS: u64 = 10_000;

/// What a token is asked for with.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct TokenKey {
    pub(crate) realm: Realm,
    pub(crate) service: Option<String>,
    pub(crate) scope: String,
    /// Of the account it was got with, so that none outlives its credentials.
    pub(crate) generation: u64,
}

/// A token, and since when we have it.
#[derive(Clone)]
pub(crate) struct Token {
    value: Arc<Zeroizing<String>>,
    issued: Instant,
    fresh_for: Duration,
}

impl Token {
    /// Reads the answer to a request sent at `issued`. `None` when there is no token in it.
    pub(crate) fn parse(body: &[u8], issued: Instant) -> Option<Self> {
        let answer: Answer = serde_json::from_slice(body).ok()?;
        // Harbor answers `"access_token": ""` beside a real `token`.
        let given =
            |field: Option<String>| field.map(Zeroizing::new).filter(|text| !text.is_empty());
        let value = given(answer.token).or_else(|| given(answer.access_token))?;
        if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        Some(Self {
            value: Arc::new(value),
            issued,
            fresh_for: fresh_for(answer.expires_in.as_u64()),
        })
    }

    /// When the request that brought it was sent.
    pub(crate) fn issued(&self) -> Instant {
        self.issued
    }

    /// Adds `Authorization: Bearer`.
    pub(crate) fn attach(&self, request: RequestBuilder) -> RequestBuilder {
        request.bearer_auth(self.value.as_str())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(***)")
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    #[serde(default)]
    expires_in: serde_json::Value,
}

/// Four fifths of the lifetime, so that a token does not expire on its way; registries' clocks differ from ours.
fn fresh_for(expires_in: Option<u64>) -> Duration {
    let lifetime = match expires_in {
        None | Some(0) => DEFAULT_LIFETIME,
        Some(seconds) => Duration::from_secs(seconds).min(LONGEST_LIFETIME),
    };
    lifetime * 4 / 5
}

/// What became of a request for a token.
pub(crate) type Fetched = Result<Token, Arc<UpstreamError>>;

/// The tokens of one identity at one base URL.
#[derive(Clone)]
pub(crate) struct Tokens {
    kept: Cache<TokenKey, Token>,
    /// Protects: the requests under way. Held for a look-up, never over an await.
    running: Arc<Mutex<HashMap<TokenKey, Shared<BoxFuture<'static, Fetched>>>>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder().max_capacity(MAX_TOKENS);
        Self {
            kept: cache.expire_after(Freshness).build(),
            running: Arc::default(),
        }
    }

    /// A fresh token: a kept one, or the one that `fetch` brings. Callers that come while one fetches share its outcome; it goes on when
    /// they leave, so that there is one request at a time.
    pub(crate) async fn get(
        &self,
        call: &Call,
        key: &TokenKey,
        fetch: impl FnOnce() -> BoxFuture<'static, Result<Token, UpstreamError>> + Send,
    ) -> Fetched {
        if let Some(kept) = self.kept.get(key).await {
            return Ok(kept);
        }
        self.join_or_start(call, key, fetch).await
    }

    fn join_or_start(
        &self,
        call: &Call,
        key: &TokenKey,
        fetch: impl FnOnce() -> BoxFuture<'static, Result<Token, UpstreamError>>,
    ) -> Shared<BoxFuture<'static, Fetched>> {
        let mut running = self.running();
        if let Some(flight) = running.get(key) {
            return flight.clone();
        }
        let (tokens, landed, fetch) = (self.clone(), key.clone(), fetch());
        let work = async move {
            let fetched = fetch.await.map_err(Arc::new);
            if let Ok(token) = &fetched {
                tokens.kept.insert(landed.clone(), token.clone()).await;
            }
            tokens.running().remove(&landed);
            fetched
        };
        let task = tokio::spawn(work.in_current_span());
        let (tokens, lost, call) = (self.clone(), key.clone(), call.clone());
        let flight = async move {
            task.await.unwrap_or_else(|_panicked| {
                tokens.running().remove(&lost);
                Err(Arc::new(call.fail(Kind::Unavailable, "the task went away")))
            })
        };
        let flight = flight.boxed().shared();
        running.insert(key.clone(), flight.clone());
        flight
    }

    /// Forgets a token that was refused, unless another caller has replaced it already.
    pub(crate) async fn discard(&self, key: &TokenKey, refused: &Token) {
        let kept = self.kept.get(key).await;
        if kept.is_some_and(|kept| Arc::ptr_eq(&kept.value, &refused.value)) {
            self.kept.invalidate(key).await;
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<TokenKey, Shared<BoxFuture<'static, Fetched>>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Freshness;

impl Expiry<TokenKey, Token> for Freshness {
    fn expire_after_create(
        &self,
        _key: &TokenKey,
        token: &Token,
        _created_at: StdInstant,
    ) -> Option<Duration> {
        Some(token.fresh_for.saturating_sub(token.issued.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expect: Option<(&str, u64)>) {
        let token = Token::parse(body.as_bytes(), Instant::now());
        let found = token
            .as_ref()
            .map(|token| (token.value.as_str(), token.fresh_for.as_secs()));
        assert_eq!(found, expect, "{body}");
    }

    #[test]
    fn tokens_are_read_as_registries_send_them() {
        check(
            r#"{"token":"a","access_token":"a","expires_in":300}"#,
            Some(("a", 240)),
        );
        check(r#"{"token":"a","access_token":""}"#, Some(("a", 48)));
        check(
            r#"{"access_token":"b","token":"","expires_in":100}"#,
            Some(("b", 80)),
        );
        check(r#"{"access_token":"b","expires_in":0}"#, Some(("b", 48)));
        check(r#"{"token":"a","expires_in":-5}"#, Some(("a", 48)));
        check(r#"{"token":"a","expires_in":"300"}"#, Some(("a", 48)));
        check(
            r#"{"token":"a","expires_in":18446744073709551615}"#,
            Some(("a", 69_120)),
        );
    }

    #[test]
    fn an_answer_without_a_usable_token_is_no_token() {
        for body in [
            r#"{"token":""}"#,
            "{}",
            "",
            "[]",
            r#"{"token":"a b"}"#,
            r#"{"token":"a\r\nX: y"}"#,
            r#"{"token":7}"#,
        ] {
            check(body, None);
        }
    }

    #[test]
    fn debug_shows_no_token() {
        let token = Token::parse(br#"{"token":"canary"}"#, Instant::now()).unwrap();
        assert_eq!(format!("{token:?}"), "Token(***)");
    }
}
