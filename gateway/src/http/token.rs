//! The token endpoint: `GET` and `POST /token` of docker's token protocol.
//!
//! Owns the forms a request may have and the answer's shape. Granting less than asked is no error, nor is a scope nobody knows; a bad
//! credential is. There are no refresh tokens: docker would keep one instead of the password and could never fall back.

use std::sync::Arc;

use bytes::Bytes;
use gantry_model::{Reason, Repository, Scope, namespace::Address};
use gantry_plugin_host::Credential;
use gantry_registry::{Body, BodyError, Error as RegistryError};
use http::{Method, StatusCode, header, request::Parts};
use serde_json::json;

use super::{
    credential,
    error::Error,
    exchange::Exchange,
    respond,
    route::{Query, RouteError},
};
use crate::{
    app::Generation,
    auth::{self, IssuedToken, TokenRequest, token::may_fit},
};

/// Bytes of a form at most.
const MAX_FORM_BYTES: usize = 64 << 10;

/// Parameters at most, in the query and in the form: as many scopes as either has bytes for.
const MAX_PARAMETERS: usize = 4096;

/// Answers a request to `/token`.
///
/// # Errors
/// [`Error::Unauthorized`] for a bad credential; [`Error::Route`] for a request that is no token request.
pub async fn answer(
    generation: &Generation,
    exchange: &mut Exchange,
    parts: &Parts,
    body: Body,
) -> Result<respond::Reply, Error> {
    let form = Form::read(parts, body).await?;
    let credential = match generation.is_open {
        true => Credential::Anonymous,
        false => form.credential(parts)?,
    };
    let address = Address {
        mirror: exchange.mirror(),
        host: exchange.origin().host.as_deref(),
        path_prefix: None,
        namespace: form.query.single("ns")?,
    };
    let scopes = resolve(generation, address, form.scopes());
    let shown_for = generation.policy.callers().of_scopes(&scopes, address);
    let client = Arc::clone(exchange.client());
    let identified = exchange
        .deadline(Box::pin(auth::authenticate(
            generation, &client, credential, shown_for,
        )))
        .await?;
    exchange.identified(&identified);
    let request = TokenRequest {
        request_id: Arc::clone(exchange.request_id()),
        client,
        identified,
        scopes,
        service: exchange.frame().challenge.service.clone(),
    };
    let token = exchange
        .deadline(auth::issue_token(generation, request))
        .await?;
    exchange.allowed(&Reason::new("token-issued", "a token was issued"));
    Ok(render(exchange.request_id(), &token))
}

/// The parameters, from the query and from the form.
struct Form {
    query: Query,
    form: Query,
}

impl Form {
    async fn read(parts: &Parts, body: Body) -> Result<Self, Error> {
        let query = Query::parse_up_to(MAX_PARAMETERS, parts.uri.query().unwrap_or_default())?;
        let form = match parts.method {
            Method::GET => Query::default(),
            Method::POST => Self::read_body(parts, body).await?,
            _ => return Err(RouteError::MethodNotAllowed { allow: "GET, POST" }.into()),
        };
        let form = Self { query, form };
        // containerd and BuildKit ask again by GET after a 404, but not after a 400.
        let offered = form.form.all("grant_type").all(|kind| kind == "password");
        if offered {
            Ok(form)
        } else {
            Err(RouteError::NotFound.into())
        }
    }

    async fn read_body(parts: &Parts, body: Body) -> Result<Query, Error> {
        let form = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .is_some_and(|value| {
                value
                    .trim()
                    .eq_ignore_ascii_case("application/x-www-form-urlencoded")
            });
        if !form {
            return Err(RouteError::NotFound.into());
        }
        let bytes: Bytes = body.read_capped(MAX_FORM_BYTES).await.map_err(body_error)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_bytes| RouteError::Encoding("not UTF-8"))?;
        Ok(Query::parse_up_to(MAX_PARAMETERS, text)?)
    }

    fn credential(&self, parts: &Parts) -> Result<Credential, Error> {
        // Nobody is who `account` says; what can be no user's name is refused here as elsewhere.
        for account in self.query.all("account").chain(self.form.all("account")) {
            shown_in_form(account, "")?;
        }
        let shown = credential::parse(&parts.headers)?;
        if shown != Credential::Anonymous {
            return Ok(shown);
        }
        let username = self.form.single("username")?;
        let password = self.form.single("password")?;
        match (username, password) {
            (Some(username), Some(password)) => shown_in_form(username, password),
            _ => Ok(Credential::Anonymous),
        }
    }

    /// Every scope, repeated or joined by spaces, merged by resource, in order. What is no scope is dropped, and from the end what no token
    /// has room for.
    fn scopes(&self) -> Vec<Scope> {
        let mut scopes: Vec<Scope> = Vec::new();
        let words = [&self.query, &self.form]
            .into_iter()
            .flat_map(|query| query.all("scope"))
            .flat_map(str::split_whitespace);
        for scope in words.filter_map(|word| word.parse::<Scope>().ok()) {
            let known = scopes
                .iter_mut()
                .find(|known| known.kind == scope.kind && known.name == scope.name);
            if let Some(known) = known {
                known.actions.extend(scope.actions);
            } else if may_fit(&scopes) {
                scopes.push(scope);
            }
        }
        scopes
    }
}

