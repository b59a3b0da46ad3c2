//! Bytes: a warm blob out, plain and over TLS, against nginx; a blob in against what it costs at least.

use std::{fs, path::Path};

use tests::{
    Wire,
    gateway::USER,
    image::{Content, sha256},
    wire::with_query,
};

use crate::{
    load::{fetch, pull, put},
    peers,
    table::{Table, in_turn, median},
    usage::Meter,
};

const BLOB_BYTES: usize = 256 << 20;
const PULLS: usize = 6;
const PUSH_BYTES: usize = 128 << 20;
const ROUNDS: usize = 5;
/// As many for each place in the order.
const PUSH_ROUNDS: usize = 6;
const GIB: f64 = (1_u64 << 30) as f64;

pub(crate) fn measure(table: &mut Table) {
    pulls(table);
    pushes(table);
}

/// CPU-seconds per GiB of one server while `work` moves `bytes`.
fn per_gib(pid: u32, bytes: usize, work: impl FnOnce()) -> f64 {
    let meter = Meter::start(pid);
    work();
    meter.seconds() / (bytes as f64 / GIB)
}

fn pulls(table: &mut Table) {
    let nginx = peers::nginx();
    let registry = peers::registry();
    let (gateway, tls_port) = peers::gantry("", "");
    let blob = Content::random(BLOB_BYTES);
    fs::write(nginx.folder.path().join("files/blob"), &blob.bytes).expect("the folder is ours");
    Wire::basic(gateway.port, USER)
        .push_blob("apps/blob", &blob)
        .expect(201);
    Wire::anonymous(registry.port)
        .push_blob("apps/blob", &blob)
        .expect(201);
    let path = format!("/v2/apps/blob/blobs/{}", blob.digest);
    let user = peers::user();
    let user = ["-u", user.as_str()];
    let targets = [
        (nginx.pid(), nginx.url("/blob")),
        (gateway.pid(), format!("http://{}{path}", gateway.host())),
        (registry.pid(), registry.url(&path)),
        (
            nginx.pid(),
            format!("https://127.0.0.1:{}/blob", nginx.tls_port),
        ),
        (gateway.pid(), format!("https://127.0.0.1:{tls_port}{path}")),
    ];
    // The warm-up, and the proof that all of them serve the same bytes.
    for (_pid, url) in &targets {
        assert!(sha256(&fetch(url, &user)) == blob.digest, "{url}");
    }
    drop(blob);
    let mut seconds = vec![Vec::new(); targets.len()];
    for round in 0..ROUNDS {
        for index in in_turn(round, targets.len()) {
            let ((pid, url), figures) = (&targets[index], &mut seconds[index]);
            figures.push(per_gib(*pid, BLOB_BYTES * PULLS, || {
                pull(url, PULLS, BLOB_BYTES as u64, &user);
            }));
        }
    }
    let [nginx, ours, registry, nginx_tls, ours_tls] = middles(seconds);
    table.ratio(
        "warm blob, plain, CPU-s/GiB",
        ours,
        ("nginx", nginx),
        1.0,
        &[("docker-registry", registry)],
    );
    table.ratio(
        "warm blob, TLS 1.3, CPU-s/GiB",
        ours_tls,
        ("nginx", nginx_tls),
        1.0,
        &[],
    );
}

fn middles<const N: usize>(figures: Vec<Vec<f64>>) -> [f64; N] {
    let middles: Vec<f64> = figures.into_iter().map(median).collect();
    middles.try_into().expect("as many as were measured")
}

fn pushes(table: &mut Table) {
    let floor = peers::floor();
    let registry = peers::registry();
    let (gateway, _tls) = peers::gantry("", "");
    let user = peers::user();
    let file = floor.folder.path().join("content");
    let mut seconds = vec![Vec::new(); 3];
    let servers = seconds.len();
    for round in 0..PUSH_ROUNDS {
        let content = Content::random(PUSH_BYTES);
        fs::write(&file, &content.bytes).expect("the folder is ours");
        let at_gateway = (
            Wire::basic(gateway.port, USER),
            format!("http://{}", gateway.host()),
        );
        let at_registry = (Wire::anonymous(registry.port), registry.url(""));
        // Whoever writes first after a large file went gets memory that is mapped already, so each is first as often as the others.
        for index in (round..).take(servers).map(|place| place % servers) {
            seconds[index].push(match index {
                0 => per_gib(floor.pid(), PUSH_BYTES, || put(&floor.url("/"), &file, &[])),
                1 => per_gib(gateway.pid(), PUSH_BYTES, || {
                    push(&at_gateway, &file, &content, &["-u", &user]);
                }),
                _ => per_gib(registry.pid(), PUSH_BYTES, || {
                    push(&at_registry, &file, &content, &[]);
                }),
            });
        }
    }
    let [floor, ours, registry] = middles(seconds);
    let others = [("docker-registry", registry)];
    table.ratio(
        "push, CPU-s/GiB",
        ours,
        ("receive + sha256 + write + fsync", floor),
        1.15,
        &others,
    );
}

fn push((wire, base): &(Wire, String), file: &Path, content: &Content, more: &[&str]) {
    let location = wire.start_upload("apps/pushed");
    let location = with_query(&location, &format!("digest={}", content.digest));
    let url = if location.starts_with("http") {
        location
    } else {
        format!("{base}{location}")
    };
    put(&url, file, more);
}
