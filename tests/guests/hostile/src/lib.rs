//! A guest that does what its configuration's `do` says before it answers a hook, and answers as `answer` says. Built from wit/ and
//! nothing else, so it is also the proof that the contract is enough.
//!
//! | `do` | what happens in the hook |
//! |---|---|
//! | (none) | nothing |
//! | `loop`, `fill`, `stack`, `trap`, `exit`, `sleep` | never comes back, or not well |
//! | `memory`, `handles`, `log-flood`, `stderr-flood`, `kv-flood`, `kv-fill`, `kv-block` | takes too much, or waits |
//! | `count`, `canary` | tells whether an earlier instance left something |
//! | `http`, `http-flood` | asks each of `requests`, or asks without end |
//! | `password`, `probe`, `machine`, `reveal`, `keep` | uses an import and tells the outcome as the reason's code |
//!
//! `at` says when: `authenticate`, `current`, `authorize`, `admit`, `observe`, `configure` or `self-test`; without it in every hook. `configure` and `self-test`
//! are also made to fail by `fatal`, `warn` and `refuse-test`.

#![expect(
    clippy::disallowed_methods,
    reason = "a guest may call what the gateway may not"
)]

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "
        package hostile:guest;
        world everything {
            include gantry:plugin/revoking-authenticator-plugin@0.1.0;
            include gantry:plugin/authorizer-plugin@0.1.0;
            include gantry:plugin/admission-plugin@0.1.0;
            include gantry:plugin/events-plugin@0.1.0;
        }
    ",
    world: "hostile:guest/everything",
    generate_all,
});

use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};

use exports::gantry::plugin::{
    admission, authenticator, authorizer, events, lifecycle, principals,
};
use gantry::plugin::{clock, config, crypto, http, kv, logging, random, registry, types::*};
use serde_json::{Value, json};

struct Hostile;

export!(Hostile);

/// Set by `configure`.
static CONFIG: Mutex<Value> = Mutex::new(Value::Null);
/// One in every fresh instance.
static CALLS: AtomicU32 = AtomicU32::new(0);

fn setting(key: &str) -> Value {
    CONFIG.lock().unwrap()[key].clone()
}

fn text(key: &str) -> String {
    setting(key).as_str().unwrap_or_default().to_owned()
}

// --- what it does ---

/// Does what it was told; the returned text is what it has to tell.
fn act(what: &str) -> String {
    match what {
        "" => String::new(),
        "loop" => loop {
            std::hint::black_box(());
        },
        "fill" => {
            let mut block = vec![0_u8; 32 << 20];
            loop {
                block.fill(std::hint::black_box(7));
            }
        }
        "trap" => panic!("told to trap"),
        "stack" => deeper(1).to_string(),
        "exit" => std::process::exit(3),
        "sleep" => {
            std::thread::sleep(std::time::Duration::from_secs(3600));
            String::new()
        }
        "memory" => hog(),
        "handles" => handles(),
        "log-flood" => flood(),
        "stderr-flood" => {
            (0..10_000).for_each(|line| eprintln!("line {line} of far too many"));
            String::new()
        }
        "kv-flood" => {
            let bucket = kv::open("granted").unwrap();
            (0..10_000).for_each(|_| drop(bucket.get("key")));
            String::new()
        }
        "kv-fill" => fill_bucket(),
        "kv-block" => format!("{:?}", kv::open("granted").unwrap().get("block")),
        "http" => requests(),
        "http-flood" => {
            let request = request(&setting("request"));
            let refused =
                (0..1000).filter(|_| matches!(http::send(&request), Err(http::Error::Budget)));
            refused.count().to_string()
        }
        "count" => (CALLS.fetch_add(1, Ordering::Relaxed) + 1).to_string(),
        "canary" => canary(),
        "password" => password(),
        "probe" => probe(),
        "machine" => machine(),
        "reveal" => String::from_utf8(config::secret("token").unwrap().reveal()).unwrap(),
        "keep" => keep(),
        "jwt" => jwt(),
        "secret-log" => secret_log(),
        other => panic!("do what? {other}"),
    }
}

/// Values of the largest size under new keys, as many as one call may pass, or until the bucket refuses.
fn fill_bucket() -> String {
    let bucket = kv::open("granted").unwrap();
    let value = vec![7; 60 << 10];
    for _ in 0..15 {
        if let Err(error) = bucket.put(&hex(&random::bytes(16)), &value, None) {
            return format!("{error:?}");
        }
    }
    "not full".to_owned()
}

