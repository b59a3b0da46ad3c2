//! The dependency picture of ARCHITECTURE.md holds: an arrow that is not in it does not build a green tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde_json::Value;
use tests::tools::{run, workspace};

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = run(Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--locked",
            "--offline",
        ])
        .current_dir(workspace()));
    serde_json::from_str(&output.stdout()).unwrap()
}

/// Normal dependencies of each member: (package, dependency names).
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let normal = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["kind"].is_null());
            (
                text(&package["name"]),
                normal.map(|dependency| text(&dependency["name"])).collect(),
            )
        })
        .collect()
}

#[test]
fn workspace_edges_are_those_of_the_picture() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        (
            "gantry",
            [
                "gantry-model",
                "gantry-plugin-host",
                "gantry-registry",
                "gantry-storage",
                "gantry-upstream",
            ]
            .as_slice(),
        ),
        ("gantry-model", &[]),
        ("gantry-plugin-host", &["gantry-model"]),
        (
            "gantry-registry",
            &["gantry-model", "gantry-storage", "gantry-upstream"],
        ),
        ("gantry-storage", &["gantry-model"]),
        ("gantry-upstream", &["gantry-model"]),
        ("gantry-plugin", &[]),
        ("tests", &[]),
    ]);
    let all = dependencies();
    for (package, dependencies) in &all {
        let ours: Vec<&str> = dependencies
            .iter()
            .map(String::as_str)
            .filter(|name| all.contains_key(*name))
            .collect();
        match allowed.get(package.as_str()) {
            Some(allowed) => assert_eq!(ours, *allowed, "{package}"),
            None => assert!(
                ours.iter().all(|name| *name == "gantry-plugin"),
                "{package} is a guest: the SDK at most, not {ours:?}"
            ),
        }
    }
}

#[test]
fn heavy_crates_are_named_only_where_they_belong() {
    let owners: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("wasmtime", ["gantry-plugin-host"].as_slice()),
        ("wasmtime-wasi", &["gantry-plugin-host"]),
        ("hyper", &["gantry", "gantry-upstream", "tests"]),
        ("tokio-rustls", &["gantry", "tests"]),
        ("reqwest", &["gantry", "gantry-upstream", "tests"]),
        ("rusqlite", &["gantry-storage", "tests"]),
        ("jsonwebtoken", &["gantry", "gantry-plugin-host", "tests"]),
    ]);
    for (package, dependencies) in dependencies() {
        for (heavy, owners) in &owners {
            assert!(
                !dependencies.contains(*heavy) || owners.contains(&package.as_str()),
                "{package} names {heavy}"
            );
        }
    }
}

#[test]
fn the_model_stands_on_at_most_six_crates_and_no_runtime() {
    let model = &dependencies()["gantry-model"];
    assert!(model.len() <= 6, "{model:?}");
    assert!(!model.contains("tokio"));
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut folders = vec![
        workspace().join("gateway"),
        workspace().join("plugins"),
        workspace().join("tests"),
        workspace().join("examples"),
    ];
    let mut silent = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !fs::read_to_string(&path).unwrap().starts_with("//!")
            {
                silent.push(path);
            }
        }
    }
    assert!(silent.is_empty(), "no first line in {silent:?}");
}
