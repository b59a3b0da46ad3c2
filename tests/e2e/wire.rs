//! Every clause of the distribution specification that this registry offers, on the wire.

use serde_json::json;
use tests::{
    Gateway, Image, Wire,
    gateway::USER,
    image::{Content, INDEX, MANIFEST, index_of, sha512},
    wire::with_query,
};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

fn start() -> (Gateway, Wire) {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    (gateway, wire)
}

fn close(location: &str, digest: &str) -> String {
    with_query(location, &format!("digest={}", digest.replace(':', "%3A")))
}

#[test]
fn head_and_get_tell_the_same() {
    let (_gateway, wire) = start();
    let image = Image::random(5000);
    wire.push_image("apps/web", "latest", &image);
    let paths = [
        "/v2/apps/web/manifests/latest".to_owned(),
        format!("/v2/apps/web/manifests/{}", image.manifest.digest),
        format!("/v2/apps/web/blobs/{}", image.layers[0].digest),
    ];
    for path in paths {
        let (get, head) = (wire.get(&path).expect(200), wire.head(&path).expect(200));
        for name in [
            "content-type",
            "content-length",
            "docker-content-digest",
            "etag",
        ] {
            assert_eq!(get.header(name), head.header(name), "{name} of {path}");
            assert!(!get.header(name).is_empty(), "{name} of {path}");
        }
        assert!(head.body.is_empty());
        assert_eq!(get.header("content-length"), get.body.len().to_string());
    }
}

#[test]
fn a_manifest_comes_back_with_its_type_whatever_is_accepted_and_304_when_known() {
    let (_gateway, wire) = start();
    let image = Image::random(10);
    wire.push_image("apps/web", "latest", &image);
    for accept in [
        "*/*",
        "application/json",
        "application/vnd.docker.distribution.manifest.v1+json",
        MANIFEST,
    ] {
        let answer = wire
            .send(
                "GET",
                "/v2/apps/web/manifests/latest",
                &[("accept", accept)],
                "",
            )
            .expect(200);
        assert_eq!(
            (answer.header("content-type").as_str(), &answer.body),
            (MANIFEST, &image.manifest.bytes)
        );
    }
    for known in [
        format!("\"{}\"", image.manifest.digest),
        image.manifest.digest.clone(),
        format!("W/\"{}\"", image.manifest.digest),
    ] {
        let answer = wire
            .send(
                "GET",
                "/v2/apps/web/manifests/latest",
                &[("if-none-match", &known)],
                "",
            )
            .expect(304);
        assert!(answer.body.is_empty());
    }
    wire.send(
        "GET",
        "/v2/apps/web/manifests/latest",
        &[("if-none-match", "\"other\"")],
        "",
    )
    .expect(200);
}

#[test]
fn a_blob_is_pushed_in_one_post() {
    let (_gateway, wire) = start();
    let content = Content::random(1000);
    let answer = wire
        .send(
            "POST",
            &close("/v2/apps/web/blobs/uploads/", &content.digest),
            &[OCTETS],
            content.bytes.clone(),
        )
        .expect(201);
    assert_eq!(answer.header("docker-content-digest"), content.digest);
    assert_eq!(wire.get(&answer.location()).expect(200).body, content.bytes);
}

#[test]
fn a_blob_is_pushed_in_chunks_in_order() {
    let (_gateway, wire) = start();
    let content = Content::random(3000);
    let opened = wire
        .send("POST", "/v2/apps/web/blobs/uploads/", &[], "")
        .expect(202);
    assert!(!opened.header("docker-upload-uuid").is_empty());
    assert_eq!(opened.header("range"), "0-0");
    let mut location = opened.location();
    for first in [0_usize, 1000, 2000] {
        let range = format!("{first}-{}", first + 999);
        let chunk = content.bytes.slice(first..first + 1000);
        let answer = wire
            .send(
                "PATCH",
                &location,
                &[OCTETS, ("content-range", &range)],
                chunk.clone(),
            )
            .expect(202);
        assert_eq!(answer.header("range"), format!("0-{}", first + 999));
        location = answer.location();
        // The same chunk again is out of order; the session stands where it stood.
        let again = wire
            .send(
                "PATCH",
                &location,
                &[OCTETS, ("content-range", &range)],
                chunk,
            )
            .expect(416);
        assert_eq!(again.header("range"), format!("0-{}", first + 999));
        assert!(!again.location().is_empty());
        let status = wire.get(&location).expect(204);
        assert_eq!(status.header("range"), format!("0-{}", first + 999));
    }
    let answer = wire
        .send("PUT", &close(&location, &content.digest), &[], "")
        .expect(201);
    assert_eq!(answer.header("docker-content-digest"), content.digest);
    assert_eq!(wire.get(&answer.location()).expect(200).body, content.bytes);
    assert_eq!(
        wire.get(&location).expect(404).code(),
        "BLOB_UPLOAD_UNKNOWN"
    );
}

