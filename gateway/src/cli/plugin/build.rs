//! Builds a plugin's component: Rust by cargo; other languages by their folder's Makefile, which may give a core module back to be wrapped.
//!
//! Owns the sentences about what is missing. Never installs anything.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use gantry::author::component::{self, is_core_module};
use serde_json::Value;

const TARGET: &str = "wasm32-wasip2";

/// The component of a plugin's folder, built: by cargo when it is a Rust package, else by its Makefile.
pub(super) fn component(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.join("Cargo.toml").is_file() {
        require_cargo(folder)?;
        return by_cargo(folder);
    }
    let built = folder.join("build/plugin.wasm");
    if folder.join("Makefile").is_file() {
        by_make(folder)?;
    }
    let shown = folder.display();
    if built.is_file() {
        return Ok(built);
    }
    bail!(
        "{shown} is no plugin: cargo builds a folder with a Cargo.toml, make one with a Makefile that makes build/plugin.wasm"
    );
}

/// Makes a component of a core module.
pub(super) fn of_module(module: &Path, hook: Option<&str>, output: &Path) -> anyhow::Result<()> {
    let shown = module.display();
    let bytes = std::fs::read(module).with_context(|| format!("cannot read {shown}"))?;
    if !is_core_module(&bytes) {
        bail!("{shown} is no core module: nothing has to be made of it");
    }
    let component = component::of_module(&bytes, hook)
        .with_context(|| format!("cannot make a component of {shown}"))?;
    std::fs::write(output, component).with_context(|| format!("cannot write {}", output.display()))
}

/// The Makefile's first target. It is told which program this is, so that it needs none on the PATH.
fn by_make(folder: &Path) -> anyhow::Result<()> {
    let shown = folder.display();
    let own = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new("make")
        .arg("--no-print-directory")
        .arg(format!("GANTRY={}", own.display()))
        .current_dir(folder)
        // The component's path is what this prints; what tools say goes beside it.
        .stdout(io::stderr())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!("{shown} does not build: see what its Makefile said"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "{shown} is built by its own Makefile, and there is no make; install it, or run the Makefile's commands"
        ),
        Err(error) => Err(error).context("cannot run make"),
    }
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
