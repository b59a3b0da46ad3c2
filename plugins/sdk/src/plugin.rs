//! What every plugin has: a configuration, a self-test, and an answer that may be its own failure.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use crate::{
    bindings::lifecycle::exports::gantry::plugin::lifecycle::ConfigIssue, types::PluginError,
};

/// An answer, or the plugin's own failure, which is never a decision.
pub type Answer<T> = Result<T, PluginError>;

/// A plugin, built from its configuration once per instance and then asked.
pub trait Plugin: Sized + 'static {
    /// The binding's `config`. Keys it does not know and values it cannot read keep the plugin from being loaded, each with its place.
    type Config: DeserializeOwned + Default;

    /// JSON Schema 2020-12 of [`Plugin::Config`].
    const CONFIG_SCHEMA: &'static str = "{}";

    /// Builds the plugin. What is wrong with the configuration goes to `issues`; after a fatal one the plugin is never asked.
    fn new(config: Self::Config, issues: &mut Issues) -> Self;

    /// A smoke test, run before the plugin takes over.
    ///
    /// # Errors
    /// A sentence for the operator; the plugin is not loaded.
    fn self_test(&self) -> Result<(), String> {
        Ok(())
    }
}

/// What is wrong with a configuration, each with its place.
#[derive(Debug, Default)]
pub struct Issues(Vec<ConfigIssue>);

impl Issues {
    /// The plugin cannot work with this. `pointer` is a JSON pointer such as `/rules/0/may`; `message` a sentence without secrets.
    pub fn fatal(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.push(pointer.into(), message.into(), true);
    }

    /// The plugin works, and somebody should look at this.
    pub fn warning(&mut self, pointer: impl Into<String>, message: impl Into<String>) {
        self.push(pointer.into(), message.into(), false);
    }

    fn push(&mut self, pointer: String, message: String, fatal: bool) {
        self.0.push(ConfigIssue {
            pointer,
            message,
            fatal,
        });
    }

    /// Whether the plugin cannot work.
    #[must_use]
    pub fn are_fatal(&self) -> bool {
        self.0.iter().any(|issue| issue.fatal)
    }

    /// Pointer, message and whether it is fatal, in the order they were found.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        self.0
            .iter()
            .map(|issue| (issue.pointer.as_str(), issue.message.as_str(), issue.fatal))
    }

    pub(crate) fn into_result(self) -> Result<(), Vec<ConfigIssue>> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(self.0)
        }
    }
}

/// Reads a configuration, with an issue for each key that `C` does not know and for a value that it cannot read. No text and `null` give
/// the default. For tests; [`crate::export!`] calls it for a guest.
pub fn parse_config<C: DeserializeOwned + Default>(text: &str, issues: &mut Issues) -> C {
    if matches!(text.trim(), "" | "null") {
        return C::default();
    }
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            issues.fatal("", format!("not JSON: {error}"));
            return C::default();
        }
    };
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read = serde_ignored::deserialize(tracked, |path| {
        let (pointer, key) = ignored_pointer(&path);
        issues.fatal(pointer, format!("unknown key {key}"));
    });
    read.unwrap_or_else(|error| {
        issues.fatal(error_pointer(&track.path()), error.to_string());
        C::default()
    })
}

fn error_pointer(path: &serde_path_to_error::Path) -> String {
    path.iter()
        .fold(String::new(), |pointer, segment| match segment {
            Segment::Seq { index } => format!("{pointer}/{index}"),
            Segment::Map { key } => format!("{pointer}/{}", escape(key)),
            Segment::Enum { .. } | Segment::Unknown => pointer,
        })
}

/// The pointer and its last segment.
fn ignored_pointer(path: &serde_ignored::Path<'_>) -> (String, String) {
    use serde_ignored::Path;
    match path {
        Path::Root => (String::new(), String::new()),
        Path::Seq { parent, index } => {
            let (parent, _) = ignored_pointer(parent);
            (format!("{parent}/{index}"), index.to_string())
        }
        Path::Map { parent, key } => {
            let (parent, _) = ignored_pointer(parent);
            (format!("{parent}/{}", escape(key)), key.clone())
        }
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => ignored_pointer(parent),
    }
}

/// RFC 6901.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::glob::Glob;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Config {
        name: String,
        rules: Vec<Rule>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Rule {
        what: Vec<Glob>,
    }

    fn check(text: &str, expected: &[(&str, &str, bool)]) -> Config {
        let mut issues = Issues::default();
        let config = parse_config(text, &mut issues);
        assert_eq!(issues.iter().collect::<Vec<_>>(), expected, "{text}");
        config
    }

    #[test]
    fn nothing_configured_is_the_default() {
        for text in ["", "null", " {} "] {
            assert_eq!(check(text, &[]), Config::default());
        }
    }

    #[test]
    fn every_unknown_key_is_reported_with_its_place() {
        let config = check(
            r#"{"name":"a","nmae":1,"rules":[{},{"a/b":{}}]}"#,
            &[
                ("/nmae", "unknown key nmae", true),
                ("/rules/1/a~1b", "unknown key a/b", true),
            ],
        );
        assert_eq!(config.name, "a");
    }

    #[test]
    fn a_value_that_cannot_be_read_is_reported_with_its_place() {
        check(
            r#"{"rules":[{"what":["**","a{"]}]}"#,
            &[(
                "/rules/0/what/1",
                "unbalanced braces or brackets in the glob a{",
                true,
            )],
        );
        check(
            r#"{"rules":7}"#,
            &[(
                "/rules",
                "invalid type: integer `7`, expected a sequence",
                true,
            )],
        );
    }

    #[test]
    fn a_text_that_is_not_json_is_one_issue() {
        let mut issues = Issues::default();
        let config: Config = parse_config("{", &mut issues);
        assert_eq!(config, Config::default());
        assert!(issues.are_fatal());
        assert!(issues.iter().all(|(pointer, ..)| pointer.is_empty()));
    }

    #[test]
    fn warnings_do_not_stop_a_plugin() {
        let mut issues = Issues::default();
        issues.warning("/users", "line 3 is not name:hash");
        assert!(!issues.are_fatal());
        assert!(issues.into_result().is_err());
    }
}
