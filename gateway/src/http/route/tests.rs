//! Every row is a request and what it must mean; the properties hold for all requests.

use std::fmt::Write as _;

use gantry_model::{glob::Glob, namespace::MirrorNames};
use proptest::prelude::*;

use super::*;

const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const D512: &str = "sha512:27c74670adb75075fad058d5ceaf7b20c4e7786c83bae8a32f626f9782af34c9a33c2046ef60fd2a7878d378e29fec851806bbd9a67878f3a9f1cda4830763fd";
const U: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

fn namespaces() -> Namespaces {
    let mirror = |name: &str, prefix: &str, hosts: &[&str], library| MirrorNames {
        mirror: name.into(),
        prefix: prefix.parse().unwrap(),
        namespaces: vec![name.to_owned()],
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        library,
        hosted: Vec::new(),
        layered: Vec::new(),
    };
    Namespaces {
        mirrors: vec![
            mirror("docker.io", "docker.io", &["hub.example"], true),
            mirror("ghcr.io", "cache/ghcr.io", &[], false),
        ],
        hosted: ["apps/**", "v2/**", "blobs/**", "manifests/**"]
            .iter()
            .map(|pattern| Glob::parse(pattern).unwrap())
            .collect(),
        default_mirror: None,
    }
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<Parts> {
    let uri = uri
        .replace("{D}", D)
        .replace("{D512}", D512)
        .replace("{U}", U);
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Some(request.body(()).ok()?.into_parts().0)
}

fn at(host: &str) -> Address<'_> {
    Address {
        host: Some(host),
        ..Address::default()
    }
}

