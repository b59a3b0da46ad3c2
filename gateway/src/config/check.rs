//! Holds the written tree against the schema, and goes on after every mistake.
//!
//! What is wrong is taken out, so that the rest can still be understood and checked for meaning. Knows no key by name.

use super::{
    report::{Finding, Place},
    schema::{self, Choices, Kind, Object},
    suggest, text,
    tree::{Entry, Node, Value},
};

/// The part of `root` that fits the schema; what does not is added to `findings`.
pub(crate) fn check(root: Node, findings: &mut Vec<Finding>) -> Node {
    let empty = Node {
        value: Value::Map(Vec::new()),
        place: root.place.clone(),
        path: String::new(),
    };
    Check { findings }
        .node(root, &Choices::root())
        .unwrap_or(empty)
}

struct Check<'a> {
    findings: &'a mut Vec<Finding>,
}

impl Check<'_> {
    fn refuse(&mut self, node: &Node, message: impl Into<String>, hint: impl Into<Option<String>>) {
        self.findings
            .push(Finding::new(node.place.clone(), &node.path, message).hint(hint));
    }

    fn node(&mut self, node: Node, choices: &Choices) -> Option<Node> {
        if choices.not_yet() {
            self.refuse(&node, "not available yet", None);
            return None;
        }
        if choices.anything() {
            return Some(node);
        }
        let kind = Kind::of(&node.value);
        if !choices.accepts(kind) {
            self.wrong_kind(&node, kind, choices);
            return None;
        }
        match node.value {
            Value::Null => None,
            Value::Bool(_) => Some(node),
            Value::Number(ref number) => {
                let fits = self.number(&node, number, choices);
                fits.then_some(node)
            }
            Value::String(ref text) => {
                let fits = self.text(&node, text, choices);
                fits.then_some(node)
            }
            Value::List(nodes) => {
                let items = choices.items()?;
                let kept = nodes.into_iter().filter_map(|item| self.node(item, &items));
                let value = Value::List(kept.collect());
                Some(Node { value, ..node })
            }
            Value::Map(entries) => {
                let value = Value::Map(Vec::new());
                let shell = Node { value, ..node };
                Some(self.map(shell, entries, choices.object()?))
            }
        }
    }

    fn wrong_kind(&mut self, node: &Node, kind: Kind, choices: &Choices) {
        let secret = choices.object().is_some_and(Object::is_secret);
        if secret {
            let message = "a secret is never written inline";
            let hint = "write { file: PATH } or { env: NAME }".to_owned();
            let finding = Finding::new(node.place.clone(), &node.path, message);
            self.findings.push(finding.hint(hint).secret(true));
            return;
        }
        let wanted: Vec<&str> = choices.kinds().into_iter().map(Kind::words).collect();
        let hint = match kind {
            Kind::Number if choices.formats().contains(&"duration") => {
                Some("write a unit: 250ms, 10s, 10m, 7d".to_owned())
            }
            Kind::Number | Kind::Boolean if choices.accepts(Kind::String) => {
                Some("write it in quotes".to_owned())
            }
            _ => None,
        };
        let message = format!(
            "{} is expected here, not {}",
            wanted.join(" or "),
            kind.words()
        );
        self.refuse(node, message, hint);
    }

    fn number(&mut self, node: &Node, number: &serde_json::Number, choices: &Choices) -> bool {
        let Some(whole) = number.as_u64() else {
            self.refuse(node, "a whole number, not negative, is expected here", None);
            return false;
        };
        let range = choices.for_kind(Kind::Number).map(schema::range).next();
        let (least, most) = range.unwrap_or_default();
        match (least, most) {
            (Some(least), _) if whole < least => {
                self.refuse(node, format!("at least {least} is expected here"), None);
            }
            (_, Some(most)) if whole > most => {
                self.refuse(node, format!("at most {most} is expected here"), None);
            }
            _ => return true,
        }
        false
    }

    fn text(&mut self, node: &Node, text: &str, choices: &Choices) -> bool {
        let allowed = choices.allowed();
        if choices.any_text() || allowed.contains(&text) {
            return true;
        }
        let formats = choices.formats();
        let mut refusal = None;
        for format in &formats {
            match text::check(format, text) {
                Ok(()) => return true,
                Err(error) => refusal = Some(error),
            }
        }
        let finding = match refusal {
            Some(refusal) => Finding::new(node.place.clone(), &node.path, refusal.message)
                .hint(refusal.hint)
                .secret(refusal.secret),
            None => Finding::new(
                node.place.clone(),
                &node.path,
                "not one of the values known here",
            ),
        };
        let finding = match suggest::nearest(text, allowed.iter().copied()) {
            Some(nearest) => finding.hint(format!("did you mean `{nearest}`?")),
            None if formats.is_empty() => finding.hint(format!("one of {}", allowed.join(", "))),
            None => finding,
        };
        self.findings.push(finding);
        false
    }

    fn map(&mut self, shell: Node, entries: Vec<Entry>, object: Object) -> Node {
        self.presence(&shell, &entries, object);
        let kept = entries
            .into_iter()
            .filter_map(|entry| self.entry(entry, object))
            .collect();
        Node {
            value: Value::Map(kept),
            ..shell
        }
    }

    fn entry(&mut self, entry: Entry, object: Object) -> Option<Entry> {
        let Entry {
            key,
            key_place,
            node,
        } = entry;
        let Some(choices) = object.property(&key) else {
            let message = format!("unknown key `{}`", shown(&key));
            let hint = unknown_key_hint(&key, object);
            let mut finding = Finding::new(key_place, &node.path, message).hint(hint);
            // What stands under a misspelled key may be a secret where secrets are expected.
            finding.masked = holds_secrets(object).then(|| Box::new(node.place));
            self.findings.push(finding);
            return None;
        };
        if choices.not_yet() {
            let message = format!("`{key}` is not available yet");
            self.findings
                .push(Finding::new(key_place, &node.path, message));
            return None;
        }
        let node = self.node(node, &choices)?;
        Some(Entry {
            key,
            key_place,
            node,
        })
    }

    fn presence(&mut self, shell: &Node, entries: &[Entry], object: Object) {
        let given = |key: &str| {
            entries
                .iter()
                .any(|entry| entry.key == key && !matches!(entry.node.value, Value::Null))
        };
        for key in object.required().filter(|key| !given(key)) {
            // An empty required key is an error of its own kind at its own place.
            if entries.iter().any(|entry| entry.key == key) {
                continue;
            }
            let path = shell.path_of(key);
            let place = shell.place.clone();
            self.findings
                .push(Finding::new(place, &path, format!("missing key `{key}`")));
        }
        if object.exactly_one() && object.keys().filter(|key| given(key)).count() != 1 {
            let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
            // Unknown keys are reported by themselves.
            if entries
                .iter()
                .all(|entry| object.property(&entry.key).is_some())
            {
                self.refuse(
                    shell,
                    format!("exactly one of {} is expected here", keys.join(", ")),
                    None,
                );
            }
        }
    }
}

