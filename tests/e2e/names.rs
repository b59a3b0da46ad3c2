//! Whose a name is: at a listener that is one mirror's, and where names are pushed here over a mirror's.

use std::{fs, process::Command};

use tests::{
    Gateway, Image, Origin, Wire,
    dockerd::Dockerd,
    gateway::{USER, program, usual_config},
    tools::{Run, free_port, run},
};

use crate::clients::dockerd;

/// A gateway on `mirrors` with a listener of its own for each of the named ones.
fn listening(mirrors: &str, of: &[&str]) -> (Gateway, Vec<u16>) {
    let ports: Vec<u16> = of.iter().map(|_mirror| free_port()).collect();
    let mut listen = "listen:\n  - 127.0.0.1:PORT\n".to_owned();
    for (mirror, port) in of.iter().zip(&ports) {
        listen += &format!("  - {{ address: \"127.0.0.1:{port}\", mirror: {mirror} }}\n");
    }
    let gateway = Gateway::start(&(listen + &usual_config(mirrors, "")));
    (gateway, ports)
}

#[test]
fn at_a_mirrors_listener_every_name_is_its_upstreams_and_nothing_else_is_there() {
    let (hub, other) = (Origin::start(), Origin::start());
    let (image, others) = (Image::random(1000), Image::random(1000));
    hub.push("library/made", "latest", &image);
    other.push("library/made", "latest", &others);
    let mirrors = hub.mirror_entry("docker.io", "") + &other.mirror_entry("up", "");
    let (gateway, ports) = listening(&mirrors, &["docker.io", "up"]);
    let hosted = Image::random(10);
    Wire::basic(gateway.port, USER).push_image("apps/web", "v1", &hosted);

    let at_hub = Wire::anonymous(ports[0]);
    at_hub.pull_image("library/made", "latest", &image);
    at_hub.pull_image("made", "latest", &image);
    Wire::anonymous(ports[1]).pull_image("library/made", "latest", &others);
    let echoed = at_hub.get("/v2/library/made/manifests/latest?ns=docker.io");
    assert_eq!(echoed.expect(200).header("oci-namespace"), "docker.io");

    let as_user = Wire::basic(ports[0], USER);
    for path in [
        "/v2/apps/web/manifests/v1",
        "/v2/up/library/made/manifests/latest",
        "/v2/docker.io/library/made/manifests/latest",
        "/up/v2/library/made/manifests/latest",
        "/v2/library/made/manifests/latest?ns=up",
        "/v2/_catalog",
    ] {
        as_user.get(path).expect(404);
    }
    assert_eq!(other.count("GET", "/library/made/manifests/latest"), 1);
    let pushed = as_user.send("POST", "/v2/apps/web/blobs/uploads/", &[], "");
    assert_eq!(pushed.expect(405).code(), "UNSUPPORTED");
    // The main listener knows no default, so the bare name means nothing there.
    let main = Wire::basic(gateway.port, USER);
    main.get("/v2/library/made/manifests/latest").expect(404);
    main.pull_image("docker.io/library/made", "latest", &image);
    assert!(gateway.log().contains("docker.io/library/made"));
}

#[test]
fn a_mirrors_listener_sends_for_tokens_to_itself_and_they_open_no_other_mirror() {
    let (first, second) = (Origin::start(), Origin::start());
    let image = Image::random(10);
    first.push("team/x", "latest", &image);
    second.push("team/x", "latest", &Image::random(10));
    let mirrors = first.mirror_entry("private", "") + &second.mirror_entry("secret", "");
    let (gateway, ports) = listening(
        &format!("{mirrors}external_url: https://gw.example.com\n"),
        &["private", "secret"],
    );
    let path = "/v2/team/x/manifests/latest";
    let refused = Wire::anonymous(ports[0]).get(path).expect(401);
    let own = format!(
        "Bearer realm=\"http://127.0.0.1:{0}/token\",service=\"127.0.0.1:{0}\",scope=\"repository:team/x:pull\"",
        ports[0]
    );
    assert_eq!(refused.header("www-authenticate"), own);
    let token = Wire::basic(ports[0], USER).token(&["repository:team/x:pull"]);
    let opened = Wire::bearer(ports[0], &token).get(path).expect(200);
    assert_eq!(opened.body, image.manifest.bytes);
    Wire::bearer(ports[1], &token).get(path).expect(401);
    Wire::bearer(gateway.port, &token).get(path).expect(401);
    assert_eq!(second.count("GET", "/team/x"), 0);
}

