//! Builds a plugin's component: Rust by cargo; other languages by what their folder says.
//!
//! Owns the sentences about what is missing. Never installs anything.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

const TARGET: &str = "wasm32-wasip2";

/// The component of a plugin's folder, built when it is a Rust package.
pub(super) fn component(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.join("Cargo.toml").is_file() {
        require_cargo(folder)?;
        return by_cargo(folder);
    }
    let built = folder.join("build/plugin.wasm");
    if built.is_file() {
        return Ok(built);
    }
    let shown = folder.display();
    if folder.join("Makefile").is_file() {
        bail!(
            "{shown} is built by its own Makefile: run `make -C {shown}`, which makes build/plugin.wasm"
        );
    }
    bail!("{shown} is no plugin: it has neither Cargo.toml nor build/plugin.wasm");
}

fn cargo() -> Command {
    // Set while cargo itself runs this; then it is the right one.
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Says what is missing before cargo says it in many lines.
fn require_cargo(folder: &Path) -> anyhow::Result<()> {
    let found = cargo()
        .arg("--version")
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        bail!(
            "cargo is needed to build a Rust plugin, and does not run: install Rust from https://rustup.rs"
        );
    }
    let libraries = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(folder)
        .output();
    let is_there = libraries.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout);
        output.status.success() && Path::new(folder.trim()).is_dir()
    });
    if !is_there {
        bail!("the target {TARGET} is missing; run: rustup target add {TARGET}");
    }
    Ok(())
}

/// Cargo says where the component is: target folders move by configuration and environment.
fn by_cargo(folder: &Path) -> anyhow::Result<PathBuf> {
    let output = cargo()
        .args(["build", "--release", "--target", TARGET])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(folder)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("{} does not build", folder.display());
    }
    let manifest = folder.join("Cargo.toml").canonicalize()?;
    let messages = String::from_utf8_lossy(&output.stdout);
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = messages.filter(|message| {
        let path = message.get("manifest_path").and_then(Value::as_str);
        path.is_some_and(|path| Path::new(path) == manifest)
    });
    let mut files = own.filter_map(|message| {
        let files = message.get("filenames")?.as_array()?.clone();
        files
            .iter()
            .filter_map(Value::as_str)
            .find(|file| file.ends_with(".wasm"))
            .map(PathBuf::from)
    });
    files.next_back().with_context(|| {
        format!(
            "{} makes no component: its Cargo.toml needs `[lib] crate-type = [\"cdylib\", \"rlib\"]`",
            folder.display()
        )
    })
}
