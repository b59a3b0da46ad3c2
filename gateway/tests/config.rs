//! The promises of gantry.yaml and of the command line: every mistake at once, each at its place; no secret shown.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test may panic, and a table may be long"
)]

#[path = "config/command.rs"]
mod command;
#[path = "config/environment.rs"]
mod environment;
#[path = "config/examples.rs"]
mod examples;
#[path = "config/hostile.rs"]
mod hostile;
#[path = "config/meaning.rs"]
mod meaning;
#[path = "config/mistakes.rs"]
mod mistakes;

use std::path::{Path, PathBuf};

use gantry::config::{Config, Environment, Report};

/// The smallest list of plugins; it stands last in a test's file, so that lines count from the test's own first one.
const PLUGINS: &str = "\nplugins: [{ name: access, from: \"builtin:access\" }]\n";

/// Reads `text` as a file of `folder`.
fn parse_in(folder: &Path, text: &str, environment: &Environment) -> Result<Config, Report> {
    Config::parse("gantry.yaml", text, folder, environment)
}

/// Reads `text` with an empty environment, in a folder without files.
fn parse(text: &str) -> Result<Config, Report> {
    parse_in(Path::new("/nonexistent"), text, &Environment::new())
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}
