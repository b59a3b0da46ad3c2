//! Whether a tag may be served: fresh, confirmed by HEAD, moved, stale because the upstream is in trouble, or gone.
//!
//! Owns the order of questions to the upstream: a cold tag costs one GET, a known one a HEAD, which Docker Hub does not count.
//! Invariant: a tag is unknown only when the upstream said so, and then its digests stay.

use gantry_model::{Digest, Reference, Requester, Tag, TagState};
use gantry_storage::{Commit, CommitError, ContentOrigin, TagMove, TagRecord};

use super::{
    Asked, Engine, MirroredManifest, Origin,
    failure::Failure,
    manifest::{StoreError, Verified, millis},
};
use crate::{
    cache_counts::CacheOutcome,
    outcome::{Stale, Staleness},
    ports::Moves,
};

/// How often a tag is moved again when somebody else keeps deleting it meanwhile.
const MAX_MOVES: usize = 3;

/// References whose absence is remembered at once.
const MAX_NOT_FOUND: u64 = 10_000;

/// The upstream's 404s, until they are to be asked again.
#[derive(Debug)]
pub(super) struct NotFound {
    until_ms: moka::sync::Cache<Asked, u64>,
}

impl Default for NotFound {
    fn default() -> Self {
        Self {
            until_ms: moka::sync::Cache::new(MAX_NOT_FOUND),
        }
    }
}

impl NotFound {
    pub(super) fn remembers(&self, key: &Asked, now_ms: u64) -> bool {
        self.until_ms
            .get(key)
            .is_some_and(|until_ms| now_ms < until_ms)
    }

    pub(super) fn remember(&self, key: Asked, until_ms: u64) {
        self.until_ms.insert(key, until_ms);
    }

    pub(super) fn forget(&self) {
        self.until_ms.invalidate_all();
    }
}

impl Engine {
    /// The tag's manifest, when the upstream confirmed the tag recently enough.
    pub(super) async fn fresh_tag(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let Some(record) = self.metadata.tag(origin.name(), tag).await? else {
            return Ok(None);
        };
        if self.stale_for_ms(origin, &record).is_some() {
            return Ok(None);
        }
        self.tagged(origin, record, None, CacheOutcome::Hit).await
    }

