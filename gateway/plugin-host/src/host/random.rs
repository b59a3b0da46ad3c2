//! The import `random`: bytes from the process's one cryptographic provider.

use crate::{bindings::gantry::plugin::random, error::Failure, host::CallState, limits::Stop};

/// Random bytes of one request for them.
const MAX_BYTES: u32 = 64 << 10;

impl random::Host for CallState {
    fn bytes(&mut self, len: u32) -> wasmtime::Result<Vec<u8>> {
        if len > MAX_BYTES {
            return Err(Stop::quota(format!(
                "asked for {len} random bytes at once; the limit is {MAX_BYTES}"
            ))
            .into());
        }
        let mut bytes = vec![0; len as usize];
        aws_lc_rs::rand::fill(&mut bytes)
            .map_err(|_unspecified| Stop::new(Failure::Contract, "the host has no randomness"))?;
        Ok(bytes)
    }
}
