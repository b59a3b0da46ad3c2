//! A secret shows up nowhere: one text is planted wherever a secret can be, every way to fail is taken with the log wide open, and the text
//! is in no log line, audit line, metric, trace, answer or message of the command line.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tests::{
    Gateway, Image, Wire,
    gateway::{USER, program, usual_config},
    guests::component,
    image::MANIFEST,
    tools::{free_port, wait_until},
    wire::{http_client, runtime},
};

/// The planted text. Nothing else in the world is called that.
const CANARY: &str = "Kanarienvogel7731";

/// Every form the text may have after a careless step.
fn forms() -> Vec<String> {
    let percent: String = CANARY.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let decimal: Vec<String> = CANARY.bytes().map(|byte| byte.to_string()).collect();
    let mut forms = vec![CANARY.to_owned(), percent, hex, decimal.join(", ")];
    // In base64 a text has three looks, by where in a group of three bytes it begins.
    for before in ["", "x", "xx"] {
        let encoded = STANDARD.encode(format!("{before}{CANARY}"));
        let own = before.len().div_ceil(2) * 2 + 2..encoded.len() - 4;
        forms.push(encoded.get(own).unwrap().to_owned());
    }
    forms
}

fn check(place: &str, text: &str) {
    for form in forms() {
        let shown = text.lines().find(|line| line.contains(&form));
        let shown: Option<String> = shown.map(|line| line.chars().take(600).collect());
        assert_eq!(shown, None, "{place} shows the secret as {form:?}");
    }
}

/// An upstream that answers with the secret in every place an upstream can put it.
fn loose_upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).unwrap_or(0) > 2 {}
            let target = head.split_whitespace().nth(1).unwrap_or("/").to_owned();
            let answer = answer_of(&target, &head, port);
            // A gateway that hung up has what it wanted.
            reader.get_mut().write_all(answer.as_bytes()).ok();
        }
    });
    port
}

fn answer_of(target: &str, head: &str, port: u16) -> String {
    let has_proof = head.to_lowercase().contains("\r\nauthorization: bearer");
    let (status, headers) = if target.starts_with("/token-broken") {
        ("200 OK", String::new())
    } else if target.starts_with("/token-down") {
        ("500 Oops", String::new())
    } else if target.starts_with("/token") {
        let body = format!("{{\"token\":\"{CANARY}\"}}");
        return format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
    } else if target.contains("/basic/") {
        (
            "401 No",
            "WWW-Authenticate: Basic realm=\"x\"\r\n".to_owned(),
        )
    } else if target.contains("/bearer/") && !has_proof {
        let realm = format!("http://127.0.0.1:{port}/token?key={CANARY}");
        (
            "401 No",
            format!("WWW-Authenticate: Bearer realm=\"{realm}\",service=\"{CANARY}\"\r\n"),
        )
    } else if target.contains("/broken-token/") {
        (
            "401 No",
            format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token-broken?{CANARY}\"\r\n"
            ),
        )
    } else if target.contains("/down-token/") {
        (
            "401 No",
            format!(
                "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token-down?{CANARY}\"\r\n"
            ),
        )
    } else if target.contains("/foreign-realm/") {
        (
            "401 No",
            format!(
                "WWW-Authenticate: Bearer realm=\"https://foreign.example/token?{CANARY}\"\r\n"
            ),
        )
    } else if target.contains("/signed/") {
        (
            "307 There",
            format!("Location: http://127.0.0.1:1/blob?signature={CANARY}\r\n"),
        )
    } else if target.contains("/userinfo/") {
        (
            "307 There",
            format!("Location: http://user:{CANARY}@127.0.0.1:{port}/x\r\n"),
        )
    } else if target.contains("/odd/") {
        ("307 There", format!("Location: ftp://{CANARY}/\r\n"))
    } else if target.contains("/limited/") {
        ("429 Slow", "Retry-After: 1\r\n".to_owned())
    } else if target.contains("/garbage/") {
        (
            "200 OK",
            format!("Content-Type: {MANIFEST}\r\nDocker-Content-Digest: sha256:{CANARY}\r\n"),
        )
    } else {
        ("500 Oops", String::new())
    };
    let body = format!("{{\"{CANARY}\": ");
    format!(
        "HTTP/1.1 {status}\r\n{headers}Set-Cookie: session={CANARY}\r\nX-Debug: {CANARY}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Keeps what a collector of traces is sent, as it is.
fn trace_bin() -> (u16, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let kept = Arc::<Mutex<Vec<u8>>>::default();
    let bin = Arc::clone(&kept);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            let mut bytes = [0; 64 << 10];
            while let Ok(read @ 1..) = stream.read(&mut bytes) {
                bin.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                .ok();
        }
    });
    (port, kept)
}

