//! An upstream that does what a test says: serves content, waits at gates, breaks off, lies, fails, and counts what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use gantry_model::{AcceptedTypes, Digest, MediaType, Reference, RepositoryName};
use gantry_upstream::{
    BlobStream, Cause, FetchedManifest, Kind, ListPage, ListRoom, ManifestHead, NextPage, Part,
    Upstream, UpstreamError,
};
use tokio::sync::{Semaphore, watch};

/// What one connection carries at a time.
pub(super) const CHUNK_BYTES: usize = 16 << 10;

/// What the upstream was asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Call {
    Head(Reference),
    Manifest(Reference),
    Stat(Digest),
    Blob(Digest, u64),
    Part(Digest, u64, u64),
    /// Which page.
    Tags(usize),
    Referrers,
}

/// How the answer to one blob GET goes. Offsets are counted from the blob's start.
#[derive(Clone, Debug)]
pub(super) struct BodyPlan {
    /// The length that is said; `None` says none.
    pub(super) announces: Option<Announced>,
    /// Whether an offset is honoured.
    pub(super) ranges: bool,
    /// Where the connection ends before the blob does.
    pub(super) cut: Option<usize>,
    /// Whether a cut is a clean end rather than an error.
    pub(super) clean: bool,
    /// A byte that is flipped.
    pub(super) flip: Option<usize>,
    /// Bytes after the blob's end.
    pub(super) excess: usize,
    /// Every chunk takes a permit.
    pub(super) gate: Option<Arc<Semaphore>>,
    /// Every chunk takes so long.
    pub(super) pace: Duration,
    /// What this state of the content is called.
    pub(super) etag: &'static str,
    /// How the GET fails instead.
    pub(super) refuses: Option<(Kind, Cause)>,
}

/// The length an upstream says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Announced {
    Truly,
    As(u64),
}

impl Default for BodyPlan {
    fn default() -> Self {
        Self {
            announces: Some(Announced::Truly),
            ranges: true,
            cut: None,
            clean: false,
            flip: None,
            excess: 0,
            gate: None,
            pace: Duration::ZERO,
            etag: "one",
            refuses: None,
        }
    }
}

impl BodyPlan {
    pub(super) fn cut_at(offset: usize) -> Self {
        Self {
            cut: Some(offset),
            ..Self::default()
        }
    }

    pub(super) fn refusing(kind: Kind, cause: Cause) -> Self {
        Self {
            refuses: Some((kind, cause)),
            ..Self::default()
        }
    }

