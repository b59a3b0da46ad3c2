//! A content descriptor (image-spec, descriptor.md): media type, digest, size, and what describes the content further.

use std::collections::BTreeMap;

use crate::{digest::Digest, media_type::MediaType};

/// Points at content. Unknown fields are allowed by the image-spec and ignored here; the stored bytes keep them.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes; the image-spec says int64, so at most `i64::MAX`.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// What kind of artifact the content is, for manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations of the descriptor.
    #[serde(
        default,
        deserialize_with = "or_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// Where else the content may be had; such a layer may be absent here. Never fetched by this registry.
    #[serde(
        default,
        deserialize_with = "or_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor with nothing but the three required fields.
    #[must_use]
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self {
            media_type,
            digest,
            size,
            artifact_type: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size: i64 = serde::Deserialize::deserialize(deserializer)?;
    u64::try_from(size).map_err(|_negative| serde::de::Error::custom("size is negative"))
}

/// Go's encoders write `null` for an empty map or slice.
pub(crate) fn or_empty<'de, D: serde::Deserializer<'de>, T: Default + serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value: Option<T> = serde::Deserialize::deserialize(deserializer)?;
    Ok(value.unwrap_or_default())
}
