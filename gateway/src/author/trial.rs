//! Puts a component into a setting on the real plugin host and asks it.
//!
//! Owns how a decision is timed. Compiled code is kept in a folder of the trial's own, so a component is compiled once however many
//! cases there are.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use gantry_plugin_host::{
    Hook, Hooks, HostCall, LoadError, Plugin, PluginHost, PluginSource, Recorder,
};
use tempfile::TempDir;
use wit_parser::decoding::{DecodedWasm, decode};

use super::{
    answer::{Answer, differences},
    cases::{Case, Setting, hook_named},
    question::{Question, digest_of},
    world::BINDING,
};

/// A component on trial.
#[derive(Debug)]
pub struct Trial {
    component: Bytes,
    compiled: TempDir,
}

/// What became of a question.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was said.
    pub answer: Answer,
    /// What the guest asked of the host on the way, in order.
    pub calls: Vec<HostCall>,
}

/// How long decisions take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Compiling, linking, configuring and the self-test.
    pub load: Duration,
    /// The first decision.
    pub first: Duration,
    /// The median of the later ones.
    pub p50: Duration,
    /// Their 99th percentile.
    pub p99: Duration,
    /// How many there were.
    pub count: usize,
}

impl Trial {
    /// Takes a component.
    ///
    /// # Errors
    /// There is no room for compiled code.
    pub fn new(component: Bytes) -> anyhow::Result<Self> {
        Ok(Self {
            component,
            compiled: tempfile::tempdir().context("cannot make a temporary folder")?,
        })
    }

    /// The component's length.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.component.len()
    }

    /// The component's digest.
    #[must_use]
    pub fn digest(&self) -> String {
        digest_of(&self.component).to_string()
    }

    /// The hooks that the component exports. Compiles nothing.
    ///
    /// # Errors
    /// The bytes are no component.
    pub fn hooks(&self) -> anyhow::Result<Hooks> {
        let decoded = decode(&self.component).map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let DecodedWasm::Component(resolve, world) = decoded else {
            anyhow::bail!("it describes interfaces, and has no code");
        };
        let exports = resolve.worlds.get(world).map(|world| &world.exports);
        let names = exports
            .into_iter()
            .flatten()
            .map(|(key, _)| resolve.name_world_key(key));
        let hooks = names.filter_map(|name| {
            let interface = name.strip_prefix("gantry:plugin/")?;
            hook_named(interface.split('@').next()?).ok()
        });
        // Goes with `authenticator`, and is asked where a case names it.
        let hooks = hooks.filter(|hook| *hook != Hook::Principals);
        Ok(Hooks(hooks.collect()))
    }

    /// Asks one case's question in its setting.
    ///
    /// # Errors
    /// The setting cannot be made; a component that is not taken is an answer.
    pub async fn decide(&self, setting: &Setting, question: &Question) -> anyhow::Result<Outcome> {
        let recorder = Recorder::default();
        let plugin = match self.load(setting, &recorder).await? {
            Ok(plugin) => plugin,
            Err(refused) => {
                return Ok(Outcome {
                    answer: refused.into(),
                    calls: Vec::new(),
                });
            }
        };
        recorder.start();
        let answer = ask(&plugin, question).await;
        Ok(Outcome {
            answer,
            calls: recorder.finish(),
        })
    }

    /// Asks once, then `count` times more by the clock.
    ///
    /// # Errors
    /// The setting cannot be made, or the component is not taken.
    pub async fn time(
        &self,
        setting: &Setting,
        question: &Question,
        count: usize,
    ) -> anyhow::Result<Timing> {
        let began = Instant::now();
        let plugin = self.load(setting, &Recorder::default()).await??;
        let load = began.elapsed();
        let began = Instant::now();
        ask(&plugin, question).await;
        let first = began.elapsed();
        let mut later = Vec::with_capacity(count);
        for _ in 0..count.max(1) {
            let began = Instant::now();
            ask(&plugin, question).await;
            later.push(began.elapsed());
        }
        later.sort_unstable();
        let at = |percent: usize| {
            let index = (later.len() * percent / 100).min(later.len().saturating_sub(1));
            later.get(index).copied().unwrap_or_default()
        };
        Ok(Timing {
            load,
            first,
            p50: at(50),
            p99: at(99),
            count: later.len(),
        })
    }

    /// How the outcome of a case differs from what it expects, and the outcome.
    ///
    /// # Errors
    /// As [`Trial::decide`].
    pub async fn case(&self, case: &Case) -> anyhow::Result<(Vec<String>, Outcome)> {
        let outcome = self.decide(&case.setting, &case.question).await?;
        Ok((differences(&case.expect, &outcome.answer), outcome))
    }

    async fn load(
        &self,
        setting: &Setting,
        recorder: &Recorder,
    ) -> anyhow::Result<Result<Plugin, LoadError>> {
        let ports = setting.world.ports(self.compiled.path()).await?;
        let host = PluginHost::new(ports)?.recording(recorder.clone());
        let source = PluginSource {
            name: Arc::from(BINDING),
            component: self.component.clone(),
            config: setting.config.clone(),
            grants: setting.grants.clone(),
            limits: setting.limits,
            redaction: gantry_plugin_host::Redaction::default(),
        };
        Ok(host.load(source).await)
    }
}

async fn ask(plugin: &Plugin, question: &Question) -> Answer {
    match question {
        Question::Authenticate(request) => match plugin.authenticate(request).await {
            Ok(answer) => answer.into(),
            Err(failure) => failure.into(),
        },
        Question::Current(id) => match plugin.current(id).await {
            Ok(generation) => Answer::of_generation(generation.as_deref()),
            Err(failure) => failure.into(),
        },
        Question::Authorize(request) => match plugin.authorize(request).await {
            Ok(answer) => answer.into(),
            Err(failure) => failure.into(),
        },
        Question::Admit(request) => match plugin.admit(request).await {
            Ok(answer) => answer.into(),
            Err(failure) => failure.into(),
        },
        Question::Observe(batch) => match plugin.observe(&batch.events).await {
            Ok(deliveries) => Answer::of_deliveries(deliveries, batch.is_list),
            Err(failure) => failure.into(),
        },
    }
}
