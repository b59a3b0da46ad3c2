//! What a connection is doing, and until when it may go on doing it.
//!
//! Owns the time limits between requests: first byte, head, idle. A request in flight has none; its bodies have a minimum rate.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::auth::revocation::Transfer;

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
    /// The principal of what leaves was revoked.
    ended: bool,
    /// The response that leaves, for a principal that may be revoked: until the next request, because its last bytes wait here.
    transfer: Option<Transfer>,
    /// When the watcher looks next by itself; `None`: not before it is told.
    armed: Option<Instant>,
}

impl State {
    /// When the present phase has lasted too long; `None` while a request or a write is under way.
    fn limit(&self, limits: &Limits) -> Option<Instant> {
        if self.ended {
            Some(self.idle_since)
        } else if self.active > 0 || self.writing {
            None
        } else if let Some(since) = self.head_since {
            Some(since + limits.header)
        } else {
            Some(self.idle_since + limits.idle)
        }
    }
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
                ended: false,
                transfer: None,
                armed: None,
            }),
            changed: Notify::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the watcher only of a limit that is nearer than its next look: waking it costs a turn of the whole connection, and a
    /// request changes the state three times.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let limit = state.limit(&self.limits);
        let sooner = limit.is_some_and(|limit| state.armed.is_none_or(|armed| limit < armed));
        if sooner {
            state.armed = limit;
        }
        drop(state);
        if sooner {
            self.changed.notify_one();
        }
    }

    /// A request begins; it lasts until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Active {
        drop(self.runs(None));
        self.change(|state| {
            state.active += 1;
            state.requests += 1;
            state.head_since = None;
        });
        Active(Arc::clone(self))
    }

    /// What leaves now, in place of what left before, which is given back.
    pub(super) fn runs(&self, transfer: Option<Transfer>) -> Option<Transfer> {
        std::mem::replace(&mut self.state().transfer, transfer)
    }

    /// Ends the connection: what leaves is for a principal that was revoked.
    pub(super) fn end(&self) {
        self.change(|state| state.ended = true);
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

    /// Since when no request is in flight; `None` while one is.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.state();
        (state.active == 0).then_some(state.idle_since)
    }

    /// Whether any request was understood on this connection.
    pub(super) fn any_request(&self) -> bool {
        self.state().requests > 0
    }

    /// Completes when the present phase has lasted too long.
    pub(super) async fn expired(&self) {
        let mut timer = pin!(tokio::time::sleep(self.limits.idle));
        loop {
            let changed = self.changed.notified();
            match self.next_look(Instant::now()) {
                Look::Over => return,
                Look::WhenTold => changed.await,
                Look::At(next) => {
                    timer.as_mut().reset(next);
                    tokio::select! {
                        () = changed => {}
                        () = &mut timer => {}
                    }
                }
            }
        }
    }

    /// An earlier look that is still to come stays: the next head's limit will hardly be nearer, so it need not be told.
    fn next_look(&self, now: Instant) -> Look {
        let mut state = self.state();
        let limit = state.limit(&self.limits);
        if limit.is_some_and(|limit| limit <= now) {
            return Look::Over;
        }
        let kept = state.armed.filter(|armed| *armed > now);
        state.armed = limit.into_iter().chain(kept).min();
        state.armed.map_or(Look::WhenTold, Look::At)
    }
}

/// What the watcher does next.
enum Look {
    /// The phase has lasted too long.
    Over,
    /// It waits for a change.
    WhenTold,
    /// It looks again.
    At(Instant),
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Active(Arc<Activity>);

impl Active {
    pub(super) fn activity(&self) -> &Activity {
        &self.0
    }

    /// Keeps the same request in flight for another part of its response.
    pub(super) fn again(&self) -> Self {
        self.0.change(|state| state.active += 1);
        Self(Arc::clone(&self.0))
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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
    async fn a_head_that_begins_late_brings_the_limit_forward() {
        let activity = Activity::new(LIMITS);
        let watched = Arc::clone(&activity);
        let waiting = tokio::spawn(async move { expires_after(&watched).await });
        let later = Duration::from_secs(7);
        tokio::time::sleep(later).await;
        activity.head_began();
        assert_eq!(waiting.await.unwrap(), later + LIMITS.header);
    }

    async fn counting_polls(watched: Arc<Activity>, polls: Arc<AtomicUsize>) {
        let mut expired = pin!(watched.expired());
        let polled = std::future::poll_fn(|context| {
            polls.fetch_add(1, Ordering::Relaxed);
            expired.as_mut().poll(context)
        });
        polled.await;
    }

    #[tokio::test(start_paused = true)]
    async fn requests_one_after_the_other_wake_the_watcher_only_at_its_limits() {
        let activity = Activity::new(LIMITS);
        let woken = Arc::new(AtomicUsize::new(0));
        let (watched, counted) = (Arc::clone(&activity), Arc::clone(&woken));
        let waiting = tokio::spawn(counting_polls(watched, counted));
        for _request in 0..100 {
            activity.head_began();
            drop(activity.begin());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let woken = woken.load(Ordering::Relaxed);
        assert!(woken <= 3, "the watcher was woken {woken} times");
        let idle = Instant::now();
        waiting.await.unwrap();
        assert_eq!(
            idle.elapsed() + Duration::from_millis(10),
            LIMITS.idle,
            "and it still sees the end"
        );
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
