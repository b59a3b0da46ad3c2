//! Text that a guest wrote and a person or a log will read: bounded, without control characters.

/// `text` without control and direction-changing characters, cut at a character boundary to `max_bytes`. Line breaks become spaces.
pub(crate) fn clean(text: &str, max_bytes: usize) -> String {
    let mut cleaned = String::with_capacity(text.len().min(max_bytes));
    for letter in text.chars() {
        let letter = match letter {
            '\n' | '\r' | '\t' => ' ',
            letter if is_hidden(letter) => continue,
            letter => letter,
        };
        if cleaned.len() + letter.len_utf8() > max_bytes {
            break;
        }
        cleaned.push(letter);
    }
    cleaned
}

/// Whether a character changes how its neighbors are shown, instead of being shown.
fn is_hidden(letter: char) -> bool {
    letter.is_control()
        || matches!(
            letter,
            '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn control_characters_go_and_line_breaks_become_spaces() {
        assert_eq!(
            clean("a\u{1b}[31mb\r\nc\0\u{7f}\u{202e}d", 512),
            "a[31mb  cd"
        );
    }

    #[test]
    fn a_cut_falls_between_characters() {
        let long = "é".repeat(300);
        let cut = clean(&long, 511);
        assert_eq!(cut.len(), 510);
        assert!(long.starts_with(&cut));
    }
}
