//! A guest asks only whom its binding names, with headers that are its own, and never holds the secrets it sends.

use std::{sync::Arc, time::Duration};

use gantry_plugin_host::{Failure, Grants, HttpGrant, Limits, Plugin, PluginHost, ports::Reach};
use serde_json::{Value, json};

use crate::{
    guest::{self, SECRET, authorize, generous, source},
    isolation::told,
    wire::{self, Receiver, Wire, status, with},
};

fn grants(addresses: &[String]) -> Grants {
    Grants {
        http: addresses
            .iter()
            .map(|address| address.parse::<HttpGrant>().unwrap())
            .collect(),
        ..guest::grants()
    }
}

async fn plugin(wire: &Arc<Wire>, grants: Grants, config: Value, limits: Limits) -> Plugin {
    let mut source = source(config, limits);
    source.grants = grants;
    let ports = gantry_plugin_host::HostPorts {
        cache_directory: guest::kept(),
        ..wire::ports(wire)
    };
    PluginHost::new(ports).unwrap().load(source).await.unwrap()
}

/// What came of each request.
async fn asked(wire: &Arc<Wire>, addresses: &[String], requests: Value) -> Vec<String> {
    let config = json!({ "do": "http", "requests": requests });
    let plugin = plugin(wire, grants(addresses), config, generous()).await;
    told(&plugin).await.split('|').map(str::to_owned).collect()
}

/// `/hello`, redirects by `/to/CODE/URL…`, and silence.
async fn receiver() -> Receiver {
    Receiver::start(|received| {
        let path = received.target.as_str();
        if let Some(rest) = path.strip_prefix("/in/to/") {
            let (code, location) = rest.split_once('/').unwrap();
            return with(code.parse().unwrap(), "location", location);
        }
        match path {
            "/in/silent" => None,
            "/in/big" => status(200, vec![b'x'; (1 << 20) + 1]),
            _ => status(200, format!("hello {} {path}", received.method)),
        }
    })
    .await
}

#[tokio::test]
async fn a_granted_request_arrives_as_it_was_written_and_its_answer_comes_back() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let url = receiver.url("/in/x?y=z");
    let requests = json!([{
        "method": "PUT", "url": url, "body": "content",
        "headers": [["X-One", "1"], ["Authorization", { "secret": "token" }]],
    }]);
    let answers = asked(&wire, &[receiver.url("/in")], requests).await;
    assert_eq!(answers, ["200 hello PUT /in/x?y=z"]);
    let got = receiver.got();
    assert_eq!(got.len(), 1);
    assert_eq!(&got[0].body[..], b"content");
    assert_eq!(got[0].header("x-one"), "1");
    assert_eq!(got[0].header("authorization"), SECRET);
    assert_eq!(got[0].header("content-length"), "7");
    assert_eq!(*wire.reaches.lock().unwrap(), [Reach::Public]);
    let printed = wire.printed.lock().unwrap();
    assert!(!printed.contains(SECRET), "{printed}");
}

#[tokio::test]
async fn what_is_not_granted_is_never_sent() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let port = receiver.port;
    let urls = [
        receiver.url("/out"),
        receiver.url("/inside"),
        receiver.url("/in/../out"),
        receiver.url("/in/%2e%2e/out"),
        receiver.url("/in/..%2fout"),
        format!("https://hooks.example:{port}/in"),
        format!("http://other.example:{port}/in"),
        format!("http://127.0.0.1:{port}/in"),
        format!("http://user@hooks.example:{port}/in"),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "file:///etc/passwd".to_owned(),
    ];
    // A call may send eight.
    for some in urls.chunks(6) {
        for answer in asked(&wire, &[receiver.url("/in")], json!(some)).await {
            assert!(answer.starts_with("Error::NotAllowed("), "{answer}");
        }
    }
    let none = asked(&wire, &[], json!([receiver.url("/in")])).await;
    assert!(none[0].contains("not granted to this plugin"), "{none:?}");
    assert!(receiver.got().is_empty() && wire.reaches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_header_that_is_the_hosts_or_holds_a_line_break_is_refused() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let headers = [
        ["Host", "other.example"],
        ["Content-Length", "0"],
        ["Transfer-Encoding", "chunked"],
        ["Connection", "close"],
        ["Upgrade", "h2c"],
        ["TE", "trailers"],
        ["Proxy-Authorization", "x"],
        ["X-One", "a\r\nX-Two: b"],
        ["X-One", "a\nb"],
        ["X-One", "a\u{0}b"],
        ["X One", "a"],
        ["X-One\r\nX-Two", "a"],
        ["", "a"],
    ];
    for some in headers.chunks(6) {
        let requests: Vec<Value> = some
            .iter()
            .map(|header| json!({ "url": receiver.url("/in"), "headers": [header] }))
            .collect();
        for answer in asked(&wire, &[receiver.url("/in")], json!(requests)).await {
            assert!(answer.starts_with("Error::Other(\"the header"), "{answer}");
        }
    }
    let odd = json!([
        { "url": receiver.url("/in"), "method": "CONNECT" },
        { "url": receiver.url("/in"), "method": "get" },
        { "url": receiver.url("/in"), "headers": [["X-One", { "secret": "other" }]] },
    ]);
    let answers = asked(&wire, &[receiver.url("/in")], odd).await;
    assert!(
        answers.iter().all(|answer| answer.starts_with("Error::")),
        "{answers:?}"
    );
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn a_redirect_is_held_against_the_grants_like_the_request() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let port = receiver.port;
    let to = |code: u16, location: &str| receiver.url(&format!("/in/to/{code}/{location}"));
    let granted = [
        receiver.url("/in"),
        format!("https://hooks.example:{port}/in"),
    ];
    let requests = json!([
        to(302, "/in/a"),
        to(302, "/out"),
        to(302, "http://169.254.169.254/"),
        to(307, "/in/%2e%2e/out"),
        format!("https://hooks.example:{port}/in/to/301/http://hooks.example:{port}/in"),
        to(308, &to(308, &to(308, "/in/c"))),
        to(308, &to(308, &to(308, &to(308, "/in/d")))),
    ]);
    let answers = asked(&wire, &granted, requests).await;
    assert_eq!(answers[0], "200 hello GET /in/a");
    for refused in &answers[1..5] {
        assert!(
            refused.starts_with("Error::NotAllowed(\"a redirect"),
            "{refused}"
        );
    }
    assert_eq!(answers[5], "200 hello GET /in/c");
    assert_eq!(answers[6], "Error::Other(\"more than 3 redirects\")");
    assert!(
        receiver
            .got()
            .iter()
            .all(|got| !got.target.contains("out") || got.target.contains("/to/"))
    );
}

