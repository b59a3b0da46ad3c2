//! What was given out ends: with the principal, with its secret, with the credential it was got by; and a failure ends nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::StreamExt as _;
use serde_json::Value;
use tests::{
    Gateway, Wire,
    gateway::{OTHER, USER, program, usual_config},
    guests::component,
    image::Content,
    tools::wait_until,
    wire::{runtime, with_query},
};

/// Five seconds are promised; a machine that is busy with other tests takes longer. Without the promise it is half a minute, or never.
const PATIENCE: Duration = Duration::from_secs(12);
const PUSH: [&str; 1] = ["repository:apps/web:pull,push"];

/// `name:hash`, at the cheapest cost.
fn line((name, password): (&str, &str)) -> String {
    format!("{name}:{}\n", bcrypt::hash(password, 4).unwrap())
}

/// The users of a gateway without alice: a hash that is made anew is another secret, also of the same password.
fn without_alice(gateway: &Gateway) -> String {
    let users = fs::read_to_string(gateway.folder().join("htpasswd")).unwrap();
    let others = users.lines().filter(|line| !line.starts_with("alice:"));
    others.flat_map(|line| [line, "\n"]).collect()
}

/// A request on a connection of its own, whose head was sent.
fn begin(gateway: &Gateway, token: &str, method: &str, path: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let host = gateway.host();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
    )
    .unwrap();
    stream
}

/// Takes a response slowly until it ends or `enough` bytes are there; how many came.
#[expect(
    clippy::disallowed_methods,
    reason = "a client that takes a response slowly"
)]
fn take_slowly(stream: &mut TcpStream, enough: usize) -> usize {
    let mut piece = vec![0; 64 << 10];
    let mut taken = 0;
    while taken < enough {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(count) => taken += count,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    taken
}

fn claims(token: &str) -> Value {
    let middle = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle).unwrap()).unwrap()
}

/// How a principal's end is told to the gateway.
type Revoke<'a> = &'a dyn Fn(&Gateway);

/// Alice has a token, a download and an upload; then she is revoked.
fn ends_everything(gateway: &Gateway, revoke: Revoke<'_>) {
    let (alice, bob) = (
        Wire::basic(gateway.port, USER),
        Wire::basic(gateway.port, OTHER),
    );
    let layer = Content::random(96 << 20);
    alice.push_blob("apps/web", &layer).expect(201);
    let token = alice.token(&PUSH);
    let bearer = Wire::bearer(gateway.port, &token);
    let path = format!("/v2/apps/web/blobs/{}", layer.digest);
    let mut download = begin(gateway, &token, "GET", &path, "");
    let mut others = begin(gateway, &bob.token(&PUSH), "GET", &path, "");
    let location = bearer.start_upload("apps/web");
    let mut upload = begin(
        gateway,
        &token,
        "PATCH",
        &location,
        "Content-Length: 1000000\r\n",
    );
    upload.write_all(&[0; 1000]).unwrap();
    assert!(take_slowly(&mut download, 64 << 10) >= 64 << 10);
    let before = take_slowly(&mut others, 64 << 10);

    revoke(gateway);
    let began = Instant::now();
    let watch = std::thread::spawn(move || {
        let taken = take_slowly(&mut download, usize::MAX);
        (taken, began.elapsed())
    });
    let mut head = [0; 12];
    upload.set_read_timeout(Some(PATIENCE)).unwrap();
    upload.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 401");
    let (taken, ended) = watch.join().unwrap();
    // What the kernel had taken over comes even after the connection's end.
    assert!(
        ended < PATIENCE && taken < 64 << 20,
        "{taken} bytes, {ended:?}"
    );
    bearer.get("/v2/apps/web/tags/list").expect(401);
    bearer.get("/token?service=x").expect(401);
    // Nobody else loses anything.
    let rest = take_slowly_fast(&mut others);
    assert!(before + rest >= 96 << 20, "{before} + {rest}");
}

/// Takes all that is left.
fn take_slowly_fast(stream: &mut TcpStream) -> usize {
    let mut taken = 0;
    let mut piece = vec![0; 1 << 20];
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    while let Ok(count) = stream.read(&mut piece) {
        if count == 0 {
            break;
        }
        taken += count;
    }
    taken
}

#[test]
fn a_deleted_user_loses_token_download_and_upload_within_five_seconds() {
    let gateway = Gateway::usual();
    ends_everything(&gateway, &|gateway| {
        fs::write(gateway.folder().join("htpasswd"), without_alice(gateway)).unwrap();
    });
    Wire::basic(gateway.port, USER).get("/v2/").expect(401);
}

