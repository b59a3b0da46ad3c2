//! However an upstream fails: what is here is served, what is not is never called unknown, and no wrong or padded byte leaves.

use std::{ops::RangeInclusive, time::Duration};

use tests::{
    Gateway, Image, Origin, Wire, gateway::usual_config, image::Content, origin::Fault,
    tools::wait_until,
};

const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again about a tag on every pull, and waits for nobody long.
const IMPATIENT: &str = ", tags: { fresh_for: 1ms }, limits: { silence_timeout: 2s }";

/// Ways to fail, with the statuses that an uncached name may be answered with.
fn failures() -> [(Fault, RangeInclusive<u16>); 10] {
    [
        (Fault::TooMany { retry_after: 3 }, 429..=429),
        (Fault::Status(401), 401..=503),
        // Its token endpoint answers 503.
        (Fault::Challenge, 502..=503),
        (Fault::Hang, 502..=503),
        (Fault::Status(403), 403..=403),
        (Fault::Status(404), 404..=404),
        (Fault::Status(500), 502..=503),
        (Fault::Status(502), 502..=503),
        (Fault::Status(503), 502..=503),
        (Fault::TruncateAt(0), 502..=503),
    ]
}

/// What every failure leaves readable: digests and blobs without a question to the upstream.
fn assert_cached(wire: &Wire, image: &Image, what: &str) {
    wire.pull_image("up/a/cached", &image.manifest.digest, image);
    let head = wire.head(&format!("/v2/up/a/cached/blobs/{}", image.layers[0].digest));
    assert_eq!(head.status.as_u16(), 200, "{what}: {head:?}");
}

/// A name that was never pulled: by tag, by digest, and a blob.
fn assert_uncached(wire: &Wire, cold: &Image, expected: &RangeInclusive<u16>, what: &str) {
    for path in [
        "/v2/up/a/cold/manifests/latest".to_owned(),
        format!("/v2/up/a/cold/manifests/{}", cold.manifest.digest),
        format!("/v2/up/a/cold/blobs/{}", cold.layers[0].digest),
    ] {
        for method in ["GET", "HEAD"] {
            // A body that ends before its length is an error of the transport, and as honest.
            let Ok(answer) = wire.try_send(method, &path, &[], "") else {
                continue;
            };
            let status = answer.status.as_u16();
            // An upstream whose bodies break still says truly in a HEAD what it has.
            let only_bodies_break = what.starts_with("TruncateAt") && method == "HEAD";
            if only_bodies_break && status == 200 {
                continue;
            }
            assert!(
                expected.contains(&status),
                "{what}: {method} {path}: {status}"
            );
            assert!(
                status != 404 || *expected == (404..=404),
                "{what}: {method} {path} is a false 404"
            );
        }
    }
}

#[test]
fn every_way_to_fail_leaves_the_cache_readable_and_says_no_false_404() {
    for (fault, expected) in failures() {
        let what = format!("{fault:?}");
        let origin = Origin::start();
        let (cached, cold) = (Image::random(5_000), Image::random(5_000));
        origin.push("a/cached", "latest", &cached);
        origin.push("a/cold", "latest", &cold);
        let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", IMPATIENT), ""));
        let wire = Wire::anonymous(gateway.port);
        wire.pull_image("up/a/cached", "latest", &cached);
        origin.break_paths("/v2/", fault.clone());
        origin.break_paths("/token", Fault::Status(503));
        assert_uncached(&wire, &cold, &expected, &what);
        assert_cached(&wire, &cached, &what);
        let tag = wire.get("/v2/up/a/cached/manifests/latest");
        if matches!(fault, Fault::Status(404)) {
            tag.expect(404);
        } else {
            let tag = tag.expect(200);
            assert_eq!(tag.body, cached.manifest.bytes, "{what}");
            let confirmed = matches!(fault, Fault::TruncateAt(_));
            assert!(
                confirmed || tag.header("warning").starts_with("111 "),
                "{what}: {tag:?}"
            );
        }
        origin.heal();
    }
}

#[test]
fn an_upstream_whose_answers_flap_between_401_and_content_is_pulled_from() {
    let origin = Origin::start();
    let image = Image::random(5_000);
    origin.push("a/b", "latest", &image);
    origin.break_paths("/v2/", Fault::Flap);
    origin.break_paths("/token", Fault::Token);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", IMPATIENT), ""));
    let wire = Wire::anonymous(gateway.port);
    for _again in 0..3 {
        wire.pull_image("up/a/b", "latest", &image);
    }
    let unknown = wire.get("/v2/up/a/b/manifests/absent").expect(404);
    assert_eq!(unknown.code(), "MANIFEST_UNKNOWN");
}

#[test]
fn an_upstream_that_cannot_be_reached_leaves_the_cache_readable() {
    let mut origin = Origin::start();
    let (cached, cold) = (Image::random(5_000), Image::random(5_000));
    origin.push("a/cached", "latest", &cached);
    origin.push("a/cold", "latest", &cold);
    let entry = origin.mirror_entry("up", IMPATIENT);
    let mut gateway = Gateway::start(&usual_config(&entry, ""));
    Wire::anonymous(gateway.port).pull_image("up/a/cached", "latest", &cached);
    gateway.settled();
    let plain = format!("http://127.0.0.1:{}", origin.port);
    for (what, url) in [
        ("not TLS", plain.replace("http:", "https:")),
        ("no such name", "http://registry.invalid".to_owned()),
        ("nobody listens", "http://127.0.0.1:1".to_owned()),
        ("down", plain.clone()),
    ] {
        if what == "down" {
            origin.stop();
        }
        gateway.write_config(&usual_config(&entry.replace(&plain, &url), ""));
        gateway.restart();
        let wire = Wire::anonymous(gateway.port);
        assert_uncached(&wire, &cold, &(502..=503), what);
        if url != plain {
            // What another upstream delivered is not this one's.
            let path = format!("/v2/up/a/cached/manifests/{}", cached.manifest.digest);
            wire.get(&path).expect(503);
            continue;
        }
        assert_cached(&wire, &cached, what);
        let tag = wire.get("/v2/up/a/cached/manifests/latest").expect(200);
        assert_eq!(tag.body, cached.manifest.bytes, "{what}");
    }
}

