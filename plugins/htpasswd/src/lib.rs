//! Decides whether a user name and a password belong together, by an htpasswd file with bcrypt or argon2 hashes.
//!
//! | key | what it is |
//! |---|---|
//! | `users` | the file's text: `{ file: ./htpasswd }` |
//! | `realm` | the principal's issuer; `htpasswd` |
//! | `prefix` | what ids begin with, before a colon and the name; `user` |
//!
//! A user it does not know is left to the next authenticator, after the same work as for one it knows. A token, or nothing, is not its
//! credential. When passwords cannot be checked now it fails, and the request with it.

use std::{collections::BTreeMap, time::Duration};

use gantry_plugin::{
    Answer, Authenticator, Issues, Plugin, Principals,
    authenticator::{AuthnRequest, Credential, Outcome},
    crypto::{PasswordResult, verify_password},
    types::{CacheHint, PluginError, Principal},
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// The plugin. No `Debug`: it holds the hashes.
struct Htpasswd {
    realm: String,
    /// `user:`.
    prefix: String,
    hashes: BTreeMap<String, String>,
}

/// The binding's `config`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Config {
    users: String,
    realm: Option<String>,
    prefix: Option<String>,
}

impl Plugin for Htpasswd {
    type Config = Config;
    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Config, issues: &mut Issues) -> Self {
        let prefix = config.prefix.unwrap_or_else(|| "user".to_owned());
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        if prefix.is_empty() || !prefix.chars().all(is_plain) {
            issues.fatal(
                "/prefix",
                "letters, digits, dashes, dots and underscores, at least one",
            );
        }
        Self {
            prefix: format!("{prefix}:"),
            realm: config.realm.unwrap_or_else(|| "htpasswd".to_owned()),
            hashes: read_users(&config.users, issues),
        }
    }
}

impl Authenticator for Htpasswd {
    fn authenticate(&self, request: &AuthnRequest) -> Answer<Outcome> {
        match &request.credential {
            Credential::Basic((user, password)) => self.check(user, password, |stored| {
                verify_password(stored, password.as_bytes())
            }),
            Credential::Bearer(_) | Credential::Anonymous => Ok(Outcome::not_mine()),
        }
    }
}

impl Principals for Htpasswd {
    /// A user of the file, with the password of its line.
    fn current(&self, id: &str) -> Answer<Option<String>> {
        let stored = id
            .strip_prefix(&self.prefix)
            .and_then(|user| self.hashes.get(user));
        Ok(stored.map(|hash| fingerprint(hash)))
    }
}

gantry_plugin::export!(Htpasswd: authenticator, principals);

/// What changes with the hash and tells nothing of it: 96 bits of SHA-256. The salt in a hash cannot be guessed.
fn fingerprint(hash: &str) -> String {
    let digest = Sha256::digest(hash.as_bytes());
    digest
        .iter()
        .take(12)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl Htpasswd {
    /// The decision. Calls `verify` exactly once, whoever the user is, so that the time does not tell.
    ///
    /// # Errors
    /// Passwords cannot be checked now.
    fn check(
        &self,
        user: &str,
        password: &str,
        verify: impl FnOnce(Option<&str>) -> PasswordResult,
    ) -> Answer<Outcome> {
        let known = self.hashes.get(user);
        let usable = known.filter(|hash| !is_bcrypt(hash) || password.len() <= MAX_BCRYPT_BYTES);
        match (verify(usable.map(String::as_str)), usable) {
            (PasswordResult::Throttled, _) => Err(PluginError::Upstream(
                "too many password checks wait already".to_owned(),
            )),
            (PasswordResult::Match, Some(hash)) => Ok(Outcome::authenticated(
                Principal::new(format!("{}{user}", self.prefix), "user", &self.realm),
                CacheHint::lasting(Duration::from_secs(60)),
            )
            .generation(fingerprint(hash))),
            _ if known.is_some() => {
                Ok(Outcome::rejected("invalid username or password").code("password"))
            }
            _ => Ok(Outcome::not_mine()),
        }
    }
}

/// bcrypt reads no further; a longer password would match by its beginning.
const MAX_BCRYPT_BYTES: usize = 72;

/// Reads `name:hash` lines. A line that is not one costs its user the access and nobody else; messages never hold a hash.
fn read_users(text: &str, issues: &mut Issues) -> BTreeMap<String, String> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let entry = line.split_once(':').filter(|(name, _)| !name.is_empty());
        let problem = match entry {
            None => "is not name:hash".to_owned(),
            Some((name, _)) if users.contains_key(name) => {
                format!("names the user {name} again; the first line counts")
            }
            Some((name, hash)) => match unusable(hash) {
                Some(problem) => format!("user {name} {problem}"),
                None => {
                    users.insert(name.to_owned(), hash.to_owned());
                    continue;
                }
            },
        };
        issues.warning("/users", format!("line {number}: {problem}"));
    }
    users
}

/// Why a hash cannot be used.
fn unusable(hash: &str) -> Option<String> {
    if is_bcrypt(hash) || is_argon2(hash) {
        return None;
    }
    let kind = [
        ("$2", "a damaged bcrypt hash"),
        ("$argon2", "a damaged argon2 hash"),
        ("$apr1$", "an MD5 hash"),
        ("$1$", "an MD5 hash"),
        ("{SHA}", "a SHA-1 hash"),
        ("$5$", "a SHA-256 crypt hash"),
        ("$6$", "a SHA-512 crypt hash"),
    ]
    .iter()
    .find(|(prefix, _)| hash.starts_with(prefix))
    .map_or("plain text or a crypt hash", |(_, kind)| kind);
    Some(format!(
        "has {kind}; only bcrypt and argon2 are accepted, `gantry htpasswd FILE USER` writes one"
    ))
}

/// `$2b$12$` and 53 letters of salt and hash.
fn is_bcrypt(hash: &str) -> bool {
    let Some(rest) = ["$2a$", "$2b$", "$2y$"]
        .iter()
        .find_map(|prefix| hash.strip_prefix(prefix))
    else {
        return false;
    };
    let Some((cost, digest)) = rest.split_once('$') else {
        return false;
    };
    cost.len() == 2
        && cost.parse().is_ok_and(|cost: u32| (4..=31).contains(&cost))
        && digest.len() == 53
        && digest
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/')
}

/// `$argon2id$v=19$m=…,t=…,p=…$salt$hash`; the version may be missing.
fn is_argon2(hash: &str) -> bool {
    let mut parts = hash.split('$');
    let known = parts.next() == Some("")
        && matches!(parts.next(), Some("argon2id" | "argon2i" | "argon2d"));
    let rest: Vec<&str> = parts.filter(|part| !part.starts_with("v=")).collect();
    let [parameters, salt, digest] = rest.as_slice() else {
        return false;
    };
    let is_base64 = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    };
    known && parameters.starts_with("m=") && is_base64(salt) && is_base64(digest)
}

#[cfg(test)]
mod tests;