fn route(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Routed, RouteError> {
    let parts = request(method, uri, headers).unwrap();
    parse(&parts, at("gw.example"), &namespaces())
}

/// A routed request in one line, so that a table can hold it.
fn show(routed: &Result<Routed, RouteError>) -> String {
    let operation = match routed {
        Ok(Routed::Operation(operation)) => operation,
        Ok(Routed::Options(allow)) => return format!("options {allow}"),
        Err(RouteError::MethodNotAllowed { allow }) => return format!("405 {allow}"),
        Err(error) => {
            let answer = super::super::error::Error::Route(error.clone()).answer();
            return format!("{} {}", answer.status.as_u16(), answer.code);
        }
    };
    let mut line = operation.kind().as_str().to_owned();
    if let Some(repository) = operation.repository() {
        write!(line, " {}", repository.name).unwrap();
    }
    let details = match operation {
        Operation::PullManifest {
            reference, body, ..
        } => format!("{reference} body={body}"),
        Operation::PushManifest {
            reference,
            tags,
            media_type,
            ..
        } => format!("{reference} {tags:?} {media_type:?}"),
        Operation::DeleteManifest { digest, .. } | Operation::DeleteBlob { digest, .. } => {
            digest.to_string()
        }
        Operation::DeleteTag { tag, .. } => tag.to_string(),
        Operation::PullBlob {
            digest,
            range,
            body,
            ..
        } => format!("{digest} {range:?} body={body}"),
        Operation::StartUpload { algorithm, .. } => format!("start {}", algorithm.as_str()),
        Operation::PushBlob { digest, .. } => format!("whole {digest}"),
        Operation::MountBlob { digest, from, .. } => {
            let from = from.as_ref().map(|from| from.name.to_string());
            format!("{digest} {from:?}")
        }
        Operation::UploadStatus { upload, .. } => format!("status {upload}"),
        Operation::AppendChunk { upload, range, .. } => format!("append {upload} {range:?}"),
        Operation::CommitUpload {
            upload,
            digest,
            range,
            ..
        } => format!("commit {upload} {digest} {range:?}"),
        Operation::CancelUpload { upload, .. } => format!("cancel {upload}"),
        Operation::ListTags { page, .. } | Operation::ListCatalog { page } => {
            format!("{:?} {:?}", page.limit, page.after)
        }
        Operation::ListReferrers {
            digest,
            artifact_type,
            ..
        } => format!("{digest} {artifact_type:?}"),
        Operation::Ping => String::new(),
    };
    if !details.is_empty() {
        write!(line, " {details}").unwrap();
    }
    line.replace(D512, "{D512}")
        .replace(D, "{D}")
        .replace(U, "{U}")
}

fn check(rows: &[(&str, &str, &str)]) {
    for (method, uri, expected) in rows {
        assert_eq!(show(&route(method, uri, &[])), *expected, "{method} {uri}");
    }
}

#[test]
fn the_endpoints_of_the_spec() {
    check(&[
        ("GET", "/v2/", "ping"),
        ("HEAD", "/v2/", "ping"),
        ("GET", "/v2", "ping"),
        ("GET", "/v2/?ns=docker.io", "ping"),
        ("GET", "/v2/_catalog", "catalog None None"),
        (
            "GET",
            "/v2/_catalog?n=5&last=a%2Fb",
            "catalog Some(5) Some(\"a/b\")",
        ),
        ("GET", "/v2/apps/a/tags/list", "list-tags apps/a None None"),
        ("HEAD", "/v2/apps/a/tags/list", "list-tags apps/a None None"),
        (
            "GET",
            "/v2/apps/a/tags/list?n=0",
            "list-tags apps/a Some(0) None",
        ),
        (
            "GET",
            "/v2/apps/a/tags/list?last=v1",
            "list-tags apps/a None Some(\"v1\")",
        ),
        (
            "GET",
            "/v2/apps/a/manifests/v1",
            "pull-manifest apps/a v1 body=true",
        ),
        (
            "HEAD",
            "/v2/apps/a/manifests/v1",
            "pull-manifest apps/a v1 body=false",
        ),
        (
            "GET",
            "/v2/apps/a/manifests/{D}",
            "pull-manifest apps/a {D} body=true",
        ),
        (
            "GET",
            "/v2/apps/a/manifests/{D512}",
            "pull-manifest apps/a {D512} body=true",
        ),
        (
            "PUT",
            "/v2/apps/a/manifests/v1",
            "push-manifest apps/a v1 [] None",
        ),
        (
            "PUT",
            "/v2/apps/a/manifests/{D}?tag=a&tag=b&tag=a",
            "push-manifest apps/a {D} [a, b] None",
        ),
        ("DELETE", "/v2/apps/a/manifests/v1", "delete-tag apps/a v1"),
        (
            "DELETE",
            "/v2/apps/a/manifests/{D}",
            "delete-manifest apps/a {D}",
        ),
        (
            "GET",
            "/v2/apps/a/blobs/{D}",
            "pull-blob apps/a {D} None body=true",
        ),
        (
            "HEAD",
            "/v2/apps/a/blobs/{D}",
            "pull-blob apps/a {D} None body=false",
        ),
        ("DELETE", "/v2/apps/a/blobs/{D}", "delete-blob apps/a {D}"),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/",
            "push-blob apps/a start sha256",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads",
            "push-blob apps/a start sha256",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?digest-algorithm=sha512",
            "push-blob apps/a start sha512",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?digest={D}",
            "push-blob apps/a whole {D}",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=apps%2Fb",
            "mount-blob apps/a {D} Some(\"apps/b\")",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=apps/b",
            "mount-blob apps/a {D} Some(\"apps/b\")",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}",
            "mount-blob apps/a {D} None",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=",
            "mount-blob apps/a {D} None",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=nowhere",
            "push-blob apps/a start sha256",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=docker.io/alpine",
            "mount-blob apps/a {D} Some(\"docker.io/library/alpine\")",
        ),
        (
            "GET",
            "/v2/apps/a/blobs/uploads/{U}",
            "push-blob apps/a status {U}",
        ),
        (
            "HEAD",
            "/v2/apps/a/blobs/uploads/{U}",
            "push-blob apps/a status {U}",
        ),
        (
            "PATCH",
            "/v2/apps/a/blobs/uploads/{U}",
            "push-blob apps/a append {U} None",
        ),
        (
            "PATCH",
            "/v2/apps/a/blobs/uploads/{U}?_state=x%2By",
            "push-blob apps/a append {U} None",
        ),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/{U}?digest={D}",
            "push-blob apps/a commit {U} {D} None",
        ),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/{U}?_state=x&digest={D}",
            "push-blob apps/a commit {U} {D} None",
        ),
        (
            "DELETE",
            "/v2/apps/a/blobs/uploads/{U}",
            "push-blob apps/a cancel {U}",
        ),
        (
            "GET",
            "/v2/apps/a/referrers/{D}",
            "list-referrers apps/a {D} None",
        ),
        (
            "GET",
            "/v2/apps/a/referrers/{D}?artifactType=",
            "list-referrers apps/a {D} None",
        ),
        (
            "GET",
            "/v2/apps/a/referrers/{D}?artifactType=a%2Fb%2Bc",
            "list-referrers apps/a {D} Some(\"a/b+c\")",
        ),
        (
            "GET",
            "/v2/apps/a/referrers/{D}?artifactType=a/b+c",
            "list-referrers apps/a {D} Some(\"a/b+c\")",
        ),
    ]);
}