#[tokio::test]
async fn a_redirect_keeps_the_method_or_is_the_answer() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let post = |code: u16| json!({ "method": "POST", "body": "content", "url": receiver.url(&format!("/in/to/{code}//in/a")) });
    let requests = json!([post(301), post(302), post(303), post(307), post(308)]);
    let answers = asked(&wire, &[receiver.url("/in")], requests).await;
    assert_eq!(
        answers,
        [
            "301 ",
            "302 ",
            "303 ",
            "200 hello POST /in/a",
            "200 hello POST /in/a"
        ]
    );
    let landed: Vec<_> = receiver
        .got()
        .into_iter()
        .filter(|got| got.target == "/in/a")
        .collect();
    assert_eq!(landed.len(), 2);
    assert!(landed.iter().all(|got| &got.body[..] == b"content"));
}

#[tokio::test]
async fn secrets_stay_with_the_origin_they_were_sent_to() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let elsewhere = format!("http://other.example:{}/in", receiver.port);
    let headers = json!([
        ["X-Token", { "secret": "token" }],
        ["Authorization", "Bearer of-the-guest"],
        ["X-Signature", "sha256=00"],
        ["Content-Type", "text/plain"],
        ["Accept", { "secret": "token" }],
    ]);
    let same = receiver.url("/in/to/307//in/same");
    let other = receiver.url(&format!("/in/to/307/{elsewhere}/other"));
    let requests = json!([
        { "url": same, "headers": headers },
        { "url": other, "headers": headers },
    ]);
    asked(&wire, &[receiver.url("/in"), elsewhere], requests).await;
    let got = receiver.got();
    let at = |target: &str| got.iter().find(|got| got.target == target).unwrap();
    assert_eq!(at("/in/same").header("x-token"), SECRET);
    assert_eq!(
        at("/in/same").header("authorization"),
        "Bearer of-the-guest"
    );
    let other = at("/in/other");
    assert_eq!(other.header("content-type"), "text/plain");
    for name in ["x-token", "authorization", "x-signature", "accept"] {
        assert_eq!(other.header(name), "", "{name}");
    }
}

#[tokio::test]
async fn a_flood_ends_at_the_calls_budget() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let config = json!({ "do": "http-flood", "request": receiver.url("/in") });
    let plugin = plugin(&wire, grants(&[receiver.url("/in")]), config, generous()).await;
    assert_eq!(told(&plugin).await, "992");
    assert_eq!(receiver.got().len(), 8);
}

#[tokio::test]
async fn a_body_over_the_limit_is_an_error_of_the_interface() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let answers = asked(
        &wire,
        &[receiver.url("/in")],
        json!([receiver.url("/in/big")]),
    )
    .await;
    assert_eq!(answers, ["Error::TooLarge"]);
}

#[tokio::test]
async fn silence_ends_with_the_requests_time_and_at_the_latest_with_the_calls() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let silent = json!([{ "url": receiver.url("/in/silent"), "timeout": 100 }]);
    let answers = asked(&wire, &[receiver.url("/in")], silent).await;
    assert_eq!(answers, ["Error::Timeout"]);
    let limits = Limits {
        deadline: Duration::from_millis(300),
        ..generous()
    };
    let config = json!({ "do": "http", "requests": vec![receiver.url("/in/silent"); 8] });
    let plugin = plugin(&wire, grants(&[receiver.url("/in")]), config, limits).await;
    let began = std::time::Instant::now();
    let failed = plugin.authorize(&authorize()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::Deadline);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(plugin.stats().live_count, 0);
}

#[tokio::test]
async fn a_receiver_that_is_not_there_is_named() {
    let (wire, receiver) = (Arc::default(), receiver().await);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let gone = format!("http://hooks.example:{port}/");
    let answers = asked(&wire, &[receiver.url("/in"), gone.clone()], json!([gone])).await;
    assert_eq!(answers, ["Error::Connect"]);
}
