//! Which ids a binding may make: `user:*`, `robot:ci+*`, `user:root`.
//!
//! Invariant: two authenticators never make the same id, so an id always has one that knows what became of it.

use std::fmt;

/// Longest pattern; ids have no more bytes.
const MAX_BYTES: usize = 255;

/// A pattern of principals' ids: a text that is the id, or that the id begins with when `*` ends it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdPattern {
    text: String,
    is_open: bool,
}

impl IdPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(pattern: &str) -> Result<Self, &'static str> {
        let (text, is_open) = match pattern.strip_suffix('*') {
            Some(beginning) => (beginning, true),
            None => (pattern, false),
        };
        if pattern.is_empty() || pattern.len() > MAX_BYTES {
            return Err("empty or longer than 255 bytes");
        }
        if text.contains('*') || text.chars().any(char::is_control) {
            return Err("`*` stands only at the end, and control characters are in no id");
        }
        if text.starts_with("upstream:") || text == "anonymous" || text == "system" {
            return Err("only the gateway makes this id");
        }
        Ok(Self {
            text: text.to_owned(),
            is_open,
        })
    }

    /// Whether the pattern allows an id.
    #[must_use]
    pub fn allows(&self, id: &str) -> bool {
        match self.is_open {
            true => id.starts_with(&self.text),
            false => id == self.text,
        }
    }

    /// Whether both patterns allow some id.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.is_open, other.is_open) {
            (true, true) => {
                self.text.starts_with(&other.text) || other.text.starts_with(&self.text)
            }
            (_, false) => self.allows(&other.text),
            (false, true) => other.allows(&self.text),
        }
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)?;
        formatter.write_str(if self.is_open { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> IdPattern {
        IdPattern::parse(text).unwrap()
    }

    #[test]
    fn a_pattern_allows_an_id_or_what_begins_with_it() {
        for (text, id, expected) in [
            ("user:*", "user:alice", true),
            ("user:*", "user:team/alice", true),
            ("user:*", "users:alice", false),
            ("user:root", "user:root", true),
            ("user:root", "user:root2", false),
            ("*", "gitlab:project:42", true),
        ] {
            assert_eq!(pattern(text).allows(id), expected, "{text} {id}");
            assert_eq!(pattern(text).to_string(), text);
        }
    }

    #[test]
    fn patterns_overlap_when_some_id_is_of_both() {
        for (one, other, expected) in [
            ("user:*", "user:*", true),
            ("user:*", "*", true),
            ("user:*", "user:a*", true),
            ("user:*", "user:root", true),
            ("user:root", "user:root", true),
            ("user:*", "robot:*", false),
            ("user:*", "user", false),
            ("user:root", "user:roots", false),
            ("robot:a*", "robot:b*", false),
        ] {
            assert_eq!(
                pattern(one).overlaps(&pattern(other)),
                expected,
                "{one} {other}"
            );
            assert_eq!(
                pattern(other).overlaps(&pattern(one)),
                expected,
                "{other} {one}"
            );
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for text in [
            "",
            "a*b",
            "**",
            "upstream:*",
            "anonymous",
            "system",
            "a\nb",
            &"a".repeat(256),
        ] {
            assert!(IdPattern::parse(text).is_err(), "{text}");
        }
    }
}
