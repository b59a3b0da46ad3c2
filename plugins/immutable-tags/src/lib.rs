//! Decides whether a tag may be pointed elsewhere or deleted: a tag that matches `immutable` may not, once it exists.
//!
//! | key | what it is |
//! |---|---|
//! | `immutable` | globs on tags; `["*"]` |
//! | `except` | globs on tags that may move all the same |
//! | `exempt_signatures` | cosign's and the referrers' `sha256-…` tags may move; `true` |
//! | `mode` | `enforce`, or `audit`: let it happen and warn |
//! | `message` | told to the client; `{{tag}}`, `{{repository}}`, `{{digest}}` |
//!
//! A push of what the tag names already is accepted. What is no move or deletion of a tag it leaves to others.

use gantry_plugin::{
    Admission, Answer, Issues, Plugin,
    admission::{AdmissionRequest, Change, Decision},
    glob::{Glob, any_matches},
    log,
    types::TagState,
};
use serde::Deserialize;

/// The plugin, which is its configuration.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub struct ImmutableTags {
    immutable: Vec<Glob>,
    except: Vec<Glob>,
    exempt_signatures: bool,
    mode: Mode,
    message: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Enforce,
    Audit,
}

impl Default for ImmutableTags {
    fn default() -> Self {
        Self {
            immutable: Glob::parse("*").into_iter().collect(),
            except: Vec::new(),
            exempt_signatures: true,
            mode: Mode::Enforce,
            message: "{{tag}} is immutable and names {{digest}}; push another tag".to_owned(),
        }
    }
}

impl Plugin for ImmutableTags {
    type Config = Self;
    const CONFIG_SCHEMA: &'static str = include_str!("../config.schema.json");

    fn new(config: Self, issues: &mut Issues) -> Self {
        let rest = PLACEHOLDERS
            .iter()
            .fold(config.message.clone(), |text, word| text.replace(word, ""));
        if rest.contains("{{") {
            let known = PLACEHOLDERS.join(", ");
            issues.warning(
                "/message",
                format!("holds a placeholder that is none of {known}"),
            );
        }
        config
    }
}

impl Admission for ImmutableTags {
    fn admit(&self, request: &AdmissionRequest) -> Answer<Decision> {
        let tag = request.tag.as_deref();
        Ok(match (request.change, tag) {
            (Change::CreateTag, Some(tag)) if self.holds(tag, None) => Decision::accept(),
            (Change::MoveTag, Some(tag)) => self.decide_move(tag, request),
            (Change::DeleteTag | Change::DeleteManifest, Some(tag)) => {
                self.decide_deletion(tag, request)
            }
            (Change::DeleteManifest, None) => Decision::accept(),
            _ => Decision::abstain(),
        })
    }
}

gantry_plugin::export!(ImmutableTags: admission);

impl ImmutableTags {
    fn decide_move(&self, tag: &str, request: &AdmissionRequest) -> Decision {
        let previous = request.previous.as_ref();
        if !self.holds(tag, previous) {
            return Decision::abstain();
        }
        match previous {
            // Under every name of the content: the same bytes by sha512 are no move.
            Some(previous)
                if previous.digest != request.target.digest
                    && !request.digests.contains(&previous.digest) =>
            {
                self.refuse(tag, request, &previous.digest)
            }
            // The same bytes again, or the tag is gone meanwhile.
            _ => Decision::accept(),
        }
    }

    fn decide_deletion(&self, tag: &str, request: &AdmissionRequest) -> Decision {
        let previous = request.previous.as_ref();
        if !self.holds(tag, previous) {
            return Decision::abstain();
        }
        let digest = previous.map_or(&request.target.digest, |previous| &previous.digest);
        self.refuse(tag, request, digest)
    }

    /// Whether the tag may not change: by its name, or because an admission marked it.
    fn holds(&self, tag: &str, previous: Option<&TagState>) -> bool {
        let by_name = any_matches(&self.immutable, tag)
            && !any_matches(&self.except, tag)
            && !(self.exempt_signatures && is_signature(tag));
        by_name || previous.is_some_and(|previous| previous.immutable)
    }

    fn refuse(&self, tag: &str, request: &AdmissionRequest, digest: &str) -> Decision {
        let message = self
            .message
            .replace("{{tag}}", tag)
            .replace("{{repository}}", &request.repository)
            .replace("{{digest}}", digest);
        match self.mode {
            Mode::Enforce => Decision::reject(message).code("immutable-tags"),
            Mode::Audit => {
                let fields = [("repository", request.repository.as_str()), ("tag", tag)];
                log::warn("an immutable tag changes; mode is audit", &fields);
                Decision::accept().warn(message)
            }
        }
    }
}

const PLACEHOLDERS: [&str; 3] = ["{{tag}}", "{{repository}}", "{{digest}}"];

/// `sha256-<hex>` with cosign's `.sig`, `.att` or `.sbom`, or bare, as the referrers tag schema of the distribution spec has it.
fn is_signature(tag: &str) -> bool {
    let bare = [".sig", ".att", ".sbom"]
        .iter()
        .find_map(|suffix| tag.strip_suffix(suffix))
        .unwrap_or(tag);
    let is_hex = |text: &str, length: usize| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    match bare.split_once('-') {
        Some(("sha256", hex)) => is_hex(hex, 64),
        Some(("sha512", hex)) => is_hex(hex, 128),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
