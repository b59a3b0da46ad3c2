//! Audit lines of what an operator does to the mirrors' caches.
//!
//! The request's own line says who was allowed to ask; these say what was changed, and how much.

use gantry_model::Requester;

/// What was done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CacheChange {
    /// Content was pinned.
    Pin,
    /// A pin was taken away.
    Unpin,
    /// Content was taken out.
    Evict,
    /// An image was pulled into the cache.
    Warm,
    /// A claimed repository was given back to its upstream.
    Release,
}

impl CacheChange {
    /// What `change` says.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pin => "cache-pin",
            Self::Unpin => "cache-unpin",
            Self::Evict => "cache-evict",
            Self::Warm => "cache-warm",
            Self::Release => "repository-release",
        }
    }
}

/// An operator did something. `decision` is `allow` or, where policy refused an image, `deny`; `text` says how much, or why.
pub fn audit_cache(
    change: CacheChange,
    requester: &Requester,
    reference: &str,
    (decision, text): (&'static str, &str),
) {
    tracing::info!(
        target: "audit",
        { request.id = &*requester.request_id,
        client.address = %requester.client.address,
        principal.subject = requester.principal.id.as_str(),
        change = change.as_str(),
        reference,
        decision,
        reason.text = text },
        "cache"
    );
}

/// An operator revoked a principal.
pub fn audit_revoked(requester: &Requester, id: &str) {
    tracing::info!(
        target: "audit",
        { request.id = &*requester.request_id,
        client.address = %requester.client.address,
        principal.subject = requester.principal.id.as_str(),
        change = "principal-revoke",
        reference = id,
        decision = "allow" },
        "principal revoked"
    );
}
