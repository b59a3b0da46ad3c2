//! Opens the files that a configuration names. Only plain files: opening a pipe waits for its writer, and a device may never end.
//!
//! Pipes that the process was given by its parent (`/dev/stdin`, `/dev/fd/63` of a shell's `<(…)`) have a writer and are read as before.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Opens a plain file for reading, without waiting.
///
/// # Errors
/// The system's; that it is a folder, a pipe, a socket or a device.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    if ["/dev/stdin", "/dev/fd", "/proc/self/fd"]
        .map(Path::new)
        .iter()
        .any(|it| path.starts_with(it))
    {
        return options.open(path);
    }
    let file = options.custom_flags(NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        return Ok(file);
    }
    let what = if metadata.is_dir() {
        "it is a folder"
    } else {
        "it is a pipe, a socket or a device, and no plain file"
    };
    Err(io::Error::other(what))
}

/// The bytes of a plain file.
///
/// # Errors
/// As [`open`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `O_NONBLOCK`: without it, opening a pipe waits for a writer.
#[expect(
    clippy::cast_possible_wrap,
    reason = "flags of open(2) are bits of a C int"
)]
pub(crate) const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_file_is_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let plain = folder.path().join("plain");
        std::fs::write(&plain, "text").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&plain, &link).unwrap();
        for path in [&plain, &link] {
            assert_eq!(read(path).unwrap(), b"text");
        }
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let node = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, node, mode, 0).unwrap();
        let socket = folder.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&pipe, &socket, folder.path(), Path::new("/dev/zero")] {
            read(path).unwrap_err();
        }
        let error = read(&pipe).unwrap_err().to_string();
        assert_eq!(
            error,
            "it is a pipe, a socket or a device, and no plain file"
        );
        assert_eq!(
            read(folder.path()).unwrap_err().to_string(),
            "it is a folder"
        );
    }
}
