//! Replaces each built-in plugin and passes its tests, written from `wit/` alone: wit-bindgen, the contract, nothing of ours.
//!
//! One component takes part in three hooks; which decision it makes follows from the keys of its configuration: `users` authenticates,
//! `rules` authorizes, neither of the two keeps tags immutable. In the other hooks it has no opinion.

mod bindings {
    //! Generated from the contract itself.
    #![allow(
        unsafe_code,
        missing_debug_implementations,
        unreachable_pub,
        reason = "generated"
    )]
    wit_bindgen::generate!({
        path: "../../../wit",
        inline: "package third:party; world plugin {
            include gantry:plugin/authenticator-plugin@0.1.0;
            include gantry:plugin/authorizer-plugin@0.1.0;
            include gantry:plugin/admission-plugin@0.1.0;
        }",
        world: "third:party/plugin",
        generate_all,
    });
    #[cfg(target_arch = "wasm32")]
    export!(Plugin);
    #[cfg(target_arch = "wasm32")]
    use super::Plugin;
}
mod pattern;
mod people;
mod rights;
mod tags;

use std::cell::RefCell;

use bindings::{
    exports::gantry::plugin::{
        admission, authenticator, authorizer,
        lifecycle::{self, ConfigIssue},
    },
    gantry::plugin::types::{CacheHint, PluginError, Vary},
};
use serde_json::Value;

/// The component.
#[derive(Debug)]
pub struct Plugin;

thread_local! {
    /// The configuration of this instance.
    static CONFIG: RefCell<Value> = const { RefCell::new(Value::Null) };
}

impl lifecycle::Guest for Plugin {
    fn configure(text: String) -> Result<(), Vec<ConfigIssue>> {
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let mut issues = Vec::new();
        if let Some(object) = config.as_object() {
            for key in object.keys().filter(|key| !KEYS.contains(&key.as_str())) {
                issues.push(issue(
                    &format!("/{key}"),
                    format!("unknown key {key}"),
                    true,
                ));
            }
        }
        people::check(&config, &mut issues);
        rights::check(&config, &mut issues);
        tags::check(&config, &mut issues);
        CONFIG.set(config);
        if issues.is_empty() {
            Ok(())
        } else {
            Err(issues)
        }
    }

    fn config_schema() -> String {
        "true".to_owned()
    }

    fn self_test() -> Result<(), String> {
        Ok(())
    }
}

impl authenticator::Guest for Plugin {
    fn authenticate(
        request: authenticator::AuthnRequest,
    ) -> Result<authenticator::Outcome, PluginError> {
        CONFIG.with_borrow(|config| people::authenticate(config, request.credential))
    }
}

impl authorizer::Guest for Plugin {
    fn authorize(request: authorizer::AuthzRequest) -> Result<authorizer::Decision, PluginError> {
        Ok(CONFIG.with_borrow(|config| rights::authorize(config, &request)))
    }
}

impl admission::Guest for Plugin {
    fn admit(request: admission::AdmissionRequest) -> Result<admission::Decision, PluginError> {
        Ok(CONFIG.with_borrow(|config| tags::admit(config, &request)))
    }
}

fn issue(pointer: &str, message: String, fatal: bool) -> ConfigIssue {
    ConfigIssue {
        pointer: pointer.to_owned(),
        message,
        fatal,
    }
}

fn cache(ttl_ms: u32) -> CacheHint {
    CacheHint {
        ttl_ms,
        stale_if_error_ms: 0,
        also: Vary::empty(),
    }
}

/// The texts under `key`; nothing when there are none.
fn texts<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    let list = value.get(key).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

const KEYS: [&str; 8] = [
    "users",
    "realm",
    "rules",
    "immutable",
    "except",
    "exempt_signatures",
    "mode",
    "message",
];