    pub(super) fn gated(gate: &Arc<Semaphore>) -> Self {
        Self {
            gate: Some(Arc::clone(gate)),
            ..Self::default()
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) blobs: HashMap<(RepositoryName, Digest), Bytes>,
    /// What a HEAD says of a blob's length, whether or not the blob is there.
    pub(super) stats: HashMap<(RepositoryName, Digest), Option<u64>>,
    pub(super) manifests: HashMap<(RepositoryName, Reference), FetchedManifest>,
    /// Manifests that a reference names only for requests whose `Accept` lists their type.
    pub(super) negotiated: HashMap<(RepositoryName, Reference), FetchedManifest>,
    /// Pages of tags; each but the last names the one after it.
    pub(super) tags: Vec<Vec<&'static str>>,
    /// Where the last page leads, if somewhere.
    pub(super) tags_lead_to: Option<&'static str>,
    /// Pages of descriptors, by subject.
    pub(super) referrers: HashMap<Digest, Vec<Vec<String>>>,
    /// How the next blob GETs go; later ones go well.
    pub(super) bodies: VecDeque<BodyPlan>,
    /// How every call fails.
    pub(super) trouble: Option<Kind>,
    /// Whether a HEAD leaves the digest out.
    pub(super) head_hides_digest: bool,
    /// Every call takes a permit before it answers.
    pub(super) gate: Option<Arc<Semaphore>>,
    pub(super) calls: Vec<Call>,
    /// Bytes of blobs that were sent.
    pub(super) sent: usize,
}

impl Script {
    fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<FetchedManifest, UpstreamError> {
        let key = (repository.clone(), reference.clone());
        let negotiated = self.negotiated.get(&key).filter(|manifest| {
            let media_type = manifest.media_type.as_ref();
            media_type.is_some_and(|it| accepts.is_further(it))
        });
        let manifest = negotiated.or_else(|| self.manifests.get(&key));
        manifest.cloned().ok_or_else(|| failure(Kind::NotFound))
    }
}

#[derive(Debug, Default)]
pub(super) struct ScriptedUpstream {
    script: Arc<Mutex<Script>>,
    /// Calls that arrived, ever.
    asked: watch::Sender<usize>,
}

impl ScriptedUpstream {
    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// What was asked since this was last called.
    pub(super) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script().calls)
    }

    /// How the next blob GETs go.
    pub(super) fn plan(&self, bodies: impl IntoIterator<Item = BodyPlan>) {
        self.script().bodies = bodies.into_iter().collect();
    }

    pub(super) fn fail(&self, kind: Kind) {
        self.script().trouble = Some(kind);
    }

    pub(super) fn recover(&self) {
        self.script().trouble = None;
    }

    /// Waits until so many calls arrived, ever.
    pub(super) async fn asked(&self, count: usize) {
        let mut asked = self.asked.subscribe();
        asked.wait_for(|asked| *asked >= count).await.unwrap();
    }

    /// Makes every call wait for a permit of the returned gate.
    pub(super) fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.script().gate = Some(Arc::clone(&gate));
        gate
    }

    async fn ask(&self, call: Call) -> Result<(), UpstreamError> {
        let gate = {
            let mut script = self.script();
            script.calls.push(call);
            script.gate.clone()
        };
        self.asked.send_modify(|count| *count += 1);
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match self.script().trouble {
            Some(kind) => Err(failure(kind)),
            None => Ok(()),
        }
    }
}

impl ScriptedUpstream {
    /// The next answer of the plan, or one that goes well.
    fn answer(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        last: Option<u64>,
    ) -> Result<BlobStream, UpstreamError> {
        let (plan, blob) = {
            let mut script = self.script();
            let key = (repository.clone(), digest.clone());
            let blob = script.blobs.get(&key).cloned();
            let blob = blob.ok_or_else(|| failure(Kind::NotFound))?;
            (script.bodies.pop_front().unwrap_or_default(), blob)
        };
        if let Some((kind, cause)) = plan.refuses {
            return Err(UpstreamError {
                cause,
                ..failure(kind)
            });
        }
        let size = plan.announces.map(|announced| match announced {
            Announced::Truly => blob.len() as u64,
            Announced::As(size) => size,
        });
        let (offset, last) = match plan.ranges {
            true => (offset, last),
            false => (0, None),
        };
        Ok(BlobStream {
            size,
            offset,
            last,
            etag: Some(plan.etag.to_owned()),
            bytes: body(Arc::clone(&self.script), plan, &blob, offset, last),
        })
    }
}

/// A failure of a kind, as the client would report it.
pub(super) fn failure(kind: Kind) -> UpstreamError {
    UpstreamError {
        kind,
        cause: Cause::Answer,
        upstream: "hub".to_owned(),
        attempt: "scripted".to_owned(),
        retry_after: (kind == Kind::RateLimited).then_some(Duration::from_secs(30)),
        source: None,
    }
}

/// A manifest as an upstream sends it.
pub(super) fn fetched(media_type: &str, digest: &Digest, bytes: &Bytes) -> FetchedManifest {
    FetchedManifest {
        media_type: Some(media_type.parse::<MediaType>().unwrap()),
        digest: Some(digest.clone()),
        bytes: bytes.clone(),
    }
}

