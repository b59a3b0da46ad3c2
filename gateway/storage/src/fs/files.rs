//! The files of published blobs that are being read: one descriptor per blob however many read it, opened when the first byte is wanted,
//! and only so many at a time.
//!
//! A file that is closed here opens again at its next read. Invariant: a blob that was opened stays readable to its end: what is deleted
//! keeps its descriptor.

use std::{
    collections::HashMap,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    open::{OpenFiles, Reopens},
    publish::stored_size,
    read::{READ, Reads, is_warm},
};
use crate::{Blob, blocking::lock, error::StorageError};

/// The blobs that are being read.
#[derive(Debug)]
pub(super) struct Files {
    /// Held for single operations.
    live: Mutex<Live>,
    open: OpenFiles<FsBlob>,
}

#[derive(Debug, Default)]
struct Live {
    blobs: HashMap<PathBuf, Weak<FsBlob>>,
    /// Files that are being deleted, and by how many.
    leaving: HashMap<PathBuf, usize>,
}

impl Files {
    pub(super) fn new(max_open: usize) -> Arc<Self> {
        Arc::new(Self {
            live: Mutex::default(),
            open: OpenFiles::new(max_open),
        })
    }

    /// The blob at `path`; `None` when there is none. Blocks.
    pub(super) fn find(
        self: &Arc<Self>,
        path: &Path,
        reads: &Reads,
    ) -> io::Result<Option<Arc<FsBlob>>> {
        // Known before it is looked for: a deletion that begins now finds it here and lets it keep its file.
        let (blob, leaving) = self.known(path, reads);
        let size = if leaving {
            blob.keep_open()
                .and_then(|file| Ok(Some(file.metadata()?.len())))
        } else {
            stored_size(path)
        };
        let size = match size {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(Some(size)) => size,
            Ok(None) | Err(_) => return Ok(None),
        };
        if *blob.size.get_or_init(|| size) == size {
            return Ok(Some(blob));
        }
        // The file was replaced since others began to read it.
        let replaced = self.blob(path, reads);
        replaced.size.get_or_init(|| size);
        Ok(Some(replaced))
    }

    fn known(self: &Arc<Self>, path: &Path, reads: &Reads) -> (Arc<FsBlob>, bool) {
        let mut live = lock(&self.live);
        let leaving = live.leaving.contains_key(path);
        if let Some(blob) = live.blobs.get(path).and_then(Weak::upgrade) {
            return (blob, leaving);
        }
        let blob = self.blob(path, reads);
        live.blobs.insert(path.to_owned(), Arc::downgrade(&blob));
        (blob, leaving)
    }

    fn blob(self: &Arc<Self>, path: &Path, reads: &Reads) -> Arc<FsBlob> {
        Arc::new_cyclic(|itself| FsBlob {
            path: path.to_owned(),
            size: OnceLock::new(),
            reads: reads.clone(),
            files: Arc::clone(self),
            itself: Weak::clone(itself),
            held: Mutex::default(),
            used: AtomicBool::new(false),
        })
    }

    /// To be called before a file is deleted, and the answer dropped after: readers of the blob keep the file. Blocks.
    pub(super) fn leaving(self: &Arc<Self>, path: &Path) -> Deletion {
        let mut live = lock(&self.live);
        *live.leaving.entry(path.to_owned()).or_default() += 1;
        let read = live.blobs.remove(path).and_then(|blob| blob.upgrade());
        drop(live);
        if let Some(read) = read
            && let Err(error) = read.keep_open()
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "a blob that is being read is deleted and cannot be kept open for its readers");
        }
        Deletion {
            files: Arc::clone(self),
            path: path.to_owned(),
        }
    }
}

/// A file that is being deleted.
#[derive(Debug)]
pub(super) struct Deletion {
    files: Arc<Files>,
    path: PathBuf,
}

impl Drop for Deletion {
    fn drop(&mut self) {
        let mut live = lock(&self.files.live);
        if let Some(count) = live.leaving.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                live.leaving.remove(&self.path);
            }
        }
    }
}

/// A published blob that is being read.
#[derive(Debug)]
pub(super) struct FsBlob {
    path: PathBuf,
    size: OnceLock<u64>,
    reads: Reads,
    files: Arc<Files>,
    itself: Weak<Self>,
    /// Held while the file is opened, so that it is opened once.
    held: Mutex<FileSlot>,
    /// Since others were last closed.
    used: AtomicBool,
}

#[derive(Debug, Default)]
struct FileSlot {
    file: Option<Arc<File>>,
    /// The file has no name any more: it is never closed before its readers end.
    last: bool,
}

impl FsBlob {
    fn opened(&self) -> io::Result<Arc<File>> {
        self.used.store(true, Ordering::Relaxed);
        let mut held = lock(&self.held);
        if let Some(file) = &held.file {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(&self.path)?);
        held.file = Some(Arc::clone(&file));
        drop(held);
        self.files.open.opened(&self.itself);
        Ok(file)
    }

