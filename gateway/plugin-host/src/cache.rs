//! Compiled components on disk: keyed by everything that decides the machine code, and authenticated with a key of this node.
//!
//! Owns the directory (0700) and the key in it (0600). Running what is in a file is running code, so a file whose MAC does not fit is
//! as good as absent. Knows no wasmtime.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    ops::Deref,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, hmac};

const KEY_FILE: &str = "node.key";
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 32;

/// A directory of compiled components.
pub(crate) struct CompiledCache {
    directory: PathBuf,
    key: hmac::Key,
}

impl CompiledCache {
    /// Opens the directory, and makes it and its key when they are not there.
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
        let key = node_key(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    /// The code stored under `name`, when its MAC fits.
    pub(crate) fn read(&self, name: &str) -> Option<Code> {
        let stored = Code(fs::read(self.directory.join(name)).ok()?);
        let (tag, code) = stored.0.split_at_checked(TAG_BYTES)?;
        if verify_slices_are_equal(self.tag(name, code).as_ref(), tag).is_err() {
            tracing::warn!(
                file = name,
                "a compiled plugin was changed on disk; it is compiled again"
            );
            return None;
        }
        Some(stored)
    }

    /// The name is signed too, so that one component's code cannot be put in another's place.
    fn tag(&self, name: &str, code: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.as_bytes());
        context.update(b"\0");
        context.update(code);
        context.sign()
    }

    /// Stores code under `name`, replacing what is there in one step.
    pub(crate) fn write(&self, name: &str, code: &[u8]) -> io::Result<()> {
        let tag = self.tag(name, code);
        let parts: [&[u8]; 2] = [tag.as_ref(), code];
        write_beside(&self.directory, name, &parts, |temporary| {
            fs::rename(temporary, self.directory.join(name))
        })
    }
}

impl std::fmt::Debug for CompiledCache {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CompiledCache")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// Code whose MAC fits: a whole file as it was read, because a copy of code is megabytes.
#[derive(Debug)]
pub(crate) struct Code(Vec<u8>);

impl Deref for Code {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.get(TAG_BYTES..).unwrap_or_default()
    }
}

/// The file's name: a digest over every input of the compilation.
pub(crate) fn file_name(inputs: &[&[u8]]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for input in inputs {
        context.update(&(input.len() as u64).to_be_bytes());
        context.update(input);
    }
    format!("{}.cwasm", hex(context.finish().as_ref()))
}

/// The node's key; made at first start, and again when the file has not a key's length.
///
/// A lock on the directory makes of several starts at once one maker: without it the second would remove, as broken, the key the first
/// had just put there.
fn node_key(directory: &Path) -> io::Result<Vec<u8>> {
    let locked = fs::File::open(directory)?;
    locked.lock()?;
    if let Some(key) = read_key(directory)? {
        return Ok(key);
    }
    let mut key = vec![0; KEY_BYTES];
    fill_random(&mut key)?;
    write_beside(directory, KEY_FILE, &[&key], |temporary| {
        fs::rename(temporary, directory.join(KEY_FILE))
    })?;
    Ok(key)
}

fn read_key(directory: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match fs::File::open(directory.join(KEY_FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut key = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut key)?;
    Ok((key.len() == KEY_BYTES).then_some(key))
}

/// Writes a private file beside its place, then has `place` put it there.
fn write_beside(
    directory: &Path,
    name: &str,
    parts: &[&[u8]],
    place: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    let mut suffix = [0; 8];
    fill_random(&mut suffix)?;
    let temporary = directory.join(format!("{name}.{}.tmp", hex(&suffix)));
    let placed = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()
        })
        .and_then(|()| place(&temporary));
    if placed.is_err() {
        fs::remove_file(&temporary).ok();
    }
    placed
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    aws_lc_rs::rand::fill(bytes).map_err(|_unspecified| io::Error::other("no randomness"))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_back_only_unchanged_and_under_its_own_name() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("compiled");
        let cache = CompiledCache::open(&place).unwrap();
        cache.write("a.cwasm", b"code").unwrap();
        assert_eq!(cache.read("a.cwasm").as_deref(), Some(&b"code"[..]));
        let again = CompiledCache::open(&place).unwrap();
        assert_eq!(again.read("a.cwasm").as_deref(), Some(&b"code"[..]));

        fs::copy(place.join("a.cwasm"), place.join("b.cwasm")).unwrap();
        assert!(cache.read("b.cwasm").is_none(), "moved to another name");
        let good = fs::read(place.join("a.cwasm")).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(place.join("a.cwasm"), &bad).unwrap();
            assert!(cache.read("a.cwasm").is_none(), "byte {index} changed");
        }
        for end in 0..good.len() {
            fs::write(place.join("a.cwasm"), &good[..end]).unwrap();
            assert!(cache.read("a.cwasm").is_none(), "cut at {end}");
        }
    }

    #[test]
    fn the_directory_and_the_key_are_private_to_the_user() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cache = CompiledCache::open(directory.path()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(directory.path()), 0o700);
        assert_eq!(mode(&directory.path().join(KEY_FILE)), 0o600);
        assert!(!format!("{cache:?}").contains("key"));
    }

    #[test]
    fn another_nodes_key_opens_nothing() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = CompiledCache::open(one.path()).unwrap();
        first.write("a.cwasm", b"code").unwrap();
        let second = CompiledCache::open(other.path()).unwrap();
        fs::copy(one.path().join("a.cwasm"), other.path().join("a.cwasm")).unwrap();
        assert!(second.read("a.cwasm").is_none());
    }

    #[test]
    fn of_starts_at_once_all_get_one_key() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(KEY_FILE), b"short").unwrap();
        let together = std::sync::Barrier::new(8);
        let start = || {
            together.wait();
            node_key(directory.path()).unwrap()
        };
        let keys: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            let ended = starts.into_iter().map(|start| start.join().unwrap());
            ended.collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        let left: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing but the key is left");
    }

    #[test]
    fn a_broken_key_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(KEY_FILE), b"short").unwrap();
        let cache = CompiledCache::open(directory.path()).unwrap();
        cache.write("a.cwasm", b"code").unwrap();
        let again = CompiledCache::open(directory.path()).unwrap();
        assert!(again.read("a.cwasm").is_some());
    }
}
