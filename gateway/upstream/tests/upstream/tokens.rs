//! Authentication: the token flow, Basic, and the realms that get nothing.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use gantry_model::AcceptedTypes;
use gantry_upstream::{Kind, RegistryClient, Upstream as _};

use super::server::{
    BASIC, MANIFEST_PATH, Seen, Server, alpine, challenge, challenge_to, client, latest, manifest,
    redirect, reply, settings, status, token, token_registry, with_credentials,
};

#[tokio::test]
async fn without_credentials_an_anonymous_token_is_fetched_and_used() {
    let server = Server::start(token_registry).await;
    client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let manifest = format!("GET {MANIFEST_PATH}");
    assert_eq!(server.paths(), [manifest.as_str(), "GET /token", &manifest]);
    let [_, token, retried] = server.seen().try_into().unwrap();
    assert_eq!(
        token.target,
        "/token?service=reg&scope=repository%3Alibrary%2Falpine%3Apull"
    );
    assert_eq!(token.authorization(), None);
    assert_eq!(retried.authorization(), Some("Bearer good"));
}

#[tokio::test]
async fn credentials_go_to_the_token_endpoint_and_nowhere_else() {
    let server = Server::start(token_registry).await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let sent: Vec<_> = server
        .seen()
        .iter()
        .map(|seen| seen.authorization().map(str::to_owned))
        .collect();
    assert_eq!(
        sent,
        [None, Some(BASIC.to_owned()), Some("Bearer good".to_owned())]
    );
}

#[tokio::test]
async fn a_token_is_kept_for_the_next_calls() {
    let server = Server::start(token_registry).await;
    let client = client(&server.url);
    for _ in 0..3 {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    }
    assert_eq!(
        (server.count("/token"), server.count(MANIFEST_PATH)),
        (1, 4)
    );
}

#[tokio::test]
async fn twenty_concurrent_pulls_fetch_one_token() {
    let server = Server::start(token_registry).await;
    let (client, name, reference) = (client(&server.url), alpine(), latest());
    let any = AcceptedTypes::default();
    let pulls = join_all((0..20).map(|_| client.manifest(&name, &reference, &any))).await;
    assert!(pulls.iter().all(Result::is_ok));
    assert_eq!(server.count("/token"), 1);
}

#[tokio::test]
async fn each_repository_gets_its_own_token() {
    let server = Server::start(|seen: &Seen| match seen.path() {
        "/token" => token(if seen.target.contains("busybox") {
            "busybox"
        } else {
            "alpine"
        }),
        path => match seen.authorization() {
            Some(found) => {
                assert!(path.contains(found.strip_prefix("Bearer ").unwrap()));
                manifest()
            }
            None => challenge(seen),
        },
    })
    .await;
    let client = client(&server.url);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    client
        .manifest(
            &"library/busybox".parse().unwrap(),
            &latest(),
            &AcceptedTypes::default(),
        )
        .await
        .unwrap();
    assert_eq!(server.count("/token"), 2);
}

/// A registry whose tokens are `t1`, `t2`, …, of which only the one of `valid` is accepted.
fn expiring(valid: Arc<AtomicUsize>) -> impl Fn(&Seen) -> super::server::Reply + Send + Sync {
    let issued = AtomicUsize::new(0);
    move |seen| {
        let good = format!("Bearer t{}", valid.load(Ordering::SeqCst));
        match (seen.path(), seen.authorization()) {
            ("/token", _) => token(&format!("t{}", issued.fetch_add(1, Ordering::SeqCst) + 1)),
            (_, Some(found)) if found == good => manifest(),
            _ => challenge(seen),
        }
    }
}

#[tokio::test]
async fn an_expired_token_is_fetched_again_once() {
    let valid = Arc::new(AtomicUsize::new(1));
    let server = Server::start(expiring(Arc::clone(&valid))).await;
    let client = client(&server.url);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    valid.store(2, Ordering::SeqCst);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_the_end() {
    let valid = Arc::new(AtomicUsize::new(99));
    let server = Server::start(expiring(valid)).await;
    let error = client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.attempt.as_str()),
        (Kind::Refused, "GET manifest: 401")
    );
    assert_eq!(
        (server.count("/token"), server.count(MANIFEST_PATH)),
        (1, 2)
    );
}

