//! What an operator sees from outside: metrics as documented, an audit of every decision, traces when they are wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, trace::v1::Span,
};
use prost::Message as _;
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{OTHER, USER, usual_config},
    tools::{wait_until, workspace},
};

/// Name → type and labels, as ARCHITECTURE.md lists them.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = fs::read_to_string(workspace().join("ARCHITECTURE.md")).unwrap();
    let (_, section) = text.split_once("\n## Metrics\n").unwrap();
    let section = section
        .split_once("\n## ")
        .map_or(section, |(section, _)| section);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").map(str::to_owned);
        let labels = labels.filter(|label| !label.is_empty()).collect();
        let name = cells[1].trim_matches('`').to_owned();
        (name, (cells[2].to_owned(), labels))
    })
    .collect()
}

/// Name → type and labels, as the page has them.
fn on_the_page(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            current = format!("{name}{suffix}");
            found.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((_, labels)) = line.split_once('{') {
            let (labels, _) = labels.rsplit_once('}').unwrap();
            let keys = labels
                .split("\",")
                .map(|label| label.split('=').next().unwrap());
            let keys = keys.filter(|key| *key != "le").map(str::to_owned);
            found.get_mut(&current).unwrap().1.extend(keys);
        }
    }
    found
}

#[test]
fn the_documented_metrics_are_those_on_the_page_and_they_count() {
    let origin = Origin::start();
    let image = Image::random(10_000);
    origin.push("a/b", "latest", &image);
    // Always asked again, so that the cache confirms the tag.
    let mirror = origin.mirror_entry("up", ", tags: { fresh_for: 0s }");
    // Nobody listens there: what is told waits.
    let traps = "  - name: hook\n    from: builtin:webhook\n    grants: { http: [\"http://127.0.0.1:1/\"] }\n    config: { endpoints: [{ url: \"http://127.0.0.1:1/\" }] }\n  - name: traps\n    from: ./hostile.wasm\n    repositories: [\"team/traps/**\"]\n    config: { do: trap, at: authorize }\n";
    let gateway = Gateway::start_with(&usual_config(&mirror, traps), |folder| {
        fs::copy(
            tests::guests::component("hostile"),
            folder.join("hostile.wasm"),
        )
        .unwrap();
    });
    let (wire, anonymous) = (
        Wire::basic(gateway.port, USER),
        Wire::anonymous(gateway.port),
    );
    anonymous.pull_image("up/a/b", "latest", &image);
    // A reply ends before what it brought is at rest: until then a second pull joins the first one's fill.
    wait_until("both blobs at rest", Duration::from_secs(60), || {
        gateway.metric("gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"filled\"}")
            >= 2.0
    });
    anonymous.pull_image("up/a/b", "latest", &image);
    wire.push_image("team/web", "v1", &image);
    wire.get("/v2/team/traps/x/manifests/v1").expect(503);
    anonymous.get("/v2/up/a/b/manifests/absent").expect(404);
    wait_until("an attempt to deliver", Duration::from_secs(60), || {
        gateway.metric("gantry_deliveries_total{receiver=\"hook\",outcome=\"again\"}") > 0.0
    });
    // A page does not wait long for the store to count what waits.
    wait_until("a count of the outbox", Duration::from_secs(60), || {
        gateway.metrics().contains("gantry_outbox_events{")
    });
    let text = gateway.metrics();
    assert!(text.ends_with("# EOF\n"), "{text}");
    // What never happened here is not on the page.
    let rare = ["gantry_upstream_quota_remaining", "gantry_reloads_total"];
    let mut expected = documented();
    rare.iter()
        .for_each(|name| assert!(expected.remove(*name).is_some()));
    assert_eq!(on_the_page(&text), expected);
    for (sample, least) in [
        (
            "gantry_requests_total{operation=\"push-manifest\",method=\"PUT\",status=\"201\"}",
            1.0,
        ),
        (
            "gantry_cache_total{mirror=\"up\",content=\"manifest\",outcome=\"filled\"}",
            1.0,
        ),
        (
            "gantry_cache_total{mirror=\"up\",content=\"manifest\",outcome=\"revalidated\"}",
            1.0,
        ),
        (
            "gantry_cache_total{mirror=\"up\",content=\"manifest\",outcome=\"not_found\"}",
            1.0,
        ),
        (
            "gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"filled\"}",
            2.0,
        ),
        (
            "gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"hit\"}",
            2.0,
        ),
        (
            "gantry_upstream_requests_total{mirror=\"up\",kind=\"blob\",outcome=\"ok\"}",
            2.0,
        ),
        (
            "gantry_upstream_requests_total{mirror=\"up\",kind=\"manifest\",outcome=\"not_found\"}",
            1.0,
        ),
        (
            "gantry_decisions_total{plugin=\"access\",hook=\"authorize\",outcome=\"allow\",cached=\"false\"}",
            1.0,
        ),
        (
            "gantry_decisions_total{plugin=\"people\",hook=\"authenticate\",outcome=\"authenticated\",cached=\"false\"}",
            1.0,
        ),
        (
            "gantry_plugin_failures_total{plugin=\"traps\",hook=\"authorize\",kind=\"trap\"}",
            1.0,
        ),
        (
            "gantry_plugin_call_seconds_count{plugin=\"access\",hook=\"authorize\"}",
            1.0,
        ),
        ("gantry_blob_written_bytes_total", 10_000.0),
        ("gantry_commit_jobs_count", 1.0),
        ("process_resident_memory_bytes", 1e6),
        ("process_open_fds", 5.0),
    ] {
        assert!(gateway.metric(sample) >= least, "{sample} in\n{text}");
    }
    assert_eq!(origin.count("GET", &image.layers[0].digest), 1);
    assert!(!text.contains("alice") && !text.contains("a/b"), "{text}");
}

