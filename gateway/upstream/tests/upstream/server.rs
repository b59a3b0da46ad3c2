//! The upstream of the tests: a hyper server with a script, one for single connections below HTTP, and what tests say often.

use std::{
    convert::Infallible,
    future::pending,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use gantry_model::{Digest, Reference, RepositoryName};
use gantry_upstream::{ClientSettings, Credentials, RegistryClient, Tls};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use url::Url;
use zeroize::Zeroizing;

pub(super) type Reply = Response<BoxBody<Bytes, io::Error>>;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) target: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
    /// Whether the client showed a certificate.
    pub(super) is_certified: bool,
}

impl Seen {
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(super) fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// The server's own `host:port`, as the client called it.
    pub(super) fn host(&self) -> &str {
        self.header("host").unwrap()
    }
}

type Script = dyn Fn(&Seen) -> Option<Reply> + Send + Sync;

/// A scripted server; it ends with the value.
pub(super) struct Server {
    pub(super) url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Server {
    /// Answers every request by the script.
    pub(super) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::launch("127.0.0.1", None, move |seen: &Seen| Some(script(seen))).await
    }

    /// A server on another loopback address.
    pub(super) async fn start_at(
        address: &str,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch(address, None, move |seen: &Seen| Some(script(seen))).await
    }

    /// Over TLS, as `localhost`.
    pub(super) async fn start_tls(
        acceptor: TlsAcceptor,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::launch("127.0.0.1", Some(acceptor), move |seen: &Seen| {
            Some(script(seen))
        })
        .await
    }

    /// Takes requests and never answers.
    pub(super) async fn start_silent() -> Self {
        Self::launch("127.0.0.1", None, |_: &Seen| None).await
    }

    async fn launch(
        address: &str,
        acceptor: Option<TlsAcceptor>,
        script: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = match &acceptor {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://{address}:{port}"),
        };
        let seen = Arc::default();
        let script: Arc<Script> = Arc::new(script);
        Self {
            url: url.parse().unwrap(),
            seen: Arc::clone(&seen),
            task: tokio::spawn(accept(listener, acceptor, script, seen)),
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// `METHOD path` of each request, in order.
    pub(super) fn paths(&self) -> Vec<String> {
        let line = |seen: &Seen| format!("{} {}", seen.method, seen.path());
        self.seen().iter().map(line).collect()
    }

    pub(super) fn count(&self, path: &str) -> usize {
        self.seen()
            .iter()
            .filter(|seen| seen.path() == path)
            .count()
    }

    pub(super) fn at(&self, path: &str) -> String {
        self.url.join(path).unwrap().to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
        match acceptor.clone() {
            None => connections.spawn(serve(stream, false, script, seen)),
            Some(acceptor) => connections.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let is_certified = stream.get_ref().1.peer_certificates().is_some();
                    serve(stream, is_certified, script, seen).await;
                }
            }),
        };
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_certified: bool,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
) {
    let service = service_fn(|mut request: Request<Incoming>| {
        let (script, seen) = (&script, &seen);
        async move {
            let mut body = Vec::new();
            while let Some(Ok(frame)) = request.frame().await {
                body.extend(frame.into_data().unwrap());
            }
            let one = Seen {
                method: request.method().clone(),
                target: request.uri().to_string(),
                headers: request.headers().clone(),
                body: String::from_utf8(body).unwrap(),
                is_certified,
            };
            let answer = script(&one);
            seen.lock().unwrap().push(one);
            match answer {
                Some(answer) => Ok::<_, Infallible>(answer),
                None => pending().await,
            }
        }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // A client that goes away in the middle is what many tests are about.
    let _ended = connection
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// A server for one request per connection, answered with these very bytes and then `ending`.
pub(super) async fn start_raw(answer: Vec<u8>, ending: Ending) -> (Url, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await;
            tokio::io::AsyncWriteExt::write_all(&mut stream, &answer)
                .await
                .unwrap();
            match ending {
                Ending::Close => drop(stream),
                Ending::Reset => stream.set_zero_linger().unwrap(),
                Ending::Hold => held.push(stream),
            }
        }
    });
    (url.parse().unwrap(), task)
}

#[derive(Clone, Copy)]
pub(super) enum Ending {
    Close,
    Reset,
    Hold,
}

async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

// --- what servers say ---

pub(super) fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    let mut response = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    let body = Full::new(body.into()).map_err(|never| match never {});
    response.body(body.boxed()).unwrap()
}

pub(super) fn status(status: u16) -> Reply {
    reply(status, &[], "")
}

pub(super) const MANIFEST: &str = r#"{"schemaVersion":2,"manifests":[]}"#;

pub(super) fn manifest() -> Reply {
    let digest = digest().to_string();
    let media_type = gantry_model::media_type::OCI_INDEX;
    let headers = [
        ("content-type", media_type),
        ("docker-content-digest", &digest),
    ];
    reply(200, &headers, MANIFEST)
}

/// A 401 whose token endpoint is `/token` of the same server.
pub(super) fn challenge(seen: &Seen) -> Reply {
    challenge_to(&format!("http://{}/token", seen.host()))
}

pub(super) fn challenge_to(realm: &str) -> Reply {
    let value =
        format!(r#"Bearer realm="{realm}",service="reg",scope="repository:library/alpine:pull""#);
    reply(
        401,
        &[(header::WWW_AUTHENTICATE.as_str(), &value)],
        r#"{"errors":[]}"#,
    )
}

pub(super) fn token(value: &str) -> Reply {
    let body = format!(r#"{{"token":"{value}","access_token":"","expires_in":300}}"#);
    reply(200, &[("content-type", "application/json")], body)
}

pub(super) fn redirect(to: &str) -> Reply {
    reply(307, &[("location", to)], "")
}

/// A registry that wants `Bearer good` for everything, and gives that to everybody.
pub(super) fn token_registry(seen: &Seen) -> Reply {
    match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, Some("Bearer good")) => manifest(),
        _ => challenge(seen),
    }
}

// --- what tests ask ---

pub(super) fn settings(url: &Url) -> ClientSettings {
    ClientSettings {
        name: "hub".to_owned(),
        url: url.clone(),
        alternatives: Vec::new(),
        credentials: None,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(5),
        minimum_rate: 0,
        max_concurrency: 64,
        queue_timeout: Duration::from_secs(5),
        requests_per_second: None,
        token_realms: Vec::new(),
        headers: Vec::new(),
        tls: Tls::default(),
        proxy: None,
        user_agent: "gantry-test".to_owned(),
    }
}

pub(super) fn with_credentials(url: &Url) -> ClientSettings {
    ClientSettings {
        credentials: Some(acme().into()),
        ..settings(url)
    }
}

pub(super) fn acme() -> Credentials {
    Credentials {
        username: "acme".to_owned(),
        password: Zeroizing::new("s3cret".to_owned()),
    }
}

/// `acme:s3cret`
pub(super) const BASIC: &str = "Basic YWNtZTpzM2NyZXQ=";

pub(super) fn client(url: &Url) -> RegistryClient {
    RegistryClient::new(settings(url)).unwrap()
}

pub(super) fn alpine() -> RepositoryName {
    "library/alpine".parse().unwrap()
}

pub(super) fn latest() -> Reference {
    "latest".parse().unwrap()
}

pub(super) fn digest() -> Digest {
    format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
}

pub(super) const MANIFEST_PATH: &str = "/v2/library/alpine/manifests/latest";

pub(super) fn blob_path() -> String {
    format!("/v2/library/alpine/blobs/{}", digest())
}
