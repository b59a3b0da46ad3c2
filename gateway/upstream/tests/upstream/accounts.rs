//! Accounts over time: helpers, rotation, identity tokens, replacement, and never a secret for another origin.

use std::{fs, path::Path, time::Duration};

use gantry_model::AcceptedTypes;
use gantry_upstream::{
    Cause, ClientSettings, CredentialSource, Credentials, Helper, Kind, RegistryClient,
    Upstream as _,
};
use zeroize::Zeroizing;

use super::server::{
    BASIC, Reply, Seen, Server, acme, alpine, challenge, challenge_to, latest, manifest, reply,
    settings, status, token, with_credentials,
};

/// A helper that prints the folder's file `answer`, and adds a line to `runs`.
fn helper(folder: &Path) -> Helper {
    Helper {
        program: "/bin/sh".into(),
        arguments: ["-c", "cat >> runs; cat answer"].map(Into::into).into(),
        server: "r.example".to_owned(),
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        timeout: Duration::from_secs(20),
        refresh: Duration::from_secs(900),
    }
    .within(folder)
}

/// Lets a helper start in a folder.
trait Within {
    fn within(self, folder: &Path) -> Self;
}

impl Within for Helper {
    fn within(mut self, folder: &Path) -> Self {
        let script = self.arguments.pop().unwrap().into_string().unwrap();
        let script = format!("cd '{}'; {script}", folder.display());
        self.arguments.push(script.into());
        self
    }
}

fn says(folder: &Path, username: &str, secret: &str) {
    let answer = format!(r#"{{"ServerURL":"x","Username":"{username}","Secret":"{secret}"}}"#);
    fs::write(folder.join("answer"), answer).unwrap();
}

fn runs(folder: &Path) -> usize {
    let runs = fs::read_to_string(folder.join("runs")).unwrap_or_default();
    assert_eq!(runs, "r.example\n".repeat(runs.lines().count()));
    runs.lines().count()
}

fn with_source(server: &Server, source: impl Into<CredentialSource>) -> RegistryClient {
    RegistryClient::new(ClientSettings {
        credentials: Some(source.into()),
        ..settings(&server.url)
    })
    .unwrap()
}

fn basic(user: &str) -> Option<String> {
    let user = Credentials {
        username: user.to_owned(),
        password: Zeroizing::new("new".to_owned()),
    };
    let request = reqwest::Client::new().get("http://127.0.0.1/");
    let request = request.basic_auth(user.username, Some(&*user.password));
    let request = request.build().unwrap();
    let value = request.headers().get("authorization")?;
    Some(value.to_str().unwrap().to_owned())
}

/// Wants Basic, and takes only `<user>:new`.
fn basic_registry(user: &'static str) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let expect = basic(user);
    move |seen: &Seen| match seen.authorization() {
        given if given == expect.as_deref() => manifest(),
        _ => reply(401, &[("www-authenticate", "Basic realm=r")], ""),
    }
}

#[tokio::test]
async fn a_helper_is_run_once_for_many_calls_and_not_before_it_is_needed() {
    let folder = tempfile::tempdir().unwrap();
    says(folder.path(), "acme", "new");
    let open = Server::start(|_| manifest()).await;
    let client = with_source(&open, CredentialSource::Helper(helper(folder.path())));
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(runs(folder.path()), 0);

    let server = Server::start(basic_registry("acme")).await;
    let client = with_source(&server, CredentialSource::Helper(helper(folder.path())));
    let calls = (0..8).map(|_| async {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(runs(folder.path()), 1);
}

#[tokio::test]
async fn a_refused_password_is_renewed_once_by_the_helper() {
    let folder = tempfile::tempdir().unwrap();
    says(folder.path(), "acme", "old");
    let server = Server::start(basic_registry("acme")).await;
    let client = with_source(&server, CredentialSource::Helper(helper(folder.path())));
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    // Once for the first try and once because that was refused.
    assert_eq!(runs(folder.path()), 2);
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    // It had nothing better a moment ago.
    assert_eq!(runs(folder.path()), 2);
}

#[tokio::test]
async fn a_password_that_was_rotated_is_taken_from_the_helper_within_the_call() {
    let folder = tempfile::tempdir().unwrap();
    says(folder.path(), "acme", "new");
    let rotated = basic("fresh");
    let server = Server::start(move |seen: &Seen| match seen.authorization() {
        given if given == rotated.as_deref() => manifest(),
        _ => reply(401, &[("www-authenticate", "Basic realm=r")], ""),
    })
    .await;
    let source = CredentialSource::Helper(Helper {
        arguments: [
            "-c",
            // The first answer is old, all others are new.
            r#"cat >> runs; if [ "$(wc -l < runs)" -gt 1 ]; then u=fresh; else u=acme; fi; printf '{"Username":"%s","Secret":"new"}' "$u""#,
        ]
        .map(Into::into)
        .into(),
        ..helper(folder.path())
    }
    .within(folder.path()));
    let client = with_source(&server, source);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(runs(folder.path()), 2);
}

#[tokio::test]
async fn an_answer_that_grew_old_is_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    says(folder.path(), "acme", "new");
    let server = Server::start(basic_registry("acme")).await;
    let source = CredentialSource::Helper(Helper {
        refresh: Duration::ZERO,
        ..helper(folder.path())
    });
    let client = with_source(&server, source);
    for _ in 0..2 {
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    }
    assert!(runs(folder.path()) >= 2);
}

#[tokio::test]
async fn a_failing_helper_fails_the_call_and_nothing_is_sent_anonymously_instead() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(|seen: &Seen| match seen.path() {
        "/token" => token("anonymous"),
        _ => challenge(seen),
    })
    .await;
    let client = with_source(&server, CredentialSource::Helper(helper(folder.path())));
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.cause),
        (Kind::Unavailable, Cause::Credentials)
    );
    assert_eq!(server.count("/token"), 0);
}