#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    let issued = AtomicUsize::new(0);
    let server = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => {
                let value = issued.fetch_add(1, Ordering::SeqCst);
                reply(
                    200,
                    &[],
                    format!(r#"{{"token":"t{value}","expires_in":1}}"#),
                )
            }
            (_, Some(_)) => manifest(),
            _ => challenge(seen),
        },
    )
    .await;
    let client = client(&server.url);
    let began = tokio::time::Instant::now();
    while server.count("/token") < 2 {
        client
            .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        assert!(began.elapsed().as_secs() < 5, "the token is never renewed");
    }
    assert!(began.elapsed().as_millis() >= 800);
    // Renewed ahead of time, so no request was ever refused after the first.
    let unproven = server
        .seen()
        .into_iter()
        .filter(|seen| seen.path() != "/token" && seen.authorization().is_none());
    assert_eq!(unproven.count(), 1);
}

#[tokio::test]
async fn basic_credentials_go_to_the_registry_that_asks_for_them() {
    let server = Server::start(|seen: &Seen| match seen.authorization() {
        Some(BASIC) => manifest(),
        _ => reply(401, &[("www-authenticate", r#"Basic realm="ecr""#)], ""),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(server.seen().len(), 3);
    let anonymous = self::client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(anonymous.kind, Kind::Refused);
}

#[tokio::test]
async fn a_wrong_password_is_sent_once() {
    let server = Server::start(|_| reply(401, &[("www-authenticate", "Basic")], "")).await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn bearer_is_taken_before_basic_however_they_are_written() {
    for lines in [
        &[r#"Basic realm="x", Bearer realm="@/token",service="reg""#][..],
        &[
            r#"Basic realm="x""#,
            r#"Bearer realm="@/token",service="reg""#,
        ][..],
    ] {
        let server = Server::start(|seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("good"),
            (_, Some("Bearer good")) => manifest(),
            _ => {
                let here = format!("http://{}", seen.host());
                let lines: Vec<_> = lines.iter().map(|line| line.replace('@', &here)).collect();
                let headers: Vec<_> = lines
                    .iter()
                    .map(|line| ("www-authenticate", line.as_str()))
                    .collect();
                reply(401, &headers, "")
            }
        })
        .await;
        let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        assert_eq!(server.count("/token"), 1);
    }
}

#[tokio::test]
async fn a_hijacked_realm_gets_nothing_and_the_call_says_so() {
    let thief = Server::start_at("127.0.0.2", |_| token("stolen")).await;
    let port = thief.url.port().unwrap();
    for realm in [
        thief.at("/token"),
        format!("http://localhost:{port}/token"),
        format!("http://127.0.0.1@127.0.0.2:{port}/token"),
        format!("http://2130706434:{port}/token"),
        format!("http://[::ffff:127.0.0.2]:{port}/token"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "ftp://127.0.0.1/token".to_owned(),
        "//".to_owned(),
    ] {
        let server = Server::start({
            let realm = realm.clone();
            move |_| challenge_to(&realm)
        })
        .await;
        for settings in [with_credentials(&server.url), settings(&server.url)] {
            let client = RegistryClient::new(settings).unwrap();
            let error = client
                .manifest(&alpine(), &latest(), &AcceptedTypes::default())
                .await
                .unwrap_err();
            assert_eq!(error.kind, Kind::Refused, "{realm}: {error}");
            assert!(
                error.attempt.contains("the token realm"),
                "{realm}: {error}"
            );
        }
        assert!(
            server
                .seen()
                .iter()
                .all(|seen| seen.authorization().is_none())
        );
    }
    assert_eq!(thief.paths(), [] as [String; 0]);
}

#[tokio::test]
async fn a_redirect_of_a_token_endpoint_to_another_origin_is_not_followed() {
    let thief = Server::start_at("127.0.0.2", |_| token("stolen")).await;
    let target = thief.at("/token");
    let server = Server::start(move |seen: &Seen| match seen.path() {
        "/token" => redirect(&target),
        _ => challenge(seen),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert_eq!(thief.paths(), [] as [String; 0]);
}

#[tokio::test]
async fn a_token_endpoint_may_have_moved_within_its_origin() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |seen: &Seen| match seen.path() {
            "/token" => reply(status, &[("location", "/token2?scope=moved")], ""),
            "/token2" => token("good"),
            _ if seen.authorization() == Some("Bearer good") => manifest(),
            _ => challenge(seen),
        })
        .await;
        let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        let seen = server.seen();
        let moved = seen.iter().find(|seen| seen.path() == "/token2").unwrap();
        assert_eq!(moved.target, "/token2?scope=moved", "{status}");
        assert_eq!(moved.authorization(), Some(BASIC), "{status}");
    }
    let circle = Server::start(|seen: &Seen| match seen.path() {
        "/token" => reply(302, &[("location", "/token")], ""),
        _ => challenge(seen),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&circle.url)).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert!(circle.count("/token") <= 6, "{}", circle.count("/token"));
}

#[tokio::test]
async fn a_failing_token_endpoint_is_told_apart() {
    let large = "x".repeat(70_000);
    for (answer, kind) in [
        ("401", Kind::Refused),
        ("403", Kind::Refused),
        ("404", Kind::Invalid),
        ("429", Kind::RateLimited),
        ("503", Kind::Unavailable),
        ("{}", Kind::Invalid),
        (r#"{"token":"","access_token":""}"#, Kind::Invalid),
        (large.as_str(), Kind::Invalid),
    ] {
        let body = answer.to_owned();
        let server = Server::start(move |seen: &Seen| match (seen.path(), body.parse()) {
            ("/token", Ok(code)) => status(code),
            ("/token", Err(_)) => reply(200, &[], body.clone()),
            _ => challenge(seen),
        })
        .await;
        let error = client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{error:?}");
    }
}

#[tokio::test]
async fn the_longer_name_that_a_gateway_below_a_prefix_uses_is_asked_for() {
    let server = Server::start(|seen: &Seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, Some("Bearer good")) => manifest(),
        _ => {
            let value = format!(
                r#"Bearer realm="http://{}/token",scope="repository:hub/library/alpine:pull""#,
                seen.host()
            );
            reply(401, &[("www-authenticate", &value)], "")
        }
    })
    .await;
    client(&server.url.join("/hub").unwrap())
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let token = server
        .seen()
        .into_iter()
        .find(|seen| seen.path() == "/token")
        .unwrap();
    assert_eq!(
        token.target,
        "/token?scope=repository%3Ahub%2Flibrary%2Falpine%3Apull"
    );
}

#[tokio::test]
async fn a_challenge_cannot_make_us_ask_for_more_than_pulling_this_repository() {
    for scope in [
        "repository:library/alpine:pull,push",
        "repository:secret/alpine:pull",
        "registry:catalog:*",
        "repository:a b/library/alpine:pull",
    ] {
        let server = Server::start(
            move |seen: &Seen| match (seen.path(), seen.authorization()) {
                ("/token", _) => token("good"),
                (_, Some("Bearer good")) => manifest(),
                _ => {
                    let value = format!(
                        r#"Bearer realm="http://{}/token",scope="{scope}""#,
                        seen.host()
                    );
                    reply(401, &[("www-authenticate", &value)], "")
                }
            },
        )
        .await;
        client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        let token = server
            .seen()
            .into_iter()
            .find(|seen| seen.path() == "/token")
            .unwrap();
        assert_eq!(
            token.target,
            "/token?scope=repository%3Alibrary%2Falpine%3Apull"
        );
    }
}
