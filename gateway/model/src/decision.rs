//! Decisions and permits: why something is allowed or refused, and the proof without which the registry does nothing.
//!
//! Invariant: a [`Permit`] comes only from an [`Operation`] and a [`Grant`] that covers it, or names itself internal.

use std::{sync::Arc, time::Duration};

use crate::{
    event::Arrival,
    operation::Operation,
    principal::{Client, Principal},
    scope::Scope,
};

/// Why, for the audit log: a stable code (a rule's name) and a sentence. Cheap to clone: a kept answer gives its reason to every request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reason {
    /// Stable: a rule's name.
    pub code: Arc<str>,
    /// A sentence.
    pub text: Arc<str>,
}

impl Reason {
    /// Makes a reason.
    pub fn new(code: impl Into<Arc<str>>, text: impl Into<Arc<str>>) -> Self {
        Self {
            code: code.into(),
            text: text.into(),
        }
    }
}

/// What kind of refusal; the edge maps each to a status and an OCI error code.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DenialCode {
    /// Show (another) credential.
    Unauthorized,
    /// No credential will help.
    Denied,
    /// Later.
    TooManyRequests,
    /// The name is not acceptable.
    NameInvalid,
    /// The manifest is not acceptable.
    ManifestInvalid,
    /// Not offered here.
    Unsupported,
    /// Cannot be decided now.
    Unavailable,
}

/// A refusal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// What kind.
    pub code: DenialCode,
    /// Recorded, never shown.
    pub reason: Reason,
    /// Shown to the client; at most 512 bytes.
    pub message: String,
    /// JSON text for the error's `detail`.
    pub detail: Option<String>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// The plugin that refused, when one did.
    pub plugin: Option<Arc<str>>,
}

impl Denial {
    /// A refusal by the gateway itself.
    pub fn new(code: DenialCode, reason_code: &str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            code,
            reason: Reason::new(reason_code, message.as_str()),
            message,
            detail: None,
            retry_after: None,
            plugin: None,
        }
    }
}

/// What an authorizer grants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Grant {
    /// The scopes granted, never wider than asked.
    pub granted: Vec<Scope>,
    /// Why.
    pub reason: Reason,
    /// The plugin that granted, when one did.
    pub plugin: Option<Arc<str>>,
}

/// The answer of a chain of authorizers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Allowed, as far as the grant goes.
    Allow(Grant),
    /// Refused.
    Deny(Denial),
    /// Nobody had an opinion, which is a refusal.
    Abstain,
}

/// What an upstream said of somebody who showed it a credential of its own. Its word is about its own mirror and nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Confirmed {
    /// The mirror whose upstream it is.
    pub mirror: Arc<str>,
    /// Canonical names of the repositories that may be pulled, as far as it was asked.
    pub repositories: Vec<String>,
}

/// Who asks, from where, under which request id.
#[derive(Clone, Debug)]
pub struct Requester {
    /// Ties log lines, audit lines and error bodies together.
    pub request_id: Arc<str>,
    /// The machine.
    pub client: Arc<Client>,
    /// The identity.
    pub principal: Arc<Principal>,
    /// How the request arrived; `None` for work that no request asked for.
    pub arrival: Option<Arc<Arrival>>,
    /// What an upstream confirmed, when it is one that vouches for the identity.
    pub confirmed: Option<Arc<Confirmed>>,
    /// The reason for the operation.
    pub cause: Cause,
}

/// The reason for an operation, which decides how many requests to upstreams it may cause.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Cause {
    /// A client's request; what it asks upstreams for in vain counts for its address.
    #[default]
    Request,
    /// An operator's list of images to pull into the cache, which has a limit of its own.
    CacheWarm,
}

/// Proof that an operation was allowed. Consumed by the registry's one entry.
#[derive(Debug)]
pub struct Permit {
    operation: Operation,
    requester: Requester,
    granted: Vec<Scope>,
    reason: Reason,
}

impl Permit {
    /// Makes a permit, when `grant` covers everything the operation requires.
    ///
    /// # Errors
    /// A [`Denial`] with [`DenialCode::Denied`] when the grant is too narrow.
    pub fn new(
        operation: Operation,
        requester: Requester,
        grant: Grant,
    ) -> Result<Self, Box<Denial>> {
        let required = operation.required_scopes();
        if !Scope::all_covered(&required, &grant.granted) {
            return Err(Box::new(Denial::new(
                DenialCode::Denied,
                "scope",
                "requested access to the resource is denied",
            )));
        }
        Ok(Self {
            operation,
            requester,
            granted: grant.granted,
            reason: grant.reason,
        })
    }

    /// A permit for work no client asked for; `reason` is counted by the audit log.
    #[must_use]
    pub fn internal(
        operation: Operation,
        request_id: Arc<str>,
        client: Arc<Client>,
        reason: &'static str,
    ) -> Self {
        let granted = operation.required_scopes();
        let requester = Requester {
            request_id,
            client,
            principal: Arc::new(Principal::system()),
            arrival: None,
            confirmed: None,
            cause: Cause::Request,
        };
        Self {
            operation,
            requester,
            granted,
            reason: Reason::new("internal", reason),
        }
    }

    /// What was allowed.
    #[must_use]
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// Who asked.
    #[must_use]
    pub fn requester(&self) -> &Requester {
        &self.requester
    }

    /// Why it was allowed.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// Whether an optional scope was granted too.
    #[must_use]
    pub fn allows(&self, scope: &Scope) -> bool {
        self.granted.iter().any(|granted| granted.covers(scope))
    }

    /// Takes the permit apart, for the registry that performs it.
    #[must_use]
    pub fn into_parts(self) -> (Operation, Requester, Vec<Scope>) {
        (self.operation, self.requester, self.granted)
    }
}