/// Takes the identity token `idt`, and bearer tokens got with it.
fn refreshing(seen: &Seen) -> Reply {
    match (seen.path(), seen.authorization()) {
        ("/token", None) if seen.method == "POST" && seen.body.contains("refresh_token=idt") => {
            reply(200, &[], r#"{"access_token":"good","expires_in":300}"#)
        }
        ("/token", _) => status(401),
        (_, Some("Bearer good")) => manifest(),
        _ => challenge(seen),
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let server = Server::start(refreshing).await;
    let secret = || Zeroizing::new("idt".to_owned());
    let client = with_source(&server, Credentials::identity_token(secret()));
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(
        server.seen()[1].body,
        "service=reg&scope=repository%3Alibrary%2Falpine%3Apull&grant_type=refresh_token&client_id=gantry&refresh_token=idt"
    );
}

#[tokio::test]
async fn a_helper_may_bring_an_identity_token_and_renew_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(refreshing).await;
    let source = Helper {
        arguments: [
            "-c",
            r#"cat >> runs; if [ "$(wc -l < runs)" -gt 1 ]; then s=idt; else s=old; fi; printf '{"Username":"<token>","Secret":"%s"}' "$s""#,
        ]
        .map(Into::into)
        .into(),
        ..helper(folder.path())
    };
    let client = with_source(
        &server,
        CredentialSource::Helper(source.within(folder.path())),
    );
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!((runs(folder.path()), server.count("/token")), (2, 2));
}

#[tokio::test]
async fn an_identity_token_never_answers_a_basic_challenge() {
    let server = Server::start(|_| reply(401, &[("www-authenticate", "Basic realm=r")], "")).await;
    let secret = Zeroizing::new("idt".to_owned());
    let client = with_source(&server, Credentials::identity_token(secret));
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
}

#[tokio::test]
async fn replaced_credentials_are_used_at_once_and_the_old_token_no_more() {
    let server = Server::start(|seen: &Seen| match (seen.path(), seen.authorization()) {
        ("/token", None) => token("anonymous"),
        ("/token", Some(BASIC)) => token("acmes"),
        ("/token", Some(_)) => status(401),
        (_, Some("Bearer acmes" | "Bearer anonymous")) => manifest(),
        _ => challenge(seen),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    let last = || {
        server
            .seen()
            .last()
            .unwrap()
            .authorization()
            .unwrap()
            .to_owned()
    };
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(last(), "Bearer acmes");
    client.replace_credentials(None);
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(last(), "Bearer anonymous");
    client.replace_credentials(Some(&acme().into()));
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(last(), "Bearer acmes");
}

#[tokio::test]
async fn replaced_credentials_do_not_reach_an_alternative_elsewhere() {
    let first = Server::start(|_| status(503)).await;
    let second = Server::start(|seen: &Seen| match seen.path() {
        "/token" => token("any"),
        _ => challenge(seen),
    })
    .await;
    let client = RegistryClient::new(ClientSettings {
        alternatives: vec![second.url.clone()],
        ..with_credentials(&first.url)
    })
    .unwrap();
    client.replace_credentials(Some(&acme().into()));
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    let sent: Vec<_> = second
        .seen()
        .iter()
        .map(|seen| seen.authorization().map(str::to_owned))
        .collect();
    assert!(!sent.is_empty());
    assert!(!sent.contains(&Some(BASIC.to_owned())), "{sent:?}");
}

#[tokio::test]
async fn a_realm_elsewhere_gets_credentials_only_where_it_is_listed() {
    let auth = Server::start_at("127.0.0.2", |_| token("good")).await;
    let realm = auth.at("/token");
    let server = Server::start(move |seen: &Seen| match seen.authorization() {
        Some("Bearer good") => manifest(),
        _ => challenge_to(&realm),
    })
    .await;
    let settings = with_credentials(&server.url);
    let client = RegistryClient::new(settings.clone()).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.cause), (Kind::Refused, Cause::Realm));
    assert_eq!(auth.seen().len(), 0);
    let client = RegistryClient::new(ClientSettings {
        token_realms: vec![auth.url.clone()],
        ..settings
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(auth.seen()[0].authorization(), Some(BASIC));
}
