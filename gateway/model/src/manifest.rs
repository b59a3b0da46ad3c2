//! A manifest or index, parsed as far as the registry must understand it (image-spec manifest.md and image-index.md, and
//! docker's schema 2 forms).
//!
//! The stored bytes are always the pushed bytes; this is only a view. One document has one meaning: a document with both
//! `layers` and `manifests` is refused (CVE-2021-41190), and so is one whose `mediaType` disagrees with its declared type.

use std::collections::BTreeMap;

use crate::{
    descriptor::{Descriptor, or_empty},
    media_type::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, MediaType, OCI_INDEX, OCI_MANIFEST},
};

/// Manifest bytes this registry accepts at most; the distribution-spec asks for at least 4 MB.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Which of the two shapes a manifest has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ManifestKind {
    /// A config and layers.
    Image,
    /// A list of manifests.
    Index,
}

/// The bytes are not a manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Neither a `Content-Type` nor a `mediaType` field says what it is.
    #[error("neither Content-Type nor mediaType says what kind of manifest this is")]
    Untyped,
    /// The type is not one of the four.
    #[error("unsupported manifest type {0}")]
    UnsupportedType(MediaType),
    /// The declared type and the document's own differ.
    #[error("Content-Type is {declared} but mediaType is {found}")]
    TypeMismatch {
        /// From the header.
        declared: MediaType,
        /// From the document.
        found: MediaType,
    },
    /// Not JSON, or not the JSON of a manifest.
    #[error("not a valid manifest: {0}")]
    Malformed(String),
}

/// The parts of a manifest that the registry acts on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Image or index.
    pub kind: ManifestKind,
    /// Its media type.
    pub media_type: MediaType,
    /// Its artifact type: the field, or else the config's media type (distribution-spec, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// The config, of an image.
    pub config: Option<Descriptor>,
    /// The layers, of an image.
    pub layers: Vec<Descriptor>,
    /// The children, of an index.
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to.
    pub subject: Option<Descriptor>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: u64,
    media_type: Option<MediaType>,
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "or_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "fsLayers")]
    schema1_layers: Option<serde::de::IgnoredAny>,
}

impl Manifest {
    /// Parses `bytes`, which the client or upstream declared to be `declared`.
    ///
    /// # Errors
    /// [`ManifestError`] with a sentence for the client.
    pub fn parse(declared: Option<&MediaType>, bytes: &[u8]) -> Result<Self, ManifestError> {
        let document: Document = serde_json::from_slice(bytes)
            .map_err(|error| ManifestError::Malformed(error.to_string()))?;
        let media_type = match (declared, document.media_type.clone()) {
            (Some(declared), Some(found)) if *declared != found => {
                return Err(ManifestError::TypeMismatch {
                    declared: declared.clone(),
                    found,
                });
            }
            (Some(declared), _) => declared.clone(),
            (None, Some(found)) => found,
            (None, None) => return Err(ManifestError::Untyped),
        };
        let kind = match media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => ManifestKind::Image,
            OCI_INDEX | DOCKER_MANIFEST_LIST => ManifestKind::Index,
            _ => return Err(ManifestError::UnsupportedType(media_type)),
        };
        document.check(kind)?;
        let artifact_type = document.artifact_type.filter(|kind| !kind.is_empty());
        let config_type = document
            .config
            .as_ref()
            .map(|config| config.media_type.to_string());
        Ok(Self {
            kind,
            media_type,
            artifact_type: artifact_type.or(config_type),
            config: document.config,
            layers: document.layers.unwrap_or_default(),
            manifests: document.manifests.unwrap_or_default(),
            subject: document.subject,
            annotations: document.annotations,
        })
    }

    /// Blobs that must be readable before the manifest is accepted: the config and every layer that has no `urls`.
    pub fn required_blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.config
            .iter()
            .chain(self.layers.iter().filter(|layer| layer.urls.is_empty()))
    }

    /// Everything the manifest names, except its subject.
    pub fn references(&self) -> impl Iterator<Item = &Descriptor> {
        self.config
            .iter()
            .chain(&self.layers)
            .chain(&self.manifests)
    }
}

impl Document {
    fn check(&self, kind: ManifestKind) -> Result<(), ManifestError> {
        let malformed = |why: &str| Err(ManifestError::Malformed(why.to_owned()));
        if self.schema_version != 2 {
            return malformed("schemaVersion is not 2");
        }
        if self.schema1_layers.is_some() {
            return malformed("schema 1 is not supported");
        }
        match kind {
            ManifestKind::Image if self.manifests.is_some() => {
                malformed("an image manifest with `manifests` is ambiguous")
            }
            ManifestKind::Image if self.config.is_none() => malformed("missing field `config`"),
            ManifestKind::Image if self.layers.is_none() => malformed("missing field `layers`"),
            ManifestKind::Index if self.layers.is_some() || self.config.is_some() => {
                malformed("an index with `config` or `layers` is ambiguous")
            }
            ManifestKind::Index if self.manifests.is_none() => {
                malformed("missing field `manifests`")
            }
            ManifestKind::Image | ManifestKind::Index => Ok(()),
        }
    }
}
