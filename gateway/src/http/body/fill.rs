//! A fill in progress as frames: what has arrived is read into buffers, or mapped for a connection that sends from the file, so that
//! a thousand clients of one fill cost no more memory than as many of a published blob.
//!
//! Invariant: exactly the promised bytes, or an error.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use gantry_registry::{Arrived, Error as RegistryError};

use super::{
    BodyFailure,
    blob::{Reader, Windows},
};
use crate::server::Mappings;

type Polled = Poll<Option<Result<Bytes, BodyFailure>>>;

/// The bytes of a fill as they arrive.
pub(super) struct Filling {
    arriving: BoxStream<'static, Result<Arrived, RegistryError>>,
    /// What arrived and has not been handed on.
    at_hand: Option<AtHand>,
    mappings: Option<Arc<Mappings>>,
    read_at_most: Option<usize>,
    left: Option<u64>,
}

enum AtHand {
    Read(Reader),
    Mapped(Windows),
    Loose(Bytes),
}

impl Filling {
    /// A body of exactly `length` bytes, when that is known.
    pub(super) fn new(
        arriving: BoxStream<'static, Result<Arrived, RegistryError>>,
        length: Option<u64>,
    ) -> Self {
        Self {
            arriving,
            at_hand: None,
            mappings: None,
            read_at_most: None,
            left: length,
        }
    }

    /// From here on what lies in a file is mapped and not read.
    pub(super) fn map(&mut self, mappings: &Arc<Mappings>) {
        self.mappings = Some(Arc::clone(mappings));
    }

    /// What is read next is not longer, and read when it is asked for.
    pub(super) fn read_at_most(&mut self, bytes: usize) {
        self.read_at_most = Some(bytes);
        if let Some(AtHand::Read(reader)) = &mut self.at_hand {
            reader.at_most(bytes);
        }
    }

    /// Bytes to come, when that is known.
    pub(super) fn left(&self) -> Option<u64> {
        self.left
    }

    pub(super) fn poll_piece(&mut self, context: &mut Context<'_>) -> Polled {
        loop {
            if let Some(piece) = ready!(self.poll_at_hand(context)) {
                return Poll::Ready(Some(piece.and_then(|bytes| self.counted(bytes))));
            }
            match ready!(self.arriving.as_mut().poll_next(context)) {
                Some(Ok(arrived)) => self.at_hand = Some(self.taken(arrived)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None if self.left.is_none_or(|left| left == 0) => return Poll::Ready(None),
                None => return Poll::Ready(Some(Err("a fill ended before its end".into()))),
            }
        }
    }

    fn poll_at_hand(&mut self, context: &mut Context<'_>) -> Polled {
        let polled = match &mut self.at_hand {
            None => return Poll::Ready(None),
            Some(AtHand::Read(reader)) => ready!(reader.poll_piece(context)),
            Some(AtHand::Mapped(windows)) => ready!(windows.poll_window(context)),
            Some(AtHand::Loose(bytes)) => {
                let bytes = std::mem::take(bytes);
                (!bytes.is_empty()).then_some(Ok(bytes))
            }
        };
        if polled.is_none() {
            self.at_hand = None;
        }
        Poll::Ready(polled)
    }

    fn taken(&self, arrived: Arrived) -> AtHand {
        match arrived {
            Arrived::Loose(bytes) => AtHand::Loose(bytes),
            Arrived::Stored {
                blob,
                offset,
                length,
            } => {
                let mut reader = Reader::new(blob, offset, length);
                if let Some(bytes) = self.read_at_most {
                    reader.at_most(bytes);
                }
                let mappings = self.mappings.as_ref();
                match mappings.and_then(|mappings| Windows::of(&reader, mappings)) {
                    Some(windows) => AtHand::Mapped(windows),
                    None => AtHand::Read(reader),
                }
            }
        }
    }

    fn counted(&mut self, bytes: Bytes) -> Result<Bytes, BodyFailure> {
        if let Some(left) = &mut self.left {
            *left = left
                .checked_sub(bytes.len() as u64)
                .ok_or("a fill gave more bytes than it promised")?;
        }
        Ok(bytes)
    }
}
