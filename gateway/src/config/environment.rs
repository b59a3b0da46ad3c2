//! `GANTRY_A__B=value`: overrides of scalars.
//!
//! A variable's name is the path in capitals, parts joined by two underscores, everything but letters and digits written `_`:
//! `GANTRY_MIRRORS__DOCKER_IO__URL`, `GANTRY_LISTEN__0__ADDRESS`. Mirrors, list elements and the keys of a plugin's own
//! configuration must be in the file already. No message holds a variable's value.
//! A variable that names no key is a warning: an orchestrator sets variables that the operator cannot forbid.

use std::collections::BTreeMap;

use super::{
    check::place_of,
    report::Finding,
    schema::{Choices, Kind},
    suggest,
    tree::{Entry, Node, Value},
};

/// Environment variables by name.
pub type Environment = BTreeMap<String, String>;

const PREFIX: &str = "GANTRY_";

/// The process' environment; a variable that is not UTF-8 is read lossily.
pub(crate) fn of_process() -> Environment {
    std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect()
}

/// Sets what the environment overrides. A variable that names no key adds to `warnings`, a wrong value to `findings`.
pub(crate) fn apply(
    root: &mut Node,
    environment: &Environment,
    findings: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) {
    let mut leaves = Vec::new();
    let mut keys = Vec::new();
    collect(Some(&*root), &Choices::root(), &mut keys, &mut leaves);
    let mut secrets = Vec::new();
    referenced(root, &mut secrets);
    for (variable, value) in environment {
        if !variable.starts_with(PREFIX) || secrets.contains(variable) {
            continue;
        }
        let mut named = leaves.iter().filter(|leaf| leaf.variable == *variable);
        match (named.next(), named.next()) {
            (Some(leaf), None) => findings.extend(set(root, leaf, variable, value).err()),
            (Some(leaf), Some(_other)) => findings.push(Finding::new(
                place_of(variable),
                &leaf.keys.join("."),
                "the variable fits more than one key",
            )),
            (None, _) if is_service_link(variable, value) => {}
            (None, _) => {
                let nearest =
                    suggest::nearest(variable, leaves.iter().map(|leaf| leaf.variable.as_str()));
                let message = "the variable fits no key of the configuration and has no effect";
                let hint = nearest.map(|nearest| format!("did you mean {nearest}?"));
                warnings.push(Finding::new(place_of(variable), "", message).hint(hint));
            }
        }
    }
}

/// A key that a variable can name.
struct Leaf {
    variable: String,
    keys: Vec<String>,
    choices: Choices,
}

/// Every key below `node`, as the schema knows it or as the file has it.
fn collect(node: Option<&Node>, choices: &Choices, keys: &mut Vec<String>, leaves: &mut Vec<Leaf>) {
    if choices.not_yet() {
        return;
    }
    if !keys.is_empty() {
        let parts: Vec<String> = keys.iter().map(|key| fold(key)).collect();
        leaves.push(Leaf {
            variable: format!("{PREFIX}{}", parts.join("__")),
            keys: keys.clone(),
            choices: choices.clone(),
        });
    }
    let mut known: Vec<String> = Vec::new();
    if let Some(object) = choices.object() {
        known.extend(object.keys().map(str::to_owned));
    }
    match node.map(|node| &node.value) {
        Some(Value::Map(entries)) => known.extend(entries.iter().map(|entry| entry.key.clone())),
        Some(Value::List(nodes)) => known.extend((0..nodes.len()).map(|index| index.to_string())),
        _ => {}
    }
    known.sort();
    known.dedup();
    for key in known {
        let child = node.and_then(|node| node.get(&key));
        let inner = match (node.map(|node| &node.value), choices.object()) {
            (Some(Value::List(_)), _) => choices.items(),
            (_, Some(object)) => object.property(&key),
            (_, None) if choices.anything() => Some(choices.clone()),
            (_, None) => None,
        };
        if let Some(inner) = inner {
            keys.push(key);
            collect(child, &inner, keys, leaves);
            keys.pop();
        }
    }
}

fn fold(key: &str) -> String {
    key.chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect()
}

