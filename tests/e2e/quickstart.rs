//! The first five minutes: `gantry serve` with nothing, `gantry check`, `gantry htpasswd`, `gantry plugin inspect`.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tests::{
    Wire,
    gateway::program,
    guests::component,
    tools::{free_port, run, wait_until},
};

/// `gantry serve` without a file, in an empty folder, on ports of its own by the environment.
#[test]
fn the_first_start_makes_a_user_and_shows_its_password_once() {
    let folder = TempDir::new().unwrap();
    let (port, admin) = (free_port(), free_port());
    let mut shown = Vec::new();
    for start in 0..2 {
        let out = folder.path().join(format!("out{start}"));
        let mut child = Command::new(program())
            .arg("serve")
            .env("GANTRY_LISTEN", format!("127.0.0.1:{port}"))
            .env("GANTRY_ADMIN", format!("127.0.0.1:{admin}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_until("the gateway", Duration::from_secs(60), || {
            std::net::TcpStream::connect(("127.0.0.1", admin)).is_ok()
        });
        let text = fs::read_to_string(&out).unwrap();
        let password = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("password"))
            .map(|password| password.trim().to_owned());
        if let Some(password) = &password {
            Wire::basic(port, ("admin", password))
                .get("/v2/")
                .expect(200);
            assert!(
                text.contains(&format!("docker login 127.0.0.1:{port}")),
                "{text}"
            );
        }
        Wire::anonymous(port).get("/v2/").expect(401);
        shown.push(password);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(
        shown[0].is_some() && shown[1].is_none(),
        "the password is shown at the first start only"
    );
}

#[test]
fn check_says_every_mistake_with_its_place_and_the_nearest_key() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("gantry.yaml");
    fs::write(&file, "lisen: 127.0.0.1:5000\nhosted: { nams: [\"apps/**\"] }\nlimits: { header_timeout: soon }\nplugins: []\n").unwrap();
    let said = run(Command::new(program()).arg("check").arg(&file)).fails();
    for expected in [
        "listen",
        "names",
        "header_timeout",
        "gantry.yaml:1:",
        "gantry.yaml:2:",
        "gantry.yaml:3:",
    ] {
        assert!(said.contains(expected), "no {expected} in:\n{said}");
    }
}

#[test]
fn inspect_says_what_a_component_exports_imports_and_needs() {
    let said = run(Command::new(program())
        .args(["plugin", "inspect"])
        .arg(component("deny-image")))
    .ok();
    for expected in [
        "Admit",
        "gantry:plugin/admission",
        "gantry:plugin/registry",
        "registry",
    ] {
        assert!(said.contains(expected), "no {expected} in:\n{said}");
    }
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("broken.wasm");
    fs::write(&file, "not a component").unwrap();
    run(Command::new(program())
        .args(["plugin", "inspect"])
        .arg(&file))
    .fails();
}
