//! TLS: the operator's own roots, and no step back from https to http.

use std::sync::Arc;

use gantry_upstream::{ClientSettings, Kind, RegistryClient, Upstream as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer},
};

use super::server::{
    Server, alpine, challenge_to, client, digest, latest, manifest, redirect, reply, token,
    with_credentials,
};

/// A server side for `localhost`, and the PEM of its root.
fn localhost() -> (TlsAcceptor, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    (
        TlsAcceptor::from(Arc::new(config)),
        made.cert.pem().into_bytes(),
    )
}

fn trusting(server: &Server, root: Vec<u8>) -> RegistryClient {
    RegistryClient::new(ClientSettings {
        root_certificates: Some(root),
        ..with_credentials(&server.url)
    })
    .unwrap()
}

#[tokio::test]
async fn only_a_trusted_root_is_trusted() {
    let (acceptor, root) = localhost();
    let server = Server::start_tls(acceptor, |_| manifest()).await;
    trusting(&server, root)
        .manifest(&alpine(), &latest())
        .await
        .unwrap();
    let error = client(&server.url)
        .manifest(&alpine(), &latest())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.attempt.as_str()),
        (Kind::Unavailable, "GET manifest: cannot connect")
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
        .manifest(&alpine(), &latest())
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