fn shown_in_form(username: &str, password: &str) -> Result<Credential, Error> {
    Credential::basic(username, password).map_err(|malformed| Error::Unauthorized {
        scopes: Vec::new(),
        error: None,
        message: malformed.to_string(),
    })
}

fn resolve(
    generation: &Generation,
    address: Address<'_>,
    scopes: Vec<Scope>,
) -> Vec<(Scope, Option<Repository>)> {
    scopes
        .into_iter()
        .map(|scope| {
            let repository = (scope.kind == "repository")
                .then(|| {
                    generation
                        .namespaces
                        .resolve_in_scope(address, &scope.name)
                        .ok()
                })
                .flatten();
            (scope, repository)
        })
        .collect()
}

fn body_error(error: BodyError) -> Error {
    RegistryError::Body(error).into()
}

/// The union of the fields that clients read.
fn render(request_id: &str, token: &IssuedToken) -> respond::Reply {
    let issued_at = i64::try_from(token.issued_at)
        .ok()
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .map(|timestamp| timestamp.to_string());
    let scopes: Vec<String> = token.scopes.iter().map(ToString::to_string).collect();
    let body = json!({
        "token": token.token,
        "access_token": token.token,
        "expires_in": token.expires_in,
        "issued_at": issued_at,
        "scope": scopes.join(" "),
    });
    let mut reply = respond::plain(
        request_id,
        StatusCode::OK,
        "application/json",
        body.to_string(),
    );
    reply.headers_mut().insert(
        header::CACHE_CONTROL,
        http::HeaderValue::from_static("no-store"),
    );
    reply
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, content_type: Option<&str>) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.body(()).unwrap().into_parts().0
    }

    const FORM: Option<&str> = Some("application/x-www-form-urlencoded; charset=utf-8");

    async fn read(parts: &Parts, body: &str) -> Result<Form, StatusCode> {
        let body = Body::from_bytes(Bytes::copy_from_slice(body.as_bytes()));
        Form::read(parts, body)
            .await
            .map_err(|error| error.answer().status)
    }

    fn scopes(form: &Form) -> Vec<String> {
        form.scopes().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn scopes_are_split_merged_and_the_malformed_dropped() {
        let uri = "/token?service=gw&account=a&client_id=docker&offline_token=true\
             &scope=repository:a/b:push,pull&scope=repository:c/d:pull+repository:a/b:delete\
             &scope=nonsense&scope=&scope=repository(plugin):e:pull&scope=registry:catalog:*";
        let form = read(&parts("GET", uri, None), "").await.ok().unwrap();
        assert_eq!(
            scopes(&form),
            [
                "repository:a/b:delete,pull,push",
                "repository:c/d:pull",
                "repository:e:pull",
                "registry:catalog:*"
            ]
        );
    }

    #[tokio::test]
    async fn a_form_shows_username_and_password() {
        let parts = parts("POST", "/token?ns=ghcr.io", FORM);
        let body =
            "grant_type=password&username=al%69ce&password=p%26+w&scope=repository%3Ax%3Apull";
        let form = read(&parts, body).await.ok().unwrap();
        assert!(form.credential(&parts).ok() == Credential::basic("alice", "p& w").ok());
        assert_eq!(scopes(&form), ["repository:x:pull"]);
        assert_eq!(form.query.single("ns").ok().flatten(), Some("ghcr.io"));
    }

    #[tokio::test]
    async fn a_user_name_that_no_other_way_in_takes_is_refused() {
        for (query, body) in [
            ("", "grant_type=password&username=ali%3Ace&password=x"),
            ("", "grant_type=password&username=alice%0a&password=x"),
            ("", "grant_type=password&username=alice&password=x%00"),
            ("", "grant_type=password&username=alice&password=%c2%85"),
            (
                "",
                "grant_type=password&account=a%3Ab&username=alice&password=x",
            ),
            ("?account=a:b", "grant_type=password"),
            ("?account=a%09b", "grant_type=password"),
        ] {
            let parts = parts("POST", &format!("/token{query}"), FORM);
            let form = read(&parts, body).await.ok().unwrap();
            let refused = form
                .credential(&parts)
                .err()
                .map(|error| error.answer().status);
            assert_eq!(refused, Some(StatusCode::UNAUTHORIZED), "{query} {body}");
        }
    }

    #[tokio::test]
    async fn what_we_do_not_offer_makes_clients_fall_back_to_get() {
        let refresh = "grant_type=refresh_token&refresh_token=x";
        for (parts, body) in [
            (parts("POST", "/token", FORM), refresh),
            (
                parts("POST", "/token", FORM),
                "grant_type=client_credentials",
            ),
            (parts("POST", "/token", Some("application/json")), "{}"),
            (parts("POST", "/token", None), ""),
        ] {
            assert_eq!(read(&parts, body).await.err(), Some(StatusCode::NOT_FOUND));
        }
        let put = parts("PUT", "/token", FORM);
        assert_eq!(
            read(&put, "").await.err(),
            Some(StatusCode::METHOD_NOT_ALLOWED)
        );
    }

    #[tokio::test]
    async fn a_form_that_is_too_large_is_refused() {
        let body = "a".repeat(MAX_FORM_BYTES + 1);
        let parts = parts("POST", "/token", FORM);
        assert_eq!(
            read(&parts, &body).await.err(),
            Some(StatusCode::PAYLOAD_TOO_LARGE)
        );
    }

    #[tokio::test]
    async fn many_scopes_are_read_in_order_whether_in_the_query_or_in_a_form() {
        let scope = |index| format!("repository:team/image-{index}:pull,push");
        let words: Vec<String> = (0..400).map(scope).collect();
        let repeated = format!("scope={}", words.join("&scope="));
        let joined = format!("scope={}", words.join("+"));
        for text in [repeated, joined] {
            let query = parts("GET", &format!("/token?{text}"), None);
            let form = read(&query, "").await.ok().unwrap();
            let read_from_query = scopes(&form);
            let form = read(&parts("POST", "/token", FORM), &text).await;
            assert_eq!(scopes(&form.ok().unwrap()), read_from_query);
            let held = read_from_query.len();
            assert!(held >= 256, "{held}");
            assert_eq!(read_from_query, words.get(..held).unwrap());
        }
    }

    #[tokio::test]
    async fn what_no_token_has_room_for_is_dropped_from_the_end() {
        use std::fmt::Write as _;
        let mut body = String::from("scope=repository:first:pull");
        for index in 0..5000 {
            write!(body, "+r:{index}:pull").unwrap();
        }
        body.push_str("+repository:first:push");
        let form = read(&parts("POST", "/token", FORM), &body).await;
        let scopes = scopes(&form.ok().unwrap());
        assert!(scopes.len() < 1000, "{}", scopes.len());
        assert_eq!(scopes.first().unwrap(), "repository:first:pull,push");
    }

    #[test]
    fn the_answer_has_every_field_that_clients_read() {
        let token = IssuedToken {
            token: "abc".to_owned(),
            expires_in: 300,
            issued_at: 1_795_271_038,
            scopes: vec!["repository:a/b:pull".parse().unwrap()],
        };
        let reply = render("id", &token);
        assert_eq!(reply.headers()["content-type"], "application/json");
        assert_eq!(reply.headers()["cache-control"], "no-store");
        let text = reply.body().text();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["token"], "abc");
        assert_eq!(json["access_token"], "abc");
        assert_eq!(json["expires_in"], 300);
        assert_eq!(json["issued_at"], "2026-11-21T14:23:58Z");
        assert_eq!(json["scope"], "repository:a/b:pull");
        assert!(json.get("refresh_token").is_none());
    }
}