fn holds_secrets(object: Object) -> bool {
    let mut inner = object.keys().filter_map(|key| object.property(key));
    object.is_secret() || inner.any(|choices| choices.object().is_some_and(Object::is_secret))
}

fn unknown_key_hint(key: &str, object: Object) -> Option<String> {
    if let Some(nearest) = suggest::nearest(key, object.keys()) {
        return Some(format!("did you mean `{nearest}`?"));
    }
    let below = object.keys().find(|parent| {
        let inner = object.property(parent).and_then(|choices| choices.object());
        inner.is_some_and(|inner| inner.keys().any(|known| known == key))
    });
    if let Some(parent) = below {
        return Some(format!("`{key}` belongs under `{parent}`"));
    }
    let keys: Vec<&str> = object.keys().collect();
    (!keys.is_empty()).then(|| format!("keys known here: {}", keys.join(", ")))
}

/// A key as a message may show it.
fn shown(key: &str) -> String {
    let short: String = key
        .chars()
        .filter(|letter| !letter.is_control())
        .take(64)
        .collect();
    if short == key {
        short
    } else {
        format!("{short}…")
    }
}

/// Puts a value from the environment into the tree.
pub(crate) fn place_of(variable: &str) -> Place {
    Place::Variable(variable.to_owned())
}
