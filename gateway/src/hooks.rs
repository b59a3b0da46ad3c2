//! Adapters: the registry's admission port and the plugin host's ports, joined. The one place where the two crates meet.
//!
//! Owns the admission chain: which bindings are asked, what their failure means, what audit mode records. Knows no OCI flow.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{
    AdmissionRequest, Admitted, Algorithm, Change, Delivery, Descriptor, Digest, Event, Reference,
    Refusal, Repository, RepositoryName, Requester, Source, Tag, TagState,
};
use gantry_plugin_host::{
    AdmitAnswer, CallError, EventReceiver, KeyValue,
    ports::{Addition, KeyValueEntry, PortError, PutOutcome, PutRules, ReadError, RegistryReads},
};
use gantry_registry::Admission;
use gantry_storage::{
    BlobStore, ContentOrigin, KeyValueStore, MetadataStore, Named, ReferrerRecord, StorageError,
    TagRecord, indexes_of,
    kv::{KvAdd, KvPut, KvWrite},
    naming,
    outbox::sink_name,
};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::{
    config::{Mode, OnError},
    events::Receiver,
    origins::Origins,
    policy::{
        Policy,
        binding::Binding,
        decisions::{About, Cached, Decisions, Given, Key, Question},
        parents::{self, AllowedImages},
        shadow::Shadows,
        unenforced::{self, Unenforced},
    },
};

/// How soon a binding that holds is asked again at the earliest, whatever it says.
const SHORTEST_HOLD: Duration = Duration::from_millis(100);

/// The admission bindings, in the order of the configuration.
#[derive(Debug)]
pub struct AdmissionChain {
    /// Enforced and audited.
    chain: Vec<Arc<Binding>>,
    shadows: Option<ShadowChain>,
    serves: Arc<Serves>,
}

/// What is remembered of serves. Outlives a configuration.
#[derive(Debug)]
pub(crate) struct Serves {
    /// Answers that may be reused.
    answers: Decisions<AdmitAnswer>,
    images: AllowedImages,
}

impl Serves {
    /// Answers take at most about `max_bytes` of memory.
    pub(crate) fn new(max_bytes: u64) -> Self {
        Self {
            answers: Decisions::new(max_bytes),
            images: AllowedImages::default(),
        }
    }
}

/// The bindings beside the chain.
#[derive(Debug)]
struct ShadowChain {
    beside: Vec<Arc<Binding>>,
    queue: Shadows,
}

impl AdmissionChain {
    /// A chain that nobody is in.
    #[must_use]
    pub fn nobody() -> Self {
        Self {
            chain: Vec::new(),
            shadows: None,
            serves: Arc::new(Serves::new(0)),
        }
    }

    /// A chain. Kept answers outlive it: their keys name the plugin that gave them.
    #[must_use]
    pub(crate) fn new(bindings: Vec<Arc<Binding>>, serves: Arc<Serves>, queue: Shadows) -> Self {
        let (beside, chain): (Vec<_>, _) = bindings
            .into_iter()
            .partition(|binding| binding.mode == Mode::Shadow);
        let shadows = (!beside.is_empty()).then_some(ShadowChain { beside, queue });
        Self {
            chain,
            shadows,
            serves,
        }
    }

    fn beside(&self) -> &[Arc<Binding>] {
        self.shadows
            .as_ref()
            .map_or(&[], |shadows| shadows.beside.as_slice())
    }

    /// Has the shadows asked the same, later.
    fn ask_shadows(&self, request: &AdmissionRequest, enforced: &Result<Admitted, Refusal>) {
        let Some(shadows) = &self.shadows else {
            return;
        };
        let word = unenforced::of_admission(enforced);
        for binding in asked(&shadows.beside, request) {
            let (binding, serves) = (Arc::clone(binding), Arc::clone(&self.serves));
            let request = request.clone();
            shadows.queue.later(async move {
                let answer = ask(&serves, &binding, &request).await;
                Unenforced::admission(&binding, &answer, word).record_admission(&request);
            });
        }
    }
}

