//! The error matrix: whatever goes wrong, the kind says what a caller can do, the cause says where it was, and a 404 is never made up.

use std::time::Duration;

use gantry_model::AcceptedTypes;
use gantry_upstream::{Cause, ClientSettings, Kind, RegistryClient, Upstream as _, UpstreamError};
use tokio::net::TcpListener;
use url::Url;

use super::server::{
    Ending, Seen, Server, alpine, challenge, challenge_to, digest, latest, manifest, reply,
    settings, start_raw, status, token,
};

/// What one broken upstream does to a call, with and without an alternative.
struct Row {
    name: &'static str,
    kind: Kind,
    cause: Cause,
    /// Whether an alternative is asked, and the call succeeds with it.
    stands_in: bool,
}

const fn row(name: &'static str, kind: Kind, cause: Cause, stands_in: bool) -> Row {
    Row {
        name,
        kind,
        cause,
        stands_in,
    }
}

const ROWS: &[Row] = &[
    row("429", Kind::RateLimited, Cause::RateLimit, true),
    row("401 flap", Kind::Refused, Cause::Answer, false),
    row("403", Kind::Refused, Cause::Answer, false),
    row("404", Kind::NotFound, Cause::Answer, false),
    row("500", Kind::Unavailable, Cause::Answer, true),
    row("503", Kind::Unavailable, Cause::Answer, true),
    row("timeout", Kind::Unavailable, Cause::FirstByte, true),
    row("closed port", Kind::Unavailable, Cause::Connect, true),
    row("reset", Kind::Unavailable, Cause::Broken, true),
    row("DNS", Kind::Unavailable, Cause::Dns, true),
    row("TLS", Kind::Unavailable, Cause::Tls, true),
    row("token endpoint 500", Kind::Unavailable, Cause::Token, true),
    row("token endpoint 404", Kind::Invalid, Cause::Token, false),
    row("token endpoint 401", Kind::Refused, Cause::Token, false),
    row(
        "token endpoint 429",
        Kind::RateLimited,
        Cause::RateLimit,
        true,
    ),
    row(
        "token endpoint closed",
        Kind::Unavailable,
        Cause::Connect,
        true,
    ),
    row("hostile realm", Kind::Refused, Cause::Realm, false),
    row("redirect to metadata", Kind::Invalid, Cause::Blocked, false),
    row("object store 404", Kind::Invalid, Cause::Answer, false),
    row("endless redirects", Kind::Invalid, Cause::Answer, false),
];

/// What keeps a broken upstream running.
enum Broken {
    Scripted(Server),
    Raw(
        Url,
        #[expect(dead_code, reason = "ends with the row")] tokio::task::JoinHandle<()>,
    ),
    Nowhere(Url),
}

impl Broken {
    fn url(&self) -> &Url {
        match self {
            Self::Scripted(server) => &server.url,
            Self::Raw(url, _) | Self::Nowhere(url) => url,
        }
    }
}

async fn nowhere() -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    format!("http://{address}").parse().unwrap()
}

async fn token_endpoint(code: u16) -> Server {
    Server::start(move |seen: &Seen| match seen.path() {
        "/token" => status(code),
        _ => challenge(seen),
    })
    .await
}

async fn plain_where_tls_is_expected() -> (u16, tokio::task::JoinHandle<()>) {
    let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer)
                .await
                .unwrap();
            let _gone = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    });
    (port, task)
}

async fn broken(name: &str) -> Broken {
    let server = match name {
        // A token is given each time, and refused each time.
        "401 flap" => {
            Server::start(|seen: &Seen| match seen.path() {
                "/token" => token("flapping"),
                _ => challenge(seen),
            })
            .await
        }
        "timeout" => Server::start_silent().await,
        "closed port" => return Broken::Nowhere(nowhere().await),
        "DNS" => return Broken::Nowhere("http://registry.invalid".parse().unwrap()),
        "reset" => {
            let (url, task) = start_raw(Vec::new(), Ending::Reset).await;
            return Broken::Raw(url, task);
        }
        // Plain HTTP where TLS is expected.
        "TLS" => {
            let (port, task) = plain_where_tls_is_expected().await;
            return Broken::Raw(format!("https://127.0.0.1:{port}").parse().unwrap(), task);
        }
        "token endpoint closed" => {
            let realm = format!("{}token", nowhere().await);
            Server::start(move |_| challenge_to(&realm)).await
        }
        "hostile realm" => Server::start(|_| challenge_to("https://evil.example/token")).await,
        "redirect to metadata" => {
            Server::start(|_| reply(307, &[("location", "http://169.254.169.254/latest")], ""))
                .await
        }
        "object store 404" => {
            let store = Server::start(|_| status(404)).await;
            let target = store.at("/gone");
            // The store lives as long as the script.
            Server::start(move |_| {
                assert!(!store.url.as_str().is_empty());
                reply(307, &[("location", &target)], "")
            })
            .await
        }
        "endless redirects" => {
            Server::start(|seen: &Seen| {
                reply(307, &[("location", &format!("{}x", seen.target))], "")
            })
            .await
        }
        name => match name.strip_prefix("token endpoint ") {
            Some(code) => token_endpoint(code.parse().unwrap()).await,
            None => {
                let code: u16 = name.parse().unwrap();
                Server::start(move |_| status(code)).await
            }
        },
    };
    Broken::Scripted(server)
}

fn patient(url: &Url, alternatives: Vec<Url>) -> RegistryClient {
    RegistryClient::new(ClientSettings {
        alternatives,
        connect_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(300),
        ..settings(url)
    })
    .unwrap()
}

fn check(row: &Row, verb: &str, error: &UpstreamError) {
    let found = (error.kind, error.cause);
    assert_eq!(
        found,
        (row.kind, row.cause),
        "{}, {verb}: {error}",
        row.name
    );
    assert_eq!(error.is_retryable(), row.stands_in, "{}, {verb}", row.name);
}

#[tokio::test]
async fn every_failure_has_its_kind_its_cause_and_its_alternative() {
    for row in ROWS {
        let broken = broken(row.name).await;
        let url = broken.url();
        let error = patient(url, Vec::new())
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await;
        check(row, "GET manifest", &error.unwrap_err());
        let error = patient(url, Vec::new())
            .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await;
        check(row, "HEAD manifest", &error.unwrap_err());
        let error = patient(url, Vec::new()).blob(&alpine(), &digest(), 0).await;
        check(row, "GET blob", &error.unwrap_err());

        let other = Server::start(|_| manifest()).await;
        let client = patient(url, vec![other.url.clone()]);
        let outcome = client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await;
        assert_eq!(outcome.is_ok(), row.stands_in, "{}", row.name);
        assert_eq!(
            other.seen().len(),
            usize::from(row.stands_in),
            "{}",
            row.name
        );
    }
}

#[tokio::test]
async fn only_the_upstreams_own_404_is_not_found() {
    let missing: Vec<_> = ROWS
        .iter()
        .filter(|row| row.kind == Kind::NotFound)
        .collect();
    assert_eq!(missing.len(), 1);
    // An alternative's 404 does not make an unreachable upstream one that says so.
    let knows_nothing = Server::start(|_| status(404)).await;
    let client = patient(&nowhere().await, vec![knows_nothing.url.clone()]);
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    assert_eq!(knows_nothing.seen().len(), 1);
}
