//! Asks a binding about content that many images name: a few images at a time, until one of them lets it leave.
//!
//! Owns the order and the bound. Invariants: one accepted batch is enough, as one allowed image is; an image that the client was allowed to
//! pull is asked about first, so that no number of other images keeps its content back; the memory of that is an order and no decision.

use std::{
    collections::VecDeque,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
    time::Duration,
};

use gantry_model::{AdmissionRequest, Change, Denial, DenialCode, Digest, RepositoryName};
use gantry_plugin_host::{AdmitAnswer, CallError};
use moka::sync::Cache;
use tokio::time::Instant;

/// Images that one call is about. A policy reads two facts of each, and a call may read 64.
const AT_ONCE: usize = 16;
/// Calls about one serve at most, which is 1,024 images where no call fails.
const MAX_CALLS: usize = 64;
/// No call begins so long after the first.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Remembered images at most; each takes about 100 bytes.
const MAX_REMEMBERED: u64 = 32_768;
/// How long an image is remembered that was not pulled again.
const REMEMBERED_FOR: Duration = Duration::from_secs(60 * 60);

/// The images that principals were allowed to pull of late. Entries are hashes: a collision costs a call and decides nothing.
#[derive(Debug)]
pub(crate) struct AllowedImages {
    hasher: RandomState,
    allowed: Cache<u64, ()>,
}

impl Default for AllowedImages {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            allowed: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_idle(REMEMBERED_FOR)
                .build(),
        }
    }
}

impl AllowedImages {
    fn key(&self, principal: &str, repository: &RepositoryName, image: &Digest) -> u64 {
        self.hasher.hash_one((principal, repository, image))
    }

    /// Remembers the manifest that was allowed to leave.
    pub(crate) fn remember(&self, request: &AdmissionRequest) {
        if request.change != Change::ServeManifest {
            return;
        }
        if let Some(target) = &request.target {
            self.insert(request, &target.digest);
        }
    }

    /// Remembers the image of an accepted batch, when it is only one.
    fn remember_batch(&self, request: &AdmissionRequest, batch: &[Digest]) {
        if let [image] = batch {
            self.insert(request, image);
        }
    }

    fn insert(&self, request: &AdmissionRequest, image: &Digest) {
        let principal = &request.requester.principal.id;
        let key = self.key(principal, &request.repository.name, image);
        if !self.allowed.contains_key(&key) {
            self.allowed.insert(key, ());
        }
    }

    /// Puts the remembered ones first.
    pub(crate) fn sort(&self, principal: &str, repository: &RepositoryName, images: &mut [Digest]) {
        if images.len() < 2 {
            return;
        }
        images.sort_by_cached_key(|image| {
            let key = self.key(principal, repository, image);
            // `get` and not `contains_key`: what is used stays.
            self.allowed.get(&key).is_none()
        });
    }
}

/// Asks with `ask` about the request, whose `parents` may be many.
///
/// # Errors
/// No batch is accepted and a call failed, about a single image.
pub(crate) async fn ask_in_batches<F>(
    images: &AllowedImages,
    request: &AdmissionRequest,
    ask: impl Fn(AdmissionRequest) -> F,
) -> Result<Arc<AdmitAnswer>, CallError>
where
    F: Future<Output = Result<Arc<AdmitAnswer>, CallError>>,
{
    let mut parents = request.parents.clone();
    let principal = &request.requester.principal.id;
    images.sort(principal, &request.repository.name, &mut parents);
    let mut batches: VecDeque<&[Digest]> = parents.chunks(AT_ONCE).collect();
    let mut verdict = Verdict::default();
    let end = Instant::now() + MAX_TIME;
    let mut calls = 0;
    while let Some(batch) = batches.pop_front() {
        if calls == MAX_CALLS || (calls > 0 && Instant::now() >= end) {
            return verdict.unfinished(parents.len());
        }
        calls += 1;
        let answer = ask(AdmissionRequest {
            parents: batch.to_vec(),
            ..request.clone()
        });
        match answer.await {
            Err(_failure) if batch.len() > 1 => {
                // One image may be too much for the call; the others are not to suffer for it.
                let (first, second) = batch.split_at(batch.len() / 2);
                batches.push_front(second);
                batches.push_front(first);
            }
            Err(failure) => verdict.failure = Some(failure),
            Ok(answer) => {
                if let Some(accepted) = verdict.hear(answer) {
                    images.remember_batch(request, batch);
                    return Ok(accepted);
                }
            }
        }
    }
    verdict.finished()
}

