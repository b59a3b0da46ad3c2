//! The clients' files under examples/clients, run as they are: what each asks the gateway for, and whom it asks when the gateway refuses.

use std::{fs, path::Path};

use tempfile::TempDir;
use tests::{
    Gateway, Image, Origin, Wire,
    dockerd::Dockerd,
    tools::{Run, free_port, workspace},
};

use crate::clients::{Containers, ctr, dockerd};

/// A gateway on the folder's own file, its upstream, and a second registry that stands for Docker Hub where a client goes past the gateway.
struct World {
    gateway: Gateway,
    upstream: Origin,
    hub: Origin,
    docker_port: u16,
}

fn example(path: &str) -> String {
    fs::read_to_string(workspace().join("examples/clients").join(path)).unwrap()
}

impl World {
    fn new() -> Self {
        let (upstream, hub) = (Origin::start(), Origin::start());
        let (docker_port, quay_port) = (free_port(), free_port());
        let text = example("gantry.yaml")
            .replace("0.0.0.0:5000", "127.0.0.1:PORT")
            .replace("0.0.0.0:5001", &format!("127.0.0.1:{docker_port}"))
            .replace("0.0.0.0:5002", &format!("127.0.0.1:{quay_port}"))
            .replace(
                "https://registry-1.docker.io",
                &format!("http://127.0.0.1:{}", upstream.port),
            );
        // The harness brings these two.
        let text: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("admin:") && !line.starts_with("storage:"))
            .collect();
        Self {
            gateway: Gateway::start(&text.join("\n")),
            upstream,
            hub,
            docker_port,
        }
    }

    /// The file of a client with this world's addresses.
    fn file(&self, path: &str) -> String {
        let hub = format!("127.0.0.1:{}", self.hub.port);
        example(path)
            .replace("gantry.example.com:5000", &self.gateway.host())
            .replace(
                "gantry.example.com:5001",
                &format!("127.0.0.1:{}", self.docker_port),
            )
            .replace("https://registry-1.docker.io", &format!("http://{hub}"))
            .replace(
                "location = \"docker.io\"",
                &format!("location = \"{hub}\"\ninsecure = true"),
            )
    }

    /// Puts an image into the upstream and into what stands for Docker Hub.
    fn push(&self, repository: &str, image: &Image) {
        self.upstream.push(repository, "latest", image);
        self.hub.push(repository, "latest", image);
    }

    fn hub_requests(&self) -> usize {
        self.hub.count("GET", "") + self.hub.count("HEAD", "")
    }
}

/// Fetches with containerd on the hosts files of a folder.
fn fetch(world: &World, files: &str, name: &str) -> Run {
    let folder = TempDir::new().unwrap();
    let host = if files.ends_with("namespace") {
        "_default"
    } else {
        "docker.io"
    };
    fs::create_dir(folder.path().join(host)).unwrap();
    let text = world.file(&format!("{files}/{host}/hosts.toml"));
    fs::write(folder.path().join(host).join("hosts.toml"), text).unwrap();
    let hosts = folder.path().display().to_string();
    ctr(&["content", "fetch", "--hosts-dir", &hosts, name])
}

#[test]
fn containerd_pulls_through_the_gateway_on_every_hosts_file() {
    for files in ["mirror", "override_path", "namespace", "closed"] {
        // New content for each: what containerd has, it does not ask for again.
        let world = World::new();
        let image = Image::random(1000);
        world.push("library/made", &image);
        let name = "docker.io/library/made:latest";
        fetch(&world, &format!("containerd/{files}"), name).ok();
        let _forgotten = ctr(&["images", "rm", name]);
        let fetched = world.upstream.count("GET", &image.layers[0].digest);
        assert_eq!((fetched, world.hub_requests()), (1, 0), "{files}");
    }
}

#[test]
fn a_refusal_sends_containerd_to_the_hub_unless_its_file_closes_the_way() {
    let world = World::new();
    let name = "docker.io/stranger/made:latest";
    for (files, is_closed) in [
        ("namespace", true),
        ("closed", true),
        ("mirror", false),
        ("override_path", false),
    ] {
        let image = Image::random(1000);
        world.push("stranger/made", &image);
        world.hub.reset_counts();
        let fetched = fetch(&world, &format!("containerd/{files}"), name);
        let _forgotten = ctr(&["images", "rm", name]);
        assert_eq!(
            fetched.succeeded(),
            !is_closed,
            "{files}: {}",
            fetched.text()
        );
        assert_eq!(world.hub_requests() == 0, is_closed, "{files}");
        // A file that containerd cannot read leads past every registry of this test.
        assert!(
            !fetched.text().contains("registry-1.docker.io"),
            "{files}: {}",
            fetched.text()
        );
        assert_eq!(world.upstream.count("GET", "/stranger/"), 0, "{files}");
    }
}