#[test]
fn the_closing_put_may_carry_the_last_chunk() {
    let (_gateway, wire) = start();
    let content = Content::random(2000);
    let location = wire.start_upload("apps/web");
    let location = wire
        .send("PATCH", &location, &[OCTETS], content.bytes.slice(..1500))
        .expect(202)
        .location();
    let range = ("content-range", "1500-1999");
    wire.send(
        "PUT",
        &close(&location, &content.digest),
        &[OCTETS, range],
        content.bytes.slice(1500..),
    )
    .expect(201);
    assert_eq!(
        wire.get(&format!("/v2/apps/web/blobs/{}", content.digest))
            .expect(200)
            .body,
        content.bytes
    );
}

#[test]
fn an_upload_goes_on_after_a_restart_and_after_a_disconnect() {
    let (mut gateway, wire) = start();
    let content = Content::random(300_000);
    let location = wire.start_upload("apps/web");
    let location = wire
        .send(
            "PATCH",
            &location,
            &[OCTETS],
            content.bytes.slice(..100_000),
        )
        .expect(202)
        .location();
    gateway.restart();
    assert_eq!(wire.get(&location).expect(204).header("range"), "0-99999");
    let location = wire
        .send(
            "PATCH",
            &location,
            &[OCTETS, ("content-range", "100000-199999")],
            content.bytes.slice(100_000..200_000),
        )
        .expect(202)
        .location();
    wire.send(
        "PUT",
        &close(&location, &content.digest),
        &[OCTETS],
        content.bytes.slice(200_000..),
    )
    .expect(201);
    assert_eq!(
        wire.get(&format!("/v2/apps/web/blobs/{}", content.digest))
            .expect(200)
            .body,
        content.bytes
    );
}

#[test]
fn a_wrong_digest_is_refused_and_nothing_is_there() {
    let (_gateway, wire) = start();
    let (sent, named) = (Content::random(100), Content::random(100));
    let location = wire.start_upload("apps/web");
    let answer = wire
        .send(
            "PUT",
            &close(&location, &named.digest),
            &[OCTETS],
            sent.bytes.clone(),
        )
        .expect(400);
    assert_eq!(answer.code(), "DIGEST_INVALID");
    for digest in [&sent.digest, &named.digest] {
        wire.head(&format!("/v2/apps/web/blobs/{digest}"))
            .expect(404);
    }
}

#[test]
fn an_empty_blob_is_a_blob() {
    let (_gateway, wire) = start();
    let empty = Content::new("");
    wire.push_blob("apps/web", &empty).expect(201);
    let answer = wire
        .get(&format!("/v2/apps/web/blobs/{}", empty.digest))
        .expect(200);
    assert_eq!(
        (answer.header("content-length").as_str(), answer.body.len()),
        ("0", 0)
    );
    wire.send(
        "GET",
        &format!("/v2/apps/web/blobs/{}", empty.digest),
        &[("range", "bytes=0-0")],
        "",
    )
    .expect(416);
}

#[test]
fn an_upload_is_cancelled_with_the_right_to_push() {
    let (gateway, wire) = start();
    let token = wire.token(&["repository:apps/web:pull,push"]);
    let pusher = Wire::bearer(gateway.port, &token);
    let location = pusher.start_upload("apps/web");
    pusher.delete(&location).expect(204);
    pusher.get(&location).expect(404);
    pusher.delete(&location).expect(404);
}

