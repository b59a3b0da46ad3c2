//! One client cannot use up connections, descriptors or memory: another, from another address, is served beside it as ever.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tests::{
    Gateway, Wire,
    gateway::{USER, usual_config},
    image::Content,
    tools::{allow_open_files, wait_until},
    wire::runtime,
};

/// What the attacked process may have open, and resident beside its files.
const OPEN_FILES: usize = 1024;
const MEMORY_BYTES: u64 = 256 << 20;

/// Where the honest client comes from; attackers come from 127.0.0.1.
const HONEST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 7));

/// A gateway that started warm, and blobs that everybody may pull.
fn attacked(blobs: usize) -> (Gateway, Vec<Content>) {
    allow_open_files(20_000);
    let config = usual_config("", "");
    let mut gateway = Gateway::start_limited(&config, Some(OPEN_FILES as u64), |_folder| {});
    gateway.restart();
    let wire = Wire::basic(gateway.port, USER);
    let blobs: Vec<_> = (0..blobs).map(|_| Content::random(1 << 20)).collect();
    for blob in &blobs {
        let _pushed = wire.push_blob("apps/public/some", blob).expect(201);
    }
    (gateway, blobs)
}

/// Pulls of the honest client at least, while it is quiet and beside the attack.
const LEAST_PULLS: usize = 30;

/// A client that pulls on new connections until it is stopped.
struct Honest {
    stop: Arc<AtomicBool>,
    pulls: std::thread::JoinHandle<Result<Vec<Duration>, String>>,
}

impl Honest {
    fn start(gateway: &Gateway, blob: &Content) -> Self {
        let url = format!(
            "http://127.0.0.1:{}/v2/apps/public/some/blobs/{}",
            gateway.port, blob.digest
        );
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, expected) = (Arc::clone(&stop), blob.bytes.len());
        let pulls = std::thread::spawn(move || {
            let mut took = Vec::new();
            while took.len() < LEAST_PULLS || !stopped.load(Ordering::Relaxed) {
                let started = Instant::now();
                let length = runtime()
                    .block_on(pull(&url))
                    .map_err(|error| format!("{error:?}"))?;
                if length != expected {
                    return Err(format!("{length} bytes of {expected}"));
                }
                took.push(started.elapsed());
            }
            Ok(took)
        });
        Self { stop, pulls }
    }

    /// Their times, when none failed.
    #[expect(
        clippy::print_stdout,
        reason = "what was measured is for the reader of the test"
    )]
    fn stop(self, during: &str) -> Times {
        self.stop.store(true, Ordering::Relaxed);
        let took = self.pulls.join().unwrap();
        assert!(took.is_ok(), "an honest pull failed {during}: {took:?}");
        let mut took = took.unwrap();
        took.sort();
        let times = Times {
            median: took[took.len() / 2],
            p99: took[took.len() * 99 / 100],
        };
        println!("{} pulls {during}: {times:?}", took.len());
        times
    }
}

#[derive(Debug)]
struct Times {
    median: Duration,
    p99: Duration,
}

async fn pull(url: &str) -> reqwest::Result<usize> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .local_address(HONEST)
        .timeout(Duration::from_secs(20))
        .build()?;
    let response = client.get(url).send().await?.error_for_status()?;
    Ok(response.bytes().await?.len())
}

/// Pulls beside nothing, and then beside the attack: none may fail, and the slowest but one in a hundred may take ten times as long as in
/// quiet, or 250 ms. The attacker and other tests have the processor, too, so that these bounds are ten times wider.
fn honest_beside<T>(gateway: &Gateway, blob: &Content, attack: impl FnOnce() -> T) -> T {
    let quiet = Honest::start(gateway, blob).stop("in quiet");
    let beside = Honest::start(gateway, blob);
    let held = attack();
    let beside = beside.stop("beside the attack");
    let median_at_most = (quiet.median * 10).max(Duration::from_millis(2500));
    let p99_at_most = (quiet.p99 * 100).max(Duration::from_millis(2500));
    assert!(
        beside.median <= median_at_most && beside.p99 <= p99_at_most,
        "{beside:?} beside the attack, {quiet:?} in quiet"
    );
    held
}

fn connect(gateway: &Gateway) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], gateway.port));
    TcpStream::connect_timeout(&address, Duration::from_secs(5))
}

#[test]
fn thousands_of_idle_connections_of_one_address_leave_room_for_another() {
    let (gateway, blobs) = attacked(1);
    let held = honest_beside(&gateway, &blobs[0], || {
        let mut held = Vec::new();
        for _connection in 0..5000 {
            held.extend(connect(&gateway));
            assert!(gateway.open_files() < OPEN_FILES);
        }
        held
    });
    assert!(gateway.anonymous_memory() < MEMORY_BYTES);
    assert!(gateway.metric("gantry_connections_closed_for_room_total") > 1000.0);
    let log = gateway.log();
    assert_eq!(log.matches("all connections are taken").count(), 1, "{log}");
    assert!(!log.contains("cannot accept connections"), "{log}");
    drop(held);
}

