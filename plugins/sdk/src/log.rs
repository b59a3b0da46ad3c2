//! Lines in the gateway's log, with the call's request id and the plugin's name on them. Outside a host they go nowhere.

#[doc(inline)]
pub use crate::bindings::imports::gantry::plugin::logging::Level;

/// Step by step.
pub fn trace(message: &str, fields: &[(&str, &str)]) {
    write(Level::Trace, message, fields);
}

/// For the plugin's author.
pub fn debug(message: &str, fields: &[(&str, &str)]) {
    write(Level::Debug, message, fields);
}

/// For the operator.
pub fn info(message: &str, fields: &[(&str, &str)]) {
    write(Level::Info, message, fields);
}

/// Something the operator should look at.
pub fn warn(message: &str, fields: &[(&str, &str)]) {
    write(Level::Warn, message, fields);
}

/// Something is broken.
pub fn error(message: &str, fields: &[(&str, &str)]) {
    write(Level::Error, message, fields);
}

fn write(level: Level, message: &str, fields: &[(&str, &str)]) {
    #[cfg(target_arch = "wasm32")]
    {
        use crate::bindings::imports::gantry::plugin::logging;
        if logging::enabled(level) {
            let fields: Vec<_> = fields
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            logging::log(level, message, &fields);
        }
    }
    // A native test has no host to write to.
    #[cfg(not(target_arch = "wasm32"))]
    let _ = (level, message, fields);
}