/// Takes a body until it ends, slowly until one has broken off; how much came, and whether it broke off.
async fn stream_slowly(response: reqwest::Response, broken: &AtomicBool) -> (usize, bool) {
    let mut pieces = response.bytes_stream();
    let mut taken = 0;
    while let Some(piece) = pieces.next().await {
        let Ok(piece) = piece else {
            broken.store(true, Ordering::Relaxed);
            return (taken, true);
        };
        taken += piece.len();
        if !broken.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    (taken, false)
}

#[test]
fn a_deleted_user_loses_a_stream_and_others_keep_theirs_on_the_same_connection() {
    let gateway = Gateway::usual();
    let (alice, bob) = (
        Wire::basic(gateway.port, USER),
        Wire::basic(gateway.port, OTHER),
    );
    let layer = Content::random(48 << 20);
    alice.push_blob("apps/web", &layer).expect(201);
    let tokens = [alice.token(&PUSH), bob.token(&PUSH)];
    let url = format!(
        "http://127.0.0.1:{}/v2/apps/web/blobs/{}",
        gateway.port, layer.digest
    );
    let (lost, kept) = runtime().block_on(async {
        let client = reqwest::Client::builder()
            .no_proxy()
            .http2_prior_knowledge()
            .build()
            .unwrap();
        let get = |token: &String| client.get(&url).bearer_auth(token).send();
        let (lost, kept) = (
            get(&tokens[0]).await.unwrap(),
            get(&tokens[1]).await.unwrap(),
        );
        assert_eq!((lost.status().as_u16(), kept.status().as_u16()), (200, 200));
        fs::write(gateway.folder().join("htpasswd"), without_alice(&gateway)).unwrap();
        let broken = AtomicBool::new(false);
        tokio::join!(stream_slowly(lost, &broken), stream_slowly(kept, &broken))
    });
    assert!(lost.1 && lost.0 < 48 << 20, "{lost:?}");
    assert_eq!(kept, (48 << 20, false));
}

#[test]
fn a_new_password_ends_what_the_old_one_proved_also_where_no_notice_tells_of_the_file() {
    let gateway = Gateway::start_with(&usual_config("", ""), |folder| {
        // Written by this name, the file changes without a notice in the folder that is watched.
        fs::create_dir(folder.join("elsewhere")).unwrap();
        fs::hard_link(folder.join("htpasswd"), folder.join("elsewhere/file")).unwrap();
    });
    let session = Wire::basic(gateway.port, USER).start_upload("apps/web");
    ends_everything(&gateway, &|gateway| {
        let text = without_alice(gateway) + &line((USER.0, "another"));
        fs::write(gateway.folder().join("elsewhere/file"), text).unwrap();
    });
    Wire::basic(gateway.port, USER).get("/v2/").expect(401);
    // The upload is the principal's, whichever of its tokens goes on with it.
    let token = Wire::basic(gateway.port, (USER.0, "another")).token(&PUSH);
    let content = Content::random(1000);
    let bearer = Wire::bearer(gateway.port, &token);
    bearer
        .send("PATCH", &session, &[], content.bytes.clone())
        .expect(202);
    let other = Wire::basic(gateway.port, OTHER);
    other.send("PATCH", &session, &[], "x").expect(404);
    let end = with_query(&session, &format!("digest={}", content.digest));
    Wire::basic(gateway.port, (USER.0, "another"))
        .send("PUT", &end, &[], "")
        .expect(201);
}

#[test]
fn an_operator_revokes_what_was_proved_until_now_and_a_good_password_proves_it_anew() {
    let config = usual_config("", "").replace(
        "      rules:\n",
        "      rules:\n        - { who: [\"user:bob\"], may: [admin], what: [\"**\"] }\n",
    );
    let mut gateway = Gateway::start(&config);
    let old = Wire::basic(gateway.port, USER).token(&PUSH);
    ends_everything(&gateway, &|gateway| {
        let admin = format!("http://127.0.0.1:{}", gateway.admin_port);
        let password = gateway.folder().join("password");
        fs::write(&password, OTHER.1).unwrap();
        let revoked = Command::new(program())
            .args(["revoke", "user:alice", "--admin", &admin, "--user", OTHER.0])
            .arg("--password-file")
            .arg(&password)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&revoked.stdout);
        assert!(
            revoked.status.success() && said.contains("user:alice"),
            "{revoked:?}"
        );
    });
    let new = Wire::basic(gateway.port, USER).token(&PUSH);
    gateway.restart();
    for (token, status) in [(&old, 401), (&new, 200)] {
        drop(Wire::bearer(gateway.port, token).get("/v2/").has(status));
    }
}

