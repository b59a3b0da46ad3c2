//! A state file that is cut or overwritten: the start says which and what to do, or mends it; nothing is lost by it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tests::{
    Gateway, Image, Wire,
    gateway::{USER, program, usual_config},
    image::Content,
    wire::with_query,
};

/// A gateway that was killed, and what it had acknowledged.
fn killed() -> (Gateway, Image) {
    let mut gateway = Gateway::usual();
    let image = Image::random(1000);
    Wire::basic(gateway.port, USER).push_image("apps/web", "latest", &image);
    gateway.kill9();
    (gateway, image)
}

fn works(gateway: &Gateway, image: &Image) {
    Wire::basic(gateway.port, USER).pull_image("apps/web", "latest", image);
}

/// Damages a file in each way; each time the start is refused with a sentence that names it, the file stays as it is, and with the good
/// file everything is there again.
fn is_refused(file: &str, words: &str) {
    let (mut gateway, image) = killed();
    let path = gateway.folder().join("data").join(file);
    if file.ends_with(".db") {
        // Nothing in its log covers up what happens to it.
        let taken_over = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let database = rusqlite::Connection::open(&path).unwrap();
        let query = "PRAGMA wal_checkpoint(TRUNCATE)";
        assert_eq!(database.query_row(query, [], taken_over).unwrap(), 0);
    }
    let good = fs::read(&path).unwrap();
    let mut garbage = good.clone();
    garbage.iter_mut().take(4096).for_each(|byte| *byte ^= 0x5a);
    let cut = good[..good.len() / 2].to_vec();
    for bad in [garbage, cut, Vec::new()] {
        fs::write(&path, &bad).unwrap();
        let before = gateway.log().len();
        gateway.spawn();
        assert!(!gateway.wait().success(), "{file} of {} bytes", bad.len());
        let log = gateway.log();
        let said = log.get(before..).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            said.contains(name) && said.contains(words),
            "{} bytes: {said}",
            bad.len()
        );
        assert_eq!(fs::read(&path).unwrap(), bad, "it is left as it is");
        fs::write(&path, &good).unwrap();
    }
    gateway.restart();
    works(&gateway, &image);
}

#[test]
fn a_damaged_database_stops_the_start_and_stays_as_it_is() {
    is_refused("gantry.db", "damaged");
}

#[test]
fn a_damaged_database_of_plugins_stops_the_start_and_stays_as_it_is() {
    is_refused("plugins.db", "damaged");
}

#[test]
fn a_damaged_token_key_stops_the_start_and_stays_as_it_is() {
    is_refused("keys/token-1.pem", "is not a P-256 private key");
}

#[test]
fn a_damaged_log_of_the_database_stops_the_start_and_stays_as_it_is() {
    let (mut gateway, image) = killed();
    let path = gateway.folder().join("data/gantry.db-wal");
    let good = fs::read(&path).unwrap();
    assert!(good.len() > 4096, "what was acknowledged is in the log");
    let mut garbage = good.clone();
    garbage.iter_mut().take(32).for_each(|byte| *byte ^= 0x5a);
    fs::write(&path, &garbage).unwrap();
    let before = gateway.log().len();
    gateway.spawn();
    assert!(!gateway.wait().success());
    let log = gateway.log();
    assert!(
        log.get(before..).unwrap().contains("gantry.db-wal"),
        "{}",
        log.get(before..).unwrap()
    );
    assert_eq!(fs::read(&path).unwrap(), garbage);
    // Neither is the log thrown away because its database is gone.
    fs::write(&path, &good).unwrap();
    let database = gateway.folder().join("data/gantry.db");
    let aside = gateway.folder().join("aside.db");
    fs::rename(&database, &aside).unwrap();
    gateway.spawn();
    assert!(!gateway.wait().success());
    assert_eq!(fs::read(&path).unwrap(), good);
    fs::rename(&aside, &database).unwrap();
    gateway.restart();
    works(&gateway, &image);
}

#[test]
fn a_log_that_ends_in_half_a_write_loses_nothing_before_it() {
    let (mut gateway, image) = killed();
    let path = gateway.folder().join("data/gantry.db-wal");
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(&[7; 1000]);
    fs::write(&path, &torn).unwrap();
    gateway.restart();
    works(&gateway, &image);
}