/// Takes events, and keeps their requests as they are.
fn event_bin() -> (u16, Arc<Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let kept = Arc::<Mutex<String>>::default();
    let bin = Arc::clone(&kept);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut line) = (String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                head.push_str(&line);
                line.clear();
            }
            // hyper writes names in small letters.
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
            reader.read_exact(&mut body).unwrap();
            let mut bin = bin.lock().unwrap();
            *bin += &(head + &String::from_utf8(body).unwrap() + "\n");
            let told = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            reader.get_mut().write_all(told).ok();
        }
    });
    (port, kept)
}

/// A credential helper that answers as its argument says, and always says more than it should on its standard error.
const HELPER: &str = r#"cat > /dev/null
echo CANARY >&2
case "$1" in
    good) echo '{"Username":"puller","Secret":"CANARY"}' ;;
    token) echo '{"Username":"<token>","Secret":"CANARY"}' ;;
    fails) echo '{"Username":"puller","Secret":"CANARY"}'; exit 3 ;;
    lies) echo 'no credentials: CANARY' ;;
esac
"#;

/// The mirrors whose account a helper knows.
const HELPED: [&str; 4] = ["good", "token", "fails", "lies"];

/// Receivers of events that get the secret as a header and a key: one that hears, and one that is not there.
fn receivers(port: u16) -> String {
    let receiver = |name: &str, port: u16| {
        format!(
            "  - name: {name}\n    from: builtin:webhook\n    grants: {{ http: [\"http://127.0.0.1:{port}/\"], secrets: {{ token: {{ file: ./secret }} }} }}\n    config: {{ endpoints: [{{ url: \"http://127.0.0.1:{port}/\", headers: {{ Authorization: {{ secret: token }} }}, sign_with: token }}] }}\n"
        )
    };
    receiver("hears", port) + &receiver("is-deaf", 1)
}

/// Plugins that fail with the secret in their hands.
const FAILING: [(&str, &str); 4] = [
    ("traps", "do: trap"),
    ("logs", "do: secret-log"),
    ("fails", "answer: fail"),
    ("loops", "do: loop"),
];

fn config(ports: [u16; 3], failing: &[(&str, &str)]) -> String {
    let [upstream, collector, receiver] = ports;
    let mut mirrors = format!(
        "  up: {{ url: \"http://127.0.0.1:{upstream}\", credentials: {{ username: puller, password: {{ file: ./secret }} }} }}\n  closed: {{ url: \"http://127.0.0.1:1\", credentials: {{ username: puller, password: {{ file: ./secret }} }} }}\n"
    );
    for name in HELPED {
        let exec = format!("[sh, ./helper.sh, {name}]");
        mirrors += &format!(
            "  {name}: {{ url: \"http://127.0.0.1:{upstream}\", credentials: {{ exec: {exec} }} }}\n"
        );
    }
    let mut plugins = receivers(receiver);
    for (name, config) in failing {
        plugins += &format!(
            "  - name: {name}\n    from: ./hostile.wasm\n    repositories: [\"team/{name}/**\"]\n    grants: {{ kv: [granted], secrets: {{ token: {{ file: ./secret }} }} }}\n    config: {{ {config}, at: authorize, key: {{ file: ./secret }} }}\n"
        );
    }
    let may_ask =
        "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]";
    usual_config(&mirrors, &plugins).replace("        - { who: [\"user:*\"]", may_ask)
        + &format!(
            "events: {{ pulls: all }}\naudit: {{ file: ./audit.jsonl }}\nlog: {{ level: trace }}\ntelemetry: {{ otlp: {{ endpoint: \"http://127.0.0.1:{collector}\" }} }}\n"
        )
}

