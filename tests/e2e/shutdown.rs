//! A gateway that is told to stop finishes what runs and takes no more; told twice, or during its start, it does not wait.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use tests::{
    Gateway, Image, Wire,
    gateway::{USER, usual_config},
    image::Content,
    tools::wait_until,
    wire::with_query,
};

/// Far less than the drain timeout, which is what waiting would take.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A request whose head was sent, on a connection of its own.
fn begin(gateway: &Gateway, method: &str, path: &str, headers: &str) -> TcpStream {
    use base64::Engine as _;
    let known = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", USER.0, USER.1));
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let host = gateway.host();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Basic {known}\r\n{headers}\r\n"
    )
    .unwrap();
    stream
}

fn takes_no_more(gateway: &Gateway) {
    wait_until("the listener to close", Duration::from_secs(10), || {
        TcpStream::connect(("127.0.0.1", gateway.port)).is_err()
    });
}

#[test]
fn a_drain_finishes_the_download_that_runs_and_an_open_upload_goes_on_after_the_restart() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let layer = Content::random(16 << 20);
    wire.push_blob("apps/web", &layer).expect(201);
    let content = Content::random(1 << 20);
    let location = wire.start_upload("apps/web");
    wire.send("PATCH", &location, &[], content.bytes.slice(..500_000))
        .expect(202);

    let path = format!("/v2/apps/web/blobs/{}", layer.digest);
    let mut download = begin(&gateway, "GET", &path, "Connection: close\r\n");
    let mut first = [0; 1000];
    download.read_exact(&mut first).unwrap();
    gateway.terminate();
    takes_no_more(&gateway);
    let mut rest = Vec::new();
    download.read_to_end(&mut rest).unwrap();
    let answer = [&first[..], &rest].concat();
    assert!(answer.ends_with(&layer.bytes), "{} bytes", answer.len());
    assert!(gateway.wait().success());

    gateway.restart();
    let status = wire.get(&location).expect(204);
    assert_eq!(status.header("range"), "0-499999");
    let closing = with_query(&location, &format!("digest={}", content.digest));
    wire.send("PUT", &closing, &[], content.bytes.slice(500_000..))
        .expect(201);
    let path = format!("/v2/apps/web/blobs/{}", content.digest);
    assert_eq!(wire.get(&path).expect(200).body, content.bytes);
}

#[test]
fn a_second_signal_ends_a_drain_at_once_and_loses_nothing_acknowledged() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let content = Content::random(1 << 20);
    for second in ["TERM", "INT"] {
        let location = wire.start_upload("apps/web");
        wire.send("PATCH", &location, &[], content.bytes.slice(..1000))
            .expect(202);
        let mut stalled = begin(&gateway, "PATCH", &location, "Content-Length: 1000000\r\n");
        stalled.write_all(&content.bytes[1000..2000]).unwrap();
        wait_until("the chunk to begin", Duration::from_secs(10), || {
            wire.send("PATCH", &location, &[], "").status == 503
        });
        gateway.terminate();
        takes_no_more(&gateway);
        let told = Instant::now();
        gateway.signal(second);
        assert!(gateway.wait().success());
        assert!(told.elapsed() < AT_ONCE, "{second}: {:?}", told.elapsed());
        gateway.restart();
        let range = wire.get(&location).expect(204).header("range");
        let last: usize = range.strip_prefix("0-").unwrap().parse().unwrap();
        assert!((999..2000).contains(&last), "{range}");
    }
}

#[test]
fn a_signal_during_the_start_ends_it_at_once_and_the_next_start_is_whole() {
    let mut gateway = Gateway::start(&usual_config("", ""));
    let image = Image::random(1000);
    Wire::basic(gateway.port, USER).push_image("apps/web", "latest", &image);
    for signal in ["TERM", "INT"] {
        gateway.kill9();
        let before = gateway.log().matches("listening").count();
        gateway.start_slowly();
        let status = format!("/proc/{}/status", gateway.pid());
        wait_until("it to listen for signals", Duration::from_secs(20), || {
            let status = fs::read_to_string(&status).unwrap();
            let caught = status
                .lines()
                .find_map(|line| line.strip_prefix("SigCgt:"))
                .unwrap();
            let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
            let both = (1 << (2 - 1)) | (1 << (15 - 1));
            caught & both == both
        });
        let told = Instant::now();
        gateway.signal(signal);
        assert!(gateway.wait().success());
        assert!(told.elapsed() < AT_ONCE, "{signal}: {:?}", told.elapsed());
        let after = gateway.log().matches("listening").count();
        assert_eq!(before, after, "it was still starting");
        gateway.restart();
        Wire::basic(gateway.port, USER).pull_image("apps/web", "latest", &image);
    }
}
