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
    ///
    /// # Errors
    /// [`StorageError`].
    async fn put(&self, put: KvPut<'_>) -> Result<KvWrite, StorageError>;

    /// Deletes; whether it was there.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn delete(&self, bucket: &str, key: &str) -> Result<bool, StorageError>;

    /// Adds to a counter that starts anew each `window_ms` (at the multiples of it since 1970, or when `window_ms` changes); the sum after
    /// adding, none when there is no room for a new counter. Counters are not seen by [`KeyValueStore::get`]; [`KeyValueStore::delete`] ends
    /// them too. A window that ends more than [`MAX_SKEW_MS`] after the one of `now_ms` is one of a clock that was ahead, and starts anew.
    ///
    /// # Errors
    /// [`StorageError`].
    async fn increment(&self, add: KvAdd<'_>) -> Result<Option<u64>, StorageError>;

    /// Bytes that a bucket takes: of each value and counter its key, its bytes and [`ROW_BYTES`]. What ended counts until it is deleted,
    /// which a write does that needs the room.
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
    /// Bytes that the bucket may take; a write that does not grow its row is never refused.
    pub max_bytes: Option<u64>,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KvWrite {
    /// It is written, as this version.
    Written(u64),
    /// The condition did not hold.
    Lost,
    /// The bucket is full.
    Full,
}

/// An addition to a counter.
#[derive(Clone, Copy, Debug)]
pub struct KvAdd<'a> {
    /// Which bucket.
    pub bucket: &'a str,
    /// Which key.
    pub key: &'a str,
    /// How much.
    pub by: u32,
    /// The window's length.
    pub window_ms: u32,
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// Bytes that the bucket may take.
    pub max_bytes: Option<u64>,
}

/// What a value or a counter takes beside its key and its bytes: its other columns and its indexes.
pub const ROW_BYTES: u64 = 64;

/// How far the times of two calls that add to one counter lie apart at most, while no clock is turned.
pub const MAX_SKEW_MS: u64 = 60_000;

/// What a value takes; a counter has none.
pub(crate) fn weight(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64 + ROW_BYTES
}

/// When the window that `now_ms` lies in ends.
pub(crate) fn window_end(now_ms: u64, window_ms: u32) -> u64 {
    let window_ms = u64::from(window_ms.max(1));
    (now_ms - now_ms % window_ms).saturating_add(window_ms)
}
