//! The connections to one base URL, and to where it leads.
//!
//! Owns the HTTP clients: one that shows the client certificate, for the base URL's origin alone, and one that does not, for
//! everything else. Owns the rule that a request does not begin towards an address out of bounds.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, HeaderValue, Method, header};
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::{RequestBuilder, Response};
use tokio::time::timeout;
use url::Url;

use crate::{
    address::Bounds,
    credential::Origin,
    error::{Call, Cause, Kind, UpstreamError},
    outgoing::{HttpClient, HttpSettings, requests, tls_config},
    settings::{BuildError, ClientSettings, Proxy},
};

/// How long a connection that nobody uses is kept.
const POOL_IDLE: Duration = Duration::from_secs(90);
/// An unwanted body up to this size is read away, so that the connection can be used again.
const MAX_DRAINED_BYTES: usize = 16 << 10;
/// How long reading one away may take.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The connections of one base URL.
pub(crate) struct Transport {
    origin: Origin,
    bounds: Bounds,
    /// Shows the client certificate.
    home: HttpClient,
    /// Shows nothing.
    away: HttpClient,
    head_timeout: Duration,
}

impl Transport {
    /// Builds the clients for `origin`, which shows the client certificate if it `is_home`, the origin of the settings' URL.
    pub(crate) fn new(
        origin: Origin,
        is_home: bool,
        settings: &ClientSettings,
    ) -> Result<Self, BuildError> {
        let proxies = proxy_hosts(settings.proxy.as_ref())?;
        let bounds = Bounds::around(origin.host()).through(proxies);
        let away = client(settings, &bounds, false)?;
        let home = match &settings.tls.identity {
            Some(_) if is_home => client(settings, &bounds, true)?,
            _ => away.clone(),
        };
        Ok(Self {
            origin,
            bounds,
            home,
            away,
            head_timeout: settings
                .connect_timeout
                .saturating_add(settings.idle_timeout),
        })
    }

    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The one place where a request is begun: an address out of bounds does not get past it. One that is not `ours`, as a caller's
    /// question about its own rights, never shows our client certificate.
    pub(crate) fn request(
        &self,
        call: &Call,
        method: Method,
        url: &Url,
        is_ours: bool,
    ) -> Result<UpstreamRequest<'_>, UpstreamError> {
        let blocked = |error| {
            call.fail_with(Kind::Refused, error, error)
                .because(Cause::Blocked)
        };
        self.bounds.check(url).map_err(blocked)?;
        let is_home = is_ours && Origin::of(url).as_ref() == Some(&self.origin);
        let requests = requests().map_err(|error| call.transport(error))?;
        Ok(UpstreamRequest {
            client: if is_home { &self.home } else { &self.away },
            request: requests.request(method, url.clone()),
        })
    }

    /// The head of the response, in time.
    pub(crate) async fn dispatch(
        &self,
        call: &Call,
        outgoing: UpstreamRequest<'_>,
    ) -> Result<Response, UpstreamError> {
        let sent = outgoing.client.send(outgoing.request);
        match timeout(self.head_timeout, sent).await {
            Ok(sent) => sent.map_err(|error| call.transport(error)),
            Err(silence) => Err(call
                .fail_with(Kind::Unavailable, "no answer in time", silence)
                .because(Cause::FirstByte)),
        }
    }
}

/// A request, and the connections that it may go by.
pub(crate) struct UpstreamRequest<'a> {
    client: &'a HttpClient,
    request: RequestBuilder,
}

impl UpstreamRequest<'_> {
    /// The same with something added.
    pub(crate) fn with(self, add: impl FnOnce(RequestBuilder) -> RequestBuilder) -> Self {
        Self {
            request: add(self.request),
            ..self
        }
    }
}

fn client(
    settings: &ClientSettings,
    bounds: &Bounds,
    is_home: bool,
) -> Result<HttpClient, BuildError> {
    let agent = HeaderValue::try_from(&settings.user_agent);
    let agent = agent.map_err(|error| BuildError::Client(error.into()))?;
    let headers = [
        (header::USER_AGENT, agent),
        (header::ACCEPT, HeaderValue::from_static("*/*")),
        (
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        ),
    ];
    Ok(HttpClient::new(HttpSettings {
        headers: HeaderMap::from_iter(headers),
        names: Arc::new(bounds.clone()),
        connect_timeout: settings.connect_timeout,
        idle_timeout: POOL_IDLE,
        repeats: true,
        tls: tls_config(&settings.tls, is_home)?,
        proxies: settings.proxy.as_ref().map(proxies),
    }))
}

fn proxies(settings: &Proxy) -> Matcher {
    let mut proxies = Matcher::builder().no(settings.bypass.as_str());
    if let Some(url) = &settings.https {
        proxies = proxies.https(url.as_str());
    }
    if let Some(url) = &settings.http {
        proxies = proxies.http(url.as_str());
    }
    proxies.build()
}

fn proxy_hosts(settings: Option<&Proxy>) -> Result<Vec<url::Host<String>>, BuildError> {
    let urls = settings.map(|proxy| [&proxy.https, &proxy.http]);
    let urls = urls.into_iter().flatten().flatten();
    let origins: Option<Vec<Origin>> = urls.map(Origin::of).collect();
    let origins = origins.ok_or(BuildError::Proxy)?;
    Ok(origins.iter().map(|origin| origin.host().clone()).collect())
}

/// Reads an unwanted body away when it is small and quick; else its connection is closed.
pub(crate) async fn drain(mut response: Response) {
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
