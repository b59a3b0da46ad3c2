//! Replaces the serving generation: load → verify → configure → self-test → one swap. Anything wrong keeps the old one.
//!
//! Owns the order, what is remembered of every attempt, and the way back when a new plugin keeps failing. One attempt at a time. Map:
//! `attempt` is an attempt's outcome, `restart` what cannot change while running, `files` what the files hold, `watch` sees them change.

pub mod attempt;
mod files;
mod restart;
mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gantry_registry::Clock as _;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch as channel};

pub use self::attempt::{Attempt, Refused, Reloaded, Source, Status, Trigger};
use self::files::{Prints, print};
use crate::{
    app::{App, Generation, plugins},
    clock::SystemClock,
    config::{Config, Report},
    policy::binding::{Binding, LastError, Trip},
    server::tls::{LoadedTls, ServedTls, TlsFiles},
};

/// How long after a reload a plugin that keeps failing is put back by itself. Later its failures are more likely somebody's doing, and
/// nobody may bring an older policy back by making the present one fail.
const PROBATION: Duration = Duration::from_secs(600);

/// Reloads one gateway.
#[derive(Debug)]
pub struct Reloader {
    app: Arc<App>,
    source: Source,
    tls: Vec<Option<ServedTls>>,
    /// Held over a whole attempt.
    turn: AsyncMutex<Turn>,
    /// Held for single operations, never over an await.
    status: Mutex<Status>,
    /// What every watched file held when it was last read.
    seen: Mutex<Prints>,
    files: channel::Sender<Arc<BTreeSet<PathBuf>>>,
    attempts: Family<AttemptLabels, Counter>,
    rollbacks: Counter,
}

/// What one attempt leaves to the next.
#[derive(Debug, Default)]
struct Turn {
    previous: HashMap<Arc<str>, Previous>,
}

/// The binding that ran under a name before the present one.
#[derive(Debug)]
struct Previous {
    binding: Arc<Binding>,
    until: Instant,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct AttemptLabels {
    trigger: &'static str,
    outcome: &'static str,
}

impl Reloader {
    /// Reloads `app` from `source`. `tls` is of its listeners, in the order of the configuration; `config` is what it runs.
    #[must_use]
    pub fn new(
        app: Arc<App>,
        source: Source,
        config: &Config,
        tls: Vec<Option<ServedTls>>,
    ) -> Arc<Self> {
        let files = source.with_own(&config.files);
        let reloader = Self {
            source,
            tls,
            turn: AsyncMutex::default(),
            status: Mutex::default(),
            seen: Mutex::new(print(&files, &Prints::default())),
            files: channel::Sender::new(Arc::new(files)),
            attempts: Family::default(),
            rollbacks: Counter::default(),
            app,
        };
        reloader.app.telemetry.register(|registry| {
            registry.register(
                "reloads",
                "Attempts to take a new configuration, by trigger and outcome",
                reloader.attempts.clone(),
            );
            registry.register(
                "plugin_rollbacks",
                "Plugins put back to their version before because they kept failing",
                reloader.rollbacks.clone(),
            );
        });
        Arc::new(reloader)
    }

    /// The gateway that is reloaded.
    #[must_use]
    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// How the attempts went.
    #[must_use]
    pub fn status(&self) -> Status {
        self.locked_status().clone()
    }

    fn locked_status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the files hold now, or says every reason why not and leaves everything as it is.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn reload(&self, trigger: Trigger) -> Result<Reloaded, Refused> {
        let mut turn = self.turn.lock().await;
        tracing::info!(trigger = trigger.as_str(), "reloading");
        let result = self.attempt(&mut turn).await;
        self.note(trigger, &result);
        result
    }

    async fn attempt(&self, turn: &mut Turn) -> Result<Reloaded, Refused> {
        let before = self.app.current();
        let config = self.read().await?;
        let mistakes = restart::mistakes(&before.config, &config);
        if !mistakes.is_empty() {
            return Err(Refused::because(mistakes));
        }
        let tls = self.read_tls(&config)?;
        let bindings = plugins::load(&self.app.lasting, &config, Some(&before))
            .await
            .map_err(Refused::plugins)?;
        let next = self
            .app
            .prepare(&config, bindings)
            .map_err(|error| Refused::because(vec![format!("{error:#}")]))?;
        for (served, loaded) in tls {
            served.replace(loaded);
        }
        let next = self.app.swap(next);
        turn.passed(&before, &next);
        Ok(Reloaded {
            generation: next.number,
            changed: changed(&before, &next),
        })
    }

    /// Reads the configuration, and takes down what its files hold. In this order: a file that changes after it was read differs from
    /// what was taken down, and is read again.
    async fn read(&self) -> Result<Config, Refused> {
        let watched = Arc::clone(&self.files.borrow());
        let known = self.seen().clone();
        let source = self.source.clone();
        let read = move || {
            let mut prints = print(&watched, &known);
            let loaded = source.load();
            let mut files = source.with_own(match &loaded {
                Ok(config) => &config.files,
                Err(report) => &report.files,
            });
            if loaded.is_err() {
                // What keeps serving is still made from these.
                files.extend(watched.iter().cloned());
            }
            prints.retain(|path, _| files.contains(path));
            prints.extend(
                print(&files, &prints)
                    .into_iter()
                    .filter(|(path, _)| !watched.contains(path)),
            );
            (loaded, files, prints)
        };
        let (loaded, files, prints) = tokio::task::spawn_blocking(read)
            .await
            .map_err(|error| Refused::because(vec![format!("cannot be read: {error}")]))?;
        *self.seen() = prints;
        self.files.send_replace(Arc::new(files));
        let config = loaded.map_err(|report: Report| Refused::config(&report))?;
        config.warnings.log();
        Ok(config)
    }

