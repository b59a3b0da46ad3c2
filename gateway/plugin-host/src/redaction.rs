//! Keeps a plugin's own secrets out of what is said about it and by it: a guest may quote its configuration when it refuses it, panics
//! or logs.
//!
//! Owns how secrets are found in a text. Which texts are secret is the binary's word.

use std::fmt;

/// Shorter pieces are left alone: they are in every sentence.
const SHORTEST: usize = 4;

/// Texts that must not be shown. `Debug` does not show them either.
#[derive(Clone, Default)]
pub struct Redaction(Vec<String>);

impl fmt::Debug for Redaction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Redaction(***)")
    }
}

impl Redaction {
    /// These texts, line by line.
    #[must_use]
    pub fn of(texts: impl IntoIterator<Item = String>) -> Self {
        let mut pieces: Vec<String> = texts
            .into_iter()
            .flat_map(|text| {
                text.lines()
                    .map(|line| line.trim().to_owned())
                    .collect::<Vec<_>>()
            })
            .filter(|line| line.len() >= SHORTEST)
            .collect();
        // The longest first, so that no part of one stays.
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
        Self(pieces)
    }

    /// The text without them.
    #[must_use]
    pub fn clean(&self, text: String) -> String {
        self.0
            .iter()
            .filter(|piece| !piece.is_empty())
            .fold(text, |text, piece| {
                if text.contains(piece) {
                    text.replace(piece, "***")
                } else {
                    text
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_a_file_is_not_in_the_sentence() {
        let redaction = Redaction::of(["hunter2\nhunter2-long\n\nab\n".to_owned()]);
        let cleaned = redaction.clean("is \"hunter2-long\" or hunter2, ab".to_owned());
        assert_eq!(cleaned, "is \"***\" or ***, ab");
        assert!(!format!("{redaction:?}").contains("hunter"));
    }
}
