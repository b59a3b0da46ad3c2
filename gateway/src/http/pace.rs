//! The minimum rate of a body, measured only while the client is what is waited for.
//!
//! A window is an amount of waiting, not of wall time: a slow disk or upstream never makes a client look slow.

use std::time::Duration;

/// How slow a body may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Bytes per second at least; zero allows anything.
    pub bytes_per_second: u64,
    /// Over how much waiting it is measured.
    pub window: Duration,
}

impl Rate {
    /// Bytes that a whole window of waiting must bring.
    fn required(self) -> u64 {
        self.bytes_per_second
            .saturating_mul(self.window.as_millis().try_into().unwrap_or(u64::MAX))
            / 1000
    }
}

/// One direction of one body.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    rate: Rate,
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Starts a window. `hidden` bytes may sit in buffers below before progress shows: they lengthen the window by the time a client
    /// at the minimum rate takes for them.
    #[must_use]
    pub fn new(rate: Rate, hidden: u64) -> Self {
        Self {
            rate,
            window: window(rate, hidden),
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The buffers below have grown: more may be hidden in them.
    pub fn widen(&mut self, hidden: u64) {
        self.window = self.window.max(window(self.rate, hidden));
    }

    /// How much longer to wait without progress before the client counts as too slow; `None` = for ever.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        (self.rate.bytes_per_second > 0).then(|| self.window.saturating_sub(self.waited))
    }

    /// Counts a wait that ended with `bytes` of progress.
    pub fn progress(&mut self, waited: Duration, bytes: u64) {
        self.waited += waited;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes >= self.rate.required() {
            self.waited = Duration::ZERO;
            self.bytes = 0;
        }
    }
}

fn window(rate: Rate, hidden: u64) -> Duration {
    let hidden = hidden
        .saturating_mul(1000)
        .checked_div(rate.bytes_per_second)
        .unwrap_or_default();
    rate.window.saturating_add(Duration::from_millis(hidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        bytes_per_second: 1000,
        window: Duration::from_secs(30),
    };

    #[test]
    fn a_client_at_the_minimum_rate_is_never_too_slow() {
        let mut pace = Pace::new(RATE, 0);
        for _ in 0..1000 {
            pace.progress(Duration::from_secs(1), 1000);
            assert!(pace.patience().unwrap() > Duration::ZERO);
        }
    }

    #[test]
    fn a_client_at_half_the_minimum_rate_is_too_slow_after_one_window() {
        let mut pace = Pace::new(RATE, 0);
        for second in 1..=30 {
            assert!(pace.patience().unwrap() > Duration::ZERO, "{second}");
            pace.progress(Duration::from_secs(1), 500);
        }
        assert_eq!(pace.patience(), Some(Duration::ZERO));
    }

    #[test]
    fn hidden_bytes_lengthen_the_window() {
        let mut pace = Pace::new(RATE, 60_000);
        assert_eq!(pace.patience(), Some(Duration::from_secs(90)));
        pace.widen(30_000);
        assert_eq!(pace.patience(), Some(Duration::from_secs(90)));
        pace.widen(90_000);
        assert_eq!(pace.patience(), Some(Duration::from_secs(120)));
    }

    #[test]
    fn a_rate_of_zero_waits_for_ever() {
        let rate = Rate {
            bytes_per_second: 0,
            ..RATE
        };
        assert_eq!(Pace::new(rate, 1).patience(), None);
    }
}
