//! Lists referrers: an image index of the manifests whose subject is a digest, page by page.
//!
//! Owns the rendering, and the folding in of lists that clients without the referrers API left under the fallback tag
//! (distribution-spec, "Referrers Tag Schema"). An unknown digest or repository has an empty list.
//! Invariants: a hosted list names only manifests that can be pulled; where a policy judges manifests before they leave, no list tells of
//! one that it denies, because a descriptor repeats the manifest's annotations and artifact type; a page that ends before the list does
//! says where it goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use gantry_model::{
    AcceptedTypes, Change, Descriptor, Digest, Document, MediaType, Page, Repository,
    RepositoryName, Source, Tag, media_type::OCI_INDEX,
};
use gantry_storage::{ContentOrigin, MetadataStore, ReferrerRecord};
use gantry_upstream::Texts;
use serde_json::Value;

use crate::{
    admit::{Content, Question, descriptor_of},
    error::Error,
    mirror::Derived,
    outcome::{ListedReferrers, Outcome},
    registry::Call,
};

/// Bytes of descriptors in a page; a single longer one is a page.
const MAX_PAGE_BYTES: usize = 4 << 20;
/// Bytes of annotations that are read from the store at once.
const READ_AT_ONCE_BYTES: usize = 1 << 20;
/// Referrers of one list that are fetched and judged at the same time.
const JUDGED_AT_ONCE: usize = 8;

/// A referrer: its digest, and its descriptor as JSON text.
struct Listed {
    digest: String,
    descriptor: String,
}

impl Listed {
    fn new(digest: String, referrer: &ReferrerRecord) -> Result<Self, Error> {
        let descriptor = || {
            serde_json::to_string(&Descriptor {
                annotations: serde_json::from_str(&referrer.annotations)?,
                ..descriptor_of(&referrer.manifest)
            })
        };
        let descriptor = descriptor().map_err(|error| Error::Internal {
            source: error.into(),
        })?;
        Ok(Self { digest, descriptor })
    }
}

/// All referrers of a subject in the order of their digests, a few at a time.
enum Listing {
    Hosted(HostedListing),
    Mirrored { entries: Arc<Texts>, place: usize },
}

/// Those of a hosted subject: what the store has, and what the fallback tag lists.
struct HostedListing {
    /// The last one that was read from the store.
    after: Option<String>,
    /// Read, and not reached yet.
    stored: VecDeque<Listed>,
    is_read: bool,
    /// What the fallback tag lists, as far as it is not reached yet.
    fallback: BTreeMap<String, Digest>,
}

impl HostedListing {
    /// The next few; none at the end.
    async fn some(
        &mut self,
        metadata: &dyn MetadataStore,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Listed>, Error> {
        let mut some = Vec::new();
        while some.len() < JUDGED_AT_ONCE {
            if self.stored.is_empty() && !self.is_read {
                self.read(metadata, name, subject).await?;
            }
            let is_fallbacks = match (self.fallback.first_key_value(), self.stored.front()) {
                (None, None) => break,
                (Some((listed, _)), Some(stored)) => *listed < stored.digest,
                (listed, _) => listed.is_some(),
            };
            if !is_fallbacks {
                some.extend(self.stored.pop_front());
            } else if let Some((listed, digest)) = self.fallback.pop_first()
                && let Some(referrer) = metadata
                    .referrer(name, &ContentOrigin::Pushed, &digest)
                    .await?
            {
                some.push(Listed::new(listed, &referrer)?);
            }
        }
        Ok(some)
    }

    async fn read(
        &mut self,
        metadata: &dyn MetadataStore,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<(), Error> {
        let after = self.after.as_deref();
        let pushed = &ContentOrigin::Pushed;
        let stored = metadata.referrers_after(name, pushed, subject, after, READ_AT_ONCE_BYTES);
        for stored in stored.await? {
            let digest = stored.manifest.digest.to_string();
            self.fallback.remove(&digest);
            self.after = Some(digest.clone());
            self.stored.push_back(Listed::new(digest, &stored)?);
        }
        self.is_read = self.stored.is_empty();
        Ok(())
    }
}

/// A page that is being made.
struct Making {
    index: Vec<u8>,
    count: usize,
    limit: usize,
    last: Option<String>,
}

impl Making {
    fn new(limit: usize) -> Self {
        let head = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":["#);
        Self {
            index: head.into_bytes(),
            count: 0,
            limit,
            last: None,
        }
    }

    fn has_room(&self, listed: &Listed) -> bool {
        let fits = self.index.len().saturating_add(listed.descriptor.len()) <= MAX_PAGE_BYTES;
        self.count < self.limit && (fits || self.count == 0)
    }

    fn add(&mut self, listed: &Listed) {
        if self.count > 0 {
            self.index.push(b',');
        }
        self.count += 1;
        self.index.extend_from_slice(listed.descriptor.as_bytes());
    }

    fn finish(mut self) -> Bytes {
        self.index.extend_from_slice(b"]}");
        self.index.into()
    }
}

/// What is asked of a listing.
#[derive(Clone, Copy)]
struct Asked<'a> {
    repository: &'a Repository,
    subject: &'a Digest,
    /// Only this artifact type.
    filter: Option<&'a str>,
    limit: usize,
}

/// What became of a referrer that may be listed.
enum Judged {
    Leaves,
    Stays,
    /// What one request may cause is used up.
    NotYet,
}

impl Call {
    /// Referrers of `subject`; only those of `artifact_type`, when one is given.
    pub(crate) async fn list_referrers(
        &self,
        repository: Repository,
        subject: Digest,
        artifact_type: Option<String>,
        page: Page,
    ) -> Result<Outcome, Error> {
        let _turn = self.shared.mirrors.list_turn(&repository).await?;
        let derived = Derived::new(self.shared.settings.max_derived_requests);
        let (listing, stale) = self.listing(&repository, &subject, &page, &derived).await?;
        let filter = artifact_type.as_deref();
        let limit = self.page_size(&page);
        let (making, more) = match limit {
            0 => (Making::new(0), false),
            _ => {
                let asked = Asked {
                    repository: &repository,
                    subject: &subject,
                    filter,
                    limit,
                };
                Box::pin(self.page_of(asked, listing, &derived)).await?
            }
        };
        let next = making.last.clone().filter(|_| more);
        Ok(Outcome::Referrers(Box::new(ListedReferrers {
            repository,
            subject,
            next,
            index: making.finish(),
            artifact_type,
            stale,
        })))
    }

