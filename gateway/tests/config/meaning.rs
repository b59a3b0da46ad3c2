//! Promise: what is not written has its default, what is written means what the manual says.

use std::{fs, path::Path, time::Duration};

use gantry::config::{
    AuditTo, BlobStorage, Callers, Config, Environment, LogFormat, MetadataStorage, Mode, OnError,
    PluginFrom, TlsVersion,
};
use gantry_model::{Change, Source, namespace::Address};
use gantry_registry::{Moves, TagRule};
use gantry_upstream::{CredentialSource, Helper};

use super::{PLUGINS, parse, parse_in};

#[test]
fn an_unwritten_key_has_its_default() {
    let config = parse(PLUGINS).unwrap();
    assert_eq!(config.listen.len(), 1);
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:5000");
    assert!(config.listen[0].tls.is_none());
    assert_eq!(config.admin, Some("127.0.0.1:5001".parse().unwrap()));
    assert_eq!(config.external_url, None);
    assert!(
        config.trusted_proxies.is_empty()
            && config.mirrors.is_empty()
            && config.hosted.names.is_empty()
    );
    assert!(config.hosted.delete);
    assert_eq!(
        config.storage.blobs,
        BlobStorage::Filesystem("/nonexistent/data".into())
    );
    assert_eq!(
        config.storage.metadata,
        MetadataStorage::Sqlite("/nonexistent/data/gantry.db".into())
    );
    assert_eq!(config.tokens.issuer, "gantry");
    assert_eq!(config.tokens.keys, Path::new("/nonexistent/data/keys"));
    assert_eq!(config.tokens.lifetime, Duration::from_secs(300));
    assert_eq!(config.limits.max_manifest_bytes, 4 << 20);
    assert_eq!(config.limits.max_blob_bytes, None);
    assert_eq!(config.limits.uploads_per_client, 256);
    assert_eq!(config.limits.header_timeout, Duration::from_secs(10));
    assert_eq!(config.limits.minimum_rate, 1024);
    assert_eq!(
        (config.log.format, config.log.level.as_str()),
        (LogFormat::Human, "info")
    );
    assert!(config.audit.is_none() && config.otlp.is_none());
    let binding = &config.plugins[0];
    assert_eq!(
        (binding.mode, binding.on_error),
        (Mode::Enforce, OnError::Deny)
    );
    assert!(
        binding
            .repositories
            .iter()
            .any(|pattern| pattern.matches("a/b/c"))
    );
    assert_eq!(binding.changes, None);
    assert_eq!(binding.config, serde_json::json!({}));
    assert_eq!(binding.limits.memory_bytes, 64 << 20);
}

#[test]
fn an_empty_key_is_as_if_it_were_not_written() {
    let config = parse(&format!(
        "listen:\nmirrors:\nadmin: ~\nstorage: {{ blobs: }}\nlog:\n{PLUGINS}"
    ))
    .unwrap();
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:5000");
    assert!(config.admin.is_some());
}

#[test]
fn the_admin_listener_is_an_address_or_a_map_with_the_names_it_answers_to() {
    let check = |text: &str, address: &str, hosts: &[&str]| {
        let config = parse(&format!("{text}{PLUGINS}")).unwrap();
        assert_eq!(config.admin, Some(address.parse().unwrap()), "{text}");
        assert_eq!(config.admin_hosts, hosts, "{text}");
    };
    check("admin: 127.0.0.1:7", "127.0.0.1:7", &[]);
    check(
        "admin: { address: 127.0.0.1:7, hosts: [Ops.Example, \"b.example:5001\"] }",
        "127.0.0.1:7",
        &["ops.example", "b.example"],
    );
    check(
        "admin: { hosts: [ops.example] }",
        "127.0.0.1:5001",
        &["ops.example"],
    );
}

