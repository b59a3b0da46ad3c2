//! The cache: filled once, verified before the last byte, and there when its upstream is not.

use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, usual_config},
    image::{Content, INDEX, MANIFEST, index_of},
    origin::Fault,
};

fn mirroring(origin: &Origin) -> Gateway {
    Gateway::start(&usual_config(
        &origin.mirror_entry("up", ", default: true"),
        "",
    ))
}

#[test]
fn every_spelling_reaches_the_same_image_with_one_fetch_of_each_blob() {
    let origin = Origin::start();
    let image = Image::random(300_000);
    origin.push("team/app", "latest", &image);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/team/app", "latest", &image);
    assert_eq!(origin.count("GET", &image.layers[0].digest), 1);
    for path in ["/v2/up/team/app", "/up/v2/team/app"] {
        let manifest = wire.get(&format!("{path}/manifests/latest")).expect(200);
        assert_eq!(manifest.body, image.manifest.bytes, "{path}");
        let blob = wire
            .get(&format!("{path}/blobs/{}", image.layers[0].digest))
            .expect(200);
        assert_eq!(blob.body, image.layers[0].bytes, "{path}");
    }
    assert_eq!(
        wire.get("/v2/team/app/manifests/latest?ns=up")
            .expect(200)
            .header("oci-namespace"),
        "up"
    );
    assert_eq!(origin.count("GET", &image.layers[0].digest), 1);
}

#[test]
fn the_second_pull_needs_no_upstream_by_tag_or_by_digest_also_after_a_restart() {
    let mut origin = Origin::start();
    let image = Image::random(100_000);
    origin.push("a/b", "latest", &image);
    let mut gateway = mirroring(&origin);
    Wire::anonymous(gateway.port).pull_image("up/a/b", "latest", &image);
    gateway.settled();
    origin.stop();
    for _restart in 0..2 {
        let wire = Wire::anonymous(gateway.port);
        wire.pull_image("up/a/b", "latest", &image);
        wire.pull_image("up/a/b", &image.manifest.digest, &image);
        gateway.restart();
    }
}

#[test]
fn the_gateway_starts_with_its_upstream_down_and_says_503_never_404() {
    let mut origin = Origin::start();
    let image = Image::random(1000);
    origin.push("a/b", "latest", &image);
    origin.stop();
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    for path in [
        "/v2/up/a/b/manifests/latest".to_owned(),
        format!("/v2/up/a/b/manifests/{}", image.manifest.digest),
        format!("/v2/up/a/b/blobs/{}", image.layers[0].digest),
    ] {
        let answer = wire.get(&path).expect(503);
        assert!(!answer.header("retry-after").is_empty(), "{path}");
        assert!(
            !String::from_utf8_lossy(&answer.body).contains("127.0.0.1"),
            "{path} tells where the upstream is"
        );
    }
    origin.start_again();
    tests::tools::wait_until(
        "the breaker to close",
        std::time::Duration::from_secs(20),
        || wire.get("/v2/up/a/b/manifests/latest").status == 200,
    );
    wire.pull_image("up/a/b", "latest", &image);
}

#[test]
fn what_the_upstream_does_not_have_is_404_and_remembered_shortly() {
    let origin = Origin::start();
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    let absent = Content::random(8).digest;
    assert_eq!(
        wire.get("/v2/up/no/such/manifests/latest")
            .expect(404)
            .code(),
        "MANIFEST_UNKNOWN"
    );
    assert_eq!(
        wire.get(&format!("/v2/up/no/such/blobs/{absent}"))
            .expect(404)
            .code(),
        "BLOB_UNKNOWN"
    );
    let asked =
        origin.count("GET", "/manifests/latest") + origin.count("HEAD", "/manifests/latest");
    wire.get("/v2/up/no/such/manifests/latest").expect(404);
    assert_eq!(
        origin.count("GET", "/manifests/latest") + origin.count("HEAD", "/manifests/latest"),
        asked
    );
}

#[test]
fn an_upstream_that_limits_is_429_and_what_is_cached_is_served() {
    let origin = Origin::start();
    let (cached, cold) = (Image::random(100), Image::random(100));
    origin.push("a/cached", "latest", &cached);
    origin.push("a/cold", "latest", &cold);
    let gateway = Gateway::start(&usual_config(
        &origin.mirror_entry("up", ", tags: { fresh_for: 1ms }"),
        "",
    ));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/cached", "latest", &cached);
    // Whoever limits is left alone for as long as it said, so that comes last.
    for fault in [
        Fault::Status(503),
        Fault::Status(500),
        Fault::Status(403),
        Fault::TooMany { retry_after: 7 },
    ] {
        origin.break_paths("/v2/", fault.clone());
        wire.pull_image("up/a/cached", "latest", &cached);
        wire.pull_image("up/a/cached", &cached.manifest.digest, &cached);
        let stale = wire.get("/v2/up/a/cached/manifests/latest").expect(200);
        assert!(
            !stale.header("warning").is_empty(),
            "{fault:?}: a stale answer says so"
        );
        let answer = wire.get("/v2/up/a/cold/manifests/latest");
        let (status, expected) = (
            answer.status.as_u16(),
            match fault {
                Fault::TooMany { .. } => 429,
                Fault::Status(403) => 403,
                _ => 503,
            },
        );
        assert!(status == expected || status == 503, "{fault:?}: {answer:?}");
        origin.heal();
    }
}

