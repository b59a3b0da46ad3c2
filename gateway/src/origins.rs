//! Where the content of a repository comes from, by the configuration: what clients pushed, or what one upstream delivered.
//!
//! Owns the one spelling of an upstream's URL by which stores tell upstreams apart, so that a mirror with another `url` starts without
//! possessions and one with another name keeps them.

use std::{collections::HashMap, sync::Arc};

use gantry_model::{Namespaces, RepositoryName, Source, namespace::Address};
use gantry_storage::{ContentOrigin, NameOwner};
use url::Url;

use crate::config::Config;

/// The origins of every name the configuration knows.
#[derive(Clone, Debug)]
pub struct Origins {
    namespaces: Namespaces,
    by_mirror: HashMap<Arc<str>, ContentOrigin>,
}

impl Origins {
    /// Those of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mirrors = config.mirrors.iter();
        let by_mirror = mirrors.map(|mirror| {
            let origin = upstream_origin(&mirror.upstream.url);
            (Arc::clone(&mirror.name), origin)
        });
        Self {
            namespaces: config.namespaces(),
            by_mirror: by_mirror.collect(),
        }
    }

    /// Where a stored repository's content comes from; `None` when no key of the configuration leads to that name.
    #[must_use]
    pub fn source(&self, name: &RepositoryName) -> Option<Source> {
        let resolved = self.namespaces.resolve(Address::default(), name.as_str());
        let canonical = resolved.ok().filter(|resolved| resolved.name == *name);
        canonical.map(|resolved| resolved.source)
    }

    /// The origin of what a mirror's upstream delivers.
    #[must_use]
    pub fn of_mirror(&self, mirror: &str) -> Option<&ContentOrigin> {
        self.by_mirror.get(mirror)
    }

    /// Whose the name is, for content whose origin was not written down.
    #[must_use]
    pub fn owner_of(&self, name: &RepositoryName) -> NameOwner {
        match self.source(name) {
            Some(Source::Hosted | Source::Layered { .. }) => NameOwner::Hosted,
            Some(Source::Mirror { mirror, .. }) => match self.of_mirror(&mirror) {
                Some(origin) => NameOwner::Mirror(origin.clone()),
                None => NameOwner::Unconfigured,
            },
            None => NameOwner::Unconfigured,
        }
    }
}

/// An upstream's URL in one spelling: host and scheme in lower case, no default port, no slash at the end, and no credentials.
#[must_use]
pub fn upstream_origin(url: &Url) -> ContentOrigin {
    let path = url.path().trim_end_matches('/');
    let port = url.port().map(|port| format!(":{port}"));
    let (scheme, host) = (url.scheme(), url.host_str().unwrap_or_default());
    let port = port.unwrap_or_default();
    ContentOrigin::Upstream(format!("{scheme}://{host}{port}{path}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(text: &str) -> ContentOrigin {
        upstream_origin(&text.parse().unwrap())
    }

    #[test]
    fn an_upstream_is_one_however_its_url_is_spelled() {
        let one = origin("https://registry.example");
        for same in [
            "HTTPS://Registry.EXAMPLE",
            "https://registry.example:443",
            "https://registry.example/",
            "https://registry.example//",
        ] {
            assert_eq!(origin(same), one, "{same}");
        }
    }

    #[test]
    fn another_scheme_host_port_or_path_is_another_upstream() {
        let one = origin("https://registry.example/a");
        for other in [
            "http://registry.example/a",
            "https://registry.example:8443/a",
            "https://registry.example/A",
            "https://registry.example",
            "https://other.example/a",
        ] {
            assert_ne!(origin(other), one, "{other}");
        }
        assert_eq!(origin("https://registry.example/a/"), one);
        assert_ne!(origin("http://r:80"), origin("http://r:81"));
        assert_eq!(origin("http://r:80/"), origin("http://R"));
    }
}