/// Asks one binding, and again while it holds a serve, for as long as the binding says. Changes do not wait: their client holds a
/// repository's tag.
async fn ask_patiently(
    serves: &Serves,
    binding: &Binding,
    request: &AdmissionRequest,
) -> Result<Arc<AdmitAnswer>, CallError> {
    let end = Instant::now() + binding.hold_for;
    loop {
        let answer = ask(serves, binding, request).await;
        let Ok(AdmitAnswer::Hold { retry_after, .. }) = answer.as_deref() else {
            return answer;
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || !request.change.is_serve() {
            return answer;
        }
        tokio::time::sleep((*retry_after).max(SHORTEST_HOLD).min(left)).await;
    }
}

/// Asks one binding, about few of the images that name the content at a time.
async fn ask(
    serves: &Serves,
    binding: &Binding,
    request: &AdmissionRequest,
) -> Result<Arc<AdmitAnswer>, CallError> {
    if !parents::is_in_batches(request) {
        return ask_once(&serves.answers, binding, request).await;
    }
    let ask = |request: AdmissionRequest| async move {
        ask_once(&serves.answers, binding, &request).await
    };
    Box::pin(parents::ask_in_batches(&serves.images, request, ask)).await
}

/// Makes one call; serves may be answered from the cache, changes never.
async fn ask_once(
    serves: &Decisions<AdmitAnswer>,
    binding: &Binding,
    request: &AdmissionRequest,
) -> Result<Arc<AdmitAnswer>, CallError> {
    if !request.change.is_serve() {
        return Box::pin(binding.admit(request)).await.map(Arc::new);
    }
    let about = About::Stored(request.version);
    let kept = serves.get(&serve_key(serves, binding, request), about);
    if let Some(Cached::Fresh(answer)) = kept {
        binding.admitted_by_cache(&answer);
        return Ok(answer);
    }
    // Boxed: most answers are known, and whoever waits for one need not keep room for a call.
    match (Box::pin(binding.admit(request)).await, kept) {
        (Ok(answer), _) => {
            let answer = Arc::new(answer);
            if let AdmitAnswer::Accept { cache, .. } = &*answer {
                let given = Given {
                    answer: Arc::clone(&answer),
                    hint: *cache,
                    about,
                };
                let key = serve_key(serves, binding, request);
                serves.keep(key, &request.requester.client, given);
            }
            Ok(answer)
        }
        (Err(error), Some(Cached::Stale(answer))) if binding.on_error == OnError::LastKnown => {
            tracing::warn!(plugin.name = %error.plugin, failure = error.failure.as_str(), "plugin failed; its last answer counts");
            binding.admitted_by_cache(&answer);
            Ok(answer)
        }
        (Err(error), _) => Err(error),
    }
}

fn serve_key<'a>(
    serves: &Decisions<AdmitAnswer>,
    binding: &'a Binding,
    request: &'a AdmissionRequest,
) -> Key<'a> {
    let question = Question::Serve {
        change: request.change,
        repository: request.repository.name.as_str(),
        tag: request.tag.as_ref(),
        target: request.target.as_ref().map(|target| &target.digest),
        parents: &request.parents,
    };
    serves.key(
        &binding.fingerprint,
        &request.requester.principal,
        &request.requester.client,
        question,
    )
}

/// The bindings that listen to the request's change in its repository.
fn asked<'a>(
    bindings: &'a [Arc<Binding>],
    request: &AdmissionRequest,
) -> impl Iterator<Item = &'a Arc<Binding>> {
    bindings
        .iter()
        .filter(|binding| binding.asks(request.repository.name.as_str(), request.change))
}

