//! Every outcome and every failure has exactly the headers and bytes that clients parse.

use std::{ops::RangeInclusive, time::Duration};

use async_trait::async_trait;
use gantry_model::{ByteRange, Denial, DenialCode, Repository, Scope, Source, Tag, UploadId};
use gantry_registry::{
    Arrived, BodyError, Error as RegistryError, ListedReferrers, Stale, Staleness, UpstreamFailure,
};
use gantry_storage::{Blob, StorageError};
use gantry_upstream::Fault;
use http_body::Body as _;

use super::*;
use crate::http::{
    error::{ChallengeError, Error},
    route::RouteError,
};

const D: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
const U: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

fn digest() -> Digest {
    D.parse().unwrap()
}

fn upload_id() -> UploadId {
    U.parse().unwrap()
}

fn repository() -> Repository {
    Repository {
        name: "apps/web".parse().unwrap(),
        spelled: "apps/web".parse().unwrap(),
        base: "/v2".into(),
        source: Source::Hosted,
        namespace: None,
    }
}

fn prefixed() -> Repository {
    Repository {
        name: "docker.io/library/alpine".parse().unwrap(),
        spelled: "docker.io/alpine".parse().unwrap(),
        base: "/docker.io/v2".into(),
        ..repository()
    }
}

fn frame() -> Frame {
    Frame {
        request_id: "0123".into(),
        head: false,
        if_none_match: None,
        namespace: None,
        challenge: Challenge {
            realm: "https://gw/token".to_owned(),
            path: String::new(),
            service: "gw".to_owned(),
        },
    }
}

fn served(body: bool) -> Outcome {
    Outcome::Manifest(Box::new(ServedManifest {
        repository: repository(),
        digest: digest(),
        media_type: "application/vnd.oci.image.manifest.v1+json"
            .parse()
            .unwrap(),
        bytes: Bytes::from_static(b"{}"),
        body,
        stale: None,
        warnings: Vec::new(),
    }))
}

#[derive(Debug)]
struct Content(Bytes);

#[async_trait]
impl Blob for Content {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        let start = usize::try_from(offset).unwrap();
        Ok(self.0.slice(start..(start + length).min(self.0.len())))
    }
}

fn content(length: usize) -> Bytes {
    (0..length)
        .map(|index| u8::try_from(index % 251).unwrap())
        .collect()
}

fn pulled(size: usize, range: Option<RangeInclusive<u64>>) -> Outcome {
    Outcome::Blob(Box::new(ServedBlob {
        repository: repository(),
        digest: digest(),
        size: Some(size as u64),
        range,
        content: BlobContent::Published(Arc::new(Content(content(size)))),
        warnings: Vec::new(),
    }))
}

fn filling(pieces: &[Result<&'static [u8], ()>], size: Option<u64>) -> Outcome {
    let pieces: Vec<_> = pieces
        .iter()
        .map(|piece| {
            piece
                .map(|bytes| Arrived::Loose(Bytes::from_static(bytes)))
                .map_err(|()| RegistryError::UpstreamInvalid {
                    source: "wrong digest".into(),
                })
        })
        .collect();
    Outcome::Blob(Box::new(ServedBlob {
        repository: repository(),
        digest: digest(),
        size,
        range: None,
        content: BlobContent::Filling(Box::pin(futures_util::stream::iter(pieces))),
        warnings: Vec::new(),
    }))
}

fn header<'a>(reply: &'a Reply, name: &str) -> &'a str {
    reply
        .headers()
        .get(name)
        .map_or("", |value| value.to_str().unwrap())
}

/// Everything the body yields, and whether it ended well.
async fn drain(reply: Reply) -> (Vec<u8>, bool) {
    let mut body = reply.into_body();
    let mut all = Vec::new();
    loop {
        let promised = body.size_hint().exact();
        let frame =
            std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context));
        match frame.await {
            None => return (all, true),
            Some(Err(_)) => return (all, false),
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap();
                let left = body.size_hint().exact();
                assert_eq!(promised.map(|promised| promised - bytes.len() as u64), left);
                all.extend_from_slice(&bytes);
            }
        }
    }
}

#[test]
fn the_ping() {
    let reply = outcome(&frame(), Outcome::Alive);
    assert_eq!(reply.status(), 200);
    assert_eq!(
        header(&reply, "docker-distribution-api-version"),
        "registry/2.0"
    );
    assert_eq!(header(&reply, "content-type"), "application/json");
    assert_eq!(header(&reply, "content-length"), "2");
    assert_eq!(header(&reply, "x-request-id"), "0123");
    assert_eq!(reply.body().text(), "{}");
}

