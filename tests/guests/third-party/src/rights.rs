//! Who may do what.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    bindings::{
        exports::gantry::plugin::{
            authorizer::{AuthzRequest, Decision, Grant},
            lifecycle::ConfigIssue,
        },
        gantry::plugin::types::{Denial, DenialCode, Operation, Principal, Reason, Scope},
    },
    cache, issue,
    pattern::{is_pattern, matches},
    texts,
};

/// Finds rules that mean nothing.
pub(crate) fn check(config: &Value, issues: &mut Vec<ConfigIssue>) {
    for (index, rule) in rules(config).iter().enumerate() {
        let mut refuse = |key: &str, message: &str| {
            issues.push(issue(
                &format!("/rules/{index}/{key}"),
                message.to_owned(),
                true,
            ));
        };
        for (place, action) in texts(rule, "may").iter().enumerate() {
            if !["pull", "push", "delete", "catalog", "*"].contains(action) {
                refuse(&format!("may/{place}"), &format!("unknown action {action}"));
            }
        }
        for key in ["who", "may"] {
            if texts(rule, key).is_empty() {
                refuse(key, "is empty");
            }
        }
        let only_catalog = texts(rule, "may").iter().all(|action| *action == "catalog");
        if texts(rule, "what").is_empty() && !only_catalog {
            refuse("what", "names no repository");
        }
        for key in ["who", "what"] {
            let list = texts(rule, key);
            for (place, _) in list
                .iter()
                .enumerate()
                .filter(|(_, text)| !is_pattern(text))
            {
                refuse(&format!("{key}/{place}"), "is not a glob");
            }
        }
    }
}

/// Adds up what the rules allow, and takes away what they deny.
pub(crate) fn authorize(config: &Value, request: &AuthzRequest) -> Decision {
    let (mut allowing, mut denying) = (Vec::new(), Vec::new());
    for (index, rule) in rules(config).iter().enumerate() {
        if is_named(rule, &request.principal) {
            let is_deny = rule.get("deny").and_then(Value::as_bool) == Some(true);
            let list = if is_deny { &mut denying } else { &mut allowing };
            list.push((index, rule));
        }
    }
    let is_token = matches!(request.operation, Operation::Token);
    let is_question = is_token || matches!(request.operation, Operation::Ping);
    if request.scopes.is_empty() && is_question && config.get("rules").is_some() {
        let is_known = !is_anonymous(&request.principal) || !allowing.is_empty();
        return if is_known {
            allow(Vec::new(), "known")
        } else {
            Decision::Abstain(None)
        };
    }
    let mut granted = Vec::new();
    let mut code = None;
    for scope in &request.scopes {
        let taken = covered(&denying, scope);
        if let (false, Some((rule, _))) = (is_token, taken.first()) {
            return deny(&name(config, *rule));
        }
        let given = covered(&allowing, scope);
        let left = subtract(scope, &given, &taken);
        if left.is_empty() {
            continue;
        }
        code = code.or_else(|| given.first().map(|(rule, _)| name(config, *rule)));
        granted.push(Scope {
            kind: scope.kind.clone(),
            name: scope.name.clone(),
            actions: left.into_iter().collect(),
        });
    }
    match code {
        Some(code) => allow(granted, &code),
        None => Decision::Abstain(None),
    }
}

/// The asked actions that rules cover, each with its rule. An asked `*` is every action a rule spells out.
fn covered(rules: &[(usize, &Value)], scope: &Scope) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, rule) in rules {
        let (may, what) = (texts(rule, "may"), texts(rule, "what"));
        let is_all = may.contains(&"*");
        if scope.kind == "registry" && scope.name == "catalog" {
            if may.contains(&"catalog") || (is_all && what.contains(&"**")) {
                found.push((*index, "*".to_owned()));
            }
            continue;
        }
        if scope.kind != "repository" || !what.iter().any(|glob| matches(glob, &scope.name)) {
            continue;
        }
        for asked in &scope.actions {
            let spelled = ["pull", "push", "delete"]
                .into_iter()
                .filter(|word| asked == "*" && may.contains(word));
            found.extend(spelled.map(|word| (*index, word.to_owned())));
            if is_all || may.contains(&asked.as_str()) {
                found.push((*index, asked.clone()));
            }
        }
    }
    found
}

fn subtract(
    scope: &Scope,
    given: &[(usize, String)],
    taken: &[(usize, String)],
) -> BTreeSet<String> {
    let names = |list: &[(usize, String)]| -> BTreeSet<String> {
        list.iter().map(|(_, action)| action.clone()).collect()
    };
    let (mut given, taken) = (names(given), names(taken));
    if taken.contains("*") {
        return BTreeSet::new();
    }
    if given.contains("*") && scope.kind == "repository" && !taken.is_empty() {
        given = ["pull", "push", "delete"].map(str::to_owned).into();
    }
    &given - &taken
}

fn is_named(rule: &Value, principal: &Principal) -> bool {
    let is_nobody = is_anonymous(principal);
    texts(rule, "who").into_iter().any(|who| match who {
        "anonymous" => is_nobody || principal.id == who,
        _ if is_nobody => false,
        "*" | "authenticated" => true,
        _ => match who.strip_prefix("group:") {
            Some(group) => principal.groups.iter().any(|name| matches(group, name)),
            None => matches(who, &principal.id),
        },
    })
}

fn is_anonymous(principal: &Principal) -> bool {
    principal.kind == "anonymous" || principal.id == "anonymous"
}

fn name(config: &Value, index: usize) -> String {
    let named = rules(config)
        .get(index)
        .and_then(|rule| rule.get("name"))
        .and_then(Value::as_str);
    named.map_or_else(|| format!("rules/{index}"), str::to_owned)
}

fn rules(config: &Value) -> &[Value] {
    config
        .get("rules")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn allow(granted: Vec<Scope>, code: &str) -> Decision {
    Decision::Allow(Grant {
        granted,
        reason: Reason {
            code: code.to_owned(),
            text: format!("rule {code} allows it"),
        },
        cache: cache(60_000),
        obligations: Vec::new(),
    })
}

fn deny(code: &str) -> Decision {
    let denial = Denial {
        code: DenialCode::Denied,
        reason: Reason {
            code: code.to_owned(),
            text: format!("rule {code} denies it"),
        },
        message: "requested access to the resource is denied".to_owned(),
        detail: None,
        retry_after_ms: None,
        docs_url: None,
    };
    Decision::Deny((denial, cache(60_000)))
}
