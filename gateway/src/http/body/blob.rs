//! A published blob as frames: read into buffers, or mapped for a connection that sends from the file.
//!
//! Invariant: exactly the promised bytes, or an error.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use gantry_storage::{Blob, StorageError};

use super::BodyFailure;
use crate::server::Mappings;

type Polled = Poll<Option<Result<Bytes, BodyFailure>>>;
type Piece = BoxFuture<'static, Result<Bytes, StorageError>>;
type Warming = BoxFuture<'static, Result<(), StorageError>>;

/// Bytes read at once: large enough that a frame costs nothing, small enough that two per client are little.
const PIECE_BYTES: usize = 64 << 10;

/// Bytes mapped at once: large enough that a mapping costs nothing, small enough that others get their turn between two.
const WINDOW_BYTES: usize = 4 << 20;

/// Below this a copy costs less than a mapping.
const LEAST_MAPPED_BYTES: u64 = 64 << 10;

/// Reads a blob. What lies on a cold disk is read one piece ahead of what is being sent.
pub(super) struct Reader {
    blob: Arc<dyn Blob>,
    offset: u64,
    left: u64,
    next: Option<Piece>,
    /// Bytes of a piece, and whether the next is read while one is sent.
    piece_bytes: usize,
    ahead: bool,
}

impl Reader {
    pub(super) fn new(blob: Arc<dyn Blob>, offset: u64, length: u64) -> Self {
        Self {
            blob,
            offset,
            left: length,
            next: None,
            piece_bytes: PIECE_BYTES,
            ahead: true,
        }
    }

    /// The next piece is not longer, and read when it is asked for.
    pub(super) fn at_most(&mut self, bytes: usize) {
        self.piece_bytes = bytes.clamp(1, PIECE_BYTES);
        self.ahead = false;
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Polled {
        let waited = self.next.is_some();
        self.start();
        let Some(next) = &mut self.next else {
            return Poll::Ready(None);
        };
        let read = ready!(next.as_mut().poll(context));
        self.next = None;
        let bytes = match read {
            Ok(bytes) if bytes.is_empty() || bytes.len() as u64 > self.left => {
                return Poll::Ready(Some(Err("a blob is not as long as its size".into())));
            }
            Ok(bytes) => bytes,
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        };
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        if waited && self.ahead {
            self.read_ahead(context);
        }
        Poll::Ready(Some(Ok(bytes)))
    }

    fn start(&mut self) {
        if self.next.is_none() && self.left > 0 {
            let blob = Arc::clone(&self.blob);
            let offset = self.offset;
            let length = at_most(self.left, self.piece_bytes);
            self.next = Some(Box::pin(async move { blob.read_at(offset, length).await }));
        }
    }

    /// Starts the next read: a future does nothing before its first poll. An answer that is there at once is kept.
    fn read_ahead(&mut self, context: &mut Context<'_>) {
        self.start();
        if let Some(next) = &mut self.next
            && let Poll::Ready(result) = next.as_mut().poll(context)
        {
            self.next = Some(Box::pin(std::future::ready(result)));
        }
    }
}

/// Maps a blob's file window by window. A window that is not in the system's cache is read into it first, elsewhere.
pub(super) struct Windows {
    blob: Arc<dyn Blob>,
    mappings: Arc<Mappings>,
    offset: u64,
    left: u64,
    warming: Option<Warming>,
    /// Others had their turn since the last window.
    rested: bool,
}

impl Windows {
    /// What a reader was to read; `None` when it began, when the blob has no file, or when it is not worth a mapping.
    pub(super) fn of(reader: &Reader, mappings: &Arc<Mappings>) -> Option<Self> {
        let worth = reader.left >= LEAST_MAPPED_BYTES && reader.next.is_none();
        (worth && reader.blob.file().is_some()).then(|| Self {
            blob: Arc::clone(&reader.blob),
            mappings: Arc::clone(mappings),
            offset: reader.offset,
            left: reader.left,
            warming: None,
            rested: true,
        })
    }

    pub(super) fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn poll_window(&mut self, context: &mut Context<'_>) -> Polled {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if !std::mem::replace(&mut self.rested, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let length = at_most(self.left, WINDOW_BYTES);
        if self.warming.is_none() && !self.blob.is_warm(self.offset, length) {
            let (blob, offset) = (Arc::clone(&self.blob), self.offset);
            self.warming = Some(Box::pin(async move { blob.warm(offset, length).await }));
        }
        if let Some(warming) = &mut self.warming {
            let warmed = ready!(warming.as_mut().poll(context));
            self.warming = None;
            if let Err(error) = warmed {
                return Poll::Ready(Some(Err(error.into())));
            }
        }
        let mapped = self.mappings.map(&self.blob, self.offset, length);
        Poll::Ready(Some(match mapped {
            Ok(Some(frame)) => {
                self.offset += length as u64;
                self.left -= length as u64;
                self.rested = false;
                Ok(frame)
            }
            Ok(None) => Err("a blob has no file any more".into()),
            Err(error) => Err(error.into()),
        }))
    }
}

fn at_most(left: u64, most: usize) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}