    fn seen(&self) -> MutexGuard<'_, Prints> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads every listener's certificate again; what did not change is left alone, so that clients' sessions go on.
    fn read_tls(&self, config: &Config) -> Result<Vec<(&ServedTls, LoadedTls)>, Refused> {
        let mut read = Vec::new();
        for (served, listen) in self.tls.iter().zip(&config.listen) {
            let (Some(served), Some(tls)) = (served, &listen.tls) else {
                continue;
            };
            let files = TlsFiles::from(tls);
            let refused = |error: anyhow::Error| {
                let place = &listen.address;
                Refused::because(vec![format!("cannot serve TLS on {place}: {error:#}")])
            };
            read.push((served, files.load().map_err(|error| refused(error.into()))?));
        }
        Ok(read)
    }

    /// Puts a plugin back to its version before, when there is one and the failing one is new.
    pub async fn roll_back(&self, trip: Trip) {
        let mut turn = self.turn.lock().await;
        let before = self.app.current();
        let failing = before
            .bindings
            .iter()
            .find(|binding| Arc::ptr_eq(&binding.health, &trip.health));
        let Some(failing) = failing else {
            return;
        };
        let Some(previous) = turn.take_back(&trip.plugin) else {
            tracing::error!(plugin.name = &*trip.plugin, error = %trip.error, "a plugin keeps failing; there is no recent version before it");
            return;
        };
        let put_back = |binding: &Arc<Binding>| {
            let same = Arc::ptr_eq(binding, failing);
            Arc::clone(if same { &previous } else { binding })
        };
        let bindings = before.bindings.iter().map(put_back).collect();
        match self.app.prepare(&before.config, bindings) {
            Ok(next) => {
                let next = self.app.swap(next);
                self.note_rollback(&trip, failing, &previous, next.number);
            }
            Err(error) => {
                tracing::error!(
                    plugin.name = &*trip.plugin,
                    error = format!("{error:#}"),
                    "a plugin keeps failing and cannot be put back"
                );
            }
        }
    }

    fn note_rollback(&self, trip: &Trip, failing: &Binding, previous: &Binding, generation: u64) {
        self.rollbacks.inc();
        let why = LastError {
            at_ms: SystemClock.now_ms(),
            text: trip.error.clone(),
        };
        self.locked_status()
            .rolled_back
            .insert(Arc::clone(&trip.plugin), why);
        tracing::error!(plugin.name = &*trip.plugin, plugin.digest = %previous.plugin.digest(), generation, error = %trip.error, "a plugin kept failing and was put back to its version before");
        tracing::info!(
            target: "audit",
            { plugin.name = &*trip.plugin,
            plugin.digest = %previous.plugin.digest(),
            failed.digest = %failing.plugin.digest(),
            generation,
            decision = "rolled-back",
            reason.text = trip.error.as_str() },
            "plugin rolled back"
        );
    }

    fn note(&self, trigger: Trigger, result: &Result<Reloaded, Refused>) {
        let outcome = if result.is_ok() { "taken" } else { "refused" };
        self.attempts
            .get_or_create(&AttemptLabels {
                trigger: trigger.as_str(),
                outcome,
            })
            .inc();
        let at_ms = SystemClock.now_ms();
        let mut status = self.locked_status();
        status.kept.clear();
        match result {
            Ok(reloaded) => {
                status.rolled_back.clear();
                tracing::info!(
                    trigger = trigger.as_str(),
                    generation = reloaded.generation,
                    changed = reloaded.changed.join(", "),
                    "reloaded"
                );
            }
            Err(refused) => {
                for (plugin, text) in &refused.plugins {
                    let text = text.clone();
                    status
                        .kept
                        .insert(Arc::clone(plugin), LastError { at_ms, text });
                }
                for problem in &refused.problems {
                    tracing::error!(trigger = trigger.as_str(), problem = %problem, "not reloaded; the old configuration stays");
                }
            }
        }
        status.last = Some(Attempt {
            at_ms,
            trigger,
            refused: result.as_ref().err().cloned(),
        });
    }

    /// Reloads when a watched file changes, until the process ends.
    pub async fn follow_files(self: Arc<Self>) {
        watch::follow(&self).await;
    }

    /// Puts failing plugins back, until the process ends.
    pub async fn follow_trips(self: Arc<Self>, mut tripped: mpsc::Receiver<Trip>) {
        while let Some(trip) = tripped.recv().await {
            self.roll_back(trip).await;
        }
    }
}

impl Turn {
    /// Remembers what ran before under each name that now runs something else.
    fn passed(&mut self, before: &Generation, next: &Generation) {
        let now = Instant::now();
        self.previous.retain(|name, previous| {
            previous.until > now && next.bindings.iter().any(|binding| binding.name() == name)
        });
        for binding in &next.bindings {
            let other = before.bindings.iter().find(|other| {
                other.name() == binding.name() && other.fingerprint != binding.fingerprint
            });
            if let Some(other) = other {
                let previous = Previous {
                    binding: Arc::clone(other),
                    until: now + PROBATION,
                };
                self.previous.insert(Arc::clone(binding.name()), previous);
            }
        }
    }

    fn take_back(&mut self, plugin: &Arc<str>) -> Option<Arc<Binding>> {
        let previous = self.previous.remove(plugin)?;
        (previous.until > Instant::now()).then_some(previous.binding)
    }
}

/// The plugins that are new or no longer what they were.
fn changed(before: &Generation, next: &Generation) -> Vec<String> {
    let is_new = |binding: &&Arc<Binding>| {
        !before
            .bindings
            .iter()
            .any(|other| other.fingerprint == binding.fingerprint)
    };
    next.bindings
        .iter()
        .filter(is_new)
        .map(|binding| binding.name().to_string())
        .collect()
}
