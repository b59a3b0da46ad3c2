//! Audit lines of single hooks: what each plugin answered, and each decision whose answer counts. What does not count is in `policy/unenforced.rs`.

use std::sync::Arc;

use gantry_model::{AdmissionRequest, Denial, Requester};
use gantry_plugin_host::{AdmitAnswer, CallError, Hook};

use super::plugins::hook_label;
use crate::policy::binding::Binding;

/// A plugin gave no answer. `enforced` says whether that refuses the request.
pub fn audit_failure(error: &CallError, hook: Hook, requester: Option<&Requester>, enforced: bool) {
    tracing::warn!(
        target: "audit",
        { request.id = requester.map(|requester| &*requester.request_id),
        principal.subject = requester.map(|requester| requester.principal.id.as_str()),
        plugin.name = &*error.plugin,
        hook = hook_label(hook),
        decision = "fail",
        failure = error.failure.as_str(),
        reason.text = error.detail.as_str(),
        enforced },
        "plugin failed"
    );
}

/// An authenticator rejected a credential.
pub fn audit_rejected(plugin: &Arc<str>, denial: &Denial) {
    tracing::info!(
        target: "audit",
        { plugin.name = &**plugin,
        decision = "deny",
        reason.code = &*denial.reason.code,
        reason.text = &*denial.reason.text },
        "credential rejected"
    );
}

/// An admission answered. Acceptances of serves are not worth a line each: the request's own line says that it was allowed.
pub fn audit_admission(binding: &Binding, request: &AdmissionRequest, answer: &AdmitAnswer) {
    let (decision, code, text) = match answer {
        AdmitAnswer::Abstain => return,
        AdmitAnswer::Accept { .. } if request.change.is_serve() => return,
        AdmitAnswer::Accept { .. } => ("allow", "", ""),
        AdmitAnswer::Reject(denial) => ("deny", &*denial.reason.code, &*denial.reason.text),
        AdmitAnswer::Hold { reason, .. } => ("hold", "", reason.as_str()),
    };
    tracing::info!(
        target: "audit",
        { request.id = &*request.requester.request_id,
        principal.subject = request.requester.principal.id.as_str(),
        repository.name = request.repository.name.as_str(),
        change = request.change.as_str(),
        tag = request.tag.as_ref().map(gantry_model::Tag::as_str),
        manifest.digest = request.target.as_ref().map(|target| target.digest.as_str()),
        plugin.name = &**binding.name(),
        mode = "enforce",
        decision,
        reason.code = code,
        reason.text = text },
        "admission"
    );
}
