//! Bounds how often an address may ask upstreams for what they do not have.
//!
//! Owns the count by address and minute: all of it, and that of one repository. What is known to be there, or named by what is here, is
//! never refused for it. Knows nothing of HTTP.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex},
    time::Duration,
};

use gantry_model::{Cause, Digest, Principal, Reference, RepositoryName, Requester, Tag};
use moka::sync::Cache;

use super::{Engine, Origin, Place, failure::Failure, flight::lock};
use crate::Error;

/// For how long misses are counted together.
const WINDOW_MS: u64 = 60_000;
/// Addresses, and pairs of them with a repository, that are counted at once. Who asks often is counted; the others are forgotten first.
const MAX_COUNTED: u64 = 50_000;

/// Whose misses, of which repository; of all of them together.
type Key = (IpAddr, Option<RepositoryName>);

#[derive(Clone, Copy, Debug)]
struct Window {
    began_ms: u64,
    misses: u32,
}

/// Misses of the last minute.
#[derive(Debug)]
pub(super) struct Misses {
    windows: Cache<Key, Arc<Mutex<Window>>>,
    /// When somebody was last refused for them, to say so once a minute.
    told_at_ms: Mutex<u64>,
}

impl Default for Misses {
    fn default() -> Self {
        Self {
            windows: Cache::builder()
                .max_capacity(MAX_COUNTED)
                .time_to_idle(Duration::from_secs(120))
                .build(),
            told_at_ms: Mutex::default(),
        }
    }
}

impl Misses {
    /// How many there were, and how long until they are forgotten.
    fn of(&self, key: &Key, now_ms: u64) -> (u32, Duration) {
        let Some(window) = self.windows.get(key) else {
            return (0, Duration::ZERO);
        };
        let window = *lock(&window);
        let left_ms = (window.began_ms + WINDOW_MS).saturating_sub(now_ms);
        match left_ms {
            0 => (0, Duration::ZERO),
            left_ms => (window.misses, Duration::from_millis(left_ms)),
        }
    }

    fn count(&self, key: Key, now_ms: u64) {
        let begin = || {
            Arc::new(Mutex::new(Window {
                began_ms: now_ms,
                misses: 0,
            }))
        };
        let window = self.windows.get_with(key, begin);
        let mut window = lock(&window);
        if now_ms.saturating_sub(window.began_ms) >= WINDOW_MS {
            *window = Window {
                began_ms: now_ms,
                misses: 0,
            };
        }
        window.misses = window.misses.saturating_add(1);
    }

    /// Whether a refusal is to be logged now.
    fn tells(&self, now_ms: u64) -> bool {
        let mut told_at_ms = lock(&self.told_at_ms);
        let is_due = now_ms.saturating_sub(*told_at_ms) >= WINDOW_MS;
        if is_due {
            *told_at_ms = now_ms;
        }
        is_due
    }
}

impl Engine {
    /// Whether the upstream may be asked for what is not here, and may not be there. Costs a look-up where there were no misses.
    pub(super) async fn may_miss(
        &self,
        place: &Place,
        reference: &Reference,
        requester: &Requester,
    ) -> Result<(), Failure> {
        let Some(address) = counted(requester) else {
            return Ok(());
        };
        let (misses, now_ms) = (&self.running.misses, self.now_ms());
        let (all, all_left) = misses.of(&(address, None), now_ms);
        if all == 0 {
            return Ok(());
        }
        let (own, own_left) = misses.of(&(address, Some(place.0.clone())), now_ms);
        let retry_after = if all >= self.settings.max_misses {
            all_left
        } else if own >= self.settings.max_misses_of_repository {
            own_left
        } else {
            return Ok(());
        };
        if self.is_expected(place, reference).await? {
            return Ok(());
        }
        if misses.tells(now_ms) {
            let key = match all >= self.settings.max_misses {
                true => "limits.not_found_per_address",
                false => "limits.not_found_per_repository",
            };
            tracing::warn!(client.address = %address, repository.name = %place.0, config.key = key, "an address asks too often for what no upstream has");
        }
        Err(Failure::TooMany { retry_after })
    }

