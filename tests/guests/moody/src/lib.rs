//! Accepts every image, and fails while the tag `apps/mood:bad` is there: what `on_error` then makes of it is the test's question.
//!
//! Takes part in admissions only, so that a binding may say `last_known` or `skip`. Its answers are fresh for a millisecond and may be
//! used for a minute while it fails.

use std::time::Duration;

use gantry_plugin::{
    Admission, Answer, Issues, Plugin,
    admission::{AdmissionRequest, Decision},
    registry,
    types::{CacheHint, PluginError},
};

/// Nothing is configured.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Nothing {}

/// The plugin.
#[derive(Debug)]
pub struct Moody;

impl Plugin for Moody {
    type Config = Nothing;

    fn new(_config: Nothing, _issues: &mut Issues) -> Self {
        Self
    }
}

impl Admission for Moody {
    fn admit(&self, _request: &AdmissionRequest) -> Answer<Decision> {
        if registry::resolve_tag("apps/mood", "bad")?.is_some() {
            return Err(PluginError::Internal("in a bad mood".to_owned()));
        }
        Ok(Decision::accept().cache(CacheHint {
            stale_if_error_ms: 60_000,
            ..CacheHint::lasting(Duration::from_millis(1))
        }))
    }
}

gantry_plugin::export!(Moody: admission);
