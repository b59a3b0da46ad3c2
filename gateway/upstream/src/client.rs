//! The registry client: the distribution API over one or several base URLs of the same upstream.
//!
//! Owns the order of base URLs, the bound on concurrency and the reading of answers. How a request is authenticated and where
//! redirects may lead is `endpoint`'s; what a status means is `answer`'s.

mod lists;

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use gantry_model::{
    AcceptedTypes, Digest, Reference, RepositoryName, manifest::MAX_MANIFEST_BYTES,
    media_type::OCI_INDEX,
};
use http::{HeaderMap, Method, StatusCode};
use reqwest::Response;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use url::Url;

use crate::{
    BlobStream, FetchedManifest, ListPage, ListRoom, ManifestHead, NextPage, Part, Upstream,
    answer,
    body::Body,
    credential::CredentialSource,
    endpoint::{Ask, Endpoint},
    error::{Call, Cause, Kind, UpstreamError},
    rate::Pacer,
    settings::{BuildError, ClientSettings},
};

use self::lists::{List, TAGS_PER_PAGE};
pub use crate::endpoint::EndpointStats;

/// What a caller is told to wait when the queue is full.
const SATURATED_PAUSE: Duration = Duration::from_secs(1);
/// Everything this registry stores. `*/*` is left out: it makes registries of old convert to schema 1.
pub(crate) const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, \
     application/vnd.cncf.oras.artifact.manifest.v1+json";
/// Another registry, over HTTP. Cheap to share behind an `Arc`; holds the connections, tokens and breakers of one mirror.
///
/// The first base URL is the upstream; its word is final unless it is unavailable or rate limited. Then the alternatives are asked in
/// order, and only what they *have* counts: an incomplete alternative that knows nothing of the content does not turn an
/// unreachable upstream into one that says "not found".
pub struct RegistryClient {
    name: Arc<str>,
    endpoints: Vec<Arc<Endpoint>>,
    home: Url,
    permits: Arc<Semaphore>,
    pacer: Option<Pacer>,
    queue_timeout: Duration,
}

/// How an upstream fares.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The base URL and its alternatives, in order.
    pub endpoints: Vec<EndpointStats>,
    /// Requests and bodies that may still begin at once.
    pub free: usize,
}

impl RegistryClient {
    /// Builds the client. Sends nothing, so the upstream may be down.
    ///
    /// # Errors
    /// [`BuildError`] when a URL, a certificate or the user agent is unusable.
    pub fn new(settings: ClientSettings) -> Result<Self, BuildError> {
        let bases = std::iter::once(&settings.url).chain(&settings.alternatives);
        let endpoints: Result<_, _> = bases
            .map(|base| Endpoint::new(base, &settings).map(Arc::new))
            .collect();
        let max_concurrency = settings.max_concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Ok(Self {
            name: settings.name.into(),
            endpoints: endpoints?,
            home: settings.url,
            permits: Arc::new(Semaphore::new(max_concurrency)),
            pacer: settings.requests_per_second.map(Pacer::new),
            queue_timeout: settings.queue_timeout,
        })
    }

    /// Uses other credentials from now on, for the origin they were for. What is under way ends with the old ones; a token got
    /// with those is not used again.
    pub fn replace_credentials(&self, source: Option<&CredentialSource>) {
        let home = self.endpoints.iter();
        for endpoint in home.filter(|endpoint| endpoint.is_at(&self.home)) {
            endpoint.replace_credentials(source.cloned());
        }
    }

    /// How the upstream fares now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let now = Instant::now();
        Stats {
            endpoints: self.endpoints.iter().map(|one| one.stats(now)).collect(),
            free: self.permits.available_permits(),
        }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where the settings' URL leads, and no alternative.
    pub(crate) fn home_endpoint(&self, call: &Call) -> Result<&Arc<Endpoint>, UpstreamError> {
        let home = self.endpoints.first();
        home.ok_or_else(|| call.fail(Kind::Unavailable, "there is no base URL"))
    }

