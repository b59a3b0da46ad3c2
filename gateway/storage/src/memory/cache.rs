//! What eviction asks of the memory backend: every answer by looking at everything.

use std::collections::BTreeMap;

use async_trait::async_trait;
use gantry_model::{Digest, RepositoryName};

use super::metadata::{Facts, MemoryMetadata, Repository};
use crate::{
    blocking::lock,
    cache::{CacheIndex, CacheQuery, CacheSize, Cached, Use},
    error::StorageError,
};

#[async_trait]
impl CacheIndex for MemoryMetadata {
    async fn record_uses(&self, uses: Vec<Use>) -> Result<(), StorageError> {
        let mut facts = lock(&self.facts);
        for used in uses {
            if let Some(repository) = facts.repositories.get_mut(&used.repository) {
                let at_ms = repository.uses.entry(used.digest).or_default();
                *at_ms = used.at_ms.max(*at_ms);
            }
        }
        Ok(())
    }

    async fn cache_size(
        &self,
        prefix: &RepositoryName,
        except: &[RepositoryName],
    ) -> Result<CacheSize, StorageError> {
        let facts = lock(&self.facts);
        let mut blobs: BTreeMap<&Digest, u64> = BTreeMap::new();
        let mut size = CacheSize::default();
        for (_, repository) in facts.below(prefix, except) {
            size.manifests += repository.manifests.len() as u64;
            size.repositories +=
                u64::from(!repository.manifests.is_empty() || !repository.blobs.is_empty());
            blobs.extend(
                repository
                    .blobs
                    .iter()
                    .map(|(digest, size)| (digest, *size)),
            );
        }
        size.blobs = blobs.len() as u64;
        size.bytes = blobs.values().sum();
        Ok(size)
    }

    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let facts = lock(&self.facts);
        let blobs = facts
            .below(&query.prefix, &query.except)
            .flat_map(|(name, repository)| {
                repository.blobs.iter().map(|(digest, size)| Cached {
                    repository: name.clone(),
                    digest: digest.clone(),
                    size: *size,
                    used_at_ms: repository.blob_used_at_ms(digest),
                })
            });
        Ok(least_used(blobs, query))
    }

    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let facts = lock(&self.facts);
        let manifests = facts
            .below(&query.prefix, &query.except)
            .flat_map(|(name, repository)| {
                repository.manifests.iter().map(|(digest, stored)| Cached {
                    repository: name.clone(),
                    digest: digest.clone(),
                    size: stored.record.size,
                    used_at_ms: repository.manifest_used_at_ms(digest),
                })
            });
        Ok(least_used(manifests, query))
    }

    async fn is_held(&self, digest: &Digest) -> Result<bool, StorageError> {
        let facts = lock(&self.facts);
        Ok(facts.repositories.values().any(|repository| {
            repository.blobs.contains_key(digest) || repository.manifests.contains_key(digest)
        }))
    }
}

impl Facts {
    fn below<'a>(
        &'a self,
        prefix: &RepositoryName,
        except: &'a [RepositoryName],
    ) -> impl Iterator<Item = (&'a RepositoryName, &'a Repository)> {
        let prefix = format!("{prefix}/");
        self.repositories
            .iter()
            .filter(move |(name, _)| name.as_str().starts_with(&prefix) && !except.contains(name))
    }
}

impl Repository {
    fn own_use(&self, digest: &Digest) -> u64 {
        self.uses.get(digest).copied().unwrap_or_default()
    }

    fn manifest_used_at_ms(&self, digest: &Digest) -> u64 {
        let came = self
            .manifests
            .get(digest)
            .map_or(0, |stored| stored.record.pushed_at_ms);
        let indexes = self.naming(digest).map(|index| self.own_use(index));
        indexes.fold(came.max(self.own_use(digest)), u64::max)
    }

    fn blob_used_at_ms(&self, digest: &Digest) -> u64 {
        let manifests = self.naming(digest).map(|it| self.manifest_used_at_ms(it));
        manifests.fold(self.own_use(digest), u64::max)
    }

    fn naming<'a>(&'a self, digest: &'a Digest) -> impl Iterator<Item = &'a Digest> {
        let names = |stored: &super::metadata::Stored| {
            stored.references.iter().any(|it| it.digest == *digest)
        };
        self.manifests
            .iter()
            .filter(move |(_, stored)| names(stored))
            .map(|(manifest, _)| manifest)
    }
}

fn least_used(cached: impl Iterator<Item = Cached>, query: &CacheQuery) -> Vec<Cached> {
    let mut cached: Vec<Cached> = cached
        .filter(|cached| cached.used_at_ms < query.before_ms)
        .collect();
    cached.sort_by(|one, other| {
        let order = |it: &Cached| (it.used_at_ms, u64::MAX - it.size);
        order(one)
            .cmp(&order(other))
            .then_with(|| one.digest.as_str().cmp(other.digest.as_str()))
            .then_with(|| one.repository.cmp(&other.repository))
    });
    cached.truncate(query.limit);
    cached
}
