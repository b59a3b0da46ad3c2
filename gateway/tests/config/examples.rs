//! Promise: every example is valid, the quickstart starts from nothing, and the checked-in schema is the code's.

use std::{fs, path::Path};

use gantry::config::{Config, Environment, PluginFrom, QUICKSTART, schema};

use super::examples;

/// Copies the examples into a folder and puts the files beside them that they name.
fn with_files(folder: &Path) {
    for entry in fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(folder.join("registry.crt"), pair.cert.pem()).unwrap();
    fs::write(
        folder.join("registry.key"),
        pair.signing_key.serialize_pem(),
    )
    .unwrap();
    fs::write(folder.join("htpasswd"), "").unwrap();
    fs::write(folder.join("deny_image.wasm"), "").unwrap();
    fs::write(folder.join("ghcr.token"), "token").unwrap();
    fs::create_dir(folder.join("data")).unwrap();
    fs::write(folder.join("data/htpasswd"), "").unwrap();
}

#[test]
fn every_example_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    with_files(folder.path());
    let mut count = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            Config::load_with(&path, &Environment::new())
                .unwrap_or_else(|report| panic!("{report}"));
            count += 1;
        }
    }
    assert!(count >= 4, "{count}");
}

#[test]
fn the_quickstart_is_valid_in_an_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::quickstart_in(folder.path(), &Environment::new()).unwrap();
    assert!(
        config
            .listen
            .iter()
            .all(|listener| listener.address.to_string() == "127.0.0.1:5000")
    );
    let names: Vec<&str> = config.mirrors.iter().map(|mirror| &*mirror.name).collect();
    assert_eq!(
        names,
        [
            "docker.io",
            "gcr.io",
            "ghcr.io",
            "quay.io",
            "registry.k8s.io"
        ]
    );
    let default: Vec<&str> = config
        .mirrors
        .iter()
        .filter(|mirror| mirror.default)
        .map(|mirror| &*mirror.name)
        .collect();
    assert_eq!(default, ["docker.io"]);
    let library: Vec<bool> = config
        .mirrors
        .iter()
        .map(|mirror| mirror.names.library)
        .collect();
    assert_eq!(library, [true, false, false, false, false]);
    let builtins =
        ["htpasswd", "access", "immutable-tags"].map(|name| PluginFrom::Builtin(name.to_owned()));
    assert!(
        config
            .plugins
            .iter()
            .map(|binding| &binding.from)
            .eq(&builtins)
    );
    assert_eq!(
        config.plugins[0].files,
        [folder.path().join("data/htpasswd")]
    );
    assert_eq!(config.plugins[0].config["users"], "");
    assert!(QUICKSTART.lines().count() <= 30);
}

#[test]
fn the_checked_in_schema_is_the_codes() {
    let checked_in = fs::read_to_string(examples().join("gantry.schema.json")).unwrap();
    let own = serde_json::to_string_pretty(schema()).unwrap() + "\n";
    assert!(
        checked_in == own,
        "run: gantry config schema > examples/gantry.schema.json"
    );
}

#[test]
fn every_key_of_the_schema_is_described() {
    fn walk(value: &serde_json::Value, at: &str) {
        if let Some(properties) = value
            .get("properties")
            .and_then(|properties| properties.as_object())
        {
            for (key, property) in properties {
                let text = property.get("description").and_then(|text| text.as_str());
                assert!(text.is_some_and(|text| text.len() > 8), "{at}.{key}");
            }
        }
    }
    walk(schema(), "");
    for (name, definition) in schema()["$defs"].as_object().unwrap() {
        walk(definition, name);
    }
}
