//! The JSON Schema of gantry.yaml, and the few questions we ask it.
//!
//! Owns the subset of JSON Schema that `schemars` makes of our types. Every choice (`anyOf`) is decided by the kind of the
//! written value, so a mistake inside a choice is reported where it is; a test holds the types to that.

use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::{file::ConfigFile, tree};

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut schema = schemars::schema_for!(ConfigFile).to_value();
    tidy(&mut schema);
    schema
});

/// The JSON Schema (draft 2020-12) of gantry.yaml.
#[must_use]
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// What a value may be, references followed and choices spread out.
#[derive(Clone, Debug)]
pub(crate) struct Choices(Vec<&'static Map<String, Value>>);

/// What a written value is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Null,
    Boolean,
    Number,
    String,
    Array,
    Object,
}

impl Kind {
    pub(crate) fn of(value: &tree::Value) -> Self {
        match value {
            tree::Value::Null => Self::Null,
            tree::Value::Bool(_) => Self::Boolean,
            tree::Value::Number(_) => Self::Number,
            tree::Value::String(_) => Self::String,
            tree::Value::List(_) => Self::Array,
            tree::Value::Map(_) => Self::Object,
        }
    }

    /// In words, with its article.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Boolean => "true or false",
            Self::Number => "a number",
            Self::String => "a text",
            Self::Array => "a list",
            Self::Object => "a map",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" | "number" => Self::Number,
            "string" => Self::String,
            "array" => Self::Array,
            "object" => Self::Object,
            _ => return None,
        })
    }
}

impl Choices {
    /// Of the whole file.
    pub(crate) fn root() -> Self {
        Self::of(schema())
    }

    /// Of a schema inside the file's.
    pub(crate) fn of(schema: &'static Value) -> Self {
        let mut found = Vec::new();
        spread(schema, &mut found);
        Self(found)
    }

    /// Anything goes: a plugin's own configuration.
    pub(crate) fn anything(&self) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|choice| kinds(choice).is_empty() && !refused(choice))
    }

    /// A key that is known and not served yet.
    pub(crate) fn not_yet(&self) -> bool {
        self.0.iter().any(|choice| refused(choice))
    }

    /// Whether a value of this kind may stand here.
    pub(crate) fn accepts(&self, kind: Kind) -> bool {
        self.0.iter().any(|choice| kinds(choice).contains(&kind))
    }

    /// The kinds that may stand here, without `null`, in words.
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let mut all: Vec<Kind> = Vec::new();
        for kind in self.0.iter().flat_map(|choice| kinds(choice)) {
            if kind != Kind::Null && !all.contains(&kind) {
                all.push(kind);
            }
        }
        all
    }

    /// The choices for a value of this kind.
    pub(crate) fn for_kind(&self, kind: Kind) -> impl Iterator<Item = &'static Map<String, Value>> {
        self.0
            .iter()
            .copied()
            .filter(move |choice| kinds(choice).contains(&kind))
    }

    /// The one map that may stand here.
    pub(crate) fn object(&self) -> Option<Object> {
        self.for_kind(Kind::Object).next().map(Object)
    }

    /// What an element of the list that may stand here may be.
    pub(crate) fn items(&self) -> Option<Self> {
        let list = self.for_kind(Kind::Array).next()?;
        Some(list.get("items").map_or(Self(Vec::new()), Self::of))
    }

    /// The texts allowed here, when only some are.
    pub(crate) fn allowed(&self) -> Vec<&'static str> {
        self.for_kind(Kind::String)
            .flat_map(|choice| {
                let some = choice.get("enum").and_then(Value::as_array);
                let one = choice.get("const");
                some.into_iter().flatten().chain(one)
            })
            .filter_map(Value::as_str)
            .collect()
    }

    /// The grammars of texts allowed here.
    pub(crate) fn formats(&self) -> Vec<&'static str> {
        self.for_kind(Kind::String)
            .filter_map(|choice| choice.get("format")?.as_str())
            .collect()
    }

    /// Whether any text may stand here.
    pub(crate) fn any_text(&self) -> bool {
        self.for_kind(Kind::String).any(|choice| {
            !["enum", "const", "format"]
                .iter()
                .any(|key| choice.contains_key(*key))
        })
    }
}

/// A map's keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Object(&'static Map<String, Value>);

