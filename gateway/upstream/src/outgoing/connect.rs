//! Makes connections: straight on, or through a proxy; all of them watched.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use http::{Uri, uri::Scheme};
use hyper::rt::{Read, Write};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, dns, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use reqwest::dns::{Addrs, Resolve};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use super::watch::Watch;
use crate::error::BoxError;

/// As reqwest does: a connection whose other end is gone without a word ends within a minute.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// Resolving, connecting and the TLS handshake took too long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("connecting took too long")]
pub(super) struct ConnectTimeout;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    direct: HttpsConnector<HttpConnector<Names>>,
    /// A proxy speaks HTTP/1.
    to_proxy: HttpsConnector<HttpConnector<Names>>,
    tls: Arc<ClientConfig>,
    proxies: Option<Arc<Matcher>>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(
        names: Arc<dyn Resolve>,
        mut tls: ClientConfig,
        proxies: Option<Arc<Matcher>>,
        timeout: Duration,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Names(names));
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE));
        tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        tls.alpn_protocols = Vec::new();
        let to_proxy = HttpsConnector::from((tcp.clone(), tls.clone()));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let tls = Arc::new(tls);
        Self {
            direct: HttpsConnector::from((tcp, Arc::clone(&tls))),
            to_proxy,
            tls,
            proxies,
            timeout,
        }
    }

    async fn connect(mut self, uri: Uri) -> Result<WatchedStream, BoxError> {
        let proxy = self.proxies.as_ref();
        let Some(proxy) = proxy.and_then(|proxies| proxies.intercept(&uri)) else {
            return Ok(WatchedStream::over(self.direct.call(uri).await?, false));
        };
        if uri.scheme() == Some(&Scheme::HTTP) {
            let stream = self.to_proxy.call(proxy.uri().clone()).await?;
            return Ok(WatchedStream::over(stream, true));
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.to_proxy);
        if let Some(credential) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(credential.clone());
        }
        let mut through = HttpsConnector::from((tunnel, self.tls));
        Ok(WatchedStream::over(through.call(uri).await?, false))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<WatchedStream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.timeout, self.clone().connect(uri));
        Box::pin(async move {
            let connected = connecting.await.map_err(|_late| ConnectTimeout)?;
            Ok(TokioIo::new(connected?))
        })
    }
}

/// Looks names up for hyper.
#[derive(Clone)]
struct Names(Arc<dyn Resolve>);

impl Service<dns::Name> for Names {
    type Response = Addrs;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Addrs, BoxError>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        match name.as_str().parse() {
            Ok(name) => self.0.resolve(name),
            Err(_unnameable) => Box::pin(async { Err("the name is none".into()) }),
        }
    }
}

/// A connection of any kind.
trait Stream: Connection + Read + Write + Send + Unpin {}

impl<T: Connection + Read + Write + Send + Unpin> Stream for T {}

/// A connection to a server, under watch.
pub(super) struct WatchedStream {
    stream: TokioIo<Box<dyn Stream>>,
    /// A proxy passes its requests on.
    is_proxied: bool,
    watch: Watch,
}

impl WatchedStream {
    fn over(stream: impl Stream + 'static, is_proxied: bool) -> Self {
        Self {
            watch: Watch::over(stream.connected().is_negotiated_h2()),
            is_proxied,
            stream: TokioIo::new(Box::new(stream)),
        }
    }
}

impl Connection for WatchedStream {
    fn connected(&self) -> Connected {
        self.stream.inner().connected().proxy(self.is_proxied)
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = read {
            let new = buffer.filled().get(before..).unwrap_or_default();
            return Poll::Ready(self.watch.read(new).map_err(io::Error::other));
        }
        read
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.watch.wrote(&[io::IoSlice::new(bytes)], count);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.watch.wrote(bytes, count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
