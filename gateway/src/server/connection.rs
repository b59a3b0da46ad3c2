//! One connection: handshake, protocol, requests, end.
//!
//! Owns which limit applies when. The protocol is found out here and not by hyper-util's automatic connection, which waits for ever for
//! the rest of half an HTTP/2 preface.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use gantry_registry::Clock as _;
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::AsyncReadExt as _,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{
    Handler, Peer, Shared, Stage,
    activity::Activity,
    flow::Flow,
    head::{HeadGuard, MAX_HEAD_BYTES},
    io::{Transport, Wire},
    places::Place,
    reached,
    served::{self, Requests, Streams},
    set_user_timeout, subject,
    tls::ConnectionTls,
    unread::ConnectionUnread,
};
use crate::{app::EdgeSettings, clock::SystemClock, http::pace::Rate};

/// What an HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Headers of one request at most.
const MAX_HEADERS: usize = 100;

/// Bytes hyper buffers per connection; larger means fewer, larger reads.
const MAX_BUFFER_BYTES: usize = 64 << 10;

/// Limits of HTTP/2, each against a known flood.
const MAX_STREAMS: u32 = 128;
const MAX_PENDING_RESETS: usize = 32;
const MAX_ERROR_RESETS: usize = 256;
const MAX_SEND_BYTES: usize = 256 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// The types of TLS records (RFC 8446 section 5.1, RFC 6520 section 3): a TLS client's first byte is one of them.
const TLS_RECORDS: std::ops::RangeInclusive<u8> = 0x14..=0x18;

/// The answer, in plain HTTP, to a client that speaks no TLS where TLS is spoken.
const NOT_TLS: &str =
    "this port speaks TLS and the client does not: use https://, and no PROXY protocol";

/// A connection that was accepted.
pub(super) struct Connection<H> {
    pub(super) shared: Arc<Shared<H>>,
    /// The limits it was accepted under.
    pub(super) edge: Arc<EdgeSettings>,
    pub(super) tls: Option<ConnectionTls>,
    pub(super) address: IpAddr,
    /// The mirror whose listener it came in by.
    pub(super) mirror: Option<Arc<str>>,
    /// What it is doing.
    pub(super) activity: Arc<Activity>,
    /// Its place among all connections, given back when it ends.
    pub(super) place: Place,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Version {
    Http1,
    Http2,
}

impl<H: Handler> Connection<H> {
    /// Serves it to its end.
    pub(super) async fn run(self, transport: Transport) {
        let _counted = Counted::new(&self.shared.telemetry.connections);
        let stage = self.shared.stage.clone();
        let drain = self.edge.drain_timeout;
        let end = async {
            reached(stage.clone(), Stage::Drain).await;
            tokio::select! {
                () = reached(stage, Stage::Abort) => {}
                () = tokio::time::sleep(drain) => {}
            }
        };
        tokio::select! {
            () = self.serve(transport) => {}
            () = self.place.lost() => {}
            () = end => {}
        }
    }

    fn rate(&self) -> Rate {
        Rate {
            bytes_per_second: self.edge.minimum_rate,
            window: self.edge.minimum_rate_window,
        }
    }