/// Hears an enforced binding.
fn hear(
    admitted: &mut Admitted,
    binding: &Binding,
    request: &AdmissionRequest,
    answer: Result<Arc<AdmitAnswer>, CallError>,
) -> Result<(), Refusal> {
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if binding.failure_denies() => {
            return Err(Refusal::Failed {
                plugin: error.plugin,
                failure: format!("{}: {}", error.failure.as_str(), error.detail),
            });
        }
        Err(_skipped) => return Ok(()),
    };
    crate::telemetry::audit_admission(binding, request, &answer);
    match &*answer {
        AdmitAnswer::Abstain => Ok(()),
        AdmitAnswer::Accept {
            warnings,
            set_immutable,
            ..
        } => {
            admitted.warnings.extend(warnings.iter().cloned());
            admitted.set_immutable |= set_immutable;
            Ok(())
        }
        AdmitAnswer::Reject(denial) => Err(Refusal::Denied(Box::new(denial.clone()))),
        AdmitAnswer::Hold {
            retry_after,
            reason,
        } => Err(Refusal::Held {
            retry_after: *retry_after,
            reason: reason.clone(),
            plugin: Arc::clone(binding.name()),
        }),
    }
}

#[async_trait]
impl Admission for AdmissionChain {
    fn asks(&self, repository: &Repository, change: Change) -> bool {
        self.chain
            .iter()
            .chain(self.beside())
            .any(|binding| binding.asks(repository.name.as_str(), change))
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        let mut outcome = Ok(Admitted::default());
        let mut unenforced = Vec::new();
        for binding in asked(&self.chain, &request) {
            let span = tracing::debug_span!("admit", change = request.change.as_str());
            if binding.mode == Mode::Audit {
                let answer = ask(&self.serves, binding, &request).instrument(span);
                unenforced.push((binding, answer.await));
            } else if let Ok(admitted) = &mut outcome {
                let answer = ask_patiently(&self.serves, binding, &request);
                let answer = answer.instrument(span).await;
                if let Err(refusal) = hear(admitted, binding, &request, answer) {
                    outcome = Err(refusal);
                }
            }
        }
        for (binding, answer) in unenforced {
            let enforced = unenforced::of_admission(&outcome);
            Unenforced::admission(binding, &answer, enforced).record_admission(&request);
        }
        self.ask_shadows(&request, &outcome);
        if outcome.is_ok() {
            self.serves.images.remember(&request);
        }
        outcome
    }
}

/// The plugins' key-value store on the storage's port.
#[derive(Debug)]
pub struct PluginValues(pub Arc<dyn KeyValueStore>);

fn port_error(error: &StorageError) -> PortError {
    tracing::warn!(error = ?error, "a plugin's store failed");
    PortError(error.to_string())
}

#[async_trait]
impl KeyValue for PluginValues {
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KeyValueEntry>, PortError> {
        let entry = self
            .0
            .get(bucket, key, now_ms)
            .await
            .map_err(|error| port_error(&error))?;
        Ok(entry.map(|entry| KeyValueEntry {
            value: entry.value,
            version: entry.version,
            expires_at_ms: entry.expires_at_ms,
        }))
    }

    async fn put(
        &self,
        bucket: &str,
        key: &str,
        value: &[u8],
        expected: Option<Option<u64>>,
        rules: PutRules,
    ) -> Result<PutOutcome, PortError> {
        let put = KvPut {
            bucket,
            key,
            value,
            expected,
            expires_at_ms: rules.expires_at_ms,
            now_ms: rules.now_ms,
            max_bytes: Some(rules.max_bytes),
        };
        let written = self.0.put(put).await.map_err(|error| port_error(&error))?;
        Ok(match written {
            KvWrite::Written(version) => PutOutcome::Written(version),
            KvWrite::Lost => PutOutcome::Lost,
            KvWrite::Full => PutOutcome::Full,
        })
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), PortError> {
        self.0
            .delete(bucket, key)
            .await
            .map(drop)
            .map_err(|error| port_error(&error))
    }

    async fn increment(
        &self,
        bucket: &str,
        key: &str,
        addition: Addition,
    ) -> Result<Option<u64>, PortError> {
        let add = KvAdd {
            bucket,
            key,
            by: addition.by,
            window_ms: addition.window_ms,
            now_ms: addition.now_ms,
            max_bytes: Some(addition.max_bytes),
        };
        let sum = self.0.increment(add).await;
        sum.map_err(|error| port_error(&error))
    }
}