impl Object {
    /// The keys it knows by name.
    pub(crate) fn keys(self) -> impl Iterator<Item = &'static str> {
        self.0
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(|properties| properties.keys().map(String::as_str))
    }

    /// What may stand under `key`; `None` when the key is unknown.
    pub(crate) fn property(self, key: &str) -> Option<Choices> {
        let named = self.0.get("properties").and_then(|all| all.get(key));
        named.or_else(|| self.other()).map(Choices::of)
    }

    /// What may stand under a key of the user's own choosing.
    pub(crate) fn other(self) -> Option<&'static Value> {
        match self.0.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            other => other,
        }
    }

    /// The keys that must be there.
    pub(crate) fn required(self) -> impl Iterator<Item = &'static str> {
        let required = self.0.get("required").and_then(Value::as_array);
        required.into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether exactly one of the keys must be there.
    pub(crate) fn exactly_one(self) -> bool {
        self.0.get("maxProperties").and_then(Value::as_u64) == Some(1)
    }

    /// Whether this is a reference to a secret.
    pub(crate) fn is_secret(self) -> bool {
        self.0.get("format").and_then(Value::as_str) == Some("secret")
    }
}

/// The smallest and greatest number allowed.
pub(crate) fn range(choice: &Map<String, Value>) -> (Option<u64>, Option<u64>) {
    let number = |key| choice.get(key).and_then(Value::as_u64);
    (number("minimum"), number("maximum"))
}

/// Comments are wrapped at our margin, an editor wraps at its own; and a key that is not available yet cannot be required.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let properties = map.get("properties").cloned().unwrap_or_default();
            let available = |key: &Value| {
                let property = properties.get(key.as_str().unwrap_or_default());
                property.is_none_or(|property| property.get("not").is_none())
            };
            if let Some(Value::Array(required)) = map.get_mut("required") {
                required.retain(available);
            }
            map.retain(|key, value| key != "required" || *value != Value::Array(Vec::new()));
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "description" => *text = text.replace('\n', " "),
                    value => tidy(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn spread(schema: &'static Value, found: &mut Vec<&'static Map<String, Value>>) {
    let Value::Object(object) = schema else {
        return;
    };
    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|path| self::schema().pointer(path));
        return target.into_iter().for_each(|target| spread(target, found));
    }
    let choices = ["anyOf", "oneOf"]
        .iter()
        .find_map(|key| object.get(*key)?.as_array());
    match choices {
        Some(choices) => choices.iter().for_each(|choice| spread(choice, found)),
        None => found.push(object),
    }
}

fn refused(choice: &Map<String, Value>) -> bool {
    choice.contains_key("not")
}

fn kinds(choice: &Map<String, Value>) -> Vec<Kind> {
    match choice.get("type") {
        Some(Value::String(name)) => Kind::named(name).into_iter().collect(),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(|name| Kind::named(name.as_str()?))
            .collect(),
        _ if choice.get("const").is_some_and(Value::is_string) => vec![Kind::String],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every schema inside the file's, with what leads to it.
    fn all(schema: &'static Value, at: &str, found: &mut Vec<(String, &'static Value)>) {
        found.push((at.to_owned(), schema));
        match schema {
            Value::Object(map) => map
                .iter()
                .for_each(|(key, child)| all(child, &format!("{at}/{key}"), found)),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .for_each(|(index, child)| all(child, &format!("{at}/{index}"), found)),
            _ => {}
        }
    }

    #[test]
    fn every_choice_is_decided_by_the_kind_of_the_value() {
        let mut found = Vec::new();
        all(schema(), "", &mut found);
        let choices = found
            .iter()
            .filter(|(_, value)| value.get("anyOf").is_some() || value.get("oneOf").is_some());
        for (at, value) in choices {
            let choices = Choices::of(value);
            for kind in [Kind::Object, Kind::Array, Kind::Number, Kind::Boolean] {
                assert!(choices.for_kind(kind).count() <= 1, "{at}: {kind:?}");
            }
        }
    }

    #[test]
    fn every_format_of_a_text_is_checked() {
        let mut found = Vec::new();
        all(schema(), "", &mut found);
        let texts = found
            .iter()
            .filter(|(_, value)| value.get("type").and_then(Value::as_str) == Some("string"));
        for (at, value) in texts {
            if let Some(format) = value.get("format").and_then(Value::as_str) {
                let refusal = crate::config::text::check(format, "\u{1}://");
                assert!(refusal.is_err() || format == "glob", "{at}: {format}");
            }
        }
    }
}
