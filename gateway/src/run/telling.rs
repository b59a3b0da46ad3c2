//! The tasks that write and deliver events, from the start to the drain.
//!
//! Owns when receivers are replaced: at each swap the former tasks end after the call they are in. The next task of the same receiver goes on
//! where the outbox says that the former one stopped, and no receiver waits for another one's call.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::{app::App, events::Dispatchers};

/// How long a drain waits for receivers of events.
const STOP_TELLING: Duration = Duration::from_secs(5);

/// What writes and delivers events.
pub(super) struct Telling {
    stop: watch::Sender<bool>,
    gather: JoinHandle<()>,
    deliver: JoinHandle<()>,
    watch: JoinHandle<()>,
}

impl Telling {
    pub(super) fn start(app: &Arc<App>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let events = Arc::clone(&app.current().events);
        Self {
            watch: tokio::spawn(Arc::clone(&events).watch(stopped.clone())),
            gather: tokio::spawn(events.gather(stopped.clone())),
            deliver: tokio::spawn(deliver(Arc::clone(app), stopped)),
            stop,
        }
    }

    /// Writes down what was told last; what is not delivered by then is after the next start.
    pub(super) async fn stop(self) {
        self.stop.send_replace(true);
        let stop = async {
            let (gathered, delivered, watched) =
                tokio::join!(self.gather, self.deliver, self.watch);
            if let Err(error) = gathered.and(delivered).and(watched) {
                tracing::error!(%error, "a task of the events failed");
            }
        };
        if tokio::time::timeout(STOP_TELLING, stop).await.is_err() {
            tracing::warn!("a receiver of events took too long; what it was told is told again");
        }
    }
}

/// Delivers to the receivers of the generation that serves, until `stopped`.
async fn deliver(app: Arc<App>, mut stopped: watch::Receiver<bool>) {
    let mut swaps = app.swaps();
    let mut ending = JoinSet::new();
    loop {
        let dispatchers = dispatchers(&app).await;
        let is_over = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => true,
            swapped = swaps.changed() => swapped.is_err(),
        };
        if let Some(dispatchers) = dispatchers {
            ending.spawn(dispatchers.stop());
        }
        while ending.try_join_next().is_some() {}
        if is_over {
            ending.join_all().await;
            return;
        }
    }
}

async fn dispatchers(app: &App) -> Option<Dispatchers> {
    let generation = app.current();
    let started = generation
        .events
        .start(generation.receivers.clone(), &generation.config.events);
    started
        .await
        .inspect_err(|error| {
            tracing::error!(
                error = error as &dyn std::error::Error,
                "the receivers of events cannot be registered; events wait for the next reload"
            );
        })
        .ok()
}
