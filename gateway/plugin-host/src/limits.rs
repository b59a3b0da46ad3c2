//! What a call may use, and why it was stopped: the call's clock, its memory limiter and its budgets of host calls.
//!
//! Time waiting for a password check counts neither as wall time nor as computing: the guest asked for slow work by name.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use wasmtime::{ResourceLimiter, UpdateDeadline};

use crate::{error::Failure, ports::Limits};

/// The host ended a call, and how that is classified. Travels through wasmtime as the error of a host function or callback.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Stop {
    pub(crate) fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
        }
    }

    pub(crate) fn quota(detail: impl Into<String>) -> Self {
        Self::new(Failure::HostQuota, detail)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.detail)
    }
}

impl std::error::Error for Stop {}

/// How far a call is: wall time from its start, and the CPU time of the threads that polled it.
#[derive(Debug)]
pub(crate) struct CallClock {
    started: Instant,
    wall: Duration,
    cpu: Duration,
    /// Protects the three running sums below; never held across a poll.
    spent: Mutex<Spent>,
}

#[derive(Debug, Default)]
struct Spent {
    /// Computed in earlier polls.
    computed: Duration,
    /// The polling thread's CPU clock when this poll began.
    poll_began: Option<Duration>,
    /// Waits for password checks that are over.
    excused: Duration,
    /// The wait for a password check that is not over.
    excused_since: Option<Instant>,
    /// Time to compute beyond the limit, for documents that were handed over.
    granted: Duration,
    /// Bytes of documents that were handed over.
    handed_bytes: usize,
}

/// What a guest may compute for each KiB of a document: it copies the text and each descriptor. A manifest of 4 MiB with 25,000 layers gets 200 ms.
const GRANT_PER_KIB: Duration = Duration::from_micros(50);
/// How much longer it may take, in times of that: a busy machine gives it a part of a processor.
const PATIENCE: u32 = 10;
/// Bytes of documents in one call that get such time.
const MAX_GRANTED_BYTES: usize = 16 << 20;

/// A guest that computed so long in one poll lets other tasks run.
const SLICE: Duration = Duration::from_millis(5);

impl CallClock {
    pub(crate) fn start(wall: Duration, cpu: Duration) -> Self {
        Self {
            started: Instant::now(),
            wall,
            cpu,
            spent: Mutex::default(),
        }
    }

    fn spent(&self) -> MutexGuard<'_, Spent> {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the call may still run; moves while a password check is waited for.
    pub(crate) fn remaining(&self) -> Duration {
        let spent = self.spent();
        let waiting = spent
            .excused_since
            .map_or(Duration::ZERO, |since| since.elapsed());
        (self.wall + spent.excused + waiting).saturating_sub(self.started.elapsed())
    }

