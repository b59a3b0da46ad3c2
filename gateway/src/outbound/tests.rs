//! Where a request may lead, what it may bring back, and what a failure is called, against servers on this machine.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::Method;
use rcgen::CertifiedKey;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use url::Url;

use super::*;

/// Answers lookups from a list, the last one forever, and counts them.
#[derive(Debug)]
struct Scripted {
    answers: Mutex<VecDeque<Vec<&'static str>>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(answers: &[&[&'static str]]) -> Arc<Self> {
        Arc::new(Self {
            answers: Mutex::new(answers.iter().map(|answer| answer.to_vec()).collect()),
            asked: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl Names for Scripted {
    async fn lookup(&self, _name: &str) -> std::io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        let answer = match answers.len() {
            0 => return Err(std::io::Error::other("no such name")),
            1 => answers[0].clone(),
            _ => answers.pop_front().unwrap(),
        };
        Ok(answer.iter().map(|text| text.parse().unwrap()).collect())
    }
}

fn requests(names: &Arc<Scripted>) -> Requests {
    let names: Arc<dyn Names> = Arc::<Scripted>::clone(names);
    Requests::new(&names)
}

fn get(url: &str, reach: Reach) -> OutboundRequest {
    OutboundRequest {
        method: Method::GET,
        url: url.parse::<Url>().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        reach,
        timeout: Duration::from_secs(20),
        max_response_bytes: 1000,
    }
}

/// A server that answers every connection with `answer` and keeps it open; gives the heads it read.
async fn server(answer: &'static str) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let read = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(converse(stream, answer, Arc::clone(&read)));
        }
    });
    (port, heads)
}

