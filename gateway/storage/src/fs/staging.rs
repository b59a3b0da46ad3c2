//! A staging file: bytes appended in batches, readable up to what was appended.
//!
//! It is open while it is written, but not all the time: an upload that waits for its client gives its descriptor to others. What was
//! written is made durable before, because a failed write-back is only reported to a file that is open.
//! Invariant: `flushed` bytes from the start are content that was written whole; a batch that failed is cut off again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IoSlice},
    num::NonZeroU64,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::fs::Advice;

use super::{
    files::FsBlob,
    open::{OpenFiles, Reopens},
    read::{READ, Reads, is_warm},
};
use crate::{Blob, blocking::lock, error::StorageError};

/// A staging file.
#[derive(Debug)]
pub(super) struct Staging {
    pub(super) path: PathBuf,
    flushed: AtomicU64,
    /// Held while the file is opened or closed, so that it is opened once.
    slot: Mutex<Slot>,
    /// Since others were last closed.
    used: AtomicBool,
    /// The content under its digest, once it is there.
    published: OnceLock<Arc<FsBlob>>,
    open: Arc<OpenFiles<Self>>,
    itself: Weak<Self>,
}

#[derive(Debug, Default)]
struct Slot {
    file: Option<Arc<File>>,
    /// It has readers, who keep it wherever it goes.
    is_read: bool,
    /// Some of what was written is lost.
    lost: bool,
}

impl Staging {
    /// Makes the file, which must not exist. Blocks.
    pub(super) fn create(path: PathBuf, open: &Arc<OpenFiles<Self>>) -> io::Result<Arc<Self>> {
        let file = options().create_new(true).open(&path)?;
        Ok(Self::of(file, path, 0, open))
    }

    /// A file that is open already. Blocks.
    pub(super) fn of(
        file: File,
        path: PathBuf,
        flushed: u64,
        open: &Arc<OpenFiles<Self>>,
    ) -> Arc<Self> {
        let slot = Slot {
            file: Some(Arc::new(file)),
            ..Slot::default()
        };
        let staging = Arc::new_cyclic(|itself| Self {
            path,
            flushed: AtomicU64::new(flushed),
            slot: Mutex::new(slot),
            used: AtomicBool::new(true),
            published: OnceLock::new(),
            open: Arc::clone(open),
            itself: Weak::clone(itself),
        });
        open.opened(&staging.itself);
        staging
    }

    /// Opens what is there; `None` when nothing is. Blocks.
    pub(super) fn open(
        path: PathBuf,
        open: &Arc<OpenFiles<Self>>,
    ) -> io::Result<Option<Arc<Self>>> {
        let file = match options().open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let flushed = file.metadata()?.len();
        Ok(Some(Self::of(file, path, flushed, open)))
    }

    /// The open file. Blocks.
    pub(super) fn file(&self) -> io::Result<Arc<File>> {
        self.used.store(true, Ordering::Relaxed);
        let mut slot = lock(&self.slot);
        if let Some(file) = &slot.file {
            return Ok(Arc::clone(file));
        }
        if slot.lost {
            return Err(io::Error::other("what was written before is lost"));
        }
        let file = Arc::new(options().open(&self.path)?);
        slot.file = Some(Arc::clone(&file));
        let counts = !slot.is_read;
        drop(slot);
        if counts {
            self.open.opened(&self.itself);
        }
        Ok(file)
    }

    /// Keeps the file open for readers from now on.
    fn keep_for_readers(&self) {
        lock(&self.slot).is_read = true;
        if let Err(error) = self.file() {
            tracing::warn!(%error, path = %self.path.display(), "a staging file cannot be opened for its readers");
        }
    }

    /// The content is published: who still reads it reads the blob, whose file is one for all and can be closed in between.
    pub(super) fn published(&self, blob: Arc<FsBlob>) {
        if blob.size() == self.flushed() && self.published.set(blob).is_ok() {
            lock(&self.slot).file = None;
        }
    }

