//! Credentials that are not verified yet: whose turn it is, and how long a guess waits.
//!
//! Owns two bounds. A pair of address and user name shows one unverified password at a time; each wrong one makes the next wait, and after
//! ten in a minute there is a 429. Addresses take turns at the authenticators, so one that shows thousands holds nobody else up.
//! Invariant: a credential that was good lately waits for neither. Lasts over reloads.

mod queue;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use gantry_model::{Client, Denial, DenialCode};
use gantry_plugin_host::Credential;
use moka::sync::Cache;
use tokio::{
    sync::{Mutex, OwnedMutexGuard},
    time::Instant,
};

pub(crate) use self::queue::Place;
use self::queue::Queue;
use super::{Identified, keyed::Keyed};
use crate::{address::AddressGroup, http::error::Error};

/// Wrong passwords of a pair within [`WINDOW`], after which it is refused.
const MAX_WRONG: usize = 10;
const WINDOW: Duration = Duration::from_secs(60);
/// What a first wrong password costs the next try; each further one doubles it, up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Tries of one pair that wait at most.
const MAX_WAITING: usize = 64;
/// How long a try waits for each of its two turns before it is refused; both together are less than the deadline of decisions.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Pairs and good credentials remembered at most, of some 200 bytes each.
const MAX_PAIRS: u64 = 50_000;
const MAX_GOOD: u64 = 50_000;
/// How long a credential that was good is known to have been.
const GOOD_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// Tries of credentials that are not verified yet.
#[derive(Clone, Debug)]
pub(crate) struct Logins {
    keyed: Keyed,
    pairs: Cache<[u8; 32], Arc<Pair>>,
    good: Cache<[u8; 32], ()>,
    /// Credentials that are being checked: however many requests show one, it is one try.
    checked: Cache<[u8; 32], Arc<Mutex<()>>>,
    queue: Arc<Queue>,
}

/// An address and a user name.
#[derive(Debug, Default)]
struct Pair {
    waiting: AtomicUsize,
    /// When wrong passwords were shown, oldest first. Held by the try whose turn it is.
    wrong: Arc<Mutex<VecDeque<Instant>>>,
}

/// A try whose turn it is.
#[derive(Debug)]
pub(crate) struct Attempt {
    /// `None` = the credential is not one that is guessed.
    key: Option<[u8; 32]>,
    /// Nobody else checks the same credential meanwhile.
    _check: Option<OwnedMutexGuard<()>>,
    /// The pair's turn; `None` = it needs none.
    turn: Option<OwnedMutexGuard<VecDeque<Instant>>>,
    /// Whose turn at the authenticators to wait for; `None` = nobody's.
    group: Option<AddressGroup>,
}

impl Logins {
    /// Remembers nothing yet.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            keyed: Keyed::new()?,
            pairs: Cache::builder()
                .max_capacity(MAX_PAIRS)
                .time_to_idle(WINDOW + PATIENCE)
                .build(),
            good: Cache::builder()
                .max_capacity(MAX_GOOD)
                .time_to_idle(GOOD_FOR)
                .build(),
            checked: Cache::builder()
                .max_capacity(MAX_PAIRS)
                .time_to_idle(WINDOW)
                .build(),
            queue: Arc::default(),
        })
    }

    /// Waits for the pair's turn.
    ///
    /// # Errors
    /// 429 after too many wrong passwords, or where too many tries wait already.
    pub(crate) async fn begin(
        &self,
        client: &Client,
        credential: &Credential,
    ) -> Result<Attempt, Error> {
        let group = AddressGroup::of(client.address);
        let Credential::Basic(shown) = credential else {
            let group = matches!(credential, Credential::Bearer(_)).then_some(group);
            return Ok(Attempt {
                key: None,
                _check: None,
                turn: None,
                group,
            });
        };
        let Some(key) = self.keyed.of(["good", shown.username(), shown.password()]) else {
            return Err(Error::unavailable("a login cannot be told from another"));
        };
        let is_good = || self.good.get(&key).is_some();
        let good = Attempt {
            key: Some(key),
            _check: None,
            turn: None,
            group: None,
        };
        if is_good() {
            return Ok(good);
        }
        let check = self.checked.get_with(key, Arc::default);
        let check = check.lock_owned().await;
        if is_good() {
            return Ok(good);
        }
        let address = format!("{group:?}");
        let Some(pair) = self.keyed.of(["pair", &*address, shown.username()]) else {
            return Err(Error::unavailable("a login cannot be told from another"));
        };
        let pair = self.pairs.get_with(pair, Arc::default);
        let turn = tokio::time::timeout(PATIENCE, pair.turn());
        let turn = turn.await.unwrap_or_else(|_elapsed| Err(busy()))?;
        Ok(Attempt {
            key: Some(key),
            _check: Some(check),
            turn: Some(turn),
            group: Some(group),
        })
    }

    /// Waits for the address's turn at the authenticators.
    ///
    /// # Errors
    /// 429 where too many of its tries wait already.
    pub(crate) async fn place(&self, attempt: &Attempt) -> Result<Option<Place>, Error> {
        let Some(group) = attempt.group else {
            return Ok(None);
        };
        let place = tokio::time::timeout(PATIENCE, self.queue.place(group));
        match place.await {
            Ok(Some(place)) => Ok(Some(place)),
            Ok(None) | Err(_) => Err(busy()),
        }
    }

    /// Notes what became of a try.
    pub(crate) fn settle(&self, attempt: Attempt, outcome: &Result<Identified, Error>) {
        let Some(key) = attempt.key else {
            return;
        };
        match outcome {
            Ok(_) => self.good.insert(key, ()),
            Err(Error::Unauthorized { .. }) => {
                self.good.invalidate(&key);
                if let Some(mut wrong) = attempt.turn {
                    wrong.push_back(Instant::now());
                }
            }
            Err(_) => {}
        }
    }
}

impl Pair {
    async fn turn(&self) -> Result<OwnedMutexGuard<VecDeque<Instant>>, Error> {
        let _waiting = Waiting::among(&self.waiting).ok_or_else(busy)?;
        let mut wrong = Arc::clone(&self.wrong).lock_owned().await;
        let now = Instant::now();
        while wrong.front().is_some_and(|at| *at + WINDOW <= now) {
            wrong.pop_front();
        }
        if wrong.len() >= MAX_WRONG
            && let Some(oldest) = wrong.front()
        {
            return Err(limited(*oldest + WINDOW - now));
        }
        if let Some(last) = wrong.back() {
            tokio::time::sleep_until(*last + delay(wrong.len())).await;
        }
        Ok(wrong)
    }
}

/// A place among those that wait.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::AcqRel);
        let place = Self(waiting);
        (before < MAX_WAITING).then_some(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn delay(wrong: usize) -> Duration {
    let doublings = u32::try_from(wrong.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(8);
    (FIRST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY)
}

fn limited(retry_after: Duration) -> Error {
    refusal(
        retry_after,
        "too many wrong passwords for this user from this address",
    )
}

fn busy() -> Error {
    refusal(
        Duration::from_secs(1),
        "too many logins from this address wait already",
    )
}

fn refusal(retry_after: Duration, message: &str) -> Error {
    let mut denial = Denial::new(DenialCode::TooManyRequests, "logins-limited", message);
    denial.retry_after = Some(retry_after.max(Duration::from_secs(1)));
    Error::Denied(Box::new(denial))
}

#[cfg(test)]
mod tests;
