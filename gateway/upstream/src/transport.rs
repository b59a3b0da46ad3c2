//! The connections to one base URL, and to where it leads.
//!
//! Owns the HTTP clients: one that shows the client certificate, for the base URL's origin alone, and one that does not, for
//! everything else. Owns the rule that a request does not begin towards an address out of bounds.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{Client, ClientBuilder, NoProxy, RequestBuilder, Response};
use tokio::time::timeout;
use url::Url;

use crate::{
    address::Bounds,
    credential::Origin,
    error::{Call, Cause, Kind, UpstreamError},
    settings::{BuildError, ClientSettings, Proxy},
};

/// The largest list of response headers over HTTP/2; over HTTP/1 hyper stops at 100 headers and about 400 KiB.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// An unwanted body up to this size is read away, so that the connection can be used again.
const MAX_DRAINED_BYTES: usize = 16 << 10;
/// How long reading one away may take.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// The connections of one base URL.
pub(crate) struct Transport {
    origin: Origin,
    bounds: Bounds,
    /// Shows the client certificate.
    home: Client,
    /// Shows nothing.
    away: Client,
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
        let away = builder(settings, bounds.clone())?
            .build()
            .map_err(BuildError::Client)?;
        let home = match &settings.tls.identity {
            Some(pem) if is_home => {
                let identity = reqwest::Identity::from_pem(pem).map_err(BuildError::Identity)?;
                builder(settings, bounds.clone())?
                    .identity(identity)
                    .build()
                    .map_err(BuildError::Identity)?
            }
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
    ) -> Result<RequestBuilder, UpstreamError> {
        let blocked = |error| {
            call.fail_with(Kind::Refused, error, error)
                .because(Cause::Blocked)
        };
        self.bounds.check(url).map_err(blocked)?;
        let is_home = is_ours && Origin::of(url).as_ref() == Some(&self.origin);
        let client = if is_home { &self.home } else { &self.away };
        Ok(client.request(method, url.clone()))
    }

    /// The head of the response, in time.
    pub(crate) async fn dispatch(
        &self,
        call: &Call,
        request: RequestBuilder,
    ) -> Result<Response, UpstreamError> {
        match timeout(self.head_timeout, request.send()).await {
            Ok(sent) => sent.map_err(|error| call.transport(error)),
            Err(silence) => Err(call
                .fail_with(Kind::Unavailable, "no answer in time", silence)
                .because(Cause::FirstByte)),
        }
    }
}

fn builder(settings: &ClientSettings, bounds: Bounds) -> Result<ClientBuilder, BuildError> {
    let identity = HeaderValue::from_static("identity");
    let mut builder = Client::builder()
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
    if settings.tls.only_1_3 {
        builder = builder.tls_version_min(reqwest::tls::Version::TLS_1_3);
    }
    for proxy in proxies(settings.proxy.as_ref())? {
        builder = builder.proxy(proxy);
    }
    let Some(pem) = &settings.tls.roots else {
        return Ok(builder);
    };
    let broken = |error| BuildError::RootCertificates(Some(error));
    let roots = reqwest::Certificate::from_pem_bundle(pem).map_err(broken)?;
    if roots.is_empty() {
        return Err(BuildError::RootCertificates(None));
    }
    Ok(builder.tls_certs_merge(roots))
}

fn proxies(settings: Option<&Proxy>) -> Result<Vec<reqwest::Proxy>, BuildError> {
    let Some(settings) = settings else {
        return Ok(Vec::new());
    };
    let bypass = || NoProxy::from_string(&settings.bypass);
    let unusable = |_source| BuildError::Proxy;
    let mut proxies = Vec::new();
    if let Some(url) = &settings.https {
        let proxy = reqwest::Proxy::https(url.clone()).map_err(unusable)?;
        proxies.push(proxy.no_proxy(bypass()));
    }
    if let Some(url) = &settings.http {
        let proxy = reqwest::Proxy::http(url.clone()).map_err(unusable)?;
        proxies.push(proxy.no_proxy(bypass()));
    }
    Ok(proxies)
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