    /// How many bytes can be read.
    pub(super) fn flushed(&self) -> u64 {
        self.flushed.load(Ordering::Acquire)
    }

    /// Writes a batch at `offset`, the end of the last one; on failure the file is cut back to there, or dropped. Blocks.
    pub(super) fn append(&self, offset: u64, batch: &[Bytes]) -> Result<(), StorageError> {
        let failed = |error| StorageError::file("write an upload", &self.path, error);
        let file = self.file().map_err(failed)?;
        match write_at(&file, offset, batch) {
            Ok(end) => {
                self.flushed.store(end, Ordering::Release);
                write_back(&file, offset, end - offset);
                Ok(())
            }
            Err(error) => {
                if let Err(stuck) = file.set_len(offset) {
                    tracing::warn!(error = %stuck, "a staging file could not be cut back and is dropped");
                    self.remove();
                }
                Err(failed(error))
            }
        }
    }

    /// Frees the staging bytes; open readers keep theirs. Blocks.
    pub(super) fn remove(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a staging file could not be removed; the sweep will try again");
            }
            _ => {}
        }
    }
}

impl Reopens for Staging {
    fn take_used(&self) -> bool {
        self.used.swap(false, Ordering::Relaxed)
    }

    fn close(&self) -> bool {
        let mut slot = lock(&self.slot);
        if slot.is_read {
            return true;
        }
        let Some(file) = slot.file.take_if(|file| Arc::strong_count(file) == 1) else {
            return slot.file.is_none();
        };
        if let Err(error) = file.sync_data() {
            tracing::warn!(%error, path = %self.path.display(), "what was written of an upload is lost");
            slot.lost = true;
            // Whoever resumes it would read pages that the kernel calls clean and the disk does not have.
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::warn!(%error, path = %self.path.display(), "cannot remove it");
            }
        }
        true
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    options
}