fn plant(folder: &Path) {
    fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    fs::write(folder.join("secret"), CANARY).unwrap();
    fs::write(folder.join("helper.sh"), HELPER.replace("CANARY", CANARY)).unwrap();
    let hash = bcrypt::hash(CANARY, 4).unwrap();
    let users = fs::read_to_string(folder.join("htpasswd")).unwrap();
    fs::write(folder.join("htpasswd"), format!("{users}carol:{hash}\n")).unwrap();
}

/// Bytes as they are; what comes back, as text.
fn raw(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is one way to refuse.
    stream.read_to_end(&mut answer).ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// Every credential that is no good, in every place it may stand.
fn bad_credentials(port: u16) -> Vec<String> {
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    let credentials = [
        basic(&format!("alice:{CANARY}")),
        basic(&format!("nobody:{CANARY}")),
        basic(CANARY),
        format!("Basic {CANARY}!"),
        format!("Bearer {CANARY}"),
        format!("Bearer eyJhbGciOiJFUzI1NiJ9.{CANARY}.{CANARY}"),
        format!("Digest username=\"x\", response=\"{CANARY}\""),
        format!("{CANARY} {CANARY}"),
        CANARY.to_owned(),
    ];
    let mut answers = Vec::new();
    let mut send = |method: &str, path: &str, headers: &[(&str, &str)], body: String| {
        let answer = Wire::anonymous(port).send(method, path, headers, body);
        answers.push(format!("{answer:?}"));
    };
    for credential in &credentials {
        for path in [
            "/v2/",
            "/v2/team/web/tags/list",
            "/token?service=x",
            "/healthz",
        ] {
            send("GET", path, &[("authorization", credential)], String::new());
        }
        let twice = [
            ("authorization", credential.as_str()),
            ("authorization", "Bearer x"),
        ];
        send("GET", "/v2/", &twice, String::new());
    }
    let others = [
        ("cookie", CANARY),
        ("proxy-authorization", CANARY),
        ("x-api-key", CANARY),
        ("x-registry-auth", CANARY),
        ("traceparent", CANARY),
        ("tracestate", CANARY),
    ];
    send("GET", "/v2/team/web/tags/list", &others, String::new());
    for path in [
        "/v2/",
        "/v2/up/odd/x/manifests/v1",
        "/token",
        "/v2/team/web/blobs/uploads/",
        "/elsewhere",
    ] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let path = format!(
                "{path}?access_token={CANARY}&_state={CANARY}&password={CANARY}&scope={CANARY}"
            );
            send(method, &path, &[], String::new());
        }
    }
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for body in [
        format!("grant_type=password&username=alice&password={CANARY}&service=x"),
        format!("grant_type=password&username=carol&password={CANARY}&service=x"),
        format!("grant_type=refresh_token&refresh_token={CANARY}&service=x"),
        format!("client_secret={CANARY}"),
        format!("{{\"{CANARY}\":"),
    ] {
        send("POST", "/token", &form, body.clone());
        let carol = basic(&format!("carol:{CANARY}"));
        let headers = [
            ("authorization", carol.as_str()),
            ("content-type", MANIFEST),
        ];
        send("PUT", "/v2/team/web/manifests/v1", &headers, body);
    }
    answers
}

