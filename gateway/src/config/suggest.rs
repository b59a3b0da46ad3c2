//! Finds what a misspelled word was meant to be.

/// The candidate nearest to `word` by edit distance, when it is near enough to be meant.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let folded = word.to_ascii_lowercase().replace('-', "_");
    // Words from the environment or a hostile file are unbounded, and the distance is quadratic.
    if folded.len() > 128 {
        return None;
    }
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let target = candidate.to_ascii_lowercase().replace('-', "_");
            let distance = strsim::damerau_levenshtein(&folded, &target);
            let allowed = (target.len().max(folded.len()) / 3).max(1);
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_slip_finds_its_word_and_another_word_finds_nothing() {
        let keys = ["mirrors", "listen", "url", "on_error"];
        assert_eq!(nearest("mirors", keys), Some("mirrors"));
        assert_eq!(nearest("on-error", keys), Some("on_error"));
        assert_eq!(nearest("URL", keys), Some("url"));
        assert_eq!(nearest("urll", keys), Some("url"));
        assert_eq!(nearest("completely", keys), None);
        assert_eq!(nearest(&"m".repeat(1_000_000), keys), None);
    }
}
