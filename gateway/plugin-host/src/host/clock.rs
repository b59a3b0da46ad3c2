//! The import `clock`: time stands still during a call.

use crate::{bindings::gantry::plugin::clock, host::CallState};

impl clock::Host for CallState {
    fn now_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(self.now_ms)
    }

    fn deadline_remaining_ms(&mut self) -> wasmtime::Result<u32> {
        Ok(u32::try_from(self.clock.remaining().as_millis()).unwrap_or(u32::MAX))
    }
}
