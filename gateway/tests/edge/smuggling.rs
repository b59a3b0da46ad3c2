//! A request that two readers could read differently is refused, in our own error form, and the connection closed.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::harness::{Server, patient};

/// What the answer to broken HTTP must be: the status, the OCI form, and the end of the connection.
async fn refused(server: &Server, request: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
    let mut client = server.connect().await;
    client.try_send(request).await;
    let response = client.response().await;
    assert_eq!(response.status, status, "{shown}");
    assert_eq!(
        response.header("content-type"),
        Some("application/json"),
        "{shown}"
    );
    let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(json["errors"][0]["code"], "UNSUPPORTED", "{shown}");
    assert!(
        client.rest().await.is_empty(),
        "something came after the refusal of {shown}"
    );
}

const NEXT: &str = "GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n";

/// Headers that two readers could read differently.
const CORPUS: &[&str] = &[
    "content-length: 5\r\ntransfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\r\ncontent-length: 5\r\n",
    "content-length: 5\r\ncontent-length: 5\r\n",
    "content-length: 5\r\ncontent-length: 0\r\n",
    "content-length: 5, 5\r\n",
    "content-length: +5\r\n",
    "content-length: -5\r\n",
    "content-length: 0x5\r\n",
    "content-length: 5 5\r\n",
    "content-length: 18446744073709551616\r\n",
    "content-length : 5\r\n",
    "transfer-encoding: xchunked\r\n",
    "transfer-encoding: chunked, gzip\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
    "transfer-encoding : chunked\r\n",
    "transfer-encoding:\x0bchunked\r\n",
    " transfer-encoding: chunked\r\n",
    "x: y\r\n transfer-encoding: chunked\r\n",
    "x: y\ntransfer-encoding: chunked\r\n",
    "x: y\rtransfer-encoding: chunked\r\n",
    "x: a\0b\r\n",
    "nocolon\r\n",
    "host: other\r\n",
];

fn smuggled(headers: &str) -> String {
    format!("POST /length HTTP/1.1\r\nhost: gw\r\n{headers}\r\nhello{NEXT}")
}

#[tokio::test]
async fn the_smuggling_corpus_is_answered_400_and_closed() {
    let server = Server::start(&patient());
    for headers in CORPUS {
        refused(&server, smuggled(headers).as_bytes(), 400).await;
    }
}

const CHUNKED: &str = "PUT /length HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n";
const BODY: &str = "5;a=b\r\nhello\r\n3\r\n\r\n0\r\n0\r\nsum: 1\r\n\r\n";

/// Sends what is cut in two, so that the parts arrive one by one.
async fn cut(server: &Server, all: &str, at: usize) -> crate::harness::Client<TcpStream> {
    let mut client = server.connect().await;
    client.stream.set_nodelay(true).unwrap();
    let (first, rest) = all.as_bytes().split_at(at);
    client.send(first).await;
    for _turn in 0..3 {
        tokio::task::yield_now().await;
    }
    // A refusal of the first part may come before the second.
    client.try_send(rest).await;
    client
}