    /// The answer to a question about a blob, unless its address asked too often for what no upstream has; counts it when it is such.
    pub(super) async fn counted<T>(
        &self,
        (origin, digest): (&Origin, &Digest),
        requester: &Requester,
        question: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Error> {
        let (place, reference) = (origin.place(), Reference::Digest(digest.clone()));
        let may_miss = self.may_miss(&place, &reference, requester).await;
        may_miss.map_err(|failure| failure.into_blob_error(digest))?;
        let answer = question.await;
        if matches!(answer, Err(Failure::NotFound)) {
            self.missed(&place, &reference, requester).await;
        }
        answer.map_err(|failure| failure.into_blob_error(digest).of_mirror(origin.mirror()))
    }

    /// Counts that the upstream did not have it.
    pub(super) async fn missed(&self, place: &Place, reference: &Reference, requester: &Requester) {
        let Some(address) = counted(requester) else {
            return;
        };
        // A signature that is not there is what most images have.
        if let Reference::Tag(tag) = reference
            && self.is_about_stored(place, tag).await.unwrap_or(false)
        {
            return;
        }
        let (misses, now_ms) = (&self.running.misses, self.now_ms());
        misses.count((address, None), now_ms);
        misses.count((address, Some(place.0.clone())), now_ms);
    }

    /// Whether something that is here says that it is there.
    async fn is_expected(&self, place: &Place, reference: &Reference) -> Result<bool, Failure> {
        let (name, origin) = place;
        let metadata = &self.metadata;
        match reference {
            Reference::Digest(digest) => {
                if metadata.blob(name, origin, digest).await?.is_some()
                    || metadata.manifest(name, origin, digest).await?.is_some()
                {
                    return Ok(true);
                }
                Ok(!metadata.parents(name, origin, digest).await?.is_empty())
            }
            Reference::Tag(tag) => {
                if metadata.tag(name, tag).await?.is_some() {
                    return Ok(true);
                }
                self.is_about_stored(place, tag).await
            }
        }
    }

    /// Whether the tag is one that signatures or referrers of a stored manifest are kept under.
    async fn is_about_stored(&self, place: &Place, tag: &Tag) -> Result<bool, Failure> {
        match subject_of(tag) {
            Some(subject) => {
                let stored = self.metadata.manifest(&place.0, &place.1, &subject);
                Ok(stored.await?.is_some())
            }
            None => Ok(false),
        }
    }
}

/// The digest in tags such as `sha256-<hex>` and `sha256-<hex>.sig`.
fn subject_of(tag: &Tag) -> Option<Digest> {
    let text = tag.as_str();
    let text = text.split_once('.').map_or(text, |(digest, _kind)| digest);
    let (algorithm, hex) = text.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// Whose misses count: neither the gateway's own nor those of `cache warm`, whose lists are limited. An IPv6 address is its network, of which its owner has all.
fn counted(requester: &Requester) -> Option<IpAddr> {
    if requester.cause == Cause::CacheWarm || requester.principal.id == Principal::system().id {
        return None;
    }
    Some(match requester.client.address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ IpAddr::V4(_) => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_signatures_and_referrers_name_a_digest() {
        let hex = "a".repeat(64);
        let expect: Digest = format!("sha256:{hex}").parse().unwrap();
        for tag in ["", ".sig", ".att", ".sbom"] {
            let tag = format!("sha256-{hex}{tag}").parse().unwrap();
            assert_eq!(subject_of(&tag), Some(expect.clone()));
        }
        for tag in ["latest", "sha256-ab", "v1.2", "sha256", "3-1"] {
            assert_eq!(subject_of(&tag.parse().unwrap()), None, "{tag}");
        }
    }
}
