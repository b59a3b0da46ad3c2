//! Makes verified content durable and visible under its digest: fsync, rename without replacing, fsync of every new entry.
//!
//! Everything here blocks. Invariant: an error means that nobody was told of the content; a failed fsync is never retried on the same
//! file, because the kernel may call the lost pages clean.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Mutex,
};

use gantry_model::{Algorithm, Digest};
use rustix::fs::{CWD, RenameFlags};

use super::{layout::Layout, staging::Staging};
use crate::{blocking::lock, error::StorageError, folder::sync_folder};

const ATTEMPT: &str = "publish a blob";

/// Publishes and deletes, one blob of a shelf at a time: whoever finds content in place knows that its entry is durable.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) layout: Layout,
    /// By the first byte of the digest. Serializes changes to the shelves of that byte.
    shelves: Box<[Mutex<Shelf>]>,
}

#[derive(Debug, Default)]
struct Shelf {
    sha256_is_durable: bool,
    sha512_is_durable: bool,
}

impl Shelf {
    /// Whether the folder of one algorithm's blobs is known to survive a power cut.
    fn is_durable(&mut self, algorithm: Algorithm) -> &mut bool {
        match algorithm {
            Algorithm::Sha256 => &mut self.sha256_is_durable,
            Algorithm::Sha512 => &mut self.sha512_is_durable,
        }
    }
}

impl Publisher {
    /// Makes the shelves that are there durable, so that a publication need not.
    pub(super) fn open(layout: Layout) -> Result<Self, StorageError> {
        let mut shelves = Vec::new();
        shelves.resize_with(256, Mutex::<Shelf>::default);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let folder = layout.algorithm(algorithm);
            let found = sync_shelves(&folder)
                .map_err(|error| StorageError::file("open the blob folder", &folder, error))?;
            for shelf in found.into_iter().filter_map(|index| shelves.get(index)) {
                *lock(shelf).is_durable(algorithm) = true;
            }
        }
        let shelves = shelves.into();
        Ok(Self { layout, shelves })
    }

    /// Publishes a staging file of `size` verified bytes. Whatever the outcome, the staging file is gone.
    pub(super) fn publish(
        &self,
        staging: &Staging,
        digest: &Digest,
        size: u64,
    ) -> Result<(), StorageError> {
        let target = self.layout.blob(digest);
        let result = self.settle(staging, digest, size);
        staging.remove();
        result.map_err(|error| StorageError::file(ATTEMPT, &target, error))
    }

    /// Deletes a blob; whether it was there.
    pub(super) fn delete(&self, digest: &Digest) -> Result<bool, StorageError> {
        let target = self.layout.blob(digest);
        let shelf = lock(self.shelf(digest));
        let deleted = match fs::remove_file(&target) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(StorageError::file("delete a blob", &target, error)),
        };
        // Fails when something else lies in the folder, and then it stays.
        fs::remove_dir(self.layout.folder(digest)).ok();
        drop(shelf);
        Ok(deleted)
    }

    fn shelf(&self, digest: &Digest) -> &Mutex<Shelf> {
        let first = digest.hex().get(..2).unwrap_or_default();
        let index = shelf_index(first).unwrap_or_default();
        #[expect(
            clippy::indexing_slicing,
            reason = "two hex digits are below 256, and there are 256 shelves"
        )]
        &self.shelves[index]
    }

    fn settle(&self, staging: &Staging, digest: &Digest, size: u64) -> io::Result<()> {
        let target = self.layout.blob(digest);
        // Outside the lock, because it may take long; not needed when the content turns out to be there.
        let mut synced = false;
        if stored_size(&target)? != Some(size) {
            staging.file()?.sync_all()?;
            synced = true;
        }
        let mut shelf = lock(self.shelf(digest));
        let stored = stored_size(&target)?;
        let was_there = stored == Some(size);
        if was_there {
            File::open(&target)?.sync_all()?;
        } else {
            if !synced {
                staging.file()?.sync_all()?;
            }
            self.place(staging, digest, stored.is_some())?;
        }
        let durable = self.sync_entries(&mut shelf, digest);
        if durable.is_err() && !was_there {
            // The entry may not survive a power cut, and asking the same folder again could be answered falsely.
            fs::remove_file(&target).ok();
            fs::remove_dir(self.layout.folder(digest)).ok();
        }
        durable
    }

    /// Moves the file to its name. A stored blob of another size is damaged, and this heals it.
    fn place(&self, staging: &Staging, digest: &Digest, heal: bool) -> io::Result<()> {
        fs::create_dir_all(self.layout.folder(digest))?;
        let target = self.layout.blob(digest);
        if heal {
            tracing::warn!(blob.digest = %digest, "a stored blob of the wrong size is replaced");
            return fs::rename(&staging.path, target);
        }
        match rename_new(&staging.path, &target) {
            // Another process published it; what is there now cannot be told from here, what we have is verified.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::rename(&staging.path, target)
            }
            result => result,
        }
    }

    /// Makes the blob's entry durable, and those of the folders it lies in.
    fn sync_entries(&self, shelf: &mut Shelf, digest: &Digest) -> io::Result<()> {
        sync_folder(&self.layout.folder(digest))?;
        sync_folder(&self.layout.shelf(digest))?;
        let is_durable = shelf.is_durable(digest.algorithm());
        if !*is_durable {
            sync_folder(&self.layout.algorithm(digest.algorithm()))?;
            sync_folder(self.layout.blobs())?;
            *is_durable = true;
        }
        Ok(())
    }
}