#[tokio::test]
#[expect(
    clippy::excessive_nesting,
    reason = "each level is one case, and a function for one would hide the order"
)]
async fn behind_a_chunked_request_the_smuggling_corpus_is_refused_all_the_same() {
    let server = Server::start(&patient());
    for headers in CORPUS {
        for length in [format!("{CHUNKED}{BODY}"), format!("{NEXT}{CHUNKED}{BODY}")] {
            let mut client = server.connect().await;
            client.send(format!("{length}{}", smuggled(headers))).await;
            if length.starts_with("GET") {
                assert_eq!(client.response().await.text(), "hello");
            }
            assert_eq!(client.response().await.text(), "8", "{headers:?}");
            let response = client.response().await;
            assert_eq!(response.status, 400, "{headers:?}");
            assert!(response.text().contains("UNSUPPORTED"), "{headers:?}");
            assert!(client.rest().await.is_empty(), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn wherever_a_stream_of_chunked_requests_is_cut_it_is_read_one_way() {
    let server = Server::start(&patient());
    let two_hosts = "GET /hello HTTP/1.1\r\nhost: gw\r\nhost: other\r\n\r\n";
    let all = format!("{CHUNKED}{BODY}{NEXT}{CHUNKED}{BODY}{two_hosts}{NEXT}");
    for at in 0..=all.len() {
        let mut client = cut(&server, &all, at).await;
        assert_eq!(client.response().await.text(), "8", "cut at {at}");
        assert_eq!(client.response().await.text(), "hello", "cut at {at}");
        assert_eq!(client.response().await.text(), "8", "cut at {at}");
        assert_eq!(client.response().await.status, 400, "cut at {at}");
        assert!(client.rest().await.is_empty(), "cut at {at}");
    }
}

#[tokio::test]
async fn large_chunked_bodies_are_counted_whole_and_the_next_head_is_guarded() {
    let server = Server::start(&patient());
    for size in [1, 100, 8191, 8192, 8193, 70_000, 1 << 20] {
        let chunk = format!("{size:x}\r\n{}\r\n", "x".repeat(size));
        let count = (4 << 20) / size.max(100);
        let body = format!("{}0\r\n\r\n", chunk.repeat(count));
        let mut client = server.connect().await;
        client.send(format!("{CHUNKED}{body}{NEXT}")).await;
        client
            .send("GET /hello HTTP/1.1\r\nhost: gw\nx: y\r\n\r\n")
            .await;
        let length = client.response().await.text().parse::<usize>().unwrap();
        assert_eq!(length, size * count);
        assert_eq!(client.response().await.text(), "hello");
        assert_eq!(client.response().await.status, 400, "chunks of {size}");
        assert!(client.rest().await.is_empty());
    }
}

#[tokio::test]
async fn broken_request_lines_are_answered_400_and_closed() {
    let server = Server::start(&patient());
    for line in [
        "GET",
        "GET /hello",
        "GET /hello HTTP/3.0",
        "GET /hello http/1.1",
        "GET  /hello HTTP/1.1",
        "G\x01T /hello HTTP/1.1",
        "GET /he llo HTTP/1.1",
        "\x16\x03\x01\x02\0\x01\0",
    ] {
        let request = format!("{line}\r\nhost: gw\r\n\r\n");
        refused(&server, request.as_bytes(), 400).await;
    }
    refused(&server, b"GET /hello HTTP/1.1\r\n\r\n", 400).await;
    refused(&server, b"GET /hello HTTP/1.1\nhost: gw\n\n", 400).await;
    refused(&server, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", 400).await;
}

#[tokio::test]
async fn a_refusal_comes_behind_the_answers_before_it() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    assert_eq!(client.get("/hello").await.text(), "hello");
    client
        .send("GET /hello HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n")
        .await;
    let response = client.response().await;
    assert_eq!(response.status, 400);
    assert!(response.text().contains("UNSUPPORTED"));
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_until_the_broken_one() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    let put = "PUT /length HTTP/1.1\r\nhost: gw\r\ncontent-length: 5\r\n\r\nhello";
    client
        .send(format!(
            "{NEXT}{put}{NEXT}GET / HTTP/1.1\r\nbroken\r\n\r\n{NEXT}"
        ))
        .await;
    assert_eq!(client.response().await.text(), "hello");
    assert_eq!(client.response().await.text(), "5");
    assert_eq!(client.response().await.text(), "hello");
    assert_eq!(client.response().await.status, 400);
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_broken_chunk_is_answered_400_wherever_it_is_cut() {
    let server = Server::start(&patient());
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nx",
        "\r\nhello",
        "0\r\nhost\r\n\r\n",
        "0\r\n folded: x\r\n\r\n",
        "0\n\n",
    ] {
        let all = format!("{CHUNKED}{body}{NEXT}");
        for at in CHUNKED.len()..all.len() {
            let mut client = cut(&server, &all, at).await;
            let response = client.response().await;
            assert_eq!(response.status, 400, "{body:?} cut at {at}");
            assert_eq!(response.header("connection"), Some("close"));
            assert!(client.rest().await.is_empty(), "{body:?} cut at {at}");
        }
    }
}

#[tokio::test]
async fn extensions_and_trailers_without_end_are_refused() {
    let server = Server::start(&patient());
    for body in [
        format!("5;{}", "e".repeat(1 << 20)),
        format!("5{}", " ".repeat(1 << 20)),
        format!("1;{}\r\nx\r\n", "e".repeat(100)).repeat(10_000),
        format!("0\r\n{}", "name: value\r\n".repeat(100_000)),
        format!("0\r\nname: {}", "v".repeat(1 << 20)),
        "0".repeat(1 << 20),
    ] {
        let mut client = server.connect().await;
        client.try_send(format!("{CHUNKED}{body}")).await;
        assert_eq!(client.response().await.status, 400);
        assert!(client.rest().await.is_empty());
    }
}

#[tokio::test]
async fn a_client_that_leaves_inside_a_chunked_body_is_gone_and_not_wrong() {
    let server = Server::start(&patient());
    for part in ["", "5", "5\r\nhel", "5\r\nhello\r\n0\r\n", "0\r\na: b"] {
        let mut client = server.connect().await;
        client.send(format!("{CHUNKED}{part}")).await;
        client.stream.shutdown().await.unwrap();
        let response = client.response().await;
        assert_eq!(response.status, 499, "{part:?}");
    }
}

#[tokio::test]
async fn heads_that_are_too_large_are_answered_4xx_and_closed() {
    let server = Server::start(&patient());
    let long_value = format!(
        "GET /hello HTTP/1.1\r\nhost: gw\r\nx: {}\r\n\r\n",
        "a".repeat(1 << 20)
    );
    refused(&server, long_value.as_bytes(), 431).await;
    let many = format!(
        "GET /hello HTTP/1.1\r\nhost: gw\r\n{}\r\n",
        "x: y\r\n".repeat(150)
    );
    refused(&server, many.as_bytes(), 431).await;
    let endless = format!(
        "GET /hello HTTP/1.1\r\nhost: gw\r\nx: {}",
        "a".repeat(2 << 20)
    );
    refused(&server, endless.as_bytes(), 431).await;
    let long_target = format!("GET /{} HTTP/1.1\r\nhost: gw\r\n\r\n", "a".repeat(65_000));
    let mut client = server.connect().await;
    client.send(long_target).await;
    assert!((400..500).contains(&client.response().await.status));
}