/// What the domain and the plugins refuse to somebody who is known by the secret.
fn known_by_the_secret(port: u16) -> Vec<String> {
    let carol = Wire::basic(port, ("carol", CANARY));
    let mut answers = vec![format!("{:?}", carol.get("/v2/").expect(200))];
    let image = Image::random(10);
    carol.push_image("team/web", "v1", &image);
    carol.pull_image("team/web", "v1", &image);
    for name in ["traps", "logs", "fails", "loops"] {
        let answer = carol.get(&format!("/v2/team/{name}/web/manifests/v1"));
        answers.push(format!("{name}: {answer:?}"));
    }
    for kind in [
        "basic",
        "bearer",
        "broken-token",
        "down-token",
        "foreign-realm",
        "signed",
        "userinfo",
        "odd",
        "limited",
        "garbage",
        "down",
    ] {
        let asks_for_credentials = ["basic", "bearer", "down-token"].contains(&kind);
        let helped = HELPED.iter().filter(|_| asks_for_credentials);
        for mirror in ["up", "closed"].iter().chain(helped) {
            let digest = format!("sha256:{}", "ab".repeat(32));
            let base = format!("/v2/{mirror}/{kind}/x");
            for path in [
                "manifests/v1",
                &format!("blobs/{digest}"),
                "tags/list",
                &format!("referrers/{digest}"),
            ] {
                answers.push(format!("{:?}", carol.get(&format!("{base}/{path}"))));
            }
        }
    }
    // HTTP/2 has its own log lines about headers.
    let h2 = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .build()
        .unwrap();
    let asked = h2.get(format!(
        "http://127.0.0.1:{port}/v2/team/web/tags/list?key={CANARY}"
    ));
    let asked = asked
        .basic_auth("carol", Some(CANARY))
        .header("cookie", CANARY);
    let answer = runtime().block_on(async { asked.send().await });
    // Its own `Debug` shows the URL that was asked.
    answers.push(format!("{:?}", answer.unwrap().headers()));
    answers
}

/// The header that is the secret's own place has it, and nothing else of the deliveries.
fn check_events(told: &str) {
    let own = format!("authorization: {CANARY}");
    let (meant, rest): (Vec<&str>, Vec<&str>) = told.lines().partition(|line| *line == own);
    assert!(!meant.is_empty(), "{told}");
    check("an event", &rest.join("\n"));
}

/// What the admin API shows, once nothing keeps the operator out: a plugin that fails is asked about what has no repository, too.
fn told_to_the_operator(gateway: &mut Gateway, peaceful: &str) -> Vec<String> {
    gateway.write_config(peaceful);
    gateway.restart();
    let alice = Wire::basic(gateway.admin_port, USER);
    let paths = ["events", "plugins", "cache", "cache/stats", "cache/pins"];
    let answers = paths.map(|path| alice.get(&format!("/admin/v1/{path}")).expect(200));
    assert!(!answers[0].json()["events"].as_array().unwrap().is_empty());
    answers.iter().map(|answer| format!("{answer:?}")).collect()
}

