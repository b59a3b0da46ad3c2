//! Reads `WWW-Authenticate` (RFC 9110 section 11.6.1): several header lines, several challenges in a line, quoted pairs.
//!
//! Pure. A line is read as far as it follows the grammar; what comes after a mistake is ignored, never guessed at.

use std::{iter::Peekable, str::Chars};

/// One way in, as the server describes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Challenge {
    /// Lower case.
    pub(crate) scheme: String,
    /// Names in lower case, in order.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Reads all challenges of all header lines.
    pub(crate) fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Self> {
        let mut challenges = Vec::new();
        for line in lines {
            let mut reader = Reader {
                rest: line.chars().peekable(),
            };
            reader.line(&mut challenges);
        }
        challenges
    }

    /// The first parameter of that name.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let mut named = self.parameters.iter().filter(|(key, _)| key == name);
        named.next().map(|(_, value)| value.as_str())
    }
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    /// A line: elements between commas. An element with `=` belongs to the challenge before it, any other begins one.
    fn line(&mut self, challenges: &mut Vec<Challenge>) -> Option<()> {
        let known = challenges.len();
        loop {
            self.skip(|c| is_space(c) || c == ',');
            let word = self.token()?;
            let spaced = self.skip(is_space);
            if self.rest.peek() == Some(&'=') {
                let value = self.value()?;
                let current = challenges.get_mut(known..)?.last_mut()?;
                current.parameters.push((word, value));
            } else {
                let parameters = spaced.then(|| self.first_parameter()).flatten();
                challenges.push(Challenge {
                    scheme: word,
                    parameters: parameters.into_iter().collect(),
                });
            }
            self.skip(is_space);
            match self.rest.peek() {
                None => return Some(()),
                Some(',') => {}
                Some(_) => return None,
            }
        }
    }

    /// What follows the scheme: a parameter, nothing, or a token68 as Negotiate sends it, which nobody here needs.
    fn first_parameter(&mut self) -> Option<(String, String)> {
        let mut ahead = Reader {
            rest: self.rest.clone(),
        };
        let read = ahead.token().and_then(|name| {
            ahead.skip(is_space);
            let value = ahead.value()?;
            ahead.skip(is_space);
            matches!(ahead.rest.peek(), None | Some(',')).then_some((name, value))
        });
        if read.is_some() {
            self.rest = ahead.rest;
        } else {
            self.skip(|c| c.is_ascii_alphanumeric() || "-._~+/=".contains(c));
        }
        read
    }

    fn skip(&mut self, wanted: impl Fn(char) -> bool) -> bool {
        let mut any = false;
        while self.rest.next_if(|c| wanted(*c)).is_some() {
            any = true;
        }
        any
    }

    /// A token, in lower case.
    fn token(&mut self) -> Option<String> {
        let mut word = String::new();
        while let Some(c) = self.rest.next_if(|c| is_token(*c)) {
            word.push(c.to_ascii_lowercase());
        }
        (!word.is_empty()).then_some(word)
    }

    /// `=` and a token or quoted string.
    fn value(&mut self) -> Option<String> {
        self.rest.next_if_eq(&'=')?;
        self.skip(is_space);
        let mut value = String::new();
        if self.rest.next_if_eq(&'"').is_none() {
            while let Some(c) = self.rest.next_if(|c| is_token(*c)) {
                value.push(c);
            }
            return (!value.is_empty()).then_some(value);
        }
        loop {
            match self.rest.next()? {
                '"' => return Some(value),
                '\\' => value.push(self.rest.next()?),
                c => value.push(c),
            }
        }
    }
}