fn deeper(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if std::hint::black_box(depth) == 0 {
        return 0;
    }
    deeper(depth + 1) + frame[(depth % 64) as usize]
}

fn hog() -> String {
    let mut kept = Vec::new();
    loop {
        kept.push(vec![1_u8; 1 << 20]);
        std::hint::black_box(&kept);
    }
}

fn handles() -> String {
    (0..100_000).for_each(|_| std::mem::forget(kv::open("granted").unwrap()));
    String::new()
}

fn flood() -> String {
    let line = "x".repeat(1000);
    (0..1_000).for_each(|_| logging::log(logging::Level::Error, &line, &[]));
    "survived".to_owned()
}

/// Looks for what an earlier instance left in memory, then leaves it.
fn canary() -> String {
    // Built at run time, so that the pattern is not in the data segment.
    let pattern: Vec<u8> = (0..32_u8)
        .map(|byte| byte.wrapping_mul(37) ^ 0xa5)
        .collect();
    // What was left lay beyond the initial memory.
    #[cfg(target_arch = "wasm32")]
    core::arch::wasm32::memory_grow(0, 256);
    let found = scan(&pattern);
    let left: Vec<u8> = pattern.iter().copied().cycle().take(8 << 20).collect();
    std::mem::forget(std::hint::black_box(left));
    found.to_string()
}

fn scan(pattern: &[u8]) -> usize {
    #[cfg(target_arch = "wasm32")]
    {
        let length = core::arch::wasm32::memory_size(0) << 16;
        // SAFETY: all of linear memory may be read; nothing is written meanwhile.
        let memory: &[u8] =
            unsafe { std::slice::from_raw_parts(std::ptr::without_provenance(8), length - 8) };
        memory
            .windows(pattern.len())
            .filter(|window| *window == pattern)
            .count()
    }
    #[cfg(not(target_arch = "wasm32"))]
    pattern.len()
}

fn password() -> String {
    let stored = setting("stored").as_str().map(str::to_owned);
    let times = setting("times").as_u64().unwrap_or(1);
    let checks = (0..times).map(|_| {
        let checked = crypto::verify_password(stored.as_deref(), text("password").as_bytes());
        format!("{checked:?}")
    });
    checks.collect::<Vec<_>>().join(",")
}

/// Every import once, with what it answers.
fn probe() -> String {
    let policy = crypto::JwtPolicy {
        issuer: "issuer".to_owned(),
        audiences: vec!["audience".to_owned()],
        algs: vec![crypto::Alg::Es256],
        leeway_ms: 0,
        jwks: crypto::JwksSource::Url("https://issuer.example/jwks".to_owned()),
    };
    let request = http::Request {
        method: "GET".to_owned(),
        url: "http://127.0.0.1/".to_owned(),
        headers: vec![],
        body: vec![],
        timeout_ms: None,
    };
    let digest = format!("sha256:{}", "0".repeat(64));
    json!({
        "kv": format!("{:?}", kv::open("other").map(|_| ())),
        "secret": format!("{:?}", config::secret("other").map(|_| ())),
        "hmac": format!("{:?}", crypto::hmac_sha256("other", b"data")),
        "http": format!("{:?}", http::send(&request).map(|_| ())),
        "resolve-tag": format!("{:?}", registry::resolve_tag("apps/web", "v1").map(|_| ())),
        "get-manifest": format!("{:?}", registry::get_manifest("apps/web", "v1").map(|_| ())),
        "referrers": format!("{:?}", registry::list_referrers("apps/web", &digest, None).map(|_| ())),
        "open-blob": format!("{:?}", registry::open_blob("apps/web", &digest).map(|_| ())),
        "jwt": format!("{:?}", crypto::verify_jwt("a.b.c", &policy)),
        "sha256": hex(&crypto::sha256(b"abc")),
        "equal": crypto::constant_time_eq(b"a", b"a") && !crypto::constant_time_eq(b"a", b"b"),
        "random": random::bytes(16) != random::bytes(16),
        "clock": clock::now_ms(),
        "remaining": clock::deadline_remaining_ms(),
        "config": config::get(),
    })
    .to_string()
}