async fn converse(mut stream: TcpStream, answer: &'static str, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = String::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        head.push_str(&String::from_utf8_lossy(&piece[..count]));
        if head.ends_with("\r\n\r\n") {
            heads.lock().unwrap().push(std::mem::take(&mut head));
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nhello";

#[tokio::test]
async fn a_name_reaches_only_as_far_as_its_grant() {
    let (port, heads) = server(HELLO).await;
    let url = format!("http://hooks.example:{port}/");
    for (address, reach, expected) in [
        ("127.0.0.1", Reach::Public, Err(OutboundError::Refused)),
        ("127.0.0.1", Reach::Private, Ok(200)),
        ("127.0.0.1", Reach::Loopback, Ok(200)),
        ("127.0.0.1", Reach::Literal, Err(OutboundError::Refused)),
        ("10.0.0.1", Reach::Public, Err(OutboundError::Refused)),
        ("10.0.0.1", Reach::Loopback, Err(OutboundError::Refused)),
        ("100.64.0.1", Reach::Public, Err(OutboundError::Refused)),
        ("::1", Reach::Public, Err(OutboundError::Refused)),
        (
            "::ffff:10.0.0.1",
            Reach::Public,
            Err(OutboundError::Refused),
        ),
        ("fd00::1", Reach::Public, Err(OutboundError::Refused)),
        ("0.0.0.0", Reach::Public, Err(OutboundError::Refused)),
        (
            "169.254.169.254",
            Reach::Public,
            Err(OutboundError::Refused),
        ),
        (
            "169.254.169.254",
            Reach::Private,
            Err(OutboundError::Refused),
        ),
        (
            "::ffff:169.254.169.254",
            Reach::Private,
            Err(OutboundError::Refused),
        ),
        ("fe80::1", Reach::Private, Err(OutboundError::Refused)),
    ] {
        let requests = requests(&Scripted::new(&[&[address]]));
        let answered = requests.send(get(&url, reach)).await;
        assert_eq!(
            answered.map(|response| response.status),
            expected,
            "{address} {reach:?}"
        );
    }
    assert_eq!(heads.lock().unwrap().len(), 2, "nothing else was sent");
}

#[tokio::test]
async fn an_address_in_the_url_needs_a_grant_of_that_address() {
    let (port, heads) = server(HELLO).await;
    let requests = requests(&Scripted::new(&[]));
    let url = format!("http://127.0.0.1:{port}/");
    for reach in [Reach::Public, Reach::Private, Reach::Loopback] {
        let refused = requests.send(get(&url, reach)).await;
        assert_eq!(refused.err(), Some(OutboundError::Refused), "{reach:?}");
    }
    assert_eq!(heads.lock().unwrap().len(), 0);
    let answered = requests.send(get(&url, Reach::Literal)).await.unwrap();
    assert_eq!(&answered.body[..], b"hello");
}

#[tokio::test]
async fn a_name_that_changes_between_two_looks_gains_nothing() {
    // One lookup per connection, and that is the one that is judged: there is no second look to lie to.
    let (port, heads) =
        server("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await;
    let names = Scripted::new(&[&["127.0.0.1"], &["169.254.169.254"], &["127.0.0.1"]]);
    let requests = requests(&names);
    let url = format!("http://hooks.example:{port}/");
    let mut answers = Vec::new();
    for asked in 1..=3 {
        let answer = requests.send(get(&url, Reach::Private)).await;
        answers.push(answer.map(|response| response.status));
        assert_eq!(names.asked.load(Ordering::Relaxed), asked);
    }
    assert_eq!(answers, [Ok(200), Err(OutboundError::Refused), Ok(200)]);
    assert_eq!(heads.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn of_several_addresses_only_those_within_reach_are_dialed() {
    let (port, heads) = server(HELLO).await;
    let names = Scripted::new(&[&["169.254.169.254", "127.0.0.1"]]);
    let url = format!("http://hooks.example:{port}/");
    let answered = requests(&names).send(get(&url, Reach::Private)).await;
    assert_eq!(answered.unwrap().status, 200);
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_connection_of_a_wide_grant_serves_no_narrow_one() {
    let (port, heads) = server(HELLO).await;
    let requests = requests(&Scripted::new(&[&["127.0.0.1"]]));
    let url = format!("http://hooks.example:{port}/");
    assert!(requests.send(get(&url, Reach::Private)).await.is_ok());
    let narrow = requests.send(get(&url, Reach::Public)).await;
    assert_eq!(narrow.err(), Some(OutboundError::Refused));
    assert_eq!(heads.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_carries_what_it_was_given_and_nothing_of_an_earlier_one() {
    let (port, heads) = server(HELLO).await;
    let requests = requests(&Scripted::new(&[&["127.0.0.1"]]));
    let url = format!("http://hooks.example:{port}/a?b=c");
    let mut first = get(&url, Reach::Loopback);
    first
        .headers
        .insert("authorization", HeaderValue::from_static("canary"));
    requests.send(first).await.unwrap();
    requests.send(get(&url, Reach::Loopback)).await.unwrap();
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with("GET /a?b=c HTTP/1.1\r\n"));
    assert!(heads[0].contains("authorization: canary"));
    for absent in ["canary", "cookie", "referer", "authorization"] {
        assert!(!heads[1].to_lowercase().contains(absent), "{}", heads[1]);
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer() {
    let answer =
        "HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n";
    let (port, _) = server(answer).await;
    let names = Scripted::new(&[&["127.0.0.1"]]);
    let url = format!("http://hooks.example:{port}/");
    let answered = requests(&names).send(get(&url, Reach::Loopback)).await;
    let answered = answered.unwrap();
    assert_eq!(answered.status, 302);
    assert_eq!(answered.headers["location"], "http://169.254.169.254/");
    assert_eq!(names.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_body_is_read_up_to_its_cap_and_its_time() {
    let declared = "HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n";
    let chunked = concat!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "3e9\r\n1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890",
        "1\r\n0\r\n\r\n",
    );
    for (answer, expected) in [
        (declared, OutboundError::TooLarge),
        (chunked, OutboundError::TooLarge),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nslow",
            OutboundError::Timeout,
        ),
        ("", OutboundError::Timeout),
    ] {
        let (port, _) = server(answer).await;
        let requests = requests(&Scripted::new(&[&["127.0.0.1"]]));
        let mut request = get(&format!("http://hooks.example:{port}/"), Reach::Loopback);
        if expected == OutboundError::Timeout {
            request.timeout = Duration::from_millis(200);
        }
        let refused = requests.send(request).await;
        assert_eq!(refused.err(), Some(expected), "{answer}");
    }
}

#[tokio::test]
async fn each_failure_has_its_name() {
    let requests = requests(&Scripted::new(&[]));
    let unknown = requests
        .send(get("http://hooks.example/", Reach::Public))
        .await;
    assert_eq!(unknown.err(), Some(OutboundError::Dns));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let closed = get(&format!("http://127.0.0.1:{port}/"), Reach::Literal);
    assert_eq!(
        requests.send(closed).await.err(),
        Some(OutboundError::Connect)
    );
    let (port, _) = server("SSH-2.0-OpenSSH\r\n\r\n").await;
    let odd = get(&format!("http://127.0.0.1:{port}/"), Reach::Literal);
    assert!(matches!(
        requests.send(odd).await,
        Err(OutboundError::Other(_))
    ));
}

#[tokio::test]
async fn a_certificate_nobody_signed_is_not_trusted() {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    let requests = requests(&Scripted::new(&[&["127.0.0.1"]]));
    let refused = requests
        .send(get(&format!("https://localhost:{port}/"), Reach::Loopback))
        .await;
    assert_eq!(refused.err(), Some(OutboundError::Tls));
}

/// Answers with interim answers for as long as they are taken.
async fn flood(mut stream: TcpStream) {
    let mut head = [0; 4096];
    let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1000);
    if stream.read(&mut head).await.is_ok() {
        while stream.write_all(interim.as_bytes()).await.is_ok() {}
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_an_error_and_two_are_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(flood(stream));
        }
    });
    let names = Scripted::new(&[&["127.0.0.1"]]);
    let url = format!("http://hooks.example:{port}/");
    let failed = requests(&names).send(get(&url, Reach::Loopback)).await;
    let error = failed.unwrap_err();
    assert!(
        matches!(&error, OutboundError::Other(why) if why.contains("interim answers")),
        "{error:?}"
    );
    let hints = concat!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
    );
    let (port, _heads) = server(hints).await;
    let url = format!("http://hooks.example:{port}/");
    let answer = requests(&names).send(get(&url, Reach::Loopback)).await;
    assert_eq!(answer.unwrap().body, "hello");
}
