//! Credentials, and the one place they may go.
//!
//! Owns the rule that a secret is bound to an origin: [`Credential`] can be attached to a request for that origin, or for a
//! [`Realm`] that this origin was allowed to name, and to nothing else (CVE-2020-15157, CVE-2026-33540 and their family).
//! Knows nothing of challenges or tokens.

use std::{fmt, sync::Arc};

use reqwest::RequestBuilder;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::{helper::Helper, realm::Realm};

/// The user name that says that the secret is an identity token, as docker's credential helpers have it.
const IDENTITY_TOKEN: &str = "<token>";

/// A user name and password, or an identity token. Wiped from memory when dropped.
#[derive(Clone, Eq, PartialEq)]
pub struct Credentials {
    /// Who we are to the upstream; `<token>` for an identity token.
    pub username: String,
    /// Its secret.
    pub password: Zeroizing<String>,
}

impl Credentials {
    /// An identity (or refresh) token: exchanged for bearer tokens at the upstream's token endpoint.
    #[must_use]
    pub fn identity_token(token: Zeroizing<String>) -> Self {
        Self {
            username: IDENTITY_TOKEN.to_owned(),
            password: token,
        }
    }

    fn is_identity_token(&self) -> bool {
        self.username == IDENTITY_TOKEN
    }
}

/// Where credentials come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CredentialSource {
    /// As configured.
    Fixed(Credentials),
    /// A program that brings them when they are needed.
    Helper(Helper),
}

impl From<Credentials> for CredentialSource {
    fn from(credentials: Credentials) -> Self {
        Self::Fixed(credentials)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(***)")
    }
}

/// Scheme, host and port: what a credential is bound to (RFC 6454 section 4).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Origin {
    secure: bool,
    host: Host<String>,
    port: u16,
}

impl Origin {
    /// The origin of an http or https URL; `None` for any other.
    pub(crate) fn of(url: &Url) -> Option<Self> {
        let secure = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self {
            secure,
            host: url.host()?.to_owned(),
            port: url.port_or_known_default()?,
        })
    }

    /// The https origin of a host, on the standard port.
    pub(crate) fn https(host: &str) -> Self {
        Self {
            secure: true,
            host: Host::Domain(host.to_owned()),
            port: 443,
        }
    }

    /// Whether TLS protects it.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Its host.
    pub(crate) fn host(&self) -> &Host<String> {
        &self.host
    }
}

impl fmt::Display for Origin {
    /// As a URL, with the port only where it is not the scheme's.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.secure {
            ("https", 443)
        } else {
            ("http", 80)
        };
        write!(formatter, "{scheme}://{}", self.host)?;
        match self.port {
            port if port == usual => Ok(()),
            port => write!(formatter, ":{port}"),
        }
    }
}

/// Credentials bound to an origin for good.
#[derive(Clone)]
pub(crate) struct Credential {
    origin: Origin,
    secret: Arc<Credentials>,
}

impl Credential {
    pub(crate) fn bind(secret: Arc<Credentials>, origin: Origin) -> Self {
        Self { origin, secret }
    }

    /// Whether it is this secret.
    pub(crate) fn holds(&self, secret: &Credentials) -> bool {
        *self.secret == *secret
    }

    /// Whether it can only be exchanged at a token endpoint.
    pub(crate) fn is_identity_token(&self) -> bool {
        self.secret.is_identity_token()
    }

    /// The form of an `OAuth2` refresh with the identity token (token spec, its POST variant), when the realm was named by, and
    /// admitted for, the origin.
    pub(crate) fn refresh_form<'a>(
        &'a self,
        realm: &Realm,
    ) -> Option<[(&'static str, &'a str); 3]> {
        let is_ours = self.is_identity_token() && *realm.named_by() == self.origin;
        is_ours.then(|| {
            [
                ("grant_type", "refresh_token"),
                ("client_id", "gantry"),
                ("refresh_token", self.secret.password.as_str()),
            ]
        })
    }

    /// Adds `Authorization: Basic`, when the request's target is the origin itself.
    pub(crate) fn attach_to(&self, request: RequestBuilder, target: &Origin) -> RequestBuilder {
        if *target == self.origin {
            self.attach(request)
        } else {
            request
        }
    }

    /// Adds `Authorization: Basic`, when the realm was named by, and admitted for, the origin.
    pub(crate) fn attach_to_realm(&self, request: RequestBuilder, realm: &Realm) -> RequestBuilder {
        if *realm.named_by() == self.origin {
            self.attach(request)
        } else {
            request
        }
    }

    fn attach(&self, request: RequestBuilder) -> RequestBuilder {
        if self.is_identity_token() {
            return request;
        }
        request.basic_auth(&self.secret.username, Some(self.secret.password.as_str()))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credential(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realm::Carries;

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    fn authorization(bound_to: &str, target: &str) -> bool {
        let secret = Credentials {
            username: "acme".to_owned(),
            password: Zeroizing::new("canary".to_owned()),
        };
        let credential = Credential::bind(Arc::new(secret), origin(bound_to));
        let request = credential.attach_to(reqwest::Client::new().get(target), &origin(target));
        request
            .build()
            .unwrap()
            .headers()
            .contains_key("authorization")
    }

    #[test]
    fn a_credential_is_attached_to_its_own_origin_only() {
        assert!(authorization("https://r.example", "https://r.example/v2/"));
        assert!(authorization("https://r.example", "https://R.example:443/"));
        assert!(!authorization("https://r.example", "http://r.example/"));
        assert!(!authorization(
            "https://r.example",
            "https://r.example:444/"
        ));
        assert!(!authorization("https://r.example", "https://x.r.example/"));
    }

    #[test]
    fn a_credential_is_attached_to_a_realm_that_its_own_origin_named() {
        let secret = Credentials {
            username: "acme".to_owned(),
            password: Zeroizing::new("canary".to_owned()),
        };
        let credential = Credential::bind(Arc::new(secret), origin("https://r.example.com"));
        let is_attached = |named_by: &str| {
            let url = "https://auth.example.com/token";
            let realm = Realm::admit(url, &origin(named_by), &[], Carries::Nothing).unwrap();
            let request = reqwest::Client::new().get(url);
            let request = credential.attach_to_realm(request, &realm).build().unwrap();
            request.headers().contains_key("authorization")
        };
        assert!(is_attached("https://r.example.com"));
        assert!(!is_attached("https://other.example.com"));
    }

    #[test]
    fn an_identity_token_leaves_in_the_form_for_its_own_realm_only() {
        let token = Credentials::identity_token(Zeroizing::new("canary".to_owned()));
        let own = origin("https://r.example.com");
        let credential = Credential::bind(Arc::new(token), own.clone());
        let request = reqwest::Client::new().get("https://r.example.com/v2/");
        let request = credential.attach_to(request, &own).build().unwrap();
        assert!(!request.headers().contains_key("authorization"));
        let has_form = |named_by: &str| {
            let url = "https://auth.example.com/t";
            let realm = Realm::admit(url, &origin(named_by), &[], Carries::Nothing);
            credential.refresh_form(&realm.unwrap()).is_some()
        };
        assert!(has_form("https://r.example.com"));
        assert!(!has_form("https://other.example.com"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = Credentials {
            username: "acme".to_owned(),
            password: Zeroizing::new("canary".to_owned()),
        };
        let bound = Credential::bind(Arc::new(secret.clone()), origin("https://r.example"));
        assert_eq!(
            format!("{secret:?} {bound:?}"),
            "Credentials(***) Credential(***)"
        );
    }
}
