//! An upstream: Debian's docker-registry 2.8 behind a proxy that counts requests and misbehaves on demand.
//!
//! The registry is real; the proxy only forwards, counts, and breaks what a test asks it to break.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};

use crate::{
    doors::{Door, Doors},
    image::Image,
    tools::{free_port, require, wait_until},
    wire::Wire,
};

/// What the proxy does to a request whose path contains a text.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this status with a registry's error JSON.
    Status(u16),
    /// Answers 429 with `Retry-After`.
    TooMany {
        /// Seconds.
        retry_after: u32,
    },
    /// Answers 401 and names `/token` here as the place for a token.
    Challenge,
    /// Does that to every second request.
    Flap,
    /// Answers as a token endpoint, with a token.
    Token,
    /// Answers nothing until [`Origin::release`].
    Hang,
    /// Sends so many body bytes, then closes the connection.
    TruncateAt(usize),
    /// Flips a bit of the last body byte.
    FlipLast,
    /// Sends so many body bytes, then waits until [`Origin::release`].
    HoldAt(usize),
}

#[derive(Debug)]
struct State {
    seen: Mutex<Vec<(String, String)>>,
    /// Body bytes handed to the socket, by path.
    sent: Mutex<HashMap<String, usize>>,
    faults: Mutex<HashMap<String, Fault>>,
    released: watch::Sender<bool>,
    /// Set once it wants tokens.
    doors: OnceLock<Arc<Doors>>,
    /// Requests that met [`Fault::Flap`].
    flaps: AtomicUsize,
}

/// A running upstream.
#[derive(Debug)]
pub struct Origin {
    registry: Child,
    registry_port: u16,
    folder: TempDir,
    /// Where the proxy listens; the same after [`Origin::stop`] and [`Origin::start_again`].
    pub port: u16,
    state: Arc<State>,
    runtime: Option<Runtime>,
}

impl Origin {
    /// Starts a registry and its proxy.
    ///
    /// # Panics
    /// When either does not come up.
    #[must_use]
    pub fn start() -> Self {
        let folder = TempDir::new().expect("the system has a temporary folder");
        let registry_port = free_port();
        let config = format!(
            "version: 0.1\nlog: {{ level: error }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  delete: {{ enabled: true }}\nhttp: {{ addr: \"127.0.0.1:{registry_port}\" }}\nvalidation: {{ manifests: {{ urls: {{ allow: [\"^https://example.invalid/\"] }} }} }}\n",
            folder.path().join("data").display()
        );
        let path = folder.path().join("config.yml");
        fs::write(&path, config).expect("the folder is ours");
        let registry = Command::new(require("docker-registry"))
            .arg("serve")
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry can be started");
        let mut origin = Self {
            registry,
            registry_port,
            folder,
            port: free_port(),
            state: Arc::new(State {
                seen: Mutex::default(),
                sent: Mutex::default(),
                faults: Mutex::default(),
                released: watch::Sender::new(false),
                doors: OnceLock::new(),
                flaps: AtomicUsize::new(0),
            }),
            runtime: None,
        };
        wait_until("docker-registry", Duration::from_secs(30), || {
            std::net::TcpStream::connect(("127.0.0.1", registry_port)).is_ok()
        });
        origin.start_again();
        origin
    }

    /// From now on everything wants a token. Nobody has an account yet, and nothing is public.
    #[must_use]
    pub fn guard(&self) -> &Doors {
        self.state.doors.get_or_init(Arc::default)
    }

    /// A `mirrors:` entry that names this upstream, under the prefix `name`.
    #[must_use]
    pub fn mirror_entry(&self, name: &str, more: &str) -> String {
        format!(
            "  {name}: {{ url: \"http://127.0.0.1:{}\"{more} }}\n",
            self.port
        )
    }

