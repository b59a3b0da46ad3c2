//! The proxy cache while it is cold: a blob through it against the same blob from the upstream itself.
//!
//! The upstream is behind a line of 1 Gbit/s, a relay of our own that both ways go through: on one machine without a line a transfer is
//! nothing but the CPU time of everybody who takes part. That figure is shown beside.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use tests::{Wire, image::Content};

use crate::{
    load::pull,
    peers,
    table::{Table, median},
};

const BLOB_BYTES: usize = 64 << 20;
const ROUNDS: usize = 7;
/// 1 Gbit/s.
const LINE_BYTES_PER_SECOND: f64 = 125e6;

/// What pulls of fresh blobs took, in milliseconds: to the first byte, and in all.
#[derive(Default)]
struct Pulls {
    first: Vec<f64>,
    total: Vec<f64>,
}

impl Pulls {
    fn pull(&mut self, url: &str) {
        let (first, total) = pull(url, 1, BLOB_BYTES as u64, &["-u", &peers::user()]);
        self.first.push(first * 1e3);
        self.total.push(total * 1e3);
    }
}

pub(crate) fn measure(table: &mut Table) {
    let upstream = peers::registry();
    let line = relay(upstream.port);
    let mirrors = format!(
        "  up: {{ url: \"http://127.0.0.1:{line}\" }}\n  near: {{ url: \"http://127.0.0.1:{}\" }}\n",
        upstream.port
    );
    let (gateway, _tls) = peers::gantry(&mirrors, "");
    let wire = Wire::anonymous(upstream.port);
    let mut pulls: [Pulls; 4] = Default::default();
    for _round in 0..ROUNDS {
        let far = Content::random(BLOB_BYTES);
        let near = Content::random(BLOB_BYTES);
        for blob in [&far, &near] {
            wire.push_blob("big/blob", blob).expect(201);
        }
        let path = |blob: &Content| format!("big/blob/blobs/{}", blob.digest);
        let urls = [
            format!("http://127.0.0.1:{line}/v2/{}", path(&far)),
            format!("http://{}/v2/up/{}", gateway.host(), path(&far)),
            upstream.url(&format!("/v2/{}", path(&near))),
            format!("http://{}/v2/near/{}", gateway.host(), path(&near)),
        ];
        // Another's first look at a fresh file is nobody's cost.
        for blob in [&far, &near] {
            let url = upstream.url(&format!("/v2/{}", path(blob)));
            pull(&url, 1, BLOB_BYTES as u64, &[]);
        }
        for (url, pulls) in urls.iter().zip(&mut pulls) {
            pulls.pull(url);
        }
    }
    print(
        table,
        pulls.map(|pulls| (median(pulls.first), median(pulls.total))),
    );
}

fn print(table: &mut Table, [direct, through, near, through_near]: [(f64, f64); 4]) {
    table.ratio(
        "cold pull-through of 64 MiB over 1 Gbit/s, ms",
        through.1,
        ("direct", direct.1),
        1.05,
        &[],
    );
    table.limit(
        "its first byte after direct's",
        "ms",
        through.0 - direct.0,
        10.0,
        &format!("direct {:.1} ms", direct.0),
    );
    table.ratio(
        "cold pull-through of 64 MiB without a line, ms",
        through_near.1,
        ("direct", near.1),
        1.05,
        &[],
    );
}

/// A line to a port, as slow as [`LINE_BYTES_PER_SECOND`] towards the client; the port where it begins.
fn relay(to: u16) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("the relay accepts");
            let server = TcpStream::connect(("127.0.0.1", to)).expect("the upstream runs");
            let (client, server) = (Arc::new(client), Arc::new(server));
            let (asking, asked) = (Arc::clone(&client), Arc::clone(&server));
            std::thread::spawn(move || pass(&asking, &asked, f64::INFINITY));
            std::thread::spawn(move || pass(&server, &client, LINE_BYTES_PER_SECOND));
        }
    });
    port
}

/// Passes bytes on until one side has no more. A burst is what the line carries in 2 ms.
fn pass(from: &TcpStream, to: &TcpStream, bytes_per_second: f64) {
    let passed = || -> io::Result<()> {
        let (mut from, mut to) = (from, to);
        let mut buffer = vec![0; 256 << 10];
        let mut free_at = Instant::now();
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return to.shutdown(std::net::Shutdown::Write);
            }
            free_at = free_at.max(Instant::now())
                + Duration::from_secs_f64(count as f64 / bytes_per_second);
            let early = free_at.saturating_duration_since(Instant::now());
            std::thread::sleep(early.saturating_sub(Duration::from_millis(2)));
            to.write_all(buffer.get(..count).unwrap_or_default())?;
        }
    };
    // A side that resets ends its own connection; the pull at the other end of it tells.
    passed().ok();
}