#[test]
fn a_body_cut_at_any_of_fifty_places_is_whole_or_an_error() {
    const LENGTH: usize = 700_001;
    const CUTS: usize = 50;
    let origin = Origin::start();
    let image = Image::of_layers((0..CUTS).map(|_cut| Content::random(LENGTH)).collect());
    origin.push("a/cut", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/cut/manifests/latest").expect(200);
    for (cut, layer) in image.layers.iter().enumerate() {
        // The first byte, the last, one before the whole, and places between.
        let at = match cut {
            0 => 0,
            1 => 1,
            2 => LENGTH - 1,
            _ => LENGTH * cut / CUTS + cut,
        };
        origin.break_paths(&layer.digest, Fault::TruncateAt(at));
        let path = format!("/v2/up/a/cut/blobs/{}", layer.digest);
        if let Ok(answer) = wire.try_send("GET", &path, &[], "") {
            assert!(
                answer.status.as_u16() >= 500 || answer.body == layer.bytes,
                "cut at {at}: {} with {} bytes",
                answer.status,
                answer.body.len()
            );
        }
    }
    origin.heal();
    // An upstream that failed so often is left alone for a while.
    wait_until("the upstream to be asked again", PATIENCE, || {
        image.layers.iter().all(|layer| {
            let path = format!("/v2/up/a/cut/blobs/{}", layer.digest);
            wire.try_send("GET", &path, &[], "")
                .is_ok_and(|answer| answer.status.as_u16() == 200)
        })
    });
    wire.pull_image("up/a/cut", "latest", &image);
}

#[test]
fn a_broken_fill_goes_on_where_it_stopped() {
    const LENGTH: usize = 16 << 20;
    let origin = Origin::start();
    let image = Image::random(LENGTH);
    origin.push("a/b", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/b/manifests/latest").expect(200);
    let digest = &image.layers[0].digest;
    origin.break_paths(digest, Fault::TruncateAt(LENGTH / 2 + 1));
    let blob = wire.get(&format!("/v2/up/a/b/blobs/{digest}")).expect(200);
    assert_eq!(blob.body, image.layers[0].bytes);
    let sent = origin.sent(digest);
    assert!(
        sent <= LENGTH + LENGTH / 10,
        "{sent} bytes were fetched of {LENGTH}"
    );
    assert!(origin.count("GET", digest) >= 2, "the body was cut");
}

/// Open descriptors of the gateway.
fn descriptors(gateway: &Gateway) -> usize {
    let folder = format!("/proc/{}/fd", gateway.pid());
    std::fs::read_dir(folder).unwrap().count()
}

/// Asks for a blob, reads so many bytes of the answer, and leaves.
fn leave_after(port: u16, path: &str, bytes: usize) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"
    )
    .unwrap();
    let mut buffer = vec![0; bytes];
    // The answer may be shorter than that.
    let _read = stream.read_exact(&mut buffer);
}

#[test]
fn pulls_that_are_left_in_the_middle_leave_nothing_behind() {
    const LENGTH: usize = 2 << 20;
    const COLD: usize = 40;
    const WARM: usize = 2_000;
    let origin = Origin::start();
    let image = Image::of_layers((0..COLD).map(|_each| Content::random(LENGTH)).collect());
    origin.push("a/b", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    wire.get("/v2/up/a/b/manifests/latest").expect(200);
    let path = |at: usize| format!("/v2/up/a/b/blobs/{}", image.layers[at % COLD].digest);
    leave_after(gateway.port, &path(0), 1);
    let idle = |what: &str| {
        wait_until(what, PATIENCE, || {
            let connections = gateway.metric("gantry_connections");
            // Those that ask for this number and for what came before.
            connections <= 3.0 && gateway.metric("gantry_fills_running") == 0.0
        });
    };
    idle("the first pull to end");
    let (before, memory) = (descriptors(&gateway), gateway.peak_memory());
    std::thread::scope(|scope| {
        for lane in 0..8 {
            let path = &path;
            let port = gateway.port;
            scope.spawn(move || {
                for round in (lane..COLD + WARM).step_by(8) {
                    // Spread over the whole body, the head and the last byte.
                    leave_after(port, &path(round), round * 7_919 % (LENGTH + 300));
                }
            });
        }
    });
    idle("every connection and fill to end");
    // Connections to the upstream that wait to be used again, and a few that the system is closing.
    wait_until("the descriptors to be closed", PATIENCE, || {
        descriptors(&gateway) <= before + 16
    });
    let grown = gateway.peak_memory() - memory;
    assert!(grown < 128 << 20, "{grown} bytes more");
    wire.pull_image("up/a/b", "latest", &image);
    for layer in &image.layers {
        assert_eq!(
            origin.count("GET", &layer.digest),
            1,
            "each was fetched once"
        );
    }
}
