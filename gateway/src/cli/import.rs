//! `gantry import --adopt --check FOLDER`: what the first start will make of another registry's folder, before anything is changed.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use gantry::{
    app::{AdoptionPlan, is_pull_through, uncovered},
    config::Config,
};
use gantry_storage::{AdoptAs, Adoption, check_adoption};

use super::{Failure, counted};

/// Arguments of `gantry import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// About a folder that is adopted in place: `storage.blobs` names it, and the first start takes what is in it.
    #[arg(long, required = true)]
    adopt: bool,
    /// Only say what would happen, and what would be left out and why. The adoption itself happens when `gantry serve` starts.
    #[arg(long, required = true)]
    check: bool,
    /// The configuration that `gantry serve` will start with: it decides what a pull-through cache's folder becomes (`mirrors`,
    /// `storage.adopt`). Without it, clients are taken to have pushed what is in the folder.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
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
    let config = arguments.config.as_deref().map(Config::load).transpose()?;
    let (adopt_as, outcome) = planned(config.as_ref(), folder)?;
    let adoption = check_adoption(folder, adopt_as);
    let adoption = adoption.with_context(|| format!("cannot read {}", folder.display()))?;
    let text = format!("{}{outcome}", said(&adoption));
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// What the folder's repositories become at the first start, and a line that says so.
fn planned(config: Option<&Config>, folder: &Path) -> anyhow::Result<(AdoptAs, String)> {
    let is_pull_through = is_pull_through(folder);
    let Some(config) = config else {
        let outcome = match is_pull_through {
            false => {
                "the first start makes them hosted repositories, if `hosted.names` covers their names; name the configuration by --config to see whether it does\n"
            }
            true => {
                "a pull-through cache filled this folder (scheduler-state.json): the first start gives them to the default mirror, or to the only one; with `storage: { adopt: hosted }` they become hosted repositories; name the configuration by --config to see which\n"
            }
        };
        return Ok((AdoptAs::Pushed, outcome.to_owned()));
    };
    match AdoptionPlan::of(config, folder) {
        AdoptionPlan::Hosted => {
            if let Some(why) = uncovered(config, folder)? {
                bail!(
                    "`gantry serve` would not start with {}: {why}",
                    folder.display()
                )
            }
            let outcome = "the first start makes them hosted repositories\n".to_owned();
            Ok((AdoptAs::Pushed, outcome))
        }
        AdoptionPlan::Mirrored { mirror, adopt_as } => {
            let outcome =
                format!("the first start makes them repositories of the mirror {mirror}\n");
            Ok((adopt_as, outcome))
        }
        AdoptionPlan::Refused(why) => {
            bail!(
                "`gantry serve` would not start with {}: {why}",
                folder.display()
            )
        }
    }
}

fn said(adoption: &Adoption) -> String {
    let mut text = String::new();
    for it in &adoption.left_out {
        text.push_str(&format!("left out  {}: {}\n", it.what, it.reason));
    }
    for (what, size) in &adoption.unhashed {
        text.push_str(&format!(
            "unhashed  {what}: {size} bytes; the first start reads them, and leaves it out if they have another digest\n"
        ));
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
    text.push_str(
        "content was not hashed, except manifests and what a repository knows by the digest of another algorithm\n",
    );
    text
}
