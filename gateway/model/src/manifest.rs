//! A manifest or index, read as far as the registry must understand it (image-spec manifest.md and image-index.md, docker's schema 2
//! forms, and the artifact manifests of ORAS and OCI's drafts).
//!
//! The stored bytes are always the pushed bytes; this is only a view. One document has one meaning: what two readers could read
//! differently is no [`Manifest`]. A push of such a document is refused; an upstream's or an adopted one is passed on as it is, and is
//! [`Document::Opaque`] to whatever acts on what documents say.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use serde::de::{self, Visitor};
use serde_json::value::RawValue;

use crate::{
    descriptor::{WrittenDescriptor, annotations},
    digest::{Algorithm, Digest},
    json,
    media_type::{
        DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_SCHEMA1, MediaType, OCI_ARTIFACT, OCI_INDEX,
        OCI_MANIFEST, ORAS_ARTIFACT,
    },
};

/// Manifest bytes this registry accepts at most; the distribution-spec asks for at least 4 MB.
pub const MAX_MANIFEST_BYTES: usize = 4 << 20;

/// Bytes of annotations, keys and values, that a pushed manifest may carry in all, unless the configuration says otherwise.
pub const MAX_ANNOTATION_BYTES: usize = 512 << 10;

/// Which shape a manifest has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ManifestKind {
    /// A config and layers.
    Image,
    /// A list of manifests.
    Index,
    /// Blobs without a config: the artifact manifests of ORAS and of OCI's drafts.
    Artifact,
}

/// The bytes are not a manifest that can be acted on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Neither a `Content-Type` nor a `mediaType` field says what it is.
    #[error("neither Content-Type nor mediaType says what kind of manifest this is")]
    Untyped,
    /// The type is none that is read here.
    #[error("unsupported manifest type {0}")]
    UnsupportedType(MediaType),
    /// Docker's schema 1, which no client has written since 2016.
    #[error(
        "docker's schema 1 is not supported: build or push the image again as schema 2 or OCI, which docker does since 1.10"
    )]
    Schema1,
    /// The declared type and the document's own differ.
    #[error("Content-Type is {declared} but mediaType is {found}")]
    TypeMismatch {
        /// From the header.
        declared: MediaType,
        /// From the document.
        found: String,
    },
    /// Readers differ about what it says.
    #[error("not I-JSON (RFC 7493), so that readers differ about what it says: {0}")]
    Ambiguous(String),
    /// Not the JSON of a manifest.
    #[error("not a valid manifest: {0}")]
    Malformed(String),
    /// More annotations than a push may carry.
    #[error("the annotations have {bytes} bytes; at most {most} may be pushed")]
    TooManyAnnotations {
        /// How many there are.
        bytes: usize,
        /// How many there may be.
        most: usize,
    },
}

/// The parts of a manifest that the registry acts on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Manifest {
    /// Its shape.
    pub kind: ManifestKind,
    /// Its media type.
    pub media_type: MediaType,
    /// Its artifact type: the field, or else the config's media type (distribution-spec, "Listing Referrers").
    pub artifact_type: Option<String>,
    /// The config, of an image.
    pub config: Option<WrittenDescriptor>,
    /// The layers of an image, or the blobs of an artifact.
    pub layers: Vec<WrittenDescriptor>,
    /// The children, of an index. Not all of them need be manifests: build caches are indexes of layers.
    pub manifests: Vec<WrittenDescriptor>,
    /// The manifest this one refers to.
    pub subject: Option<WrittenDescriptor>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Fields {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<WrittenDescriptor>,
    layers: Option<Vec<WrittenDescriptor>>,
    manifests: Option<Vec<WrittenDescriptor>>,
    blobs: Option<Vec<WrittenDescriptor>>,
    subject: Option<WrittenDescriptor>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "fsLayers")]
    schema1_layers: Option<de::IgnoredAny>,
}

impl Manifest {
    /// Reads `bytes`, which the client or upstream declared to be `declared`.
    ///
    /// # Errors
    /// [`ManifestError`] with a sentence for the client.
    pub fn parse(declared: Option<&MediaType>, bytes: &[u8]) -> Result<Self, ManifestError> {
        if declared.is_some_and(MediaType::is_schema1) {
            return Err(ManifestError::Schema1);
        }
        json::check(bytes).map_err(ManifestError::Ambiguous)?;
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let fields: Fields = serde_path_to_error::deserialize(&mut reader)
            .map_err(|error| ManifestError::Malformed(json::sentence(&error)))?;
        if fields.schema_version == Some(1) || fields.schema1_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let media_type = fields.media_type(declared)?;
        let kind = match media_type.as_str() {
            OCI_MANIFEST | DOCKER_MANIFEST => ManifestKind::Image,
            OCI_INDEX | DOCKER_MANIFEST_LIST => ManifestKind::Index,
            OCI_ARTIFACT | ORAS_ARTIFACT => ManifestKind::Artifact,
            _ => return Err(ManifestError::UnsupportedType(media_type)),
        };
        fields.check(kind)?;
        Ok(fields.into_manifest(kind, media_type))
    }