#[test]
fn names_hold_the_words_of_the_paths() {
    check(&[
        (
            "GET",
            "/v2/apps/blobs/uploads/manifests/v1",
            "pull-manifest apps/blobs/uploads v1 body=true",
        ),
        (
            "GET",
            "/v2/apps/manifests/tags/list",
            "list-tags apps/manifests None None",
        ),
        (
            "GET",
            "/v2/apps/tags/list/tags/list",
            "list-tags apps/tags/list None None",
        ),
        (
            "GET",
            "/v2/apps/blobs/uploads/tags/list",
            "list-tags apps/blobs/uploads None None",
        ),
        (
            "GET",
            "/v2/apps/tags/manifests/list",
            "pull-manifest apps/tags list body=true",
        ),
        (
            "GET",
            "/v2/blobs/blobs/blobs/{D}",
            "pull-blob blobs/blobs {D} None body=true",
        ),
        (
            "POST",
            "/v2/blobs/uploads/blobs/uploads/",
            "push-blob blobs/uploads start sha256",
        ),
        (
            "GET",
            "/v2/blobs/uploads/blobs/uploads/{U}",
            "push-blob blobs/uploads status {U}",
        ),
        (
            "GET",
            "/v2/manifests/manifests/manifests/manifests",
            "pull-manifest manifests/manifests manifests body=true",
        ),
        (
            "GET",
            "/v2/v2/v2/manifests/v2",
            "pull-manifest v2/v2 v2 body=true",
        ),
        (
            "GET",
            "/v2/apps/referrers/referrers/{D}",
            "list-referrers apps/referrers {D} None",
        ),
        ("GET", "/v2/apps/_catalog", "404 UNSUPPORTED"),
        (
            "GET",
            "/v2/apps/a/blobs/uploads/list",
            "404 BLOB_UPLOAD_UNKNOWN",
        ),
    ]);
}

#[test]
fn mirrors_are_addressed_in_every_form() {
    check(&[
        (
            "GET",
            "/v2/docker.io/alpine/manifests/3",
            "pull-manifest docker.io/library/alpine 3 body=true",
        ),
        (
            "GET",
            "/v2/docker.io/library/alpine/manifests/3",
            "pull-manifest docker.io/library/alpine 3 body=true",
        ),
        (
            "GET",
            "/docker.io/v2/alpine/manifests/3",
            "pull-manifest docker.io/library/alpine 3 body=true",
        ),
        ("GET", "/docker.io/v2/", "ping"),
        ("GET", "/docker.io/v2", "ping"),
        ("GET", "/cache/ghcr.io/v2/", "ping"),
        (
            "GET",
            "/cache/ghcr.io/v2/a/b/blobs/{D}",
            "pull-blob cache/ghcr.io/a/b {D} None body=true",
        ),
        (
            "GET",
            "/v2/cache/ghcr.io/a/b/blobs/{D}",
            "pull-blob cache/ghcr.io/a/b {D} None body=true",
        ),
        (
            "GET",
            "/v2/a/b/manifests/1?ns=ghcr.io",
            "pull-manifest cache/ghcr.io/a/b 1 body=true",
        ),
        (
            "GET",
            "/v2/a/b/manifests/1?ns=GHCR.io",
            "pull-manifest cache/ghcr.io/a/b 1 body=true",
        ),
        (
            "GET",
            "/v2/docker.io/a/manifests/1?ns=docker.io",
            "pull-manifest docker.io/library/a 1 body=true",
        ),
        (
            "GET",
            "/docker.io/v2/v2/manifests/1",
            "pull-manifest docker.io/library/v2 1 body=true",
        ),
        (
            "GET",
            "/v2/a/manifests/1?ns=evil.example",
            "404 NAME_UNKNOWN",
        ),
        (
            "GET",
            "/v2/apps/a/manifests/1?ns=evil.example",
            "404 NAME_UNKNOWN",
        ),
        ("PUT", "/v2/nowhere/manifests/1", "404 NAME_UNKNOWN"),
        ("POST", "/v2/nowhere/blobs/uploads/", "404 NAME_UNKNOWN"),
        ("GET", "/v2/nowhere/tags/list", "404 NAME_UNKNOWN"),
        ("GET", "/quay.io/v2/a/manifests/1", "404 UNSUPPORTED"),
        ("GET", "/docker.io/v1/a/manifests/1", "404 UNSUPPORTED"),
        ("GET", "/docker%2Eio/v2/a/manifests/1", "404 UNSUPPORTED"),
    ]);
}

