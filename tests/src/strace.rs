//! A kernel that fails on purpose: `strace` makes chosen system calls of a running gateway fail, until it is told to stop.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::tools::{require, run, wait_until};

/// Failing system calls. Dropping it makes them work again.
#[derive(Debug)]
pub struct Failing {
    child: Child,
    folder: TempDir,
}

impl Failing {
    /// Lets `calls` (strace's list) of a process fail with `error`, as often as strace's `when` says, where they touch one of `paths`;
    /// everywhere, when there are none.
    ///
    /// # Panics
    /// When strace cannot attach.
    #[must_use]
    pub fn calls(pid: u32, calls: &str, error: &str, when: &str, paths: &[&Path]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let told = folder.path().join("told");
        let mut command = Command::new(require("strace"));
        command.args(["-f", "-y", "-p", &pid.to_string(), "-o"]);
        command.arg(folder.path().join("calls"));
        command.args(["-e", &format!("trace={calls}")]);
        command.args(["-e", &format!("inject={calls}:error={error}:when={when}")]);
        for path in paths {
            command.arg("-P").arg(path);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&told).expect("the folder is ours"))
            .spawn()
            .expect("strace can be started");
        let mut failing = Self { child, folder };
        wait_until("strace to attach", Duration::from_secs(20), || {
            let said = fs::read_to_string(&told).unwrap_or_default();
            let ended = failing.child.try_wait().expect("our child");
            assert!(ended.is_none(), "strace cannot attach, be root: {said}");
            said.contains("attached")
        });
        failing
    }

    /// The calls it saw so far, one a line; those it made fail end in `(INJECTED)`.
    ///
    /// # Panics
    /// When it wrote none.
    #[must_use]
    pub fn seen(&self) -> Vec<String> {
        let seen = fs::read_to_string(self.folder.path().join("calls"));
        let seen = seen.expect("strace wrote its file");
        seen.lines().map(str::to_owned).collect()
    }

    /// How many of them it made fail.
    #[must_use]
    pub fn count(&self) -> usize {
        let seen = self.seen();
        seen.iter()
            .filter(|line| line.ends_with("(INJECTED)"))
            .count()
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _told = run(Command::new("kill").args(["-TERM", &pid]));
        let _status = self.child.wait();
    }
}
