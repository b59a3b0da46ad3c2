//! The 401's invitation: where a token is had, and for what.
//!
//! Knows the forms clients parse (no space after a comma, everything quoted, `error` only when a token was shown).

use gantry_model::{Namespaces, Scope};
use url::Url;

use super::{error::ChallengeError, forwarded::Origin, respond};

/// What the challenges of one request are made of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// Absolute URL of the token endpoint.
    pub realm: String,
    /// The host the client addresses: the token's audience.
    pub service: String,
    /// The path of the external URL, which stands before every path that the client is given; empty when there is none.
    pub path: String,
}

impl Challenge {
    /// The challenge for a request: the configured external URL, or else what the client and trusted proxies say. A host that means
    /// one mirror keeps its own realm, because names in scopes mean other repositories there.
    #[must_use]
    pub fn new(external_url: Option<&Url>, origin: &Origin, namespaces: &Namespaces) -> Self {
        let own = origin.host.as_deref();
        let virtual_host = own.filter(|host| is_virtual(namespaces, host));
        let external = external_url.and_then(|url| Some((url.scheme(), authority(url)?)));
        let (scheme, host) = match (external, virtual_host, own) {
            (Some((scheme, _)), Some(host), _) => (scheme, host.to_owned()),
            (Some((scheme, host)), None, _) => (scheme, host),
            (None, _, Some(host)) => (origin.scheme, host.to_owned()),
            (None, _, None) => (origin.scheme, "localhost".to_owned()),
        };
        let path = external_url
            .filter(|_| virtual_host.is_none())
            .map(|url| url.path().trim_end_matches('/').to_owned())
            .unwrap_or_default();
        Self {
            realm: format!("{scheme}://{host}{path}/token"),
            service: host,
            path,
        }
    }

    /// The challenge at a listener that is one mirror's: the realm is that listener's own, however the client addresses it, because names
    /// in scopes mean that mirror's repositories there.
    #[must_use]
    pub fn of_listener(origin: &Origin) -> Self {
        Self::new(None, origin, &Namespaces::default())
    }

    /// `scheme://host[:port]` that the client reaches us by.
    #[must_use]
    pub fn origin(&self) -> String {
        let scheme = self.realm.split("://").next().unwrap_or("http");
        format!("{scheme}://{}", self.service)
    }

    /// Binds the realm to a `?ns=` value, so that names in a token's scopes mean that namespace's repositories.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.realm.push_str("?ns=");
        self.realm.push_str(&respond::encode(namespace));
        self
    }

    /// `Bearer realm="…",service="…"[,scope="…"][,error="…"]`.
    #[must_use]
    pub fn bearer(&self, scopes: &[Scope], error: Option<ChallengeError>) -> String {
        let mut line = format!(
            "Bearer realm=\"{}\",service=\"{}\"",
            respond::quotable(&self.realm, 1024),
            respond::quotable(&self.service, 512)
        );
        if !scopes.is_empty() {
            let scopes: Vec<String> = scopes.iter().map(ToString::to_string).collect();
            line.push_str(",scope=\"");
            line.push_str(&respond::quotable(&scopes.join(" "), 4096));
            line.push('"');
        }
        if let Some(error) = error {
            line.push_str(",error=\"");
            line.push_str(error.as_str());
            line.push('"');
        }
        line
    }
}

fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    })
}

fn is_virtual(namespaces: &Namespaces, host: &str) -> bool {
    let bare = host.rsplit_once(':').map_or(host, |(bare, _port)| bare);
    namespaces
        .mirrors
        .iter()
        .any(|mirror| mirror.hosts.iter().any(|own| own == host || own == bare))
}

#[cfg(test)]
mod tests {
    use gantry_model::namespace::MirrorNames;

    use super::*;

    fn origin(host: Option<&str>, scheme: &'static str) -> Origin {
        Origin {
            address: [127, 0, 0, 1].into(),
            host: host.map(str::to_owned),
            scheme,
            by_proxy: false,
        }
    }

    fn namespaces() -> Namespaces {
        Namespaces {
            mirrors: vec![MirrorNames {
                mirror: "docker.io".into(),
                prefix: "docker.io".parse().unwrap(),
                namespaces: vec!["docker.io".to_owned()],
                hosts: vec!["hub.example".to_owned()],
                library: true,
                hosted: Vec::new(),
                layered: Vec::new(),
            }],
            ..Namespaces::default()
        }
    }

    fn realm(external: Option<&str>, host: Option<&str>, scheme: &'static str) -> String {
        let external = external.map(|url| url.parse().unwrap());
        Challenge::new(external.as_ref(), &origin(host, scheme), &namespaces()).realm
    }

    #[test]
    fn the_realm_is_where_the_client_can_reach_us() {
        let external = Some("https://reg.example:8443/");
        for (external, host, scheme, expected) in [
            (None, Some("gw:5000"), "http", "http://gw:5000/token"),
            (None, Some("gw"), "https", "https://gw/token"),
            (
                external,
                Some("inner:5000"),
                "http",
                "https://reg.example:8443/token",
            ),
            (external, None, "http", "https://reg.example:8443/token"),
            (
                external,
                Some("hub.example"),
                "http",
                "https://hub.example/token",
            ),
            (
                None,
                Some("hub.example:443"),
                "https",
                "https://hub.example:443/token",
            ),
            (None, None, "http", "http://localhost/token"),
        ] {
            assert_eq!(realm(external, host, scheme), expected, "{host:?}");
        }
    }

    #[test]
    fn a_challenge_has_the_form_clients_parse() {
        let challenge = Challenge::new(None, &origin(Some("gw:5000"), "https"), &namespaces());
        let scopes: Vec<Scope> = ["repository:a/b:push,pull", "repository:c/d:pull"]
            .iter()
            .map(|scope| scope.parse().unwrap())
            .collect();
        assert_eq!(
            challenge.bearer(&scopes, Some(ChallengeError::InsufficientScope)),
            "Bearer realm=\"https://gw:5000/token\",service=\"gw:5000\",\
             scope=\"repository:a/b:pull,push repository:c/d:pull\",error=\"insufficient_scope\""
        );
        assert_eq!(
            challenge.bearer(&[], None),
            "Bearer realm=\"https://gw:5000/token\",service=\"gw:5000\""
        );
    }

    #[test]
    fn a_namespace_is_bound_into_the_realm() {
        let challenge = Challenge::new(None, &origin(Some("gw"), "https"), &namespaces());
        assert_eq!(
            challenge.in_namespace("ghcr.io:443").realm,
            "https://gw/token?ns=ghcr.io%3A443"
        );
    }
}
