//! Bodies: a request's under a cap and a minimum rate, and every kind of body a response may have.
//!
//! Invariant: a response body yields exactly the promised bytes or an error, which aborts the connection; it never pads, never appends.

mod blob;
mod fill;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use gantry_registry::{Arrived, Body, BodyError, Error as RegistryError};
use gantry_storage::Blob;
use http_body::{Frame, SizeHint};
use tokio::{sync::Notify, time::Instant};

use self::{
    blob::{Reader, Windows},
    fill::Filling,
};
use super::pace::{Pace, Rate};
use crate::{
    auth::revocation::{Grounds, Proof, Transfer},
    server::Mappings,
};

/// Turns a request's body into the domain's: at most `cap` bytes, not slower than `rate`.
pub fn capped<B>(body: B, cap: Option<u64>, rate: Rate) -> Body
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    capped_of(body, cap, rate, None)
}

/// The same, ended when the principal that sends it is revoked.
pub(crate) fn capped_of<B>(
    body: B,
    cap: Option<u64>,
    rate: Rate,
    proof: Option<&Arc<Proof>>,
) -> Body
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    let length = body.size_hint().exact();
    let incoming = Incoming {
        body,
        left: cap.unwrap_or(u64::MAX),
        pace: Pace::new(rate, 0),
        revoked: proof.filter(|_| length != Some(0)).map(Revoked::of),
    };
    if length.is_some_and(|length| length > incoming.left) {
        let refused = futures_util::stream::iter([Err(BodyError::TooLarge)]);
        return Body::new(length, refused);
    }
    Body::new(
        length,
        futures_util::stream::unfold(Some(incoming), |state| async {
            let mut incoming = state?;
            match incoming.next().await? {
                Ok(bytes) => Some((Ok(bytes), Some(incoming))),
                Err(error) => Some((Err(error), None)),
            }
        }),
    )
}

struct Incoming<B> {
    body: B,
    left: u64,
    pace: Pace,
    revoked: Option<Revoked>,
}

/// Whether the principal of an upload was revoked.
struct Revoked {
    told: Arc<Notify>,
    _transfer: Transfer,
}

impl Revoked {
    fn of(proof: &Arc<Proof>) -> Self {
        let told = Arc::new(Notify::new());
        let tell = Arc::clone(&told);
        Self {
            told,
            _transfer: proof.transfer(move || tell.notify_one()),
        }
    }
}

impl<B> Incoming<B>
where
    B: http_body::Body<Data = Bytes, Error = BodyError> + Unpin,
{
    async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        loop {
            let frame = match self.frame().await? {
                Ok(frame) => frame,
                Err(error) => return Some(Err(error)),
            };
            // Trailers mean nothing to a registry.
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
                return Some(Err(BodyError::TooLarge));
            };
            self.left = left;
            if !bytes.is_empty() {
                return Some(Ok(bytes));
            }
        }
    }

    async fn frame(&mut self) -> Option<Result<Frame<Bytes>, BodyError>> {
        let started = Instant::now();
        let frame = std::future::poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
        let revoked = async {
            match &self.revoked {
                Some(revoked) => revoked.told.notified().await,
                None => std::future::pending().await,
            }
        };
        let frame = async {
            tokio::select! {
                biased;
                () = revoked => None,
                frame = frame => Some(frame),
            }
        };
        let frame = match self.pace.patience() {
            None => frame.await,
            Some(patience) => match tokio::time::timeout(patience, frame).await {
                Ok(frame) => frame,
                Err(_elapsed) => return Some(Err(BodyError::TooSlow)),
            },
        };
        let Some(frame) = frame else {
            return Some(Err(BodyError::Revoked));
        };
        Some(match frame? {
            Ok(frame) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.pace.progress(started.elapsed(), bytes);
                Ok(frame)
            }
            Err(error) => Err(error),
        })
    }
}

/// Why a response body broke off. The connection is aborted; the text goes to the log.
pub type BodyFailure = Box<dyn std::error::Error + Send + Sync>;

/// Told once when a body is dropped: how many bytes were handed to the connection, and whether they were all.
pub type Ending = Box<dyn FnOnce(u64, bool) + Send>;

