//! The command line: what can be asked of the program, and how it ends.
//!
//! Owns exit codes (0 done, 1 failed, 2 misused, 3 configuration wrong, 4 not reachable) and everything printed. Results go to
//! standard output, complaints to standard error.

mod admin;
mod cache;
mod events;
mod first_start;
mod htpasswd;
mod import;
mod plugin;
mod repository;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use gantry::{
    config::{self, Config, Report},
    reload::Source,
};
use gantry_plugin_host::PluginHost;

/// An OCI registry gateway: policy in the data path of a correct proxy cache.
#[derive(Debug, Parser)]
#[command(
    name = "gantry",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until told to stop. Without a file: pull-through of the public registries and local pushes, on this machine only.
    Serve {
        /// The configuration, gantry.yaml.
        file: Option<PathBuf>,
    },
    /// Say every mistake of a configuration at once.
    Check {
        /// The configuration, gantry.yaml.
        file: PathBuf,
    },
    /// About the configuration's form.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Add or change a user of builtin:htpasswd; the password comes from a prompt or the first line of standard input.
    Htpasswd(Htpasswd),
    /// Say what the first start on the data folder of another registry will adopt, and what it will leave out.
    Import(import::Import),
    /// Have a running gateway take its configuration anew, or say every reason why it does not.
    Reload(admin::Target),
    /// End a principal's tokens, remembered logins and running transfers in a running gateway.
    Revoke(admin::Revoke),
    /// About what the mirrors of a running gateway have cached.
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// About one repository of a running gateway.
    #[command(subcommand)]
    Repository(repository::RepositoryCommand),
    /// About events that wait for their receivers in a running gateway.
    #[command(subcommand)]
    Events(events::EventsCommand),
    /// About plugins.
    #[command(subcommand)]
    Plugin(PluginCommand),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of gantry.yaml, for editors.
    Schema,
}

#[derive(Debug, Subcommand)]
enum PluginCommand {
    /// List the plugins that a running gateway has, and how they do.
    List {
        #[command(flatten)]
        target: admin::Target,
        /// How to print them.
        #[arg(long, value_enum, default_value_t)]
        output: admin::Output,
    },
    /// Say what a component exports, imports and needs granted.
    Inspect {
        /// The component, a .wasm file.
        file: PathBuf,
    },
    /// Write a new plugin in Rust: a policy of twenty lines, its cases, and all it needs to be built from crates.io alone.
    New(plugin::New),
    /// Build a plugin's component.
    Build(plugin::Build),
    /// Write the contract as C or Go, for a plugin in that language.
    Bindings(plugin::Bindings),
    /// Run a plugin's cases on the real plugin host. Ends with 1 when one does not hold.
    Test(plugin::Test),
    /// Ask a component once, and say how long it took and what it asked of the host.
    Run(plugin::Run),
    /// Print the contract as Markdown: what is asked, what may be answered, what the host offers.
    Docs,
}