    async fn serve(&self, transport: Transport) {
        set_user_timeout(&transport, self.edge.minimum_rate_window);
        let limit = Instant::now() + self.edge.header_timeout;
        let stage = self.shared.stage.clone();
        // Boxed, like the protocols below: an idle connection costs its present phase, not the largest.
        let begun = Box::pin(async {
            let (mut transport, peer, end_ms) = self.handshake(transport).await?;
            if self.tls.is_some() && !peer.tls {
                let guard = HeadGuard::refusing(NOT_TLS);
                return Some((transport, peer, end_ms, Version::Http1, guard));
            }
            let (version, first) = detect(&mut transport).await?;
            let guard = match version {
                Version::Http1 => HeadGuard::new(first),
                Version::Http2 => HeadGuard::aside(first),
            };
            Some((transport, peer, end_ms, version, guard))
        });
        let begun = tokio::select! {
            begun = timeout_at(limit, begun) => begun,
            // Nothing was asked yet: nothing to finish.
            () = reached(stage, Stage::Drain) => return,
        };
        let Ok(Some((transport, peer, end_ms, version, guard))) = begun else {
            tracing::debug!(client.address = %self.address, "a connection ended before its first request");
            return;
        };
        let activity = Arc::clone(&self.activity);
        if version == Version::Http1 {
            activity.head_began();
        }
        let wire = Wire::new(transport, guard, Arc::clone(&activity), self.rate());
        let requests = Requests {
            activity,
            mappings: None,
            unread: ConnectionUnread::new(&self.shared.unread),
            flow: (version == Version::Http2).then(|| Flow::new(self.rate())),
            is_over: Arc::default(),
        };
        let last = Box::pin(self.last_request(end_ms, Arc::clone(&requests.is_over)));
        let result = match version {
            Version::Http1 => Box::pin(self.http1(wire, peer, requests, last)).await,
            Version::Http2 => Box::pin(self.http2(wire, peer, requests, last)).await,
        };
        if let Err(error) = result {
            let error: &dyn std::error::Error = &error;
            tracing::debug!(client.address = %self.address, error, "a connection ended early");
        }
    }

    /// Completes when no request may begin any more: at a drain, when the client's certificate ends, and when other authorities vouch for
    /// clients than did for this one.
    async fn last_request(&self, end_ms: Option<u64>, is_over: Arc<AtomicBool>) {
        let replaced = async {
            match &self.tls {
                Some(tls) => tls.replaced().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = reached(self.shared.stage.clone(), Stage::Drain) => return,
            () = replaced => {
                tracing::debug!(client.address = %self.address, "a connection ends: its client was let in by other authorities");
            }
            () = passed(end_ms) => {
                tracing::debug!(client.address = %self.address, "a connection ends with its client's certificate");
            }
        }
        is_over.store(true, Ordering::Release);
    }

    /// The peer, after the handshake where the listener speaks TLS and the client does; the caller refuses one that does not. And when the
    /// client's certificate ends.
    async fn handshake(&self, transport: Transport) -> Option<(Transport, Peer, Option<u64>)> {
        let mut peer = Peer {
            address: self.address,
            tls: false,
            tls_subject: None,
            mirror: self.mirror.clone(),
        };
        let (tls, stream) = match (&self.tls, transport) {
            (Some(tls), Transport::Tcp(stream)) => (tls, stream),
            (_, transport) => return Some((transport, peer, None)),
        };
        let mut first = [0_u8];
        match stream.peek(&mut first).await {
            Ok(0) | Err(_) => return None,
            Ok(_) if first.iter().all(|byte| TLS_RECORDS.contains(byte)) => {}
            Ok(_) => return Some((Transport::Tcp(stream), peer, None)),
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.config));
        match acceptor.accept(stream).await {
            Ok(stream) => {
                peer.tls = true;
                let chain = stream.get_ref().1.peer_certificates();
                let certificate = chain.and_then(<[_]>::first);
                peer.tls_subject = certificate.and_then(|certificate| subject::read(certificate));
                let end_ms = chain.map(end_of);
                Some((Transport::Tls(Box::new(stream)), peer, end_ms))
            }
            Err(error) => {
                tracing::debug!(client.address = %self.address, %error, "TLS handshake failed");
                None
            }
        }
    }