    fn ask<'a>(
        &self,
        verb: &'static str,
        method: Method,
        repository: &'a RepositoryName,
        path: [&'a str; 2],
    ) -> Ask<'a> {
        Ask {
            call: Call::new(&self.name, verb),
            method,
            about: Some((repository, path)),
            query: Vec::new(),
            raw_query: None,
            accept: None,
            offset: 0,
            session: None,
            last: None,
        }
    }

    /// Waits for its turn, for so long as is allowed.
    pub(crate) async fn permit(&self, call: &Call) -> Result<OwnedSemaphorePermit, UpstreamError> {
        self.permit_within(call, self.queue_timeout).await
    }

    async fn permit_within(
        &self,
        call: &Call,
        patience: Duration,
    ) -> Result<OwnedSemaphorePermit, UpstreamError> {
        let began = Instant::now();
        let saturated = |pause: Duration| {
            call.fail(
                Kind::Unavailable,
                "not tried, too many requests are waiting",
            )
            .because(Cause::Saturated)
            .retry_after(pause)
        };
        let turn = Arc::clone(&self.permits).acquire_owned();
        // The semaphore is never closed, so that only the time can run out.
        let Ok(Ok(permit)) = timeout(patience, turn).await else {
            return Err(saturated(SATURATED_PAUSE));
        };
        if let Some(pacer) = &self.pacer {
            let patience = patience.saturating_sub(began.elapsed());
            let wait = pacer.take(Instant::now(), patience).map_err(saturated)?;
            sleep(wait).await;
        }
        Ok(permit)
    }

    async fn first_of<'a, T>(
        &'a self,
        ask: &Ask<'_>,
        attempt: impl Fn(&'a Arc<Endpoint>) -> BoxFuture<'a, Result<T, UpstreamError>> + Send,
    ) -> Result<T, UpstreamError> {
        let mut failed: Option<UpstreamError> = None;
        for endpoint in &self.endpoints {
            match (endpoint.guarded(ask, attempt(endpoint)).await, &failed) {
                (Ok(found), _) => return Ok(found),
                (Err(error), None) if !error.is_retryable() => return Err(error),
                (Err(error), None) => failed = Some(error),
                (Err(error), Some(_)) => tracing::debug!(%error, "the alternative failed too"),
            }
        }
        Err(failed.unwrap_or_else(|| ask.call.fail(Kind::Unavailable, "there is no base URL")))
    }

    async fn head(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        self.first_of(ask, |endpoint| {
            Box::pin(endpoint.fetch(ask, &[StatusCode::OK]))
        })
        .await
    }

    /// A manifest or a list: a whole body of at most `max_bytes`, with its headers.
    async fn document(
        &self,
        ask: &Ask<'_>,
        max_bytes: usize,
    ) -> Result<(HeaderMap, bytes::Bytes), UpstreamError> {
        self.first_of(ask, |endpoint| {
            Box::pin(async move {
                let response = endpoint.fetch(ask, &[StatusCode::OK]).await?;
                let headers = response.headers().clone();
                answer::check_encoding(&ask.call, &headers)?;
                let length = answer::content_length(&headers);
                let body = endpoint.body(&ask.call, response, length);
                Ok((headers, body.read_capped(max_bytes).await?))
            })
        })
        .await
    }

    /// A blob, or the part of it that is asked for; it holds `permit` to its end.
    async fn open_blob(
        &self,
        ask: &Ask<'_>,
        permit: OwnedSemaphorePermit,
    ) -> Result<BlobStream, UpstreamError> {
        let opened = self.first_of(ask, |endpoint| Box::pin(open_blob(endpoint, ask)));
        let opened = opened.await?;
        Ok(BlobStream {
            size: opened.size,
            offset: opened.offset,
            last: opened.last,
            etag: opened.etag,
            bytes: opened.body.into_stream(permit),
        })
    }
}