#[test]
fn a_manifest_leaves_exactly_as_stored() {
    let reply = outcome(&frame(), served(true));
    assert_eq!(reply.status(), 200);
    assert_eq!(
        header(&reply, "content-type"),
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(header(&reply, "docker-content-digest"), D);
    assert_eq!(header(&reply, "etag"), format!("\"{D}\""));
    assert_eq!(header(&reply, "content-length"), "2");
    assert_eq!(reply.body().text(), "{}");
}

#[test]
fn head_has_the_headers_of_get_and_no_body() {
    let get = outcome(&frame(), served(true));
    let head = outcome(
        &Frame {
            head: true,
            ..frame()
        },
        served(false),
    );
    assert_eq!(get.headers(), head.headers());
    assert!(head.body().is_end_stream());
    let get = outcome(&frame(), pulled(700, None));
    let head = outcome(
        &Frame {
            head: true,
            ..frame()
        },
        pulled(700, None),
    );
    assert_eq!(get.headers(), head.headers());
    assert_eq!(header(&head, "content-length"), "700");
    assert!(head.body().is_end_stream());
}

#[test]
fn a_known_entity_tag_is_answered_304_without_body() {
    for tag in [
        D.to_owned(),
        format!("\"{D}\""),
        format!("W/\"{D}\""),
        format!("\"other\", \"{D}\""),
        "*".to_owned(),
    ] {
        let frame = Frame {
            if_none_match: Some(tag.clone()),
            ..frame()
        };
        for outcome_of in [served(true), pulled(7, None)] {
            let reply = outcome(&frame, outcome_of);
            assert_eq!(reply.status(), 304, "{tag}");
            assert_eq!(header(&reply, "docker-content-digest"), D);
            assert_eq!(header(&reply, "content-length"), "");
            assert!(reply.body().is_end_stream());
        }
    }
    let other = Frame {
        if_none_match: Some("\"sha256:00\"".to_owned()),
        ..frame()
    };
    assert_eq!(outcome(&other, served(true)).status(), 200);
}

#[test]
fn a_stale_manifest_says_so() {
    let Outcome::Manifest(mut manifest) = served(true) else {
        panic!("a manifest");
    };
    manifest.stale = Some(Staleness {
        age: Duration::from_secs(90),
        why: Stale::Revalidating,
    });
    manifest.warnings = vec!["old \"base\"\nimage\u{1b}[0m".to_owned()];
    let reply = outcome(&frame(), Outcome::Manifest(manifest));
    assert_eq!(header(&reply, "age"), "90");
    let warnings: Vec<_> = reply.headers().get_all("warning").iter().collect();
    assert_eq!(
        warnings,
        [
            "110 - \"Response is Stale\"",
            "299 - \"old \\\"base\\\" image?[0m\""
        ]
    );
}

#[test]
fn warnings_stay_within_4096_bytes() {
    let Outcome::Manifest(mut manifest) = served(true) else {
        panic!("a manifest");
    };
    manifest.warnings = vec!["x".repeat(10_000); 20];
    let reply = outcome(&frame(), Outcome::Manifest(manifest));
    let sizes = reply
        .headers()
        .get_all("warning")
        .iter()
        .map(HeaderValue::len);
    let total: usize = sizes.sum();
    assert!(total > 3000 && total <= 4096, "{total}");
}

#[test]
fn a_pushed_manifest() {
    let reply = outcome(
        &frame(),
        Outcome::ManifestPushed {
            repository: repository(),
            digest: digest(),
            subject: Some(digest()),
            tags: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            warnings: vec!["careful".to_owned()],
        },
    );
    assert_eq!(reply.status(), 201);
    assert_eq!(
        header(&reply, "location"),
        format!("/v2/apps/web/manifests/{D}")
    );
    assert_eq!(header(&reply, "docker-content-digest"), D);
    assert_eq!(header(&reply, "oci-subject"), D);
    assert_eq!(header(&reply, "content-length"), "0");
    assert_eq!(header(&reply, "warning"), "299 - \"careful\"");
    let tags: Vec<_> = reply.headers().get_all("oci-tag").iter().collect();
    assert_eq!(tags, ["a", "b"]);
}

#[test]
fn uploads_say_where_they_stand() {
    let state = |received| UploadState {
        repository: repository(),
        upload: upload_id(),
        received,
    };
    for (received, range) in [(0, "0-0"), (1, "0-0"), (10, "0-9")] {
        let accepted = outcome(&frame(), Outcome::UploadAccepted(state(received)));
        assert_eq!(accepted.status(), 202);
        assert_eq!(header(&accepted, "content-length"), "0");
        let status = outcome(&frame(), Outcome::UploadStatus(state(received)));
        assert_eq!(status.status(), 204);
        assert_eq!(header(&status, "content-length"), "");
        for reply in [accepted, status] {
            assert_eq!(header(&reply, "range"), range);
            assert_eq!(
                header(&reply, "location"),
                format!("/v2/apps/web/blobs/uploads/{U}")
            );
            assert_eq!(header(&reply, "docker-upload-uuid"), U);
        }
    }
    assert_eq!(outcome(&frame(), Outcome::UploadCancelled).status(), 204);
}

#[test]
fn a_pushed_blob_and_a_deletion() {
    let pushed = Outcome::BlobPushed {
        repository: repository(),
        digest: digest(),
    };
    let reply = outcome(&frame(), pushed);
    assert_eq!(reply.status(), 201);
    assert_eq!(
        header(&reply, "location"),
        format!("/v2/apps/web/blobs/{D}")
    );
    assert_eq!(header(&reply, "docker-content-digest"), D);
    let reply = outcome(&frame(), Outcome::Deleted);
    assert_eq!(reply.status(), 202);
    assert_eq!(header(&reply, "content-length"), "0");
}

#[test]
fn paths_keep_the_form_the_client_used() {
    let reply = outcome(
        &frame(),
        Outcome::BlobPushed {
            repository: prefixed(),
            digest: digest(),
        },
    );
    assert_eq!(
        header(&reply, "location"),
        format!("/docker.io/v2/alpine/blobs/{D}")
    );
}

#[test]
fn lists_are_never_null_and_link_to_their_next_page() {
    let tags = |repository, tags: &[&str], next| {
        let tags: Vec<Tag> = tags.iter().map(|tag| tag.parse().unwrap()).collect();
        outcome(
            &frame(),
            Outcome::Tags {
                repository,
                tags,
                next,
                stale: None,
            },
        )
    };
    let reply = tags(repository(), &[], None);
    assert_eq!(reply.body().text(), r#"{"name":"apps/web","tags":[]}"#);
    assert_eq!(header(&reply, "link"), "");
    let reply = tags(repository(), &["a", "b"], Some(2));
    assert_eq!(
        reply.body().text(),
        r#"{"name":"apps/web","tags":["a","b"]}"#
    );
    assert_eq!(
        header(&reply, "content-length"),
        reply.body().text().len().to_string()
    );
    assert_eq!(
        header(&reply, "link"),
        "</v2/apps/web/tags/list?last=b&n=2>; rel=\"next\""
    );
    let namespaced = Repository {
        namespace: Some("ghcr.io:443".into()),
        ..prefixed()
    };
    assert_eq!(
        header(&tags(namespaced, &["b"], Some(1)), "link"),
        "</docker.io/v2/alpine/tags/list?last=b&n=1&ns=ghcr.io%3A443>; rel=\"next\""
    );
    let reply = outcome(
        &frame(),
        Outcome::Catalog {
            repositories: vec!["a/b".parse().unwrap()],
            next: Some(1),
        },
    );
    assert_eq!(reply.body().text(), r#"{"repositories":["a/b"]}"#);
    assert_eq!(
        header(&reply, "link"),
        "</v2/_catalog?last=a%2Fb&n=1>; rel=\"next\""
    );
}

#[test]
fn referrers_are_an_index() {
    for (filter, expected) in [(Some("x/y+z"), "artifactType"), (None, "")] {
        let listed = ListedReferrers {
            repository: repository(),
            subject: digest(),
            index: Bytes::from_static(b"{\"manifests\":[]}"),
            artifact_type: filter.map(str::to_owned),
            next: Some("sha256:ab".to_owned()),
            stale: Some(Duration::from_secs(90)),
        };
        let reply = outcome(&frame(), Outcome::Referrers(Box::new(listed)));
        assert_eq!(reply.status(), 200);
        let filter = filter.map_or("", |_| "&artifactType=x%2Fy%2Bz");
        let link = format!(
            "</v2/apps/web/referrers/{}?last=sha256%3Aab{filter}>; rel=\"next\"",
            digest()
        );
        assert_eq!(header(&reply, "link"), link);
        assert_eq!(header(&reply, "age"), "90");
        assert_eq!(header(&reply, "warning"), "110 - \"Response is Stale\"");
        assert_eq!(
            header(&reply, "content-type"),
            "application/vnd.oci.image.index.v1+json"
        );
        assert_eq!(header(&reply, "oci-filters-applied"), expected);
    }
}

#[test]
fn a_namespace_that_decided_is_echoed() {
    let frame = Frame {
        namespace: Some("ghcr.io".into()),
        ..frame()
    };
    assert_eq!(
        header(&outcome(&frame, served(true)), "oci-namespace"),
        "ghcr.io"
    );
}

#[tokio::test]
async fn a_published_blob_leaves_whole_piece_by_piece() {
    let size = 700_001;
    let reply = outcome(&frame(), pulled(size, None));
    assert_eq!(reply.status(), 200);
    assert_eq!(header(&reply, "content-type"), "application/octet-stream");
    assert_eq!(header(&reply, "accept-ranges"), "bytes");
    assert_eq!(header(&reply, "content-length"), size.to_string());
    assert_eq!(drain(reply).await, (content(size).to_vec(), true));
}

#[tokio::test]
async fn a_range_leaves_exactly() {
    let size = 300_000_usize;
    for asked in [
        ByteRange::Between { first: 0, last: 0 },
        ByteRange::Between {
            first: 9,
            last: 299_990,
        },
        ByteRange::From(299_999),
        ByteRange::Last(262_145),
    ] {
        let range = asked.resolve(size as u64).unwrap();
        let (first, last) = (*range.start(), *range.end());
        let reply = outcome(&frame(), pulled(size, Some(range)));
        assert_eq!(reply.status(), 206);
        let expected = format!("bytes {first}-{last}/{size}");
        assert_eq!(header(&reply, "content-range"), expected);
        assert_eq!(
            header(&reply, "content-length"),
            (last - first + 1).to_string()
        );
        let first = usize::try_from(first).unwrap();
        let last = usize::try_from(last).unwrap();
        assert_eq!(
            drain(reply).await,
            (content(size)[first..=last].to_vec(), true)
        );
    }
}

#[tokio::test]
async fn an_empty_blob_is_whole() {
    let reply = outcome(&frame(), pulled(0, None));
    assert_eq!(header(&reply, "content-length"), "0");
    assert!(reply.body().is_end_stream());
    assert_eq!(drain(reply).await, (Vec::new(), true));
}

#[tokio::test]
async fn a_blob_shorter_than_its_size_breaks_off() {
    let Outcome::Blob(mut blob) = pulled(10, None) else {
        panic!("a blob");
    };
    blob.size = Some(11);
    let reply = outcome(&frame(), Outcome::Blob(blob));
    assert_eq!(header(&reply, "content-length"), "11");
    assert!(!drain(reply).await.1);
}

#[tokio::test]
async fn a_fill_gives_exactly_what_it_promised_or_breaks_off() {
    let parts: &[Result<&'static [u8], ()>] = &[Ok(b"ab"), Ok(b"cd")];
    for (size, whole) in [
        (Some(4), true),
        (None, true),
        (Some(5), false),
        (Some(3), false),
    ] {
        let reply = outcome(&frame(), filling(parts, size));
        let length = size.map_or_else(String::new, |size: u64| size.to_string());
        assert_eq!(header(&reply, "content-length"), length);
        let (bytes, ended) = drain(reply).await;
        assert_eq!(ended, whole, "{size:?}");
        assert!(bytes.len() as u64 <= size.unwrap_or(4));
    }
    let reply = outcome(&frame(), filling(&[Ok(b"ab"), Err(()), Ok(b"cd")], Some(4)));
    assert_eq!(drain(reply).await, (b"ab".to_vec(), false));
}

fn told() -> (Reply, std::sync::mpsc::Receiver<(u64, bool)>) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let tell = move |sent, complete| sender.send((sent, complete)).unwrap();
    let reply = outcome(&frame(), pulled(5, None)).map(|body| body.ending(Box::new(tell)));
    (reply, receiver)
}

#[tokio::test]
async fn the_ending_is_told_what_left_and_whether_it_was_all() {
    let (reply, ending) = told();
    drain(reply).await;
    assert_eq!(ending.recv().unwrap(), (5, true));
    let (reply, ending) = told();
    drop(reply);
    assert_eq!(ending.recv().unwrap(), (0, false));
}

/// One of every failure, with the status, code and `Retry-After` it must have.
fn failures() -> Vec<(Error, u16, &'static str, &'static str)> {
    let registry = |error| Error::from(error);
    let denial = |code| {
        let mut denial = Denial::new(code, "rule", "not today");
        denial.retry_after = Some(Duration::from_millis(1500));
        Error::Denied(Box::new(denial))
    };
    let source = || "disk /var/lib on fire: SELECT".into();
    let state = UploadState {
        repository: repository(),
        upload: upload_id(),
        received: 10,
    };
    let unauthorized = Error::Unauthorized {
        scopes: vec!["repository:apps/web:pull".parse::<Scope>().unwrap()],
        error: Some(ChallengeError::InsufficientScope),
        message: "authentication required".to_owned(),
    };
    vec![
        (Error::Route(RouteError::NotFound), 404, "UNSUPPORTED", ""),
        (
            Error::Route(RouteError::MethodNotAllowed { allow: "GET" }),
            405,
            "UNSUPPORTED",
            "",
        ),
        (
            Error::Route(RouteError::Encoding("x")),
            400,
            "NAME_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::Name(gantry_model::name::NameError::TooLong)),
            400,
            "NAME_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::NameUnknown {
                name: "x".to_owned(),
            }),
            404,
            "NAME_UNKNOWN",
            "",
        ),
        (
            Error::Route(RouteError::Digest(
                gantry_model::digest::DigestError::Malformed,
            )),
            400,
            "DIGEST_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::DigestMissing),
            400,
            "DIGEST_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::Tag(
                gantry_model::reference::ReferenceError::Tag,
            )),
            400,
            "TAG_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::TooManyTags),
            414,
            "TAG_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::UploadUnknown),
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "",
        ),
        (
            Error::Route(RouteError::Page),
            400,
            "PAGINATION_NUMBER_INVALID",
            "",
        ),
        (Error::Route(RouteError::Range), 416, "RANGE_INVALID", ""),
        (
            Error::Route(RouteError::MediaType),
            400,
            "MANIFEST_INVALID",
            "",
        ),
        (
            Error::Route(RouteError::Repeated("ns")),
            400,
            "NAME_INVALID",
            "",
        ),
        (Error::Route(RouteError::Host), 400, "UNSUPPORTED", ""),
        (unauthorized, 401, "UNAUTHORIZED", ""),
        (denial(DenialCode::Unauthorized), 401, "UNAUTHORIZED", "2"),
        (denial(DenialCode::Denied), 403, "DENIED", "2"),
        (
            denial(DenialCode::TooManyRequests),
            429,
            "TOOMANYREQUESTS",
            "2",
        ),
        (denial(DenialCode::NameInvalid), 400, "NAME_INVALID", "2"),
        (
            denial(DenialCode::ManifestInvalid),
            400,
            "MANIFEST_INVALID",
            "2",
        ),
        (denial(DenialCode::Unsupported), 405, "UNSUPPORTED", "2"),
        (denial(DenialCode::Unavailable), 503, "UNAVAILABLE", "2"),
        (
            Error::Unavailable {
                retry_after: None,
                source: source(),
            },
            503,
            "UNAVAILABLE",
            "1",
        ),
        (
            Error::Limited {
                retry_after: Duration::from_secs(7),
                source: source(),
            },
            429,
            "TOOMANYREQUESTS",
            "7",
        ),
        (Error::Crowded, 429, "TOOMANYREQUESTS", "1"),
        (Error::Panicked, 500, "UNKNOWN", ""),
        (
            registry(RegistryError::BlobUnknown { digest: digest() }),
            404,
            "BLOB_UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::BlobUploadUnknown),
            404,
            "BLOB_UPLOAD_UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::DigestInvalid {
                found: Some(digest()),
            }),
            400,
            "DIGEST_INVALID",
            "",
        ),
        (
            registry(RegistryError::SizeInvalid),
            400,
            "SIZE_INVALID",
            "",
        ),
        (
            registry(RegistryError::ManifestUnknown),
            404,
            "MANIFEST_UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::ManifestInvalid(
                gantry_model::ManifestError::Untyped,
            )),
            400,
            "MANIFEST_INVALID",
            "",
        ),
        (
            registry(RegistryError::ManifestTooLarge { max_bytes: 4 }),
            413,
            "MANIFEST_INVALID",
            "",
        ),
        (
            registry(RegistryError::ManifestBlobUnknown {
                digests: vec![digest(); 50],
            }),
            400,
            "MANIFEST_BLOB_UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::NameUnknown),
            404,
            "NAME_UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::Unsupported(
                "mirrors are read-only".to_owned(),
            )),
            405,
            "UNSUPPORTED",
            "",
        ),
        (
            registry(RegistryError::Denied(Box::new(Denial::new(
                DenialCode::Denied,
                "immutable",
                "v1 is immutable",
            )))),
            403,
            "DENIED",
            "",
        ),
        (
            registry(RegistryError::Held {
                retry_after: Duration::from_secs(30),
                reason: "being scanned".to_owned(),
            }),
            503,
            "UNAVAILABLE",
            "30",
        ),
        (
            registry(RegistryError::RangeUnsatisfiable { size: 9 }),
            416,
            "RANGE_INVALID",
            "",
        ),
        (
            registry(RegistryError::ChunkOutOfOrder(Box::new(state))),
            416,
            "RANGE_INVALID",
            "",
        ),
        (registry(RegistryError::Conflict), 503, "UNAVAILABLE", "1"),
        (
            registry(RegistryError::TooManyRequests {
                retry_after: Some(Duration::from_secs(7)),
            }),
            429,
            "TOOMANYREQUESTS",
            "7",
        ),
        (
            registry(RegistryError::Body(BodyError::Disconnected)),
            499,
            "SIZE_INVALID",
            "",
        ),
        (
            registry(RegistryError::Body(BodyError::Malformed(
                "a chunk has no size",
            ))),
            400,
            "UNSUPPORTED",
            "",
        ),
        (
            registry(RegistryError::Body(BodyError::TooSlow)),
            408,
            "SIZE_INVALID",
            "",
        ),
        (
            registry(RegistryError::Body(BodyError::TooLarge)),
            413,
            "SIZE_INVALID",
            "",
        ),
        (
            registry(RegistryError::Unavailable {
                retry_after: Some(Duration::from_secs(5)),
                source: source(),
            }),
            503,
            "UNAVAILABLE",
            "5",
        ),
        (
            registry(RegistryError::UpstreamRefused { source: source() }),
            403,
            "DENIED",
            "",
        ),
        (
            registry(RegistryError::UpstreamLimited {
                retry_after: Some(Duration::from_secs(7)),
                source: upstream_failure(),
            }),
            429,
            "TOOMANYREQUESTS",
            "7",
        ),
        (
            registry(RegistryError::Unavailable {
                retry_after: None,
                source: upstream_failure(),
            }),
            503,
            "UNAVAILABLE",
            "1",
        ),
        (
            registry(RegistryError::UpstreamRefused {
                source: upstream_failure(),
            }),
            403,
            "DENIED",
            "",
        ),
        (
            registry(RegistryError::UpstreamInvalid {
                source: upstream_failure(),
            }),
            502,
            "UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::UpstreamInvalid { source: source() }),
            502,
            "UNKNOWN",
            "",
        ),
        (
            registry(RegistryError::Internal { source: source() }),
            500,
            "UNKNOWN",
            "",
        ),
    ]
}

