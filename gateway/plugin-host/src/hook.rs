//! What the hooks are asked and what they answer, in the model's words.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use gantry_model::{
    AttributeValue, Client, Denial, Grant, OperationKind, Principal, Reason, Requester, Scope,
};

/// A place where a plugin may be called.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Hook {
    /// `authenticator`.
    Authenticate,
    /// `principals`: no hook by itself, it goes with `authenticator`.
    Principals,
    /// `authorizer`.
    Authorize,
    /// `admission`.
    Admit,
    /// `scanner`.
    Scan,
    /// `events`.
    Observe,
    /// `management`.
    Manage,
}

/// Which hooks a component exports.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hooks(pub std::collections::BTreeSet<Hook>);

impl Hooks {
    /// Whether the component takes part in `hook`.
    #[must_use]
    pub fn has(&self, hook: Hook) -> bool {
        self.0.contains(&hook)
    }
}

/// Proof of identity that a client showed. `Debug` never shows it.
#[derive(Clone, Eq, PartialEq)]
pub enum Credential {
    /// None was shown.
    Anonymous,
    /// A user name and a password, however they were sent.
    Basic(Basic),
    /// `Authorization: Bearer` with a token that is not ours.
    Bearer(String),
}

/// A user name and a password. There is one way to make it, so that no way in takes what another refuses.
#[derive(Clone, Eq, PartialEq)]
pub struct Basic {
    username: String,
    password: String,
}

/// The user name holds a colon, or one of the two holds a control character.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a user name holds no colon, and neither it nor a password holds control characters")]
pub struct MalformedBasic;

impl Basic {
    /// The user name.
    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }
}

impl Credential {
    /// A user name and a password. RFC 7617 has no colons in user names and no control characters in either: a name that one way in
    /// cuts and another does not would be two names.
    ///
    /// # Errors
    /// [`MalformedBasic`].
    pub fn basic(
        username: impl Into<String>,
        password: impl Into<String>,
    ) -> Result<Self, MalformedBasic> {
        let (username, password) = (username.into(), password.into());
        let is_malformed = username.contains(':')
            || [&username, &password]
                .iter()
                .any(|it| it.contains(char::is_control));
        match is_malformed {
            true => Err(MalformedBasic),
            false => Ok(Self::Basic(Basic { username, password })),
        }
    }
}

impl fmt::Debug for Basic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Basic(***)")
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic(_) => "Basic(***)",
            Self::Bearer(_) => "Bearer(***)",
        })
    }
}

/// What else an answer depends on, beyond what every cache key holds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Varies {
    /// The client's address.
    pub client_address: bool,
    /// The client's user agent.
    pub user_agent: bool,
    /// The time of day: never cached.
    pub time_of_day: bool,
}

/// How long an answer may be reused. The host clamps both times.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CacheHint {
    /// Zero: not at all.
    pub ttl: Duration,
    /// How long past that while the plugin fails, where the binding permits.
    pub stale_if_error: Duration,
    /// What else it depends on.
    pub varies: Varies,
}

/// A question to an authenticator.
#[derive(Clone, Debug)]
pub struct AuthenticateRequest {
    /// The machine.
    pub client: Arc<Client>,
    /// What it showed.
    pub credential: Credential,
    /// The service name of the token endpoint.
    pub service: String,
    /// What will be asked with it, as far as is known.
    pub scopes: Vec<Scope>,
}

/// Who a credential belongs to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The principal.
    pub principal: Principal,
    /// Which secret or life of the principal it was proved with; empty = the plugin does not tell.
    pub generation: Arc<str>,
    /// What the credential itself allows at most; `None` = no limit of its own.
    pub at_most: Option<Vec<Scope>>,
    /// How long it may be reused.
    pub cache: CacheHint,
}

/// An authenticator's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthenticateAnswer {
    /// The credential is good.
    Authenticated(Identity),
    /// Not this authenticator's kind of credential.
    NotMine,
    /// This authenticator's, and bad.
    Rejected(Denial),
}

/// A question to an authorizer.
#[derive(Clone, Debug)]
pub struct AuthorizeRequest {
    /// Who asks.
    pub requester: Requester,
    /// What kind of operation.
    pub operation: OperationKind,
    /// What is asked, on canonical names.
    pub scopes: Vec<Scope>,
    /// The tag or digest concerned.
    pub reference: Option<String>,
    /// Further facts: `mirror` (text) for mirrored repositories.
    pub attributes: Vec<(String, AttributeValue)>,
}

/// An authorizer's answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AuthorizeAnswer {
    /// Allowed as far as the grant goes; the host has cut it to what was asked.
    Allow(Grant, CacheHint),
    /// Refused; overrides every allow.
    Deny(Denial, CacheHint),
    /// No opinion.
    Abstain(Option<Reason>),
}

/// An admission's answer to a [`gantry_model::AdmissionRequest`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AdmitAnswer {
    /// Accepted.
    Accept {
        /// Told to the client.
        warnings: Vec<String>,
        /// Mark the tag immutable.
        set_immutable: bool,
        /// How long it may be reused; heeded for serves only.
        cache: CacheHint,
    },
    /// Refused.
    Reject(Denial),
    /// Not decided yet.
    Hold {
        /// When to try again.
        retry_after: Duration,
        /// Why, shown to the client.
        reason: String,
    },
    /// No opinion.
    Abstain,
}

/// The address a guest sees when a call comes from no client.
#[must_use]
pub fn no_client() -> Client {
    Client {
        address: IpAddr::from([0, 0, 0, 0]),
        user_agent: None,
        tls_subject: None,
    }
}
