//! The edge: silent and slow connections end, a drain finishes what runs, health is true.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use tests::{
    Gateway, Image, Wire,
    gateway::{USER, usual_config},
    image::Content,
    tools::wait_until,
};

/// Connects, sends, and waits until the other side closes; how long that took.
fn until_closed(port: u16, bytes: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let start = Instant::now();
    stream.write_all(bytes).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut rest = Vec::new();
    let _closed_or_reset = stream.read_to_end(&mut rest);
    start.elapsed()
}

#[test]
fn silent_and_half_sent_heads_are_closed_at_the_header_timeout() {
    let gateway = Gateway::start(&format!(
        "{}limits: {{ header_timeout: 1s }}\n",
        usual_config("", "")
    ));
    let half_preface = &b"PRI * HTTP/2.0\r\n"[..];
    for bytes in [
        &b""[..],
        b"G",
        b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Half",
        half_preface,
    ] {
        let took = until_closed(gateway.port, bytes);
        assert!(
            took < Duration::from_secs(10),
            "{:?} stayed open for {took:?}",
            String::from_utf8_lossy(bytes)
        );
    }
}

#[test]
fn a_terminated_gateway_finishes_the_upload_that_runs_and_takes_no_more() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let content = Content::random(1 << 20);
    let location = wire.start_upload("apps/web");
    let authorization = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", USER.0, USER.1))
    };
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let separator = if location.contains('?') { '&' } else { '?' };
    write!(
        stream,
        "PUT {location}{separator}digest={} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {authorization}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.digest,
        gateway.host(),
        content.bytes.len()
    )
    .unwrap();
    stream
        .write_all(&content.bytes[..content.bytes.len() / 2])
        .unwrap();
    // The start of the upload was one, this is the other: a request that nobody read yet would not be one that runs.
    let decisions = "gantry_decisions_total{plugin=\"access\",hook=\"authorize\",outcome=\"allow\",cached=\"false\"}";
    wait_until("the request to be decided", Duration::from_secs(10), || {
        gateway.metric(decisions) >= 2.0
    });
    gateway.terminate();
    wait_until("the listener to close", Duration::from_secs(10), || {
        TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
    });
    stream
        .write_all(&content.bytes[content.bytes.len() / 2..])
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(gateway.wait().success());
    gateway.restart();
    assert_eq!(
        wire.get(&format!("/v2/apps/web/blobs/{}", content.digest))
            .expect(200)
            .body,
        content.bytes
    );
}

/// A chunked upload of this body, and what is answered to it.
fn chunked_upload(gateway: &Gateway, location: &str, body: &str) -> String {
    let authorization = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", USER.0, USER.1))
    };
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    write!(
        stream,
        "PATCH {location} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {authorization}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n{body}",
        gateway.host()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn an_upload_whose_chunks_are_malformed_is_a_bad_request_and_not_a_client_that_left() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\nGET / HTTP/1.1\r\n\r\n",
    ] {
        let answer = chunked_upload(&gateway, &wire.start_upload("apps/web"), body);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("not valid HTTP"), "{answer}");
    }
    let whole = "5;a=b\r\nhello\r\n0\r\nx: y\r\n\r\n";
    let answer = chunked_upload(&gateway, &wire.start_upload("apps/web"), whole);
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert!(answer.contains("range: 0-4\r\n"), "{answer}");
}

#[test]
fn health_is_on_both_listeners_and_everything_else_of_the_admin_is_not() {
    let gateway = Gateway::usual();
    let (traffic, admin) = (
        Wire::anonymous(gateway.port),
        Wire::anonymous(gateway.admin_port),
    );
    traffic.get("/healthz").expect(200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        admin.get(path).expect(200);
    }
    for path in ["/readyz", "/metrics"] {
        traffic.get(path).expect(404);
    }
    let _counted = traffic.get("/v2/").expect(401);
    assert!(
        gateway.metrics().contains("gantry_requests_total"),
        "{}",
        gateway.metrics()
    );
}

#[test]
fn an_error_ties_its_log_line_to_its_answer_and_shows_no_secret() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, (USER.0, "canary-password"));
    let answer = wire.get("/v2/").expect(401);
    let id = answer.header("x-request-id");
    assert!(!id.is_empty());
    wait_until("the access line", Duration::from_secs(5), || {
        gateway.log().contains(&id)
    });
    Wire::bearer(gateway.port, "canary.token.value")
        .get("/v2/")
        .expect(401);
    let shown = gateway.log() + &gateway.metrics();
    for secret in ["canary-password", "canary.token.value", "Y2FuYXJ5"] {
        assert!(
            !shown.contains(secret),
            "{secret} is in the log or the metrics"
        );
    }
}

#[test]
fn every_decision_leaves_an_audit_line_with_its_reason() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "v1", &Image::random(10));
    Wire::anonymous(gateway.port)
        .get("/v2/apps/web/tags/list")
        .expect(401);
    wait_until("the audit lines", Duration::from_secs(5), || {
        let log = gateway.log();
        log.contains("audit")
            && log.contains("user:alice")
            && log.contains("anonymous")
            && log.contains("apps/web")
    });
}

#[test]
fn tls_serves_http_1_and_http_2() {
    let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let config = format!(
        "listen: {{ address: 127.0.0.1:PORT, tls: {{ certificate: tls.crt, key: tls.key }} }}\n{}",
        usual_config("", "")
    );
    let gateway = Gateway::start_with(&config, |folder| {
        std::fs::write(folder.join("tls.crt"), key.cert.pem()).unwrap();
        std::fs::write(folder.join("tls.key"), key.signing_key.serialize_pem()).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER).at(&format!("https://127.0.0.1:{}", gateway.port));
    let image = Image::random(3 << 20);
    wire.push_image("apps/web", "latest", &image);
    wire.pull_image("apps/web", "latest", &image);
    let http1 = reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .danger_accept_invalid_certs(true)
        .build()
        .unwrap();
    let (one, two) = tests::wire::runtime().block_on(async {
        let url = format!("https://127.0.0.1:{}/healthz", gateway.port);
        let one = http1.get(&url).send().await.unwrap().version();
        let two = tests::wire::http_client()
            .get(&url)
            .send()
            .await
            .unwrap()
            .version();
        (one, two)
    });
    assert_eq!((one, two), (http::Version::HTTP_11, http::Version::HTTP_2));
}
