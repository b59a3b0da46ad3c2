//! Bodies that are too short, too long, too slow, too large or coded.

use std::{io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gantry_model::AcceptedTypes;
use gantry_upstream::{
    BlobStream, ClientSettings, Kind, RegistryClient, Upstream as _, UpstreamError,
};
use http_body_util::{StreamBody, combinators::BoxBody};
use hyper::{Response, body::Frame};
use tokio::{sync::oneshot, time::timeout};
use url::Url;

use super::server::{
    Ending, MANIFEST, Reply, Server, alpine, client, digest, latest, reply, settings, start_raw,
};

async fn open(url: &Url) -> BlobStream {
    client(url).blob(&alpine(), &digest(), 0).await.unwrap()
}

/// What arrived before the error, and the error.
async fn broken(blob: BlobStream) -> (Vec<u8>, UpstreamError) {
    let mut bytes = blob.bytes;
    let mut arrived = Vec::new();
    loop {
        match bytes.next().await.expect("the body ended without an error") {
            Ok(part) => arrived.extend_from_slice(&part),
            Err(error) => {
                assert!(bytes.next().await.is_none(), "an error ends the stream");
                return (arrived, error);
            }
        }
    }
}

/// A body much longer than anybody wants: the same part at every tick, or as fast as it goes.
fn long(part: &'static [u8], tick: Option<Duration>, until: impl Send + Sync + 'static) -> Reply {
    let ticks = tick.map(tokio::time::interval);
    let parts = stream::unfold((ticks, until), move |(mut ticks, until)| async move {
        match &mut ticks {
            Some(ticks) => drop(ticks.tick().await),
            None => tokio::task::yield_now().await,
        }
        Some((
            Ok::<_, io::Error>(Frame::data(Bytes::from_static(part))),
            (ticks, until),
        ))
    });
    Response::new(BoxBody::new(StreamBody::new(parts.take(1600))))
}

#[tokio::test]
async fn a_truncated_body_is_an_error() {
    for head in [
        "Content-Length: 10\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\na\r\n",
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{head}01234");
        let (url, _server) = start_raw(answer.into_bytes(), Ending::Close).await;
        let (arrived, error) = broken(open(&url).await).await;
        assert_eq!(
            (arrived.as_slice(), error.kind),
            (&b"01234"[..], Kind::Unavailable)
        );
    }
}

#[tokio::test]
async fn a_reset_in_the_middle_is_an_error() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234".to_vec();
    let (url, _server) = start_raw(answer, Ending::Reset).await;
    let result = client(&url).blob(&alpine(), &digest(), 0).await;
    let error = match result {
        Ok(blob) => broken(blob).await.1,
        Err(error) => error,
    };
    assert_eq!(error.kind, Kind::Unavailable);
}

#[tokio::test]
async fn bytes_after_the_announced_length_are_not_delivered() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n01234HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil".to_vec();
    let (url, _server) = start_raw(answer, Ending::Hold).await;
    let client = client(&url);
    for _ in 0..2 {
        let blob = client.blob(&alpine(), &digest(), 0).await.unwrap();
        let parts: Vec<_> = blob.bytes.try_collect().await.unwrap();
        assert_eq!(parts.concat(), b"01234");
    }
}

#[tokio::test]
async fn a_body_that_is_not_as_long_as_its_range_is_an_error() {
    for (body, kind, delivered) in [
        ("5\r\n56789\r\n0\r\n\r\n", None, "56789"),
        ("4\r\n5678\r\n0\r\n\r\n", Some(Kind::Unavailable), "5678"),
        ("6\r\n567890\r\n0\r\n\r\n", Some(Kind::Invalid), ""),
    ] {
        let head = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (url, _server) = start_raw(format!("{head}{body}").into_bytes(), Ending::Hold).await;
        let blob = client(&url).blob(&alpine(), &digest(), 5).await.unwrap();
        match kind {
            None => assert_eq!(
                blob.bytes.try_collect::<Vec<_>>().await.unwrap().concat(),
                delivered.as_bytes()
            ),
            Some(kind) => {
                let (arrived, error) = broken(blob).await;
                assert_eq!(
                    (arrived.as_slice(), error.kind),
                    (delivered.as_bytes(), kind)
                );
            }
        }
    }
}

#[tokio::test]
async fn a_body_that_falls_silent_is_an_error() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234".to_vec();
    let (url, _server) = start_raw(answer, Ending::Hold).await;
    let client = impatient(&url, 0);
    let blob = client.blob(&alpine(), &digest(), 0).await.unwrap();
    let (arrived, error) = broken(blob).await;
    assert_eq!(
        (arrived.as_slice(), error.kind),
        (&b"01234"[..], Kind::Unavailable)
    );
    assert_eq!(error.attempt, "GET blob: the body stalled");
}

