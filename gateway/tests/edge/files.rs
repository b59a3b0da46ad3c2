//! Blobs that are files leave by sendfile: the same bytes as by any other way, and every end a client or a disk can make of it.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_model::{Algorithm, Digest, UploadId};
use gantry_storage::{Blob, BlobStore as _, FsBlobStore, StorageError};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;

use crate::harness::{PATIENCE, Server, byte_at, patient, settings};

/// More than two windows, and no multiple of a page.
const SIZE: u64 = (9 << 20) + 12_345;

/// A published blob, with a count of its reads.
#[derive(Debug)]
struct Watched {
    blob: Arc<dyn Blob>,
    reads: Arc<AtomicUsize>,
    warm: bool,
    warmed: Arc<AtomicUsize>,
}

#[async_trait]
impl Blob for Watched {
    fn size(&self) -> u64 {
        self.blob.size()
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.blob.read_at(offset, length).await
    }

    fn file(&self) -> Option<Arc<std::fs::File>> {
        self.blob.file()
    }

    fn is_warm(&self, offset: u64, length: usize) -> bool {
        self.warm && self.blob.is_warm(offset, length)
    }

    async fn warm(&self, offset: u64, length: usize) -> Result<(), StorageError> {
        self.warmed.fetch_add(1, Ordering::Relaxed);
        self.blob.warm(offset, length).await
    }
}

/// A store with one blob in it.
struct Stored {
    folder: TempDir,
    store: FsBlobStore,
    digest: Digest,
    reads: Arc<AtomicUsize>,
    warmed: Arc<AtomicUsize>,
}

impl Stored {
    async fn new(size: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = FsBlobStore::open(folder.path()).unwrap();
        let upload = UploadId::from_random([7; 16]);
        let writer = store.create(upload, Algorithm::Sha256).await;
        let mut writer = writer.unwrap();
        let content: Bytes = (0..size).map(byte_at).collect();
        writer.write(content).await.unwrap();
        let digest = writer.digest();
        writer.commit(&digest).await.unwrap();
        Self {
            folder,
            store,
            digest,
            reads: Arc::default(),
            warmed: Arc::default(),
        }
    }

    /// Lets a server answer with it.
    async fn serve(&self, server: &Server, warm: bool) {
        let blob = self.store.open(&self.digest).await.unwrap().unwrap();
        let watched = Watched {
            blob,
            reads: Arc::clone(&self.reads),
            warm,
            warmed: Arc::clone(&self.warmed),
        };
        server.handler.file.set(Arc::new(watched)).unwrap();
    }

    fn path(&self) -> PathBuf {
        let hex = self.digest.hex();
        let shelf = hex.get(..2).unwrap();
        let blobs = self.folder.path().join("docker/registry/v2/blobs/sha256");
        blobs.join(shelf).join(hex).join("data")
    }
}

fn is_part(bytes: &[u8], offset: u64, length: u64) -> bool {
    bytes.len() as u64 == length
        && (offset..)
            .zip(bytes)
            .all(|(offset, byte)| byte_at(offset) == *byte)
}