impl fmt::Debug for RegistryClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RegistryClient")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Upstream for RegistryClient {
    async fn head_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<ManifestHead, UpstreamError> {
        let text = reference.to_string();
        let path = ["manifests", text.as_str()];
        let ask = Ask {
            accept: Some(manifest_types(accepts)),
            ..self.ask("HEAD manifest", Method::HEAD, repository, path)
        };
        let _permit = self.permit(&ask.call).await?;
        let response = self.head(&ask).await?;
        Ok(ManifestHead {
            digest: stated_digest(&ask.call, response.headers(), reference)?,
            media_type: answer::media_type(response.headers()),
            size: answer::content_length(response.headers()),
        })
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        accepts: &AcceptedTypes,
    ) -> Result<FetchedManifest, UpstreamError> {
        let text = reference.to_string();
        let path = ["manifests", text.as_str()];
        let ask = Ask {
            accept: Some(manifest_types(accepts)),
            ..self.ask("GET manifest", Method::GET, repository, path)
        };
        let _permit = self.permit(&ask.call).await?;
        let (headers, bytes) = self.document(&ask, MAX_MANIFEST_BYTES).await?;
        Ok(FetchedManifest {
            media_type: answer::media_type(&headers),
            digest: stated_digest(&ask.call, &headers, reference)?,
            bytes,
        })
    }

    async fn stat_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        let path = ["blobs", digest.as_str()];
        let ask = self.ask("HEAD blob", Method::HEAD, repository, path);
        let _permit = self.permit(&ask.call).await?;
        let response = self.head(&ask).await?;
        let headers = response.headers();
        let is_said_to_be = || matches!(answer::content_digest(&ask.call, headers), Ok(Some(_)));
        if answer::is_html(headers) && !is_said_to_be() {
            return Err(ask.call.fail(Kind::Unavailable, answer::HTML));
        }
        Ok(answer::content_length(headers))
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        let path = ["blobs", digest.as_str()];
        let ask = Ask {
            offset,
            ..self.ask("GET blob", Method::GET, repository, path)
        };
        let permit = self.permit(&ask.call).await?;
        self.open_blob(&ask, permit).await
    }

    async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        part: Part,
    ) -> Result<BlobStream, UpstreamError> {
        let path = ["blobs", digest.as_str()];
        let ask = Ask {
            offset: part.first,
            last: Some(part.last),
            ..self.ask("GET blob", Method::GET, repository, path)
        };
        let patience = match part.waits {
            true => self.queue_timeout,
            false => Duration::ZERO,
        };
        let permit = self.permit_within(&ask.call, patience).await?;
        self.open_blob(&ask, permit).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        let first = Ask {
            query: vec![("n", TAGS_PER_PAGE.to_string())],
            raw_query: next.map(NextPage::query),
            ..self.ask("GET tags", Method::GET, repository, ["tags", "list"])
        };
        let list = List::tags(room);
        let _permit = self.permit(&first.call).await?;
        self.list_page(&first, &list, next).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        next: Option<&NextPage>,
        room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        let path = ["referrers", digest.as_str()];
        let ask = Ask {
            accept: Some(Cow::Borrowed(OCI_INDEX)),
            raw_query: next.map(NextPage::query),
            ..self.ask("GET referrers", Method::GET, repository, path)
        };
        let list = List::referrers(room);
        let _permit = self.permit(&ask.call).await?;
        self.list_page(&ask, &list, next).await
    }
}

/// The digest that a response states for a manifest. A manifest that was requested by digest is verified against that digest, so an
/// unreadable header is ignored.
fn stated_digest(
    call: &Call,
    headers: &HeaderMap,
    reference: &Reference,
) -> Result<Option<Digest>, UpstreamError> {
    match (answer::content_digest(call, headers), reference) {
        (Err(_unreadable), Reference::Digest(_)) => Ok(None),
        (stated, _) => stated,
    }
}

/// What a request for a manifest accepts.
fn manifest_types(accepts: &AcceptedTypes) -> Cow<'static, str> {
    match accepts.further() {
        None => Cow::Borrowed(MANIFEST_TYPES),
        Some(further) => Cow::Owned(format!("{MANIFEST_TYPES}, {further}")),
    }
}

/// A blob's body, and what its head said of it.
struct Opened {
    /// The whole blob's.
    size: Option<u64>,
    offset: u64,
    last: Option<u64>,
    etag: Option<String>,
    body: Body,
}

async fn open_blob(endpoint: &Arc<Endpoint>, ask: &Ask<'_>) -> Result<Opened, UpstreamError> {
    let wanted = match ask.range() {
        None => &[StatusCode::OK][..],
        Some(_) => &[StatusCode::OK, StatusCode::PARTIAL_CONTENT][..],
    };
    let response = endpoint.fetch(ask, wanted).await?;
    let headers = response.headers();
    answer::check_encoding(&ask.call, headers)?;
    let etag = answer::etag(headers);
    let length = answer::content_length(headers);
    if response.status() == StatusCode::OK {
        return Ok(Opened {
            size: length,
            offset: 0,
            last: None,
            etag,
            body: endpoint.body(&ask.call, response, length),
        });
    }
    let size = answer::range_size(headers, ask.offset, ask.last).ok_or_else(|| {
        let answer = "206 with another range than was asked for";
        ask.call.fail(Kind::Invalid, answer)
    })?;
    let end = ask.last.map_or(size, |last| last.saturating_add(1));
    let rest = end.saturating_sub(ask.offset);
    if length.is_some_and(|length| length != rest) {
        let answer = "206 with a Content-Length that is not its range's";
        return Err(ask.call.fail(Kind::Invalid, answer));
    }
    Ok(Opened {
        size: Some(size),
        offset: ask.offset,
        last: ask.last,
        etag,
        body: endpoint.body(&ask.call, response, Some(rest)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_of_manifests_that_are_read_here_are_asked_for_and_nothing_else() {
        let types: Vec<&str> = MANIFEST_TYPES.split(", ").collect();
        assert_eq!(types, gantry_model::media_type::MANIFEST_TYPES);
    }
}
