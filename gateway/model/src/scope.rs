//! A scope: actions on a named resource, in docker's token grammar `kind:name:action,action`.
//!
//! Open on both sides: kinds, names and actions are compared as text, so a policy may invent its own.

use std::{collections::BTreeSet, fmt, str::FromStr};

use crate::name::RepositoryName;

/// The text is not `kind:name:actions`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a scope: expected kind:name:actions")]
pub struct ScopeError;

/// Actions on one resource. `*` as an action means every action.
#[derive(Clone, Debug, Eq, Hash, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Scope {
    /// `repository`, `registry`, or a policy's own word.
    #[serde(rename = "type")]
    pub kind: String,
    /// The resource's name; may hold colons (`host:port/name`).
    pub name: String,
    /// What may be done.
    pub actions: BTreeSet<String>,
}

impl Scope {
    /// `repository:<name>:<actions>`.
    #[must_use]
    pub fn repository(name: &RepositoryName, actions: &[&str]) -> Self {
        Self {
            kind: "repository".to_owned(),
            name: name.to_string(),
            actions: actions.iter().map(|action| (*action).to_owned()).collect(),
        }
    }

    /// `registry:admin:*`: what the admin API asks for.
    #[must_use]
    pub fn admin() -> Self {
        Self {
            kind: "registry".to_owned(),
            name: "admin".to_owned(),
            actions: ["*".to_owned()].into(),
        }
    }

    /// Whether every action of `asked` is in this scope, for the same resource.
    #[must_use]
    pub fn covers(&self, asked: &Self) -> bool {
        self.kind == asked.kind
            && self.name == asked.name
            && asked.actions.iter().all(|action| self.allows(action))
    }

    fn allows(&self, action: &str) -> bool {
        self.actions.contains(action) || self.actions.contains("*")
    }

    /// What of `asked` lies in one of `limits`: the actions both allow, resource by resource. Nothing is ever widened.
    #[must_use]
    pub fn intersect(asked: &[Self], limits: &[Self]) -> Vec<Self> {
        asked.iter().filter_map(|scope| scope.cut(limits)).collect()
    }

    fn cut(&self, limits: &[Self]) -> Option<Self> {
        let mut actions = BTreeSet::new();
        for limit in limits
            .iter()
            .filter(|limit| limit.kind == self.kind && limit.name == self.name)
        {
            if self.actions.contains("*") {
                actions.extend(limit.actions.iter().cloned());
            }
            actions.extend(
                self.actions
                    .iter()
                    .filter(|action| limit.allows(action))
                    .cloned(),
            );
        }
        (!actions.is_empty()).then(|| Self {
            kind: self.kind.clone(),
            name: self.name.clone(),
            actions,
        })
    }

    /// Whether `granted` holds every action of every scope in `asked`. A scope without actions asks for nothing that could be held.
    #[must_use]
    pub fn all_covered(asked: &[Self], granted: &[Self]) -> bool {
        asked.iter().all(|scope| {
            let held = |action: &String| {
                let of_it = |limit: &&Self| limit.kind == scope.kind && limit.name == scope.name;
                granted
                    .iter()
                    .filter(of_it)
                    .any(|limit| limit.allows(action))
            };
            !scope.actions.is_empty() && scope.actions.iter().all(held)
        })
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    /// Splits at the first and the last colon, because a name may hold `host:port`.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let (kind, rest) = text.split_once(':').ok_or(ScopeError)?;
        let (name, actions) = rest.rsplit_once(':').ok_or(ScopeError)?;
        // `repository(plugin)`: docker's retired resource class.
        let kind = kind.split_once('(').map_or(kind, |(kind, _class)| kind);
        if kind.is_empty() {
            return Err(ScopeError);
        }
        let actions = actions
            .split(',')
            .filter(|action| !action.is_empty())
            .map(str::to_owned)
            .collect();
        Ok(Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions,
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:", self.kind, self.name)?;
        for (index, action) in self.actions.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            formatter.write_str(action)?;
        }
        Ok(())
    }
}
