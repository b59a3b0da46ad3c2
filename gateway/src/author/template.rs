//! A new plugin's files. Everything is inside the binary: writing them needs no network, building them only crates.io.
//!
//! Owns what a template is: about twenty lines of policy, its cases, and the SDK's sources in `sdk/`, because the SDK is on no registry.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Every file of the SDK but its manifest, by path.
const SDK: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

const MANIFEST: &str = include_str!("template/Cargo.toml.txt");
const SDK_MANIFEST: &str = include_str!("template/sdk.toml.txt");
const IGNORE: &str = "target/\n";

/// A hook's policy, cases and what a binding of it looks like.
struct Hook {
    name: &'static str,
    policy: &'static str,
    cases: &'static str,
    binding: &'static str,
}

const HOOKS: [Hook; 4] = [
    Hook {
        name: "admission",
        policy: include_str!("template/admission.rs.txt"),
        cases: include_str!("template/admission.yaml"),
        binding: "    changes: [create-tag, move-tag]\n    config: { frozen: [\"team/archive/**\"] }",
    },
    Hook {
        name: "authenticator",
        policy: include_str!("template/authenticator.rs.txt"),
        cases: include_str!("template/authenticator.yaml"),
        binding: "    ids: [\"robot:*\"]\n    config: { robots: { ci: team-a } }\n    grants: { secrets: { robots: { file: ./robots.secret } } }",
    },
    Hook {
        name: "authorizer",
        policy: include_str!("template/authorizer.rs.txt"),
        cases: include_str!("template/authorizer.yaml"),
        binding: "    config: { readers: [\"user:*\"] }",
    },
    Hook {
        name: "events",
        policy: include_str!("template/events.rs.txt"),
        cases: include_str!("template/events.yaml"),
        binding: "    config: { url: \"https://chat.example.com/hooks/1\" }\n    grants: { http: [\"https://chat.example.com/hooks\"], secrets: { chat: { file: ./chat.secret } } }",
    },
];

const README: &str = include_str!("template/README.md.txt");

/// The hooks that there are templates for.
pub fn hooks() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name)
}

/// The contract's files by name.
pub(super) fn contract() -> impl Iterator<Item = (&'static str, &'static str)> {
    SDK.iter()
        .filter(|(path, _)| path.starts_with("wit/"))
        .copied()
}

/// The files of a new plugin, by path in its folder.
///
/// # Errors
/// The name is no crate's, or the hook has no template; as a sentence.
pub fn files(name: &str, hook: &str) -> Result<Vec<(PathBuf, String)>, String> {
    let is_name = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !is_name {
        return Err(format!(
            "{name:?} is no plugin's name: a lower-case letter, then letters, digits and dashes, at most 64"
        ));
    }
    let template = HOOKS
        .iter()
        .find(|template| template.name == hook)
        .ok_or_else(|| {
            let known: Vec<&str> = hooks().collect();
            format!(
                "there is no template for the hook {hook:?}; there are: {}",
                known.join(", ")
            )
        })?;
    let fill = |text: &str| {
        text.replace("@NAME@", name)
            .replace("@HOOK@", hook)
            .replace("@FILE@", &name.replace('-', "_"))
            .replace("@BINDING@", template.binding)
    };
    let own = [
        ("Cargo.toml", MANIFEST),
        ("src/lib.rs", template.policy),
        ("tests/cases.yaml", template.cases),
        ("README.md", README),
        (".gitignore", IGNORE),
        ("sdk/Cargo.toml", SDK_MANIFEST),
    ];
    let own = own
        .into_iter()
        .map(|(path, text)| (PathBuf::from(path), fill(text)));
    let sdk = SDK
        .iter()
        .map(|(path, text)| (Path::new("sdk").join(path), (*text).to_owned()));
    Ok(own.chain(sdk).collect())
}

/// Writes a new plugin into a folder that is not there yet or empty.
///
/// # Errors
/// The folder has something in it, or cannot be written.
pub fn write(folder: &Path, files: &[(PathBuf, String)]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    if fs::read_dir(folder)?.next().is_some() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is something in it already",
        ));
    }
    for (path, text) in files {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// `name = version` of a manifest's dependencies, whatever else is said about each.
    fn versions(manifest: &str) -> BTreeMap<String, String> {
        manifest
            .lines()
            .filter_map(|line| line.split_once(" = "))
            .map(|(name, rest)| {
                let version = rest
                    .strip_prefix("{ version = ")
                    .map_or(rest, |rest| rest.split(',').next().unwrap_or(rest));
                let version = version.trim().trim_end_matches(" }");
                (name.to_owned(), version.to_owned())
            })
            .collect()
    }

    #[test]
    fn the_vendored_sdk_needs_what_the_sdk_needs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let workspace = versions(&fs::read_to_string(root.join("Cargo.toml")).unwrap());
        let sdk = fs::read_to_string(root.join("plugins/sdk/Cargo.toml")).unwrap();
        let vendored = versions(SDK_MANIFEST);
        let (_, dependencies) = sdk.split_once("[dependencies]").unwrap();
        let (dependencies, _) = dependencies.split_once("\n[").unwrap();
        let mut compared = 0;
        for line in dependencies.lines().filter(|line| line.contains(" = ")) {
            let (name, rest) = line.split_once(" = ").unwrap();
            let expected = if rest.contains("workspace") {
                &workspace[name]
            } else {
                rest
            };
            assert_eq!(&vendored[name], expected, "{name}");
            compared += 1;
        }
        assert!(compared > 4, "{compared}");
    }

    #[test]
    fn every_template_has_a_manifest_a_policy_cases_and_the_contract() {
        for hook in hooks() {
            let files = files("my-policy", hook).unwrap();
            for path in [
                "Cargo.toml",
                "src/lib.rs",
                "tests/cases.yaml",
                "sdk/src/lib.rs",
                "sdk/wit/types.wit",
            ] {
                assert!(
                    files.iter().any(|(other, _)| other == Path::new(path)),
                    "{hook} {path}"
                );
            }
            for (path, text) in &files {
                assert!(
                    !text.contains("@NAME@") && !text.contains("@BINDING@"),
                    "{}",
                    path.display()
                );
            }
            let (_, policy) = files
                .iter()
                .find(|(path, _)| path == Path::new("src/lib.rs"))
                .unwrap();
            assert!(
                policy.contains(&format!("export!(MyPolicy: {hook});")),
                "{policy}"
            );
        }
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let plugin = folder.path().join("plugin");
        let files = files("p", "admission").unwrap();
        write(&plugin, &files).unwrap();
        fs::write(plugin.join("src/lib.rs"), "mine").unwrap();
        assert!(write(&plugin, &files).is_err());
        assert_eq!(
            fs::read_to_string(plugin.join("src/lib.rs")).unwrap(),
            "mine"
        );
    }

    #[test]
    fn names_that_are_no_crates_names_are_refused() {
        for name in ["", "9a", "A", "a b", "../a", "a_b", "-a"] {
            assert!(files(name, "admission").is_err(), "{name:?}");
        }
        assert!(files("a", "scanner").is_err());
    }
}