    /// Puts an image into the registry, past the proxy.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        Wire::anonymous(self.registry_port).push_image(repository, tag, image);
    }

    /// The registry's folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A client of the registry, past the proxy.
    #[must_use]
    pub fn direct(&self) -> Wire {
        Wire::anonymous(self.registry_port)
    }

    /// Stops listening and cuts every connection.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    /// Listens again.
    ///
    /// # Panics
    /// When the port was taken meanwhile.
    pub fn start_again(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be made");
        let (state, registry_port, port) = (Arc::clone(&self.state), self.registry_port, self.port);
        let listener = runtime.block_on(async {
            TcpListener::bind(("127.0.0.1", port))
                .await
                .expect("the port is ours")
        });
        runtime.spawn(serve(listener, state, registry_port));
        self.runtime = Some(runtime);
    }

    /// Does this to every request whose path contains `part`, until [`Origin::heal`].
    ///
    /// # Panics
    /// When a request panicked.
    pub fn break_paths(&self, part: &str, fault: Fault) {
        self.state.released.send_replace(false);
        self.state
            .faults
            .lock()
            .expect("no request panicked")
            .insert(part.to_owned(), fault);
    }

    /// Ends every fault.
    ///
    /// # Panics
    /// When a request panicked.
    pub fn heal(&self) {
        self.state
            .faults
            .lock()
            .expect("no request panicked")
            .clear();
        self.release();
    }

    /// Lets held bodies go on.
    pub fn release(&self) {
        self.state.released.send_replace(true);
    }

    /// How many requests of this method had a path that contains `part`.
    ///
    /// # Panics
    /// When a request panicked.
    #[must_use]
    pub fn count(&self, method: &str, part: &str) -> usize {
        let seen = self.state.seen.lock().expect("no request panicked");
        seen.iter()
            .filter(|(seen_method, path)| seen_method == method && path.contains(part))
            .count()
    }

    /// How many body bytes left for paths that contain `part`.
    ///
    /// # Panics
    /// When a request panicked.
    #[must_use]
    pub fn sent(&self, part: &str) -> usize {
        let sent = self.state.sent.lock().expect("no request panicked");
        sent.iter()
            .filter(|(path, _)| path.contains(part))
            .map(|(_, bytes)| bytes)
            .sum()
    }

    /// Forgets what was counted.
    ///
    /// # Panics
    /// When a request panicked.
    pub fn reset_counts(&self) {
        self.state.sent.lock().expect("no request panicked").clear();
        self.state.seen.lock().expect("no request panicked").clear();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
        let _killed = self.registry.kill();
        let _status = self.registry.wait();
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

async fn serve(listener: TcpListener, state: Arc<State>, registry_port: u16) {
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .expect("a client can be made");
    while let Ok((stream, _)) = listener.accept().await {
        let (state, client) = (Arc::clone(&state), client.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                forward(Arc::clone(&state), client.clone(), registry_port, request)
            });
            let _closed = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn forward(
    state: Arc<State>,
    client: reqwest::Client,
    port: u16,
    request: Request<Incoming>,
) -> Result<Response<Body>, std::io::Error> {
    let path = request.uri().to_string();
    state
        .seen
        .lock()
        .expect("no request panicked")
        .push((request.method().to_string(), path.clone()));
    let fault = {
        let faults = state.faults.lock().expect("no request panicked");
        faults
            .iter()
            .find(|(part, _)| path.contains(part.as_str()))
            .map(|(_, fault)| fault.clone())
    };
    if let Some(answer) = answer_of(&state, fault.as_ref(), request.headers()).await {
        return Ok(answer);
    }
    if let Some(answer) = answer_of_doors(&state, &path, request.headers()) {
        return Ok(answer);
    }
    let mut headers = request.headers().clone();
    headers.remove(header::HOST);
    let (method, body) = (request.method().clone(), request.into_body());
    let body = body
        .collect()
        .await
        .map_err(std::io::Error::other)?
        .to_bytes();
    let url = format!("http://127.0.0.1:{port}{path}");
    let answer = client
        .request(method, url)
        .headers(headers)
        .body(body)
        .send()
        .await
        .map_err(std::io::Error::other)?;
    let mut response = Response::builder().status(answer.status());
    *response.headers_mut().expect("a new response has headers") = answer.headers().clone();
    let length = answer.content_length();
    let bytes = answer.bytes_stream().map_err(std::io::Error::other);
    let bytes = spoil(bytes.boxed(), fault.as_ref(), length, Arc::clone(&state));
    let bytes = bytes.inspect_ok(move |piece| {
        let mut sent = state.sent.lock().expect("no request panicked");
        *sent.entry(path.clone()).or_default() += piece.len();
    });
    Ok(response
        .body(BodyExt::boxed_unsync(StreamBody::new(
            bytes.map_ok(Frame::data),
        )))
        .expect("a forwarded head is good"))
}

/// What a fault answers by itself.
async fn answer_of(
    state: &State,
    fault: Option<&Fault>,
    headers: &http::HeaderMap,
) -> Option<Response<Body>> {
    let challenge = || {
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        let realm = format!("http://{}/token", host.unwrap_or_default());
        let bearer = format!("Bearer realm=\"{realm}\",service=\"test\"");
        plain(401, &[(header::WWW_AUTHENTICATE, bearer)])
    };
    match fault? {
        Fault::Status(status) => Some(plain(*status, &[])),
        Fault::TooMany { retry_after } => Some(plain(
            429,
            &[(header::RETRY_AFTER, retry_after.to_string())],
        )),
        Fault::Challenge => Some(challenge()),
        Fault::Flap => {
            let count = state.flaps.fetch_add(1, Ordering::SeqCst);
            count.is_multiple_of(2).then(challenge)
        }
        Fault::Token => {
            let token = Full::new(Bytes::from_static(br#"{"token":"of-the-test"}"#));
            let body = BodyExt::boxed_unsync(token.map_err(|never| match never {}));
            Some(Response::new(body))
        }
        Fault::Hang => {
            let mut released = state.released.subscribe();
            let _sender_lives = released.wait_for(|released| *released).await;
            None
        }
        Fault::TruncateAt(_) | Fault::FlipLast | Fault::HoldAt(_) => None,
    }
}

/// What is answered before anything is forwarded.
fn answer_of_doors(state: &State, path: &str, headers: &http::HeaderMap) -> Option<Response<Body>> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION);
    match state.doors.get()?.answer(path, authorization) {
        Door::Open => None,
        Door::Unknown => Some(plain(401, &[])),
        Door::Token(token) => {
            let body = Full::new(Bytes::from(format!(r#"{{"token":"{token}"}}"#)));
            let body = BodyExt::boxed_unsync(body.map_err(|never| match never {}));
            Some(Response::new(body))
        }
        Door::Challenge(scope) => {
            let host = text(header::HOST).unwrap_or_default();
            let mut bearer = format!("Bearer realm=\"http://{host}/token\",service=\"doors\"");
            if !scope.is_empty() {
                bearer.push_str(&format!(",scope=\"{scope}\""));
            }
            Some(plain(401, &[(header::WWW_AUTHENTICATE, bearer)]))
        }
    }
}

fn plain(status: u16, headers: &[(header::HeaderName, String)]) -> Response<Body> {
    let text =
        format!(r#"{{"errors":[{{"code":"UNKNOWN","message":"made by the test: {status}"}}]}}"#);
    let mut response = Response::new(BodyExt::boxed_unsync(
        Full::new(Bytes::from(text)).map_err(|never| match never {}),
    ));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, value.parse().expect("a header value"));
    }
    response
}

type Piece = Result<Bytes, std::io::Error>;
type Pieces = futures_util::stream::BoxStream<'static, Piece>;

/// The body with its fault.
fn spoil(bytes: Pieces, fault: Option<&Fault>, length: Option<u64>, state: Arc<State>) -> Pieces {
    match fault {
        Some(Fault::TruncateAt(at)) => truncate(bytes, *at),
        Some(Fault::FlipLast) => flip_last(bytes, length),
        Some(Fault::HoldAt(at)) => hold(bytes, *at, state),
        Some(
            Fault::Status(_)
            | Fault::TooMany { .. }
            | Fault::Challenge
            | Fault::Flap
            | Fault::Token
            | Fault::Hang,
        )
        | None => bytes,
    }
}

fn truncate(bytes: Pieces, at: usize) -> Pieces {
    let mut left = at;
    let cut = bytes.flat_map(move |piece| {
        let pieces = match piece {
            Ok(piece) if piece.len() <= left => vec![Ok(piece)],
            Ok(piece) => vec![Ok(piece.slice(..left)), Err(std::io::Error::other("cut"))],
            Err(error) => vec![Err(error)],
        };
        left -= pieces
            .first()
            .and_then(|first| first.as_ref().ok())
            .map_or(0, Bytes::len);
        futures_util::stream::iter(pieces)
    });
    cut.boxed()
}

fn flip_last(bytes: Pieces, length: Option<u64>) -> Pieces {
    let mut left = length.unwrap_or(u64::MAX);
    let flip = move |piece: Bytes| {
        left -= piece.len() as u64;
        let mut spoiled = piece.to_vec();
        if let (0, Some(last)) = (left, spoiled.last_mut()) {
            *last ^= 1;
        }
        Bytes::from(spoiled)
    };
    bytes.map_ok(flip).boxed()
}

fn hold(bytes: Pieces, at: usize, state: Arc<State>) -> Pieces {
    let mut left = at;
    let marked = bytes.flat_map(move |piece| {
        let Ok(piece) = piece else {
            return futures_util::stream::iter(vec![(piece, false)]);
        };
        let free = piece.len().min(left);
        left -= free;
        futures_util::stream::iter(vec![
            (Ok(piece.slice(..free)), false),
            (Ok(piece.slice(free..)), free < piece.len()),
        ])
    });
    let held = marked.then(move |(piece, hold)| {
        let state = Arc::clone(&state);
        async move {
            if hold {
                let mut released = state.released.subscribe();
                let _sender_lives = released.wait_for(|released| *released).await;
            }
            piece
        }
    });
    held.try_filter(|piece| std::future::ready(!piece.is_empty()))
        .boxed()
}
