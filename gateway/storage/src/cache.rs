//! The port for eviction: what mirrored repositories hold, since when nobody asked for it, and whether anybody still names it.
//!
//! A use is a hint and may be lost with the process; what is linked and named are the facts of [`crate::MetadataStore`]. Knows no
//! mirrors: a mirror's repositories are those below its prefix.

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

/// Which content is asked about.
#[derive(Clone, Debug)]
pub struct CacheQuery {
    /// Repositories whose names begin with this and a slash.
    pub prefix: RepositoryName,
    /// But these: they lie below the prefix and are no cache.
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
}
