//! Which repository a spelled name means: listener, then host, then path prefix, then `?ns=`, then `hosted`, then the default mirror.
//!
//! Owns that order and the canonical names (`docker.io/library/alpine` however the client wrote it), and which of a mirror's names are
//! pushed here instead. Nothing outside the configured names is ever resolved, so nothing outside them is ever dialled.

use std::sync::Arc;

use crate::{
    glob::Glob,
    name::{NameError, RepositoryName},
};

/// Where a repository's content comes from.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Source {
    /// Pushed here.
    Hosted,
    /// Fetched from a mirror's upstream.
    Mirror {
        /// The mirror's name: its key in the configuration.
        mirror: Arc<str>,
        /// The name at the upstream (`library/alpine`).
        remote: RepositoryName,
    },
    /// Pushed here under a mirror's prefix; while nothing was pushed, reads are the mirror's.
    Layered {
        /// The mirror's name.
        mirror: Arc<str>,
        /// The name at the upstream.
        remote: RepositoryName,
    },
}

/// A resolved repository: the only form in which a name reaches policy, registry or storage.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Repository {
    /// The canonical name: what policies, events, metrics and storage see.
    pub name: RepositoryName,
    /// The name as the client addressed it: what challenges and tokens echo.
    pub spelled: RepositoryName,
    /// What `Location` and `Link` paths start with: `/v2`, or `/<prefix>/v2` for clients that put the prefix first.
    pub base: Arc<str>,
    /// Where its content comes from.
    pub source: Source,
    /// The `?ns=` value that decided, to be echoed in `OCI-Namespace`.
    pub namespace: Option<Arc<str>>,
}

impl Repository {
    /// The mirror's name, when the repository is mirrored and nothing else.
    #[must_use]
    pub fn mirror(&self) -> Option<&str> {
        match &self.source {
            Source::Hosted | Source::Layered { .. } => None,
            Source::Mirror { mirror, .. } => Some(mirror),
        }
    }
}

/// How one mirror is addressed.
#[derive(Clone, Debug)]
pub struct MirrorNames {
    /// The mirror's name.
    pub mirror: Arc<str>,
    /// The path prefix, and the first part of canonical names.
    pub prefix: RepositoryName,
    /// `?ns=` values that mean this mirror, lower-case, with a port where the client's has one.
    pub namespaces: Vec<String>,
    /// `Host` values that mean this mirror, lower-case, without port unless one is written.
    pub hosts: Vec<String>,
    /// Whether single-component names get `library/` in front (Docker Hub).
    pub library: bool,
    /// Patterns on canonical names below the prefix that are pushed here: the upstream is never asked for them.
    pub hosted: Vec<Glob>,
    /// Patterns on canonical names below the prefix that are pushed here, and the upstream's while nothing was pushed.
    pub layered: Vec<Glob>,
}

/// What the edge read from a request about which repository it means.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address<'a> {
    /// The mirror that the listener is bound to: there, every name is its upstream's.
    pub mirror: Option<&'a str>,
    /// `Host` header or authority.
    pub host: Option<&'a str>,
    /// The `<prefix>` of `/<prefix>/v2/…`, when the path has that form.
    pub path_prefix: Option<&'a str>,
    /// The decoded `?ns=` value.
    pub namespace: Option<&'a str>,
}

/// The name means no repository here.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    /// Breaks the grammar.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No mirror, hosted pattern or default covers it.
    #[error("no mirror and no hosted pattern covers this name")]
    Unknown,
}

/// Every name the gateway answers to.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    /// All mirrors.
    pub mirrors: Vec<MirrorNames>,
    /// Patterns of hosted names; such a name never falls through to an upstream.
    pub hosted: Vec<Glob>,
    /// The mirror for names that nothing else covers.
    pub default_mirror: Option<Arc<str>>,
}

impl Namespaces {
    /// Resolves `spelled` as it was addressed.
    ///
    /// # Errors
    /// [`ResolveError`] when nothing configured covers it; an unlisted `?ns=` is never looked up elsewhere.
    pub fn resolve(&self, address: Address<'_>, spelled: &str) -> Result<Repository, ResolveError> {
        let spelled: RepositoryName = spelled.parse()?;
        if let Some(bound) = address.mirror {
            return self.bound(bound, address, &spelled);
        }
        if let Some(prefix) = address.path_prefix {
            let mirror = self
                .mirrors
                .iter()
                .find(|mirror| mirror.prefix.as_str() == prefix)
                .ok_or(ResolveError::Unknown)?;
            let mut repository = mirror.repository(&spelled, &spelled)?;
            repository.spelled = mirror.prefix.join(&spelled)?;
            repository.base = format!("/{prefix}/v2").into();
            repository.namespace = self.echo(mirror, address.namespace);
            return Ok(repository);
        }
        if let Some(mirror) = self.by_host(address.host) {
            let mut repository = mirror.repository(&spelled, &spelled)?;
            repository.namespace = self.echo(mirror, address.namespace);
            return Ok(repository);
        }
        if let Some((mirror, remote)) = self.by_prefix(&spelled) {
            let mut repository = mirror.repository(&spelled, &remote)?;
            repository.namespace = self.echo(mirror, address.namespace);
            return Ok(repository);
        }
        if let Some(namespace) = address.namespace {
            let mirror = self.by_namespace(namespace).ok_or(ResolveError::Unknown)?;
            let mut repository = mirror.repository(&spelled, &spelled)?;
            repository.namespace = Some(namespace.into());
            return Ok(repository);
        }
        if self
            .hosted
            .iter()
            .any(|pattern| pattern.matches(spelled.as_str()))
        {
            return Ok(Repository {
                name: spelled.clone(),
                spelled,
                base: "/v2".into(),
                source: Source::Hosted,
                namespace: None,
            });
        }
        let default = self
            .default_mirror
            .as_deref()
            .ok_or(ResolveError::Unknown)?;
        let mirror = self
            .mirrors
            .iter()
            .find(|mirror| *mirror.mirror == *default)
            .ok_or(ResolveError::Unknown)?;
        Ok(mirror.repository(&spelled, &spelled)?)
    }

