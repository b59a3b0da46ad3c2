//! One call: a permit, a fresh instance, `configure`, the hook, and what it was that failed.
//!
//! Owns the order permit → store → instance → answer, and the classification of failures. An instance is never used twice: whatever
//! happens, the store is dropped with everything the guest did in it.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use gantry_model::{
    AdmissionRequest, Digest, Requester,
    event::{Delivery, Event},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::{
    PoolConcurrencyLimitError, Store, Trap,
    component::{Instance, InstancePre, ResourceTableError},
};

use crate::{
    bindings::{
        exports::gantry::plugin::{
            admission, authenticator, authorizer, events, lifecycle, principals,
        },
        gantry::plugin::types,
    },
    code::Shared,
    convert,
    engine::Runtime,
    error::{CallError, Failure},
    hook::{
        AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest,
        Hooks,
    },
    host::{CallState, PluginContext},
    limits::{CallClock, Stop},
    receivers::EventReceiver,
    stats::{Counters, Stats},
};

/// A loaded component, ready to be called. Cheap to clone; the code is unmapped when the last clone is gone.
#[derive(Clone)]
pub struct Plugin {
    pub(crate) loaded: Arc<Loaded>,
    pub(crate) receivers: Arc<[EventReceiver]>,
}

/// What `load` made of a component.
pub(crate) struct Loaded {
    pub(crate) context: Arc<PluginContext>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) digest: Digest,
    /// Keeps the code findable for other bindings of the component.
    pub(crate) _code: Arc<Shared>,
    pub(crate) hooks: Hooks,
    pub(crate) instance: InstancePre<CallState>,
    pub(crate) exports: Exports,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) counters: Counters,
}

/// Where the component's exports are.
pub(crate) struct Exports {
    pub(crate) lifecycle: lifecycle::GuestIndices,
    pub(crate) authenticator: Option<authenticator::GuestIndices>,
    pub(crate) principals: Option<principals::GuestIndices>,
    pub(crate) authorizer: Option<authorizer::GuestIndices>,
    pub(crate) admission: Option<admission::GuestIndices>,
    pub(crate) events: Option<events::GuestIndices>,
}

/// What a fresh instance is asked.
pub(crate) enum Question {
    Configure,
    SelfTest,
    Authenticate(authenticator::AuthnRequest),
    Current(String),
    Authorize(authorizer::AuthzRequest),
    Admit(Box<admission::AdmissionRequest>),
    Observe(Batch),
    ConfigSchema,
}

/// Events, and the context of the receiver that they are for.
pub(crate) struct Batch {
    events: Vec<events::Event>,
    context: Arc<PluginContext>,
}

/// What it said.
pub(crate) enum Said {
    Configured(Vec<lifecycle::ConfigIssue>),
    Tested(Result<(), String>),
    Authenticated(authenticator::Outcome),
    Current(Option<String>),
    Authorized(authorizer::Decision),
    Admitted(admission::Decision),
    Observed(Vec<events::Outcome>),
    ConfigSchema(String),
}

/// Time that a call gets.
#[derive(Clone, Copy)]
pub(crate) struct Allowance {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

impl Question {
    /// How long the document is that it hands over.
    fn document_bytes(&self) -> usize {
        match self {
            Self::Admit(request) => request.document.as_ref().map_or(0, convert::length),
            _ => 0,
        }
    }
}

impl Plugin {
    /// The binding's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.loaded.context.name
    }

