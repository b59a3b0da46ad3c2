//! The port for plugins' own data: small values in named buckets, with expiry, compare-and-put and window counters.
//!
//! Kept apart from the metadata so that a plugin never waits for the registry's writer, nor the writer for a plugin.

use std::fmt::Debug;

use async_trait::async_trait;

use crate::error::StorageError;

/// A stored value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KvEntry {
    /// The bytes.
    pub value: Vec<u8>,
    /// Raised by every put, never reused within a bucket's key.
    pub version: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
}

/// Values by (bucket, key). `now_ms` is passed in: a store has no clock.
#[async_trait]
pub trait KeyValueStore: Debug + Send + Sync {
    /// The value, unless absent or expired.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        now_ms: u64,
    ) -> Result<Option<KvEntry>, StorageError>;

    /// Writes when `expected` holds: `None` = unconditionally, `Some(None)` = only if absent, `Some(Some(v))` = only over version `v`.
    /// Returns the new version, or `None` when the condition failed.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn put(&self, put: KvPut<'_>) -> Result<Option<u64>, StorageError>;

    /// Deletes; whether it was there.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn delete(&self, bucket: &str, key: &str) -> Result<bool, StorageError>;

    /// Adds `by` to a counter that starts anew each `window_ms` (at the multiples of it since 1970, or when `window_ms` changes); the
    /// sum after adding. Counters are not seen by [`KeyValueStore::get`]; [`KeyValueStore::delete`] ends them too.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn increment(
        &self,
        bucket: &str,
        key: &str,
        by: u32,
        window_ms: u32,
        now_ms: u64,
    ) -> Result<u64, StorageError>;

    /// Bytes of keys and values in a bucket, for quotas; a counter weighs its key and eight bytes, and what expired before the latest
    /// `now_ms` this store was told weighs nothing.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn used_bytes(&self, bucket: &str) -> Result<u64, StorageError>;
}

/// A write to a bucket.
#[derive(Clone, Copy, Debug)]
pub struct KvPut<'a> {
    /// Which bucket.
    pub bucket: &'a str,
    /// Which key.
    pub key: &'a str,
    /// The bytes.
    pub value: &'a [u8],
    /// See [`KeyValueStore::put`].
    pub expected: Option<Option<u64>>,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: Option<u64>,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
}

/// When the window that `now_ms` lies in ends.
pub(crate) fn window_end(now_ms: u64, window_ms: u32) -> u64 {
    let window_ms = u64::from(window_ms.max(1));
    (now_ms - now_ms % window_ms).saturating_add(window_ms)
}
