//! Tags whose upstream answers by what the client accepts: what such a tag names to clients that accept further types of manifests.
//!
//! Owns those answers, which are remembered for the further types that were asked for, in memory. Invariant: a stored tag names what the
//! upstream answers to the types that are always asked for, so no client's `Accept` changes what a tag names to other clients.

use std::{sync::Arc, time::Duration};

use gantry_model::{AcceptedTypes, Digest, Reference, Requester, Tag, TagState};
use gantry_storage::TagRecord;

use super::{
    Engine, MirroredManifest, Origin, Place,
    failure::Failure,
    manifest::{StoreError, Verified},
};
use crate::{
    cache_counts::CacheOutcome,
    outcome::{Stale, Staleness},
    ports::Moves,
};

/// Answers that are remembered at once.
const MAX_ANSWERS: u64 = 2_000;

type Key = (Place, Tag, Arc<str>);

/// An upstream's answer to a tag and further types.
#[derive(Clone, Debug)]
struct Answer {
    digest: Digest,
    checked_at_ms: u64,
}

/// Answers that differ from what the tag names to everybody.
#[derive(Debug)]
pub(super) struct Negotiated {
    answers: moka::sync::Cache<Key, Answer>,
}

impl Default for Negotiated {
    fn default() -> Self {
        Self {
            answers: moka::sync::Cache::new(MAX_ANSWERS),
        }
    }
}

impl Negotiated {
    pub(super) fn forget(&self) {
        self.answers.invalidate_all();
    }
}

impl Engine {
    /// The manifest that the tag names for this client's types, while the upstream's last answer to them is fresh.
    pub(super) async fn fresh_negotiated(
        &self,
        origin: &Origin,
        tag: &Tag,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let Some(answer) = self.negotiated(origin, tag) else {
            return Ok(None);
        };
        if self.since(&answer) >= origin.freshness(tag).fresh_for {
            return Ok(None);
        }
        self.answered(origin, &answer, None, CacheOutcome::Hit)
            .await
    }

    /// Asks the upstream about a tag for a client that accepts further types.
    pub(super) async fn check_negotiated(
        &self,
        origin: &Origin,
        tag: &Tag,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let mut seen = self.metadata.tag(origin.name(), tag).await?;
        if let Some(known) = &seen
            && (!known.is_cached() || self.is_taken(origin, known).await?)
        {
            let common = origin.clone().accepting(AcceptedTypes::default());
            match self.check_tag(&common, tag, requester).await {
                // The upstream may have it as one of the further types only.
                Err(Failure::NotFound) => seen = None,
                Ok(found) if !origin.accepts.takes(&found.record.media_type) => {}
                answered => return answered,
            }
        }
        match self.negotiate(origin, tag, seen, requester).await {
            Err(failure) if failure.is_upstream_trouble() => {
                self.stale_negotiated(origin, tag, failure).await
            }
            answered => answered,
        }
    }

    async fn negotiate(
        &self,
        origin: &Origin,
        tag: &Tag,
        seen: Option<TagRecord>,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let verified = match self.held_answer(origin, tag, seen.is_some()).await? {
            Some(held) => held,
            None => self.fetch_tag(origin, tag).await?,
        };
        if let Some(seen) = &seen
            && seen.state.digest != verified.digest
            && origin.freshness(tag).moves == Moves::Refuse
            && let Some(pinned) = self
                .moved(origin, seen, &verified.digest, requester)
                .await?
        {
            return Ok(pinned);
        }
        let is_for_all = match &seen {
            _ if !origin.accepts.is_further(&verified.media_type) => true,
            Some(seen) => seen.state.digest == verified.digest,
            None => self.is_for_all(origin, tag, &verified.digest).await,
        };
        if is_for_all {
            return self
                .adopt(origin, tag, seen.as_ref(), verified, requester)
                .await;
        }
        self.keep_answer(origin, tag, &verified, requester).await
    }

    /// What the upstream's tag names to this client, when that is here: a HEAD costs less than the manifest.
    async fn held_answer(
        &self,
        origin: &Origin,
        tag: &Tag,
        is_known: bool,
    ) -> Result<Option<Verified>, Failure> {
        if !is_known && self.negotiated(origin, tag).is_none() {
            return Ok(None);
        }
        let (upstream, reference) = (&origin.settings.upstream, Reference::Tag(tag.clone()));
        let head = upstream.head_manifest(&origin.remote, &reference, &origin.accepts);
        match head.await?.digest {
            Some(digest) => self.held_manifest(origin, &digest).await,
            None => Ok(None),
        }
    }

