//! The import `http`: requests to granted addresses, through the binary's way out.
//!
//! Owns what a guest may send and where a redirect may lead. A secret's bytes go from the grants into a header that prints as stars;
//! the guest names it and never holds it. Every refusal is the interface's own error, not a trap.

use std::time::Duration;

use ::http::{
    HeaderMap, HeaderName, HeaderValue, Method,
    header::{
        ACCEPT, ACCEPT_LANGUAGE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, LOCATION,
        USER_AGENT,
    },
};
use bytes::Bytes;

use crate::{
    bindings::gantry::plugin::http,
    convert::text,
    grant::{Origin, Target, granted},
    host::{CallState, PluginContext},
    ports::{Outbound, OutboundError, OutboundRequest, OutboundResponse},
};

/// Bytes of a body, in either direction.
const MAX_BODY_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 64;
/// Bytes of all headers of a request together.
const MAX_HEADER_BYTES: usize = 16 << 10;
const MAX_REDIRECTS: usize = 3;

/// Those of one connection, and those that say how long a message is or whom it is for (RFC 9110 section 7.6.1): the host's own.
const HOSTS_OWN: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What of `headers` follows a redirect to another origin.
fn following(headers: &HeaderMap) -> HeaderMap {
    let follows =
        |name: &HeaderName, value: &HeaderValue| FOLLOWING.contains(name) && !value.is_sensitive();
    let headers = headers.iter().filter(|(name, value)| follows(name, value));
    headers
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// The headers that follow a redirect to another origin.
const FOLLOWING: [HeaderName; 6] = [
    ACCEPT,
    ACCEPT_LANGUAGE,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_TYPE,
    USER_AGENT,
];

impl http::Host for CallState {
    async fn send(
        &mut self,
        request: http::Request,
    ) -> wasmtime::Result<Result<http::Response, http::Error>> {
        if !self.budgets.http.try_take() {
            return Ok(Err(http::Error::Budget));
        }
        let remaining = self.clock.remaining();
        let wanted = request
            .timeout_ms
            .map_or(remaining, |wanted| Duration::from_millis(wanted.into()));
        let timeout = wanted.min(remaining);
        let exchange = match Exchange::new(&self.context, request) {
            Ok(exchange) => exchange,
            Err(refused) => return Ok(Err(refused)),
        };
        // The way out keeps the time itself; this bounds all hops of a redirect together.
        let answered = tokio::time::timeout(timeout, exchange.run(&self.context, timeout)).await;
        Ok(answered.unwrap_or(Err(http::Error::Timeout)))
    }
}

/// A checked request on its way through redirects.
struct Exchange {
    method: Method,
    target: Target,
    headers: HeaderMap,
    body: Bytes,
}

impl Exchange {
    fn new(context: &PluginContext, request: http::Request) -> Result<Self, http::Error> {
        if context.grants.http.is_empty() {
            return Err(http::Error::NotAllowed(
                "outbound http is not granted to this plugin".to_owned(),
            ));
        }
        let target = granted(&context.grants.http, &request.url)
            .map_err(|problem| http::Error::NotAllowed(text::clean(&problem, 512)))?;
        if request.body.len() > MAX_BODY_BYTES {
            return Err(http::Error::TooLarge);
        }
        Ok(Self {
            method: method(&request.method)?,
            target,
            headers: headers(context, &request.headers)?,
            body: request.body.into(),
        })
    }

    async fn run(
        mut self,
        context: &PluginContext,
        timeout: Duration,
    ) -> Result<http::Response, http::Error> {
        for _hop in 0..=MAX_REDIRECTS {
            let response = self.ask(&*context.ports.outbound, timeout).await?;
            match self.next(context, &response)? {
                Some(target) => self.redirect(target),
                None => return Ok(answer(response)),
            }
        }
        Err(http::Error::Other(format!(
            "more than {MAX_REDIRECTS} redirects"
        )))
    }

    async fn ask(
        &self,
        outbound: &dyn Outbound,
        timeout: Duration,
    ) -> Result<OutboundResponse, http::Error> {
        let request = OutboundRequest {
            method: self.method.clone(),
            url: self.target.url.clone(),
            headers: self.headers.clone(),
            body: self.body.clone(),
            reach: self.target.reach,
            timeout,
            max_response_bytes: MAX_BODY_BYTES,
        };
        let response = outbound.send(request).await;
        response.map_err(|error| failure(&error, &self.target.origin))
    }

    /// Where the response leads, when it is a redirect that keeps the method. One that turns a POST into a GET is the guest's to read:
    /// a page of a login form is not the answer of the service that was asked.
    fn next(
        &self,
        context: &PluginContext,
        response: &OutboundResponse,
    ) -> Result<Option<Target>, http::Error> {
        let repeatable = matches!(self.method, Method::GET | Method::HEAD);
        let follows = match response.status {
            301..=303 => repeatable,
            307 | 308 => true,
            _ => false,
        };
        let location = response.headers.get(LOCATION);
        let Some(location) = location.filter(|_| follows) else {
            return Ok(None);
        };
        let malformed = || http::Error::Other("a redirect without a usable Location".to_owned());
        let location = location.to_str().map_err(|_error| malformed())?;
        // What the join would take away or turn around is refused in the text itself.
        if location.bytes().any(|byte| byte <= b' ' || byte == b'\\') {
            return Err(malformed());
        }
        let url = self
            .target
            .url
            .join(location)
            .map_err(|_error| malformed())?;
        let target = granted(&context.grants.http, url.as_str()).map_err(|problem| {
            http::Error::NotAllowed(text::clean(&format!("a redirect: {problem}"), 512))
        })?;
        if self.target.origin.is_secure() && !target.origin.is_secure() {
            return Err(http::Error::NotAllowed(
                "a redirect from https to http".to_owned(),
            ));
        }
        Ok(Some(target))
    }

    /// Goes on at `target`. What was meant for one origin does not reach another: any header may hold a token or a signature, so only those
    /// that say what the body is and who asks go along.
    fn redirect(&mut self, target: Target) {
        if target.origin != self.target.origin {
            self.headers = following(&self.headers);
        }
        self.target = target;
    }
}

fn method(text: &str) -> Result<Method, http::Error> {
    const METHODS: [Method; 7] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    METHODS
        .into_iter()
        .find(|method| method.as_str() == text)
        .ok_or_else(|| http::Error::Other("this method is not offered".to_owned()))
}

fn headers(
    context: &PluginContext,
    asked: &[(String, http::HeaderValue)],
) -> Result<HeaderMap, http::Error> {
    if asked.len() > MAX_HEADERS {
        return Err(http::Error::TooLarge);
    }
    let refuse = |name: &str, why: &str| {
        let name = text::clean(name, 64);
        Err(http::Error::Other(format!("the header {name} {why}")))
    };
    let mut headers = HeaderMap::with_capacity(asked.len());
    let mut size = 0;
    for (name, value) in asked {
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            return refuse(name, "is not a name");
        };
        if HOSTS_OWN.contains(&parsed.as_str()) {
            return refuse(name, "is the host's own");
        }
        let value = match value {
            http::HeaderValue::Text(text) => HeaderValue::from_str(text),
            http::HeaderValue::Secret(secret) => {
                let Some(secret) = context.grants.secrets.get(secret) else {
                    return Err(http::Error::NotAllowed(format!(
                        "the secret for the header {parsed} is not granted"
                    )));
                };
                HeaderValue::from_bytes(&secret.0).map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
            }
        };
        let Ok(value) = value else {
            return refuse(name, "has a value that is not one line of text");
        };
        size += parsed.as_str().len() + value.len();
        headers.append(parsed, value);
    }
    if size > MAX_HEADER_BYTES {
        return Err(http::Error::TooLarge);
    }
    Ok(headers)
}

/// The response as the guest gets it. A value that is not text is shown as far as it is.
fn answer(response: OutboundResponse) -> http::Response {
    let headers = response.headers.iter();
    http::Response {
        status: response.status,
        headers: headers
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect(),
        body: response.body.into(),
    }
}

fn failure(error: &OutboundError, origin: &Origin) -> http::Error {
    match error {
        OutboundError::Refused => {
            http::Error::NotAllowed(format!("{origin} leads to an address out of reach"))
        }
        OutboundError::Dns => http::Error::Dns,
        OutboundError::Connect => http::Error::Connect,
        OutboundError::Tls => http::Error::Tls,
        OutboundError::Timeout => http::Error::Timeout,
        OutboundError::TooLarge => http::Error::TooLarge,
        OutboundError::Other(why) => http::Error::Other(text::clean(why, 256)),
    }
}
