//! The query string, decoded once, and the percent-decoding that paths share.

use super::RouteError;

/// Pairs of one query at most: more is nobody's client.
const MAX_PAIRS: usize = 256;

/// A decoded query.
#[derive(Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads a raw query, or a form's body.
    ///
    /// # Errors
    /// [`RouteError::Encoding`].
    pub fn parse(raw: &str) -> Result<Self, RouteError> {
        Self::parse_up_to(MAX_PAIRS, raw)
    }

    /// The same for a reader that expects many pairs.
    ///
    /// # Errors
    /// [`RouteError::Encoding`].
    pub fn parse_up_to(most: usize, raw: &str) -> Result<Self, RouteError> {
        let mut pairs = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if pairs.len() == most {
                return Err(RouteError::Encoding("too many query parameters"));
            }
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            pairs.push((decode(key, true)?, decode(value, true)?));
        }
        Ok(Self { pairs })
    }

    /// Every value of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The only value of `key`. Two values would let two readers of the same request see different ones.
    ///
    /// # Errors
    /// [`RouteError::Repeated`].
    pub fn single(&self, key: &'static str) -> Result<Option<&str>, RouteError> {
        let mut values = self.all(key);
        let first = values.next();
        if values.next().is_some() {
            return Err(RouteError::Repeated(key));
        }
        Ok(first)
    }
}

/// Decodes `%XX` once; `+` is a space in queries. Strict: a `%` without two hex digits, or bytes that are not UTF-8, are refused.
pub(super) fn decode(raw: &str, plus_is_space: bool) -> Result<String, RouteError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let high = rest.next().and_then(hex);
                let low = rest.next().and_then(hex);
                match (high, low) {
                    (Some(high), Some(low)) => (high << 4) | low,
                    _ => return Err(RouteError::Encoding("malformed percent-encoding")),
                }
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_bytes| RouteError::Encoding("not UTF-8"))
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
