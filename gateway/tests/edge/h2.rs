//! HTTP/2: the same answers, and a stream that its client does not take is reset while the others go on.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::harness::{PATIENCE, Server, byte_at, patient, settings};

type Body = http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>;

async fn connect<S>(stream: S) -> SendRequest<Body>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(4 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn request(method: &str, path: &str, body: Option<Bytes>) -> Request<Body> {
    let body = match body {
        Some(bytes) => Full::new(bytes).boxed(),
        None => Empty::new().boxed(),
    };
    Request::builder()
        .method(method)
        .uri(format!("https://gw{path}"))
        .body(body)
        .unwrap()
}

/// Reads a body to its end; `None` when it breaks off.
async fn read(mut body: hyper::body::Incoming) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        all.extend_from_slice(&frame.ok()?.into_data().unwrap_or_default());
    }
    Some(all)
}

/// One request on a connection of its own.
pub(crate) async fn get<S>(stream: S, path: &str) -> (u16, Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let response = connect(stream)
        .await
        .send_request(request("GET", path, None))
        .await
        .unwrap();
    (
        response.status().as_u16(),
        read(response.into_body()).await.unwrap(),
    )
}

async fn plain(server: &Server) -> SendRequest<Body> {
    connect(TcpStream::connect(server.address).await.unwrap()).await
}

#[tokio::test]
async fn blobs_and_uploads_arrive_whole() {
    let server = Server::start(&patient());
    let mut sender = plain(&server).await;
    let response = sender
        .send_request(request("GET", "/blob/3000001", None))
        .await
        .unwrap();
    assert_eq!(response.headers()["content-length"], "3000001");
    let body = read(response.into_body()).await.unwrap();
    assert!(
        body.iter()
            .zip(0..)
            .all(|(byte, offset)| *byte == byte_at(offset))
    );
    assert_eq!(body.len(), 3_000_001);
    let upload = request("PUT", "/length", Some(Bytes::from(vec![0; 2 << 20])));
    let response = sender.send_request(upload).await.unwrap();
    assert_eq!(
        read(response.into_body()).await.unwrap(),
        (2 << 20).to_string().as_bytes()
    );
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let server = Server::start(&patient());
    let mut sender = plain(&server).await;
    for path in ["/blob/1000", "/hello"] {
        let response = sender
            .send_request(request("HEAD", path, None))
            .await
            .unwrap();
        assert!(response.headers().contains_key("content-length"));
        assert_eq!(read(response.into_body()).await, Some(Vec::new()));
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_resets_its_stream() {
    let server = Server::start(&patient());
    let mut sender = plain(&server).await;
    let response = sender
        .send_request(request("GET", "/broken", None))
        .await
        .unwrap();
    assert_eq!(read(response.into_body()).await, None);
    let response = sender
        .send_request(request("GET", "/hello", None))
        .await
        .unwrap();
    assert_eq!(read(response.into_body()).await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_stream_that_is_not_taken_is_reset_and_the_others_go_on() {
    let server = Server::start(&settings());
    let mut sender = plain(&server).await;
    let stalled = sender
        .send_request(request("GET", "/blob/50000000", None))
        .await
        .unwrap();
    let started = std::time::Instant::now();
    // Its window stays shut, so nothing tells but the end of the request: its neighbors show that the connection lives.
    while !server.no_blob_left() {
        let hello = request("GET", "/hello", None);
        let response = sender.send_request(hello).await.unwrap();
        assert_eq!(read(response.into_body()).await.unwrap(), b"hello");
        assert!(started.elapsed() < PATIENCE, "the stalled stream stays");
    }
    assert_eq!(read(stalled.into_body()).await, None);
}

/// A connection whose client opens no window for any stream.
async fn without_windows(server: &Server) -> SendRequest<Body> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(0)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn streams_without_a_window_end() {
    let server = Server::start(&gantry::app::EdgeSettings {
        minimum_rate_window: std::time::Duration::from_secs(3),
        ..settings()
    });
    let sender = without_windows(&server).await;
    let mut responses = Vec::new();
    for _stream in 0..100 {
        let response = sender
            .clone()
            .send_request(request("GET", "/blob/50000000", None))
            .await
            .unwrap();
        responses.push(response);
    }
    assert!(!server.no_blob_left());
    let started = std::time::Instant::now();
    let mut every = tokio::time::interval(std::time::Duration::from_millis(10));
    while !server.no_blob_left() {
        every.tick().await;
        assert!(
            started.elapsed() < PATIENCE,
            "streams without a window stay"
        );
    }
    for response in responses {
        assert_eq!(read(response.into_body()).await, None);
    }
}

#[tokio::test]
async fn an_answer_that_fits_no_window_ends_and_so_does_its_connection() {
    let server = Server::start(&settings());
    let mut sender = without_windows(&server).await;
    let hello = sender
        .send_request(request("GET", "/hello", None))
        .await
        .unwrap();
    server.no_connection_left().await;
    assert_eq!(read(hello.into_body()).await, None);
}

#[tokio::test]
async fn a_reader_that_rests_holds_no_more_than_its_share_and_is_served_on() {
    let server = Server::start(&patient());
    let sender = plain(&server).await;
    let mut resting = Vec::new();
    for _stream in 0..30 {
        let response = sender
            .clone()
            .send_request(request("GET", "/blob/1000000", None))
            .await
            .unwrap();
        resting.push(response);
    }
    for response in resting {
        assert_eq!(read(response.into_body()).await.unwrap().len(), 1_000_000);
    }
    assert!(server.no_blob_left());
}

#[tokio::test]
async fn an_unread_body_leaves_the_other_streams_alone() {
    let server = Server::start(&patient());
    let mut sender = plain(&server).await;
    let upload = request("PUT", "/refuse", Some(Bytes::from(vec![0; 3 << 20])));
    let response = sender.send_request(upload).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers().get("connection"), None);
    drop(response);
    let response = sender
        .send_request(request("GET", "/hello", None))
        .await
        .unwrap();
    assert_eq!(read(response.into_body()).await.unwrap(), b"hello");
}

#[tokio::test]
async fn too_large_a_header_list_is_refused() {
    let server = Server::start(&patient());
    let mut sender = plain(&server).await;
    let mut large = request("GET", "/hello", None);
    for index in 0..20 {
        let name = http::HeaderName::try_from(format!("x-{index}")).unwrap();
        let value = http::HeaderValue::try_from("a".repeat(8000)).unwrap();
        large.headers_mut().insert(name, value);
    }
    match sender.send_request(large).await {
        Ok(response) => assert_eq!(response.status(), 431),
        Err(error) => assert!(
            error.to_string().contains("http2") || error.is_user(),
            "{error}"
        ),
    }
}
