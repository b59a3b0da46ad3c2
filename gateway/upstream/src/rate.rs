//! How often an upstream may be asked: what it says itself, and what the operator allows.
//!
//! Owns the pauses after a 429 or a `Retry-After`, what Docker Hub's `RateLimit` headers told last, and the pacing of requests.
//! Sends nothing and sleeps never: it says how long.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Cause, Kind};

/// The pause after a 429 that names none, as Docker Hub's pull limit does; each one after it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause, whatever an upstream says: a mistaken `Retry-After` must not switch a mirror off for a day.
const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);
/// The shortest, for a `Retry-After: 0`.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// What a response says about how often we may ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word {
    /// A 429, or a 503 that names a time.
    pub(crate) refusal: Option<Kind>,
    /// `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// `RateLimit-Limit` and `RateLimit-Remaining`.
    pub(crate) quota: Option<Quota>,
    /// Whether it comes from another origin, which speaks for itself only.
    pub(crate) is_foreign: bool,
}

/// A pull quota as the upstream last stated it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    /// Requests allowed in a window.
    pub limit: u64,
    /// Requests left of them.
    pub remaining: u64,
    /// The window's length, when stated.
    pub window: Option<Duration>,
}

/// What one base URL allows now.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Guards the whole state; held for a few instructions only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Set by whoever named a time: nothing is asked.
    all: Option<Pause>,
    /// Set by a 429 without a time: this class of requests is not sent. At Docker Hub, manifests run out and blobs do not.
    classes: HashMap<&'static str, Pause>,
    quota: Option<Quota>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
    kind: Kind,
}

impl Pause {
    fn left(&self, now: Instant) -> Option<(Kind, Duration)> {
        let left = self.until.saturating_duration_since(now);
        (!left.is_zero()).then_some((self.kind, left))
    }
}

impl Budget {
    /// Leave to ask, or why not and for how long.
    pub(crate) fn admit(&self, class: &'static str, now: Instant) -> Result<(), (Kind, Duration)> {
        let state = self.state();
        let pauses = state.all.iter().chain(state.classes.get(class));
        let longest = pauses.filter_map(|pause| pause.left(now));
        longest.max_by_key(|(_, left)| *left).map_or(Ok(()), Err)
    }

    /// Takes in what a response to a request of that class said.
    pub(crate) fn hear(&self, class: &'static str, word: Word, now: Instant) {
        let mut state = self.state();
        if !word.is_foreign {
            state.quota = word.quota.or(state.quota);
        }
        let Some(kind) = word.refusal else {
            state.classes.remove(class);
            return;
        };
        let known = state.classes.get(class).copied();
        // Calls that were under way together are refused together; that is one refusal.
        if word.retry_after.is_none() && known.is_some_and(|pause| pause.left(now).is_some()) {
            return;
        }
        let doubled = known.map_or(FIRST_PAUSE, |pause| pause.length.saturating_mul(2));
        let length = word.retry_after.unwrap_or(doubled);
        let length = length.clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        let pause = Pause {
            until: now + length,
            length,
            kind,
        };
        if word.retry_after.is_some() && !word.is_foreign {
            state.all = Some(pause);
        } else {
            state.classes.insert(class, pause);
        }
    }

    /// What was stated last.
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.state().quota
    }

    /// The longest pause that is on, of whatever class.
    pub(crate) fn paused_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let pauses = state.all.iter().chain(state.classes.values());
        pauses
            .filter_map(|pause| pause.left(now))
            .map(|(_, left)| left)
            .max()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads `100;w=21600` and `76;w=21600`, as Docker Hub sends them.
pub(crate) fn quota(limit: &str, remaining: &str) -> Option<Quota> {
    let mut parts = limit.split(';').map(str::trim);
    let limit = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok());
    Some(Quota {
        limit,
        remaining: remaining.split(';').next()?.trim().parse().ok()?,
        window: window.map(Duration::from_secs),
    })
}

/// At most so many requests per second over time; a second's worth may go at once.
#[derive(Debug)]
pub(crate) struct Pacer {
    interval: Duration,
    burst: Duration,
    /// When the next request would be due without a burst; held for a few instructions only.
    due: Mutex<Option<Instant>>,
}

impl Pacer {
    pub(crate) fn new(per_second: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self {
            interval,
            burst: Duration::from_secs(1).saturating_sub(interval),
            due: Mutex::new(None),
        }
    }