fn is_space(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Challenge {
            scheme: scheme.to_owned(),
            parameters: parameters.iter().map(owned).collect(),
        }
    }

    fn check(lines: &[&str], expect: &[Challenge]) {
        assert_eq!(Challenge::parse(lines.iter().copied()), expect, "{lines:?}");
    }

    #[test]
    fn what_registries_send_is_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull",error="invalid_token""#;
        let parsed = Challenge::parse([hub]);
        assert_eq!(parsed.len(), 1);
        assert_eq!(
            parsed[0].parameter("realm"),
            Some("https://auth.docker.io/token")
        );
        assert_eq!(
            parsed[0].parameter("scope"),
            Some("repository:library/alpine:pull")
        );
        assert_eq!(parsed[0].parameter("error"), Some("invalid_token"));
        assert_eq!(parsed[0].parameter("other"), None);
        check(&["Basic"], &[challenge("basic", &[])]);
        check(
            &[r#"BASIC Realm = "x""#],
            &[challenge("basic", &[("realm", "x")])],
        );
        check(
            &[r#"Bearer scope="a:b:pull,push",realm=r"#],
            &[challenge(
                "bearer",
                &[("scope", "a:b:pull,push"), ("realm", "r")],
            )],
        );
    }

    #[test]
    fn several_challenges_are_read_from_one_line_and_from_several() {
        let both = [
            challenge("bearer", &[("realm", "b"), ("service", "s")]),
            challenge("basic", &[("realm", "a")]),
        ];
        check(
            &[r#"Bearer realm="b", service="s", Basic realm="a""#],
            &both,
        );
        check(
            &[r#"Bearer realm="b",service="s""#, r#"Basic realm="a""#],
            &both,
        );
        check(
            &[r#"Negotiate, Basic realm="a""#],
            &[
                challenge("negotiate", &[]),
                challenge("basic", &[("realm", "a")]),
            ],
        );
        check(
            &[r#"Negotiate oYH1/+a==, Basic realm="a""#],
            &[
                challenge("negotiate", &[]),
                challenge("basic", &[("realm", "a")]),
            ],
        );
    }

    #[test]
    fn quoted_pairs_are_unescaped_and_commas_in_quotes_are_text() {
        check(
            &[r#"Bearer realm="a\"b\\c, Basic realm=\"x\"""#],
            &[challenge(
                "bearer",
                &[("realm", r#"a"b\c, Basic realm="x""#)],
            )],
        );
    }

    #[test]
    fn what_follows_a_mistake_is_ignored() {
        check(&[r#"realm="x""#], &[]);
        check(&[r#"Bearer realm="open"#], &[challenge("bearer", &[])]);
        check(
            &[r#"Bearer realm="a" service="b""#],
            &[challenge("bearer", &[])],
        );
        check(
            &[r#"Basic realm="a", =, Bearer realm="b""#],
            &[challenge("basic", &[("realm", "a")])],
        );
        check(&["", ",,", "\u{e9}"], &[]);
        // A parameter of the next line is never given to a challenge of the line before.
        check(&["Bearer", r#"realm="x""#], &[challenge("bearer", &[])]);
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
    }

    fn rendered(challenges: &[Challenge]) -> String {
        let one = |challenge: &Challenge| {
            let parameters: Vec<String> = challenge
                .parameters
                .iter()
                .map(|(name, value)| format!("{name}={}", quoted(value)))
                .collect();
            format!("{} {}", challenge.scheme, parameters.join(","))
        };
        challenges.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    proptest! {
        #[test]
        fn what_was_rendered_is_read_back(parts in proptest::collection::vec(
            ("[a-z][a-z0-9-]{0,8}", proptest::collection::vec(("[a-z][a-z_]{0,8}", "[ -~]{0,24}"), 1..4)), 0..4)) {
            let challenges: Vec<Challenge> = parts
                .into_iter()
                .map(|(scheme, parameters)| Challenge { scheme, parameters })
                .collect();
            prop_assert_eq!(Challenge::parse([rendered(&challenges).as_str()]), challenges);
        }

        #[test]
        fn any_text_is_read_without_inventing_any(text in "[ -~\\t]{0,64}") {
            let lower = text.to_ascii_lowercase();
            for challenge in Challenge::parse([text.as_str()]) {
                prop_assert!(lower.contains(&challenge.scheme));
                for (name, _) in challenge.parameters {
                    prop_assert!(lower.contains(&name));
                }
            }
        }
    }
}