#[tokio::test]
async fn a_file_arrives_whole_and_in_parts_without_being_read() {
    let stored = Stored::new(SIZE).await;
    let server = Server::start(&patient());
    stored.serve(&server, true).await;
    let mut client = server.connect().await;
    for (offset, length) in [
        (0, SIZE),
        (0, 64 << 10),
        (1, 4 << 20),
        (4095, (4 << 20) + 1),
        (4096, SIZE - 4096),
        (SIZE - 70_000, 70_000),
    ] {
        let response = client.get(&format!("/file/{offset}/{length}")).await;
        assert!(is_part(&response.body, offset, length), "{offset} {length}");
    }
    assert_eq!(stored.reads.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn small_parts_are_the_same_bytes() {
    let stored = Stored::new(SIZE).await;
    let server = Server::start(&patient());
    stored.serve(&server, true).await;
    let mut client = server.connect().await;
    for (offset, length) in [(0, 1), (SIZE - 1, 1), (5000, 200), (131_071, 65_535)] {
        let response = client.get(&format!("/file/{offset}/{length}")).await;
        assert!(is_part(&response.body, offset, length), "{offset} {length}");
    }
}

#[tokio::test]
async fn a_cold_file_is_read_into_memory_before_it_is_sent() {
    let stored = Stored::new(SIZE).await;
    let server = Server::start(&patient());
    stored.serve(&server, false).await;
    let response = server.connect().await.get(&format!("/file/0/{SIZE}")).await;
    assert!(is_part(&response.body, 0, SIZE));
    assert_eq!(stored.warmed.load(Ordering::Relaxed), 3, "one per window");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let stored = Stored::new(SIZE).await;
    let server = Server::start(&patient());
    stored.serve(&server, true).await;
    let mut client = server.connect().await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: gw\r\n\r\n");
    let whole = format!("/file/0/{SIZE}");
    let requests = [&whole, "/hello", "/file/77/100000", &whole, "/hello"];
    client.send(requests.map(get).concat()).await;
    assert!(is_part(&client.response().await.body, 0, SIZE));
    assert_eq!(client.response().await.text(), "hello");
    assert!(is_part(&client.response().await.body, 77, 100_000));
    assert!(is_part(&client.response().await.body, 0, SIZE));
    assert_eq!(client.response().await.text(), "hello");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_frees_the_file() {
    let stored = Stored::new(SIZE * 4).await;
    let server = Server::start(&patient());
    stored.serve(&server, true).await;
    let held = Arc::strong_count(server.handler.file.get().unwrap());
    let mut client = server.connect().await;
    let request = format!("GET /file/0/{} HTTP/1.1\r\nhost: gw\r\n\r\n", SIZE * 4);
    client.send(request).await;
    let mut some = vec![0; 100_000];
    client.stream.read_exact(&mut some).await.unwrap();
    drop(client);
    server.no_connection_left().await;
    let blob = server.handler.file.get().unwrap();
    assert_eq!(Arc::strong_count(blob), held);
}

#[tokio::test]
async fn a_client_that_takes_a_file_too_slowly_is_cut() {
    let size = 64_u64 << 20;
    let stored = Stored::new(size).await;
    let server = Server::start(&settings());
    stored.serve(&server, true).await;
    let mut client = server.connect().await;
    client
        .send(format!("GET /file/0/{size} HTTP/1.1\r\nhost: gw\r\n\r\n"))
        .await;
    let mut some = vec![0; 1000];
    client.stream.read_exact(&mut some).await.unwrap();
    server.no_connection_left().await;
    assert!((client.rest().await.len() as u64) < size);
}

#[tokio::test]
async fn a_file_that_is_deleted_while_it_is_sent_arrives_whole() {
    let stored = Stored::new(SIZE * 2).await;
    let server = Server::start(&patient());
    stored.serve(&server, true).await;
    let mut client = server.connect().await;
    let size = SIZE * 2;
    client
        .send(format!("GET /file/0/{size} HTTP/1.1\r\nhost: gw\r\n\r\n"))
        .await;
    let mut first = vec![0; 1];
    client.stream.peek(&mut first).await.unwrap();
    assert!(stored.store.delete(&stored.digest).await.unwrap());
    assert!(!stored.path().exists());
    assert!(is_part(&client.response().await.body, 0, size));
}

#[tokio::test]
async fn a_file_that_somebody_cuts_aborts_the_connection_and_nothing_else() {
    for warm in [true, false] {
        let size = 64_u64 << 20;
        let stored = Stored::new(size).await;
        let server = Server::start(&patient());
        stored.serve(&server, warm).await;
        let mut client = server.connect().await;
        client
            .send(format!("GET /file/0/{size} HTTP/1.1\r\nhost: gw\r\n\r\n"))
            .await;
        let mut first = vec![0; 1];
        client.stream.peek(&mut first).await.unwrap();
        let file = std::fs::File::options().write(true).open(stored.path());
        file.unwrap().set_len(100_000).unwrap();
        let rest = tokio::time::timeout(PATIENCE, client.rest()).await.unwrap();
        assert!((rest.len() as u64) < size);
        tokio::time::timeout(Duration::from_secs(10), server.no_connection_left())
            .await
            .unwrap();
        assert_eq!(server.connect().await.get("/hello").await.text(), "hello");
    }
}