#[test]
fn a_corrupt_blob_is_never_whole_and_never_cached() {
    let origin = Origin::start();
    let image = Image::random(400_000);
    origin.push("a/b", "latest", &image);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    let layer = &image.layers[0];
    for _again in 0..2 {
        origin.break_paths(&layer.digest, Fault::FlipLast);
        let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
        if let Ok(answer) = wire.try_send("GET", &path, &[], "") {
            assert!(
                answer.status.as_u16() >= 500,
                "a whole {} of {} bytes",
                answer.status,
                answer.body.len()
            );
        }
        origin.heal();
    }
    wire.pull_image("up/a/b", "latest", &image);
}

#[test]
fn a_truncated_blob_is_resumed_or_broken_off_and_never_padded() {
    let origin = Origin::start();
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    for at in [0, 1, 4096, 65_536, 150_000, 300_000, 399_999] {
        let image = Image::random(400_000);
        origin.push("a/b", &format!("cut{at}"), &image);
        let layer = &image.layers[0];
        origin.break_paths(&layer.digest, Fault::TruncateAt(at));
        let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
        if let Ok(answer) = wire.try_send("GET", &path, &[], "") {
            let whole = answer.status == 200 && answer.body == layer.bytes;
            assert!(
                whole || answer.status.as_u16() >= 500,
                "cut at {at}: {} of {} bytes",
                answer.status,
                answer.body.len()
            );
        }
        origin.heal();
        wire.pull_image("up/a/b", &format!("cut{at}"), &image);
    }
}

#[test]
fn a_manifest_with_another_digest_is_refused_and_not_cached() {
    let origin = Origin::start();
    let image = Image::random(100);
    origin.push("a/b", "latest", &image);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    origin.break_paths("/manifests/", Fault::FlipLast);
    let path = format!("/v2/up/a/b/manifests/{}", image.manifest.digest);
    wire.get(&path).expect(502);
    origin.heal();
    assert_eq!(wire.get(&path).expect(200).body, image.manifest.bytes);
}

#[test]
fn a_range_is_served_from_a_fill_in_progress_and_from_the_cache() {
    let origin = Origin::start();
    let image = Image::random(500_000);
    origin.push("a/b", "latest", &image);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    let layer = &image.layers[0];
    let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
    for _cold_then_warm in 0..2 {
        let answer = wire
            .send("GET", &path, &[("range", "bytes=1000-1999")], "")
            .expect(206);
        assert_eq!(answer.header("content-range"), "bytes 1000-1999/500000");
        assert_eq!(answer.body, layer.bytes.slice(1000..2000));
    }
    assert_eq!(origin.count("GET", &layer.digest), 1);
}

#[test]
fn ranges_and_heads_are_answered_while_the_fill_stands_and_a_client_that_reads_nothing_holds_nobody()
 {
    const LENGTH: usize = 24 << 20;
    let origin = Origin::start();
    let image = Image::random(LENGTH);
    origin.push("a/b", "latest", &image);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    let layer = &image.layers[0];
    let path = format!("/v2/up/a/b/blobs/{}", layer.digest);
    // Nobody knows the blob here: its length is asked for, its bytes are not.
    let head = wire.head(&path).expect(200);
    assert_eq!(head.header("content-length"), LENGTH.to_string());
    assert_eq!(origin.count("GET", &layer.digest), 0);
    origin.break_paths(&layer.digest, Fault::HoldAt(LENGTH / 2));
    let mut idle = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n");
    std::io::Write::write_all(&mut idle, request.as_bytes()).unwrap();
    let range = [("range", "bytes=1000-1999")];
    let part = wire.send("GET", &path, &range, "").expect(206);
    assert_eq!(
        part.header("content-range"),
        format!("bytes 1000-1999/{LENGTH}")
    );
    assert_eq!(part.body, layer.bytes.slice(1000..2000));
    let head = wire.head(&path).expect(200);
    assert_eq!(head.header("content-length"), LENGTH.to_string());
    assert_eq!(gateway.metric("gantry_fills_running"), 1.0);
    origin.release();
    assert!(wire.get(&path).expect(200).body == layer.bytes);
    assert_eq!(origin.count("GET", &layer.digest), 1);
    drop(idle);
}