#[test]
fn a_virtual_host_means_its_mirror() {
    let parts = request("GET", "/v2/alpine/manifests/3", &[]).unwrap();
    for host in ["hub.example", "HUB.example", "hub.example:443"] {
        let routed = parse(&parts, at(host), &namespaces());
        assert_eq!(
            show(&routed),
            "pull-manifest docker.io/library/alpine 3 body=true"
        );
    }
    assert_eq!(
        show(&parse(&parts, Address::default(), &namespaces())),
        "404 NAME_UNKNOWN"
    );
}

#[test]
fn a_mirrors_listener_has_its_names_and_no_catalog() {
    let address = Address {
        mirror: Some("docker.io"),
        ..at("gw.example")
    };
    let check = |method: &str, uri: &str, expected: &str| {
        let parts = request(method, uri, &[]).unwrap();
        let routed = parse(&parts, address, &namespaces());
        assert_eq!(show(&routed), expected, "{uri}");
    };
    let alpine = "pull-manifest docker.io/library/alpine 3 body=true";
    check("GET", "/v2/alpine/manifests/3", alpine);
    check("GET", "/v2/alpine/manifests/3?ns=docker.io", alpine);
    check(
        "GET",
        "/v2/alpine/manifests/3?ns=ghcr.io",
        "404 NAME_UNKNOWN",
    );
    check(
        "GET",
        "/docker.io/v2/alpine/manifests/3",
        "404 NAME_UNKNOWN",
    );
    check("GET", "/v2/_catalog", "404 UNSUPPORTED");
}

#[test]
fn every_part_is_decoded_exactly_once() {
    check(&[
        (
            "GET",
            "/v2/apps/%61/manifests/v%31",
            "pull-manifest apps/a v1 body=true",
        ),
        (
            "GET",
            "/v2/apps/a/%6danifests/v1",
            "pull-manifest apps/a v1 body=true",
        ),
        (
            "GET",
            "/v2/apps/a/blobs/sha256%3A44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "pull-blob apps/a {D} None body=true",
        ),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/{U}?digest=sha256%3a44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            "push-blob apps/a commit {U} {D} None",
        ),
        ("GET", "/v2/apps/%2561/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps%2Fa/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%2fmanifests/v1", "400 NAME_INVALID"),
        (
            "GET",
            "/v2/apps/a/manifests/..%2f..%2fetc",
            "400 NAME_INVALID",
        ),
        ("GET", "/v2/apps/a/manifests/%2e%2e", "400 NAME_INVALID"),
        ("GET", "/v2/apps/../a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/./a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps//a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2//apps/a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "///v2/apps/a/manifests/v1", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a%00/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%5Cb/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%0d%0a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%4/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%zz/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%c0%af/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%ff/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a/tags/list?last=%ff", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a/tags/list?last=%", "400 NAME_INVALID"),
        ("GET", "/%76%32/apps/a/manifests/v1", "404 UNSUPPORTED"),
    ]);
}

#[test]
fn names_that_break_the_grammar() {
    check(&[
        ("GET", "/v2/APPS/a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/A/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a_/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/-a/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a..b/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a___b/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a%20b/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/a:b/manifests/v1", "400 NAME_INVALID"),
        ("GET", "/v2/apps/caf%C3%A9/manifests/v1", "400 NAME_INVALID"),
        ("POST", "/v2/apps/_a/blobs/uploads/", "400 NAME_INVALID"),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=..",
            "400 NAME_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=A",
            "400 NAME_INVALID",
        ),
        (
            "GET",
            "/v2/apps/a-b.c__d--e/tags/list",
            "list-tags apps/a-b.c__d--e None None",
        ),
    ]);
    for (length, expected) in [(250, "list-tags"), (251, "400 NAME_INVALID")] {
        let uri = format!("/v2/apps/{}/tags/list", "a".repeat(length));
        assert!(
            show(&route("GET", &uri, &[])).starts_with(expected),
            "{length}"
        );
    }
}