#[test]
fn every_failure_has_its_status_code_and_form() {
    for (error, status, code, retry_after) in failures() {
        let reply = failure(&frame(), &error);
        assert_eq!(reply.status(), status, "{error:?}");
        assert_eq!(header(&reply, "retry-after"), retry_after, "{error:?}");
        assert_eq!(header(&reply, "content-type"), "application/json");
        assert_eq!(
            header(&reply, "docker-distribution-api-version"),
            "registry/2.0"
        );
        let text = reply.body().text();
        assert_eq!(header(&reply, "content-length"), text.len().to_string());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["errors"][0]["code"], code, "{error:?}");
        assert!(!json["errors"][0]["message"].as_str().unwrap().is_empty());
        let challenged = reply.headers().contains_key("www-authenticate");
        assert_eq!(challenged, status == 401, "{error:?}");
        assert_eq!(
            reply.headers().contains_key("allow"),
            status == 405,
            "{error:?}"
        );
    }
}

#[test]
fn a_source_is_never_shown_and_a_5xx_shows_the_request_id() {
    for (error, status, ..) in failures() {
        let text = failure(&frame(), &error).body().text();
        for secret in ["/var/lib", "SELECT", "fire"] {
            assert!(!text.contains(secret), "{text}");
        }
        if status >= 500 {
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["errors"][0]["detail"]["request_id"], "0123", "{text}");
        }
    }
}

