//! The folder of a real docker-registry becomes Gantry's: everything that was pushed to the one pulls from the other.

use std::{fs, process::Command};

use serde_json::json;
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, program, usual_config},
    image::{Content, INDEX, MANIFEST, index_of, sha512},
    ledger::listed_tags,
    tools::{free_port, run},
    wire::with_query,
};

fn on_folder_of(origin: &Origin) -> Gateway {
    Gateway::start_with(&usual_config("", ""), |folder| {
        std::os::unix::fs::symlink(origin.data(), folder.join("data")).unwrap();
    })
}

#[test]
fn every_image_of_a_docker_registry_pulls_from_gantry_on_the_same_folder() {
    let origin = Origin::start();
    let (first, second, third) = (Image::random(5000), Image::random(70), Image::random(1));
    for (repository, tag, image) in [
        ("apps/web", "v1", &first),
        ("apps/web", "latest", &first),
        ("apps/web", "old", &third),
        ("apps/web", "old", &second),
        ("apps/web/deeper", "latest", &first),
        ("team/x", "latest", &second),
    ] {
        origin.push(repository, tag, image);
    }
    let index = index_of(&[&first, &second]);
    let direct = origin.direct();
    direct
        .push_manifest("apps/web", "multi", INDEX, index.bytes.clone())
        .expect(201);
    let gateway = on_folder_of(&origin);
    let wire = Wire::basic(gateway.port, USER);
    let expected = ["latest", "multi", "old", "v1"];
    assert_eq!(listed_tags(&wire, "apps/web"), expected);
    for (repository, tag, image) in [
        ("apps/web", "v1", &first),
        ("apps/web", "latest", &first),
        ("apps/web", "old", &second),
        ("apps/web/deeper", "latest", &first),
        ("team/x", "latest", &second),
    ] {
        wire.pull_image(repository, tag, image);
        wire.pull_image(repository, &image.manifest.digest, image);
    }
    // The tag moved on; its digest still pulls.
    wire.pull_image("apps/web", &third.manifest.digest, &third);
    let multi = wire.get("/v2/apps/web/manifests/multi").expect(200);
    assert_eq!(multi.body, index.bytes);
    assert_eq!(multi.header("content-type"), INDEX);
    let catalog = wire.get("/v2/_catalog").expect(200).json();
    assert_eq!(
        catalog["repositories"],
        json!(["apps/web", "apps/web/deeper", "team/x"])
    );
    // What one repository holds is not thereby in another.
    let blob = &first.layers[0].digest;
    wire.get(&format!("/v2/team/x/blobs/{blob}")).expect(404);
}

#[test]
fn what_a_docker_registry_deleted_or_tore_is_not_adopted_and_stays_as_it_is() {
    let origin = Origin::start();
    let (kept, deleted, torn) = (Image::random(10), Image::random(10), Image::random(10));
    origin.push("apps/web", "kept", &kept);
    origin.push("apps/web", "deleted", &deleted);
    origin.push("apps/web", "torn", &torn);
    let path = format!("/v2/apps/web/manifests/{}", deleted.manifest.digest);
    origin.direct().delete(&path).expect(202);
    let repository = origin
        .data()
        .join("docker/registry/v2/repositories/apps/web");
    let link = repository.join("_manifests/tags/torn/current/link");
    fs::write(&link, "").unwrap();
    let gateway = on_folder_of(&origin);
    let wire = Wire::basic(gateway.port, USER);
    assert_eq!(listed_tags(&wire, "apps/web"), ["kept"]);
    wire.pull_image("apps/web", "kept", &kept);
    wire.get(&path).expect(404);
    wire.pull_image("apps/web", &torn.manifest.digest, &torn);
    assert_eq!(fs::read(&link).unwrap(), b"");
    assert!(gateway.log().contains("adopted the repositories"));
}

