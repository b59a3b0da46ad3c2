//! What watched files hold: a print each, so that a change is told from a touch.
//!
//! Invariant: a file's bytes are hashed only when its stamp (place on the disk, size, times) is another one than before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest::{Context, SHA256};

use crate::files;

/// What each file held.
pub(super) type Prints = BTreeMap<PathBuf, Print>;

/// What one file held. Two prints are equal when the bytes are.
#[derive(Clone, Debug)]
pub(super) struct Print {
    stamp: Option<Stamp>,
    /// `None` = it could not be read.
    content: Option<Arc<[u8]>>,
}

impl PartialEq for Print {
    fn eq(&self, other: &Self) -> bool {
        self.content == other.content
    }
}

impl Eq for Print {}

/// Device, inode, size, and both times in nanoseconds.
type Stamp = (u64, u64, u64, [i64; 4]);

/// Prints files; `known` saves reading what has the same stamp.
pub(super) fn print(files: &BTreeSet<PathBuf>, known: &Prints) -> Prints {
    files
        .iter()
        .map(|path| (path.clone(), print_one(path, known.get(path))))
        .collect()
}

fn print_one(path: &Path, known: Option<&Print>) -> Print {
    let stamp = fs::metadata(path).ok().map(|metadata| {
        let times = [
            metadata.mtime(),
            metadata.mtime_nsec(),
            metadata.ctime(),
            metadata.ctime_nsec(),
        ];
        (metadata.dev(), metadata.ino(), metadata.size(), times)
    });
    match known {
        Some(known) if known.stamp == stamp => known.clone(),
        _ => Print {
            content: stamp.and_then(|_there| digest(path).ok()),
            stamp,
        },
    }
}

fn digest(path: &Path) -> io::Result<Arc<[u8]>> {
    let mut file = files::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut piece = vec![0_u8; 64 << 10];
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(Arc::from(context.finish().as_ref()));
        }
        context.update(piece.get(..read).unwrap_or_default());
    }
}

/// Every entry of a folder that `path` leads through: the links on the way and the file at its end. A change of what the path means
/// is a change of one of these.
pub(super) fn entries(path: &Path) -> Vec<PathBuf> {
    let mut entries = Vec::new();
    let mut left = path.to_owned();
    // As many links as the kernel follows.
    for _ in 0..40 {
        let Some((link, rest)) = first_link(&left) else {
            entries.push(left);
            return entries;
        };
        let Ok(target) = fs::read_link(&link) else {
            entries.push(left);
            return entries;
        };
        left = link.parent().unwrap_or_else(|| Path::new("/")).join(target);
        left.extend(rest.components());
        entries.push(link);
    }
    entries
}

/// The first symbolic link on the way, and what follows it.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut way = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        way.push(component);
        if fs::symlink_metadata(&way).is_ok_and(|metadata| metadata.is_symlink()) {
            return Some((way, components.as_path().to_owned()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_touch_is_no_change_and_a_change_of_the_same_length_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let files = BTreeSet::from([path.clone()]);
        let none = print(&files, &Prints::default());
        fs::write(&path, "one").unwrap();
        let one = print(&files, &none);
        assert_ne!(none, one);
        fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(std::time::UNIX_EPOCH)
            .unwrap();
        assert_eq!(print(&files, &one), one);
        fs::write(&path, "two").unwrap();
        assert_ne!(print(&files, &one), one);
        fs::remove_file(&path).unwrap();
        assert_eq!(print(&files, &one), none);
    }

    #[test]
    fn the_entries_of_a_config_map_are_the_link_the_data_link_and_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(root.join("..2026")).unwrap();
        fs::write(root.join("..2026/gantry.yaml"), "").unwrap();
        symlink("..2026", root.join("..data")).unwrap();
        symlink("..data/gantry.yaml", root.join("gantry.yaml")).unwrap();
        assert_eq!(
            entries(&root.join("gantry.yaml")),
            [
                root.join("gantry.yaml"),
                root.join("..data"),
                root.join("..2026/gantry.yaml")
            ]
        );
        assert_eq!(entries(&root.join("missing")), [root.join("missing")]);
    }

    #[test]
    fn links_in_a_circle_end() {
        let folder = tempfile::tempdir().unwrap();
        symlink("two", folder.path().join("one")).unwrap();
        symlink("one", folder.path().join("two")).unwrap();
        assert!(entries(&folder.path().join("one")).len() >= 2);
    }
}
