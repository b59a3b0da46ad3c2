//! What clients may send before it is read: the windows of HTTP/2 connections.
//!
//! A connection's window (RFC 9113 section 5.2) is memory that its client can fill while nobody reads, as before a decision. A
//! connection takes an eighth of what is left of [`PROCESS_BYTES`], so that ever more connections get ever less each, at least what
//! every HTTP/2 connection begins with.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// The windows of all connections, but for the least ones.
const PROCESS_BYTES: u64 = 64 << 20;

/// Of one connection at most.
const CONNECTION_BYTES: u32 = 4 << 20;

/// Of one stream at most.
const STREAM_BYTES: u32 = 1 << 20;

/// The window that a connection begins with (RFC 9113 section 6.9.2).
const LEAST_BYTES: u32 = 65_535;

/// The windows of the process.
#[derive(Debug, Default)]
pub(super) struct UploadWindows {
    taken: AtomicU64,
}

/// One connection's window, given back when it is dropped.
#[derive(Debug)]
pub(super) struct UploadWindow {
    windows: Arc<UploadWindows>,
    bytes: u32,
}

impl UploadWindows {
    /// A window for another connection.
    pub(super) fn take(self: &Arc<Self>) -> UploadWindow {
        let left = PROCESS_BYTES.saturating_sub(self.taken.load(Ordering::Relaxed));
        let share = u32::try_from(left / 8).unwrap_or(CONNECTION_BYTES);
        let bytes = share.clamp(LEAST_BYTES, CONNECTION_BYTES);
        self.taken.fetch_add(bytes.into(), Ordering::Relaxed);
        UploadWindow {
            windows: Arc::clone(self),
            bytes,
        }
    }
}

impl UploadWindow {
    /// Bytes that the connection may send ahead.
    pub(super) fn connection(&self) -> u32 {
        self.bytes
    }

    /// Bytes that each of its streams may send ahead.
    pub(super) fn stream(&self) -> u32 {
        self.bytes.min(STREAM_BYTES)
    }
}

impl Drop for UploadWindow {
    fn drop(&mut self) {
        let bytes = self.bytes.into();
        self.windows.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_may_send_little_ahead_and_few_may_send_much() {
        let windows = Arc::<UploadWindows>::default();
        let first = windows.take();
        assert_eq!((first.connection(), first.stream()), (4 << 20, 1 << 20));
        let many: Vec<UploadWindow> = (0..10_000).map(|_| windows.take()).collect();
        let least = many.iter().map(UploadWindow::connection).min();
        assert_eq!(least, Some(LEAST_BYTES));
        let above: u64 = many
            .iter()
            .map(|window| u64::from(window.connection() - LEAST_BYTES))
            .sum();
        assert!(above < PROCESS_BYTES, "{above}");
        drop(many);
        assert_eq!(windows.take().connection(), 4 << 20);
    }
}