    async fn http1(
        &self,
        mut wire: Wire,
        peer: Peer,
        mut requests: Requests,
        mut last: Pin<Box<impl Future<Output = ()>>>,
    ) -> Result<(), hyper::Error> {
        requests.mappings = wire.send_files();
        let edge = &self.edge;
        let handler = Arc::clone(&self.shared.handler);
        let watch = Arc::clone(&self.activity);
        let (peer, requests) = (Arc::new(peer), Arc::new(requests));
        let service = service_fn(move |request: Request<Incoming>| {
            let (handler, peer) = (Arc::clone(&handler), Arc::clone(&peer));
            let requests = Arc::clone(&requests);
            // Boxed: hyper keeps room for the whole future also while nothing is asked.
            Box::pin(async move { served::serve(&*handler, &peer, &requests, request).await })
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // Ours are stricter and know idle from half a head; hyper's stays as the last resort.
            .header_read_timeout(edge.idle_timeout + edge.header_timeout)
            .max_headers(MAX_HEADERS)
            .max_header_size(MAX_HEAD_BYTES)
            .max_buf_size(MAX_BUFFER_BYTES)
            .half_close(false)
            .serve_connection(TokioIo::new(wire), service);
        let mut draining = false;
        loop {
            tokio::select! {
                result = &mut connection => return result,
                () = watch.expired() => return Ok(()),
                () = &mut last, if !draining => {
                    draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    }

    async fn http2(
        &self,
        mut wire: Wire,
        peer: Peer,
        requests: Requests,
        mut last: Pin<Box<impl Future<Output = ()>>>,
    ) -> Result<(), hyper::Error> {
        let handler = Arc::clone(&self.shared.handler);
        let watch = Arc::clone(&self.activity);
        let flow = requests
            .flow
            .clone()
            .unwrap_or_else(|| Flow::new(self.rate()));
        wire.count_data(&flow);
        let (peer, requests) = (Arc::new(peer), Arc::new(requests));
        let service = service_fn(move |request: Request<Incoming>| {
            let (handler, peer) = (Arc::clone(&handler), Arc::clone(&peer));
            let requests = Arc::clone(&requests);
            async move { served::serve(&*handler, &peer, &requests, request).await }
        });
        let window = self.shared.windows.take();
        let mut connection = http2::Builder::new(Streams {
            flow: Arc::clone(&flow),
        })
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .max_send_buf_size(MAX_SEND_BYTES)
        .initial_stream_window_size(window.stream())
        .initial_connection_window_size(window.connection())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(wire), service);
        let mut stalled = std::pin::pin!(flow.stalled());
        let mut draining = false;
        loop {
            tokio::select! {
                result = &mut connection => return result,
                () = &mut stalled => {
                    tracing::debug!(client.address = %self.address, "an HTTP/2 connection was closed: its client takes too little");
                    return Ok(());
                }
                () = watch.expired() => {
                    Pin::new(&mut connection).graceful_shutdown();
                    let last = tokio::time::timeout(self.edge.header_timeout, connection).await;
                    return last.unwrap_or(Ok(()));
                }
                () = &mut last, if !draining => {
                    draining = true;
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    }
}

/// When the first certificate of a verified chain ends that has not yet. One whose end cannot be read ends now.
fn end_of(chain: &[rustls::pki_types::CertificateDer<'_>]) -> u64 {
    let now = SystemClock.now_ms();
    let ends = chain
        .iter()
        .map(|certificate| subject::end_ms(certificate).unwrap_or(now));
    // A client may send certificates that are not needed and are over.
    ends.filter(|end| *end >= now).min().unwrap_or(now)
}

/// Completes when the wall clock has passed a time, however it is set meanwhile; never for `None`.
async fn passed(end_ms: Option<u64>) {
    const LOOK_EVERY: Duration = Duration::from_mins(1);
    let Some(end_ms) = end_ms else {
        return std::future::pending().await;
    };
    while let Some(left) = (end_ms + 1)
        .checked_sub(SystemClock.now_ms())
        .filter(|left| *left > 0)
    {
        tokio::time::sleep(Duration::from_millis(left).min(LOOK_EVERY)).await;
    }
}

/// A connection in the gauge, however it ends.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reads until it is sure whether HTTP/2 is spoken. `None` when the client leaves.
async fn detect(transport: &mut Transport) -> Option<(Version, BytesMut)> {
    let mut first = BytesMut::with_capacity(1024);
    loop {
        if transport.read_buf(&mut first).await.ok()? == 0 {
            return None;
        }
        let common = first.len().min(PREFACE.len());
        if first.get(..common) != PREFACE.get(..common) {
            return Some((Version::Http1, first));
        }
        if common == PREFACE.len() {
            return Some((Version::Http2, first));
        }
    }
}
