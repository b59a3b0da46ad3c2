//! The detached task behind a fill: one fetch of one blob into a staging file, resumed after a break, verified, published, linked.
//!
//! Owns the order of these steps and what is undone when one fails. Knows nothing of readers but [`Progress`].
//! Readers get the last bytes when the digest is verified, and do not wait for the fsync and the commit after that.
//! Invariant: whatever happens, the fill stays in the table of running fills until its content is published or will not be, so
//! whoever comes after a reader that has it all joins, or finds it, or begins anew; and it has left the table when it is over.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use gantry_model::{Digest, UploadId};
use gantry_storage::{BlobWriter, blob::PublishError};
use gantry_upstream::{BlobStream, Kind, Part, UpstreamError};

use super::{
    CacheContent, CacheOutcome, Engine, Origin,
    failure::Failure,
    fill::{Content, Fill, Progress},
    flight::{contained, lock, spawn},
    pass::Begun,
    sink::Sink,
};
use crate::{ports::Parallel, staging::new_upload_id};

/// Written bytes become readable in batches, because each batch may be a system call.
const BATCH_BYTES: usize = 256 << 10;

/// Resumptions of one fetch in a row.
pub(super) const MAX_RESUMPTIONS: u32 = 3;

/// Progress after which earlier breaks are forgiven: large layers on a poor line still arrive.
pub(super) const FORGIVEN_AFTER_BYTES: u64 = 4 << 20;

pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(250);

/// What a body may have at most when neither the upstream nor a manifest says its length, so that an endless one ends.
const MAX_UNANNOUNCED_BYTES: u64 = 16 << 30;

impl Engine {
    /// The fill of `digest` for this repository: the one that runs, or a new one. Other repositories have their own, because what
    /// one of them may read another may not.
    pub(super) fn join_or_start(self: &Arc<Self>, origin: &Origin, digest: &Digest) -> Fill {
        let key = (origin.place(), digest.clone());
        let mut fills = lock(&self.running.fills);
        if let Some(fill) = fills.get(&key) {
            origin.count(CacheContent::Blob, CacheOutcome::Joined);
            return fill.joined();
        }
        let (progress, fill) = Progress::start(digest.clone());
        let joined = fill.joined();
        fills.insert(key, fill.clone());
        let span = tracing::info_span!(
            parent: None,
            "fill",
            repository.name = %origin.name(),
            blob.digest = %digest,
        );
        // A trace tells which request it began for, without being part of it: others may join.
        span.follows_from(tracing::Span::current());
        let fetch = Fetch {
            engine: Arc::clone(self),
            origin: origin.clone(),
            digest: digest.clone(),
            progress,
            fill,
        };
        spawn(span, fetch.run());
        joined
    }

    /// The length of a blob that is being filled for this repository, when its upstream has said it.
    pub(super) fn filling_size(&self, origin: &Origin, digest: &Digest) -> Option<u64> {
        self.filling(origin, digest)?.known_size()
    }

    /// The fill that runs for a repository.
    pub(super) fn filling(&self, origin: &Origin, digest: &Digest) -> Option<Fill> {
        let key = (origin.place(), digest.clone());
        lock(&self.running.fills).get(&key).cloned()
    }

    /// Frees a staging file. A failure leaves it to the sweep: the caller has its own answer to give.
    pub(super) async fn discard(&self, upload: UploadId) {
        if let Err(error) = self.blobs.discard(upload).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a staging file stays until the sweep"
            );
        }
    }
}

/// One fetch of one blob.
pub(super) struct Fetch {
    pub(super) engine: Arc<Engine>,
    pub(super) origin: Origin,
    pub(super) digest: Digest,
    pub(super) progress: Progress,
    /// What stands in the table.
    pub(super) fill: Fill,
}

/// What is known of the length before the bytes are here.
#[derive(Clone, Copy)]
pub(super) struct Length {
    /// Exactly this, as the upstream or else every parent says.
    pub(super) expected: Option<u64>,
    /// At most this.
    max: u64,
}

