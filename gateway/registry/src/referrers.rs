//! Lists referrers: an image index of the manifests whose subject is a digest.
//!
//! Owns the rendering, and the folding in of lists that clients without the referrers API left under the fallback tag
//! (distribution-spec, "Referrers Tag Schema"). An unknown digest or repository has an empty list.
//! Invariants: a hosted list names only manifests that can be pulled; where a policy judges manifests before they leave, no list tells of
//! one that it denies, because a descriptor repeats the manifest's annotations and artifact type.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gantry_model::{
    Change, Digest, Document, Reference, Repository, RepositoryName, Source, Tag,
    media_type::OCI_INDEX,
};
use gantry_storage::ContentOrigin;
use serde_json::{Value, json};

use crate::{
    admit::{Content, Question, descriptor_of},
    error::Error,
    outcome::Outcome,
    registry::Call,
};

/// Referrers of a mirrored subject that are judged for one list at most: those that were never pulled are fetched for it.
const MAX_JUDGED: usize = 200;
/// Referrers of one list that are fetched and judged at the same time.
const JUDGED_AT_ONCE: usize = 8;

impl Call {
    /// Referrers of `digest`; only those of `artifact_type`, when one is given.
    pub(crate) async fn list_referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        artifact_type: Option<String>,
    ) -> Result<Outcome, Error> {
        let mut manifests = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                self.hosted_referrers(&repository.name, digest).await?
            }
            Source::Mirror { .. } => {
                let listed = self.shared.mirrors.referrers(repository, digest).await?;
                by_digest(listed)
            }
        };
        let filtered = artifact_type.is_some();
        if let Some(wanted) = artifact_type {
            manifests.retain(|_digest, descriptor| text(descriptor, "artifactType") == wanted);
        }
        let manifests = self.those_that_may_leave(repository, manifests).await?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": manifests.into_values().collect::<Vec<_>>(),
        });
        Ok(Outcome::Referrers {
            index: Bytes::from(index.to_string()),
            filtered,
        })
    }

    /// Leaves out what the admission would not serve. Who is not decided about yet is not left out: an absent signature means something.
    async fn those_that_may_leave(
        &self,
        repository: &Repository,
        manifests: BTreeMap<String, Value>,
    ) -> Result<BTreeMap<String, Value>, Error> {
        let admission = &self.shared.ports.admission;
        if !admission.asks(repository, Change::ServeManifest) {
            return Ok(manifests);
        }
        let limit = match repository.mirror() {
            Some(_) => MAX_JUDGED,
            None => usize::MAX,
        };
        if manifests.len() > limit {
            tracing::warn!(repository.name = %repository.name, referrers = manifests.len(), "a list of referrers is cut: each is fetched to be judged");
        }
        let some = manifests.into_iter().take(limit);
        let judged = stream::iter(some).map(async |(digest, descriptor)| {
            let may_leave = self.may_leave(repository, &digest).await?;
            Ok(may_leave.then_some((digest, descriptor)))
        });
        let judged = judged.buffered(JUDGED_AT_ONCE);
        judged
            .try_filter_map(async |listed| Ok(listed))
            .try_collect()
            .await
    }

    /// Whether somebody who asked for this manifest would get it.
    async fn may_leave(&self, repository: &Repository, digest: &str) -> Result<bool, Error> {
        let Ok(digest) = digest.parse::<Digest>() else {
            return Ok(false);
        };
        let found = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                let record = self.hosted_record(&repository.name, &digest);
                record.await.map(|record| (record, None))
            }
            Source::Mirror { .. } => {
                let reference = Reference::Digest(digest);
                let mirrors = &self.shared.mirrors;
                let manifest = mirrors.manifest(repository, &reference, &self.requester);
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

    async fn hosted_referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<BTreeMap<String, Value>, Error> {
        let metadata = &self.shared.ports.metadata;
        let pushed = &ContentOrigin::Pushed;
        let mut records = Vec::new();
        for referrer in metadata.referrers(name, pushed, digest).await? {
            records.push(referrer.manifest);
        }
        for listed in self.fallback_list(name, digest).await? {
            records.extend(metadata.manifest(name, pushed, &listed).await?);
        }
        let mut manifests = BTreeMap::new();
        for record in records {
            let descriptor = serde_json::to_value(descriptor_of(&record)?);
            let descriptor = descriptor.map_err(|error| Error::Internal {
                source: error.into(),
            })?;
            manifests.insert(record.digest.to_string(), descriptor);
        }
        Ok(manifests)
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

fn by_digest(descriptors: Vec<Value>) -> BTreeMap<String, Value> {
    descriptors
        .into_iter()
        .map(|descriptor| (text(&descriptor, "digest").to_owned(), descriptor))
        .collect()
}

fn text<'a>(descriptor: &'a Value, field: &str) -> &'a str {
    descriptor
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
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

    #[test]
    fn an_upstreams_list_is_sorted_and_names_each_digest_once() {
        let entry = |digest: &str| json!({ "digest": digest });
        let listed = by_digest(vec![entry("b"), entry("a"), entry("b")]);
        assert_eq!(listed.into_keys().collect::<Vec<_>>(), ["a", "b"]);
    }
}