fn upstream_failure() -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(UpstreamFailure {
        mirror: "hub".to_owned(),
        fault: Fault::Timeout,
        setting: "mirrors.hub.limits.silence_timeout".to_owned(),
        source: "disk /var/lib on fire: SELECT".into(),
    })
}

#[test]
fn an_upstreams_failure_shows_mirror_kind_and_request_and_nothing_else() {
    let mut count = 0;
    for (error, ..) in failures() {
        let Error::Registry(failed) = &error else {
            continue;
        };
        if failed.upstream().is_none() {
            continue;
        }
        count += 1;
        let text = failure(&frame(), &error).body().text();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expect =
            serde_json::json!({ "mirror": "hub", "kind": "timeout", "request_id": "0123" });
        assert_eq!(json["errors"][0]["detail"], expect);
        assert_eq!(
            json["errors"][0]["message"],
            "the upstream of mirror hub failed: timeout (request 0123)"
        );
        assert_eq!(error.answer().level, tracing::Level::WARN);
    }
    assert_eq!(count, 4);
}

#[test]
fn a_failed_head_has_the_headers_of_the_failed_get() {
    for (error, ..) in failures() {
        let get = failure(&frame(), &error);
        let head = failure(
            &Frame {
                head: true,
                ..frame()
            },
            &error,
        );
        assert_eq!(get.headers(), head.headers());
        assert!(head.body().is_end_stream());
    }
}

