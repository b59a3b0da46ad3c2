//! The name of an upload session: 128 random bits, in the shape of a version 4 UUID (RFC 9562 section 5.4).

use std::{fmt, str::FromStr};

/// The text is not an upload session's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not an upload session")]
pub struct UploadIdError;

/// Names an upload session. Unguessable, but never the only guard: a session also belongs to a repository and a principal.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UploadId([u8; 16]);

impl UploadId {
    /// Makes an id from 16 random bytes; sets the version and variant bits.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 16]) -> Self {
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                formatter.write_str("-")?;
            }
            write!(formatter, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for UploadId {
    type Err = UploadIdError;

    fn from_str(text: &str) -> Result<Self, UploadIdError> {
        let dashed = text
            .char_indices()
            .filter(|(_, letter)| *letter == '-')
            .map(|(index, _)| index);
        if text.len() != 36 || !dashed.eq([8, 13, 18, 23]) {
            return Err(UploadIdError);
        }
        let mut nibbles = text.bytes().filter(|byte| *byte != b'-');
        let mut nibble = || match nibbles.next() {
            Some(digit @ b'0'..=b'9') => Ok(digit - b'0'),
            Some(letter @ b'a'..=b'f') => Ok(letter - b'a' + 10),
            _ => Err(UploadIdError),
        };
        let mut bytes = [0_u8; 16];
        for byte in &mut bytes {
            *byte = (nibble()? << 4) | nibble()?;
        }
        Ok(Self(bytes))
    }
}
