//! Hostile and broken requests: the right 4xx in the specification's words, never a 5xx, never a look inside.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use serde_json::json;
use tests::{
    Gateway, Image, Wire,
    gateway::USER,
    image::{Content, INDEX, MANIFEST},
    wire::{Answer, with_query},
};

const HEX: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

/// What no answer may show.
const INSIDE: [&str; 14] = [
    "/tmp",
    "/data",
    "docker/registry",
    "sqlite",
    "SELECT",
    "INSERT",
    "gantry_",
    "::",
    ".rs:",
    "panicked",
    "No such file",
    "wasmtime",
    "os error",
    "serde",
];

#[track_caller]
fn refused(answer: &Answer, what: &str, statuses: &[u16], code: &str) {
    let body = String::from_utf8_lossy(&answer.body);
    assert!(
        statuses.contains(&answer.status.as_u16()),
        "{what}: {} {body}",
        answer.status
    );
    for inside in INSIDE {
        assert!(!body.contains(inside), "{what} shows {inside}: {body}");
    }
    if !body.is_empty() {
        assert_eq!(answer.header("content-type"), "application/json", "{what}");
        assert_eq!(answer.code(), code, "{what}: {body}");
    }
}

#[test]
fn broken_names_references_and_digests() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let names = [
        "Apps/web",
        "apps//web",
        "apps/-web",
        "apps/web-",
        "apps/we..b",
        "apps/we__-b",
        "apps/w%00b",
        "apps/we%2Fb",
        "apps/w\u{e4}b",
        "apps/%ff",
        "apps/web%20",
        "apps/.web",
        "_apps/web",
        "apps/_catalog",
        "apps%5Cweb",
        "apps/we+b",
        "apps/we:b",
        "apps/we@b",
        "apps/%",
    ];
    let long = format!("apps/{}", "a".repeat(255));
    for name in names.iter().copied().chain([long.as_str()]) {
        for tail in [
            "manifests/latest".to_owned(),
            format!("blobs/sha256:{HEX}"),
            "tags/list".to_owned(),
            format!("referrers/sha256:{HEX}"),
        ] {
            let answer = wire.get(&format!("/v2/{name}/{tail}"));
            refused(&answer, &format!("{name}/{tail}"), &[400], "NAME_INVALID");
        }
        refused(
            &wire.send("POST", &format!("/v2/{name}/blobs/uploads/"), &[], ""),
            name,
            &[400],
            "NAME_INVALID",
        );
    }
    for digest in [
        "sha256:",
        "sha256",
        "sha256:xyz",
        &HEX.to_uppercase(),
        &format!("sha256:{}", HEX.to_uppercase()),
        &format!("md5:{HEX}"),
        &format!("sha256:{HEX}0"),
        &format!("sha512:{HEX}"),
        "sha256:%2e%2e",
    ] {
        for method in ["GET", "HEAD", "DELETE"] {
            refused(
                &wire.send(method, &format!("/v2/apps/web/blobs/{digest}"), &[], ""),
                digest,
                &[400],
                "DIGEST_INVALID",
            );
        }
        refused(
            &wire.get(&format!("/v2/apps/web/referrers/{digest}")),
            digest,
            &[400],
            "DIGEST_INVALID",
        );
    }
    for reference in [
        ".latest",
        "-x",
        "a%20b",
        "a%00b",
        &"x".repeat(129),
        "a%2Fb",
        "v1%3Av2",
        &format!("md5:{HEX}"),
        &format!("sha256:{HEX}x"),
        "%F0%9F%90%B3",
    ] {
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            let answer = wire.send(
                method,
                &format!("/v2/apps/web/manifests/{reference}"),
                &[("content-type", MANIFEST)],
                "{}",
            );
            let code = if reference.contains(':') || reference.contains("%3A") {
                "DIGEST_INVALID"
            } else {
                "TAG_INVALID"
            };
            assert!(
                matches!(answer.status.as_u16(), 400),
                "{method} {reference}: {answer:?}"
            );
            if !answer.body.is_empty() {
                assert!(
                    [code, "TAG_INVALID", "MANIFEST_INVALID", "NAME_INVALID"]
                        .contains(&answer.code().as_str()),
                    "{reference}: {}",
                    answer.code()
                );
            }
        }
    }
}

