//! Tags that may not name what is new: `min_age`.
//!
//! Owns what counts as age: how long this repository has had the manifest here. A date inside the content or its annotations is its
//! publisher's word, so it counts for nothing. Invariant: content that is too young is never said to be unknown.

use std::time::Duration;

use gantry_model::{Denial, DenialCode, Refusal, Tag};
use gantry_storage::TagRecord;

use super::{
    Engine, MirroredManifest, Origin,
    failure::Failure,
    manifest::{Verified, millis},
};
use crate::{
    cache_counts::CacheOutcome,
    outcome::{Stale, Staleness},
};

impl Engine {
    /// What is served in place of an accepted manifest that the upstream's tag names and that is not here for long enough; `None` when the
    /// tag may name it. Its age begins now when it was never here.
    ///
    /// # Errors
    /// A refusal with a sentence when the tag named nothing before.
    pub(super) async fn too_young(
        &self,
        origin: &Origin,
        tag: &Tag,
        seen: Option<&TagRecord>,
        verified: &Verified,
    ) -> Result<Option<MirroredManifest>, Failure> {
        let min_age = origin.freshness(tag).min_age;
        let names_already = seen.is_some_and(|seen| seen.state.digest == verified.digest);
        if min_age.is_zero() || names_already {
            return Ok(None);
        }
        let record = self
            .metadata
            .manifest(origin.name(), origin.content(), &verified.digest);
        let age_ms = match record.await? {
            Some(record) => self.now_ms().saturating_sub(record.pushed_at_ms),
            None => {
                self.store(origin, verified, None).await?;
                0
            }
        };
        let Some(missing_ms) = millis(min_age).checked_sub(age_ms).filter(|ms| *ms > 0) else {
            return Ok(None);
        };
        if let Some(seen) = seen {
            let stale = Staleness {
                age: Duration::from_millis(self.now_ms().saturating_sub(seen.checked_at_ms)),
                why: Stale::TooYoung(verified.digest.clone()),
            };
            let older = self.tagged(origin, seen.clone(), Some(stale), CacheOutcome::Stale);
            if let Some(older) = older.await? {
                return Ok(Some(older));
            }
        }
        Err(refusal(tag, verified, Duration::from_millis(missing_ms)))
    }
}

fn refusal(tag: &Tag, verified: &Verified, missing: Duration) -> Failure {
    let hours = missing.as_secs().div_ceil(3600);
    let message = format!(
        "the upstream's tag {tag} names {}, which is too new here to be pulled by tag for another {hours} h",
        verified.digest
    );
    let denial = Denial::new(DenialCode::Denied, "too_young", message);
    Failure::Policy(Box::new(Refusal::Denied(Box::new(denial))))
}
