//! The gateway as a process of its own: started, measured, killed, restarted on the same data folder.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::OnceLock,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    compiled,
    tools::{build_folder, free_port, require, run, wait_until, workspace},
};

/// The user every test gateway knows.
pub const USER: (&str, &str) = ("alice", "correct horse");
/// A second user, who may do as much.
pub const OTHER: (&str, &str) = ("bob", "battery staple");

/// A running gateway.
#[derive(Debug)]
pub struct Gateway {
    child: Option<Child>,
    folder: TempDir,
    /// Where clients reach it.
    pub port: u16,
    /// Where its metrics are.
    pub admin_port: u16,
    open_files: Option<u64>,
}

/// The program: `TESTED_GATEWAY`, or this build's, made once when it is not there.
///
/// # Panics
/// When it cannot be built.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os("TESTED_GATEWAY") {
            return given.into();
        }
        let program = build_folder().join("gantry");
        if !program.is_file() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            run(Command::new(cargo)
                .args(["build", "--locked", "--package", "gantry"])
                .current_dir(workspace()))
            .ok();
        }
        program
    })
}

/// The usual configuration with extra `mirrors:` entries and extra plugins, both indented by two spaces and ended by newlines.
#[must_use]
pub fn usual_config(mirrors: &str, plugins: &str) -> String {
    let mirrors = if mirrors.is_empty() {
        String::new()
    } else {
        format!("mirrors:\n{mirrors}")
    };
    format!(
        r#"
hosted: {{ names: ["apps/**", "team/**"] }}
{mirrors}
plugins:
  - name: people
    from: builtin:htpasswd
    config: {{ users: {{ file: ./htpasswd }} }}
  - name: access
    from: builtin:access
    config:
      rules:
        - {{ who: [anonymous], may: [pull], what: ["up/**", "docker.io/**", "apps/public/**"] }}
        - {{ who: ["user:*"], may: [pull, push, delete, catalog], what: ["**"] }}
  - name: releases
    from: builtin:immutable-tags
    repositories: ["apps/**"]
    config: {{ immutable: ["v*"], except: ["*-rc*"], message: "{{{{tag}}}} is released; push a new version" }}
{plugins}"#
    )
}

impl Gateway {
    /// Starts the usual configuration.
    #[must_use]
    pub fn usual() -> Self {
        Self::start(&usual_config("", ""))
    }

    /// Starts a configuration; `listen`, `admin`, `storage` and the users are added here.
    ///
    /// # Panics
    /// When it does not answer within ten seconds; with its log.
    #[must_use]
    pub fn start(config: &str) -> Self {
        Self::start_with(config, |_folder| {})
    }

    /// As [`Gateway::start`], after `prepare` put files beside the configuration.
    ///
    /// # Panics
    /// As [`Gateway::start`].
    #[must_use]
    pub fn start_with(config: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::start_limited(config, None, prepare)
    }

    /// As [`Gateway::start_with`], with so many open files at most.
    ///
    /// # Panics
    /// As [`Gateway::start`].
    #[must_use]
    pub fn start_limited(
        config: &str,
        open_files: Option<u64>,
        prepare: impl FnOnce(&Path),
    ) -> Self {
        let folder = TempDir::new().expect("the system has a temporary folder");
        fs::write(folder.path().join("htpasswd"), users()).expect("the folder is ours");
        fs::create_dir(folder.path().join("logs")).expect("the folder is ours");
        prepare(folder.path());
        let mut gateway = Self {
            child: None,
            folder,
            port: free_port(),
            admin_port: free_port(),
            open_files,
        };
        gateway.write_config(config);
        let data = gateway.folder().join("data");
        compiled::bring(&data).expect("the folder is ours");
        gateway.spawn();
        gateway.wait_ready();
        // A test may keep the data elsewhere; then there is nothing to share.
        compiled::keep(&data).ok();
        gateway
    }

    /// Replaces the configuration; [`Gateway::restart`] reads it.
    ///
    /// # Panics
    /// When the folder cannot be written.
    pub fn write_config(&self, config: &str) {
        let listen = if config.contains("listen:") {
            String::new()
        } else {
            format!("listen: {{ address: 127.0.0.1:{} }}\n", self.port)
        };
        let text = format!(
            "{listen}admin: 127.0.0.1:{}\nstorage:\n  blobs: {{ filesystem: ./data }}\n  metadata: {{ sqlite: ./data/gantry.db }}\n{config}",
            self.admin_port
        );
        fs::write(
            self.config_path(),
            text.replace("PORT", &self.port.to_string()),
        )
        .expect("the folder is ours");
    }