#[test]
fn what_is_not_there_is_404() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "latest", &Image::random(10));
    let table = [
        ("/v2/apps/web/manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
        (
            format!("/v2/apps/web/manifests/sha256:{HEX}"),
            "MANIFEST_UNKNOWN",
        ),
        (format!("/v2/apps/web/blobs/sha256:{HEX}"), "BLOB_UNKNOWN"),
        ("/v2/apps/none/tags/list".to_owned(), "NAME_UNKNOWN"),
        ("/v2/unhosted/tags/list".to_owned(), "NAME_UNKNOWN"),
        (
            "/v2/apps/web/blobs/uploads/ffffffff-ffff-4fff-bfff-ffffffffffff".to_owned(),
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (
            "/v2/apps/web/blobs/uploads/..%2F..%2Fetc".to_owned(),
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (
            "/v2/apps/web/blobs/uploads/x".to_owned(),
            "BLOB_UPLOAD_UNKNOWN",
        ),
    ];
    for (path, code) in table {
        let answer = wire.get(&path);
        assert!(
            matches!(answer.status.as_u16(), 400 | 404),
            "{path}: {answer:?}"
        );
        if answer.status == 404 {
            refused(&answer, &path, &[404], code);
        }
    }
    for path in [
        "/v2/apps",
        "/v2/apps/web",
        "/v3/",
        "/v2/apps/web/other/x",
        "/etc/passwd",
        "/v2/%2e%2e/%2e%2e/etc/passwd",
        "///v2/",
    ] {
        let answer = wire.get(path);
        assert!(
            matches!(answer.status.as_u16(), 400 | 404),
            "{path}: {answer:?}"
        );
    }
}

#[test]
fn methods_that_are_not_offered_are_405() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    for (method, path) in [
        ("POST", "/v2/apps/web/manifests/latest"),
        ("PATCH", "/v2/apps/web/manifests/latest"),
        ("PUT", "/v2/apps/web/tags/list"),
        ("DELETE", "/v2/apps/web/tags/list"),
        ("PUT", "/v2/"),
        ("POST", "/v2/_catalog"),
        ("BREW", "/v2/"),
        ("DELETE", "/v2/apps/web/blobs/uploads/"),
        (
            "PUT",
            "/v2/apps/web/referrers/sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        ),
    ] {
        refused(
            &wire.send(method, path, &[], ""),
            &format!("{method} {path}"),
            &[405],
            "UNSUPPORTED",
        );
    }
}

#[test]
fn broken_pages_ranges_and_chunks() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("apps/web", "latest", &Image::random(100));
    for n in [
        "-1",
        "abc",
        "1.5",
        "99999999999999999999",
        "0x10",
        "",
        "%00",
        "1%20",
    ] {
        for path in ["/v2/apps/web/tags/list", "/v2/_catalog"] {
            refused(
                &wire.get(&format!("{path}?n={n}")),
                n,
                &[400],
                "PAGINATION_NUMBER_INVALID",
            );
        }
    }
    for n in ["2147483647", "1000000000"] {
        wire.get(&format!("/v2/apps/web/tags/list?n={n}"))
            .expect(200);
    }
    let blob = Content::random(10);
    wire.push_blob("apps/web", &blob).expect(201);
    for range in [
        "bytes=",
        "bytes=x",
        "bytes=5-2",
        "bytes=-",
        "bytes=1-2-3",
        "bytes=99999999999999999999-",
    ] {
        let answer = wire.send(
            "GET",
            &format!("/v2/apps/web/blobs/{}", blob.digest),
            &[("range", range)],
            "",
        );
        refused(&answer, range, &[416, 400], "RANGE_INVALID");
    }
    let location = wire.start_upload("apps/web");
    for range in [
        "x",
        "5",
        "9-5",
        "-5",
        "bytes",
        "1-2-3",
        "0-+5",
        "99999999999999999999-999999999999999999999",
    ] {
        let answer = wire.send("PATCH", &location, &[("content-range", range)], "abcdef");
        assert!(
            matches!(answer.status.as_u16(), 400 | 416),
            "{range}: {answer:?}"
        );
    }
    // A range that does not fit its body changes nothing.
    for range in ["0-9", "0-3"] {
        let answer = wire.send("PATCH", &location, &[("content-range", range)], "abcdef");
        assert!(
            matches!(answer.status.as_u16(), 400 | 416),
            "{range}: {answer:?}"
        );
    }
}

#[test]
fn broken_digests_in_queries() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    for digest in [
        "",
        "x",
        "sha256",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "..%2F..",
        "%00",
    ] {
        let location = wire.start_upload("apps/web");
        refused(
            &wire.send(
                "PUT",
                &with_query(&location, &format!("digest={digest}")),
                &[],
                "",
            ),
            digest,
            &[400],
            "DIGEST_INVALID",
        );
        refused(
            &wire.send(
                "POST",
                &format!("/v2/apps/web/blobs/uploads/?digest={digest}"),
                &[],
                "x",
            ),
            digest,
            &[400],
            "DIGEST_INVALID",
        );
        refused(
            &wire.send(
                "POST",
                &format!("/v2/apps/web/blobs/uploads/?mount={digest}&from=apps/x"),
                &[],
                "",
            ),
            digest,
            &[400],
            "DIGEST_INVALID",
        );
    }
    let location = wire.start_upload("apps/web");
    refused(
        &wire.send("PUT", &location, &[], ""),
        "no digest",
        &[400],
        "DIGEST_INVALID",
    );
    let answer = wire.send(
        "POST",
        "/v2/apps/web/blobs/uploads/?digest-algorithm=md5",
        &[],
        "",
    );
    assert_eq!(answer.status, 400, "{answer:?}");
}

