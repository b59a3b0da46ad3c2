//! A request body as the domain sees it: bytes that arrive, under a cap and a minimum rate that the edge enforces.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};

/// A body ended before its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyError {
    /// The client went away.
    #[error("the client went away")]
    Disconnected,
    /// The client does not keep to the form of a chunked body: in what.
    #[error("the body is not valid HTTP: {0}")]
    Malformed(&'static str),
    /// The client sends slower than the minimum rate.
    #[error("the body arrives too slowly")]
    TooSlow,
    /// The client's principal was revoked.
    #[error("the credential was revoked while the body arrived")]
    Revoked,
    /// More than the cap.
    #[error("the body is too large")]
    TooLarge,
}

/// Bytes that arrive.
pub struct Body {
    length: Option<u64>,
    stream: Pin<Box<dyn Stream<Item = Result<Bytes, BodyError>> + Send>>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Body")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Body {
    /// A body of `length` bytes, when the client declared one.
    pub fn new(
        length: Option<u64>,
        stream: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
    ) -> Self {
        Self {
            length,
            stream: Box::pin(stream),
        }
    }

    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::new(Some(0), futures_util::stream::empty())
    }

    /// Bytes at hand.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self::new(
            Some(bytes.len() as u64),
            futures_util::stream::iter([Ok(bytes)]),
        )
    }

    /// The declared length.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        self.stream.next().await
    }

    /// The whole body, at most `max_bytes`.
    ///
    /// # Errors
    /// [`BodyError`]; [`BodyError::TooLarge`] before anything is read when the declared length says so.
    pub async fn read_capped(mut self, max_bytes: usize) -> Result<Bytes, BodyError> {
        if self.length.is_some_and(|length| length > max_bytes as u64) {
            return Err(BodyError::TooLarge);
        }
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.next().await {
            let bytes = bytes?;
            if whole.len() + bytes.len() > max_bytes {
                return Err(BodyError::TooLarge);
            }
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }
}
