//! Where things lie under the root: Distribution's tree for blobs, and our own folder beside it for staging files.
//!
//! Invariant: a path is made only of the root and of parsed digests and upload ids, so no name can lead out of it.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use gantry_model::{Algorithm, Digest, UploadId};

use crate::{
    error::{Kind, StorageError},
    folder::{make_root, sync_folder},
};

/// The two folders.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    blobs: PathBuf,
    uploads: PathBuf,
}

impl Layout {
    /// Where things are under `root`, without making anything.
    pub(crate) fn of(root: &Path) -> Self {
        let registry = root.join("docker").join("registry");
        Self {
            blobs: registry.join("v2").join("blobs"),
            uploads: registry.join("_gantry").join("uploads"),
        }
    }

    /// Makes both folders, durably. Blocks.
    pub(super) fn open(root: &Path) -> Result<Self, StorageError> {
        const ATTEMPT: &str = "open the blob folder";
        let layout = Self::of(root);
        let in_open = |path: &Path, error| StorageError::file(ATTEMPT, path, error);
        make_root(root).map_err(|error| in_open(root, error))?;
        let mut devices = [0; 2];
        let folders = [&layout.blobs, &layout.uploads].into_iter();
        for (folder, device) in folders.zip(&mut devices) {
            *device = make_folder(root, folder)
                .and_then(|()| fs::metadata(folder))
                .map_err(|error| in_open(folder, error))?
                .dev();
        }
        let [blobs, uploads] = devices;
        if blobs == uploads {
            Ok(layout)
        } else {
            let reason = "v2/blobs and _gantry/uploads must be on one file system";
            Err(StorageError::new(Kind::Internal, ATTEMPT, reason))
        }
    }

    /// The folder of all blobs.
    pub(super) fn blobs(&self) -> &Path {
        &self.blobs
    }

    /// The folder where Distribution keeps what belongs to its repositories; nothing of ours.
    pub(crate) fn repositories(&self) -> PathBuf {
        self.blobs.with_file_name("repositories")
    }

    /// The folder of an algorithm's blobs.
    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.blobs.join(algorithm.as_str())
    }

    /// The folder of blobs that begin with the same two hex digits.
    pub(super) fn shelf(&self, digest: &Digest) -> PathBuf {
        let first = digest.hex().get(..2).unwrap_or_default();
        self.algorithm(digest.algorithm()).join(first)
    }

    /// The folder of one blob.
    pub(super) fn folder(&self, digest: &Digest) -> PathBuf {
        self.shelf(digest).join(digest.hex())
    }

    /// A blob's file.
    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder(digest).join("data")
    }

    /// A staging file.
    pub(super) fn upload(&self, upload: UploadId) -> PathBuf {
        self.uploads.join(upload.to_string())
    }

    /// Uploads that have a staging file. Blocks.
    pub(super) fn uploads(&self) -> io::Result<Vec<UploadId>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.uploads)? {
            if let Some(upload) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                found.push(upload);
            }
        }
        Ok(found)
    }
}

/// Makes a folder under the root. Everything down to it is made durable, also what a process made that died before it could.
fn make_folder(root: &Path, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    folder
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(root))
        .try_for_each(sync_folder)
}
