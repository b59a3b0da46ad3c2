//! A request that two readers could read differently is refused, in our own error form, and the connection closed.

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

#[tokio::test]
async fn the_smuggling_corpus_is_answered_400_and_closed() {
    let server = Server::start(&patient());
    for headers in [
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
    ] {
        let request = format!("POST /length HTTP/1.1\r\nhost: gw\r\n{headers}\r\nhello{NEXT}");
        refused(&server, request.as_bytes(), 400).await;
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
async fn a_broken_chunk_is_no_end_of_the_body() {
    let server = Server::start(&patient());
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\nx",
    ] {
        let mut client = server.connect().await;
        let head = "PUT /length HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n";
        client.send(format!("{head}{body}{NEXT}")).await;
        let all = String::from_utf8(client.rest().await).unwrap();
        assert!(!all.contains("200 OK"), "{body:?} {all}");
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
