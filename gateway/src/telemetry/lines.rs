//! The access line and the audit line: one of each per request, with the same field names everywhere.

use std::{sync::Arc, time::Duration};

use gantry_model::{Client, Principal, Reason, RepositoryName};

/// One answered request.
#[derive(Clone, Debug)]
pub struct AccessLine {
    /// Ties lines together.
    pub request_id: Arc<str>,
    /// The client, trusted proxies taken off.
    pub client: Arc<Client>,
    /// The method.
    pub method: http::Method,
    /// Where to; only the path is shown, never the query.
    pub uri: http::Uri,
    /// The operation's kind, or what else it was.
    pub operation: &'static str,
    /// The canonical repository name.
    pub repository: Option<RepositoryName>,
    /// Who asked.
    pub principal: Option<Arc<Principal>>,
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
            client.address = %self.client.address,
            client.user_agent = self.client.user_agent.as_deref(),
            http.method = self.method.as_str(),
            http.path = self.uri.path(),
            http.status = self.status,
            operation = self.operation,
            repository.name = self.repository.as_ref().map(RepositoryName::as_str),
            principal.subject = self.principal.as_deref().map(|who| who.id.as_str()),
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
    pub client: Arc<Client>,
    /// Who asked; `None` when that is what could not be decided.
    pub principal: Option<Arc<Principal>>,
    /// The operation's kind.
    pub operation: &'static str,
    /// The canonical repository name.
    pub repository: Option<RepositoryName>,
    /// The tag or digest.
    pub reference: Option<String>,
    /// `allow`, `deny`, `hold` or `fail`.
    pub decision: &'static str,
    /// The rule, and why.
    pub reason: Reason,
    /// The plugin that decided.
    pub plugin: Option<Arc<str>>,
}

impl AuditLine {
    /// Writes the line.
    pub fn log(&self) {
        tracing::info!(
            target: "audit",
            { request.id = &*self.request_id,
            client.address = %self.client.address,
            principal.subject = self.principal.as_deref().map(|who| who.id.as_str()),
            operation = self.operation,
            repository.name = self.repository.as_ref().map(RepositoryName::as_str),
            reference = self.reference.as_deref(),
            decision = self.decision,
            reason.code = &*self.reason.code,
            reason.text = &*self.reason.text,
            plugin.name = self.plugin.as_deref() },
            "decision"
        );
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::{
        human::HumanLayer,
        json::{JsonLayer, Lines},
    };

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Lines for Written {
        fn write(&self, line: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(line);
        }
    }

    const HOSTILE: &str = "a\r\n2026 INFO audit: forged \u{1b}[31m\u{9b}\0\"";

    fn client(user_agent: Option<&str>) -> Arc<Client> {
        Arc::new(Client {
            address: [192, 0, 2, 1].into(),
            user_agent: user_agent.map(str::to_owned),
            tls_subject: None,
        })
    }

    fn principal(id: &str) -> Arc<Principal> {
        Arc::new(Principal {
            id: id.to_owned(),
            ..Principal::anonymous()
        })
    }

    fn access() -> AccessLine {
        AccessLine {
            request_id: "0123".into(),
            client: client(Some(HOSTILE)),
            method: http::Method::GET,
            uri: http::Uri::from_static("/v2/?secret=1"),
            operation: "ping",
            repository: None,
            principal: Some(principal(HOSTILE)),
            status: 200,
            received: 0,
            sent: 2,
            duration: Duration::from_micros(1500),
            complete: true,
        }
    }

    fn audit() -> AuditLine {
        AuditLine {
            request_id: "0123".into(),
            client: client(None),
            principal: Some(principal("user:alice")),
            operation: "push-manifest",
            repository: Some("apps/web".parse().unwrap()),
            reference: Some("v1".to_owned()),
            decision: "deny",
            reason: Reason::new("immutable", HOSTILE),
            plugin: Some("releases".into()),
        }
    }

    fn logged(json: bool) -> String {
        let written = Written::default();
        let lines = || {
            access().log();
            audit().log();
        };
        if json {
            let layer = JsonLayer(written.clone());
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, lines);
        } else {
            let layer = HumanLayer {
                lines: written.clone(),
                ansi: false,
            };
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, lines);
        }
        let bytes = written.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8(bytes.clone()).unwrap()
    }

    #[test]
    fn text_from_outside_can_neither_forge_a_line_nor_move_a_terminal() {
        for json in [true, false] {
            let text = logged(json);
            assert_eq!(text.lines().count(), 2, "{text}");
            let control = |character: char| character.is_control() && character != '\n';
            assert!(!text.contains('\u{1b}'), "{text}");
            assert!(!text.replace('\u{9b}', "").chars().any(control), "{text}");
        }
    }

    #[test]
    fn json_lines_have_dotted_names() {
        let text = logged(true);
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines[0]["target"], "access");
        assert_eq!(lines[0]["http.status"], 200);
        assert_eq!(lines[0]["client.user_agent"], HOSTILE);
        assert_eq!(lines[0]["duration_ms"], 1.5);
        assert_eq!(lines[1]["target"], "audit");
        assert_eq!(lines[1]["decision"], "deny");
        assert_eq!(lines[1]["reason.code"], "immutable");
        assert_eq!(lines[1]["plugin.name"], "releases");
        assert_eq!(lines[1]["repository.name"], "apps/web");
    }
}
