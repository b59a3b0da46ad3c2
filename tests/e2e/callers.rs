//! A caller-authorized mirror: what its upstream keeps private leaves its cache only for those whom that upstream lets pull it, whatever way
//! they ask; and a password goes to the one upstream it was shown for.

use std::fs;

use futures_util::future::join_all;
use tests::{
    Gateway, Image, Origin, Wire,
    doors::Doors,
    gateway::{OTHER, USER},
    guests::component,
    image::MANIFEST,
    origin::Fault,
    tools::free_port,
    wire::{Answer, runtime, whole},
};

/// May pull what is private.
const CAROL: (&str, &str) = ("carol", "Zeisig-4711");
/// Is known upstream, and may pull nothing but what is public.
const DAVE: (&str, &str) = ("dave", "Stieglitz-0815");
/// The gateway itself.
const GATEWAY: (&str, &str) = ("gateway", "Gruenfink-42");

const PRIVATE: &str = "team/private";
const PUBLIC: &str = "team/public";

/// The mirrors, and plugins that let everybody in: what is refused is refused by the upstream.
fn config(mirrors: &str, plugins: &str) -> String {
    format!(
        r#"
audit: {{ file: ./audit.jsonl }}
log: {{ level: debug }}
hosted: {{ names: ["apps/**"] }}
mirrors:
{mirrors}
plugins:
  - name: people
    from: builtin:htpasswd
    config: {{ users: {{ file: ./htpasswd }} }}
  - name: access
    from: builtin:access
    config:
      rules:
        - {{ who: [anonymous], may: [pull], what: ["**"] }}
        - {{ who: ["*"], may: [pull, push, delete, catalog], what: ["**"] }}
        - {{ name: closed, who: ["upstream:up:mallory"], may: [pull], what: ["**"], deny: true }}
{plugins}"#
    )
}

/// A guarded upstream as mirror `name`.
fn entry(origin: &Origin, name: &str) -> String {
    origin.mirror_entry(
        name,
        ", hosts: [HOST], credentials: { username: gateway, password: { file: ./own } }, callers: { authorized_by: upstream, remember_for: 60s }",
    )
    .replace("HOST", &format!("{name}.example"))
}

fn start(config: &str) -> Gateway {
    Gateway::start_with(config, |folder| {
        fs::write(folder.join("own"), GATEWAY.1).unwrap();
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    })
}

/// An upstream with one private and one public repository, and who may pull them.
fn upstream() -> (Origin, Image, Image) {
    let (private, public) = (Image::random(3000), Image::random(3000));
    let origin = Origin::start();
    origin.push(PRIVATE, "v1", &private);
    origin.push(PUBLIC, "v1", &public);
    accounts(origin.guard());
    (origin, private, public)
}

fn accounts(doors: &Doors) {
    doors.publish(PUBLIC);
    doors.account(GATEWAY, &["**"]);
    doors.account(CAROL, &[PRIVATE]);
    doors.account(("mallory", CAROL.1), &[PRIVATE]);
    doors.account(DAVE, &[]);
}

/// Every way to read an image of mirror `up`: method, path, and one more header.
fn ways(
    repository: &str,
    image: &Image,
) -> Vec<(&'static str, String, (&'static str, &'static str))> {
    let (manifest, layer) = (&image.manifest.digest, &image.layers[0].digest);
    let config = &image.config.digest;
    let plain = ("accept", "*/*");
    let at = |rest: &str| format!("/v2/up/{repository}/{rest}");
    let mut ways = vec![
        ("GET", at("manifests/v1"), plain),
        ("HEAD", at("manifests/v1"), plain),
        ("GET", at(&format!("manifests/{manifest}")), plain),
        ("HEAD", at(&format!("manifests/{manifest}")), plain),
        ("GET", at(&format!("blobs/{layer}")), plain),
        ("HEAD", at(&format!("blobs/{layer}")), plain),
        ("GET", at(&format!("blobs/{layer}")), ("range", "bytes=0-9")),
        ("GET", at(&format!("blobs/{config}")), plain),
        ("GET", at("tags/list"), plain),
        ("GET", at(&format!("referrers/{manifest}")), plain),
    ];
    let spelled = [
        (
            "GET",
            format!("/up/v2/{repository}/manifests/{manifest}"),
            plain,
        ),
        ("GET", format!("/v2/{repository}/manifests/v1?ns=up"), plain),
        (
            "GET",
            format!("/v2/{repository}/blobs/{layer}?ns=up"),
            plain,
        ),
        (
            "GET",
            format!("/v2/{repository}/manifests/v1"),
            ("host", "up.example"),
        ),
    ];
    ways.extend(spelled);
    ways
}

