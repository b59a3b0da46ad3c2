//! A registry on memory stores, clients with a name, content to push, and hooks that do what a test says.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{
    AdmissionRequest, Admitted, Algorithm, Change, Client as Machine, Denial, DenialCode, Digest,
    Grant, MediaType, Operation, Page, Permit, Principal, Reason, Reference, Refusal, Repository,
    RepositoryName, Requester, Scope, Source, Tag, UploadId, media_type::OCI_INDEX,
    media_type::OCI_MANIFEST,
};
use gantry_registry::{
    Admission, BlobContent, Body, BodyError, Clock, Error, Outcome, Ports, Registry, ServedBlob,
    ServedManifest, Settings, UploadState,
};
use gantry_storage::{
    BlobStore, FsBlobStore, MemoryBlobStore, MemoryMetadata, MetadataStore, SqliteStore,
    UploadSessions, digest_of,
};

// --- the registry ---

/// A registry, and what it stands on.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) ports: Ports,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<TestClock>,
}

impl World {
    /// On memory stores, with no hook.
    pub(crate) fn new() -> Self {
        Self::with_admission(Arc::new(Hooks::none()))
    }

    /// On stores in a folder.
    pub(crate) fn durable(folder: &Path) -> Self {
        let blobs = FsBlobStore::open(folder).expect("a folder");
        let metadata = SqliteStore::open(&folder.join("metadata.db")).expect("a database");
        let stores = stores(Arc::new(blobs), &Arc::new(metadata));
        Self::on(stores, Settings::default())
    }

    pub(crate) fn with_admission(admission: Arc<dyn Admission>) -> Self {
        Self::build(admission, Settings::default())
    }

    pub(crate) fn with_settings(settings: Settings) -> Self {
        Self::build(Arc::new(Hooks::none()), settings)
    }

    pub(crate) fn build(admission: Arc<dyn Admission>, settings: Settings) -> Self {
        let blobs = Arc::new(MemoryBlobStore::new());
        let stores = stores(blobs, &Arc::new(MemoryMetadata::new()));
        Self::on(
            Ports {
                admission,
                ..stores
            },
            settings,
        )
    }

    pub(crate) fn on(mut ports: Ports, settings: Settings) -> Self {
        let clock = Arc::new(TestClock::default());
        ports.clock = Arc::clone(&clock) as _;
        Self {
            registry: Registry::new(ports.clone(), settings),
            ports,
            settings,
            clock,
        }
    }

    /// The same stores under a new registry, as after a restart. Clients of the old one have to be dropped before.
    pub(crate) fn restarted(self) -> Self {
        let Self {
            ports,
            settings,
            clock,
            registry,
        } = self;
        drop(registry);
        Self {
            registry: Registry::new(ports.clone(), settings),
            ports,
            settings,
            clock,
        }
    }

    pub(crate) fn client(&self, id: &str) -> Client {
        Client {
            registry: self.registry.clone(),
            id: id.to_owned(),
            further: Vec::new(),
        }
    }
}

/// Ports on stores, with no hook and no mirror.
pub(crate) fn stores<M: MetadataStore + UploadSessions + 'static>(
    blobs: Arc<dyn BlobStore>,
    metadata: &Arc<M>,
) -> Ports {
    Ports {
        blobs,
        metadata: Arc::clone(metadata) as _,
        uploads: Arc::clone(metadata) as _,
        admission: Arc::new(Hooks::none()),
        clock: Arc::new(TestClock::default()),
        mirrors: HashMap::new(),
    }
}

/// A clock that stands until it is moved.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl Default for TestClock {
    fn default() -> Self {
        Self(AtomicU64::new(1_700_000_000_000))
    }
}

impl TestClock {
    pub(crate) fn advance_ms(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

// --- clients ---

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
        };
        match self.ask(operation).await? {
            Outcome::Referrers { index, filtered } => {
                Ok((serde_json::from_slice(&index).expect("an index"), filtered))
            }
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
    }
}

fn pull_manifest(repository: &str, reference: &str, body: bool) -> Operation {
    Operation::PullManifest {
        repository: hosted(repository),
        reference: reference.parse().expect("a reference"),
        body,
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

// --- content ---

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

// --- hooks ---

type Answer = dyn Fn(&AdmissionRequest) -> Result<Admitted, Refusal> + Send + Sync;

/// Hooks that listen to some changes, answer as a test says, and remember what they were asked.
pub(crate) struct Hooks {
    changes: Vec<Change>,
    answer: Box<Answer>,
    seen: Mutex<Vec<AdmissionRequest>>,
}

impl fmt::Debug for Hooks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Hooks")
    }
}

impl Hooks {
    pub(crate) fn none() -> Self {
        Self::on(&[], |request| panic!("asked about {:?}", request.change))
    }

    pub(crate) fn on(
        changes: &[Change],
        answer: impl Fn(&AdmissionRequest) -> Result<Admitted, Refusal> + Send + Sync + 'static,
    ) -> Self {
        Self {
            changes: changes.to_vec(),
            answer: Box::new(answer),
            seen: Mutex::default(),
        }
    }

    /// Accepts everything, and remembers it.
    pub(crate) fn recording() -> Arc<Self> {
        Arc::new(Self::on(&Change::ALL, |_request| Ok(Admitted::default())))
    }

    /// Refuses to point an existing tag elsewhere and to delete a tag.
    pub(crate) fn immutable_tags() -> Arc<Self> {
        let changes = [Change::CreateTag, Change::MoveTag, Change::DeleteTag];
        Arc::new(Self::on(&changes, |request| {
            let previous = request.previous.as_ref().map(|state| &state.digest);
            match request.change {
                Change::DeleteTag => Err(denied("immutable")),
                _ if previous.is_some_and(|digest| *digest != request.target.digest) => {
                    Err(denied("immutable"))
                }
                _ => Ok(Admitted::default()),
            }
        }))
    }

    /// What was asked since the last call.
    pub(crate) fn take_seen(&self) -> Vec<AdmissionRequest> {
        std::mem::take(&mut self.seen.lock().expect("no panic"))
    }
}

pub(crate) fn denied(code: &str) -> Refusal {
    let denial = Denial::new(DenialCode::Denied, code, "a hook refuses");
    Refusal::Denied(Box::new(denial))
}

#[async_trait]
impl Admission for Hooks {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        self.changes.contains(&change)
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        self.seen.lock().expect("no panic").push(request.clone());
        (self.answer)(&request)
    }
}
