//! Hook `authorize`: what may a principal do?

#[doc(inline)]
pub use crate::bindings::authorizer::exports::gantry::plugin::authorizer::{
    AuthzRequest, Decision, Grant,
};
use crate::{
    plugin::{Answer, Plugin},
    types::{CacheHint, Denial, DenialCode, Reason, Scope},
};

/// A plugin that takes part in authorization.
pub trait Authorizer: Plugin {
    /// Decides what a principal may do.
    ///
    /// # Errors
    /// The plugin cannot decide; the request is denied with 503.
    fn authorize(&self, request: &AuthzRequest) -> Answer<Decision>;
}

impl Decision {
    /// Allows these scopes. The host cuts them to what was asked.
    #[must_use]
    pub fn allow(granted: Vec<Scope>, reason: Reason) -> Self {
        Self::Allow(Grant {
            granted,
            reason,
            cache: CacheHint::none(),
            obligations: Vec::new(),
        })
    }

    /// Refuses, whatever other plugins allow; `message` is shown to the client.
    pub fn deny(message: impl Into<String>) -> Self {
        Self::Deny((Denial::new(DenialCode::Denied, message), CacheHint::none()))
    }

    /// No opinion. When every plugin abstains the request is denied.
    #[must_use]
    pub fn abstain() -> Self {
        Self::Abstain(None)
    }

    /// Names the rule that decided.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        match &mut self {
            Self::Allow(grant) => grant.reason.code = code.into(),
            Self::Deny((denial, _)) => denial.reason.code = code.into(),
            Self::Abstain(Some(reason)) => reason.code = code.into(),
            Self::Abstain(None) => {}
        }
        self
    }

    /// Lets the decision be reused.
    #[must_use]
    pub fn cache(mut self, hint: CacheHint) -> Self {
        match &mut self {
            Self::Allow(grant) => grant.cache = hint,
            Self::Deny((_, cache)) => *cache = hint,
            Self::Abstain(_) => {}
        }
        self
    }
}
