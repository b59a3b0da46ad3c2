//! Glob patterns: `*` within a path segment, `**` as a whole segment across, `?`, `[a-z]`, `{one,two}`.
//!
//! Recursive and plain: configurations are short, and the host bounds the time.

/// Whether the whole of `text` matches.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    alternatives(pattern)
        .iter()
        .any(|pattern| step(&prepare(pattern), &text))
}

/// Whether a text is a pattern.
pub(crate) fn is_pattern(text: &str) -> bool {
    let balanced = |open: char, close: char| {
        let mut depth = 0_i32;
        for letter in text.chars() {
            depth += i32::from(letter == open) - i32::from(letter == close);
            if depth < 0 {
                return false;
            }
        }
        depth == 0
    };
    !text.is_empty() && text.len() <= 1024 && balanced('{', '}') && balanced('[', ']')
}

/// `a{b,c}` is `ab` and `ac`.
fn alternatives(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (mut depth, mut choices, mut tail) = (1_u32, vec![String::new()], "");
    for (at, letter) in rest.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                choices.push(String::new());
                continue;
            }
            _ => {}
        }
        if depth == 0 {
            tail = rest.get(at + 1..).unwrap_or_default();
            break;
        }
        if let Some(choice) = choices.last_mut() {
            choice.push(letter);
        }
    }
    choices
        .iter()
        .flat_map(|choice| alternatives(&format!("{head}{choice}{tail}")))
        .collect()
}

/// Two stars that are not a whole segment are one.
fn prepare(pattern: &str) -> Vec<char> {
    let segments = pattern.split('/').map(|segment| {
        if segment == "**" {
            return segment.to_owned();
        }
        let mut segment = segment.to_owned();
        while segment.contains("**") {
            segment = segment.replace("**", "*");
        }
        segment
    });
    segments.collect::<Vec<_>>().join("/").chars().collect()
}

fn step(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        // `a/**/b` is also `a/b`.
        ['*', '*', '/', rest @ ..] => {
            step(rest, text)
                || (0..text.len()).any(|at| {
                    text.get(at) == Some(&'/') && step(rest, text.get(at + 1..).unwrap_or_default())
                })
        }
        ['*', '*'] => true,
        ['*', rest @ ..] => {
            let segment = text.iter().take_while(|letter| **letter != '/').count();
            (0..=segment).any(|at| step(rest, text.get(at..).unwrap_or_default()))
        }
        ['?', rest @ ..] => {
            matches!(text, [letter, after @ ..] if *letter != '/' && step(rest, after))
        }
        ['[', rest @ ..] => class(rest, text),
        ['\\', letter, rest @ ..] | [letter, rest @ ..] => {
            matches!(text, [first, after @ ..] if first == letter && step(rest, after))
        }
    }
}

fn class(pattern: &[char], text: &[char]) -> bool {
    let [letter, after @ ..] = text else {
        return false;
    };
    let Some(end) = pattern.iter().position(|letter| *letter == ']') else {
        return false;
    };
    let (set, rest) = pattern.split_at(end);
    let (negated, mut set) = match set {
        ['!' | '^', set @ ..] => (true, set),
        set => (false, set),
    };
    let mut found = false;
    while let [first, more @ ..] = set {
        set = match more {
            ['-', last, more @ ..] => {
                found |= (first..=last).contains(&letter);
                more
            }
            more => {
                found |= first == letter;
                more
            }
        };
    }
    found != negated && *letter != '/' && step(rest.get(1..).unwrap_or_default(), after)
}