/// The first byte of a digest, by its two hex digits.
fn shelf_index(first: &str) -> Option<usize> {
    usize::from_str_radix(first, 16).ok()
}

/// Makes an algorithm's shelves durable; which there are.
fn sync_shelves(folder: &Path) -> io::Result<Vec<usize>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_str().and_then(shelf_index)));
    let found: io::Result<Vec<Option<usize>>> = names.collect();
    sync_folder(folder)?;
    Ok(found?.into_iter().flatten().collect())
}

/// The length of a file; `None` when there is none. Blocks. A symbolic link is no stored content, because it could lead to any file of
/// the machine, and neither is a pipe or a device, which may never end.
pub(super) fn stored_size(path: &Path) -> io::Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Renames unless the new name is taken; by link and unlink where the file system has no such rename.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_new(from, to),
        Err(error) => Err(error.into()),
    }
}

fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to)?;
    fs::remove_file(from)
}

#[cfg(test)]
mod tests {
    use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc};

    use bytes::Bytes;
    use tempfile::TempDir;

    use super::*;
    use crate::{fs::open::OpenFiles, hash::digest_of};

    fn publisher() -> (TempDir, Publisher) {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::open(folder.path()).unwrap();
        (folder, Publisher::open(layout).unwrap())
    }

    fn upload(publisher: &Publisher) -> PathBuf {
        let upload = gantry_model::UploadId::from_random([1; 16]);
        publisher.layout.upload(upload)
    }

    #[test]
    fn a_failed_fsync_publishes_nothing_and_drops_the_staging_file() {
        let (_folder, publisher) = publisher();
        let path = upload(&publisher);
        fs::write(&path, "content").unwrap();
        // The kernel refuses to fsync a pipe.
        let (_reader, pipe) = io::pipe().unwrap();
        let open = Arc::new(OpenFiles::new(1));
        let staging = Staging::of(OwnedFd::from(pipe).into(), path.clone(), 0, &open);
        let digest = digest_of(Algorithm::Sha256, b"content");
        let error = publisher.publish(&staging, &digest, 7).unwrap_err();
        assert_eq!(error.to_string(), "cannot publish a blob");
        assert!(!path.exists());
        assert_eq!(stored_size(&publisher.layout.blob(&digest)).unwrap(), None);
    }

    #[test]
    fn a_name_that_is_taken_is_not_replaced_by_a_rename() {
        let (folder, _publisher) = publisher();
        for rename in [rename_new, link_new] {
            let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            let taken = rename(&from, &to).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&to).unwrap(), b"old");
            fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), b"new");
            assert!(!from.exists());
        }
    }

    #[test]
    fn content_published_meanwhile_frees_the_staging_file() {
        let (_folder, publisher) = publisher();
        let digest = digest_of(Algorithm::Sha256, b"content");
        let target = publisher.layout.blob(&digest);
        for _round in 0..2 {
            let open = Arc::new(OpenFiles::new(1));
            let staging = Staging::create(upload(&publisher), &open).unwrap();
            staging
                .append(0, &[Bytes::from_static(b"content")])
                .unwrap();
            publisher.publish(&staging, &digest, 7).unwrap();
            assert!(!staging.path.exists());
            assert_eq!(fs::read(&target).unwrap(), b"content");
        }
    }
}
