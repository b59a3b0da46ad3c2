//! What an operator means by a name: a whole repository, some of its tags, or one digest.
//!
//! Owns the form `REPOSITORY[:TAG][@DIGEST]`, where repository and tag may be globs. Names are canonical. Looks nothing up.

use std::fmt;

use gantry_model::{Digest, RepositoryName, Tag, glob::Glob};

/// Some content of mirrored repositories.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Selection {
    text: String,
    repositories: Glob,
    pub(super) what: What,
}

/// What of a repository.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum What {
    /// All of it.
    Everything,
    /// What these tags name.
    Tags(Glob),
    /// A manifest and what it names.
    Digest(Digest),
}

impl Selection {
    /// Reads `docker.io/library/alpine`, `ghcr.io/**`, `docker.io/library/alpine:3.*` or `ghcr.io/org/tool@sha256:…`.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        let glob = |part: &str| Glob::parse(part).map_err(|error| format!("`{text}`: {error}"));
        let (name, what) = if let Some((name, digest)) = text.split_once('@') {
            let digest = digest.parse::<Digest>();
            let digest = digest.map_err(|error| format!("`{text}`: {error}"))?;
            // `name:tag@digest` means the digest, as everywhere.
            (split_tag(name).0, What::Digest(digest))
        } else {
            match split_tag(text) {
                (name, Some(tag)) => (name, What::Tags(glob(tag)?)),
                (name, None) => (name, What::Everything),
            }
        };
        Ok(Self {
            text: text.to_owned(),
            repositories: glob(name)?,
            what,
        })
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn covers(&self, repository: &RepositoryName) -> bool {
        self.repositories.matches(repository.as_str())
    }

    pub(super) fn covers_tag(&self, tag: &Tag) -> bool {
        match &self.what {
            What::Everything => true,
            What::Tags(glob) => glob.matches(tag.as_str()),
            What::Digest(_) => false,
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

/// The tag is what follows the last colon, when no slash follows that: `localhost:5000/x` has none.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_selection_is_a_repository_some_of_its_tags_or_a_digest() {
        let check = |text: &str, repository: &str, what: What| {
            let selection = Selection::parse(text).unwrap();
            assert_eq!(selection.repositories.as_str(), repository, "{text}");
            assert_eq!(selection.what, what, "{text}");
            assert_eq!(selection.as_str(), text);
        };
        let tags = |glob| What::Tags(Glob::parse(glob).unwrap());
        let digest = || What::Digest(DIGEST.parse().unwrap());
        check("docker.io/**", "docker.io/**", What::Everything);
        check("docker.io/a:3.*", "docker.io/a", tags("3.*"));
        check("host:5000/a", "host:5000/a", What::Everything);
        check("host:5000/a:v1", "host:5000/a", tags("v1"));
        check(&format!("a/b@{DIGEST}"), "a/b", digest());
        check(&format!("a/b:v1@{DIGEST}"), "a/b", digest());
    }

    #[test]
    fn what_is_no_selection_is_told() {
        for text in ["", ":v1", "a:", "a@sha256:12", "@", "a/{b", "a:[1"] {
            let refused = Selection::parse(text).unwrap_err();
            assert!(refused.contains(text), "{refused}");
        }
    }
}
