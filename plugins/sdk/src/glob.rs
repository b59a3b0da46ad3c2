//! A glob over names, as the gateway's own configuration has: `*` within a path segment, `**` as a whole segment across segments, `?`,
//! `[a-z]`, `{one,two}`.
//!
//! Reads from a configuration string; a pattern that is not a glob is a configuration issue at its place.

use serde::{Deserialize, Deserializer, de};

/// A checked glob.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Glob(String);

impl Glob {
    /// Checks a pattern.
    ///
    /// # Errors
    /// A phrase that says what is wrong with it.
    pub fn parse(pattern: &str) -> Result<Self, &'static str> {
        if pattern.is_empty() {
            return Err("an empty pattern as");
        }
        if pattern.len() > 1024 {
            return Err("a pattern longer than 1024 bytes in");
        }
        if !is_balanced(pattern, '{', '}') || !is_balanced(pattern, '[', ']') {
            return Err("unbalanced braces or brackets in");
        }
        Ok(Self(pattern.to_owned()))
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

/// Whether any of `globs` matches the whole of `text`.
#[must_use]
pub fn any_matches(globs: &[Glob], text: &str) -> bool {
    globs.iter().any(|glob| glob.matches(text))
}

fn is_balanced(pattern: &str, open: char, close: char) -> bool {
    let depth = pattern
        .chars()
        .try_fold(0_u32, |depth, letter| match letter {
            letter if letter == open => depth.checked_add(1),
            letter if letter == close => depth.checked_sub(1),
            _ => Some(depth),
        });
    depth == Some(0)
}

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let pattern = String::deserialize(deserializer)?;
        Self::parse(&pattern)
            .map_err(|problem| de::Error::custom(format!("{problem} the glob {pattern}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_within_a_segment_and_two_cross() {
        for (pattern, text, expected) in [
            ("apps/*", "apps/web", true),
            ("apps/*", "apps/web/api", false),
            ("apps/**", "apps/web/api", true),
            ("**", "a/b/c", true),
            ("a/**/b", "a/b", true),
            ("apps**", "apps/web", false),
            ("*", "v1.0", true),
            ("user:*", "user:alice", true),
            ("v[0-9]*", "v1.2", true),
            ("v[0-9]*", "vx", false),
            ("{a,b}/x", "b/x", true),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_broken_pattern_is_refused() {
        let long = "a".repeat(1025);
        for pattern in ["", "a{b", "a]b", "}{", long.as_str()] {
            assert!(Glob::parse(pattern).is_err(), "{pattern}");
        }
    }
}
