//! A case file: a binding, what the host answers, and questions with the decision that is expected.
//!
//! Owns the file's grammar. What a case says of `config`, `grants`, `limits` and `host` is laid over what the file says, key by key;
//! `null` takes a key away.

use std::path::{Path, PathBuf};

use gantry_model::glob::Glob;
use gantry_plugin_host::{Grants, Hook, Hooks, HttpGrant, Limits};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Mistake,
    question::{Question, read},
    world::World,
};
use crate::config::{
    file::PluginLimitsFile,
    report::Place,
    text::GlobText,
    tree::{self, Node},
};

const KEYS: [&str; 6] = ["hook", "config", "grants", "limits", "host", "cases"];
const CASE_KEYS: [&str; 7] = [
    "name", "config", "grants", "limits", "host", "request", "expect",
];

/// A case file that was read.
#[derive(Debug)]
pub struct Suite {
    root: Node,
    folder: PathBuf,
}

/// How a component is bound in a trial, and what it meets.
#[derive(Clone, Debug)]
pub struct Setting {
    pub(super) config: Value,
    pub(super) grants: Grants,
    pub(super) limits: Limits,
    pub(super) world: World,
}

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it shows.
    pub name: String,
    /// Where it stands, from 1.
    pub line: usize,
    /// The binding and the host's answers.
    pub setting: Setting,
    /// The hook that is asked.
    pub hook: Hook,
    /// What it is asked.
    pub question: Question,
    /// The expectation; see [`super::answer::differences`].
    pub expect: Value,
}

