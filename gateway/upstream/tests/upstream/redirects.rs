//! Redirects: followed without credentials across origins, and not for ever.

use futures_util::TryStreamExt as _;
use gantry_upstream::{Kind, RegistryClient, Upstream as _};

use super::server::{
    BASIC, Seen, Server, alpine, blob_path, challenge, client, digest, redirect, reply, status,
    token, with_credentials,
};

/// A registry that gives the token `good`, wants it, and then sends blobs to `to`.
fn redirecting(to: String) -> impl Fn(&Seen) -> super::server::Reply + Send + Sync {
    move |seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, Some("Bearer good")) => redirect(&to),
        _ => challenge(seen),
    }
}

#[tokio::test]
async fn a_redirect_to_another_origin_downloads_without_authorization() {
    let cdn = Server::start(|_| reply(206, &[("content-range", "bytes 2-4/5")], "cde")).await;
    let server = Server::start(redirecting(cdn.at("/data?signature=1"))).await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    let blob = client.blob(&alpine(), &digest(), 2).await.unwrap();
    let parts: Vec<_> = blob.bytes.try_collect().await.unwrap();
    assert_eq!(parts.concat(), b"cde");
    let [seen] = cdn.seen().try_into().unwrap();
    assert_eq!(seen.target, "/data?signature=1");
    assert_eq!(seen.authorization(), None);
    assert_eq!(seen.header("range"), Some("bytes=2-"));
    assert_eq!(seen.header("referer"), None);
}

#[tokio::test]
async fn basic_credentials_do_not_cross_origins_either() {
    let cdn = Server::start(|_| reply(200, &[], "x")).await;
    let to = cdn.at("/data");
    let server = Server::start(move |seen: &Seen| match seen.authorization() {
        Some(BASIC) => redirect(&to),
        _ => reply(401, &[("www-authenticate", "Basic")], ""),
    })
    .await;
    let client = RegistryClient::new(with_credentials(&server.url)).unwrap();
    client.blob(&alpine(), &digest(), 0).await.unwrap();
    assert_eq!(cdn.seen()[0].authorization(), None);
}

#[tokio::test]
async fn a_redirect_within_the_origin_keeps_authorization() {
    let server = Server::start(|seen: &Seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        ("/data", Some("Bearer good")) => reply(200, &[], "x"),
        (_, Some("Bearer good")) => redirect("/data"),
        _ => challenge(seen),
    })
    .await;
    client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap();
    assert_eq!(server.count("/data"), 1);
}

#[tokio::test]
async fn authorization_does_not_come_back_after_a_detour() {
    // Sends back to where the query says.
    let detour =
        Server::start(|seen: &Seen| redirect(seen.target.split_once("to=").unwrap().1)).await;
    let away = detour.at("/?to=");
    let server = Server::start(
        move |seen: &Seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("good"),
            ("/back", _) => reply(200, &[], "x"),
            (_, Some("Bearer good")) => redirect(&format!("{away}http://{}/back", seen.host())),
            _ => challenge(seen),
        },
    )
    .await;
    client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap();
    let returned = server
        .seen()
        .into_iter()
        .find(|seen| seen.path() == "/back")
        .unwrap();
    assert_eq!(returned.authorization(), None);
}

#[tokio::test]
async fn a_missing_object_behind_a_redirect_is_not_a_missing_blob() {
    let cdn = Server::start(|_| status(404)).await;
    let to = cdn.at("/");
    let server = Server::start(move |_| redirect(&to)).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[tokio::test]
async fn a_loop_ends_after_five_redirects() {
    let server = Server::start(|seen: &Seen| redirect(seen.path())).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert_eq!(server.count(&blob_path()), 6);
}

#[tokio::test]
async fn a_redirect_to_the_metadata_service_is_refused_even_from_inside() {
    let server = Server::start(|_| redirect("http://169.254.169.254/latest/meta-data")).await;
    let error = client(&server.url)
        .blob(&alpine(), &digest(), 0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
    assert!(error.attempt.contains("not public"), "{error}");
}
