//! Lists referrers: an image index of the manifests whose subject is a digest.
//!
//! Owns the rendering, and the folding in of lists that clients without the referrers API left under the fallback tag
//! (distribution-spec, "Referrers Tag Schema"). An unknown digest or repository has an empty list.
//! Invariant: a hosted list names only manifests that can be pulled.

use std::collections::BTreeMap;

use bytes::Bytes;
use gantry_model::{
    Digest, Manifest, Repository, RepositoryName, Source, Tag, media_type::OCI_INDEX,
};
use serde_json::{Value, json};

use crate::{admit::descriptor_of, error::Error, outcome::Outcome, registry::Call};

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

    async fn hosted_referrers(
        &self,
        name: &RepositoryName,
        digest: &Digest,
    ) -> Result<BTreeMap<String, Value>, Error> {
        let metadata = &self.shared.ports.metadata;
        let mut records = Vec::new();
        for referrer in metadata.referrers(name, digest).await? {
            records.push(referrer.manifest);
        }
        for listed in self.fallback_list(name, digest).await? {
            records.extend(metadata.manifest(name, &listed).await?);
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
        let Some(record) = metadata.manifest(name, &tagged.state.digest).await? else {
            return Ok(Vec::new());
        };
        let bytes = self.shared.manifest_bytes(&record).await?;
        let listed = Manifest::parse(Some(&record.media_type), &bytes);
        Ok(listed.map_or_else(
            |_not_an_index| Vec::new(),
            |index| {
                let children = index.manifests.into_iter();
                children.map(|child| child.digest).collect()
            },
        ))
    }
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
