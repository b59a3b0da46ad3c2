//! Promise: `GANTRY_A__B` overrides a single value, a wrong one is said by the variable's name, and no value is ever shown.

use gantry_upstream::CredentialSource;

use super::{PLUGINS, parse_in};
use gantry::config::{BlobStorage, Config, Environment, LogFormat, MetadataStorage, Report};

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, Report> {
    let environment: Environment = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    parse_in(
        std::path::Path::new("/srv"),
        &format!("{text}{PLUGINS}"),
        &environment,
    )
}

#[test]
fn a_variable_sets_a_value_that_the_file_has_or_lacks() {
    let config = load(
        "log: { level: info }\nmirrors: { docker.io: { url: \"https://a.io\" } }\nlisten: [127.0.0.1:1]",
        &[
            ("GANTRY_LOG__LEVEL", "debug"),
            ("GANTRY_LOG__FORMAT", "json"),
            ("GANTRY_STORAGE__METADATA__SQLITE", "db/x.db"),
            ("GANTRY_STORAGE__BLOBS__FILESYSTEM", "/var/lib/gantry"),
            ("GANTRY_MIRRORS__DOCKER_IO__URL", "https://b.io"),
            ("GANTRY_MIRRORS__DOCKER_IO__DEFAULT", "true"),
            ("GANTRY_LISTEN__0", "127.0.0.1:2"),
            ("GANTRY_LIMITS__UPLOADS_PER_CLIENT", "7"),
            ("GANTRY_LIMITS__MANIFEST", "131072"),
            ("GANTRY_ADMIN", "off"),
            ("HOME", "/root"),
        ],
    )
    .unwrap();
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(
        config.storage.metadata,
        MetadataStorage::Sqlite("/srv/db/x.db".into())
    );
    assert_eq!(
        config.storage.blobs,
        BlobStorage::Filesystem("/var/lib/gantry".into())
    );
    assert_eq!(config.mirrors[0].upstream.url.as_str(), "https://b.io/");
    assert!(config.mirrors[0].default);
    assert_eq!(config.listen[0].address.to_string(), "127.0.0.1:2");
    assert_eq!(config.limits.uploads_per_client, 7);
    assert_eq!(config.limits.max_manifest_bytes, 131_072);
    assert_eq!(config.admin, None);
}

#[test]
fn a_plugins_own_scalar_can_be_set() {
    let environment = [(
        "GANTRY_PLUGINS__0__CONFIG__MESSAGE".to_owned(),
        "no".to_owned(),
    )]
    .into();
    let text = "plugins: [{ name: a, from: \"builtin:access\", config: { message: yes } }]";
    let config = parse_in(std::path::Path::new("/srv"), text, &environment).unwrap();
    assert_eq!(
        config.plugins[0].config,
        serde_json::json!({ "message": "no" })
    );
}

#[test]
fn a_wrong_variable_is_said_by_its_name_and_never_its_value() {
    let check = |file: &str, variable: &str, value: &str, path: &str, message: &str, hint: &str| {
        let report = load(file, &[(variable, value)]).expect_err(variable);
        let [problem] = report.problems.as_slice() else {
            panic!("{report}");
        };
        assert_eq!(problem.variable.as_deref(), Some(variable), "{report}");
        assert_eq!(
            (problem.line, problem.path.as_str()),
            (None, path),
            "{report}"
        );
        assert!(problem.message.contains(message), "{report}");
        assert!(
            problem.hint.as_deref().unwrap_or_default().contains(hint),
            "{report}"
        );
        let shown = format!("{report} {report:?}");
        assert!(
            shown.contains(variable) && !shown.contains("canary"),
            "{shown}"
        );
    };
    check(
        "",
        "GANTRY_LOG__LEVEL",
        "canary",
        "log.level",
        "not a log level",
        "",
    );
    check(
        "",
        "GANTRY_LOG__FORMAT",
        "canary",
        "log.format",
        "not one of the values",
        "human, json",
    );
    check(
        "",
        "GANTRY_LIMITS__CONNECTIONS",
        "canary",
        "limits.connections",
        "not a whole number",
        "",
    );
    check(
        "",
        "GANTRY_LIMITS__CONNECTIONS",
        "0",
        "limits.connections",
        "at least 1",
        "",
    );
    check(
        "",
        "GANTRY_HOSTED__DELETE",
        "canary",
        "hosted.delete",
        "neither true nor false",
        "",
    );
    check(
        "",
        "GANTRY_TOKENS__LIFETIME",
        "1s",
        "tokens.lifetime",
        "between 1m and 1d",
        "",
    );
    check(
        "",
        "GANTRY_EXTERNAL_URL",
        "https://u:canary@h",
        "external_url",
        "no user name",
        "",
    );
    check(
        "",
        "GANTRY_STORAGE",
        "canary",
        "storage",
        "only single values",
        "",
    );
    check(
        "",
        "GANTRY_HOSTED__NAMES",
        "canary",
        "hosted.names",
        "only single values",
        "",
    );
    check(
        "mirrors: { a: \"https://a.io\" }",
        "GANTRY_MIRRORS__A__PREFIX",
        "canary",
        "mirrors.a.prefix",
        "short form",
        "",
    );
    check(
        "mirrors: { a-b: { url: \"https://a.io\" }, a.b: { url: \"https://b.io\" } }",
        "GANTRY_MIRRORS__A_B__URL",
        "canary",
        "mirrors.a-b.url",
        "fits more than one key",
        "",
    );
}

