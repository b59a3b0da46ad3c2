//! Where an upstream may send us for a token.
//!
//! The realm of a challenge is the upstream's word, and our credentials go there, so it is held against the upstream's own
//! origin before anything is sent (CVE-2026-33540). Not even an anonymous request goes to a realm that fails: that would
//! let an upstream make us knock at addresses of our own network.
//!
//! Limits: without the public suffix list, "the same registrable domain" means the same last two labels, of names only, and only
//! when those two do not look like a suffix under which strangers register. An upstream under such a suffix, and one whose
//! tokens come from another company's domain (lscr.io → ghcr.io), must name a realm on its own host, or is refused.

use url::{Host, Url};

use crate::credential::Origin;

/// Why a realm is not asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum RealmError {
    #[error("the token realm is not an http or https URL")]
    Malformed,
    #[error("the token realm carries a user or password")]
    Userinfo,
    #[error("the token realm is http although the upstream is https")]
    Insecure,
    #[error("the token realm lies outside the upstream's domain")]
    Foreign,
}

/// A token endpoint that its upstream was allowed to name.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Realm {
    url: Url,
    named_by: Origin,
}

impl Realm {
    /// Holds `text` against the origin whose challenge named it.
    pub(crate) fn admit(text: &str, named_by: &Origin) -> Result<Self, RealmError> {
        let malformed = |_parse| RealmError::Malformed;
        let mut url: Url = text.parse().map_err(malformed)?;
        url.set_fragment(None);
        let realm = Origin::of(&url).ok_or(RealmError::Malformed)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(RealmError::Userinfo);
        }
        if named_by.is_secure() && !realm.is_secure() {
            return Err(RealmError::Insecure);
        }
        if !same_domain(named_by.host(), realm.host()) {
            return Err(RealmError::Foreign);
        }
        let named_by = named_by.clone();
        Ok(Self { url, named_by })
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn named_by(&self) -> &Origin {
        &self.named_by
    }
}

fn same_domain(one: &Host<String>, other: &Host<String>) -> bool {
    if one == other {
        return true;
    }
    match (one, other) {
        (Host::Domain(one), Host::Domain(other)) => {
            matches!((registrable(one), registrable(other)), (Some(one), Some(other)) if one == other)
        }
        _ => false,
    }
}

/// The last two labels, unless strangers can register below them.
fn registrable(name: &str) -> Option<(&str, &str)> {
    let mut labels = name.rsplit('.');
    let (top, second) = (labels.next()?, labels.next()?);
    let is_word = top.len() >= 2 && top.bytes().all(|byte| byte.is_ascii_alphabetic());
    // `co.uk`, `com.au`, `asso.fr`, `eu.org`: a short label there is nearly always a name under which names are sold.
    let is_suffix = second.len() <= 2 || (top.len() == 2 && second.len() <= 4);
    let is_shared = SHARED_SUFFIXES.contains(&(second, top));
    (is_word && !is_suffix && !is_shared).then_some((second, top))
}

/// Hosting domains whose subdomains belong to strangers; the ones a registry or an attacker can cheaply stand on.
const SHARED_SUFFIXES: &[(&str, &str)] = &[
    ("amazonaws", "com"),
    ("appspot", "com"),
    ("azurecr", "io"),
    ("azureedge", "net"),
    ("azurewebsites", "net"),
    ("blogspot", "com"),
    ("cloudapp", "net"),
    ("cloudfront", "net"),
    ("digitaloceanspaces", "com"),
    ("duckdns", "org"),
    ("firebaseapp", "com"),
    ("fly", "dev"),
    ("github", "io"),
    ("gitlab", "io"),
    ("googleapis", "com"),
    ("herokuapp", "com"),
    ("netlify", "app"),
    ("ngrok", "io"),
    ("ngrok", "app"),
    ("ngrok-free", "app"),
    ("nip", "io"),
    ("on", "aws"),
    ("onrender", "com"),
    ("pages", "dev"),
    ("pkg", "dev"),
    ("r2", "dev"),
    ("railway", "app"),
    ("run", "app"),
    ("scw", "cloud"),
    ("sslip", "io"),
    ("trycloudflare", "com"),
    ("vercel", "app"),
    ("web", "app"),
    ("windows", "net"),
    ("workers", "dev"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(upstream: &str, realm: &str, expect: Result<(), RealmError>) {
        let origin = Origin::of(&upstream.parse().unwrap()).unwrap();
        let admitted = Realm::admit(realm, &origin).map(drop);
        assert_eq!(admitted, expect, "{upstream} naming {realm}");
    }

    #[test]
    fn a_realm_on_the_upstreams_host_or_registrable_domain_is_admitted() {
        let hub = "https://registry-1.docker.io";
        check(hub, "https://auth.docker.io/token", Ok(()));
        check(hub, "https://docker.io/token", Ok(()));
        check(
            "https://registry.gitlab.com",
            "https://gitlab.com/jwt/auth",
            Ok(()),
        );
        check("https://ghcr.io", "https://ghcr.io/token", Ok(()));
        check(
            "https://me.azurecr.io",
            "https://me.azurecr.io/oauth2/token",
            Ok(()),
        );
        check(
            "https://r.example.co.uk",
            "https://R.example.co.uk:444/t",
            Ok(()),
        );
        check(
            "http://127.0.0.1:5000",
            "http://127.0.0.1:5001/token",
            Ok(()),
        );
        check("http://registry:5000", "http://registry:5001/token", Ok(()));
        check(
            "http://r.example.com",
            "https://auth.example.com/token",
            Ok(()),
        );
    }

    #[test]
    fn a_realm_elsewhere_is_refused() {
        let foreign = Err(RealmError::Foreign);
        let hub = "https://registry-1.docker.io";
        check(hub, "https://evil.example/token", foreign);
        check(hub, "https://docker.io.evil.example/token", foreign);
        check(hub, "https://evildocker.io/token", foreign);
        check(hub, "https://127.0.0.1/token", foreign);
        check(hub, "https://2130706433/token", foreign);
        check(hub, "https://[::1]/token", foreign);
        check(hub, "https://localhost/token", foreign);
        check(hub, "https://dоcker.io/token", foreign);
        check("https://10.0.0.1", "https://10.0.0.2/token", foreign);
        check(
            "https://me.azurecr.io",
            "https://you.azurecr.io/token",
            foreign,
        );
        check("https://a.co.uk", "https://b.co.uk/token", foreign);
        check("https://a.com.au", "https://b.com.au/token", foreign);
        check("https://a.eu.org", "https://b.eu.org/token", foreign);
        check("https://registry", "https://auth/token", foreign);
    }

    #[test]
    fn a_realm_that_is_http_or_has_a_user_or_is_no_url_is_refused() {
        let https = "https://registry.example.com";
        check(
            https,
            "http://registry.example.com/token",
            Err(RealmError::Insecure),
        );
        check(
            https,
            "https://a:b@registry.example.com/token",
            Err(RealmError::Userinfo),
        );
        check(
            https,
            "https://auth.example.com@evil.example/token",
            Err(RealmError::Userinfo),
        );
        check(
            https,
            "ftp://registry.example.com/token",
            Err(RealmError::Malformed),
        );
        check(https, "/token", Err(RealmError::Malformed));
        check(https, "file:///etc/passwd", Err(RealmError::Malformed));
        check(https, "", Err(RealmError::Malformed));
    }
}
