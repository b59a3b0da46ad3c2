//! Delivers events to HTTP receivers: Distribution's envelope, CloudEvents or Slack texts, signed when told to.
//!
//! | key of `endpoints[]` | what it is |
//! |---|---|
//! | `url` | where to; also in the binding's `http` grants |
//! | `events` | `push`, `pull`, `delete`, `mount`, `tag`, `denial` |
//! | `repositories` | globs on canonical names; all |
//! | `format` | `distribution`, `cloudevents`, `cloudevents-batch`, `slack` |
//! | `headers` | name to text, or to `{ secret: NAME }` |
//! | `sign_with` | a secret for `X-Gantry-Signature` |
//! | `timeout_ms` | of one request; 5000 |
//!
//! Each endpoint is a receiver of its own for the gateway, which calls this plugin once for each with that endpoint alone. Whatever is not
//! known to have arrived is answered with retry, so the gateway's attempts and dead letters decide, never this plugin.

mod config;
mod deliver;
mod format;
mod reply;
mod time;

use gantry_plugin::{
    Answer, Events, Issues, Plugin, config as secrets,
    events::{Event, Outcome},
};

pub use crate::config::Config;
use crate::{
    config::Endpoint,
    deliver::{Delivery, Host},
};

/// The plugin.
#[derive(Debug)]
pub struct Webhook {
    endpoints: Vec<Endpoint>,
}

impl Plugin for Webhook {
    type Config = Config;
    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config, issues: &mut Issues) -> Self {
        Self {
            endpoints: config.endpoints(issues),
        }
    }

    fn self_test(&self) -> Result<(), String> {
        let named = self.endpoints.iter().flat_map(Endpoint::secrets);
        for name in named {
            if secrets::secret(name).is_err() {
                return Err(format!(
                    "the secret {name} is not granted: add it to `grants.secrets`"
                ));
            }
        }
        Ok(())
    }
}

impl Events for Webhook {
    fn observe(&self, events: &[Event]) -> Answer<Vec<Outcome>> {
        Ok(Delivery::new(&Host, &self.endpoints, events).run())
    }
}

gantry_plugin::export!(Webhook: events);

#[cfg(test)]
mod tests;
