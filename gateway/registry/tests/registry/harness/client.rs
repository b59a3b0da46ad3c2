//! Somebody who asks the registry, one method per operation.

use std::sync::Arc;

use bytes::Bytes;
use gantry_model::{
    AcceptedTypes, Algorithm, Client as Machine, Digest, Grant, Operation, Page, Permit, Principal,
    Reason, Repository, Requester, Scope, UploadId,
};
use gantry_registry::{
    BlobContent, Body, Error, ListedReferrers, Outcome, Registry, ServedBlob, ServedManifest,
    UploadState,
};

use super::{
    World,
    content::{Content, MIRRORED, hosted, image, mirrored, sha256, tag},
};

impl World {
    pub(crate) fn client(&self, id: &str) -> Client {
        Client {
            registry: self.registry.clone(),
            id: id.to_owned(),
            further: Vec::new(),
        }
    }
}

/// Somebody who is granted exactly what each operation requires, and what a test adds.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    registry: Registry,
    id: String,
    further: Vec<Scope>,
}

impl Client {
    pub(crate) fn granted(mut self, scope: Scope) -> Self {
        self.further.push(scope);
        self
    }

    pub(crate) async fn perform(&self, operation: Operation, body: Body) -> Result<Outcome, Error> {
        let mut granted = operation.required_scopes();
        granted.extend(self.further.clone());
        let grant = Grant {
            granted,
            reason: Reason::new("test", "a test"),
            plugin: None,
        };
        let permit = Permit::new(operation, requester(&self.id), grant).expect("a covering grant");
        self.registry.perform(permit, body).await
    }

    async fn ask(&self, operation: Operation) -> Result<Outcome, Error> {
        self.perform(operation, Body::empty()).await
    }