#[test]
fn a_variable_that_names_no_key_is_a_warning_with_the_nearest_key() {
    let check = |file: &str, variable: &str, hint: &str| {
        let config = load(file, &[(variable, "canary")]).expect(variable);
        let [problem] = config.warnings.problems.as_slice() else {
            panic!("{:?}", config.warnings);
        };
        assert_eq!(problem.variable.as_deref(), Some(variable));
        assert!(problem.message.contains("fits no key"), "{problem:?}");
        assert!(
            problem.hint.as_deref().unwrap_or_default().contains(hint),
            "{problem:?}"
        );
        let shown = format!("{} {:?}", config.warnings, config.warnings);
        assert!(
            shown.starts_with("warning: ") && shown.contains(variable) && !shown.contains("canary"),
            "{shown}"
        );
    };
    check("", "GANTRY_LOG__LEVLE", "GANTRY_LOG__LEVEL");
    check(
        "",
        "GANTRY_STORAGE_METADATA_SQLITE",
        "GANTRY_STORAGE__METADATA__SQLITE",
    );
    check("", "GANTRY_MIRRORS__GHCR_IO__URL", "");
    check("", "GANTRY_CACHE_PORT_X_TCP", "");
    check("", "GANTRY_SERVICE__HOST", "");
    check("", "GANTRY_PORT", "");
    check("", "GANTRY_LISTEN_PORT", "");
    check(
        "listen: [127.0.0.1:1]",
        "GANTRY_LISTEN__1",
        "GANTRY_LISTEN__0",
    );
}

#[test]
fn what_kubernetes_sets_for_a_service_is_no_warning() {
    for service in ["GANTRY", "GANTRY_CACHE", "GANTRY_A_PORT_7"] {
        for ending in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "SERVICE_PORT_HTTPS_ALT",
            "PORT",
            "PORT_5000_TCP",
            "PORT_5000_TCP_PROTO",
            "PORT_5000_TCP_PORT",
            "PORT_5000_TCP_ADDR",
            "PORT_53_UDP_ADDR",
            "PORT_9_SCTP",
        ] {
            let variable = format!("{service}_{ending}");
            let config = load("", &[(&variable, "tcp://10.0.0.1:5000")]).expect(&variable);
            assert_eq!(config.warnings.problems, [], "{variable}");
        }
    }
}

#[test]
fn a_password_is_not_a_single_value() {
    let text = "mirrors: { a: { url: \"https://a.io\", credentials: { username: u, password: { env: P } } } }";
    let variables = [
        ("GANTRY_MIRRORS__A__CREDENTIALS__PASSWORD", "canary"),
        ("P", "canary"),
    ];
    let report = load(text, &variables).unwrap_err();
    assert!(
        report.to_string().contains("only single values"),
        "{report}"
    );
    assert!(!format!("{report} {report:?}").contains("canary"));
}

#[test]
fn variables_that_the_file_names_are_no_mistake() {
    let text = "mirrors: { a: { url: \"https://a.io\", credentials: { username: u, password: { env: GANTRY_HUB } } } }";
    let config = load(text, &[("GANTRY_HUB", "canary")]).unwrap();
    assert_eq!(config.warnings.problems, []);
    let Some(CredentialSource::Fixed(credentials)) = &config.mirrors[0].upstream.credentials else {
        panic!("no credentials");
    };
    assert_eq!(credentials.password.as_str(), "canary");
    assert!(!format!("{config:?}").contains("canary"));
}

#[test]
fn a_path_from_the_environment_is_not_shown() {
    let text = "listen: { address: 127.0.0.1:443, tls: { certificate: a, key: b } }";
    let variables = [
        ("GANTRY_LISTEN__TLS__CERTIFICATE", "canary"),
        ("GANTRY_LISTEN__TLS__KEY", "/canary"),
    ];
    let report = load(text, &variables).unwrap_err();
    assert_eq!(report.problems.len(), 2, "{report}");
    assert!(
        !format!("{report} {report:?}").contains("canary"),
        "{report}"
    );
}
