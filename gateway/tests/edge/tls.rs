//! TLS from files: both protocols, the lowest version, and client certificates.

use std::{path::Path, sync::Arc};

use gantry::server::tls::{TlsError, TlsFiles};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Client, Server, patient};

/// An authority, a server's certificate from it, and a client's.
pub(crate) struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub(crate) fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = Self { directory };
        files.write("ca.pem", &authority.pem());
        for (name, common_name) in [("server", "gw"), ("client", "alice")] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            let certificate = params.signed_by(&key, &authority).unwrap();
            files.write(&format!("{name}.pem"), &certificate.pem());
            files.write(&format!("{name}.key"), &key.serialize_pem());
        }
        files
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn server(&self) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_ca: None,
            only_tls13: false,
        }
    }

    fn client(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        with_certificate: bool,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.path("ca.pem")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        if with_certificate {
            let certificate = CertificateDer::from_pem_file(self.path("client.pem")).unwrap();
            let key = PrivateKeyDer::from_pem_file(self.path("client.key")).unwrap();
            builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        } else {
            builder.with_no_client_auth()
        }
    }
}

async fn connect(
    server: &Server,
    config: ClientConfig,
) -> std::io::Result<Client<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await?;
    Ok(Client::new(stream))
}

#[tokio::test]
async fn a_blob_arrives_whole_over_tls() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let mut client = connect(&server, files.client(&[&TLS13, &TLS12], false))
        .await
        .unwrap();
    assert_eq!(client.get("/peer").await.text(), "true None");
    assert_eq!(client.get("/blob/3000000").await.body.len(), 3_000_000);
}

#[tokio::test]
async fn http2_is_negotiated() {
    let files = Files::make();
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let mut config = files.client(&[&TLS13], false);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let client = connect(&server, config).await.unwrap();
    assert_eq!(client.stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (status, body) = crate::h2::get(client.stream, "/hello").await;
    assert_eq!((status, body.as_slice()), (200, &b"hello"[..]));
}

#[tokio::test]
async fn a_version_below_the_lowest_is_refused() {
    let files = Files::make();
    let only13 = TlsFiles {
        only_tls13: true,
        ..files.server()
    };
    let server = Server::start_with(&patient(), Some(only13.load().unwrap()));
    assert!(
        connect(&server, files.client(&[&TLS12], false))
            .await
            .is_err()
    );
    assert!(
        connect(&server, files.client(&[&TLS13], false))
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn a_client_certificate_is_demanded_and_its_subject_known() {
    let files = Files::make();
    let mutual = TlsFiles {
        client_ca: Some(files.path("ca.pem")),
        ..files.server()
    };
    let server = Server::start_with(&patient(), Some(mutual.load().unwrap()));
    let mut known = connect(&server, files.client(&[&TLS13], true))
        .await
        .unwrap();
    let peer = known.get("/peer").await;
    assert!(peer.text().contains("CN=alice"), "{}", peer.text());
    // With TLS 1.3 the client learns of the refusal when it reads.
    if let Ok(mut unknown) = connect(&server, files.client(&[&TLS13], false)).await {
        unknown
            .try_send("GET /hello HTTP/1.1\r\nhost: gw\r\n\r\n")
            .await;
        assert!(unknown.read_response().await.is_none());
    }
}

#[tokio::test]
async fn a_handshake_that_stops_is_closed() {
    let files = Files::make();
    let tls = files.server().load().unwrap();
    let server = Server::start_with(&crate::harness::settings(), Some(tls));
    for part in [&b""[..], b"\x16\x03\x01\x02\0\x01"] {
        let mut client = server.connect().await;
        client.send(part).await;
        client.rest().await;
    }
}

#[test]
fn files_that_do_not_serve_are_named() {
    let files = Files::make();
    files.write("empty.pem", "");
    files.write(
        "junk.pem",
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
    );
    let load = |certificate: &str, key: &str| {
        let files = TlsFiles {
            certificate: files.path(certificate),
            key: files.path(key),
            ..files.server()
        };
        files.load().unwrap_err()
    };
    assert!(
        matches!(load("missing.pem", "server.key"), TlsError::File { path, .. } if named(&path, "missing.pem"))
    );
    assert!(
        matches!(load("junk.pem", "server.key"), TlsError::File { path, .. } if named(&path, "junk.pem"))
    );
    assert!(
        matches!(load("empty.pem", "server.key"), TlsError::Empty(path) if named(&path, "empty.pem"))
    );
    assert!(
        matches!(load("server.pem", "ca.pem"), TlsError::File { path, .. } if named(&path, "ca.pem"))
    );
    assert!(matches!(
        load("server.pem", "client.key"),
        TlsError::Rejected(_)
    ));
}

fn named(path: &Path, name: &str) -> bool {
    path.ends_with(name)
}