/// What of the machine a guest can see.
fn machine() -> String {
    json!({
        "environment": std::env::vars().count(),
        "arguments": std::env::args().count(),
        "file": std::fs::read("/etc/passwd").is_ok(),
        "directory": std::fs::read_dir("/").is_ok(),
        "write": std::fs::write("/tmp/hostile", b"x").is_ok(),
        "socket": std::net::TcpStream::connect("127.0.0.1:80").is_ok(),
        "listen": std::net::TcpListener::bind("127.0.0.1:0").is_ok(),
        "name": std::net::ToSocketAddrs::to_socket_addrs("localhost:80").is_ok(),
        "input": std::io::stdin().lines().count(),
        "clock": std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64),
    })
    .to_string()
}

/// What is granted: a bucket, a secret by reference, reads.
fn keep() -> String {
    let bucket = kv::open("granted").unwrap();
    let first = bucket.put("key", b"one", Some(60_000)).unwrap();
    let lost = bucket.compare_and_put("key", None, b"two", None).unwrap();
    let won = bucket
        .compare_and_put("key", Some(first), b"three", None)
        .unwrap();
    let value = bucket.get("key").unwrap().unwrap();
    let absent = bucket.get("absent").unwrap().is_none();
    let counted = (
        bucket.increment("count", 2, 1000),
        bucket.increment("count", 3, 1000),
    );
    let large = bucket.put("large", &vec![0; (64 << 10) + 1], None);
    let long = bucket.put(&"k".repeat(600), b"", None);
    bucket.delete("key").unwrap();
    let gone = bucket.get("key").unwrap().is_none();
    let tag = registry::resolve_tag("apps/web", "v1").unwrap().unwrap();
    let stored = registry::get_manifest("apps/web", &tag.digest).unwrap();
    let (target, document) = (stored.target, stored.document);
    let blob = registry::open_blob("apps/web", &tag.digest).unwrap();
    let part = blob.read(2, 3).unwrap();
    let beyond = blob.read(blob.size(), 10).unwrap();
    let greedy = blob.read(0, (256 << 10) + 1);
    json!({
        "lost": lost, "won": won == Some(value.version), "value": String::from_utf8(value.value).unwrap(),
        "absent": absent, "gone": gone, "counted": format!("{counted:?}"),
        "large": format!("{large:?}"), "long": format!("{long:?}"),
        "hmac": hex(&crypto::hmac_sha256("token", b"data").unwrap()),
        "referrers": registry::list_referrers("apps/web", &target.digest, None).unwrap().len(),
        "opaque": matches!(document, Document::Opaque(_)), "digests": stored.digests.len(), "part": String::from_utf8(part).unwrap(), "beyond": beyond.len(),
        "greedy": format!("{greedy:?}"), "elsewhere": format!("{:?}", registry::resolve_tag("other/web", "v1").map(|_| ())),
    })
    .to_string()
}

/// Each token of `tokens` against the policy of the configuration.
fn jwt() -> String {
    let source = |key: &str| setting(key).as_str().map(str::to_owned);
    let algs = [
        ("RS256", crypto::Alg::Rs256),
        ("ES256", crypto::Alg::Es256),
        ("HS256", crypto::Alg::Hs256),
    ];
    let policy = crypto::JwtPolicy {
        issuer: text("issuer"),
        audiences: vec![text("audience")],
        algs: algs
            .into_iter()
            .filter(|(name, _)| text("algs").contains(name))
            .map(|(_, alg)| alg)
            .collect(),
        leeway_ms: 1000,
        jwks: match (source("pem"), source("jwks-url")) {
            (Some(pem), _) => crypto::JwksSource::Pem(vec!["not a key".to_owned(), pem]),
            (None, Some(url)) => crypto::JwksSource::Url(url),
            (None, None) => crypto::JwksSource::Inline(text("jwks")),
        },
    };
    let tokens = setting("tokens");
    let answers = tokens.as_array().into_iter().flatten().map(|token| {
        match crypto::verify_jwt(token.as_str().unwrap(), &policy) {
            Ok(claims) => format!("ok {claims}"),
            Err(error) => format!("{error:?}"),
        }
    });
    answers.collect::<Vec<_>>().join("\n")
}