#[test]
fn the_audit_file_has_every_decision_whatever_the_log_shows() {
    let config = usual_config("", "") + "audit: { file: ./audit.jsonl }\nlog: { level: error }\n";
    let gateway = Gateway::start(&config);
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "v1", &Image::random(10));
    let other = Image::random(11);
    for blob in other.blobs() {
        wire.push_blob("apps/web", blob).expect(201);
    }
    let moved = wire.push_manifest(
        "apps/web",
        "v1",
        tests::image::MANIFEST,
        other.manifest.bytes.clone(),
    );
    assert!(moved.status.is_client_error(), "{moved:?}");
    let stranger = Wire::basic(gateway.port, (USER.0, "wrong"));
    let refused = stranger.get("/v2/apps/web/tags/list").expect(401);
    let anonymous = Wire::anonymous(gateway.port)
        .get("/v2/team/x/tags/list")
        .expect(401);
    let token = Wire::basic(gateway.port, USER)
        .get("/token?service=x&scope=repository:apps/web:pull")
        .expect(200);
    let lines = gateway.audit();
    let of = |answer: &tests::wire::Answer| {
        let id = answer.header("x-request-id");
        let lines = lines
            .iter()
            .filter(|line| line["request.id"] == id.as_str());
        lines.cloned().collect::<Vec<_>>()
    };
    for line in &lines {
        for field in [
            "timestamp",
            "level",
            "target",
            "message",
            "request.id",
            "decision",
        ] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
    }
    let ends = |answer, decision: &str, code: &str| {
        let lines = of(answer);
        let last = lines.last().unwrap();
        assert_eq!(last["decision"], decision, "{last}");
        assert_eq!(last["reason.code"], code, "{last}");
        assert_eq!(last["client.address"], "127.0.0.1", "{last}");
        last.clone()
    };
    assert_eq!(
        ends(&token, "allow", "token-issued")["principal.subject"],
        "user:alice"
    );
    ends(&anonymous, "deny", "unauthorized");
    ends(&refused, "deny", "unauthorized");
    assert_eq!(
        of(&refused)[0]["plugin.name"],
        "people",
        "{:?}",
        of(&refused)
    );
    let immutable = of(&moved);
    assert!(
        immutable
            .iter()
            .any(|line| line["plugin.name"] == "releases" && line["decision"] == "deny"),
        "{immutable:?}"
    );
    let allowed = |line: &&serde_json::Value| {
        line["operation"] == "push-manifest" && line["decision"] == "allow"
    };
    let pushed = lines.iter().find(allowed).unwrap();
    assert_eq!(pushed["repository.name"], "apps/web");
    assert_eq!(pushed["reference"], "v1");
    assert!(
        !gateway.log().contains("audit"),
        "the log shows errors only"
    );
}

#[test]
fn every_order_of_an_operator_is_an_audit_line_whatever_becomes_of_it() {
    let config = crate::reload::config("") + "audit: { file: ./audit.jsonl }\n";
    let gateway = Gateway::start(&config);
    let alice = Wire::basic(gateway.admin_port, USER);
    let bob = Wire::basic(gateway.admin_port, OTHER);
    for (method, what) in [
        ("POST", "events/replay"),
        ("POST", "events/drop"),
        ("POST", "cache/pins"),
        ("DELETE", "cache/pins"),
        ("POST", "cache/evict"),
        ("POST", "cache/warm"),
        ("POST", "reload"),
    ] {
        let path = format!("/admin/v1/{what}");
        for (wire, who, decision) in [(&alice, "user:alice", "allow"), (&bob, "user:bob", "deny")] {
            let answer = wire.send(method, &path, &[], "{}");
            assert_ne!(answer.status, 404, "{path}: {answer:?}");
            assert_eq!(
                answer.status == 403,
                decision == "deny",
                "{path}: {answer:?}"
            );
            let request = answer.header("x-request-id");
            let lines = gateway.audit();
            let mut lines = lines.iter();
            let line = lines.find(|line| line["request.id"] == request.as_str());
            let line = line.unwrap_or_else(|| panic!("{method} {path} is not in the audit"));
            assert_eq!(line["operation"], "admin", "{line}");
            assert_eq!(line["reference"], format!("{method} {path}"), "{line}");
            assert_eq!(line["decision"], decision, "{line}");
            assert_eq!(line["principal.subject"], who, "{line}");
        }
    }
}

