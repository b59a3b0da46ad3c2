//! Where an upstream may send us for a token.
//!
//! The realm of a challenge is the upstream's word, and our credentials go there, so it is held against the upstream's own
//! origin before anything is sent (CVE-2026-33540). Not even an anonymous request goes to a realm that fails: that would
//! let an upstream make us knock at addresses of our own network.
//!
//! A password goes to the origin it is for, to https realms of the same host, to realms the operator lists, and to the realms of public
//! registries that document them. A request without one may also go to a realm of "the same registrable domain", which is what the
//! public suffix list says, and a short list of its own for hosts whose subdomains belong to strangers without being on it.

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
    #[error("the token realm is another host, which gets no password")]
    NoPassword,
}

impl RealmError {
    /// Whether listing the realm's origin would admit it.
    pub(crate) fn is_mended_by_listing(self) -> bool {
        matches!(self, Self::Foreign | Self::NoPassword)
    }
}

/// What is to be sent to a realm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Carries {
    /// A password or an identity token.
    Secret,
    /// Nothing that is worth stealing.
    Nothing,
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
        carries: Carries,
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
        if !listed.contains(&realm) {
            match carries {
                Carries::Secret if !may_have_passwords(named_by, &realm) => {
                    return Err(RealmError::NoPassword);
                }
                Carries::Nothing if !same_domain(named_by.host(), realm.host()) => {
                    return Err(RealmError::Foreign);
                }
                Carries::Secret | Carries::Nothing => {}
            }
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

/// Whether an upstream's password may go to a realm that nobody listed.
fn may_have_passwords(upstream: &Origin, realm: &Origin) -> bool {
    upstream == realm
        || is_published(upstream, realm)
        // Whoever may open a port of `localhost`, or of an address, need not be the upstream.
        || realm.is_secure() && upstream.host() == realm.host() && has_one_owner(realm.host())
}

fn has_one_owner(host: &Host<String>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name != "localhost" && !name.ends_with(".localhost")
        }
        Host::Ipv4(_) | Host::Ipv6(_) => false,
    }
}

/// Whether it is a realm that a public registry documents as its own.
fn is_published(upstream: &Origin, realm: &Origin) -> bool {
    let https = |host: &&str| Origin::https(host);
    PUBLISHED.iter().any(|published| {
        let mut registries = published.registries.iter().map(https);
        Origin::https(published.realm) == *realm && registries.any(|it| it == *upstream)
    })
}

/// Public registries, and the other host that issues their tokens.
struct Published {
    registries: &'static [&'static str],
    realm: &'static str,
}

/// Public registries whose own documentation names a token endpoint on another host. A registry whose realm is its own host needs no line
/// (ghcr.io, quay.io, gcr.io, `*.pkg.dev`, `*.azurecr.io`, nvcr.io); one whose documentation names none (Alibaba's, a company's GitLab or
/// Harbor) gets its realm from `token_realms`.
const PUBLISHED: &[Published] = &[
    // The challenge in Docker's token authentication specification (distribution.github.io/distribution/spec/auth/token).
    Published {
        registries: &["registry-1.docker.io", "index.docker.io", "docker.io"],
        realm: "auth.docker.io",
    },
    // docs.gitlab.com, "Authenticate with the container registry": the registry sends clients to GitLab's own URL (`/jwt/auth`) for tokens.
    Published {
        registries: &["registry.gitlab.com"],
        realm: "gitlab.com",
    },
    // DigitalOcean's API reference has `/v2/registry`; its registry's challenge names `/v2/registry/auth` there.
    Published {
        registries: &["registry.digitalocean.com"],
        realm: "api.digitalocean.com",
    },
    // access.redhat.com/articles/3560571, "Troubleshooting Authentication Issues with registry.redhat.io".
    Published {
        registries: &["registry.redhat.io"],
        realm: "sso.redhat.com",
    },
];

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
        let admitted = Realm::admit(realm, &origin, &[], Carries::Nothing).map(drop);
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
        let admit = |realm: &str| Realm::admit(realm, &lscr, &listed, Carries::Secret).map(drop);
        assert_eq!(admit("https://ghcr.io/token"), Ok(()));
        assert_eq!(admit("http://ghcr.io/token"), Err(RealmError::Insecure));
        let no_password = Err(RealmError::NoPassword);
        assert_eq!(admit("https://ghcr.io:444/token"), no_password);
        assert_eq!(admit("https://x.ghcr.io/token"), no_password);
        assert_eq!(admit("https://u@ghcr.io/token"), Err(RealmError::Userinfo));
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table, or a story told in order")]
    fn a_password_goes_to_the_own_origin_the_own_host_and_published_realms_only() {
        let check = |upstream: &str, realm: &str, expect: bool| {
            let origin = Origin::of(&upstream.parse().unwrap()).unwrap();
            let admitted = Realm::admit(realm, &origin, &[], Carries::Secret);
            assert_eq!(admitted.is_ok(), expect, "{upstream} naming {realm}");
        };
        let hub = "https://registry-1.docker.io";
        check(hub, "https://auth.docker.io/token", true);
        check(hub, "https://auth.docker.io:444/token", false);
        check(hub, "https://hub.docker.io/token", false);
        check(
            "https://registry-1.docker.io:5000",
            "https://auth.docker.io/token",
            false,
        );
        check(
            "https://registry.gitlab.com",
            "https://gitlab.com/jwt/auth",
            true,
        );
        check(
            "https://registry.gitlab.com",
            "https://evil.gitlab.com/jwt/auth",
            false,
        );
        check(
            "https://gitlab.com",
            "https://registry.gitlab.com/token",
            false,
        );
        check(
            "https://registry.digitalocean.com",
            "https://api.digitalocean.com/v2/registry/auth",
            true,
        );
        let red_hat = "https://sso.redhat.com/auth/realms/rhcc/protocol/redhat-docker-v2/auth";
        check("https://registry.redhat.io", red_hat, true);
        check("https://registry.access.redhat.com", red_hat, false);
        let nvidia = "https://nvcr.io/proxy_auth?scope=repository:nvidia/tensorflow:pull,push";
        check("https://nvcr.io", nvidia, true);
        // The own host on any port, over https.
        check(
            "https://r.corp.example:5000",
            "https://r.corp.example/token",
            true,
        );
        check(
            "https://r.corp.example",
            "https://r.corp.example:8443/token",
            true,
        );
        check(
            "http://r.corp.example:5000",
            "https://r.corp.example/token",
            true,
        );
        check("http://registry:5000", "https://registry:5001/token", true);
        check(
            "http://r.corp.example:5000",
            "http://r.corp.example:5001/token",
            false,
        );
        check(
            "http://r.corp.example:5000",
            "http://r.corp.example:5000/token",
            true,
        );
        // A sibling of the same domain is another host.
        check(
            "https://registry.gitlab.corp.example",
            "https://gitlab.corp.example/jwt/auth",
            false,
        );
        // Another port of an address or of localhost is somebody else's.
        for host in ["127.0.0.1", "10.0.0.1", "[::1]", "localhost", "x.localhost"] {
            check(
                &format!("https://{host}:5000"),
                &format!("https://{host}:5000/token"),
                true,
            );
            check(
                &format!("https://{host}:5000"),
                &format!("https://{host}:5001/token"),
                false,
            );
            check(
                &format!("http://{host}:5000"),
                &format!("https://{host}:5001/token"),
                false,
            );
        }
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
