//! No secret is ever printed: not by an error, nor by what lies below it, nor by the client or its settings.

use std::{error::Error, fmt::Write as _};

use gantry_model::AcceptedTypes;
use gantry_upstream::{ClientSettings, Credentials, RegistryClient, Upstream as _, UpstreamError};
use zeroize::Zeroizing;

use super::server::{
    Ending, Reply, Seen, Server, alpine, challenge, challenge_to, digest, latest, redirect, reply,
    settings, start_raw, status, token,
};

/// Everything that can be printed of an error.
fn printed(error: &UpstreamError) -> String {
    let mut text = format!("{error} {error:?} {error:#?}");
    let mut below = error.source();
    while let Some(source) = below {
        write!(text, " {source} {source:?}").unwrap();
        below = source.source();
    }
    text
}

fn canary_settings(url: &url::Url) -> ClientSettings {
    ClientSettings {
        credentials: Some(
            Credentials {
                username: "canary-user".to_owned(),
                password: Zeroizing::new("canary-password".to_owned()),
            }
            .into(),
        ),
        ..settings(url)
    }
}

/// Runs every kind of call and gathers what their errors print.
async fn failing_calls(settings: ClientSettings) -> String {
    let client = RegistryClient::new(settings.clone()).unwrap();
    let mut text = format!("{settings:?} {client:?}");
    for _ in 0..3 {
        let manifest = client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        let head = client
            .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        let blob = client.blob(&alpine(), &digest(), 0).await.unwrap_err();
        text.extend([manifest, head, blob].iter().map(printed));
    }
    text
}

fn behind_token(seen: &Seen, answer: impl Fn() -> Reply) -> Reply {
    match (seen.path(), seen.authorization()) {
        ("/token", _) => token("canary-token"),
        (_, Some(_)) => answer(),
        _ => challenge(seen),
    }
}

#[tokio::test]
async fn no_failure_prints_a_secret() {
    // The canary is in the path and query of the URLs too, as in a CDN's signed URL.
    let (cdn, _cdn) = start_raw(b"HTTP/1.1 canary-nonsense".to_vec(), Ending::Close).await;
    let signed = cdn
        .join("/canary-path?signature=canary-signature")
        .unwrap()
        .to_string();
    let closed = "http://127.0.0.1:1/canary-path?signature=canary-signature";
    let servers = [
        Server::start(|seen: &Seen| behind_token(seen, || status(401))).await,
        Server::start(|seen: &Seen| {
            behind_token(seen, || {
                reply(503, &[("x-canary", "canary")], "canary-body")
            })
        })
        .await,
        Server::start(move |seen: &Seen| behind_token(seen, || redirect(&signed))).await,
        Server::start(move |seen: &Seen| behind_token(seen, || redirect(closed))).await,
        Server::start(|seen: &Seen| {
            behind_token(seen, || redirect("http://canary:canary@127.0.0.1/"))
        })
        .await,
        Server::start(|_| challenge_to("http://canary:canary@127.0.0.1/token")).await,
        Server::start(|_| challenge_to("http://127.0.0.1:1/canary-path")).await,
        Server::start(|seen: &Seen| match seen.path() {
            "/token" => reply(200, &[], r#"{"token":7,"access_token":"canary-token"}"#),
            _ => challenge(seen),
        })
        .await,
        Server::start(|_| reply(401, &[("www-authenticate", "Basic realm=canary")], "")).await,
    ];
    for (index, server) in servers.iter().enumerate() {
        let text = failing_calls(canary_settings(&server.url)).await;
        assert!(!text.contains("canary"), "{index}: {text}");
        assert!(!text.contains("Y2FuYXJ5"), "{index}: {text}");
    }
}

#[tokio::test]
async fn a_password_that_was_put_into_a_url_is_not_printed() {
    let url = "https://canary:canary@r.example".parse().unwrap();
    let settings = settings(&url);
    let error = RegistryClient::new(settings.clone()).unwrap_err();
    assert!(!format!("{settings:?} {error} {error:?}").contains("canary"));
}
