//! No phase of a connection is without a time limit, and no client can take more than its share.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;

use crate::harness::{EdgeExt as _, PATIENCE, Server, patient, settings};

/// A phase that has a limit ends after it, and not much before.
async fn closes_after(server: &Server, sent: &[u8], limit: Duration) {
    let mut client = server.connect().await;
    client.send(sent).await;
    let started = Instant::now();
    assert!(client.rest().await.is_empty(), "{sent:?}");
    assert!(
        started.elapsed() > limit / 2,
        "{sent:?} {:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let server = Server::start(&settings().idle(PATIENCE));
    closes_after(&server, b"", settings().header_timeout).await;
}

#[tokio::test]
async fn half_a_head_is_closed() {
    let server = Server::start(&settings().idle(PATIENCE));
    for half in [
        &b"G"[..],
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nhost: gw\r\n",
    ] {
        closes_after(&server, half, settings().header_timeout).await;
    }
}

#[tokio::test]
async fn half_an_http2_preface_is_closed() {
    let server = Server::start(&settings().idle(PATIENCE));
    for half in [
        &b"P"[..],
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r",
    ] {
        closes_after(&server, half, settings().header_timeout).await;
    }
}

#[tokio::test]
async fn an_http2_connection_without_requests_is_closed() {
    let server = Server::start(&settings());
    let mut client = server.connect().await;
    client
        .send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await;
    client.rest().await;
}

#[tokio::test]
async fn a_head_that_drips_is_closed() {
    let server = Server::start(&settings().idle(PATIENCE));
    let mut client = server.connect().await;
    let started = Instant::now();
    let mut every = tokio::time::interval(Duration::from_millis(20));
    client.send("GET / HTTP/1.1\r\n").await;
    while client.try_send("a: b\r\n").await {
        every.tick().await;
        assert!(started.elapsed() < PATIENCE);
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = Server::start(&settings());
    let mut client = server.connect().await;
    assert_eq!(client.get("/hello").await.status, 200);
    let started = Instant::now();
    assert!(client.rest().await.is_empty());
    assert!(started.elapsed() > settings().idle_timeout / 2);
}

#[tokio::test]
async fn half_a_second_head_is_closed_before_the_idle_timeout() {
    let server = Server::start(&settings().idle(PATIENCE * 2));
    let mut client = server.connect().await;
    assert_eq!(client.get("/hello").await.status, 200);
    client.send("GET /hello HT").await;
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_request_in_flight_outlives_the_idle_timeout() {
    let server = Server::start(&settings());
    let mut client = server.connect().await;
    client.send("GET /gate HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    server.handler.begun.acquire().await.unwrap().forget();
    tokio::time::sleep(settings().idle_timeout * 2).await;
    server.handler.gate.add_permits(1);
    assert_eq!(client.response().await.text(), "through");
}

#[tokio::test]
async fn a_slow_body_is_answered_408() {
    let server = Server::start(&settings());
    let mut client = server.connect().await;
    client
        .send("PUT /length HTTP/1.1\r\nhost: gw\r\ncontent-length: 1000000\r\n\r\n")
        .await;
    client.send("some").await;
    let response = client.response().await;
    assert_eq!(response.status, 408);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_reader_that_stops_is_aborted() {
    let server = Server::start(&settings());
    let size = 256_u64 << 20;
    let mut client = server.connect().await;
    client
        .send(format!("GET /blob/{size} HTTP/1.1\r\nhost: gw\r\n\r\n"))
        .await;
    let mut some = vec![0; 1000];
    client.stream.read_exact(&mut some).await.unwrap();
    server.no_connection_left().await;
    // Whatever the kernels still held is there; the rest never comes.
    assert!((client.rest().await.len() as u64) < size);
}

#[tokio::test]
async fn an_upload_over_the_cap_is_413() {
    let server = Server::start(&patient());
    for head in [
        format!("content-length: {}", (8 << 20) + 1),
        "transfer-encoding: chunked".to_owned(),
    ] {
        let mut client = server.connect().await;
        client
            .send(format!(
                "PUT /length HTTP/1.1\r\nhost: gw\r\n{head}\r\n\r\n"
            ))
            .await;
        if head.contains("chunked") {
            let piece = format!("100000\r\n{}\r\n", "x".repeat(1 << 20));
            client.try_send(piece.repeat(9)).await;
        }
        assert_eq!(client.response().await.status, 413, "{head}");
    }
}

fn two_places() -> gantry::app::EdgeSettings {
    gantry::app::EdgeSettings {
        max_connections: 2,
        ..patient()
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_takes_the_place_of_the_longest_idle() {
    let server = Server::start(&two_places());
    let mut first = server.connect().await;
    assert_eq!(first.get("/hello").await.status, 200);
    let mut second = server.connect().await;
    assert_eq!(second.get("/hello").await.status, 200);
    let mut third = server.connect().await;
    assert_eq!(third.get("/hello").await.status, 200);
    assert!(first.rest().await.is_empty(), "the first is closed");
    assert_eq!(second.get("/hello").await.status, 200);
    assert_eq!(server.telemetry.connections_closed_for_room.get(), 1);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_refused_while_its_client_keeps_all_busy() {
    let server = Server::start(&two_places());
    let mut busy = Vec::new();
    for _connection in 0..2 {
        let mut client = server.connect().await;
        client.send("GET /gate HTTP/1.1\r\nhost: gw\r\n\r\n").await;
        server.handler.begun.acquire().await.unwrap().forget();
        busy.push(client);
    }
    let mut refused = server.connect().await;
    assert_eq!(refused.response().await.status, 503);
    assert_eq!(server.telemetry.connections_refused.get(), 1);
    server.handler.gate.add_permits(2);
    for mut client in busy {
        assert_eq!(client.response().await.text(), "through");
    }
}

#[tokio::test]
async fn two_hundred_clients_at_once_are_all_served() {
    let server = Server::start(&patient());
    let size = 300_000_u64;
    let pull = |address| async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut client = crate::harness::Client::new(stream);
        for _ in 0..3 {
            let response = client.get(&format!("/blob/{size}")).await;
            assert_eq!(response.body.len() as u64, size);
        }
    };
    let clients: Vec<_> = (0..200)
        .map(|_| tokio::spawn(pull(server.address)))
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    server.no_connection_left().await;
}