/// What the batches so far came to.
#[derive(Default)]
struct Verdict {
    rejected: Option<Arc<AdmitAnswer>>,
    held: Option<Arc<AdmitAnswer>>,
    failure: Option<CallError>,
}

impl Verdict {
    /// Notes a refusal; gives back everything else.
    fn hear(&mut self, answer: Arc<AdmitAnswer>) -> Option<Arc<AdmitAnswer>> {
        let refusals = match &*answer {
            AdmitAnswer::Reject(_) => &mut self.rejected,
            AdmitAnswer::Hold { .. } => &mut self.held,
            AdmitAnswer::Accept { .. } | AdmitAnswer::Abstain => return Some(answer),
        };
        *refusals = refusals.take().or(Some(answer));
        None
    }

    /// No image lets the content leave: not known of one that could not be judged, and later perhaps of one that is held.
    fn finished(self) -> Result<Arc<AdmitAnswer>, CallError> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        let answer = self.held.or(self.rejected);
        Ok(answer.unwrap_or_else(|| Arc::new(AdmitAnswer::Abstain)))
    }

    fn unfinished(self, count: usize) -> Result<Arc<AdmitAnswer>, CallError> {
        let message = format!(
            "{count} images of this repository name this content, and the first ones that were looked at may not leave: pull the manifest of the image that you want again, and then this"
        );
        let mut denial = Denial::new(DenialCode::Denied, "too-many-images", message);
        denial.reason.text = format!("not each of {count} images could be looked at").into();
        Ok(Arc::new(AdmitAnswer::Reject(denial)))
    }
}

