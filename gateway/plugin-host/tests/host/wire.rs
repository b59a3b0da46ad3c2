//! The way out as a binary would bring it, and a receiver on this machine. Every name leads to loopback; the port is the URL's.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use gantry_plugin_host::{
    HostPorts, Outbound,
    ports::{OutboundError, OutboundRequest, OutboundResponse, Reach},
};
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::ports;

/// Sends over real connections, and remembers how far each request was allowed to lead.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) reaches: Mutex<Vec<Reach>>,
    /// What the requests look like when they are printed.
    pub(crate) printed: Mutex<String>,
}

impl Wire {
    async fn exchange(request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        let port = request.url.port_or_known_default().unwrap();
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(|_refused| OutboundError::Connect)?;
        let other = |error: hyper::Error| OutboundError::Other(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(other)?;
        let background = tokio::spawn(connection);
        let target = request.url.path().to_owned()
            + &request
                .url
                .query()
                .map(|query| format!("?{query}"))
                .unwrap_or_default();
        let mut sent = http::Request::new(Full::new(request.body));
        *sent.method_mut() = request.method;
        *sent.uri_mut() = target.parse().unwrap();
        *sent.headers_mut() = request.headers;
        let host = request.url.host_str().unwrap().parse().unwrap();
        sent.headers_mut().insert("host", host);
        let response = sender.send_request(sent).await.map_err(other)?;
        let (head, body) = response.into_parts();
        let body = read(body, request.max_response_bytes)
            .await
            .ok_or(OutboundError::TooLarge);
        background.abort();
        Ok(OutboundResponse {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body?,
        })
    }
}

async fn read(mut body: Incoming, most: usize) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        whole.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        if whole.len() > most {
            return None;
        }
    }
    Some(whole.freeze())
}

#[async_trait]
impl Outbound for Wire {
    async fn send(&self, request: OutboundRequest) -> Result<OutboundResponse, OutboundError> {
        self.reaches.lock().unwrap().push(request.reach);
        let shown = format!("{request:?} {:?}", request.headers);
        self.printed.lock().unwrap().push_str(&shown);
        tokio::time::timeout(request.timeout, Self::exchange(request))
            .await
            .unwrap_or(Err(OutboundError::Timeout))
    }
}

/// The ports with a way out.
pub(crate) fn ports(wire: &Arc<Wire>) -> HostPorts {
    HostPorts {
        outbound: Arc::<Wire>::clone(wire),
        ..ports::ports()
    }
}

/// What a receiver got.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }
}

/// A server that keeps what it gets.
#[derive(Clone, Debug)]
pub(crate) struct Receiver {
    pub(crate) port: u16,
    got: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Answers as `answer` says; `None` never.
    pub(crate) async fn start(
        answer: impl Fn(&Received) -> Option<Response<Full<Bytes>>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Self {
            port: listener.local_addr().unwrap().port(),
            got: Arc::default(),
        };
        tokio::spawn(accept(
            listener,
            Arc::clone(&receiver.got),
            Arc::new(answer),
        ));
        receiver
    }

    /// What it got since it was asked last.
    pub(crate) fn got(&self) -> Vec<Received> {
        std::mem::take(&mut self.got.lock().unwrap())
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://hooks.example:{}{path}", self.port)
    }
}

async fn accept(
    listener: TcpListener,
    got: Arc<Mutex<Vec<Received>>>,
    answer: Arc<impl Fn(&Received) -> Option<Response<Full<Bytes>>> + Send + Sync + 'static>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (got, answer) = (Arc::clone(&got), Arc::clone(&answer));
        let service =
            service_fn(move |request| serve(request, Arc::clone(&got), Arc::clone(&answer)));
        let connection = hyper::server::conn::http1::Builder::new();
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
    }
}

async fn serve(
    request: http::Request<Incoming>,
    got: Arc<Mutex<Vec<Received>>>,
    answer: Arc<impl Fn(&Received) -> Option<Response<Full<Bytes>>>>,
) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let received = receive(request).await;
    got.lock().unwrap().push(received.clone());
    match answer(&received) {
        Some(response) => Ok(response),
        None => std::future::pending().await,
    }
}

async fn receive(request: http::Request<Incoming>) -> Received {
    let (head, body) = request.into_parts();
    Received {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        body: read(body, 4 << 20).await.unwrap(),
    }
}

/// An answer without headers.
pub(crate) fn status(status: u16, body: impl Into<Bytes>) -> Option<Response<Full<Bytes>>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status.try_into().unwrap();
    Some(response)
}

/// An answer with one header.
pub(crate) fn with(code: u16, name: &'static str, value: &str) -> Option<Response<Full<Bytes>>> {
    let mut response = status(code, "")?;
    response.headers_mut().insert(name, value.parse().unwrap());
    Some(response)
}
