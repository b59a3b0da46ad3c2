//! YAML text → a tree in which every key and value knows its place.
//!
//! Owns the YAML subset we read (one document, string keys, aliases, no merge keys, no own tags) and the bounds against hostile
//! files. Knows no key of the configuration.

use std::{collections::HashMap, ops::Range};

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::Number;

use super::report::{Finding, Place};

/// The longest file we read.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// Values of a file at most, aliases written out.
const MAX_VALUES: usize = 50_000;
/// Collections inside each other at most.
const MAX_DEPTH: usize = 64;

/// A value, where it stands and what leads to it.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) place: Place,
    /// `mirrors.docker.io.url`, `plugins[1].config`.
    pub(crate) path: String,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

impl Node {
    /// The value under `key`, when this is a map that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            Value::List(nodes) => nodes.get(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// As [`Node::get`], to change it.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Map(entries) => entries
                .iter_mut()
                .find(|entry| entry.key == key)
                .map(|entry| &mut entry.node),
            Value::List(nodes) => nodes.get_mut(key.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The path of a child.
    pub(crate) fn path_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// How many values this is, itself included.
    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(nodes) => nodes.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
            _ => 0,
        }
    }

    /// Puts an alias' copy where the alias stands.
    fn move_to(&mut self, path: &str) {
        path.clone_into(&mut self.path);
        match &mut self.value {
            Value::List(nodes) => {
                for (index, node) in nodes.iter_mut().enumerate() {
                    node.move_to(&format!("{path}[{index}]"));
                }
            }
            Value::Map(entries) => {
                for entry in entries {
                    entry.node.move_to(&join(path, &entry.key));
                }
            }
            _ => {}
        }
    }

    /// The same as JSON; places and paths are lost.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(value) => value.clone().into(),
            Value::String(value) => value.clone().into(),
            Value::List(nodes) => nodes.iter().map(Self::to_json).collect(),
            Value::Map(entries) => entries
                .iter()
                .map(|entry| (entry.key.clone(), entry.node.to_json()))
                .collect(),
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// What was read of a file.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The document; `None` when the text is not YAML or past a bound.
    pub(crate) root: Option<Node>,
    pub(crate) findings: Vec<Finding>,
    /// Bytes of the text that no message may quote.
    pub(crate) masks: Vec<Range<usize>>,
}

/// Reads `text`. Syntax errors end it; everything else is collected.
pub(crate) fn parse(text: &str) -> Parsed {
    let mut options = granit_parser::options! {
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: HashMap::new(),
        values: 0,
        findings: Vec::new(),
        masks: Vec::new(),
    };
    let root = match builder.document() {
        Ok(root) => Some(root),
        Err(finding) => {
            builder.findings.push(*finding);
            None
        }
    };
    Parsed {
        root,
        findings: builder.findings,
        masks: builder.masks,
    }
}

struct Builder<'input> {
    parser: Parser<'input, StrInput<'input>>,
    anchors: HashMap<usize, Node>,
    values: usize,
    findings: Vec<Finding>,
    masks: Vec<Range<usize>>,
}

/// An error that ends the reading.
type End = Box<Finding>;