#[test]
fn references_and_digests_that_break_the_grammar() {
    check(&[
        ("GET", "/v2/apps/a/manifests/.v1", "400 TAG_INVALID"),
        ("GET", "/v2/apps/a/manifests/-v1", "400 TAG_INVALID"),
        ("PUT", "/v2/apps/a/manifests/v%201", "400 TAG_INVALID"),
        ("GET", "/v2/apps/a/manifests/v1+x", "400 TAG_INVALID"),
        (
            "GET",
            "/v2/apps/a/manifests/sha256:abc",
            "400 DIGEST_INVALID",
        ),
        (
            "GET",
            "/v2/apps/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e",
            "400 DIGEST_INVALID",
        ),
        ("GET", "/v2/apps/a/manifests/a:b", "400 DIGEST_INVALID"),
        ("GET", "/v2/apps/a/manifests/:", "400 DIGEST_INVALID"),
        (
            "DELETE",
            "/v2/apps/a/manifests/sha256:",
            "400 DIGEST_INVALID",
        ),
        ("GET", "/v2/apps/a/blobs/latest", "400 DIGEST_INVALID"),
        ("HEAD", "/v2/apps/a/blobs/sha256:xyz", "400 DIGEST_INVALID"),
        ("DELETE", "/v2/apps/a/blobs/sha256", "400 DIGEST_INVALID"),
        ("GET", "/v2/apps/a/referrers/v1", "400 DIGEST_INVALID"),
        (
            "GET",
            "/v2/apps/a/referrers/sha256:abc",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?digest=nonsense",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?digest=",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount=nonsense&from=apps/b",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?digest-algorithm=md5",
            "400 DIGEST_INVALID",
        ),
        ("PUT", "/v2/apps/a/blobs/uploads/{U}", "400 DIGEST_INVALID"),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/{U}?digest=sha256:abc",
            "400 DIGEST_INVALID",
        ),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/{U}?digest={D}&digest={D512}",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&mount={D}",
            "400 DIGEST_INVALID",
        ),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/?mount={D}&from=apps/b&from=apps/c",
            "400 NAME_INVALID",
        ),
        (
            "GET",
            "/v2/a/manifests/1?ns=ghcr.io&ns=docker.io",
            "400 NAME_INVALID",
        ),
        (
            "PUT",
            "/v2/apps/a/manifests/{D}?tag=a&tag=.b",
            "400 TAG_INVALID",
        ),
        ("PUT", "/v2/apps/a/manifests/{D}?tag=", "400 TAG_INVALID"),
        ("PUT", "/v2/apps/a/manifests/{D}?tag={D}", "400 TAG_INVALID"),
        (
            "PATCH",
            "/v2/apps/a/blobs/uploads/1",
            "404 BLOB_UPLOAD_UNKNOWN",
        ),
        (
            "PUT",
            "/v2/apps/a/blobs/uploads/nonsense?digest={D}",
            "404 BLOB_UPLOAD_UNKNOWN",
        ),
        ("GET", "/v2/apps/a/blobs/uploads/..%2Fx", "400 NAME_INVALID"),
        (
            "DELETE",
            "/v2/apps/a/blobs/uploads/6BA7B810-9DAD-41D1-80B4-00C04FD430C8",
            "404 BLOB_UPLOAD_UNKNOWN",
        ),
    ]);
    for (length, expected) in [(128, "pull-manifest"), (129, "400 TAG_INVALID")] {
        let uri = format!("/v2/apps/a/manifests/{}", "a".repeat(length));
        assert!(
            show(&route("GET", &uri, &[])).starts_with(expected),
            "{length}"
        );
    }
}

