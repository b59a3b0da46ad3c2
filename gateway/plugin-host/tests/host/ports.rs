//! What a binary brings: a key-value store in memory, a registry with one tag, a clock that stands.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Descriptor, Digest, MediaType, Requester, TagState};
use gantry_plugin_host::{
    HostPorts, KeyValue, RegistryReads,
    ports::{Addition, KeyValueEntry, PortError, PutOutcome, PutRules, ReadError},
};

pub(crate) const NOW_MS: u64 = 1_700_000_000_123;
pub(crate) const CONTENT: &str = r#"{"content":true}"#;

pub(crate) fn ports() -> HostPorts {
    HostPorts {
        kv: Arc::new(Memory::default()),
        registry: Arc::new(OneTag),
        outbound: Arc::new(crate::wire::Wire::default()),
        now_ms: Arc::new(|| NOW_MS),
        cache_directory: None,
        password_checks: 2,
    }
}

pub(crate) fn digest() -> Digest {
    format!("sha256:{}", "ab".repeat(32))
        .parse()
        .expect("a digest")
}

/// Keys are `<bucket>` and `<key>`; the key `block` never answers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    entries: Mutex<BTreeMap<(String, String), KeyValueEntry>>,
    counters: Mutex<BTreeMap<(String, String), u64>>,
    /// What every bucket pretends to hold already.
    held_bytes: u64,
}

impl Memory {
    pub(crate) fn holding(held_bytes: u64) -> Self {
        Self {
            held_bytes,
            ..Self::default()
        }
    }
}

#[async_trait]
impl KeyValue for Memory {
    async fn get(
        &self,
        bucket: &str,
        key: &str,
        _now_ms: u64,
    ) -> Result<Option<KeyValueEntry>, PortError> {
        if key == "block" {
            std::future::pending::<()>().await;
        }
        let name = (bucket.to_owned(), key.to_owned());
        Ok(self.entries.lock().unwrap().get(&name).cloned())
    }

    async fn put(
        &self,
        bucket: &str,
        key: &str,
        value: &[u8],
        expected: Option<Option<u64>>,
        rules: PutRules,
    ) -> Result<PutOutcome, PortError> {
        // What the guest calls `granted` is private to its binding.
        assert!(["hostile/granted", "hooks/delivered"].contains(&bucket));
        let mut entries = self.entries.lock().unwrap();
        let name = (bucket.to_owned(), key.to_owned());
        let version = entries.get(&name).map(|entry| entry.version);
        if expected.is_some_and(|expected| expected != version) {
            return Ok(PutOutcome::Lost);
        }
        if self.held_bytes + (key.len() + value.len()) as u64 > rules.max_bytes {
            return Ok(PutOutcome::Full);
        }
        let version = version.unwrap_or(0) + 1;
        entries.insert(
            name,
            KeyValueEntry {
                value: value.to_vec(),
                version,
                expires_at_ms: rules.expires_at_ms,
            },
        );
        Ok(PutOutcome::Written(version))
    }

    async fn delete(&self, bucket: &str, key: &str) -> Result<(), PortError> {
        let name = (bucket.to_owned(), key.to_owned());
        self.entries.lock().unwrap().remove(&name);
        Ok(())
    }

    async fn increment(
        &self,
        bucket: &str,
        key: &str,
        addition: Addition,
    ) -> Result<Option<u64>, PortError> {
        let mut counters = self.counters.lock().unwrap();
        let sum = counters
            .entry((bucket.to_owned(), key.to_owned()))
            .or_default();
        *sum += u64::from(addition.by);
        Ok(Some(*sum))
    }
}

/// `apps/web:v1`, whose content is [`CONTENT`]; answers only as alice.
#[derive(Debug)]
struct OneTag;

fn as_alice(requester: &Requester) -> Result<(), ReadError> {
    if requester.principal.id == "user:alice" {
        Ok(())
    } else {
        Err(ReadError::NotGranted)
    }
}

#[async_trait]
impl RegistryReads for OneTag {
    async fn resolve_tag(
        &self,
        requester: &Requester,
        _repository: &str,
        tag: &str,
    ) -> Result<Option<TagState>, ReadError> {
        as_alice(requester)?;
        Ok((tag == "v1").then(|| TagState {
            digest: digest(),
            pushed_at_ms: 1,
            pushed_by: "user:bob".to_owned(),
            immutable: false,
        }))
    }

    async fn manifest(
        &self,
        requester: &Requester,
        _repository: &str,
        _reference: &str,
    ) -> Result<(Descriptor, Bytes), ReadError> {
        as_alice(requester)?;
        let size = CONTENT.len() as u64;
        let descriptor = Descriptor::new(MediaType::octet_stream(), digest(), size);
        Ok((descriptor, Bytes::from_static(CONTENT.as_bytes())))
    }

    async fn referrers(
        &self,
        requester: &Requester,
        _repository: &str,
        _digest: &str,
        _artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ReadError> {
        as_alice(requester)?;
        Ok(vec![Descriptor::new(
            MediaType::octet_stream(),
            digest(),
            3,
        )])
    }

    async fn parents(
        &self,
        requester: &Requester,
        _repository: &str,
        _digest: &str,
    ) -> Result<Vec<Digest>, ReadError> {
        as_alice(requester)?;
        Ok(vec![digest()])
    }

    async fn blob_size(
        &self,
        requester: &Requester,
        _repository: &str,
        _digest: &str,
    ) -> Result<u64, ReadError> {
        as_alice(requester)?;
        Ok(CONTENT.len() as u64)
    }

    async fn read_blob(
        &self,
        requester: &Requester,
        _repository: &str,
        _digest: &str,
        offset: u64,
        length: u32,
    ) -> Result<Bytes, ReadError> {
        as_alice(requester)?;
        let start = usize::try_from(offset).expect("a small offset");
        let part = CONTENT.as_bytes()[start..][..length as usize].to_vec();
        Ok(part.into())
    }
}