#[test]
fn dockers_daemons_pull_one_name_from_two_upstreams_by_their_listeners() {
    let origins = [Origin::start(), Origin::start()];
    for origin in &origins {
        let name = format!("127.0.0.1:{}/library/made:latest", origin.port);
        dockerd().make_image(&name, &format!("from {}", origin.port));
        dockerd().docker(&["push", &name]).ok();
        dockerd().docker(&["rmi", &name]).ok();
    }
    let mirrors = origins[0].mirror_entry("docker.io", "") + &origins[1].mirror_entry("up", "");
    let (_gateway, ports) = listening(&mirrors, &["docker.io", "up"]);
    for (origin, port) in origins.iter().zip(ports) {
        let daemon = Dockerd::start(Some(&format!("http://127.0.0.1:{port}")));
        daemon.docker(&["pull", "made"]).ok();
        // Without it, an old registry makes a manifest of the first version, with another digest.
        let accept = "application/vnd.docker.distribution.manifest.v2+json";
        let digest = origin
            .direct()
            .send(
                "GET",
                "/v2/library/made/manifests/latest",
                &[("accept", accept)],
                "",
            )
            .expect(200)
            .header("docker-content-digest");
        let shown = daemon.docker(&["images", "--digests", "made"]).ok();
        assert!(shown.contains(&digest), "{digest}: {shown}");
    }
}

// --- hosted over cached ---

const INTERNAL: &str = "hosted: { names: [\"apps/**\", \"docker.io/library/internal-*\"] }\n";

/// The usual configuration with other hosted names.
fn with_hosted(hosted: &str, mirrors: &str) -> String {
    let usual = usual_config(mirrors, "");
    let usual: Vec<&str> = usual
        .lines()
        .filter(|line| !line.starts_with("hosted:"))
        .collect();
    format!("{hosted}{}\n", usual.join("\n"))
}

fn asked(origin: &Origin, part: &str) -> usize {
    ["GET", "HEAD"]
        .map(|it| origin.count(it, part))
        .iter()
        .sum()
}

/// Every way to read `path` of `library/<repository>` where docker.io is the default.
fn spellings(repository: &str, path: &str) -> Vec<String> {
    vec![
        format!("/v2/{repository}/{path}"),
        format!("/v2/library/{repository}/{path}"),
        format!("/v2/docker.io/{repository}/{path}"),
        format!("/v2/docker.io/library/{repository}/{path}"),
        format!("/docker.io/v2/library/{repository}/{path}"),
        format!("/v2/library/{repository}/{path}?ns=docker.io"),
    ]
}

#[test]
fn a_hosted_name_under_a_mirrors_prefix_is_never_asked_of_the_upstream() {
    let origin = Origin::start();
    let (strangers, public, own) = (Image::random(1000), Image::random(10), Image::random(1000));
    origin.push("library/internal-tool", "latest", &strangers);
    origin.push("library/internal-tool", "v9", &strangers);
    origin.push("library/public", "latest", &public);
    let mirrors = origin.mirror_entry("docker.io", ", default: true");
    let gateway = Gateway::start(&with_hosted(INTERNAL, &mirrors));
    let wire = Wire::basic(gateway.port, USER);
    origin.reset_counts();

    for path in [
        "manifests/latest".to_owned(),
        format!("manifests/{}", strangers.manifest.digest),
        format!("blobs/{}", strangers.layers[0].digest),
        "tags/list".to_owned(),
    ] {
        for spelling in spellings("internal-tool", &path) {
            wire.get(&spelling).expect(404);
            assert_eq!(wire.head(&spelling).status, 404, "{spelling}");
        }
    }
    wire.push_image("docker.io/library/internal-tool", "latest", &own);
    for spelling in spellings("internal-tool", "manifests/latest") {
        assert_eq!(wire.get(&spelling).expect(200).body, own.manifest.bytes);
    }
    for spelling in spellings("internal-tool", "tags/list") {
        let tags = wire.get(&spelling).expect(200).json()["tags"].clone();
        assert_eq!(tags, serde_json::json!(["latest"]), "{spelling}");
    }
    wire.get("/v2/internal-tool/manifests/v9").expect(404);
    assert_eq!(asked(&origin, "internal-tool"), 0, "the upstream was asked");
    // Its neighbors are the upstream's as before, and read-only.
    wire.pull_image("public", "latest", &public);
    let pushed = wire.send(
        "POST",
        "/v2/docker.io/library/public/blobs/uploads/",
        &[],
        "",
    );
    pushed.expect(405);
}

