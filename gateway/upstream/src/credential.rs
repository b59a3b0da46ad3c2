//! Credentials, and the one place they may go.
//!
//! Owns the rule that a secret is bound to an origin: [`Credential`] can be attached to a request for that origin, or for a
//! [`Realm`] that this origin was allowed to name, and to nothing else (CVE-2020-15157, CVE-2026-33540 and their family).
//! Knows nothing of challenges or tokens.

use std::fmt;

use reqwest::RequestBuilder;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::realm::Realm;

/// A user name and password, as configured. Wiped from memory when dropped.
#[derive(Clone)]
pub struct Credentials {
    /// Who we are to the upstream.
    pub username: String,
    /// Its secret.
    pub password: Zeroizing<String>,
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

    /// Whether TLS protects it.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Its host.
    pub(crate) fn host(&self) -> &Host<String> {
        &self.host
    }
}

/// Credentials bound to an origin for good.
pub(crate) struct Credential {
    origin: Origin,
    secret: Credentials,
}

impl Credential {
    pub(crate) fn bind(secret: Credentials, origin: Origin) -> Self {
        Self { origin, secret }
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

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    fn authorization(bound_to: &str, target: &str) -> bool {
        let secret = Credentials {
            username: "acme".to_owned(),
            password: Zeroizing::new("canary".to_owned()),
        };
        let credential = Credential::bind(secret, origin(bound_to));
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
        let credential = Credential::bind(secret, origin("https://r.example.com"));
        let is_attached = |named_by: &str| {
            let url = "https://auth.example.com/token";
            let realm = Realm::admit(url, &origin(named_by)).unwrap();
            let request = reqwest::Client::new().get(url);
            let request = credential.attach_to_realm(request, &realm).build().unwrap();
            request.headers().contains_key("authorization")
        };
        assert!(is_attached("https://r.example.com"));
        assert!(!is_attached("https://other.example.com"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let secret = Credentials {
            username: "acme".to_owned(),
            password: Zeroizing::new("canary".to_owned()),
        };
        let bound = Credential::bind(secret.clone(), origin("https://r.example"));
        assert_eq!(
            format!("{secret:?} {bound:?}"),
            "Credentials(***) Credential(***)"
        );
    }
}