    pub(crate) async fn pull(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<ServedManifest, Error> {
        let operation = pull_manifest(repository, reference, true);
        self.ask(operation).await.map(manifest)
    }

    pub(crate) async fn head(
        &self,
        repository: &str,
        reference: &str,
    ) -> Result<ServedManifest, Error> {
        let operation = pull_manifest(repository, reference, false);
        self.ask(operation).await.map(manifest)
    }

    pub(crate) async fn pull_blob(
        &self,
        repository: &str,
        digest: &Digest,
        range: Option<&str>,
    ) -> Result<ServedBlob, Error> {
        let operation = pull_blob(repository, digest, range, true);
        self.ask(operation).await.map(blob)
    }

    pub(crate) async fn head_blob(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<ServedBlob, Error> {
        let operation = pull_blob(repository, digest, None, false);
        self.ask(operation).await.map(blob)
    }

    /// Pulls from a mirrored repository.
    pub(crate) async fn pull_mirrored(
        &self,
        reference: &str,
        body: bool,
    ) -> Result<ServedManifest, Error> {
        let operation = Operation::PullManifest {
            repository: mirrored(MIRRORED),
            reference: reference.parse().expect("a reference"),
            body,
            accepts: AcceptedTypes::default(),
        };
        self.ask(operation).await.map(manifest)
    }

    /// Pulls a blob from a mirrored repository.
    pub(crate) async fn pull_mirrored_blob(
        &self,
        digest: &Digest,
        range: Option<&str>,
        body: bool,
    ) -> Result<ServedBlob, Error> {
        let operation = Operation::PullBlob {
            repository: mirrored(MIRRORED),
            digest: digest.clone(),
            range: range.map(|text| text.parse().expect("a range")),
            body,
        };
        self.ask(operation).await.map(blob)
    }

    pub(crate) async fn push_blob(&self, repository: &str, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = sha256(bytes);
        let operation = Operation::PushBlob {
            repository: hosted(repository),
            digest: digest.clone(),
        };
        let body = Body::from_bytes(Bytes::copy_from_slice(bytes));
        self.perform(operation, body).await.map(|_pushed| digest)
    }

    pub(crate) async fn push(
        &self,
        repository: &str,
        reference: &str,
        manifest: &Content,
    ) -> Result<Outcome, Error> {
        self.push_tagged(repository, reference, &[], manifest).await
    }

    pub(crate) async fn push_tagged(
        &self,
        repository: &str,
        reference: &str,
        tags: &[&str],
        manifest: &Content,
    ) -> Result<Outcome, Error> {
        let operation = Operation::PushManifest {
            repository: hosted(repository),
            reference: reference.parse().expect("a reference"),
            tags: tags.iter().map(|text| tag(text)).collect(),
            media_type: Some(manifest.media_type.clone()),
        };
        let body = Body::from_bytes(manifest.bytes.clone());
        self.perform(operation, body).await
    }

    /// Pushes an image with its blobs; the content is as unique as its seed.
    pub(crate) async fn push_image(
        &self,
        repository: &str,
        reference: &str,
        seed: &str,
    ) -> Content {
        let config = format!("config of {seed}");
        let layer = format!("layer of {seed}");
        self.push_blob(repository, config.as_bytes())
            .await
            .expect("a config");
        self.push_blob(repository, layer.as_bytes())
            .await
            .expect("a layer");
        let image = image(&config, &[&layer]);
        self.push(repository, reference, &image)
            .await
            .expect("an image");
        image
    }

    pub(crate) async fn start(&self, repository: &str) -> Result<UploadId, Error> {
        let operation = Operation::StartUpload {
            repository: hosted(repository),
            algorithm: Algorithm::Sha256,
        };
        self.ask(operation)
            .await
            .map(upload)
            .map(|state| state.upload)
    }

    pub(crate) async fn status(&self, repository: &str, upload_id: UploadId) -> Result<u64, Error> {
        let operation = Operation::UploadStatus {
            repository: hosted(repository),
            upload: upload_id,
        };
        self.ask(operation)
            .await
            .map(upload)
            .map(|state| state.received)
    }

    pub(crate) async fn append(
        &self,
        repository: &str,
        upload_id: UploadId,
        range: Option<&str>,
        body: Body,
    ) -> Result<u64, Error> {
        let operation = Operation::AppendChunk {
            repository: hosted(repository),
            upload: upload_id,
            range: range.map(|text| text.parse().expect("a content range")),
        };
        self.perform(operation, body)
            .await
            .map(upload)
            .map(|state| state.received)
    }

    pub(crate) async fn commit(
        &self,
        repository: &str,
        upload: UploadId,
        digest: &Digest,
        body: Body,
    ) -> Result<Outcome, Error> {
        let operation = Operation::CommitUpload {
            repository: hosted(repository),
            upload,
            digest: digest.clone(),
            range: None,
        };
        self.perform(operation, body).await
    }

    pub(crate) async fn cancel(
        &self,
        repository: &str,
        upload: UploadId,
    ) -> Result<Outcome, Error> {
        self.ask(Operation::CancelUpload {
            repository: hosted(repository),
            upload,
        })
        .await
    }

    pub(crate) async fn mount(
        &self,
        repository: &str,
        digest: &Digest,
        from: Option<Repository>,
    ) -> Result<Outcome, Error> {
        self.ask(Operation::MountBlob {
            repository: hosted(repository),
            digest: digest.clone(),
            from,
        })
        .await
    }

    pub(crate) async fn delete_tag(&self, repository: &str, text: &str) -> Result<Outcome, Error> {
        self.ask(Operation::DeleteTag {
            repository: hosted(repository),
            tag: tag(text),
        })
        .await
    }

    pub(crate) async fn delete_manifest(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Outcome, Error> {
        self.ask(Operation::DeleteManifest {
            repository: hosted(repository),
            digest: digest.clone(),
        })
        .await
    }

    pub(crate) async fn delete_blob(
        &self,
        repository: &str,
        digest: &Digest,
    ) -> Result<Outcome, Error> {
        self.ask(Operation::DeleteBlob {
            repository: hosted(repository),
            digest: digest.clone(),
        })
        .await
    }

    /// A page of tags, and the page size that `Link` would repeat.
    pub(crate) async fn tags(
        &self,
        repository: &str,
        page: Page,
    ) -> Result<(Vec<String>, Option<usize>), Error> {
        let operation = Operation::ListTags {
            repository: hosted(repository),
            page,
        };
        match self.ask(operation).await? {
            Outcome::Tags { tags, next, .. } => {
                Ok((tags.iter().map(ToString::to_string).collect(), next))
            }
            other => panic!("not tags: {other:?}"),
        }
    }

    pub(crate) async fn catalog(&self, page: Page) -> Result<(Vec<String>, Option<usize>), Error> {
        match self.ask(Operation::ListCatalog { page }).await? {
            Outcome::Catalog { repositories, next } => {
                Ok((repositories.iter().map(ToString::to_string).collect(), next))
            }
            other => panic!("not a catalog: {other:?}"),
        }
    }

    /// The index of referrers, and whether the filter was applied.
    pub(crate) async fn referrers(
        &self,
        repository: &str,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<(serde_json::Value, bool), Error> {
        let operation = Operation::ListReferrers {
            repository: hosted(repository),
            digest: digest.clone(),
            artifact_type: artifact_type.map(str::to_owned),
            page: Page {
                limit: None,
                after: None,
            },
        };
        let listed = self.referrers_page(operation).await?;
        let index = serde_json::from_slice(&listed.index).expect("an index");
        Ok((index, listed.artifact_type.is_some()))
    }

    /// A page of referrers.
    pub(crate) async fn referrers_page(
        &self,
        operation: Operation,
    ) -> Result<ListedReferrers, Error> {
        match self.ask(operation).await? {
            Outcome::Referrers(listed) => Ok(*listed),
            other => panic!("not referrers: {other:?}"),
        }
    }
}

pub(crate) fn requester(id: &str) -> Requester {
    let machine = Machine {
        address: [127, 0, 0, 1].into(),
        user_agent: None,
        tls_subject: None,
    };
    let principal = Principal {
        id: id.to_owned(),
        ..Principal::anonymous()
    };
    Requester {
        request_id: "request".into(),
        client: Arc::new(machine),
        principal: Arc::new(principal),
        arrival: None,
        confirmed: None,
        cause: gantry_model::Cause::Request,
    }
}

fn pull_manifest(repository: &str, reference: &str, body: bool) -> Operation {
    Operation::PullManifest {
        repository: hosted(repository),
        reference: reference.parse().expect("a reference"),
        body,
        accepts: AcceptedTypes::default(),
    }
}

fn pull_blob(repository: &str, digest: &Digest, range: Option<&str>, body: bool) -> Operation {
    Operation::PullBlob {
        repository: hosted(repository),
        digest: digest.clone(),
        range: range.map(|text| text.parse().expect("a range")),
        body,
    }
}

fn manifest(outcome: Outcome) -> ServedManifest {
    match outcome {
        Outcome::Manifest(served) => *served,
        other => panic!("not a manifest: {other:?}"),
    }
}

fn blob(outcome: Outcome) -> ServedBlob {
    match outcome {
        Outcome::Blob(served) => *served,
        other => panic!("not a blob: {other:?}"),
    }
}

fn upload(outcome: Outcome) -> UploadState {
    match outcome {
        Outcome::UploadAccepted(state) | Outcome::UploadStatus(state) => state,
        other => panic!("not an upload: {other:?}"),
    }
}

/// The bytes a served blob would send.
pub(crate) async fn bytes_of(served: &ServedBlob) -> Bytes {
    let BlobContent::Published(blob) = &served.content else {
        panic!("not a published blob: {:?}", served.content);
    };
    let size = blob.size();
    let whole = 0..=size.saturating_sub(1);
    let range = served.range.clone().unwrap_or(whole);
    let mut bytes = Vec::new();
    let mut offset = *range.start();
    while offset <= *range.end() && offset < size {
        let length = usize::try_from(range.end() - offset + 1).expect("a small blob");
        let read = blob.read_at(offset, length).await.expect("readable");
        offset += read.len() as u64;
        bytes.extend_from_slice(&read);
    }
    Bytes::from(bytes)
}
