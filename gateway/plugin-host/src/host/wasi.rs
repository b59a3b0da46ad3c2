//! WASI 0.2, linked because every toolchain's standard library imports it, and inert: no files, environment, arguments, sockets or
//! input; the wall clock is the call's frozen one. Standard error is kept, because a panic's message goes there.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::{
    HostWallClock, WasiCtx, WasiCtxBuilder,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use crate::convert::text;

/// Bytes of standard error that are kept of one call; the rest is dropped.
const MAX_OUTPUT_BYTES: usize = 4 << 10;
/// A guest may ask for so many random bytes at once.
const MAX_RANDOM_BYTES: u64 = 64 << 10;

/// A context that offers nothing of the machine.
pub(crate) fn inert(now_ms: u64, output: &Output) -> WasiCtx {
    WasiCtxBuilder::new()
        .wall_clock(FrozenClock(Duration::from_millis(now_ms)))
        .max_random_size(MAX_RANDOM_BYTES)
        .stderr(output.clone())
        .build()
}

struct FrozenClock(Duration);

impl HostWallClock for FrozenClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        self.0
    }
}

/// What a guest wrote to its standard error.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// The text, on one line.
    pub(crate) fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text::clean(&String::from_utf8_lossy(&bytes), MAX_OUTPUT_BYTES)
            .trim()
            .to_owned()
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

impl OutputStream for Output {
    /// Never refuses: a guest whose standard error fails would panic about that.
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_OUTPUT_BYTES.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_OUTPUT_BYTES)
    }
}
