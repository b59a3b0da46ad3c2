//! The detached task behind a fill: one fetch of one blob into a staging file, resumed after a break, verified, published, linked.
//!
//! Owns the order of these steps and what is undone when one fails. Knows nothing of readers but [`Progress`].
//! Invariant: whatever happens, the fill leaves the table of running fills before its readers see the end.

use std::{sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use futures_util::{FutureExt as _, StreamExt as _, stream::BoxStream};
use gantry_model::{Digest, UploadId};
use gantry_storage::{Blob, BlobWriter};
use gantry_upstream::{BlobStream, UpstreamError};

use super::{
    CacheContent, CacheOutcome, Engine, Origin,
    failure::Failure,
    fill::{Fill, Progress},
    flight::{contained, lock, spawn},
};
use crate::staging::new_upload_id;

/// Written bytes become readable in batches, because each batch may be a system call.
const BATCH_BYTES: usize = 256 << 10;

/// Resumptions of one fetch in a row.
const MAX_RESUMPTIONS: u32 = 3;

/// Progress after which earlier breaks are forgiven: large layers on a poor line still arrive.
const FORGIVEN_AFTER_BYTES: u64 = 4 << 20;

const FIRST_BACKOFF: Duration = Duration::from_millis(250);

/// What a body may have at most when neither the upstream nor a manifest says its length, so that an endless one ends.
const MAX_UNANNOUNCED_BYTES: u64 = 16 << 30;

impl Engine {
    /// The fill of `digest` for this repository: the one that runs, or a new one. Other repositories have their own, because what
    /// one of them may read another may not.
    pub(super) fn join_or_start(self: &Arc<Self>, origin: &Origin, digest: &Digest) -> Fill {
        let key = (origin.name().clone(), digest.clone());
        let mut fills = lock(&self.running.fills);
        if let Some(fill) = fills.get(&key) {
            origin.count(CacheContent::Blob, CacheOutcome::Joined);
            return fill.clone();
        }
        let (progress, fill) = Progress::start(digest.clone());
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
        };
        spawn(span, fetch.run());
        fill
    }

    /// The length of a blob that is being filled for this repository, when its upstream has said it.
    pub(super) fn filling_size(&self, origin: &Origin, digest: &Digest) -> Option<u64> {
        let key = (origin.name().clone(), digest.clone());
        lock(&self.running.fills).get(&key)?.known_size()
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

struct Fetch {
    engine: Arc<Engine>,
    origin: Origin,
    digest: Digest,
    progress: Progress,
}

/// A blob that is verified and readable in the repository.
struct Done {
    content: Arc<dyn Blob>,
    size: u64,
}

/// What is known of the length before the bytes are here.
#[derive(Clone, Copy)]
struct Length {
    /// Exactly this, as the upstream or else every parent says.
    expected: Option<u64>,
    /// At most this.
    max: u64,
}

impl Fetch {
    async fn run(self) {
        let result = contained(self.fill()).await;
        let key = (self.origin.name().clone(), self.digest.clone());
        lock(&self.engine.running.fills).remove(&key);
        let outcome = match &result {
            Ok(_) => CacheOutcome::Filled,
            Err(Failure::NotFound) => CacheOutcome::NotFound,
            Err(_) => CacheOutcome::Failed,
        };
        self.origin.count(CacheContent::Blob, outcome);
        match result {
            Ok(done) => self.progress.published(done.content, done.size),
            Err(failure) => {
                tracing::warn!(error = &failure as &dyn std::error::Error, "a fill failed");
                self.progress.failed(failure);
            }
        }
    }

    async fn fill(&self) -> Result<Done, Failure> {
        let _lease = self.engine.leases.take(&self.digest).await;
        if let Some(content) = self.engine.held(&self.origin, &self.digest).await? {
            let size = content.size();
            return Ok(Done { content, size });
        }
        let _slot = self
            .engine
            .running
            .fill_slots
            .acquire()
            .await
            .map_err(Failure::internal)?;
        let body = self.request(0).await?;
        let length = self.length(body.size).await?;
        let upload = new_upload_id().map_err(Failure::internal)?;
        let result = contained(self.download(upload, length, body)).await;
        if result.is_err() {
            self.engine.discard(upload).await;
        }
        result
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

    async fn download(
        &self,
        upload: UploadId,
        length: Length,
        first: BlobStream,
    ) -> Result<Done, Failure> {
        let algorithm = self.digest.algorithm();
        let writer = self.engine.blobs.create(upload, algorithm).await?;
        let content = writer.tail();
        self.progress.opened(length.expected, Arc::clone(&content));
        let mut staging = Staging {
            fetch: self,
            writer,
            length,
            unflushed: 0,
        };
        staging.receive(first).await?;
        let size = staging.writer.commit(&self.digest).await?;
        self.link(size).await;
        Ok(Done { content, size })
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

/// The staging file while bytes arrive.
struct Staging<'a> {
    fetch: &'a Fetch,
    writer: Box<dyn BlobWriter>,
    length: Length,
    unflushed: usize,
}

impl Staging<'_> {
    /// Receives the whole body, over as many connections as it takes.
    async fn receive(&mut self, first: BlobStream) -> Result<(), Failure> {
        let mut broken = self.append_all(first).await;
        let mut resumptions = 0;
        let mut backoff = FIRST_BACKOFF;
        let mut reached = self.writer.written();
        while let Err(failure) = broken {
            if !failure.is_resumable() || resumptions == MAX_RESUMPTIONS {
                return Err(failure);
            }
            tracing::info!(
                error = &failure as &dyn std::error::Error,
                offset = self.writer.written(),
                "the upstream broke off; resuming"
            );
            tokio::time::sleep(backoff).await;
            resumptions += 1;
            backoff *= 2;
            broken = self.resume().await;
            if self.writer.written() - reached >= FORGIVEN_AFTER_BYTES {
                (resumptions, backoff) = (0, FIRST_BACKOFF);
                reached = self.writer.written();
            }
        }
        Ok(())
    }

    async fn resume(&mut self) -> Result<(), Failure> {
        let body = self.fetch.request(self.writer.written()).await?;
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
            .writer
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
        let written = self.writer.written();
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

    async fn append(&mut self, chunk: Bytes) -> Result<(), Failure> {
        if chunk.is_empty() {
            return Ok(());
        }
        let most = self.length.expected.unwrap_or(self.length.max);
        if self.writer.written() + chunk.len() as u64 > most {
            return Err(Failure::invalid(format!(
                "sent more than the {most} bytes it may have"
            )));
        }
        self.unflushed += chunk.len();
        self.writer.write(chunk).await?;
        if self.unflushed >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Failure> {
        if self.unflushed > 0 {
            self.writer.flush().await?;
            self.unflushed = 0;
            self.fetch.progress.advanced(self.writer.written());
        }
        Ok(())
    }
}
