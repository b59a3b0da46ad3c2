//! The access line and the audit line: one of each per request, with the same field names everywhere.

use std::{net::IpAddr, sync::Arc, time::Duration};

/// One answered request.
#[derive(Clone, Debug)]
pub struct AccessLine {
    /// Ties lines together.
    pub request_id: Arc<str>,
    /// The client, trusted proxies taken off.
    pub address: IpAddr,
    /// What it calls itself.
    pub user_agent: Option<String>,
    /// The method.
    pub method: http::Method,
    /// The path as written; never the query.
    pub path: String,
    /// The operation's kind, or what else it was.
    pub operation: &'static str,
    /// The canonical repository name.
    pub repository: Option<String>,
    /// Who asked.
    pub principal: Option<String>,
    /// The status; 499 when the client left before there was one.
    pub status: u16,
    /// Bytes of the request's body that arrived.
    pub received: u64,
    /// Bytes of the response's body that left.
    pub sent: u64,
    /// From the request's head to the response's last byte.
    pub duration: Duration,
    /// Whether the response's body reached its end.
    pub complete: bool,
}

impl AccessLine {
    /// Writes the line.
    pub fn log(&self) {
        tracing::info!(
            target: "access",
            { request.id = &*self.request_id,
            client.address = %self.address,
            client.user_agent = self.user_agent.as_deref(),
            http.method = self.method.as_str(),
            http.path = self.path.as_str(),
            http.status = self.status,
            operation = self.operation,
            repository.name = self.repository.as_deref(),
            principal.subject = self.principal.as_deref(),
            received_bytes = self.received,
            sent_bytes = self.sent,
            duration_ms = millis(self.duration),
            complete = self.complete },
            "request"
        );
    }
}

/// One decision.
#[derive(Clone, Debug)]
pub struct AuditLine {
    /// Ties lines together.
    pub request_id: Arc<str>,
    /// The client.
    pub address: IpAddr,
    /// Who asked; `None` when that is what could not be decided.
    pub principal: Option<String>,
    /// The operation's kind.
    pub operation: &'static str,
    /// The canonical repository name.
    pub repository: Option<String>,
    /// The tag or digest.
    pub reference: Option<String>,
    /// `allow`, `deny`, `hold` or `fail`.
    pub decision: &'static str,
    /// The rule.
    pub reason_code: String,
    /// Why.
    pub reason_text: String,
    /// The plugin that decided.
    pub plugin: Option<Arc<str>>,
}

impl AuditLine {
    /// Writes the line.
    pub fn log(&self) {
        tracing::info!(
            target: "audit",
            { request.id = &*self.request_id,
            client.address = %self.address,
            principal.subject = self.principal.as_deref(),
            operation = self.operation,
            repository.name = self.repository.as_deref(),
            reference = self.reference.as_deref(),
            decision = self.decision,
            reason.code = self.reason_code.as_str(),
            reason.text = self.reason_text.as_str(),
            plugin.name = self.plugin.as_deref() },
            "decision"
        );
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