impl<'input> Builder<'input> {
    fn next(&mut self) -> Result<(Event<'input>, Span), End> {
        match self.parser.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(Box::new(Finding::syntax(
                Place::mark(error.marker()),
                format!("not YAML: {}", error.kind()),
            ))),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn document(&mut self) -> Result<Node, End> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) if root.is_some() => {
                    return Err(Box::new(Finding::new(
                        Place::span(&span),
                        "",
                        "a second document; the file holds one",
                    )));
                }
                event if is_value(&event) => root = Some(self.node(event, &span, "", 0)?),
                _ => {}
            }
        }
        Ok(match root {
            Some(root) if !matches!(root.value, Value::Null) => root,
            _ => Node {
                value: Value::Map(Vec::new()),
                place: Place::Nowhere,
                path: String::new(),
            },
        })
    }

    fn node(
        &mut self,
        event: Event<'input>,
        span: &Span,
        path: &str,
        depth: usize,
    ) -> Result<Node, End> {
        let place = Place::span(span);
        self.charge(1, &place, path)?;
        if depth > MAX_DEPTH {
            return Err(Box::new(Finding::new(place, path, "nested too deep")));
        }
        let anchor = event.anchor_id();
        let value = match event {
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(tag.as_deref(), &place, path);
                scalar(&text, style, tag.as_deref())
            }
            Event::SequenceStart(_, _, tag) => {
                self.refuse_tag(tag.as_deref(), &place, path);
                self.list(path, depth)?
            }
            Event::MappingStart(_, _, tag) => {
                self.refuse_tag(tag.as_deref(), &place, path);
                self.map(path, depth)?
            }
            Event::Alias(id) => return self.alias(id, place, path),
            _ => {
                self.findings.push(Finding::new(
                    place.clone(),
                    path,
                    "no anchor of this name stands above",
                ));
                Value::Null
            }
        };
        let node = Node {
            value,
            place,
            path: path.to_owned(),
        };
        if let Some(id) = anchor {
            self.anchors.insert(id, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, place: Place, path: &str) -> Result<Node, End> {
        let Some(count) = self.anchors.get(&id).map(Node::count) else {
            let message = "an alias inside its own anchor";
            return Err(Box::new(Finding::new(place, path, message)));
        };
        self.charge(count, &place, path)?;
        let mut node = self.anchors.get(&id).cloned().unwrap_or(Node {
            value: Value::Null,
            place,
            path: String::new(),
        });
        node.move_to(path);
        Ok(node)
    }

    fn charge(&mut self, values: usize, place: &Place, path: &str) -> Result<(), End> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES {
            let message = format!("more than {MAX_VALUES} values, aliases written out");
            return Err(Box::new(Finding::new(place.clone(), path, message)));
        }
        Ok(())
    }

    fn refuse_tag(&mut self, tag: Option<&Tag>, place: &Place, path: &str) {
        let known = |tag: &Tag| {
            tag.core_suffix()
                .is_some_and(|suffix| matches!(suffix, "str" | "map" | "seq"))
        };
        if tag.is_some_and(|tag| !known(tag)) {
            self.findings.push(Finding::new(
                place.clone(),
                path,
                "YAML tags are not used here",
            ));
        }
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Value, End> {
        let mut nodes = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::SequenceEnd => return Ok(Value::List(nodes)),
                event if is_value(&event) => {
                    let path = format!("{path}[{}]", nodes.len());
                    nodes.push(self.node(event, &span, &path, depth + 1)?);
                }
                _ => {}
            }
        }
    }

    fn map(&mut self, path: &str, depth: usize) -> Result<Value, End> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, key_span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(Value::Map(entries)),
                Event::Scalar(text, ..) => Some(text.into_owned()),
                event if is_value(&event) => {
                    self.node(event, &key_span, path, depth + 1)?;
                    None
                }
                _ => continue,
            };
            let key_place = Place::span(&key_span);
            let (event, span) = self.next()?;
            let child = join(path, key.as_deref().unwrap_or("?"));
            let node = self.node(event, &span, &child, depth + 1)?;
            match key {
                Some(key) => self.add(
                    &mut entries,
                    Entry {
                        key,
                        key_place,
                        node,
                    },
                ),
                None => {
                    self.findings
                        .push(Finding::new(key_place, path, "a key that is not a text"));
                }
            }
        }
    }

    fn add(&mut self, entries: &mut Vec<Entry>, entry: Entry) {
        if is_sensitive(&entry.key) {
            mask(&entry.node, &mut self.masks);
        }
        let first = entries.iter().find(|other| other.key == entry.key);
        let message = if entry.key == "<<" {
            "merge keys are not used here; an alias (`key: *name`) works".to_owned()
        } else if let Some(first) = first {
            match &first.key_place {
                Place::File { line, .. } => {
                    format!("duplicate key `{}`, first on line {line}", entry.key)
                }
                _ => format!("duplicate key `{}`", entry.key),
            }
        } else {
            entries.push(entry);
            return;
        };
        self.findings
            .push(Finding::new(entry.key_place, &entry.node.path, message));
    }
}

fn is_value(event: &Event<'_>) -> bool {
    matches!(
        event,
        Event::Scalar(..)
            | Event::SequenceStart(..)
            | Event::MappingStart(..)
            | Event::Alias(_)
            | Event::UnresolvedAlias(_)
    )
}

/// Whether a value under this key is likely a secret, also where the schema does not know the key.
pub(crate) fn is_sensitive(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "token",
        "hmac",
        "private",
        "credential",
        "api_key",
        "apikey",
    ]
    .iter()
    .any(|word| key.contains(word))
}

/// Keeps a value, or every value of a list, out of quotations. A map's keys decide for themselves.
fn mask(node: &Node, masks: &mut Vec<Range<usize>>) {
    match (&node.value, &node.place) {
        (Value::Map(_), _) => {}
        (Value::List(nodes), _) => nodes.iter().for_each(|node| mask(node, masks)),
        (_, Place::File { bytes, .. }) => masks.push(bytes.clone()),
        _ => {}
    }
}

/// YAML 1.2's core schema.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    if style != ScalarStyle::Plain || tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str")) {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn number(text: &str) -> Option<Number> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok().map(Number::from);
    }
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok().map(Number::from);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if !unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        || !unsigned
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
    {
        return None;
    }
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = text.parse::<u64>() {
        return Some(whole.into());
    }
    Number::from_f64(text.parse().ok()?)
}
