//! Another configuration is taken without a dropped request, or not at all; what keeps failing goes back by itself; what is not
//! enforced is recorded.

use std::{fs, os::unix::fs::symlink, process::Command, time::Duration};

use serde_json::Value;
use tests::{
    Gateway, Image, Wire,
    gateway::{OTHER, USER, program, usual_config},
    guests::component,
    image::{Content, MANIFEST},
    tools::{Run, run, wait_until},
    wire::{runtime, whole, with_query},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The usual configuration, whose admin API alice may use.
pub(crate) fn config(plugins: &str) -> String {
    usual_config("", plugins).replace(
        "        - { who: [\"user:*\"]",
        "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]",
    )
}

fn admin(gateway: &Gateway) -> Wire {
    Wire::basic(gateway.admin_port, USER)
}

fn plugins(gateway: &Gateway) -> Value {
    admin(gateway).get("/admin/v1/plugins").has(200).json()
}

fn generation(gateway: &Gateway) -> u64 {
    plugins(gateway)["generation"].as_u64().unwrap()
}

fn plugin(gateway: &Gateway, name: &str) -> Value {
    let all = plugins(gateway);
    let found = all["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .find(|plugin| plugin["name"] == name);
    assert!(found.is_some(), "{name} in {all}");
    found.unwrap().clone()
}

pub(crate) fn wait_generation(gateway: &Gateway, least: u64) {
    wait_until(&format!("generation {least}"), PATIENCE, || {
        generation(gateway) >= least
    });
}

fn hangup(gateway: &Gateway) {
    run(Command::new("kill").args(["-HUP", &gateway.pid().to_string()])).ok();
}

/// The program itself, as an operator calls it.
fn gantry(gateway: &Gateway, arguments: &[&str], password: &str) -> Run {
    let file = gateway.folder().join("password");
    fs::write(&file, password).unwrap();
    run(Command::new(program())
        .args(arguments)
        .arg("--config")
        .arg(gateway.config_path())
        .args(["--user", USER.0, "--password-file"])
        .arg(&file))
}

/// Whether anonymous may pull from team/open under this configuration.
fn opened() -> String {
    config("").replace(
        "\"apps/public/**\"]",
        "\"apps/public/**\", \"team/open/**\"]",
    )
}

#[test]
fn every_trigger_brings_the_new_configuration() {
    let gateway = Gateway::start(&config(""));
    let anonymous = Wire::anonymous(gateway.port);
    let is_open = || anonymous.get("/v2/team/open/x/tags/list").status == 404;
    assert!(!is_open());
    // A changed file.
    gateway.write_config(&opened());
    wait_until("the file's change to count", PATIENCE, is_open);
    wait_generation(&gateway, 2);
    // A signal, on unchanged files.
    hangup(&gateway);
    wait_generation(&gateway, 3);
    assert_eq!(plugins(&gateway)["last_reload"]["trigger"], "signal");
    // The admin API, and the command that asks it.
    let done = admin(&gateway)
        .send("POST", "/admin/v1/reload", &[], "")
        .has(200)
        .json();
    assert_eq!(done["generation"], 4);
    let text = gantry(&gateway, &["reload"], USER.1).ok();
    assert!(text.contains("reloaded: generation 5"), "{text}");
    // Plugins that did not change were not loaded again.
    assert_eq!(plugin(&gateway, "people")["generation"], 1);
    assert_eq!(plugin(&gateway, "access")["generation"], 2);
    // A generation stays until the last request that it serves ends.
    wait_until("the former generations to be gone", PATIENCE, || {
        gateway.metrics().contains("gantry_generations 1")
    });
}

#[test]
fn a_file_that_a_plugin_names_counts_as_soon_as_it_changes() {
    let gateway = Gateway::start(&config(""));
    let bob = Wire::basic(gateway.port, OTHER);
    bob.get("/v2/").expect(200);
    let users = fs::read_to_string(gateway.folder().join("htpasswd")).unwrap();
    let without: String = users
        .lines()
        .filter(|line| !line.starts_with(OTHER.0))
        .map(|line| format!("{line}\n"))
        .collect();
    // As `gantry htpasswd` does it: a new file, renamed over the old one.
    fs::write(gateway.folder().join("new"), without).unwrap();
    fs::rename(
        gateway.folder().join("new"),
        gateway.folder().join("htpasswd"),
    )
    .unwrap();
    wait_until("bob to be forgotten", PATIENCE, || {
        bob.get("/v2/").status == 401
    });
    Wire::basic(gateway.port, USER).get("/v2/").expect(200);
}

#[test]
fn the_admin_api_asks_who_it_is_and_whether_they_may() {
    let gateway = Gateway::start(&config(""));
    let (port, list) = (gateway.admin_port, "/admin/v1/plugins");
    let stranger = Wire::anonymous(port).get(list).has(401);
    assert!(stranger.header("www-authenticate").starts_with("Basic "));
    Wire::basic(port, (USER.0, "wrong")).get(list).expect(401);
    Wire::basic(port, OTHER).get(list).expect(403);
    Wire::basic(port, OTHER)
        .send("POST", "/admin/v1/reload", &[], "")
        .expect(403);
    Wire::basic(port, USER).get(list).expect(200);
    Wire::basic(port, USER).get("/admin/v1/nothing").expect(404);
    let wrong = Wire::basic(port, USER).get("/admin/v1/reload").has(405);
    assert_eq!(wrong.header("allow"), "POST");
    // A token holds what it was asked for and no more.
    let token = |scope: &str| Wire::basic(gateway.port, USER).token(&[scope]);
    Wire::bearer(port, &token("registry:admin:*"))
        .get(list)
        .expect(200);
    let narrow = token("repository:team/x:pull");
    assert!(matches!(
        Wire::bearer(port, &narrow).get(list).status.as_u16(),
        401 | 403
    ));
    // It is not on the traffic listener, and the open paths stay open.
    Wire::basic(gateway.port, USER).get(list).expect(404);
    for path in ["/healthz", "/readyz", "/metrics"] {
        Wire::anonymous(port).get(path).expect(200);
    }
    let refused = gantry(&gateway, &["plugin", "list"], "wrong").fails();
    assert!(refused.contains("401"), "{refused}");
}

#[test]
fn a_web_page_in_a_browser_on_this_machine_cannot_use_the_admin_api() {
    let also = "external_url: https://ops.example\naudit: { file: ./audit.jsonl }\n";
    let gateway = Gateway::start(&(config("") + also));
    let admin = Wire::basic(gateway.admin_port, USER);
    let reload = |headers: &[(&str, &str)], status: u16| {
        let answer = admin
            .send("POST", "/admin/v1/reload", headers, "")
            .has(status);
        let lines = gateway.audit();
        let request = answer.header("x-request-id");
        let line = lines
            .iter()
            .rfind(|line| line["request.id"] == request.as_str());
        let decision = if status == 200 { "allow" } else { "deny" };
        assert_eq!(line.unwrap()["decision"], decision, "{headers:?}");
        String::from_utf8_lossy(&answer.body).into_owned()
    };
    reload(&[("host", "ops.example")], 200);
    reload(&[("sec-fetch-site", "same-origin")], 200);
    let misdirected = reload(&[("host", "rebound.example")], 421);
    assert!(
        misdirected.contains("hosts: [rebound.example]"),
        "{misdirected}"
    );
    reload(&[("origin", "http://rebound.example")], 403);
    reload(&[("origin", "null")], 403);
    reload(&[("sec-fetch-site", "cross-site")], 403);
    reload(&[("content-type", "text/plain")], 415);
    // A page may not even look, and what everybody may ask stays open.
    let page = [("host", "rebound.example")];
    admin
        .send("GET", "/admin/v1/plugins", &page, "")
        .expect(421);
    for path in ["/healthz", "/readyz", "/metrics"] {
        admin.send("GET", path, &page, "").expect(200);
    }
}

#[test]
fn every_admin_call_is_an_audit_line_with_who_and_what() {
    let gateway = Gateway::start(&(config("") + "audit: { file: ./audit.jsonl }\n"));
    let port = gateway.admin_port;
    for (wire, status, decision, who) in [
        (Wire::basic(port, USER), 200, "allow", Some("user:alice")),
        (Wire::basic(port, OTHER), 403, "deny", Some("user:bob")),
        (Wire::anonymous(port), 401, "deny", None),
    ] {
        let answer = wire.send("POST", "/admin/v1/reload", &[], "").has(status);
        let request = answer.header("x-request-id");
        let lines = gateway.audit();
        let last = lines
            .iter()
            .rfind(|line| line["request.id"] == request.as_str())
            .unwrap();
        assert_eq!(last["operation"], "admin", "{last}");
        assert_eq!(last["reference"], "POST /admin/v1/reload", "{last}");
        assert_eq!(last["decision"], decision, "{last}");
        if let Some(who) = who {
            assert_eq!(last["principal.subject"], who, "{last}");
        }
    }
}

#[test]
fn a_bad_file_keeps_the_old_state_and_the_list_says_so() {
    let gateway = Gateway::start(&config(""));
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(1000);
    wire.push_image("team/x", "latest", &image);
    gateway.write_config(&config("").replace("hosted:", "hostd:"));
    wait_until("the refusal", PATIENCE, || {
        plugins(&gateway)["last_reload"]["taken"] == false
    });
    let text = gantry(&gateway, &["plugin", "list"], USER.1).ok();
    for part in [
        "was refused; generation 1 stays",
        "hostd",
        "did you mean",
        "builtin:access",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let refused = gantry(&gateway, &["reload"], USER.1).fails();
    assert!(
        refused.contains("hostd") && refused.contains('^'),
        "{refused}"
    );
    // A key that needs a restart is named.
    gateway.write_config(&format!("{}limits: {{ connections: 7 }}\n", config("")));
    let refused = gantry(&gateway, &["reload"], USER.1).fails();
    assert!(
        refused.contains("`limits.connections` cannot change without a restart"),
        "{refused}"
    );
    // A plugin that is none.
    let path = gateway.folder().join("gate.wasm");
    fs::write(&path, "not wasm").unwrap();
    gateway.write_config(&config("  - { name: gate, from: ./gate.wasm }\n"));
    let refused = gantry(&gateway, &["reload"], USER.1).fails();
    assert!(refused.contains("plugin gate"), "{refused}");
    wire.pull_image("team/x", "latest", &image);
    assert_eq!(generation(&gateway), 1);
    // The mended plugin is seen without anybody asking.
    fs::copy(component("hostile"), &path).unwrap();
    wait_generation(&gateway, 2);
    assert_eq!(plugin(&gateway, "gate")["state"], "active");
    // Its next version is bad: the one before runs, and the list says why.
    fs::write(&path, "not wasm").unwrap();
    wait_until("the refusal of the next version", PATIENCE, || {
        plugin(&gateway, "gate")["state"] == "kept"
    });
    let gate = plugin(&gateway, "gate");
    assert!(
        gate["last_error"]["text"]
            .as_str()
            .unwrap()
            .contains("plugin gate"),
        "{gate}"
    );
}

#[test]
fn a_config_maps_link_swap_is_seen() {
    let gateway = Gateway::start(&config(""));
    let map = gateway.folder().join("map");
    fs::create_dir_all(map.join("..one")).unwrap();
    let users = fs::read_to_string(gateway.folder().join("htpasswd")).unwrap();
    fs::write(map.join("..one/users"), &users).unwrap();
    symlink("..one", map.join("..data")).unwrap();
    symlink("..data/users", map.join("users")).unwrap();
    gateway.write_config(&config("").replace("./htpasswd", "./map/users"));
    wait_generation(&gateway, 2);
    let bob = Wire::basic(gateway.port, OTHER);
    bob.get("/v2/").expect(200);
    for (folder, users, status) in [("..two", "", 401), ("..three", users.as_str(), 200)] {
        fs::create_dir(map.join(folder)).unwrap();
        fs::write(map.join(folder).join("users"), users).unwrap();
        symlink(folder, map.join("..tmp")).unwrap();
        fs::rename(map.join("..tmp"), map.join("..data")).unwrap();
        wait_until(&format!("{folder} to count"), PATIENCE, || {
            bob.get("/v2/").status == status
        });
    }
}

#[test]
fn a_change_that_no_notice_tells_of_is_seen_by_the_slow_look() {
    let gateway = Gateway::start(&config(""));
    let (users, elsewhere) = (
        gateway.folder().join("htpasswd"),
        gateway.folder().join("elsewhere"),
    );
    let bob = Wire::basic(gateway.port, OTHER);
    bob.get("/v2/").expect(200);
    // Written under another name in a folder that nobody watches: the system tells of that name only.
    fs::create_dir(&elsewhere).unwrap();
    fs::hard_link(&users, elsewhere.join("users")).unwrap();
    wait_generation(&gateway, 1);
    let text = fs::read_to_string(&users).unwrap();
    let without = text.replace(&format!("{}:", OTHER.0), "somebody-else:");
    fs::write(elsewhere.join("users"), without).unwrap();
    wait_until("bob to be forgotten", PATIENCE, || {
        bob.get("/v2/").status == 401
    });
    wait_generation(&gateway, 2);
}

#[test]
fn a_plugin_that_keeps_trapping_goes_back_by_itself_and_the_next_reload_tries_again() {
    let gate = |what: &str| {
        config(&format!(
            "  - name: gate\n    from: ./hostile.wasm\n    repositories: [\"team/**\"]\n    config: {{ do: \"{what}\", at: admit }}\n"
        ))
    };
    let gateway = Gateway::start_with(&gate(""), |folder| {
        fs::copy(component("hostile"), folder.join("hostile.wasm")).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(10);
    wire.push_image("team/web", "v0", &image);
    let mut tag = 0;
    let mut push = || {
        tag += 1;
        let bytes = image.manifest.bytes.clone();
        let answer = wire.push_manifest("team/web", &format!("t{tag}"), MANIFEST, bytes);
        answer.status.as_u16()
    };
    gateway.write_config(&gate("trap"));
    for round in 0..2 {
        if round > 0 {
            hangup(&gateway);
        }
        wait_until("the trapping version", PATIENCE, || {
            plugin(&gateway, "gate")["state"] == "active" && generation(&gateway) >= 2 + 2 * round
        });
        let mut failed = 0;
        wait_until("the way back", PATIENCE, || match push() {
            503 => {
                failed += 1;
                false
            }
            201 => true,
            other => panic!("{other}"),
        });
        assert!(failed >= 5, "{failed}");
        let gate = plugin(&gateway, "gate");
        assert_eq!(
            (&gate["state"], &gate["generation"]),
            (&"rolled-back".into(), &1.into())
        );
        assert!(
            gate["last_error"]["text"]
                .as_str()
                .unwrap()
                .starts_with("trap"),
            "{gate}"
        );
    }
    assert!(
        gateway
            .metrics()
            .contains("gantry_plugin_rollbacks_total 2")
    );
    let log = gateway.log();
    assert!(
        log.contains("was put back to its version before") && log.contains("plugin rolled back")
    );
}

#[test]
fn a_new_certificate_is_seen_by_new_connections_and_old_ones_go_on() {
    let make = |folder: &std::path::Path| {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        fs::write(folder.join("tls.crt"), &certificate).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        certificate
    };
    let tls = "listen: { address: \"127.0.0.1:PORT\", tls: { certificate: ./tls.crt, key: ./tls.key } }\n";
    let mut first = String::new();
    let gateway = Gateway::start_with(&format!("{tls}{}", config("")), |folder| {
        first = make(folder);
    });
    let trusting = |certificate: &str| {
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(certificate.as_bytes()).unwrap()])
            .resolve("localhost", ([127, 0, 0, 1], gateway.port).into())
            .build()
            .unwrap()
    };
    let url = format!("https://localhost:{}/healthz", gateway.port);
    let get = |client: &reqwest::Client| {
        let request = client.get(&url);
        runtime().block_on(async { whole(request).await.is_ok() })
    };
    let old = trusting(&first);
    assert!(get(&old));
    let second = make(gateway.folder());
    let new = trusting(&second);
    wait_until("the new certificate", PATIENCE, || get(&new));
    assert!(
        get(&old),
        "its connection was made under the old certificate"
    );
    assert!(!get(&trusting(&first)), "a new connection sees the new one");
    // A key that does not fit is refused, and the pair before is served on.
    fs::write(
        gateway.folder().join("tls.key"),
        "-----BEGIN PRIVATE KEY-----\n",
    )
    .unwrap();
    wait_until("the refusal", PATIENCE, || {
        plugins(&gateway)["last_reload"]["taken"] == false
    });
    assert!(get(&trusting(&second)));
}

fn audit_lines<'a>(log: &'a str, plugin: &str) -> Vec<&'a str> {
    let name = format!("\"plugin.name\":\"{plugin}\"");
    log.lines()
        .filter(|line| line.contains("\"enforced\":false") && line.contains(&name))
        .collect()
}

#[test]
fn audit_and_shadow_decide_and_are_recorded_and_nobody_is_refused() {
    let rules = "config: { rules: [ { who: [\"user:*\"], may: [pull, push], what: [\"team/a/**\"] }, { name: never, who: [\"user:*\"], may: [delete], what: [\"**\"], deny: true } ] }";
    let plugins = format!(
        "  - {{ name: audited, from: \"builtin:access\", mode: audit, {rules} }}\n  - {{ name: beside, from: \"builtin:access\", mode: shadow, {rules} }}\n  - {{ name: tags, from: \"builtin:immutable-tags\", mode: shadow, config: {{ immutable: [\"*\"] }} }}\n"
    );
    let gateway = Gateway::start(&format!("log: {{ format: json }}\n{}", config(&plugins)));
    let wire = Wire::basic(gateway.port, USER);
    for name in ["team/a/x", "team/b/x"] {
        for image in [Image::random(10), Image::random(10)] {
            wire.push_image(name, "v1", &image);
        }
        wire.delete(&format!("/v2/{name}/manifests/v1")).expect(202);
    }
    let seen = |plugin: &str, parts: &[&str]| {
        let log = gateway.log();
        audit_lines(&log, plugin)
            .iter()
            .any(|line| parts.iter().all(|part| line.contains(part)))
    };
    let wait = |plugin: &str, parts: &[&str]| {
        wait_until(&format!("{plugin}: {parts:?}"), PATIENCE, || {
            seen(plugin, parts)
        });
    };
    let deny = [
        "\"decision\":\"deny\"",
        "\"enforced_decision\":\"allow\"",
        "\"differs\":true",
    ];
    let agree = [
        "\"decision\":\"allow\"",
        "\"enforced_decision\":\"allow\"",
        "\"differs\":false",
    ];
    for (plugin, mode) in [("audited", "audit"), ("beside", "shadow")] {
        let mode = format!("\"mode\":\"{mode}\"");
        wait(plugin, &[&deny[..], &[&mode, "never"]].concat());
        wait(plugin, &[&agree[..], &[&mode]].concat());
    }
    // An abstention is no opinion in the chain, and a refusal of what would stand alone.
    let abstained = [
        "\"decision\":\"abstain\"",
        "\"enforced_decision\":\"allow\"",
    ];
    wait(
        "audited",
        &[&abstained[..], &["\"differs\":false"]].concat(),
    );
    wait("beside", &[&abstained[..], &["\"differs\":true"]].concat());
    wait("tags", &[&deny[..], &["\"change\":"]].concat());
    assert!(gateway.metrics().contains("gantry_shadow_dropped_total"));
}

/// `VmRSS`, in bytes.
fn resident(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn reload(gateway: &Gateway, round: usize) {
    // Every other configuration differs in a plugin, so that components are loaded and freed.
    let text = format!(
        "  - {{ name: more, from: \"builtin:immutable-tags\", repositories: [\"never\"], config: {{ immutable: [\"r{round}\"] }} }}\n"
    );
    gateway.write_config(&config(&text));
    admin(gateway)
        .send("POST", "/admin/v1/reload", &[], "")
        .expect(200);
}

/// Bytes that a hundred reloads may leave: allocator slack and caches, not generations.
const GROWTH: u64 = 100 << 20;

/// Fifty pulls and fifty pushes that are all under way from the first reload to the last: each moves a piece of its body after each reload.
fn reload_during_transfers(gateway: &Gateway, blob: &Content, rounds: std::ops::Range<usize>) {
    let wire = Wire::basic(gateway.port, USER);
    let pieces = rounds.len() + 1;
    let pushed: Vec<Content> = (0..CLIENTS)
        .map(|_| Content::random(1000 * pieces))
        .collect();
    let (turn, turned) = tokio::sync::watch::channel(0);
    let mut transfers = tokio::task::JoinSet::new();
    let _entered = runtime().enter();
    for content in &pushed {
        let location = wire.start_upload("team/pushed");
        let path = with_query(&location, &format!("digest={}", content.digest));
        let body = reqwest::Body::wrap_stream(paced(content.bytes.clone(), 1000, turned.clone()));
        let request = wire.request("PUT", &path, &[]).body(body);
        transfers.spawn(async move {
            assert_eq!(whole(request).await.unwrap().status, 201);
        });
    }
    for _client in 0..CLIENTS {
        let path = format!("/v2/team/pulled/blobs/{}", blob.digest);
        let request = wire.request("GET", &path, &[]);
        transfers.spawn(pull_paced(request, blob.clone(), pieces, turned.clone()));
    }
    for round in rounds {
        reload(gateway, round);
        turn.send_modify(|turns| *turns += 1);
    }
    // Whoever is still at it gets the rest at once.
    turn.send_replace(usize::MAX);
    runtime().block_on(async {
        while let Some(ended) = transfers.join_next().await {
            ended.unwrap();
        }
    });
    for content in &pushed {
        let stored = wire.get(&format!("/v2/team/pushed/blobs/{}", content.digest));
        assert!(stored.has(200).body == content.bytes);
    }
}

/// A body that gives its first piece at once and one more after each turn.
fn paced(
    bytes: bytes::Bytes,
    length: usize,
    turned: tokio::sync::watch::Receiver<usize>,
) -> impl futures_util::Stream<Item = Result<bytes::Bytes, std::io::Error>> + Send + 'static {
    futures_util::stream::unfold(
        (bytes, turned, 0),
        move |(mut left, mut turned, given)| async move {
            if left.is_empty() {
                return None;
            }
            turned.wait_for(|turns| *turns >= given).await.unwrap();
            let piece = left.split_to(length.min(left.len()));
            Some((Ok(piece), (left, turned, given + 1)))
        },
    )
}

/// Reads a part of the body after each turn, and holds every byte against `blob`.
async fn pull_paced(
    request: reqwest::RequestBuilder,
    blob: Content,
    pieces: usize,
    mut turned: tokio::sync::watch::Receiver<usize>,
) {
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let (mut read, mut turns) = (Vec::new(), 0);
    while let Some(piece) = answer.chunk().await.unwrap() {
        read.extend_from_slice(&piece);
        while read.len() > (turns + 1) * blob.bytes.len() / pieces {
            turns += 1;
            turned.wait_for(|now| *now >= turns).await.unwrap();
        }
    }
    assert!(
        read == blob.bytes,
        "{} of {} bytes",
        read.len(),
        blob.bytes.len()
    );
}

/// Of each kind.
const CLIENTS: usize = 50;

#[test]
fn a_hundred_reloads_during_fifty_pulls_and_fifty_pushes_fail_nobody_and_leave_no_memory() {
    let gateway = Gateway::start(&config(""));
    let blob = Content::random(8 << 20);
    Wire::basic(gateway.port, USER)
        .push_blob("team/pulled", &blob)
        .expect(201);
    // What a process keeps once it has reloaded under this load.
    reload_during_transfers(&gateway, &blob, 0..10);
    let before = resident(&gateway);
    reload_during_transfers(&gateway, &blob, 10..110);
    assert!(generation(&gateway) >= 111);
    wait_until("old generations to be freed", PATIENCE, || {
        gateway.metrics().contains("gantry_generations 1")
    });
    let after = resident(&gateway);
    eprintln!("resident before {before}, after {after}");
    assert!(
        after <= before + GROWTH,
        "{before} bytes before, {after} after"
    );
}

#[test]
fn a_reload_does_not_wait_for_a_pipe_in_place_of_a_file() {
    let gateway = Gateway::start(&config(""));
    let users = gateway.folder().join("htpasswd");
    let away = gateway.folder().join("away");
    fs::rename(&users, &away).unwrap();
    run(Command::new("mkfifo").arg(&users)).ok();
    // Also when the watch of files finds it first.
    for _attempt in 0..2 {
        let said = gantry(&gateway, &["reload"], USER.1).fails();
        assert!(said.contains("it is a pipe"), "{said}");
    }
    fs::remove_file(&users).unwrap();
    fs::rename(&away, &users).unwrap();
    gantry(&gateway, &["reload"], USER.1).ok();
    let _known = Wire::basic(gateway.port, USER).get("/v2/").expect(200);
}
