//! Builds the built-in plugins for wasm32-wasip2 and puts them where `builtin.rs` embeds them; lists the SDK's sources for
//! `author::template`.
//!
//! Cargo cannot depend on an artifact for another target on stable, so this runs a second cargo, in a target folder of its own: the
//! first one holds the lock on the shared one. Knows nothing of what the plugins do.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "wasm32-wasip2";
const PLUGINS: [&str; 4] = ["access", "htpasswd", "immutable-tags", "webhook"];

/// What the first cargo, or `cargo clippy`, sets for the machine's own code and what must not reach the guests.
const FOREIGN: [&str; 7] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CLIPPY_ARGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

fn main() {
    if let Err(problem) = build() {
        for line in problem.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    watch(&workspace);
    require_target()?;
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target_folder = out.join("guests");
    run_cargo(&workspace, &target_folder)?;
    for plugin in PLUGINS {
        let file = format!("gantry_plugin_{}.wasm", plugin.replace('-', "_"));
        let built = target_folder.join(TARGET).join("guest").join(file);
        fs::copy(&built, out.join(format!("{plugin}.wasm")))
            .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    }
    list_sdk(&workspace.join("plugins/sdk"), &out.join("sdk.rs"))
}

/// Writes the list of the SDK's files and their texts, which `gantry plugin new` puts into a new plugin.
fn list_sdk(sdk: &Path, list: &Path) -> Result<(), String> {
    let mut entries = Vec::new();
    for folder in ["src", "wit"] {
        let files = fs::read_dir(sdk.join(folder))
            .map_err(|error| format!("cannot list the SDK: {error}"))?;
        for file in files {
            let file = file.map_err(|error| format!("cannot list the SDK: {error}"))?;
            let path = file
                .path()
                .canonicalize()
                .map_err(|error| format!("cannot find the SDK: {error}"))?;
            let name = file.file_name();
            entries.push(format!(
                "    ({:?}, include_str!({path:?})),\n",
                format!("{folder}/{}", name.to_string_lossy())
            ));
        }
    }
    entries.sort();
    let text = format!("&[\n{}]\n", entries.concat());
    fs::write(list, text).map_err(|error| format!("cannot write {}: {error}", list.display()))
}

/// Names what the components are made of; everything else leaves them as they are.
fn watch(workspace: &Path) {
    let sdk = [
        "plugins/sdk/src",
        "plugins/sdk/wit",
        "plugins/sdk/Cargo.toml",
    ];
    let shared = ["Cargo.toml", "Cargo.lock", "rust-toolchain.toml", "wit"];
    for path in shared.iter().chain(&sdk) {
        println!("cargo::rerun-if-changed={}", workspace.join(path).display());
    }
    for plugin in PLUGINS {
        let folder = workspace.join("plugins").join(plugin);
        for path in ["src", "Cargo.toml", "config.schema.json"] {
            println!("cargo::rerun-if-changed={}", folder.join(path).display());
        }
    }
}

fn require_target() -> Result<(), String> {
    let output = Command::new(variable("RUSTC")?)
        .args(["--print", "target-libdir", "--target", TARGET])
        .output()
        .map_err(|error| format!("cannot run rustc: {error}"))?;
    let folder = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && Path::new(folder.trim()).is_dir() {
        return Ok(());
    }
    Err(format!(
        "the built-in plugins need the target {TARGET}; run: rustup target add {TARGET}"
    ))
}

fn run_cargo(workspace: &Path, target_folder: &Path) -> Result<(), String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--profile", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_folder);
    for plugin in PLUGINS {
        cargo
            .arg("--package")
            .arg(format!("gantry-plugin-{plugin}"));
    }
    if workspace.join("Cargo.lock").is_file() {
        cargo.arg("--locked");
    }
    for name in FOREIGN {
        cargo.env_remove(name);
    }
    let output = cargo
        .output()
        .map_err(|error| format!("cannot run cargo: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let detail = String::from_utf8_lossy(&output.stderr);
    Err(format!("the built-in plugins do not build:\n{detail}"))
}

fn variable(name: &str) -> Result<OsString, String> {
    env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"))
}