    /// Blobs that must be readable before the manifest is accepted: the config and every layer that has no `urls`. What has a digest of
    /// an unknown algorithm cannot be here.
    pub fn required_blobs(&self) -> impl Iterator<Item = (&Digest, &WrittenDescriptor)> {
        let layers = self.layers.iter().filter(|layer| layer.urls.is_empty());
        known(self.config.iter().chain(layers))
    }

    /// What is to be fetched with the manifest, as blobs: as [`Manifest::required_blobs`], and the children of an index that are blobs by
    /// their type, as in build caches.
    pub fn blobs(&self) -> impl Iterator<Item = (&Digest, &WrittenDescriptor)> {
        let children = self.manifests.iter();
        let blobs = children.filter(|child| child.media_type.is_blob());
        self.required_blobs().chain(known(blobs))
    }

    /// The children of an index whose type does not say whether they are manifests or blobs. A registry has each as one of the two.
    pub fn children_of_unknown_type(&self) -> impl Iterator<Item = (&Digest, &WrittenDescriptor)> {
        let children = self.manifests.iter();
        known(children.filter(|child| !is_manifest(child) && !child.media_type.is_blob()))
    }

    /// The children of an index that are manifests themselves.
    pub fn children(&self) -> impl Iterator<Item = (&Digest, &WrittenDescriptor)> {
        let children = self.manifests.iter();
        known(children.filter(|child| is_manifest(child)))
    }

    /// Everything the manifest names, except its subject.
    pub fn references(&self) -> impl Iterator<Item = &Digest> {
        known(self.descriptors()).map(|(digest, _)| digest)
    }

    /// Bytes of its annotations, and of those of its descriptors.
    #[must_use]
    pub fn annotation_bytes(&self) -> usize {
        let own = self.descriptors().chain(&self.subject);
        let maps = own.map(|descriptor| &descriptor.annotations);
        maps.chain([&self.annotations])
            .flatten()
            .map(|(key, text)| key.len() + text.len())
            .sum()
    }

    fn descriptors(&self) -> impl Iterator<Item = &WrittenDescriptor> {
        self.config
            .iter()
            .chain(&self.layers)
            .chain(&self.manifests)
    }
}

/// Whether the child of an index is a manifest: also when the index does not say what it is.
fn is_manifest(child: &WrittenDescriptor) -> bool {
    child.media_type.is_manifest() || child.media_type.as_str().is_empty()
}

fn known<'a>(
    descriptors: impl Iterator<Item = &'a WrittenDescriptor>,
) -> impl Iterator<Item = (&'a Digest, &'a WrittenDescriptor)> {
    descriptors.filter_map(|descriptor| Some((descriptor.digest.known()?, descriptor)))
}

impl Fields {
    /// The manifest's own type, by which it is read. An empty field is none.
    fn media_type(&self, declared: Option<&MediaType>) -> Result<MediaType, ManifestError> {
        let own = self.media_type.as_deref().filter(|own| !own.is_empty());
        match (declared, own) {
            (Some(declared), Some(own)) if declared.as_str() != own => {
                Err(ManifestError::TypeMismatch {
                    declared: declared.clone(),
                    found: own.to_owned(),
                })
            }
            (Some(declared), _) => Ok(declared.clone()),
            (None, Some(own)) => Ok(MediaType::as_written(own)),
            (None, None) => Err(ManifestError::Untyped),
        }
    }

    fn check(&self, kind: ManifestKind) -> Result<(), ManifestError> {
        let malformed = |why: &str| Err(ManifestError::Malformed(why.to_owned()));
        if kind != ManifestKind::Artifact && self.schema_version != Some(2) {
            let found = self.schema_version;
            let found = found.map_or_else(|| "missing".to_owned(), |found| found.to_string());
            return malformed(&format!("schemaVersion is {found}, not 2"));
        }
        match kind {
            ManifestKind::Image if self.manifests.is_some() => {
                malformed("an image manifest with `manifests` is ambiguous")
            }
            ManifestKind::Image if self.config.is_none() => malformed("missing field `config`"),
            ManifestKind::Index if self.layers.is_some() || self.config.is_some() => {
                malformed("an index with `config` or `layers` is ambiguous")
            }
            ManifestKind::Artifact
                if self.layers.is_some() || self.config.is_some() || self.manifests.is_some() =>
            {
                malformed(
                    "an artifact manifest with `config`, `layers` or `manifests` is ambiguous",
                )
            }
            ManifestKind::Image | ManifestKind::Index | ManifestKind::Artifact => Ok(()),
        }
    }

    fn into_manifest(self, kind: ManifestKind, media_type: MediaType) -> Manifest {
        let artifact_type = self.artifact_type.filter(|kind| !kind.is_empty());
        let config_type = self.config.as_ref().map(|config| &config.media_type);
        let config_type = config_type.filter(|kind| !kind.as_str().is_empty());
        let config_type = config_type.map(ToString::to_string);
        let layers = match kind {
            ManifestKind::Artifact => self.blobs,
            ManifestKind::Image | ManifestKind::Index => self.layers,
        };
        Manifest {
            kind,
            media_type,
            artifact_type: artifact_type.or(config_type),
            config: self.config,
            layers: layers.unwrap_or_default(),
            manifests: self.manifests.unwrap_or_default(),
            subject: self.subject,
            annotations: self.annotations,
        }
    }
}

