//! Bodies in both directions: whole or visibly broken, and never a guess about where the next request begins.

use std::time::Duration;

use crate::harness::{Server, byte_at, patient};

#[tokio::test]
async fn a_blob_arrives_whole() {
    let server = Server::start(&patient());
    let size = 5_000_001_u64;
    let response = server.connect().await.get(&format!("/blob/{size}")).await;
    assert_eq!(response.body.len() as u64, size);
    assert!(
        (0..size)
            .zip(&response.body)
            .all(|(offset, byte)| byte_at(offset) == *byte)
    );
}

#[tokio::test]
async fn a_body_that_breaks_off_aborts_the_connection() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    client
        .send("GET /broken HTTP/1.1\r\nhost: gw\r\n\r\n")
        .await;
    let all = String::from_utf8(client.rest().await).unwrap();
    assert!(all.contains("content-length: 8\r\n"), "{all}");
    assert!(all.ends_with("half"), "{all}");
}

#[tokio::test]
async fn head_has_the_length_and_no_body() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    client
        .send("HEAD /blob/1000 HTTP/1.1\r\nhost: gw\r\n\r\n")
        .await;
    client.send("GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    let all = tokio::time::timeout(crate::harness::PATIENCE, async {
        client
            .send("GET /hello HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n")
            .await;
        client.rest().await
    });
    let all = String::from_utf8(all.await.unwrap()).unwrap();
    let (head, rest) = all.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("content-length: 1000"), "{head}");
    assert!(rest.starts_with("HTTP/1.1 200 OK"), "{rest}");
}

#[tokio::test]
async fn a_connection_is_kept_after_a_body_that_was_read() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    for body in [
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        client
            .send(format!("PUT /length HTTP/1.1\r\nhost: gw\r\n{body}"))
            .await;
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (200, "5"));
        assert_eq!(response.header("connection"), None);
    }
    assert_eq!(client.get("/hello").await.status, 200);
}

#[tokio::test]
async fn an_answer_without_reading_the_body_arrives_and_closes() {
    let server = Server::start(&patient());
    for length in [5_usize, 1 << 20, 6 << 20] {
        let mut client = server.connect().await;
        client
            .send(format!(
                "PUT /refuse HTTP/1.1\r\nhost: gw\r\ncontent-length: {length}\r\n\r\n"
            ))
            .await;
        // The client writes everything before it reads, as simple clients do: no reset may overtake the answer.
        client.try_send(vec![b'x'; length]).await;
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (403, "no"), "{length}");
        assert_eq!(response.header("connection"), Some("close"), "{length}");
        assert!(client.rest().await.is_empty(), "{length}");
    }
}

#[tokio::test]
async fn bytes_behind_an_unread_body_are_never_a_request() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    let smuggled = "GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n";
    let length = smuggled.len();
    client
        .send(format!("PUT /refuse HTTP/1.1\r\nhost: gw\r\ncontent-length: {length}\r\n\r\n{smuggled}{smuggled}"))
        .await;
    let all = String::from_utf8(client.rest().await).unwrap();
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
}

#[tokio::test]
async fn an_expected_continue_is_sent_only_when_the_body_is_wanted() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    let head = "host: gw\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    client.send(format!("PUT /length HTTP/1.1\r\n{head}")).await;
    assert_eq!(client.response().await.status, 100);
    client.send("hello").await;
    assert_eq!(client.response().await.text(), "5");
    client.send(format!("PUT /refuse HTTP/1.1\r\n{head}")).await;
    let response = client.response().await;
    assert_eq!(response.status, 403);
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_is_noticed() {
    let server = Server::start(&patient());
    let mut client = server.connect().await;
    client
        .send("PUT /length HTTP/1.1\r\nhost: gw\r\ncontent-length: 50\r\n\r\nhello")
        .await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(10), server.no_connection_left())
        .await
        .unwrap();
}
