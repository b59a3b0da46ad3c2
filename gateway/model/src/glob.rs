//! A glob over names: `*` within a path segment, `**` across segments, `?`, `[a-z]`, `{one,two}`.

use std::{fmt, sync::Arc};

/// The pattern is not a glob.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum GlobError {
    /// An empty pattern would match only the empty name.
    #[error("an empty pattern")]
    Empty,
    /// Longer than 1024 bytes.
    #[error("a pattern longer than 1024 bytes")]
    TooLong,
    /// `{` or `[` without its end.
    #[error("unbalanced braces or brackets")]
    Unbalanced,
}

/// A checked glob. Cheap to clone; matching takes linear time in practice and never recurses on input.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct Glob(Arc<str>);

impl Glob {
    /// Checks a pattern.
    ///
    /// # Errors
    /// [`GlobError`] says what is wrong with it.
    pub fn parse(pattern: &str) -> Result<Self, GlobError> {
        if pattern.is_empty() {
            return Err(GlobError::Empty);
        }
        if pattern.len() > 1024 {
            return Err(GlobError::TooLong);
        }
        let balanced = |open: char, close: char| {
            let depth = pattern
                .chars()
                .try_fold(0_u32, |depth, letter| match letter {
                    letter if letter == open => depth.checked_add(1),
                    letter if letter == close => depth.checked_sub(1),
                    _ => Some(depth),
                });
            depth == Some(0)
        };
        if !balanced('{', '}') || !balanced('[', ']') {
            return Err(GlobError::Unbalanced);
        }
        Ok(Self(pattern.into()))
    }

    /// Whether the whole of `text` matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        fast_glob::glob_match(self.0.as_bytes(), text.as_bytes())
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Glob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}
