//! A server with a handler made for tests, and a client that may misbehave.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry::{
    app::EdgeSettings,
    http::{
        body::{self, ResponseBody},
        pace::Rate,
        respond::{self, Reply},
    },
    server::{
        self, Handler, Listener, Peer, RequestBody, Stage,
        tls::{LoadedTls, ServedTls},
    },
    telemetry::Telemetry,
};
use gantry_registry::{Arrived, BodyError};
use gantry_storage::{Blob, StorageError};
use http::{Request, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, watch},
    task::JoinHandle,
};

/// Long enough for a loaded machine, short against a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Limits that a test can wait for.
pub(crate) fn settings() -> EdgeSettings {
    EdgeSettings {
        external_url: None,
        admin_hosts: Vec::new(),
        trusted_proxies: Vec::new(),
        proxy_headers: gantry::config::ProxyHeaders::default(),
        headers: http::HeaderMap::new(),
        header_timeout: Duration::from_millis(400),
        idle_timeout: Duration::from_millis(800),
        minimum_rate: 1 << 20,
        minimum_rate_window: Duration::from_millis(500),
        decision_deadline: Duration::from_secs(5),
        ends_denied_downloads: true,
        drain_timeout: Duration::from_secs(20),
        max_connections: 1000,
        max_blob_bytes: Some(8 << 20),
    }
}

/// Limits that never strike by accident.
pub(crate) fn patient() -> EdgeSettings {
    EdgeSettings {
        header_timeout: PATIENCE,
        idle_timeout: PATIENCE,
        minimum_rate: 1,
        minimum_rate_window: PATIENCE,
        ..settings()
    }
}

/// Answers by path.
#[derive(Debug)]
pub(crate) struct TestHandler {
    rate: Rate,
    cap: Option<u64>,
    /// `/gate` tells here that it began.
    pub(crate) begun: Semaphore,
    /// `/gate` waits here.
    pub(crate) gate: Semaphore,
    /// Shared with every blob that is being sent.
    blobs: Arc<()>,
    /// `/file/OFFSET/LENGTH` is a part of this one.
    pub(crate) file: OnceLock<Arc<dyn Blob>>,
}

#[derive(Debug)]
struct Content {
    size: u64,
    _counted: Arc<()>,
}

/// What a test blob holds at an offset.
pub(crate) fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset % 251).unwrap()
}

#[async_trait]
impl Blob for Content {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let end = self.size.min(offset + length as u64);
        Ok((offset..end).map(byte_at).collect())
    }
}

fn text(status: u16, text: impl Into<Bytes>) -> Reply {
    let status = StatusCode::from_u16(status).unwrap();
    respond::plain("test", status, "text/plain", text)
}

impl Handler for TestHandler {
    async fn handle(&self, request: Request<RequestBody>, peer: &Peer) -> Reply {
        let path = request.uri().path().to_owned();
        match path.as_str() {
            "/hello" => text(200, "hello"),
            "/peer" => text(200, format!("{} {:?}", peer.tls, peer.tls_subject)),
            "/refuse" => text(403, "no"),
            "/length" => self.length(request.into_body()).await,
            "/gate" => {
                self.begun.add_permits(1);
                self.gate.acquire().await.unwrap().forget();
                text(200, "through")
            }
            "/broken" => with_length(broken(), 8),
            _ if path.starts_with("/file/") => self.file(&path),
            _ => match path.strip_prefix("/blob/") {
                Some(size) => self.blob(size.parse().unwrap()),
                None => text(404, "nothing"),
            },
        }
    }
}

/// Half of what is promised, and then a failure.
fn broken() -> ResponseBody {
    let stream = futures_util::stream::unfold(false, |half| async move {
        if !half {
            let bytes = Arrived::Loose(Bytes::from_static(b"half"));
            return Some((Ok(bytes), true));
        }
        // Lets what is there leave before the end comes.
        tokio::task::yield_now().await;
        Some((Err(gantry_registry::Error::BlobUploadUnknown), true))
    });
    ResponseBody::filling(Box::pin(stream), Some(8))
}

fn with_length(body: ResponseBody, length: u64) -> Reply {
    http::Response::builder()
        .header("content-length", length)
        .header("x-request-id", "test")
        .body(body)
        .unwrap()
}

impl TestHandler {
    fn blob(&self, size: u64) -> Reply {
        let content = Content {
            size,
            _counted: Arc::clone(&self.blobs),
        };
        with_length(ResponseBody::blob(Arc::new(content), 0, size), size)
    }

    fn file(&self, path: &str) -> Reply {
        let mut numbers = path.rsplit('/').map(|number| number.parse().unwrap());
        let (length, offset) = (numbers.next().unwrap(), numbers.next().unwrap());
        let blob = Arc::clone(self.file.get().unwrap());
        with_length(ResponseBody::blob(blob, offset, length), length)
    }