#[test]
fn content_that_distribution_keeps_under_another_algorithm_is_found_by_the_digest_it_was_pushed_with()
 {
    let origin = Origin::start();
    let direct = origin.direct();
    let content = Content::random(100_000);
    let digest = sha512(&content.bytes);
    let closing = with_query(
        &direct.start_upload("apps/web"),
        &format!("digest={digest}"),
    );
    direct
        .send("PUT", &closing, &[], content.bytes.clone())
        .expect(201);
    let gateway = on_folder_of(&origin);
    let wire = Wire::basic(gateway.port, USER);
    for name in [&digest, &content.digest] {
        let path = format!("/v2/apps/web/blobs/{name}");
        assert_eq!(direct.get(&path).status, wire.get(&path).status, "{name}");
    }
    let path = format!("/v2/apps/web/blobs/{digest}");
    assert_eq!(wire.get(&path).expect(200).body, content.bytes);
}

#[test]
fn a_folder_is_adopted_once_and_the_other_registry_can_still_read_it() {
    let origin = Origin::start();
    let (old, new) = (Image::random(10), Image::random(10));
    origin.push("apps/web", "latest", &old);
    origin.push("apps/web", "gone", &old);
    let mut gateway = on_folder_of(&origin);
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "latest", &new);
    wire.delete("/v2/apps/web/manifests/gone").expect(202);
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    assert_eq!(listed_tags(&wire, "apps/web"), ["latest"]);
    wire.pull_image("apps/web", "latest", &new);
    let path = "/v2/apps/web/manifests/latest";
    let direct = origin.direct();
    let served = direct.send("GET", path, &[("accept", MANIFEST)], "");
    assert_eq!(served.expect(200).body, old.manifest.bytes);
}

#[test]
fn referrers_of_adopted_manifests_are_listed() {
    let origin = Origin::start();
    let image = Image::random(10);
    origin.push("apps/web", "latest", &image);
    let signature = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": image.config.descriptor("application/vnd.example.signature"),
        "subject": image.manifest.descriptor(MANIFEST),
    });
    let signature = Content::new(signature.to_string());
    origin
        .direct()
        .push_manifest(
            "apps/web",
            &signature.digest,
            MANIFEST,
            signature.bytes.clone(),
        )
        .expect(201);
    let gateway = on_folder_of(&origin);
    let wire = Wire::basic(gateway.port, USER);
    let path = format!("/v2/apps/web/referrers/{}", image.manifest.digest);
    let referrers = wire.get(&path).expect(200).json();
    assert_eq!(referrers["manifests"][0]["digest"], json!(signature.digest));
}

/// The folder of a registry that filled it as a pull-through cache.
fn pull_through(repository: &str, image: &Image) -> Origin {
    let origin = Origin::start();
    origin.push(repository, "v1", image);
    fs::write(origin.data().join("scheduler-state.json"), "{}").unwrap();
    origin
}

