//! A part of a blob is the part that was asked for, or the whole of it, and nobody waits for a place that it is not worth.

use futures_util::TryStreamExt as _;
use gantry_upstream::{
    BlobStream, Cause, ClientSettings, Kind, Part, RegistryClient, Upstream as _, UpstreamError,
};

use super::server::{
    Reply, Seen, Server, alpine, blob_path, client, digest, redirect, reply, settings,
};

const PART: Part = Part {
    first: 2,
    last: 4,
    waits: true,
};

async fn ask(client: &RegistryClient, part: Part) -> Result<BlobStream, UpstreamError> {
    client.blob_part(&alpine(), &digest(), part).await
}

async fn read(blob: BlobStream) -> Result<Vec<u8>, UpstreamError> {
    let parts: Vec<bytes::Bytes> = blob.bytes.try_collect().await?;
    Ok(parts.concat())
}

fn partial(range: &'static str, body: &'static str) -> Reply {
    reply(206, &[("content-range", range), ("etag", "\"one\"")], body)
}

#[tokio::test]
async fn a_part_is_asked_for_by_its_range_also_where_a_redirect_leads() {
    let other = Server::start(|_| partial("bytes 2-4/10", "234")).await;
    let target = other.at("/elsewhere");
    let server = Server::start(move |_| redirect(&target)).await;
    let blob = ask(&client(&server.url), PART).await.unwrap();
    assert_eq!((blob.size, blob.offset, blob.last), (Some(10), 2, Some(4)));
    assert_eq!(blob.etag.as_deref(), Some("\"one\""));
    assert_eq!(read(blob).await.unwrap(), b"234");
    for seen in [server.seen(), other.seen()] {
        assert_eq!(seen[0].header("range"), Some("bytes=2-4"));
    }
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_sends_the_whole_and_says_so() {
    let server = Server::start(|seen: &Seen| {
        assert_eq!(seen.path(), blob_path());
        reply(200, &[], "0123456789")
    })
    .await;
    let blob = ask(&client(&server.url), PART).await.unwrap();
    assert_eq!((blob.size, blob.offset, blob.last), (Some(10), 0, None));
    assert_eq!(read(blob).await.unwrap(), b"0123456789");
}

#[tokio::test]
async fn another_part_is_invalid() {
    for (range, body) in [
        ("bytes 2-9/10", "23456789"),
        ("bytes 2-3/10", "23"),
        ("bytes 2-4/*", "234"),
        ("bytes 2-4/10", "23"),
    ] {
        let server = Server::start(move |_| partial(range, body)).await;
        let error = ask(&client(&server.url), PART).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{range}");
    }
}

#[tokio::test]
async fn a_part_that_is_not_worth_waiting_is_given_up_at_once() {
    let server = Server::start(|_| partial("bytes 2-4/10", "234")).await;
    let client = RegistryClient::new(ClientSettings {
        max_concurrency: 1,
        ..settings(&server.url)
    })
    .unwrap();
    let spare = Part {
        waits: false,
        ..PART
    };
    let held = ask(&client, spare).await.unwrap();
    let error = ask(&client, spare).await.unwrap_err();
    assert_eq!(error.cause, Cause::Saturated);
    assert_eq!(server.seen().len(), 1);
    drop(held);
    read(ask(&client, spare).await.unwrap()).await.unwrap();
}