#[test]
fn what_was_cached_before_the_name_was_hosted_is_no_tag_of_it() {
    let origin = Origin::start();
    let (strangers, own) = (Image::random(1000), Image::random(1000));
    for tag in ["latest", "v1", "v9"] {
        origin.push("library/internal-tool", tag, &strangers);
    }
    let mirrors = origin.mirror_entry("docker.io", "");
    let mut gateway = Gateway::start(&usual_config(&mirrors, ""));
    for tag in ["latest", "v1", "v9"] {
        let wire = Wire::anonymous(gateway.port);
        wire.pull_image("docker.io/internal-tool", tag, &strangers);
    }
    gateway.write_config(&with_hosted(INTERNAL, &mirrors));
    gateway.restart();
    origin.reset_counts();
    let wire = Wire::basic(gateway.port, USER);
    let base = "/v2/docker.io/library/internal-tool";
    wire.get(&format!("{base}/manifests/latest")).expect(404);
    let tags =
        |n: &str| wire.get(&format!("{base}/tags/list{n}")).expect(200).json()["tags"].clone();
    assert_eq!(tags(""), serde_json::json!([]));
    wire.push_image("docker.io/library/internal-tool", "v1", &own);
    wire.pull_image("docker.io/library/internal-tool", "v1", &own);
    assert_eq!(tags("?n=1"), serde_json::json!(["v1"]));
    // The very bytes that were cached are pushed: then they are ours.
    wire.push_image("docker.io/library/internal-tool", "v9", &strangers);
    assert_eq!(tags(""), serde_json::json!(["v1", "v9"]));
    assert_eq!(asked(&origin, "internal-tool"), 0);
}

#[test]
fn a_name_that_may_fall_through_is_the_upstreams_until_a_manifest_is_pushed() {
    let mut origin = Origin::start();
    let (upstreams, own) = (Image::random(1000), Image::random(1000));
    origin.push("acme/tool", "latest", &upstreams);
    origin.push("acme/tool", "old", &upstreams);
    let hosted = "hosted: { names: [\"apps/**\"], or_upstream: [\"docker.io/acme/*\"] }\n";
    let mirrors = origin.mirror_entry("docker.io", ", tags: { fresh_for: 1ms }");
    let admin = "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]";
    let config = with_hosted(hosted, &mirrors).replace("        - { who: [\"user:*\"]", admin);
    let gateway = Gateway::start(&format!("{config}audit: {{ file: ./audit.jsonl }}\n"));
    let wire = Wire::basic(gateway.port, USER);
    let name = "docker.io/acme/tool";
    let tags = || {
        wire.get(&format!("/v2/{name}/tags/list"))
            .expect(200)
            .json()["tags"]
            .clone()
    };
    wire.pull_image(name, "latest", &upstreams);
    assert_eq!(tags(), serde_json::json!(["latest", "old"]));

    wire.push_image(name, "latest", &own);
    origin.reset_counts();
    wire.pull_image(name, "latest", &own);
    wire.get(&format!("/v2/{name}/manifests/old")).expect(404);
    assert_eq!(tags(), serde_json::json!(["latest"]));
    assert_eq!(asked(&origin, "acme/tool"), 0);
    origin.stop();
    wire.pull_image(name, "latest", &own);
    wire.delete(&format!("/v2/{name}/manifests/latest"))
        .expect(202);
    // It was claimed for good: the upstream, which is down, is not asked.
    for gone in ["latest", "never"] {
        wire.get(&format!("/v2/{name}/manifests/{gone}"))
            .expect(404);
    }
    let released = release(&gateway, name).ok();
    assert_eq!(released, format!("released: {name}\n"));
    origin.start_again();
    wire.pull_image(name, "latest", &upstreams);
    let digest = &own.manifest.digest;
    wire.get(&format!("/v2/{name}/manifests/{digest}"))
        .expect(404);
    // A push by digest claims it too.
    wire.push_image(name, digest, &own);
    wire.get(&format!("/v2/{name}/manifests/latest"))
        .expect(404);
    release(&gateway, name).ok();
    let again = release(&gateway, name).fails();
    assert!(again.contains("nothing was pushed"), "{again}");
    let hosted = release(&gateway, "apps/web").fails();
    assert!(
        hosted.contains("not below `hosted.or_upstream`"),
        "{hosted}"
    );
    let audit = gateway.audit().into_iter();
    let changes: Vec<_> = audit
        .filter(|line| line["change"] == "repository-release")
        .map(|line| line["reference"].clone())
        .collect();
    assert_eq!(changes, [name, name]);
}

/// `gantry repository release`, as an operator calls it.
fn release(gateway: &Gateway, name: &str) -> Run {
    let password = gateway.folder().join("password");
    fs::write(&password, USER.1).unwrap();
    let mut command = Command::new(program());
    command.args(["repository", "release", name, "--user", USER.0, "--config"]);
    command.arg(gateway.config_path());
    run(command.arg("--password-file").arg(&password))
}
