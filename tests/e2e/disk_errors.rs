//! A disk that fails: nothing it did not take is acknowledged or seen, nothing it does not give is made up, and the gateway lives on.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tests::{
    Gateway, Image, Wire,
    gateway::USER,
    image::Content,
    strace::Failing,
    wire::{Answer, with_query},
};

const REPOSITORY: &str = "apps/web";
/// Every call that can bring a file's bytes to a client.
const READS: &str = "read,pread64,readv,preadv,preadv2,sendfile,splice,copy_file_range";

/// A 5xx that says its request id and nothing of what happened.
fn says_nothing(gateway: &Gateway, answer: &Answer) {
    assert!(answer.status.is_server_error(), "{answer:?}");
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let id = answer.header("x-request-id");
    assert!(!id.is_empty() && text.contains(&id), "{text}");
    let folder = gateway.folder().to_str().unwrap();
    for secret in [folder, "docker/registry", "os error", "disk", "gantry.db"] {
        assert!(!text.contains(secret), "{text}");
    }
}

fn blob_folder(gateway: &Gateway, content: &Content) -> PathBuf {
    let hex = content.digest.strip_prefix("sha256:").unwrap();
    let blobs = "data/docker/registry/v2/blobs/sha256";
    let shelf: String = hex.chars().take(2).collect();
    gateway.folder().join(blobs).join(shelf).join(hex)
}

fn staged(gateway: &Gateway) -> usize {
    let uploads = gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    fs::read_dir(uploads).unwrap().count()
}

/// An upload that has all its bytes: its staging file, and the request that commits it.
fn complete_upload(gateway: &Gateway, wire: &Wire, content: &Content) -> (PathBuf, String) {
    let location = wire.start_upload(REPOSITORY);
    wire.send("PATCH", &location, &[], content.bytes.clone())
        .expect(202);
    let id = location.rsplit('/').next().unwrap();
    let id = id.split('?').next().unwrap();
    let uploads = gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    let closing = with_query(&location, &format!("digest={}", content.digest));
    (uploads.join(id), closing)
}

/// The blob is nowhere, by no way of looking.
fn is_nowhere(gateway: &Gateway, wire: &Wire, content: &Content) {
    let path = format!("/v2/{REPOSITORY}/blobs/{}", content.digest);
    wire.get(&path).expect(404);
    wire.head(&path).expect(404);
    assert!(!blob_folder(gateway, content).join("data").exists());
}

#[test]
fn a_failed_fsync_is_not_acknowledged_and_not_tried_again_on_the_same_file() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image(REPOSITORY, "before", &Image::random(100));
    let content = Content::random(100_000);
    for what in ["the file", "its folder", "its shelf"] {
        let (staging, closing) = complete_upload(&gateway, &wire, &content);
        let folder = blob_folder(&gateway, &content);
        let shelf = folder.parent().unwrap();
        fs::create_dir_all(&folder).unwrap();
        let path: &Path = match what {
            "the file" => &staging,
            "its folder" => &folder,
            _ => shelf,
        };
        let failing = Failing::calls(gateway.pid(), "fsync,fdatasync", "EIO", "1", &[path]);
        let answer = wire.send("PUT", &closing, &[], "");
        says_nothing(&gateway, &answer);
        let seen = failing.seen();
        let tries = seen.iter().filter(|line| line.contains("sync(")).count();
        assert_eq!(tries, 1, "{what}: {seen:?}");
        drop(failing);
        assert!(!staging.exists(), "{what}");
        is_nowhere(&gateway, &wire, &content);
        wire.get(&closing).expect(404);
    }
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    is_nowhere(&gateway, &wire, &content);
    wire.push_blob(REPOSITORY, &content).expect(201);
}

#[test]
fn a_blob_whose_file_cannot_be_opened_is_a_5xx_and_no_broken_body() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(300_000);
    wire.push_image(REPOSITORY, "v1", &image);
    let layer = &image.layers[0];
    let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let file = blob_folder(&gateway, layer).join("data");
    for error in ["EIO", "EACCES", "EMFILE", "ENOENT"] {
        let failing = Failing::calls(gateway.pid(), "open,openat,openat2", error, "1+", &[&file]);
        for range in [None, Some(("range", "bytes=100-199"))] {
            let headers: Vec<(&str, &str)> = range.into_iter().collect();
            let answer = wire.send("GET", &path, &headers, "");
            says_nothing(&gateway, &answer);
        }
        assert!(failing.count() > 0, "{error}");
        drop(failing);
    }
    assert_eq!(wire.get(&path).expect(200).body, layer.bytes);
}