#[test]
fn pages() {
    let rows = [
        ("n=1", "Some(1) None"),
        ("n=1000", "Some(1000) None"),
        ("n=1001", "Some(1000) None"),
        ("n=2147483647", "Some(1000) None"),
        ("n=4294967296", "Some(1000) None"),
        ("n=9223372036854775807", "Some(1000) None"),
        ("n=007", "Some(7) None"),
        ("last=", "None None"),
        ("", "None None"),
    ];
    for (query, expected) in rows {
        let uri = format!("/v2/apps/a/tags/list?{query}");
        let expected = format!("list-tags apps/a {expected}");
        assert_eq!(show(&route("GET", &uri, &[])), expected, "{query}");
    }
    for query in [
        "n=-1",
        "n=+1",
        "n=",
        "n=a",
        "n=1.5",
        "n=0x1",
        "n=1e3",
        "n=%201",
        "n=9223372036854775808",
        "n=99999999999999999999",
        "n=1&n=2",
        "last=a&last=b",
        "n=%D9%A1",
    ] {
        for path in ["/v2/_catalog", "/v2/apps/a/tags/list"] {
            let shown = show(&route("GET", &format!("{path}?{query}"), &[]));
            assert_eq!(shown, "400 PAGINATION_NUMBER_INVALID", "{path}?{query}");
        }
    }
}

#[test]
fn methods_that_a_path_does_not_take_are_named() {
    check(&[
        ("POST", "/v2/", "405 GET, HEAD"),
        ("DELETE", "/v2/_catalog", "405 GET, HEAD"),
        (
            "POST",
            "/v2/apps/a/manifests/v1",
            "405 GET, HEAD, PUT, DELETE",
        ),
        (
            "PATCH",
            "/v2/apps/a/manifests/v1",
            "405 GET, HEAD, PUT, DELETE",
        ),
        ("PUT", "/v2/apps/a/blobs/{D}", "405 GET, HEAD, DELETE"),
        ("POST", "/v2/apps/a/blobs/{D}", "405 GET, HEAD, DELETE"),
        ("GET", "/v2/apps/a/blobs/uploads/", "405 POST"),
        ("PUT", "/v2/apps/a/blobs/uploads", "405 POST"),
        (
            "POST",
            "/v2/apps/a/blobs/uploads/{U}",
            "405 GET, HEAD, PATCH, PUT, DELETE",
        ),
        ("DELETE", "/v2/apps/a/tags/list", "405 GET, HEAD"),
        ("PUT", "/v2/apps/a/referrers/{D}", "405 GET, HEAD"),
        ("TRACE", "/v2/", "405 GET, HEAD"),
        ("get", "/v2/", "405 GET, HEAD"),
        (
            "OPTIONS",
            "/v2/apps/a/manifests/v1",
            "options GET, HEAD, PUT, DELETE",
        ),
        ("OPTIONS", "/v2/", "options GET, HEAD"),
    ]);
}