impl Suite {
    /// Reads a case file.
    ///
    /// # Errors
    /// Every mistake of form.
    pub fn read(path: &Path) -> Result<Self, Vec<Mistake>> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| vec![Mistake::new(format!("cannot be read: {error}"))])?;
        let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        Self::parse(&text, folder)
    }

    /// As [`Suite::read`], from text; `{ file: … }` in a config is relative to `folder`.
    ///
    /// # Errors
    /// Every mistake of form.
    pub fn parse(text: &str, folder: PathBuf) -> Result<Self, Vec<Mistake>> {
        let parsed = tree::parse(text);
        let found = parsed.findings.into_iter().map(|finding| Mistake {
            line: line(&finding.place),
            path: finding.path.into(),
            message: finding.message,
        });
        let mut mistakes: Vec<Mistake> = found.collect();
        let Some(root) = parsed.root else {
            return Err(mistakes);
        };
        known_keys(&root, &KEYS, &mut mistakes);
        for case in cases_of(&root) {
            known_keys(case, &CASE_KEYS, &mut mistakes);
        }
        if mistakes.is_empty() {
            Ok(Self { root, folder })
        } else {
            Err(mistakes)
        }
    }

    /// Every case, for a component that takes part in `hooks`.
    ///
    /// # Errors
    /// Every mistake of meaning.
    pub fn cases(&self, hooks: &Hooks) -> Result<Vec<Case>, Vec<Mistake>> {
        let mut cases = Vec::new();
        let mut mistakes = Vec::new();
        for node in cases_of(&self.root) {
            match self.hook(hooks).and_then(|hook| self.case(node, hook)) {
                Ok(case) => cases.push(case),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if cases.is_empty() && mistakes.is_empty() {
            mistakes.push(Mistake::new("there are no `cases` in it"));
        }
        if mistakes.is_empty() {
            Ok(cases)
        } else {
            Err(mistakes)
        }
    }

    /// The setting without a case.
    ///
    /// # Errors
    /// The first mistake.
    pub fn setting(&self) -> Result<Setting, Mistake> {
        self.setting_of(None)
    }

    /// The hook that is asked: the file's, or the component's only one.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn hook(&self, hooks: &Hooks) -> Result<Hook, Mistake> {
        match self.root.get("hook").map(Node::to_json) {
            Some(Value::String(name)) => hook_named(&name).map_err(|message| Mistake {
                message,
                ..self.at(&["hook"], None)
            }),
            _ => only_hook(hooks).map_err(Mistake::new),
        }
    }

    fn case(&self, node: &Node, hook: Hook) -> Result<Case, Mistake> {
        let setting = self.setting_of(Some(node))?;
        let request = node.get("request").map(Node::to_json).unwrap_or_default();
        let question = Question::read(hook, request).map_err(|(keys, message)| {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let keys = [&["request"][..], &keys].concat();
            Mistake {
                message,
                ..self.at(&keys, Some(node))
            }
        })?;
        let expect = node
            .get("expect")
            .map(Node::to_json)
            .ok_or_else(|| Mistake {
                message: "missing key `expect`".to_owned(),
                ..self.at(&[], Some(node))
            })?;
        let name = node.get("name").map(Node::to_json).unwrap_or_default();
        Ok(Case {
            name: name.as_str().unwrap_or("(no name)").to_owned(),
            line: line(&node.place).unwrap_or_default(),
            setting,
            hook,
            question,
            expect,
        })
    }

    fn setting_of(&self, case: Option<&Node>) -> Result<Setting, Mistake> {
        let mut config = self.laid_over("config", case);
        if config.is_null() {
            config = Value::Object(Map::new());
        }
        self.include(&mut config).map_err(|message| Mistake {
            message,
            ..self.at(&["config"], case)
        })?;
        let grants: GrantsForm = self.part("grants", case)?;
        let limits: PluginLimitsFile = self.part("limits", case)?;
        let world: World = self.part("host", case)?;
        Ok(Setting::new(config, grants, &limits, world))
    }

    fn laid_over(&self, key: &str, case: Option<&Node>) -> Value {
        let of = |node: &Node| node.get(key).map(Node::to_json).unwrap_or_default();
        let mut value = of(&self.root);
        if let Some(case) = case {
            lay_over(&mut value, of(case));
        }
        value
    }

    fn part<T: serde::de::DeserializeOwned>(
        &self,
        key: &str,
        case: Option<&Node>,
    ) -> Result<T, Mistake> {
        read(self.laid_over(key, case)).map_err(|(keys, message)| {
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            let keys = [&[key][..], &keys].concat();
            Mistake {
                message,
                ..self.at(&keys, case)
            }
        })
    }

    /// The nearest written place on the way to `keys`, in the case or else in the file.
    fn at(&self, keys: &[&str], case: Option<&Node>) -> Mistake {
        let written = |node: &&Node| keys.first().is_none_or(|key| node.get(key).is_some());
        let mut node = case
            .filter(written)
            .or_else(|| Some(&self.root).filter(written))
            .or(case)
            .unwrap_or(&self.root);
        for key in keys {
            match node.get(key) {
                Some(child) => node = child,
                None => break,
            }
        }
        Mistake {
            line: line(&node.place),
            path: node.path.clone(),
            message: String::new(),
        }
    }

    /// Replaces every `{ file: PATH }` by the file's text, as a configuration does.
    fn include(&self, value: &mut Value) -> Result<(), String> {
        let written = match value {
            Value::Object(map) if map.len() == 1 => map.get("file").and_then(Value::as_str),
            _ => None,
        };
        if let Some(written) = written {
            let text = std::fs::read_to_string(self.folder.join(written))
                .map_err(|error| format!("cannot read {written}: {error}"))?;
            *value = Value::String(text);
            return Ok(());
        }
        match value {
            Value::Object(map) => map.values_mut().try_for_each(|child| self.include(child)),
            Value::Array(list) => list.iter_mut().try_for_each(|child| self.include(child)),
            _ => Ok(()),
        }
    }
}