    /// Whether the upstream answers the same to clients that accept no further types.
    async fn is_for_all(&self, origin: &Origin, tag: &Tag, digest: &Digest) -> bool {
        let (upstream, reference) = (&origin.settings.upstream, Reference::Tag(tag.clone()));
        let common = AcceptedTypes::default();
        let head = upstream.head_manifest(&origin.remote, &reference, &common);
        // Whatever else it says, or if it says nothing: then the answer is this client's alone.
        matches!(head.await, Ok(head) if head.digest.as_ref() == Some(digest))
    }

    async fn keep_answer(
        &self,
        origin: &Origin,
        tag: &Tag,
        verified: &Verified,
        requester: &Requester,
    ) -> Result<MirroredManifest, Failure> {
        let named = Some((tag, None));
        self.admit_manifest(origin, verified, named, requester)
            .await?;
        if let Some(older) = self.too_young(origin, tag, None, verified).await? {
            return Ok(older);
        }
        let answer = Answer {
            digest: verified.digest.clone(),
            checked_at_ms: self.now_ms(),
        };
        match self.store(origin, verified, None).await {
            Err(StoreError::Failed(failure @ Failure::Full(_))) => {
                self.store_is_full(&failure);
                let state = state(origin, &answer);
                return Ok(self.unstored(origin, verified, Some(state)));
            }
            stored => stored?,
        }
        if let Some(key) = key(origin, tag) {
            let answers = &self.running.negotiated.answers;
            answers.insert(key, answer.clone());
        }
        let kept = self.answered(origin, &answer, None, CacheOutcome::Filled);
        kept.await?.ok_or(Failure::Conflict)
    }

    async fn stale_negotiated(
        &self,
        origin: &Origin,
        tag: &Tag,
        failure: Failure,
    ) -> Result<MirroredManifest, Failure> {
        let Some(answer) = self.negotiated(origin, tag) else {
            return Err(failure);
        };
        let freshness = origin.freshness(tag);
        let age = self.since(&answer);
        if age > freshness.fresh_for.saturating_add(freshness.stale_if_error) {
            return Err(failure);
        }
        let why = Stale::UpstreamFails;
        let stale = Some(Staleness { age, why });
        let via = CacheOutcome::Stale;
        let Some(stale) = self.answered(origin, &answer, stale, via).await? else {
            return Err(failure);
        };
        failure.warn(origin.mirror(), "serving a stale tag");
        Ok(stale)
    }

    async fn answered(
        &self,
        origin: &Origin,
        answer: &Answer,
        stale: Option<Staleness>,
        via: CacheOutcome,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let local = self.local_manifest(origin, &answer.digest).await?;
        Ok(local.map(|(record, bytes)| MirroredManifest {
            record,
            bytes,
            stale,
            tag: Some(state(origin, answer)),
            via,
        }))
    }

    /// Whether this client takes what the stored tag names.
    async fn is_taken(&self, origin: &Origin, seen: &TagRecord) -> Result<bool, Failure> {
        let (name, content) = (origin.name(), origin.content());
        let record = self.metadata.manifest(name, content, &seen.state.digest);
        let record = record.await?;
        Ok(record.is_none_or(|record| origin.accepts.takes(&record.media_type)))
    }

    fn negotiated(&self, origin: &Origin, tag: &Tag) -> Option<Answer> {
        self.running.negotiated.answers.get(&key(origin, tag)?)
    }

    fn since(&self, answer: &Answer) -> Duration {
        Duration::from_millis(self.now_ms().saturating_sub(answer.checked_at_ms))
    }
}

fn key(origin: &Origin, tag: &Tag) -> Option<Key> {
    let further = origin.accepts.further()?;
    Some((origin.place(), tag.clone(), Arc::clone(further)))
}

fn state(origin: &Origin, answer: &Answer) -> TagState {
    TagState {
        digest: answer.digest.clone(),
        pushed_at_ms: answer.checked_at_ms,
        pushed_by: format!("mirror:{}", origin.mirror()),
        immutable: false,
    }
}