/// A stored document, as it may be acted on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Document {
    /// It has one meaning.
    Manifest(Box<Manifest>),
    /// It is not read: nothing that it says counts.
    Opaque(Opaque),
}

/// A document that is not read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Opaque {
    /// Why.
    pub why: ManifestError,
    /// Every digest that is written somewhere in it: it may name each of them, and nothing else that can be here.
    pub mentions: BTreeSet<Digest>,
}

impl Document {
    /// Reads a stored document of this type.
    #[must_use]
    pub fn read(media_type: &MediaType, bytes: &[u8]) -> Self {
        match Manifest::parse(Some(media_type), bytes) {
            Ok(manifest) => Self::Manifest(Box::new(manifest)),
            Err(why) => Self::Opaque(Opaque {
                why,
                mentions: mentions(bytes),
            }),
        }
    }

    /// The manifest, unless the document is opaque.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Manifest(manifest) => Some(manifest),
            Self::Opaque(_) => None,
        }
    }
}

/// What a document without a declared type is, as registries and their clients guess it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Form {
    /// Of a type that is read here, by its own field or by its shape. Whether it has one meaning is another question.
    Manifest(MediaType),
    /// Docker's schema 1.
    Schema1,
    /// A JSON object of another kind, and its own type, when it states one.
    Other(Option<MediaType>),
    /// No JSON object.
    NotJson,
}

impl Form {
    /// Looks at a document as lenient readers do: a byte-order mark is skipped, the last of two fields of one name counts, names are
    /// compared without case.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let Some(outline) = Outline::of(bytes) else {
            return Self::NotJson;
        };
        let own = outline.media_type();
        if own.as_ref().is_some_and(MediaType::is_schema1)
            || outline.number("schemaversion") == Some(1)
            || outline.has("fslayers")
        {
            return Self::Schema1;
        }
        match own {
            Some(own) if own.is_manifest() => Self::Manifest(own),
            Some(own) => Self::Other(Some(own)),
            None => outline.by_shape(),
        }
    }

    /// The type that the document states in its own field.
    #[must_use]
    pub fn stated(bytes: &[u8]) -> Option<MediaType> {
        Outline::of(bytes)?.media_type()
    }

    /// The type of a document that the other registry served, which kept no other record of it.
    #[must_use]
    pub fn adopted_type(bytes: &[u8]) -> MediaType {
        match Self::of(bytes) {
            Self::Manifest(media_type) | Self::Other(Some(media_type)) => media_type,
            Self::Schema1 => MediaType::as_written(DOCKER_SCHEMA1),
            // What is no index is an image to Distribution.
            Self::Other(None) => MediaType::as_written(OCI_MANIFEST),
            Self::NotJson => MediaType::octet_stream(),
        }
    }
}

/// The fields of a JSON object, by their folded names; of two of one name the last.
struct Outline(BTreeMap<String, Box<RawValue>>);

impl Outline {
    fn of(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let text: Cow<'_, str> = String::from_utf8_lossy(bytes);
        serde_json::from_str(&text).ok()
    }

    fn media_type(&self) -> Option<MediaType> {
        let text: String = serde_json::from_str(self.0.get("mediatype")?.get()).ok()?;
        text.parse().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        serde_json::from_str(self.0.get(name)?.get()).ok()
    }

    fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(|value| value.get() != "null")
    }

    fn by_shape(&self) -> Form {
        if self.number("schemaversion") != Some(2) {
            return Form::Other(None);
        }
        let media_type = if self.has("manifests") {
            OCI_INDEX
        } else if self.has("config") || self.has("layers") {
            OCI_MANIFEST
        } else {
            return Form::Other(None);
        };
        Form::Manifest(MediaType::as_written(media_type))
    }
}

impl<'de> de::Deserialize<'de> for Outline {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Outline;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Outline, A::Error> {
        let mut members = BTreeMap::new();
        while let Some(Name(name)) = map.next_key()? {
            let value: Box<RawValue> = map.next_value()?;
            members.insert(json::folded(&name), value);
        }
        Ok(Outline(members))
    }
}

/// A name that may hold half of a surrogate pair.
struct Name(String);

impl<'de> de::Deserialize<'de> for Name {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Name;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Name, E> {
                Ok(Name(String::from_utf8_lossy(bytes).into_owned()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

fn mentions(bytes: &[u8]) -> BTreeSet<Digest> {
    let mut found = BTreeSet::new();
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let prefix = format!("{}:", algorithm.as_str());
        let length = prefix.len() + algorithm.hex_len();
        let starts = bytes.windows(prefix.len()).enumerate();
        let starts = starts.filter(|(_, window)| *window == prefix.as_bytes());
        found.extend(starts.filter_map(|(start, _)| {
            let text = bytes.get(start..start.checked_add(length)?)?;
            std::str::from_utf8(text).ok()?.parse::<Digest>().ok()
        }));
    }
    found
}
