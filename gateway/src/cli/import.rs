//! `gantry import --adopt --check FOLDER`: what the first start will make of another registry's folder, before anything is changed.

use std::{
    io::{self, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;
use gantry_storage::{Adoption, check_adoption};

use super::{Failure, counted};

/// Arguments of `gantry import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// About a folder that is adopted in place: `storage.blobs` names it, and the first start takes what is in it.
    #[arg(long, required = true)]
    adopt: bool,
    /// Only say what would be left out, and why. The adoption itself happens when `gantry serve` starts.
    #[arg(long, required = true)]
    check: bool,
    /// The data folder of a registry:2 or :3, its `rootdirectory`.
    folder: PathBuf,
}

pub(crate) fn run(arguments: &Import) -> Result<(), Failure> {
    let folder = &arguments.folder;
    let repositories = folder.join("docker/registry/v2/repositories");
    if !repositories.is_dir() {
        let why = "it has no docker/registry/v2/repositories: name the registry's rootdirectory";
        return Err(anyhow::anyhow!("{}: {why}", folder.display()).into());
    }
    let adoption = check_adoption(folder);
    let adoption = adoption.with_context(|| format!("cannot read {}", folder.display()))?;
    Ok(io::stdout().write_all(said(&adoption).as_bytes())?)
}

fn said(adoption: &Adoption) -> String {
    let mut text = String::new();
    for it in &adoption.left_out {
        text.push_str(&format!("left out  {}: {}\n", it.what, it.reason));
    }
    for (what, why) in &adoption.opaque {
        text.push_str(&format!(
            "opaque    {what}: adopted as it is; policies cannot read it: {why}\n"
        ));
    }
    let adopted = &adoption.adopted;
    let count =
        |number: u64, noun: &str| counted(usize::try_from(number).unwrap_or(usize::MAX), noun);
    let repositories = match adopted.repositories {
        1 => "1 repository".to_owned(),
        other => format!("{other} repositories"),
    };
    text.push_str(&format!(
        "{repositories}, {}, {} and {} would be adopted; {} would be left out\n",
        count(adopted.manifests, "manifest"),
        count(adopted.tags, "tag"),
        count(adopted.blobs, "blob"),
        count(adopted.skipped, "link"),
    ));
    text
}
