//! TLS: the operator's own roots, and no step back from https to http.

use std::sync::Arc;

use gantry_model::AcceptedTypes;
use gantry_upstream::{
    CallerRights as _, Cause, ClientSettings, Kind, RegistryClient, Tls, Upstream as _,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig, pki_types::PrivatePkcs8KeyDer, server::WebPkiClientVerifier,
        version::TLS12,
    },
    server::TlsStream,
};
use url::Url;
use zeroize::Zeroizing;

use super::server::{
    Seen, Server, acme, alpine, blob_path, challenge_to, client, digest, latest, manifest,
    redirect, reply, token, with_credentials,
};

/// A server side for `localhost`, and the PEM of its root.
fn localhost() -> (TlsAcceptor, Vec<u8>) {
    localhost_over(&[])
}

/// The same that speaks only these protocols.
fn localhost_over(protocols: &[&str]) -> (TlsAcceptor, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let protocols = protocols.iter().map(|name| name.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    (
        TlsAcceptor::from(Arc::new(config)),
        made.cert.pem().into_bytes(),
    )
}

fn trusting(server: &Server, root: Vec<u8>) -> RegistryClient {
    trusting_at(&server.url, root)
}

fn trusting_at(url: &Url, root: Vec<u8>) -> RegistryClient {
    RegistryClient::new(ClientSettings {
        tls: Tls {
            roots: Some(root),
            ..Tls::default()
        },
        ..with_credentials(url)
    })
    .unwrap()
}

/// A server of HTTP/2 that answers a connection's first request with `answer`, and then sends `more` for as long as it is taken.
async fn http2_server(answer: Vec<u8>, more: Vec<u8>) -> (Url, Vec<u8>) {
    let (acceptor, root) = localhost_over(&["h2"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let stream = acceptor.accept(stream).await.unwrap();
            tokio::spawn(answer_first(stream, answer.clone(), more.clone()));
        }
    });
    let url = format!("https://localhost:{port}").parse().unwrap();
    (url, root)
}

async fn answer_first(mut stream: TlsStream<TcpStream>, answer: Vec<u8>, more: Vec<u8>) {
    let mut read = Vec::new();
    while !asks(&read) {
        stream.read_buf(&mut read).await.unwrap();
    }
    stream.write_all(&answer).await.unwrap();
    while !more.is_empty() && stream.write_all(&more).await.is_ok() {}
    // Until the client leaves.
    while stream
        .read_buf(&mut read)
        .await
        .is_ok_and(|count| count > 0)
    {}
}

/// Whether a request is among what a client sent: its preface, and frames.
fn asks(sent: &[u8]) -> bool {
    let mut left = sent.get(24..).unwrap_or_default();
    while let [high, middle, low, kind, ..] = left {
        if *kind == HEADERS {
            return true;
        }
        let length = u32::from_be_bytes([0, *high, *middle, *low]);
        left = left.get(9 + length as usize..).unwrap_or_default();
    }
    false
}

const HEADERS: u8 = 1;
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// A response's head on the first stream (RFC 9113 section 6.2), of nothing but its status; as the last frame, or not.
fn head(code: &str, flags: u8) -> Vec<u8> {
    let status = status(code);
    let length = u8::try_from(status.len()).unwrap();
    [&[0, 0, length, HEADERS, flags, 0, 0, 0, 1], &*status].concat()
}

/// `:status` as a literal (RFC 7541 section 6.2.2).
fn status(code: &str) -> Vec<u8> {
    [&[0x08, 3], code.as_bytes()].concat()
}

#[tokio::test]
async fn interim_answers_without_end_over_http2_are_a_bad_answer_and_two_are_none() {
    let interim = head("103", 4);
    let (url, root) = http2_server(SETTINGS.to_vec(), interim.repeat(100)).await;
    let asked = trusting_at(&url, root);
    let error = asked
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid, "{error:?}");
    assert!(error.attempt.contains("interim answers"), "{error}");
    let answer = [&SETTINGS, &*interim.repeat(2), &*head("404", 5)].concat();
    let (url, root) = http2_server(answer, Vec::new()).await;
    let asked = trusting_at(&url, root);
    let error = asked
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::NotFound, "{error:?}");
}

#[tokio::test]
async fn only_a_trusted_root_is_trusted() {
    let (acceptor, root) = localhost();
    let server = Server::start_tls(acceptor, |_| manifest()).await;
    trusting(&server, root)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let error = client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.cause, error.attempt.as_str()),
        (Kind::Unavailable, Cause::Tls, "GET manifest: no TLS")
    );
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn an_https_upstream_cannot_name_an_http_realm() {
    let thief = Server::start(|_| token("stolen")).await;
    let realm = format!("http://localhost:{}/token", thief.url.port().unwrap());
    let (acceptor, root) = localhost();
    let server = Server::start_tls(acceptor, move |_| challenge_to(&realm)).await;
    let error = trusting(&server, root)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert_eq!(thief.seen().len(), 0);
}

