//! Whose password it is.

use serde_json::Value;

use crate::{
    bindings::{
        exports::gantry::plugin::{
            authenticator::{Credential, Identity, Outcome},
            lifecycle::ConfigIssue,
        },
        gantry::plugin::{
            crypto::{PasswordResult, verify_password},
            types::{Denial, DenialCode, PluginError, Principal, Reason},
        },
    },
    cache, issue,
};

/// Finds lines that are no entries, by number.
pub(crate) fn check(config: &Value, issues: &mut Vec<ConfigIssue>) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, line) in users(config).lines().enumerate() {
        let line = line.trim();
        let problem = match line.split_once(':') {
            _ if line.is_empty() || line.starts_with('#') => None,
            None | Some(("", _)) => Some("is not name:hash"),
            Some((_, hash)) if !is_accepted(hash) => Some("only bcrypt and argon2 are accepted"),
            Some((name, _)) if seen.contains(&name) => Some("names a user again"),
            Some((name, _)) => {
                seen.push(name);
                None
            }
        };
        if let Some(problem) = problem {
            let number = index + 1;
            issues.push(issue("/users", format!("line {number}: {problem}"), false));
        }
    }
}

/// Answers for user names and passwords; the host does the hashing, also for users that do not exist.
pub(crate) fn authenticate(config: &Value, credential: Credential) -> Result<Outcome, PluginError> {
    let Credential::Basic((name, password)) = credential else {
        return Ok(Outcome::NotMine);
    };
    if config.get("users").is_none() {
        return Ok(Outcome::NotMine);
    }
    let stored = users(config)
        .lines()
        .filter_map(|line| line.trim().split_once(':'))
        .find(|(user, hash)| {
            *user == name && !user.is_empty() && !user.starts_with('#') && is_accepted(hash)
        })
        .map(|(_, hash)| hash);
    // bcrypt would look at the first 72 bytes only.
    let checked = stored.filter(|hash| !hash.starts_with("$2") || password.len() <= 72);
    let result = verify_password(checked, password.as_bytes());
    match (result, stored) {
        (PasswordResult::Throttled, _) => Err(PluginError::Upstream("busy".to_owned())),
        (PasswordResult::Match, Some(_)) if checked.is_some() => {
            Ok(Outcome::Authenticated(identity(config, &name)))
        }
        (_, Some(_)) => Ok(Outcome::Rejected(refusal())),
        (_, None) => Ok(Outcome::NotMine),
    }
}

fn identity(config: &Value, name: &str) -> Identity {
    let issuer = config.get("realm").and_then(Value::as_str);
    Identity {
        principal: Principal {
            id: format!("user:{name}"),
            kind: "user".to_owned(),
            issuer: issuer.unwrap_or("htpasswd").to_owned(),
            groups: Vec::new(),
            attributes: Vec::new(),
            expires_at: None,
        },
        generation: String::new(),
        at_most: None,
        cache: cache(60_000),
    }
}

fn refusal() -> Denial {
    let message = "invalid username or password".to_owned();
    Denial {
        code: DenialCode::Unauthorized,
        reason: Reason {
            code: "password".to_owned(),
            text: message.clone(),
        },
        message,
        detail: None,
        retry_after_ms: None,
        docs_url: None,
    }
}

fn users(config: &Value) -> &str {
    config
        .get("users")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn is_accepted(hash: &str) -> bool {
    let bcrypt = ["$2a$", "$2b$", "$2y$"]
        .iter()
        .any(|prefix| hash.starts_with(prefix) && hash.len() == 60);
    bcrypt || (hash.starts_with("$argon2") && hash.split('$').count() >= 5)
}