/// Arguments of `gantry htpasswd`.
#[derive(Debug, Args)]
pub(crate) struct Htpasswd {
    /// The password file; made when it is not there.
    file: PathBuf,
    /// The user.
    user: String,
    /// Take the user away.
    #[arg(short, long)]
    remove: bool,
}

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Exit code 1.
    Failed(anyhow::Error),
    /// Exit code 3.
    Config(Report),
    /// Exit code 3: a running gateway does not take its configuration, for these reasons.
    Refused(String),
    /// Exit code 4.
    Unreachable(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Self::Config(report)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl Failure {
    /// Prints why, and says how the program ends.
    pub(crate) fn explain(&self) -> ExitCode {
        let (text, code) = match self {
            Self::Failed(error) => (format!("error: {error:#}\n"), 1),
            Self::Config(report) => (format!("{report}\n"), 3),
            Self::Refused(reasons) => (format!("{reasons}\n"), 3),
            Self::Unreachable(error) => (format!("error: {error:#}\n"), 4),
        };
        // Nobody is left to tell when standard error is closed; the exit code still says it.
        drop(io::stderr().write_all(text.as_bytes()));
        ExitCode::from(code)
    }
}

/// Does what was asked.
pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    match arguments.command {
        Command::Serve { file } => serve(file.as_deref()),
        Command::Check { file } => check(&file),
        Command::Config(ConfigCommand::Schema) => schema(),
        Command::Htpasswd(arguments) => Ok(htpasswd::run(&arguments)?),
        Command::Import(arguments) => import::run(&arguments),
        Command::Reload(target) => admin::reload(&target),
        Command::Revoke(revoke) => admin::revoke(&revoke),
        Command::Cache(command) => cache::run(&command),
        Command::Repository(command) => repository::run(&command),
        Command::Events(command) => events::run(&command),
        Command::Plugin(PluginCommand::List { target, output }) => admin::list(&target, output),
        Command::Plugin(PluginCommand::Inspect { file }) => inspect(&file),
        Command::Plugin(PluginCommand::New(arguments)) => Ok(plugin::new(&arguments)?),
        Command::Plugin(PluginCommand::Build(arguments)) => Ok(plugin::build(&arguments)?),
        Command::Plugin(PluginCommand::Bindings(arguments)) => Ok(plugin::bindings(&arguments)?),
        Command::Plugin(PluginCommand::Test(arguments)) => Ok(plugin::test(&arguments)?),
        Command::Plugin(PluginCommand::Run(arguments)) => Ok(plugin::run(&arguments)?),
        Command::Plugin(PluginCommand::Docs) => Ok(plugin::docs()?),
    }
}

fn serve(file: Option<&Path>) -> Result<(), Failure> {
    let load = || file.map_or_else(Config::quickstart, Config::load);
    let mut config = load()?;
    if let Some(banner) = first_start::prepare(&config, file.is_none())? {
        // The password file is part of a plugin's configuration.
        config = load()?;
        io::stdout().write_all(banner.to_string().as_bytes())?;
    }
    let source = file.map_or(Source::Quickstart, |file| Source::File(file.to_owned()));
    Ok(gantry::run::run(&config, source)?)
}

fn check(file: &Path) -> Result<(), Failure> {
    let config = Config::load(file)?;
    io::stderr().write_all(config.warnings.to_string().as_bytes())?;
    let text = format!(
        "{}: valid: {} listening, {}, {}\n",
        file.display(),
        config.listen.len(),
        counted(config.mirrors.len(), "mirror"),
        counted(config.plugins.len(), "plugin"),
    );
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn counted(count: usize, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

fn schema() -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(config::schema()).map_err(anyhow::Error::from)?;
    text.push('\n');
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// Everything about a component that a binding has to know.
fn inspect(file: &Path) -> Result<(), Failure> {
    let component =
        std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let inspection = PluginHost::inspect(&component).map_err(anyhow::Error::from)?;
    let mut text = format!(
        "{}\n  digest    {}\n  size      {} bytes\n",
        file.display(),
        inspection.digest,
        inspection.size_bytes
    );
    for hook in &inspection.hooks.0 {
        text.push_str(&format!("  hook      {hook:?}\n"));
    }
    for (title, names) in [
        ("export", &inspection.exports),
        ("import", &inspection.imports),
        ("inert", &inspection.wasi),
    ] {
        for name in names {
            text.push_str(&format!("  {title:<9} {name}\n"));
        }
    }
    for capability in &inspection.capabilities {
        let grant = capability.grant.map_or_else(
            || "always there".to_owned(),
            |key| format!("needs `grants: {{ {key}: … }}`"),
        );
        text.push_str(&format!(
            "  can       {}: {} ({grant})\n",
            capability.interface, capability.purpose
        ));
    }
    for problem in &inspection.problems {
        text.push_str(&format!("  problem   {problem}\n"));
    }
    io::stdout().write_all(text.as_bytes())?;
    if inspection.problems.is_empty() {
        Ok(())
    } else {
        Err(anyhow::anyhow!("{} would not load", file.display()).into())
    }
}