impl Fetch {
    async fn run(self) {
        let result = contained(self.fill()).await;
        self.retire();
        let is_verified = self.progress.is_verified();
        let outcome = match &result {
            Ok(outcome) => *outcome,
            Err(Failure::NotFound) => CacheOutcome::NotFound,
            Err(Failure::Full(_)) if is_verified => CacheOutcome::Passed,
            Err(_) => CacheOutcome::Failed,
        };
        // What passes through memory is counted when it is whole; this comes after the last reader.
        if result.is_err() || outcome != CacheOutcome::Passed {
            self.origin.count(CacheContent::Blob, outcome);
        }
        match result {
            Ok(_) => self.progress.done(),
            Err(failure) => {
                let mirror = self.origin.mirror();
                match is_verified {
                    true => failure.warn(mirror, "a fetched blob could not be kept"),
                    false if self.progress.has_readers_bytes() => {
                        failure.warn(mirror, "a fill failed");
                    }
                    // Those who wait for it tell.
                    false => {
                        tracing::debug!(
                            error = &failure as &dyn std::error::Error,
                            "a fill failed"
                        );
                    }
                }
                self.progress.failed(failure);
            }
        }
    }

    async fn fill(&self) -> Result<CacheOutcome, Failure> {
        let _lease = self.engine.leases.take(&self.digest).await;
        if let Some(content) = self.engine.held(&self.origin, &self.digest).await? {
            let size = content.size();
            self.progress.verified(Content::Stored(content), size);
            return Ok(CacheOutcome::Filled);
        }
        let _turn = self
            .engine
            .running
            .fill_turns
            .take(&self.origin.mirror)
            .await?;
        let _slot = self
            .engine
            .running
            .fill_slots
            .acquire()
            .await
            .map_err(Failure::internal)?;
        let body = self.first().await?;
        let length = self.length(body.size).await?;
        if self.engine.store_was_full() {
            return self.pass(Begun::of(body), length).await;
        }
        self.keep(length, body).await
    }

    /// Fetches into a staging file; passes through what there is no space for.
    async fn keep(&self, length: Length, body: BlobStream) -> Result<CacheOutcome, Failure> {
        let upload = new_upload_id().map_err(Failure::internal)?;
        let mut begun = Begun::default();
        let result = contained(self.download(upload, length, body, &mut begun)).await;
        let Err(failure) = result else {
            self.engine.store_has_space();
            return Ok(CacheOutcome::Filled);
        };
        self.engine.discard(upload).await;
        if !matches!(failure, Failure::Full(_)) {
            return Err(failure);
        }
        self.engine.store_is_full(&failure);
        // Readers that may have all of it have it in the open staging file.
        if self.progress.is_verified() {
            return Err(failure);
        }
        self.pass(begun, length).await
    }

    /// The upstream's first answer: all of the blob, or its first part where it is fetched in parts.
    async fn first(&self) -> Result<BlobStream, Failure> {
        let Some(parallel) = self.parallel().await? else {
            return self.request(0).await;
        };
        let first = Part {
            first: 0,
            last: parallel.part_bytes - 1,
            waits: true,
        };
        match self.part(first).await {
            // Neither a part nor all of it: an upstream that gets ranges wrong.
            Err(Failure::Upstream(error)) if error.kind == Kind::Invalid => self.request(0).await,
            answer => answer,
        }
    }

    /// How the blob is fetched in parts; `None` when it is not: the mirror does not do that, nobody says how long it is, or it is too
    /// small, or there is no space for it lately, and then its bytes pass through one by one.
    async fn parallel(&self) -> Result<Option<Parallel>, Failure> {
        let Some(parallel) = self.origin.settings.parallel else {
            return Ok(None);
        };
        let agreed = self.engine.sizes(&self.origin, &self.digest).await?.agreed;
        let is_large =
            agreed.is_some_and(|size| size >= parallel.from_bytes.max(parallel.part_bytes));
        Ok(Some(parallel).filter(|_| is_large && !self.engine.store_was_full()))
    }

