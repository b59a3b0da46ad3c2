//! The proxy cache's side of a pull: manifests and blobs of mirrored repositories, fetched once and kept.
#![expect(dead_code, clippy::unused_async, reason = "signatures only")]

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt as _};
use gantry_model::{Digest, Page, Reference, Repository, Requester, Tag, TagState};
use gantry_storage::{Blob, ManifestRecord};

use crate::{
    error::Error,
    outcome::Staleness,
    ports::{Ports, Settings},
};

/// All mirrors.
#[derive(Debug)]
pub(crate) struct Mirrors {}

/// A manifest that is stored and verified.
#[derive(Debug)]
pub(crate) struct MirroredManifest {
    /// The manifest.
    pub(crate) record: ManifestRecord,
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// Set when the upstream could not confirm the tag.
    pub(crate) stale: Option<Staleness>,
    /// What the tag names, for serve admissions.
    pub(crate) tag: Option<TagState>,
}

/// A blob that is stored, or arrives.
pub(crate) struct MirroredBlob {
    /// The whole blob's length, when known.
    pub(crate) size: Option<u64>,
    /// Its bytes.
    pub(crate) content: MirroredContent,
}

/// Where a mirrored blob's bytes come from.
pub(crate) enum MirroredContent {
    /// Storage.
    Published(Arc<dyn Blob>),
    /// A fill under way.
    Filling(Fill),
}

/// A fill under way.
pub(crate) struct Fill {}

impl Mirrors {
    pub(crate) fn new(_ports: &Ports, _settings: &Settings) -> Self {
        Self {}
    }

    pub(crate) async fn manifest(
        &self,
        _repository: &Repository,
        _reference: &Reference,
        _requester: &Requester,
    ) -> Result<MirroredManifest, Error> {
        Err(Error::ManifestUnknown)
    }

    pub(crate) async fn stat_blob(
        &self,
        _repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        Err(Error::BlobUnknown {
            digest: digest.clone(),
        })
    }

    pub(crate) async fn blob(
        &self,
        _repository: &Repository,
        digest: &Digest,
        _requester: &Requester,
    ) -> Result<MirroredBlob, Error> {
        Err(Error::BlobUnknown {
            digest: digest.clone(),
        })
    }

    pub(crate) async fn tags(
        &self,
        _repository: &Repository,
        _page: &Page,
    ) -> Result<(Vec<Tag>, bool), Error> {
        Err(Error::NameUnknown)
    }

    pub(crate) async fn referrers(
        &self,
        _repository: &Repository,
        _digest: &Digest,
    ) -> Result<Vec<serde_json::Value>, Error> {
        Ok(Vec::new())
    }
}

impl Fill {
    pub(crate) fn stream(
        &self,
        _first: u64,
        _last: Option<u64>,
    ) -> BoxStream<'static, Result<Bytes, Error>> {
        futures_util::stream::empty().boxed()
    }

    pub(crate) async fn size(&self) -> Result<u64, Error> {
        Err(Error::Conflict)
    }
}