/// podman, buildah and skopeo with a file among their drop-ins.
fn containers(world: &World, file: &str) -> Containers {
    let containers = Containers::new();
    let folder = containers.path(".config/containers/registries.conf.d");
    fs::create_dir_all(&folder).unwrap();
    let text = world.file(file);
    fs::write(folder.join("50-gantry.conf"), text).unwrap();
    // The main file without entries; drop-ins are read beside the user's own only.
    fs::write(containers.path(".config/containers/registries.conf"), "").unwrap();
    containers
}

/// Pulls with all three; whether each succeeded.
fn pulls(containers: &Containers, name: &str) -> Vec<(bool, String)> {
    let skopeo = containers.at_home("skopeo", &["inspect", "--raw", &format!("docker://{name}")]);
    let podman = containers.at_home("podman", &["pull", name]);
    let buildah = containers.at_home("buildah", &["pull", "--policy", "always", name]);
    [skopeo, podman, buildah]
        .map(|run| (run.succeeded(), run.text()))
        .into()
}

/// An image that podman can unpack, in the upstream and in what stands for Docker Hub.
fn push_real(world: &World, repository: &str, content: &str) {
    for port in [world.upstream.port, world.hub.port] {
        let name = format!("127.0.0.1:{port}/{repository}:latest");
        dockerd().make_image(&name, content);
        dockerd().docker(&["push", &name]).ok();
        dockerd().docker(&["rmi", &name]).ok();
    }
}

#[test]
fn podman_buildah_and_skopeo_pull_through_the_gateway_and_past_it_only_by_the_open_file() {
    let world = World::new();
    push_real(&world, "library/made", "official");
    push_real(&world, "stranger/made", "a stranger's");
    for (file, is_closed) in [
        ("podman/closed/50-gantry.conf", true),
        ("podman/mirror/50-gantry.conf", false),
    ] {
        let containers = containers(&world, file);
        world.hub.reset_counts();
        for (succeeded, text) in pulls(&containers, "docker.io/library/made:latest") {
            assert!(succeeded, "{file}: {text}");
        }
        assert_eq!(world.hub_requests(), 0, "{file}");
        for (succeeded, text) in pulls(&containers, "docker.io/stranger/made:latest") {
            assert_eq!(succeeded, !is_closed, "{file}: {text}");
        }
        assert_eq!(world.hub_requests() == 0, is_closed, "{file}");
    }
}

#[test]
fn docker_pulls_through_the_listener_of_its_file_and_by_prefix() {
    let world = World::new();
    push_real(&world, "library/made", "for docker");
    push_real(&world, "stranger/made", "refused");
    world.upstream.reset_counts();
    let docker = Dockerd::on_file(&world.file("docker/daemon.json"));
    docker.docker(&["pull", "made"]).ok();
    assert!(world.upstream.count("GET", "/library/made/") > 0);
    let host = world.gateway.host();
    let pull = |name: &str| docker.docker(&["pull", &format!("{host}/docker.io/{name}")]);
    pull("library/made").ok();
    // By prefix there is nobody else to ask.
    pull("stranger/made").fails();
    assert_eq!(world.upstream.count("GET", "/stranger/"), 0);
}

#[test]
fn the_requests_of_the_clients_that_are_not_run_reach_the_same_image() {
    let world = World::new();
    let image = Image::random(1000);
    world.push("library/made", &image);
    let wire = Wire::anonymous(world.gateway.port);
    for (client, file, path) in [
        (
            "buildkit",
            "buildkit/buildkitd.toml",
            "/v2/docker.io/library/made/manifests/latest?ns=docker.io",
        ),
        (
            "kaniko",
            "kaniko/pod.yaml",
            "/v2/docker.io/library/made/manifests/latest",
        ),
        (
            "k3s",
            "k3s/registries.yaml",
            "/v2/library/made/manifests/latest?ns=docker.io",
        ),
    ] {
        assert!(example(file).contains("NOT RUN HERE"), "{client}");
        assert!(Path::new(file).starts_with(client));
        assert_eq!(
            wire.get(path).expect(200).body,
            image.manifest.bytes,
            "{client}"
        );
    }
}
