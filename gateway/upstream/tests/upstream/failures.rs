//! Failures are told apart, alternatives stand in, and a failing upstream is left alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use gantry_model::AcceptedTypes;
use gantry_upstream::{ClientSettings, Kind, RegistryClient, Upstream as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use url::Url;

use super::server::{
    MANIFEST_PATH, Seen, Server, alpine, client, latest, manifest, reply, settings, status,
    token_registry, with_credentials,
};

/// An address where nobody listens.
async fn nowhere() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap()
}

async fn kind_of(url: &Url) -> Kind {
    let error = client(url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.upstream, "hub");
    error.kind
}

#[tokio::test]
async fn missing_failing_and_unreachable_are_told_apart() {
    for (code, kind) in [
        (404, Kind::NotFound),
        (403, Kind::Refused),
        (401, Kind::Refused),
        (500, Kind::Unavailable),
        (503, Kind::Unavailable),
        (400, Kind::Invalid),
        (204, Kind::Invalid),
        (304, Kind::Invalid),
    ] {
        let server = Server::start(move |_| status(code)).await;
        assert_eq!(kind_of(&server.url).await, kind, "{code}");
    }
    assert_eq!(kind_of(&nowhere().await).await, Kind::Unavailable);
}

#[tokio::test]
async fn a_client_is_built_while_the_upstream_is_down() {
    assert!(RegistryClient::new(settings(&nowhere().await)).is_ok());
}

#[tokio::test]
async fn a_silent_upstream_is_given_up() {
    let server = Server::start_silent().await;
    let client = RegistryClient::new(ClientSettings {
        connect_timeout: Duration::from_millis(100),
        idle_timeout: Duration::from_millis(100),
        ..settings(&server.url)
    })
    .unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.attempt.as_str()),
        (Kind::Unavailable, "GET manifest: no answer in time")
    );
}

#[tokio::test]
async fn a_rate_limit_tells_when_to_come_back() {
    let server = Server::start(|_| reply(429, &[("retry-after", "17")], "Too Many Requests")).await;
    let error = client(&server.url)
        .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.retry_after),
        (Kind::RateLimited, Some(Duration::from_secs(17)))
    );
    let dated = Server::start(|_| {
        let headers = [
            ("retry-after", "Fri, 01 Jan 2100 00:01:00 GMT"),
            ("date", "Fri, 01 Jan 2100 00:00:00 GMT"),
        ];
        reply(429, &headers, "")
    })
    .await;
    let error = client(&dated.url)
        .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(60)));
}

fn with_alternatives(url: &Url, alternatives: &[&Server]) -> ClientSettings {
    let urls = alternatives.iter().map(|server| server.url.clone());
    ClientSettings {
        alternatives: urls.collect(),
        ..with_credentials(url)
    }
}

#[tokio::test]
async fn alternatives_stand_in_when_the_first_is_unavailable_or_rate_limited() {
    for code in [503, 429] {
        let first = Server::start(move |_| status(code)).await;
        let second = Server::start(|_| status(503)).await;
        let third = Server::start(|_| manifest()).await;
        let client =
            RegistryClient::new(with_alternatives(&first.url, &[&second, &third])).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        assert_eq!(
            (first.seen().len(), second.seen().len(), third.seen().len()),
            (1, 1, 1)
        );
    }
}

#[tokio::test]
async fn the_first_one_s_word_is_final() {
    let second = Server::start(|_| manifest()).await;
    for code in [404, 403, 400] {
        let first = Server::start(move |_| status(code)).await;
        let client = RegistryClient::new(with_alternatives(&first.url, &[&second])).unwrap();
        assert!(
            client
                .manifest(&alpine(), &latest(), &AcceptedTypes::default())
                .await
                .is_err()
        );
    }
    assert_eq!(second.seen().len(), 0);
}

#[tokio::test]
async fn an_alternative_without_the_content_does_not_say_that_there_is_none() {
    let second = Server::start(|_| status(404)).await;
    let client = RegistryClient::new(with_alternatives(&nowhere().await, &[&second])).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert_eq!(second.seen().len(), 1);
}

#[tokio::test]
async fn credentials_do_not_go_to_an_alternative_on_another_origin() {
    let second = Server::start(token_registry).await;
    let client = RegistryClient::new(with_alternatives(&nowhere().await, &[&second])).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(second.count("/token"), 1);
    let basic = second.seen().into_iter().filter(|seen| {
        seen.authorization()
            .is_some_and(|proof| proof.starts_with("Basic"))
    });
    assert_eq!(basic.count(), 0);
}

#[tokio::test]
async fn five_failures_in_a_row_leave_the_upstream_alone_until_a_probe_succeeds() {
    let is_up = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&is_up);
    let server = Server::start(move |_: &Seen| match answers.load(Ordering::SeqCst) {
        true => manifest(),
        false => status(503),
    })
    .await;
    let client = client(&server.url);
    for _ in 0..8 {
        let error = client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
    }
    assert_eq!(server.count(MANIFEST_PATH), 5);
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    let pause = error.retry_after.unwrap();
    assert!(pause <= Duration::from_secs(1));
    is_up.store(true, Ordering::SeqCst);
    // The client does as it is told; what passes here is the pause under test.
    tokio::time::sleep(pause).await;
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(server.count(MANIFEST_PATH), 7);
}

#[tokio::test]
async fn an_answer_of_any_other_kind_keeps_the_breaker_closed() {
    let server = Server::start(|_| status(404)).await;
    let client = client(&server.url);
    for _ in 0..8 {
        let error = client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
    }
    assert_eq!(server.count(MANIFEST_PATH), 8);
}

/// Answers with interim answers for as long as they are taken.
async fn flood(mut stream: TcpStream) {
    let mut head = [0; 4096];
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    if stream.read(&mut head).await.is_ok() {
        while stream.write_all(interim.as_bytes()).await.is_ok() {}
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_a_bad_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(flood(stream));
        }
    });
    let error = client(&url.parse().unwrap())
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.fault().as_str()),
        (Kind::Invalid, "bad answer")
    );
    assert!(error.attempt.contains("interim answers"), "{error}");
}
