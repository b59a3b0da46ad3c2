//! What a running process cannot change: a sentence for each such key.

use std::sync::Arc;

use crate::config::{Config, Listen, ListenAddress};

/// The sentences; none = everything else can be taken over while running.
pub(super) fn mistakes(now: &Config, next: &Config) -> Vec<String> {
    let listeners = |config: &Config| -> Vec<(ListenAddress, bool, Option<Arc<str>>)> {
        let place = |listen: &Listen| {
            let (address, mirror) = (listen.address.clone(), listen.mirror.clone());
            (address, listen.tls.is_some(), mirror)
        };
        config.listen.iter().map(place).collect()
    };
    let changed = [
        (
            "listen",
            listeners(now) != listeners(next),
            "the addresses, whose mirror they are and whether they speak TLS, are fixed at the start; certificates and keys are not",
        ),
        (
            "admin",
            now.admin != next.admin,
            "the address is fixed at the start",
        ),
        (
            "storage.blobs",
            now.storage.blobs != next.storage.blobs,
            "requests in flight write there",
        ),
        (
            "storage.metadata",
            now.storage.metadata != next.storage.metadata,
            "requests in flight write there",
        ),
        (
            "limits.connections",
            now.limits.max_connections != next.limits.max_connections,
            "the places are made at the start",
        ),
        (
            "log.format",
            now.log.format != next.log.format,
            "logging is set up once",
        ),
        (
            "log.level",
            now.log.level != next.log.level,
            "logging is set up once",
        ),
    ];
    changed
        .into_iter()
        .filter(|(_, changed, _)| *changed)
        .map(|(key, _, why)| format!("`{key}` cannot change without a restart: {why}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::mistakes;
    use crate::config::{Config, Environment};

    fn config(text: &str) -> Config {
        let text = &format!("{text}plugins: [{{ name: access, from: \"builtin:access\" }}]\n");
        Config::parse(
            "test.yaml",
            text,
            Path::new("/nowhere"),
            &Environment::new(),
        )
        .unwrap()
    }

    #[test]
    fn each_key_that_needs_a_restart_is_named() {
        let now = config("listen: 127.0.0.1:5000\n");
        let check = |text: &str, keys: &[&str]| {
            let said = mistakes(&now, &config(text));
            assert_eq!(said.len(), keys.len(), "{text}: {said:?}");
            for (sentence, key) in said.iter().zip(keys) {
                assert!(
                    sentence.starts_with(&format!("`{key}` cannot")),
                    "{sentence}"
                );
            }
        };
        check("listen: 127.0.0.1:5000\n", &[]);
        check("listen: 127.0.0.1:5002\n", &["listen"]);
        let hub = "mirrors: { hub: \"https://hub.example\" }\n";
        check(
            &format!("listen: {{ address: 127.0.0.1:5000, mirror: hub }}\n{hub}"),
            &["listen"],
        );
        check(&format!("listen: 127.0.0.1:5000\n{hub}"), &[]);
        check("admin: off\n", &["admin"]);
        check(
            "storage: { blobs: { filesystem: ./other } }\n",
            &["storage.blobs", "storage.metadata"],
        );
        check(
            "limits: { connections: 7 }\nlog: { format: json, level: debug }\n",
            &["limits.connections", "log.format", "log.level"],
        );
        check(
            "hosted: { names: [\"a/**\"], delete: false }\nlimits: { manifest: 1MiB, idle_timeout: 3s }\n",
            &[],
        );
    }
}
