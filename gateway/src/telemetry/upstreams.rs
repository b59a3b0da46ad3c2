//! Calls to upstreams, and what the proxy cache did instead of them.
//!
//! Owns these names. Labels are mirrors' names and closed enums.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use gantry_model::{AcceptedTypes, Digest, Reference, RepositoryName};
use gantry_registry::CacheCounts;
use gantry_upstream::{
    BlobStream, CallerRights, Credentials, FetchedManifest, Kind, ListPage, ListRoom, ManifestHead,
    NextPage, Part, RegistryClient, Upstream, UpstreamError,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use tracing::Instrument as _;

use super::Telemetry;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CallLabels {
    mirror: Arc<str>,
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabels {
    mirror: Arc<str>,
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct MirrorLabels {
    mirror: Arc<str>,
}

/// The families about upstreams.
#[derive(Clone, Debug)]
pub(super) struct UpstreamFamilies {
    calls: Family<CallLabels, Counter>,
    seconds: Family<KindLabels, Histogram>,
    resting: Family<MirrorLabels, Gauge>,
    remaining: Family<MirrorLabels, Gauge>,
}

impl UpstreamFamilies {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let families = Self {
            calls: Family::default(),
            seconds: Family::new_with_constructor(call_seconds),
            resting: Family::default(),
            remaining: Family::default(),
        };
        registry.register(
            "upstream_requests",
            "Requests to upstreams, retries and tokens included in one",
            families.calls.clone(),
        );
        registry.register_with_unit(
            "upstream_request",
            "Time to an upstream's answer; of a blob, to its head",
            Unit::Seconds,
            families.seconds.clone(),
        );
        registry.register(
            "upstream_resting",
            "Servers of an upstream that are left alone because they failed (breaker open)",
            families.resting.clone(),
        );
        registry.register(
            "upstream_quota_remaining",
            "Requests an upstream says it still allows in its window, such as Docker Hub",
            families.remaining.clone(),
        );
        families
    }
}

/// An upstream whose calls are counted and are spans of a trace.
#[derive(Debug)]
pub struct MeasuredUpstream {
    mirror: Arc<str>,
    client: Arc<RegistryClient>,
    families: UpstreamFamilies,
}

impl MeasuredUpstream {
    /// Counts the calls of `client` under the mirror's name.
    #[must_use]
    pub fn new(telemetry: &Telemetry, mirror: &Arc<str>, client: Arc<RegistryClient>) -> Self {
        Self {
            mirror: Arc::clone(mirror),
            client,
            families: telemetry.upstreams.clone(),
        }
    }

    async fn measured<T>(
        &self,
        kind: &'static str,
        call: impl Future<Output = Result<T, UpstreamError>>,
    ) -> Result<T, UpstreamError> {
        let began = Instant::now();
        let span = tracing::debug_span!("upstream", mirror = &*self.mirror, kind);
        let result = call.instrument(span).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => match error.kind {
                Kind::NotFound => "not_found",
                Kind::Refused => "refused",
                Kind::RateLimited => "rate_limited",
                Kind::Unavailable => "unavailable",
                Kind::Invalid => "invalid",
            },
        };
        let mirror = || Arc::clone(&self.mirror);
        let labels = CallLabels {
            mirror: mirror(),
            kind,
            outcome,
        };
        self.families.calls.get_or_create(&labels).inc();
        let labels = KindLabels {
            mirror: mirror(),
            kind,
        };
        let seconds = self.families.seconds.get_or_create(&labels);
        seconds.observe(began.elapsed().as_secs_f64());
        drop(seconds);
        self.note_state();
        result
    }
}

impl MeasuredUpstream {
    /// What the call taught about the upstream.
    fn note_state(&self) {
        let labels = MirrorLabels {
            mirror: Arc::clone(&self.mirror),
        };
        let endpoints = self.client.stats().endpoints;
        let broken = endpoints.iter().filter(|endpoint| endpoint.is_broken);
        let broken = i64::try_from(broken.count()).unwrap_or(i64::MAX);
        self.families.resting.get_or_create(&labels).set(broken);
        let quotas = endpoints.iter().filter_map(|endpoint| endpoint.quota);
        if let Some(least) = quotas.map(|quota| quota.remaining).min() {
            let least = i64::try_from(least).unwrap_or(i64::MAX);
            self.families.remaining.get_or_create(&labels).set(least);
        }
    }
}

#[async_trait]
impl Upstream for MeasuredUpstream {
    async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<ManifestHead, UpstreamError> {
        let call = self.client.head_manifest(repository, reference, accepts);
        self.measured("head_manifest", call).await
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<FetchedManifest, UpstreamError> {
        let call = self.client.manifest(repository, reference, accepts);
        self.measured("manifest", call).await
    }

    async fn stat_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let call = self.client.stat_blob(repository, digest);
        self.measured("head_blob", call).await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        let call = self.client.blob(repository, digest, offset);
        self.measured("blob", call).await
    }

    async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Part,
    ) -> Result<BlobStream, UpstreamError> {
        let call = self.client.blob_part(repository, digest, part);
        self.measured("blob", call).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        let call = self.client.tags(repository, next, room);
        self.measured("tags", call).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        let call = self.client.referrers(repository, digest, next, room);
        self.measured("referrers", call).await
    }
}

