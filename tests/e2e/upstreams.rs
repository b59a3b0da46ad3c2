//! What upstreams do to others: nothing. What their failures show: the mirror, a kind and the request, and one line for the operator.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tests::{
    Gateway, Image, Origin, Scripted, Wire,
    gateway::{USER, usual_config},
    scripted::Reply,
    tools::{free_port, wait_until},
};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Takes connections and never answers; the port, and how many came.
fn silent() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
            held.push(stream.unwrap());
        }
    });
    (port, count)
}

#[test]
fn one_stuck_upstream_never_delays_other_repositories() {
    let (stuck, count) = silent();
    let origin = Origin::start();
    let image = Image::random(50_000);
    origin.push("a/app", "v1", &image);
    let entries = format!(
        "  stuck: {{ url: \"http://127.0.0.1:{stuck}\" }}\n{}",
        origin.mirror_entry("up", ", prefetch: true")
    );
    let config = usual_config(&entries, "").replace("\"up/**\"", "\"up/**\", \"stuck/**\"");
    let gateway = Gateway::start(&config);
    let hex = |number: usize| format!("{number:064x}");
    let mut held = Vec::new();
    for number in 0..400 {
        let path = match number % 4 {
            0 => format!("blobs/sha256:{}", hex(number)),
            1 => format!("manifests/t{number}"),
            2 => "tags/list".to_owned(),
            _ => format!("referrers/sha256:{}", hex(number)),
        };
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        let request = format!("GET /v2/stuck/a/r{number}/{path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        held.push(stream);
    }
    wait_until("the upstream is stuck", Duration::from_secs(20), || {
        count.load(Ordering::SeqCst) >= 50
    });
    let (anonymous, user) = (
        Wire::anonymous(gateway.port),
        Wire::basic(gateway.port, USER),
    );
    let began = Instant::now();
    anonymous.pull_image("up/a/app", "v1", &image);
    anonymous.get("/v2/up/a/app/tags/list").expect(200);
    let referrers = format!("/v2/up/a/app/referrers/{}", image.manifest.digest);
    anonymous.get(&referrers).expect(200);
    user.push_image("apps/web", "one", &image);
    user.pull_image("apps/web", "one", &image);
    let referrers = format!("/v2/apps/web/referrers/{}", image.manifest.digest);
    user.get(&referrers).expect(200);
    // The stuck one would take 30 s.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    drop(held);
}

#[test]
fn a_failure_of_an_upstream_shows_mirror_kind_and_request_and_its_line_names_the_key() {
    let bad = Scripted::start(|_| Reply::new(500, "secret-of-the-upstream"));
    let page = Scripted::start(|_| {
        Reply::new(404, "<html>secret-of-the-upstream</html>").with("Content-Type", "text/html")
    });
    let login =
        Scripted::start(|_| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""));
    let limit = Scripted::start(|_| Reply::new(429, "").with("Retry-After", "60"));
    let (stuck, _) = silent();
    let mut entries = String::new();
    for (name, registry) in [
        ("bad", &bad),
        ("page", &page),
        ("login", &login),
        ("limit", &limit),
    ] {
        entries.push_str(&registry.mirror_entry(name, ""));
    }
    writeln!(entries, "  timeout: {{ url: \"http://127.0.0.1:{stuck}\", limits: {{ silence_timeout: 200ms, connect_timeout: 200ms }} }}").unwrap();
    writeln!(
        entries,
        "  connect: {{ url: \"http://127.0.0.1:{}\" }}",
        free_port()
    )
    .unwrap();
    writeln!(
        entries,
        "  name: {{ url: \"http://no-such-host.invalid\" }}"
    )
    .unwrap();
    writeln!(
        entries,
        "  tls: {{ url: \"https://127.0.0.1:{}\" }}",
        bad.port
    )
    .unwrap();
    let kinds = [
        ("bad", "bad answer", 503, "url"),
        ("page", "bad answer", 503, "url"),
        ("login", "login", 403, "credentials"),
        ("limit", "limit", 429, "limits"),
        ("timeout", "timeout", 503, "limits.silence_timeout"),
        ("connect", "connect", 503, "url"),
        ("name", "name", 503, "url"),
    ];
    let patterns: Vec<String> = kinds
        .iter()
        .map(|(name, ..)| format!("\"{name}/**\""))
        .collect();
    let config = usual_config(&entries, "")
        .replace("\"up/**\"", &format!("\"tls/**\", {}", patterns.join(", ")));
    let gateway = Gateway::start(&format!("log: {{ format: json, level: info }}\n{config}"));
    let wire = Wire::anonymous(gateway.port);
    let digest = format!("sha256:{}", "ab".repeat(32));
    for (name, kind, status, key) in kinds {
        for path in [
            "manifests/v1".to_owned(),
            format!("manifests/{digest}"),
            format!("blobs/{digest}"),
            "tags/list".to_owned(),
            format!("referrers/{digest}"),
        ] {
            let what = format!("{name} {path}");
            let answer = wire.get(&format!("/v2/{name}/a/b/{path}"));
            let text = answer.json().to_string();
            // A registry that answers its referrers API with a page has none.
            assert_eq!(answer.status.as_u16(), status, "{what}: {text}");
            let detail = &answer.json()["errors"][0]["detail"];
            let id = answer.header("x-request-id");
            assert_eq!(detail["mirror"], name, "{what}: {text}");
            assert_eq!(detail["kind"], kind, "{what}: {text}");
            assert_eq!(detail["request_id"], id, "{what}");
            assert!(answer.message().contains(&id), "{text}");
            for inside in ["127.0.0.1", "no-such-host", "secret-of", "os error"] {
                assert!(!text.contains(inside), "{what}: {text}");
            }
            let lines = gateway.log();
            let lines: Vec<serde_json::Value> = lines
                .lines()
                .filter(|line| line.contains(&id))
                .filter_map(|line| serde_json::from_str(line).ok())
                .filter(|line: &serde_json::Value| line["level"] == "WARN")
                .collect();
            assert_eq!(lines.len(), 1, "{what}: {lines:?}");
            let line = lines[0].to_string();
            assert!(
                line.contains(&format!("mirrors.{name}.{key}")),
                "{what}: {line}"
            );
            assert!(line.contains(kind), "{what}: {line}");
        }
    }
    assert_eq!(
        limit.asked().len(),
        2,
        "manifests with their lists, and blobs"
    );
}