impl Setting {
    fn new(config: Value, grants: GrantsForm, limits: &PluginLimitsFile, world: World) -> Self {
        let default = Limits::default();
        let globs = grants.registry.into_iter().map(|pattern| pattern.0);
        Self {
            config,
            grants: Grants {
                kv: grants.kv,
                registry: globs.collect::<Vec<Glob>>(),
                http: grants.http.into_iter().map(|address| address.0).collect(),
                secrets: world.secrets(),
                secret_reveal: grants.reveal_secrets,
            },
            limits: Limits {
                deadline: limits
                    .deadline
                    .as_ref()
                    .map_or(default.deadline, |text| text.0),
                cpu: limits.cpu.as_ref().map_or(default.cpu, |text| text.0),
                batch_deadline: limits
                    .deadline
                    .as_ref()
                    .map_or(default.batch_deadline, |text| text.0),
                batch_cpu: limits.cpu.as_ref().map_or(default.batch_cpu, |text| text.0),
                memory_bytes: limits
                    .memory
                    .as_ref()
                    .and_then(|size| usize::try_from(size.bytes()).ok())
                    .unwrap_or(default.memory_bytes),
                ..default
            },
            world,
        }
    }

    /// The setting of a binding with nothing but a configuration.
    #[must_use]
    pub fn bare() -> Self {
        let config = Value::Object(Map::new());
        let limits = PluginLimitsFile::default();
        Self::new(config, GrantsForm::default(), &limits, World::default())
    }

    /// The same with another configuration.
    #[must_use]
    pub fn configured(mut self, config: Value) -> Self {
        self.config = config;
        self
    }
}

/// `grants` as gantry.yaml has them; secrets are granted by `host.secrets`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GrantsForm {
    kv: Vec<String>,
    registry: Vec<GlobText>,
    http: Vec<HttpText>,
    reveal_secrets: bool,
}

/// An address, as gantry.yaml has it. No request of a trial leaves the machine, so where a name leads does not matter.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct HttpText(HttpGrant);

impl TryFrom<String> for HttpText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error| format!("{error}"))
    }
}

/// The hook that an interface of the contract is called by.
///
/// # Errors
/// No hook has this name.
pub fn hook_named(name: &str) -> Result<Hook, String> {
    match name {
        "admission" => Ok(Hook::Admit),
        "authorizer" => Ok(Hook::Authorize),
        "authenticator" => Ok(Hook::Authenticate),
        "principals" => Ok(Hook::Principals),
        "events" => Ok(Hook::Observe),
        _ => Err(
            "no such hook; there are: admission, authorizer, authenticator, principals, events"
                .to_owned(),
        ),
    }
}

/// The only hook of a component.
///
/// # Errors
/// It has none or several.
pub fn only_hook(hooks: &Hooks) -> Result<Hook, String> {
    let mut hooks = hooks.0.iter().copied();
    match (hooks.next(), hooks.next()) {
        (Some(hook), None) => Ok(hook),
        (None, _) => Err("the component takes part in no hook".to_owned()),
        (Some(_), Some(_)) => {
            Err("the component takes part in several hooks: say which by `hook`".to_owned())
        }
    }
}

fn cases_of(root: &Node) -> &[Node] {
    match root.get("cases").map(|node| &node.value) {
        Some(tree::Value::List(cases)) => cases,
        _ => &[],
    }
}

fn known_keys(node: &Node, known: &[&str], mistakes: &mut Vec<Mistake>) {
    let tree::Value::Map(entries) = &node.value else {
        mistakes.push(Mistake {
            line: line(&node.place),
            path: node.path.clone(),
            message: format!("expected keys: {}", known.join(", ")),
        });
        return;
    };
    for entry in entries {
        if !known.contains(&entry.key.as_str()) {
            mistakes.push(Mistake {
                line: line(&entry.key_place),
                path: node.path.clone(),
                message: format!(
                    "unknown key `{}`; keys known here: {}",
                    entry.key,
                    known.join(", ")
                ),
            });
        }
    }
}

fn line(place: &Place) -> Option<usize> {
    match place {
        Place::File { line, .. } => Some(*line),
        Place::Variable(_) | Place::Nowhere => None,
    }
}

fn lay_over(under: &mut Value, over: Value) {
    match (under, over) {
        (_, Value::Null) => {}
        (Value::Object(under), Value::Object(over)) => {
            for (key, over) in over {
                if over.is_null() {
                    under.remove(&key);
                } else {
                    lay_over(under.entry(key).or_insert(Value::Null), over);
                }
            }
        }
        (under, over) => *under = over,
    }
}
