//! Compiled plugins that the gateways of a test run share: each gateway has a fresh data folder, and would compile every plugin anew.
//!
//! The files are the product's own, with the key that authenticates them; they lie beside the program under test and are copied, so that
//! a test may damage its gateway's.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use crate::tools::build_folder;

const KEY: &str = "node.key";

fn shared() -> PathBuf {
    build_folder().join("tested-compiled")
}

/// Puts the shared files into a data folder that has none, and into none that is a test's own small disk: they grow with every build.
pub(crate) fn bring(data: &Path) -> io::Result<()> {
    let own = data.join("compiled");
    if data.is_symlink() || own.exists() || !shared().join(KEY).is_file() {
        return Ok(());
    }
    // As the gateway makes them.
    for (folder, mode) in [(data, 0o750), (own.as_path(), 0o700)] {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(mode).create(folder)?;
    }
    for entry in fs::read_dir(shared())?.flatten() {
        if is_whole(&entry.path()) {
            fs::copy(entry.path(), own.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Takes what a gateway compiled; the first one's key becomes everybody's.
pub(crate) fn keep(data: &Path) -> io::Result<()> {
    let (own, shared) = (data.join("compiled"), shared());
    fs::create_dir_all(&shared)?;
    let locked = fs::File::open(&shared)?;
    locked.lock()?;
    if !shared.join(KEY).is_file() {
        place(&own.join(KEY), &shared.join(KEY))?;
    }
    if fs::read(own.join(KEY))? != fs::read(shared.join(KEY))? {
        return Ok(());
    }
    for entry in fs::read_dir(&own)?.flatten() {
        let target = shared.join(entry.file_name());
        if is_whole(&entry.path()) && !target.exists() {
            place(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Copies a file so that others see all of it or nothing.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let beside = to.with_extension("part");
    fs::copy(from, &beside)?;
    fs::rename(beside, to)
}

fn is_whole(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end == "cwasm" || end == "key")
}