#[tokio::test]
async fn an_https_upstream_cannot_redirect_to_http() {
    let plain = Server::start(|_| reply(200, &[], "x")).await;
    let target = plain.at("/data");
    let (acceptor, root) = localhost();
    let server = Server::start_tls(acceptor, move |_| redirect(&target)).await;
    let error = trusting(&server, root)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert_eq!(plain.seen().len(), 0);
}

/// A client's certificate with its key, and a server side for `localhost` that asks for it, or insists, with the PEM of its root.
fn mutual(insists: bool, client: &rcgen::CertifiedKey<rcgen::KeyPair>) -> (TlsAcceptor, Vec<u8>) {
    let mut roots = RootCertStore::empty();
    roots.add(client.cert.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
    let verifier = match insists {
        true => verifier,
        false => verifier.allow_unauthenticated(),
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let pem = made.cert.pem().into_bytes();
    (TlsAcceptor::from(Arc::new(config)), pem)
}

fn client_certificate() -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(["gantry".to_owned()]).unwrap()
}

fn identity(client: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Option<Zeroizing<Vec<u8>>> {
    let pem = format!(
        "{}{}",
        client.cert.pem(),
        client.signing_key.serialize_pem()
    );
    Some(Zeroizing::new(pem.into_bytes()))
}

#[tokio::test]
async fn a_client_certificate_opens_a_server_that_insists_on_one() {
    let ours = client_certificate();
    let (acceptor, root) = mutual(true, &ours);
    let server = Server::start_tls(acceptor, |_| manifest()).await;
    let mut settings = with_credentials(&server.url);
    settings.tls.roots = Some(root);
    let without = RegistryClient::new(settings.clone()).unwrap();
    let error = without
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.cause), (Kind::Unavailable, Cause::Tls));
    assert_eq!(server.seen().len(), 0);
    settings.tls.identity = identity(&ours);
    let client = RegistryClient::new(settings).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert!(server.seen()[0].is_certified);
}

#[tokio::test]
async fn a_client_certificate_does_not_speak_for_callers() {
    let ours = client_certificate();
    let (acceptor, root) = mutual(false, &ours);
    let server = Server::start_tls(acceptor, |_| manifest()).await;
    let mut settings = with_credentials(&server.url);
    settings.tls.roots = Some(root);
    settings.tls.identity = identity(&ours);
    let client = RegistryClient::new(settings).unwrap();
    client.may_pull(None, &alpine(), None).await.unwrap();
    client.knows(&acme()).await.unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let shown: Vec<bool> = server.seen().iter().map(|seen| seen.is_certified).collect();
    assert_eq!(shown, [false, false, true]);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_upstreams_own_origin_only() {
    let ours = client_certificate();
    let (acceptor, cdn_root) = mutual(false, &ours);
    let cdn = Server::start_tls(acceptor, |_| reply(200, &[], "bytes")).await;
    let target = cdn.at("/data");
    let (acceptor, root) = mutual(true, &ours);
    let server = Server::start_tls(acceptor, move |_: &Seen| redirect(&target)).await;
    let mut settings = with_credentials(&server.url);
    settings.tls.roots = Some([root, cdn_root].concat());
    settings.tls.identity = identity(&ours);
    settings.credentials = Some(acme().into());
    let client = RegistryClient::new(settings).unwrap();
    client.blob(&alpine(), &digest(), 0).await.unwrap();
    assert!(server.seen()[0].is_certified);
    assert_eq!(server.count(&blob_path()), 1);
    assert_eq!(cdn.count("/data"), 1);
    assert!(!cdn.seen()[0].is_certified);
}

#[tokio::test]
async fn a_certificate_without_its_key_is_refused_when_building() {
    let settings = |identity: String| ClientSettings {
        tls: Tls {
            identity: Some(Zeroizing::new(identity.into_bytes())),
            ..Tls::default()
        },
        ..with_credentials(&"https://r.example".parse().unwrap())
    };
    let (ours, other) = (client_certificate(), client_certificate());
    let key = other.signing_key.serialize_pem();
    for identity in [
        ours.cert.pem(),
        key.clone(),
        format!("{}{key}", ours.cert.pem()),
    ] {
        let error = RegistryClient::new(settings(identity)).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("PRIVATE"), "{error}");
    }
}

#[tokio::test]
async fn a_minimum_version_refuses_an_older_server() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_protocol_versions(&[&TLS12])
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let server = Server::start_tls(acceptor, |_| manifest()).await;
    let mut settings = with_credentials(&server.url);
    settings.tls.roots = Some(made.cert.pem().into_bytes());
    let client = RegistryClient::new(settings.clone()).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    settings.tls.only_1_3 = true;
    let client = RegistryClient::new(settings).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!((error.kind, error.cause), (Kind::Unavailable, Cause::Tls));
}
