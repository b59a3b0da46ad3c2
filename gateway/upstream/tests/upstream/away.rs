//! Registries that redirects lead to, passwords and headers of one's own: what goes where.

use std::time::Duration;

use gantry_model::AcceptedTypes;
use gantry_upstream::{ClientSettings, Kind, RegistryClient, Upstream as _};
use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::server::{
    BASIC, MANIFEST_PATH, Reply, Seen, Server, alpine, blob_path, challenge, challenge_to, client,
    digest, latest, manifest, redirect, reply, settings, status, token, with_credentials,
};

/// A registry of its own, which gives everybody a token and wants it.
fn elsewhere(seen: &Seen) -> Reply {
    match (seen.path(), seen.authorization()) {
        ("/token", _) => token("anonymous"),
        (_, Some("Bearer anonymous")) => manifest(),
        _ => challenge(seen),
    }
}

#[tokio::test]
async fn a_registry_that_a_redirect_leads_to_is_asked_with_a_token_for_nobody() {
    let there = Server::start(elsewhere).await;
    let to = there.at(MANIFEST_PATH);
    let server = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("ours"),
            (_, Some("Bearer ours")) => redirect(&to),
            _ => challenge(seen),
        },
    )
    .await;
    for settings in [settings(&server.url), with_credentials(&server.url)] {
        let client = RegistryClient::new(settings).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    }
    // One token for each client, asked for by nobody.
    assert_eq!(there.count("/token"), 2);
    for seen in there.seen() {
        let shown = seen.authorization();
        assert!(
            matches!(shown, None | Some("Bearer anonymous")),
            "{shown:?}"
        );
        if seen.path() == "/token" {
            assert_eq!(shown, None);
            assert_eq!(
                seen.target,
                "/token?service=reg&scope=repository%3Alibrary%2Falpine%3Apull"
            );
        }
    }
}

#[tokio::test]
async fn a_registry_that_asks_for_a_token_of_the_target_and_then_redirects_works() {
    let there = Server::start(elsewhere).await;
    let (realm, to) = (there.at("/token"), there.at(MANIFEST_PATH));
    let server = Server::start(move |seen: &Seen| match seen.authorization() {
        Some("Bearer anonymous") => redirect(&to),
        _ => challenge_to(&realm),
    })
    .await;
    let client = RegistryClient::new(ClientSettings {
        token_realms: vec![there.url.clone()],
        ..settings(&server.url)
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    client
        .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn only_one_more_try_is_made_where_a_redirect_leads() {
    let there = Server::start(|seen: &Seen| match seen.path() {
        "/token" => token("useless"),
        _ => challenge(seen),
    })
    .await;
    let to = there.at("/x");
    let server = Server::start(move |_| redirect(&to)).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.attempt.as_str()),
        (Kind::Invalid, "GET blob: 401 after a redirect")
    );
    assert_eq!(there.paths(), ["GET /x", "GET /token", "GET /x"]);
}

#[tokio::test]
async fn a_realm_that_is_not_the_targets_gets_nothing() {
    let thief = Server::start_at("127.0.0.2", |_| token("stolen")).await;
    let realm = thief.at("/token");
    let there = Server::start(move |_| challenge_to(&realm)).await;
    let to = there.at("/x");
    let server = Server::start(move |_| redirect(&to)).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert!(
        error.attempt.contains("token_realms: [\"http://127.0.0.2:"),
        "{error}"
    );
    assert!(error.attempt.contains("mirrors.hub"), "{error}");
    assert_eq!(error.setting(), "mirrors.hub.token_realms");
    assert_eq!(thief.seen().len(), 0);
}

#[tokio::test]
async fn the_token_of_a_target_goes_no_further() {
    let cdn = Server::start(|_| reply(200, &[], "bytes")).await;
    let away = cdn.at("/data");
    let there = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("anonymous"),
            (_, Some("Bearer anonymous")) => redirect(&away),
            _ => challenge(seen),
        },
    )
    .await;
    let to = there.at(&blob_path());
    let server = Server::start(move |_| redirect(&to)).await;
    client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap();
    assert_eq!(cdn.seen()[0].authorization(), None);
}

#[tokio::test]
async fn a_failing_token_endpoint_of_a_target_is_no_refusal_by_the_upstream() {
    for (code, kind) in [
        (401, Kind::Invalid),
        (403, Kind::Invalid),
        (404, Kind::Invalid),
        (429, Kind::RateLimited),
        (503, Kind::Unavailable),
    ] {
        let there = Server::start(move |seen: &Seen| match seen.path() {
            "/token" => status(code),
            _ => challenge(seen),
        })
        .await;
        let to = there.at("/x");
        let server = Server::start(move |_| redirect(&to)).await;
        let error = client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind, "{code}: {error}");
    }
}

