//! Byte ranges: the `Range` of a blob pull (RFC 9110 section 14.1.2) and the `Content-Range` of an upload chunk
//! (distribution-spec, "Pushing a blob in chunks": `<start>-<end>`, without unit or total).

use std::{ops::RangeInclusive, str::FromStr};

/// The text is not a single byte range.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a byte range")]
pub struct RangeError;

/// One requested byte range, not yet held against a length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByteRange {
    /// `bytes=first-last`, both inclusive.
    Between {
        /// First byte.
        first: u64,
        /// Last byte; may pass the end.
        last: u64,
    },
    /// `bytes=first-`.
    From(u64),
    /// `bytes=-length`: that many bytes at the end.
    Last(u64),
}

impl ByteRange {
    /// Reads a `Range` header. `Ok(None)` means: serve the whole, because the unit is unknown or several ranges are asked,
    /// both of which RFC 9110 section 14.2 lets a server ignore.
    ///
    /// # Errors
    /// [`RangeError`] when the unit is `bytes` and the rest is malformed.
    pub fn parse_header(value: &str) -> Result<Option<Self>, RangeError> {
        let Some((unit, set)) = value.split_once('=') else {
            return Err(RangeError);
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Ok(None);
        }
        if set.contains(',') {
            return set
                .split(',')
                .try_for_each(|one| one.trim().parse::<Self>().map(drop))
                .map(|()| None);
        }
        set.trim().parse().map(Some)
    }

    /// The bytes this means in content of `size` bytes; `None` when no byte of it exists.
    #[must_use]
    pub fn resolve(self, size: u64) -> Option<RangeInclusive<u64>> {
        let end = size.checked_sub(1)?;
        match self {
            Self::Between { first, last } if first <= end => Some(first..=last.min(end)),
            Self::From(first) if first <= end => Some(first..=end),
            Self::Last(length) if length > 0 => Some(size.saturating_sub(length)..=end),
            Self::Between { .. } | Self::From(_) | Self::Last(_) => None,
        }
    }
}

impl FromStr for ByteRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        match text.split_once('-').ok_or(RangeError)? {
            ("", length) => Ok(Self::Last(number(length)?)),
            (first, "") => Ok(Self::From(number(first)?)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                if first <= last {
                    Ok(Self::Between { first, last })
                } else {
                    Err(RangeError)
                }
            }
        }
    }
}

/// The bytes an upload chunk says it carries, both ends inclusive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ContentRange {
    /// Offset of the chunk's first byte.
    pub first: u64,
    /// Offset of the chunk's last byte.
    pub last: u64,
}

impl ContentRange {
    /// How many bytes the chunk has.
    #[must_use]
    pub fn length(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}

impl FromStr for ContentRange {
    type Err = RangeError;

    /// Reads `<first>-<last>`, and RFC 9110's `bytes <first>-<last>/<total or *>`, which some clients send.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        let text = match text.strip_prefix("bytes ") {
            Some(rest) => {
                let (range, total) = rest.split_once('/').ok_or(RangeError)?;
                if total != "*" {
                    number(total)?;
                }
                range
            }
            None => text,
        };
        let (first, last) = text.split_once('-').ok_or(RangeError)?;
        let (first, last) = (number(first)?, number(last)?);
        if first <= last {
            Ok(Self { first, last })
        } else {
            Err(RangeError)
        }
    }
}

/// Decimal digits only: `u64::from_str` would take a sign.
fn number(text: &str) -> Result<u64, RangeError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RangeError);
    }
    text.parse().map_err(|_too_large| RangeError)
}
