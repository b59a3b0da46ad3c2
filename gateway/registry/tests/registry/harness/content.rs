//! Manifests, names and bodies.

use bytes::Bytes;
use gantry_model::{
    Algorithm, Digest, MediaType, Page, Reference, Repository, RepositoryName, Source, Tag,
    media_type::{OCI_INDEX, OCI_MANIFEST},
};
use gantry_registry::{Body, BodyError};
use gantry_storage::digest_of;

/// A manifest to push.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) media_type: MediaType,
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

impl Content {
    pub(crate) fn new(media_type: &str, document: &serde_json::Value) -> Self {
        let bytes = Bytes::from(document.to_string());
        Self {
            media_type: media_type.parse().expect("a media type"),
            digest: sha256(&bytes),
            bytes,
        }
    }

    pub(crate) fn descriptor(&self) -> serde_json::Value {
        descriptor(self.media_type.as_str(), &self.bytes)
    }
}

pub(crate) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(crate) fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({
        "mediaType": media_type,
        "digest": sha256(bytes).to_string(),
        "size": bytes.len(),
    })
}

pub(crate) fn image(config: &str, layers: &[&str]) -> Content {
    Content::new(OCI_MANIFEST, &image_document(config, layers))
}

pub(crate) fn image_document(config: &str, layers: &[&str]) -> serde_json::Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|layer| descriptor(LAYER, layer.as_bytes()))
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, config.as_bytes()),
        "layers": layers,
    })
}

pub(crate) fn index(children: &[&Content]) -> Content {
    let manifests: Vec<_> = children.iter().map(|child| child.descriptor()).collect();
    let document = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": manifests,
    });
    Content::new(OCI_INDEX, &document)
}

/// An artifact of a type, without layers, that refers to `subject`.
pub(crate) fn artifact(config: &str, artifact_type: &str, subject: &Content) -> Content {
    let mut document = image_document(config, &[]);
    document["artifactType"] = artifact_type.into();
    document["subject"] = subject.descriptor();
    document["annotations"] = serde_json::json!({ "kind": artifact_type });
    Content::new(OCI_MANIFEST, &document)
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha256, bytes)
}

pub(crate) fn sha512(bytes: &[u8]) -> Digest {
    digest_of(Algorithm::Sha512, bytes)
}

pub(crate) fn name(text: &str) -> RepositoryName {
    text.parse().expect("a repository name")
}

pub(crate) fn tag(text: &str) -> Tag {
    text.parse().expect("a tag")
}

pub(crate) fn hosted(text: &str) -> Repository {
    Repository {
        name: name(text),
        spelled: name(text),
        base: "/v2".into(),
        source: Source::Hosted,
        namespace: None,
    }
}

/// The repository that tests mirror.
pub(crate) const MIRRORED: &str = "docker.io/library/alpine";

pub(crate) fn mirrored(text: &str) -> Repository {
    Repository {
        source: Source::Mirror {
            mirror: "hub".into(),
            remote: name("library/alpine"),
        },
        ..hosted(text)
    }
}

pub(crate) fn page(limit: Option<usize>, after: Option<&str>) -> Page {
    Page {
        limit,
        after: after.map(str::to_owned),
    }
}

/// A body in pieces, without a declared length.
pub(crate) fn streamed(pieces: Vec<Result<&'static str, BodyError>>) -> Body {
    let pieces = pieces
        .into_iter()
        .map(|piece| piece.map(|text| Bytes::from_static(text.as_bytes())));
    Body::new(None, futures_util::stream::iter(pieces))
}

pub(crate) fn whole(text: &'static str) -> Body {
    Body::from_bytes(Bytes::from_static(text.as_bytes()))
}

/// A body that must not be read.
pub(crate) fn unreadable() -> Body {
    let stream = futures_util::stream::poll_fn(|_context| panic!("the body was read"));
    Body::new(None, stream)
}

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().expect("a reference")
}
