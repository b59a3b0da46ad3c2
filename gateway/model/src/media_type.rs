//! A media type (RFC 6838 section 4.2) and the ones this registry gives a meaning.
//!
//! A header's type must be `type/subtype` without parameters: clients compare the text. The type in a descriptor is text: artifact
//! clients write parameters there (`…bundle+json;version=0.2`), words without a slash (`spdx+json`), or nothing.

use std::{fmt, str::FromStr, sync::Arc};

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image manifest, version 2 schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Artifact manifest of the drafts of OCI 1.1.
pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
/// Artifact manifest of ORAS.
pub const ORAS_ARTIFACT: &str = "application/vnd.cncf.oras.artifact.manifest.v1+json";
/// Docker image manifest, schema 1. Its signed form has another type: [`DOCKER_SCHEMA1_SIGNED`].
pub const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker image manifest, schema 1, with signatures.
pub const DOCKER_SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// The types of manifests that this registry reads.
pub const MANIFEST_TYPES: [&str; 6] = [
    OCI_INDEX,
    OCI_MANIFEST,
    DOCKER_MANIFEST_LIST,
    DOCKER_MANIFEST,
    OCI_ARTIFACT,
    ORAS_ARTIFACT,
];
/// What a blob is when nobody said more.
pub const OCTET_STREAM: &str = "application/octet-stream";

/// What servers send that know nothing of manifests; `binary/octet-stream` is S3's.
const GENERIC_TYPES: [&str; 5] = [
    "application/json",
    "text/plain",
    "text/html",
    OCTET_STREAM,
    "binary/octet-stream",
];

/// The text is not `type/subtype`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a media type: expected type/subtype without parameters")]
pub struct MediaTypeError;

/// A parsed media type. Cheap to clone.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct MediaType(Arc<str>);

impl MediaType {
    /// The text as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A descriptor's type, which is any text.
    #[must_use]
    pub fn as_written(text: &str) -> Self {
        Self(text.into())
    }

    /// Whether it is one of the two types of indexes.
    #[must_use]
    pub fn is_index(&self) -> bool {
        [OCI_INDEX, DOCKER_MANIFEST_LIST].contains(&self.as_str())
    }

    /// Whether it is one of [`MANIFEST_TYPES`].
    #[must_use]
    pub fn is_manifest(&self) -> bool {
        MANIFEST_TYPES.contains(&self.as_str())
    }

    /// Whether it is one of the four types of image manifests and indexes.
    #[must_use]
    pub fn is_image_or_index(&self) -> bool {
        [
            OCI_INDEX,
            OCI_MANIFEST,
            DOCKER_MANIFEST_LIST,
            DOCKER_MANIFEST,
        ]
        .contains(&self.as_str())
    }

    /// Whether it is docker's schema 1, signed or not.
    #[must_use]
    pub fn is_schema1(&self) -> bool {
        [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED].contains(&self.as_str())
    }

    /// Whether it says no more than that there are bytes.
    #[must_use]
    pub fn is_generic(&self) -> bool {
        GENERIC_TYPES.contains(&self.as_str())
    }

    /// Whether a layer of this type may lie elsewhere: docker's foreign layers and OCI's non-distributable ones.
    #[must_use]
    pub fn is_foreign_layer(&self) -> bool {
        self.as_str() == "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
            || self
                .as_str()
                .starts_with("application/vnd.oci.image.layer.nondistributable.v1.tar")
    }

    /// Whether content of this type is stored as a blob: layers, configs and the state of build caches.
    #[must_use]
    pub fn is_blob(&self) -> bool {
        [
            "application/vnd.oci.image.layer.",
            "application/vnd.oci.image.config.",
            "application/vnd.oci.empty.",
            "application/vnd.docker.image.rootfs.",
            "application/vnd.docker.container.image.",
            "application/vnd.buildkit.cacheconfig.",
            OCTET_STREAM,
        ]
        .iter()
        .any(|prefix| self.as_str().starts_with(prefix))
    }

    /// `application/octet-stream`.
    #[must_use]
    pub fn octet_stream() -> Self {
        Self(OCTET_STREAM.into())
    }
}

fn usual_spelling(text: &str) -> &str {
    let schema1 = [DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED];
    let mut known = MANIFEST_TYPES.iter().chain(&schema1).chain(&GENERIC_TYPES);
    let known = known.find(|known| known.eq_ignore_ascii_case(text));
    known.copied().unwrap_or(text)
}

impl FromStr for MediaType {
    type Err = MediaTypeError;

    /// A type that has a meaning here is spelled as its constant, because names of media types ignore case (RFC 9110 section 8.3.1).
    fn from_str(text: &str) -> Result<Self, MediaTypeError> {
        let restricted = |name: &str| {
            let mut bytes = name.bytes();
            bytes
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric())
                && name.len() <= 127
                && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
        };
        match text.split_once('/') {
            Some((kind, subtype)) if restricted(kind) && restricted(subtype) => {
                Ok(Self(usual_spelling(text).into()))
            }
            _ => Err(MediaTypeError),
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl serde::Serialize for MediaType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for MediaType {
    /// As written: see [`MediaType::as_written`].
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::as_written(&text))
    }
}