/// Plugins' reads of what is stored here, as the requesting principal. Never asks an upstream and never runs admissions.
#[derive(Debug)]
pub struct StoredContent {
    /// Content.
    pub blobs: Arc<dyn BlobStore>,
    /// Facts.
    pub metadata: Arc<dyn MetadataStore>,
    /// The authorizers of the serving generation; none before the first serves.
    pub policy_current: Arc<ArcSwapOption<Policy>>,
    /// Where its names' content comes from.
    pub origins_current: Arc<ArcSwapOption<Origins>>,
    /// Which images principals were allowed to pull of late.
    pub(crate) serves: Arc<Serves>,
}

/// A repository that a plugin reads.
struct ReadRepository {
    name: RepositoryName,
    /// How it came to have what may be read.
    origin: ContentOrigin,
}

impl ReadRepository {
    /// Whether the tag is one of this origin: pushed here, or said by an upstream.
    fn has_tag(&self, record: &TagRecord) -> bool {
        record.is_cached() == (self.origin != ContentOrigin::Pushed)
    }
}

impl StoredContent {
    /// The repository, when the principal may pull from it.
    async fn readable(
        &self,
        requester: &Requester,
        repository: &str,
    ) -> Result<ReadRepository, ReadError> {
        let name: RepositoryName = repository
            .parse()
            .map_err(|_not_a_name| ReadError::NotFound)?;
        let policy = self
            .policy_current
            .load_full()
            .ok_or_else(|| ReadError::Unavailable("not started yet".to_owned()))?;
        match policy.may_read(requester, repository).await {
            Ok(true) => self.found(name).await,
            Ok(false) => Err(ReadError::NotGranted),
            Err(error) => Err(ReadError::Unavailable(error.chain())),
        }
    }
}

impl StoredContent {
    /// The repository as a client's read of it finds it: hosted or mirrored.
    async fn found(&self, name: RepositoryName) -> Result<ReadRepository, ReadError> {
        let origins = self.origins_current.load_full();
        let origins =
            origins.ok_or_else(|| ReadError::Unavailable("not started yet".to_owned()))?;
        let mirror = match origins.source(&name) {
            Some(Source::Mirror { mirror, .. }) => Some(mirror),
            Some(Source::Layered { mirror, .. }) => {
                let record = self.metadata.repository(&name).await;
                let record = record.map_err(|error| unavailable(&error))?;
                Some(mirror).filter(|_| !record.is_some_and(|record| record.claimed))
            }
            Some(Source::Hosted) | None => None,
        };
        let origin = match mirror {
            None => ContentOrigin::Pushed,
            Some(mirror) => {
                let origin = origins.of_mirror(&mirror).cloned();
                origin.ok_or(ReadError::NotFound)?
            }
        };
        Ok(ReadRepository { name, origin })
    }
}

impl StoredContent {
    /// A policy looks at images until it finds one that it allows.
    fn allowed_first(
        &self,
        requester: &Requester,
        name: &RepositoryName,
        mut parents: Vec<Digest>,
    ) -> Vec<Digest> {
        let images = &self.serves.images;
        images.sort(&requester.principal.id, name, &mut parents);
        parents
    }
}

fn unavailable(error: &StorageError) -> ReadError {
    ReadError::Unavailable(error.to_string())
}

#[async_trait]
impl RegistryReads for StoredContent {
    async fn resolve_tag(
        &self,
        requester: &Requester,
        repository: &str,
        tag: &str,
    ) -> Result<Option<TagState>, ReadError> {
        let read = self.readable(requester, repository).await?;
        let tag: Tag = tag.parse().map_err(|_not_a_tag| ReadError::NotFound)?;
        Ok(self
            .metadata
            .tag(&read.name, &tag)
            .await
            .map_err(|error| unavailable(&error))?
            .filter(|record| read.has_tag(record))
            .map(|record| record.state))
    }

