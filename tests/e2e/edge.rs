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

/// What a raw client gets for a GET, or another method, with these header lines.
fn asked(port: u16, method: &str, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: gw.example\r\nConnection: close\r\n{headers}\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Everybody may do everything, and nobody can be known.
const OPEN: &str = r#"
hosted: { names: ["apps/**"] }
plugins:
  - name: access
    from: builtin:access
    config: { rules: [{ who: [anonymous], may: [pull, push], what: ["**"] }] }
"#;

#[test]
fn a_registry_that_can_know_nobody_answers_its_root_without_a_challenge() {
    let gateway = Gateway::start(OPEN);
    for path in ["/v2/", "/v2", "//v2/", "//v2"] {
        let answer = asked(gateway.port, "GET", path, "");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    }
    let image = Image::random(10);
    let wire = Wire::anonymous(gateway.port);
    wire.push_image("apps/web", "latest", &image);
    let old = asked(gateway.port, "GET", "//v2/apps/web/manifests/latest", "");
    assert!(old.starts_with("HTTP/1.1 200 "), "{old}");
    let twice = asked(gateway.port, "GET", "///v2/apps/web/manifests/latest", "");
    assert!(twice.starts_with("HTTP/1.1 404 "), "{twice}");
}

#[test]
fn below_a_path_of_the_external_url_everything_that_clients_are_given_is_below_it() {
    let config = format!(
        "external_url: https://gw.example/registry/\n{}",
        usual_config("", "")
    );
    let gateway = Gateway::start(&config);
    let realm = "realm=\"https://gw.example/registry/token\"";
    let refused = asked(gateway.port, "GET", "/v2/", "");
    assert!(refused.contains(realm), "{refused}");
    let wire = Wire::basic(gateway.port, USER);
    for tag in ["a", "b"] {
        // Its locations lead below the path, as a proxy passes them on that takes nothing off.
        wire.push_image("apps/web", tag, &Image::random(10));
    }
    let location = wire.start_upload("apps/web");
    assert!(
        location.starts_with("/registry/v2/apps/web/blobs/uploads/"),
        "{location}"
    );
    let tags = wire.get("/v2/apps/web/tags/list?n=1").expect(200);
    let link = tags.header("link");
    assert!(
        link.starts_with("</registry/v2/apps/web/tags/list?"),
        "{link}"
    );
    let next = link.split(['<', '>']).nth(1).unwrap();
    assert!(wire.get(next).expect(200).json()["tags"][0] == "b");
    let token = asked(
        gateway.port,
        "GET",
        "/registry/token?service=gw.example",
        "",
    );
    assert!(
        token.starts_with("HTTP/1.1 200 ") || token.starts_with("HTTP/1.1 401 "),
        "{token}"
    );
    let outside = asked(gateway.port, "GET", "/other/v2/", "");
    assert!(outside.starts_with("HTTP/1.1 404 "), "{outside}");
}

#[test]
fn headers_of_the_operators_own_are_on_every_answer_and_options_needs_no_credential() {
    let config = format!(
        "http: {{ headers: {{ Access-Control-Allow-Origin: https://ui.example, Access-Control-Allow-Headers: [authorization, accept], X-Content-Type-Options: other }} }}\n{}",
        usual_config("", "")
    );
    let gateway = Gateway::start(&config);
    for (method, path, status) in [
        ("OPTIONS", "/v2/", 200),
        ("OPTIONS", "/v2/apps/web/manifests/latest", 200),
        ("OPTIONS", "/token", 200),
        ("GET", "/v2/", 401),
        ("GET", "/healthz", 200),
        ("GET", "/v2/apps/web/nothing", 404),
    ] {
        let answer = asked(gateway.port, method, path, "Origin: https://ui.example\r\n");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(
            answer.contains("access-control-allow-origin: https://ui.example\r\n"),
            "{answer}"
        );
        assert_eq!(
            answer.matches("access-control-allow-headers:").count(),
            2,
            "{answer}"
        );
        let kept =
            !path.starts_with("/v2") || answer.contains("x-content-type-options: nosniff\r\n");
        assert!(kept, "{answer}");
    }
}

#[test]
fn a_web_page_changes_a_registry_only_where_the_operator_lets_it() {
    let open = OPEN.replace("pull, push", "pull, push, delete");
    let open = format!("external_url: https://registry.example\n{open}");
    let gateway = Gateway::start(&open);
    let wire = Wire::anonymous(gateway.port);
    let image = Image::random(40);
    wire.push_image("apps/web", "v1", &image);
    let changes = [
        ("PUT", "/v2/apps/web/manifests/v2"),
        ("POST", "/v2/apps/web/blobs/uploads/"),
        ("DELETE", "/v2/apps/web/manifests/v1"),
    ];
    for (method, path) in changes {
        let of = |headers: &[(&str, &str)]| wire.send(method, path, headers, "");
        of(&[("origin", "http://evil.example")]).expect(403);
        of(&[("sec-fetch-site", "cross-site")]).expect(403);
        let rebound = [("host", "evil.example"), ("origin", "http://evil.example")];
        let refused = of(&rebound).has(421);
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(
            text.contains("external_url") && text.contains("hosts: [evil.example]"),
            "{text}"
        );
    }
    wire.get("/v2/apps/web/manifests/v1").expect(200);
    // A client that is no browser may use any name, and a page of the gateway's own address changes what it likes.
    wire.send("POST", changes[1].1, &[("host", "cache.svc:5000")], "")
        .expect(202);
    wire.send(
        "DELETE",
        changes[2].1,
        &[("host", "inner"), ("origin", "https://registry.example")],
        "",
    )
    .expect(202);
    let ui =
        open.clone() + "http: { headers: { Access-Control-Allow-Origin: https://ui.example } }\n";
    let gateway = Gateway::start(&ui);
    let wire = Wire::anonymous(gateway.port);
    wire.send(
        "POST",
        changes[1].1,
        &[("origin", "https://ui.example")],
        "",
    )
    .expect(202);
    wire.send(
        "POST",
        changes[1].1,
        &[("origin", "https://evil.example")],
        "",
    )
    .expect(403);
}

#[test]
fn forwarding_headers_of_a_stranger_are_warned_about_once() {
    let gateway = Gateway::usual();
    for _request in 0..3 {
        let answer = asked(
            gateway.port,
            "GET",
            "/v2/",
            "X-Forwarded-Host: evil.example\r\n",
        );
        assert!(!answer.contains("evil.example"), "{answer}");
    }
    let _last = asked(gateway.port, "GET", "/healthz", "");
    assert_eq!(gateway.log().matches("`trusted_proxies`").count(), 1);
}

#[test]
fn a_trusted_proxy_names_the_port_or_speaks_rfc_7239_where_that_is_configured() {
    let trusted = format!("trusted_proxies: [127.0.0.1/32]\n{}", usual_config("", ""));
    let gateway = Gateway::start(&trusted);
    let headers =
        "X-Forwarded-Proto: https\r\nX-Forwarded-Port: 8443\r\nForwarded: host=evil.example\r\n";
    let answer = asked(gateway.port, "GET", "/v2/", headers);
    assert!(
        answer.contains("realm=\"https://gw.example:8443/token\""),
        "{answer}"
    );
    let gateway = Gateway::start(&format!("http: {{ proxy_headers: forwarded }}\n{trusted}"));
    let headers = "X-Forwarded-Host: evil.example\r\nForwarded: for=192.0.2.1;proto=https;host=\"hub.example:8443\"\r\n";
    let answer = asked(gateway.port, "GET", "/v2/", headers);
    assert!(
        answer.contains("realm=\"https://hub.example:8443/token\""),
        "{answer}"
    );
    wait_until("the access line", Duration::from_secs(5), || {
        gateway.log().contains("client.address=192.0.2.1")
    });
}
