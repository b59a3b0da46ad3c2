//! A large blob in several requests at once: its parts come side by side and are taken in the blob's order.
//!
//! Owns which parts are asked for and when one stream has to do for the rest. They are taken in order, so everything else is as for one
//! stream: one pass of the hash while the bytes are in cache, a staging file without holes, readers that follow what was written. The
//! price is memory for what comes before its turn: at most one part for each request but the first, and [`MAX_AHEAD`] of all fills.
//! Invariant: a part that is not the next one is in memory whole or goes on from where it broke off; nothing is fetched twice for a
//! break.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use gantry_upstream::{BlobStream, Cause, Kind, Part as Asked, UpstreamError};
use tokio::sync::SemaphorePermit;

use super::{
    failure::Failure,
    fetch::{FIRST_BACKOFF, FORGIVEN_AFTER_BYTES, Fetch, MAX_RESUMPTIONS, Receiving},
};
use crate::ports::Parallel;

/// Parts that may come before their turn, of all fills together: with the parts' usual size 128 MiB.
pub(super) const MAX_AHEAD: usize = 16;

/// The longest pause an upstream may ask for in the middle of a blob; after a longer one clients are gone.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Receiving<'_> {
    /// Receives the blob in parts, of which the first is coming. Where the upstream does not go along, one stream brings the rest.
    pub(super) async fn receive_parts(
        &mut self,
        first: BlobStream,
        parallel: Parallel,
    ) -> Result<(), Failure> {
        let Some(size) = first.size else {
            return Err(Failure::internal("a part of a blob of unknown length"));
        };
        let mut parts = Parts::new(self.fetch(), parallel, size, first);
        while self.take(&mut parts).await? {
            let came = match parts.come().now_or_never() {
                Some(at_once) => at_once,
                None => {
                    self.flush().await?;
                    parts.come().await
                }
            };
            match came {
                (0, Came::Bytes(bytes)) => self.append(bytes).await?,
                (index, came) => parts.settle(index, came),
            }
        }
        self.flush().await?;
        match self.written() == size {
            true => Ok(()),
            false => self.receive(None).await,
        }
    }

    /// Takes what has its turn; whether more will come.
    async fn take(&mut self, parts: &mut Parts<'_>) -> Result<bool, Failure> {
        while let Some(part) = parts.queue.front_mut() {
            for bytes in mem::take(&mut part.held) {
                self.append(bytes).await?;
            }
            match part.state {
                State::Whole => parts.advance(),
                State::Cut => return Ok(false),
                State::Waits | State::Comes(_) => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// The parts that are asked for, in order; the first one is next.
struct Parts<'a> {
    fetch: &'a Fetch,
    parallel: Parallel,
    size: u64,
    etag: Option<String>,
    queue: VecDeque<Part<'a>>,
    /// Where the part after these begins.
    next: u64,
    /// Whether more than the first is asked for. Who refuses a further request is asked for no more of them.
    may_widen: bool,
}

struct Part<'a> {
    first: u64,
    last: u64,
    /// What came before its turn.
    held: VecDeque<Bytes>,
    state: State<'a>,
    /// Whether its request waits for a place.
    waits: bool,
    has_begun: bool,
    /// Room for what is held. The first part of a fill needs none.
    _room: Option<SemaphorePermit<'a>>,
}

enum State<'a> {
    /// It was refused, and is asked for again when its turn is near.
    Waits,
    /// On its way.
    Comes(BoxStream<'a, Result<Bytes, Failure>>),
    /// All of it came.
    Whole,
    /// No more of it will come in this way.
    Cut,
}

/// What came of a part.
enum Came {
    Bytes(Bytes),
    Whole,
    Failed(Failure),
}

impl<'a> Parts<'a> {
    fn new(fetch: &'a Fetch, parallel: Parallel, size: u64, first: BlobStream) -> Self {
        let mut parts = Self {
            fetch,
            parallel,
            size,
            etag: first.etag,
            queue: VecDeque::new(),
            next: 0,
            may_widen: true,
        };
        parts.push(None, Some(first.bytes));
        parts.widen();
        parts
    }

    /// The part after the others, over `body` when that is there.
    fn push(&mut self, room: Option<SemaphorePermit<'a>>, body: Option<Body>) {
        let first = self.next;
        self.next = first
            .saturating_add(self.parallel.part_bytes)
            .min(self.size);
        let last = self.next.saturating_sub(1);
        let waits = self.queue.is_empty();
        let comes = self.coming(first, last, waits, body);
        self.queue.push_back(Part {
            first,
            last,
            held: VecDeque::new(),
            state: State::Comes(comes),
            waits,
            has_begun: false,
            _room: room,
        });
    }

    fn coming(
        &self,
        first: u64,
        last: u64,
        waits: bool,
        body: Option<Body>,
    ) -> BoxStream<'a, Result<Bytes, Failure>> {
        let lane = Lane {
            fetch: self.fetch,
            size: self.size,
            etag: self.etag.clone(),
            at: first,
            last,
            waits,
            body,
            resumptions: 0,
            backoff: FIRST_BACKOFF,
            reached: first,
        };
        futures_util::stream::try_unfold(lane, |mut lane| async move {
            Ok(lane.next().await?.map(|bytes| (bytes, lane)))
        })
        .boxed()
    }

    /// Asks for what may be asked for now.
    fn widen(&mut self) {
        for index in 0..self.queue.len() {
            self.ask_again(index);
        }
        while self.may_widen
            && self.queue.len() < self.parallel.ranges
            && self.next < self.size
            && let Ok(room) = self.fetch.engine.running.ahead.try_acquire()
        {
            self.push(Some(room), None);
        }
    }

    /// Asks again for a part that was refused: the next one in any case, another if that is not too much.
    fn ask_again(&mut self, index: usize) {
        let waits = index == 0;
        let Some(part) = self.queue.get(index) else {
            return;
        };
        if matches!(part.state, State::Waits) && (waits || self.may_widen) {
            let comes = self.coming(part.first, part.last, waits, None);
            if let Some(part) = self.queue.get_mut(index) {
                part.state = State::Comes(comes);
                part.waits = waits;
            }
        }
    }

    /// The next part is taken.
    fn advance(&mut self) {
        self.queue.pop_front();
        if self.queue.is_empty() && self.may_widen && self.next < self.size {
            self.push(None, None);
        }
        self.widen();
    }

    /// What comes first, of whichever part.
    async fn come(&mut self) -> (usize, Came) {
        poll_fn(|context| {
            let mut parts = self.queue.iter_mut().enumerate();
            let came = parts.find_map(|(index, part)| match part.poll(context) {
                Poll::Ready(came) => Some((index, came)),
                Poll::Pending => None,
            });
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Notes what came of a part that has not its turn, or how one ended.
    fn settle(&mut self, index: usize, came: Came) {
        let Some(part) = self.queue.get_mut(index) else {
            return;
        };
        match came {
            Came::Bytes(bytes) => part.held.push_back(bytes),
            Came::Whole => part.state = State::Whole,
            // No place for a further request; its turn may have come meanwhile.
            Came::Failed(failure) if part.may_wait() && failure.is_resumable() => {
                tracing::debug!(
                    error = &failure as &dyn std::error::Error,
                    "fewer parts at once"
                );
                part.state = State::Waits;
                self.may_widen &= is_busy(&failure);
                if index == 0 {
                    self.ask_again(0);
                }
            }
            Came::Failed(failure) => {
                tracing::info!(
                    error = &failure as &dyn std::error::Error,
                    offset = part.first,
                    "a part of a blob did not come; one stream brings the rest"
                );
                part.state = State::Cut;
                self.queue.truncate(index + 1);
                self.may_widen = false;
            }
        }
    }
}

impl Part<'_> {
    /// Whether it was worth no waiting yet.
    fn may_wait(&self) -> bool {
        !self.waits && !self.has_begun
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Came> {
        let State::Comes(comes) = &mut self.state else {
            return Poll::Pending;
        };
        comes.poll_next_unpin(context).map(|came| match came {
            Some(Ok(bytes)) => {
                self.has_begun = true;
                Came::Bytes(bytes)
            }
            Some(Err(failure)) => Came::Failed(failure),
            None => Came::Whole,
        })
    }
}

/// Whether it is our own limit that has no place, for the moment, and nothing the upstream said.
fn is_busy(failure: &Failure) -> bool {
    matches!(failure, Failure::Upstream(error) if error.cause == Cause::Saturated)
}

type Body = BoxStream<'static, Result<Bytes, UpstreamError>>;

/// One part on its way, over as many connections as it takes.
struct Lane<'a> {
    fetch: &'a Fetch,
    size: u64,
    etag: Option<String>,
    /// The next byte.
    at: u64,
    last: u64,
    /// Whether a place for its request is waited for.
    waits: bool,
    body: Option<Body>,
    resumptions: u32,
    backoff: Duration,
    /// Where breaks were forgiven last.
    reached: u64,
}

impl Lane<'_> {
    /// The next bytes; `None` after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        while self.at <= self.last {
            match self.come().await {
                Ok(bytes) => {
                    self.at += bytes.len() as u64;
                    return Ok(Some(bytes));
                }
                Err(failure) => self.recover(failure).await?,
            }
        }
        Ok(None)
    }

    async fn come(&mut self) -> Result<Bytes, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.ask().await?,
        };
        match body.next().await {
            Some(Ok(bytes)) if bytes.len() as u64 > self.last + 1 - self.at => Err(
                Failure::invalid("sent more than the part that was asked for"),
            ),
            Some(Ok(bytes)) => {
                self.body = Some(body);
                Ok(bytes)
            }
            Some(Err(error)) => match Failure::from(error) {
                // A 404 for the rest of what was being sent is no answer about the whole.
                Failure::NotFound => Err(Failure::invalid("gone while it was being sent")),
                failure => Err(failure),
            },
            None => Err(Failure::interrupted(
                self.fetch.origin.mirror(),
                format!("GET blob: a part ended before byte {}", self.at),
            )),
        }
    }

    async fn ask(&mut self) -> Result<Body, Failure> {
        let asked = Asked {
            first: self.at,
            last: self.last,
            waits: self.waits,
        };
        let part = self.fetch.part(asked).await?;
        // From now on it has its place, and what breaks is worth waiting for.
        self.waits = true;
        let is_other = part.etag.is_some() && self.etag.is_some() && part.etag != self.etag;
        if part.last.is_none() || part.size != Some(self.size) || is_other {
            return Err(Failure::invalid(
                "answered with other content, or not with a part",
            ));
        }
        Ok(part.bytes)
    }

    /// Waits before the rest is asked for again, when that may help.
    async fn recover(&mut self, failure: Failure) -> Result<(), Failure> {
        if self.at - self.reached >= FORGIVEN_AFTER_BYTES {
            (self.resumptions, self.backoff) = (0, FIRST_BACKOFF);
            self.reached = self.at;
        }
        let pause = self.backoff.max(pause_of(&failure));
        let gives_up = self.resumptions == MAX_RESUMPTIONS || pause > LONGEST_PAUSE;
        if !self.waits || !failure.is_resumable() || gives_up {
            return Err(failure);
        }
        tracing::info!(
            error = &failure as &dyn std::error::Error,
            offset = self.at,
            "the upstream broke off a part; resuming"
        );
        tokio::time::sleep(pause).await;
        self.resumptions += 1;
        self.backoff *= 2;
        Ok(())
    }
}

/// How long an upstream that limits wants to be left alone.
fn pause_of(failure: &Failure) -> Duration {
    match failure {
        Failure::Upstream(error) if error.kind == Kind::RateLimited => {
            error.retry_after.unwrap_or_default()
        }
        _ => Duration::ZERO,
    }
}