/// What a configured request says: a URL, or `{ method, url, headers: [[name, text or { secret }]], body, timeout }`.
fn request(written: &Value) -> http::Request {
    let text = |key: &str| written[key].as_str().map(str::to_owned);
    let headers = written["headers"].as_array().into_iter().flatten();
    let header = |pair: &Value| {
        let value = match &pair[1] {
            Value::String(text) => http::HeaderValue::Text(text.clone()),
            other => http::HeaderValue::Secret(other["secret"].as_str().unwrap().to_owned()),
        };
        (pair[0].as_str().unwrap().to_owned(), value)
    };
    http::Request {
        method: text("method").unwrap_or_else(|| "GET".to_owned()),
        url: text("url").unwrap_or_else(|| written.as_str().unwrap_or_default().to_owned()),
        headers: headers.map(header).collect(),
        body: text("body").unwrap_or_default().into_bytes(),
        timeout_ms: written["timeout"].as_u64().map(|timeout| timeout as u32),
    }
}

/// Each of `requests`, and what came of it.
fn requests() -> String {
    let all = setting("requests");
    let answers =
        all.as_array()
            .into_iter()
            .flatten()
            .map(|written| match http::send(&request(written)) {
                Ok(response) => {
                    let body = String::from_utf8_lossy(&response.body);
                    let body: String = body.chars().take(60).collect();
                    format!("{} {body}", response.status)
                }
                Err(error) => format!("{error:?}"),
            });
    answers.collect::<Vec<_>>().join("|")
}

/// Tries to get a secret into the log.
fn secret_log() -> String {
    let secret = config::secret("token").unwrap();
    logging::log(
        logging::Level::Error,
        "a line\nwith a \u{1b}[31mbreak",
        &[
            ("secret".to_owned(), format!("{secret:?}")),
            ("config".to_owned(), CONFIG.lock().unwrap().to_string()),
            ("key".to_owned(), "a\r\nb".to_owned()),
        ],
    );
    String::new()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// --- what it answers ---

fn told(code: String) -> Reason {
    Reason {
        code: "hostile".to_owned(),
        text: code,
    }
}

fn hint() -> CacheHint {
    CacheHint {
        ttl_ms: u32::MAX,
        stale_if_error_ms: u32::MAX,
        also: Vary::CLIENT_ADDR,
    }
}

fn refusal(told_text: String) -> Denial {
    Denial {
        code: DenialCode::Denied,
        reason: told(told_text),
        message: match &*text("answer") {
            "huge" => "x".repeat(3 << 20),
            // SAFETY: none. That the host does not believe it is what is tested.
            "not-text" => unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe]) },
            "long" => "é\n\u{1b}".repeat(1000),
            _ => "no\r\n".to_owned(),
        },
        detail: Some(
            if text("answer") == "long" {
                "{broken"
            } else {
                "{\"rule\":1}"
            }
            .to_owned(),
        ),
        retry_after_ms: Some(1500),
        docs_url: Some("https://policy.example/why".to_owned()),
    }
}

fn failure() -> PluginError {
    PluginError::Upstream("the directory\nis down".to_owned())
}

impl lifecycle::Guest for Hostile {
    fn configure(config: String) -> Result<(), Vec<lifecycle::ConfigIssue>> {
        *CONFIG.lock().unwrap() = serde_json::from_str(&config).unwrap();
        if text("at") == "configure" {
            act(&text("do"));
        }
        let issue = |message: &str, fatal| lifecycle::ConfigIssue {
            pointer: "/users/0".to_owned(),
            message: message.to_owned(),
            fatal,
        };
        match &*text("issue") {
            "fatal" => Err(vec![
                issue("nobody is called that", true),
                issue("and this", false),
            ]),
            "warn" => Err(vec![issue("this is odd", false)]),
            _ => Ok(()),
        }
    }

    fn config_schema() -> String {
        "{}".to_owned()
    }

    fn self_test() -> Result<(), String> {
        if text("at") == "self-test" {
            act(&text("do"));
            return Err("two and two is five".to_owned());
        }
        Ok(())
    }
}

/// Does what it was told, unless that was for another moment: `at` may name a hook, `configure` or `self-test`.
fn acted(hook: &str) -> String {
    let at = text("at");
    if at.is_empty() || at == hook {
        act(&text("do"))
    } else {
        String::new()
    }
}

