//! How often an upstream may be asked: what it says itself, and what the operator allows.
//!
//! Owns the rests after a 429, or a 503 that names a time, what Docker Hub's `RateLimit` headers told last, and the pacing of requests.
//! Sends nothing and sleeps never: it says how long.
//! Invariant: a class of requests that was limited rests, and then one request tries; the others wait for its answer.

use std::{
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::{Cause, Kind};

/// The rest after a 429 that names no time, as Docker Hub's pull limit does; each one after it doubles.
const FIRST_REST: Duration = Duration::from_secs(10);
/// The longest rest, whatever an upstream says: a mistaken `Retry-After` must not switch a mirror off for a day.
const LONGEST_REST: Duration = Duration::from_secs(5 * 60);
/// The shortest, for a `Retry-After: 0`; also what a request is told to wait while another one tries.
const SHORTEST_REST: Duration = Duration::from_secs(1);

/// Requests that an upstream limits together. At Docker Hub, manifests run out and blobs do not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    /// Of the token endpoint.
    Tokens,
    /// Manifests, and lists of them.
    Manifests,
    /// Blobs.
    Blobs,
}

/// What a response says about how often we may ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Word {
    /// A 429, or a 503 that names a time.
    pub(crate) refusal: Option<Kind>,
    /// `Retry-After`.
    pub(crate) retry_after: Option<Duration>,
    /// `RateLimit-Limit` and `RateLimit-Remaining`.
    pub(crate) quota: Option<Quota>,
    /// Whether it comes from another origin, which has no quota of ours to tell.
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

/// What one base URL allows one credential now.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// Guards the whole state; held for a few instructions only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    tokens: Option<Rest>,
    manifests: Option<Rest>,
    blobs: Option<Rest>,
    quota: Option<Quota>,
}

impl State {
    fn class(&mut self, class: Class) -> &mut Option<Rest> {
        match class {
            Class::Tokens => &mut self.tokens,
            Class::Manifests => &mut self.manifests,
            Class::Blobs => &mut self.blobs,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    length: Duration,
    kind: Kind,
    /// Whether a request tries whether it is over.
    is_probed: bool,
}

impl Rest {
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = self.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

/// Leave to ask. Dropped before the answer was heard, it leaves the next request in.
#[derive(Debug)]
pub(crate) struct Leave<'a> {
    budget: &'a Budget,
    class: Class,
    is_probe: bool,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if self.is_probe
            && let Some(rest) = self.budget.state().class(self.class)
        {
            rest.is_probed = false;
        }
    }
}

impl Budget {
    /// Leave to ask, or why not and for how long.
    pub(crate) fn admit(&self, class: Class, now: Instant) -> Result<Leave<'_>, (Kind, Duration)> {
        let mut state = self.state();
        let rest = state.class(class).as_mut();
        let is_probe = match rest {
            None => false,
            Some(rest) => {
                if let Some(left) = rest.left(now) {
                    return Err((rest.kind, left));
                } else if rest.is_probed {
                    return Err((rest.kind, SHORTEST_REST));
                }
                rest.is_probed = true;
                true
            }
        };
        Ok(Leave {
            budget: self,
            class,
            is_probe,
        })
    }

    /// Takes in what a response to a request of that class said.
    pub(crate) fn hear(&self, class: Class, word: Word, now: Instant) {
        let mut state = self.state();
        if !word.is_foreign {
            state.quota = word.quota.or(state.quota);
        }
        let known = state.class(class);
        let Some(kind) = word.refusal else {
            // An answer to a request from before the limit is no end of it.
            if known.is_some_and(|rest| rest.left(now).is_none()) {
                *known = None;
            }
            return;
        };
        // Calls that were under way together are refused together; that is one refusal.
        if word.retry_after.is_none() && known.is_some_and(|rest| rest.left(now).is_some()) {
            return;
        }
        let doubled = known.map_or(FIRST_REST, |rest| rest.length.saturating_mul(2));
        let length = word.retry_after.unwrap_or(doubled);
        let length = length.clamp(SHORTEST_REST, LONGEST_REST);
        *known = Some(Rest {
            until: now + length,
            length,
            kind,
            is_probed: false,
        });
    }

    /// What was stated last.
    pub(crate) fn quota(&self) -> Option<Quota> {
        self.state().quota
    }

