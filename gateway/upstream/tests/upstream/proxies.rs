//! Upstreams behind a proxy, and mirrors of mirrors behind a path.

use std::sync::{Arc, Mutex};

use gantry_model::AcceptedTypes;
use gantry_upstream::{Cause, ClientSettings, Kind, Proxy, RegistryClient, Tls, Upstream as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer},
};
use url::Url;

use super::server::{
    BASIC, Seen, Server, alpine, challenge_to, latest, manifest, redirect, reply, settings, token,
    with_credentials,
};

/// A `CONNECT` proxy that leads every name to this machine, at the port that was asked for.
struct Tunnel {
    url: Url,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Tunnel {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(tunnel(stream, Arc::clone(&seen)));
            }
        });
        Self {
            url: url.parse().unwrap(),
            heads,
            task,
        }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn tunnel(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let port = head
        .split_whitespace()
        .nth(1)
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    seen.lock().unwrap().push(head);
    let mut onward = TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap()))
        .await
        .unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    // Either side may end it.
    let _ended = copy_bidirectional(&mut stream, &mut onward).await;
}

/// A server side for a name, and the PEM of its root.
fn acceptor(name: &str) -> (TlsAcceptor, Vec<u8>) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
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

fn named(server: &Server, name: &str) -> Url {
    format!("https://{name}:{}", server.url.port().unwrap())
        .parse()
        .unwrap()
}

fn through(tunnel: &Url, url: &Url, root: Vec<u8>) -> ClientSettings {
    ClientSettings {
        proxy: Some(Proxy {
            https: Some(tunnel.clone()),
            ..Proxy::default()
        }),
        tls: Tls {
            roots: Some(root),
            ..Tls::default()
        },
        ..with_credentials(url)
    }
}

#[tokio::test]
async fn an_https_upstream_is_reached_by_connect_under_its_own_name() {
    let (acceptor, root) = acceptor("registry.example");
    let server = Server::start_tls(acceptor, |seen: &Seen| match seen.authorization() {
        Some(BASIC) => manifest(),
        _ => reply(401, &[("www-authenticate", "Basic realm=r")], ""),
    })
    .await;
    let tunnel = Tunnel::start().await;
    let mut proxy = tunnel.url.clone();
    proxy.set_username("us").unwrap();
    proxy.set_password(Some("s3cret")).unwrap();
    let url = named(&server, "registry.example");
    let client = RegistryClient::new(through(&proxy, &url, root)).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let [head] = tunnel.heads().try_into().unwrap();
    let target = format!("registry.example:{}", url.port().unwrap());
    assert!(
        head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")),
        "{head}"
    );
    // us:s3cret, for the proxy; the registry's own secret is inside the tunnel.
    assert!(
        head.to_lowercase().contains("proxy-authorization: basic"),
        "{head}"
    );
    assert!(head.contains("dXM6czNjcmV0"), "{head}");
    assert!(!head.contains("YWNtZTpzM2NyZXQ="), "{head}");
    assert!(
        server
            .seen()
            .iter()
            .all(|seen| seen.header("proxy-authorization").is_none())
    );
}

#[tokio::test]
async fn an_http_upstream_is_asked_through_the_proxy_too() {
    let proxy = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        proxy: Some(Proxy {
            http: Some(proxy.url.clone()),
            ..Proxy::default()
        }),
        ..settings(&"http://registry.example:5000".parse().unwrap())
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let target = proxy.seen()[0].target.clone();
    assert_eq!(
        target,
        "http://registry.example:5000/v2/library/alpine/manifests/latest"
    );
}

#[tokio::test]
async fn what_bypasses_the_proxy_is_reached_straight_on() {
    let server = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        proxy: Some(Proxy {
            http: Some("http://127.0.0.1:1".parse().unwrap()),
            bypass: "127.0.0.1".to_owned(),
            ..Proxy::default()
        }),
        ..settings(&server.url)
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_is_down_is_an_unavailable_upstream() {
    let url = "https://registry.example".parse().unwrap();
    let (_, root) = acceptor("registry.example");
    let down = "http://127.0.0.1:1".parse().unwrap();
    let client = RegistryClient::new(through(&down, &url, root)).unwrap();
    let error = client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind, error.cause),
        (Kind::Unavailable, Cause::Connect)
    );
}

#[tokio::test]
async fn a_proxy_does_not_carry_an_upstreams_redirect_inside() {
    let tunnel = Tunnel::start().await;
    let proxy = format!("https://{}/x", tunnel.url.authority());
    for target in [
        "https://10.0.0.1/x",
        "https://vault/x",
        "https://db.corp.internal/x",
        &proxy,
    ] {
        let (acceptor, root) = acceptor("registry.example");
        let location = target.to_owned();
        let server = Server::start_tls(acceptor, move |_: &Seen| redirect(&location)).await;
        let url = named(&server, "registry.example");
        let client = RegistryClient::new(through(&tunnel.url, &url, root)).unwrap();
        let error = client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap_err();
        let found = (error.kind, error.cause);
        assert_eq!(found, (Kind::Invalid, Cause::Blocked), "{target}");
    }
    let heads = tunnel.heads();
    let is_upstream = |head: &String| head.starts_with("CONNECT registry.example:");
    assert!(
        heads.len() == 4 && heads.iter().all(is_upstream),
        "{heads:?}"
    );
}

// --- paths ---

#[tokio::test]
async fn what_follows_v2_in_a_base_url_goes_before_every_name() {
    for path in ["/v2/hub-proxy", "/v2/hub-proxy/", "/edge/v2/hub-proxy"] {
        let server = Server::start(|_| manifest()).await;
        let url = server.url.join(path).unwrap();
        let client = RegistryClient::new(settings(&url)).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        let before = path.split("/v2/").next().unwrap();
        let expect = format!("{before}/v2/hub-proxy/library/alpine/manifests/latest");
        assert_eq!(server.seen()[0].path(), expect);
    }
}

#[tokio::test]
async fn a_base_url_may_end_in_v2() {
    for path in ["/v2", "/v2/"] {
        let server = Server::start(|_| manifest()).await;
        let url = server.url.join(path).unwrap();
        let client = RegistryClient::new(settings(&url)).unwrap();
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
        assert_eq!(
            server.seen()[0].path(),
            "/v2/library/alpine/manifests/latest"
        );
    }
}

#[tokio::test]
async fn a_project_behind_v2_is_part_of_the_scope() {
    let harbor = |seen: &Seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, Some("Bearer good")) => manifest(),
        _ => {
            let bearer = format!(
                r#"Bearer realm="http://{}/token",service="harbor""#,
                seen.host()
            );
            reply(401, &[("www-authenticate", &bearer)], "")
        }
    };
    let server = Server::start(harbor).await;
    let url = server.url.join("/v2/hub-proxy").unwrap();
    let client = RegistryClient::new(settings(&url)).unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(
        server.seen()[1].target,
        "/token?service=harbor&scope=repository%3Ahub-proxy%2Flibrary%2Falpine%3Apull"
    );
}

#[tokio::test]
async fn an_alternative_may_be_a_project_of_another_mirror() {
    let hub = Server::start(|_| challenge_to("http://127.0.0.1:1/token")).await;
    let harbor = Server::start(|_| manifest()).await;
    let client = RegistryClient::new(ClientSettings {
        alternatives: vec![harbor.url.join("/v2/hub-proxy").unwrap()],
        ..settings(&hub.url)
    })
    .unwrap();
    client
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(
        harbor.seen()[0].path(),
        "/v2/hub-proxy/library/alpine/manifests/latest"
    );
}