impl authenticator::Guest for Hostile {
    fn authenticate(
        request: authenticator::AuthnRequest,
    ) -> Result<authenticator::Outcome, PluginError> {
        let heard = acted("authenticate");
        let user = match request.credential {
            authenticator::Credential::Basic((user, _)) => user,
            _ => "nobody".to_owned(),
        };
        let or =
            |key: &str, otherwise: String| setting(key).as_str().map_or(otherwise, str::to_owned);
        match &*text("answer") {
            "fail" => Err(failure()),
            "abstain" => Ok(authenticator::Outcome::NotMine),
            "" => Ok(authenticator::Outcome::Authenticated(
                authenticator::Identity {
                    principal: Principal {
                        id: or("id", format!("user:{user}")),
                        kind: or("kind", "user".to_owned()),
                        issuer: or("issuer", "hostile".to_owned()),
                        groups: if heard.is_empty() {
                            vec![]
                        } else {
                            vec![heard]
                        },
                        attributes: vec![("number".to_owned(), AttrValue::Number(7))],
                        expires_at: setting("expires_at").as_u64().or(Some(1)),
                    },
                    generation: text("generation"),
                    at_most: Some(request.scopes),
                    cache: hint(),
                },
            )),
            _ => Ok(authenticator::Outcome::Rejected(refusal(heard))),
        }
    }
}

impl principals::Guest for Hostile {
    fn current(_id: String) -> Result<Option<Generation>, PluginError> {
        acted("current");
        match setting("current") {
            Value::Null => Ok(None),
            Value::String(generation) => Ok(Some(generation)),
            _ => Err(failure()),
        }
    }
}

impl authorizer::Guest for Hostile {
    fn authorize(request: authorizer::AuthzRequest) -> Result<authorizer::Decision, PluginError> {
        let heard = acted("authorize");
        let every = || vec!["*".to_owned()];
        let granted = match &*text("answer") {
            "fail" => return Err(failure()),
            "abstain" | "hold" | "hold-once" => {
                return Ok(authorizer::Decision::Abstain(Some(told(heard))));
            }
            "" => request.scopes,
            "wide" => [
                request
                    .scopes
                    .iter()
                    .map(|scope| Scope {
                        actions: every(),
                        ..scope.clone()
                    })
                    .collect(),
                vec![Scope {
                    kind: "repository".to_owned(),
                    name: "secret/vault".to_owned(),
                    actions: every(),
                }],
            ]
            .concat(),
            _ => return Ok(authorizer::Decision::Deny((refusal(heard), hint()))),
        };
        Ok(authorizer::Decision::Allow(authorizer::Grant {
            granted,
            reason: told(heard),
            cache: hint(),
            obligations: vec![],
        }))
    }
}

impl admission::Guest for Hostile {
    fn admit(request: admission::AdmissionRequest) -> Result<admission::Decision, PluginError> {
        let heard = acted("admit");
        match &*text("answer") {
            "fail" => Err(failure()),
            "abstain" => Ok(admission::Decision::Abstain),
            "hold" => Ok(admission::Decision::Hold(admission::Held {
                retry_after_ms: 5000,
                reason: "being scanned".to_owned(),
            })),
            "hold-once" if kv::open("granted").unwrap().get("held").unwrap().is_none() => {
                let bucket = kv::open("granted").unwrap();
                bucket.put("held", b"once", None).unwrap();
                Ok(admission::Decision::Hold(admission::Held {
                    retry_after_ms: 200,
                    reason: "being scanned".to_owned(),
                }))
            }
            "" | "hold-once" => Ok(admission::Decision::Accept(admission::Accepted {
                cache: hint(),
                warnings: vec![heard, format!("{request:?}")],
                annotate: vec![],
                set_immutable: true,
            })),
            _ => Ok(admission::Decision::Reject(refusal(heard))),
        }
    }
}

impl events::Guest for Hostile {
    fn observe(batch: Vec<events::Event>) -> Result<Vec<events::Outcome>, PluginError> {
        let heard = acted("observe");
        let outcome = |event: &events::Event| match event.kind.as_str() {
            "manifest.pushed" => events::Outcome::Delivered,
            "tag.moved" => events::Outcome::Retry(1500),
            _ => events::Outcome::Drop(format!("{heard}{event:?}")),
        };
        let mut outcomes: Vec<_> = batch.iter().map(outcome).collect();
        match &*text("answer") {
            "fail" => return Err(failure()),
            "short" => drop(outcomes.pop()),
            "long" => outcomes.push(events::Outcome::Delivered),
            _ => {}
        }
        Ok(outcomes)
    }
}
