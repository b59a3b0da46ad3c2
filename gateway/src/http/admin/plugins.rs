//! `GET /admin/v1/plugins`: every plugin that runs, and how the newest reload went.

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{Answered, Call, Route};
use crate::{
    config::{Mode, PluginFrom},
    policy::binding::{Binding, LastError},
    reload::{Attempt, Status},
};

pub(super) const ROUTES: &[Route] = &[Route {
    method: Method::GET,
    path: "/admin/v1/plugins",
    run: list,
}];

fn list(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let status = call.reloader.status();
        let bindings = &call.generation.bindings;
        let document = json!({
            "generation": call.generation.number,
            "last_reload": status.last.as_ref().map(attempt),
            "plugins": bindings.iter().map(|binding| plugin(binding, &status)).collect::<Vec<_>>(),
        });
        Ok((StatusCode::OK, document))
    })
}

fn attempt(attempt: &Attempt) -> Value {
    json!({
        "at": rfc3339(attempt.at_ms),
        "trigger": attempt.trigger.as_str(),
        "taken": attempt.refused.is_none(),
        "problems": attempt.refused.as_ref().map_or(&[][..], |refused| &refused.problems),
    })
}

/// `active`; `kept` when the newest reload refused what the files hold now; `rolled-back` when what they hold kept failing.
fn plugin(binding: &Binding, status: &Status) -> Value {
    let kept = status.kept.get(binding.name());
    let rolled_back = status.rolled_back.get(binding.name());
    let state = match (rolled_back, kept) {
        (Some(_), _) => "rolled-back",
        (None, Some(_)) => "kept",
        (None, None) => "active",
    };
    let last_error = [
        kept.cloned(),
        rolled_back.cloned(),
        binding.health.last_error(),
    ]
    .into_iter()
    .flatten()
    .max_by_key(|error| error.at_ms);
    let stats = binding.plugin.stats();
    let failed: Map<String, Value> = stats
        .failed_counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(failure, count)| (failure.as_str().to_owned(), json!(count)))
        .collect();
    json!({
        "name": &**binding.name(),
        "from": from(&binding.from),
        "digest": binding.plugin.digest().as_str(),
        "generation": binding.generation,
        "state": state,
        "mode": mode(binding.mode),
        "hooks": binding.plugin.hooks().0.iter().map(|hook| format!("{hook:?}").to_lowercase()).collect::<Vec<_>>(),
        "answered": stats.answered_count,
        "failed": failed,
        "last_error": last_error.as_ref().map(error),
    })
}

fn error(error: &LastError) -> Value {
    json!({ "at": rfc3339(error.at_ms), "text": error.text })
}

fn from(from: &PluginFrom) -> String {
    match from {
        PluginFrom::Builtin(name) => format!("builtin:{name}"),
        PluginFrom::File(path) => path.display().to_string(),
    }
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
        Mode::Shadow => "shadow",
    }
}

pub(super) fn rfc3339(at_ms: u64) -> Option<String> {
    let at = jiff::Timestamp::from_millisecond(i64::try_from(at_ms).ok()?).ok()?;
    Some(at.to_string())
}
