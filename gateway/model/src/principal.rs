//! Who asks: the principal an authenticator vouches for, and the client's address.

use std::net::IpAddr;

/// A verified fact that an authenticator chose to expose.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum AttributeValue {
    /// Text.
    Text(String),
    /// A signed number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
    /// Several texts.
    Texts(Vec<String>),
}

/// Who asks. Never holds a credential.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Principal {
    /// Stable identity: `user:alice`, `robot:ci+team-a`, `anonymous`.
    pub id: String,
    /// `user`, `robot`, `ci-job`, `workload` or `anonymous`.
    pub kind: String,
    /// Who vouches for it: the authenticator's own word.
    pub issuer: String,
    /// Groups it belongs to.
    pub groups: Vec<String>,
    /// Verified claims the authenticator chose to expose.
    pub attributes: Vec<(String, AttributeValue)>,
    /// When the identity ends, in milliseconds since 1970; `None` when the authenticator sets no end.
    pub expires_at_ms: Option<u64>,
}

impl Principal {
    /// Somebody who showed no credential.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::host("anonymous", "anonymous")
    }

    /// The gateway itself, for work no client asked for.
    #[must_use]
    pub fn system() -> Self {
        Self::host("system", "workload")
    }

    fn host(id: &str, kind: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind: kind.to_owned(),
            issuer: "gantry".to_owned(),
            groups: Vec::new(),
            attributes: Vec::new(),
            expires_at_ms: None,
        }
    }

    /// The memory it takes, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.len();
        let attributes = self.attributes.iter().map(|(name, value)| {
            let value = match value {
                AttributeValue::Text(value) => text(value),
                AttributeValue::Texts(values) => values.iter().map(text).sum(),
                AttributeValue::Number(_) | AttributeValue::Flag(_) => size_of::<AttributeValue>(),
            };
            text(name) + value
        });
        let texts = [&self.id, &self.kind, &self.issuer].into_iter();
        let texts = texts.chain(&self.groups).map(text);
        size_of::<Self>() + texts.sum::<usize>() + attributes.sum::<usize>()
    }

    /// Whether no credential was shown.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.kind == "anonymous"
    }
}

/// The machine at the other end.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Client {
    /// Its address, after trusted proxies were taken off.
    pub address: IpAddr,
    /// What it calls itself.
    pub user_agent: Option<String>,
    /// Subject of its verified TLS certificate.
    pub tls_subject: Option<String>,
}
