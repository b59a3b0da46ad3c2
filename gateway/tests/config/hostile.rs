//! Promise: no file, however hostile, takes much memory or time, panics, or is misunderstood in silence.

use std::fmt::Write;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{PLUGINS, parse, parse_in};
use gantry::config::{Config, Environment};

#[test]
fn aliases_that_multiply_are_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..30 {
        let below = level - 1;
        writeln!(text, "a{level}: &a{level} [*a{below}, *a{below}, *a{below}, *a{below}, *a{below}, *a{below}, *a{below}, *a{below}, *a{below}]").unwrap();
    }
    let report = parse(&text).unwrap_err();
    assert!(
        report
            .problems
            .iter()
            .any(|problem| problem.message.contains("more than 50000 values")),
        "{report}"
    );
}

#[test]
fn an_alias_inside_its_own_anchor_is_refused() {
    let report = parse(&format!("log: &log {{ level: *log }}{PLUGINS}")).unwrap_err();
    assert!(
        report
            .to_string()
            .contains("an alias inside its own anchor"),
        "{report}"
    );
}

#[test]
fn deep_nesting_is_refused() {
    for text in [
        "[".repeat(100_000),
        "{a: ".repeat(100_000),
        (0..100_000).map(|_| "- ").collect(),
        "? ".repeat(100_000),
    ] {
        let report = parse(&text).unwrap_err();
        assert_eq!(report.problems.len(), 1, "{}", report.problems.len());
    }
}

#[test]
fn a_file_of_many_values_is_refused() {
    let report = parse(&format!("log: [{}]", "x,".repeat(60_000))).unwrap_err();
    assert!(report.to_string().contains("more than 50000 values"));
}

#[test]
fn a_long_file_is_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gantry.yaml");
    std::fs::write(&file, "#".repeat((1 << 20) + 1)).unwrap();
    let report = Config::load_with(&file, &Environment::new()).unwrap_err();
    assert!(
        report.to_string().contains("longer than 1048576 bytes"),
        "{report}"
    );
}

#[test]
fn a_file_does_not_steer_the_terminal() {
    let report = parse(&format!("\"\\e[31m\u{9b}key\": 1{PLUGINS}")).unwrap_err();
    assert!(
        !report.to_string().contains(['\u{1b}', '\u{9b}']),
        "{report}"
    );
}

#[test]
fn json_is_read_too() {
    parse(r#"{ "admin": "off", "plugins": [ { "name": "a", "from": "builtin:access", "config": { "n": 1 } } ] }"#).unwrap();
}

fn full() -> Value {
    json!({
        "listen": [{ "address": "127.0.0.1:5000" }, "[::1]:5000"],
        "admin": "127.0.0.1:5001",
        "external_url": "https://registry.example.com",
        "trusted_proxies": ["127.0.0.0/8"],
        "storage": { "blobs": { "filesystem": "./data" }, "metadata": { "sqlite": "./data/gantry.db" } },
        "hosted": { "names": ["apps/**"], "delete": true },
        "mirrors": {
            "docker.io": {
                "prefix": "docker.io", "ns": ["docker.io"], "hosts": ["hub.example.com"], "url": "https://registry-1.docker.io",
                "alternatives": ["https://mirror.example.com"], "default": true, "library": true,
                "credentials": { "username": "acme", "password": { "env": "PASSWORD" } },
                "tags": { "fresh_for": "10m", "stale_if_error": "7d", "not_found_for": "30s" }
            },
            "ghcr.io": "https://ghcr.io"
        },
        "plugins": [{
            "name": "gate", "from": "builtin:immutable-tags", "repositories": ["apps/**"], "mode": "audit", "on_error": "last_known",
            "changes": ["serve-manifest"], "grants": { "kv": ["b"], "registry": ["apps/**"], "secrets": { "k": { "env": "PASSWORD" } }, "reveal_secrets": false },
            "limits": { "cpu": "20ms", "deadline": "250ms", "memory": "64MiB", "concurrency": 64 }, "config": { "a": [1, { "b": null }] }
        }],
        "tokens": { "issuer": "gantry", "keys": "keys", "lifetime": "5m" },
        "limits": {
            "manifest": "4MiB", "blob": 10_000_000, "uploads_per_client": 32, "header_timeout": "10s", "idle_timeout": "2m",
            "minimum_rate": "1KiB/s", "connections": 10, "decision_deadline": "5s", "denied_downloads": "keep", "drain_timeout": "30s"
        },
        "log": { "format": "human", "level": "info" }
    })
}

/// The value behind the `index`-th pointer of a walk, to be changed.
fn pick(value: &mut Value, index: usize) -> &mut Value {
    fn pointers(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(map) => map
                .iter()
                .for_each(|(key, child)| pointers(child, &format!("{at}/{key}"), all)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(key, child)| pointers(child, &format!("{at}/{key}"), all)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    pointers(value, "", &mut all);
    let pointer = &all[index % all.len()];
    value.pointer_mut(pointer).unwrap()
}

fn environment() -> Environment {
    [("PASSWORD".to_owned(), "canary".to_owned())].into()
}

#[test]
fn a_file_with_every_key_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    parse_in(folder.path(), &full().to_string(), &environment()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_passes_the_check_is_understood(
        changes in prop::collection::vec((0_usize..200, 0_usize..14), 1..6)
    ) {
        let mut file = full();
        for (at, with) in changes {
            *pick(&mut file, at) = [
                json!(null), json!(true), json!(5), json!(-1), json!(1.5), json!(u64::MAX), json!(""), json!("x"), json!("10m"),
                json!([]), json!({}), json!(["x"]), json!({ "file": "x" }), json!([[null], {}]),
            ][with].clone();
        }
        if let Err(report) = parse_in(std::path::Path::new("/nonexistent"), &file.to_string(), &environment()) {
            let shown = format!("{report} {report:?}");
            prop_assert!(!shown.contains("not understood"), "{file}\n{report}");
            prop_assert!(!shown.contains("canary"), "{shown}");
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z0-9:{}\\[\\],&*!|>'\"#%@ \n\t-]{0,200}") {
        if let Err(report) = parse(&text) {
            prop_assert!(!report.to_string().contains("not understood"));
        }
    }
}