#[test]
fn a_token_got_with_a_token_ends_with_it() {
    let gateway = Gateway::usual();
    let first = Wire::basic(gateway.port, USER).token(&PUSH);
    let (mut token, ends) = (first.clone(), claims(&first)["exp"].as_u64().unwrap());
    for _ in 0..2 {
        let issued = claims(&token)["iat"].as_u64().unwrap();
        let mut answer = Value::Null;
        wait_until("another second", Duration::from_secs(10), || {
            let query = "/token?service=x&scope=repository:apps/web:pull";
            answer = Wire::bearer(gateway.port, &token)
                .get(query)
                .expect(200)
                .json();
            claims(answer["token"].as_str().unwrap())["iat"]
                .as_u64()
                .unwrap()
                > issued
        });
        token = answer["token"].as_str().unwrap().to_owned();
        let got = claims(&token);
        assert_eq!(got["exp"], ends);
        let left = ends - got["iat"].as_u64().unwrap();
        assert_eq!(answer["expires_in"], left);
        assert_eq!(got["gantry"]["proved"], claims(&first)["gantry"]["proved"]);
    }
    // And holds no more.
    let wider = Wire::bearer(gateway.port, &token)
        .get("/token?service=x&scope=repository:apps/web:pull,push")
        .expect(200);
    assert_eq!(wider.json()["scope"], "repository:apps/web:pull");
}

/// The usual gateway with an authenticator that answers about its principals what `current` says.
fn with_odd(current: &str) -> String {
    usual_config(
        "",
        &format!(
            "  - name: odd\n    from: ./hostile.wasm\n    ids: [\"odd:*\"]\n    changes: [mount]\n    repositories: [none]\n    config: {{ id: \"odd:one\", generation: \"7\", expires_at: 9999999999999, current: {current} }}\n"
        ),
    )
}

fn reload(gateway: &Gateway, config: &str) {
    let number = |gateway: &Gateway| {
        gateway.metric("gantry_reloads_total{trigger=\"signal\",outcome=\"taken\"}")
    };
    let before = number(gateway);
    gateway.write_config(config);
    gateway.signal("HUP");
    wait_until("the reload", Duration::from_secs(60), || {
        number(gateway) > before
    });
}

#[test]
fn a_principal_that_cannot_be_asked_about_is_503_and_one_that_is_gone_or_another_is_401() {
    let gateway = Gateway::start_with(&with_odd("\"7\""), |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    });
    let stranger = Wire::basic(gateway.port, ("stranger", "x"));
    let token = stranger.token(&[]);
    let bearer = Wire::bearer(gateway.port, &token);
    bearer.get("/v2/").expect(200);
    for (current, status) in [
        ("[]", 503),
        ("\"7\"", 200),
        ("null", 401),
        ("\"8\"", 401),
        ("\"7\"", 200),
    ] {
        reload(&gateway, &with_odd(current));
        drop(bearer.get("/v2/").has(status));
        let alice = Wire::basic(gateway.port, USER);
        alice.get("/v2/").expect(200);
    }
}

#[test]
fn an_id_that_is_not_the_bindings_to_make_is_a_failed_call() {
    let config = with_odd("\"7\"").replace("ids: [\"odd:*\"]", "ids: [\"even:*\", \"odd:two\"]");
    let gateway = Gateway::start_with(&config, |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    });
    Wire::basic(gateway.port, ("stranger", "x"))
        .get("/v2/")
        .expect(503);
    Wire::basic(gateway.port, USER).get("/v2/").expect(200);
    let log = gateway.log().replace('\\', "");
    let line = "write `ids: [\"even:*\", \"odd:two\", \"odd:*\"]`";
    assert!(log.contains(line), "{log}");
}

/// What `gantry serve` says of a configuration it does not take.
fn refused(config: &str, prepare: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("htpasswd"), line(USER)).unwrap();
    prepare(folder.path());
    let file = folder.path().join("gantry.yaml");
    let storage = "listen: { address: 127.0.0.1:0 }\nstorage:\n  blobs: { filesystem: ./data }\n  metadata: { sqlite: ./data/gantry.db }\n";
    fs::write(&file, format!("{storage}{config}")).unwrap();
    let ended = Command::new(program())
        .arg("serve")
        .arg(&file)
        .output()
        .unwrap();
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned() + &String::from_utf8_lossy(&ended.stdout)
}

#[test]
fn two_bindings_that_may_make_the_same_id_do_not_load_and_the_message_has_the_line_to_write() {
    let second = "  - name: staff\n    from: builtin:htpasswd\n    config: { users: { file: ./htpasswd } }\n";
    let said = refused(&usual_config("", second), |_| {});
    assert!(
        said.contains("`ids: [\"staff:*\"]` and `prefix: staff`"),
        "{said}"
    );
    let said = refused(&with_odd("null").replace("\"odd:*\"", "\"*\""), |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    });
    assert!(said.contains("`ids: [\"odd:*\"]`"), "{said}");
    // As the message says.
    let second = second.replace(
        "    config: {",
        "    ids: [\"staff:*\"]\n    config: { prefix: staff,",
    );
    let gateway = Gateway::start(&usual_config("", &second));
    Wire::basic(gateway.port, USER).get("/v2/").expect(200);
}
