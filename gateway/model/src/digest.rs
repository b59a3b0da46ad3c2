//! A content digest, `<algorithm>:<lower-case hex>` (image-spec, descriptor.md "Digests").
//!
//! Knows the grammar of the two registered algorithms. Does not hash: `gantry-storage` does, while bytes pass.

use std::{fmt, str::FromStr, sync::Arc};

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Algorithm {
    /// SHA-256: 64 hex digits.
    Sha256,
    /// SHA-512: 128 hex digits.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hex digits follow the colon.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl FromStr for Algorithm {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(DigestError::UnsupportedAlgorithm),
        }
    }
}

/// The text is not a digest this registry can verify.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DigestError {
    /// Not `<algorithm>:<lower-case hex of the right length>`.
    #[error("not a digest: expected <algorithm>:<lower-case hex>")]
    Malformed,
    /// Well formed, but neither sha256 nor sha512.
    #[error("unsupported digest algorithm: use sha256 or sha512")]
    UnsupportedAlgorithm,
}

/// A parsed digest. Cheap to clone.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Digest {
    algorithm: Algorithm,
    text: Arc<str>,
}

impl Digest {
    /// Makes a digest from the raw output of a hash function; `None` when its length is not the algorithm's.
    #[must_use]
    pub fn from_bytes(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        use fmt::Write as _;
        if bytes.len() * 2 != algorithm.hex_len() {
            return None;
        }
        let mut text = String::with_capacity(algorithm.hex_len() + 7);
        text.push_str(algorithm.as_str());
        text.push(':');
        for byte in bytes {
            write!(text, "{byte:02x}").ok()?;
        }
        Some(Self {
            algorithm,
            text: text.into(),
        })
    }

    /// The algorithm before the colon.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hex digits after the colon.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text, as clients write it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Malformed)?;
        let named = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+._-".contains(&byte)
        };
        if algorithm.is_empty() || !algorithm.bytes().all(named) {
            return Err(DigestError::Malformed);
        }
        let algorithm: Algorithm = algorithm.parse()?;
        let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(lower_hex) {
            return Err(DigestError::Malformed);
        }
        Ok(Self {
            algorithm,
            text: text.into(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| serde::de::Error::custom(in_text(error, &text)))
    }
}

fn in_text(error: DigestError, text: &str) -> String {
    format!(
        "{error}, not `{}`",
        text.chars().take(100).collect::<String>()
    )
}

/// A digest as a document writes it: under any algorithm. Content under an algorithm that is not registered (blake3) can neither be
/// verified nor asked for here; documents that name it are passed on as they are.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum AnyDigest {
    /// One that this registry verifies.
    Known(Digest),
    /// One of another algorithm, well formed.
    Other(Arc<str>),
}

impl AnyDigest {
    /// The digest, when content under it can be here.
    #[must_use]
    pub fn known(&self) -> Option<&Digest> {
        match self {
            Self::Known(digest) => Some(digest),
            Self::Other(_) => None,
        }
    }

    /// The whole text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(digest) => digest.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl From<Digest> for AnyDigest {
    fn from(digest: Digest) -> Self {
        Self::Known(digest)
    }
}

impl FromStr for AnyDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        match text.parse() {
            Ok(digest) => Ok(Self::Known(digest)),
            Err(DigestError::UnsupportedAlgorithm) if is_encoded(text) => {
                Ok(Self::Other(text.into()))
            }
            Err(error) => Err(error),
        }
    }
}

/// The image-spec's `encoded`, after the colon: `[a-zA-Z0-9=_-]+`. No hash is longer than the bound.
fn is_encoded(text: &str) -> bool {
    let encoded = text.split_once(':').map_or("", |(_, encoded)| encoded);
    let mut bytes = encoded.bytes();
    !encoded.is_empty()
        && text.len() <= MAX_DIGEST_BYTES
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"=_-".contains(&byte))
}

const MAX_DIGEST_BYTES: usize = 512;

impl fmt::Display for AnyDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl serde::Serialize for AnyDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for AnyDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse()
            .map_err(|error| serde::de::Error::custom(in_text(error, &text)))
    }
}
