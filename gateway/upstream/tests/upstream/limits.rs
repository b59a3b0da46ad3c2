//! An upstream is not asked more often than it allows, nor than the operator does.

use std::{num::NonZeroU32, time::Duration};

use futures_util::StreamExt as _;
use gantry_model::AcceptedTypes;
use gantry_upstream::{
    Cause, ClientSettings, Kind, Quota, RegistryClient, Upstream as _, UpstreamError,
};

use super::server::{
    BASIC, MANIFEST_PATH, Seen, Server, acme, alpine, challenge, client, digest, latest, manifest,
    reply, settings, status,
};

async fn failure(client: &RegistryClient) -> UpstreamError {
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err()
}

#[tokio::test]
async fn nothing_is_sent_until_the_time_that_was_named() {
    for (code, kind, cause) in [
        ("429", Kind::RateLimited, Cause::RateLimit),
        ("503", Kind::Unavailable, Cause::Paused),
    ] {
        let code: u16 = code.parse().unwrap();
        let server = Server::start(move |_| reply(code, &[("retry-after", "60")], "")).await;
        let client = client(&server.url);
        failure(&client).await;
        let again = failure(&client).await;
        assert_eq!((again.kind, again.cause), (kind, cause));
        let left = again.retry_after.unwrap();
        assert!(
            left > Duration::from_secs(50) && left <= Duration::from_secs(60),
            "{left:?}"
        );
        let head = client
            .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await;
        assert_eq!(head.unwrap_err().kind, kind);
        assert_eq!(server.seen().len(), 1);
        // Blobs are limited by themselves.
        client.blob(&alpine(), &digest(), 0).await.unwrap_err();
        assert_eq!(server.seen().len(), 2);
        assert!(client.stats().endpoints[0].paused_for.is_some());
    }
}

#[tokio::test]
async fn a_429_without_a_time_stops_manifests_and_no_blobs() {
    let server = Server::start(|seen: &Seen| match seen.path() {
        MANIFEST_PATH if seen.method == "GET" => status(429),
        _ => manifest(),
    })
    .await;
    let client = client(&server.url);
    for _ in 0..3 {
        assert_eq!(failure(&client).await.kind, Kind::RateLimited);
    }
    assert_eq!(server.count(MANIFEST_PATH), 1);
    client.blob(&alpine(), &digest(), 0).await.unwrap();
}

#[tokio::test]
async fn after_the_rest_one_request_tries_however_many_wait() {
    let server = Server::start(|_| reply(429, &[("retry-after", "1")], "")).await;
    let client = client(&server.url);
    let (name, reference) = (alpine(), latest());
    failure(&client).await;
    let began = tokio::time::Instant::now();
    while server.seen().len() == 1 {
        let any = AcceptedTypes::default();
        let tries = (0..10).map(|_| client.manifest(&name, &reference, &any));
        let answers = futures_util::future::join_all(tries).await;
        assert!(answers.iter().all(Result::is_err));
        assert!(began.elapsed() < Duration::from_secs(5), "nobody tries");
    }
    assert_eq!(server.seen().len(), 2);
    assert!(began.elapsed() >= Duration::from_millis(900));
}

#[tokio::test]
async fn a_callers_own_limit_rests_that_caller_and_nobody_else() {
    use gantry_upstream::{CallerRights as _, Credentials};
    let server = Server::start(|seen: &Seen| match seen.authorization() {
        Some(BASIC) => reply(429, &[("retry-after", "60")], ""),
        Some(_) => manifest(),
        None => reply(401, &[("www-authenticate", "Basic")], ""),
    })
    .await;
    let client = client(&server.url);
    let other = Credentials {
        username: "other".to_owned(),
        password: "x".to_owned().into(),
    };
    for _ in 0..3 {
        let error = client.knows(&acme()).await.unwrap_err();
        assert_eq!(error.kind, Kind::RateLimited);
    }
    let limited = |seen: &Seen| seen.authorization() == Some(BASIC);
    assert_eq!(server.seen().iter().filter(|seen| limited(seen)).count(), 1);
    assert!(client.knows(&other).await.unwrap());
    assert!(client.stats().endpoints[0].paused_for.is_none());
    // Of other repositories, too.
    let known = latest();
    let error = client
        .may_pull(Some(&acme()), &alpine(), Some(&known))
        .await;
    assert_eq!(error.unwrap_err().kind, Kind::RateLimited);
    assert_eq!(server.seen().iter().filter(|seen| limited(seen)).count(), 1);
}