    /// The tag's manifest, when the tag is not fresh and may be served while the upstream is asked.
    pub(super) async fn tag_to_revalidate(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<Option<MirroredManifest>, Failure> {
        if origin.freshness(tag).stale_while_revalidate.is_zero() {
            return Ok(None);
        }
        let Some(record) = self.metadata.tag(origin.name(), tag).await? else {
            return Ok(None);
        };
        let most = millis(origin.freshness(tag).stale_while_revalidate);
        match self.stale_for_ms(origin, &record) {
            Some(stale_for_ms) if stale_for_ms < most => {
                let stale = self.staleness(&record, Stale::Revalidating);
                self.tagged(origin, record, Some(stale), CacheOutcome::Stale)
                    .await
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Asks the upstream about a tag that is not fresh.
    pub(super) async fn check_tag(
        &self,
        origin: &Origin,
        tag: &Tag,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let seen = self.metadata.tag(origin.name(), tag).await?;
        let Some(seen) = seen else {
            if let Some(held) = self.named_and_held(origin, tag).await? {
                return self.point(origin, tag, None, &held).await;
            }
            let verified = self.fetch_tag(origin, tag).await?;
            return self.adopt(origin, tag, None, verified, requester).await;
        };
        // Pushed since this read was found to be the upstream's: nothing that is pushed here is held against an upstream.
        if !seen.is_cached() && origin.may_be_pushed() {
            let digest = &seen.state.digest;
            let pushed = self.stored_manifest(origin.name(), &ContentOrigin::Pushed, digest);
            let (record, bytes) = pushed.await?.ok_or(Failure::Conflict)?;
            return Ok(MirroredManifest {
                record,
                bytes,
                stale: None,
                tag: Some(seen.state),
                via: CacheOutcome::Hit,
            });
        }
        match self.revalidate(origin, &seen, requester).await {
            Err(Failure::NotFound) => {
                self.forget(origin, seen).await?;
                Err(Failure::NotFound)
            }
            Err(failure) if failure.is_upstream_trouble() => {
                self.stale(origin, seen, failure).await
            }
            other => other,
        }
    }

    async fn revalidate(
        &self,
        origin: &Origin,
        seen: &TagRecord,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let (upstream, tag) = (&origin.settings.upstream, &seen.tag);
        let head = upstream
            .head_manifest(
                &origin.remote,
                &Reference::Tag(tag.clone()),
                &origin.accepts,
            )
            .await?;
        let verified = match head.digest {
            Some(digest) if digest == seen.state.digest => {
                if let Some(confirmed) = self.confirm(origin, seen).await? {
                    return Ok(confirmed);
                }
                self.named(origin, &digest).await?
            }
            Some(digest) => {
                if let Some(pinned) = self.moved(origin, seen, &digest, requester).await? {
                    return Ok(pinned);
                }
                match self.held_manifest(origin, &digest).await? {
                    Some(held) => return self.point(origin, tag, Some(seen), &held).await,
                    None => self.named(origin, &digest).await?,
                }
            }
            None => {
                let fetched = self.fetch_tag(origin, tag).await?;
                if fetched.digest != seen.state.digest
                    && let Some(pinned) =
                        self.moved(origin, seen, &fetched.digest, requester).await?
                {
                    return Ok(pinned);
                }
                fetched
            }
        };
        self.adopt(origin, tag, Some(seen), verified, requester)
            .await
    }

    /// The upstream's tag names something else than was seen: what is served all the same, when the tag is pinned.
    pub(super) async fn moved(
        &self,
        origin: &Origin,
        seen: &TagRecord,
        digest: &Digest,
        requester: &Requester,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let moves = origin.freshness(&seen.tag).moves;
        if moves == Moves::Follow {
            return Ok(None);
        }
        tracing::warn!(
            repository.name = %origin.name(),
            tag = %seen.tag,
            manifest.digest = %seen.state.digest,
            upstream.digest = %digest,
            followed = moves == Moves::Alert,
            "the upstream moved a tag that was to stay"
        );
        if moves == Moves::Alert {
            return Ok(None);
        }
        let stale = self.staleness(seen, Stale::Pinned(digest.clone()));
        let pinned = self
            .tagged(
                origin,
                seen.clone(),
                Some(stale.clone()),
                CacheOutcome::Stale,
            )
            .await?;
        if pinned.is_some() {
            return Ok(pinned);
        }
        // Its bytes are lost here: they can be had by their digest only, never as what the upstream calls by that name now.
        let pinned = &seen.state.digest;
        match self.pull_digest(origin, pinned, requester).await {
            Ok(again) => Ok(Some(MirroredManifest {
                stale: Some(stale),
                tag: Some(seen.state.clone()),
                ..again
            })),
            Err(Failure::NotFound) => Err(Failure::invalid(format!(
                "the tag is pinned to {pinned}, which is not there any more"
            ))),
            Err(failure) => Err(failure),
        }
    }

    /// Fetches what a HEAD just named. Its absence contradicts that HEAD, so it is no 404 of the tag.
    async fn named(&self, origin: &Origin, digest: &Digest) -> Result<Verified, Failure> {
        match self.fetch_digest(origin, digest).await {
            Err(Failure::NotFound) => Err(Failure::invalid(format!(
                "the tag names {digest}, which is not there"
            ))),
            other => other,
        }
    }

    /// What the upstream's tag names, when it is here without being the tag's: it may have been too young until now.
    async fn named_and_held(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<Option<Verified>, Failure> {
        if origin.freshness(tag).min_age.is_zero() {
            return Ok(None);
        }
        let upstream = &origin.settings.upstream;
        let reference = Reference::Tag(tag.clone());
        let head = upstream.head_manifest(&origin.remote, &reference, &origin.accepts);
        match head.await?.digest {
            Some(digest) => self.held_manifest(origin, &digest).await,
            None => Ok(None),
        }
    }

    pub(super) async fn held_manifest(
        &self,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Option<Verified>, Failure> {
        let Some((record, bytes)) = self.local_manifest(origin, digest).await? else {
            return Ok(None);
        };
        Ok(Some(Verified::new(record.media_type, record.digest, bytes)))
    }

    /// Stores fetched content after the admission hooks accepted it, and points the tag at it.
    pub(super) async fn adopt(
        &self,
        origin: &Origin,
        tag: &Tag,
        seen: Option<&TagRecord>,
        verified: Verified,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        if let Some(seen) = seen
            && seen.state.digest == verified.digest
            && let Some(confirmed) = self.confirm(origin, seen).await?
        {
            return Ok(confirmed);
        }
        let previous = seen.map(|seen| seen.state.clone());
        self.admit_manifest(origin, &verified, Some((tag, previous)), requester)
            .await?;
        self.point(origin, tag, seen, &verified).await
    }

    /// Points the tag at the manifest, if it still names what was seen; otherwise whoever moved it asked the upstream as recently.
    async fn point(
        &self,
        origin: &Origin,
        tag: &Tag,
        seen: Option<&TagRecord>,
        verified: &Verified,
    ) -> Result<MirroredManifest, Failure> {
        if let Some(older) = self.too_young(origin, tag, seen, verified).await? {
            return Ok(older);
        }
        let mut expected = seen.map(|seen| seen.state.digest.clone());
        for _ in 0..MAX_MOVES {
            let moved = TagMove {
                tag: tag.clone(),
                expected,
                set_immutable: false,
                checked_at_ms: self.now_ms(),
            };
            match self.store(origin, verified, Some(moved)).await {
                Ok(()) | Err(StoreError::TagMoved(Some(_))) => {
                    return self.winner(origin, tag).await;
                }
                Err(StoreError::TagMoved(None)) => expected = None,
                Err(StoreError::Failed(failure @ Failure::Full(_))) => {
                    self.store_is_full(&failure);
                    let tag = TagState {
                        digest: verified.digest.clone(),
                        pushed_at_ms: self.now_ms(),
                        pushed_by: format!("mirror:{}", origin.mirror()),
                        immutable: false,
                    };
                    return Ok(self.unstored(origin, verified, Some(tag)));
                }
                Err(StoreError::Failed(failure)) => return Err(failure),
            }
        }
        Err(Failure::Conflict)
    }

    /// What the tag names now.
    async fn winner(&self, origin: &Origin, tag: &Tag) -> Result<MirroredManifest, Failure> {
        let record = self.metadata.tag(origin.name(), tag).await?;
        let tagged = match record {
            Some(record) => {
                self.tagged(origin, record, None, CacheOutcome::Filled)
                    .await?
            }
            None => None,
        };
        tagged.ok_or(Failure::Conflict)
    }

    /// Records that the upstream confirmed the tag; `None` when the manifest it names is no longer here.
    async fn confirm(
        &self,
        origin: &Origin,
        seen: &TagRecord,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let checked_at_ms = self.now_ms();
        let confirm = Commit::ConfirmTag {
            repository: origin.name().clone(),
            tag: seen.tag.clone(),
            digest: seen.state.digest.clone(),
            checked_at_ms,
        };
        let via = CacheOutcome::Revalidated;
        let Some(tagged) = self.tagged(origin, seen.clone(), None, via).await? else {
            return Ok(None);
        };
        match self.metadata.commit(confirm).await.map_err(Failure::from) {
            // It is confirmed all the same; only the next caller asks again.
            Err(failure @ Failure::Full(_)) => self.store_is_full(&failure),
            confirmed => confirmed?,
        }
        Ok(Some(tagged))
    }

    /// Serves the tag as it was last confirmed, when that is recent enough; otherwise the upstream's trouble is the answer.
    async fn stale(
        &self,
        origin: &Origin,
        seen: TagRecord,
        failure: Failure,
    ) -> Result<MirroredManifest, Failure> {
        let stale_for_ms = self.stale_for_ms(origin, &seen).unwrap_or(0);
        if stale_for_ms > millis(origin.freshness(&seen.tag).stale_if_error) {
            return Err(failure);
        }
        let stale = self.staleness(&seen, Stale::UpstreamFails);
        match self
            .tagged(origin, seen, Some(stale), CacheOutcome::Stale)
            .await?
        {
            Some(stale) => {
                failure.warn(origin.mirror(), "serving a stale tag");
                Ok(stale)
            }
            None => Err(failure),
        }
    }

    /// Forgets a tag that the upstream no longer has, so that it is not served when the upstream fails later. Its manifest stays.
    async fn forget(&self, origin: &Origin, seen: TagRecord) -> Result<(), Failure> {
        let delete = Commit::DeleteTag {
            repository: origin.name().clone(),
            tag: seen.tag,
            expected: seen.state.digest,
            at_ms: self.now_ms(),
            by: format!("mirror:{}", origin.mirror()),
        };
        match self.metadata.commit(delete).await {
            Ok(()) | Err(CommitError::TagMoved { .. } | CommitError::Absent) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn tagged(
        &self,
        origin: &Origin,
        record: TagRecord,
        stale: Option<Staleness>,
        via: CacheOutcome,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let local = self.local_manifest(origin, &record.state.digest).await?;
        Ok(local.map(|(manifest, bytes)| MirroredManifest {
            record: manifest,
            bytes,
            stale,
            tag: Some(record.state),
            via,
        }))
    }

    /// For how long the tag has not been fresh; `None` while it is.
    fn stale_for_ms(&self, origin: &Origin, record: &TagRecord) -> Option<u64> {
        let fresh_for = millis(origin.freshness(&record.tag).fresh_for);
        self.age_ms(record).checked_sub(fresh_for)
    }

    fn staleness(&self, record: &TagRecord, why: Stale) -> Staleness {
        let age = std::time::Duration::from_millis(self.age_ms(record));
        Staleness { age, why }
    }

    fn age_ms(&self, record: &TagRecord) -> u64 {
        self.now_ms().saturating_sub(record.checked_at_ms)
    }
}