#[tokio::test]
async fn a_password_is_tried_after_a_token_that_is_not_enough_where_the_challenge_offers_it() {
    let offers = |seen: &Seen, code: u16| {
        let bearer = format!(
            r#"Bearer realm="http://{}/token",error="insufficient_scope""#,
            seen.host()
        );
        reply(
            code,
            &[
                ("www-authenticate", &bearer),
                ("www-authenticate", r#"Basic realm="x""#),
            ],
            "",
        )
    };
    for code in [401, 403] {
        let server = Server::start(
            move |seen: &Seen| match (seen.path(), seen.authorization()) {
                ("/token", _) => token("weak"),
                (_, Some(BASIC)) => manifest(),
                (_, Some(_)) => offers(seen, code),
                (_, None) => offers(seen, 401),
            },
        )
        .await;
        let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        // It is remembered what works.
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        assert_eq!(
            (server.count("/token"), server.count(MANIFEST_PATH)),
            (1, 4),
            "{code}"
        );
        // Nobody has no password to try.
        let error = self::client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
    }
}

#[tokio::test]
async fn a_password_is_not_tried_where_it_is_not_offered() {
    let server = Server::start(|seen: &Seen| match seen.path() {
        "/token" => token("weak"),
        _ => challenge(seen),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    let manifests = server
        .seen()
        .into_iter()
        .filter(|seen| seen.path() == MANIFEST_PATH);
    assert!(
        manifests
            .into_iter()
            .all(|seen| seen.authorization() != Some(BASIC))
    );
}

#[tokio::test]
async fn a_token_request_goes_on_when_its_caller_leaves_and_there_is_one_at_a_time() {
    let silent = Server::start_silent().await;
    let realm = silent.at("/token");
    let server = Server::start(move |_| challenge_to(&realm)).await;
    let (client, name, reference) = (client(&server.url), alpine(), latest());
    let began = Instant::now();
    for round in 0.. {
        // Each caller leaves before there is an answer.
        let patience = Duration::from_millis(20);
        let left = tokio::time::timeout(
            patience,
            client.manifest(&name, &reference, &AcceptedTypes::default()),
        )
        .await;
        assert!(left.is_err(), "the endpoint is silent");
        if silent.count("/token") > 0 && round >= 5 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(4),
            "no token is asked for"
        );
    }
    assert_eq!(silent.count("/token"), 1);
}

#[tokio::test]
async fn a_token_endpoint_that_answers_with_a_page_is_an_outage() {
    for code in [200, 403, 404, 502] {
        let server = Server::start(move |seen: &Seen| match seen.path() {
            "/token" => reply(
                code,
                &[("content-type", "text/html")],
                "<html>maintenance</html>",
            ),
            _ => challenge(seen),
        })
        .await;
        let error = client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{code}: {error}");
    }
}

#[tokio::test]
async fn a_page_instead_of_content_is_an_outage_and_not_a_missing_manifest_or_blob() {
    let html = [("content-type", "text/html; charset=utf-8")];
    for code in [401, 403, 404, 500] {
        let server = Server::start(move |_: &Seen| reply(code, &html, "<html>")).await;
        let client = client(&server.url);
        let errors = [
            client
                .manifest(&alpine(), &latest(), &AcceptedTypes::default())
                .await
                .unwrap_err(),
            client
                .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
                .await
                .unwrap_err(),
            client.blob(&alpine(), &digest(), 0).await.unwrap_err(),
            client.stat_blob(&alpine(), &digest()).await.unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind, Kind::Unavailable, "{code}: {error}");
        }
    }
    let portal = Server::start(move |_: &Seen| reply(200, &html, "<html>sign in</html>")).await;
    let error = client(&portal.url)
        .stat_blob(&alpine(), &digest())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
}

#[tokio::test]
async fn a_registry_behind_a_redirect_can_say_not_found_and_an_object_store_cannot() {
    for (headers, kind) in [
        (
            &[("docker-distribution-api-version", "registry/2.0")][..],
            Kind::NotFound,
        ),
        (&[], Kind::Invalid),
    ] {
        let headers = headers.to_vec();
        let there = Server::start(move |_: &Seen| reply(404, &headers, "")).await;
        let to = there.at("/v2/x");
        let server = Server::start(move |_| redirect(&to)).await;
        let error = client(&server.url)
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind, kind);
    }
}