    /// A name at a listener that is one mirror's: no prefix, pattern or default leads anywhere else, nor does a `?ns=` of another mirror.
    fn bound(
        &self,
        bound: &str,
        address: Address<'_>,
        spelled: &RepositoryName,
    ) -> Result<Repository, ResolveError> {
        let mut mirrors = self.mirrors.iter();
        let mirror = mirrors
            .find(|mirror| &*mirror.mirror == bound)
            .ok_or(ResolveError::Unknown)?;
        let named = address
            .namespace
            .and_then(|namespace| self.by_namespace(namespace));
        let elsewhere = named.is_some_and(|named| named.mirror != mirror.mirror);
        if elsewhere || address.path_prefix.is_some() {
            return Err(ResolveError::Unknown);
        }
        let mut repository = mirror.repository(spelled, spelled)?;
        repository.namespace = self.echo(mirror, address.namespace);
        Ok(repository)
    }

    /// Resolves a name that a token's scope spells: by prefix, hosted pattern, then the realm's own mirror or the default.
    ///
    /// # Errors
    /// As [`Namespaces::resolve`].
    pub fn resolve_in_scope(
        &self,
        address: Address<'_>,
        spelled: &str,
    ) -> Result<Repository, ResolveError> {
        self.resolve(
            Address {
                path_prefix: None,
                ..address
            },
            spelled,
        )
    }

    /// The mirror that every name at this listener or host belongs to.
    #[must_use]
    pub fn mirror_at(&self, address: Address<'_>) -> Option<&MirrorNames> {
        match address.mirror {
            Some(bound) => self.mirrors.iter().find(|it| &*it.mirror == bound),
            None => self.by_host(address.host),
        }
    }

    fn by_host(&self, host: Option<&str>) -> Option<&MirrorNames> {
        let host = host?.to_ascii_lowercase();
        let bare = host
            .rsplit_once(':')
            .map_or(host.as_str(), |(bare, _port)| bare);
        self.mirrors
            .iter()
            .find(|mirror| mirror.hosts.iter().any(|own| *own == host || own == bare))
    }

    /// The mirror with the longest prefix of the name, and what follows it.
    fn by_prefix(&self, spelled: &RepositoryName) -> Option<(&MirrorNames, RepositoryName)> {
        self.mirrors
            .iter()
            .filter_map(|mirror| Some((mirror, spelled.strip_prefix(&mirror.prefix)?)))
            .max_by_key(|(mirror, _)| mirror.prefix.as_str().len())
    }

    fn by_namespace(&self, namespace: &str) -> Option<&MirrorNames> {
        let namespace = namespace.to_ascii_lowercase();
        self.mirrors
            .iter()
            .find(|mirror| mirror.namespaces.contains(&namespace))
    }

    fn echo(&self, mirror: &MirrorNames, namespace: Option<&str>) -> Option<Arc<str>> {
        let namespace = namespace?;
        self.by_namespace(namespace)
            .filter(|named| named.mirror == mirror.mirror)
            .map(|_same| namespace.into())
    }
}

impl MirrorNames {
    fn repository(
        &self,
        spelled: &RepositoryName,
        remote: &RepositoryName,
    ) -> Result<Repository, NameError> {
        let remote = if self.library && remote.is_single_component() {
            format!("library/{remote}").parse()?
        } else {
            remote.clone()
        };
        let name = self.prefix.join(&remote)?;
        Ok(Repository {
            source: self.source(&name, remote),
            name,
            spelled: spelled.clone(),
            base: "/v2".into(),
            namespace: None,
        })
    }

    /// What is pushed here comes before what is cached, and the pattern that asks nobody else before the one that does.
    fn source(&self, name: &RepositoryName, remote: RepositoryName) -> Source {
        let among = |patterns: &[Glob]| {
            let mut patterns = patterns.iter();
            patterns.any(|pattern| pattern.matches(name.as_str()))
        };
        let mirror = Arc::clone(&self.mirror);
        if among(&self.hosted) {
            Source::Hosted
        } else if among(&self.layered) {
            Source::Layered { mirror, remote }
        } else {
            Source::Mirror { mirror, remote }
        }
    }
}
