//! TLS from files: both protocols, the lowest version, and client certificates.

use std::{path::Path, sync::Arc, time::Duration};

use gantry::{
    clock::SystemClock,
    server::tls::{TlsError, TlsFiles},
};
use gantry_registry::Clock as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Client, Server, patient};

/// An authority, a server's certificate from it, and a client's.
pub(crate) struct Files {
    directory: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    pub(crate) fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let files = Self {
            directory,
            authority,
        };
        files.write("ca.pem", &files.authority.pem());
        for (name, common_name) in [("server", "gw"), ("client", "alice")] {
            files.sign(name, common_name, |_params| {});
        }
        files
    }

    fn sign(&self, name: &str, common_name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// A server that demands certificates of the authority in `client_ca`.
    fn mutual(&self, client_ca: &str) -> TlsFiles {
        TlsFiles {
            client_ca: Some(self.path(client_ca)),
            ..self.server()
        }
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
    config: impl Into<Arc<ClientConfig>>,
) -> std::io::Result<Client<TlsStream<TcpStream>>> {
    let config = config.into();
    let stream = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await?;
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

/// Whether the second of two connections resumes the session of the first.
async fn resumes(server: &Server, config: ClientConfig) -> bool {
    let config = Arc::new(config);
    let mut kinds = Vec::new();
    for _connection in 0..2 {
        let mut client = connect(server, Arc::clone(&config)).await.unwrap();
        // A ticket of TLS 1.3 comes after the handshake.
        assert_eq!(client.get("/hello").await.text(), "hello");
        kinds.push(client.stream.get_ref().1.handshake_kind());
    }
    kinds[1] == Some(rustls::HandshakeKind::Resumed)
}

#[tokio::test]
async fn a_session_is_not_resumed_where_clients_show_certificates() {
    let files = Files::make();
    let open = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let mutual = files.mutual("ca.pem").load().unwrap();
    let mutual = Server::start_with(&patient(), Some(mutual));
    for version in [&TLS12, &TLS13] {
        assert!(resumes(&open, files.client(&[version], true)).await);
        assert!(!resumes(&mutual, files.client(&[version], true)).await);
    }
}

#[tokio::test]
async fn a_connection_ends_with_its_clients_certificate() {
    let files = Files::make();
    let mutual = files.mutual("ca.pem").load().unwrap();
    let server = Server::start_with(&patient(), Some(mutual));
    files.sign("client", "alice", |params| {
        params.not_after = rcgen::date_time_ymd(2000, 1, 1);
    });
    let long_over = connect(&server, files.client(&[&TLS12], true)).await;
    assert!(long_over.is_err());
    // Certificates count seconds, so this one has between three and four.
    let now = Duration::from_millis(SystemClock.now_ms());
    let since_2000 = now - Duration::from_secs(946_684_800);
    files.sign("client", "alice", |params| {
        params.not_after = rcgen::date_time_ymd(2000, 1, 1) + since_2000 + Duration::from_secs(4);
    });
    let mut idle = connect(&server, files.client(&[&TLS13], true))
        .await
        .unwrap();
    let mut busy = connect(&server, files.client(&[&TLS12], true))
        .await
        .unwrap();
    assert_eq!(idle.get("/hello").await.status, 200);
    busy.send("GET /gate HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    assert!(idle.rest().await.is_empty());
    // The request began in time; the next one does not begin.
    server.handler.gate.add_permits(1);
    assert_eq!(busy.response().await.text(), "through");
    assert!(busy.rest().await.is_empty());
}

#[tokio::test]
async fn other_authorities_end_the_connections_of_the_former_ones() {
    let (files, other) = (Files::make(), Files::make());
    files.write("other.pem", &other.authority.pem());
    let server = Server::start_with(&patient(), Some(files.server().load().unwrap()));
    let served = server.tls.clone().unwrap();
    let mut unknown = connect(&server, files.client(&[&TLS13], false))
        .await
        .unwrap();
    assert_eq!(unknown.get("/hello").await.status, 200);
    // Added: who showed nothing has to.
    served.replace(files.mutual("ca.pem").load().unwrap());
    assert!(unknown.rest().await.is_empty());
    let mut idle = connect(&server, files.client(&[&TLS13], true))
        .await
        .unwrap();
    let mut busy = connect(&server, files.client(&[&TLS12], true))
        .await
        .unwrap();
    assert_eq!(idle.get("/hello").await.status, 200);
    busy.send("GET /gate HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    server.handler.begun.acquire().await.unwrap().forget();
    // Another certificate of the server changes nothing for clients.
    files.sign("server", "gw", |_params| {});
    served.replace(files.mutual("ca.pem").load().unwrap());
    assert_eq!(idle.get("/hello").await.status, 200);
    // Replaced: what runs may end.
    served.replace(files.mutual("other.pem").load().unwrap());
    assert!(idle.rest().await.is_empty());
    server.handler.gate.add_permits(1);
    assert_eq!(busy.response().await.text(), "through");
    assert!(busy.rest().await.is_empty());
    let again = connect(&server, files.client(&[&TLS12], true)).await;
    assert!(again.is_err());
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap();
    [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
}

/// The payload of the next frame of a kind and stream.
async fn payload(stream: &mut (impl AsyncRead + Unpin), kind: u8, number: u32) -> Vec<u8> {
    loop {
        let mut head = [0_u8; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if (head[3], of) == (kind, number) {
            return payload;
        }
    }
}

#[tokio::test]
async fn an_http2_client_that_does_not_go_when_told_to_is_answered_nothing_more() {
    const HEADERS: u8 = 1;
    let (files, other) = (Files::make(), Files::make());
    files.write("other.pem", &other.authority.pem());
    let tls = files.mutual("ca.pem").load().unwrap();
    let server = Server::start_with(&patient(), Some(tls));
    let mut client = connect(&server, files.client(&[&TLS13], true))
        .await
        .unwrap();
    // GET, https, and two literals: path and authority (RFC 7541, appendix A).
    let get = [&[0x82, 0x87, 0x04, 6][..], b"/hello", &[0x01, 2], b"gw"].concat();
    let begin = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(4, 0, 0, &[]),
        &frame(HEADERS, 5, 1, &get),
    ];
    client.stream.write_all(&begin.concat()).await.unwrap();
    assert_eq!(payload(&mut client.stream, 0, 1).await, b"hello");
    server
        .tls
        .clone()
        .unwrap()
        .replace(files.mutual("other.pem").load().unwrap());
    let _go_away = payload(&mut client.stream, 7, 0).await;
    // The ping that goes with it is never answered.
    let late = frame(HEADERS, 5, 3, &get);
    client.stream.write_all(&late).await.unwrap();
    let refusal = payload(&mut client.stream, 0, 3).await;
    let refusal = String::from_utf8(refusal).unwrap();
    assert!(refusal.contains("connect again"), "{refusal}");
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
