//! What it takes to be there: memory with six plugins, memory of an idle connection, time from start to ready.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Instant,
};

use tests::{
    Gateway, Wire,
    gateway::{USER, usual_config},
};

use crate::{
    peers,
    table::{Table, median},
    usage::resident_bytes,
};

const CONNECTIONS: usize = 10_000;
const STARTS: usize = 9;

pub(crate) fn measure(table: &mut Table) {
    memory(table);
    starts(table);
}

/// Three plugins beside the usual three.
fn more_plugins() -> String {
    ["gold", "silver", "bronze"]
        .map(|name| {
            format!("  - name: {name}\n    from: builtin:immutable-tags\n    repositories: [\"team/{name}/**\"]\n    config: {{ immutable: [\"v*\"] }}\n")
        })
        .concat()
}

fn memory(table: &mut Table) {
    let (mut gateway, _tls) = peers::gantry("", &more_plugins());
    let compiled = resident_bytes(gateway.pid()) / 1048576.0;
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "latest", &tests::Image::random(1000));
    wire.get("/v2/apps/web/manifests/latest").expect(200);
    let before = resident_bytes(gateway.pid());
    table.limit(
        "memory with six plugins, after a push and a pull",
        "MiB",
        before / 1048576.0,
        64.0,
        &format!("VmRSS; {compiled:.0} MiB after the first start, which compiles them"),
    );
    let mut streams = Vec::with_capacity(CONNECTIONS);
    for _connection in 0..CONNECTIONS {
        streams.push(idle(gateway.port));
    }
    let each = (resident_bytes(gateway.pid()) - before) / CONNECTIONS as f64 / 1024.0;
    table.limit(
        "10,000 idle connections, each after one request",
        "KiB",
        each,
        16.0,
        "VmRSS grown",
    );
}

/// A connection that asked once and is kept.
fn idle(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the gateway accepts");
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: gw\r\n\r\n")
        .expect("the gateway reads");
    let mut answer = [0; 1024];
    let count = stream.read(&mut answer).expect("the gateway answers");
    assert!(
        answer
            .get(..count)
            .is_some_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
    );
    stream
}

/// From the start of the process to the first answer of `/readyz`, with an empty store and compiled plugins.
fn starts(table: &mut Table) {
    let mut gateway = Gateway::start(&usual_config("", &more_plugins()));
    let mut milliseconds = Vec::new();
    for _start in 0..STARTS {
        gateway.kill9();
        let data = gateway.folder().join("data");
        for entry in fs::read_dir(&data).expect("the folder is there").flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "compiled") {
                fs::remove_dir_all(&path).expect("the folder is ours");
            } else if path.is_file()
                && path
                    .extension()
                    .is_some_and(|end| end.to_string_lossy().starts_with("db"))
            {
                fs::remove_file(&path).expect("the folder is ours");
            }
        }
        let started = Instant::now();
        gateway.spawn();
        while !gateway.is_ready() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        milliseconds.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let plugins = "six plugins, AOT cache warm";
    table.limit(
        "empty start to ready",
        "ms",
        median(milliseconds),
        150.0,
        plugins,
    );
}