#[test]
fn a_mount_makes_a_blob_readable_without_sending_it() {
    let (gateway, wire) = start();
    let content = Content::random(100);
    wire.push_blob("apps/one", &content).expect(201);
    let mount = format!(
        "/v2/apps/two/blobs/uploads/?mount={}&from=apps%2Fone",
        content.digest.replace(':', "%3A")
    );
    wire.head(&format!("/v2/apps/two/blobs/{}", content.digest))
        .expect(404);
    let answer = wire.send("POST", &mount, &[], "").expect(201);
    assert_eq!(wire.get(&answer.location()).expect(200).body, content.bytes);
    for impossible in [
        "/v2/apps/two/blobs/uploads/?mount=sha256:0000000000000000000000000000000000000000000000000000000000000000&from=apps/one".to_owned(),
        format!("/v2/apps/two/blobs/uploads/?mount={}&from=apps/none", content.digest),
        format!("/v2/apps/two/blobs/uploads/?mount={}", content.digest),
    ] {
        let answer = wire.send("POST", &impossible, &[], "");
        assert!(matches!(answer.status.as_u16(), 201 | 202), "{impossible}: {answer:?}");
    }
    // Without the right to pull from the source, a mount is a plain upload.
    let token = wire.token(&["repository:apps/three:pull,push"]);
    let narrow = Wire::bearer(gateway.port, &token);
    let mount = mount.replace("/two/", "/three/");
    narrow.send("POST", &mount, &[], "").expect(202);
    wire.head(&format!("/v2/apps/three/blobs/{}", content.digest))
        .expect(404);
}

#[test]
fn ranges_are_cut_to_the_blob() {
    let (_gateway, wire) = start();
    let content = Content::random(1000);
    wire.push_blob("apps/web", &content).expect(201);
    let path = format!("/v2/apps/web/blobs/{}", content.digest);
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=10-19", 10..20),
        ("bytes=990-", 990..1000),
        ("bytes=990-5000", 990..1000),
        ("bytes=-10", 990..1000),
        ("bytes=-5000", 0..1000),
    ] {
        let answer = wire.send("GET", &path, &[("range", range)], "").expect(206);
        assert_eq!(
            answer.header("content-range"),
            format!("bytes {}-{}/1000", expected.start, expected.end - 1),
            "{range}"
        );
        assert_eq!(answer.body, content.bytes.slice(expected), "{range}");
    }
    for range in ["bytes=1000-", "bytes=2000-3000", "bytes=-0"] {
        let answer = wire.send("GET", &path, &[("range", range)], "").expect(416);
        assert_eq!(answer.header("content-range"), "bytes */1000", "{range}");
    }
    for whole in ["bytes=0-1,5-6", "items=0-1"] {
        assert_eq!(
            wire.send("GET", &path, &[("range", whole)], "")
                .expect(200)
                .body
                .len(),
            1000,
            "{whole}"
        );
    }
    assert_eq!(wire.get(&path).header("accept-ranges"), "bytes");
}

#[test]
fn a_manifest_needs_its_blobs_but_not_its_subject_or_children() {
    let (_gateway, wire) = start();
    let image = Image::random(100);
    let refused = wire
        .push_manifest("apps/web", "latest", MANIFEST, image.manifest.bytes.clone())
        .expect(400);
    assert_eq!(refused.code(), "MANIFEST_BLOB_UNKNOWN");
    let sparse = index_of(&[&image]);
    wire.push_manifest("apps/web", "sparse", INDEX, sparse.bytes)
        .expect(201);
}

#[test]
fn a_manifest_by_digest_must_have_that_digest() {
    let (_gateway, wire) = start();
    let image = Image::random(100);
    image
        .blobs()
        .for_each(|blob| drop(wire.push_blob("apps/web", blob).expect(201)));
    let other = Content::random(4).digest;
    assert_eq!(
        wire.push_manifest("apps/web", &other, MANIFEST, image.manifest.bytes.clone())
            .expect(400)
            .code(),
        "DIGEST_INVALID"
    );
    let answer = wire
        .push_manifest(
            "apps/web",
            &image.manifest.digest,
            MANIFEST,
            image.manifest.bytes.clone(),
        )
        .expect(201);
    assert_eq!(
        answer.header("docker-content-digest"),
        image.manifest.digest
    );
    assert_eq!(
        wire.get(&answer.location()).expect(200).body,
        image.manifest.bytes
    );
    wire.get("/v2/apps/web/manifests/latest").expect(404);
}

