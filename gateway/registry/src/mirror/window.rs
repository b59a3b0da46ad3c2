//! Bytes in memory on their way through, for readers of a fill that the store has no space for, and where these readers are.
//!
//! Owns the bound on that memory. Invariant: bytes leave the window only when every reader has taken them, or when one that others wait
//! for took too long.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::sync::Notify;

use super::flight::lock;

/// What one fill keeps in memory at most, beside the bytes that came last.
const WINDOW_BYTES: u64 = 1 << 20;

/// How long the others wait for the slowest reader until half of the window is free.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the readers of one fill are.
#[derive(Default)]
pub(super) struct Readers {
    /// Protects: the next byte of each reader, by its number. Held for single operations, never over an await.
    offsets: Mutex<HashMap<u64, u64>>,
    numbers: AtomicU64,
    /// Told whenever one gets on or leaves.
    moved: Notify,
}

impl fmt::Debug for Readers {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = lock(&self.offsets).len();
        formatter
            .debug_struct("Readers")
            .field("count", &count)
            .finish_non_exhaustive()
    }
}

/// One reader's place; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    readers: Arc<Readers>,
    number: u64,
}

impl Place {
    /// A reader that wants the bytes from `offset`.
    pub(super) fn take(readers: &Arc<Readers>, offset: u64) -> Self {
        let number = readers.numbers.fetch_add(1, Ordering::Relaxed);
        lock(&readers.offsets).insert(number, offset);
        Self {
            readers: Arc::clone(readers),
            number,
        }
    }

    /// It has everything before `offset`.
    pub(super) fn reach(&self, offset: u64) {
        if let Some(place) = lock(&self.readers.offsets).get_mut(&self.number) {
            *place = offset;
        }
        self.readers.moved.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.readers.offsets).remove(&self.number);
        self.readers.moved.notify_one();
    }
}

/// Nobody reads any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Deserted;

/// The bytes that have arrived and are not taken by all.
#[derive(Debug)]
pub(super) struct Window {
    readers: Arc<Readers>,
    /// Protects the pieces and where they begin. Held for single operations, never over an await.
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    start: u64,
    end: u64,
    pieces: VecDeque<Bytes>,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// Lets go of whole pieces before `offset`.
    fn let_go(&mut self, offset: u64) {
        while let Some(first) = self.pieces.front() {
            let next = self.start + first.len() as u64;
            if next > offset {
                break;
            }
            self.start = next;
            self.pieces.pop_front();
        }
    }

    /// The rest of the piece that `offset` lies in.
    fn at(&self, offset: u64) -> Option<Bytes> {
        let mut skipped = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        for piece in &self.pieces {
            if skipped < piece.len() {
                let mut rest = piece.clone();
                rest.advance(skipped);
                return Some(rest);
            }
            skipped -= piece.len();
        }
        None
    }
}

impl Window {
    /// A window whose first byte is `start`.
    pub(super) fn new(readers: &Arc<Readers>, start: u64) -> Self {
        Self {
            readers: Arc::clone(readers),
            held: Mutex::new(Held {
                start,
                end: start,
                pieces: VecDeque::new(),
            }),
        }
    }

    /// Bytes of the blob up to here have come.
    pub(super) fn end(&self) -> u64 {
        lock(&self.held).end
    }

    /// Some of the bytes from `offset`; `None` when they have left or have not come.
    pub(super) fn read(&self, offset: u64) -> Option<Bytes> {
        lock(&self.held).at(offset)
    }

    /// Adds the next bytes, as soon as there is room for them.
    pub(super) async fn push(&self, bytes: Bytes) -> Result<(), Deserted> {
        self.wait(WINDOW_BYTES.saturating_sub(bytes.len() as u64))
            .await?;
        let mut held = lock(&self.held);
        held.end += bytes.len() as u64;
        held.pieces.push_back(bytes);
        Ok(())
    }

    /// Waits until every reader has everything, or was waited for too long.
    pub(super) async fn drain(&self) {
        // Nobody left is as good as everything taken.
        let _all = self.wait(0).await;
        let mut held = lock(&self.held);
        held.start = held.end;
        held.pieces.clear();
    }

    /// Waits until at most `most` bytes are held.
    async fn wait(&self, most: u64) -> Result<(), Deserted> {
        loop {
            let moved = self.readers.moved.notified();
            let (slowest, quickest) = self.span()?;
            if self.held_from(slowest) <= most {
                return Ok(());
            }
            if slowest == quickest {
                moved.await;
                continue;
            }
            let half = most.min(WINDOW_BYTES / 2);
            let room = tokio::time::timeout(PATIENCE, self.room(half)).await;
            if room.is_err() {
                self.leave_behind(half);
            }
        }
    }

    /// Waits until the readers themselves have taken so much that at most `most` bytes are held, or have left.
    async fn room(&self, most: u64) {
        loop {
            let moved = self.readers.moved.notified();
            match self.span() {
                Ok((slowest, _)) if self.held_from(slowest) > most => moved.await,
                _ => return,
            }
        }
    }

    /// Lets go of what lies before `offset`; how many bytes are left.
    fn held_from(&self, offset: u64) -> u64 {
        let mut held = lock(&self.held);
        held.let_go(offset);
        held.bytes()
    }

    /// Lets go of all but the last `most` bytes, and of the readers that have not come so far.
    fn leave_behind(&self, most: u64) {
        let mut held = lock(&self.held);
        let offset = held.end.saturating_sub(most);
        held.let_go(offset);
        lock(&self.readers.offsets).retain(|_number, place| *place >= held.start);
    }

    /// Where the slowest and the quickest reader are.
    fn span(&self) -> Result<(u64, u64), Deserted> {
        let offsets = lock(&self.readers.offsets);
        let slowest = offsets.values().min().copied();
        let quickest = offsets.values().max().copied();
        slowest.zip(quickest).ok_or(Deserted)
    }
}
