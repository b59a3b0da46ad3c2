//! `gantry plugin …` for authors: arguments, and what is printed of a trial.
//!
//! Owns the form of the output. What is tried and how is `gantry::author`'s.

mod build;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use gantry::author::{
    Mistake,
    bindings::{self, Language},
    cases::{Case, Setting, Suite, hook_named, only_hook},
    docs,
    question::Question,
    template,
    trial::{Outcome, Timing, Trial},
};
use gantry_plugin_host::{Hooks, HostCall};
use serde_json::{Value, json};

/// Arguments of `gantry plugin new`.
#[derive(Debug, Args)]
pub(crate) struct New {
    /// The plugin's name, and the folder it is written to.
    name: PathBuf,
    /// What it takes part in: admission, authorizer, authenticator or events.
    #[arg(long, default_value = "admission")]
    hook: String,
}

/// Arguments of `gantry plugin build`.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The plugin's folder: built by cargo, or by its Makefile into build/plugin.wasm. Or a core module, of which a component is made.
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// Of a core module: where the component goes.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Of a core module: what it decides, unless the module says its world itself.
    #[arg(long, requires = "output")]
    hook: Option<String>,
}

/// Arguments of `gantry plugin bindings`.
#[derive(Debug, Args)]
pub(crate) struct Bindings {
    /// The language: c or go.
    language: Language,
    /// What the plugin takes part in: admission, authorizer, authenticator or events; revoking-authenticator is an authenticator that also
    /// exports `principals`, managed-authenticator one that also exports `management`.
    #[arg(long, default_value = "admission")]
    hook: String,
    /// The folder they are written to.
    #[arg(long, short, value_name = "FOLDER")]
    output: PathBuf,
}

/// Arguments of `gantry plugin test`.
#[derive(Debug, Args)]
pub(crate) struct Test {
    /// The plugin's folder, which is built first, or a component.
    #[arg(default_value = ".")]
    plugin: PathBuf,
    /// The cases. Default: tests/cases.yaml in the plugin's folder.
    #[arg(long)]
    cases: Option<PathBuf>,
}

/// Arguments of `gantry plugin run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// The component.
    component: PathBuf,
    /// What is asked: admission, authorizer, authenticator or events. Default: the component's only hook.
    #[arg(long)]
    hook: Option<String>,
    /// The question in the form of a case's `request`: JSON, or a file of it. Everything has a default.
    #[arg(long, default_value = "{}")]
    request: String,
    /// The binding's `config`: JSON, or a file of it.
    #[arg(long)]
    config: Option<String>,
    /// A case file whose `config`, `grants`, `limits` and `host` are used.
    #[arg(long)]
    cases: Option<PathBuf>,
    /// How many decisions are timed after the first.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Writes a new plugin.
pub(crate) fn new(arguments: &New) -> anyhow::Result<()> {
    let name = arguments
        .name
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let files = template::files(name, &arguments.hook).map_err(|error| anyhow!(error))?;
    let shown = arguments.name.display();
    template::write(&arguments.name, &files).with_context(|| format!("cannot write {shown}"))?;
    print(&format!(
        "{shown} is written. The decision is in {shown}/src/lib.rs; now:\n\n  cd {shown}\n  gantry plugin test\n"
    ))
}

/// Builds a component and says what it is.
pub(crate) fn build(arguments: &Build) -> anyhow::Result<()> {
    let plugin = &arguments.plugin;
    let component = match &arguments.output {
        Some(output) => {
            build::of_module(plugin, arguments.hook.as_deref(), output)?;
            output.clone()
        }
        None if plugin.is_file() => {
            bail!(
                "{} is a file: say where its component goes by --output FILE",
                plugin.display()
            )
        }
        None => build::component(plugin)?,
    };
    let (trial, hooks) = on_trial(&component)?;
    if hooks.0.is_empty() {
        bail!(
            "{} takes part in no hook; for a core module that does not say its world, name one by --hook",
            component.display()
        );
    }
    print(&format!(
        "{}\n  size      {} bytes\n  digest    {}\n",
        component.display(),
        trial.size_bytes(),
        trial.digest()
    ))
}