#[test]
fn broken_manifests_of_every_shape() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(10);
    wire.push_image("apps/web", "good", &image);
    let good = image.manifest.bytes.clone();
    let text = String::from_utf8(good.to_vec()).unwrap();
    let broken: Vec<(&str, &str, Vec<u8>)> = vec![
        ("empty", MANIFEST, vec![]),
        ("no JSON", MANIFEST, b"manifest".to_vec()),
        ("half", MANIFEST, good[..good.len() / 2].to_vec()),
        ("twice", MANIFEST, [&good[..], &good[..]].concat()),
        ("not UTF-8", MANIFEST, vec![0xff, 0xfe, 0x7b]),
        ("deep", MANIFEST, "[".repeat(500_000).into_bytes()),
        ("list", MANIFEST, b"[]".to_vec()),
        ("null", MANIFEST, b"null".to_vec()),
        ("empty object", MANIFEST, b"{}".to_vec()),
        ("schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()),
        ("type mismatch", INDEX, good.to_vec()),
        ("unknown type", "text/plain", good.to_vec()),
        ("broken type", "application", good.to_vec()),
        ("ambiguous (CVE-2021-41190)", MANIFEST, text.replacen('{', r#"{"manifests":[],"#, 1).into_bytes()),
        ("doubled key", MANIFEST, text.replacen('{', r#"{"layers":[],"#, 1).into_bytes()),
        ("schema version 3", MANIFEST, text.replace(r#""schemaVersion":2"#, r#""schemaVersion":3"#).into_bytes()),
        ("negative size", MANIFEST, text.replace(r#""size":10"#, r#""size":-10"#).into_bytes()),
        ("wrong size", MANIFEST, text.replace(r#""size":10"#, r#""size":11"#).into_bytes()),
        ("huge size", MANIFEST, text.replace(r#""size":10"#, r#""size":99999999999999999999"#).into_bytes()),
        ("size as text", MANIFEST, text.replace(r#""size":10"#, r#""size":"10""#).into_bytes()),
        ("broken digest", MANIFEST, text.replace("sha256:", "sha256:zz").into_bytes()),
        ("path as digest", MANIFEST, text.replace("sha256:", "../../").into_bytes()),
        ("a number no reader holds", MANIFEST, text.replacen('{', r#"{"x":1e999,"#, 1).into_bytes()),
        ("half a surrogate pair", MANIFEST, text.replacen('{', r#"{"x":"\ud800","#, 1).into_bytes()),
        ("a field in capitals", MANIFEST, text.replacen('{', r#"{"Layers":[],"#, 1).into_bytes()),
        ("a field twice that is not read", MANIFEST, text.replacen('{', r#"{"x":1,"x":2,"#, 1).into_bytes()),
        ("nested", MANIFEST, text.replacen('{', &format!("{{\"x\":{}{},", "[".repeat(70), "]".repeat(70)), 1).into_bytes()),
        ("a byte-order mark", MANIFEST, format!("\u{feff}{text}").into_bytes()),
        ("too many annotations", MANIFEST, text.replacen('{', &format!(r#"{{"annotations":{{"a":"{}"}},"#, "x".repeat(512 << 10)), 1).into_bytes()),
        ("layers as object", MANIFEST, json!({"schemaVersion":2,"mediaType":MANIFEST,"config":image.config.descriptor("a/b"),"layers":{}}).to_string().into_bytes()),
        ("index of texts", INDEX, json!({"schemaVersion":2,"mediaType":INDEX,"manifests":["x"]}).to_string().into_bytes()),
        ("subject as text", MANIFEST, text.replacen('{', r#"{"subject":"x","#, 1).into_bytes()),
    ];
    for (what, media_type, bytes) in broken {
        let answer = wire.push_manifest("apps/web", "broken", media_type, bytes);
        refused(&answer, what, &[400, 415], "MANIFEST_INVALID");
    }
    wire.get("/v2/apps/web/manifests/broken").expect(404);
    let padded = |length: usize| {
        text.replacen(
            '{',
            &format!("{{\"pad\":\"{}\",", "x".repeat(length - good.len() - 9)),
            1,
        )
    };
    wire.push_manifest("apps/web", "large", MANIFEST, padded(4 << 20))
        .expect(201);
    refused(
        &wire.push_manifest("apps/web", "larger", MANIFEST, padded((4 << 20) + 1)),
        "4 MiB + 1",
        &[413],
        "MANIFEST_INVALID",
    );
}

#[test]
fn broken_credentials() {
    let gateway = Gateway::usual();
    let wire = Wire::anonymous(gateway.port);
    let huge = format!("Basic {}", "QUFB".repeat(10_000));
    for authorization in [
        "Basic",
        "Basic ",
        "Basic !!!!",
        "Basic YQ==",
        "Bearer",
        "Bearer ",
        "Digest x",
        "Basic YTpiOmM=",
        "bearer x.y.z",
        huge.as_str(),
    ] {
        let answer = wire.send("GET", "/v2/", &[("authorization", authorization)], "");
        assert!(
            matches!(answer.status.as_u16(), 400 | 401 | 431),
            "{authorization:.30}: {answer:?}"
        );
    }
}

/// Sends bytes as they are; what comes back until the other side closes, or falls silent.
fn raw(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let _refused_early = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _silent = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn requests_that_could_be_read_two_ways_are_refused_and_the_connection_closed() {
    let gateway = Gateway::usual();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = smuggled.len();
    let heads = [
        format!("Content-Length: {length}\r\nContent-Length: 0\r\n"),
        format!("Content-Length: {length}, 0\r\n"),
        "Content-Length: -1\r\n".to_owned(),
        "Content-Length: 1x\r\n".to_owned(),
        "Content-Length: 99999999999999999999\r\n".to_owned(),
        "Transfer-Encoding: gzip\r\n".to_owned(),
        "Transfer-Encoding: chunked, gzip\r\n".to_owned(),
        "Transfer-Encoding : chunked\r\n".to_owned(),
        "X: a\r\n folded\r\n".to_owned(),
        "Bad Header: x\r\n".to_owned(),
        "X: \0\r\n".to_owned(),
    ];
    for head in heads {
        let request =
            format!("POST /v2/apps/web/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n{head}\r\n{smuggled}");
        let answer = raw(gateway.port, request.as_bytes());
        let first = answer.lines().next().unwrap_or_default();
        assert!(
            first.is_empty() || first.contains(" 4"),
            "{head:?}: {answer}"
        );
        assert!(
            answer.matches("HTTP/1.1").count() <= 1,
            "{head:?}: the rest was taken for a request: {answer}"
        );
    }
    for line in [
        "GET\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://[ HTTP/1.1\r\n\r\n",
    ] {
        let answer = raw(gateway.port, line.as_bytes());
        assert!(
            answer.is_empty() || answer.contains(" 4"),
            "{line:?}: {answer}"
        );
    }
    let many: String = (0..2000)
        .map(|number| format!("X-{number}: x\r\n"))
        .collect();
    let answer = raw(
        gateway.port,
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes(),
    );
    assert!(
        answer.is_empty() || answer.contains(" 431") || answer.contains(" 400"),
        "{answer}"
    );
    Wire::basic(gateway.port, USER).get("/v2/").expect(200);
}

#[test]
fn a_refused_body_is_not_read_as_the_next_request() {
    let gateway = Gateway::usual();
    let body = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(10);
    let request = format!(
        "PUT /v2/apps/web/manifests/latest HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = raw(gateway.port, request.as_bytes());
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
}
