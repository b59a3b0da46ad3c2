//! The servers: Gantry as the tests start it, nginx with sendfile and TLS 1.3, Debian's docker-registry, and the floor of a push.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tests::{
    Gateway,
    gateway::{USER, usual_config},
    tools::{free_port, require, run, wait_until},
};

/// A server that is ended with this.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
}

impl Server {
    fn start(mut command: Command, folder: TempDir, port: u16, tls_port: u16) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server can be started");
        wait_until("a server", Duration::from_secs(30), || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            child,
            folder,
            port,
            tls_port,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // nginx ends its worker only when it is told to end itself.
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()])).ok();
        let _status = self.child.wait();
    }
}

fn folder() -> TempDir {
    TempDir::new().expect("the system has a temporary folder")
}

/// A certificate for both, so that the same handshake is compared.
fn write_certificate(folder: &Path) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])
        .expect("a certificate can be made");
    fs::write(folder.join("server.pem"), made.cert.pem()).expect("the folder is ours");
    fs::write(folder.join("server.key"), made.signing_key.serialize_pem())
        .expect("the folder is ours");
}

/// Static files from `folder/files`: one worker, sendfile, TLS 1.3 with AES-256-GCM, the access log that Debian's has.
pub(crate) fn nginx() -> Server {
    let folder = folder();
    let (port, tls_port) = (free_port(), free_port());
    let home = folder.path().display().to_string();
    fs::create_dir(folder.path().join("files")).expect("the folder is ours");
    write_certificate(folder.path());
    let config = format!(
        "daemon off; worker_processes 1; pid {home}/pid; error_log {home}/error.log; user root;
events {{ worker_connections 20000; }}
http {{
  access_log {home}/access.log; sendfile on; tcp_nopush on; keepalive_requests 1000000000;
  default_type application/octet-stream;
  server {{
    listen 127.0.0.1:{port}; listen 127.0.0.1:{tls_port} ssl; root {home}/files;
    ssl_certificate {home}/server.pem; ssl_certificate_key {home}/server.key;
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites TLS_AES_256_GCM_SHA384;
  }}
}}
"
    );
    let path = folder.path().join("nginx.conf");
    fs::write(&path, config).expect("the folder is ours");
    let mut command = Command::new(require("nginx"));
    command
        .arg("-c")
        .arg(&path)
        .arg("-e")
        .arg(folder.path().join("error.log"));
    Server::start(command, folder, port, tls_port)
}

/// Debian's docker-registry with its usual in-memory descriptors.
pub(crate) fn registry() -> Server {
    let folder = folder();
    let port = free_port();
    let config = format!(
        "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: true }} }}\nstorage:\n  filesystem: {{ rootdirectory: {}/data }}\n  cache: {{ blobdescriptor: inmemory }}\nhttp: {{ addr: \"127.0.0.1:{port}\" }}\n",
        folder.path().display()
    );
    let path = folder.path().join("config.yml");
    fs::write(&path, config).expect("the folder is ours");
    let mut command = Command::new(require("docker-registry"));
    command.arg("serve").arg(&path);
    Server::start(command, folder, port, 0)
}

/// What a push costs at least: a program that receives, hashes with aws-lc, writes and fsyncs, and does nothing else.
pub(crate) fn floor() -> Server {
    let folder = folder();
    let port = free_port();
    let mut command = Command::new(std::env::current_exe().expect("a running program has a file"));
    command
        .arg("floor")
        .arg(port.to_string())
        .arg(folder.path());
    Server::start(command, folder, port, 0)
}

/// The floor's own side.
pub(crate) fn serve_floor(port: u16, folder: &Path) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { return };
        receive(&mut stream, folder);
    }
}

fn receive(stream: &mut TcpStream, folder: &Path) -> Option<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut head = Vec::new();
    let body_at = loop {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        head.extend_from_slice(buffer.get(..count)?);
        if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(head.get(..body_at)?).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))?;
    let mut left: usize = length.trim().parse().ok()?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut file = File::create(folder.join("received")).ok()?;
    let mut take = |bytes: &[u8]| {
        context.update(bytes);
        file.write_all(bytes).expect("the disk has space");
    };
    let begun = head.get(body_at..)?;
    take(begun);
    left -= begun.len();
    while left > 0 {
        let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
        take(buffer.get(..count)?);
        left -= count;
    }
    file.sync_all().ok()?;
    std::hint::black_box(context.finish());
    stream
        .write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .ok()
}

/// A gateway with its TLS port.
pub(crate) fn gantry(mirrors: &str, plugins: &str) -> (Gateway, u16) {
    let tls_port = free_port();
    let config = format!(
        "listen:\n  - {{ address: 127.0.0.1:PORT }}\n  - {{ address: 127.0.0.1:{tls_port}, tls: {{ certificate: server.pem, key: server.key }} }}\nlimits: {{ connections: 20000 }}\n{}",
        usual_config(mirrors, plugins)
    );
    (Gateway::start_with(&config, write_certificate), tls_port)
}

/// `user:password` for curl.
pub(crate) fn user() -> String {
    format!("{}:{}", USER.0, USER.1)
}