    async fn length(&self, body: RequestBody) -> Reply {
        let mut body = body::capped(body, self.cap, self.rate);
        let mut length = 0;
        while let Some(bytes) = body.next().await {
            match bytes {
                Ok(bytes) => length += bytes.len(),
                Err(BodyError::Malformed(why)) => return text(400, why),
                Err(BodyError::TooSlow) => return text(408, "slow"),
                Err(BodyError::TooLarge) => return text(413, "large"),
                Err(BodyError::Disconnected) => return text(499, "gone"),
                Err(BodyError::Revoked) => return text(401, "revoked"),
            }
        }
        text(200, length.to_string())
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) handler: Arc<TestHandler>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) stage: watch::Sender<Stage>,
    pub(crate) tls: Option<ServedTls>,
    pub(crate) task: JoinHandle<()>,
}

impl Server {
    pub(crate) fn start(edge: &EdgeSettings) -> Self {
        Self::start_with(edge, None)
    }

    pub(crate) fn start_with(edge: &EdgeSettings, tls: Option<LoadedTls>) -> Self {
        let tls = tls.map(ServedTls::new);
        let listener = Listener::tcp(([127, 0, 0, 1], 0).into(), tls.clone()).unwrap();
        let address = listener.address().unwrap();
        let handler = Arc::new(TestHandler {
            rate: Rate {
                bytes_per_second: edge.minimum_rate,
                window: edge.minimum_rate_window,
            },
            cap: edge.max_blob_bytes,
            begun: Semaphore::new(0),
            gate: Semaphore::new(0),
            blobs: Arc::default(),
            file: OnceLock::new(),
        });
        let telemetry = Arc::new(Telemetry::new());
        let (stage, watching) = watch::channel(Stage::Run);
        let task = tokio::spawn({
            let (handler, telemetry, edge) =
                (Arc::clone(&handler), Arc::clone(&telemetry), edge.clone());
            async move {
                server::serve(handler, vec![listener], &edge, &telemetry, watching).await;
            }
        });
        Self {
            address,
            handler,
            telemetry,
            stage,
            tls,
            task,
        }
    }

    pub(crate) async fn connect(&self) -> Client<TcpStream> {
        Client::new(TcpStream::connect(self.address).await.unwrap())
    }

    /// Waits for the server's end.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("the server ends")
            .unwrap();
    }
}

/// A client that writes what it is told.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    read: Vec<u8>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            read: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends what the server still takes; it may close meanwhile.
    pub(crate) async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).await.is_ok()
    }

    pub(crate) async fn get(&mut self, path: &str) -> Response {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: gw\r\n\r\n"))
            .await;
        self.response().await
    }

    /// Reads one response.
    pub(crate) async fn response(&mut self) -> Response {
        tokio::time::timeout(PATIENCE, self.read_response())
            .await
            .expect("a response comes")
            .expect("a whole response")
    }

    /// Reads until the server closes; whatever came before is returned.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        tokio::time::timeout(PATIENCE, async {
            while self.fill().await {}
            std::mem::take(&mut self.read)
        })
        .await
        .expect("the server closes")
    }

    pub(crate) async fn read_response(&mut self) -> Option<Response> {
        let end = loop {
            match self
                .read
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                Some(index) => break index + 4,
                None if self.fill().await => {}
                None => return None,
            }
        };
        let head = String::from_utf8(self.read.drain(..end).collect()).unwrap();
        let status = head.get(9..12)?.parse().ok()?;
        let mut response = Response {
            status,
            head,
            body: Vec::new(),
        };
        let length = response
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        while self.read.len() < length {
            if !self.fill().await {
                return None;
            }
        }
        response.body = self.read.drain(..length).collect();
        Some(response)
    }

    async fn fill(&mut self) -> bool {
        let mut space = vec![0; 64 << 10];
        match self.stream.read(&mut space).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.read.extend_from_slice(&space[..count]);
                true
            }
        }
    }
}

/// Short ways to vary the limits.
pub(crate) trait EdgeExt {
    fn idle(self, idle_timeout: Duration) -> Self;
}

impl EdgeExt for EdgeSettings {
    fn idle(self, idle_timeout: Duration) -> Self {
        Self {
            idle_timeout,
            ..self
        }
    }
}

impl Server {
    /// Whether no blob is being sent.
    pub(crate) fn no_blob_left(&self) -> bool {
        Arc::strong_count(&self.handler.blobs) == 1
    }

    /// Waits until every connection is gone, by the server's own gauge.
    pub(crate) async fn no_connection_left(&self) {
        let mut every = tokio::time::interval(Duration::from_millis(10));
        tokio::time::timeout(PATIENCE, async {
            while self.telemetry.connections.get() > 0 {
                every.tick().await;
            }
        })
        .await
        .expect("every connection ends");
    }
}
