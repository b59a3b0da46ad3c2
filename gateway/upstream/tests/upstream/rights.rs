//! What an upstream lets others do: asked with the caller's own proof, answered by 401, 403 and 404 alone, and told to nobody else.

use gantry_model::AcceptedTypes;
use gantry_upstream::{
    CallerRights as _, ClientSettings, Credentials, Kind, RegistryClient, Upstream as _,
};
use zeroize::Zeroizing;

use super::server::{
    BASIC, MANIFEST_PATH, Reply, Seen, Server, acme, alpine, challenge, client, latest, manifest,
    redirect, reply, settings, status, token, with_credentials,
};

const TAGS_PATH: &str = "/v2/library/alpine/tags/list";

/// Knows `acme:s3cret`, who may pull, and `carol:x`, who may not; nothing is public.
fn private_registry(seen: &Seen) -> Reply {
    let scope = seen.target.contains("scope=");
    match (seen.path(), seen.authorization()) {
        ("/token", Some(BASIC)) if scope => token("pulls"),
        ("/token", None | Some(BASIC | CAROL)) => token("nothing"),
        ("/token", _) => status(401),
        ("/v2/", Some("Bearer pulls" | "Bearer nothing")) => status(200),
        (MANIFEST_PATH, Some("Bearer pulls")) => manifest(),
        (TAGS_PATH, Some("Bearer pulls")) => reply(200, &[], r#"{"tags":["latest"]}"#),
        _ => challenge(seen),
    }
}

/// `carol:x`
const CAROL: &str = "Basic Y2Fyb2w6eA==";

fn carol() -> Credentials {
    Credentials {
        username: "carol".to_owned(),
        password: Zeroizing::new("x".to_owned()),
    }
}

fn wrong() -> Credentials {
    Credentials {
        password: Zeroizing::new("y".to_owned()),
        ..carol()
    }
}

#[tokio::test]
async fn a_credential_is_known_when_a_proof_was_asked_for_and_taken() {
    let server = Server::start(private_registry).await;
    let client = client(&server.url);
    assert!(client.knows(&acme()).await.unwrap());
    assert!(client.knows(&carol()).await.unwrap());
    assert!(!client.knows(&wrong()).await.unwrap());
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| !seen.target.contains("scope")),
        "nothing but an identity is asked"
    );
    let open = Server::start(|_| status(200)).await;
    let client = self::client(&open.url);
    assert!(!client.knows(&acme()).await.unwrap(), "whom nobody asked");
    assert!(
        open.seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
}

#[tokio::test]
async fn a_caller_is_asked_about_with_his_own_credential_and_never_with_ours() {
    let server = Server::start(private_registry).await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    // Ours may; what it got is not used for anybody else.
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    for known in [None, Some(&latest())] {
        assert!(
            client
                .may_pull(Some(&acme()), &alpine(), known)
                .await
                .unwrap()
        );
        assert!(
            !client
                .may_pull(Some(&carol()), &alpine(), known)
                .await
                .unwrap()
        );
        assert!(
            !client
                .may_pull(Some(&wrong()), &alpine(), known)
                .await
                .unwrap()
        );
        assert!(!client.may_pull(None, &alpine(), known).await.unwrap());
    }
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let refused = server
        .seen()
        .iter()
        .filter(|seen| seen.path() == "/token")
        .count();
    assert_eq!(refused, 9, "a token for each question, and one of our own");
}

#[tokio::test]
async fn what_is_known_is_asked_for_by_head_and_only_its_absence_by_a_list() {
    let server = Server::start(private_registry).await;
    let client = client(&server.url);
    let gone = "gone".parse().unwrap();
    client
        .may_pull(Some(&acme()), &alpine(), Some(&latest()))
        .await
        .unwrap();
    assert_eq!(
        (server.count(MANIFEST_PATH), server.count(TAGS_PATH)),
        (2, 0)
    );
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.method != "GET" || seen.path() == "/token")
    );
    let without = Server::start(|seen| match seen.path() {
        TAGS_PATH => reply(200, &[], "{}"),
        _ => status(404),
    })
    .await;
    let client = self::client(&without.url);
    assert!(client.may_pull(None, &alpine(), Some(&gone)).await.unwrap());
    assert!(without.seen().last().unwrap().target.ends_with("?n=1"));
}

