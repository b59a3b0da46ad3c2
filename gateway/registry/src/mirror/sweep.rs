//! Frees bytes that no repository has: what a crash left between a publication or an eviction and its commit.
//!
//! Owns no rule of its own about who may delete: each blob goes under the condemnation that eviction uses (`keep`). Invariant: what
//! was written less than a lease time ago is left alone, also when nobody seems to want it.

use std::time::Duration;

use gantry_model::Digest;

use super::{Engine, failure::Failure, manifest::millis};

/// Blobs looked at in one go.
const PAGE: usize = 1_000;

/// How long whoever wrote content may take until it is named. Leases of this process say it exactly; this holds where the clock of a
/// folder that was moved here, or somebody beside this process, does not.
pub(crate) const LEASE_TIME: Duration = Duration::from_secs(15 * 60);

/// What a sweep freed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Swept {
    fn add(&mut self, digest: &Digest, freed: Option<u64>) {
        if let Some(bytes) = freed {
            tracing::info!(blob.digest = %digest, bytes, "freed content that no repository has");
            self.blobs += 1;
            self.bytes += bytes;
        }
    }
}

impl Engine {
    /// Looks through the whole store, some blobs at a time. What was stored before the first of our facts stays: a new or emptied database
    /// knows nothing, and must not take that for a reason.
    pub(super) async fn sweep_unowned(&self) -> Result<Swept, Failure> {
        let (mut swept, mut after) = (Swept::default(), None);
        let Some(began_ms) = self.cache.began_ms().await? else {
            return Ok(swept);
        };
        loop {
            let before_ms = self.now_ms().saturating_sub(millis(LEASE_TIME));
            let page = self.blobs.published(after.as_ref(), PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(swept);
            };
            after = Some(last.digest.clone());
            let old = page.into_iter();
            let old = old.filter(|blob| (began_ms..=before_ms).contains(&blob.written_at_ms));
            let old = old.map(|blob| blob.digest).collect();
            for digest in self.cache.unheld(old).await? {
                let freed = self.free_whole(&digest).await?;
                swept.add(&digest, freed);
            }
        }
    }
}