#[test]
fn connections_that_a_client_keeps_busy_leave_room_for_another() {
    let (gateway, blobs) = attacked(1);
    let request = format!(
        "GET /v2/apps/public/some/blobs/{} HTTP/1.1\r\nHost: a\r\n\r\n",
        blobs[0].digest
    );
    let held = honest_beside(&gateway, &blobs[0], || {
        let mut held = Vec::new();
        for _connection in 0..2000 {
            let Ok(mut stream) = connect(&gateway) else {
                continue;
            };
            // What is refused may be closed before.
            let _refused = stream.write_all(request.repeat(8).as_bytes());
            held.push(stream);
            assert!(gateway.open_files() < OPEN_FILES);
        }
        held
    });
    assert!(gateway.anonymous_memory() < MEMORY_BYTES);
    let for_room = gateway.metric("gantry_connections_closed_for_room_total")
        + gateway.metric("gantry_connections_refused_total");
    assert!(for_room > 1000.0, "{for_room}");
    drop(held);
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An HTTP/2 connection with a request for each path, none of whose answers is read.
#[expect(clippy::unwrap_in_result, reason = "only connections may fail here")]
fn unread_streams(gateway: &Gateway, window: u32, paths: &[String]) -> std::io::Result<TcpStream> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let initial_window = [&[0, 4][..], &window.to_be_bytes()].concat();
    bytes.extend(frame(4, 0, 0, &initial_window));
    bytes.extend(frame(8, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
    for (number, path) in paths.iter().enumerate() {
        let stream = u32::try_from(number * 2 + 1).unwrap();
        // GET, http, and two literals: path and authority (RFC 7541, appendix A).
        let mut headers = vec![0x82, 0x86, 0x04, 0x7f];
        headers.push(u8::try_from(path.len() - 0x7f).unwrap());
        headers.extend(path.as_bytes());
        headers.extend([0x01, 1, b'a']);
        bytes.extend(frame(1, 5, stream, &headers));
    }
    let mut stream = connect(gateway)?;
    stream.write_all(&bytes)?;
    Ok(stream)
}

fn length(text: &[u8]) -> u8 {
    u8::try_from(text.len()).unwrap()
}

/// A connection that sends the body of a push as far as it may, with a password that has to be looked at first.
fn send_ahead(gateway: &Gateway) -> std::io::Result<TcpStream> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let path = b"/v2/apps/web/manifests/latest";
    // PUT, http, path, authority, authorization (RFC 7541, appendix A).
    let mut headers = vec![0x02, 3];
    headers.extend(b"PUT");
    headers.extend([0x86, 0x04, length(path)]);
    headers.extend(path);
    headers.extend([0x01, 1, b'a', 0x0f, 0x08]);
    let credential = b"Basic YWxpY2U6d3Jvbmc=";
    headers.push(length(credential));
    headers.extend(credential);
    for stream in [1, 3, 5, 7] {
        bytes.extend(frame(1, 4, stream, &headers));
    }
    let mut connection = connect(gateway)?;
    connection.write_all(&bytes)?;
    connection.set_write_timeout(Some(Duration::from_millis(50)))?;
    for number in 0..256_u32 {
        let data = frame(0, 0, number % 4 * 2 + 1, &[0; 16_000]);
        if connection.write_all(&data).is_err() {
            break;
        }
    }
    Ok(connection)
}

#[test]
fn what_http2_clients_send_ahead_of_a_decision_takes_little_memory() {
    let (gateway, blobs) = attacked(1);
    let held = honest_beside(&gateway, &blobs[0], || {
        let mut held = Vec::new();
        for _connection in 0..300 {
            held.extend(send_ahead(&gateway));
            let memory = gateway.anonymous_memory();
            assert!(memory < MEMORY_BYTES, "{memory} bytes");
        }
        held
    });
    drop(held);
}

fn unread(window: u32) {
    let (gateway, blobs) = attacked(64);
    let path = |blob: &Content| {
        let padding = "x".repeat(40);
        format!("/v2/apps/public/some/blobs/{}?{padding}", blob.digest)
    };
    let paths: Vec<String> = blobs.iter().chain(&blobs).map(path).collect();
    let held = honest_beside(&gateway, &blobs[0], || {
        let mut held = Vec::new();
        for _connection in 0..40 {
            held.extend(unread_streams(&gateway, window, &paths));
            let (files, memory) = (gateway.open_files(), gateway.anonymous_memory());
            assert!(files < OPEN_FILES * 3 / 4, "{files} open files");
            assert!(memory < MEMORY_BYTES, "{memory} bytes");
        }
        wait_until("the requests", Duration::from_secs(60), || {
            let (files, memory) = (gateway.open_files(), gateway.anonymous_memory());
            assert!(files < OPEN_FILES * 3 / 4, "{files} open files");
            assert!(memory < MEMORY_BYTES, "{memory} bytes");
            gateway
                .metrics()
                .contains("gantry_request_seconds_count{operation=\"pull-blob\"}")
                && answered(&gateway) >= held.len() as f64 * 10.0
        });
        held
    });
    drop(held);
}

/// A connection from one of 200 addresses. The kernel picks no port for an address that a socket is bound to before it has a peer, so
/// some are taken.
async fn connect_from(gateway: &Gateway, number: u8) -> std::io::Result<TcpStream> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 1, number % 200 + 1], 0)))?;
    let connected = socket.connect(SocketAddr::from(([127, 0, 0, 1], gateway.port)));
    let stream = connected.await?.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Uploads that get their first bytes and wait for the rest: each is a push in one request, of a blob of its own.