#[test]
fn tags_of_every_page_are_listed_and_stale_ones_are_marked() {
    let down = Arc::new(AtomicUsize::new(0));
    let is_down = Arc::clone(&down);
    let registry = Scripted::start(move |asked| {
        let target = &asked.target;
        if is_down.load(Ordering::SeqCst) > 0 {
            return Reply::new(503, "");
        }
        let page = target
            .split_once("next_page=")
            .map_or(0, |(_, page)| page.parse().unwrap());
        let tags: Vec<String> = (0..40)
            .map(|number| format!("\"v{page}.{number}\""))
            .collect();
        let body = format!("{{\"name\":\"a\",\"tags\":[{}]}}", tags.join(","));
        let reply = Reply::new(200, body);
        match page {
            3 => reply,
            page => {
                let next = page + 1;
                let link = format!("</v2/a/b/tags/list?next_page={next}>; rel=\"next\"");
                reply.with("Link", link)
            }
        }
    });
    let freshness = ", tags: { fresh_for: 10ms }";
    let gateway = Gateway::start(&usual_config(&registry.mirror_entry("up", freshness), ""));
    let wire = Wire::anonymous(gateway.port);
    let whole = wire.get("/v2/up/a/b/tags/list").expect(200);
    assert_eq!(whole.json()["tags"].as_array().unwrap().len(), 160);
    down.store(1, Ordering::SeqCst);
    wait_until("the list is old", Duration::from_secs(10), || {
        wire.get("/v2/up/a/b/tags/list")
            .header("warning")
            .starts_with("110")
    });
    let stale = wire.get("/v2/up/a/b/tags/list?n=100").expect(200);
    assert_eq!(stale.json()["tags"].as_array().unwrap().len(), 100);
    assert!(stale.header("link").contains("rel=\"next\""));
    wire.get("/v2/up/a/other/tags/list").expect(503);
}