/// Writes the contract in a language whose own tools do not read it.
pub(crate) fn bindings(arguments: &Bindings) -> anyhow::Result<()> {
    let output = &arguments.output;
    for (path, text) in bindings::files(arguments.language, &arguments.hook)? {
        let path = output.join(path);
        let written = std::fs::create_dir_all(path.parent().unwrap_or(output))
            .and_then(|()| std::fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Runs every case.
pub(crate) fn test(arguments: &Test) -> anyhow::Result<()> {
    let is_folder = arguments.plugin.is_dir();
    let component = if is_folder {
        build::component(&arguments.plugin)?
    } else {
        arguments.plugin.clone()
    };
    let file = match &arguments.cases {
        Some(file) => file.clone(),
        None if is_folder => arguments.plugin.join("tests/cases.yaml"),
        None => bail!("a component has no cases of its own: name them by --cases FILE"),
    };
    let (trial, hooks) = on_trial(&component)?;
    let suite = Suite::read(&file).map_err(|mistakes| all(&file, &mistakes))?;
    let cases = suite
        .cases(&hooks)
        .map_err(|mistakes| all(&file, &mistakes))?;
    let executor = executor()?;
    let mut failed = 0;
    for case in &cases {
        let (differences, outcome) = executor.block_on(trial.case(case))?;
        print(&report(&file, case, &differences, &outcome))?;
        if differences.is_empty() {
            continue;
        }
        failed += 1;
        // Each of the others would compile it again only to say the same.
        if outcome.answer.is_refused() {
            bail!(
                "{} is not taken; the other cases were not tried",
                component.display()
            );
        }
    }
    print(&format!(
        "{} passed, {failed} failed\n",
        cases.len() - failed
    ))?;
    if failed > 0 {
        let are = if failed == 1 { "case does" } else { "cases do" };
        bail!("{failed} {are} not hold");
    }
    Ok(())
}

fn report(file: &Path, case: &Case, differences: &[String], outcome: &Outcome) -> String {
    if differences.is_empty() {
        return format!("ok    {}\n", case.name);
    }
    let mut text = format!(
        "FAIL  {}\n      {}:{}\n",
        case.name,
        file.display(),
        case.line
    );
    for difference in differences {
        text.push_str(&format!("      - {difference}\n"));
    }
    text.push_str(&format!("      answer: {}\n", outcome.answer.to_json()));
    for call in &outcome.calls {
        text.push_str(&format!("      host: {}\n", shown(call)));
    }
    text
}

fn shown(call: &HostCall) -> String {
    format!("{}({}) -> {}", call.name, call.arguments, call.answer)
}

/// Asks once, and by the clock.
pub(crate) fn run(arguments: &Run) -> anyhow::Result<()> {
    let (trial, hooks) = on_trial(&arguments.component)?;
    let hook = match &arguments.hook {
        Some(name) => hook_named(name),
        None => only_hook(&hooks),
    };
    let hook = hook.map_err(|error| anyhow!(error))?;
    let question = Question::read(hook, json_of(&arguments.request)?)
        .map_err(|(keys, message)| anyhow!("--request {}: {message}", keys.join(".")))?;
    let mut setting = match &arguments.cases {
        None => Setting::bare(),
        Some(file) => Suite::read(file)
            .map_err(|mistakes| all(file, &mistakes))?
            .setting()
            .map_err(|mistake| all(file, &[mistake]))?,
    };
    if let Some(config) = &arguments.config {
        setting = setting.configured(json_of(config)?);
    }
    let executor = executor()?;
    let timing = executor.block_on(trial.time(&setting, &question, arguments.calls))?;
    let outcome = executor.block_on(trial.decide(&setting, &question))?;
    if arguments.json {
        print(&format!("{}\n", run_as_json(&trial, &timing, &outcome)))?;
    } else {
        print(&run_as_text(&trial, &timing, &outcome))?;
    }
    if outcome.answer.is_failure() {
        bail!("the plugin did not decide");
    }
    Ok(())
}

fn run_as_json(trial: &Trial, timing: &Timing, outcome: &Outcome) -> Value {
    let calls = outcome.calls.iter().map(|call| {
        json!({ "name": call.name, "arguments": call.arguments, "answer": call.answer, "us": microseconds(call.took) })
    });
    json!({
        "answer": outcome.answer.to_json(),
        "component": { "digest": trial.digest(), "bytes": trial.size_bytes() },
        "us": {
            "load": microseconds(timing.load), "first": microseconds(timing.first),
            "p50": microseconds(timing.p50), "p99": microseconds(timing.p99), "calls": timing.count,
        },
        "host_calls": calls.collect::<Vec<Value>>(),
    })
}

fn run_as_text(trial: &Trial, timing: &Timing, outcome: &Outcome) -> String {
    let mut text = format!(
        "{}\n  component  {} bytes, {}\n  cold       {:.1} ms: {:.1} ms to compile and load, {:.1} us for the first decision\n  warm       {:.1} us p50, {:.1} us p99 of {} decisions, each in a fresh instance\n",
        outcome.answer.to_json(),
        trial.size_bytes(),
        trial.digest(),
        microseconds(timing.load + timing.first) / 1e3,
        microseconds(timing.load) / 1e3,
        microseconds(timing.first),
        microseconds(timing.p50),
        microseconds(timing.p99),
        timing.count,
    );
    for call in &outcome.calls {
        let took = microseconds(call.took);
        text.push_str(&format!("  host       {}  {took:.1} us\n", shown(call)));
    }
    text
}

/// Prints the contract.
pub(crate) fn docs() -> anyhow::Result<()> {
    print(&docs::markdown()?)
}

fn on_trial(component: &Path) -> anyhow::Result<(Trial, Hooks)> {
    let trial = Trial::new(Bytes::from(read(component)?))?;
    let hooks = trial
        .hooks()
        .with_context(|| format!("{} is no plugin", component.display()))?;
    Ok((trial, hooks))
}

fn read(component: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(component).with_context(|| format!("cannot read {}", component.display()))
}

/// An argument that is JSON, or the name of a file of it.
fn json_of(argument: &str) -> anyhow::Result<Value> {
    let text = if argument.trim_start().starts_with(['{', '"', '[']) {
        argument.to_owned()
    } else {
        std::fs::read_to_string(argument).with_context(|| format!("cannot read {argument}"))?
    };
    serde_json::from_str(&text).with_context(|| format!("{argument} is not JSON"))
}

fn all(file: &Path, mistakes: &[Mistake]) -> anyhow::Error {
    let lines: Vec<String> = mistakes
        .iter()
        .map(|mistake| match mistake.line {
            Some(line) => format!("{}:{line}: {mistake}", file.display()),
            None => format!("{}: {mistake}", file.display()),
        })
        .collect();
    anyhow!(lines.join("\n       "))
}

/// Where trials run. Guests see every log level enabled, so that their lines are among the host calls that are shown.
fn executor() -> anyhow::Result<tokio::runtime::Runtime> {
    tracing_subscriber::fmt()
        .with_env_filter("plugin=trace")
        .with_writer(io::sink)
        .init();
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start")
}

fn microseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