    /// The component's digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.loaded.digest
    }

    /// The hooks it takes part in.
    #[must_use]
    pub fn hooks(&self) -> &Hooks {
        &self.loaded.hooks
    }

    /// What its calls came to so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.loaded.counters.read()
    }

    /// Asks who a credential belongs to.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn authenticate(
        &self,
        request: &AuthenticateRequest,
    ) -> Result<AuthenticateAnswer, CallError> {
        let question = Question::Authenticate(convert::authenticate_request(request));
        let began = Instant::now();
        let answer = async {
            match self.loaded.call(None, question).await? {
                Said::Authenticated(outcome) => convert::authenticate_answer(self.name(), outcome),
                _ => Err(mismatch()),
            }
        };
        let answer = answer.await;
        self.loaded.record(began, answer)
    }

    /// Whether it tells what became of its principals.
    #[must_use]
    pub fn knows_principals(&self) -> bool {
        self.loaded.exports.principals.is_some()
    }

    /// Asks which generation a principal has now; `None` when it is gone.
    ///
    /// # Errors
    /// [`CallError`]; never that it is gone.
    pub async fn current(&self, id: &str) -> Result<Option<Arc<str>>, CallError> {
        let question = Question::Current(id.to_owned());
        let began = Instant::now();
        let answer = async {
            match self.loaded.call(None, question).await? {
                Said::Current(generation) => generation.map(convert::generation).transpose(),
                _ => Err(mismatch()),
            }
        };
        let answer = answer.await;
        self.loaded.record(began, answer)
    }

    /// Asks whether a principal may do something.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn authorize(
        &self,
        request: &AuthorizeRequest,
    ) -> Result<AuthorizeAnswer, CallError> {
        let question = Question::Authorize(convert::authorize_request(request));
        let requester = Some(request.requester.clone());
        let began = Instant::now();
        let answer = async {
            match self.loaded.call(requester, question).await? {
                Said::Authorized(decision) => {
                    convert::authorize_answer(self.name(), &request.scopes, decision)
                }
                _ => Err(mismatch()),
            }
        };
        let answer = answer.await;
        self.loaded.record(began, answer)
    }

    /// Asks whether content may enter, change or leave.
    ///
    /// # Errors
    /// [`CallError`]; never a decision.
    pub async fn admit(&self, request: &AdmissionRequest) -> Result<AdmitAnswer, CallError> {
        let requester = Some(request.requester.clone());
        let began = Instant::now();
        let answer = async {
            let question = Question::Admit(Box::new(convert::admit_request(request)?));
            match self.loaded.call(requester, question).await? {
                Said::Admitted(decision) => Ok(convert::admit_answer(self.name(), decision)),
                _ => Err(mismatch()),
            }
        };
        let answer = answer.await;
        self.loaded.record(began, answer)
    }

    /// The receivers that its configuration lists, when its schema marks them. Each gets events by [`Plugin::observe_for`].
    #[must_use]
    pub fn receivers(&self) -> &[EventReceiver] {
        &self.receivers
    }

    /// Hands over a batch of events; answers what became of each, in the order of the events. Nobody asks, so the plugin reads nothing
    /// of the registry.
    ///
    /// # Errors
    /// [`CallError`]; nothing is known to be delivered.
    pub async fn observe(&self, events: &[Event]) -> Result<Vec<Delivery>, CallError> {
        self.observe_in(&self.loaded.context, events).await
    }

    /// [`Plugin::observe`] with a configuration that lists one of [`Plugin::receivers`] alone.
    ///
    /// # Errors
    /// [`CallError`]; nothing is known to be delivered.
    pub async fn observe_for(
        &self,
        receiver: &EventReceiver,
        events: &[Event],
    ) -> Result<Vec<Delivery>, CallError> {
        self.observe_in(&receiver.context, events).await
    }

    async fn observe_in(
        &self,
        context: &Arc<PluginContext>,
        events: &[Event],
    ) -> Result<Vec<Delivery>, CallError> {
        let began = Instant::now();
        let answer = async {
            let question = Question::Observe(Batch {
                events: convert::events(events)?,
                context: Arc::clone(context),
            });
            match self.loaded.call(None, question).await? {
                Said::Observed(outcomes) => convert::deliveries(events.len(), outcomes),
                _ => Err(mismatch()),
            }
        };
        let answer = answer.await;
        self.loaded.record(began, answer)
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Plugin")
            .field("name", self.name())
            .field("digest", self.digest())
            .field("hooks", self.hooks())
            .finish_non_exhaustive()
    }
}

/// A place among the plugin's calls and among all instances.
struct Place {
    _of_plugin: OwnedSemaphorePermit,
    _of_pool: OwnedSemaphorePermit,
}

impl Loaded {
    /// Counts a finished call and names the plugin in its error.
    fn record<T>(&self, began: Instant, answer: Result<T, Stop>) -> Result<T, CallError> {
        let failure = answer.as_ref().err().map(|stop| stop.failure);
        self.counters.count(failure, began.elapsed());
        answer.map_err(|stop| self.context.error(stop))
    }

    /// One call with the binding's limits.
    async fn call(&self, requester: Option<Requester>, question: Question) -> Result<Said, Stop> {
        let limits = &self.context.limits;
        let allowance = match &question {
            Question::Observe(_) => Allowance {
                wall: limits.batch_deadline,
                cpu: limits.batch_cpu,
            },
            _ => Allowance {
                wall: limits.deadline,
                cpu: limits.cpu,
            },
        };
        self.run(requester, question, allowance).await
    }

