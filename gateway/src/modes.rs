//! Who may read what the process makes: its user and group, and nobody else, whatever umask it was started with.
//!
//! What is there already keeps its mode; [`warn_of_open`] names what others may read or the group may change.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{fs::Mode, process::umask};

/// Folders 0750, files 0640. Keys and compiled code are made with narrower modes of their own.
const UMASK: u32 = 0o027;

/// The umask that the process was started with.
static INHERITED: AtomicU32 = AtomicU32::new(0o022);

/// Sets the umask. Called once, before anything is made.
pub(crate) fn set() {
    let before = umask(Mode::from_raw_mode(UMASK));
    INHERITED.store(before.bits(), Ordering::Relaxed);
}

/// Gives a listening socket the mode that whoever started the process meant: it is for clients, and no file of the data folder.
pub(crate) fn open_socket(path: &Path) -> io::Result<()> {
    let mode = 0o777 & !INHERITED.load(Ordering::Relaxed);
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Warns of paths that were there before and that others than the user and the group may reach, or the group may change.
pub(crate) fn warn_of_open<'a>(paths: impl IntoIterator<Item = &'a Path>) {
    for path in paths {
        let Some(mode) = mode(path).filter(|mode| mode & UMASK != 0) else {
            continue;
        };
        let narrow = if path.is_dir() { "750" } else { "640" };
        tracing::warn!(
            "{} has the mode {mode:03o}, which lets others in; it is left as it is: chmod {narrow} it, unless somebody else needs it",
            path.display()
        );
    }
}

fn mode(path: &Path) -> Option<u32> {
    Some(fs::metadata(path).ok()?.permissions().mode() & 0o777)
}
