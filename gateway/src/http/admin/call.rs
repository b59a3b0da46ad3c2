//! The form of the admin API: routes, what a route is called with, what it answers, and how that is written.
//!
//! Everything is JSON. A failure is `{"errors":[{"code","message"}]}` as on `/v2/`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use gantry_model::{Principal, Requester};
use gantry_registry::Body;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use super::MAX_BODY_BYTES;
use crate::{
    app::Generation,
    auth::Identified,
    http::respond::{self, Reply},
    reload::Reloader,
};

/// One thing the API can do.
#[derive(Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path; a segment `{}` is any one segment, given to the route in [`Call::captured`].
    pub path: &'static str,
    /// Does it. Whoever asks was allowed to.
    pub run: fn(Call) -> BoxFuture<'static, Answered>,
}

/// What a route is called with.
#[derive(Debug)]
pub struct Call {
    /// The process, and the way to another configuration.
    pub reloader: Arc<Reloader>,
    /// The generation that the caller was judged by.
    pub generation: Arc<Generation>,
    /// Who asks.
    pub principal: Arc<Principal>,
    /// Who asks, and what the credential allows at most.
    pub identified: Identified,
    /// Who asks, for policy.
    pub requester: Requester,
    /// What stands at the `{}` of the path, undecoded.
    pub captured: Vec<String>,
    /// The query as written; empty when there is none.
    pub query: String,
    /// The body; an error when it did not arrive whole.
    pub body: Result<Bytes, Problem>,
}

/// The status and the document, or why not.
pub type Answered = Result<(StatusCode, Value), Problem>;

/// Why there is no document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    /// One error each.
    messages: Vec<String>,
    allow: Option<String>,
}

impl Problem {
    /// 404.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", vec![message.into()])
    }

    /// 400: the request is not understood.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", vec![message.into()])
    }

    /// 422: understood, and not possible for these reasons.
    #[must_use]
    pub fn refused(messages: Vec<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "REFUSED", messages)
    }

    /// 500; the log says why.
    #[must_use]
    pub fn internal() -> Self {
        let message = "internal error".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", vec![message])
    }

    /// 503; the log says why.
    #[must_use]
    pub fn unavailable() -> Self {
        let message = "the service is temporarily unavailable".to_owned();
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            vec![message],
        )
    }

    /// The request may come from a page of another site.
    pub(super) fn site(status: StatusCode, message: String) -> Self {
        Self::new(status, "DENIED", vec![message])
    }

    pub(super) fn method(allow: String) -> Self {
        let message = format!("only {allow}");
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", vec![message])
        }
    }

    fn new(status: StatusCode, code: &'static str, messages: Vec<String>) -> Self {
        Self {
            status,
            code,
            messages,
            allow: None,
        }
    }
}

/// What a path means.
pub(super) enum Match {
    /// A route, and what stands at its `{}`.
    Found(&'static Route, Vec<String>),
    /// The path is known under other methods only.
    Methods(String),
    /// Nothing has this path.
    Nothing,
}

pub(super) fn find(routes: &'static [&'static [Route]], method: &Method, path: &str) -> Match {
    let mut others: Vec<&str> = Vec::new();
    for route in routes.iter().copied().flatten() {
        match captures(route.path, path) {
            Some(captured) if route.method == *method => return Match::Found(route, captured),
            Some(_) => others.push(route.method.as_str()),
            None => {}
        }
    }
    if others.is_empty() {
        Match::Nothing
    } else {
        Match::Methods(others.join(", "))
    }
}

fn captures(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut captured = Vec::new();
    let mut segments = path.split('/');
    for wanted in pattern.split('/') {
        let segment = segments.next()?;
        if wanted == "{}" && !segment.is_empty() {
            captured.push(segment.to_owned());
        } else if wanted != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(captured)
}

/// The whole body.
pub(super) async fn body_of(body: Body) -> Result<Bytes, Problem> {
    let most = usize::try_from(MAX_BODY_BYTES).unwrap_or(usize::MAX);
    body.read_capped(most)
        .await
        .map_err(|error| Problem::bad_request(format!("the body cannot be read: {error}")))
}

pub(super) fn render(request_id: &str, answered: Answered) -> Reply {
    let (status, document, allow) = match answered {
        Ok((status, document)) => (status, document, None),
        Err(problem) => {
            let code = problem.code;
            let error = |message: &String| json!({ "code": code, "message": message });
            let errors: Vec<Value> = problem.messages.iter().map(error).collect();
            (problem.status, json!({ "errors": errors }), problem.allow)
        }
    };
    let mut text = document.to_string();
    text.push('\n');
    let mut reply = respond::plain(request_id, status, "application/json", text);
    if let Some(allow) = allow.and_then(|allow| HeaderValue::from_str(&allow).ok()) {
        reply.headers_mut().insert(header::ALLOW, allow);
    }
    // Answers are of this moment and for this caller.
    reply
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(_call: Call) -> BoxFuture<'static, Answered> {
        Box::pin(async { Err(Problem::internal()) })
    }

    const TABLE: &[&[Route]] = &[&[
        Route {
            method: Method::GET,
            path: "/admin/v1/things",
            run: nothing,
        },
        Route {
            method: Method::POST,
            path: "/admin/v1/things/{}/turn",
            run: nothing,
        },
        Route {
            method: Method::DELETE,
            path: "/admin/v1/things",
            run: nothing,
        },
    ]];

    #[test]
    fn a_path_means_one_route_its_methods_or_nothing() {
        let check = |method, path: &str, expect: &str| {
            let found = match find(TABLE, &method, path) {
                Match::Found(route, captured) => format!("{} {captured:?}", route.path),
                Match::Methods(allow) => allow,
                Match::Nothing => "nothing".to_owned(),
            };
            assert_eq!(found, expect, "{method} {path}");
        };
        check(Method::GET, "/admin/v1/things", "/admin/v1/things []");
        check(Method::PUT, "/admin/v1/things", "GET, DELETE");
        check(
            Method::POST,
            "/admin/v1/things/7/turn",
            "/admin/v1/things/{}/turn [\"7\"]",
        );
        for path in [
            "/admin/v1/things/",
            "/admin/v1/things//turn",
            "/admin/v1/things/7/turn/",
            "/admin/v1/things/7/8/turn",
            "/admin/v1/",
        ] {
            check(Method::POST, path, "nothing");
        }
    }
}