#[test]
fn one_put_moves_several_tags() {
    let (_gateway, wire) = start();
    let image = Image::random(100);
    image
        .blobs()
        .for_each(|blob| drop(wire.push_blob("apps/web", blob).expect(201)));
    let tags: String = (0..10).map(|tag| format!("&tag=t{tag}")).collect();
    let reference = format!("{}?{}", image.manifest.digest, tags.trim_start_matches('&'));
    let answer = wire
        .push_manifest(
            "apps/web",
            &reference,
            MANIFEST,
            image.manifest.bytes.clone(),
        )
        .expect(201);
    let named: Vec<_> = answer
        .headers
        .get_all("oci-tag")
        .iter()
        .flat_map(|value| value.to_str().unwrap().split(','))
        .map(str::trim)
        .collect();
    assert_eq!(named.len(), 10, "{named:?}");
    for tag in 0..10 {
        wire.pull_image("apps/web", &format!("t{tag}"), &image);
    }
}

#[test]
fn sha512_names_content_as_well() {
    let (_gateway, wire) = start();
    let content = Content::random(100);
    let digest = sha512(&content.bytes);
    let location = wire
        .send(
            "POST",
            "/v2/apps/web/blobs/uploads/?digest-algorithm=sha512",
            &[],
            "",
        )
        .expect(202)
        .location();
    wire.send(
        "PUT",
        &close(&location, &digest),
        &[OCTETS],
        content.bytes.clone(),
    )
    .expect(201);
    assert_eq!(
        wire.get(&format!("/v2/apps/web/blobs/{digest}"))
            .expect(200)
            .body,
        content.bytes
    );
    let late = wire.start_upload("apps/web");
    let late = wire
        .send("PATCH", &late, &[OCTETS], content.bytes.clone())
        .expect(202)
        .location();
    wire.send("PUT", &close(&late, &digest), &[], "")
        .expect(201);
    let image = Image::random(10);
    image
        .blobs()
        .for_each(|blob| drop(wire.push_blob("apps/web", blob).expect(201)));
    let digest = sha512(&image.manifest.bytes);
    wire.push_manifest(
        "apps/web",
        &format!("{digest}?tag=long"),
        MANIFEST,
        image.manifest.bytes.clone(),
    )
    .expect(201);
    assert_eq!(
        wire.get("/v2/apps/web/manifests/long")
            .expect(200)
            .header("docker-content-digest"),
        digest
    );
}

#[test]
fn tags_are_listed_in_pages_without_a_gap() {
    let (_gateway, wire) = start();
    wire.get("/v2/apps/web/tags/list").expect(404);
    let image = Image::random(10);
    wire.push_image("apps/web", "m", &image);
    let mut tags = vec!["m".to_owned()];
    for tag in ["a", "a-b", "a.b", "ab", "B", "z", "0"] {
        wire.push_manifest("apps/web", tag, MANIFEST, image.manifest.bytes.clone())
            .expect(201);
        tags.push(tag.to_owned());
    }
    tags.sort();
    let list = |answer: &tests::wire::Answer| {
        answer.json()["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let whole = wire.get("/v2/apps/web/tags/list").expect(200);
    assert_eq!(
        (list(&whole), whole.json()["name"].as_str()),
        (tags.clone(), Some("apps/web"))
    );
    let (mut path, mut found) = ("/v2/apps/web/tags/list?n=3".to_owned(), Vec::new());
    loop {
        let page = wire.get(&path).expect(200);
        found.extend(list(&page));
        let link = page.header("link");
        let Some((next, rel)) = link.split_once('>') else {
            break;
        };
        assert_eq!(rel, "; rel=\"next\"");
        path = next.trim_start_matches('<').to_owned();
        assert!(path.starts_with("/v2/"), "{path}");
    }
    assert_eq!(found, tags);
    let none = wire.get("/v2/apps/web/tags/list?n=0").expect(200);
    assert_eq!((list(&none).len(), none.header("link").as_str()), (0, ""));
    assert_eq!(
        list(&wire.get("/v2/apps/web/tags/list?last=a.a").expect(200)),
        ["a.b", "ab", "m", "z"]
    );
}

#[test]
fn the_catalog_lists_repositories_in_pages() {
    let (_gateway, wire) = start();
    for name in ["apps/a", "apps/a-b", "apps/a/b", "apps/b"] {
        wire.push_image(name, "latest", &Image::random(10));
    }
    let first = wire.get("/v2/_catalog?n=2").expect(200);
    assert_eq!(first.json()["repositories"], json!(["apps/a", "apps/a-b"]));
    let next = first.header("link");
    let next = next.trim_start_matches('<').split('>').next().unwrap();
    let second = wire.get(next).expect(200);
    assert_eq!(second.json()["repositories"], json!(["apps/a/b", "apps/b"]));
    assert!(second.header("link").is_empty());
}

#[test]
fn referrers_are_listed_filtered_and_never_404() {
    let (_gateway, wire) = start();
    let image = Image::random(10);
    let answer = wire
        .get(&format!("/v2/apps/web/referrers/{}", image.manifest.digest))
        .expect(200);
    assert_eq!(answer.header("content-type"), INDEX);
    assert_eq!(answer.json()["manifests"], json!([]));
    let empty = Content::new("{}");
    wire.push_blob("apps/web", &empty).expect(201);
    for kind in ["application/vnd.a", "application/vnd.b"] {
        let document = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": [],
            "config": empty.descriptor("application/vnd.oci.empty.v1+json"),
            "subject": image.manifest.descriptor(MANIFEST), "annotations": { "kind": kind },
        });
        let content = Content::new(document.to_string());
        let pushed = wire
            .push_manifest("apps/web", &content.digest, MANIFEST, content.bytes)
            .expect(201);
        assert_eq!(pushed.header("oci-subject"), image.manifest.digest);
    }
    let path = format!("/v2/apps/web/referrers/{}", image.manifest.digest);
    let all = wire.get(&path).expect(200).json();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 2);
    let filtered = wire
        .get(&format!("{path}?artifactType=application/vnd.a"))
        .expect(200);
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let found = filtered.json();
    assert_eq!(
        (
            found["manifests"].as_array().unwrap().len(),
            found["manifests"][0]["annotations"]["kind"].as_str()
        ),
        (1, Some("application/vnd.a"))
    );
    assert_eq!(
        wire.get("/v2/apps/web/referrers/latest").expect(400).code(),
        "DIGEST_INVALID"
    );
}

