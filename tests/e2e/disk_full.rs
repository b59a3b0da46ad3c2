//! A full disk: pushes are refused without a word about the disk, what they wrote is given back, everything else goes on, and so do pushes
//! when there is space again.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tests::{
    Gateway, Image, Origin, Wire,
    disk::Disk,
    gateway::{USER, usual_config},
    image::{Content, MANIFEST},
    origin::Fault,
    tools::wait_until,
    wire::{Answer, with_query},
};

const REPOSITORY: &str = "apps/web";
/// What the disk has for data; the plugins' compiled code takes some more.
const SPACE: usize = 24 << 20;
/// How soon pushes must work again.
const SOON: Duration = Duration::from_secs(2);

/// 503, the request id, when to come back, and nothing else.
fn refused(gateway: &Gateway, answer: Answer) {
    let answer = answer.has(503);
    assert_eq!(answer.code(), "UNAVAILABLE");
    assert!(!answer.header("retry-after").is_empty());
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains(&answer.header("x-request-id")), "{text}");
    let folder = gateway.folder().to_str().unwrap();
    for secret in [folder, "/", "space", "full", "disk", "os error"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}

fn full_disk() -> (Disk, Gateway) {
    let disk = Disk::tmpfs(SPACE);
    let gateway = Gateway::start_with(&usual_config("", ""), |folder| disk.as_data_of(folder));
    (disk, gateway)
}

fn staged(gateway: &Gateway) -> Vec<u64> {
    let uploads = gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    let files = fs::read_dir(uploads).unwrap();
    files
        .map(|file| file.unwrap().metadata().unwrap().len())
        .collect()
}

fn soon(what: &str, from: Instant, done: impl FnMut() -> bool) {
    wait_until(what, SOON.saturating_sub(from.elapsed()), done);
}

#[test]
fn pushes_into_a_full_disk_are_503_give_their_space_back_and_work_again_with_space() {
    let (disk, gateway) = full_disk();
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(1 << 20);
    wire.push_image(REPOSITORY, "latest", &image);
    let large = Content::random(SPACE);
    let free = disk.free_bytes();

    // One request, one session in a single chunk, one in several: the disk fills up in the middle of each.
    let single = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={}", large.digest);
    refused(
        &gateway,
        wire.send("POST", &single, &[], large.bytes.clone()),
    );
    let location = wire.start_upload(REPOSITORY);
    let closing = with_query(&location, &format!("digest={}", large.digest));
    refused(
        &gateway,
        wire.send("PUT", &closing, &[], large.bytes.clone()),
    );
    let location = wire.start_upload(REPOSITORY);
    wire.send("PATCH", &location, &[], large.bytes.slice(..1 << 20))
        .expect(202);
    refused(
        &gateway,
        wire.send("PATCH", &location, &[], large.bytes.slice(1 << 20..)),
    );
    wire.get(&location).expect(404);
    assert_eq!(staged(&gateway), [] as [u64; 0]);
    // What stays is SQLite's: sessions that were opened and ended.
    assert!(disk.free_bytes() + (1 << 20) >= free, "space is given back");

    wire.pull_image(REPOSITORY, "latest", &image);
    let path = format!("/v2/{REPOSITORY}/blobs/{}", large.digest);
    wire.get(&path).expect(404);
    wire.push_image(REPOSITORY, "small", &Image::random(1000));
}

#[test]
fn with_no_space_at_all_pulls_go_on_and_pushes_within_two_seconds_of_space() {
    let (disk, mut gateway) = full_disk();
    let wire = Wire::basic(gateway.port, USER);
    let (image, next) = (Image::random(1 << 20), Image::random(1000));
    wire.push_image(REPOSITORY, "latest", &image);
    for blob in next.blobs() {
        wire.push_blob(REPOSITORY, blob).expect(201);
    }
    for _round in 0..3 {
        let filler = disk.fill();
        for _attempt in 0..20 {
            let content = Content::random(5_000);
            let path = format!("/v2/{REPOSITORY}/blobs/uploads/?digest={}", content.digest);
            refused(&gateway, wire.send("POST", &path, &[], content.bytes));
            wire.pull_image(REPOSITORY, "latest", &image);
        }
        // The database is on the same disk.
        refused(&gateway, sessions_until_full(&wire));
        wire.get("/v2/_catalog").expect(200);
        let bytes: u64 = staged(&gateway).iter().sum();
        assert_eq!(bytes, 0, "what was refused is given back");
        fs::remove_file(filler).unwrap();
        let freed = Instant::now();
        soon("a push to work again", freed, || {
            let manifest = next.manifest.bytes.clone();
            let answer = wire.push_manifest(REPOSITORY, "next", MANIFEST, manifest);
            answer.status == 201
        });
        soon("a blob to be taken again", freed, || {
            let answer = wire.push_blob(REPOSITORY, &Content::random(5_000));
            answer.status == 201
        });
        wire.pull_image(REPOSITORY, "next", &next);
    }
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    wire.pull_image(REPOSITORY, "latest", &image);
    wire.pull_image(REPOSITORY, "next", &next);
}

