//! The receivers that a binding's configuration lists, so that each gets its events by itself.
//!
//! A config schema marks an array property with `"x-gantry-receivers": "<key>"`: each item is a receiver, identified by the value of
//! that key. A call for a receiver sees a configuration with that item alone. Knows nothing of queues.

use std::{collections::HashSet, fmt, sync::Arc};

use serde_json::Value;

use crate::{
    call::{Loaded, Question, Said},
    hook::Hook,
    host::PluginContext,
    load::{SELF_TEST, stopped},
};

/// The annotation of the array property in the config schema.
const ANNOTATION: &str = "x-gantry-receivers";
/// Receivers of one binding at most: each has a queue and may hold an instance.
const MAX_RECEIVERS: usize = 64;

/// One receiver of a binding.
#[derive(Clone)]
pub struct EventReceiver {
    mark: Arc<str>,
    pub(crate) context: Arc<PluginContext>,
}

impl EventReceiver {
    /// Tells it from the binding's other receivers, in 16 hexadecimal digits and `-2`, `-3`… where its key occurs again. It stays the same
    /// when the order of the configuration changes, and does not show the key's value, which may hold a token.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }
}

impl fmt::Debug for EventReceiver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EventReceiver")
            .field("mark", &self.mark)
            .finish_non_exhaustive()
    }
}

/// The receivers in the configuration of `loaded`; none when its schema marks none.
pub(crate) async fn listed(loaded: &Loaded) -> Result<Vec<EventReceiver>, String> {
    let context = &loaded.context;
    if !loaded.hooks.has(Hook::Observe) || !context.config.contains('[') {
        return Ok(Vec::new());
    }
    let said = loaded.run(None, Question::ConfigSchema, SELF_TEST).await;
    let said = said.map_err(|stop| stopped("config-schema", &stop))?;
    let Said::ConfigSchema(schema) = said else {
        return Err("answered another question".to_owned());
    };
    let config: Value = serde_json::from_str(&context.config).unwrap_or_default();
    let configs = split(&schema, &config);
    if configs.len() > MAX_RECEIVERS {
        return Err(format!(
            "lists {} receivers of events; a binding has at most {MAX_RECEIVERS}: divide them between several bindings",
            configs.len()
        ));
    }
    let receivers = configs.into_iter().map(|(mark, config)| EventReceiver {
        mark: mark.into(),
        context: Arc::new(PluginContext {
            config: config.to_string(),
            ..PluginContext::clone(context)
        }),
    });
    Ok(receivers.collect())
}

/// One configuration for each receiver, by its mark.
fn split(schema: &str, config: &Value) -> Vec<(String, Value)> {
    let schema: Value = serde_json::from_str(schema).unwrap_or_default();
    let Some((property, key)) = annotated(&schema) else {
        return Vec::new();
    };
    let items = config.get(property).and_then(Value::as_array);
    let mut taken = HashSet::new();
    let mut configs = Vec::new();
    for item in items.into_iter().flatten() {
        let mark = free_mark(&mut taken, item, key);
        let mut alone = config.clone();
        if let Some(slot) = alone.get_mut(property) {
            *slot = Value::Array(vec![item.clone()]);
        }
        configs.push((mark, alone));
    }
    configs
}

/// The marked property and the key of its items.
fn annotated(schema: &Value) -> Option<(&str, &str)> {
    let properties = schema.get("properties")?.as_object()?;
    properties.iter().find_map(|(name, property)| {
        let key = property.get(ANNOTATION)?.as_str()?;
        Some((name.as_str(), key))
    })
}

fn free_mark(taken: &mut HashSet<String>, item: &Value, key: &str) -> String {
    let identity = match item.get(key) {
        // A value from a file ends with a line break.
        Some(Value::String(text)) => text.trim().to_owned(),
        _ => item.to_string(),
    };
    let hash = format!("{:016x}", fnv1a(identity.as_bytes()));
    let mut mark = hash.clone();
    let mut count = 1;
    while !taken.insert(mark.clone()) {
        count += 1;
        mark = format!("{hash}-{count}");
    }
    mark
}

/// FNV-1a of 64 bits: equal in every version, and the operator alone chooses what is hashed.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = r#"{ "properties": { "a": {}, "to": { "x-gantry-receivers": "url" } } }"#;

    fn marks(config: &Value) -> Vec<String> {
        let configs = split(SCHEMA, config).into_iter();
        configs.map(|(mark, _config)| mark).collect()
    }

    #[test]
    fn each_receiver_sees_a_configuration_with_itself_alone() {
        let config = json!({ "a": 1, "to": [{ "url": "x" }, { "url": "y", "b": 2 }] });
        let configs: Vec<Value> = split(SCHEMA, &config).into_iter().map(|it| it.1).collect();
        assert_eq!(
            configs,
            [
                json!({ "a": 1, "to": [{ "url": "x" }] }),
                json!({ "a": 1, "to": [{ "url": "y", "b": 2 }] }),
            ]
        );
    }

    #[test]
    fn a_mark_follows_the_key_and_not_the_place() {
        let there = marks(&json!({ "to": [{ "url": "x\n" }, { "url": "y" }] }));
        let back = marks(&json!({ "to": [{ "url": "y", "b": 1 }, { "url": "x" }] }));
        assert_eq!(there, [back[1].clone(), back[0].clone()]);
        let twice = marks(&json!({ "to": [{ "url": "x" }, { "url": "x" }] }));
        assert_eq!(twice, [there[0].clone(), format!("{}-2", there[0])]);
    }

    #[test]
    fn without_the_annotation_there_is_no_receiver() {
        let config = json!({ "to": [{ "url": "x" }] });
        for schema in ["", "[]", "{}", r#"{ "properties": { "to": {} } }"#] {
            assert!(split(schema, &config).is_empty(), "{schema}");
        }
        for config in [json!({}), json!({ "to": 3 }), json!({ "to": [] })] {
            assert!(split(SCHEMA, &config).is_empty(), "{config}");
        }
    }
}