    async fn listing(
        &self,
        repository: &Repository,
        subject: &Digest,
        page: &Page,
        derived: &Derived,
    ) -> Result<(Listing, Option<Duration>), Error> {
        let after = page.after.clone();
        match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                let listed = self.fallback_list(&repository.name, subject).await?;
                let listed = listed
                    .into_iter()
                    .map(|digest| (digest.to_string(), digest));
                let is_due = |digest: &String| after.as_ref().is_none_or(|after| digest > after);
                let fallback = listed.filter(|(digest, _)| is_due(digest)).collect();
                let listing = HostedListing {
                    after,
                    fallback,
                    stored: VecDeque::new(),
                    is_read: false,
                };
                Ok((Listing::Hosted(listing), None))
            }
            Source::Mirror { .. } => {
                let mirrors = &self.shared.mirrors;
                let found = mirrors.referrers(repository, subject, derived).await?;
                let entries = found.entries;
                let from = after.as_deref().unwrap_or_default();
                let place = entries.iter().position(|entry| digest_of(entry) > from);
                let place = place.unwrap_or(entries.len());
                Ok((Listing::Mirrored { entries, place }, found.stale))
            }
        }
    }

    /// A page, and whether there are more.
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    async fn page_of(
        &self,
        asked: Asked<'_>,
        mut listing: Listing,
        derived: &Derived,
    ) -> Result<(Making, bool), Error> {
        let mut making = Making::new(asked.limit);
        loop {
            let some = self.some_of(asked, &mut listing).await?;
            if some.is_empty() {
                return Ok((making, false));
            }
            let is_wanted = |listed: &Listed| {
                let of = || text_of(&listed.descriptor, "artifactType");
                asked.filter.is_none_or(|wanted| of() == wanted)
            };
            for few in some.chunks(JUDGED_AT_ONCE) {
                let judged = few.iter().map(async |listed| match is_wanted(listed) {
                    true => self.judge(asked.repository, listed, derived).await,
                    false => Ok(Judged::Stays),
                });
                let judged = join_all(judged).await;
                for (listed, judged) in few.iter().zip(judged) {
                    match judged? {
                        Judged::Leaves if making.has_room(listed) => making.add(listed),
                        Judged::Leaves => return Ok((making, true)),
                        Judged::NotYet if making.last.is_none() => return Err(over_budget()),
                        Judged::NotYet => return Ok((making, true)),
                        Judged::Stays => {}
                    }
                    making.last = Some(listed.digest.clone());
                }
            }
        }
    }

    /// The next few of a listing; none at its end.
    async fn some_of(&self, asked: Asked<'_>, listing: &mut Listing) -> Result<Vec<Listed>, Error> {
        match listing {
            Listing::Mirrored { entries, place } => {
                let some: Vec<Listed> = entries
                    .iter()
                    .skip(*place)
                    .take(JUDGED_AT_ONCE)
                    .filter_map(|entry| entry.split_once(' '))
                    .map(|(digest, descriptor)| Listed {
                        digest: digest.to_owned(),
                        descriptor: descriptor.to_owned(),
                    })
                    .collect();
                *place += some.len();
                Ok(some)
            }
            Listing::Hosted(hosted) => {
                let metadata = &*self.shared.ports.metadata;
                let (name, subject) = (&asked.repository.name, asked.subject);
                hosted.some(metadata, name, subject).await
            }
        }
    }

    /// Whether the admission would serve it. What is not decided about yet is not left out: an absent signature means something.
    async fn judge(
        &self,
        repository: &Repository,
        listed: &Listed,
        derived: &Derived,
    ) -> Result<Judged, Error> {
        let admission = &self.shared.ports.admission;
        if !admission.asks(repository, Change::ServeManifest) {
            return Ok(Judged::Leaves);
        }
        let Ok(parsed) = listed.digest.parse::<Digest>() else {
            return Ok(Judged::Stays);
        };
        let asks_upstream = repository.mirror().is_some()
            && !self.shared.mirrors.holds(repository, &parsed).await?;
        if asks_upstream && !derived.take() {
            return Ok(Judged::NotYet);
        }
        let accepts = match asks_upstream {
            false => AcceptedTypes::default(),
            true => {
                let media_type = text_of(&listed.descriptor, "mediaType");
                AcceptedTypes::with(&MediaType::as_written(&media_type))
            }
        };
        match self.may_leave(repository, parsed, &accepts).await? {
            true => Ok(Judged::Leaves),
            false => Ok(Judged::Stays),
        }
    }

    /// Whether somebody who asked for this manifest would get it.
    async fn may_leave(
        &self,
        repository: &Repository,
        digest: Digest,
        accepts: &AcceptedTypes,
    ) -> Result<bool, Error> {
        let found = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                let record = self.hosted_record(&repository.name, &digest);
                record.await.map(|record| (record, None))
            }
            Source::Mirror { .. } => {
                let (mirrors, requester) = (&self.shared.mirrors, &self.requester);
                let manifest = mirrors.listed_manifest(repository, digest, accepts, requester);
                manifest
                    .await
                    .map(|manifest| (manifest.record, Some(manifest.bytes)))
            }
        };
        let admitted = match found {
            Ok((record, bytes)) => {
                let question = Question {
                    repository,
                    change: Change::ServeManifest,
                    tag: None,
                    content: Content::Manifest(&record, bytes.as_ref()),
                };
                self.admit(question).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match admitted {
            Ok(()) => Ok(true),
            Err(error) if never_leaves(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the fallback tag's index names; nothing when there is no such tag, or it names something else than an index.
    async fn fallback_list(
        &self,
        name: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Digest>, Error> {
        let Some(tag) = fallback_tag(subject) else {
            return Ok(Vec::new());
        };
        let metadata = &self.shared.ports.metadata;
        let tagged = metadata.tag(name, &tag).await?;
        let Some(tagged) = tagged.filter(|tagged| !tagged.is_cached()) else {
            return Ok(Vec::new());
        };
        let pushed = &ContentOrigin::Pushed;
        let record = metadata.manifest(name, pushed, &tagged.state.digest);
        let Some(record) = record.await? else {
            return Ok(Vec::new());
        };
        let bytes = self.shared.manifest_bytes(&record).await?;
        let listed = Document::read(&record.media_type, &bytes);
        let Some(index) = listed.manifest() else {
            return Ok(Vec::new());
        };
        let children = index.manifests.iter();
        Ok(children
            .filter_map(|child| child.digest.known().cloned())
            .collect())
    }
}

/// Whether asking again would give the same: policy denies the manifest, or its upstream has none that can be accepted.
fn never_leaves(error: &Error) -> bool {
    matches!(
        error,
        Error::Denied(_)
            | Error::ManifestUnknown
            | Error::NameUnknown
            | Error::UpstreamRefused { .. }
            | Error::UpstreamInvalid { .. }
    )
}

/// The tag that clients list referrers under where the API is missing: `<algorithm>-<hex>`, the hex cut to 64 digits.
pub(crate) fn fallback_tag(subject: &Digest) -> Option<Tag> {
    let algorithm = subject.algorithm().as_str();
    format!("{algorithm}-{:.64}", subject.hex()).parse().ok()
}

/// The digest that an entry of a mirrored list begins with.
fn digest_of(entry: &str) -> &str {
    entry.split_once(' ').map_or(entry, |(digest, _)| digest)
}

fn over_budget() -> Error {
    Error::Unavailable {
        retry_after: Some(Duration::from_secs(1)),
        source: "reading the list took all upstream requests that one request may cause".into(),
    }
}

fn text_of(descriptor: &str, field: &str) -> String {
    let descriptor: Value = serde_json::from_str(descriptor).unwrap_or_default();
    let text = descriptor.get(field).and_then(Value::as_str);
    text.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_tag_is_the_digest_cut_to_what_fits_a_tag() {
        let check = |digest: &str, expect: &str| {
            let tag = fallback_tag(&digest.parse().unwrap());
            assert_eq!(tag.unwrap().as_str(), expect);
        };
        let (short, long) = ("a".repeat(64), "b".repeat(128));
        check(&format!("sha256:{short}"), &format!("sha256-{short}"));
        let cut = "b".repeat(64);
        check(&format!("sha512:{long}"), &format!("sha512-{cut}"));
    }
}