/// Opens and ends sessions, which only the database remembers, until it has no space for another.
fn sessions_until_full(wire: &Wire) -> Answer {
    let path = format!("/v2/{REPOSITORY}/blobs/uploads/");
    loop {
        let answer = wire.send("POST", &path, &[], "");
        if answer.status != 202 {
            return answer;
        }
        let _ended = wire.delete(&answer.location());
    }
}

#[test]
fn a_mirror_on_a_full_disk_passes_everything_through_and_caches_again_with_space() {
    let origin = Origin::start();
    let (image, corrupt, cold) = (
        Image::random(8 << 20),
        Image::random(4 << 20),
        Image::random(10_000),
    );
    origin.push("a/b", "latest", &image);
    origin.push("a/b", "corrupt", &corrupt);
    origin.push("a/b", "cold", &cold);
    let disk = Disk::tmpfs(SPACE);
    let config = usual_config(&origin.mirror_entry("up", ""), "");
    let gateway = Gateway::start_with(&config, |folder| disk.as_data_of(folder));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/b/manifests/latest").expect(200);
    let filler = disk.fill();
    keep_free(&filler, 1 << 20);
    let layer = &image.layers[0];
    let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
    let before = gateway.peak_memory();
    thread::scope(|scope| {
        for _reader in 0..4 {
            scope.spawn(|| assert!(wire.get(&path).expect(200).body == layer.bytes));
        }
    });
    let growth = gateway.peak_memory() - before;
    assert!(growth < 32 << 20, "VmHWM grew by {} MiB", growth >> 20);
    assert_eq!(gateway.log().matches("no space to cache").count(), 1);
    assert!(gateway.metric(PASSED) >= 1.0);
    soon("the fill's space", Instant::now(), || {
        staged(&gateway).is_empty()
    });
    // What is wrong is never whole, also without space; what was never seen is served, its manifest too.
    origin.break_paths(&corrupt.layers[0].digest, Fault::FlipLast);
    let wrong = format!("/v2/up/a/b/blobs/{}", corrupt.layers[0].digest);
    let wrong = wire.try_send("GET", &wrong, &[], "");
    assert!(wrong.is_err() || wrong.is_ok_and(|answer| answer.status.as_u16() >= 500));
    origin.heal();
    fs::remove_file(&filler).unwrap();
    let filler = disk.fill();
    wire.pull_image("up/a/b", "cold", &cold);
    fs::remove_file(filler).unwrap();
    let freed = Instant::now();
    soon("the mirror to cache again", freed, || {
        // A pull may also join what still passes through for the one before.
        wire.pull_image("up/a/b", "cold", &cold);
        gateway.metric(FILLED) >= 2.0
    });
    wire.pull_image("up/a/b", "latest", &image);
    wait_until("the image at rest", Duration::from_secs(60), || {
        gateway.metric(FILLED) >= 4.0
    });
    let asked = origin.count("GET", &layer.digest);
    wire.pull_image("up/a/b", "latest", &image);
    assert_eq!(origin.count("GET", &layer.digest), asked);
}

const FILLED: &str = "gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"filled\"}";
const PASSED: &str = "gantry_cache_total{mirror=\"up\",content=\"blob\",outcome=\"passed\"}";

/// Makes a file smaller by this.
fn keep_free(filler: &Path, bytes: u64) {
    let filler = fs::File::options().write(true).open(filler).unwrap();
    let size = filler.metadata().unwrap().len();
    filler.set_len(size - bytes).unwrap();
}