#[test]
fn every_json_line_of_a_request_carries_its_id() {
    let config = usual_config("", "") + "log: { format: json, level: debug }\n";
    let gateway = Gateway::start(&config);
    let answer = Wire::basic(gateway.port, (USER.0, "wrong"))
        .get("/v2/")
        .expect(401);
    let id = answer.header("x-request-id");
    assert_eq!(id.len(), 32);
    wait_until("the access line", Duration::from_secs(5), || {
        gateway.log().contains("\"target\":\"access\"")
    });
    let log = gateway.log();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_request = lines
        .iter()
        .filter(|line| line["request.id"] == id.as_str());
    let messages: Vec<_> = of_request
        .map(|line| line["message"].as_str().unwrap())
        .collect();
    for message in ["request", "decision", "credential rejected", "refused"] {
        assert!(messages.contains(&message), "{message} in {messages:?}");
    }
}

/// A collector: takes OTLP over HTTP and hands on the spans.
fn collector() -> (u16, Receiver<Vec<Span>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut length = 0;
            let mut line = String::new();
            let mut first = String::new();
            while reader.read_line(&mut line).unwrap_or(0) > 2 {
                if first.is_empty() {
                    first.clone_from(&line);
                }
                let lower = line.to_lowercase();
                if let Some(value) = lower.strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            assert!(first.starts_with("POST /v1/traces HTTP/1.1"), "{first}");
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(answer).unwrap();
            let request = ExportTraceServiceRequest::decode(&*body).unwrap();
            let scopes = request
                .resource_spans
                .into_iter()
                .flat_map(|spans| spans.scope_spans);
            let spans = scopes.flat_map(|scope| scope.spans).collect();
            if sender.send(spans).is_err() {
                return;
            }
        }
    });
    (port, receiver)
}

#[test]
fn a_request_is_a_trace_with_its_steps_under_the_clients_own_span() {
    let (port, received) = collector();
    let origin = Origin::start();
    let image = Image::random(1000);
    origin.push("a/b", "latest", &image);
    let config = usual_config(&origin.mirror_entry("up", ""), "")
        + &format!("telemetry: {{ otlp: {{ endpoint: \"http://127.0.0.1:{port}\" }} }}\n");
    let mut gateway = Gateway::start(&config);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let headers = [("traceparent", parent.as_str())];
    let wire = Wire::basic(gateway.port, USER);
    let answer = wire
        .send("GET", "/v2/up/a/b/manifests/latest", &headers, "")
        .expect(200);
    let blob = format!("/v2/up/a/b/blobs/{}", image.layers[0].digest);
    let _filled = wire.send("GET", &blob, &headers, "").expect(200);
    wire.push_image("apps/web", "v1", &image);
    // The last spans are sent when it stops.
    gateway.terminate();
    gateway.wait();
    let mut spans: Vec<Span> = Vec::new();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        match received.recv_timeout(Duration::from_millis(200)) {
            Ok(more) => spans.extend(more),
            Err(_none) if spans.is_empty() => {}
            Err(_none) => break,
        }
    }
    let in_trace = |span: &&Span| hex(&span.trace_id) == trace;
    let requests: Vec<&Span> = spans
        .iter()
        .filter(in_trace)
        .filter(|span| span.name == "request")
        .collect();
    assert_eq!(requests.len(), 2, "{spans:#?}");
    for request in &requests {
        assert_eq!(hex(&request.parent_span_id), "00f067aa0ba902b7");
    }
    let attribute = |span: &Span, key: &str| {
        let found = span
            .attributes
            .iter()
            .find(|attribute| attribute.key == key);
        format!("{:?}", found.and_then(|attribute| attribute.value.clone()))
    };
    let id = answer.header("x-request-id");
    assert!(attribute(requests[0], "request.id").contains(&id));
    assert!(attribute(requests[0], "operation").contains("pull-manifest"));
    assert!(attribute(requests[0], "http.response.status_code").contains("200"));
    let named = |name: &str| {
        let named = spans.iter().filter(|span| span.name == name);
        named.collect::<Vec<_>>()
    };
    let is_child = |child: &Span, parent: &Span| child.parent_span_id == parent.span_id;
    for step in ["authenticate", "authorize", "perform"] {
        let steps = named(step);
        assert!(
            steps.iter().any(|span| is_child(span, requests[0])),
            "{step}: {spans:#?}"
        );
    }
    for (inner, outer) in [
        ("plugin", "authenticate"),
        ("plugin", "authorize"),
        ("admit", "perform"),
        ("upstream", "mirror_manifest"),
        ("upstream", "fill"),
    ] {
        let nested = named(inner)
            .iter()
            .any(|child| named(outer).iter().any(|parent| is_child(child, parent)));
        assert!(nested, "{inner} in {outer}: {spans:#?}");
    }
    assert!(!named("commit").is_empty());
    // The detached fill is a trace of its own that names the request it began for.
    let links_back = |span: &&&Span| span.links.iter().any(|link| hex(&link.trace_id) == trace);
    assert!(
        named("fill").iter().any(|span| links_back(&span)),
        "{spans:#?}"
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
