//! File systems of a test's own: a small one that fills up, and one whose power can be cut. Both need root.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::tools::{require, run};

/// What a power cut does with the journal of the file system.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cut {
    /// What the journal holds in memory is written down first; data that was not synced is lost.
    JournalWritten,
    /// Everything that is not on the disk is lost.
    JournalLost,
}

/// A mounted file system, unmounted when dropped. Declare it before the gateway that runs on it.
#[derive(Debug)]
pub struct Disk {
    folder: TempDir,
    mount: Vec<String>,
}

impl Disk {
    /// A tmpfs of so many bytes.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[must_use]
    pub fn tmpfs(bytes: usize) -> Self {
        let options = format!("size={bytes},mode=700");
        let mount = ["-t", "tmpfs", "-o", &options, "tmpfs"].map(str::to_owned);
        Self::new(TempDir::new().expect("a temporary folder"), mount.into())
    }

    /// An ext4 of so many bytes, without the heuristics that hide a missing fsync before a rename.
    ///
    /// # Panics
    /// When there are no loop devices, no rights, or no `mkfs.ext4`.
    #[must_use]
    pub fn ext4(bytes: u64) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let image = folder.path().join("image");
        let file = File::create(&image).expect("the folder is ours");
        file.set_len(bytes).expect("a sparse file costs nothing");
        assert!(
            Path::new("/dev/loop-control").exists(),
            "this test cuts the power of an ext4 on a loop device, and this machine has no /dev/loop-control: `modprobe loop`, or give \
             the container its loop devices"
        );
        run(Command::new(require("mkfs.ext4"))
            .args(["-q", "-F", "-E", "lazy_itable_init=0"])
            .arg(&image))
        .ok();
        let image = image.to_str().expect("a path in UTF-8").to_owned();
        let mount = ["-t", "ext4", "-o", "loop,noauto_da_alloc,data=ordered"];
        let mut mount = mount.map(str::to_owned).to_vec();
        mount.push(image);
        Self::new(folder, mount)
    }

    fn new(folder: TempDir, mount: Vec<String>) -> Self {
        let disk = Self { folder, mount };
        fs::create_dir(disk.path()).expect("the folder is ours");
        disk.mount();
        disk
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Puts it in the place of a gateway's `data` folder; for [`crate::Gateway::start_with`].
    ///
    /// # Panics
    /// When the folder is taken.
    pub fn as_data_of(&self, gateway_folder: &Path) {
        std::os::unix::fs::symlink(self.path(), gateway_folder.join("data"))
            .expect("the gateway has no data yet");
    }

    fn mount(&self) {
        let mounted = run(Command::new("mount").args(&self.mount).arg(self.path()));
        assert!(
            mounted.succeeded(),
            "this test mounts a file system of its own, for which it must run as root with CAP_SYS_ADMIN: {}",
            mounted.text()
        );
    }

    /// From now on nothing reaches the disk: every write fails, as if the machine had stopped (`EXT4_IOC_SHUTDOWN`).
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn cut_power(&self, cut: Cut) {
        let flag = match cut {
            Cut::JournalWritten => "1",
            Cut::JournalLost => "2",
        };
        let script = "open(my $disk, '<', $ARGV[0]) or die $!; my $flag = pack('L', $ARGV[1]); ioctl($disk, 0x8004587D, $flag) or die $!";
        run(Command::new(require("perl"))
            .args(["-e", script])
            .arg(self.path())
            .arg(flag))
        .ok();
    }

    /// The machine is on again: the journal is replayed, the file system is checked, and it is mounted.
    ///
    /// # Panics
    /// When somebody still uses it, or it is damaged beyond its journal.
    pub fn mount_again(&self) {
        run(Command::new("umount").arg(self.path())).ok();
        let image = self.folder.path().join("image");
        let check = |option| run(Command::new(require("e2fsck")).arg(option).arg(&image));
        // Ends with 1 when there was something to replay; the second look finds nothing left to mend.
        let _replayed = check("-p");
        check("-fn").ok();
        self.mount();
    }

    /// Bytes nobody uses.
    ///
    /// # Panics
    /// When `df` cannot tell.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        let told = run(Command::new("df")
            .args(["--block-size=1", "--output=avail"])
            .arg(self.path()))
        .ok();
        let number = told.lines().nth(1).map(str::trim);
        number
            .and_then(|number| number.parse().ok())
            .expect("df tells a number")
    }

    /// A file that takes all the space there is.
    ///
    /// # Panics
    /// When the disk fails in another way than being full.
    #[must_use]
    pub fn fill(&self) -> PathBuf {
        let path = self.path().join("filler");
        let mut filler = File::create(&path).expect("an empty file takes no space");
        for size in [1 << 16, 1 << 12] {
            let zeros = vec![0; size];
            while takes(&mut filler, &zeros) {}
        }
        path
    }
}

fn takes(filler: &mut File, bytes: &[u8]) -> bool {
    use std::io::{ErrorKind, Write as _};
    match filler.write(bytes) {
        Ok(written) => written > 0,
        Err(error) if error.kind() == ErrorKind::StorageFull => false,
        Err(error) => panic!("{error}"),
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a gateway of a failed test may still use it.
        let _unmounted = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