#[test]
fn a_damaged_node_key_and_damaged_compiled_code_are_made_anew() {
    let (mut gateway, image) = killed();
    let compiled = gateway.folder().join("data/compiled");
    let files = || -> Vec<PathBuf> {
        let entries = fs::read_dir(&compiled).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let is_code = |path: &Path| {
        path.extension()
            .is_some_and(|extension| extension == "cwasm")
    };
    assert!(files().iter().any(|path| is_code(path)));
    for damage in ["cut", "overwritten", "emptied"] {
        for path in files() {
            let good = fs::read(&path).unwrap();
            let bad = match damage {
                "cut" => good[..good.len() / 2].to_vec(),
                "overwritten" => vec![0x5a; good.len()],
                _ => Vec::new(),
            };
            fs::write(&path, bad).unwrap();
        }
        gateway.restart();
        works(&gateway, &image);
        gateway.kill9();
    }
}

#[test]
fn an_upload_whose_staging_file_was_damaged_goes_on_where_it_is_or_begins_anew() {
    let mut gateway = Gateway::usual();
    let content = Content::random(100_000);
    let begin = |gateway: &Gateway| {
        let wire = Wire::basic(gateway.port, USER);
        let session = wire.start_upload("apps/web");
        wire.send("PATCH", &session, &[], content.bytes.slice(..60_000))
            .expect(202);
        session
    };
    let (cut, overwritten) = (begin(&gateway), begin(&gateway));
    gateway.kill9();
    let staging = gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    for entry in fs::read_dir(&staging).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if cut.contains(&name) {
            fs::write(&path, &content.bytes[..10_000]).unwrap();
        } else {
            fs::write(&path, vec![0x5a; 60_000]).unwrap();
        }
    }
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    let status = wire.get(&cut).expect(204);
    assert_eq!(status.header("range"), "0-9999");
    wire.send("PATCH", &cut, &[], content.bytes.slice(10_000..))
        .expect(202);
    let end = |session: &str| with_query(session, &format!("digest={}", content.digest));
    let wrong = wire.send(
        "PUT",
        &end(&overwritten),
        &[],
        content.bytes.slice(60_000..),
    );
    assert_eq!(wrong.expect(400).code(), "DIGEST_INVALID");
    wire.get(&overwritten).expect(404);
    wire.send("PUT", &end(&cut), &[], "").expect(201);
}

/// Every file and folder below, with its mode.
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let metadata = fs::symlink_metadata(&path).unwrap();
        found.push((path.clone(), metadata.permissions().mode() & 0o777));
        if metadata.is_dir() {
            modes(&path, found);
        }
    }
}

#[test]
fn what_the_gateway_makes_in_its_data_folder_is_for_its_user_and_group_whatever_the_umask() {
    for umask in ["000", "077"] {
        let mut gateway = Gateway::usual();
        gateway.kill9();
        fs::remove_dir_all(gateway.folder().join("data")).unwrap();
        let command = format!(
            "umask {umask}; exec {} serve gantry.yaml > logs/umask 2>&1",
            program().display()
        );
        let mut child = Command::new("sh")
            .args(["-c", &command])
            .current_dir(gateway.folder())
            .spawn()
            .unwrap();
        tests::tools::wait_until("the gateway", std::time::Duration::from_secs(60), || {
            gateway.is_ready()
        });
        let wire = Wire::basic(gateway.port, USER);
        wire.push_image("apps/web", "latest", &Image::random(1000));
        drop(wire.start_upload("apps/web"));
        let mut found = Vec::new();
        let data = gateway.folder().join("data");
        found.push((
            data.clone(),
            fs::metadata(&data).unwrap().permissions().mode() & 0o777,
        ));
        modes(&data, &mut found);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.len() > 20, "{found:?}");
        for (path, mode) in found {
            let name = path.strip_prefix(&data).unwrap().to_str().unwrap();
            // Keys, and code that will be run.
            let is_secret = name.starts_with("compiled") || name.starts_with("keys/");
            let expected = match (is_secret, path.is_dir()) {
                (false, true) => 0o750,
                (false, false) => 0o640,
                (true, true) => 0o700,
                (true, false) => 0o600,
            };
            assert_eq!(mode, expected, "umask {umask}: {name} has {mode:o}");
        }
        let warned = fs::read_to_string(gateway.folder().join("logs/umask")).unwrap();
        assert!(!warned.contains("lets others in"), "{warned}");
    }
}

#[test]
fn a_folder_that_was_open_to_others_keeps_its_mode_with_a_warning() {
    let gateway = Gateway::start_with(&usual_config("", ""), |folder| {
        fs::create_dir(folder.join("data")).unwrap();
        fs::set_permissions(folder.join("data"), fs::Permissions::from_mode(0o755)).unwrap();
    });
    let data = gateway.folder().join("data");
    assert_eq!(
        fs::metadata(&data).unwrap().permissions().mode() & 0o777,
        0o755
    );
    let log = gateway.log();
    let warned = log
        .lines()
        .filter(|line| line.contains("data has the mode 755"))
        .count();
    assert_eq!(warned, 1, "{log}");
}