    /// How long to wait before sending, when that is at most `patience`: then the turn is taken. Else how long it would be.
    pub(crate) fn take(&self, now: Instant, patience: Duration) -> Result<Duration, Duration> {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.map_or(now, |due| due.max(now));
        let wait = next
            .saturating_duration_since(now)
            .saturating_sub(self.burst);
        if wait > patience {
            return Err(wait);
        }
        *due = Some(next + self.interval);
        Ok(wait)
    }
}

/// Why a pause refuses, as a cause.
pub(crate) fn cause_of(kind: Kind) -> Cause {
    match kind {
        Kind::RateLimited => Cause::RateLimit,
        _ => Cause::Paused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limited(seconds: Option<u64>) -> Word {
        Word {
            refusal: Some(Kind::RateLimited),
            retry_after: seconds.map(Duration::from_secs),
            ..Word::default()
        }
    }

    #[test]
    fn a_time_that_is_named_pauses_everything_until_then() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear("manifests", limited(Some(60)), now);
        let refused = Err((Kind::RateLimited, SECOND * 60));
        assert_eq!(budget.admit("manifests", now), refused);
        assert_eq!(budget.admit("blobs", now), refused);
        assert_eq!(budget.paused_for(now), Some(SECOND * 60));
        assert_eq!(budget.admit("blobs", now + SECOND * 60), Ok(()));
    }

    #[test]
    fn a_429_without_a_time_pauses_its_class_twice_as_long_each_time() {
        let (budget, mut now) = (Budget::default(), Instant::now());
        for seconds in [10, 20, 40, 80] {
            budget.hear("manifests", limited(None), now);
            budget.hear("manifests", limited(None), now + SECOND);
            let left = SECOND * seconds;
            assert_eq!(
                budget.admit("manifests", now),
                Err((Kind::RateLimited, left))
            );
            assert_eq!(budget.admit("blobs", now), Ok(()));
            now += left;
            assert_eq!(budget.admit("manifests", now), Ok(()));
        }
        budget.hear("manifests", Word::default(), now);
        budget.hear("manifests", limited(None), now);
        assert_eq!(budget.paused_for(now), Some(FIRST_PAUSE));
    }

    #[test]
    fn no_pause_is_longer_than_an_hour_or_shorter_than_a_second() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear("blobs", limited(Some(0)), now);
        assert_eq!(budget.paused_for(now), Some(SHORTEST_PAUSE));
        budget.hear("blobs", limited(Some(86_400)), now);
        assert_eq!(budget.paused_for(now), Some(LONGEST_PAUSE));
    }

    #[test]
    fn another_origin_pauses_its_own_class_only_and_has_no_quota_to_tell() {
        let (budget, now) = (Budget::default(), Instant::now());
        let word = Word {
            is_foreign: true,
            quota: quota("1", "0"),
            ..limited(Some(60))
        };
        budget.hear("blobs", word, now);
        assert!(budget.admit("blobs", now).is_err());
        assert_eq!(budget.admit("manifests", now), Ok(()));
        assert_eq!(budget.quota(), None);
    }

    #[test]
    fn hubs_headers_are_read() {
        let hub = Quota {
            limit: 100,
            remaining: 76,
            window: Some(SECOND * 21_600),
        };
        assert_eq!(quota("100;w=21600", "76;w=21600"), Some(hub));
        let bare = Quota {
            window: None,
            ..hub
        };
        assert_eq!(quota("100", "76"), Some(bare));
        assert_eq!(quota("many", "76"), None);
        assert_eq!(quota("100", ""), None);
        assert_eq!(quota("100", "-1"), None);
    }

    #[test]
    fn a_pacer_lets_a_seconds_worth_through_and_then_spaces_them() {
        let pacer = Pacer::new(NonZeroU32::new(4).unwrap());
        let now = Instant::now();
        let waits: Vec<_> = (0..6).map(|_| pacer.take(now, SECOND)).collect();
        let quarter = SECOND / 4;
        let expect = [0, 0, 0, 0, 1, 2].map(|turns| Ok(quarter * turns));
        assert_eq!(waits, expect);
        assert_eq!(pacer.take(now, quarter), Err(quarter * 3));
        assert_eq!(
            pacer.take(now + SECOND * 9, Duration::ZERO),
            Ok(Duration::ZERO)
        );
    }
}