    /// Some of the blob's bytes.
    pub(super) async fn part(&self, part: Part) -> Result<BlobStream, Failure> {
        let upstream = &self.origin.settings.upstream;
        let (remote, digest) = (&self.origin.remote, &self.digest);
        Ok(upstream.blob_part(remote, digest, part).await?)
    }

    async fn request(&self, offset: u64) -> Result<BlobStream, Failure> {
        let upstream = &self.origin.settings.upstream;
        Ok(upstream
            .blob(&self.origin.remote, &self.digest, offset)
            .await?)
    }

    async fn length(&self, announced: Option<u64>) -> Result<Length, Failure> {
        let parents = self.engine.sizes(&self.origin, &self.digest).await?;
        if let (Some(announced), Some(most)) = (announced, parents.most)
            && announced > most
        {
            return Err(Failure::invalid(format!(
                "announced {announced} bytes where its manifest says {most}"
            )));
        }
        Ok(Length {
            expected: announced.or(parents.agreed),
            max: announced.or(parents.most).unwrap_or(MAX_UNANNOUNCED_BYTES),
        })
    }

    /// Leaves in `begun` what the fetch can go on with when there is no space.
    async fn download(
        &self,
        upload: UploadId,
        length: Length,
        first: BlobStream,
        begun: &mut Begun,
    ) -> Result<(), Failure> {
        let algorithm = self.digest.algorithm();
        let part = begun.keep(first);
        let writer = self.engine.blobs.create(upload, algorithm).await?;
        let tail = writer.tail();
        let content = Content::Stored(Arc::clone(&tail));
        self.progress.opened(length.expected, content.clone());
        let first = begun.body.take();
        begun.head = Some(tail);
        let mut receiving = Receiving::new(self, Sink::Staging(writer), length);
        match part.zip(self.origin.settings.parallel) {
            Some((part, parallel)) => receiving.receive_parts(part, parallel).await?,
            None => receiving.receive(first).await?,
        }
        let Sink::Staging(writer) = receiving.into_sink() else {
            return Err(Failure::internal("a fill changed its sink"));
        };
        self.verify(writer.as_ref())?;
        self.progress.verified(content, writer.written());
        let size = writer.commit(&self.digest).await?;
        self.link(size).await;
        Ok(())
    }

    /// Whether everything that was written, and flushed, is the blob. The writer's commit holds it against the digest once more.
    fn verify(&self, writer: &dyn BlobWriter) -> Result<(), Failure> {
        let found = writer.digest();
        if found == self.digest {
            Ok(())
        } else {
            Err(PublishError::Mismatch { found }.into())
        }
    }

    /// The content is verified, so a failure here costs the next caller a look at the manifests, not this one its bytes.
    async fn link(&self, size: u64) {
        let linked = self.engine.link(&self.origin, &self.digest, size).await;
        if let Err(failure) = linked {
            tracing::warn!(
                error = &failure as &dyn std::error::Error,
                "a filled blob could not be linked"
            );
        }
    }
}