    fn file_to_read(&self) -> Result<Arc<File>, StorageError> {
        self.opened()
            .map_err(|error| StorageError::file(READ, &self.path, error))
    }

    fn keep_open(&self) -> io::Result<Arc<File>> {
        let mut held = lock(&self.held);
        held.last = true;
        if let Some(file) = &held.file {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(&self.path)?);
        held.file = Some(Arc::clone(&file));
        Ok(file)
    }
}

impl Reopens for FsBlob {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn close(&self) -> bool {
        let mut held = lock(&self.held);
        if !held.last {
            held.file = None;
        }
        true
    }
}

impl Drop for FsBlob {
    fn drop(&mut self) {
        let mut live = lock(&self.files.live);
        let gone = |blob: &Weak<Self>| blob.strong_count() == 0;
        if live.blobs.get(&self.path).is_some_and(gone) {
            live.blobs.remove(&self.path);
        }
    }
}

#[async_trait]
impl Blob for FsBlob {
    fn size(&self) -> u64 {
        self.size.get().copied().unwrap_or_default()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let file = self.file_to_read()?;
        self.reads.read(&file, offset, length, self.size()).await
    }

    fn prepare(&self) -> Result<(), StorageError> {
        self.file_to_read().map(drop)
    }

    fn file(&self) -> Option<Arc<File>> {
        self.opened().ok()
    }

    fn is_warm(&self, offset: u64, length: usize) -> bool {
        self.opened()
            .is_ok_and(|file| is_warm(&file, offset, length))
    }

    async fn warm(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        let file = self.file_to_read()?;
        self.reads.warm(file, offset, length).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path, text: &str) {
        std::fs::write(path, text).unwrap();
    }

    fn is_open(blob: &FsBlob) -> bool {
        lock(&blob.held).file.is_some()
    }

    async fn text(blob: &FsBlob) -> Bytes {
        blob.read_at(0, 100).await.unwrap()
    }

    #[tokio::test]
    async fn a_file_opens_with_its_first_read_and_once_for_all_readers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        content(&path, "content");
        let (files, reads) = (Files::new(8), Reads::new(1));
        let one = files.find(&path, &reads).unwrap().unwrap();
        let other = files.find(&path, &reads).unwrap().unwrap();
        assert_eq!(one.size(), 7);
        assert!(!is_open(&one), "nothing was read yet");
        assert_eq!(text(&one).await, "content");
        assert!(Arc::ptr_eq(&one, &other));
        assert!(Arc::ptr_eq(&one.file().unwrap(), &other.file().unwrap()));
        drop((one, other));
        assert!(lock(&files.live).blobs.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_went_after_it_was_found_is_an_error_before_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        content(&path, "content");
        let (files, reads) = (Files::new(8), Reads::new(1));
        let blob = files.find(&path, &reads).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        blob.prepare().unwrap_err();
        content(&path, "content");
        blob.prepare().unwrap();
        assert!(is_open(&blob));
    }

    #[tokio::test]
    async fn only_so_many_files_are_open_and_all_are_readable() {
        let folder = tempfile::tempdir().unwrap();
        let (files, reads) = (Files::new(4), Reads::new(1));
        let blobs: Vec<_> = (0..20)
            .map(|number| {
                let path = folder.path().join(number.to_string());
                content(&path, &number.to_string());
                files.find(&path, &reads).unwrap().unwrap()
            })
            .collect();
        for (number, blob) in (0..3).flat_map(|_round| blobs.iter().enumerate()) {
            assert_eq!(text(blob).await, number.to_string());
            let open = blobs.iter().filter(|blob| is_open(blob)).count();
            assert!(open <= 4, "{open} are open");
        }
    }

    #[tokio::test]
    async fn a_deleted_blob_is_read_to_its_end_and_found_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (files, reads) = (Files::new(1), Reads::new(1));
        let path = folder.path().join("data");
        content(&path, "content");
        let blob = files.find(&path, &reads).unwrap().unwrap();
        let leaving = files.leaving(&path);
        let late = files.find(&path, &reads).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(leaving);
        assert!(files.find(&path, &reads).unwrap().is_none());
        let other = folder.path().join("other");
        content(&other, "other");
        let other = files.find(&other, &reads).unwrap().unwrap();
        assert_eq!(text(&other).await, "other");
        for blob in [blob, late] {
            assert_eq!(text(&blob).await, "content", "others needed descriptors");
        }
    }

    #[tokio::test]
    async fn a_file_that_was_replaced_by_one_of_another_size_is_found_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        content(&path, "con");
        let (files, reads) = (Files::new(8), Reads::new(1));
        let damaged = files.find(&path, &reads).unwrap().unwrap();
        let whole = folder.path().join("whole");
        content(&whole, "content");
        std::fs::rename(&whole, &path).unwrap();
        let healed = files.find(&path, &reads).unwrap().unwrap();
        assert_eq!((damaged.size(), healed.size()), (3, 7));
        assert_eq!(text(&healed).await, "content");
    }
}
