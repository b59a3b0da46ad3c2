//! The HTTP client of everything that leaves the gateway: requests and responses are reqwest's, the connections are made here.
//!
//! Owns what a connection is made with: names, TLS, proxies, and the watch over heads that do not end ([`EndlessHead`]), which reqwest's own
//! client has no place for. Knows nothing of registries.

mod connect;
mod tls;
mod watch;

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header, uri::Scheme};
use hyper_util::{
    client::{legacy, proxy::matcher::Matcher},
    rt::{TokioExecutor, TokioTimer},
};
use reqwest::{Body, RequestBuilder, Response, ResponseBuilderExt as _, dns::Resolve};

use self::connect::{ConnectTimeout, Connector};
pub use self::{tls::tls_config, watch::EndlessHead};
use crate::error::BoxError;

/// The largest list of response headers over HTTP/2; over HTTP/1 hyper stops at 100 headers and about 400 KiB.
const MAX_HEADER_BYTES: u32 = 64 << 10;

/// How often a request is sent again that the server says it did not look at (RFC 9113 section 8.7).
const MAX_REPEATS: usize = 2;

/// What a client's connections are made with.
pub struct HttpSettings {
    /// Sent where the request says nothing else.
    pub headers: HeaderMap,
    /// Looks names up.
    pub names: Arc<dyn Resolve>,
    /// Resolving, connecting and the TLS handshake, together.
    pub connect_timeout: Duration,
    /// How long a connection that nobody uses is kept.
    pub idle_timeout: Duration,
    /// Whether a request is sent again that the server says it did not look at.
    pub repeats: bool,
    /// What TLS rests on.
    pub tls: rustls::ClientConfig,
    /// The proxies to go through.
    pub proxies: Option<Matcher>,
}

impl fmt::Debug for HttpSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HttpSettings")
            .finish_non_exhaustive()
    }
}

/// A pool of connections.
#[derive(Clone)]
pub struct HttpClient {
    pool: legacy::Client<Connector, Body>,
    headers: HeaderMap,
    proxies: Option<Arc<Matcher>>,
    repeats: bool,
}

/// An exchange that came to no response. Names no URL, which may carry a CDN's signature.
#[derive(Debug, thiserror::Error)]
#[error("the exchange failed")]
pub struct HttpError {
    is_connect: bool,
    #[source]
    source: BoxError,
}

impl HttpError {
    fn of(source: impl Into<BoxError>) -> Self {
        Self {
            is_connect: false,
            source: source.into(),
        }
    }

    /// Whether there was no connection.
    #[must_use]
    pub fn is_connect(&self) -> bool {
        self.is_connect
    }

    /// The cause of one type, wherever it lies.
    #[must_use]
    pub fn find<T: StdError + 'static>(&self) -> Option<&T> {
        self.chain().find_map(|error| error.downcast_ref())
    }

    /// Whether the server sent interim answers without end.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        let text = EndlessHead.to_string();
        // Over HTTP/2 only the text is left of it.
        self.chain()
            .any(|error| error.is::<EndlessHead>() || error.to_string() == text)
    }

    fn chain(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        let first: &(dyn StdError + 'static) = &*self.source;
        std::iter::successors(Some(first), |error| beneath(*error))
    }

    /// Whether connecting took too long.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.find::<ConnectTimeout>().is_some()
    }
}

/// The next cause. What an I/O error wraps is not its source, but beneath it.
fn beneath<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref().and_then(std::io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HttpClient").finish_non_exhaustive()
    }
}

impl HttpClient {
    /// A client without connections.
    #[must_use]
    pub fn new(settings: HttpSettings) -> Self {
        let proxies = settings.proxies.map(Arc::new);
        let connector = Connector::new(
            settings.names,
            settings.tls,
            proxies.clone(),
            settings.connect_timeout,
        );
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(settings.idle_timeout)
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .build(connector);
        Self {
            pool,
            headers: settings.headers,
            proxies,
            repeats: settings.repeats,
        }
    }

    /// The head of the response.
    ///
    /// # Errors
    /// [`HttpError`].
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, HttpError> {
        let request = request.build().map_err(HttpError::of)?;
        let url = request.url().clone();
        let request: http::Request<Body> = request.try_into().map_err(HttpError::of)?;
        let (mut head, body) = request.into_parts();
        for (name, value) in &self.headers {
            head.headers.entry(name).or_insert_with(|| value.clone());
        }
        if let Some(credential) = self.proxy_credential(&head.uri) {
            let headers = &mut head.headers;
            headers.insert(header::PROXY_AUTHORIZATION, credential);
        }
        let body = body.as_bytes().map(Bytes::copy_from_slice);
        let body = body.ok_or_else(|| HttpError::of("the request's body is no text"))?;
        let mut repeats = if self.repeats { MAX_REPEATS } else { 0 };
        let response = loop {
            let request = http::Request::from_parts(head.clone(), Body::from(body.clone()));
            match self.pool.request(request).await {
                Ok(response) => break response,
                Err(error) if repeats > 0 && was_not_looked_at(&error) => repeats -= 1,
                Err(error) => {
                    return Err(HttpError {
                        is_connect: error.is_connect(),
                        source: error.into(),
                    });
                }
            }
        };
        let (head, body) = response.into_parts();
        let builder = http::Response::builder().status(head.status).url(url);
        let response = builder.version(head.version).body(Body::wrap(body));
        let mut response = response.map_err(HttpError::of)?;
        *response.headers_mut() = head.headers;
        Ok(response.into())
    }

    /// What a proxy is shown with a request that it passes on itself; others are shown it for their tunnel.
    fn proxy_credential(&self, uri: &http::Uri) -> Option<http::HeaderValue> {
        if uri.scheme() != Some(&Scheme::HTTP) {
            return None;
        }
        let proxy = self.proxies.as_ref()?.intercept(uri)?;
        proxy.basic_auth().cloned()
    }
}

/// Where requests are made: it holds no connection and no certificate.
///
/// # Errors
/// The system allows no HTTP client at all.
pub fn requests() -> Result<&'static reqwest::Client, HttpError> {
    static REQUESTS: OnceLock<reqwest::Client> = OnceLock::new();
    if let Some(client) = REQUESTS.get() {
        return Ok(client);
    }
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let client = builder.build().map_err(HttpError::of)?;
    Ok(REQUESTS.get_or_init(|| client))
}

/// Whether a server refused a stream before it looked at it, or said that it takes no more.
fn was_not_looked_at(error: &legacy::Error) -> bool {
    let mut below = error.source();
    while let Some(error) = below {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let reason = error.reason();
            return error.is_remote()
                && (error.is_go_away() && reason == Some(h2::Reason::NO_ERROR)
                    || error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM));
        }
        below = error.source();
    }
    false
}
