//! The port for eviction: what mirrored repositories hold, since when nobody asked for it, what an operator pinned, and whether anybody
//! still names it.
//!
//! A use is a hint and may be lost with the process; pins, and what is linked and named, are facts as those of
//! [`crate::MetadataStore`]. Knows no mirrors: a mirror's repositories are those below its prefix. What a pin's text means is the
//! caller's business.

use std::fmt::Debug;

use async_trait::async_trait;
use gantry_model::{Digest, RepositoryName};

use crate::error::StorageError;

/// Content that somebody was given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Use {
    /// Where.
    pub repository: RepositoryName,
    /// Which manifest or blob.
    pub digest: Digest,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

/// Content that may be evicted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cached {
    /// Where.
    pub repository: RepositoryName,
    /// Which.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// When it, or a manifest it belongs to, was last given to somebody or first stored, in milliseconds since 1970.
    pub used_at_ms: u64,
}

/// Repositories that are asked about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Within {
    /// Those whose names begin with this and a slash.
    Below(RepositoryName),
    /// This one.
    Only(RepositoryName),
}

impl Within {
    /// The first name that belongs, and the first one after it that does not, in the order of bytes: no name holds anything between `/`
    /// and `0`, nor ends with a NUL.
    pub(crate) fn bounds(&self) -> (String, String) {
        match self {
            Self::Below(prefix) => (format!("{prefix}/"), format!("{prefix}0")),
            Self::Only(name) => (name.to_string(), format!("{name}\0")),
        }
    }
}

/// Which content is asked about.
#[derive(Clone, Debug)]
pub struct CacheQuery {
    /// Where.
    pub within: Within,
    /// But these: they lie there and are no cache.
    pub except: Vec<RepositoryName>,
    /// Only what was last used before this, in milliseconds since 1970.
    pub before_ms: u64,
    /// Entries at most.
    pub limit: usize,
}

/// What is cached below a prefix.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CacheSize {
    /// Bytes of blobs, each digest once.
    pub bytes: u64,
    /// Blobs, each digest once.
    pub blobs: u64,
    /// Manifests, in each repository.
    pub manifests: u64,
    /// Repositories that hold a blob or a manifest.
    pub repositories: u64,
}

/// What one repository holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CachedRepository {
    /// Its name.
    pub repository: RepositoryName,
    /// Its tags.
    pub tags: u64,
    /// Its manifests.
    pub manifests: u64,
    /// Its blobs.
    pub blobs: u64,
    /// Bytes of its blobs.
    pub bytes: u64,
    /// When anything of it was last given to somebody or first stored, in milliseconds since 1970.
    pub used_at_ms: u64,
}

/// What an operator wants to stay.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    /// Which content, in the caller's own form.
    pub pattern: String,
    /// When it was pinned, in milliseconds since 1970.
    pub at_ms: u64,
    /// By whom.
    pub by: String,
}

/// What eviction needs to know.
#[async_trait]
pub trait CacheIndex: Debug + Send + Sync {
    /// Remembers uses; an older one than is known changes nothing.
    ///
    /// # Errors
    /// [`StorageError`]; then none is remembered.
    async fn record_uses(&self, uses: Vec<Use>) -> Result<(), StorageError>;

    /// How much is cached below a prefix, without the repositories of `except`.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn cache_size(
        &self,
        prefix: &RepositoryName,
        except: &[RepositoryName],
    ) -> Result<CacheSize, StorageError>;

    /// Repositories that hold a blob or a manifest, hosted ones too, by name: those after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn holding_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CachedRepository>, StorageError>;

    /// Linked blobs, the least recently used first. A blob is as recent as the most recent manifest that names it, and that as an
    /// index that names it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError>;

    /// Manifests, the least recently used first; a manifest is as recent as an index that names it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError>;

    /// Whether any repository, hosted or mirrored, has the content as a blob or a manifest.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn is_held(&self, digest: &Digest) -> Result<bool, StorageError>;

    /// Those of the digests that nobody has: [`CacheIndex::is_held`], for many at once.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn unheld(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StorageError>;

    /// When the first change of a tag was written down here, in milliseconds since 1970; `None` before there was one. Content that was
    /// stored earlier is none of these facts' business: another database, lost or left, may have known it.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn began_ms(&self) -> Result<Option<u64>, StorageError>;

    /// Every pin, by its pattern.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn pins(&self) -> Result<Vec<Pin>, StorageError>;

    /// Pins, durably; a pattern that is pinned already stays as it is. Whether it was not.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn pin(&self, pin: Pin) -> Result<bool, StorageError>;

    /// Takes a pin away, durably; whether it was there.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn unpin(&self, pattern: &str) -> Result<bool, StorageError>;
}
