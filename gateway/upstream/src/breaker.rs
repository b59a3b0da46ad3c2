//! A circuit breaker: after several failures in a row an upstream is left alone for a while, then tried by one call.
//!
//! Owns the count and the pause of one base URL. Does not know what a failure is.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::error::Fault;

/// Failures in a row that open it.
const THRESHOLD: u32 = 5;
/// How long the first pause lasts; each failed probe doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A breaker, closed at first.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Guards the whole state; held for a few instructions only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failures: u32,
    pause: Duration,
    open_until: Option<Instant>,
    probing: bool,
    /// Of the last failure.
    fault: Option<Fault>,
}

/// Leave to make one call. Dropped without [`Pass::settle`], as by a caller that went away, it says nothing about the upstream.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    breaker: &'a Breaker,
    is_probe: bool,
}

impl Breaker {
    /// Leave to call, or how long to wait.
    pub(crate) fn admit(&self, now: Instant) -> Result<Pass<'_>, Duration> {
        let mut state = self.state();
        let is_probe = match state.open_until {
            None => false,
            Some(until) if now < until => return Err(until - now),
            Some(_) if state.probing => return Err(FIRST_PAUSE),
            Some(_) => true,
        };
        state.probing |= is_probe;
        Ok(Pass {
            breaker: self,
            is_probe,
        })
    }

    /// What the last failure was.
    pub(crate) fn last_fault(&self) -> Option<Fault> {
        self.state().fault
    }

    /// Whether it is open: its base URL failed too often and has not answered since.
    pub(crate) fn is_open(&self) -> bool {
        self.state().open_until.is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// Tells how the call went: well, or with a failure.
    pub(crate) fn settle(self, failure: Option<Fault>, now: Instant) {
        let mut state = self.breaker.state();
        if failure.is_none() {
            *state = State::default();
            return;
        }
        state.fault = failure;
        state.failures = state.failures.saturating_add(1);
        if self.is_probe {
            state.pause = (state.pause * 2).min(LONGEST_PAUSE);
            state.open_until = Some(now + state.pause);
        } else if state.open_until.is_none() && state.failures >= THRESHOLD {
            state.pause = FIRST_PAUSE;
            state.open_until = Some(now + state.pause);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_probe {
            self.breaker.state().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(breaker: &Breaker, now: Instant) {
        breaker
            .admit(now)
            .unwrap()
            .settle(Some(Fault::Connect), now);
    }

    fn opened(now: Instant) -> Breaker {
        let breaker = Breaker::default();
        for _ in 0..THRESHOLD {
            fail(&breaker, now);
        }
        breaker
    }

    #[test]
    fn it_opens_at_the_fifth_failure_in_a_row() {
        let now = Instant::now();
        let breaker = Breaker::default();
        for _ in 0..4 {
            fail(&breaker, now);
        }
        breaker.admit(now).unwrap().settle(None, now);
        for _ in 0..5 {
            fail(&breaker, now);
        }
        assert_eq!(breaker.admit(now).unwrap_err(), FIRST_PAUSE);
    }

    #[test]
    fn one_probe_passes_after_the_pause_and_closes_it() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + FIRST_PAUSE;
        let probe = breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err());
        probe.settle(None, later);
        assert!(breaker.admit(later).is_ok());
    }

    #[test]
    fn a_failed_probe_doubles_the_pause_up_to_half_a_minute() {
        let mut now = Instant::now();
        let breaker = opened(now);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            let pause = Duration::from_secs(pause);
            assert_eq!(breaker.admit(now).unwrap_err(), pause);
            now += pause;
            fail(&breaker, now);
        }
    }

    #[test]
    fn a_probe_that_was_given_up_leaves_the_next_one_in() {
        let now = Instant::now();
        let breaker = opened(now);
        let later = now + FIRST_PAUSE;
        drop(breaker.admit(later).unwrap());
        assert!(breaker.admit(later).is_ok());
    }

    #[test]
    fn a_late_failure_of_a_call_from_before_does_not_prolong_the_pause() {
        let now = Instant::now();
        let breaker = Breaker::default();
        let late = breaker.admit(now).unwrap();
        for _ in 0..THRESHOLD {
            fail(&breaker, now);
        }
        late.settle(Some(Fault::Connect), now + Duration::from_millis(900));
        assert!(breaker.admit(now + FIRST_PAUSE).is_ok());
    }
}