/// A blob while its bytes arrive.
pub(super) struct Receiving<'a> {
    fetch: &'a Fetch,
    sink: Sink,
    length: Length,
    unflushed: usize,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(fetch: &'a Fetch, sink: Sink, length: Length) -> Self {
        Self {
            fetch,
            sink,
            length,
            unflushed: 0,
        }
    }

    pub(super) fn into_sink(self) -> Sink {
        self.sink
    }

    pub(super) fn fetch(&self) -> &'a Fetch {
        self.fetch
    }

    /// Bytes taken so far.
    pub(super) fn written(&self) -> u64 {
        self.sink.written()
    }

    /// Receives the rest of the body, over as many connections as it takes; the first may be there already.
    pub(super) async fn receive(&mut self, first: Option<BlobStream>) -> Result<(), Failure> {
        let mut broken = match first {
            Some(first) => self.append_all(first).await,
            None => self.resume().await,
        };
        let mut resumptions = 0;
        let mut backoff = FIRST_BACKOFF;
        let mut reached = self.sink.written();
        while let Err(failure) = broken {
            if !failure.is_resumable() || resumptions == MAX_RESUMPTIONS {
                return Err(failure);
            }
            tracing::info!(
                error = &failure as &dyn std::error::Error,
                offset = self.sink.written(),
                "the upstream broke off; resuming"
            );
            tokio::time::sleep(backoff).await;
            resumptions += 1;
            backoff *= 2;
            broken = self.resume().await;
            if self.sink.written() - reached >= FORGIVEN_AFTER_BYTES {
                (resumptions, backoff) = (0, FIRST_BACKOFF);
                reached = self.sink.written();
            }
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Failure> {
        let body = self.fetch.request(self.sink.written()).await?;
        if let (Some(now), Some(before)) = (body.size, self.length.expected)
            && now != before
        {
            return Err(Failure::invalid(format!(
                "announced {before} bytes, then {now}"
            )));
        }
        self.append_all(body).await
    }

    /// Appends one connection's bytes; an error keeps what arrived.
    async fn append_all(&mut self, body: BlobStream) -> Result<(), Failure> {
        let BlobStream {
            offset, mut bytes, ..
        } = body;
        let mut known = self
            .sink
            .written()
            .checked_sub(offset)
            .ok_or_else(|| Failure::invalid("the body starts after the offset asked for"))?;
        let mut broken = None;
        while let Some(chunk) = self.next(&mut bytes).await? {
            match chunk {
                Ok(mut chunk) => {
                    // An upstream that ignores ranges repeats what is already here.
                    let repeated =
                        usize::try_from(known).map_or(chunk.len(), |n| n.min(chunk.len()));
                    chunk.advance(repeated);
                    known -= repeated as u64;
                    self.append(chunk).await?;
                }
                Err(error) => {
                    broken = Some(Failure::from(error));
                    break;
                }
            }
        }
        self.flush().await?;
        self.check_end(known, broken)
    }

    /// Whether the body is whole, as far as lengths can tell.
    fn check_end(&self, repeats_missing: u64, broken: Option<Failure>) -> Result<(), Failure> {
        let written = self.sink.written();
        match (self.length.expected, broken) {
            (Some(expected), _) if written == expected => Ok(()),
            // A 404 for the rest of what was being sent is no answer about the whole.
            (_, Some(Failure::NotFound)) => Err(Failure::invalid("gone while it was being sent")),
            (_, Some(broken)) => Err(broken),
            (None, None) if repeats_missing == 0 => Ok(()),
            (expected, None) => Err(Failure::interrupted(
                self.fetch.origin.mirror(),
                match expected {
                    Some(expected) => format!("GET blob: ended at {written} of {expected} bytes"),
                    None => format!("GET blob: ended before byte {written}"),
                },
            )),
        }
    }

    /// The next bytes. What is written becomes readable before waiting for more, and in batches while bytes come at once.
    async fn next(
        &mut self,
        bytes: &mut BoxStream<'static, Result<Bytes, UpstreamError>>,
    ) -> Result<Option<Result<Bytes, UpstreamError>>, Failure> {
        if let Some(at_once) = bytes.next().now_or_never() {
            return Ok(at_once);
        }
        self.flush().await?;
        Ok(bytes.next().await)
    }

    /// Takes the next bytes of the blob.
    pub(super) async fn append(&mut self, mut chunk: Bytes) -> Result<(), Failure> {
        let most = self.length.expected.unwrap_or(self.length.max);
        if self.sink.written() + chunk.len() as u64 > most {
            return Err(Failure::invalid(format!(
                "sent more than the {most} bytes it may have"
            )));
        }
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(BATCH_BYTES));
            self.unflushed += piece.len();
            self.sink.write(piece).await?;
            if self.unflushed >= BATCH_BYTES {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Makes readable what was taken.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        if self.unflushed > 0 {
            self.sink.flush().await?;
            self.unflushed = 0;
            self.fetch.progress.advanced(self.sink.written());
        }
        Ok(())
    }
}