/// A response's body.
pub struct ResponseBody {
    kind: Kind,
    sent: u64,
    ending: Option<Ending>,
    /// What it rests on.
    grounds: Option<Grounds>,
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("ResponseBody")
            .field("kind", &self.kind)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl From<Kind> for ResponseBody {
    fn from(kind: Kind) -> Self {
        Self {
            kind,
            sent: 0,
            ending: None,
            grounds: None,
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            ending(self.sent, http_body::Body::is_end_stream(self));
        }
    }
}

enum Kind {
    Bytes(Option<Bytes>),
    Blob(Reader),
    File(Windows),
    Filling(Filling),
    Done,
    Broken,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bytes(_) => "Bytes",
            Self::Blob(_) => "Blob",
            Self::File(_) => "File",
            Self::Filling(_) => "Filling",
            Self::Done => "Done",
            Self::Broken => "Broken",
        })
    }
}

impl ResponseBody {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    /// Bytes at hand.
    #[must_use]
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Kind::Bytes((!bytes.is_empty()).then_some(bytes)).into()
    }

    /// `length` bytes of a published blob from `offset`, read piece by piece.
    #[must_use]
    pub fn blob(blob: Arc<dyn Blob>, offset: u64, length: u64) -> Self {
        Kind::Blob(Reader::new(blob, offset, length)).into()
    }

    /// Bounds the next piece that is read into memory, and lets none be read before it is asked for.
    pub(crate) fn read_at_most(&mut self, bytes: usize) {
        match &mut self.kind {
            Kind::Blob(reader) => reader.at_most(bytes),
            Kind::Filling(filling) => filling.read_at_most(bytes),
            Kind::Bytes(_) | Kind::File(_) | Kind::Done | Kind::Broken => {}
        }
    }

    /// Lets a blob that is a file leave as frames that are mapped, not read: for a connection that sends such frames from the file.
    pub(crate) fn map(&mut self, mappings: &Arc<Mappings>) {
        match &mut self.kind {
            Kind::Blob(reader) => {
                if let Some(windows) = Windows::of(reader, mappings) {
                    self.kind = Kind::File(windows);
                }
            }
            Kind::Filling(filling) => filling.map(mappings),
            Kind::Bytes(_) | Kind::File(_) | Kind::Done | Kind::Broken => {}
        }
    }

    /// A fill in progress: exactly `length` bytes, when that is known.
    #[must_use]
    pub fn filling(
        arriving: BoxStream<'static, Result<Arrived, RegistryError>>,
        length: Option<u64>,
    ) -> Self {
        Kind::Filling(Filling::new(arriving, length)).into()
    }

    /// Whether nothing is waited for any more.
    #[must_use]
    pub fn is_at_hand(&self) -> bool {
        matches!(self.kind, Kind::Bytes(_))
    }

    /// Asks to be told when the body is done with.
    #[must_use]
    pub fn ending(mut self, ending: Ending) -> Self {
        self.ending = Some(ending);
        self
    }

    /// Ends when what it rests on is gone, unless it is at hand and so as good as gone.
    pub(crate) fn resting_on(mut self, grounds: Option<Grounds>) -> Self {
        self.grounds = grounds.filter(|_| !self.is_at_hand());
        self
    }

    /// What the body rests on.
    pub(crate) fn take_grounds(&mut self) -> Option<Grounds> {
        self.grounds.take()
    }

    /// The text of a body at hand.
    #[cfg(test)]
    pub(super) fn text(&self) -> String {
        match &self.kind {
            Kind::Bytes(bytes) => {
                String::from_utf8(bytes.clone().unwrap_or_default().to_vec()).unwrap()
            }
            other => panic!("{other:?} is not at hand"),
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyFailure>>> {
        match &mut self.kind {
            Kind::Bytes(bytes) => Poll::Ready(bytes.take().map(Ok)),
            Kind::Blob(reader) => reader.poll_piece(context),
            Kind::File(windows) => windows.poll_window(context),
            Kind::Filling(filling) => filling.poll_piece(context),
            Kind::Done | Kind::Broken => Poll::Ready(None),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let next = ready!(self.poll_next(context));
        match &next {
            Some(Ok(bytes)) => self.sent += bytes.len() as u64,
            Some(Err(_)) => self.kind = Kind::Broken,
            None if matches!(self.kind, Kind::Broken) => {}
            None => self.kind = Kind::Done,
        }
        Poll::Ready(next.map(|next| next.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Bytes(bytes) => bytes.is_none(),
            Kind::Blob(reader) => reader.left() == 0,
            Kind::File(windows) => windows.left() == 0,
            Kind::Filling(filling) => filling.left() == Some(0),
            Kind::Done => true,
            Kind::Broken => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Blob(reader) => SizeHint::with_exact(reader.left()),
            Kind::File(windows) => SizeHint::with_exact(windows.left()),
            Kind::Filling(filling) => filling
                .left()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            Kind::Done => SizeHint::with_exact(0),
            Kind::Broken => SizeHint::default(),
        }
    }
}
