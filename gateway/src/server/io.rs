//! A connection's bytes: the socket or TLS session below, and the limits of writing and closing on top.
//!
//! Invariants: a write that makes too little progress fails; a close after an unread body first takes the body off the wire, because
//! the kernel answers unread bytes with a reset that would overtake our response.

mod refusal;
mod transport;

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

pub(super) use self::transport::Transport;
use super::{
    Mappings,
    activity::Activity,
    flow::{Flow, SentFrames},
    head::{HeadGuard, MalformedBody, Passage},
    mapped::Part,
};
use crate::http::pace::{Pace, Rate};

/// Bytes read from the socket at once while a head is awaited.
const HEAD_READ_BYTES: usize = 8 << 10;

/// How long a close waits for an unread body's end, and how many bytes it takes.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: u64 = 8 << 20;

/// A connection's bytes, as hyper sees them.
#[derive(Debug)]
pub(super) struct Wire {
    transport: Transport,
    guard: HeadGuard,
    activity: Arc<Activity>,
    rate: Rate,
    stall: Option<Stall>,
    /// Our own answer in place of hyper's, not yet written.
    refusal: Bytes,
    /// Frames that leave from their file.
    mappings: Option<Arc<Mappings>>,
    /// Where data frames count that leave on HTTP/2.
    data: Option<(SentFrames, Arc<Flow>)>,
    closing: Option<Closing>,
}

/// A write the client does not take.
#[derive(Debug)]
struct Stall {
    pace: Pace,
    since: Instant,
    pending: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Closing {
    shut: bool,
    taken: u64,
    timer: Pin<Box<Sleep>>,
}

impl Wire {
    pub(super) fn new(
        transport: Transport,
        guard: HeadGuard,
        activity: Arc<Activity>,
        rate: Rate,
    ) -> Self {
        Self {
            transport,
            guard,
            activity,
            rate,
            stall: None,
            refusal: Bytes::new(),
            mappings: None,
            data: None,
            closing: None,
        }
    }

    /// From here on frames of the mappings returned leave by sendfile; `None` where the transport cannot.
    pub(super) fn send_files(&mut self) -> Option<Arc<Mappings>> {
        if self.transport.sends_files() {
            self.mappings = Some(Arc::default());
        }
        self.mappings.clone()
    }

    /// From here on the data frames that leave count.
    pub(super) fn count_data(&mut self, flow: &Arc<Flow>) {
        self.data = Some((SentFrames::default(), Arc::clone(flow)));
    }

    /// Counts the data in the first `count` bytes of what was written.
    fn count_written(&mut self, slices: &[io::IoSlice<'_>], count: usize) {
        let Some((frames, flow)) = &mut self.data else {
            return;
        };
        let mut left = count;
        let mut data = 0;
        for slice in slices {
            let written = slice.get(..left.min(slice.len())).unwrap_or_default();
            left -= written.len();
            data += frames.data(written);
        }
        if data > 0 {
            flow.sent(data);
        }
    }

    /// Where these bytes lie in a file.
    fn in_file(&self, bytes: &[u8]) -> Option<Part> {
        self.mappings.as_ref()?.find(bytes)
    }

    /// Sends from the file; through the mapping where the system has no sendfile for it.
    fn poll_send_file(
        &mut self,
        context: &mut Context<'_>,
        part: &Part,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let sent = match part.blob.file() {
            Some(file) => self
                .transport
                .poll_send_file(context, &file, part.offset, bytes.len()),
            None => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        };
        let sent = match sent {
            Poll::Ready(Err(error)) if is_no_sendfile(&error) => {
                Pin::new(&mut self.transport).poll_write(context, bytes)
            }
            sent => sent,
        };
        self.paced(context, sent)
    }

    /// Notes a write's result, and fails it when the client has been too slow.
    fn paced(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(count)) => {
                self.taken(count);
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => self.stalled(context),
        }
    }

    /// The client took bytes.
    fn taken(&mut self, count: usize) {
        let Some(stall) = &mut self.stall else {
            return;
        };
        if stall.pending {
            stall.pending = false;
            stall.pace.progress(stall.since.elapsed(), count as u64);
            stall.timer = None;
            self.activity.writing(false);
        } else {
            stall.pace.progress(Duration::ZERO, count as u64);
        }
    }

