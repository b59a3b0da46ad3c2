//! Decisions that do not count: what plugins in audit and shadow mode said, beside what was enforced.
//!
//! Owns what "differs" means. An audited plugin stands in the chain, so it differs when enforcing it too would have changed the outcome.
//! A shadow stands for what could take the chain's place, so it differs when it alone would have decided otherwise.

use std::sync::Arc;

use gantry_model::{AdmissionRequest, Admitted, Decision, Refusal, Requester, Scope};
use gantry_plugin_host::{AdmitAnswer, AuthorizeAnswer, CallError};

use super::binding::Binding;
use crate::config::Mode;

/// One decision that does not count.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Unenforced<'a> {
    plugin: &'a str,
    mode: &'static str,
    decision: &'static str,
    enforced: &'static str,
    differs: bool,
    reason_code: &'a str,
    reason_text: &'a str,
}

impl<'a> Unenforced<'a> {
    pub(crate) fn authorizer(
        binding: &'a Binding,
        answer: &'a Result<Arc<AuthorizeAnswer>, CallError>,
        enforced: &Result<Decision, CallError>,
    ) -> Self {
        let (decision, reason_code, reason_text) = match answer.as_deref() {
            Ok(AuthorizeAnswer::Allow(grant, _)) => {
                ("allow", &*grant.reason.code, &*grant.reason.text)
            }
            Ok(AuthorizeAnswer::Deny(denial, _)) => {
                ("deny", &*denial.reason.code, &*denial.reason.text)
            }
            Ok(AuthorizeAnswer::Abstain(_)) => ("abstain", "", ""),
            Err(error) => failed(error),
        };
        let narrower = narrower(answer, enforced);
        let enforced = of_authorizers(enforced);
        let differs = match binding.mode {
            Mode::Shadow => (decision == "allow") != (enforced == "allow") || narrower,
            Mode::Audit | Mode::Enforce => match decision {
                "deny" | "fail" => !matches!(enforced, "deny" | "fail"),
                "allow" => enforced == "abstain",
                _ => false,
            },
        };
        Self {
            plugin: binding.name(),
            mode: mode(binding),
            decision,
            enforced,
            differs,
            reason_code,
            reason_text,
        }
    }

    pub(crate) fn admission(
        binding: &'a Binding,
        answer: &'a Result<Arc<AdmitAnswer>, CallError>,
        enforced: &'static str,
    ) -> Self {
        let (decision, reason_code, reason_text) = match answer.as_deref() {
            Ok(AdmitAnswer::Accept { .. }) => ("allow", "", ""),
            Ok(AdmitAnswer::Abstain) => ("abstain", "", ""),
            Ok(AdmitAnswer::Reject(denial)) => ("deny", &*denial.reason.code, &*denial.reason.text),
            Ok(AdmitAnswer::Hold { reason, .. }) => ("hold", "", reason.as_str()),
            Err(error) => failed(error),
        };
        let refuses = matches!(decision, "deny" | "hold" | "fail");
        let refused = enforced != "allow";
        let differs = match binding.mode {
            Mode::Shadow => refuses != refused,
            Mode::Audit | Mode::Enforce => refuses && !refused,
        };
        Self {
            plugin: binding.name(),
            mode: mode(binding),
            decision,
            enforced,
            differs,
            reason_code,
            reason_text,
        }
    }

    /// Writes the audit line.
    pub(crate) fn record(&self, requester: &Requester) {
        tracing::info!(
            target: "audit",
            { request.id = &*requester.request_id,
            principal.subject = requester.principal.id.as_str(),
            plugin.name = self.plugin,
            mode = self.mode,
            enforced = false,
            decision = self.decision,
            enforced_decision = self.enforced,
            differs = self.differs,
            reason.code = self.reason_code,
            reason.text = self.reason_text },
            "authorization not enforced"
        );
    }

    /// Writes the audit line of an admission.
    pub(crate) fn record_admission(&self, request: &AdmissionRequest) {
        tracing::info!(
            target: "audit",
            { request.id = &*request.requester.request_id,
            principal.subject = request.requester.principal.id.as_str(),
            repository.name = request.repository.name.as_str(),
            change = request.change.as_str(),
            tag = request.tag.as_ref().map(gantry_model::Tag::as_str),
            manifest.digest = request.target.as_ref().map(|target| target.digest.as_str()),
            plugin.name = self.plugin,
            mode = self.mode,
            enforced = false,
            decision = self.decision,
            enforced_decision = self.enforced,
            differs = self.differs,
            reason.code = self.reason_code,
            reason.text = self.reason_text },
            "admission not enforced"
        );
    }
}

fn mode(binding: &Binding) -> &'static str {
    match binding.mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
        Mode::Shadow => "shadow",
    }
}

fn failed(error: &CallError) -> (&'static str, &str, &str) {
    ("fail", error.failure.as_str(), &error.detail)
}

/// Whether both allow, but the plugin less than the chain.
fn narrower(
    answer: &Result<Arc<AuthorizeAnswer>, CallError>,
    enforced: &Result<Decision, CallError>,
) -> bool {
    match (answer.as_deref(), enforced) {
        (Ok(AuthorizeAnswer::Allow(own, _)), Ok(Decision::Allow(chain))) => {
            !Scope::all_covered(&chain.granted, &own.granted)
        }
        _ => false,
    }
}

fn of_authorizers(enforced: &Result<Decision, CallError>) -> &'static str {
    match enforced {
        Ok(Decision::Allow(_)) => "allow",
        Ok(Decision::Deny(_)) => "deny",
        Ok(Decision::Abstain) => "abstain",
        Err(_) => "fail",
    }
}

/// The enforced outcome of an admission, in one word.
pub(crate) fn of_admission(enforced: &Result<Admitted, Refusal>) -> &'static str {
    match enforced {
        Ok(_) => "allow",
        Err(Refusal::Denied(_)) => "deny",
        Err(Refusal::Held { .. }) => "hold",
        Err(Refusal::Failed { .. }) => "fail",
    }
}