#[async_trait]
impl CallerRights for MeasuredUpstream {
    async fn knows(&self, caller: &Credentials) -> Result<bool, UpstreamError> {
        self.measured("caller", self.client.knows(caller)).await
    }

    async fn may_pull(
        &self,
        caller: Option<&Credentials>,
        repository: &RepositoryName,
        known: Option<&Reference>,
    ) -> Result<bool, UpstreamError> {
        let call = self.client.may_pull(caller, repository, known);
        self.measured("right", call).await
    }
}

/// The counts of every mirror's cache, kept by the registry and read at each scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct Caches(Arc<Mutex<BTreeMap<Arc<str>, Arc<CacheCounts>>>>);

impl Caches {
    pub(super) fn of(&self, mirror: &Arc<str>) -> Arc<CacheCounts> {
        let mut caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(caches.entry(Arc::clone(mirror)).or_default())
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CacheLabels {
    mirror: Arc<str>,
    content: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EvictedLabels {
    mirror: Arc<str>,
    content: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    mirror: Arc<str>,
    reason: &'static str,
}

type ByMirror = BTreeMap<Arc<str>, Arc<CacheCounts>>;

impl Collector for Caches {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let caches = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        encode_answers(&mut encoder, &caches)?;
        encode_evicted(&mut encoder, &caches)?;
        encode_sizes(&mut encoder, &caches)
    }
}

fn encode_evicted(encoder: &mut DescriptorEncoder<'_>, caches: &ByMirror) -> fmt::Result {
    let help = "Manifests and blobs that left a mirror's cache";
    let mut metric = encoder.encode_descriptor("cache_evicted", help, None, MetricType::Counter)?;
    for (mirror, counts) in caches {
        for (reason, content, count) in counts.evicted() {
            let labels = EvictedLabels {
                mirror: Arc::clone(mirror),
                content: content.as_str(),
                reason: reason.as_str(),
            };
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    let help = "Bytes that leaving content freed";
    let name = "cache_evicted_bytes";
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (mirror, counts) in caches {
        for (reason, bytes) in counts.evicted_bytes() {
            let labels = ReasonLabels {
                mirror: Arc::clone(mirror),
                reason: reason.as_str(),
            };
            ConstCounter::new(bytes).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn encode_sizes(encoder: &mut DescriptorEncoder<'_>, caches: &ByMirror) -> fmt::Result {
    let help = "Bytes of blobs in a mirror's cache, looked at once a minute";
    let mut metric = encoder.encode_descriptor("cache_bytes", help, None, MetricType::Gauge)?;
    for (mirror, counts) in caches {
        let labels = MirrorLabels {
            mirror: Arc::clone(mirror),
        };
        let bytes = i64::try_from(counts.bytes()).unwrap_or(i64::MAX);
        ConstGauge::new(bytes).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

fn encode_answers(encoder: &mut DescriptorEncoder<'_>, caches: &ByMirror) -> fmt::Result {
    let help = "Answers about mirrored content, by where they came from";
    let mut metric = encoder.encode_descriptor("cache", help, None, MetricType::Counter)?;
    for (mirror, counts) in caches.iter() {
        for (content, outcome, count) in counts.read() {
            let labels = CacheLabels {
                mirror: Arc::clone(mirror),
                content: content.as_str(),
                outcome: outcome.as_str(),
            };
            ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// From 5 milliseconds to a minute.
fn call_seconds() -> Histogram {
    Histogram::new([
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}