#[tokio::test]
async fn while_the_first_asks_for_a_pause_the_alternative_is_asked() {
    let first = Server::start(|_| reply(429, &[("retry-after", "60")], "")).await;
    let second = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        alternatives: vec![second.url.clone()],
        ..settings(&first.url)
    })
    .unwrap();
    for _ in 0..3 {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    }
    assert_eq!((first.seen().len(), second.seen().len()), (1, 3));
}

#[tokio::test]
async fn a_limited_token_endpoint_is_left_alone_too() {
    let server = Server::start(|seen: &Seen| match seen.path() {
        "/token" => status(429),
        _ => challenge(seen),
    })
    .await;
    let client = client(&server.url);
    for _ in 0..3 {
        let error = failure(&client).await;
        assert_eq!(error.kind, Kind::RateLimited);
        assert_eq!(error.cause, Cause::RateLimit);
    }
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn the_quota_that_was_stated_last_is_known() {
    let server = Server::start(|seen: &Seen| {
        let remaining = if seen.method == "HEAD" {
            "76;w=21600"
        } else {
            "75;w=21600"
        };
        let mut reply = manifest();
        let headers = reply.headers_mut();
        headers.insert("ratelimit-limit", "100;w=21600".parse().unwrap());
        headers.insert("ratelimit-remaining", remaining.parse().unwrap());
        reply
    })
    .await;
    let client = client(&server.url);
    assert_eq!(client.stats().endpoints[0].quota, None);
    for remaining in [76, 75] {
        match remaining {
            76 => drop(
                client
                    .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
                    .await
                    .unwrap(),
            ),
            _ => drop(
                client
                    .manifest(&alpine(), &latest(), &AcceptedTypes::default())
                    .await
                    .unwrap(),
            ),
        }
        let quota = Quota {
            limit: 100,
            remaining,
            window: Some(Duration::from_secs(21_600)),
        };
        assert_eq!(client.stats().endpoints[0].quota, Some(quota));
    }
}

#[tokio::test]
async fn a_request_waits_for_its_turn_only_so_long() {
    let server = Server::start(|_| reply(200, &[], "bytes")).await;
    let client = RegistryClient::new(ClientSettings {
        max_concurrency: 1,
        queue_timeout: Duration::from_millis(50),
        ..settings(&server.url)
    })
    .unwrap();
    let mut held = client.blob(&alpine(), &digest(), 0).await.unwrap();
    assert_eq!(client.stats().free, 0);
    let error = failure(&client).await;
    assert_eq!(
        (error.kind, error.cause, error.retry_after),
        (
            Kind::Unavailable,
            Cause::Saturated,
            Some(Duration::from_secs(1))
        )
    );
    while let Some(part) = held.bytes.next().await {
        part.unwrap();
    }
    drop(held);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn requests_are_paced_and_one_that_would_wait_too_long_fails() {
    let server = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        requests_per_second: NonZeroU32::new(2),
        queue_timeout: Duration::ZERO,
        ..settings(&server.url)
    })
    .unwrap();
    let calls = (0..6).map(|_| async {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
    });
    let outcomes = futures_util::future::join_all(calls).await;
    let failed: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err())
        .collect();
    assert_eq!((server.seen().len(), failed.len()), (2, 4));
    for error in failed {
        assert_eq!(
            (error.kind, error.cause),
            (Kind::Unavailable, Cause::Saturated)
        );
        assert!(error.retry_after.unwrap() <= Duration::from_secs(1));
    }
}