/// Whether an answer gives away that the image is here.
fn tells(answer: &Answer, image: &Image) -> bool {
    let shown = format!(
        "{:?}{}",
        answer.headers,
        String::from_utf8_lossy(&answer.body)
    );
    let contents = image.blobs().chain([&image.manifest]);
    let mut texts = contents.map(|content| String::from_utf8_lossy(&content.bytes).into_owned());
    texts.any(|text| shown.contains(&text)) || !answer.header("docker-content-digest").is_empty()
}

#[test]
fn what_is_private_upstream_is_refused_on_every_way_to_whoever_may_not_pull_it() {
    let (origin, private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    carol.pull_image("up/team/private", "v1", &private);
    for (method, path, header) in ways(PRIVATE, &private) {
        let served = carol.send(method, &path, &[header], "");
        assert!(
            served.status.is_success(),
            "carol {method} {path}: {served:?}"
        );
        for (who, wire, status) in [
            ("nobody", Wire::anonymous(gateway.port), 401),
            (
                "a user of the gateway",
                Wire::basic(gateway.port, USER),
                403,
            ),
            ("dave", Wire::basic(gateway.port, DAVE), 403),
            (
                "mallory",
                Wire::basic(gateway.port, ("mallory", CAROL.1)),
                403,
            ),
        ] {
            let answer = wire.send(method, &path, &[header], "");
            assert_eq!(answer.status, status, "{who} {method} {path}: {answer:?}");
            assert!(
                !tells(&answer, &private),
                "{who} {method} {path}: {answer:?}"
            );
            let challenge = answer.header("www-authenticate");
            assert_eq!(
                challenge.starts_with("Bearer "),
                status == 401,
                "{who}: {challenge}"
            );
        }
    }
    // What is not there at all is refused in the same words.
    let dave = Wire::basic(gateway.port, DAVE);
    let (here, nowhere) = (
        dave.get("/v2/up/team/private/tags/list").expect(403),
        dave.get("/v2/up/team/nothing/tags/list").expect(403),
    );
    assert_eq!(
        (here.code(), here.message()),
        (nowhere.code(), nowhere.message())
    );
    let reasons: Vec<String> = gateway
        .audit()
        .iter()
        .filter(|line| line["principal.subject"] == "upstream:up:dave")
        .map(|line| line["reason.code"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert!(
        !reasons.is_empty() && reasons.iter().all(|code| code == "upstream-denied"),
        "{reasons:?}"
    );
}

#[test]
fn a_listener_that_is_the_mirrors_asks_its_upstream_too() {
    let (first, private, public) = upstream();
    let (second, _, _) = upstream();
    let port = free_port();
    let listen = format!("listen: [127.0.0.1:PORT, {{ address: 127.0.0.1:{port}, mirror: up }}]\n");
    let mirrors = entry(&first, "up") + &entry(&second, "other");
    let gateway = start(&(listen + &config(&mirrors, "")));
    let carol = Wire::basic(port, CAROL);
    // There the login is the mirror's, however many there are.
    carol.get("/v2/").expect(200);
    let token = carol.token(&["repository:team/private:pull"]);
    for wire in [&carol, &Wire::bearer(port, &token)] {
        wire.pull_image(PRIVATE, "v1", &private);
    }
    Wire::bearer(gateway.port, &token).pull_image("up/team/private", "v1", &private);
    let anonymous = Wire::anonymous(port);
    anonymous.pull_image(PUBLIC, "v1", &public);
    anonymous.get("/v2/team/private/manifests/v1").expect(401);
    let user = Wire::basic(port, USER);
    user.get("/v2/team/private/manifests/v1").expect(403);
    assert_eq!(second.guard().passwords_of(CAROL.0), 0);
}

#[test]
fn what_is_public_upstream_is_served_to_everybody() {
    let (origin, _private, public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    for wire in [
        Wire::anonymous(gateway.port),
        Wire::basic(gateway.port, USER),
        Wire::basic(gateway.port, DAVE),
    ] {
        wire.pull_image("up/team/public", "v1", &public);
        for (method, path, header) in ways(PUBLIC, &public) {
            let answer = wire.send(method, &path, &[header], "");
            assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
        }
    }
}

#[test]
fn login_and_pull_work_with_an_upstreams_password_by_the_token_flow() {
    let (origin, private, public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    Wire::anonymous(gateway.port).get("/v2/").expect(401);
    let carol = Wire::basic(gateway.port, CAROL);
    // `docker login` asks for no scope.
    let login = carol.get("/token?service=x&account=carol&client_id=docker&offline_token=true");
    let login = login.expect(200).json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    Wire::bearer(gateway.port, &login).get("/v2/").expect(200);
    Wire::bearer(gateway.port, &login)
        .get("/v2/up/team/private/manifests/v1")
        .expect(401);
    carol.get("/v2/").expect(200);

    let scopes = "scope=repository:up/team/private:pull,push&scope=repository:apps/web:pull&scope=registry:catalog:*";
    let answer = carol.get(&format!("/token?service=x&{scopes}")).expect(200);
    let json = answer.json();
    assert_eq!(json["expires_in"], 60);
    assert_eq!(json["scope"], "repository:up/team/private:pull");
    let token = Wire::bearer(gateway.port, json["token"].as_str().unwrap());
    token.pull_image("up/team/private", "v1", &private);
    // Not what it was not confirmed for, and nothing that is none of the upstream's business.
    token.get("/v2/up/team/public/manifests/v1").expect(401);
    token.get("/v2/apps/web/tags/list").expect(401);

    let held = Wire::basic(gateway.port, DAVE).token(&["repository:up/team/private:pull"]);
    Wire::bearer(gateway.port, &held)
        .get("/v2/up/team/private/manifests/v1")
        .expect(401);
    let anonymous = Wire::anonymous(gateway.port);
    let held = anonymous.token(&[
        "repository:up/team/private:pull",
        "repository:up/team/public:pull",
    ]);
    let bearer = Wire::bearer(gateway.port, &held);
    bearer.get("/v2/up/team/private/manifests/v1").expect(401);
    bearer.pull_image("up/team/public", "v1", &public);
}

#[test]
fn a_token_gets_no_other_token_and_an_upstreams_word_ends_at_its_own_names() {
    let (origin, _private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    let scope = "repository:up/team/private:pull";
    let token = Wire::bearer(gateway.port, &carol.token(&[scope]));
    let renewed = token
        .get(&format!("/token?service=x&scope={scope}"))
        .expect(200);
    assert_eq!(renewed.json()["scope"], "");
    Wire::basic(gateway.port, USER).push_image("apps/web", "v1", &Image::random(10));
    let login = Wire::bearer(gateway.port, &carol.token(&[]));
    for wire in [&carol, &token, &login] {
        for path in ["/v2/apps/web/manifests/v1", "/v2/_catalog"] {
            let answer = wire.get(path);
            assert_eq!(answer.status, 401, "{path}: {answer:?}");
        }
    }
    let pushed = carol.send("POST", "/v2/up/team/private/blobs/uploads/", &[], "");
    assert_eq!(pushed.status, 403, "{pushed:?}");
}

#[test]
fn a_local_users_password_never_reaches_the_upstream() {
    let (origin, _private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    for password in [USER.1, "wrong"] {
        let wire = Wire::basic(gateway.port, (USER.0, password));
        for path in [
            "/v2/",
            "/token?service=x",
            "/token?service=x&scope=repository:up/team/private:pull",
            "/v2/up/team/private/manifests/v1",
            "/v2/up/team/public/manifests/v1",
        ] {
            let answer = wire.get(path);
            assert!(answer.status.as_u16() < 500, "{path}: {answer:?}");
        }
    }
    // Nor what is shown where no upstream has a say.
    Wire::basic(gateway.port, CAROL)
        .get("/v2/apps/web/tags/list")
        .expect(401);
    Wire::basic(gateway.port, CAROL)
        .get("/v2/_catalog")
        .expect(401);
    let doors = origin.guard();
    assert_eq!(
        (doors.passwords_of(USER.0), doors.passwords_of(OTHER.0)),
        (0, 0)
    );
    assert_eq!(doors.passwords_of(CAROL.0), 0);
    assert!(
        doors.passwords_of(GATEWAY.0) > 0,
        "the gateway fetches as itself"
    );
}

#[test]
fn a_password_for_one_upstream_reaches_no_other() {
    let (first, private, _public) = upstream();
    let (second, other, _) = upstream();
    let mirrors = entry(&first, "up") + &entry(&second, "other");
    let gateway = start(&config(&mirrors, ""));
    let carol = Wire::basic(gateway.port, CAROL);
    carol.pull_image("up/team/private", "v1", &private);
    let token = carol.token(&["repository:up/team/private:pull"]);
    assert_eq!(second.guard().passwords_of(CAROL.0), 0);
    // The same names and passwords there are another's.
    Wire::bearer(gateway.port, &token)
        .get("/v2/other/team/private/manifests/v1")
        .expect(401);
    assert_eq!(second.guard().passwords_of(CAROL.0), 0);
    // Without a name it could be either's; at an address of one mirror it is that one's.
    for path in [
        "/v2/",
        "/token?service=x",
        "/token?service=x&scope=repository:up/team/private:pull&scope=repository:other/team/private:pull",
    ] {
        let refused = carol.get(path).expect(401);
        assert!(
            refused.message().contains("several upstreams"),
            "{}",
            refused.message()
        );
    }
    assert_eq!(second.guard().passwords_of(CAROL.0), 0);
    let at = |host| carol.send("GET", "/token?service=x", &[("host", host)], "");
    at("other.example").expect(200);
    assert!(second.guard().passwords_of(CAROL.0) > 0);
    carol.pull_image("other/team/private", "v1", &other);
}

#[test]
fn a_wrong_password_is_refused_and_not_tried_again_at_once() {
    let (origin, _private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let wrong = Wire::basic(gateway.port, (CAROL.0, "Zeisig-4712"));
    for path in [
        "/token?service=x&scope=repository:up/team/private:pull",
        "/v2/up/team/private/manifests/v1",
        "/v2/",
        "/token?service=x",
    ] {
        let refused = wrong.get(path).expect(401);
        assert_eq!(refused.message(), "invalid username or password");
    }
    assert_eq!(origin.guard().passwords_of(CAROL.0), 1);
    Wire::basic(gateway.port, CAROL).get("/v2/").expect(200);
    let lines = gateway.audit();
    let rejected = lines
        .iter()
        .find(|line| line["reason.code"] == "upstream-rejected");
    assert_eq!(rejected.unwrap()["plugin.name"], "upstream:up", "{lines:?}");
}

#[test]
fn a_hundred_callers_are_one_question() {
    let (origin, private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    let path = format!("/v2/up/{PRIVATE}/blobs/{}", private.layers[0].digest);
    let answers = runtime().block_on(join_all(
        (0..100).map(|_| whole(carol.request("GET", &path, &[]))),
    ));
    for answer in answers {
        answer.unwrap().expect(200);
    }
    // Who she is, and whether she may.
    assert_eq!(origin.guard().passwords_of(CAROL.0), 2);
    assert_eq!(
        origin.count("GET", "/v2/team/private/tags/list"),
        2,
        "the challenge and the answer"
    );
}

#[test]
fn a_token_request_asks_an_upstream_about_eight_scopes_and_leaves_the_others_out() {
    let (origin, _private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let scopes: Vec<String> = (0..40)
        .map(|number| format!("scope=repository:up/team/r{number}:pull"))
        .collect();
    let wire = Wire::anonymous(gateway.port);
    wire.get(&format!("/token?service=x&{}", scopes.join("&")))
        .expect(200);
    let asked: usize = (0..40)
        .map(|number| origin.count("GET", &format!("/v2/team/r{number}/tags/list")))
        .filter(|count| *count > 0)
        .count();
    assert_eq!(asked, 8);
}

#[test]
fn an_upstream_that_is_down_has_said_neither_yes_nor_no() {
    let (mut origin, private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    carol.pull_image("up/team/private", "v1", &private);
    let token = Wire::bearer(
        gateway.port,
        &carol.token(&["repository:up/team/private:pull"]),
    );
    origin.stop();
    // Remembered.
    carol.pull_image("up/team/private", "v1", &private);
    token.pull_image("up/team/private", "v1", &private);
    // Unknown: not refused, and not served.
    let path = "/v2/up/team/private/manifests/v1";
    for wire in [
        Wire::anonymous(gateway.port),
        Wire::basic(gateway.port, USER),
        Wire::basic(gateway.port, DAVE),
    ] {
        let answer = wire.get(path).expect(503);
        assert!(!answer.header("retry-after").is_empty(), "{answer:?}");
    }
    Wire::basic(gateway.port, DAVE)
        .get("/token?service=x&scope=repository:up/team/private:pull")
        .expect(503);
    origin.start_again();
}

#[test]
fn an_upstream_that_limits_is_429_and_is_left_alone() {
    let (origin, private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    carol.pull_image("up/team/private", "v1", &private);
    origin.break_paths("/token", Fault::TooMany { retry_after: 30 });
    let dave = Wire::basic(gateway.port, DAVE);
    let asked = origin.count("GET", "/token");
    for _time in 0..3 {
        let answer = dave.get("/v2/up/team/private/manifests/v1").expect(429);
        assert!(answer.header("retry-after").parse::<u64>().unwrap() <= 30);
    }
    assert_eq!(origin.count("GET", "/token"), asked + 1);
    let lines = gateway.audit();
    let of_dave = lines
        .iter()
        .filter(|line| line["reason.code"] == "upstream-limited");
    assert!(of_dave.clone().count() == 3 && of_dave.clone().all(|line| line["decision"] == "fail"));
    carol.pull_image("up/team/private", "v1", &private);
}

#[test]
fn a_right_that_is_gone_upstream_is_gone_here() {
    let (origin, private, _public) = upstream();
    let mut gateway = start(&config(&entry(&origin, "up"), ""));
    let carol = Wire::basic(gateway.port, CAROL);
    carol.pull_image("up/team/private", "v1", &private);
    origin.guard().account(CAROL, &[]);
    // A token is never issued on a remembered yes that would not last as long as it.
    let refused = carol.get("/token?service=x&scope=repository:up/team/private:pull");
    assert_eq!(refused.expect(200).json()["scope"], "");
    carol.get("/v2/up/team/private/manifests/v1").expect(403);
    // And nothing of it outlives the process; how long it is remembered is tested where time can be moved.
    gateway.restart();
    carol.get("/v2/up/team/private/manifests/v1").expect(403);
}

#[test]
fn what_a_plugin_reads_it_reads_by_the_callers_right() {
    let (origin, private, public) = upstream();
    let gate = r#"
  - name: gate
    from: ./deny_image.wasm
    repositories: ["up/**"]
    changes: [serve-manifest, serve-blob]
    grants: { registry: ["up/**"] }
    config: { repositories: ["up/bad/**"] }
"#;
    let gateway = start(&config(&entry(&origin, "up"), gate));
    let carol = Wire::basic(gateway.port, CAROL);
    // The gate lets a blob out only after it has read the manifests that name it, in her name.
    carol.pull_image("up/team/private", "v1", &private);
    let token = carol.token(&["repository:up/team/private:pull"]);
    Wire::bearer(gateway.port, &token).pull_image("up/team/private", "v1", &private);
    Wire::anonymous(gateway.port).pull_image("up/team/public", "v1", &public);
}

#[test]
fn a_mount_from_a_private_repository_is_an_upload_to_whoever_may_not_read_it() {
    let (origin, private, public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    Wire::basic(gateway.port, CAROL).pull_image("up/team/private", "v1", &private);
    let alice = Wire::basic(gateway.port, USER);
    alice.pull_image("up/team/public", "v1", &public);
    let mount = |from: &str, digest: &str| {
        let path = format!("/v2/apps/web/blobs/uploads/?mount={digest}&from=up/{from}");
        alice.send("POST", &path, &[], "").status.as_u16()
    };
    assert_eq!(mount(PUBLIC, &public.layers[0].digest), 201);
    assert_eq!(mount(PRIVATE, &private.layers[0].digest), 202);
    let manifest = private.manifest.bytes.clone();
    alice
        .push_manifest("apps/web", "v1", MANIFEST, manifest)
        .expect(400);
}

#[test]
fn the_catalog_lists_nothing_of_a_caller_authorized_mirror() {
    let (origin, private, public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), ""));
    Wire::basic(gateway.port, CAROL).pull_image("up/team/private", "v1", &private);
    let alice = Wire::basic(gateway.port, USER);
    alice.pull_image("up/team/public", "v1", &public);
    for name in ["apps/a", "apps/z"] {
        alice.push_image(name, "v1", &Image::random(10));
    }
    let all = alice.get("/v2/_catalog").expect(200).json();
    assert_eq!(all["repositories"], serde_json::json!(["apps/a", "apps/z"]));
    let first = alice.get("/v2/_catalog?n=1").expect(200);
    assert_eq!(first.json()["repositories"], serde_json::json!(["apps/a"]));
    assert!(
        first.header("link").contains("last=apps%2Fa")
            || first.header("link").contains("last=apps/a")
    );
}

#[test]
fn no_password_of_a_caller_is_written_anywhere() {
    let (origin, private, _public) = upstream();
    let gateway = start(&config(&entry(&origin, "up"), "").replace("level: debug", "level: trace"));
    let wrong = (CAROL.0, "Rohrdommel-99");
    for who in [CAROL, DAVE, wrong] {
        let wire = Wire::basic(gateway.port, who);
        for path in [
            "/v2/",
            "/token?service=x&scope=repository:up/team/private:pull",
            "/v2/up/team/private/manifests/v1",
        ] {
            let answer = wire.get(path);
            assert!(answer.status.as_u16() < 500, "{path}: {answer:?}");
        }
    }
    Wire::basic(gateway.port, CAROL).pull_image("up/team/private", "v1", &private);
    origin.break_paths("/token", Fault::Status(500));
    for password in [CAROL.1, wrong.1] {
        Wire::basic(gateway.port, ("eve", password))
            .get("/v2/")
            .expect(503);
    }
    let audit = fs::read_to_string(gateway.folder().join("audit.jsonl")).unwrap();
    for (place, text) in [
        ("log", gateway.log()),
        ("audit", audit),
        ("metrics", gateway.metrics()),
    ] {
        for secret in [CAROL.1, DAVE.1, wrong.1, GATEWAY.1] {
            let encoded = format!("{:?}", secret.as_bytes());
            let shown = text.contains(secret) || text.contains(encoded.trim_matches(['[', ']']));
            assert!(!shown, "the {place} shows {secret}");
        }
        for (_, header) in origin.guard().shown() {
            let proof = header.split(' ').next_back().unwrap();
            assert!(!text.contains(proof), "the {place} shows {proof}");
        }
    }
}
