//! `gantry repository`: orders about one repository of a running gateway.

use std::io::{self, Write as _};

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::json;

use super::{
    Failure,
    admin::{Output, Target, at, cell, pretty},
};

/// What to do with a repository.
#[derive(Debug, Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Give a name below `hosted.or_upstream` back to its upstream. Everything that was pushed to it goes.
    Release(Release),
}

/// Arguments of `gantry repository release`.
#[derive(Args, Debug)]
pub(crate) struct Release {
    /// Its full name, such as `docker.io/library/alpine`.
    repository: String,
    #[command(flatten)]
    target: Target,
    /// How to print what was done.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Does it.
pub(super) fn run(command: &RepositoryCommand) -> Result<(), Failure> {
    let RepositoryCommand::Release(release) = command;
    let body = json!({ "repository": release.repository });
    let path = "/admin/v1/repositories/release";
    let done = release.target.send(Method::POST, path, &[], Some(&body))?;
    let text = match release.output {
        Output::Json => pretty(&done)?,
        Output::Text => format!("released: {}\n", cell(at(&done, "/released"))),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}
