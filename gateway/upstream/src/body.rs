//! Reads a response's body: bounded where it is kept, and never slower than allowed.
//!
//! Owns the two rules on speed, an idle timeout and a minimum rate; there is no total timeout, because a large layer over a slow
//! line is legal. Only time spent waiting for the upstream counts, so a slow reader is not held against it. Owns the length check
//! too: a body that is not as long as its headers said is an error, never a clean end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use reqwest::Response;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout},
};

use crate::error::{Call, Cause, Kind, UpstreamError};

/// How slow a body may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// The longest silence.
    pub(crate) idle_timeout: Duration,
    /// Bytes per second, averaged over half an idle timeout.
    pub(crate) minimum_rate: u64,
}

/// A body on its way.
pub(crate) struct Body {
    response: Response,
    call: Call,
    pace: Pace,
    expected: Option<u64>,
    received: u64,
    waited: Duration,
    received_in_window: u64,
}

impl Body {
    /// The body of `response`, which must have `expected` bytes where that is known.
    pub(crate) fn new(response: Response, call: Call, pace: Pace, expected: Option<u64>) -> Self {
        Self {
            response,
            call,
            pace,
            expected,
            received: 0,
            waited: Duration::ZERO,
            received_in_window: 0,
        }
    }

    /// The whole body, when it has at most `max_bytes`.
    pub(crate) async fn read_capped(mut self, max_bytes: usize) -> Result<Bytes, UpstreamError> {
        let too_large = |call: &Call| call.fail(Kind::Invalid, "the body is larger than allowed");
        let cap = u64::try_from(max_bytes).unwrap_or(u64::MAX);
        if self.expected.is_some_and(|expected| expected > cap) {
            return Err(too_large(&self.call));
        }
        let mut whole = BytesMut::new();
        while let Some(part) = self.next().await? {
            if whole.len().saturating_add(part.len()) > max_bytes {
                return Err(too_large(&self.call));
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// The body as a stream that holds `permit` while it lives. Dropping it closes the connection.
    pub(crate) fn into_stream(
        self,
        permit: OwnedSemaphorePermit,
    ) -> BoxStream<'static, Result<Bytes, UpstreamError>> {
        stream::unfold(Some((self, permit)), async |state| {
            let (mut body, permit) = state?;
            match body.next().await {
                Ok(Some(part)) => Some((Ok(part), Some((body, permit)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    /// The next part; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let started = Instant::now();
        let part = timeout(self.pace.idle_timeout, self.response.chunk()).await;
        self.waited += started.elapsed();
        let part = part
            .map_err(|silence| {
                let answer = "the body stalled";
                self.call
                    .fail_with(Kind::Unavailable, answer, silence)
                    .because(Cause::Stalled)
            })?
            .map_err(|error| {
                let answer = "the body broke off";
                let source = error.without_url();
                self.call
                    .fail_with(Kind::Unavailable, answer, source)
                    .because(Cause::Broken)
            })?;
        match part {
            Some(part) => self.count(&part).map(|()| Some(part)),
            None => self.finish().map(|()| None),
        }
    }

    fn count(&mut self, part: &Bytes) -> Result<(), UpstreamError> {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        self.received = self.received.saturating_add(length);
        if self
            .expected
            .is_some_and(|expected| self.received > expected)
        {
            return Err(self
                .call
                .fail(Kind::Invalid, "the body is longer than announced"));
        }
        self.received_in_window = self.received_in_window.saturating_add(length);
        let window = self.pace.idle_timeout / 2;
        if self.waited < window {
            return Ok(());
        }
        let required = u128::from(self.pace.minimum_rate) * self.waited.as_millis() / 1000;
        if u128::from(self.received_in_window) < required {
            let error = self.call.fail(Kind::Unavailable, "the body is too slow");
            return Err(error.because(Cause::TooSlow));
        }
        self.waited = Duration::ZERO;
        self.received_in_window = 0;
        Ok(())
    }

    fn finish(&self) -> Result<(), UpstreamError> {
        match self.expected {
            Some(expected) if self.received < expected => {
                let answer = "the body is shorter than announced";
                Err(self
                    .call
                    .fail(Kind::Unavailable, answer)
                    .because(Cause::Broken))
            }
            _ => Ok(()),
        }
    }
}
