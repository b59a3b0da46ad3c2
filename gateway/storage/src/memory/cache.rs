//! What eviction asks of the memory backend: every answer by looking at everything.

use std::collections::BTreeMap;

use async_trait::async_trait;
use gantry_model::{Digest, RepositoryName};

use super::metadata::{Facts, MemoryMetadata, Repository};
use crate::{
    blocking::lock,
    cache::{CacheIndex, CacheQuery, CacheSize, Cached, CachedRepository, Pin, Use, Within},
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
        let below = Within::Below(prefix.clone());
        for (_, repository) in facts.within(&below, except) {
            size.manifests += repository.manifests.len() as u64;
            size.repositories +=
                u64::from(!repository.manifests.is_empty() || !repository.blobs.is_empty());
            blobs.extend(
                repository
                    .blobs
                    .iter()
                    .map(|(digest, linked)| (digest, linked.size())),
            );
        }
        size.blobs = blobs.len() as u64;
        size.bytes = blobs.values().sum();
        Ok(size)
    }

    async fn holding_repositories(
        &self,
        after: Option<&RepositoryName>,
        limit: usize,
    ) -> Result<Vec<CachedRepository>, StorageError> {
        let facts = lock(&self.facts);
        let holding = facts.repositories.iter().filter(|(name, repository)| {
            after.is_none_or(|after| *name > after)
                && !(repository.manifests.is_empty() && repository.blobs.is_empty())
        });
        let holding = holding.map(|(name, repository)| repository.holding(name));
        Ok(holding.take(limit).collect())
    }

    async fn least_used_blobs(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let facts = lock(&self.facts);
        let blobs = facts
            .within(&query.within, &query.except)
            .flat_map(|(name, repository)| {
                repository.blobs.iter().map(|(digest, linked)| Cached {
                    repository: name.clone(),
                    digest: digest.clone(),
                    size: linked.size(),
                    used_at_ms: repository.blob_used_at_ms(digest),
                })
            });
        Ok(least_used(blobs, query))
    }

    async fn least_used_manifests(&self, query: &CacheQuery) -> Result<Vec<Cached>, StorageError> {
        let facts = lock(&self.facts);
        let manifests =
            facts
                .within(&query.within, &query.except)
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

    async fn began_ms(&self) -> Result<Option<u64>, StorageError> {
        Ok(lock(&self.facts).began_ms)
    }

    async fn unheld(&self, digests: Vec<Digest>) -> Result<Vec<Digest>, StorageError> {
        let mut unheld = Vec::new();
        for digest in digests {
            if !self.is_held(&digest).await? {
                unheld.push(digest);
            }
        }
        Ok(unheld)
    }

    async fn pins(&self) -> Result<Vec<Pin>, StorageError> {
        Ok(lock(&self.facts).pins.values().cloned().collect())
    }

    async fn pin(&self, pin: Pin) -> Result<bool, StorageError> {
        let mut facts = lock(&self.facts);
        let is_new = !facts.pins.contains_key(&pin.pattern);
        facts.pins.entry(pin.pattern.clone()).or_insert(pin);
        Ok(is_new)
    }

    async fn unpin(&self, pattern: &str) -> Result<bool, StorageError> {
        Ok(lock(&self.facts).pins.remove(pattern).is_some())
    }
}

impl Facts {
    fn within<'a>(
        &'a self,
        within: &Within,
        except: &'a [RepositoryName],
    ) -> impl Iterator<Item = (&'a RepositoryName, &'a Repository)> {
        let (from, to) = within.bounds();
        let range = move |name: &str| (from.as_str()..to.as_str()).contains(&name);
        self.repositories
            .iter()
            .filter(move |(name, _)| range(name.as_str()) && !except.contains(name))
    }
}

impl Repository {
    fn holding(&self, name: &RepositoryName) -> CachedRepository {
        let stored = self.manifests.values();
        let came = stored.map(|stored| stored.record.pushed_at_ms);
        CachedRepository {
            repository: name.clone(),
            tags: self.tags.len() as u64,
            manifests: self.manifests.len() as u64,
            blobs: self.blobs.len() as u64,
            bytes: self.blobs.values().map(super::metadata::Linked::size).sum(),
            used_at_ms: self.uses.values().copied().chain(came).max().unwrap_or(0),
        }
    }

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
