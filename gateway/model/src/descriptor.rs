//! A content descriptor (image-spec, descriptor.md): media type, digest, size, and what describes the content further.

use std::collections::BTreeMap;

use crate::{
    digest::{AnyDigest, Digest},
    media_type::MediaType,
};

/// Points at content that this registry can have.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What kind of artifact the content is, for manifests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations of the descriptor.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
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
        }
    }
}

/// A descriptor as a document writes it. Unknown fields are allowed by the image-spec and ignored here; the stored bytes keep them.
#[derive(Clone, Debug, Eq, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrittenDescriptor {
    /// What the content is: any text, empty when the document does not say.
    #[serde(default = "nothing", deserialize_with = "or_nothing")]
    pub media_type: MediaType,
    /// Its digest, under any algorithm.
    pub digest: AnyDigest,
    /// Its length in bytes; the image-spec says int64, so at most `i64::MAX`.
    #[serde(deserialize_with = "size")]
    pub size: u64,
    /// What kind of artifact the content is, for manifests.
    #[serde(default)]
    pub artifact_type: Option<String>,
    /// Annotations of the descriptor.
    #[serde(default, deserialize_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// Where else the content may be had; such a layer may be absent here. Never fetched by this registry.
    #[serde(default, deserialize_with = "or_empty")]
    pub urls: Vec<String>,
    /// What the content runs on, for the manifests of an index.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// What an image runs on.
#[derive(Clone, Debug, Default, Eq, PartialEq, serde::Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, …
    #[serde(default, deserialize_with = "or_empty")]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default, deserialize_with = "or_empty")]
    pub architecture: String,
    /// `v8` and the like.
    #[serde(default)]
    pub variant: Option<String>,
    /// The version of the operating system.
    #[serde(default, rename = "os.version")]
    pub os_version: Option<String>,
    /// What the image needs of the operating system.
    #[serde(default, rename = "os.features", deserialize_with = "or_empty")]
    pub os_features: Vec<String>,
}

fn nothing() -> MediaType {
    MediaType::as_written("")
}

fn or_nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<MediaType, D::Error> {
    let text: Option<MediaType> = serde::Deserialize::deserialize(deserializer)?;
    Ok(text.unwrap_or_else(nothing))
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size: i64 = serde::Deserialize::deserialize(deserializer)?;
    u64::try_from(size)
        .map_err(|_negative| serde::de::Error::custom(format!("a size is not negative: {size}")))
}

/// A map of texts; a `null` in it is the empty text, as Go's clients read it.
pub(crate) fn annotations<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    let written: BTreeMap<String, Option<String>> = or_empty(deserializer)?;
    let texts = written.into_iter();
    Ok(texts
        .map(|(key, text)| (key, text.unwrap_or_default()))
        .collect())
}

/// Go's encoders write `null` for an empty map or slice.
pub(crate) fn or_empty<'de, D: serde::Deserializer<'de>, T: Default + serde::Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value: Option<T> = serde::Deserialize::deserialize(deserializer)?;
    Ok(value.unwrap_or_default())
}
