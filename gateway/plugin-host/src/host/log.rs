//! The import `logging`: guest lines into the gateway's log, bounded, escaped, and without the binding's secrets.
//!
//! Never fails: bytes over the call's budget are dropped, and the first drop is said once.

use std::fmt::Write as _;

use crate::{
    bindings::gantry::plugin::logging, convert::text, host::CallState, redaction::Redaction,
};

/// Bytes of log that one call may write.
const MAX_LOG_BYTES: usize = 8 << 10;
const MAX_MESSAGE_BYTES: usize = 2 << 10;
const MAX_FIELDS: usize = 32;
const MAX_FIELD_BYTES: usize = 512;

/// What a call has logged.
#[derive(Debug, Default)]
pub(crate) struct LogBudget {
    bytes: usize,
    dropped: bool,
}

impl logging::Host for CallState {
    fn log(
        &mut self,
        level: logging::Level,
        message: String,
        fields: Vec<(String, String)>,
    ) -> wasmtime::Result<()> {
        if !enabled(level) {
            return Ok(());
        }
        if self.logged.bytes >= MAX_LOG_BYTES {
            if !self.logged.dropped {
                self.logged.dropped = true;
                self.write(
                    logging::Level::Warn,
                    "further log lines of this call are dropped",
                    "",
                );
            }
            return Ok(());
        }
        let secrets = &self.context.redaction;
        let message = text::clean(&secrets.clean(message), MAX_MESSAGE_BYTES);
        let fields = render(fields, secrets);
        self.logged.bytes += message.len() + fields.len() + 1;
        self.write(level, &message, &fields);
        Ok(())
    }

    fn enabled(&mut self, level: logging::Level) -> wasmtime::Result<bool> {
        Ok(enabled(level))
    }
}

impl CallState {
    fn write(&self, level: logging::Level, message: &str, fields: &str) {
        let plugin = &*self.context.name;
        let request = self.request_id();
        macro_rules! line {
            ($level:expr) => {
                tracing::event!(target: "plugin", $level, { plugin.name = plugin, request.id = request, fields }, "{message}")
            };
        }
        match level {
            logging::Level::Trace => line!(tracing::Level::TRACE),
            logging::Level::Debug => line!(tracing::Level::DEBUG),
            logging::Level::Info => line!(tracing::Level::INFO),
            logging::Level::Warn => line!(tracing::Level::WARN),
            logging::Level::Error => line!(tracing::Level::ERROR),
        }
    }
}

fn enabled(level: logging::Level) -> bool {
    match level {
        logging::Level::Trace => tracing::enabled!(target: "plugin", tracing::Level::TRACE),
        logging::Level::Debug => tracing::enabled!(target: "plugin", tracing::Level::DEBUG),
        logging::Level::Info => tracing::enabled!(target: "plugin", tracing::Level::INFO),
        logging::Level::Warn => tracing::enabled!(target: "plugin", tracing::Level::WARN),
        logging::Level::Error => tracing::enabled!(target: "plugin", tracing::Level::ERROR),
    }
}

fn render(fields: Vec<(String, String)>, secrets: &Redaction) -> String {
    let mut rendered = String::new();
    for (key, value) in fields.into_iter().take(MAX_FIELDS) {
        let separator = if rendered.is_empty() { "" } else { " " };
        let key = text::clean(&secrets.clean(key), MAX_FIELD_BYTES);
        let value = text::clean(&secrets.clean(value), MAX_FIELD_BYTES);
        // Writing into a String cannot fail.
        write!(rendered, "{separator}{key}={value:?}").ok();
    }
    rendered
}
