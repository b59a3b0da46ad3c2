//! One request as the server sees it: its body, whether that was read to its end, and its place among the connection's requests.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use gantry_registry::BodyError;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use serde_json::json;

use super::{
    Handler, Mappings, Peer,
    activity::{Active, Activity},
    flow::{ClientWait, Flow, StreamWait},
    head::MalformedBody,
    unread::{ConnectionUnread, Room, UnreadBytes},
};
use crate::{
    auth::revocation::Transfer,
    http::body::{BodyFailure, ResponseBody},
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

/// What the requests of a connection share.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    pub(super) activity: Arc<Activity>,
    /// Where blobs are mapped that leave from their file.
    pub(super) mappings: Option<Arc<Mappings>>,
    /// Where response data counts that is read into memory.
    pub(super) unread: Arc<ConnectionUnread>,
    /// How fast an HTTP/2 client takes its responses; an HTTP/1 connection's own writes tell.
    pub(super) flow: Option<Arc<Flow>>,
    /// Whether the client's certificate has ended or its authorities were replaced. An HTTP/2 client may open streams after GOAWAY.
    pub(super) is_over: Arc<AtomicBool>,
}

/// Answers one request of a connection.
pub(super) async fn serve<H: Handler>(
    handler: &H,
    peer: &Peer,
    requests: &Requests,
    request: Request<Incoming>,
) -> Result<Response<ServedBody>, Infallible> {
    let active = requests.activity.begin();
    let head = request.method() == Method::HEAD;
    if requests.is_over.load(Ordering::Acquire) {
        return Ok(elsewhere().map(|body| ServedBody::new(body, active, requests)));
    }
    if requests.flow.is_some() {
        requests.unread.begin().await;
    }
    let request = request.map(RequestBody::new);
    let ended = Arc::clone(&request.body().ended);
    let mut response = handler.handle(request, peer).await;
    if head {
        *response.body_mut() = ResponseBody::empty();
    }
    let is_http1 = requests.flow.is_none();
    let transfer = response.body_mut().take_grounds().and_then(|grounds| {
        let end = end_of_transfer(&requests.activity, is_http1);
        grounds.transfer(end)
    });
    let transfer = match is_http1 {
        // Its last bytes may wait in the connection when the body is gone.
        true => requests.activity.runs(transfer),
        false => transfer,
    };
    if let Some(mappings) = &requests.mappings {
        response.body_mut().map(mappings);
    }
    if is_http1 && !ended.load(Ordering::Relaxed) {
        // Where the unread body ends is for the client to say; we do not guess where the next request begins.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
        active.activity().linger();
    }
    Ok(response.map(|inner| ServedBody {
        _transfer: transfer,
        ..ServedBody::new(inner, active, requests)
    }))
}

/// Sends a request to another connection (RFC 9110 section 15.5.20), where the client shows a certificate anew.
fn elsewhere() -> Response<ResponseBody> {
    let message = "the certificate that this connection began with counts no more: connect again";
    let body = json!({ "errors": [{ "code": "UNAUTHORIZED", "message": message }] }).to_string();
    let mut response = Response::new(ResponseBody::bytes(body));
    *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
    let media_type = HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

/// Ends a response that rests on nothing any more: the connection of HTTP/1, the stream of HTTP/2.
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
    let stream = STREAM.try_with(Arc::clone).ok();
    Box::new(move || {
        if let Some(stream) = &stream {
            stream.revoke();
        }
    })
}

/// A response's body on its way: the request is in flight until it is dropped, and each of its pieces is written.
#[derive(Debug)]
pub(super) struct ServedBody {
    inner: ResponseBody,
    active: Active,
    unread: Arc<ConnectionUnread>,
    flow: Option<Arc<Flow>>,
    /// Room for the next piece, when it is being read.
    room: Option<Room>,
    /// The client is waited for: nothing was asked yet, or not since the last piece.
    waiting: Option<ClientWait>,
    _transfer: Option<Transfer>,
}

impl ServedBody {
    fn new(inner: ResponseBody, active: Active, requests: &Requests) -> Self {
        let flow = requests.flow.clone();
        let waiting = match &flow {
            Some(flow) if !inner.is_end_stream() => Some(flow.wait()),
            _ => None,
        };
        set_stream(waiting.is_some());
        Self {
            inner,
            active,
            unread: Arc::clone(&requests.unread),
            flow,
            room: None,
            waiting,
            _transfer: None,
        }
    }

    /// Whether the next piece is not in memory before it is asked for.
    fn reads(&self) -> bool {
        self.flow.is_some() && !self.inner.is_at_hand()
    }

    /// The piece, counted until it is written; nothing is where the kernel sends it from a file, or the connection holds one at a time.
    fn counted(&mut self, bytes: Bytes) -> Bytes {
        let Some(flow) = &self.flow else {
            return bytes;
        };
        let room = match self.room.take() {
            Some(mut room) => {
                room.resize(bytes.len());
                room
            }
            None => self.unread.take(bytes.len()),
        };
        self.waiting = (!self.inner.is_end_stream()).then(|| flow.wait());
        set_stream(true);
        Bytes::from_owner(UnreadBytes {
            bytes,
            _room: room,
            _waiting: flow.wait(),
            _active: self.active.again(),
        })
    }
}

impl Body for ServedBody {
    type Data = Bytes;
    type Error = BodyFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFailure>>> {
        let this = &mut *self;
        if this.reads() {
            if this.room.is_none() {
                // While it waits here, the client is what is waited for: it has not taken other pieces.
                this.room = Some(ready!(this.unread.poll_room(context)));
            }
            let most = this.room.as_ref().map_or(0, Room::bytes);
            this.inner.read_at_most(most);
        }
        if this.waiting.take().is_some() {
            set_stream(false);
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        if let Some(Err(error)) = &frame {
            tracing::warn!(%error, "a response broke off");
        }
        if !matches!(frame, Some(Ok(_))) {
            this.room = None;
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(|data| this.counted(data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

tokio::task_local! {
    /// The wait of the HTTP/2 stream that the running task serves.
    static STREAM: Arc<StreamWait>;
}

fn set_stream(waits: bool) {
    // HTTP/1 has none: there the connection's own writes tell.
    match STREAM.try_with(|stream| stream.set(waits)) {
        Ok(()) | Err(_) => {}
    }
}

/// Runs the streams of an HTTP/2 connection, and resets those that wait for a client that is too slow.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    pub(super) flow: Arc<Flow>,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let (flow, wait) = (Arc::clone(&self.flow), Arc::<StreamWait>::default());
        let watched = Arc::clone(&wait);
        let principal = Arc::clone(&wait);
        tokio::spawn(STREAM.scope(wait, async move {
            tokio::select! {
                () = stream => {}
                () = flow.gives_up(&watched) => tracing::debug!("a stream was reset: the client takes it too slowly"),
                () = principal.revoked() => tracing::debug!("a stream was reset: its principal was revoked, or it is denied now"),
            }
        }));
    }
}
