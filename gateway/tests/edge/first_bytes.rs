//! What is no HTTP is answered at once and in HTTP, wherever the client's bytes are cut: clients that try TLS first wait for it.

use std::{sync::Arc, time::Instant};

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    harness::{Client, PATIENCE, Response, Server, patient},
    tls::Files,
};

/// The answer to bytes that begin no request: long before the header timeout, which is [`PATIENCE`] here.
async fn answered_at_once(server: &Server, pieces: &[&[u8]]) -> Response {
    let started = Instant::now();
    let mut client = server.connect().await;
    client.stream.set_nodelay(true).unwrap();
    for piece in pieces {
        // The answer may come before the last piece.
        let _closed = client.try_send(piece).await;
        tokio::task::yield_now().await;
    }
    let response = client.response().await;
    assert!(started.elapsed() < PATIENCE / 3, "{pieces:?}");
    assert_eq!(response.status, 400, "{pieces:?}");
    assert_eq!(response.header("connection"), Some("close"));
    response
}

fn message(response: &Response) -> String {
    let json: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    json["errors"][0]["message"].as_str().unwrap().to_owned()
}

/// What a TLS client sends first.
fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut connection = ClientConnection::new(Arc::new(trusting_nobody()), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

fn trusting_nobody() -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
}

#[tokio::test]
async fn a_tls_hello_on_a_plain_port_is_answered_in_http_wherever_it_is_cut() {
    let server = Server::start(&patient());
    let hello = client_hello();
    for cut in 1..=hello.len() {
        let (first, rest) = hello.split_at(cut);
        let response = answered_at_once(&server, &[first, rest]).await;
        assert!(message(&response).contains("http://"), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_first_byte_that_begins_no_method_is_answered_at_once() {
    let server = Server::start(&patient());
    for byte in 0..=u8::MAX {
        let begins = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r".contains(&byte);
        if !begins {
            answered_at_once(&server, &[&[byte]]).await;
            answered_at_once(&server, &[b"\r\n", &[byte]]).await;
        }
    }
}

#[tokio::test]
async fn text_that_is_no_request_line_is_answered_with_its_first_wrong_byte() {
    let server = Server::start(&patient());
    for text in [
        &b"SSH-2.0-OpenSSH_9.9\r\n"[..],
        b"GET\r\n",
        b"GET /\r\n",
        b"GET / HTTP/3",
        b"GET / HTTP/1.1\n",
        b"GET /\x16\x03\x01",
        b"EHLO mail.example\r\n",
        b"\r\n\r\n\r\x16",
        b"*1\r\n$4\r\nPING\r\n",
    ] {
        answered_at_once(&server, &[text]).await;
        for cut in 1..text.len() {
            let (first, rest) = text.split_at(cut);
            answered_at_once(&server, &[first, rest]).await;
        }
    }
}

#[tokio::test]
async fn the_proxy_protocol_is_answered_with_what_to_do() {
    let server = Server::start(&patient());
    let request = b"GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n";
    let v1 = [
        &b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 5000\r\n"[..],
        request,
    ]
    .concat();
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x13\x88\x13\x88"[..],
        request,
    ]
    .concat();
    for preface in [v1, v2] {
        for cut in 1..=preface.len() {
            let (first, rest) = preface.split_at(cut);
            let response = answered_at_once(&server, &[first, rest]).await;
            assert!(message(&response).contains("PROXY protocol"), "at {cut}");
        }
    }
}

#[tokio::test]
async fn a_request_behind_empty_lines_is_answered_as_ever() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    for byte in b"\r\n\r\nGET /hello HTTP/1.1\r\nhost: gw\r\n\r\n" {
        client.send([*byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(client.response().await.text(), "hello");
}

#[tokio::test]
async fn what_is_no_tls_is_answered_in_plain_http_on_a_tls_port() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    for text in [
        &b"GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n"[..],
        b"G",
        b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 5000\r\n",
        b"\x80\x2e\x01\0\x02",
        b"\0",
    ] {
        let response = answered_at_once(&server, &[text]).await;
        assert!(message(&response).contains("https://"), "{text:?}");
    }
}

#[tokio::test]
async fn a_plain_upload_on_a_tls_port_reads_its_refusal_before_the_end() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let mut client = server.connect().await;
    let head = "PUT /length HTTP/1.1\r\nhost: gw\r\ncontent-length: 1000000\r\n\r\n";
    client.send(head).await;
    client.send(vec![b'x'; 1_000_000]).await;
    assert_eq!(client.response().await.status, 400);
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn a_tls_hello_that_arrives_byte_by_byte_is_answered_in_tls() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let mut stream = tokio::net::TcpStream::connect(server.address)
        .await
        .unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in client_hello() {
        stream.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut record = [0; 3];
    stream.read_exact(&mut record).await.unwrap();
    assert_eq!(record, [0x16, 3, 3], "a server hello");
}

#[tokio::test]
async fn records_that_are_no_hello_end_the_connection_at_once() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    for garbage in [
        &b"\x16GET / HTTP/1.1\r\n\r\n"[..],
        b"\x16\x03\x01\xff\xff\x01\0",
        b"\x15\x03\x01\0\x02\x02\x28",
        b"\x17\x03\x03\0\x05hello",
        b"\x16\x03\x01\0\x05\x02\0\0\x01\0",
    ] {
        let started = Instant::now();
        let stream = tokio::net::TcpStream::connect(server.address)
            .await
            .unwrap();
        let mut client = Client::new(stream);
        client.send(garbage).await;
        client.rest().await;
        assert!(started.elapsed() < PATIENCE / 3, "{garbage:?}");
    }
}
