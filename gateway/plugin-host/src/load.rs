//! Turns bytes into a plugin: checks, compiles (or takes the compiled code from the node's own cache), links, configures, tests.
//!
//! Owns every reason why a component is not taken, as a sentence. Fetches nothing: the binary brings the bytes.

use std::{hash::Hasher, sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::Digest;
use tokio::sync::Semaphore;
use wasmtime::component::{Component, InstancePre};

use crate::{
    bindings::exports::gantry::plugin::{
        admission, authenticator, authorizer, events, lifecycle, principals,
    },
    cache::{CompiledCache, file_name},
    call::{Allowance, Exports, Loaded, Plugin, Question, Said},
    code::{LoadedCode, Shared},
    convert::text,
    engine::{self, Runtime},
    error::LoadError,
    host::{CallState, PluginContext, jwks::KeySets, password::PasswordPool},
    inspect::{Inspection, digest_of, refuse_bytes},
    limits::Stop,
    ports::{HostPorts, PluginSource},
    receivers,
    record::{self, Recorder},
    stats::Counters,
};

/// Compiling takes at most so long: the largest interpreters need about 20 s of one core.
const MAX_COMPILE: Duration = Duration::from_secs(120);
/// `configure` runs before every call, so it gets a call's CPU time; only its wall time is generous.
const CONFIGURE_WALL: Duration = Duration::from_secs(10);
pub(crate) const SELF_TEST: Allowance = Allowance {
    wall: Duration::from_secs(30),
    cpu: Duration::from_secs(1),
};

const WASM_PAGE_BYTES: u64 = 64 << 10;

/// What all plugins of a host use together. Metric names are the binary's business.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct HostUsage {
    /// Instances alive.
    pub instances: u64,
    /// Instances that may be alive at once.
    pub max_instances: u64,
    /// Password checks that run or wait.
    pub password_checks: u64,
}

/// Loads components and lends them what they share.
#[derive(Clone)]
pub struct PluginHost {
    runtime: Arc<Runtime>,
    ports: HostPorts,
    passwords: Arc<PasswordPool>,
    key_sets: Arc<KeySets>,
    cache: Option<Arc<CompiledCache>>,
    code: Arc<LoadedCode>,
    recorder: Option<Recorder>,
}

impl PluginHost {
    /// Makes a host. The engine behind it is the process's one.
    ///
    /// # Errors
    /// [`LoadError`] when the engine cannot start or the cache directory cannot be used.
    pub fn new(ports: HostPorts) -> Result<Self, LoadError> {
        let fail = |reason| LoadError {
            plugin: "(host)".into(),
            reason,
        };
        let runtime = Runtime::shared().map_err(fail)?;
        let cache = ports.cache_directory.as_deref().map(|directory| {
            CompiledCache::open(directory)
                .map(Arc::new)
                .map_err(|error| {
                    fail(format!(
                        "cannot use {} for compiled plugins: {error}",
                        directory.display()
                    ))
                })
        });
        Ok(Self {
            runtime,
            passwords: Arc::new(PasswordPool::new(ports.password_checks)),
            key_sets: Arc::default(),
            cache: cache.transpose()?,
            code: Arc::default(),
            recorder: None,
            ports,
        })
    }