#[test]
fn a_failed_rename_leaves_no_blob_and_no_staging_file() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let content = Content::random(100_000);
    for chunked in [false, true] {
        let upload = chunked.then(|| complete_upload(&gateway, &wire, &content));
        let calls = "rename,renameat,renameat2,link,linkat";
        let failing = Failing::calls(gateway.pid(), calls, "EIO", "1+", &[]);
        let answer = match &upload {
            Some((_, closing)) => wire.send("PUT", closing, &[], ""),
            None => wire.push_blob(REPOSITORY, &content),
        };
        says_nothing(&gateway, &answer);
        assert!(failing.count() > 0);
        drop(failing);
        assert_eq!(staged(&gateway), 0);
        is_nowhere(&gateway, &wire, &content);
    }
    wire.push_blob(REPOSITORY, &content).expect(201);
    let path = format!("/v2/{REPOSITORY}/blobs/{}", content.digest);
    assert_eq!(wire.get(&path).expect(200).body, content.bytes);
}

#[test]
fn a_commit_whose_log_could_not_be_synced_is_not_acknowledged_and_not_seen() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let (first, second) = (Image::random(100), Image::random(100));
    wire.push_image(REPOSITORY, "latest", &first);
    for blob in second.blobs() {
        wire.push_blob(REPOSITORY, blob).expect(201);
    }
    let log = gateway.folder().join("data/gantry.db-wal");
    let failing = Failing::calls(gateway.pid(), "fsync,fdatasync", "EIO", "1+", &[&log]);
    let manifest = second.manifest.bytes.clone();
    for tag in ["latest", "new"] {
        let answer = wire.push_manifest(REPOSITORY, tag, tests::image::MANIFEST, manifest.clone());
        says_nothing(&gateway, &answer);
    }
    let deleted = wire.delete(&format!("/v2/{REPOSITORY}/manifests/latest"));
    says_nothing(&gateway, &deleted);
    assert!(failing.count() >= 3, "{:?}", failing.seen());
    wire.pull_image(REPOSITORY, "latest", &first);
    wire.get(&format!("/v2/{REPOSITORY}/manifests/new"))
        .expect(404);
    drop(failing);
    // What is acknowledged after the log failed must be as good as any other.
    wire.push_image(REPOSITORY, "new", &second);
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    wire.pull_image(REPOSITORY, "new", &second);
    wire.pull_image(REPOSITORY, "latest", &first);
}

#[test]
fn a_failed_read_breaks_the_body_off_and_is_a_5xx_when_nothing_was_sent() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(32 << 20);
    let layer = &image.layers[0];
    wire.push_image(REPOSITORY, "latest", &image);
    let path = format!("/v2/{REPOSITORY}/blobs/{}", layer.digest);
    let file = blob_folder(&gateway, layer).join("data");
    for when in ["1+", "3+"] {
        let failing = Failing::calls(gateway.pid(), READS, "EIO", when, &[&file]);
        match wire.try_send("GET", &path, &[], "") {
            Err(broken_off) => assert!(
                broken_off.is_body() || broken_off.is_request() || broken_off.is_decode(),
                "{broken_off:?}"
            ),
            Ok(answer) => says_nothing(&gateway, &answer),
        }
        assert!(failing.count() > 0, "{:?}", failing.seen());
    }
    // A file is opened when its first piece is sent: then the connection ends without an answer.
    let failing = Failing::calls(gateway.pid(), "openat,open", "EIO", "1+", &[&file]);
    if let Ok(answer) = wire.try_send("GET", &path, &[], "") {
        says_nothing(&gateway, &answer);
    }
    assert!(failing.count() > 0, "{:?}", failing.seen());
    drop(failing);
    assert_eq!(wire.get(&path).expect(200).body, layer.bytes);

    // A manifest is read before its headers leave; after a restart it is in no cache.
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    let file = blob_folder(&gateway, &image.manifest).join("data");
    let failing = Failing::calls(gateway.pid(), READS, "EIO", "1+", &[&file]);
    let path = format!("/v2/{REPOSITORY}/manifests/latest");
    says_nothing(&gateway, &wire.get(&path));
    assert!(failing.count() > 0, "{:?}", failing.seen());
    drop(failing);
    wire.pull_image(REPOSITORY, "latest", &image);
}

#[test]
fn a_database_that_cannot_be_read_is_a_5xx_and_no_404() {
    let mut gateway = Gateway::usual();
    let image = Image::random(100);
    Wire::basic(gateway.port, USER).push_image(REPOSITORY, "latest", &image);
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    wire.get("/v2/").expect(200);
    let data = gateway.folder().join("data");
    let files = [data.join("gantry.db"), data.join("gantry.db-wal")];
    let files = files.each_ref().map(PathBuf::as_path);
    let failing = Failing::calls(gateway.pid(), READS, "EIO", "1+", &files);
    for path in ["manifests/latest", "manifests/none", "tags/list"] {
        says_nothing(&gateway, &wire.get(&format!("/v2/{REPOSITORY}/{path}")));
    }
    drop(failing);
    wire.pull_image(REPOSITORY, "latest", &image);
    wire.get(&format!("/v2/{REPOSITORY}/manifests/none"))
        .expect(404);
}
