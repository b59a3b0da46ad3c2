//! The plugins' way out to other services: one exchange at a time, to an address that was judged before it is dialed.
//!
//! Owns the connections, the resolver and what a failure is called. Which URL a plugin may ask for is the plugin host's; a redirect is
//! an answer here. Keeps nothing of a request: no cookies, no credentials, no referrer.
//! Invariant: the address that is dialed is one that was judged, because a name is resolved once per connection, by our resolver.

use std::{
    error::Error as StdError,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_plugin_host::{
    Outbound,
    ports::{OutboundError, OutboundRequest, OutboundResponse, Reach},
};
use gantry_upstream::Reach as Distance;
use http::{HeaderMap, HeaderValue, header};
use reqwest::{
    Client, Response,
    dns::{Addrs, Name, Resolve, Resolving},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A pooled connection leads to an address that was judged when it was opened; a short life lets a changed name count soon.
const POOL_IDLE: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: u32 = 64 << 10;
const REACHES: [Reach; 4] = [
    Reach::Public,
    Reach::Private,
    Reach::Loopback,
    Reach::Literal,
];

/// Looks names up. The system's resolver, except in tests.
#[async_trait]
pub trait Names: fmt::Debug + Send + Sync {
    /// The addresses of a name, in the order they are to be tried.
    ///
    /// # Errors
    /// The name does not resolve.
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// The system's resolver.
#[derive(Debug)]
pub struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn lookup(&self, name: &str) -> std::io::Result<Vec<IpAddr>> {
        let found = tokio::net::lookup_host((name, 0)).await?;
        Ok(found.map(|address| address.ip()).collect())
    }
}

/// The way out. One pool of connections for each reach, so that a connection opened for a wide grant serves no narrow one.
/// Each is made when the first request needs it: reading the machine's root certificates is work that no start waits for.
#[derive(Debug)]
pub struct Requests {
    clients: [(Judge, OnceLock<Client>); 4],
}

impl Requests {
    /// The way out, with names looked up by `names`. Dials nothing.
    #[must_use]
    pub fn new(names: &Arc<dyn Names>) -> Self {
        let clients = REACHES.map(|reach| {
            let names = Arc::clone(names);
            (Judge { names, reach }, OnceLock::new())
        });
        Self { clients }
    }

    fn client(&self, reach: Reach) -> Result<&Client, OutboundError> {
        let missing = || OutboundError::Other("no HTTP client".to_owned());
        let mut clients = self.clients.iter();
        let (judge, made) = clients
            .find(|(judge, _)| judge.reach == reach)
            .ok_or_else(missing)?;
        if let Some(client) = made.get() {
            return Ok(client);
        }
        let client = client(judge.clone()).map_err(|error| {
            tracing::error!(%error, "cannot make the plugins' HTTP client");
            missing()
        })?;
        Ok(made.get_or_init(|| client))
    }
}

fn client(judge: Judge) -> reqwest::Result<Client> {
    let identity = HeaderValue::from_static("identity");
    Client::builder()
        .user_agent(concat!("gantry/", env!("CARGO_PKG_VERSION")))
        // What is capped is what was sent: nothing is unpacked.
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, identity)]))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE)
        .dns_resolver(judge)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .referer(false)
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .build()
}

#[async_trait]
impl Outbound for Requests {
    async fn send(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        let client = self.client(request.reach)?;
        let timeout = request.timeout;
        let exchange = exchange(client, request);
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or(Err(OutboundError::Timeout))
    }
}

async fn exchange(
    client: &Client,
    request: OutboundRequest,
) -> Result<OutboundResponse, OutboundError> {
    let max_bytes = request.max_response_bytes;
    // The resolver judges names; an address in the URL never meets it.
    if !holds_name(&request.url) && request.reach != Reach::Literal {
        return Err(OutboundError::Refused);
    }
    let mut response = client
        .request(request.method, request.url)
        .headers(request.headers)
        .body(request.body)
        .send()
        .await
        .map_err(|error| failure(&error))?;
    let body = read_capped(&mut response, max_bytes).await?;
    Ok(OutboundResponse {
        status: response.status().as_u16(),
        headers: std::mem::take(response.headers_mut()),
        body,
    })
}

fn holds_name(url: &url::Url) -> bool {
    matches!(url.host(), Some(url::Host::Domain(_)))
}

async fn read_capped(response: &mut Response, max_bytes: usize) -> Result<Bytes, OutboundError> {
    if response
        .content_length()
        .is_some_and(|length| length > max_bytes as u64)
    {
        return Err(OutboundError::TooLarge);
    }
    let mut body = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(|error| failure(&error))? {
        if body.len() + part.len() > max_bytes {
            return Err(OutboundError::TooLarge);
        }
        body.extend_from_slice(&part);
    }
    Ok(body.freeze())
}

/// What a failure is called. The whole chain goes to the debug log, without the URL, whose query may hold a token.
fn failure(error: &reqwest::Error) -> OutboundError {
    let mut causes = Vec::new();
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(inner) = cause {
        if let Some(judged) = inner.downcast_ref::<Judged>() {
            return match judged {
                Judged::OutOfReach => OutboundError::Refused,
                Judged::Unknown => OutboundError::Dns,
            };
        }
        if inner.is::<rustls::Error>() {
            return OutboundError::Tls;
        }
        causes.push(inner.to_string());
        cause = beneath(inner);
    }
    tracing::debug!(causes = causes.join(": "), "a plugin's request failed");
    if error.is_timeout() {
        return OutboundError::Timeout;
    }
    if error.is_connect() {
        return OutboundError::Connect;
    }
    OutboundError::Other("the exchange broke off".to_owned())
}

/// The next cause. What an I/O error wraps is not its source, but beneath it.
fn beneath<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a (dyn StdError + 'static)> {
    match error.downcast_ref::<std::io::Error>() {
        Some(outer) => outer.get_ref().map(|wrapped| wrapped as _),
        None => error.source(),
    }
}

/// Resolves names for one reach.
#[derive(Clone, Debug)]
struct Judge {
    names: Arc<dyn Names>,
    reach: Reach,
}

/// Why a name is not dialed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Judged {
    #[error("the name leads to an address out of reach")]
    OutOfReach,
    #[error("the name does not resolve")]
    Unknown,
}

impl Judge {
    fn allows(&self, address: IpAddr) -> bool {
        match self.reach {
            Reach::Public => Distance::of(address) == Distance::Public,
            Reach::Private => Distance::of(address) != Distance::Forbidden,
            Reach::Loopback => address.to_canonical().is_loopback(),
            // A grant of an address holds no name, so nothing is looked up for it.
            Reach::Literal => false,
        }
    }
}

impl Resolve for Judge {
    fn resolve(&self, name: Name) -> Resolving {
        let judge = self.clone();
        Box::pin(async move {
            let found = judge.names.lookup(name.as_str()).await;
            let found = found.map_err(|error| {
                tracing::debug!(%error, "a name of a plugin's request does not resolve");
                Judged::Unknown
            })?;
            if found.is_empty() {
                return Err(Judged::Unknown.into());
            }
            let within = found.into_iter().filter(|address| judge.allows(*address));
            let within: Vec<SocketAddr> =
                within.map(|address| SocketAddr::new(address, 0)).collect();
            if within.is_empty() {
                return Err(Judged::OutOfReach.into());
            }
            let addresses: Addrs = Box::new(within.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests;