    /// Runs `poll` and adds the CPU time of this thread to what the guest computed. Of the last poll nothing is added: there is no later
    /// one to count it against, and to read the thread's clock is a call into the system.
    pub(crate) fn metered<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        self.spent().poll_began = Some(thread_cpu());
        let polled = poll();
        let began = self.spent().poll_began.take();
        if let (Poll::Pending, Some(began)) = (&polled, began) {
            self.spent().computed += thread_cpu().saturating_sub(began);
        }
        polled
    }

    /// Makes a document of `bytes` bytes for the guest: the host's work does not count, and the guest gets time for its own.
    pub(crate) fn hands<T>(&self, bytes: usize, make: impl FnOnce() -> T) -> T {
        let (began, cpu_began) = (Instant::now(), thread_cpu());
        let made = make();
        let (wall, cpu) = (began.elapsed(), thread_cpu().saturating_sub(cpu_began));
        let mut spent = self.spent();
        spent.excused += wall;
        spent.granted += cpu;
        drop(spent);
        self.grant(bytes);
        made
    }

    /// Gives the guest time to take a document of `bytes` bytes.
    pub(crate) fn grant(&self, bytes: usize) {
        let mut spent = self.spent();
        let left = MAX_GRANTED_BYTES.saturating_sub(spent.handed_bytes);
        spent.handed_bytes = spent.handed_bytes.saturating_add(bytes);
        let kib = u32::try_from(bytes.min(left) >> 10).unwrap_or(u32::MAX);
        let grant = GRANT_PER_KIB.saturating_mul(kib);
        spent.excused += grant.saturating_mul(PATIENCE);
        spent.granted += grant;
    }

    /// Begins a wait that does not count. The guard ends it.
    pub(crate) fn excuse(&self) -> Excused<'_> {
        self.spent().excused_since = Some(Instant::now());
        Excused(self)
    }

    /// Called about every 5 ms while the guest computes, on the thread that polls it.
    pub(crate) fn tick(&self) -> Result<UpdateDeadline, Stop> {
        let (computed, in_this_poll, limit) = {
            let spent = self.spent();
            let now = thread_cpu();
            let in_this_poll = spent
                .poll_began
                .map_or(Duration::ZERO, |began| now.saturating_sub(began));
            let computed = spent.computed + in_this_poll;
            (computed, in_this_poll, self.cpu + spent.granted)
        };
        if computed >= limit {
            return Err(Stop::new(
                Failure::Deadline,
                format!("computed for {computed:?}; the limit is {limit:?}"),
            ));
        }
        if self.remaining().is_zero() {
            return Err(self.overdue());
        }
        if in_this_poll < SLICE {
            return Ok(UpdateDeadline::Continue(1));
        }
        // The executor's own yield: a task that merely wakes itself is polled sixty times before the executor looks at a socket.
        let others = Box::pin(tokio::task::yield_now());
        Ok(UpdateDeadline::YieldCustom(1, others))
    }

    pub(crate) fn overdue(&self) -> Stop {
        Stop::new(
            Failure::Deadline,
            format!("no answer within {:?}", self.wall),
        )
    }
}

/// A wait that does not count.
#[derive(Debug)]
pub(crate) struct Excused<'a>(&'a CallClock);

impl Drop for Excused<'_> {
    fn drop(&mut self) {
        let mut spent = self.0.spent();
        if let Some(since) = spent.excused_since.take() {
            spent.excused += since.elapsed();
        }
    }
}

/// CPU time of this thread. Unlike wall time it does not grow while other programs hold the processor, so a good guest on a busy
/// machine is not taken for one that loops.
fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Bounds the memories and tables of one call together and stops the call that asks for more: a refused `memory.grow` would show up
/// in the guest as an abort without a cause.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_bytes: usize,
    used_bytes: usize,
}

/// Elements of one table. The largest known toolchain needs 7,690.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;
pub(crate) const MAX_TABLES: usize = 8;
pub(crate) const MAX_MEMORIES: usize = 4;
/// componentize-py needs 38.
pub(crate) const MAX_CORE_INSTANCES: usize = 64;

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory_bytes: limits.memory_bytes,
            used_bytes: 0,
        }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let wanted = self
            .used_bytes
            .saturating_add(desired.saturating_sub(current));
        if wanted > self.memory_bytes {
            return Err(Stop::new(
                Failure::Memory,
                format!(
                    "asked for {wanted} bytes of memory; the limit is {}",
                    self.memory_bytes
                ),
            )
            .into());
        }
        self.used_bytes = wanted;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(Stop::new(Failure::Memory, format!("cannot grow its memory: {error}")).into())
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > MAX_TABLE_ELEMENTS {
            return Err(Stop::new(
                Failure::Memory,
                format!(
                    "asked for a table of {desired} elements; the limit is {MAX_TABLE_ELEMENTS}"
                ),
            )
            .into());
        }
        Ok(true)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        Err(Stop::new(Failure::Memory, format!("cannot grow a table: {error}")).into())
    }

    fn instances(&self) -> usize {
        MAX_CORE_INSTANCES * 2
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }

    fn memories(&self) -> usize {
        MAX_MEMORIES
    }
}

/// Host calls that one call may still make, by what they cost the host.
#[derive(Debug)]
pub(crate) struct Budgets {
    pub(crate) kv: Budget,
    pub(crate) registry: Budget,
    pub(crate) crypto: Budget,
    pub(crate) password: Budget,
    pub(crate) http: Budget,
}