#[test]
fn a_mirror_is_known_by_its_key_and_its_urls_host() {
    let text = "mirrors:
  docker.io: { url: \"https://registry-1.docker.io\", default: true }
  local: { url: \"http://127.0.0.1:5555\", hosts: [Local.Example.com] }
  hub-of-team: { url: \"https://registry-1.docker.io\", prefix: team/hub, ns: [], library: false }";
    let config = parse(&format!(
        "hosted: {{ names: [\"apps/**\"] }}\n{text}{PLUGINS}"
    ))
    .unwrap();
    let namespaces = config.namespaces();
    let check = |host, namespace, spelled: &str, name: &str| {
        let address = Address {
            host,
            namespace,
            ..Address::default()
        };
        let resolved = namespaces.resolve(address, spelled);
        assert_eq!(
            resolved.map(|repository| repository.name.to_string()),
            Ok(name.to_owned())
        );
    };
    check(None, None, "alpine", "docker.io/library/alpine");
    check(None, None, "docker.io/alpine", "docker.io/library/alpine");
    check(
        None,
        Some("docker.io"),
        "library/alpine",
        "docker.io/library/alpine",
    );
    check(
        None,
        Some("registry-1.docker.io"),
        "library/alpine",
        "docker.io/library/alpine",
    );
    check(None, Some("127.0.0.1:5555"), "a", "local/a");
    check(Some("local.example.com:443"), None, "a", "local/a");
    check(None, None, "team/hub/alpine", "team/hub/alpine");
    check(None, None, "apps/web", "apps/web");
}

#[test]
fn hosted_names_below_a_prefix_hide_the_mirrors_in_every_spelling() {
    let text = "mirrors:
  docker.io: { url: \"https://registry-1.docker.io\", default: true }
  team: { url: \"https://team.example\", prefix: docker.io/team }
hosted: { names: [\"docker.io/library/own-*\", \"docker.io/t*/own\"], or_upstream: [\"docker.io/acme/**\"] }";
    let config = parse(&format!("{text}{PLUGINS}")).unwrap();
    let namespaces = config.namespaces();
    let check = |namespace, spelled: &str, expected: &str| {
        let address = Address {
            namespace,
            ..Address::default()
        };
        let source = match namespaces.resolve(address, spelled).unwrap().source {
            Source::Hosted => "hosted".to_owned(),
            Source::Layered { remote, .. } => format!("layered {remote}"),
            Source::Mirror { remote, .. } => format!("mirrored {remote}"),
        };
        assert_eq!(source, expected, "{spelled}");
    };
    check(None, "own-tool", "hosted");
    check(None, "docker.io/own-tool", "hosted");
    check(Some("docker.io"), "library/own-tool", "hosted");
    check(None, "docker.io/team/own", "hosted");
    check(None, "docker.io/team/other", "mirrored other");
    check(None, "alpine", "mirrored library/alpine");
    check(None, "acme/tool", "layered acme/tool");
    assert_eq!(config.mirrors[0].keep.pushed.len(), 3);
}

#[test]
fn a_host_that_two_mirrors_share_is_implied_for_neither() {
    let config = parse(&format!(
        "mirrors: {{ a: \"https://x.io\", b: \"https://x.io\" }}{PLUGINS}"
    ))
    .unwrap();
    for mirror in &config.mirrors {
        assert_eq!(mirror.names.namespaces, [mirror.name.to_string()]);
    }
}

#[test]
fn a_tag_rule_leaves_to_tags_what_it_does_not_say() {
    let text = r#"mirrors:
  a:
    url: https://a.io
    tags: { fresh_for: 5m, stale_while_revalidate: 1h, min_age: 3d }
    tag_rules:
      - { tags: ["library/*:v*"], immutable: true, moves: refuse, min_age: 7d }
      - { tags: ["**"], fresh_for: 1m, moves: alert }
"#;
    let config = parse(&format!("{text}{PLUGINS}")).unwrap();
    let [first, second] = config.mirrors[0].tag_rules.as_slice() else {
        panic!("two rules")
    };
    assert_eq!(first.freshness.fresh_for, Duration::MAX);
    assert_eq!(first.freshness.moves, Moves::Refuse);
    assert_eq!(first.tags[0].as_str(), "library/*:v*");
    assert_eq!(second.freshness.fresh_for, Duration::from_secs(60));
    let days = |rule: &TagRule| rule.freshness.min_age.as_secs() / 86_400;
    assert_eq!((days(first), days(second)), (7, 3));
    for rule in [first, second] {
        assert_eq!(
            rule.freshness.stale_while_revalidate,
            Duration::from_secs(3600)
        );
        assert_eq!(
            rule.freshness.stale_if_error,
            config.mirrors[0].freshness.stale_if_error
        );
    }
}

#[test]
fn what_a_mirror_keeps_is_everything_unless_the_file_says_so() {
    let text = r#"mirrors:
  a: https://a.io
  b: { url: "https://b.io", prefetch: true, keep: { for: 30d, at_most: 2GiB, pinned: ["library/alpine:*"] } }
"#;
    let config = parse(&format!("{text}{PLUGINS}")).unwrap();
    assert!(config.mirrors[0].keep.is_everything());
    assert!(!config.mirrors[0].prefetch && config.mirrors[1].prefetch);
    let keep = &config.mirrors[1].keep;
    assert_eq!(keep.keep_for, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(keep.max_bytes, Some(2 << 30));
    assert!(keep.pinned[0].matches("library/alpine:3"));
}

#[test]
fn the_plugins_decide_about_callers_unless_the_upstream_is_to() {
    let of = |written: &str| {
        let mirrors = format!("mirrors:\n  a: {{ url: \"https://a.io\"{written} }}\n{PLUGINS}");
        parse(&mirrors).unwrap().mirrors[0].callers
    };
    let upstream = |seconds| Callers::ByUpstream {
        remember_for: Duration::from_secs(seconds),
    };
    for (written, expect) in [
        ("", Callers::ByPlugins),
        (", callers: {}", Callers::ByPlugins),
        (", callers: { authorized_by: plugins }", Callers::ByPlugins),
        (", callers: { authorized_by: upstream }", upstream(60)),
        (
            ", callers: { authorized_by: upstream, remember_for: 10m }",
            upstream(600),
        ),
    ] {
        assert_eq!(of(written), expect, "{written}");
    }
}

#[test]
fn blobs_come_in_one_request_unless_the_file_says_so() {
    let text = r#"mirrors:
  a: https://a.io
  b: { url: "https://b.io", parallel: {} }
  c: { url: "https://c.io", parallel: { ranges: 8, from: 32MiB } }
"#;
    let config = parse(&format!("{text}{PLUGINS}")).unwrap();
    let read = |index: usize| {
        let parallel = config.mirrors[index].parallel;
        parallel.map(|parallel| (parallel.ranges, parallel.from_bytes))
    };
    assert_eq!(
        [read(0), read(1), read(2)],
        [None, Some((4, 64 << 20)), Some((8, 32 << 20))]
    );
}

#[test]
fn durations_sizes_and_rates_have_units() {
    let text = "mirrors: { a: { url: \"https://a.io\", tags: { fresh_for: 1h30m, stale_if_error: 7d, not_found_for: 250ms } } }
limits: { manifest: 64KiB, blob: 2GB, minimum_rate: 4KiB/s }";
    let config = parse(&format!("{text}{PLUGINS}")).unwrap();
    assert_eq!(
        config.mirrors[0].freshness.fresh_for,
        Duration::from_secs(5400)
    );
    assert_eq!(
        config.mirrors[0].freshness.stale_if_error,
        Duration::from_secs(7 * 86_400)
    );
    assert_eq!(config.mirrors[0].not_found_for, Duration::from_millis(250));
    assert_eq!(config.limits.max_manifest_bytes, 64 << 10);
    assert_eq!(config.limits.max_blob_bytes, Some(2_000_000_000));
    assert_eq!(config.limits.minimum_rate, 4096);
}

#[test]
fn a_gate_may_be_skipped_where_the_operator_says_that_clients_can_force_it() {
    let text = "plugins:
  - name: gate
    from: builtin:immutable-tags
    on_error: { skip: clients_can_force_this }
    changes: [serve-manifest, serve-list]
";
    let folder = tempfile::tempdir().unwrap();
    let config = parse_in(folder.path(), text, &Environment::new()).unwrap();
    assert_eq!(config.plugins[0].on_error, OnError::Skip);
}

#[test]
fn a_binding_means_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("p.wasm"), "").unwrap();
    fs::write(folder.path().join("users"), "alice:hash\n").unwrap();
    fs::write(folder.path().join("key"), "canary\r\n").unwrap();
    let text = "plugins:
  - name: gate
    from: ./p.wasm
    repositories: [\"apps/**\"]
    mode: audit
    on_error: last_known
    changes: [serve-manifest, serve-blob]
    grants: { kv: [reports], registry: [\"apps/**\"], secrets: { hmac: { file: key } } }
    limits: { cpu: 5ms, deadline: 50ms, memory: 8MiB, concurrency: 3 }
    config: { users: { file: ./users }, list: [{ file: users }, { file: users, other: 1 }], number: 1.5 }
";
    let config = parse_in(folder.path(), text, &Environment::new()).unwrap();
    let binding = &config.plugins[0];
    assert_eq!(binding.from, PluginFrom::File(folder.path().join("p.wasm")));
    assert_eq!(
        (binding.mode, binding.on_error),
        (Mode::Audit, OnError::LastKnown)
    );
    assert_eq!(
        binding.changes,
        Some([Change::ServeManifest, Change::ServeBlob].into())
    );
    assert_eq!(binding.grants.kv, ["reports"]);
    assert_eq!(&*binding.grants.secrets["hmac"].0, b"canary");
    assert_eq!(binding.limits.memory_bytes, 8 << 20);
    assert_eq!(binding.limits.concurrency, 3);
    let users = "alice:hash\n";
    let expected = serde_json::json!({ "users": users, "list": [users, { "file": "users", "other": 1 }], "number": 1.5 });
    assert_eq!(binding.config, expected);
    assert_eq!(binding.files, vec![folder.path().join("users"); 2]);
    let shown = format!("{config:?}");
    assert!(
        !shown.contains("canary") && !shown.contains("alice:hash"),
        "{shown}"
    );
}

#[test]
fn tls_files_are_read_and_a_swapped_pair_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.path().join("tls.crt"), pair.cert.pem()).unwrap();
    fs::write(
        folder.path().join("tls.key"),
        pair.signing_key.serialize_pem(),
    )
    .unwrap();
    let load = |certificate: &str, key: &str| {
        let text = format!(
            "listen: {{ address: 127.0.0.1:443, tls: {{ certificate: {certificate}, key: {key}, client_ca: null, minimum: \"1.3\" }} }}{PLUGINS}"
        );
        parse_in(folder.path(), &text, &Environment::new())
    };
    let config = load("tls.crt", "tls.key").unwrap();
    let tls = config.listen[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificate, folder.path().join("tls.crt"));
    assert_eq!((tls.minimum, &tls.client_ca), (TlsVersion::Tls13, &None));
    let report = load("tls.key", "tls.crt").unwrap_err();
    let paths: Vec<&str> = report
        .problems
        .iter()
        .map(|problem| problem.path.as_str())
        .collect();
    assert_eq!(
        paths,
        ["listen.tls.certificate", "listen.tls.key"],
        "{report}"
    );
    let report = load("gone.crt", ".").unwrap_err();
    assert_eq!(report.problems.len(), 2, "{report}");
}

#[test]
fn an_empty_or_broken_secret_is_refused_and_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "mirrors: {{ a: {{ url: \"https://a.io\", credentials: {{ username: u, password: {{ file: secret }} }} }} }}{PLUGINS}"
    );
    let load = |content: &[u8]| {
        fs::write(folder.path().join("secret"), content).unwrap();
        parse_in(folder.path(), &text, &Environment::new())
    };
    for (content, message) in [
        (&b"\n"[..], "empty"),
        (b"canary\xff", "not UTF-8"),
        (&[b'c'; 100_000], "longer than 65536 bytes"),
    ] {
        let report = load(content).unwrap_err();
        assert!(report.to_string().contains(message), "{report}");
        assert!(!format!("{report} {report:?}").contains("canary"));
    }
    let config = load(b"  canary with blanks \n").unwrap();
    let Some(CredentialSource::Fixed(credentials)) = &config.mirrors[0].upstream.credentials else {
        panic!("no credentials");
    };
    assert_eq!(credentials.password.as_str(), "  canary with blanks ");
}

#[test]
fn a_file_that_is_not_there_is_said_without_a_panic() {
    let report =
        Config::load_with(Path::new("/nonexistent/gantry.yaml"), &Environment::new()).unwrap_err();
    assert!(
        report
            .to_string()
            .contains("cannot read the file: it does not exist"),
        "{report}"
    );
    assert_eq!(report.problems.len(), 1);
}

#[test]
fn audit_and_traces_go_where_they_are_told() {
    let parse = |text: &str| parse(&format!("{text}{PLUGINS}"));
    let config = parse("audit: { file: ./audit.jsonl }\n").unwrap();
    let file = AuditTo::File("/nonexistent/audit.jsonl".into());
    assert_eq!(config.audit, Some(file));
    let config = parse("audit: { file: stdout }\n").unwrap();
    assert_eq!(config.audit, Some(AuditTo::Stdout));
    let config =
        parse("telemetry: { otlp: { endpoint: \"http://127.0.0.1:4318\", one_in: 100 } }\n")
            .unwrap();
    let otlp = config.otlp.unwrap();
    assert_eq!((otlp.endpoint.port(), otlp.one_in), (Some(4318), 100));
    for wrong in [
        "audit: {}\n",
        "audit: { file: / }\n",
        "telemetry: { otlp: {} }\n",
        "telemetry: { otlp: { endpoint: \"http://u:p@collector\" } }\n",
        "telemetry: { otlp: { endpoint: \"http://collector\", one_in: 0 } }\n",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}

fn helper_of(config: &Config) -> &Helper {
    match &config.mirrors[0].upstream.credentials {
        Some(CredentialSource::Helper(helper)) => helper,
        other => panic!("no helper: {other:?}"),
    }
}

#[test]
fn a_credential_helper_is_docker_s_program_with_a_small_environment() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("docker-credential-ecr-login");
    fs::write(&program, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = folder.path().display().to_string();
    let variables = [
        ("PATH", path.as_str()),
        ("HOME", "/home/gantry"),
        ("AWS_REGION", "eu-west-1"),
        ("SECRET", "canary"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = Environment::from(variables);
    let load = |mirror: &str| {
        let text = format!("mirrors: {{ {mirror} }}{PLUGINS}");
        parse_in(folder.path(), &text, &environment).unwrap()
    };
    let config = load(
        "a: { url: \"https://r.io:5000\", credentials: { helper: ecr-login, pass_environment: [AWS_REGION, UNSET], refresh: 1h } }",
    );
    let helper = helper_of(&config);
    assert_eq!(helper.program, "docker-credential-ecr-login");
    assert_eq!(helper.arguments, ["get"]);
    assert_eq!(helper.server, "r.io:5000");
    let names: Vec<_> = helper.environment.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["PATH", "HOME", "AWS_REGION"]);
    assert_eq!(helper.refresh, Duration::from_secs(3600));
    assert_eq!(helper.timeout, Duration::from_secs(10));
    assert!(!format!("{config:?}").contains("canary"));

    let config = load(
        "docker.io: { url: \"https://registry-1.docker.io\", credentials: { exec: [./docker-credential-ecr-login, a] } }",
    );
    let helper = helper_of(&config);
    assert_eq!(helper.program, program.as_os_str());
    assert_eq!(helper.arguments, ["a"]);
    assert_eq!(helper.server, "https://index.docker.io/v1/");
}

#[test]
fn a_proxy_is_the_one_that_is_written_or_the_environments_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("password"), "c@n:ary\n").unwrap();
    let variables = [
        ("HTTPS_PROXY", "http://u:canary@env:3128"),
        ("http_proxy", "plain:3128"),
        ("NO_PROXY", ".corp"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let environment = Environment::from(variables);
    let proxy = |written: &str| {
        let text = format!("mirrors: {{ a: {{ url: \"https://a.io\"{written} }} }}{PLUGINS}");
        let config = parse_in(folder.path(), &text, &environment).unwrap();
        let shown = format!("{config:?}");
        for secret in ["canary", "n:ary", "n%3Aary"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        let proxy = config.mirrors[0].upstream.proxy.clone()?;
        let text = |url: Option<url::Url>| url.map(|url| url.to_string()).unwrap_or_default();
        Some((text(proxy.https), text(proxy.http), proxy.bypass))
    };
    let found = |https: &str, http: &str, bypass: &str| {
        Some((https.to_owned(), http.to_owned(), bypass.to_owned()))
    };
    assert_eq!(proxy(""), None);
    let url = "http://p:3128/";
    assert_eq!(proxy(", proxy: \"http://p:3128\""), found(url, url, ""));
    let environment = found("http://u:canary@env:3128/", "http://plain:3128/", ".corp");
    assert_eq!(proxy(", proxy: environment"), environment);
    let full = ", proxy: { url: \"http://p:3128\", username: u, password: { file: password }, bypass: [a.corp, b.corp] }";
    let url = "http://u:c%40n%3Aary@p:3128/";
    assert_eq!(proxy(full), found(url, url, "a.corp,b.corp"));
}

#[test]
fn a_broken_proxy_of_the_environment_is_refused_and_not_shown() {
    let variables = [("HTTPS_PROXY".to_owned(), "socks5://u:canary@p".to_owned())];
    let text =
        format!("mirrors: {{ a: {{ url: \"https://a.io\", proxy: environment }} }}{PLUGINS}");
    let report = parse_in(
        Path::new("/nonexistent"),
        &text,
        &Environment::from(variables),
    );
    let report = report.unwrap_err().to_string();
    assert!(
        report.contains("HTTPS_PROXY is not an http or https URL"),
        "{report}"
    );
    assert!(!report.contains("canary"), "{report}");
}

#[test]
fn the_limits_of_an_upstream_have_defaults_and_are_taken_over() {
    let load = |limits: &str| {
        let text = format!("mirrors: {{ a: {{ url: \"https://a.io\"{limits} }} }}{PLUGINS}");
        let settings = parse(&text).unwrap().mirrors.remove(0).upstream;
        let rate = settings.requests_per_second.map(std::num::NonZeroU32::get);
        let milliseconds = [
            settings.connect_timeout,
            settings.idle_timeout,
            settings.queue_timeout,
        ]
        .map(|duration| duration.as_millis());
        (
            settings.max_concurrency,
            rate,
            settings.minimum_rate,
            milliseconds,
        )
    };
    let default = (64, None, 1024, [10_000, 30_000, 30_000]);
    assert_eq!(load(""), default);
    let written = ", limits: { concurrency: 4, requests_per_second: 9, slowest_rate: 2KiB/s, connect_timeout: 1s, silence_timeout: 2s, queue_timeout: 500ms }";
    assert_eq!(load(written), (4, Some(9), 2048, [1000, 2000, 500]));
}

#[test]
fn a_client_certificate_that_is_not_its_keys_is_refused_by_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let pair = || rcgen::generate_simple_self_signed(["gantry".to_owned()]).unwrap();
    let (one, other) = (pair(), pair());
    fs::write(folder.path().join("c.pem"), one.cert.pem()).unwrap();
    fs::write(folder.path().join("k.pem"), one.signing_key.serialize_pem()).unwrap();
    fs::write(
        folder.path().join("o.pem"),
        other.signing_key.serialize_pem(),
    )
    .unwrap();
    let load_with = |key: &str, more: &str| {
        let text = format!(
            "mirrors: {{ a: {{ url: \"https://a.io\", tls: {{ ca: c.pem, certificate: c.pem, key: {key}, minimum: \"1.3\" }}{more} }} }}{PLUGINS}"
        );
        parse_in(folder.path(), &text, &Environment::new())
    };
    let load = |key: &str| load_with(key, "");
    let tls = load("k.pem").unwrap().mirrors.remove(0).upstream.tls;
    assert!(tls.roots.is_some() && tls.identity.is_some() && tls.only_1_3);
    let report = load("o.pem").unwrap_err().to_string();
    assert!(report.contains("not each other's"), "{report}");
    // It would speak for every caller.
    let callers = load_with("k.pem", ", callers: { authorized_by: upstream }");
    let report = callers.unwrap_err().to_string();
    assert!(report.contains("mirrors.a.tls.certificate"), "{report}");
}
