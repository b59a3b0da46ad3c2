//! Real clients wait for nothing: each command takes about as long as beside Debian's docker-registry. On a plain port all of them try
//! TLS first, and go on when the answer comes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tests::{
    Gateway,
    gateway::USER,
    tools::{Daemon, Run, free_port, require, wait_until},
};

use crate::clients::{Containers, dockerd};

/// Runs of each command on each side; the median counts.
const RUNS: usize = 5;

/// docker-registry with the same users; it ends with the daemon.
fn registry(users: &Path) -> (Daemon, String) {
    let folder = TempDir::new().unwrap();
    let host = format!("127.0.0.1:{}", free_port());
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem: {{ rootdirectory: {0}/data }}\n  cache: {{ blobdescriptor: inmemory }}\nhttp: {{ addr: \"{host}\" }}\nauth: {{ htpasswd: {{ realm: registry, path: \"{1}\" }} }}\n",
        folder.path().display(),
        users.display()
    );
    let file = folder.path().join("config.yml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(require("docker-registry"));
    command.arg("serve").arg(&file);
    let daemon = Daemon::start(&command, folder);
    wait_until("docker-registry", Duration::from_secs(30), || {
        std::net::TcpStream::connect(&host).is_ok()
    });
    (daemon, host)
}

/// A client's command, as it is timed, and what must be away before.
struct Timed {
    shown: &'static str,
    before: fn(&Containers, &str),
    run: fn(&Containers, &str) -> Run,
}

fn nothing(_containers: &Containers, _host: &str) {}

fn image(host: &str) -> String {
    format!("{host}/apps/timed:1")
}

fn docker(host: &str, arguments: &[&str]) -> Run {
    let image = image(host);
    dockerd().docker(&[arguments, &[&image]].concat())
}

/// podman or buildah on the image.
fn local(containers: &Containers, program: &str, command: &str, host: &str) -> Run {
    containers.run(program, &[command, "--tls-verify=false", &image(host)])
}

fn login(containers: &Containers, program: &str, host: &str) -> Run {
    let (user, password) = USER;
    containers.run(
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

fn forget(containers: &Containers, host: &str) {
    let _was_there = containers.run("podman", &["rmi", "--force", &image(host)]);
}

fn skopeo(containers: &Containers, command: &str, name: &str) -> Run {
    let name = format!("docker://{name}");
    containers.run("skopeo", &[command, "--tls-verify=false", &name])
}

fn folder(containers: &Containers, host: &str) -> PathBuf {
    containers.path(&host.replace(':', "-"))
}

fn copied(containers: &Containers, host: &str) -> String {
    format!("dir:{}", folder(containers, host).display())
}

const COMMANDS: &[Timed] = &[
    Timed {
        shown: "docker login",
        before: nothing,
        run: |_, host| dockerd().login(host, USER),
    },
    Timed {
        shown: "docker push",
        before: |_, host| dockerd().make_image(&image(host), "timed"),
        run: |_, host| docker(host, &["push"]),
    },
    Timed {
        shown: "docker manifest inspect --insecure",
        before: nothing,
        run: |_, host| docker(host, &["manifest", "inspect", "--insecure"]),
    },
    Timed {
        shown: "docker pull",
        before: |_, host| drop(docker(host, &["rmi", "--force"])),
        run: |_, host| docker(host, &["pull"]),
    },
    Timed {
        shown: "podman login",
        before: nothing,
        run: |containers, host| login(containers, "podman", host),
    },
    Timed {
        shown: "podman pull",
        before: forget,
        run: |containers, host| local(containers, "podman", "pull", host),
    },
    Timed {
        shown: "podman push",
        before: nothing,
        run: |containers, host| local(containers, "podman", "push", host),
    },
    Timed {
        shown: "skopeo login",
        before: nothing,
        run: |containers, host| login(containers, "skopeo", host),
    },
    Timed {
        shown: "skopeo inspect",
        before: nothing,
        run: |containers, host| skopeo(containers, "inspect", &image(host)),
    },
    Timed {
        shown: "skopeo list-tags",
        before: nothing,
        run: |containers, host| skopeo(containers, "list-tags", &format!("{host}/apps/timed")),
    },
    Timed {
        shown: "skopeo copy (pull)",
        before: |containers, host| {
            let _was_there = fs::remove_dir_all(folder(containers, host));
        },
        run: |containers, host| {
            let from = format!("docker://{}", image(host));
            containers.copy(&from, &copied(containers, host))
        },
    },
    Timed {
        shown: "skopeo copy (push)",
        before: nothing,
        run: |containers, host| {
            let to = format!("docker://{host}/apps/copied:1");
            containers.copy(&copied(containers, host), &to)
        },
    },
    Timed {
        shown: "buildah login",
        before: nothing,
        run: |containers, host| login(containers, "buildah", host),
    },
    Timed {
        shown: "buildah pull",
        before: forget,
        run: |containers, host| local(containers, "buildah", "pull", host),
    },
    Timed {
        shown: "buildah push",
        before: nothing,
        run: |containers, host| local(containers, "buildah", "push", host),
    },
];

fn seconds(timed: &Timed, containers: &Containers, host: &str) -> f64 {
    (timed.before)(containers, host);
    let started = Instant::now();
    (timed.run)(containers, host).ok();
    started.elapsed().as_secs_f64()
}

#[test]
fn every_command_of_docker_podman_skopeo_and_buildah_is_as_quick_as_on_registry_2() {
    let gateway = Gateway::usual();
    let (_registry, registry) = registry(&gateway.folder().join("htpasswd"));
    let gantry = gateway.host();
    let containers = Containers::new();
    let mut table = String::new();
    let mut slow = Vec::new();
    for timed in COMMANDS {
        let mut times = [Vec::new(), Vec::new()];
        // Turns, so that a busy moment of the machine strikes both.
        for _run in 0..RUNS {
            for (times, host) in times.iter_mut().zip([&gantry, &registry]) {
                times.push(seconds(timed, &containers, host));
            }
        }
        let [ours, theirs] = times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[RUNS / 2]
        });
        writeln!(table, "{:36} {ours:6.2} s {theirs:6.2} s", timed.shown).unwrap();
        if ours > 3.0 * theirs + 0.5 {
            slow.push(timed.shown);
        }
    }
    println!("{:36} {:>8} {:>8}\n{table}", "", "gantry", "registry");
    assert!(slow.is_empty(), "{slow:?} are slow:\n{table}");
}