#[test]
fn questions_for_what_is_not_there_end_in_429_and_what_is_there_is_served() {
    let origin = Origin::start();
    let image = Image::random(5_000);
    origin.push("a/app", "v1", &image);
    origin.push("b/app", "v1", &image);
    let config = usual_config(&origin.mirror_entry("up", ""), "");
    let config =
        format!("limits: {{ not_found_per_repository: 10, not_found_per_address: 25 }}\n{config}");
    let gateway = Gateway::start(&config);
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/app", "v1", &image);
    let hex = image.manifest.digest.split_once(':').unwrap().1.to_owned();
    for number in 0..30 {
        // Signatures of stored manifests are asked for at every pull.
        wire.get(&format!("/v2/up/a/app/manifests/sha256-{hex}.s{number}"))
            .expect(404);
    }
    let missing = |repository: &str, count: usize| {
        let statuses = (0..count).map(|number| {
            let path = format!("/v2/up/{repository}/manifests/none-{number}");
            wire.get(&path).status.as_u16()
        });
        statuses.collect::<Vec<_>>()
    };
    let statuses = missing("a/app", 12);
    assert_eq!(
        statuses.iter().filter(|status| **status == 404).count(),
        10,
        "{statuses:?}"
    );
    let refused = wire.get("/v2/up/a/app/manifests/another").expect(429);
    assert!(!refused.header("retry-after").is_empty());
    let digest = format!("sha256:{}", "ab".repeat(32));
    wire.get(&format!("/v2/up/a/app/blobs/{digest}"))
        .expect(429);
    assert_eq!(
        wire.head(&format!("/v2/up/a/app/blobs/{digest}"))
            .status
            .as_u16(),
        429
    );
    // What is here, or remembered, is answered as ever.
    wire.pull_image("up/a/app", "v1", &image);
    wire.get("/v2/up/a/app/manifests/none-0").expect(404);
    // Another repository has its own count, up to that of the address.
    wire.pull_image("up/b/app", "v1", &image);
    let statuses: Vec<u16> = ["c", "d", "e"]
        .iter()
        .flat_map(|name| missing(&format!("{name}/x"), 8))
        .collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 404).count(),
        15,
        "{statuses:?}"
    );
}

#[test]
fn referrers_of_a_mirror_come_in_pages_that_are_never_cut() {
    let registry = Scripted::start(|asked| {
        let target = &asked.target;
        if !target.contains("/referrers/") {
            return Reply::new(404, "{}");
        }
        let page = target
            .split_once("page=")
            .map_or(0, |(_, page)| page.parse().unwrap());
        let descriptor = |number: usize| {
            let digest = format!("sha256:{number:064x}");
            let annotation = "x".repeat(300_000);
            format!(
                "{{\"mediaType\":\"x/y\",\"digest\":\"{digest}\",\"size\":1,\"annotations\":{{\"a\":\"{annotation}\"}}}}"
            )
        };
        let entries: Vec<String> = (page * 10..page * 10 + 10).map(descriptor).collect();
        let body = format!(
            "{{\"schemaVersion\":2,\"manifests\":[{}]}}",
            entries.join(",")
        );
        let reply = Reply::new(200, body).with("Content-Type", OCI_INDEX);
        match page {
            2 => reply,
            page => reply.with("Link", format!("<?page={}>; rel=\"next\"", page + 1)),
        }
    });
    let gateway = Gateway::start(&usual_config(&registry.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    let subject = format!("sha256:{}", "ab".repeat(32));
    let mut path = Some(format!(
        "/v2/up/a/b/referrers/{subject}?artifactType=&n=1000"
    ));
    let (mut found, mut pages) = (0, 0);
    while let Some(next) = path {
        let answer = wire.get(&next).expect(200);
        found += answer.json()["manifests"].as_array().unwrap().len();
        pages += 1;
        let link = answer.header("link");
        path = link
            .split_once('<')
            .and_then(|(_, rest)| rest.split_once('>'))
            .map(|(path, _)| path.to_owned());
    }
    assert_eq!(found, 30);
    assert!(pages >= 3, "{pages} pages of at most 4 MiB");
}
