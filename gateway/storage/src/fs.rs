//! Blobs in a folder, in Distribution's layout: `<root>/docker/registry/v2/blobs/<algorithm>/<2 hex>/<hex>/data`.
//!
//! An existing registry's folder is read and extended in place; staging files lie beside its tree, in `docker/registry/_gantry/uploads`.
//! One process at a time may write. Nothing here blocks the executor, except [`FsBlobStore::open`].

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

use async_trait::async_trait;
use gantry_model::{Algorithm, Digest, UploadId};

pub(crate) use self::layout::Layout;
use self::{
    claims::Claims,
    files::Files,
    open::{OpenFiles, max_open_blobs, max_open_uploads},
    publish::{Publisher, stored_size},
    read::Reads,
    staging::Staging,
    writer::FsWriter,
};
use crate::{
    Blob, BlobStore, BlobWriter, StoredBlob,
    blocking::Blocking,
    error::{Kind, StorageError},
    hash::Hasher,
};

mod alias;
mod claims;
mod files;
mod layout;
mod list;
mod open;
mod publish;
mod read;
mod staging;
mod writer;

/// Blobs in a folder.
#[derive(Clone, Debug)]
pub struct FsBlobStore {
    shared: Arc<Shared>,
}

/// What the store and its writers share.
#[derive(Debug)]
struct Shared {
    publisher: Publisher,
    claims: Claims,
    files: Arc<Files>,
    uploads: Arc<OpenFiles<Staging>>,
    /// Bytes that writers hold and have not handed over.
    buffered: Arc<AtomicU64>,
    reads: Reads,
    writes: Blocking,
}

impl FsBlobStore {
    /// Opens the store under `root`, making the folders it lacks. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`StorageError`]; [`Kind::Internal`] when blobs and staging files would lie on two file systems.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let shared = Shared {
            publisher: Publisher::open(Layout::open(root)?)?,
            claims: Claims::default(),
            files: Files::new(max_open_blobs()),
            uploads: Arc::new(OpenFiles::new(max_open_uploads())),
            buffered: Arc::default(),
            reads: Reads::new(READ_THREADS),
            writes: Blocking::new(WRITE_THREADS),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }
}

impl Shared {
    fn layout(&self) -> &Layout {
        &self.publisher.layout
    }

    /// Hashes what is in a staging file, a few MiB at a time.
    async fn rehash(
        &self,
        staging: &Arc<Staging>,
        algorithm: Algorithm,
    ) -> Result<Hasher, StorageError> {
        let mut hasher = Hasher::new(algorithm);
        let size = staging.flushed();
        let mut offset = 0;
        while offset < size {
            let end = size.min(offset + REHASH_BYTES);
            let staging = Arc::clone(staging);
            let hash = move || {
                staging
                    .file()
                    .and_then(|file| hash_range(&file, offset, end, &mut hasher))
                    .map_err(|error| StorageError::file("read an upload", &staging.path, error))?;
                Ok(hasher)
            };
            hasher = self.reads.run("read an upload", hash).await?;
            offset = end;
        }
        Ok(hasher)
    }
}

fn hash_range(file: &File, mut offset: u64, end: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    while offset < end {
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let length = left.min(buffer.len());
        let window = buffer.get_mut(..length).unwrap_or_default();
        file.read_exact_at(window, offset)?;
        hasher.update(window);
        offset += length as u64;
    }
    Ok(())
}

#[async_trait]
impl BlobStore for FsBlobStore {
    async fn stat(&self, digest: &Digest) -> Result<Option<u64>, StorageError> {
        const ATTEMPT: &str = "look for a blob";
        let path = self.shared.layout().blob(digest);
        let look =
            move || stored_size(&path).map_err(|error| StorageError::file(ATTEMPT, &path, error));
        self.shared.reads.run(ATTEMPT, look).await
    }

