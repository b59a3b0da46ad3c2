//! The import `registry`: reads of stored content, as the requesting principal and the binding's grant together.

use gantry_model::{Descriptor, Requester};
use wasmtime::component::Resource;

use crate::{
    bindings::gantry::plugin::{registry, types},
    convert,
    host::CallState,
    ports::ReadError,
};

/// Bytes of one ranged read.
const MAX_READ_BYTES: u32 = 256 << 10;
/// Names, tags, digests and media types are shorter.
const MAX_WORD_BYTES: usize = 512;

/// A blob that the guest holds a handle to.
#[derive(Clone, Debug)]
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct OpenBlob {
    repository: String,
    digest: String,
    size: u64,
}

type Read<T> = Result<T, registry::ReadError>;

impl CallState {
    /// Counts one read, and says as whom it is made: refused unless the binding grants the repository and somebody asks.
    fn reader(&mut self, repository: &str, word: &str) -> wasmtime::Result<Read<Requester>> {
        self.budgets.registry.take()?;
        if repository.len() > MAX_WORD_BYTES || word.len() > MAX_WORD_BYTES {
            return Ok(Err(registry::ReadError::NotFound));
        }
        let globs = &self.context.grants.registry;
        let granted = globs.iter().any(|glob| glob.matches(repository));
        Ok(self
            .requester
            .clone()
            .filter(|_requester| granted)
            .ok_or(registry::ReadError::NotGranted))
    }
}

impl registry::Host for CallState {
    async fn resolve_tag(
        &mut self,
        repository: String,
        tag: String,
    ) -> wasmtime::Result<Read<Option<types::TagState>>> {
        let requester = match self.reader(&repository, &tag)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        let reads = &self.context.ports.registry;
        let state = reads.resolve_tag(&requester, &repository, &tag).await;
        Ok(state
            .map(|state| state.as_ref().map(convert::tag_state))
            .map_err(read_error))
    }

    async fn get_manifest(
        &mut self,
        repository: String,
        reference: String,
    ) -> wasmtime::Result<Read<registry::StoredManifest>> {
        let requester = match self.reader(&repository, &reference)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        let reads = &self.context.ports.registry;
        let manifest = reads.manifest(&requester, &repository, &reference).await;
        Ok(manifest
            .map_err(read_error)
            .and_then(|(descriptor, bytes)| {
                self.clock
                    .hands(bytes.len(), || stored_manifest(&descriptor, &bytes))
            }))
    }

    async fn list_referrers(
        &mut self,
        repository: String,
        digest: String,
        artifact_type: Option<String>,
    ) -> wasmtime::Result<Read<Vec<types::Descriptor>>> {
        let requester = match self.reader(&repository, &digest)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        let reads = &self.context.ports.registry;
        let referrers = reads
            .referrers(&requester, &repository, &digest, artifact_type.as_deref())
            .await;
        Ok(referrers
            .map(|found| found.iter().map(convert::descriptor).collect())
            .map_err(read_error))
    }

    async fn list_parents(
        &mut self,
        repository: String,
        digest: String,
    ) -> wasmtime::Result<Read<Vec<String>>> {
        let requester = match self.reader(&repository, &digest)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        let reads = &self.context.ports.registry;
        let parents = reads.parents(&requester, &repository, &digest).await;
        Ok(parents
            .map(|found| found.iter().map(ToString::to_string).collect())
            .map_err(read_error))
    }

    async fn open_blob(
        &mut self,
        repository: String,
        digest: String,
    ) -> wasmtime::Result<Read<Resource<OpenBlob>>> {
        let requester = match self.reader(&repository, &digest)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        let reads = &self.context.ports.registry;
        match reads.blob_size(&requester, &repository, &digest).await {
            Ok(size) => Ok(Ok(self.push(OpenBlob {
                repository,
                digest,
                size,
            })?)),
            Err(error) => Ok(Err(read_error(error))),
        }
    }
}

impl registry::HostBlobReader for CallState {
    async fn size(&mut self, blob: Resource<OpenBlob>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&blob)?.size)
    }

    async fn read(
        &mut self,
        blob: Resource<OpenBlob>,
        offset: u64,
        len: u32,
    ) -> wasmtime::Result<Read<Vec<u8>>> {
        let blob = self.table.get(&blob)?.clone();
        let requester = match self.reader(&blob.repository, &blob.digest)? {
            Ok(requester) => requester,
            Err(refused) => return Ok(Err(refused)),
        };
        if len > MAX_READ_BYTES {
            return Ok(Err(registry::ReadError::TooLarge));
        }
        let left = blob.size.saturating_sub(offset);
        let length = u32::try_from(left).unwrap_or(u32::MAX).min(len);
        if length == 0 {
            return Ok(Ok(Vec::new()));
        }
        let reads = &self.context.ports.registry;
        let bytes = reads
            .read_blob(&requester, &blob.repository, &blob.digest, offset, length)
            .await;
        Ok(bytes.map(|bytes| bytes.to_vec()).map_err(read_error))
    }

    async fn drop(&mut self, blob: Resource<OpenBlob>) -> wasmtime::Result<()> {
        self.table.delete(blob)?;
        Ok(())
    }
}

fn stored_manifest(
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<registry::StoredManifest, registry::ReadError> {
    let document = convert::document(&descriptor.media_type, bytes)
        .map_err(|_too_large| registry::ReadError::TooLarge)?;
    Ok(registry::StoredManifest {
        target: convert::descriptor(descriptor),
        digests: convert::digests(&descriptor.digest, Some(bytes)),
        document,
    })
}

fn read_error(error: ReadError) -> registry::ReadError {
    match error {
        ReadError::NotGranted => registry::ReadError::NotGranted,
        ReadError::NotFound => registry::ReadError::NotFound,
        ReadError::TooLarge => registry::ReadError::TooLarge,
        ReadError::Unavailable(why) => {
            tracing::warn!(error = why, "a plugin's read of the registry failed");
            registry::ReadError::Unavailable("the registry cannot read now".to_owned())
        }
    }
}
