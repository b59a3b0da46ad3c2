//! A thousand clients on one cold blob: one fetch, whole bodies, flat memory, a first byte that does not wait, whoever goes away.

use std::{
    cell::RefCell,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all};
use tests::{
    Gateway, Image, Origin, Wire, gateway::usual_config, image::Content, origin::Fault,
    tools::allow_open_files, wire::runtime,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const CLIENTS: usize = 1000;
const BLOB: usize = 64 << 20;
const GROWTH: u64 = 64 << 20;

/// How much later a cold blob may begin to arrive than it does directly. Release builds are held to a tenth of this by the bench.
const FIRST_BYTE: Duration = Duration::from_millis(100);

fn cold(origin: &Origin, image: &Image) -> Gateway {
    origin.push("big/blob", "latest", image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    Wire::anonymous(gateway.port)
        .get("/v2/up/big/blob/manifests/latest")
        .expect(200);
    gateway
}

fn path(layer: &Content) -> String {
    format!("/v2/up/big/blob/blobs/{}", layer.digest)
}

/// Pulls a blob and holds every byte against `expected`. By hand, because a thousand HTTP clients would take longer than the gateway.
async fn pull(port: u16, path: &str, expected: &Bytes) {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; 1 << 20]);
    }
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let mut got = None;
    loop {
        stream.readable().await.unwrap();
        let ended = BUFFER.with_borrow_mut(|buffer| {
            let count = match stream.try_read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
                read => read.unwrap(),
            };
            let mut bytes = &buffer[..count];
            if got.is_none() {
                head.extend_from_slice(bytes);
                let end = head.windows(4).position(|window| window == b"\r\n\r\n");
                let Some(end) = end else {
                    return count == 0;
                };
                assert!(head.starts_with(b"HTTP/1.1 200 "), "{head:?}");
                bytes = &head[end + 4..];
            }
            let offset = got.unwrap_or(0);
            assert!(
                expected.get(offset..offset + bytes.len()) == Some(bytes),
                "other bytes from {offset}"
            );
            got = Some(offset + bytes.len());
            count == 0
        });
        if ended {
            break;
        }
    }
    assert_eq!(got, Some(expected.len()), "a body that is not whole");
}

#[test]
fn a_thousand_clients_make_one_fetch_in_little_memory() {
    allow_open_files(4 * CLIENTS as u64);
    let origin = Origin::start();
    let image = Image::random(BLOB);
    let layer = &image.layers[0];
    let gateway = cold(&origin, &image);
    let before = gateway.peak_memory();
    let pulls = (0..CLIENTS).map(|_client| {
        let (port, path, bytes) = (gateway.port, path(layer), layer.bytes.clone());
        runtime().spawn(async move { pull(port, &path, &bytes).await })
    });
    let pulls: Vec<_> = pulls.collect();
    for pull in runtime().block_on(join_all(pulls)) {
        pull.unwrap();
    }
    assert_eq!(
        origin.count("GET", &layer.digest),
        1,
        "by the upstream's own count"
    );
    let growth = gateway.peak_memory() - before;
    assert!(growth < GROWTH, "VmHWM grew by {} MiB", growth >> 20);
}

#[test]
fn the_first_of_many_clients_may_die() {
    let origin = Origin::start();
    let image = Image::random(BLOB);
    let layer = &image.layers[0];
    let gateway = cold(&origin, &image);
    origin.break_paths(&layer.digest, Fault::HoldAt(BLOB / 2));
    let wire = Wire::anonymous(gateway.port);
    runtime().block_on(async {
        // The first client is given a part of the body, and goes.
        let mut pieces = wire
            .request("GET", &path(layer), &[])
            .send()
            .await
            .unwrap()
            .bytes_stream();
        let mut got = 0;
        while got < BLOB / 4 {
            got += pieces.next().await.unwrap().unwrap().len();
        }
        drop(pieces);
        let others = (0..100).map(|_client| {
            let (port, path, bytes) = (gateway.port, path(layer), layer.bytes.clone());
            runtime().spawn(async move { pull(port, &path, &bytes).await })
        });
        let others: Vec<_> = others.collect();
        origin.release();
        for other in join_all(others).await {
            other.unwrap();
        }
    });
    assert_eq!(origin.count("GET", &layer.digest), 1);
}

/// How long the first byte of a body takes.
fn first_byte(wire: &Wire, path: &str) -> Duration {
    let started = Instant::now();
    runtime().block_on(async {
        let answer = wire.request("GET", path, &[]).send().await.unwrap();
        let first = answer.bytes_stream().next().await;
        assert!(!first.unwrap().unwrap().is_empty());
    });
    started.elapsed()
}

#[test]
fn the_first_byte_of_a_cold_blob_comes_about_as_soon_as_directly() {
    const BLOBS: usize = 9;
    let origin = Origin::start();
    let image = Image::of_layers((0..BLOBS).map(|_blob| Content::random(8 << 20)).collect());
    let gateway = cold(&origin, &image);
    let through = Wire::anonymous(gateway.port);
    let direct = through.at(&format!("http://127.0.0.1:{}", origin.port));
    let later: Vec<Duration> = image
        .layers
        .iter()
        .map(|layer| {
            let direct = first_byte(&direct, &format!("/v2/big/blob/blobs/{}", layer.digest));
            first_byte(&through, &path(layer)).saturating_sub(direct)
        })
        .collect();
    // Other tests run beside this one, so the quickest counts.
    let least = later.iter().min();
    assert!(least < Some(&FIRST_BYTE), "{later:?}");
}

#[test]
fn a_hundred_clients_on_a_cold_tag_make_one_fetch() {
    let origin = Origin::start();
    let image = Image::random(10);
    origin.push("a/b", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    let answers = runtime().block_on(join_all((0..100).map(|_client| {
        let request = wire.request("GET", "/v2/up/a/b/manifests/latest", &[]);
        async { tests::wire::whole(request).await }
    })));
    for answer in answers {
        assert_eq!(answer.unwrap().body, image.manifest.bytes);
    }
    assert_eq!(origin.count("GET", "/v2/a/b/manifests/"), 1);
    assert!(origin.count("HEAD", "/v2/a/b/manifests/") <= 1);
}
