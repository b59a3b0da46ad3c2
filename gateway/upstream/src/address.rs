//! Which addresses an upstream may send us to, by redirect or realm.
//!
//! Owns the resolver of the upstream's HTTP client: a name is judged by what it resolves to, at the moment of connecting, so
//! a name that resolves to something else the second time gains nothing. The configured host itself is the operator's word and
//! always allowed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// How far away an address is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reach {
    /// On the internet.
    Public,
    /// This machine, a private network, or no unicast address at all.
    Internal,
    /// Link-local, or a cloud's metadata service: no upstream has a reason to send anybody there.
    Forbidden,
}

impl Reach {
    /// Where an address lies.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [169, 254, _, _] | [100, 100, 100, 200] | [168, 63, 129, 16] => Self::Forbidden,
            [0 | 10 | 127, _, _, _]
            | [100, 64..=127, _, _]
            | [172, 16..=31, _, _]
            | [192, 0, 0 | 2, _]
            | [192, 168, _, _]
            | [198, 18 | 19, _, _]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
            | [224..=255, _, _, _] => Self::Internal,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let embedded = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfe80..=0xfebf, ..] => Self::Forbidden,
            [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Self::Internal,
            // IPv4 in disguise: mapped, compatible, NAT64, 6to4.
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
            | [0x0064, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..] => embedded(high, low),
            [0xfc00..=0xfdff | 0xfec0..=0xffff, ..]
            | [0x0064, 0xff9b, 1, ..]
            | [0x2001, 0 | 0x0db8, ..] => Self::Internal,
            _ => Self::Public,
        }
    }
}

/// An upstream pointed at an address it may not point at.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the upstream points at an address that is not public")]
pub(crate) struct Blocked;

/// A name has no address.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
pub(crate) struct Unresolved(#[source] std::io::Error);

/// The addresses one base URL may lead to.
///
/// Behind a proxy it is the proxy that resolves names, so there only what is written is judged: literal addresses, and names that
/// cannot be public. Which names lead outside is then the proxy's own rule.
#[derive(Clone, Debug)]
pub(crate) struct Bounds {
    host: Host<String>,
    internal: bool,
    /// The operator's proxies: they are dialed, but no upstream may point at them.
    proxies: Vec<Host<String>>,
}

impl Bounds {
    /// The bounds of an upstream at `host`.
    pub(crate) fn around(host: &Host<String>) -> Self {
        let internal = match host {
            Host::Domain(name) => is_internal_name(name),
            Host::Ipv4(address) => Reach::of_v4(*address) != Reach::Public,
            Host::Ipv6(address) => Reach::of_v6(*address) != Reach::Public,
        };
        Self {
            host: host.clone(),
            internal,
            proxies: Vec::new(),
        }
    }

    /// The same, reached through these proxies.
    pub(crate) fn through(self, proxies: Vec<Host<String>>) -> Self {
        Self { proxies, ..self }
    }

    /// Judges the host of a URL as far as it is an address; names are judged when they are resolved.
    pub(crate) fn check(&self, url: &Url) -> Result<(), Blocked> {
        let host = url.host().ok_or(Blocked)?.to_owned();
        let is_allowed = host == self.host
            || !self.proxies.contains(&host)
                && match &host {
                    Host::Ipv4(address) => self.allows(IpAddr::V4(*address)),
                    Host::Ipv6(address) => self.allows(IpAddr::V6(*address)),
                    Host::Domain(name) => self.allows_name(name),
                };
        is_allowed.then_some(()).ok_or(Blocked)
    }

    fn allows_name(&self, name: &str) -> bool {
        self.proxies.is_empty() || self.internal || !is_internal_name(name)
    }

    fn allows(&self, address: IpAddr) -> bool {
        match Reach::of(address) {
            Reach::Public => true,
            Reach::Internal => self.internal,
            Reach::Forbidden => false,
        }
    }

    /// Whether the operator named it.
    fn is_configured(&self, name: &str) -> bool {
        let mut hosts = self.proxies.iter().chain([&self.host]);
        hosts.any(|host| matches!(host, Host::Domain(home) if home.eq_ignore_ascii_case(name)))
    }
}

/// Names that no public registry of names gives out: an upstream called so is on the operator's own network.
fn is_internal_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let special = ["localhost", "local", "internal", "home.arpa"];
    !name.contains('.')
        || special.iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|rest| rest.ends_with('.'))
        })
}

