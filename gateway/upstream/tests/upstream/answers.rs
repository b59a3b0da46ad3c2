//! What is asked, and how good answers are read.

use futures_util::TryStreamExt as _;
use gantry_model::{AcceptedTypes, Reference, media_type::OCI_INDEX};
use gantry_upstream::{Kind, RegistryClient, Upstream as _};

use super::server::{
    MANIFEST, MANIFEST_PATH, Server, alpine, blob_path, client, digest, latest, manifest, reply,
    settings, status,
};

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.oci.artifact.manifest.v1+json, application/vnd.cncf.oras.artifact.manifest.v1+json";

#[tokio::test]
async fn a_manifest_is_asked_for_with_the_types_of_manifests_and_without_coding() {
    let server = Server::start(|_| manifest()).await;
    let fetched = client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(fetched.bytes, MANIFEST);
    assert_eq!(fetched.digest, Some(digest()));
    assert_eq!(fetched.media_type.unwrap().as_str(), OCI_INDEX);
    let [seen] = server.seen().try_into().unwrap();
    assert_eq!(seen.target, MANIFEST_PATH);
    assert_eq!(seen.header("accept"), Some(MANIFEST_TYPES));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert_eq!(seen.header("user-agent"), Some("gantry-test"));
    assert_eq!(seen.authorization(), None);
}

#[tokio::test]
async fn a_head_of_a_manifest_tells_digest_type_and_size() {
    let server = Server::start(|_| manifest()).await;
    let head = client(&server.url)
        .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    assert_eq!(head.digest, Some(digest()));
    assert_eq!(head.media_type.unwrap().as_str(), OCI_INDEX);
    assert_eq!(head.size, Some(MANIFEST.len() as u64));
    assert_eq!(server.paths(), [format!("HEAD {MANIFEST_PATH}")]);
}

#[tokio::test]
async fn docker_hub_s_headers_are_understood() {
    let server = Server::start(|_| {
        let headers = [
            (
                "content-type",
                "application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8",
            ),
            ("docker-distribution-api-version", "registry/2.0"),
            ("ratelimit-limit", "100;w=21600"),
            ("ratelimit-remaining", "76;w=21600"),
            ("docker-ratelimit-source", "192.0.2.1"),
            ("strict-transport-security", "max-age=31536000"),
        ];
        reply(200, &headers, MANIFEST)
    })
    .await;
    let fetched = client(&server.url)
        .manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap();
    let media_type = fetched.media_type.unwrap();
    assert_eq!(
        media_type.as_str(),
        "application/vnd.docker.distribution.manifest.list.v2+json"
    );
    assert_eq!(fetched.digest, None);
}

#[tokio::test]
async fn a_content_digest_that_is_none_is_invalid() {
    let server =
        Server::start(|_| reply(200, &[("docker-content-digest", "sha256:ABC")], MANIFEST)).await;
    let error = client(&server.url)
        .head_manifest(&alpine(), &latest(), &AcceptedTypes::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[tokio::test]
async fn a_content_digest_that_cannot_be_read_says_nothing_of_what_was_asked_for_by_digest() {
    let server =
        Server::start(|_| reply(200, &[("docker-content-digest", "sha256:ABC")], MANIFEST)).await;
    let (client, reference) = (client(&server.url), Reference::Digest(digest()));
    let accepts = AcceptedTypes::default();
    let fetched = client.manifest(&alpine(), &reference, &accepts).await;
    assert_eq!(fetched.unwrap().digest, None);
    let head = client.head_manifest(&alpine(), &reference, &accepts).await;
    assert_eq!(head.unwrap().digest, None);
}

#[tokio::test]
async fn a_base_path_goes_before_v2() {
    let server = Server::start(|_| manifest()).await;
    for base in ["/cache", "/cache/"] {
        let client = client(&server.url.join(base).unwrap());
        client
            .manifest(&alpine(), &latest(), &AcceptedTypes::default())
            .await
            .unwrap();
    }
    assert_eq!(server.count("/cache/v2/library/alpine/manifests/latest"), 2);
}

#[tokio::test]
async fn a_whole_blob_is_streamed_with_its_size() {
    let server = Server::start(|_| reply(200, &[], "0123456789")).await;
    let client = client(&server.url);
    let blob = client.blob(&alpine(), &digest(), 0).await.unwrap();
    assert_eq!((blob.size, blob.offset), (Some(10), 0));
    let parts: Vec<_> = blob.bytes.try_collect().await.unwrap();
    assert_eq!(parts.concat(), b"0123456789");
    assert_eq!(server.seen()[0].header("range"), None);
    assert_eq!(server.seen()[0].target, blob_path());
    assert_eq!(
        client.stat_blob(&alpine(), &digest()).await.unwrap(),
        Some(10)
    );
}

#[tokio::test]
async fn a_blob_is_resumed_at_an_offset() {
    let server =
        Server::start(|_| reply(206, &[("content-range", "bytes 4-9/10")], "456789")).await;
    let blob = client(&server.url)
        .blob(&alpine(), &digest(), 4)
        .await
        .unwrap();
    assert_eq!((blob.size, blob.offset), (Some(10), 4));
    let parts: Vec<_> = blob.bytes.try_collect().await.unwrap();
    assert_eq!(parts.concat(), b"456789");
    assert_eq!(server.seen()[0].header("range"), Some("bytes=4-"));
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_sends_from_the_start() {
    let server = Server::start(|_| reply(200, &[], "0123456789")).await;
    let blob = client(&server.url)
        .blob(&alpine(), &digest(), 4)
        .await
        .unwrap();
    assert_eq!((blob.size, blob.offset), (Some(10), 0));
}

#[tokio::test]
async fn a_partial_answer_that_was_not_asked_for_is_invalid() {
    for (offset, range) in [
        (0, "bytes 0-5/6"),
        (4, "bytes 3-8/9"),
        (4, "bytes 4-9/11"),
        (4, "bytes 4-10/11"),
        (4, ""),
    ] {
        let server =
            Server::start(move |_| reply(206, &[("content-range", range)], "456789")).await;
        let error = client(&server.url)
            .blob(&alpine(), &digest(), offset)
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{offset} {range}: {error}");
    }
    let server = Server::start(|_| status(416)).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 4)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[tokio::test]
async fn bad_settings_are_refused_when_building() {
    for url in [
        "ftp://r.example",
        "https://u:p@r.example",
        "https://u@r.example",
        "https://r.example?x=1",
        "https://r.example#x",
    ] {
        let url = url.parse().unwrap();
        assert!(RegistryClient::new(settings(&url)).is_err(), "{url}");
    }
    let mut broken = settings(&"https://r.example".parse().unwrap());
    broken.tls.roots = Some(b"no certificate".to_vec());
    assert!(RegistryClient::new(broken.clone()).is_err());
    broken.tls.roots = None;
    broken.user_agent = "a\nb".to_owned();
    assert!(RegistryClient::new(broken).is_err());
}