    async fn manifest(
        &self,
        requester: &Requester,
        repository: &str,
        reference: &str,
    ) -> Result<(Descriptor, Bytes), ReadError> {
        let read = self.readable(requester, repository).await?;
        let digest = match reference
            .parse()
            .map_err(|_not_a_reference| ReadError::NotFound)?
        {
            Reference::Digest(digest) => digest,
            Reference::Tag(tag) => {
                let record = self
                    .metadata
                    .tag(&read.name, &tag)
                    .await
                    .map_err(|error| unavailable(&error))?;
                let record = record.filter(|record| read.has_tag(record));
                record.ok_or(ReadError::NotFound)?.state.digest
            }
        };
        let record = self
            .metadata
            .manifest(&read.name, &read.origin, &digest)
            .await
            .map_err(|error| unavailable(&error))?
            .ok_or(ReadError::NotFound)?;
        let blob = self
            .blobs
            .open(&digest)
            .await
            .map_err(|error| unavailable(&error))?
            .ok_or(ReadError::NotFound)?;
        let length = usize::try_from(record.size).map_err(|_huge| ReadError::TooLarge)?;
        if length > gantry_model::manifest::MAX_MANIFEST_BYTES {
            return Err(ReadError::TooLarge);
        }
        let bytes = read_exactly(&*blob, 0, length).await?;
        let mut descriptor = Descriptor::new(record.media_type, digest, record.size);
        descriptor.artifact_type = record.artifact_type;
        Ok((descriptor, bytes))
    }

