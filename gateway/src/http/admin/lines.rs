//! Answers that take long: one JSON document per line, as things happen, and the last one says how it ended.
//!
//! Owns the pace: the work waits for a client that reads slowly, and ends when the client leaves. A client that sees no last line knows
//! that the work was cut off.

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture};
use gantry_registry::Arrived;
use http::{HeaderValue, StatusCode, header};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::call::{self, Call, Problem};
use crate::http::{
    body::ResponseBody,
    respond::{self, Reply},
};

/// Lines that wait for the client.
const QUEUE: usize = 64;

/// A route that answers by lines; always POST.
#[derive(Debug)]
pub struct LineRoute {
    /// The path.
    pub path: &'static str,
    /// Reads the request, and begins.
    pub run: fn(Call) -> Result<Lines, Problem>,
}

/// Lines as they come.
#[derive(Debug)]
pub struct Lines(mpsc::Receiver<Value>);

/// Where the work says its lines.
#[derive(Clone, Debug)]
pub(super) struct Teller(mpsc::Sender<Value>);

/// The client left.
#[derive(Debug)]
pub(super) struct Gone;

impl Teller {
    /// Says a line, when the client has read enough of those before.
    pub(super) async fn tell(&self, line: Value) -> Result<(), Gone> {
        self.0.send(line).await.map_err(|_left| Gone)
    }

    /// Says a line that the next one makes superfluous: dropped when the client is behind.
    pub(super) fn mention(&self, line: Value) {
        drop(self.0.try_send(line));
    }
}

/// Starts the work; it is dropped when the client leaves.
pub(super) fn start(
    work: impl FnOnce(Teller) -> BoxFuture<'static, Result<(), Gone>>,
) -> Result<Lines, Problem> {
    let (tell, lines) = mpsc::channel(QUEUE);
    let (left, work) = (tell.clone(), work(Teller(tell)));
    let task = async move {
        tokio::select! {
            () = left.closed() => tracing::info!("the client left; the rest is not done"),
            _told = work => {}
        }
    };
    drop(tokio::spawn(task.in_current_span()));
    Ok(Lines(lines))
}

pub(super) fn render(request_id: &str, answered: Result<Lines, Problem>) -> Reply {
    let mut lines = match answered {
        Ok(lines) => lines.0,
        Err(problem) => return call::render(request_id, Err(problem)),
    };
    let mut reply = respond::plain(request_id, StatusCode::OK, "application/x-ndjson", "");
    reply.headers_mut().remove(header::CONTENT_LENGTH);
    reply
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let stream = futures_util::stream::poll_fn(move |context| lines.poll_recv(context));
    let stream = stream.map(|line| Ok(Arrived::Loose(Bytes::from(format!("{line}\n")))));
    *reply.body_mut() = ResponseBody::filling(stream.boxed(), None);
    reply
}
