//! Whatever a plugin does, its request gets the configured answer in time, others go on, and the metrics and the audit name it.
//!
//! | what it does | shown by |
//! |---|---|
//! | loops, traps, exits, overflows its stack, takes all memory, floods the host with handles or calls, returns too much or no text | `each_failure_of_an_authorizer_…`, with what the next instance finds; `each_failure_of_an_admission_…` |
//! | grows its table | `a_table_that_grows_…` |
//! | floods the log | `floods_are_cut_…` |
//! | waits for a service that never answers | `a_service_that_never_answers_…` |
//! | asks where it may not, by name, address, redirect | `a_request_to_where_a_plugin_may_not_…`; a name that changes between check and dial: `gateway/src/outbound/tests.rs` |
//! | fills its bucket | `a_bucket_that_is_full_…` |
//! | is left in the middle of a call | `a_call_whose_client_left_…` |
//! | fails its self-test, imports what nobody offers, is over 32 MiB, a core module, truncated, empty, loops or refuses in `configure` | `a_component_that_cannot_work_…` |
//! | holds many places | `one_plugin_holds_at_most_half_…`, `a_barrage_…` |

use std::{
    fmt::Write as _,
    fs,
    net::TcpListener,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    Gateway, Image, Wire,
    gateway::{USER, program, usual_config},
    guests::component,
    image::MANIFEST,
    tools::{free_port, wait_until},
    wire::{Answer, runtime},
};

/// How long a call of each hostile binding may take.
const DEADLINE: Duration = Duration::from_millis(500);

/// What a binding does, and how the host calls that.
const FAILURES: [(&str, &str); 13] = [
    ("do: loop", "deadline"),
    ("do: fill", "deadline"),
    ("do: sleep", "deadline"),
    ("do: trap", "trap"),
    ("do: exit", "trap"),
    ("do: stack", "trap"),
    ("do: memory", "memory"),
    ("do: handles", "host_quota"),
    ("do: kv-flood", "host_quota"),
    ("answer: huge", "host_quota"),
    ("answer: not-text", "contract"),
    ("answer: fail", "plugin_error"),
    ("do: nonsense", "trap"),
];

/// The limits of a plugin that fails so. Only one that must meet its deadline has a short one: another might get no processor for so long.
fn limits_for(kind: &str) -> &'static str {
    match kind {
        "deadline" => "cpu: 100ms, deadline: 500ms",
        _ => "cpu: 2s, deadline: 5s",
    }
}

fn plugin(name: &str, repositories: &str, limits: &str, config: &str) -> String {
    format!(
        "  - name: {name}\n    from: ./hostile.wasm\n    repositories: [\"{repositories}\"]\n    limits: {{ {limits} }}\n    grants: {{ kv: [granted] }}\n    config: {{ {config} }}\n"
    )
}

fn start(plugins: &str) -> Gateway {
    let config = usual_config("", plugins) + "audit: { file: ./audit.jsonl }\n";
    Gateway::start_with(&config, |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    })
}

/// The audit lines of one request, by the id that its answer carries.
fn lines_of(gateway: &Gateway, answer: &Answer) -> Vec<Value> {
    let request = answer.header("x-request-id");
    let lines = gateway.audit().into_iter();
    lines
        .filter(|line| line["request.id"] == request.as_str())
        .collect()
}

/// A 503 in time that tells the client nothing, and tells the operator everything.
fn fails_as(gateway: &Gateway, name: &str, hook: &str, kind: &str, ask: impl Fn() -> Answer) {
    let began = Instant::now();
    let answer = ask().expect(503);
    let took = began.elapsed();
    assert!(took < DEADLINE * 10, "{name}: {took:?}");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(!body.contains(name) && !body.contains("wasm"), "{body}");
    let request = answer.header("x-request-id");
    assert!(body.contains(&request), "{body} has no {request}");
    let lines = lines_of(gateway, &answer);
    let failed = |line: &&Value| line["plugin.name"] == name && line["failure"] == kind;
    assert!(lines.iter().any(|line| failed(&line)), "{name}: {lines:#?}");
    let sample = format!(
        "gantry_plugin_failures_total{{plugin=\"{name}\",hook=\"{hook}\",kind=\"{kind}\"}}"
    );
    assert!(gateway.metric(&sample) >= 1.0, "{sample}");
}