#[tokio::test]
async fn only_401_403_and_404_are_a_no() {
    for (code, answer) in [
        (401, Ok(false)),
        (403, Ok(false)),
        (404, Ok(false)),
        (200, Ok(true)),
        (429, Err(Kind::RateLimited)),
        (500, Err(Kind::Unavailable)),
        (503, Err(Kind::Unavailable)),
        (400, Err(Kind::Invalid)),
    ] {
        let server = Server::start(move |_| status(code)).await;
        let client = client(&server.url);
        let said = client.may_pull(None, &alpine(), None).await;
        assert_eq!(said.map_err(|error| error.kind), answer, "{code}");
    }
    // A token endpoint that fails leaves it open; one that refuses does not.
    for (code, answer) in [
        (401, Ok(false)),
        (403, Ok(false)),
        (404, Err(Kind::Invalid)),
    ] {
        let server = Server::start(move |seen| match seen.path() {
            "/token" => status(code),
            _ => challenge(seen),
        })
        .await;
        let said = client(&server.url)
            .may_pull(Some(&acme()), &alpine(), None)
            .await;
        assert_eq!(said.map_err(|error| error.kind), answer, "{code}");
    }
}

#[tokio::test]
async fn a_realm_elsewhere_gets_no_callers_password_and_is_no_refusal() {
    let thief = Server::start_at("127.0.0.2", |_| token("stolen")).await;
    let realm = thief.at("/token");
    let server = Server::start(move |_| super::server::challenge_to(&realm)).await;
    let said = client(&server.url)
        .may_pull(Some(&acme()), &alpine(), None)
        .await;
    assert_eq!(said.unwrap_err().kind, Kind::Refused);
    assert!(thief.seen().is_empty());
}

#[tokio::test]
async fn neither_an_alternative_nor_a_redirect_sees_a_callers_proof() {
    let other = Server::start_at("127.0.0.2", |_| status(200)).await;
    let down = Server::start(|_| status(503)).await;
    let client = RegistryClient::new(ClientSettings {
        alternatives: vec![other.url.clone()],
        ..settings(&down.url)
    })
    .unwrap();
    assert!(
        client
            .may_pull(Some(&acme()), &alpine(), None)
            .await
            .is_err()
    );
    assert!(other.seen().is_empty());
    let to = other.at("/elsewhere");
    let server = Server::start(move |seen| match seen.authorization() {
        Some("Bearer good") => redirect(&to),
        _ if seen.path() == "/token" => token("good"),
        _ => challenge(seen),
    })
    .await;
    let client = self::client(&server.url);
    // Whether it is followed is the address rules' business; what matters is what goes along.
    client.may_pull(Some(&acme()), &alpine(), None).await.ok();
    assert!(
        other
            .seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
}

#[tokio::test]
async fn a_callers_limit_does_not_pause_the_mirror() {
    let server = Server::start(|seen| match (seen.path(), seen.authorization()) {
        ("/token", Some(CAROL)) => reply(429, &[("retry-after", "60")], ""),
        ("/token", _) => token("good"),
        (_, Some("Bearer good")) => manifest(),
        _ => challenge(seen),
    })
    .await;
    let client = client(&server.url);
    let limited = client
        .may_pull(Some(&carol()), &alpine(), None)
        .await
        .unwrap_err();
    assert_eq!(limited.kind, Kind::RateLimited);
    assert_eq!(limited.retry_after.unwrap().as_secs(), 60);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    // A limit on who shows nothing is one on where we come from.
    let server = Server::start(|_| reply(429, &[("retry-after", "60")], "")).await;
    let client = self::client(&server.url);
    client.may_pull(None, &alpine(), None).await.unwrap_err();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(server.seen().len(), 1);
}
