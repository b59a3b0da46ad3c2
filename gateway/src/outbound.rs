//! The plugins' way out to other services: one exchange at a time, to an address that was judged before it is dialed.
//!
//! Owns the connections, the resolver and what a failure is called. Which URL a plugin may ask for is the plugin host's; a redirect is
//! an answer here. Keeps nothing of a request: no cookies, no credentials, no referrer.
//! Invariant: the address that is dialed is one that was judged, because a name is resolved once per connection, by our resolver.

use std::{
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
use gantry_upstream::{
    EndlessHead, HttpClient, HttpError, HttpSettings, Reach as Distance, Tls, causes, tls_config,
};
use http::{HeaderMap, HeaderValue, header};
use reqwest::{
    Response,
    dns::{Addrs, Name, Resolve, Resolving},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A pooled connection leads to an address that was judged when it was opened; a short life lets a changed name count soon.
const POOL_IDLE: Duration = Duration::from_secs(30);
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
    clients: [(Judge, OnceLock<HttpClient>); 4],
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

    fn client(&self, reach: Reach) -> Result<&HttpClient, OutboundError> {
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

fn client(judge: Judge) -> anyhow::Result<HttpClient> {
    let agent = concat!("gantry/", env!("CARGO_PKG_VERSION"));
    let headers = [
        (header::USER_AGENT, agent),
        (header::ACCEPT, "*/*"),
        // What is capped is what was sent: nothing is unpacked.
        (header::ACCEPT_ENCODING, "identity"),
    ];
    let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    Ok(HttpClient::new(HttpSettings {
        headers: HeaderMap::from_iter(headers),
        names: Arc::new(judge),
        connect_timeout: CONNECT_TIMEOUT,
        idle_timeout: POOL_IDLE,
        repeats: false,
        tls: tls_config(&Tls::default(), false)?,
        proxies: None,
    }))
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
    client: &HttpClient,
    request: OutboundRequest,
) -> Result<OutboundResponse, OutboundError> {
    let max_bytes = request.max_response_bytes;
    // The resolver judges names; an address in the URL never meets it.
    if !holds_name(&request.url) && request.reach != Reach::Literal {
        return Err(OutboundError::Refused);
    }
    let requests = gantry_upstream::requests().map_err(|error| failure(&error))?;
    let outgoing = requests
        .request(request.method, request.url)
        .headers(request.headers)
        .body(request.body);
    let sent = client.send(outgoing).await;
    let mut response = sent.map_err(|error| failure(&error))?;
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
    let broken = |error: reqwest::Error| {
        let error = error.without_url();
        tracing::debug!(
            causes = causes(&error),
            "the answer to a plugin's request broke off"
        );
        OutboundError::Other(BROKEN.to_owned())
    };
    while let Some(part) = response.chunk().await.map_err(broken)? {
        if body.len() + part.len() > max_bytes {
            return Err(OutboundError::TooLarge);
        }
        body.extend_from_slice(&part);
    }
    Ok(body.freeze())
}

/// What a failure is called. The whole chain goes to the debug log; the URL, whose query may hold a token, is not in it.
fn failure(error: &HttpError) -> OutboundError {
    match error.find() {
        Some(Judged::OutOfReach) => return OutboundError::Refused,
        Some(Judged::Unknown) => return OutboundError::Dns,
        None => {}
    }
    tracing::debug!(causes = causes(error), "a plugin's request failed");
    if error.find::<rustls::Error>().is_some() {
        return OutboundError::Tls;
    }
    if error.is_endless() {
        return OutboundError::Other(EndlessHead.to_string());
    }
    if error.is_timeout() {
        return OutboundError::Timeout;
    }
    if error.is_connect() {
        return OutboundError::Connect;
    }
    OutboundError::Other(BROKEN.to_owned())
}

const BROKEN: &str = "the exchange broke off";

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
