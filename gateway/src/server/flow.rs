//! How fast the client of an HTTP/2 connection takes what it asked for, over all its streams.
//!
//! The socket does not tell: windows of zero stall every stream while it stays writable. So the bytes of data frames that leave are counted,
//! and the time during which the client alone is waited for. Bytes buy time at the minimum rate, up to what buffers on the way may hide; a
//! client without time left is too slow: streams that wait for it are reset, and the connection is closed when even that moves nothing.
//! A server that has nothing to send never makes a client look slow.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::http::pace::Rate;

/// Bytes that may be on the way, sent and not yet seen to be taken: the client gets the time that they take at the minimum rate.
const HIDDEN_BYTES: u64 = 256 << 10;

/// The flow of a connection.
#[derive(Debug)]
pub(super) struct Flow {
    rate: Rate,
    /// Held for single operations.
    state: Mutex<State>,
    /// Tells streams that the client is too slow.
    too_slow: Notify,
}

#[derive(Debug)]
struct State {
    /// Streams that wait for the client.
    waiting: usize,
    since: Instant,
    /// How much longer it may be waited for, counted from `since`.
    credit: Duration,
    /// Bytes of data that left in all.
    sent: u64,
}

impl State {
    /// Takes the time off that the client was waited for.
    fn settle(&mut self) {
        if self.waiting > 0 {
            self.credit = self.credit.saturating_sub(self.since.elapsed());
        }
        self.since = Instant::now();
    }
}

impl Flow {
    pub(super) fn new(rate: Rate) -> Arc<Self> {
        Arc::new(Self {
            rate,
            state: Mutex::new(State {
                waiting: 0,
                since: Instant::now(),
                credit: rate.window,
                sent: 0,
            }),
            too_slow: Notify::new(),
        })
    }

    /// How long so many bytes take at the minimum rate.
    fn time_of(&self, bytes: u64) -> Duration {
        let milliseconds = bytes.saturating_mul(1000);
        let milliseconds = milliseconds.checked_div(self.rate.bytes_per_second);
        Duration::from_millis(milliseconds.unwrap_or_default())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client is waited for until the answer is dropped.
    pub(super) fn wait(self: &Arc<Self>) -> ClientWait {
        let mut state = self.state();
        state.settle();
        state.waiting += 1;
        ClientWait(Arc::clone(self))
    }

    /// So many bytes of data left.
    pub(super) fn sent(&self, bytes: u64) {
        let most = self.rate.window + self.time_of(HIDDEN_BYTES);
        let mut state = self.state();
        state.settle();
        state.credit = most.min(state.credit + self.time_of(bytes));
        state.sent += bytes;
    }

    /// How long until the client is too slow; `None` while it is not waited for, and without a minimum rate.
    fn patience(&self) -> Option<Duration> {
        let state = self.state();
        let counts = state.waiting > 0 && self.rate.bytes_per_second > 0;
        counts.then(|| state.credit.saturating_sub(state.since.elapsed()))
    }

    /// Resets streams while the client is too slow; completes when it takes nothing at all afterwards.
    pub(super) async fn stalled(&self) {
        let mut warned_at = None;
        loop {
            self.slow().await;
            let mut state = self.state();
            if warned_at.replace(state.sent) == Some(state.sent) {
                return;
            }
            state.since = Instant::now();
            state.credit = self.rate.window;
            drop(state);
            self.too_slow.notify_waiters();
        }
    }

    async fn slow(&self) {
        let every = self.rate.window / 4;
        loop {
            match self.patience() {
                Some(Duration::ZERO) => return,
                Some(patience) => tokio::time::sleep(patience.min(every)).await,
                None => tokio::time::sleep(every).await,
            }
        }
    }

    /// Completes when the client is too slow and this stream waits for it.
    pub(super) async fn gives_up(&self, stream: &StreamWait) {
        loop {
            let told = self.too_slow.notified();
            told.await;
            if stream
                .since()
                .is_some_and(|since| since.elapsed() >= self.rate.window / 2)
            {
                return;
            }
        }
    }
}

/// Since when a stream waits for its client.
#[derive(Debug, Default)]
pub(super) struct StreamWait {
    /// Held for single operations.
    since: Mutex<Option<Instant>>,
    /// Told when the principal of the stream's request is revoked.
    revoked: Notify,
}

impl StreamWait {
    /// Ends the stream: its principal is revoked.
    pub(super) fn revoke(&self) {
        self.revoked.notify_one();
    }

    /// Completes when the principal is revoked.
    pub(super) async fn revoked(&self) {
        self.revoked.notified().await;
    }

    fn since(&self) -> Option<Instant> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it waits from now on.
    pub(super) fn set(&self, waits: bool) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = waits.then(Instant::now);
    }
}

