//! Decides who may do what: an action is allowed when a rule names the principal, the action and the repository, and no deny rule does.
//!
//! | key | what it is |
//! |---|---|
//! | `rules[].who` | globs on principal ids (`user:alice`, `robot:*`), `group:<glob>`, `authenticated` or `*` for anyone with a credential, `anonymous` |
//! | `rules[].may` | `pull`, `push`, `delete`, `catalog`, `*` for these, and `admin` (the admin API), which no `*` gives |
//! | `rules[].what` | globs on canonical repository names |
//! | `rules[].deny` | refuse instead of allow; overrides every allow, also another plugin's |
//! | `rules[].name` | what the audit log calls the rule |
//!
//! When no rule matches it abstains, so another authorizer may still allow; when nobody does, the request is denied.

use std::time::Duration;

use gantry_plugin::{
    Answer, Authorizer, Issues, Plugin,
    authorizer::{AuthzRequest, Decision},
    glob::{Glob, any_matches},
    nearest::nearest,
    types::{CacheHint, Operation, Principal, Reason, Scope},
};
use serde::Deserialize;

/// The plugin.
#[derive(Debug)]
pub struct Access {
    rules: Vec<Rule>,
}

/// The binding's `config`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    rules: Vec<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    name: Option<String>,
    who: Vec<Glob>,
    may: Vec<String>,
    #[serde(default)]
    what: Vec<Glob>,
    #[serde(default)]
    deny: bool,
}

impl Plugin for Access {
    type Config = Config;
    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config, issues: &mut Issues) -> Self {
        let mut rules = config.rules;
        for (index, rule) in rules.iter_mut().enumerate() {
            rule.check(&format!("/rules/{index}"), issues);
            rule.name.get_or_insert_with(|| format!("rules/{index}"));
        }
        Self { rules }
    }
}

impl Authorizer for Access {
    fn authorize(&self, request: &AuthzRequest) -> Answer<Decision> {
        Ok(self.decide(&request.principal, request.operation, &request.scopes))
    }
}

gantry_plugin::export!(Access: authorizer);

impl Access {
    /// The decision, from what was asked alone.
    #[must_use]
    pub fn decide(&self, principal: &Principal, operation: Operation, asked: &[Scope]) -> Decision {
        let rules: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|rule| rule.names(principal))
            .collect();
        let cache = CacheHint::lasting(Duration::from_secs(60));
        // A token narrows to what is left; a request that needs more than is left fails as a whole.
        if operation != Operation::Token
            && let Some(rule) = asked.iter().find_map(|scope| denier(&rules, scope))
        {
            return Decision::deny("requested access to the resource is denied")
                .code(rule.code())
                .cache(cache);
        }
        if asked.is_empty() && matches!(operation, Operation::Ping | Operation::Token) {
            // Nothing is asked but to be known.
            return if !is_anonymous(principal) || rules.iter().any(|rule| !rule.deny) {
                Decision::allow(
                    Vec::new(),
                    Reason::new("known", "nothing but an identity is asked"),
                )
                .cache(cache)
            } else {
                Decision::abstain()
            };
        }
        let granted: Vec<Scope> = asked
            .iter()
            .filter_map(|scope| granted(&rules, scope))
            .collect();
        let Some(first) = granted.first().and_then(|scope| {
            rules
                .iter()
                .find(|rule| !rule.deny && rule.gives_any(scope))
        }) else {
            return Decision::abstain();
        };
        let text = format!("rule {} allows it", first.code());
        Decision::allow(granted, Reason::new(first.code(), text)).cache(cache)
    }
}

impl Rule {
    fn check(&self, pointer: &str, issues: &mut Issues) {
        if self.who.is_empty() {
            issues.fatal(format!("{pointer}/who"), "names nobody");
        }
        if self.may.is_empty() {
            issues.fatal(format!("{pointer}/may"), "names no action");
        }
        for (index, action) in self.may.iter().enumerate() {
            if WORDS.contains(&action.as_str()) {
                continue;
            }
            let hint = match nearest(action, &WORDS) {
                Some(word) => format!("did you mean {word}?"),
                None => format!("there are {}", WORDS.join(", ")),
            };
            issues.fatal(
                format!("{pointer}/may/{index}"),
                format!("unknown action {action}; {hint}"),
            );
        }
        if self.what.is_empty()
            && self
                .may
                .iter()
                .any(|action| action != CATALOG && action != ADMIN)
        {
            issues.fatal(
                format!("{pointer}/what"),
                "names no repository; \"**\" means every repository",
            );
        }
    }

