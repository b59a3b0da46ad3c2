//! Begins the fills of a manifest's blobs before a client asks for them, when the mirror's configuration says so.
//!
//! Owns when that is worth it and how much of the fills' budget it may take. The fills are ordinary ones: a client that comes joins.
//! Invariants: the client that pulls the manifest never waits for this; at least half of the places for fills stay for clients; what
//! admission refuses for this requester is not begun.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gantry_model::{AcceptedTypes, Digest, Document, Reference, Requester};
use gantry_storage::ManifestRecord;

use super::{
    Engine, Origin, Place, failure::Failure, flight::Flights, manifest::millis, turns::Turns,
};

/// How long a manifest is new. A client such as containerd asks for the tag by HEAD, and comes for the content after that; later,
/// clients that ask for the manifest have the layers, and what was evicted should not come back for them.
const NEW_FOR: Duration = Duration::from_secs(60);

/// What is being prefetched.
#[derive(Debug)]
pub(super) struct Prefetches {
    manifests: Flights<(Place, Digest), ()>,
    places: Turns,
    max_fills: usize,
}

impl Prefetches {
    /// At most a quarter of the fills' places for each mirror.
    pub(super) fn new(max_fills: usize) -> Self {
        Self {
            manifests: Flights::default(),
            places: Turns::new(max_fills / 4),
            max_fills,
        }
    }
}

/// What a manifest names.
struct PrefetchedPart {
    digest: Digest,
    /// The types to request it as, where it may be a manifest; it is a blob when the upstream has no such manifest.
    manifest: Option<AcceptedTypes>,
}

impl Engine {
    /// See [`super::Mirrors::prefetch`].
    pub(super) fn prefetch(
        self: &Arc<Self>,
        origin: &Origin,
        record: &ManifestRecord,
        bytes: &Bytes,
        requester: &Requester,
    ) {
        let age_ms = self.now_ms().saturating_sub(record.pushed_at_ms);
        if age_ms > millis(NEW_FOR) {
            return;
        }
        let Document::Manifest(manifest) = Document::read(&record.media_type, bytes) else {
            return;
        };
        let most = self.settings.max_prefetched_blobs;
        let blobs = manifest.blobs().map(|(digest, _)| (digest.clone(), None));
        let unknown = manifest.children_of_unknown_type();
        let unknown = unknown.map(|(digest, child)| (digest.clone(), Some(&child.media_type)));
        let parts = blobs.chain(unknown).take(most);
        let parts: Vec<PrefetchedPart> = parts
            .map(|(digest, media_type)| PrefetchedPart {
                digest,
                manifest: media_type.map(AcceptedTypes::with),
            })
            .collect();
        if parts.is_empty() {
            return;
        }
        let key = (origin.place(), record.digest.clone());
        let span = tracing::info_span!(
            parent: None,
            "prefetch",
            repository.name = %origin.name(),
            manifest.digest = %key.1,
            request.id = %requester.request_id,
        );
        let engine = Arc::clone(self);
        let (origin, requester) = (origin.clone(), requester.clone());
        let prefetch = || async move { engine.prefetch_parts(&origin, &parts, &requester).await };
        self.running.prefetches.manifests.start(key, span, prefetch);
    }

    /// In the manifest's order, as clients unpack them; each begins when there is a place for it.
    async fn prefetch_parts(
        self: Arc<Self>,
        origin: &Origin,
        parts: &[PrefetchedPart],
        requester: &Requester,
    ) -> Result<(), Failure> {
        let fills = parts.iter().map(|part| {
            let engine = Arc::clone(&self);
            async move { engine.prefetch_part(origin, part, requester).await }
        });
        // The places are taken in this order: a semaphore is fair.
        for fetched in futures_util::future::join_all(fills).await {
            if let Err(failure) = fetched {
                // The client that asks for the blob is told why; nobody asked for this.
                tracing::debug!(
                    error = &failure as &dyn std::error::Error,
                    "a blob was not prefetched"
                );
            }
        }
        Ok(())
    }

    async fn prefetch_part(
        self: &Arc<Self>,
        origin: &Origin,
        part: &PrefetchedPart,
        requester: &Requester,
    ) -> Result<(), Failure> {
        let prefetches = &self.running.prefetches;
        let digest = &part.digest;
        let _place = prefetches.places.take(&origin.mirror).await?;
        if let Some(accepts) = &part.manifest {
            let origin = origin.clone().accepting(accepts.clone());
            let reference = Reference::Digest(digest.clone());
            match self.manifest(&origin, &reference, requester).await {
                Err(Failure::NotFound) => {}
                found => return found.map(drop),
            }
        }
        let linked = self.metadata.blob(origin.name(), origin.content(), digest);
        if linked.await?.is_some() {
            return Ok(());
        }
        // Before the fill is begun: one that waits for a place would make a client that joins it wait too.
        if self.running.fill_slots.available_permits() * 2 <= prefetches.max_fills {
            tracing::debug!(blob.digest = %digest, "not prefetched: clients need the places");
            return Ok(());
        }
        self.admit_blob(origin, digest, requester).await?;
        self.join_or_start(origin, digest).finished().await
    }
}