    /// The longest rest that is on, of whatever class.
    pub(crate) fn rests_for(&self, now: Instant) -> Option<Duration> {
        let state = self.state();
        let rests = [state.tokens, state.manifests, state.blobs];
        let left = rests.into_iter().flatten();
        left.filter_map(|rest| rest.left(now)).max()
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

/// Why a rest refuses, as a cause.
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
    fn a_time_that_is_named_rests_its_class_until_then_and_no_other() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear(Class::Manifests, limited(Some(60)), now);
        let refused = budget.admit(Class::Manifests, now).unwrap_err();
        assert_eq!(refused, (Kind::RateLimited, SECOND * 60));
        assert!(budget.admit(Class::Blobs, now).is_ok());
        assert!(budget.admit(Class::Tokens, now).is_ok());
        assert_eq!(budget.rests_for(now), Some(SECOND * 60));
        assert!(budget.admit(Class::Manifests, now + SECOND * 60).is_ok());
    }

    #[test]
    fn after_the_rest_one_request_tries_and_the_others_wait_for_its_answer() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear(Class::Manifests, limited(Some(60)), now);
        let later = now + SECOND * 60;
        let probe = budget.admit(Class::Manifests, later).unwrap();
        let waits = budget.admit(Class::Manifests, later).unwrap_err();
        assert_eq!(waits, (Kind::RateLimited, SHORTEST_REST));
        budget.hear(Class::Manifests, limited(Some(7)), later);
        drop(probe);
        let refused = budget.admit(Class::Manifests, later).unwrap_err();
        assert_eq!(refused, (Kind::RateLimited, SECOND * 7));
        let probe = budget.admit(Class::Manifests, later + SECOND * 7).unwrap();
        budget.hear(Class::Manifests, Word::default(), later + SECOND * 8);
        drop(probe);
        let both = [
            budget.admit(Class::Manifests, later + SECOND * 8),
            budget.admit(Class::Manifests, later + SECOND * 8),
        ];
        assert!(both.iter().all(Result::is_ok));
    }

    #[test]
    fn a_try_that_was_given_up_leaves_the_next_one_in() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear(Class::Blobs, limited(Some(1)), now);
        drop(budget.admit(Class::Blobs, now + SECOND).unwrap());
        assert!(budget.admit(Class::Blobs, now + SECOND).is_ok());
    }

    #[test]
    fn an_answer_to_a_request_from_before_the_limit_does_not_end_the_rest() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear(Class::Manifests, limited(Some(60)), now);
        budget.hear(Class::Manifests, Word::default(), now + SECOND);
        assert!(budget.admit(Class::Manifests, now + SECOND).is_err());
    }

    #[test]
    fn a_429_without_a_time_rests_twice_as_long_each_time() {
        let (budget, mut now) = (Budget::default(), Instant::now());
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            budget.hear(Class::Manifests, limited(None), now);
            budget.hear(Class::Manifests, limited(None), now + SECOND);
            let left = SECOND * seconds;
            let refused = budget.admit(Class::Manifests, now).unwrap_err();
            assert_eq!(refused, (Kind::RateLimited, left));
            now += left;
        }
        drop(budget.admit(Class::Manifests, now).unwrap());
        budget.hear(Class::Manifests, Word::default(), now);
        budget.hear(Class::Manifests, limited(None), now);
        assert_eq!(budget.rests_for(now), Some(FIRST_REST));
    }

    #[test]
    fn no_rest_is_longer_than_five_minutes_or_shorter_than_a_second() {
        let (budget, now) = (Budget::default(), Instant::now());
        budget.hear(Class::Blobs, limited(Some(0)), now);
        assert_eq!(budget.rests_for(now), Some(SHORTEST_REST));
        budget.hear(Class::Blobs, limited(Some(86_400)), now);
        assert_eq!(budget.rests_for(now), Some(LONGEST_REST));
    }

    #[test]
    fn another_origin_has_no_quota_to_tell() {
        let (budget, now) = (Budget::default(), Instant::now());
        let word = Word {
            is_foreign: true,
            quota: quota("1", "0"),
            ..limited(Some(60))
        };
        budget.hear(Class::Blobs, word, now);
        assert!(budget.admit(Class::Blobs, now).is_err());
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
