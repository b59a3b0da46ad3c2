//! A repository name: `<name>` of the distribution spec, "Pulling manifests".
//!
//! Components of `[a-z0-9]+` joined by `.`, `_`, `__` or a run of `-`, separated by `/`; at most 255 bytes in all.

use std::{fmt, str::FromStr, sync::Arc};

/// The text is not a repository name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NameError {
    /// Breaks the grammar of the distribution spec.
    #[error(
        "not a repository name: lower-case letters, digits and single separators, components joined by /"
    )]
    Malformed,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("repository name is longer than 255 bytes")]
    TooLong,
}

/// The longest name clients and registries agree on.
pub const MAX_NAME_BYTES: usize = 255;

/// A parsed repository name. Cheap to clone.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    /// The whole name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the name has a single component (`alpine`).
    #[must_use]
    pub fn is_single_component(&self) -> bool {
        !self.0.contains('/')
    }

    /// What follows `prefix/`, when the name starts with it.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(prefix.as_str())?.strip_prefix('/')?;
        Some(Self(rest.into()))
    }

    /// `self/rest`.
    ///
    /// # Errors
    /// [`NameError::TooLong`] when the two together pass [`MAX_NAME_BYTES`].
    pub fn join(&self, rest: &Self) -> Result<Self, NameError> {
        if self.0.len() + 1 + rest.0.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        Ok(Self(format!("{self}/{rest}").into()))
    }
}

impl FromStr for RepositoryName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        if text.split('/').all(is_component) {
            Ok(Self(text.into()))
        } else {
            Err(NameError::Malformed)
        }
    }
}

fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let word = rest.iter().take_while(|byte| alphanumeric(**byte)).count();
        if word == 0 {
            return false;
        }
        rest = rest.get(word..).unwrap_or_default();
        let separator = match rest {
            [] => return true,
            [b'.', ..] => 1,
            [b'_', b'_', ..] => 2,
            [b'_', ..] => 1,
            _ => rest.iter().take_while(|byte| **byte == b'-').count(),
        };
        if separator == 0 {
            return false;
        }
        rest = rest.get(separator..).unwrap_or_default();
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