    fn code(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Whether the rule is about this principal. No pattern but `anonymous` itself takes in somebody without a credential.
    fn names(&self, principal: &Principal) -> bool {
        self.who.iter().any(|who| {
            if is_anonymous(principal) {
                return who.as_str() == "anonymous";
            }
            match who.as_str() {
                "*" | "authenticated" => true,
                pattern if pattern.starts_with(GROUP) => principal
                    .groups
                    .iter()
                    .any(|group| who.matches(&format!("{GROUP}{group}"))),
                _ => who.matches(&principal.id),
            }
        })
    }

    fn is_about(&self, scope: &Scope) -> bool {
        match scope.kind.as_str() {
            "repository" => any_matches(&self.what, &scope.name),
            // The list of all names: `*` on a part of the names does not open it.
            "registry" if scope.name == CATALOG => {
                self.may.iter().any(|action| action == CATALOG)
                    || (self.has(EVERY) && self.what.iter().any(|what| what.as_str() == "**"))
            }
            // Whoever may do everything to repositories may not change who may do what; `*` takes it away all the same.
            "registry" if scope.name == ADMIN => {
                self.has(ADMIN)
                    || (self.deny
                        && self.has(EVERY)
                        && self.what.iter().any(|what| what.as_str() == "**"))
            }
            _ => false,
        }
    }

    fn has(&self, action: &str) -> bool {
        self.may.iter().any(|may| may == action)
    }

    fn gives(&self, scope: &Scope, action: &str) -> bool {
        self.is_about(scope) && (scope.kind == "registry" || self.has(EVERY) || self.has(action))
    }

    fn gives_any(&self, scope: &Scope) -> bool {
        scope.actions.iter().any(|action| self.gives(scope, action))
    }

    /// Whether a deny rule takes something away from `action`.
    fn takes(&self, scope: &Scope, action: &str) -> bool {
        self.gives(scope, action)
            || (action == EVERY && ACTIONS.iter().any(|action| self.gives(scope, action)))
    }
}

fn is_anonymous(principal: &Principal) -> bool {
    principal.kind == "anonymous" || principal.id == "anonymous"
}

/// The first deny rule that takes away something of `scope`.
fn denier<'a>(rules: &[&'a Rule], scope: &Scope) -> Option<&'a Rule> {
    rules
        .iter()
        .copied()
        .find(|rule| rule.deny && scope.actions.iter().any(|action| rule.takes(scope, action)))
}

/// What of `scope` the rules together allow and none denies.
fn granted(rules: &[&Rule], scope: &Scope) -> Option<Scope> {
    let is_open = |action: &str| {
        rules
            .iter()
            .any(|rule| !rule.deny && rule.gives(scope, action))
            && !rules
                .iter()
                .any(|rule| rule.deny && rule.takes(scope, action))
    };
    let mut actions: Vec<String> = Vec::new();
    for action in &scope.actions {
        if is_open(action) {
            actions.push(action.clone());
        } else if action == EVERY {
            let parts = ACTIONS.iter().filter(|action| is_open(action));
            actions.extend(parts.map(|action| (*action).to_owned()));
        }
    }
    (!actions.is_empty()).then(|| Scope {
        kind: scope.kind.clone(),
        name: scope.name.clone(),
        actions,
    })
}

const GROUP: &str = "group:";
const EVERY: &str = "*";
const CATALOG: &str = "catalog";
const ADMIN: &str = "admin";
/// What can be done to a repository.
const ACTIONS: [&str; 3] = ["pull", "push", "delete"];
/// What `may` can hold.
const WORDS: [&str; 6] = ["pull", "push", "delete", CATALOG, ADMIN, EVERY];

#[cfg(test)]
mod tests;