/// One stream waits for the client.
#[derive(Debug)]
pub(super) struct ClientWait(Arc<Flow>);

impl Drop for ClientWait {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.settle();
        state.waiting -= 1;
        if state.waiting == 0 {
            // The client took everything that was there.
            state.credit = state.credit.max(self.0.rate.window);
        }
    }
}

/// Finds the data in what an HTTP/2 connection writes (RFC 9113 section 4.1).
#[derive(Debug, Default)]
pub(super) struct SentFrames {
    header: [u8; 9],
    /// Bytes of the header that are here.
    filled: usize,
    /// Bytes of the frame's payload to come.
    left: usize,
    is_data: bool,
}

impl SentFrames {
    /// How many of these bytes, which come behind those of the last call, are data.
    pub(super) fn data(&mut self, bytes: &[u8]) -> u64 {
        let mut rest = bytes;
        let mut data = 0;
        while !rest.is_empty() {
            if self.left == 0 {
                rest = self.read_header(rest);
                continue;
            }
            let count = self.left.min(rest.len());
            self.left -= count;
            data += if self.is_data { count as u64 } else { 0 };
            rest = rest.get(count..).unwrap_or_default();
        }
        data
    }

    fn read_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let missing = self.header.get_mut(self.filled..).unwrap_or_default();
        let count = missing.len().min(bytes.len());
        let (taken, rest) = bytes.split_at_checked(count).unwrap_or((bytes, &[]));
        if let Some(missing) = missing.get_mut(..count) {
            missing.copy_from_slice(taken);
        }
        self.filled += count;
        if self.filled == self.header.len() {
            let [high, middle, low, kind, ..] = self.header;
            self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            self.is_data = kind == 0;
            self.filled = 0;
        }
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        bytes_per_second: 1000,
        window: Duration::from_secs(30),
    };

    async fn stalls_after(flow: &Arc<Flow>) -> Duration {
        let started = Instant::now();
        flow.stalled().await;
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_loses_its_streams_and_then_the_connection() {
        let flow = Flow::new(RATE);
        let _waiting = flow.wait();
        let stream = StreamWait::default();
        stream.set(true);
        let started = Instant::now();
        tokio::select! {
            () = flow.gives_up(&stream) => assert_eq!(started.elapsed(), RATE.window),
            () = flow.stalled() => panic!("the stream goes first"),
        }
        let flow = Flow::new(RATE);
        let _waiting = flow.wait();
        assert_eq!(stalls_after(&flow).await, RATE.window * 2);
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn a_byte_now_and_then_does_not_help() {
        let flow = Flow::new(RATE);
        let _waiting = flow.wait();
        let dripping = Arc::clone(&flow);
        let drip = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                dripping.sent(1);
            }
        });
        let stream = StreamWait::default();
        stream.set(true);
        let started = Instant::now();
        tokio::select! {
            () = flow.gives_up(&stream) => {}
            () = flow.stalled() => panic!("the stream goes first"),
        }
        let took = started.elapsed();
        assert!(took <= RATE.window + RATE.window / 4, "{took:?}");
        drip.abort();
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn one_stream_that_flows_keeps_the_connection() {
        let flow = Flow::new(RATE);
        let _stalled = flow.wait();
        let flowing = Arc::clone(&flow);
        let drip = tokio::spawn(async move {
            for _second in 0..600 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                flowing.sent(1000);
            }
        });
        let took = stalls_after(&flow).await;
        assert!(took > Duration::from_secs(600), "{took:?}");
        drip.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn small_answers_that_are_taken_never_add_up_to_a_slow_client() {
        let flow = Flow::new(RATE);
        let asking = Arc::clone(&flow);
        let asked = tokio::spawn(async move {
            for _request in 0..2000 {
                let waiting = asking.wait();
                tokio::time::sleep(Duration::from_millis(50)).await;
                asking.sent(2);
                drop(waiting);
            }
        });
        tokio::select! {
            () = flow.stalled() => panic!("the client took everything"),
            done = asked => done.unwrap(),
        }
    }

    #[test]
    fn data_is_told_from_other_frames_wherever_they_are_cut() {
        let frame = |kind: u8, length: u8| {
            let mut frame = vec![0, 0, length, kind, 0, 0, 0, 0, 1];
            frame.resize(9 + usize::from(length), 0);
            frame
        };
        let all = [
            frame(4, 6),
            frame(0, 10),
            frame(0, 0),
            frame(6, 8),
            frame(0, 7),
        ]
        .concat();
        for cut in 0..=all.len() {
            let mut frames = SentFrames::default();
            let (first, rest) = all.split_at(cut);
            assert_eq!(frames.data(first) + frames.data(rest), 17, "cut at {cut}");
        }
    }
}