#[test]
fn paths_that_are_nothing() {
    check(&[
        ("GET", "/", "404 UNSUPPORTED"),
        ("GET", "/v1/", "404 UNSUPPORTED"),
        ("GET", "/v3/apps/a/manifests/v1", "404 UNSUPPORTED"),
        ("GET", "/v2x/", "404 UNSUPPORTED"),
        ("GET", "/V2/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/tags", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/tags/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/tags/list/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/tags/lists", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/manifests", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/manifests/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/manifests/v1/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/blobs/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/blobs/{D}/", "404 UNSUPPORTED"),
        ("PATCH", "/v2/apps/a/blobs/uploads/{U}/", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/manifest/v1", "404 UNSUPPORTED"),
        ("GET", "/v2/apps/a/uploads/{U}", "404 UNSUPPORTED"),
        ("GET", "/v2/tags/list", "404 UNSUPPORTED"),
        ("GET", "/v2/manifests/v1", "404 UNSUPPORTED"),
        ("GET", "/v2/blobs/{D}", "404 UNSUPPORTED"),
        ("POST", "/v2/blobs/uploads/", "404 UNSUPPORTED"),
        ("GET", "/v2/referrers/{D}", "404 UNSUPPORTED"),
        ("GET", "/v2/_catalog/", "404 UNSUPPORTED"),
        ("GET", "/v2/_oci/ext/discover", "404 UNSUPPORTED"),
        ("GET", "/admin", "404 UNSUPPORTED"),
        ("GET", "/metrics", "404 UNSUPPORTED"),
        ("GET", "/token/", "404 UNSUPPORTED"),
    ]);
}

#[test]
fn ranges_of_pulls() {
    let uri = "/v2/apps/a/blobs/{D}";
    for (value, expected) in [
        ("bytes=0-9", "Some(Between { first: 0, last: 9 })"),
        ("bytes=5-", "Some(From(5))"),
        ("bytes=-5", "Some(Last(5))"),
        ("bytes=0-1,5-6", "None"),
        ("pages=1-2", "None"),
    ] {
        let shown = show(&route("GET", uri, &[("range", value)]));
        assert_eq!(
            shown,
            format!("pull-blob apps/a {{D}} {expected} body=true")
        );
        let head = show(&route("HEAD", uri, &[("range", value)]));
        assert_eq!(head, "pull-blob apps/a {D} None body=false");
    }
    for value in [
        "bytes=9-0",
        "bytes=a-b",
        "bytes=",
        "bytes=-",
        "bytes 0-9",
        "0-9",
        "bytes=+1-2",
        "bytes=99999999999999999999-",
        "bytes=0-9,a",
    ] {
        let shown = show(&route("GET", uri, &[("range", value)]));
        assert_eq!(shown, "416 RANGE_INVALID", "{value}");
    }
    let other = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    assert_eq!(
        show(&route("GET", uri, &other)),
        "pull-blob apps/a {D} None body=true"
    );
    let quoted = format!("\"{D}\"");
    let same = [("range", "bytes=5-"), ("if-range", quoted.as_str())];
    assert_eq!(
        show(&route("GET", uri, &same)),
        "pull-blob apps/a {D} Some(From(5)) body=true"
    );
}

#[test]
fn ranges_of_chunks() {
    let (patch, put) = (
        "/v2/apps/a/blobs/uploads/{U}",
        "/v2/apps/a/blobs/uploads/{U}?digest={D}",
    );
    for value in ["0-9", "bytes 0-9/*", "bytes 0-9/10"] {
        let range = "Some(ContentRange { first: 0, last: 9 })";
        let headers = [("content-range", value)];
        let shown = show(&route("PATCH", patch, &headers));
        assert_eq!(shown, format!("push-blob apps/a append {{U}} {range}"));
        let shown = show(&route("PUT", put, &headers));
        assert_eq!(
            shown,
            format!("push-blob apps/a commit {{U}} {{D}} {range}")
        );
    }
    for value in [
        "9-0",
        "bytes=0-9",
        "a-b",
        "0",
        "-1",
        "0-",
        "",
        "0-99999999999999999999",
    ] {
        let headers = [("content-range", value)];
        assert_eq!(
            show(&route("PATCH", patch, &headers)),
            "416 RANGE_INVALID",
            "{value}"
        );
        assert_eq!(
            show(&route("PUT", put, &headers)),
            "416 RANGE_INVALID",
            "{value}"
        );
    }
}

#[test]
fn declared_media_types() {
    let uri = "/v2/apps/a/manifests/v1";
    for (value, expected) in [
        (
            "application/vnd.oci.image.index.v1+json",
            "Some(application/vnd.oci.image.index.v1+json)",
        ),
        ("application/json; charset=utf-8", "Some(application/json)"),
        (
            "Application/VND.oci.image.index.v1+JSON",
            "Some(application/vnd.oci.image.index.v1+json)",
        ),
    ] {
        let shown = show(&route("PUT", uri, &[("content-type", value)]));
        assert_eq!(shown, format!("push-manifest apps/a v1 [] {expected}"));
    }
    for value in ["", "json", "a/b/c", "a b/c", ";"] {
        let shown = show(&route("PUT", uri, &[("content-type", value)]));
        assert_eq!(shown, "400 MANIFEST_INVALID", "{value}");
    }
    let twice = [("content-type", "a/b"), ("content-type", "c/d")];
    assert_eq!(show(&route("PUT", uri, &twice)), "400 MANIFEST_INVALID");
}

#[test]
fn thirty_two_tags_and_no_more() {
    for (count, expected) in [(32, "push-manifest"), (33, "414 TAG_INVALID")] {
        let mut uri = "/v2/apps/a/manifests/{D}?x=y".to_owned();
        for index in 0..count {
            write!(uri, "&tag=t{index}").unwrap();
        }
        assert!(
            show(&route("PUT", &uri, &[])).starts_with(expected),
            "{count}"
        );
    }
}

#[test]
fn what_the_client_spelled_is_kept_for_challenges_and_paths() {
    for (uri, spelled, base, namespace) in [
        (
            "/v2/docker.io/alpine/tags/list",
            "docker.io/alpine",
            "/v2",
            None,
        ),
        (
            "/docker.io/v2/alpine/tags/list",
            "docker.io/alpine",
            "/docker.io/v2",
            None,
        ),
        (
            "/v2/a/b/tags/list?ns=ghcr.io",
            "a/b",
            "/v2",
            Some("ghcr.io"),
        ),
    ] {
        let Ok(Routed::Operation(operation)) = route("GET", uri, &[]) else {
            panic!("{uri}");
        };
        let repository = operation.repository().unwrap();
        assert_eq!(repository.spelled.as_str(), spelled);
        assert_eq!(&*repository.base, base);
        assert_eq!(repository.namespace.as_deref(), namespace);
    }
}

fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]{1,6}",
        Just("blobs".to_owned()),
        Just("manifests".to_owned()),
        Just("uploads".to_owned()),
        Just("tags".to_owned()),
        Just("list".to_owned()),
        Just("referrers".to_owned()),
        Just("v2".to_owned()),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(piece(), 1..6).prop_map(|pieces| format!("apps/{}", pieces.join("/")))
}