#[test]
fn a_running_gateway_shows_no_secret_whatever_fails() {
    let (collector, traced) = trace_bin();
    let (receiver, told) = event_bin();
    let ports = [loose_upstream(), collector, receiver];
    let mut gateway = Gateway::start_with(&config(ports, &FAILING), plant);
    let port = gateway.port;
    let mut answers = bad_credentials(port);
    answers.extend(known_by_the_secret(port));
    let authorization = STANDARD.encode(format!("carol:{CANARY}"));
    for request in [
        format!(
            "GET http://carol:{CANARY}@127.0.0.1/v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        ),
        format!("GET /v2/ HTTP/1.1\r\nHost: carol:{CANARY}@x\r\nConnection: close\r\n\r\n"),
        format!(
            "GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {authorization}\r\nbroken header {CANARY}\r\n\r\n"
        ),
        format!("{CANARY}\r\n\r\n"),
    ] {
        answers.push(raw(port, &request));
    }
    wait_until("events of each kind", Duration::from_secs(60), || {
        let told = told.lock().unwrap();
        let kinds = ["manifest.pushed", "manifest.pulled"];
        kinds.iter().all(|kind| told.contains(kind))
    });
    let metrics = gateway.metrics();
    let admin = http_client().get(format!(
        "http://127.0.0.1:{}/readyz?{CANARY}",
        gateway.admin_port
    ));
    let admin = admin.header("authorization", format!("Bearer {CANARY}"));
    let answer = runtime().block_on(async { admin.send().await });
    answers.push(format!("{:?}", answer.unwrap().status()));
    answers.extend(told_to_the_operator(&mut gateway, &config(ports, &[])));
    gateway.terminate();
    gateway.wait();
    for answer in &answers {
        check("an answer", answer);
    }
    check("the metrics", &metrics);
    check("the log", &gateway.log());
    let audit = fs::read_to_string(gateway.folder().join("audit.jsonl")).unwrap();
    assert!(
        audit.contains("plugin failed") && audit.contains("carol"),
        "{audit}"
    );
    check("the audit", &audit);
    check_events(&told.lock().unwrap());
    let traced = traced.lock().unwrap();
    assert!(!traced.is_empty(), "nothing was traced");
    check("a trace", &String::from_utf8_lossy(&traced));
    assert!(gateway.log().contains("TRACE"), "the log was not wide open");
}

#[test]
fn the_command_line_shows_no_secret_of_a_bad_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("secret", CANARY);
    let rules = "plugins:\n  - { name: access, from: \"builtin:access\", config: { rules: [] } }\n";
    let port = free_port();
    let key = format!("-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n");
    write("key.pem", &key);
    write("broken.pem", CANARY);
    let tls = |key: &str| {
        format!(
            "listen: {{ address: \"127.0.0.1:{port}\", tls: {{ certificate: ./{key}, key: ./{key} }} }}\n{rules}"
        )
    };
    let mirror = |text: &str| format!("mirrors: {{ up: {text} }}\n{rules}");
    let cases = [
        tls("key.pem"),
        tls("broken.pem"),
        mirror(&format!("{{ url: \"https://user:{CANARY}@up.example\" }}")),
        mirror(&format!("\"https://user:{CANARY}@up.example\"")),
        mirror(&format!("{{ url: \"https://up.example\", credentials: {{ username: u, password: {CANARY} }} }}")),
        mirror(&format!("{{ url: \"https://up.example\", credentials: {{ username: u, password: {{ value: {CANARY} }} }} }}")),
        mirror(&format!("{{ url: \"https://up.example\", credentials: {{ username: u, passwort: {CANARY} }} }}")),
        format!("plugins:\n  - {{ name: people, from: \"builtin:htpasswd\", config: {{ users: \"{CANARY}\" }} }}\n"),
        "plugins:\n  - { name: people, from: \"builtin:htpasswd\", config: { users: { file: ./secret } } }\n".to_owned(),
        "plugins:\n  - { name: access, from: \"builtin:access\", config: { rules: { file: ./secret } } }\n".to_owned(),
        format!("plugins:\n  - {{ name: access, from: \"builtin:access\", grants: {{ secrets: {{ token: {CANARY} }} }} }}\n"),
        format!("telemetry: {{ otlp: {{ endpoint: \"http://user:{CANARY}@collector\" }} }}\n{rules}"),
    ];
    for (index, text) in cases.iter().enumerate() {
        // An address that no machine has: what serves all the same ends there, after everything was loaded.
        let listen = if text.contains("listen:") {
            ""
        } else {
            "listen: 203.0.113.1:5000\n"
        };
        write("gantry.yaml", &format!("{listen}{text}"));
        for command in ["check", "serve"] {
            let output = Command::new(program())
                .args([command, "gantry.yaml"])
                .current_dir(folder.path())
                .env("GANTRY_LOG__LEVEL", "trace")
                .env("GANTRY_ADMIN", "off")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            // `check` runs no plugin, and reads no certificate beyond its form.
            assert!(
                command == "check" || !output.status.success(),
                "case {index}: {said}"
            );
            check(&format!("gantry {command} of case {index}"), &said);
        }
    }
    write("gantry.yaml", rules);
    let output = Command::new(program())
        .args(["check", "gantry.yaml"])
        .current_dir(folder.path())
        .env(
            "GANTRY_MIRRORS__UP__URL",
            format!("https://u:{CANARY}@up.example"),
        )
        .env("GANTRY_LIMITS__BLOB", CANARY)
        .output()
        .unwrap();
    assert!(!output.status.success());
    check(
        "gantry check of the environment",
        &String::from_utf8_lossy(&output.stderr),
    );
}