fn slow_uploads(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    use base64::Engine as _;
    let credential =
        base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", USER.0, USER.1));
    let mut held = Vec::new();
    for number in 0..count {
        let blob = Content::random(16);
        let head = format!(
            "POST /v2/apps/slow/blobs/uploads/?digest={} HTTP/1.1\r\nHost: a\r\nAuthorization: Basic {credential}\r\nContent-Type: application/octet-stream\r\nContent-Length: 10000000\r\n\r\n",
            blob.digest
        );
        let address = u8::try_from(number % 200).unwrap();
        let Ok(mut stream) = runtime().block_on(connect_from(gateway, address)) else {
            continue;
        };
        // What is refused may be closed before.
        let mut bytes = head.into_bytes();
        bytes.resize(bytes.len() + 4096, 0);
        let _refused = stream.write_all(&bytes);
        held.push(stream);
        let files = gateway.open_files();
        assert!(files < OPEN_FILES, "{files} open files");
    }
    held
}

#[test]
fn slow_uploads_from_many_addresses_leave_descriptors_for_pulls_and_pushes() {
    let (gateway, blobs) = attacked(1);
    let staging = gateway
        .folder()
        .join("data/docker/registry/_gantry/uploads");
    let staged = || std::fs::read_dir(&staging).unwrap().count();
    let held = honest_beside(&gateway, &blobs[0], || slow_uploads(&gateway, 600));
    wait_until("many uploads", Duration::from_secs(60), || staged() > 400);
    let uploads = gateway.open_files_in(&staging);
    // A 32nd of 1,024, and those that are written at this moment.
    assert!(uploads <= 32 + 16, "{uploads} staging files are open");
    let wire = Wire::basic(gateway.port, USER);
    let pushed = Content::random(2 << 20);
    let _pushed = wire.push_blob("apps/public/some", &pushed).expect(201);
    let log = gateway.log();
    assert!(!log.contains("cannot accept connections"), "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
    assert!(gateway.anonymous_memory() < MEMORY_BYTES);
    drop(held);
    wait_until("the uploads' end", Duration::from_secs(60), || {
        staged() == 0
    });
}

/// Pulls whose head was answered.
fn answered(gateway: &Gateway) -> f64 {
    gateway.metric("gantry_request_seconds_count{operation=\"pull-blob\"}")
}

#[test]
fn unread_http2_streams_hold_little_memory_and_few_descriptors() {
    unread(0x7fff_ffff);
}

#[test]
fn http2_streams_without_a_window_hold_little_memory_and_few_descriptors() {
    unread(0);
}

/// A server that answers every request with interim answers (RFC 9110 section 15.2) for as long as they are taken; its port.
fn answers_without_end() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1000);
        for mut stream in listener.incoming().flatten() {
            let interim = interim.clone();
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                if std::io::Read::read(&mut stream, &mut head).is_ok() {
                    while stream.write_all(interim.as_bytes()).is_ok() {}
                }
            });
        }
    });
    port
}

#[test]
fn upstreams_that_answer_without_end_give_a_bad_answer_and_delay_nobody() {
    let mirrors = format!(
        "  up: {{ url: \"http://127.0.0.1:{}\" }}\n",
        answers_without_end()
    );
    let gateway = Gateway::start(&usual_config(&mirrors, ""));
    let blob = Content::random(1 << 20);
    let wire = Wire::basic(gateway.port, USER);
    let _pushed = wire.push_blob("apps/public/some", &blob).expect(201);
    honest_beside(&gateway, &blob, || {
        let pulls = (0..8).map(|number| {
            let port = gateway.port;
            std::thread::spawn(move || {
                let path = format!("/v2/up/image{number}/manifests/latest");
                Wire::basic(port, USER).get(&path)
            })
        });
        let pulls: Vec<_> = pulls.collect();
        for pull in pulls {
            let answer = pull.join().unwrap().expect(502);
            let said = String::from_utf8_lossy(&answer.body);
            assert!(said.contains("bad answer"), "{said}");
        }
    });
    assert!(
        gateway.log().contains("interim answers"),
        "{}",
        gateway.log()
    );
}