/// Every hop a request can take: token endpoint, redirect to a registry, its token endpoint, and on to a CDN.
async fn hops(settings: impl Fn(&Server) -> ClientSettings) -> [Vec<Seen>; 3] {
    let cdn = Server::start(|_| reply(200, &[], "bytes")).await;
    let away = cdn.at("/data");
    let there = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("anonymous"),
            (_, Some("Bearer anonymous")) => redirect(&away),
            _ => challenge(seen),
        },
    )
    .await;
    let to = there.at(&blob_path());
    let server = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("good"),
            (_, Some("Bearer good")) => redirect(&to),
            _ => challenge(seen),
        },
    )
    .await;
    let client = RegistryClient::new(settings(&server)).unwrap();
    client.blob(&alpine(), &digest(), 0).await.unwrap();
    [server.seen(), there.seen(), cdn.seen()]
}

#[tokio::test]
async fn the_user_agent_is_said_on_every_hop() {
    let [home, there, cdn] = hops(|server| settings(&server.url)).await;
    assert_eq!((home.len(), there.len(), cdn.len()), (3, 3, 1));
    for seen in [home, there, cdn].concat() {
        assert_eq!(
            seen.header("user-agent"),
            Some("gantry-test"),
            "{}",
            seen.target
        );
    }
}

#[tokio::test]
async fn headers_of_ones_own_go_to_the_own_origin_and_to_no_realm_or_redirect() {
    let own = (
        HeaderName::from_static("x-api-key"),
        HeaderValue::from_static("canary"),
    );
    let [home, there, cdn] = hops(|server| ClientSettings {
        headers: vec![own.clone()],
        ..settings(&server.url)
    })
    .await;
    for seen in &home {
        let expect = (seen.path() != "/token").then_some("canary");
        assert_eq!(seen.header("x-api-key"), expect, "{}", seen.target);
    }
    for seen in [there, cdn].concat() {
        assert_eq!(seen.header("x-api-key"), None, "{}", seen.target);
    }
}

#[tokio::test]
async fn headers_of_ones_own_go_to_no_alternative_and_not_with_a_callers_question() {
    use gantry_upstream::CallerRights as _;
    let first = Server::start(|_| status(503)).await;
    let second = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        alternatives: vec![second.url.clone()],
        headers: vec![(
            HeaderName::from_static("x-api-key"),
            HeaderValue::from_static("canary"),
        )],
        ..settings(&first.url)
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(first.seen()[0].header("x-api-key"), Some("canary"));
    assert_eq!(second.seen()[0].header("x-api-key"), None);
    client
        .may_pull(None, &alpine(), Some(&latest()))
        .await
        .unwrap_err();
    assert_eq!(first.seen().last().unwrap().header("x-api-key"), None);
}

#[tokio::test]
async fn a_password_goes_to_no_other_port_unless_it_is_listed() {
    let auth = Server::start(|_| token("good")).await;
    let realm = auth.at("/token");
    let server = Server::start(move |seen: &Seen| match seen.authorization() {
        Some("Bearer good") => manifest(),
        _ => challenge_to(&realm),
    })
    .await;
    let strict = RegistryClient::new(with_credentials(&server.url)).unwrap();
    let error = strict
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    let origin = auth.url.as_str().trim_end_matches('/');
    assert!(
        error
            .attempt
            .contains(&format!("token_realms: [\"{origin}\"]")),
        "{error}"
    );
    assert_eq!(auth.seen().len(), 0);
    let listed = RegistryClient::new(ClientSettings {
        token_realms: vec![auth.url.clone()],
        ..with_credentials(&server.url)
    })
    .unwrap();
    listed
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(auth.seen()[0].authorization(), Some(BASIC));
    // Without a password nothing is at stake.
    client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(auth.seen()[1].authorization(), None);
}

#[tokio::test]
async fn an_empty_content_digest_is_none() {
    let server = Server::start(|_| reply(200, &[("docker-content-digest", "")], "{}")).await;
    let client = client(&server.url);
    assert_eq!(
        client
            .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap()
            .digest,
        None
    );
    assert_eq!(
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap()
            .digest,
        None
    );
}

#[tokio::test]
async fn a_call_that_is_not_tried_tells_what_failed_before() {
    let server = Server::start(|_| status(503)).await;
    let client = client(&server.url);
    for _ in 0..5 {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
    }
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.cause, gantry_upstream::Cause::Breaker);
    assert_eq!(error.fault(), gantry_upstream::Fault::BadAnswer);
}
