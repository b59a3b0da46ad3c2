//! The import `http`: refuses every request. A binding that grants addresses is refused at load, so no plugin waits for it in vain.

use crate::{bindings::gantry::plugin::http, host::CallState};

impl http::Host for CallState {
    fn send(
        &mut self,
        _request: http::Request,
    ) -> wasmtime::Result<Result<http::Response, http::Error>> {
        Ok(Err(http::Error::NotAllowed(
            "outbound http is not granted to this plugin".to_owned(),
        )))
    }
}
