//! How a call or a load fails: closed enums, because a binding's `on_error`, not the host, decides what a failure means.

use std::sync::Arc;

/// How a call failed; also the metric label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Failure {
    /// The guest trapped: a panic, an unreachable, a stack overflow.
    Trap,
    /// The call took longer than its binding allows.
    Deadline,
    /// The guest asked for more memory or table space than its binding allows.
    Memory,
    /// The guest made the host do or hold more than its binding allows: bytes lifted, handles, log bytes, host calls.
    HostQuota,
    /// No place for the call came free before the deadline.
    Saturated,
    /// The guest answered something that the contract does not allow.
    Contract,
    /// The guest answered `plugin-error`.
    Plugin,
}

impl Failure {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::HostQuota => "host_quota",
            Self::Saturated => "saturated",
            Self::Contract => "contract",
            Self::Plugin => "plugin_error",
        }
    }
}

/// A call failed. Never a decision.
#[derive(Clone, Debug, thiserror::Error)]
#[error("plugin {plugin} failed ({}): {detail}", .failure.as_str())]
pub struct CallError {
    /// Which plugin.
    pub plugin: Arc<str>,
    /// How.
    pub failure: Failure,
    /// For the log; never shown to a client.
    pub detail: String,
}

/// A component cannot be loaded. `Display` is a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("plugin {plugin}: {reason}")]
pub struct LoadError {
    /// Which plugin.
    pub plugin: Arc<str>,
    /// Why not, and what to do.
    pub reason: String,
}
