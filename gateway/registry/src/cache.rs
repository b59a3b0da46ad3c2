//! What operators, and the periodic run, do with the mirrors' caches. Nothing here serves a client.
//!
//! Owns no rule: `mirror` does it. Who may ask is the binary's business, before it comes here.

use gantry_model::{Digest, Repository, RepositoryName, glob::Glob};
use gantry_storage::Pin;
use tokio::sync::mpsc;

use crate::{
    error::Error,
    mirror::{CacheEntry, CacheUsage, EvictOrder, Evicted, EvictedItem, Selection, Swept},
    registry::Registry,
};

impl Registry {
    /// How much each mirror's cache holds, measured now.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::Internal`] when the store does not answer.
    pub async fn cache_usage(&self) -> Result<Vec<CacheUsage>, Error> {
        self.shared.mirrors.usage().await
    }

    /// Whether a repository has a blob already.
    ///
    /// # Errors
    /// As [`Registry::cache_usage`].
    pub async fn holds(&self, repository: &Repository, blob: &Digest) -> Result<bool, Error> {
        let shared = &self.shared;
        let repository = &shared.settled(repository.clone()).await?;
        let origin = shared.mirrors.content_origin(repository)?;
        let linked = shared.ports.metadata.blob(&repository.name, &origin, blob);
        Ok(linked.await?.is_some())
    }

    /// Waits until a mirrored blob that was read a moment ago is published: its last bytes leave before that.
    ///
    /// # Errors
    /// Why it is not kept.
    pub async fn kept(&self, repository: &Repository, blob: &Digest) -> Result<(), Error> {
        let repository = self.shared.settled(repository.clone()).await?;
        self.shared.mirrors.kept(&repository, blob).await
    }

    /// Waits until every mirrored blob that somebody may have whole by now is published. For the end of the process.
    pub async fn settled(&self) {
        self.shared.mirrors.settled().await;
    }

    /// Mirrored repositories that hold something and whose canonical name matches, by name: those after `after`, at most `limit`.
    ///
    /// # Errors
    /// As [`Registry::cache_usage`].
    pub async fn cached(
        &self,
        glob: Option<&Glob>,
        after: Option<RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CacheEntry>, Error> {
        self.shared.mirrors.cached(glob, after, limit).await
    }

    /// What operators pinned. The configuration's pins are beside these.
    ///
    /// # Errors
    /// As [`Registry::cache_usage`].
    pub async fn pins(&self) -> Result<Vec<Pin>, Error> {
        Ok(self.shared.ports.cache.pins().await?)
    }

    /// Pins what a selection means, now and later, durably. Whether this text was not pinned yet, and how many repositories hold
    /// something of it now.
    ///
    /// # Errors
    /// As [`Registry::cache_usage`].
    pub async fn pin(&self, selection: &Selection, by: &str) -> Result<(bool, u64), Error> {
        self.shared.mirrors.pin(selection, by).await
    }

    /// Takes a pin away; whether it was there.
    ///
    /// # Errors
    /// As [`Registry::cache_usage`].
    pub async fn unpin(&self, pattern: &str) -> Result<bool, Error> {
        Ok(self.shared.ports.cache.unpin(pattern).await?)
    }

    /// Takes out of the mirrors' caches what their settings need not keep, and frees the bytes that no repository has any more.
    ///
    /// # Errors
    /// As the stores; what went before is gone all the same.
    pub async fn evict(&self) -> Result<Evicted, Error> {
        self.shared.mirrors.evict().await
    }

    /// Takes out what an operator wants to go, telling of each thing when it is gone; ends early when nobody listens any more.
    ///
    /// # Errors
    /// As [`Registry::evict`].
    pub async fn evict_selected(
        &self,
        order: &EvictOrder,
        tell: &mpsc::Sender<EvictedItem>,
    ) -> Result<Evicted, Error> {
        self.shared.mirrors.evict_selected(order, tell).await
    }

    /// Frees bytes that no repository has, hosted or mirrored, and that were written more than a lease time ago: what a crash left
    /// between two stores. To be called at the start and now and then.
    ///
    /// # Errors
    /// As [`Registry::evict`].
    pub async fn sweep_unowned(&self) -> Result<Swept, Error> {
        self.shared.mirrors.sweep_unowned().await
    }
}