fn impatient(url: &Url, minimum_rate: u64) -> RegistryClient {
    let idle_timeout = Duration::from_millis(600);
    RegistryClient::new(ClientSettings {
        idle_timeout,
        minimum_rate,
        ..settings(url)
    })
    .unwrap()
}

#[tokio::test]
async fn a_drip_is_cut_off_and_a_slow_body_above_the_minimum_is_not() {
    let server = Server::start(|_| long(b"0123456789", Some(Duration::from_millis(20)), ())).await;
    let strict = impatient(&server.url, 100_000);
    let (_, error) = broken(strict.blob(&alpine(), &digest(), 0).await.unwrap()).await;
    assert_eq!(
        (error.kind, error.attempt.as_str()),
        (Kind::Unavailable, "GET blob: the body is too slow")
    );
    let lenient = impatient(&server.url, 50);
    let blob = lenient.blob(&alpine(), &digest(), 0).await.unwrap();
    // Longer than the idle timeout and several windows of the rate.
    let parts: Vec<_> = blob.bytes.take(40).try_collect().await.unwrap();
    assert_eq!(parts.len(), 40);
}

#[tokio::test]
async fn a_manifest_is_read_up_to_its_limit_only() {
    let announced = b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n".to_vec();
    let (url, _server) = start_raw(announced, Ending::Hold).await;
    let error = client(&url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    let (ended, end) = oneshot::channel::<()>();
    let ended = std::sync::Mutex::new(Some(ended));
    let server =
        Server::start(move |_| long(&[b' '; 65536], None, ended.lock().unwrap().take())).await;
    let error = client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    let closed = timeout(Duration::from_secs(5), end)
        .await
        .expect("the connection stays open");
    assert!(closed.is_err());
}

#[tokio::test]
async fn a_coded_body_is_invalid() {
    let server = Server::start(|_| reply(200, &[("content-encoding", "gzip")], MANIFEST)).await;
    let client = client(&server.url);
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    let error = client.blob(&alpine(), &digest(), 0).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    let plain = Server::start(|_| reply(200, &[("content-encoding", "identity")], MANIFEST)).await;
    self::client(&plain.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn headers_without_end_are_not_read_to_the_end() {
    let flood = "X-Flood: 0123456789\r\n".repeat(100_000);
    let answer = format!("HTTP/1.1 200 OK\r\n{flood}\r\n").into_bytes();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: Url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // The client hangs up in the middle, so the write may fail.
        tokio::io::AsyncWriteExt::write_all(&mut stream, &answer)
            .await
            .is_ok()
    });
    let error = client(&url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    server.abort();
}

#[tokio::test]
async fn dropping_the_stream_closes_the_connection() {
    let (ended, end) = oneshot::channel::<()>();
    let ended = std::sync::Mutex::new(Some(ended));
    let server =
        Server::start(move |_| long(&[0; 65536], None, ended.lock().unwrap().take())).await;
    let mut blob = open(&server.url).await;
    assert!(blob.bytes.next().await.unwrap().is_ok());
    drop(blob);
    // The sender lives in the server's body, which hyper drops with the connection.
    let closed = timeout(Duration::from_secs(1), end)
        .await
        .expect("the connection stays open");
    assert!(closed.is_err());
}

#[tokio::test]
async fn a_stream_counts_against_the_concurrency_until_it_is_dropped() {
    let server = Server::start(|_| long(&[0; 65536], None, ())).await;
    let client = RegistryClient::new(ClientSettings {
        max_concurrency: 1,
        ..settings(&server.url)
    })
    .unwrap();
    let first = client.blob(&alpine(), &digest(), 0).await.unwrap();
    let (name, digest) = (alpine(), digest());
    let mut second = Box::pin(client.blob(&name, &digest, 0));
    // Time enough for the second to reach the server, if it were let go.
    let other = self::client(&server.url);
    let others = async {
        for _ in 0..20 {
            other.stat_blob(&name, &digest).await.unwrap();
        }
    };
    tokio::select! {
        _ = &mut second => panic!("the second stream did not wait"),
        () = others => {}
    }
    let gets = || {
        server
            .seen()
            .iter()
            .filter(|seen| seen.method == "GET")
            .count()
    };
    assert_eq!(gets(), 1);
    drop(first);
    timeout(Duration::from_secs(5), second)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(gets(), 2);
}