/// Percent-encodes the characters that `chosen` picks, and all that must be.
fn encode(text: &str, chosen: &[bool]) -> String {
    let mut chosen = chosen.iter().cycle();
    text.chars().fold(String::new(), |mut encoded, character| {
        if character != '/' && *chosen.next().unwrap_or(&false) {
            write!(encoded, "%{:02X}", u32::from(character)).unwrap();
        } else {
            encoded.push(character);
        }
        encoded
    })
}

proptest! {
    #[test]
    fn any_name_survives_any_endpoint_and_any_encoding(
        name in name(),
        tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}",
        chosen in prop::collection::vec(any::<bool>(), 1..20),
    ) {
        let written = encode(&name, &chosen);
        let wanted = encode(&tag, &chosen);
        prop_assert_eq!(
            show(&route("GET", &format!("/v2/{written}/manifests/{wanted}"), &[])),
            format!("pull-manifest {name} {tag} body=true")
        );
        prop_assert_eq!(
            show(&route("GET", &format!("/v2/{written}/tags/list"), &[])),
            format!("list-tags {name} None None")
        );
        prop_assert_eq!(
            show(&route("POST", &format!("/v2/{written}/blobs/uploads/"), &[])),
            format!("push-blob {name} start sha256")
        );
        prop_assert_eq!(
            show(&route("PATCH", &format!("/v2/{written}/blobs/uploads/{{U}}"), &[])),
            format!("push-blob {name} append {{U}} None")
        );
        prop_assert_eq!(
            show(&route("HEAD", &format!("/v2/{written}/blobs/{{D}}"), &[])),
            format!("pull-blob {name} {{D}} None body=false")
        );
    }

    #[test]
    fn any_bytes_at_all_are_an_operation_or_a_4xx(
        method in "(GET|HEAD|PUT|POST|PATCH|DELETE|OPTIONS|X)",
        path in "[a-z0-9%/._:A-F-]{0,60}",
        query in "[a-z0-9%&=+/:-]{0,60}",
        range in "[ -~]{0,20}",
    ) {
        let headers = [
            ("range", range.as_str()),
            ("content-range", range.as_str()),
            ("content-type", range.as_str()),
        ];
        for prefix in ["/", "/v2/", "/v2/apps/", "/docker.io/v2/"] {
            let Some(parts) = request(&method, &format!("{prefix}{path}?{query}"), &headers) else {
                continue;
            };
            let routed = parse(&parts, at("gw"), &namespaces());
            if let Err(error) = &routed {
                let status = super::super::error::Error::Route(error.clone()).answer().status;
                prop_assert!(status.is_client_error());
            }
            if let Ok(Routed::Operation(operation)) = &routed
                && let Some(repository) = operation.repository()
            {
                let name = repository.name.as_str();
                prop_assert!(!name.contains("..") && !name.contains("//") && !name.contains('%'));
            }
        }
    }

    #[test]
    fn decoding_undoes_encoding(text in "\\PC{0,40}") {
        let encoded: String = text.bytes().fold(String::new(), |mut encoded, byte| {
            write!(encoded, "%{byte:02x}").unwrap();
            encoded
        });
        prop_assert_eq!(query::decode(&encoded, true).ok(), Some(text));
    }
}