    /// Takes a place, then asks a fresh instance. Waiting for the place and running each take at most the allowance's wall time.
    pub(crate) async fn run(
        &self,
        requester: Option<Requester>,
        question: Question,
        allowance: Allowance,
    ) -> Result<Said, Stop> {
        let place = self.place(allowance.wall).await?;
        let live = self.counters.live();
        let clock = Arc::new(CallClock::start(allowance.wall, allowance.cpu));
        clock.grant(question.document_bytes());
        let mut store = self.store(requester, &clock, &question);
        let output = store.data().output.clone();
        let answered = {
            let mut ask = Box::pin(self.ask(&mut store, question));
            let metered = poll_fn(|context| clock.metered(|| ask.as_mut().poll(context)));
            within(&clock, metered).await
        };
        // The instance is gone before its place is free.
        drop(store);
        drop(live);
        drop(place);
        answered.map_err(|mut stop| {
            let wrote = output.text();
            if !wrote.is_empty() {
                stop.detail = format!("{}; it wrote: {wrote}", stop.detail);
            }
            stop
        })
    }

    async fn place(&self, patience: Duration) -> Result<Place, Stop> {
        // Mostly both are free, and waiting costs a timer.
        if let Ok(of_plugin) = Arc::clone(&self.permits).try_acquire_owned()
            && let Ok(of_pool) = Arc::clone(&self.runtime.slots).try_acquire_owned()
        {
            return Ok(Place {
                _of_plugin: of_plugin,
                _of_pool: of_pool,
            });
        }
        let both = async {
            let of_plugin = Arc::clone(&self.permits).acquire_owned().await.ok()?;
            let of_pool = Arc::clone(&self.runtime.slots).acquire_owned().await.ok()?;
            Some(Place {
                _of_plugin: of_plugin,
                _of_pool: of_pool,
            })
        };
        tokio::time::timeout(patience, both)
            .await
            .ok()
            .flatten()
            .ok_or_else(|| {
                Stop::new(
                    Failure::Saturated,
                    format!("no place came free within {patience:?}"),
                )
            })
    }

    fn store(
        &self,
        requester: Option<Requester>,
        clock: &Arc<CallClock>,
        question: &Question,
    ) -> Store<CallState> {
        let (context, of_batch) = match question {
            Question::Observe(batch) => (&batch.context, true),
            _ => (&self.context, false),
        };
        let limits = &context.limits;
        let state = CallState::new(context, requester, Arc::clone(clock), of_batch);
        let mut store = Store::new(&self.runtime.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.hostcall_bytes);
        store.set_max_component_handles(limits.handles);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| Ok(store.data().clock.tick()?));
        store
    }

    /// Instantiates, configures and asks.
    async fn ask(
        &self,
        store: &mut Store<CallState>,
        question: Question,
    ) -> wasmtime::Result<Said> {
        let instance = self.instance.instantiate_async(&mut *store).await?;
        let guest = self.exports.lifecycle.load(&mut *store, &instance)?;
        let context = Arc::clone(&store.data().context);
        let issues = guest
            .call_configure(&mut *store, &context.config)
            .await?
            .err()
            .unwrap_or_default();
        match question {
            Question::Configure => {
                self.check_exports(store, &instance)?;
                Ok(Said::Configured(issues))
            }
            _ if issues.iter().any(|issue| issue.fatal) => Err(Stop::new(
                Failure::Contract,
                "refused in a call the configuration it accepted at load",
            )
            .into()),
            Question::SelfTest => {
                let tested = guest.call_self_test(&mut *store).await?;
                Ok(Said::Tested(tested))
            }
            Question::ConfigSchema => {
                let schema = guest.call_config_schema(&mut *store).await?;
                Ok(Said::ConfigSchema(schema))
            }
            question => self.ask_hook(store, &instance, question).await,
        }
    }

    /// Asks the hook of a configured instance.
    async fn ask_hook(
        &self,
        store: &mut Store<CallState>,
        instance: &Instance,
        question: Question,
    ) -> wasmtime::Result<Said> {
        let exports = &self.exports;
        match question {
            Question::Authenticate(request) => {
                let hook = exported(exports.authenticator.as_ref())?.load(&mut *store, instance)?;
                let outcome = hook.call_authenticate(&mut *store, &request).await?;
                Ok(Said::Authenticated(answered(outcome)?))
            }
            Question::Current(id) => {
                let hook = exported(exports.principals.as_ref())?.load(&mut *store, instance)?;
                let generation = hook.call_current(&mut *store, &id).await?;
                Ok(Said::Current(answered(generation)?))
            }
            Question::Authorize(request) => {
                let hook = exported(exports.authorizer.as_ref())?.load(&mut *store, instance)?;
                let decision = hook.call_authorize(&mut *store, &request).await?;
                Ok(Said::Authorized(answered(decision)?))
            }
            Question::Admit(request) => {
                let hook = exported(exports.admission.as_ref())?.load(&mut *store, instance)?;
                let decision = hook.call_admit(&mut *store, &request).await?;
                Ok(Said::Admitted(answered(decision)?))
            }
            Question::Observe(batch) => {
                let hook = exported(exports.events.as_ref())?.load(&mut *store, instance)?;
                let outcomes = hook.call_observe(&mut *store, &batch.events).await?;
                Ok(Said::Observed(answered(outcomes)?))
            }
            Question::Configure | Question::SelfTest | Question::ConfigSchema => {
                Err(mismatch().into())
            }
        }
    }

    /// Whether each exported hook has the contract's types: known only once there is an instance.
    fn check_exports(
        &self,
        store: &mut Store<CallState>,
        instance: &Instance,
    ) -> wasmtime::Result<()> {
        if let Some(indices) = &self.exports.authenticator {
            indices.load(&mut *store, instance)?;
        }
        if let Some(indices) = &self.exports.principals {
            indices.load(&mut *store, instance)?;
        }
        if let Some(indices) = &self.exports.authorizer {
            indices.load(&mut *store, instance)?;
        }
        if let Some(indices) = &self.exports.admission {
            indices.load(&mut *store, instance)?;
        }
        if let Some(indices) = &self.exports.events {
            indices.load(&mut *store, instance)?;
        }
        Ok(())
    }
}

