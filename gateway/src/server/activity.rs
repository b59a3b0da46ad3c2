//! What a connection is doing, and until when it may go on doing it.
//!
//! Owns the time limits between requests: first byte, head, idle. A request in flight has none; its bodies have a minimum rate.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

/// The limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// From a head's first byte to its last.
    pub(super) header: Duration,
    /// Without any request.
    pub(super) idle: Duration,
}

/// Shared by the connection's I/O, its requests and its watcher.
#[derive(Debug)]
pub(super) struct Activity {
    limits: Limits,
    /// Short sections only, never held over an await.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    active: usize,
    requests: u64,
    idle_since: Instant,
    head_since: Option<Instant>,
    writing: bool,
    linger: bool,
}

impl Activity {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            state: Mutex::new(State {
                active: 0,
                requests: 0,
                idle_since: Instant::now(),
                head_since: None,
                writing: false,
                linger: false,
            }),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    /// A request begins; it lasts until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Active {
        self.change(|state| {
            state.active += 1;
            state.requests += 1;
            state.head_since = None;
        });
        Active(Arc::clone(self))
    }

    /// The first byte of a request's head is here.
    pub(super) fn head_began(&self) {
        self.change(|state| {
            state.head_since.get_or_insert_with(Instant::now);
        });
    }

    /// Whether bytes wait for the client to take them.
    pub(super) fn writing(&self, writing: bool) {
        self.change(|state| {
            state.writing = writing;
            state.idle_since = Instant::now();
        });
    }

    /// Part of a request's body will never be read: take it off the wire before closing, or the client's kernel drops our answer.
    pub(super) fn linger(&self) {
        self.state().linger = true;
    }

    pub(super) fn must_linger(&self) -> bool {
        self.state().linger
    }

    /// Whether any request was understood on this connection.
    pub(super) fn any_request(&self) -> bool {
        self.state().requests > 0
    }

    /// When the present phase has lasted too long; `None` while a request or a write is under way.
    fn limit(&self) -> Option<Instant> {
        let state = self.state();
        if state.active > 0 || state.writing {
            None
        } else if let Some(since) = state.head_since {
            Some(since + self.limits.header)
        } else {
            Some(state.idle_since + self.limits.idle)
        }
    }

    /// Completes when the present phase has lasted too long.
    pub(super) async fn expired(&self) {
        loop {
            let changed = self.changed.notified();
            match self.limit() {
                None => changed.await,
                Some(limit) if limit <= Instant::now() => return,
                Some(limit) => tokio::select! {
                    () = changed => {}
                    () = tokio::time::sleep_until(limit) => {}
                },
            }
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Active(Arc<Activity>);

impl Active {
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.change(|state| {
            state.active -= 1;
            state.idle_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        header: Duration::from_secs(10),
        idle: Duration::from_secs(60),
    };

    async fn expires_after(activity: &Activity) -> Duration {
        let started = Instant::now();
        activity.expired().await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_expires_after_the_idle_timeout() {
        let activity = Activity::new(LIMITS);
        assert_eq!(expires_after(&activity).await, LIMITS.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_head_expires_after_the_header_timeout() {
        let activity = Activity::new(LIMITS);
        tokio::time::advance(Duration::from_secs(30)).await;
        activity.head_began();
        assert_eq!(expires_after(&activity).await, LIMITS.header);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_in_flight_never_expires_and_then_idles_anew() {
        let activity = Activity::new(LIMITS);
        let active = activity.begin();
        let watched = Arc::clone(&activity);
        let waiting = tokio::spawn(async move { expires_after(&watched).await });
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!waiting.is_finished());
        drop(active);
        let waited = waiting.await.unwrap();
        assert_eq!(waited, Duration::from_secs(3600) + LIMITS.idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_under_way_does_not_expire() {
        let activity = Activity::new(LIMITS);
        activity.writing(true);
        let waited = tokio::time::timeout(Duration::from_secs(3600), activity.expired()).await;
        assert!(waited.is_err());
        activity.writing(false);
        assert_eq!(expires_after(&activity).await, LIMITS.idle);
    }
}
