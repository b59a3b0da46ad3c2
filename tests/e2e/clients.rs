//! Real clients: docker, podman, buildah, skopeo, ctr. What one pushes, the others pull byte-exactly.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use tempfile::TempDir;
use tests::{
    Gateway, Image, Origin, Wire,
    dockerd::Dockerd,
    gateway::{USER, usual_config},
    tools::{Daemon, Run, require, run, wait_until},
};

/// A daemon shared by every test that needs no mirror.
pub(crate) fn dockerd() -> &'static Dockerd {
    static DAEMON: OnceLock<Dockerd> = OnceLock::new();
    DAEMON.get_or_init(|| Dockerd::start(None))
}

/// skopeo, podman and buildah with storage and credentials of their own.
pub(crate) struct Containers {
    folder: TempDir,
}

impl Containers {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(
            folder.path().join("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )
        .unwrap();
        fs::write(
            folder.path().join("registries.conf"),
            "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n",
        )
        .unwrap();
        fs::write(folder.path().join("auth.json"), "{}").unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            path("graph"),
            path("run")
        );
        fs::write(folder.path().join("storage.conf"), storage).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Run {
        let mut command = Command::new(require(program));
        command
            .args(arguments)
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"))
            .env("HOME", self.folder.path())
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .current_dir(self.folder.path());
        run(&mut command)
    }

    /// Runs a program on the user's own registry files, below the home folder.
    pub(crate) fn at_home(&self, program: &str, arguments: &[&str]) -> Run {
        let policy = self.path("policy.json").display().to_string();
        let arguments: Vec<&str> = match program {
            "skopeo" => ["--policy", &policy]
                .iter()
                .chain(arguments)
                .copied()
                .collect(),
            "buildah" => {
                let (command, rest) = arguments.split_first().unwrap();
                let with = [*command, "--signature-policy", &policy];
                with.iter().chain(rest).copied().collect()
            }
            _ => arguments.to_vec(),
        };
        let mut command = Command::new(require(program));
        command
            .args(arguments)
            .env("REGISTRY_AUTH_FILE", self.path("auth.json"))
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("HOME", self.folder.path())
            .env("XDG_CONFIG_HOME", self.path(".config"))
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .current_dir(self.folder.path());
        run(&mut command)
    }

    /// Copies with skopeo.
    pub(crate) fn copy(&self, from: &str, to: &str) -> Run {
        let policy = self.path("policy.json").display().to_string();
        self.run(
            "skopeo",
            &[
                "--policy",
                &policy,
                "copy",
                "--preserve-digests",
                "--src-tls-verify=false",
                "--dest-tls-verify=false",
                from,
                to,
            ],
        )
    }

    /// Pulls with skopeo into a folder; the manifest's bytes.
    pub(crate) fn pulled(&self, from: &str) -> Vec<u8> {
        let folder = self.path("pulled");
        let _first_time = fs::remove_dir_all(&folder);
        self.copy(from, &format!("dir:{}", folder.display())).ok();
        fs::read(folder.join("manifest.json")).unwrap()
    }

    fn login(&self, program: &str, host: &str, (user, password): (&str, &str)) -> Run {
        self.run(
            program,
            &[
                "login",
                "--tls-verify=false",
                "--username",
                user,
                "--password",
                password,
                host,
            ],
        )
    }
}

#[test]
fn a_wrong_password_does_not_log_in() {
    let gateway = Gateway::usual();
    let host = gateway.host();
    let containers = Containers::new();
    dockerd().login(&host, (USER.0, "wrong")).fails();
    for program in ["podman", "skopeo", "buildah"] {
        containers.login(program, &host, (USER.0, "wrong")).fails();
        containers.login(program, &host, USER).ok();
    }
    dockerd().login(&host, USER).ok();
}

#[test]
fn what_docker_pushes_the_others_pull_byte_exactly() {
    let gateway = Gateway::usual();
    let host = gateway.host();
    let docker = dockerd();
    docker.login(&host, USER).ok();
    let name = format!("{host}/apps/docker:v1");
    docker.make_image(&name, "made by docker");
    docker.docker(&["push", &name]).ok();
    docker.docker(&["push", &name]).ok();

    let containers = Containers::new();
    containers.login("skopeo", &host, USER).ok();
    let stored = Wire::basic(gateway.port, USER)
        .get("/v2/apps/docker/manifests/v1")
        .expect(200);
    assert_eq!(containers.pulled(&format!("docker://{name}")), stored.body);
    containers.login("podman", &host, USER).ok();
    containers
        .run("podman", &["pull", "--tls-verify=false", &name])
        .ok();
    containers
        .run("buildah", &["pull", "--tls-verify=false", &name])
        .ok();
    let user = format!("{}:{}", USER.0, USER.1);
    ctr(&["images", "pull", "--plain-http", "--user", &user, &name]).ok();

    docker.docker(&["rmi", &name]).ok();
    docker.docker(&["pull", &name]).ok();
    let by_digest = format!(
        "{host}/apps/docker@{}",
        stored.header("docker-content-digest")
    );
    docker.docker(&["pull", &by_digest]).ok();

    // Other bytes under the released tag: docker prints the configuration's sentence.
    docker.make_image(&name, "other bytes");
    let refused = docker.docker(&["push", &name]).fails();
    assert!(
        refused.contains("v1 is released; push a new version"),
        "{refused}"
    );
}

#[test]
fn what_podman_and_buildah_and_skopeo_push_docker_pulls() {
    let gateway = Gateway::usual();
    let host = gateway.host();
    let containers = Containers::new();
    for program in ["podman", "skopeo", "buildah"] {
        containers.login(program, &host, USER).ok();
    }
    fs::write(containers.path("content"), "made by buildah").unwrap();
    let from_scratch = containers
        .run("buildah", &["from", "--isolation", "chroot", "scratch"])
        .stdout();
    let container = from_scratch.trim();
    containers
        .run("buildah", &["copy", container, "content", "/content"])
        .ok();
    containers
        .run(
            "buildah",
            &["commit", "--format", "oci", container, "localhost/made:1"],
        )
        .ok();
    containers
        .run(
            "buildah",
            &[
                "push",
                "--tls-verify=false",
                "localhost/made:1",
                &format!("docker://{host}/apps/buildah:1"),
            ],
        )
        .ok();
    containers
        .run(
            "podman",
            &[
                "push",
                "--tls-verify=false",
                "localhost/made:1",
                &format!("{host}/apps/podman:1"),
            ],
        )
        .ok();
    containers
        .run(
            "podman",
            &[
                "push",
                "--tls-verify=false",
                "--format",
                "v2s2",
                "localhost/made:1",
                &format!("{host}/apps/podman:v2s2"),
            ],
        )
        .ok();
    containers
        .copy(
            &format!("docker://{host}/apps/podman:1"),
            &format!("docker://{host}/apps/skopeo:1"),
        )
        .ok();

    let docker = dockerd();
    docker.login(&host, USER).ok();
    let user = format!("{}:{}", USER.0, USER.1);
    for name in ["buildah:1", "podman:1", "podman:v2s2", "skopeo:1"] {
        docker
            .docker(&["pull", &format!("{host}/apps/{name}")])
            .ok();
        ctr(&[
            "images",
            "pull",
            "--plain-http",
            "--user",
            &user,
            &format!("{host}/apps/{name}"),
        ])
        .ok();
    }
    let wire = Wire::basic(gateway.port, USER);
    let body = |name: &str| {
        wire.get(&format!("/v2/apps/{name}/manifests/1"))
            .expect(200)
            .body
    };
    assert_eq!(body("podman"), body("skopeo"), "a copy is the same bytes");
    ctr(&[
        "images",
        "push",
        "--plain-http",
        "--user",
        &user,
        &format!("{host}/apps/ctr:1"),
        &format!("{host}/apps/skopeo:1"),
    ])
    .ok();
    docker.docker(&["pull", &format!("{host}/apps/ctr:1")]).ok();
}

#[test]
fn docker_pulls_through_the_mirror_and_by_prefix_and_again_without_the_upstream() {
    let mut origin = Origin::start();
    let containers = Containers::new();
    // An image docker can run: pushed by docker itself to the upstream, past the gateway.
    let upstream = format!("127.0.0.1:{}/library/made:latest", origin.port);
    dockerd().make_image(&upstream, "from docker hub");
    dockerd().docker(&["push", &upstream]).ok();
    let mirrors = origin.mirror_entry("docker.io", ", default: true");
    let mut gateway = Gateway::start(&usual_config(&mirrors, ""));
    let host = gateway.host();
    let mirrored = Dockerd::start(Some(&format!("http://{host}")));
    mirrored.docker(&["pull", "made"]).ok();
    assert!(
        gateway.log().contains("docker.io/library/made"),
        "the pull came through the gateway"
    );
    let by_prefix = format!("{host}/docker.io/library/made");
    mirrored.docker(&["pull", &by_prefix]).ok();
    let manifest = Wire::anonymous(gateway.port)
        .get("/v2/library/made/manifests/latest")
        .expect(200);
    let digest = manifest.header("docker-content-digest");

    origin.stop();
    for _restart in 0..2 {
        for name in [
            "made".to_owned(),
            by_prefix.clone(),
            format!("{by_prefix}@{digest}"),
            format!("{host}/docker.io/made"),
        ] {
            let _not_there = mirrored.docker(&["rmi", "--force", &name]);
            mirrored.docker(&["pull", &name]).ok();
        }
        assert_eq!(
            containers.pulled(&format!("docker://{by_prefix}")),
            manifest.body
        );
        containers
            .run("podman", &["pull", "--tls-verify=false", &by_prefix])
            .ok();
        ctr(&[
            "images",
            "pull",
            "--plain-http",
            &format!("{by_prefix}:latest"),
        ])
        .ok();
        gateway.restart();
    }
}

#[test]
fn containerd_reaches_the_mirror_by_its_hosts_file_in_every_path_form() {
    let origin = Origin::start();
    let image = Image::random(1000);
    origin.push("team/made", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    for (number, (path, override_path)) in [("", false), ("/v2/up", true), ("/up", false)]
        .into_iter()
        .enumerate()
    {
        let folder = TempDir::new().unwrap();
        let hosts = folder.path().join("up");
        fs::create_dir_all(&hosts).unwrap();
        let toml = format!(
            "server = \"http://127.0.0.1:9\"\n[host.\"http://{}{path}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  override_path = {override_path}\n",
            gateway.host()
        );
        fs::write(hosts.join("hosts.toml"), toml).unwrap();
        let name = "up/team/made:latest";
        let fetched = ctr(&[
            "content",
            "fetch",
            "--hosts-dir",
            &folder.path().display().to_string(),
            name,
        ]);
        assert!(
            fetched.succeeded(),
            "form {number} ({path}): {}",
            fetched.text()
        );
        let _forgotten = ctr(&["images", "rm", name]);
    }
}

/// `ctr` on docker's containerd would be in docker's way: a containerd of its own.
pub(crate) fn ctr(arguments: &[&str]) -> Run {
    let socket = containerd();
    run(Command::new(require("ctr"))
        .arg("--address")
        .arg(socket)
        .args(["--namespace", "gantry"])
        .args(arguments))
}

fn containerd() -> &'static Path {
    static SOCKET: OnceLock<(PathBuf, Daemon)> = OnceLock::new();
    &SOCKET.get_or_init(start_containerd).0
}

fn start_containerd() -> (PathBuf, Daemon) {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let text = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = \"{}\"\n",
        path("root"),
        path("state"),
        path("sock")
    );
    fs::write(path("config.toml"), text).unwrap();
    let mut command = Command::new(require("containerd"));
    command.args(["--config", &path("config.toml")]);
    let socket = folder.path().join("sock");
    let daemon = Daemon::start(&command, folder);
    wait_until("containerd", Duration::from_secs(30), || {
        run(Command::new(require("ctr"))
            .arg("--address")
            .arg(&socket)
            .arg("version"))
        .succeeded()
    });
    (socket, daemon)
}