#[test]
fn what_is_deleted_is_gone_and_deleting_twice_is_404() {
    let (_gateway, wire) = start();
    let image = Image::random(100);
    wire.push_image("apps/web", "one", &image);
    wire.push_manifest("apps/web", "two", MANIFEST, image.manifest.bytes.clone())
        .expect(201);
    wire.delete("/v2/apps/web/manifests/one").expect(202);
    wire.delete("/v2/apps/web/manifests/one").expect(404);
    wire.pull_image("apps/web", "two", &image);
    let path = format!("/v2/apps/web/manifests/{}", image.manifest.digest);
    wire.delete(&path).expect(202);
    wire.get("/v2/apps/web/manifests/two").expect(404);
    wire.get(&path).expect(404);
    wire.delete(&path).expect(404);
    let blob = format!("/v2/apps/web/blobs/{}", image.layers[0].digest);
    wire.delete(&blob).expect(202);
    wire.get(&blob).expect(404);
    wire.delete(&blob).expect(404);
}

#[test]
fn a_deleted_blob_of_one_repository_stays_in_another() {
    let (_gateway, wire) = start();
    let content = Content::random(100);
    wire.push_blob("apps/one", &content).expect(201);
    wire.push_blob("apps/two", &content).expect(201);
    wire.delete(&format!("/v2/apps/one/blobs/{}", content.digest))
        .expect(202);
    wire.get(&format!("/v2/apps/one/blobs/{}", content.digest))
        .expect(404);
    assert_eq!(
        wire.get(&format!("/v2/apps/two/blobs/{}", content.digest))
            .expect(200)
            .body,
        content.bytes
    );
}

#[test]
fn gitlab_learns_that_tags_can_be_deleted() {
    let (_gateway, wire) = start();
    let answer = wire
        .send("OPTIONS", "/v2/apps/web/manifests/latest", &[], "")
        .expect(200);
    assert!(answer.header("allow").contains("DELETE"));
}

#[test]
fn names_may_hold_the_words_of_the_api() {
    let (_gateway, wire) = start();
    let image = Image::random(10);
    for name in [
        "apps/blobs/uploads",
        "apps/manifests/latest",
        "apps/tags/list",
        "apps/v2/x",
    ] {
        wire.push_image(name, "latest", &image);
        wire.pull_image(name, "latest", &image);
        wire.get(&format!("/v2/{name}/tags/list")).expect(200);
    }
}