/// Ends `call` when its clock has run out, however far the clock has moved meanwhile.
async fn within(
    clock: &CallClock,
    call: impl Future<Output = wasmtime::Result<Said>>,
) -> Result<Said, Stop> {
    let mut call = pin!(call);
    loop {
        let remaining = clock.remaining();
        if remaining.is_zero() {
            return Err(clock.overdue());
        }
        let patience = remaining.max(Duration::from_millis(1));
        if let Ok(said) = tokio::time::timeout(patience, call.as_mut()).await {
            return said.map_err(|error| classify(&error));
        }
    }
}

fn exported<T>(indices: Option<&T>) -> Result<&T, Stop> {
    indices.ok_or_else(|| Stop::new(Failure::Contract, "does not export this hook"))
}

/// What a guest answered, or its own failure.
fn answered<T>(answer: Result<T, types::PluginError>) -> Result<T, Stop> {
    answer.map_err(|error| convert::plugin_error(&error))
}

/// A question is always answered by its own kind of answer.
fn mismatch() -> Stop {
    Stop::new(Failure::Contract, "answered another question")
}

/// wasmtime keeps the types of these two errors to itself; the tests with hostile guests hold their texts.
fn is_quota(detail: &str) -> bool {
    detail.contains("fuel allocated for hostcalls")
        || detail.contains("store handle limit exceeded")
}

/// What kind of failure an error is. By type wherever there is one.
fn classify(error: &wasmtime::Error) -> Stop {
    tracing::debug!(error = format!("{error:?}"), "a guest was stopped");
    let detail = convert::text::clean(&error.root_cause().to_string(), 512);
    if let Some(stop) = error.downcast_ref::<Stop>() {
        return Stop::new(stop.failure, stop.detail.clone());
    }
    if let Some(full) = error.downcast_ref::<ResourceTableError>() {
        let quota = matches!(full, ResourceTableError::Full);
        return Stop::new(
            if quota {
                Failure::HostQuota
            } else {
                Failure::Trap
            },
            detail,
        );
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Stop::new(Failure::Saturated, detail);
    }
    if error.is::<wasmtime_wasi::I32Exit>() {
        return Stop::new(Failure::Trap, detail);
    }
    let failure = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => Failure::Deadline,
        Some(Trap::AllocationTooLarge) => Failure::Memory,
        // The value it passed is not one of its type.
        Some(
            Trap::InvalidChar
            | Trap::StringOutOfBounds
            | Trap::ListOutOfBounds
            | Trap::InvalidDiscriminant
            | Trap::UnalignedPointer,
        ) => Failure::Contract,
        Some(_) => Failure::Trap,
        None if is_quota(&detail) => Failure::HostQuota,
        None => Failure::Contract,
    };
    Stop::new(failure, detail)
}