/// Whether the answer is about the images that name the content, and there are so many that they are asked about in batches.
pub(crate) fn is_in_batches(request: &AdmissionRequest) -> bool {
    request.parents.len() > 1 && (request.change.is_serve() || request.change == Change::Fill)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use gantry_model::{Client, Principal, Repository, Requester, Source, Version};
    use gantry_plugin_host::{CacheHint, Failure};

    use super::*;

    fn digest(number: usize) -> Digest {
        format!("sha256:{number:064}").parse().unwrap()
    }

    fn request(parents: Vec<Digest>) -> AdmissionRequest {
        let client = Client {
            address: [192, 0, 2, 1].into(),
            user_agent: None,
            tls_subject: None,
        };
        AdmissionRequest {
            requester: Requester {
                request_id: "1".into(),
                client: Arc::new(client),
                principal: Arc::new(Principal::anonymous()),
                arrival: None,
                confirmed: None,
                cause: gantry_model::Cause::default(),
            },
            repository: Repository {
                name: "apps/web".parse().unwrap(),
                spelled: "apps/web".parse().unwrap(),
                base: "/v2".into(),
                source: Source::Hosted,
                namespace: None,
            },
            change: Change::ServeBlob,
            tag: None,
            previous: None,
            target: None,
            manifest: None,
            parents,
            version: Version::Unknown,
        }
    }

    fn answer(is_allowed: bool) -> Arc<AdmitAnswer> {
        Arc::new(match is_allowed {
            true => AdmitAnswer::Accept {
                warnings: Vec::new(),
                set_immutable: false,
                cache: CacheHint::default(),
            },
            false => {
                let denial = Denial::new(DenialCode::Denied, "denied-image", "denied");
                AdmitAnswer::Reject(denial)
            }
        })
    }

    fn failure() -> CallError {
        CallError {
            plugin: "gate".into(),
            failure: Failure::HostQuota,
            detail: "too much".to_owned(),
        }
    }

    /// A policy that allows one image, and fails about batches with one that is too much for it.
    async fn ask(
        images: &AllowedImages,
        request: &AdmissionRequest,
        (allowed, heavy): (Option<&Digest>, Option<&Digest>),
    ) -> (Result<Arc<AdmitAnswer>, CallError>, usize) {
        let calls = AtomicUsize::new(0);
        let asked = ask_in_batches(images, request, |request| {
            calls.fetch_add(1, Ordering::Relaxed);
            let names = |image: &Digest| request.parents.contains(image);
            let answer = match heavy.is_some_and(names) {
                true => Err(failure()),
                false => Ok(answer(allowed.is_some_and(names))),
            };
            std::future::ready(answer)
        });
        (asked.await, calls.load(Ordering::Relaxed))
    }

    fn is_accepted(answer: &Result<Arc<AdmitAnswer>, CallError>) -> bool {
        matches!(answer.as_deref(), Ok(AdmitAnswer::Accept { .. }))
    }

    fn code(answer: &Result<Arc<AdmitAnswer>, CallError>) -> String {
        match answer.as_deref() {
            Ok(AdmitAnswer::Reject(denial)) => denial.reason.code.to_string(),
            other => format!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn one_allowed_image_among_three_hundred_denied_ones_is_enough_wherever_it_stands() {
        for place in [0, 1, 15, 16, 150, 299, 300] {
            let images = AllowedImages::default();
            let request = request((0..=300).map(digest).collect());
            let (answer, calls) = ask(&images, &request, (Some(&digest(place)), None)).await;
            assert!(is_accepted(&answer), "{place}: {answer:?}");
            assert_eq!(calls, place / AT_ONCE + 1);
        }
        let request = request((0..=300).map(digest).collect());
        let (answer, calls) = ask(&AllowedImages::default(), &request, (None, None)).await;
        assert_eq!((code(&answer).as_str(), calls), ("denied-image", 19));
    }

    #[tokio::test]
    async fn an_image_that_is_too_much_for_a_call_does_not_hide_the_allowed_one() {
        for (allowed, heavy) in [(0, 1), (1, 0), (15, 14), (40, 33), (300, 299)] {
            let request = request((0..=300).map(digest).collect());
            let (allowed, heavy) = (digest(allowed), digest(heavy));
            let images = AllowedImages::default();
            let (answer, _calls) = ask(&images, &request, (Some(&allowed), Some(&heavy))).await;
            assert!(is_accepted(&answer), "{allowed} {heavy}: {answer:?}");
        }
        let request = request((0..=300).map(digest).collect());
        let heavy = digest(7);
        let (answer, _calls) = ask(&AllowedImages::default(), &request, (None, Some(&heavy))).await;
        assert!(
            answer.is_err(),
            "it is not known whether that one is denied"
        );
    }

    #[tokio::test]
    async fn no_number_of_images_keeps_content_from_a_client_that_pulled_its_image() {
        let mut all: Vec<Digest> = (0..20_000).map(digest).collect();
        let allowed = digest(19_999);
        let images = AllowedImages::default();
        let (answer, calls) = ask(&images, &request(all.clone()), (Some(&allowed), None)).await;
        assert_eq!(
            (code(&answer).as_str(), calls),
            ("too-many-images", MAX_CALLS)
        );
        images.remember(&AdmissionRequest {
            change: Change::ServeManifest,
            target: Some(gantry_model::Descriptor::new(
                gantry_model::MediaType::octet_stream(),
                allowed.clone(),
                0,
            )),
            ..request(Vec::new())
        });
        for _order in 0..2 {
            let (answer, calls) = ask(&images, &request(all.clone()), (Some(&allowed), None)).await;
            assert!(is_accepted(&answer), "{answer:?}");
            assert_eq!(calls, 1);
            all.reverse();
        }
    }
}