#[test]
fn the_folder_of_a_pull_through_cache_becomes_its_mirrors_content() {
    let image = Image::random(5000);
    let cache = pull_through("team/app", &image);
    let mut upstream = Origin::start();
    upstream.stop();
    let mirror = upstream.mirror_entry("up", "");
    let gateway = Gateway::start_with(&usual_config(&mirror, ""), |folder| {
        std::os::unix::fs::symlink(cache.data(), folder.join("data")).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    wire.pull_image("up/team/app", "v1", &image);
    wire.get("/v2/team/app/manifests/v1").expect(404);
    let blob = &image.layers[0].digest;
    wire.get(&format!("/v2/team/app/blobs/{blob}")).expect(404);
}

#[test]
fn a_pull_through_caches_folder_without_a_mirror_stops_the_first_start_and_names_the_key() {
    let image = Image::random(5000);
    let cache = pull_through("team/app", &image);
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gantry.yaml");
    let text = format!(
        "listen: {{ address: 127.0.0.1:{} }}\nadmin: 127.0.0.1:{}\nhosted: {{ names: [\"team/**\"] }}\nplugins: [{{ name: access, from: builtin:access, config: {{ rules: [{{ who: [anonymous], may: [pull], what: [\"**\"] }}] }} }}]\nstorage:\n  blobs: {{ filesystem: {} }}\n",
        free_port(),
        free_port(),
        cache.data().display(),
    );
    fs::write(&config, text).unwrap();
    let stopped = run(Command::new(program()).arg("serve").arg(&config)).fails();
    assert!(
        stopped.contains("`adopt: hosted`") && stopped.contains("scheduler-state.json"),
        "{stopped}"
    );
    let usual = format!("  adopt: hosted\n{}", usual_config("", ""));
    let mut gateway = Gateway::start_with(&usual, |folder| {
        std::os::unix::fs::symlink(cache.data(), folder.join("data")).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    wire.pull_image("team/app", "v1", &image);
    // Adopted before, and the key is not there any more.
    gateway.write_config(&usual_config("", ""));
    gateway.restart();
    wire.pull_image("team/app", "v1", &image);
    assert!(gateway.log().contains("was a pull-through cache's"));
}

#[test]
fn what_would_be_left_out_is_said_before_anything_is_changed() {
    let origin = Origin::start();
    origin.push("apps/web", "v1", &Image::random(100));
    let torn = origin
        .data()
        .join("docker/registry/v2/repositories/apps/web/_manifests/tags/torn/current");
    fs::create_dir_all(&torn).unwrap();
    fs::write(torn.join("link"), "sha256:").unwrap();
    let check = |folder: &std::path::Path| {
        let mut command = Command::new(program());
        let command = command.args(["import", "--adopt", "--check"]).arg(folder);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, said) = check(&origin.data());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("left out  apps/web:torn: "), "{said}");
    assert!(said.contains("is missing, empty or torn"), "{said}");
    let end = "1 repository, 1 manifest, 1 tag and 2 blobs would be adopted; 1 link would be left out\ncontent was not hashed, except manifests and what a repository knows by the digest of another algorithm\nthe first start makes them hosted repositories, if `hosted.names` covers their names; name the configuration by --config to see whether it does\n";
    assert!(said.ends_with(end), "{said}");
    assert!(!origin.data().join("docker/registry/_gantry").exists());
    let (code, said) = check(std::path::Path::new("/usr/bin"));
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn names_that_would_not_be_hosted_stop_the_first_start_and_are_listed() {
    let origin = Origin::start();
    let image = Image::random(100);
    for name in ["web", "apps/web", "hub/app"] {
        origin.push(name, "v1", &image);
    }
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gantry.yaml");
    let text = |names: &str| {
        format!(
            "listen: {{ address: 127.0.0.1:{} }}\nadmin: 127.0.0.1:{}\nhosted: {{ names: [{names}] }}\nmirrors: {{ hub: {{ url: \"http://127.0.0.1:9\", default: true }} }}\nplugins: [{{ name: access, from: builtin:access, config: {{ rules: [{{ who: [anonymous], may: [pull], what: [\"**\"] }}] }} }}]\nstorage:\n  blobs: {{ filesystem: {} }}\n",
            free_port(),
            free_port(),
            origin.data().display(),
        )
    };
    fs::write(&config, text("\"apps/**\"")).unwrap();
    for command in ["serve", "import"] {
        let mut gantry = Command::new(program());
        match command {
            "serve" => gantry.arg("serve").arg(&config),
            _ => gantry
                .args(["import", "--adopt", "--check"])
                .arg(origin.data())
                .arg("--config")
                .arg(&config),
        };
        let stopped = run(&mut gantry).fails();
        assert!(stopped.contains("covers hub/app, web:"), "{stopped}");
        assert!(stopped.contains("`hosted.names`"), "{stopped}");
    }
    fs::write(&config, text("\"apps/**\", web, \"hub/app\"")).unwrap();
    let mut check = Command::new(program());
    check.args(["import", "--adopt", "--check"]);
    run(check.arg(origin.data()).arg("--config").arg(&config)).ok();
}

/// Makes a file or folder unreadable to all but root.
fn hide(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
}

#[test]
fn what_the_gateways_user_may_not_read_is_left_out_and_named_and_large_content_is_not_hashed() {
    let origin = Origin::start();
    let (plain, other) = (Image::random(100), Image::random(200));
    for repository in ["apps/whole", "apps/tag", "apps/hidden", "apps/layer"] {
        let image = if repository == "apps/layer" {
            &other
        } else {
            &plain
        };
        origin.push(repository, "v1", image);
    }
    let data = origin.data();
    for folder in data.ancestors().take(2) {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let registry = data.join("docker/registry/v2");
    let repositories = registry.join("repositories/apps");
    let blob = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let shelf: String = hex.chars().take(2).collect();
        let shelf = format!("blobs/sha256/{shelf}/{hex}/data");
        registry.join(shelf)
    };
    hide(&repositories.join("tag/_manifests/tags/v1/current/link"));
    hide(&repositories.join("hidden"));
    hide(&blob(&other.layers[0].digest));
    // A terabyte with one more name, by another algorithm.
    let large = Content::random(10);
    let path = blob(&large.digest);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let second = sha512(b"another");
    let hex = second.strip_prefix("sha512:").unwrap();
    let link = repositories.join("whole/_layers/sha512").join(hex);
    fs::create_dir_all(&link).unwrap();
    fs::write(link.join("link"), &large.digest).unwrap();

    let mut command = Command::new("setpriv");
    if fs::read_dir(repositories.join("hidden")).is_ok() {
        // Root may read everything.
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    let command = command
        .arg(program())
        .args(["import", "--adopt", "--check"]);
    let said = run(command.arg(origin.data())).ok();
    for expected in [
        "left out  apps/hidden/: ".to_owned(),
        "left out  apps/tag:v1: ".to_owned(),
        format!("left out  apps/layer/_layers/{}: ", other.layers[0].digest),
        format!("unhashed  apps/whole/_layers/{second}: 1099511627776 bytes"),
        "3 repositories, 3 manifests, 2 tags and 6 blobs would be adopted; 3 links would be left out".to_owned(),
    ] {
        assert!(said.contains(&expected), "{expected}: {said}");
    }
    assert!(
        said.contains("the gateway's user may not read it"),
        "{said}"
    );
}

#[test]
fn the_check_of_a_pull_through_caches_folder_says_what_its_repositories_become() {
    let cache = Origin::start();
    cache.push("team/app", "v1", &Image::random(100));
    fs::write(cache.data().join("scheduler-state.json"), "{}").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gantry.yaml");
    let check = |mirrors: &str, adopt: &str| {
        let access = "plugins: [{ name: access, from: builtin:access, config: { rules: [] } }]";
        let text = format!(
            "listen: 127.0.0.1:0\nhosted: {{ names: [\"team/**\"] }}\nstorage: {{ blobs: {{ filesystem: {} }}{adopt} }}\n{mirrors}\n{access}\n",
            cache.data().display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(program());
        command.args(["import", "--adopt", "--check", "--config"]);
        run(command.arg(&config).arg(cache.data()))
    };
    let hub = "mirrors: { hub: https://registry-1.docker.io }";
    let mirrored = check(hub, "").ok();
    let one = "1 repository, 1 manifest, 1 tag and 2 blobs would be adopted";
    assert!(mirrored.contains(one), "{mirrored}");
    assert!(
        mirrored.ends_with("the first start makes them repositories of the mirror hub\n"),
        "{mirrored}"
    );
    let hosted = check(hub, ", adopt: hosted").ok();
    assert!(
        hosted.ends_with("the first start makes them hosted repositories\n"),
        "{hosted}"
    );
    let none = check("", "").fails();
    assert!(
        none.contains("would not start") && none.contains("`mirrors`"),
        "{none}"
    );
    let which = check(
        "mirrors: { a: https://a.example, b: https://b.example }",
        "",
    )
    .fails();
    assert!(which.contains("`default: true`"), "{which}");
    let mut without = Command::new(program());
    without.args(["import", "--adopt", "--check"]);
    let without = run(without.arg(cache.data())).ok();
    assert!(
        without.contains("scheduler-state.json") && without.contains("--config"),
        "{without}"
    );
}