    fn stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let hidden = match &self.stall {
            Some(_) => 0,
            None => self.transport.send_buffer_bytes(),
        };
        let rate = self.rate;
        let stall = self.stall.get_or_insert_with(|| Stall {
            pace: Pace::new(rate, hidden),
            since: Instant::now(),
            pending: false,
            timer: None,
        });
        if !stall.pending {
            stall.pending = true;
            stall.since = Instant::now();
            self.activity.writing(true);
        }
        loop {
            let Some(patience) = stall.pace.patience() else {
                return Poll::Pending;
            };
            let limit = stall.since + patience;
            let timer = stall
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(limit)));
            ready!(timer.as_mut().poll(context));
            // The kernel lets its buffer grow while a transfer runs; only now is it worth asking how far.
            stall.timer = None;
            stall.pace.widen(self.transport.send_buffer_bytes());
            if stall.pace.patience() <= Some(patience) {
                break;
            }
        }
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client takes the response too slowly",
        )))
    }

    /// Reads from the socket into the guard, which holds a head back until it is whole.
    fn poll_guarded(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Poll::Ready(bytes) = self.guard.release(buffer.remaining()) {
                buffer.put_slice(&bytes);
                return Poll::Ready(Ok(()));
            }
            self.guard
                .broken()
                .map_or(Ok(()), |why| Err(malformed(why)))?;
            let mut space = [const { MaybeUninit::uninit() }; HEAD_READ_BYTES];
            let mut read = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut self.transport).poll_read(context, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.guard.hold(read.filled());
            if self.guard.in_head() {
                self.activity.head_began();
            }
        }
    }

    /// Reads straight into hyper's buffer, which keeps what belongs to the chunked body.
    fn poll_followed(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(context, buffer))?;
        let read = buffer.filled().get(before..).unwrap_or_default();
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let kept = self.guard.follow(read);
        buffer.set_filled(before + kept);
        // Nothing would look like the end of the stream.
        match self.guard.broken() {
            Some(why) if kept == 0 => Poll::Ready(Err(malformed(why))),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Writes what is left of our own answer.
    fn poll_refusal(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.refusal.is_empty() {
            let written = Pin::new(&mut self.transport).poll_write(context, &self.refusal);
            let written = ready!(self.paced(context, written))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            drop(self.refusal.split_to(written));
        }
        Poll::Ready(Ok(()))
    }

    /// Whether `written` is hyper's own, empty answer to a request it could not read; then ours takes its place. Possible only
    /// before any request of this connection was understood or after the guard refused one: never inside a response's body.
    fn replaces(&mut self, written: &[u8]) -> bool {
        let ours = self.guard.refused().is_some() || !self.activity.any_request();
        let Some(refusal) = ours
            .then(|| refusal::replace(written, self.guard.refused()))
            .flatten()
        else {
            return false;
        };
        self.refusal = refusal;
        true
    }

    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(closing) = &mut self.closing else {
            return Poll::Ready(());
        };
        let mut space = [0_u8; HEAD_READ_BYTES];
        loop {
            if closing.timer.as_mut().poll(context).is_ready() || closing.taken > LINGER_BYTES {
                return Poll::Ready(());
            }
            let mut read = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut self.transport).poll_read(context, &mut read)) {
                Ok(()) if !read.filled().is_empty() => closing.taken += read.filled().len() as u64,
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

fn malformed(why: MalformedBody) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Whether the file's system cannot be sent from.
fn is_no_sendfile(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    )
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let limit = match self.guard.passage() {
            Passage::Held => return self.poll_guarded(context, buffer),
            Passage::Followed => return self.poll_followed(context, buffer),
            Passage::Straight(limit) => limit,
        };
        let limit = usize::try_from(limit)
            .unwrap_or(usize::MAX)
            .min(buffer.remaining());
        if limit == buffer.remaining() {
            let before = buffer.filled().len();
            ready!(Pin::new(&mut self.transport).poll_read(context, buffer))?;
            self.guard.passed((buffer.filled().len() - before) as u64);
            return Poll::Ready(Ok(()));
        }
        // Only the body's end: what may follow is a head.
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        ready!(Pin::new(&mut self.transport).poll_read(context, &mut part))?;
        let count = part.filled().len();
        buffer.advance(count);
        self.guard.passed(count as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(context))?;
        if let Some(part) = self.in_file(bytes) {
            return self.poll_send_file(context, &part, bytes);
        }
        if self.replaces(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.transport).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.count_written(&[io::IoSlice::new(bytes)], count);
        }
        self.paced(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_refusal(context))?;
        let mut slices = slices;
        if self.mappings.as_ref().is_some_and(|maps| !maps.is_empty()) {
            match slices.iter().find(|slice| !slice.is_empty()) {
                Some(first) if let Some(part) = self.in_file(first) => {
                    return self.poll_send_file(context, &part, first);
                }
                _ => {}
            }
            let before = slices
                .iter()
                .take_while(|slice| self.in_file(slice).is_none());
            slices = slices.get(..before.count()).unwrap_or(slices);
        }
        if let [only] = slices
            && self.replaces(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        let written = Pin::new(&mut self.transport).poll_write_vectored(context, slices);
        if let Poll::Ready(Ok(count)) = written {
            self.count_written(slices, count);
        }
        self.paced(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_refusal(context))?;
        // TLS holds records back: a flush can stall like a write.
        let flushed = Pin::new(&mut self.transport).poll_flush(context);
        match flushed {
            Poll::Ready(Ok(())) if self.stall.as_ref().is_some_and(|stall| stall.pending) => {
                ready!(self.paced(context, Poll::Ready(Ok(0))))?;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.stalled(context).map_ok(drop),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(context))?;
        let this = &mut *self;
        let lingers = this.activity.must_linger() || this.guard.gave_up();
        let closing = this.closing.get_or_insert_with(|| Closing {
            shut: false,
            taken: 0,
            timer: Box::pin(tokio::time::sleep(LINGER)),
        });
        if !closing.shut {
            // A client that takes nothing any more must not hold the close up.
            match Pin::new(&mut this.transport).poll_shutdown(context) {
                Poll::Ready(result) => result?,
                Poll::Pending => return closing.timer.as_mut().poll(context).map(Ok),
            }
            closing.shut = true;
        }
        if lingers {
            ready!(this.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}