/// Outbound requests of a call that somebody waits for, and of one that takes a batch of events.
const HTTP_REQUESTS: u32 = 8;
const HTTP_REQUESTS_OF_BATCH: u32 = 128;

impl Budgets {
    pub(crate) fn new(of_batch: bool) -> Self {
        let http = if of_batch {
            HTTP_REQUESTS_OF_BATCH
        } else {
            HTTP_REQUESTS
        };
        Self {
            kv: Budget::new("key-value", 64),
            registry: Budget::new("registry", 64),
            crypto: Budget::new("crypto", 256),
            password: Budget::new("password", 4),
            http: Budget::new("http", http),
        }
    }
}

/// A countdown.
#[derive(Debug)]
pub(crate) struct Budget {
    what: &'static str,
    most: u32,
    left: u32,
}

impl Budget {
    fn new(what: &'static str, most: u32) -> Self {
        Self {
            what,
            most,
            left: most,
        }
    }

    /// Takes one, where the interface has an answer of its own for a spent budget.
    pub(crate) fn try_take(&mut self) -> bool {
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    /// Takes one.
    pub(crate) fn take(&mut self) -> Result<(), Stop> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            Stop::quota(format!(
                "made more than {} {} calls in one call",
                self.most, self.what
            ))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(&Limits {
            memory_bytes: 1 << 20,
            ..Limits::default()
        })
    }

    fn failure(result: wasmtime::Result<bool>) -> Option<Failure> {
        let error = result.err()?;
        error.downcast_ref::<Stop>().map(|stop| stop.failure)
    }

    #[test]
    fn memories_are_limited_together() {
        let mut limiter = limiter();
        assert_eq!(failure(limiter.memory_growing(0, 512 << 10, None)), None);
        assert_eq!(failure(limiter.memory_growing(0, 256 << 10, None)), None);
        let over = limiter.memory_growing(256 << 10, (512 << 10) + 1, None);
        assert_eq!(failure(over), Some(Failure::Memory));
        let rest = limiter.memory_growing(256 << 10, 512 << 10, None);
        assert_eq!(failure(rest), None, "what was refused was not counted");
    }

    #[test]
    fn a_table_grows_to_its_limit() {
        let mut limiter = limiter();
        assert_eq!(
            failure(limiter.table_growing(0, MAX_TABLE_ELEMENTS, None)),
            None
        );
        let over = limiter.table_growing(0, MAX_TABLE_ELEMENTS + 1, None);
        assert_eq!(failure(over), Some(Failure::Memory));
    }

    #[test]
    fn an_excused_wait_does_not_count() {
        let wall = Duration::from_millis(50);
        let clock = CallClock::start(wall, Duration::from_secs(1));
        let before = clock.remaining();
        let excused = clock.excuse();
        let began = Instant::now();
        while began.elapsed() < wall * 2 {
            std::thread::yield_now();
        }
        let meanwhile = clock.remaining();
        drop(excused);
        assert!(!meanwhile.is_zero() && meanwhile <= before, "{meanwhile:?}");
        let began = Instant::now();
        while began.elapsed() < wall {
            std::thread::yield_now();
        }
        assert!(clock.remaining().is_zero(), "time counts again");
    }

    #[test]
    fn documents_bring_the_time_that_they_take_up_to_a_limit() {
        let wall = Duration::from_millis(50);
        let clock = CallClock::start(wall, Duration::ZERO);
        assert!(clock.tick().is_err(), "there is no time to compute");
        clock.grant(1 << 20);
        let ticked = clock.metered(|| Poll::Ready(clock.tick().is_ok()));
        assert_eq!(ticked, Poll::Ready(true));
        assert!(clock.remaining() > Duration::from_millis(60));
        clock.grant(MAX_GRANTED_BYTES);
        let most = clock.spent().granted;
        clock.grant(1 << 20);
        assert_eq!(clock.spent().granted, most);
    }

    #[test]
    fn a_budget_ends() {
        let mut budget = Budget::new("test", 2);
        assert!(budget.take().is_ok() && budget.take().is_ok());
        assert_eq!(
            budget.take().map_err(|stop| stop.failure),
            Err(Failure::HostQuota)
        );
        assert!(!budget.try_take());
    }
}