#[async_trait]
impl Upstream for ScriptedUpstream {
    async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<ManifestHead, UpstreamError> {
        self.ask(Call::Head(reference.clone())).await?;
        let script = self.script();
        let manifest = script.manifest(repository, reference, accepts)?;
        let digest = manifest.digest.clone();
        Ok(ManifestHead {
            digest: digest.filter(|_| !script.head_hides_digest),
            media_type: manifest.media_type.clone(),
            size: Some(manifest.bytes.len() as u64),
        })
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<FetchedManifest, UpstreamError> {
        self.ask(Call::Manifest(reference.clone())).await?;
        self.script().manifest(repository, reference, accepts)
    }

    async fn stat_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        self.ask(Call::Stat(digest.clone())).await?;
        let key = (repository.clone(), digest.clone());
        if let Some(said) = self.script().stats.get(&key) {
            return Ok(*said);
        }
        let size = self.script().blobs.get(&key).map(Bytes::len);
        Ok(Some(size.ok_or_else(|| failure(Kind::NotFound))? as u64))
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        self.ask(Call::Blob(digest.clone(), offset)).await?;
        self.answer(repository, digest, offset, None)
    }

    async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Part,
    ) -> Result<BlobStream, UpstreamError> {
        let call = Call::Part(digest.clone(), part.first, part.last);
        self.ask(call).await?;
        self.answer(repository, digest, part.first, Some(part.last))
    }

    async fn tags(
        &self,
        _repository: &RepositoryName,
        next: Option<&NextPage>,
        _room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        self.ask(Call::Tags(page_of(next))).await?;
        let script = self.script();
        let mut page = paged(&script.tags, next)?;
        if page.next.is_none() {
            page.next = script.tags_lead_to.map(|to| NextPage::new(to, false));
        }
        Ok(page)
    }

    async fn referrers(
        &self,
        _repository: &RepositoryName,
        digest: &Digest,
        next: Option<&NextPage>,
        _room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        self.ask(Call::Referrers).await?;
        let script = self.script();
        let pages = script
            .referrers
            .get(digest)
            .ok_or_else(|| failure(Kind::NotFound))?;
        paged(pages, next)
    }
}

fn page_of(next: Option<&NextPage>) -> usize {
    next.map_or(0, |next| next.query().parse().unwrap())
}

fn paged<T: AsRef<str>>(
    pages: &[Vec<T>],
    next: Option<&NextPage>,
) -> Result<ListPage, UpstreamError> {
    let index = page_of(next);
    let page = pages.get(index).ok_or_else(|| failure(Kind::NotFound))?;
    let following = (index + 1 < pages.len()).then(|| (index + 1).to_string());
    Ok(ListPage {
        entries: page.iter().map(AsRef::as_ref).collect(),
        next: following.map(|next| NextPage::new(next, false)),
        bytes: 100,
    })
}

/// The bytes of one connection, chunk by chunk.
fn body(
    script: Arc<Mutex<Script>>,
    plan: BodyPlan,
    blob: &Bytes,
    offset: u64,
    last: Option<u64>,
) -> stream::BoxStream<'static, Result<Bytes, UpstreamError>> {
    let mut content = blob.to_vec();
    if let Some(flip) = plan.flip {
        content[flip] ^= 1;
    }
    content.resize(content.len() + plan.excess, b'!');
    let whole = last.map_or(content.len(), |last| {
        usize::try_from(last).unwrap() + 1 + plan.excess
    });
    let end = plan.cut.unwrap_or(whole).min(whole);
    let breaks = plan.cut.is_some() && !plan.clean;
    let offset = usize::try_from(offset).unwrap();
    let chunks: Vec<Bytes> = content
        .get(offset..end)
        .unwrap_or_default()
        .chunks(CHUNK_BYTES)
        .map(Bytes::copy_from_slice)
        .collect();
    let broken = breaks.then(|| Err(failure(Kind::Unavailable)));
    stream::iter(chunks.into_iter().map(Ok).chain(broken))
        .then(move |chunk| {
            let (script, gate, pace) = (Arc::clone(&script), plan.gate.clone(), plan.pace);
            async move {
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
                if let Some(gate) = gate {
                    gate.acquire().await.unwrap().forget();
                }
                script.lock().unwrap().sent += chunk.as_ref().map_or(0, Bytes::len);
                chunk
            }
        })
        .boxed()
}