#[test]
fn a_tag_that_moved_upstream_is_followed_when_it_is_no_longer_fresh() {
    let origin = Origin::start();
    let (old, new) = (Image::random(100), Image::random(100));
    origin.push("a/b", "latest", &old);
    let gateway = Gateway::start(&usual_config(
        &origin.mirror_entry("up", ", tags: { fresh_for: 1ms }"),
        "",
    ));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/b", "latest", &old);
    origin.reset_counts();
    wire.pull_image("up/a/b", "latest", &old);
    assert_eq!(
        (
            origin.count("HEAD", "/manifests/"),
            origin.count("GET", "/manifests/")
        ),
        (1, 0),
        "unchanged: one HEAD, no GET"
    );
    origin.push("a/b", "latest", &new);
    wire.pull_image("up/a/b", "latest", &new);
    wire.pull_image("up/a/b", &old.manifest.digest, &old);
}

#[test]
fn an_index_and_its_children_go_through_the_cache_byte_exactly() {
    let mut origin = Origin::start();
    let images = [Image::random(10), Image::random(10)];
    images
        .iter()
        .for_each(|image| origin.push("a/b", "child", image));
    let index = index_of(&[&images[0], &images[1]]);
    origin
        .direct()
        .push_manifest("a/b", "multi", INDEX, index.bytes.clone())
        .expect(201);
    let gateway = mirroring(&origin);
    let wire = Wire::anonymous(gateway.port);
    for _online_then_offline in 0..2 {
        let answer = wire.get("/v2/up/a/b/manifests/multi").expect(200);
        assert_eq!(
            (answer.header("content-type").as_str(), &answer.body),
            (INDEX, &index.bytes)
        );
        images
            .iter()
            .for_each(|image| wire.pull_image("up/a/b", &image.manifest.digest, image));
        origin.stop();
    }
}

#[test]
fn a_push_into_a_mirror_is_405_with_a_sentence_before_the_body_is_read() {
    let origin = Origin::start();
    let gateway = mirroring(&origin);
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(10);
    for (method, path) in [
        ("POST", "/v2/up/a/b/blobs/uploads/".to_owned()),
        ("PUT", "/v2/up/a/b/manifests/latest".to_owned()),
        ("DELETE", "/v2/up/a/b/manifests/latest".to_owned()),
        (
            "DELETE",
            format!("/v2/up/a/b/blobs/{}", image.layers[0].digest),
        ),
    ] {
        let answer = wire
            .send(method, &path, &[("content-type", MANIFEST)], "")
            .expect(405);
        assert_eq!(answer.code(), "UNSUPPORTED", "{method} {path}");
        assert!(answer.message().contains("mirror"), "{}", answer.message());
    }
}

#[test]
fn content_of_one_mirror_is_not_readable_through_another() {
    let (public, private) = (Origin::start(), Origin::start());
    let image = Image::random(1000);
    private.push("a/b", "latest", &image);
    public.push("c/d", "latest", &Image::random(10));
    let gateway = Gateway::start(&usual_config(
        &(public.mirror_entry("up", "") + &private.mirror_entry("private", "")),
        "",
    ));
    Wire::basic(gateway.port, USER).pull_image("private/a/b", "latest", &image);
    let anonymous = Wire::anonymous(gateway.port);
    anonymous
        .get(&format!("/v2/private/a/b/blobs/{}", image.layers[0].digest))
        .expect(401);
    anonymous
        .get(&format!("/v2/up/c/d/blobs/{}", image.layers[0].digest))
        .expect(404);
    anonymous
        .get(&format!("/v2/up/c/d/manifests/{}", image.manifest.digest))
        .expect(404);
}

#[test]
fn an_unlisted_namespace_is_not_dialled() {
    let (origin, stranger) = (Origin::start(), Origin::start());
    let gateway = mirroring(&origin);
    let path = format!(
        "/v2/library/x/manifests/latest?ns=127.0.0.1%3A{}",
        stranger.port
    );
    Wire::anonymous(gateway.port).get(&path).expect(404);
    assert_eq!(
        stranger.count("GET", "") + stranger.count("HEAD", "") + origin.count("GET", ""),
        0
    );
}

#[test]
fn a_large_layer_comes_in_several_requests_and_a_small_one_in_one() {
    const MEBIBYTE: usize = 1 << 20;
    let origin = Origin::start();
    let layers = vec![
        Content::random(37 * MEBIBYTE),
        Content::random(15 * MEBIBYTE),
    ];
    let image = Image::of_layers(layers);
    origin.push("a/b", "v1", &image);
    let parallel = ", parallel: { ranges: 4, from: 16MiB }";
    let mirror = origin.mirror_entry("up", parallel);
    let gateway = Gateway::start(&usual_config(&mirror, ""));
    let wire = Wire::anonymous(gateway.port);
    wire.pull_image("up/a/b", "v1", &image);
    let counts = image.layers.iter().map(|layer| {
        let (requests, sent) = (
            origin.count("GET", &layer.digest),
            origin.sent(&layer.digest),
        );
        assert_eq!(sent, layer.bytes.len());
        requests
    });
    // Of 8 MiB each.
    assert_eq!(counts.collect::<Vec<_>>(), [5, 1]);
}