    /// Starts it again and does not wait until it answers.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the folder is ours");
        let mut command = match self.open_files {
            None => Command::new(program()),
            // It becomes the program it starts, so the process is the gateway's.
            Some(count) => {
                let mut command = Command::new(require("prlimit"));
                command.arg(format!("--nofile={count}")).arg(program());
                command
            }
        };
        let child = command
            .arg("serve")
            .arg(self.config_path())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("the gateway can be started");
        self.child = Some(child);
    }

    /// Whether it says that it is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        http_ok(self.admin_port, "/readyz")
    }

    fn wait_ready(&mut self) {
        let port = self.admin_port;
        let mut ended = None;
        wait_until(
            &format!("the gateway; its log:\n{}", self.log()),
            // A busy machine compiles every plugin first.
            Duration::from_secs(180),
            || {
                ended = self
                    .child
                    .as_mut()
                    .and_then(|child| child.try_wait().ok().flatten());
                ended.is_some() || http_ok(port, "/readyz")
            },
        );
        assert!(
            ended.is_none(),
            "the gateway ended with {ended:?}; its log:\n{}",
            self.log()
        );
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the gateway runs").id()
    }

    /// Kills it without a chance to clean up.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("the gateway runs");
        child.kill().expect("our child can be killed");
        child.wait().expect("our child can be awaited");
    }

    /// Sends SIGTERM.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        run(Command::new("kill").args([format!("-{name}"), self.pid().to_string()])).ok();
    }

    /// Waits until it ended by itself.
    ///
    /// # Panics
    /// When it does not run, or does not end within a minute.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the gateway runs");
        let mut status = None;
        wait_until("the gateway to end", Duration::from_secs(60), || {
            status = child.try_wait().expect("our child can be awaited");
            status.is_some()
        });
        status.expect("it ended")
    }

    /// Starts it again on the same data, killing it first when it runs.
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.kill9();
        }
        self.spawn();
        self.wait_ready();
    }

    /// Starts it again on the same data without what it compiled before, so that the start takes a while, and does not wait for it.
    ///
    /// # Panics
    /// When it runs.
    pub fn start_slowly(&mut self) {
        assert!(self.child.is_none(), "the gateway runs");
        let compiled = self.folder().join("data/compiled");
        fs::remove_dir_all(compiled).expect("a gateway ran before");
        self.spawn();
    }

    /// `127.0.0.1:<port>`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder that holds its configuration and data.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("gantry.yaml")
    }

    /// In a folder of its own: those of the configuration and of what it names are watched, and a notice a line is not what tests measure.
    fn log_path(&self) -> PathBuf {
        self.folder.path().join("logs").join("log")
    }

    /// Everything it printed.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The most memory it ever had resident, in bytes (`VmHWM`).
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// Its anonymous memory that is resident now, in bytes (`RssAnon`).
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn anonymous_memory(&self) -> u64 {
        self.memory("RssAnon:")
    }

    /// How many files, sockets among them, it has open.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the gateway runs")
            .count()
    }

    /// How many files of a folder it has open.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn open_files_in(&self, folder: &Path) -> usize {
        let folder = fs::canonicalize(folder).expect("the folder is there");
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the gateway runs")
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|path| path.starts_with(&folder))
            .count()
    }

    fn memory(&self, name: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the gateway runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("the kernel counts");
        line.trim()
            .trim_end_matches(" kB")
            .parse::<u64>()
            .expect("a number of kB")
            * 1024
    }

    /// The lines of the audit file, when the configuration has `audit: { file: ./audit.jsonl }`.
    ///
    /// # Panics
    /// When a line is no JSON object.
    #[must_use]
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.folder().join("audit.jsonl")).unwrap_or_default();
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        whole
            .lines()
            .map(|line| serde_json::from_str(line).expect("an audit line is JSON"))
            .collect()
    }

    /// The value of one sample of the metrics, such as `gantry_requests_total{operation="token"}`; 0 when it is not there.
    #[must_use]
    pub fn metric(&self, sample: &str) -> f64 {
        let text = self.metrics();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(sample));
        values
            .find_map(|rest| rest.strip_prefix(' ')?.parse().ok())
            .unwrap_or(0.0)
    }

    /// Waits until no fill runs: a blob's last bytes leave before it is published.
    ///
    /// # Panics
    /// When one runs for too long.
    pub fn settled(&self) {
        wait_until("the fills", Duration::from_secs(30), || {
            self.metrics().contains("\ngantry_fills_running 0\n")
        });
    }

    /// The admin listener's metrics.
    #[must_use]
    pub fn metrics(&self) -> String {
        http_get(self.admin_port, "/metrics").unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _killed = child.kill();
            let _status = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("--- the gateway's last lines ---");
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// `name:bcrypt` lines of [`USER`] and [`OTHER`], at the cheapest cost.
fn users() -> String {
    static USERS: OnceLock<String> = OnceLock::new();
    USERS
        .get_or_init(|| {
            let line = |(name, password): (&str, &str)| {
                format!(
                    "{name}:{}\n",
                    bcrypt::hash(password, 4).expect("a password can be hashed")
                )
            };
            line(USER) + &line(OTHER)
        })
        .clone()
}

fn http_ok(port: u16, path: &str) -> bool {
    http_get(port, path).is_some()
}

/// A GET by hand: the body of a 200.
fn http_get(port: u16, path: &str) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}