impl Resolve for Bounds {
    fn resolve(&self, name: Name) -> Resolving {
        let bounds = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(Unresolved)?;
            let found: Vec<SocketAddr> = if bounds.is_configured(name.as_str()) {
                found.collect()
            } else {
                found.filter(|to| bounds.allows(to.ip())).collect()
            };
            if found.is_empty() {
                return Err(Blocked.into());
            }
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(address: &str) -> Reach {
        Reach::of(address.parse().unwrap())
    }

    fn bounds(base: &str) -> Bounds {
        let base: Url = base.parse().unwrap();
        Bounds::around(&base.host().unwrap().to_owned())
    }

    fn check(base: &str, target: &str, expect: bool) {
        let allowed = bounds(base).check(&target.parse().unwrap()).is_ok();
        assert_eq!(allowed, expect, "{base} to {target}");
    }

    #[test]
    fn addresses_are_sorted_by_reach() {
        for public in [
            "1.1.1.1",
            "100.63.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1",
        ] {
            assert_eq!(reach(public), Reach::Public, "{public}");
        }
        for internal in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "100.64.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
        ] {
            assert_eq!(reach(internal), Reach::Internal, "{internal}");
        }
        for forbidden in [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "168.63.129.16",
        ] {
            assert_eq!(reach(forbidden), Reach::Forbidden, "{forbidden}");
        }
    }

    #[test]
    fn a_public_upstream_leads_to_public_addresses_only() {
        let hub = "https://registry-1.docker.io";
        check(hub, "https://1.1.1.1/x", true);
        check(hub, "https://cdn.example/x", true);
        for private in [
            "127.0.0.1",
            "10.0.0.1",
            "0",
            "0x7f.1",
            "017700000001",
            "2130706433",
            "169.254.169.254",
            "[::1]",
            "[::ffff:10.0.0.1]",
        ] {
            check(hub, &format!("http://{private}/x"), false);
        }
    }

    #[test]
    fn an_internal_upstream_leads_to_internal_addresses_but_not_to_metadata() {
        for base in [
            "http://127.0.0.1:5000",
            "http://registry:5000",
            "https://r.corp.internal",
            "http://localhost",
        ] {
            check(base, "http://10.0.0.1:9000/x", true);
            check(base, "http://169.254.169.254/latest", false);
        }
        check("http://169.254.1.1", "http://169.254.1.1/x", true);
        check("http://169.254.1.1", "http://169.254.169.254/x", false);
        check("https://internal.example", "http://10.0.0.1/x", false);
    }

    #[test]
    fn behind_a_proxy_names_that_cannot_be_public_and_the_proxy_itself_are_blocked() {
        let proxy = Host::Domain("proxy.corp.example".to_owned());
        let bounds = bounds("https://registry-1.docker.io").through(vec![proxy]);
        let allows = |url: &str| bounds.check(&url.parse().unwrap()).is_ok();
        assert!(allows("https://registry-1.docker.io/v2/"));
        assert!(allows("https://cdn.example/x"));
        for inside in [
            "https://localhost/x",
            "https://vault/x",
            "https://db.corp.internal/x",
            "https://proxy.corp.example/x",
            "https://10.0.0.1/x",
        ] {
            assert!(!allows(inside), "{inside}");
        }
    }

    #[tokio::test]
    async fn a_name_is_judged_by_what_it_resolves_to() {
        let name = || "localhost".parse::<Name>().unwrap();
        let blocked = bounds("https://registry-1.docker.io").resolve(name()).await;
        assert!(blocked.err().unwrap().downcast_ref::<Blocked>().is_some());
        assert!(
            bounds("http://localhost:5000")
                .resolve(name())
                .await
                .is_ok()
        );
        assert!(
            bounds("http://127.0.0.1:5000")
                .resolve(name())
                .await
                .is_ok()
        );
    }
}
