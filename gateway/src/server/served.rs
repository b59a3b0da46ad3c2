//! One request as the server sees it: its body, whether that was read to its end, and its place among the connection's requests.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use gantry_registry::BodyError;
use http::{HeaderValue, Method, Request, Response, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{sync::Notify, time::Instant};

use super::{
    Handler, Mappings, Peer,
    activity::{Active, Activity},
    head::MalformedBody,
};
use crate::{
    auth::revocation::Transfer,
    http::{
        body::{BodyFailure, ResponseBody},
        pace::{Pace, Rate},
    },
};

/// A request's body: counted, and remembered when it was left unread.
#[derive(Debug)]
pub struct RequestBody {
    inner: Incoming,
    received: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl RequestBody {
    fn new(inner: Incoming) -> Self {
        let ended = Arc::new(AtomicBool::new(inner.is_end_stream()));
        Self {
            inner,
            received: Arc::default(),
            ended,
        }
    }

    /// Bytes received so far; still right when the body is gone.
    #[must_use]
    pub fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
            self.received.fetch_add(bytes, Ordering::Relaxed);
        }
        if frame.is_none() || self.inner.is_end_stream() {
            self.ended.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| failure(&error))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A client that breaks the rules is still there to be answered; whatever else ends a body early, the client has gone.
fn failure(error: &hyper::Error) -> BodyError {
    let source = std::error::Error::source(error);
    let source = source.and_then(<dyn std::error::Error>::downcast_ref::<std::io::Error>);
    let found = source
        .and_then(std::io::Error::get_ref)
        .and_then(|found| found.downcast_ref::<MalformedBody>());
    match (found, source.map(std::io::Error::kind)) {
        (Some(MalformedBody(why)), _) => BodyError::Malformed(why),
        (None, Some(std::io::ErrorKind::InvalidData | std::io::ErrorKind::InvalidInput)) => {
            BodyError::Malformed("its chunks cannot be read")
        }
        _ => BodyError::Disconnected,
    }
}

/// Answers one request of a connection; with `mappings`, of one that sends files.
pub(super) async fn serve<H: Handler>(
    handler: &H,
    peer: &Peer,
    activity: &Arc<Activity>,
    mappings: Option<&Arc<Mappings>>,
    request: Request<Incoming>,
) -> Result<Response<ServedBody>, Infallible> {
    let active = activity.begin();
    let head = request.method() == Method::HEAD;
    let is_http1 = request.version() < Version::HTTP_2;
    let request = request.map(RequestBody::new);
    let ended = Arc::clone(&request.body().ended);
    let mut response = handler.handle(request, peer).await;
    if head {
        *response.body_mut() = ResponseBody::empty();
    }
    let transfer = response.body_mut().take_proof().map(|proof| {
        let end = end_of_transfer(activity, is_http1);
        proof.transfer(end)
    });
    let transfer = match is_http1 {
        // Its last bytes may wait in the connection when the body is gone.
        true => activity.runs(transfer),
        false => transfer,
    };
    if let Some(mappings) = mappings {
        response.body_mut().map(mappings);
    }
    if is_http1 && !ended.load(Ordering::Relaxed) {
        // Where the unread body ends is for the client to say; we do not guess where the next request begins.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        active.activity().linger();
    }
    Ok(response.map(|inner| ServedBody {
        inner,
        _active: active,
        _transfer: transfer,
    }))
}

/// Ends a response whose principal is revoked: the connection of HTTP/1, the stream of HTTP/2.
fn end_of_transfer(activity: &Arc<Activity>, is_http1: bool) -> Box<dyn Fn() + Send + Sync> {
    if is_http1 {
        // The connection keeps the transfer, so the transfer must not keep the connection.
        let activity = Arc::downgrade(activity);
        return Box::new(move || {
            if let Some(activity) = activity.upgrade() {
                activity.end();
            }
        });
    }
    let flow = FLOW.try_with(Arc::clone).ok();
    Box::new(move || {
        if let Some(flow) = &flow {
            flow.revoked.notify_one();
        }
    })
}

/// A response's body on its way: the request is in flight until it is dropped.
#[derive(Debug)]
pub(super) struct ServedBody {
    inner: ResponseBody,
    _active: Active,
    _transfer: Option<Transfer>,
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        with_flow(Flow::asked);
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                with_flow(|flow| flow.gave(bytes));
            }
            Some(Err(error)) => tracing::warn!(error = %error, "a response broke off"),
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

tokio::task_local! {
    /// The flow of the HTTP/2 stream that the running task serves.
    static FLOW: Arc<Flow>;
}

fn with_flow(note: impl FnOnce(&Flow)) {
    // HTTP/1 has none: there the connection's own writes tell.
    match FLOW.try_with(|flow| note(flow)) {
        Ok(()) | Err(_) => {}
    }
}

/// How fast an HTTP/2 client takes one stream's response. Its connection's writes do not tell: a window of zero stalls one stream
/// while the socket stays writable.
#[derive(Debug)]
struct Flow {
    /// The pace, and since when the client is what is waited for.
    state: Mutex<(Pace, Option<Instant>, u64)>,
    /// Told when the stream's principal is revoked.
    revoked: Notify,
}

impl Flow {
    fn new(rate: Rate, hidden: u64) -> Self {
        Self {
            state: Mutex::new((Pace::new(rate, hidden), None, 0)),
            revoked: Notify::new(),
        }
    }

    /// The connection wants the next bytes: the client took those before.
    fn asked(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(since) = state.1.take() {
            let given = std::mem::take(&mut state.2);
            state.0.progress(since.elapsed(), given);
        }
    }

    fn gave(&self, bytes: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.1 = Some(Instant::now());
        state.2 = bytes;
    }

    /// How long until the client is too slow, when it is what is waited for.
    fn patience(&self) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = state.1?.elapsed();
        Some(state.0.patience()?.saturating_sub(waited))
    }
}

/// Runs the streams of an HTTP/2 connection, and resets one whose client takes its response too slowly.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streams {
    pub(super) rate: Rate,
    /// Bytes hyper holds for a stream before it stops asking.
    pub(super) hidden: u64,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let flow = Arc::new(Flow::new(self.rate, self.hidden));
        let every = self.rate.window / 4;
        let watch = Arc::clone(&flow);
        let principal = Arc::clone(&flow);
        let stalled = async move {
            loop {
                match watch.patience() {
                    Some(Duration::ZERO) => return,
                    Some(patience) => tokio::time::sleep(patience.min(every)).await,
                    None => tokio::time::sleep(every).await,
                }
            }
        };
        tokio::spawn(FLOW.scope(flow, async move {
            tokio::select! {
                () = stream => {}
                () = stalled => tracing::debug!("a stream was reset: the client takes it too slowly"),
                () = principal.revoked.notified() => tracing::debug!("a stream was reset: its principal was revoked"),
            }
        }));
    }
}
