//! A private docker daemon, and the docker client on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use crate::tools::{Daemon, Run, require, run, wait_until};

/// A running daemon.
#[derive(Debug)]
pub struct Dockerd {
    daemon: Daemon,
}

impl Dockerd {
    /// Starts a daemon; with `mirror`, pulls of Docker Hub's names go there first.
    ///
    /// # Panics
    /// When it does not answer within a minute.
    #[must_use]
    pub fn start(mirror: Option<&str>) -> Self {
        let mut arguments = vec!["--insecure-registry".to_owned(), "127.0.0.0/8".to_owned()];
        if let Some(mirror) = mirror {
            arguments.extend(["--registry-mirror".to_owned(), mirror.to_owned()]);
        }
        Self::start_with(|_folder| arguments)
    }

    /// Starts a daemon on a configuration file.
    ///
    /// # Panics
    /// As [`Dockerd::start`].
    #[must_use]
    pub fn on_file(text: &str) -> Self {
        Self::start_with(|folder| {
            let file = folder.join("daemon.json");
            fs::write(&file, text).expect("the folder is ours");
            vec!["--config-file".to_owned(), file.display().to_string()]
        })
    }

    fn start_with(arguments: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = TempDir::new().expect("the system has a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let mut command = Command::new(require("dockerd"));
        command
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--host")
            .arg(format!("unix://{}", path("sock").display()))
            .arg("--pidfile")
            .arg(path("pid"))
            .args([
                "--storage-driver",
                "vfs",
                "--iptables=false",
                "--bridge=none",
            ])
            .args(arguments(folder.path()));
        let dockerd = Self {
            daemon: Daemon::start(&command, folder),
        };
        wait_until("dockerd", Duration::from_secs(60), || {
            dockerd.docker(&["version"]).succeeded()
        });
        dockerd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.daemon.folder().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(require("docker"));
        command
            .arg("--config")
            .arg(self.path("client"))
            .arg("--host")
            .arg(format!("unix://{}", self.path("sock").display()))
            .stdin(Stdio::null());
        command
    }

    /// Runs a docker command.
    pub fn docker(&self, arguments: &[&str]) -> Run {
        run(self.command().args(arguments))
    }

    /// Logs in.
    pub fn login(&self, host: &str, (user, password): (&str, &str)) -> Run {
        run(self
            .command()
            .args(["login", "--username", user, "--password", password, host]))
    }

    /// Makes an image of one file with this content, under this name.
    ///
    /// # Panics
    /// When docker does not take it.
    pub fn make_image(&self, name: &str, content: &str) {
        let root = TempDir::new().expect("the system has a temporary folder");
        fs::write(root.path().join("content"), content).expect("the folder is ours");
        let archive = root.path().with_extension("tar");
        run(Command::new("tar")
            .arg("-C")
            .arg(root.path())
            .arg("-cf")
            .arg(&archive)
            .arg("."))
        .ok();
        let imported = run(self.command().arg("import").arg(&archive).arg(name));
        fs::remove_file(&archive).expect("the archive is ours");
        imported.ok();
    }
}
