//! Sweeps uploads nobody will finish: sessions past their lifetime, and staging files without session or writer.
//!
//! Invariant: a staging file that has a writer in this process, or a session within its lifetime, is never touched.

use gantry_model::UploadId;

use super::session::Turn;
use crate::{error::Error, registry::Registry};

/// Sessions ended in one sweep at most; the next sweep takes the rest.
const MAX_SWEPT: usize = 1000;

impl Registry {
    /// Ends upload sessions older than the upload lifetime, and frees staging files that no session and no writer has. Returns how
    /// many uploads it removed. To be called periodically.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Internal`] when a store fails; what was removed until then stays removed.
    pub async fn sweep_uploads(&self) -> Result<usize, Error> {
        let shared = &self.shared;
        let lifetime = u64::try_from(shared.settings.upload_lifetime.as_millis());
        let now = shared.ports.clock.now_ms();
        let before = now.saturating_sub(lifetime.unwrap_or(u64::MAX));
        let expired = self.sweep_sessions(before).await?;
        shared.uploads.forget_expired(before);
        shared.uploads.close_idle(now);
        let forgotten = self.sweep_staging().await?;
        Ok(expired + forgotten)
    }

    async fn sweep_sessions(&self, before: u64) -> Result<usize, Error> {
        let shared = &self.shared;
        let expired = shared.ports.uploads.stale_uploads(before, MAX_SWEPT);
        let mut swept = 0;
        for record in expired.await? {
            let session = shared.uploads.enter(record);
            // Somebody writes to it right now: the next sweep asks again.
            let Some(turn) = Turn::take(&session) else {
                continue;
            };
            shared.end_session(&turn).await?;
            swept += 1;
        }
        Ok(swept)
    }

    async fn sweep_staging(&self) -> Result<usize, Error> {
        let mut swept = 0;
        for upload in self.shared.ports.blobs.staged().await? {
            if self.is_forgotten(upload).await? {
                self.shared.ports.blobs.discard(upload).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }

    /// In this order: a session's writer lives until its record is written, so one of the two is always seen.
    async fn is_forgotten(&self, upload: UploadId) -> Result<bool, Error> {
        let writing = self.shared.staging.is_writing(upload);
        Ok(!writing && self.shared.ports.uploads.upload(upload).await?.is_none())
    }
}