    /// Plugins loaded from now on tell `recorder` what they ask of the host, while it listens.
    #[must_use]
    pub fn recording(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// Makes the engine that every host of the process uses, so that a later [`PluginHost::new`] finds it. Blocks for milliseconds; what
    /// fails is told by whoever needs it.
    pub fn prepare() {
        Runtime::shared().ok();
    }

    /// What all plugins together use now.
    #[must_use]
    pub fn usage(&self) -> HostUsage {
        let slots = engine::SLOTS as usize;
        let free = self.runtime.slots.available_permits();
        HostUsage {
            instances: slots.saturating_sub(free) as u64,
            max_instances: slots as u64,
            password_checks: self.passwords.busy_count() as u64,
        }
    }

    /// Loads a component, configures it once and runs its self-test.
    ///
    /// # Errors
    /// [`LoadError`]: a sentence that says what does not fit and what would.
    pub async fn load(&self, source: PluginSource) -> Result<Plugin, LoadError> {
        let name = Arc::clone(&source.name);
        self.try_load(source).await.map_err(|reason| LoadError {
            plugin: name,
            reason,
        })
    }

    /// What a component is, without running it. Compiles it, so it may take seconds for large ones.
    ///
    /// # Errors
    /// [`LoadError`] when the bytes are no component at all; what merely does not fit is in [`Inspection::problems`].
    pub fn inspect(component: &[u8]) -> Result<Inspection, LoadError> {
        let inspect = || {
            if let Some(refused) = refuse_bytes(component) {
                return Err(refused);
            }
            let runtime = Runtime::shared()?;
            let compiled = compile(&runtime, None, component, "")?;
            let digest = digest_of(component).ok_or("cannot be hashed")?;
            let size = component.len();
            Ok(Inspection::of(&runtime.engine, &compiled, digest, size))
        };
        inspect().map_err(|reason| LoadError {
            plugin: "(inspected)".into(),
            reason,
        })
    }

    async fn try_load(&self, source: PluginSource) -> Result<Plugin, String> {
        refuse_binding(&source)?;
        if let Some(refused) = refuse_bytes(&source.component) {
            return Err(refused);
        }
        let digest = digest_of(&source.component).ok_or("cannot be hashed")?;
        let (code, component) = self.compiled(source.component.clone(), &digest).await?;
        let size = source.component.len();
        let engine = &self.runtime.engine;
        let inspection = Inspection::of(engine, &component, digest.clone(), size);
        if !inspection.problems.is_empty() {
            return Err(inspection.problems.join("; it "));
        }
        let permits = self.permits(&component, &source)?;
        let instance = self.link(&component)?;
        let exports = exports(&instance, &inspection)?;
        let loaded = Loaded {
            context: Arc::new(self.context(source)),
            runtime: Arc::clone(&self.runtime),
            digest,
            _code: code,
            hooks: inspection.hooks,
            instance,
            exports,
            permits: Arc::new(Semaphore::new(permits)),
            counters: Counters::default(),
        };
        configure(&loaded).await?;
        self_test(&loaded).await?;
        let receivers = receivers::listed(&loaded).await?;
        Ok(Plugin {
            loaded: Arc::new(loaded),
            receivers: receivers.into(),
        })
    }

    fn link(&self, component: &Component) -> Result<InstancePre<CallState>, String> {
        let linked = if self.recorder.is_some() {
            record::linker(&self.runtime.engine)
                .and_then(|linker| linker.instantiate_pre(component))
        } else {
            self.runtime.linker.instantiate_pre(component)
        };
        linked.map_err(|error| does_not_fit(&error))
    }

    fn context(&self, source: PluginSource) -> PluginContext {
        let config = match source.config {
            // A binding without `config`: an object, as every schema expects.
            serde_json::Value::Null => "{}".to_owned(),
            config => config.to_string(),
        };
        PluginContext {
            name: source.name,
            config,
            grants: source.grants,
            limits: source.limits,
            redaction: source.redaction,
            ports: self.ports.clone(),
            passwords: Arc::clone(&self.passwords),
            recorder: self.recorder.clone(),
            key_sets: Arc::clone(&self.key_sets),
        }
    }

    /// How many calls may run at once.
    fn permits(&self, component: &Component, source: &PluginSource) -> Result<usize, String> {
        let wanted = source.limits.concurrency;
        let Some(needs) = component.resources_required() else {
            return Err(
                "imports or exports modules or components, which a plugin may not".to_owned(),
            );
        };
        let initial = needs.max_initial_memory_size.unwrap_or(0) * WASM_PAGE_BYTES;
        if initial > source.limits.memory_bytes as u64 {
            return Err(format!(
                "begins with {initial} bytes of memory; its binding allows {}",
                source.limits.memory_bytes
            ));
        }
        let permits = engine::most_at_once(needs.num_memories, needs.num_tables, wanted);
        if permits < wanted {
            tracing::info!(
                plugin.name = &*source.name,
                wanted_count = wanted,
                permits_count = permits,
                "a plugin gets at most half of the instance pool"
            );
        }
        Ok(permits)
    }

    /// The compiled component: that of another binding, or made now.
    async fn compiled(
        &self,
        bytes: Bytes,
        digest: &Digest,
    ) -> Result<(Arc<Shared>, Component), String> {
        let make = self.make_code(bytes, digest.to_string());
        self.code.get_or_make(digest.as_str(), make).await
    }

    /// Off the executor and within a bound. A compilation over the bound still ends on its own thread.
    async fn make_code(&self, bytes: Bytes, digest: String) -> Result<Component, String> {
        let runtime = Arc::clone(&self.runtime);
        let cache = self.cache.clone();
        let work = tokio::task::spawn_blocking(move || {
            compile(&runtime, cache.as_deref(), &bytes, &digest)
        });
        match tokio::time::timeout(MAX_COMPILE, work).await {
            Ok(Ok(compiled)) => compiled,
            Ok(Err(_panicked)) => Err("cannot be compiled: the compiler gave up".to_owned()),
            Err(_elapsed) => Err(format!("takes longer than {MAX_COMPILE:?} to compile")),
        }
    }
}

impl std::fmt::Debug for PluginHost {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PluginHost")
            .field("ports", &self.ports)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

/// What of a binding cannot be honored.
fn refuse_binding(source: &PluginSource) -> Result<(), String> {
    // The name is the first part of the names of its key-value buckets.
    if source.name.is_empty() || source.name.contains('/') {
        return Err("its name must not be empty and must not contain `/`".to_owned());
    }
    let limits = &source.limits;
    if limits.memory_bytes > engine::MAX_MEMORY_BYTES {
        return Err(format!(
            "its memory limit of {} bytes is over the host's {}",
            limits.memory_bytes,
            engine::MAX_MEMORY_BYTES
        ));
    }
    let times = [
        limits.deadline,
        limits.cpu,
        limits.batch_deadline,
        limits.batch_cpu,
    ];
    if times.iter().any(Duration::is_zero) || limits.concurrency == 0 {
        return Err("its deadline, CPU time and concurrency must not be zero".to_owned());
    }
    Ok(())
}

fn exports(instance: &InstancePre<CallState>, inspection: &Inspection) -> Result<Exports, String> {
    Ok(Exports {
        lifecycle: lifecycle::GuestIndices::new(instance).map_err(|error| does_not_fit(&error))?,
        authenticator: optional(inspection, "authenticator", || {
            authenticator::GuestIndices::new(instance)
        })?,
        principals: optional(inspection, "principals", || {
            principals::GuestIndices::new(instance)
        })?,
        authorizer: optional(inspection, "authorizer", || {
            authorizer::GuestIndices::new(instance)
        })?,
        admission: optional(inspection, "admission", || {
            admission::GuestIndices::new(instance)
        })?,
        events: optional(inspection, "events", || events::GuestIndices::new(instance))?,
    })
}

/// An export that may be missing, but not half there.
fn optional<T>(
    inspection: &Inspection,
    interface: &str,
    find: impl FnOnce() -> wasmtime::Result<T>,
) -> Result<Option<T>, String> {
    if !inspection.exports_own(interface) {
        return Ok(None);
    }
    find().map(Some).map_err(|error| does_not_fit(&error))
}

fn does_not_fit(error: &wasmtime::Error) -> String {
    let detail = text::clean(&format!("{error:#}"), 1024);
    format!("does not fit gantry:plugin@0.1: {detail}")
}

async fn configure(loaded: &Loaded) -> Result<(), String> {
    let allowance = Allowance {
        wall: CONFIGURE_WALL,
        cpu: loaded.context.limits.cpu,
    };
    let said = loaded.run(None, Question::Configure, allowance).await;
    let Said::Configured(issues) = said.map_err(|stop| stopped("configure", &stop))? else {
        return Err("answered another question".to_owned());
    };
    let sentence = |issue: &lifecycle::ConfigIssue| {
        let pointer = text::clean(&issue.pointer, 256);
        let place = if pointer.is_empty() { "/" } else { &pointer };
        format!("{place}: {}", text::clean(&issue.message, 512))
    };
    let fatal: Vec<String> = issues
        .iter()
        .filter(|issue| issue.fatal)
        .map(sentence)
        .collect();
    if !fatal.is_empty() {
        return Err(format!("refuses its config: {}", fatal.join("; ")));
    }
    for issue in &issues {
        tracing::warn!(
            plugin.name = &*loaded.context.name,
            "config {}",
            sentence(issue)
        );
    }
    Ok(())
}

async fn self_test(loaded: &Loaded) -> Result<(), String> {
    let said = loaded.run(None, Question::SelfTest, SELF_TEST).await;
    match said.map_err(|stop| stopped("self-test", &stop))? {
        Said::Tested(Ok(())) => Ok(()),
        Said::Tested(Err(why)) => Err(format!("fails its self-test: {}", text::clean(&why, 512))),
        _ => Err("answered another question".to_owned()),
    }
}

pub(crate) fn stopped(what: &str, stop: &Stop) -> String {
    format!(
        "its {what} failed ({}): {}",
        stop.failure.as_str(),
        stop.detail
    )
}

/// Compiles, or takes the code from the cache when this node put it there.
fn compile(
    runtime: &Runtime,
    cache: Option<&CompiledCache>,
    bytes: &[u8],
    digest: &str,
) -> Result<Component, String> {
    let engine = &runtime.engine;
    let entry = cache.map(|cache| {
        let mut build = HashedBytes::default();
        std::hash::Hash::hash(&engine.precompile_compatibility_hash(), &mut build);
        let version = env!("CARGO_PKG_VERSION").as_bytes();
        (cache, file_name(&[digest.as_bytes(), &build.0, version]))
    });
    let stored = entry
        .as_ref()
        .and_then(|(cache, name)| cache.read(name))
        .and_then(|code| deserialize(runtime, &code));
    if let Some(component) = stored {
        return Ok(component);
    }
    let component = Component::new(engine, bytes).map_err(|error| {
        let detail = text::clean(&format!("{error:#}"), 1024);
        format!("is not a valid component: {detail}")
    })?;
    if let Some((cache, name)) = &entry {
        let written = component
            .serialize()
            .map_err(std::io::Error::other)
            .and_then(|code| cache.write(name, &code));
        if let Err(error) = written {
            tracing::warn!(error = %error, "cannot keep a compiled plugin; it is compiled again at the next start");
        }
    }
    // Not at the first call: whoever loads pays.
    component
        .initialize_copy_on_write_image()
        .map_err(|error| format!("cannot be prepared: {error:#}"))?;
    Ok(component)
}

/// Code that this node compiled.
#[expect(
    unsafe_code,
    reason = "running compiled code is what a cache of it is for"
)]
fn deserialize(runtime: &Runtime, code: &[u8]) -> Option<Component> {
    // SAFETY: `code` carries a MAC under this node's key over its name and every byte, checked by `CompiledCache::read`; only
    // `CompiledCache::write` makes such a MAC, and only over what `Component::serialize` gave. The name is a digest over the engine's
    // compatibility hash, so the code was compiled by this version of wasmtime with these settings.
    let component = unsafe { Component::deserialize(&runtime.engine, code) };
    component
        .and_then(|component| {
            component.initialize_copy_on_write_image()?;
            Ok(component)
        })
        .inspect_err(|error| {
            tracing::warn!(
                error = format!("{error:#}"),
                "cannot use a compiled plugin; it is compiled again"
            );
        })
        .ok()
}

/// Collects what a value feeds to its hasher.
#[derive(Default)]
struct HashedBytes(Vec<u8>);

impl Hasher for HashedBytes {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(&self) -> u64 {
        0
    }
}