fn write_at(file: &File, mut offset: u64, batch: &[Bytes]) -> io::Result<u64> {
    /// The kernel's `IOV_MAX`.
    const MOST_SLICES: usize = 1024;
    let mut slices: Vec<IoSlice<'_>> = batch.iter().map(|bytes| IoSlice::new(bytes)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let window = rest.get(..MOST_SLICES).unwrap_or(rest);
        match rustix::io::pwritev(file, window, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                offset += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(offset)
}

/// Has the system begin to write a large batch to the disk now, so that the fsync at the end, which somebody waits for, finds little left
/// to do. Linux begins the write-back of a range that is not needed any more, and drops only pages that are clean: these are not.
fn write_back(file: &File, offset: u64, length: u64) {
    const WORTH_BYTES: u64 = 256 << 10;
    if let Some(range) = NonZeroU64::new(length).filter(|length| length.get() >= WORTH_BYTES)
        && let Err(error) = rustix::fs::fadvise(file, offset, Some(range), Advice::DontNeed)
    {
        tracing::trace!(%error, "the system takes no advice about this file");
    }
}

/// A reader of a staging file; it keeps the file open until the content is published, wherever that goes.
#[derive(Debug)]
pub(super) struct Tail {
    staging: Arc<Staging>,
    reads: Reads,
}

impl Tail {
    pub(super) fn of(staging: &Arc<Staging>, reads: &Reads) -> Self {
        staging.keep_for_readers();
        Self {
            staging: Arc::clone(staging),
            reads: reads.clone(),
        }
    }

    fn file_to_read(&self) -> Result<Arc<File>, StorageError> {
        let failed = |error| StorageError::file(READ, &self.staging.path, error);
        self.staging.file().map_err(failed)
    }
}

#[async_trait]
impl Blob for Tail {
    fn size(&self) -> u64 {
        self.staging.flushed()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        if let Some(blob) = self.staging.published.get() {
            return blob.read_at(offset, length).await;
        }
        let file = self.file_to_read()?;
        self.reads.read(&file, offset, length, self.size()).await
    }

    fn file(&self) -> Option<Arc<File>> {
        match self.staging.published.get() {
            Some(blob) => blob.file(),
            None => self.staging.file().ok(),
        }
    }

    fn is_warm(&self, offset: u64, length: usize) -> bool {
        self.file()
            .is_some_and(|file| is_warm(&file, offset, length))
    }

    async fn warm(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        if let Some(blob) = self.staging.published.get() {
            return blob.warm(offset, length).await;
        }
        let file = self.file_to_read()?;
        self.reads.warm(file, offset, length).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::files::Files;

    fn piece(text: &'static str) -> [Bytes; 1] {
        [Bytes::from_static(text.as_bytes())]
    }

    fn is_open(staging: &Staging) -> bool {
        lock(&staging.slot).file.is_some()
    }

    #[test]
    fn only_so_many_uploads_are_open_and_all_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let open = Arc::new(OpenFiles::new(4));
        let create = |number: u32| {
            let path = folder.path().join(number.to_string());
            Staging::create(path, &open).unwrap()
        };
        let uploads: Vec<_> = (0..20).map(create).collect();
        for (round, text) in ["one ", "two ", "three"].into_iter().enumerate() {
            for upload in &uploads {
                upload.append(round as u64 * 4, &piece(text)).unwrap();
                let open = uploads.iter().filter(|upload| is_open(upload)).count();
                assert!(open <= 4, "{open} are open");
            }
        }
        for upload in &uploads {
            assert_eq!(fs::read(&upload.path).unwrap(), b"one two three");
            assert_eq!(upload.flushed(), 13);
        }
    }

    #[test]
    fn an_upload_in_use_is_not_closed_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let open = Arc::new(OpenFiles::new(1));
        let one = Staging::create(folder.path().join("one"), &open).unwrap();
        let in_use = one.file().unwrap();
        let two = Staging::create(folder.path().join("two"), &open).unwrap();
        assert!(is_open(&one) && is_open(&two));
        drop(in_use);
        let _three = Staging::create(folder.path().join("three"), &open).unwrap();
        assert!(!is_open(&one) && !is_open(&two));
    }

    #[test]
    fn an_upload_whose_bytes_could_not_be_made_durable_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let open = Arc::new(OpenFiles::new(1));
        // The kernel refuses to fsync a pipe.
        let (_reader, pipe) = io::pipe().unwrap();
        let path = folder.path().join("lost");
        fs::write(&path, "").unwrap();
        let lost = Staging::of(std::os::fd::OwnedFd::from(pipe).into(), path, 0, &open);
        let _other = Staging::create(folder.path().join("other"), &open).unwrap();
        assert!(!is_open(&lost));
        lost.append(0, &piece("more")).unwrap_err();
        lost.file().unwrap_err();
        assert!(!folder.path().join("lost").exists());
    }

    #[tokio::test]
    async fn readers_keep_the_file_until_it_is_published_and_then_share_the_blob() {
        let folder = tempfile::tempdir().unwrap();
        let open = Arc::new(OpenFiles::new(1));
        let reads = Reads::new(1);
        let staging = Staging::create(folder.path().join("upload"), &open).unwrap();
        staging.append(0, &piece("content")).unwrap();
        let tail = Tail::of(&staging, &reads);
        let _other = Staging::create(folder.path().join("other"), &open).unwrap();
        assert!(is_open(&staging));
        let path = folder.path().join("data");
        fs::rename(&staging.path, &path).unwrap();
        assert_eq!(tail.read_at(0, 100).await.unwrap(), "content");
        let blob = Files::new(1).find(&path, &reads).unwrap().unwrap();
        staging.published(blob);
        assert!(!is_open(&staging));
        assert_eq!(tail.read_at(3, 100).await.unwrap(), "tent");
        assert!(!is_open(&staging) && tail.file().is_some());
    }
}
