//! Lists of mirrored repositories: tags and referrers, as the upstream has them or else as they are known here.
//!
//! Owns the fallback of a registry without a referrers API: the tag `<algorithm>-<hex>` of the distribution spec.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use gantry_model::{Client, Digest, Page, Principal, Reference, Requester, Tag};
use gantry_storage::{ManifestRecord, TagRecord};
use serde_json::Value;

use super::{Engine, Origin, Place, failure::Failure, manifest::millis};
use crate::{admit::descriptor_of, referrers::fallback_tag};

/// Referrers indexes kept in memory, in bytes.
const MAX_CACHED_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug)]
struct CachedIndex {
    until_ms: u64,
    index: Bytes,
}

/// Referrers indexes by subject, until they are to be asked for again.
#[derive(Debug)]
pub(super) struct ReferrersCache {
    indexes: moka::sync::Cache<(Place, Digest), CachedIndex>,
}

impl Default for ReferrersCache {
    fn default() -> Self {
        // An empty index costs its key too.
        let weigh = |_key: &_, cached: &CachedIndex| {
            u32::try_from(cached.index.len()).map_or(u32::MAX, |length| length.saturating_add(512))
        };
        Self {
            indexes: moka::sync::Cache::builder()
                .max_capacity(MAX_CACHED_BYTES)
                .weigher(weigh)
                .build(),
        }
    }
}

impl Engine {
    /// See [`super::Mirrors::tags`].
    pub(super) async fn tags(
        &self,
        origin: &Origin,
        page: &Page,
    ) -> Result<(Vec<Tag>, bool), Failure> {
        let max = self.settings.max_page_entries;
        let limit = page.limit.map_or(max, |limit| limit.min(max));
        if limit == 0 {
            return Ok((Vec::new(), false));
        }
        let asked = Page {
            limit: Some(limit),
            after: page.after.clone(),
        };
        let answer = origin.settings.upstream.tags(&origin.remote, &asked).await;
        match answer.map_err(Failure::from) {
            Ok(answer) => Ok(cut(answer.tags, answer.more, limit, page.after.as_deref())),
            Err(failure) if failure.is_upstream_trouble() => {
                self.known_tags(origin, asked, limit, failure).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn known_tags(
        &self,
        origin: &Origin,
        page: Page,
        limit: usize,
        failure: Failure,
    ) -> Result<(Vec<Tag>, bool), Failure> {
        let first_page = page.after.is_none();
        let one_more = Page {
            limit: Some(limit.saturating_add(1)),
            after: page.after,
        };
        let records = self.metadata.tags(origin.name(), None, &one_more).await?;
        if records.is_empty() && first_page {
            return Err(failure);
        }
        tracing::warn!(
            error = &failure as &dyn std::error::Error,
            repository.name = %origin.name(),
            "listing the tags known here"
        );
        let tags = records.into_iter().map(|TagRecord { tag, .. }| tag);
        Ok(cut(tags.collect(), false, limit, None))
    }

    /// See [`super::Mirrors::referrers`].
    pub(super) async fn referrers(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Vec<Value>, Failure> {
        let key = (origin.place(), digest.clone());
        let now_ms = self.now_ms();
        let cached = self.running.referrers.indexes.get(&key);
        if let Some(cached) = cached.filter(|cached| now_ms < cached.until_ms) {
            return descriptors(&cached.index);
        }
        let span = tracing::info_span!(parent: None, "mirror_referrers", repository.name = %origin.name(), manifest.digest = %digest);
        let (engine, asked, subject) = (Arc::clone(self), origin.clone(), digest.clone());
        let flight = self.running.indexes.run(key, span, || async move {
            engine.pull_referrers(&asked, &subject).await
        });
        match flight.await {
            Ok(index) => descriptors(&index),
            Err(failure) if failure.is_upstream_trouble() => {
                self.known_referrers(origin, digest, failure).await
            }
            Err(failure) => Err(failure),
        }
    }

    async fn pull_referrers(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Bytes, Failure> {
        let upstream = &origin.settings.upstream;
        let answer = upstream.referrers(&origin.remote, digest).await;
        let index = match answer.map_err(Failure::from) {
            Ok(fetched) => fetched.bytes,
            Err(Failure::NotFound) => self.referrers_by_tag(origin, digest).await?,
            Err(failure) => return Err(failure),
        };
        descriptors(&index)?;
        let cached = CachedIndex {
            until_ms: self
                .now_ms()
                .saturating_add(millis(origin.settings.freshness.fresh_for)),
            index: index.clone(),
        };
        let key = (origin.place(), digest.clone());
        self.running.referrers.indexes.insert(key, cached);
        Ok(index)
    }

    /// What clients of a registry without a referrers API keep under the fallback tag; without that tag nothing refers.
    async fn referrers_by_tag(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
    ) -> Result<Bytes, Failure> {
        let Some(tag) = fallback_tag(digest) else {
            return Ok(empty_index());
        };
        let reference = Reference::Tag(tag);
        match self.manifest(origin, &reference, &system()).await {
            Ok(index) => Ok(index.bytes),
            Err(Failure::NotFound) => Ok(empty_index()),
            Err(failure) => Err(failure),
        }
    }

    async fn known_referrers(
        &self,
        origin: &Origin,
        digest: &Digest,
        failure: Failure,
    ) -> Result<Vec<Value>, Failure> {
        let known = self
            .metadata
            .referrers(origin.name(), origin.content(), digest)
            .await?;
        if known.is_empty() {
            return Err(failure);
        }
        known
            .iter()
            .map(|referrer| descriptor(&referrer.manifest))
            .collect()
    }
}

/// A page of at most `limit` tags after `after`, also of an upstream that ignores one or both.
pub(super) fn cut(
    mut tags: Vec<Tag>,
    more: bool,
    limit: usize,
    after: Option<&str>,
) -> (Vec<Tag>, bool) {
    let repeated = after.and_then(|after| tags.iter().position(|tag| tag.as_str() == after));
    if let Some(position) = repeated {
        tags.drain(..=position);
    }
    let cut = tags.len() > limit;
    tags.truncate(limit);
    (tags, more || cut)
}

fn empty_index() -> Bytes {
    Bytes::from_static(br#"{"schemaVersion":2,"manifests":[]}"#)
}

/// The descriptors of an index, unchanged: fields this registry does not know are the client's.
fn descriptors(index: &[u8]) -> Result<Vec<Value>, Failure> {
    let index: Value = serde_json::from_slice(index).map_err(Failure::invalid)?;
    match index.get("manifests") {
        Some(Value::Array(descriptors)) => Ok(descriptors.clone()),
        // Go's encoders write `null` for an empty slice.
        Some(Value::Null) => Ok(Vec::new()),
        _ => Err(Failure::invalid("the referrers are not an index")),
    }
}

fn descriptor(record: &ManifestRecord) -> Result<Value, Failure> {
    let descriptor = descriptor_of(record).map_err(Failure::internal)?;
    serde_json::to_value(descriptor).map_err(Failure::internal)
}

/// Nobody asked for the fallback tag itself, so it is the gateway that fills it.
pub(super) fn system() -> Requester {
    Requester {
        request_id: "mirror".into(),
        client: Arc::new(Client {
            address: Ipv4Addr::LOCALHOST.into(),
            user_agent: None,
            tls_subject: None,
        }),
        principal: Arc::new(Principal::system()),
        arrival: None,
        confirmed: None,
    }
}
