//! The import `kv`: granted buckets of the plugins' key-value store, private to the binding.

use std::sync::Arc;

use wasmtime::component::Resource;

use crate::{
    bindings::gantry::plugin::kv,
    convert,
    host::CallState,
    ports::{Addition, KeyValue, PortError, PutOutcome, PutRules},
};

/// Bytes of one value.
const MAX_VALUE_BYTES: usize = 64 << 10;
/// Bytes of one key.
const MAX_KEY_BYTES: usize = 512;
/// Bytes of one bucket: of each value and counter its key, its bytes and what a row takes.
const MAX_BUCKET_BYTES: u64 = 16 << 20;

/// A bucket that the guest holds a handle to: `<binding>/<bucket>`.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct OpenBucket(String);

impl kv::Host for CallState {
    async fn open(
        &mut self,
        bucket: String,
    ) -> wasmtime::Result<Result<Resource<OpenBucket>, kv::KvError>> {
        if !self.context.grants.kv.contains(&bucket) {
            return Ok(Err(kv::KvError::NotGranted));
        }
        let name = format!("{}/{bucket}", self.context.name);
        Ok(Ok(self.push(OpenBucket(name))?))
    }
}

/// A write as the guest asked for it.
struct Put {
    key: String,
    value: Vec<u8>,
    ttl_ms: Option<u32>,
}

impl CallState {
    /// Counts one key-value call and names its bucket.
    fn bucket(&mut self, bucket: &Resource<OpenBucket>) -> wasmtime::Result<String> {
        self.budgets.kv.take()?;
        Ok(self.table.get(bucket)?.0.clone())
    }

    async fn put_under(
        &mut self,
        bucket: &Resource<OpenBucket>,
        put: Put,
        expected: Option<Option<u64>>,
    ) -> wasmtime::Result<Result<Option<u64>, kv::KvError>> {
        let bucket = self.bucket(bucket)?;
        let store = Arc::clone(&self.context.ports.kv);
        Ok(write(&*store, &bucket, put, expected, self.now_ms).await)
    }
}

/// Writes within the bounds of a value and of a bucket.
async fn write(
    store: &dyn KeyValue,
    bucket: &str,
    put: Put,
    expected: Option<Option<u64>>,
    now_ms: u64,
) -> Result<Option<u64>, kv::KvError> {
    if put.key.len() > MAX_KEY_BYTES || put.value.len() > MAX_VALUE_BYTES {
        return Err(kv::KvError::TooLarge);
    }
    let ttl = put.ttl_ms.map(u64::from);
    let rules = PutRules {
        now_ms,
        expires_at_ms: ttl.map(|ttl| now_ms.saturating_add(ttl)),
        max_bytes: MAX_BUCKET_BYTES,
    };
    let written = store.put(bucket, &put.key, &put.value, expected, rules);
    match written.await.map_err(unavailable)? {
        PutOutcome::Written(version) => Ok(Some(version)),
        PutOutcome::Lost => Ok(None),
        PutOutcome::Full => Err(kv::KvError::Quota),
    }
}

impl kv::HostBucket for CallState {
    async fn get(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
    ) -> wasmtime::Result<Result<Option<kv::Entry>, kv::KvError>> {
        let bucket = self.bucket(&bucket)?;
        if key.len() > MAX_KEY_BYTES {
            return Ok(Err(kv::KvError::TooLarge));
        }
        let entry = self.context.ports.kv.get(&bucket, &key, self.now_ms).await;
        Ok(entry
            .map(|entry| entry.map(convert::entry))
            .map_err(unavailable))
    }

    async fn put(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> wasmtime::Result<Result<u64, kv::KvError>> {
        let put = Put { key, value, ttl_ms };
        let written = self.put_under(&bucket, put, None).await?;
        Ok(written.and_then(|version| {
            version.ok_or_else(|| {
                kv::KvError::Unavailable("the store lost an unconditional write".to_owned())
            })
        }))
    }

    async fn compare_and_put(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl_ms: Option<u32>,
    ) -> wasmtime::Result<Result<Option<u64>, kv::KvError>> {
        let put = Put { key, value, ttl_ms };
        self.put_under(&bucket, put, Some(expected)).await
    }

    async fn delete(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
    ) -> wasmtime::Result<Result<(), kv::KvError>> {
        let bucket = self.bucket(&bucket)?;
        if key.len() > MAX_KEY_BYTES {
            return Ok(Err(kv::KvError::TooLarge));
        }
        let deleted = self.context.ports.kv.delete(&bucket, &key).await;
        Ok(deleted.map_err(unavailable))
    }

    async fn increment(
        &mut self,
        bucket: Resource<OpenBucket>,
        key: String,
        by: u32,
        window_ms: u32,
    ) -> wasmtime::Result<Result<u64, kv::KvError>> {
        let bucket = self.bucket(&bucket)?;
        if key.len() > MAX_KEY_BYTES {
            return Ok(Err(kv::KvError::TooLarge));
        }
        let addition = Addition {
            by,
            window_ms,
            now_ms: self.now_ms,
            max_bytes: MAX_BUCKET_BYTES,
        };
        let sum = self.context.ports.kv.increment(&bucket, &key, addition);
        let sum = sum.await.map_err(unavailable);
        Ok(sum.and_then(|sum| sum.ok_or(kv::KvError::Quota)))
    }

    async fn drop(&mut self, bucket: Resource<OpenBucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

/// The guest learns that it failed, not how: the text names files and tables.
#[expect(
    clippy::needless_pass_by_value,
    reason = "used as a function of `map_err`"
)]
fn unavailable(error: PortError) -> kv::KvError {
    tracing::warn!(error = %error, "the plugins' key-value store failed");
    kv::KvError::Unavailable("the key-value store failed".to_owned())
}