    async fn referrers(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ReadError> {
        let read = self.readable(requester, repository).await?;
        let digest = digest
            .parse()
            .map_err(|_not_a_digest| ReadError::NotFound)?;
        let (mut found, mut bytes, mut after) = (Vec::new(), 0_usize, None::<String>);
        loop {
            let (name, origin, last) = (&read.name, &read.origin, after.as_deref());
            let some =
                self.metadata
                    .referrers_after(name, origin, &digest, last, REFERRERS_AT_ONCE_BYTES);
            let some = some.await.map_err(|error| unavailable(&error))?;
            let Some(last) = some.last() else {
                return Ok(found);
            };
            after = Some(last.manifest.digest.to_string());
            let wanted = some.into_iter().filter(|referrer| {
                let own = referrer.manifest.artifact_type.as_deref();
                artifact_type.is_none() || own == artifact_type
            });
            for referrer in wanted {
                bytes = bytes.saturating_add(referrer.annotations.len() + REFERRER_BYTES);
                found.push(shown(referrer));
            }
            if bytes > MAX_REFERRERS_BYTES {
                return Err(ReadError::TooLarge);
            }
        }
    }

    async fn parents(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<Vec<Digest>, ReadError> {
        let read = self.readable(requester, repository).await?;
        let (name, origin) = (&read.name, &read.origin);
        let digest: Digest = digest
            .parse()
            .map_err(|_not_a_digest| ReadError::NotFound)?;
        let manifest = self.metadata.manifest(name, origin, &digest).await;
        if manifest.map_err(|error| unavailable(&error))?.is_none() {
            let parents = self.metadata.parents(name, origin, &digest).await;
            let parents = parents.map_err(|error| unavailable(&error))?;
            let parents = naming(parents, Named::Blob);
            return Ok(self.allowed_first(requester, name, parents));
        }
        let bytes = match digest.algorithm() {
            // Its bytes are needed for its other name only.
            Algorithm::Sha256 => Bytes::new(),
            Algorithm::Sha512 => {
                self.manifest(requester, repository, digest.as_str())
                    .await?
                    .1
            }
        };
        let parents = indexes_of(&*self.metadata, (name, origin), &digest, &bytes).await;
        let parents = parents.map_err(|error| unavailable(&error))?;
        Ok(self.allowed_first(requester, name, parents))
    }

    async fn blob_size(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
    ) -> Result<u64, ReadError> {
        let read = self.readable(requester, repository).await?;
        let digest = digest
            .parse()
            .map_err(|_not_a_digest| ReadError::NotFound)?;
        self.metadata
            .blob(&read.name, &read.origin, &digest)
            .await
            .map_err(|error| unavailable(&error))?
            .ok_or(ReadError::NotFound)
    }

    async fn read_blob(
        &self,
        requester: &Requester,
        repository: &str,
        digest: &str,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ReadError> {
        self.blob_size(requester, repository, digest).await?;
        let digest = digest
            .parse()
            .map_err(|_not_a_digest| ReadError::NotFound)?;
        let blob = self
            .blobs
            .open(&digest)
            .await
            .map_err(|error| unavailable(&error))?
            .ok_or(ReadError::NotFound)?;
        let left = usize::try_from(blob.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        read_exactly(&*blob, offset, left.min(length as usize)).await
    }
}

/// Bytes of annotations that are read from the store at once.
const REFERRERS_AT_ONCE_BYTES: usize = 1 << 20;
/// What a referrer takes beside its annotations, about.
const REFERRER_BYTES: usize = 512;
/// What the referrers of one answer may take: each call of a policy reads them anew.
const MAX_REFERRERS_BYTES: usize = 8 << 20;

/// A referrer's descriptor.
fn shown(referrer: ReferrerRecord) -> Descriptor {
    let manifest = referrer.manifest;
    Descriptor {
        artifact_type: manifest.artifact_type,
        annotations: serde_json::from_str(&referrer.annotations).unwrap_or_default(),
        ..Descriptor::new(manifest.media_type, manifest.digest, manifest.size)
    }
}

async fn read_exactly(
    blob: &dyn gantry_storage::Blob,
    offset: u64,
    length: usize,
) -> Result<Bytes, ReadError> {
    let mut whole = bytes::BytesMut::with_capacity(length);
    while whole.len() < length {
        let piece = blob
            .read_at(offset + whole.len() as u64, length - whole.len())
            .await
            .map_err(|error| unavailable(&error))?;
        if piece.is_empty() {
            return Err(ReadError::Unavailable(
                "stored content is shorter than recorded".to_owned(),
            ));
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}

/// A binding that receives events, or one of the receivers that its configuration lists.
#[derive(Debug)]
pub struct EventHook {
    binding: Arc<Binding>,
    receiver: Option<EventReceiver>,
    name: String,
}

impl EventHook {
    /// One for each receiver that the binding's configuration lists, else one for the binding.
    #[must_use]
    pub fn all_of(binding: &Arc<Binding>) -> Vec<Self> {
        let hook = |receiver: Option<&EventReceiver>| Self {
            name: match receiver {
                Some(receiver) => sink_name(binding.name(), receiver.mark()),
                None => binding.name().to_string(),
            },
            binding: Arc::clone(binding),
            receiver: receiver.cloned(),
        };
        match binding.plugin.receivers() {
            [] => vec![hook(None)],
            listed => listed.iter().map(|receiver| hook(Some(receiver))).collect(),
        }
    }
}

#[async_trait]
impl Receiver for EventHook {
    fn name(&self) -> &str {
        &self.name
    }

    fn covers(&self, repository: &RepositoryName) -> bool {
        self.binding.sees(repository.as_str())
    }

    fn is_one_endpoint(&self) -> bool {
        self.receiver.is_some()
    }

    async fn observe(&self, events: &[Event]) -> Result<Vec<Delivery>, String> {
        let plugin = &self.binding.plugin;
        let observed = match &self.receiver {
            Some(receiver) => plugin.observe_for(receiver, events).await,
            None => plugin.observe(events).await,
        };
        observed.map_err(|error| {
            tracing::warn!(plugin.name = %error.plugin, receiver = self.name, failure = error.failure.as_str(), detail = %error.detail, "plugin failed");
            format!("{}: {}", error.failure.as_str(), error.detail)
        })
    }
}
