//! What a C or Go program includes to be a plugin: the contract in its own language.
//!
//! Owns which generator writes what. Both are wit-bindgen's, inside the program, so an author installs neither it nor a copy of the contract.

use std::{fmt, str::FromStr};

use anyhow::Context as _;
use wit_bindgen_core::Files;

use super::component::world_of;

/// A language that needs generated bindings. Those for others come with their own tools.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Language {
    /// A header, its implementation, and an object file that says the world.
    C,
    /// A module with a package for each interface; the author writes those of the exports.
    Go,
}

impl FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "c" => Ok(Self::C),
            "go" => Ok(Self::Go),
            _ => Err("bindings are made for c and go; for Rust, `gantry plugin new` writes the SDK, and the tools of JavaScript and Python read wit/ themselves".to_owned()),
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::C => "c",
            Self::Go => "go",
        })
    }
}

/// The files of a language's bindings for a hook, by path.
///
/// # Errors
/// There is no such hook; as a sentence.
pub fn files(language: Language, hook: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let (mut resolve, world) = world_of(hook)?;
    let mut generator = match language {
        Language::C => wit_bindgen_c::Opts::default().build(),
        Language::Go => wit_bindgen_go::Opts {
            // Needs no `gofmt` on the machine, and nobody reads it.
            format: wit_bindgen_go::Format::False,
            ..wit_bindgen_go::Opts::default()
        }
        .build(),
    };
    let mut files = Files::default();
    generator
        .generate(&mut resolve, world, &mut files)
        .with_context(|| format!("cannot make bindings for {language}"))?;
    let files = files.iter();
    Ok(files
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::author::{component::hooks, template};

    fn check(language: Language, hook: &str, exports: &[&str]) {
        let files = files(language, hook).unwrap();
        let texts = files.iter().map(|(_, text)| String::from_utf8_lossy(text));
        let all: String = texts.collect();
        for interface in exports {
            let export = format!("gantry:plugin/{interface}@0.1.0#");
            assert!(all.contains(&export), "{language}, {hook}: no {export}");
        }
    }

    #[test]
    fn each_language_gets_the_contract_of_each_hook() {
        for language in [Language::C, Language::Go] {
            for hook in template::hooks() {
                check(language, hook, &["lifecycle", hook]);
            }
            let own = ["lifecycle", "authenticator"];
            check(
                language,
                "revoking-authenticator",
                &[&own[..], &["principals"]].concat(),
            );
            check(
                language,
                "managed-authenticator",
                &[&own[..], &["management"]].concat(),
            );
        }
    }

    #[test]
    fn every_world_for_plugins_has_bindings() {
        let (resolve, package) = crate::author::docs::contract().unwrap();
        let worlds = resolve.packages[package].worlds.keys();
        let worlds = worlds.filter_map(|world| world.strip_suffix("-plugin"));
        let without: Vec<&str> = worlds
            .filter(|world| hooks().all(|it| it != *world))
            .collect();
        // No hook calls scanners yet.
        assert_eq!(without, ["scanner"]);
    }
}
