//! Where an upstream may send us for a token.
//!
//! The realm of a challenge is the upstream's word, and our credentials go there, so it is held against the upstream's own
//! origin before anything is sent (CVE-2026-33540). Not even an anonymous request goes to a realm that fails: that would
//! let an upstream make us knock at addresses of our own network.
//!
//! "The same registrable domain" is what the public suffix list says, and a short list of its own for hosts whose subdomains belong
//! to strangers without being on it. A realm elsewhere (lscr.io names ghcr.io's) is admitted where the operator lists its origin.

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
    /// Holds `text` against the origin whose challenge named it, and what the operator lists beside it.
    pub(crate) fn admit(
        text: &str,
        named_by: &Origin,
        listed: &[Origin],
    ) -> Result<Self, RealmError> {
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
        if !listed.contains(&realm) && !same_domain(named_by.host(), realm.host()) {
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

/// The domain somebody registered, unless strangers can stand below it.
fn registrable(name: &str) -> Option<&str> {
    let domain = psl::domain_str(name)?;
    let is_shared = SHARED_DOMAINS.contains(&domain);
    (!is_shared).then_some(domain)
}

/// Domains that are no public suffixes to the list although their subdomains belong to strangers.
const SHARED_DOMAINS: &[&str] = &[
    "amazonaws.com",
    "azurecr.io",
    "azureedge.net",
    "cloudfront.net",
    "digitaloceanspaces.com",
    "gitlab.io",
    "googleapis.com",
    "nip.io",
    "pkg.dev",
    "scw.cloud",
    "sslip.io",
    "windows.net",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn check(upstream: &str, realm: &str, expect: Result<(), RealmError>) {
        let origin = Origin::of(&upstream.parse().unwrap()).unwrap();
        let admitted = Realm::admit(realm, &origin, &[]).map(drop);
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
    fn subdomains_that_belong_to_strangers_are_foreign_to_each_other() {
        for shared in [
            "azurecr.io",
            "github.io",
            "pages.dev",
            "herokuapp.com",
            "s3.amazonaws.com",
            "amazonaws.com",
            "cloudfront.net",
            "workers.dev",
            "web.app",
            "run.app",
            "nip.io",
            "co.jp",
            "kawasaki.jp",
            "com.br",
            "uk.com",
        ] {
            check(
                &format!("https://a.{shared}"),
                &format!("https://b.{shared}/token"),
                Err(RealmError::Foreign),
            );
        }
        check("https://a.b.co.jp", "https://c.b.co.jp/token", Ok(()));
    }

    #[test]
    fn a_realm_elsewhere_is_admitted_where_its_origin_is_listed() {
        let origin = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        let (lscr, listed) = (origin("https://lscr.io"), [origin("https://ghcr.io")]);
        let admit = |realm: &str| Realm::admit(realm, &lscr, &listed).map(drop);
        assert_eq!(admit("https://ghcr.io/token"), Ok(()));
        assert_eq!(admit("http://ghcr.io/token"), Err(RealmError::Insecure));
        assert_eq!(admit("https://ghcr.io:444/token"), Err(RealmError::Foreign));
        assert_eq!(admit("https://x.ghcr.io/token"), Err(RealmError::Foreign));
        assert_eq!(admit("https://u@ghcr.io/token"), Err(RealmError::Userinfo));
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
