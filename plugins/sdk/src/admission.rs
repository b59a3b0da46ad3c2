//! Hook `admit`: may content enter, change or leave?

#[doc(inline)]
pub use crate::bindings::admission::exports::gantry::plugin::admission::{
    Accepted, AdmissionRequest, Change, Decision, Held,
};
use crate::{
    plugin::{Answer, Plugin},
    types::{CacheHint, Denial, DenialCode},
};

/// A plugin that takes part in admission.
pub trait Admission: Plugin {
    /// Decides whether something may happen.
    ///
    /// # Errors
    /// The plugin cannot decide; the binding's `on_error` says what follows.
    fn admit(&self, request: &AdmissionRequest) -> Answer<Decision>;
}

impl Decision {
    /// It may happen.
    #[must_use]
    pub fn accept() -> Self {
        Self::Accept(Accepted {
            cache: CacheHint::none(),
            warnings: Vec::new(),
            annotate: Vec::new(),
            set_immutable: false,
        })
    }

    /// It may not happen; `message` is shown to the client.
    pub fn reject(message: impl Into<String>) -> Self {
        Self::Reject(Denial::new(DenialCode::Denied, message))
    }

    /// No opinion.
    #[must_use]
    pub fn abstain() -> Self {
        Self::Abstain
    }

    /// Names the rule that rejected. Nothing else has a code.
    #[must_use]
    pub fn code(self, code: impl Into<String>) -> Self {
        match self {
            Self::Reject(denial) => Self::Reject(denial.code(code)),
            Self::Accept(_) | Self::Hold(_) | Self::Abstain => self,
        }
    }

    /// Tells the client something along with an acceptance.
    #[must_use]
    pub fn warn(self, warning: impl Into<String>) -> Self {
        self.accepting(|accepted| accepted.warnings.push(warning.into()))
    }

    /// Lets an acceptance be reused. Heeded for serves only.
    #[must_use]
    pub fn cache(self, cache: CacheHint) -> Self {
        self.accepting(|accepted| accepted.cache = cache)
    }

    fn accepting(mut self, change: impl FnOnce(&mut Accepted)) -> Self {
        if let Self::Accept(accepted) = &mut self {
            change(accepted);
        }
        self
    }
}
