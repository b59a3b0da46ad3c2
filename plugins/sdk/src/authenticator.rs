//! Hook `authenticate`: who does a credential belong to?

#[doc(inline)]
pub use crate::bindings::authenticator::exports::gantry::plugin::authenticator::{
    AuthnRequest, Credential, Identity, Outcome,
};
use crate::{
    plugin::{Answer, Plugin},
    types::{CacheHint, Denial, DenialCode, Principal},
};

/// A plugin that takes part in authentication.
pub trait Authenticator: Plugin {
    /// Finds out who a credential belongs to. Never log the credential.
    ///
    /// # Errors
    /// The plugin cannot tell; the request fails with 503.
    fn authenticate(&self, request: &AuthnRequest) -> Answer<Outcome>;
}

/// An authenticator that can tell what became of the principals it made: `export!(MyPlugin: authenticator, principals);`.
pub trait Principals: Authenticator {
    /// The generation that a principal has now; `None` when there is no such principal any more, or it is disabled.
    ///
    /// # Errors
    /// The plugin cannot tell; requests of the principal fail with 503, and nothing of it is revoked.
    fn current(&self, id: &str) -> Answer<Option<String>>;
}

impl Outcome {
    /// The credential is good, and need not be checked again as long as `cache` says.
    #[must_use]
    pub fn authenticated(principal: Principal, cache: CacheHint) -> Self {
        Self::Authenticated(Identity {
            principal,
            generation: String::new(),
            at_most: None,
            cache,
        })
    }

    /// Names the generation of the principal that was authenticated. Nothing else has one.
    #[must_use]
    pub fn generation(mut self, generation: impl Into<String>) -> Self {
        if let Self::Authenticated(identity) = &mut self {
            identity.generation = generation.into();
        }
        self
    }

    /// Not this plugin's credential: the next is asked.
    #[must_use]
    pub fn not_mine() -> Self {
        Self::NotMine
    }

    /// This plugin's credential, and bad; `message` is shown to the client.
    pub fn rejected(message: impl Into<String>) -> Self {
        Self::Rejected(Denial::new(DenialCode::Unauthorized, message))
    }

    /// Names the rule that rejected. Nothing else has a code.
    #[must_use]
    pub fn code(self, code: impl Into<String>) -> Self {
        match self {
            Self::Rejected(denial) => Self::Rejected(denial.code(code)),
            Self::Authenticated(_) | Self::NotMine => self,
        }
    }
}
