//! What clients have been given and have not taken: response data in memory, per connection and in all.
//!
//! A connection takes at most [`CONNECTION_BYTES`], and never more than is left of [`PROCESS_BYTES`]: the fuller the process, the less each
//! may have, so that those who take nothing leave room for those who do. A connection without unread data always gets a little.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;

use super::{activity::Active, flow::ClientWait};

/// Unread response data of a connection at most.
const CONNECTION_BYTES: usize = 4 << 20;

/// Unread response data of all connections.
const PROCESS_BYTES: usize = 128 << 20;

/// What a connection without unread data gets however full the process is.
const LEAST_BYTES: usize = 16 << 10;

/// Bytes handed out at once at most.
const PIECE_BYTES: usize = 64 << 10;

/// The unread data of the process.
#[derive(Debug, Default)]
pub(super) struct Unread {
    bytes: AtomicUsize,
}

/// The unread data of one connection.
#[derive(Debug)]
pub(super) struct ConnectionUnread {
    process: Arc<Unread>,
    bytes: AtomicUsize,
    /// Streams that wait for others of their connection to be taken. Held for single operations.
    waiting: Mutex<Vec<Waker>>,
}

impl ConnectionUnread {
    pub(super) fn new(process: &Arc<Unread>) -> Arc<Self> {
        Arc::new(Self {
            process: Arc::clone(process),
            bytes: AtomicUsize::new(0),
            waiting: Mutex::default(),
        })
    }

    /// Room for the next piece of a response.
    pub(super) fn poll_room(self: &Arc<Self>, context: &Context<'_>) -> Poll<Room> {
        if let Some(room) = self.room() {
            return Poll::Ready(room);
        }
        self.waiting().push(context.waker().clone());
        // Something may have been taken between the look and the wait.
        self.room().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits until a further response may begin.
    pub(super) async fn begin(self: &Arc<Self>) {
        drop(poll_fn(|context| self.poll_room(context)).await);
    }

    fn room(self: &Arc<Self>) -> Option<Room> {
        let own = self.bytes.load(Ordering::Acquire);
        let left = PROCESS_BYTES.saturating_sub(self.process.bytes.load(Ordering::Acquire));
        let most = CONNECTION_BYTES.min(left).saturating_sub(own);
        let bytes = match own {
            0 => most.clamp(LEAST_BYTES, PIECE_BYTES),
            _ => most.min(PIECE_BYTES),
        };
        (bytes >= LEAST_BYTES).then(|| self.take(bytes))
    }

    /// Counts bytes that are there in any case.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Room {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.process.bytes.fetch_add(bytes, Ordering::AcqRel);
        Room {
            connection: Arc::clone(self),
            bytes,
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<Waker>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counted bytes.
#[derive(Debug)]
pub(super) struct Room {
    connection: Arc<ConnectionUnread>,
    bytes: usize,
}

impl Room {
    /// How many.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts as many as there turned out to be.
    pub(super) fn resize(&mut self, bytes: usize) {
        let connection = Arc::clone(&self.connection);
        *self = connection.take(bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.connection
            .bytes
            .fetch_sub(self.bytes, Ordering::AcqRel);
        self.connection
            .process
            .bytes
            .fetch_sub(self.bytes, Ordering::AcqRel);
        let waiting = std::mem::take(&mut *self.connection.waiting());
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// A piece of a response that counts, keeps its request in flight and waits for the client, until the connection has written it.
pub(super) struct UnreadBytes {
    pub(super) bytes: Bytes,
    pub(super) _room: Room,
    pub(super) _waiting: ClientWait,
    pub(super) _active: Active,
}

impl AsRef<[u8]> for UnreadBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_it_gets(connection: &Arc<ConnectionUnread>) -> Vec<Room> {
        std::iter::from_fn(|| connection.room()).collect()
    }

    fn bytes(rooms: &[Room]) -> usize {
        rooms.iter().map(Room::bytes).sum()
    }

    #[test]
    fn a_connection_gets_four_mebibytes_and_more_as_it_takes_them() {
        let connection = ConnectionUnread::new(&Arc::default());
        let mut rooms = all_it_gets(&connection);
        assert_eq!(bytes(&rooms), CONNECTION_BYTES);
        drop(rooms.pop());
        assert_eq!(connection.room().unwrap().bytes(), PIECE_BYTES);
    }

    #[test]
    fn however_many_connections_take_nothing_the_process_stays_bounded_and_another_gets_on() {
        let process = Arc::default();
        let connections: Vec<_> = (0..1000).map(|_| ConnectionUnread::new(&process)).collect();
        let rooms: Vec<_> = connections.iter().flat_map(all_it_gets).collect();
        let all = bytes(&rooms);
        assert!(all <= PROCESS_BYTES + 1000 * LEAST_BYTES, "{all}");
        let honest = ConnectionUnread::new(&process);
        assert!(honest.room().unwrap().bytes() >= LEAST_BYTES);
    }

    #[tokio::test]
    async fn a_stream_that_waits_goes_on_when_another_was_taken() {
        let connection = ConnectionUnread::new(&Arc::default());
        let rooms = all_it_gets(&connection);
        let waiting = Arc::clone(&connection);
        let waiting = tokio::spawn(async move { waiting.begin().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(rooms);
        waiting.await.unwrap();
    }
}
