//! Images made for a test: a config, layers of random bytes, a manifest.

use aws_lc_rs::{digest, rand};
use bytes::Bytes;
use serde_json::json;

/// OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Bytes and their digest.
#[derive(Clone, Debug)]
pub struct Content {
    /// `sha256:…`.
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl Content {
    /// Content of these bytes.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            digest: sha256(&bytes),
            bytes,
        }
    }

    /// So many random bytes.
    ///
    /// # Panics
    /// When the system has no randomness.
    #[must_use]
    pub fn random(length: usize) -> Self {
        let mut bytes = vec![0; length];
        rand::fill(&mut bytes).expect("the system gives random bytes");
        Self::new(bytes)
    }

    /// Its descriptor.
    #[must_use]
    pub fn descriptor(&self, media_type: &str) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// `sha256:…` of bytes.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    hex("sha256:", digest::digest(&digest::SHA256, bytes).as_ref())
}

/// `sha512:…` of bytes.
#[must_use]
pub fn sha512(bytes: &[u8]) -> String {
    hex("sha512:", digest::digest(&digest::SHA512, bytes).as_ref())
}

fn hex(prefix: &str, bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(prefix.to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// An image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its manifest.
    pub manifest: Content,
    /// Its config.
    pub config: Content,
    /// Its layers.
    pub layers: Vec<Content>,
}

impl Image {
    /// An image with one random layer of `length` bytes.
    #[must_use]
    pub fn random(length: usize) -> Self {
        Self::of_layers(vec![Content::random(length)])
    }

    /// An image of these layers.
    #[must_use]
    pub fn of_layers(layers: Vec<Content>) -> Self {
        Self::annotated(layers, &json!({}))
    }

    /// An image of these layers with manifest annotations.
    #[must_use]
    pub fn annotated(layers: Vec<Content>, annotations: &serde_json::Value) -> Self {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.digest).collect::<Vec<_>>() },
        });
        let config = Content::new(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": layers.iter().map(|layer| layer.descriptor("application/vnd.oci.image.layer.v1.tar")).collect::<Vec<_>>(),
            "annotations": annotations,
        });
        Self {
            manifest: Content::new(manifest.to_string()),
            config,
            layers,
        }
    }

    /// Every blob.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.config).chain(&self.layers)
    }
}

/// An index of these manifests.
#[must_use]
pub fn index_of(images: &[&Image]) -> Content {
    Content::new(index(images).to_string())
}

/// An index that says `key: value` of itself.
#[must_use]
pub fn annotated_index(images: &[&Image], key: &str, value: &str) -> Content {
    let mut index = index(images);
    index["annotations"] = json!({ key: value });
    Content::new(index.to_string())
}

fn index(images: &[&Image]) -> serde_json::Value {
    let manifests: Vec<_> = images
        .iter()
        .map(|image| image.manifest.descriptor(MANIFEST))
        .collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}
