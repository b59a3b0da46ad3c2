//! Which tags stay where they are.

use serde_json::Value;

use crate::{
    bindings::{
        exports::gantry::plugin::{
            admission::{Accepted, AdmissionRequest, Change, Decision},
            lifecycle::ConfigIssue,
        },
        gantry::plugin::types::{Denial, DenialCode, Reason},
    },
    cache, issue,
    pattern::{is_pattern, matches},
    texts,
};

/// Finds patterns that are none and an unknown mode.
pub(crate) fn check(config: &Value, issues: &mut Vec<ConfigIssue>) {
    for key in ["immutable", "except"] {
        for (place, text) in texts(config, key).iter().enumerate() {
            if !is_pattern(text) {
                issues.push(issue(
                    &format!("/{key}/{place}"),
                    "is not a glob".to_owned(),
                    true,
                ));
            }
        }
    }
    let mode = config.get("mode").and_then(Value::as_str);
    if !matches!(mode, None | Some("enforce" | "audit")) {
        issues.push(issue("/mode", "is enforce or audit".to_owned(), true));
    }
}

/// Refuses to move or delete an immutable tag.
pub(crate) fn admit(config: &Value, request: &AdmissionRequest) -> Decision {
    if config.get("users").is_some() || config.get("rules").is_some() {
        return Decision::Abstain;
    }
    let Some(tag) = &request.tag else {
        return match request.change {
            Change::DeleteManifest => accept(Vec::new()),
            _ => Decision::Abstain,
        };
    };
    let changes = [
        Change::CreateTag,
        Change::MoveTag,
        Change::DeleteTag,
        Change::DeleteManifest,
    ];
    let is_marked = request
        .previous
        .as_ref()
        .is_some_and(|previous| previous.immutable);
    if !changes.contains(&request.change) || !(is_marked || is_immutable(config, tag)) {
        return Decision::Abstain;
    }
    let stays = match (request.change, &request.previous) {
        (Change::CreateTag, _) | (Change::MoveTag, None) => true,
        (Change::MoveTag, Some(previous)) => previous.digest == request.target.digest,
        _ => false,
    };
    if stays {
        accept(Vec::new())
    } else {
        refuse(config, tag, request)
    }
}

fn is_immutable(config: &Value, tag: &str) -> bool {
    let is_listed = match config.get("immutable") {
        None => true,
        Some(_) => texts(config, "immutable")
            .iter()
            .any(|glob| matches(glob, tag)),
    };
    let exempts = config.get("exempt_signatures").and_then(Value::as_bool) != Some(false);
    let is_except = texts(config, "except")
        .iter()
        .any(|glob| matches(glob, tag));
    is_listed && !is_except && !(exempts && is_signature(tag))
}

fn is_signature(tag: &str) -> bool {
    let name = tag.split_once('.').map_or(tag, |(name, suffix)| {
        if ["sig", "att", "sbom"].contains(&suffix) {
            name
        } else {
            ""
        }
    });
    let length = match name.get(..7) {
        Some("sha256-") => 64,
        Some("sha512-") => 128,
        _ => return false,
    };
    let hex = name.get(7..).unwrap_or_default();
    hex.len() == length
        && hex
            .chars()
            .all(|letter| "0123456789abcdef".contains(letter))
}

fn refuse(config: &Value, tag: &str, request: &AdmissionRequest) -> Decision {
    let named = request
        .previous
        .as_ref()
        .map_or(&request.target.digest, |previous| &previous.digest);
    let message = config
        .get("message")
        .and_then(Value::as_str)
        .unwrap_or("{{tag}} is immutable and names {{digest}}; push another tag")
        .replace("{{tag}}", tag)
        .replace("{{repository}}", &request.repository)
        .replace("{{digest}}", named);
    if config.get("mode").and_then(Value::as_str) == Some("audit") {
        return accept(vec![message]);
    }
    Decision::Reject(Denial {
        code: DenialCode::Denied,
        reason: Reason {
            code: "immutable-tags".to_owned(),
            text: message.clone(),
        },
        message,
        detail: None,
        retry_after_ms: None,
        docs_url: None,
    })
}

fn accept(warnings: Vec<String>) -> Decision {
    Decision::Accept(Accepted {
        cache: cache(0),
        warnings,
        annotate: Vec::new(),
        set_immutable: false,
    })
}