#[test]
fn the_challenge_is_bearer_alone() {
    let error = Error::Unauthorized {
        scopes: vec!["repository:apps/web:push,pull".parse().unwrap()],
        error: None,
        message: "authentication required".to_owned(),
    };
    let reply = failure(&frame(), &error);
    let lines: Vec<_> = reply.headers().get_all("www-authenticate").iter().collect();
    assert_eq!(
        lines,
        [
            "Bearer realm=\"https://gw/token\",service=\"gw\",scope=\"repository:apps/web:pull,push\"",
        ]
    );
}

#[test]
fn refused_ranges_say_where_things_stand() {
    let reply = failure(
        &frame(),
        &RegistryError::RangeUnsatisfiable { size: 9 }.into(),
    );
    assert_eq!(header(&reply, "content-range"), "bytes */9");
    let state = UploadState {
        repository: repository(),
        upload: upload_id(),
        received: 10,
    };
    let reply = failure(
        &frame(),
        &RegistryError::ChunkOutOfOrder(Box::new(state)).into(),
    );
    assert_eq!(header(&reply, "range"), "0-9");
    assert_eq!(
        header(&reply, "location"),
        format!("/v2/apps/web/blobs/uploads/{U}")
    );
}

#[test]
fn details_are_json_or_text_and_at_most_twenty() {
    let mut denial = Denial::new(DenialCode::Denied, "rule", "no");
    denial.detail = Some(r#"{"tag":"v1"}"#.to_owned());
    let text = failure(&frame(), &Error::Denied(Box::new(denial.clone())))
        .body()
        .text();
    let expected = r#"{"errors":[{"code":"DENIED","message":"no","detail":{"tag":"v1"}}]}"#;
    assert_eq!(text, expected);
    denial.detail = Some("just text".to_owned());
    let text = failure(&frame(), &Error::Denied(Box::new(denial)))
        .body()
        .text();
    assert!(text.contains(r#""detail":"just text""#), "{text}");
    let digests = vec![digest(); 50];
    let error = RegistryError::ManifestBlobUnknown { digests }.into();
    let text = failure(&frame(), &error).body().text();
    assert_eq!(text.matches("MANIFEST_BLOB_UNKNOWN").count(), 20);
}

#[test]
fn the_declared_type_is_never_given_a_charset() {
    for reply in [
        outcome(&frame(), Outcome::Alive),
        outcome(&frame(), served(true)),
        failure(&frame(), &Error::Panicked),
    ] {
        assert!(!header(&reply, "content-type").contains(';'));
        assert!(!reply.headers().contains_key("content-encoding"));
    }
}
