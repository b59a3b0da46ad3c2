//! Programs the tests drive: found, or the test fails with the program's name and the package that brings it.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Finds a program on the path, or in the places daemons live.
///
/// # Panics
/// When it is not installed: tests do not skip.
#[must_use]
pub fn require(program: &str) -> PathBuf {
    let package = match program {
        "dockerd" | "docker" => "docker.io",
        "ctr" | "containerd" => "containerd",
        "strace" => "strace",
        "ip" => "iproute2",
        "prlimit" => "util-linux",
        "mkfs.ext4" | "e2fsck" => "e2fsprogs",
        other => other,
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| {
            panic!("{program} is not installed; `make test` installs the Debian package {package}")
        })
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Run {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
    Run { shown, output }
}

/// A finished command.
#[derive(Debug)]
pub struct Run {
    shown: String,
    output: Output,
}

impl Run {
    /// Standard output and error, one after the other.
    #[must_use]
    pub fn text(&self) -> String {
        format!(
            "{}{}",
            String::from_utf8_lossy(&self.output.stdout),
            String::from_utf8_lossy(&self.output.stderr)
        )
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// Whether it ended with 0.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.output.status.success()
    }

    /// Its output, when it ended with 0.
    ///
    /// # Panics
    /// With everything it printed, when it did not.
    pub fn ok(self) -> String {
        assert!(self.succeeded(), "{} failed:\n{}", self.shown, self.text());
        self.text()
    }

    /// Its output, when it did not end with 0.
    ///
    /// # Panics
    /// When it succeeded.
    pub fn fails(self) -> String {
        assert!(
            !self.succeeded(),
            "{} succeeded:\n{}",
            self.shown,
            self.text()
        );
        self.text()
    }
}

/// A port that was free a moment ago.
///
/// # Panics
/// When loopback gives none.
#[must_use]
pub fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .expect("loopback gives ports")
        .local_addr()
        .expect("a bound socket has an address")
        .port()
}

/// Asks again and again until something is so; the event itself ends the wait.
///
/// # Panics
/// When it is not so within `patience`.
pub fn wait_until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "waited {patience:?} for {what}");
        #[expect(
            clippy::disallowed_methods,
            reason = "a poll of another process has no event to wait for"
        )]
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The workspace's root.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The folder that holds this build's programs: where this test lies, without `deps`.
///
/// # Panics
/// When the test does not know where it lies.
#[must_use]
pub fn build_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a file");
    test.parent()
        .and_then(Path::parent)
        .expect("tests lie in <target>/<profile>/deps")
        .to_owned()
}

/// A program that runs beside the tests, in a folder of its own, and ends with the test process however that ends: a shell waits on a
/// pipe that only this process holds open.
#[derive(Debug)]
pub struct Daemon {
    shell: Child,
    held_open: Option<ChildStdin>,
    folder: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output goes to `log` in `folder`, which is removed when it ended.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &Command, folder: TempDir) -> Self {
        let folder = folder.keep();
        let script = r#"folder=$1; shift; "$@" > "$folder/log" 2>&1 < /dev/null & child=$!; cat > /dev/null; kill -TERM $child; wait $child; rm -rf "$folder""#;
        let mut shell = Command::new("sh");
        shell
            .args(["-c", script, "sh"])
            .arg(&folder)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped());
        let mut shell = shell.spawn().expect("a shell can be started");
        let held_open = shell.stdin.take();
        Self {
            shell,
            held_open,
            folder,
        }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.held_open.take());
        let _status = self.shell.wait();
    }
}

/// Lets this process, and what it starts from now on, have so many files open at once.
///
/// # Panics
/// When the system does not allow it.
pub fn allow_open_files(count: u64) {
    let limits = std::fs::read_to_string("/proc/self/limits").expect("the kernel tells");
    let allowed = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().next())
        .expect("a limit of open files");
    if allowed.parse().is_ok_and(|allowed: u64| allowed < count) {
        let process = std::process::id().to_string();
        let limit = format!("--nofile={count}:");
        run(Command::new(require("prlimit")).args(["--pid", &process, &limit])).ok();
    }
}