fn set(root: &mut Node, leaf: &Leaf, variable: &str, text: &str) -> Result<(), Finding> {
    let place = place_of(variable);
    let mut node = root;
    for key in &leaf.keys {
        if matches!(node.value, Value::Null) {
            node.value = Value::Map(Vec::new());
        }
        node = child(node, key, variable)?;
    }
    let composed = matches!(node.value, Value::Map(_) | Value::List(_));
    node.value = scalar(&leaf.choices, composed, text)
        .map_err(|message| Finding::new(place.clone(), &node.path, message))?;
    node.place = place;
    Ok(())
}

/// The value under `key`, made where a map lacks it.
fn child<'a>(node: &'a mut Node, key: &str, variable: &str) -> Result<&'a mut Node, Finding> {
    let place = place_of(variable);
    let path = node.path_of(key);
    let lacking = node.get(key).is_none();
    if let (Value::Map(entries), true) = (&mut node.value, lacking) {
        entries.push(Entry {
            key: key.to_owned(),
            key_place: place.clone(),
            node: Node {
                value: Value::Null,
                place: place.clone(),
                path: path.clone(),
            },
        });
    }
    node.get_mut(key).ok_or_else(|| {
        let message =
            "the file has the short form here; write it as a map to override a part of it";
        Finding::new(place, &path, message)
    })
}

/// The value a variable's text stands for.
fn scalar(choices: &Choices, composed: bool, text: &str) -> Result<Value, &'static str> {
    let free = choices.anything() && !composed;
    if free || choices.accepts(Kind::String) {
        Ok(Value::String(text.to_owned()))
    } else if choices.accepts(Kind::Number) {
        text.parse::<u64>()
            .map(|whole| Value::Number(whole.into()))
            .map_err(|_malformed| "not a whole number")
    } else if choices.accepts(Kind::Boolean) {
        text.parse()
            .map(Value::Bool)
            .map_err(|_malformed| "neither true nor false")
    } else {
        Err("only single values can be set by a variable, this key holds a map or a list")
    }
}

/// Variables that the file names itself, by `{ env: NAME }`.
fn referenced(node: &Node, names: &mut Vec<String>) {
    match &node.value {
        Value::List(nodes) => nodes.iter().for_each(|node| referenced(node, names)),
        Value::Map(entries) => {
            for entry in entries {
                if let ("env", Value::String(name)) = (entry.key.as_str(), &entry.node.value) {
                    names.push(name.clone());
                }
                referenced(&entry.node, names);
            }
        }
        _ => {}
    }
}

/// Whether Kubernetes sets this variable in every pod beside a Service whose name begins with `gantry` (`gantry`, `gantry-cache`): the
/// Service's name in capitals, then `_SERVICE_HOST`, `_SERVICE_PORT`, `_SERVICE_PORT_<NAME>`, `_PORT` (an address such as `tcp://…`), or
/// `_PORT_<NUMBER>_<PROTOCOL>` alone or with `_PROTO`, `_PORT`, `_ADDR`.
fn is_service_link(variable: &str, value: &str) -> bool {
    // A key of the configuration has two underscores between its parts; the name of a Service has none in a row.
    let Some(rest) = variable
        .strip_prefix("GANTRY")
        .filter(|rest| !rest.contains("__"))
    else {
        return false;
    };
    let ends = |ending| rest.ends_with(ending);
    let is_address = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|it| value.starts_with(it));
    ends("_SERVICE_HOST")
        || ends("_SERVICE_PORT")
        || rest.contains("_SERVICE_PORT_")
        || ends("_PORT") && is_address
        || {
            let mut ports = rest.match_indices("_PORT_");
            ports.any(|(at, found)| is_port(rest.get(at + found.len()..).unwrap_or_default()))
        }
}

/// `5000_TCP`, `5000_TCP_ADDR` and the like.
fn is_port(rest: &str) -> bool {
    let mut parts = rest.split('_');
    let number = parts.next().unwrap_or_default();
    let protocol = parts.next().unwrap_or_default();
    let what = parts.next();
    number.parse::<u16>().is_ok()
        && matches!(protocol, "TCP" | "UDP" | "SCTP")
        && matches!(what, None | Some("PROTO" | "PORT" | "ADDR"))
        && parts.next().is_none()
}