#[test]
fn each_failure_of_an_authorizer_is_503_in_time_and_named() {
    let mut plugins = String::new();
    for (index, (what, kind)) in FAILURES.iter().enumerate() {
        let config = format!("{what}, at: authorize");
        plugins += &plugin(
            &format!("bad{index}"),
            &format!("team/{index}/**"),
            limits_for(kind),
            &config,
        );
    }
    plugins += &plugin(
        "left",
        "team/left/**",
        "cpu: 2s, deadline: 10s",
        "do: canary, answer: deny",
    );
    plugins += &plugin(
        "again",
        "team/again/**",
        "cpu: 2s, deadline: 10s",
        "do: count, answer: deny",
    );
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    for (index, (what, kind)) in FAILURES.iter().enumerate() {
        let name = format!("bad{index}");
        let path = format!("/v2/team/{index}/web/manifests/v1");
        println!("{name}: {what}");
        fails_as(&gateway, &name, "authorize", kind, || wire.get(&path));
        // A fresh instance on the slot that was just freed finds nothing: only the pattern it looks for, with perhaps a copy of it on
        // the stack; what would have been left are 262,144.
        for (binding, most) in [("left", 4), ("again", 1)] {
            let answer = wire.get(&format!("/v2/team/{binding}/web/manifests/t{index}"));
            let lines = lines_of(&gateway, &answer.expect(403));
            let told = lines.last().unwrap()["reason.text"].as_str().unwrap();
            let found: usize = told.parse().unwrap();
            assert!(found <= most, "{found} after {what}");
        }
        // The failure was of this request; the binding is asked again.
        fails_as(&gateway, &name, "authorize", kind, || wire.get(&path));
    }
    wire.push_image("team/fine/web", "latest", &Image::random(10));
}

/// An authorizer whose table grows without end. No compiler writes that, so this is the core module itself.
const GROWING_TABLE: &str = r#"(module
  (table $table 1 funcref)
  (memory (export "memory") 4)
  (data (i32.const 64) "\80\00\00\00\02\00\00\00")
  (data (i32.const 128) "{}")
  (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 4096))
  (func (export "gantry:plugin/lifecycle@0.1.0#configure") (param i32 i32) (result i32) (i32.const 0))
  (func (export "gantry:plugin/lifecycle@0.1.0#config-schema") (result i32) (i32.const 64))
  (func (export "gantry:plugin/lifecycle@0.1.0#self-test") (result i32) (i32.const 0))
  (func (export "gantry:plugin/authorizer@0.1.0#authorize") (param i32) (result i32)
    (loop $more
      (drop (table.grow $table (ref.null func) (i32.const 1000)))
      (br $more))
    (i32.const 0)))"#;

/// The component of a core module in the text format, made as an author would.
fn component_of(text: &str, hook: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (module, made) = (folder.path().join("m.wasm"), folder.path().join("p.wasm"));
    fs::write(&module, wat::parse_str(text).unwrap()).unwrap();
    let output = Command::new(program())
        .args(["plugin", "build", "--hook", hook, "--output"])
        .args([&made, &module])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    fs::read(&made).unwrap()
}

