//! What each binding's calls came to: decisions, time, failures.
//!
//! Owns these names and the handles that make counting cheap: a cached decision costs less than a look-up of its labels. Labels are
//! binding names and closed enums.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use gantry_plugin_host::{CallError, Failure, Hook};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

/// What a plugin said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(usize)]
pub enum Asked {
    /// An authenticator knows the credential.
    Authenticated,
    /// An authenticator does not.
    NotMine,
    /// An authenticator refuses it, or an admission the content.
    Rejected,
    /// An authorizer or admission allows.
    Allowed,
    /// An authorizer refuses.
    Denied,
    /// No opinion.
    Abstained,
    /// Not yet.
    Held,
    /// Another hook did its work.
    Done,
    /// No answer: see the failures.
    Failed,
    /// Whoever asked left before the answer.
    Dropped,
}

impl Asked {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Authenticated => "authenticated",
            Self::NotMine => "not_mine",
            Self::Rejected => "reject",
            Self::Allowed => "allow",
            Self::Denied => "deny",
            Self::Abstained => "abstain",
            Self::Held => "hold",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

const OUTCOMES: usize = Asked::Dropped as usize + 1;
const HOOKS: usize = 7;

/// The metric label of a hook.
pub(super) fn hook_label(hook: Hook) -> &'static str {
    match hook {
        Hook::Authenticate => "authenticate",
        Hook::Principals => "principals",
        Hook::Authorize => "authorize",
        Hook::Admit => "admit",
        Hook::Scan => "scan",
        Hook::Observe => "observe",
        Hook::Manage => "manage",
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DecisionLabels {
    plugin: Arc<str>,
    hook: &'static str,
    outcome: &'static str,
    cached: bool,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CallLabels {
    plugin: Arc<str>,
    hook: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct FailureLabels {
    plugin: Arc<str>,
    hook: &'static str,
    kind: &'static str,
}

/// The three families.
#[derive(Clone, Debug)]
pub(super) struct PluginFamilies {
    decisions: Family<DecisionLabels, Counter>,
    seconds: Family<CallLabels, Histogram>,
    failures: Family<FailureLabels, Counter>,
}

impl PluginFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self {
            decisions: Family::default(),
            seconds: Family::new_with_constructor(call_seconds),
            failures: Family::default(),
        };
        registry.register(
            "decisions",
            "Answers of plugins; cached: the plugin was not asked again",
            families.decisions.clone(),
        );
        registry.register_with_unit(
            "plugin_call",
            "Time of a plugin's call, the wait for its place included",
            Unit::Seconds,
            families.seconds.clone(),
        );
        registry.register(
            "plugin_failures",
            "Calls of plugins that gave no answer",
            families.failures.clone(),
        );
        families
    }

    pub(super) fn meter(&self, name: &Arc<str>) -> PluginMeter {
        let counters = (0..HOOKS * OUTCOMES * 2).map(|_| OnceLock::new()).collect();
        let times = (0..HOOKS).map(|_| OnceLock::new()).collect();
        PluginMeter(Arc::new(Meter {
            name: Arc::clone(name),
            families: self.clone(),
            counters,
            times,
        }))
    }
}

/// Counts one binding's calls. Cheap to clone.
#[derive(Clone)]
pub struct PluginMeter(Arc<Meter>);

struct Meter {
    name: Arc<str>,
    families: PluginFamilies,
    counters: Vec<OnceLock<Counter>>,
    times: Vec<OnceLock<Histogram>>,
}

impl fmt::Debug for PluginMeter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PluginMeter")
            .field("plugin", &self.0.name)
            .finish_non_exhaustive()
    }
}

impl PluginMeter {
    /// Counts an answer that came from the cache.
    pub fn cached(&self, hook: Hook, outcome: Asked) {
        self.count(hook, outcome, true);
    }

    /// Runs a call and counts how it ended, also when whoever waits for it goes away.
    ///
    /// # Errors
    /// The call's.
    pub async fn measured<A>(
        &self,
        hook: Hook,
        call: impl Future<Output = Result<A, CallError>>,
        outcome: impl FnOnce(&A) -> Asked,
    ) -> Result<A, CallError> {
        let mut running = Running {
            meter: self,
            hook,
            began: Instant::now(),
            outcome: Asked::Dropped,
        };
        let answer = call.await;
        running.outcome = match &answer {
            Ok(answer) => outcome(answer),
            Err(error) => {
                self.count_failure(hook, error.failure);
                Asked::Failed
            }
        };
        answer
    }

    fn count(&self, hook: Hook, outcome: Asked, cached: bool) {
        let place = (hook as usize * OUTCOMES + outcome as usize) * 2 + usize::from(cached);
        let labels = || DecisionLabels {
            plugin: Arc::clone(&self.0.name),
            hook: hook_label(hook),
            outcome: outcome.as_str(),
            cached,
        };
        let family = &self.0.families.decisions;
        if let Some(counter) = self.0.counters.get(place) {
            let counter = counter.get_or_init(|| family.get_or_create_owned(&labels()));
            counter.inc();
        }
    }

    fn count_failure(&self, hook: Hook, failure: Failure) {
        let labels = FailureLabels {
            plugin: Arc::clone(&self.0.name),
            hook: hook_label(hook),
            kind: failure.as_str(),
        };
        self.0.families.failures.get_or_create(&labels).inc();
    }

    fn time(&self, hook: Hook, took: Duration) {
        let labels = || CallLabels {
            plugin: Arc::clone(&self.0.name),
            hook: hook_label(hook),
        };
        let family = &self.0.families.seconds;
        if let Some(times) = self.0.times.get(hook as usize) {
            let times = times.get_or_init(|| family.get_or_create_owned(&labels()));
            times.observe(took.as_secs_f64());
        }
    }
}

/// A call under way.
struct Running<'a> {
    meter: &'a PluginMeter,
    hook: Hook,
    began: Instant,
    outcome: Asked,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.meter.time(self.hook, self.began.elapsed());
        self.meter.count(self.hook, self.outcome, false);
    }
}

/// From 5 microseconds, less than any call takes, to 10 seconds, more than any may.
fn call_seconds() -> Histogram {
    Histogram::new([
        0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
        0.01, 0.05, 0.25, 1.0, 10.0,
    ])
}
