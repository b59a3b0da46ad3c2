//! Lists of mirrored repositories: tags and referrers, as the upstream has them.
//!
//! Owns what a page of them is, and the fallback of a registry without a referrers API: the tag `<algorithm>-<hex>` of the distribution
//! spec. How the upstream is read is `walk`'s. What is merely known from pulls is no list.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use gantry_model::{Cause, Client, Digest, Page, Principal, Reference, Requester, Tag};
use gantry_upstream::Texts;
use serde_json::Value;

use super::{
    Engine, Origin,
    failure::Failure,
    walk::{Derived, Found, List, ListKey},
};
use crate::referrers::fallback_tag;

/// A page of tags.
#[derive(Debug, PartialEq)]
pub(crate) struct TagsFound {
    /// In the upstream's order.
    pub(crate) tags: Vec<Tag>,
    /// Whether there are more.
    pub(crate) more: bool,
    /// Set when the upstream could not be asked: how long ago it was.
    pub(crate) stale: Option<std::time::Duration>,
}

/// All that refers to a manifest.
#[derive(Debug)]
pub(crate) struct ReferrersFound {
    /// `DIGEST DESCRIPTOR`, sorted, each digest once.
    pub(crate) entries: Arc<Texts>,
    /// Set when the upstream could not be asked: how long ago it was.
    pub(crate) stale: Option<std::time::Duration>,
}

impl Engine {
    /// See [`super::Mirrors::tags`].
    pub(super) async fn tags(
        self: &Arc<Self>,
        origin: &Origin,
        page: &Page,
        derived: &Derived,
    ) -> Result<TagsFound, Failure> {
        let max = self.settings.max_page_entries;
        let limit = page.limit.map_or(max, |limit| limit.min(max));
        let after = page.after.as_deref();
        let key = ListKey::Tags(origin.place());
        let walk = self.walk(origin, &key, after.is_none(), derived, |list| {
            cut(list, limit, after)
        });
        let Found {
            found: (tags, more),
            stale,
        } = walk.await?;
        Ok(TagsFound { tags, more, stale })
    }

    /// See [`super::Mirrors::referrers`].
    pub(super) async fn referrers(
        self: &Arc<Self>,
        origin: &Origin,
        digest: &Digest,
        derived: &Derived,
    ) -> Result<ReferrersFound, Failure> {
        let key = ListKey::Referrers(origin.place(), digest.clone());
        let walk = self.walk(origin, &key, true, derived, |list| {
            list.is_whole.then(|| Arc::clone(&list.entries))
        });
        let Found { found, stale } = walk.await?;
        Ok(ReferrersFound {
            entries: found,
            stale,
        })
    }

    /// What clients of a registry without a referrers API keep under the fallback tag; without that tag nothing refers. A tag that names
    /// the subject itself, or no index, lists nothing.
    pub(super) async fn referrers_by_tag(
        self: &Arc<Self>,
        origin: &Origin,
        subject: &Digest,
    ) -> Result<Texts, Failure> {
        let Some(tag) = fallback_tag(subject) else {
            return Ok(Texts::default());
        };
        let index = match self.manifest(origin, &Reference::Tag(tag), &system()).await {
            Ok(index) => index,
            Err(Failure::NotFound) => return Ok(Texts::default()),
            Err(failure) => return Err(failure),
        };
        let listed = match index.record.digest == *subject {
            true => Vec::new(),
            false => descriptors(&index.bytes),
        };
        let listed: Vec<String> = listed.iter().map(Value::to_string).collect();
        by_digest(listed.iter().map(String::as_str))
    }
}

/// The descriptors of an index; none of what is no index.
fn descriptors(index: &[u8]) -> Vec<Value> {
    let index: Value = serde_json::from_slice(index).unwrap_or_default();
    match index.get("manifests") {
        Some(Value::Array(descriptors)) => descriptors.clone(),
        _ => Vec::new(),
    }
}

/// Descriptors as entries of a list: sorted, each digest once.
pub(super) fn by_digest<'a>(
    descriptors: impl IntoIterator<Item = &'a str>,
) -> Result<Texts, Failure> {
    #[derive(serde::Deserialize)]
    struct Named {
        digest: String,
    }
    let mut sorted = BTreeMap::new();
    for descriptor in descriptors {
        let named: Named = serde_json::from_str(descriptor).map_err(Failure::invalid)?;
        sorted.insert(named.digest, descriptor);
    }
    let mut entries = Texts::default();
    for (digest, descriptor) in sorted {
        entries.push(&format!("{digest} {descriptor}"));
    }
    Ok(entries)
}

/// A page of at most `limit` tags after `after`, and whether there are more; nothing while too little of the list was read to know.
pub(super) fn cut(list: &List, limit: usize, after: Option<&str>) -> Option<(Vec<Tag>, bool)> {
    let entries = &list.entries;
    let start = match after {
        None => Some(0),
        Some(after) => place_after(list, after),
    };
    let start = match start {
        Some(start) => start,
        // A tag that is gone meanwhile, in a list without an order: better twice than never.
        None if list.is_whole => 0,
        None => return None,
    };
    let left = entries.len().saturating_sub(start);
    if !list.is_whole && left <= limit {
        return None;
    }
    let page = entries.iter().skip(start).take(limit);
    Some((
        page.filter_map(|tag| tag.parse().ok()).collect(),
        left > limit,
    ))
}

/// Where the entries after one begin.
fn place_after(list: &List, after: &str) -> Option<usize> {
    let entries = &list.entries;
    if let Some(place) = entries.iter().position(|tag| tag == after) {
        return Some(place + 1);
    }
    let beyond = entries.iter().position(|tag| tag > after);
    match beyond {
        _ if !list.is_sorted => None,
        None if list.is_whole => Some(entries.len()),
        found => found,
    }
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
        cause: Cause::Request,
    }
}