#[test]
fn a_table_that_grows_without_end_is_503_in_time_and_named() {
    let limits = "cpu: 400ms, deadline: 500ms";
    let plugins = plugin("grows", "team/grows/**", limits, "")
        .replace("./hostile.wasm", "./grows.wasm")
        .replace("    grants: { kv: [granted] }\n", "");
    let config = usual_config("", &plugins) + "audit: { file: ./audit.jsonl }\n";
    let gateway = Gateway::start_with(&config, |folder| {
        let component = component_of(GROWING_TABLE, "authorizer");
        fs::write(folder.join("grows.wasm"), component).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    for _round in 0..2 {
        fails_as(&gateway, "grows", "authorize", "memory", || {
            wire.get("/v2/team/grows/web/manifests/v1")
        });
    }
    wire.push_image("team/fine/web", "latest", &Image::random(10));
}

#[test]
fn each_failure_of_an_admission_is_503_and_nothing_is_visible() {
    let mut plugins = String::new();
    for (index, (what, kind)) in FAILURES.iter().enumerate() {
        // `answer` is for every hook, and as an authorizer it would fail first.
        if what.starts_with("do:") {
            let config = format!("{what}, at: admit");
            plugins += &plugin(
                &format!("bad{index}"),
                &format!("team/{index}/**"),
                limits_for(kind),
                &config,
            );
        }
    }
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(10);
    for (index, (what, kind)) in FAILURES.iter().enumerate() {
        if !what.starts_with("do:") {
            continue;
        }
        println!("{what}");
        let repository = format!("team/{index}/web");
        for blob in image.blobs() {
            wire.push_blob(&repository, blob).expect(201);
        }
        fails_as(&gateway, &format!("bad{index}"), "admit", kind, || {
            wire.push_manifest(&repository, "v1", MANIFEST, image.manifest.bytes.clone())
        });
        wire.get(&format!("/v2/{repository}/manifests/v1"))
            .expect(404);
    }
}

#[test]
fn floods_are_cut_and_the_call_answers() {
    let mut plugins = String::new();
    for what in ["log-flood", "stderr-flood"] {
        let config = format!("do: {what}, at: authorize, answer: deny");
        plugins += &plugin(
            what,
            &format!("team/{what}/**"),
            "cpu: 2s, deadline: 10s",
            &config,
        );
    }
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    for what in ["log-flood", "stderr-flood"] {
        let before = gateway.log().len();
        wire.get(&format!("/v2/team/{what}/web/manifests/v1"))
            .expect(403);
        let grew = gateway.log().len() - before;
        assert!(grew < 64 << 10, "{what}: {grew} bytes of log");
    }
}

/// A service that takes connections and says nothing, and how many came.
fn silent_service() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let came = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&came);
    std::thread::spawn(move || {
        // Held, so that they stay open.
        let _held: Vec<_> = listener
            .incoming()
            .inspect(|_| {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .collect();
    });
    (port, came)
}

/// A binding that asks other services, with what it is granted.
fn asking(name: &str, limits: &str, granted: &str, requests: &str) -> String {
    let config = format!("do: http, at: authorize, answer: deny, requests: [{requests}]");
    let plugin = plugin(name, &format!("team/{name}/**"), limits, &config);
    plugin.replace("kv: [granted]", &format!("http: [\"{granted}\"]"))
}

#[test]
fn a_service_that_never_answers_is_503_in_time_and_named() {
    let (port, came) = silent_service();
    let url = format!("http://127.0.0.1:{port}/");
    let requests = format!("\"{url}\"");
    let limits = "cpu: 100ms, deadline: 500ms";
    let plugins = asking("waits", limits, &url, &requests)
        + &plugin("next", "team/next/**", limits, "do: count, answer: deny");
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    for number in 1..=3 {
        fails_as(&gateway, "waits", "authorize", "deadline", || {
            wire.get("/v2/team/waits/web/manifests/v1")
        });
        assert_eq!(came.load(Ordering::SeqCst), number, "each call asked once");
        let answer = wire.get(&format!("/v2/team/next/web/manifests/t{number}"));
        let lines = lines_of(&gateway, &answer.expect(403));
        assert_eq!(lines.last().unwrap()["reason.text"], "1");
    }
    wait_until("the calls to end", Duration::from_secs(10), || {
        gateway.metric("gantry_plugin_instances") == 0.0
    });
}

#[test]
fn a_request_to_where_a_plugin_may_not_never_arrives_and_the_audit_has_its_answer() {
    let (port, came) = silent_service();
    let requests = [
        format!("http://127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
        format!("http://2130706433:{port}/"),
        "file:///etc/passwd".to_owned(),
    ];
    let quoted: Vec<String> = requests.iter().map(|url| format!("\"{url}\"")).collect();
    let limits = "cpu: 2s, deadline: 10s";
    let plugins = asking(
        "strays",
        limits,
        "https://api.example.com/",
        &quoted.join(", "),
    );
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    let answer = wire.get("/v2/team/strays/web/manifests/v1");
    let lines = lines_of(&gateway, &answer.expect(403));
    let line = lines.last().unwrap();
    assert_eq!(line["plugin.name"], "strays", "{line}");
    let told = line["reason.text"].as_str().unwrap();
    let answers: Vec<&str> = told.split('|').collect();
    assert_eq!(answers.len(), requests.len(), "{told}");
    assert!(answers.iter().all(|it| it.starts_with("Error::")), "{told}");
    let denied = "gantry_decisions_total{plugin=\"strays\",hook=\"authorize\",outcome=\"deny\",cached=\"false\"}";
    assert!(gateway.metric(denied) >= 1.0, "{}", gateway.metrics());
    assert_eq!(came.load(Ordering::SeqCst), 0);
}

#[test]
fn a_bucket_that_is_full_refuses_and_other_buckets_go_on() {
    let fill = "do: kv-fill, at: authorize, answer: deny";
    let limits = "cpu: 5s, deadline: 20s";
    let plugins = plugin("greedy", "team/greedy/**", limits, fill)
        + &plugin("other", "team/other/**", limits, fill);
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    let mut asked = 0;
    let mut tell = |binding: &str| {
        asked += 1;
        let answer = wire.get(&format!("/v2/team/{binding}/web/manifests/t{asked}"));
        let lines = lines_of(&gateway, &answer.expect(403));
        lines.last().unwrap()["reason.text"].clone()
    };
    // 16 MiB in pieces of 900 KiB.
    let full = (0..30).any(|_| tell("greedy").as_str().unwrap().contains("Quota"));
    assert!(full, "the bucket never was full");
    assert_eq!(tell("other"), "not full");
}

#[test]
fn a_barrage_on_a_looping_plugin_leaves_others_their_turn_and_at_most_half_of_the_pool() {
    let plugins = plugin(
        "loops",
        "team/loops/**",
        "cpu: 200ms, deadline: 2s, concurrency: 10000",
        "do: loop, at: authorize",
    ) + &plugin(
        "sleeps",
        "team/sleeps/**",
        "cpu: 200ms, deadline: 2s, concurrency: 10000",
        "do: sleep, at: authorize",
    );
    let gateway = start(&plugins);
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("team/fine/web", "latest", &Image::random(10));
    let over = Arc::new(AtomicBool::new(false));
    let barrage: Vec<_> = (0..400)
        .map(|number| {
            let (wire, over) = (wire.clone(), Arc::clone(&over));
            runtime().spawn(async move {
                let kind = if number % 8 == 0 { "loops" } else { "sleeps" };
                let path = format!("/v2/team/{kind}/web/manifests/t{number}");
                let mut worst = 503;
                while !over.load(Ordering::Relaxed) {
                    let answer = wire.request("GET", &path, &[]).send().await.unwrap();
                    worst = worst.min(answer.status().as_u16());
                }
                worst
            })
        })
        .collect();
    wait_until("the barrage", Duration::from_secs(20), || {
        gateway.metric("gantry_plugin_instances") >= 100.0
    });
    let mut most: f64 = 0.0;
    for number in 0..20 {
        let began = Instant::now();
        // Each tag is asked about for the first time: nothing comes from the cache of decisions.
        wire.get(&format!("/v2/team/fine/web/manifests/t{number}"))
            .expect(404);
        wire.get("/v2/team/fine/web/manifests/latest").expect(200);
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{:?}",
            began.elapsed()
        );
        most = most.max(gateway.metric("gantry_plugin_instances"));
    }
    over.store(true, Ordering::Relaxed);
    for asked in barrage {
        assert_eq!(runtime().block_on(asked).unwrap(), 503);
    }
    let pool = gateway.metric("gantry_plugin_instances_max");
    println!("{most} of {pool} instances");
    assert!(most <= pool, "{most} of {pool}");
    wait_until("the pool to be free", Duration::from_secs(10), || {
        gateway.metric("gantry_plugin_instances") == 0.0
    });
}

#[test]
fn one_plugin_holds_at_most_half_of_the_pool() {
    let gateway = start(&plugin(
        "sleeps",
        "team/sleeps/**",
        "cpu: 200ms, deadline: 4s, concurrency: 10000",
        "do: sleep, at: authorize",
    ));
    let wire = Wire::basic(gateway.port, USER);
    let asked: Vec<_> = (0..200)
        .map(|number| {
            let path = format!("/v2/team/sleeps/web/manifests/t{number}");
            let request = wire.request("GET", &path, &[]);
            runtime().spawn(async move { request.send().await.unwrap().status().as_u16() })
        })
        .collect();
    let half = gateway.metric("gantry_plugin_instances_max") / 2.0;
    wait_until("half of the pool", Duration::from_secs(20), || {
        gateway.metric("gantry_plugin_instances") >= half
    });
    // Besides it there are, for moments, instances of the plugin that is asked before it.
    let mut least = f64::MAX;
    for _ in 0..20 {
        least = least.min(gateway.metric("gantry_plugin_instances"));
    }
    assert_eq!(least, half);
    for asked in asked {
        assert_eq!(runtime().block_on(asked).unwrap(), 503);
    }
}

#[test]
fn a_call_whose_client_left_is_ended_and_the_binding_works_again() {
    let gateway = start(&plugin(
        "sleeps",
        "team/sleeps/**",
        "cpu: 200ms, deadline: 5s",
        "do: sleep, at: authorize",
    ));
    let wire = Wire::basic(gateway.port, USER);
    for number in 0..20 {
        let path = format!("/v2/team/sleeps/web/manifests/t{number}");
        let asked = wire
            .request("GET", &path, &[])
            .timeout(Duration::from_millis(100));
        assert!(runtime().block_on(async { asked.send().await }).is_err());
    }
    wait_until("the calls to end", Duration::from_secs(3), || {
        gateway.metric("gantry_plugin_instances") == 0.0
    });
    let dropped = "gantry_decisions_total{plugin=\"sleeps\",hook=\"authorize\",outcome=\"dropped\",cached=\"false\"}";
    assert!(gateway.metric(dropped) >= 1.0);
    wire.get("/v2/team/sleeps/web/manifests/v1").expect(503);
    wire.push_image("team/web", "latest", &Image::random(10));
}

/// Starts a gateway that must refuse to; what it says.
fn refuses_to_start(component: &[u8], config: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("bad.wasm"), component).unwrap();
    let mut text = String::new();
    writeln!(text, "listen: 127.0.0.1:{}\nadmin: off", free_port()).unwrap();
    writeln!(text, "storage: {{ blobs: {{ filesystem: ./data }} }}").unwrap();
    writeln!(
        text,
        "plugins:\n  - name: bad-one\n    from: ./bad.wasm\n    config: {{ {config} }}"
    )
    .unwrap();
    fs::write(folder.path().join("gantry.yaml"), text).unwrap();
    let output = Command::new(program())
        .args(["serve", "gantry.yaml"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("bad-one"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_component_that_cannot_work_keeps_the_gateway_from_starting_with_a_sentence() {
    let good = fs::read(component("hostile")).unwrap();
    let core_module = b"\0asm\x01\0\0\0";
    let mut forbidden = good.clone();
    // Same length, so that the component stays whole: an import nobody offers.
    let (from, to) = (b"gantry:plugin/kv@", b"gantry:plugin/fs@");
    for start in 0..forbidden.len() - from.len() {
        if &forbidden[start..start + from.len()] == from {
            forbidden[start..start + from.len()].copy_from_slice(to);
        }
    }
    let oversize = vec![0; (32 << 20) + 1];
    for (what, bytes, config, says) in [
        ("a core module", &core_module[..], "", "component"),
        ("no bytes", &b""[..], "", "is empty"),
        ("truncated", &good[..good.len() / 2], "", "component"),
        ("a forbidden import", &forbidden, "", "gantry:plugin/fs"),
        ("over 32 MiB", &oversize, "", "32"),
        (
            "a failing self-test",
            &good,
            "at: self-test",
            "two and two is five",
        ),
        (
            "a loop in configure",
            &good,
            "do: loop, at: configure",
            "comput",
        ),
        (
            "a refused configuration",
            &good,
            "issue: fatal",
            "nobody is called that",
        ),
    ] {
        let said = refuses_to_start(bytes, config);
        println!("{what}: {said}");
        assert!(said.contains(says), "{what}: {said}");
    }
}
