//! Plugins: bindings with one name each, files that are there, and failure answers that their hooks allow.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use gantry_model::{Change, glob::Glob};
use gantry_plugin_host::{Grants, Limits};
use serde_json::Value;

use super::{Context, MissingFiles, read_text};
use crate::config::{
    Binding, Mode, OnError, PluginFrom,
    file::{
        GrantsFile, ModeText, OnErrorEntry, OnErrorText, PluginFile, PluginLimitsFile, SkipConsent,
    },
    text::Origin,
    tree,
};

/// Longest file inside a plugin's configuration.
const MAX_CONFIG_FILE_BYTES: usize = 16 << 20;

impl Context<'_> {
    pub(super) fn plugins(&mut self, file: Option<Vec<PluginFile>>) -> Vec<Binding> {
        let Some(file) = file else {
            return Vec::new();
        };
        if file.is_empty() {
            let hint = "bind builtin:access, or a plugin of your own that authorizes".to_owned();
            self.refuse(
                &["plugins"],
                "no plugin decides who may do what: every request would be refused",
                hint,
            );
        }
        let mut bindings: Vec<Binding> = Vec::new();
        for (index, written) in file.into_iter().enumerate() {
            let index = index.to_string();
            let keys = ["plugins", index.as_str()];
            let Some(binding) = self.binding(&keys, written) else {
                continue;
            };
            if bindings.iter().any(|other| other.name == binding.name) {
                self.refuse(
                    &[&keys[..], &["name"]].concat(),
                    "another plugin has this name already",
                    None,
                );
            }
            bindings.push(binding);
        }
        bindings
    }

    fn binding(&mut self, keys: &[&str; 2], file: PluginFile) -> Option<Binding> {
        let from = file.from.and_then(|from| self.origin(keys, from.0));
        let mode = self.mode(keys, file.mode, from.as_ref());
        let changes: Option<BTreeSet<Change>> = file
            .changes
            .map(|changes| changes.into_iter().map(|change| change.0).collect());
        let on_error = self.on_error(keys, file.on_error, from.as_ref(), changes.as_ref());
        let hold_for = self.duration(
            &[&keys[..], &["hold_for"]].concat(),
            file.hold_for.as_ref(),
            Duration::ZERO,
            Duration::ZERO..=Duration::from_secs(600),
        );
        let grants = self.grants(keys, file.grants.unwrap_or_default());
        let limits = self.plugin_limits(keys, &file.limits.unwrap_or_default());
        let mut included = Included::default();
        let mut config = file
            .config
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let mut path: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        path.push("config".to_owned());
        self.include(&mut path, &mut config, &mut included);
        Some(Binding {
            name: Arc::from(file.name?.0),
            from: from?,
            repositories: match file.repositories {
                Some(patterns) => patterns.into_iter().map(|pattern| pattern.0).collect(),
                None => Glob::parse("**").into_iter().collect(),
            },
            mode,
            on_error,
            hold_for,
            ids: file
                .ids
                .map(|ids| ids.into_iter().map(|pattern| pattern.0).collect()),
            changes,
            grants,
            limits,
            config,
            files: included.files,
            included: included.texts,
        })
    }

    fn mode(
        &mut self,
        keys: &[&str; 2],
        written: Option<ModeText>,
        from: Option<&PluginFrom>,
    ) -> Mode {
        let keys = [keys, &["mode"][..]].concat();
        match written {
            Some(ModeText::Enforce) | None => Mode::Enforce,
            Some(unheard @ (ModeText::Audit | ModeText::Shadow)) => {
                if is_builtin(from, "htpasswd") {
                    let message = "only `enforce` is possible for plugins that say who someone is";
                    self.refuse(&keys, message, None);
                }
                match unheard {
                    ModeText::Shadow => Mode::Shadow,
                    ModeText::Audit | ModeText::Enforce => Mode::Audit,
                }
            }
        }
    }

    fn origin(&mut self, keys: &[&str; 2], origin: Origin) -> Option<PluginFrom> {
        let keys = [keys, &["from"][..]].concat();
        match origin {
            Origin::Builtin(name) => Some(PluginFrom::Builtin(name)),
            Origin::Artifact => {
                self.refuse(
                    &keys,
                    "plugins from a registry are not available yet",
                    "download the component and name its file".to_owned(),
                );
                None
            }
            Origin::File(written) => {
                let path = self.path(&written.to_string_lossy());
                self.files.push(path.clone());
                // The bytes are read when the plugin is loaded; here it is enough that they can be.
                let reason = match crate::files::open(&path) {
                    Ok(_file) => return Some(PluginFrom::File(path)),
                    Err(error) => super::reason(&error),
                };
                self.unreadable(&keys, &path, &reason);
                None
            }
        }
    }

    /// Only a serve may go on after a failure: an authenticator's is never anonymous, an authorizer's never an allow, and a
    /// change that nobody judged cannot be taken back.
    fn on_error(
        &mut self,
        keys: &[&str; 2],
        written: Option<OnErrorEntry>,
        from: Option<&PluginFrom>,
        changes: Option<&BTreeSet<Change>>,
    ) -> OnError {
        let decides_who = is_builtin(from, "htpasswd") || is_builtin(from, "access");
        if decides_who && changes.is_some() {
            self.refuse(
                &[keys, &["changes"][..]].concat(),
                "this plugin judges no changes: it decides who may ask",
                None,
            );
        }
        let answer = match written {
            Some(OnErrorEntry::Word(OnErrorText::Skip)) => OnError::Skip,
            Some(OnErrorEntry::Skip(file)) => match file.skip {
                Some(SkipConsent::ClientsCanForceThis) => OnError::Skip,
                // A missing key is a mistake of its own.
                None => return OnError::Deny,
            },
            Some(OnErrorEntry::Word(OnErrorText::LastKnown)) => OnError::LastKnown,
            Some(OnErrorEntry::Word(OnErrorText::Deny)) | None => return OnError::Deny,
        };
        let only_serves = changes.is_some_and(|changes| {
            !changes.is_empty() && changes.iter().all(|change| change.is_serve())
        });
        let keys = [keys, &["on_error"][..]].concat();
        if decides_who {
            self.refuse(
                &keys,
                "only `deny` is possible for plugins that decide who may ask",
                None,
            );
        } else if !only_serves {
            let hint = "bind the plugin twice: once for its changes, once with `changes: [serve-manifest, serve-blob]`".to_owned();
            self.refuse(
                &keys,
                "only `deny` is possible for plugins that judge changes",
                hint,
            );
        } else if matches!(written, Some(OnErrorEntry::Word(OnErrorText::Skip))) {
            let hint = "to accept that, write `on_error: { skip: clients_can_force_this }`";
            self.refuse(
                &keys,
                "a client can make this plugin fail, and would then get what the plugin denies",
                hint.to_owned(),
            );
        }
        answer
    }

    fn grants(&mut self, keys: &[&str; 2], file: GrantsFile) -> Grants {
        let private = file.http_private.unwrap_or(false);
        let mut grants = Grants {
            kv: file
                .kv
                .unwrap_or_default()
                .into_iter()
                .map(|bucket| bucket.0)
                .collect(),
            registry: file
                .registry
                .unwrap_or_default()
                .into_iter()
                .map(|pattern| pattern.0)
                .collect(),
            http: file
                .http
                .unwrap_or_default()
                .into_iter()
                .map(|address| address.0.private(private))
                .collect(),
            secret_reveal: file.reveal_secrets.unwrap_or(false),
            ..Grants::default()
        };
        for (name, reference) in file.secrets.unwrap_or_default() {
            let keys = [keys, &["grants", "secrets", name.as_str()][..]].concat();
            if let Some(secret) = self.secret(&keys, &reference) {
                grants.secrets.insert(name, secret);
            }
        }
        grants
    }

    fn plugin_limits(&mut self, keys: &[&str; 2], file: &PluginLimitsFile) -> Limits {
        let default = Limits::default();
        let key = |name| [keys, &["limits", name][..]].concat();
        let milliseconds = |from, to| Duration::from_millis(from)..=Duration::from_millis(to);
        let deadline = self.duration(
            &key("deadline"),
            file.deadline.as_ref(),
            default.deadline,
            milliseconds(1, 60_000),
        );
        let cpu = self.duration(
            &key("cpu"),
            file.cpu.as_ref(),
            default.cpu,
            milliseconds(1, 60_000),
        );
        if cpu > deadline {
            let named = if file.cpu.is_some() {
                "cpu"
            } else {
                "deadline"
            };
            self.refuse(
                &key(named),
                "`cpu` is longer than `deadline`: time to compute is part of the time to answer",
                None,
            );
        }
        // A wasm32 guest addresses no more than 4 GiB.
        let memory = self.size(&key("memory"), file.memory.as_ref(), 1 << 20..=4 << 30);
        Limits {
            deadline,
            cpu,
            // What is written holds for every call; only the defaults differ.
            batch_deadline: file
                .deadline
                .as_ref()
                .map_or(default.batch_deadline, |_| deadline),
            batch_cpu: file.cpu.as_ref().map_or(default.batch_cpu, |_| cpu),
            memory_bytes: memory
                .and_then(|bytes| usize::try_from(bytes).ok())
                .unwrap_or(default.memory_bytes),
            concurrency: file
                .concurrency
                .map_or(default.concurrency, |count| count as usize),
            ..default
        }
    }

    /// Replaces every `{ file: PATH }` by the file's text.
    fn include(&mut self, path: &mut Vec<String>, value: &mut Value, included: &mut Included) {
        let reference = match value {
            Value::Object(map) if map.len() == 1 => map.get("file").and_then(Value::as_str),
            _ => None,
        };
        if let Some(written) = reference {
            let file = self.path(written);
            self.files.push(file.clone());
            let text = self.included(path, &file);
            included.files.push(file);
            included.texts.push(text.clone());
            *value = Value::String(text);
            return;
        }
        let children: Vec<(String, &mut Value)> = match value {
            Value::Object(map) => map
                .iter_mut()
                .map(|(key, child)| (key.clone(), child))
                .collect(),
            Value::Array(list) => list
                .iter_mut()
                .enumerate()
                .map(|(index, child)| (index.to_string(), child))
                .collect(),
            _ => return,
        };
        for (key, child) in children {
            path.push(key);
            self.include(path, child, included);
            path.pop();
        }
    }

    /// Says how a password file is made, when that is what is missing.
    fn advise_htpasswd(&mut self, keys: &[&str], file: &std::path::Path) {
        let plugin = keys
            .iter()
            .take(2)
            .try_fold(self.root, |node, key| node.get(key));
        let from = plugin
            .and_then(|plugin| plugin.get("from"))
            .map(|from| &from.value);
        let people = matches!(from, Some(tree::Value::String(from)) if from == "builtin:htpasswd");
        if let Some(hint) = self
            .findings
            .last_mut()
            .and_then(|finding| finding.hint.as_mut())
            && people
            && !file.exists()
        {
            hint.push_str("; `gantry htpasswd FILE USER` makes one");
        }
    }

    fn included(&mut self, path: &[String], file: &std::path::Path) -> String {
        if self.missing_files == MissingFiles::AreEmpty && !file.exists() {
            return String::new();
        }
        read_text(file, MAX_CONFIG_FILE_BYTES).unwrap_or_else(|reason| {
            let keys: Vec<&str> = path.iter().map(String::as_str).chain(["file"]).collect();
            self.unreadable(&keys, file, &reason);
            self.advise_htpasswd(&keys, file);
            String::new()
        })
    }
}

/// What a plugin's configuration was made of.
#[derive(Default)]
struct Included {
    files: Vec<PathBuf>,
    texts: Vec<String>,
}

fn is_builtin(from: Option<&PluginFrom>, wanted: &str) -> bool {
    matches!(from, Some(PluginFrom::Builtin(name)) if name == wanted)
}
