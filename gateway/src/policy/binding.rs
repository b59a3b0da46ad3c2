//! A plugin as the configuration binds it: which repositories and changes it sees, what its failure means, whether it is heard.

use std::{collections::BTreeSet, sync::Arc};

use gantry_model::{Change, glob::Glob};
use gantry_plugin_host::{CallError, Plugin};

use crate::config::{Mode, OnError};

/// A plugin in its place in the chain.
#[derive(Debug)]
pub struct Binding {
    /// The loaded component.
    pub plugin: Plugin,
    /// Canonical repository names it sees.
    pub repositories: Vec<Glob>,
    /// Changes it is asked about, when it exports `admission`.
    pub changes: BTreeSet<Change>,
    /// Whether it is enforced.
    pub mode: Mode,
    /// What its failure means.
    pub on_error: OnError,
    /// Digest of component and configuration: part of every cache key, so that a reload empties what it must.
    pub fingerprint: Arc<str>,
}

impl Binding {
    /// The binding's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        self.plugin.name()
    }

    /// Whether the binding sees this repository.
    #[must_use]
    pub fn sees(&self, repository: &str) -> bool {
        self.repositories
            .iter()
            .any(|glob| glob.matches(repository))
    }

    /// Whether the binding is asked about this change in this repository.
    #[must_use]
    pub fn asks(&self, repository: &str, change: Change) -> bool {
        self.changes.contains(&change) && self.sees(repository)
    }

    /// Whether the failure ends the chain; records it either way.
    pub(crate) fn failure_denies(&self, error: &CallError) -> bool {
        let denies = self.mode == Mode::Enforce && self.on_error != OnError::Skip;
        tracing::warn!(plugin.name = %error.plugin, failure = error.failure.as_str(), detail = %error.detail, denies, "plugin failed");
        denies
    }
}

/// The changes a binding is asked about when it does not list any: those of hosted content. Fills and serves must be listed.
#[must_use]
pub fn default_changes() -> BTreeSet<Change> {
    Change::ALL
        .into_iter()
        .filter(|change| !change.is_serve() && *change != Change::Fill)
        .collect()
}