    async fn open(&self, digest: &Digest) -> Result<Option<Arc<dyn Blob>>, StorageError> {
        const ATTEMPT: &str = "open a blob";
        let path = self.shared.layout().blob(digest);
        let shared = Arc::clone(&self.shared);
        let find = move || {
            let found = shared.files.find(&path, &shared.reads);
            found.map_err(|error| StorageError::file(ATTEMPT, &path, error))
        };
        let found = self.shared.reads.run(ATTEMPT, find).await?;
        Ok(found.map(|blob| blob as Arc<dyn Blob>))
    }

    async fn create(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Box<dyn BlobWriter>, StorageError> {
        const ATTEMPT: &str = "start an upload";
        let claim = self.shared.claims.claim(upload).await?;
        let path = self.shared.layout().upload(upload);
        let open = Arc::clone(&self.shared.uploads);
        let create = move || {
            Staging::create(path.clone(), &open).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StorageError::new(Kind::Internal, ATTEMPT, error),
                _ => StorageError::file(ATTEMPT, &path, error),
            })
        };
        let staging = self.shared.writes.run(ATTEMPT, create).await?;
        let shared = Arc::clone(&self.shared);
        let hasher = Hasher::new(algorithm);
        Ok(Box::new(FsWriter::new(shared, staging, claim, hasher)))
    }

    async fn resume(
        &self,
        upload: UploadId,
        algorithm: Algorithm,
    ) -> Result<Option<Box<dyn BlobWriter>>, StorageError> {
        const ATTEMPT: &str = "continue an upload";
        let claim = self.shared.claims.claim(upload).await?;
        let path = self.shared.layout().upload(upload);
        let uploads = Arc::clone(&self.shared.uploads);
        let open = move || {
            Staging::open(path.clone(), &uploads)
                .map_err(|error| StorageError::file(ATTEMPT, &path, error))
        };
        let Some(staging) = self.shared.writes.run(ATTEMPT, open).await? else {
            return Ok(None);
        };
        let hasher = self.shared.rehash(&staging, algorithm).await?;
        let shared = Arc::clone(&self.shared);
        Ok(Some(Box::new(FsWriter::new(
            shared, staging, claim, hasher,
        ))))
    }

    async fn discard(&self, upload: UploadId) -> Result<(), StorageError> {
        const ATTEMPT: &str = "drop an upload";
        let path = self.shared.layout().upload(upload);
        let discard = move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StorageError::file(ATTEMPT, &path, error))
            }
            _ => Ok(()),
        };
        self.shared.writes.run(ATTEMPT, discard).await
    }

    async fn delete(&self, digest: &Digest) -> Result<bool, StorageError> {
        let shared = Arc::clone(&self.shared);
        let digest = digest.clone();
        let delete = move || {
            let leaving = shared.files.leaving(&shared.layout().blob(&digest));
            let deleted = shared.publisher.delete(&digest);
            drop(leaving);
            deleted
        };
        self.shared.writes.run("delete a blob", delete).await
    }

    async fn staged(&self) -> Result<Vec<UploadId>, StorageError> {
        const ATTEMPT: &str = "list uploads";
        let layout = self.shared.layout().clone();
        let list = move || {
            layout
                .uploads()
                .map_err(|error| StorageError::io(ATTEMPT, error))
        };
        self.shared.reads.run(ATTEMPT, list).await
    }

    async fn published(
        &self,
        after: Option<&Digest>,
        limit: usize,
    ) -> Result<Vec<StoredBlob>, StorageError> {
        const ATTEMPT: &str = "list blobs";
        let (layout, after) = (self.shared.layout().clone(), after.cloned());
        let list = move || {
            list::published(&layout, after.as_ref(), limit)
                .map_err(|error| StorageError::io(ATTEMPT, error))
        };
        self.shared.reads.run(ATTEMPT, list).await
    }
}

/// Reads wait for a disk, not for a processor.
const READ_THREADS: usize = 64;
/// More of them would not make a disk faster, and fewer would let one slow fsync hold up the others.
const WRITE_THREADS: usize = 32;
/// What one piece of work hashes.
const REHASH_BYTES: u64 = 8 << 20;
