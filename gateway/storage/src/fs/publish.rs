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

use super::{
    layout::{Layout, sync_folder},
    staging::Staging,
};
use crate::{blocking::lock, error::StorageError};

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

impl Publisher {
    pub(super) fn new(layout: Layout) -> Self {
        let shelves = (0..256).map(|_byte| Mutex::default()).collect();
        Self { layout, shelves }
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
        let index = usize::from_str_radix(first, 16).unwrap_or_default();
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
            staging.file.sync_all()?;
            synced = true;
        }
        let mut shelf = lock(self.shelf(digest));
        let stored = stored_size(&target)?;
        let was_there = stored == Some(size);
        if was_there {
            File::open(&target)?.sync_all()?;
        } else {
            if !synced {
                staging.file.sync_all()?;
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
        let is_durable = match digest.algorithm() {
            Algorithm::Sha256 => &mut shelf.sha256_is_durable,
            Algorithm::Sha512 => &mut shelf.sha512_is_durable,
        };
        if !*is_durable {
            sync_folder(&self.layout.algorithm(digest.algorithm()))?;
            sync_folder(self.layout.blobs())?;
            *is_durable = true;
        }
        Ok(())
    }
}

/// The length of a file; `None` when there is none. Blocks.
pub(super) fn stored_size(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata.len())),
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
