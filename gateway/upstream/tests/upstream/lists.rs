//! Lists are followed to their end by the upstream's own links, and by nothing else.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use gantry_model::media_type::{DOCKER_MANIFEST_LIST, OCI_INDEX};
use gantry_upstream::{
    Kind, ListMemory, ListPage, ListRoom, NextPage, RegistryClient, Upstream as _, UpstreamError,
};
use tokio::sync::Semaphore;
use url::Url;

use super::server::{
    Reply, Seen, Server, alpine, client, digest, redirect, reply, settings, status,
};

const LIST: &str = "/v2/library/alpine/tags/list";
const ROOM: u64 = 64 << 20;

async fn page(client: &RegistryClient, next: Option<&NextPage>) -> Result<ListPage, UpstreamError> {
    client.tags(&alpine(), next, &ListRoom::of(ROOM)).await
}

/// Every tag, by the upstream's links.
async fn all(client: &RegistryClient) -> Result<Vec<String>, UpstreamError> {
    let (mut tags, mut next) = (Vec::new(), None);
    loop {
        let page = page(client, next.as_ref()).await?;
        tags.extend(page.entries.iter().map(str::to_owned));
        next = page.next;
        if next.is_none() {
            return Ok(tags);
        }
    }
}

fn tags(tags: &[&str], link: Option<&str>) -> Reply {
    let body = serde_json::json!({ "name": "library/alpine", "tags": tags }).to_string();
    let headers: Vec<_> = link.iter().map(|link| ("link", *link)).collect();
    reply(200, &headers, body)
}

#[tokio::test]
async fn the_upstreams_own_link_is_followed_whatever_it_calls_the_next_page() {
    for query in [
        "n=1000&last=b",
        "next_page=gAAAAABn%3D%3D",
        "last=QUJD%2B%2F&n=2",
        "page=2",
    ] {
        let server = Server::start(move |seen: &Seen| {
            let link = format!(r#"<{LIST}?{query}>; rel="next""#);
            match seen.target.split_once('?') {
                Some((_, asked)) if asked == query => tags(&["c"], None),
                Some((_, "n=1000")) => tags(&["a", "b", "not a tag"], Some(&link)),
                _ => status(500),
            }
        })
        .await;
        assert_eq!(
            all(&client(&server.url)).await.unwrap(),
            ["a", "b", "c"],
            "{query}"
        );
    }
}

#[tokio::test]
async fn an_absolute_link_of_the_same_origin_is_followed() {
    let server = Server::start(|seen: &Seen| {
        let link = format!("<http://{}{LIST}?last=a>; rel=next", seen.host());
        match seen.target.contains("last") {
            true => tags(&["b"], None),
            false => tags(&["a"], Some(&link)),
        }
    })
    .await;
    assert_eq!(all(&client(&server.url)).await.unwrap(), ["a", "b"]);
}

#[tokio::test]
async fn a_link_to_another_origin_or_repository_is_an_error_and_is_not_followed() {
    let other = Server::start(|_| tags(&["stolen"], None)).await;
    for link in [
        other.at(&format!("{LIST}?last=a")),
        "/v2/library/secret/tags/list?last=a".to_owned(),
        "/v2/_catalog?last=a".to_owned(),
        "http://127.0.0.1:1/v2/library/alpine/tags/list?last=a".to_owned(),
        LIST.to_owned(),
    ] {
        let header = format!("<{link}>; rel=next");
        let server = Server::start(move |_: &Seen| tags(&["a"], Some(&header))).await;
        let error = page(&client(&server.url), None).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{link}: {error}");
        assert_eq!(server.seen().len(), 1);
    }
    assert_eq!(other.seen().len(), 0);
}

#[tokio::test]
async fn a_page_that_is_as_full_as_asked_for_and_has_no_link_is_asked_on_by_its_place() {
    let names: Vec<String> = (0..1500).map(|index| format!("t{index:04}")).collect();
    let server = Server::start(move |seen: &Seen| {
        let last = seen
            .target
            .split_once("last=")
            .map(|(_, last)| last.to_owned());
        let rest = names
            .iter()
            .filter(|name| last.as_ref().is_none_or(|last| *name > last));
        let rest: Vec<&str> = rest.take(1000).map(String::as_str).collect();
        tags(&rest, None)
    })
    .await;
    assert_eq!(all(&client(&server.url)).await.unwrap().len(), 1500);
    assert_eq!(server.seen().len(), 2);
    let first = page(&client(&server.url), None).await.unwrap();
    assert!(first.next.unwrap().is_guess());
}

#[tokio::test]
async fn an_upstream_that_refuses_the_number_is_asked_without_it() {
    let server = Server::start(|seen: &Seen| match seen.target.contains("n=") {
        true => reply(
            400,
            &[],
            r#"{"errors":[{"code":"PAGINATION_NUMBER_INVALID"}]}"#,
        ),
        false => tags(&["a"], None),
    })
    .await;
    assert_eq!(all(&client(&server.url)).await.unwrap(), ["a"]);
}

#[tokio::test]
async fn a_map_of_every_manifest_is_skipped_unread_up_to_64_mib() {
    let mut body = String::from(r#"{"child":[],"manifest":{"#);
    for index in 0..60_000 {
        let comma = if index == 0 { "" } else { "," };
        write!(body, r#"{comma}"sha256:{index:064}":{{"imageSizeBytes":"123456789","layerId":"","tag":["v{index}"],"timeCreatedMs":"1700000000000"}}"#).unwrap();
    }
    body.push_str(r#"},"name":"a","tags":["v1","v2"]}"#);
    assert!(body.len() > 8 << 20);
    let body = Bytes::from(body);
    let server = Server::start(move |_: &Seen| reply(200, &[], body.clone())).await;
    assert_eq!(all(&client(&server.url)).await.unwrap(), ["v1", "v2"]);
    let small = client(&server.url)
        .tags(&alpine(), None, &ListRoom::of(8 << 20))
        .await;
    assert_eq!(small.unwrap_err().kind, Kind::Invalid);
}

#[tokio::test]
async fn only_so_many_large_lists_are_in_memory_at_once() {
    let tags: String = (0..100_000)
        .map(|index| format!(r#","{index:064}""#))
        .collect();
    let body = Bytes::from(format!(r#"{{"tags":["first"{tags}]}}"#));
    let server = Server::start(move |_: &Seen| reply(200, &[], body.clone())).await;
    let turns = Arc::new(Semaphore::new(1));
    let room = || ListRoom {
        max_bytes: ROOM,
        taken_bytes: 0,
        memory: ListMemory::new(&turns),
    };
    let (one, other) = (room(), room());
    let (use_of_one, _use_of_other) = (one.memory.in_use(), other.memory.in_use());
    let client = client(&server.url);
    let name = alpine();
    let first = client.tags(&name, None, &one).await.unwrap();
    assert_eq!(first.entries.len(), 100_001);
    assert_eq!(turns.available_permits(), 0);
    let second = async {
        let second = client.tags(&name, None, &other).await.unwrap();
        assert_eq!(turns.available_permits(), 0);
        second
    };
    let leave = async {
        while server.count(LIST) < 2 {
            tokio::task::yield_now().await;
        }
        // The list stays, and nobody uses it.
        drop(use_of_one);
    };
    let (second, ()) = tokio::join!(second, leave);
    assert_eq!(second.entries.len(), 100_001);
}

#[tokio::test]
async fn a_tag_list_may_be_null_and_may_not_be_nonsense() {
    for empty in [
        r#"{"name":"a","tags":null}"#,
        r#"{"name":"a","tags":[]}"#,
        r#"{"name":"a"}"#,
    ] {
        let server = Server::start(move |_: &Seen| reply(200, &[], empty)).await;
        assert_eq!(
            all(&client(&server.url)).await.unwrap(),
            [] as [String; 0],
            "{empty}"
        );
    }
    for nonsense in [
        "<html>",
        "[]",
        r#"{"tags":{}}"#,
        r#"{"tags":["a"#,
        r#"{"tags":[7]}"#,
        "",
        "{}",
        r#"{"schemaVersion":2}"#,
        r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"name"}]}"#,
    ] {
        let server = Server::start(move |_: &Seen| reply(200, &[], nonsense)).await;
        let error = page(&client(&server.url), None).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{nonsense}");
    }
    let page_for_people = [("content-type", "text/html")];
    for code in [200, 403, 404] {
        let server = Server::start(move |_: &Seen| reply(code, &page_for_people, "<html>")).await;
        let error = page(&client(&server.url), None).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{code}");
    }
}

#[tokio::test]
async fn the_next_page_is_asked_of_the_server_that_had_the_one_before() {
    let first = Server::start(|_| status(503)).await;
    let second = Server::start(|seen: &Seen| match seen.target.contains("last") {
        true => tags(&["b"], None),
        false => tags(&["a"], Some(&format!("<{LIST}?last=a>; rel=next"))),
    })
    .await;
    let client = RegistryClient::new(gantry_upstream::ClientSettings {
        alternatives: vec![second.url.clone()],
        ..settings(&first.url)
    })
    .unwrap();
    assert_eq!(all(&client).await.unwrap(), ["a", "b"]);
    assert_eq!((first.seen().len(), second.seen().len()), (1, 2));
}

// --- referrers ---

const DESCRIPTOR: &str = r#"{ "mediaType": "x/y", "digest": "sha256:ab", "size": 7, "own": 1e3 }"#;

async fn referrers(url: &Url, next: Option<&NextPage>) -> Result<ListPage, UpstreamError> {
    client(url)
        .referrers(&alpine(), &digest(), next, &ListRoom::of(ROOM))
        .await
}

fn index(descriptors: &str, link: Option<&str>) -> Reply {
    let mut headers = vec![("content-type", OCI_INDEX)];
    headers.extend(link.map(|link| ("link", link)));
    reply(
        200,
        &headers,
        format!(r#"{{"schemaVersion":2,"manifests":{descriptors}}}"#),
    )
}

#[tokio::test]
async fn referrers_are_the_descriptors_as_they_were_written() {
    let server = Server::start(|seen: &Seen| match seen.target.contains("page=2") {
        true => index(&format!("[{DESCRIPTOR}]"), None),
        false => index(
            "null",
            Some(&format!(
                "</v2/library/alpine/referrers/{}?page=2>; rel=next",
                digest()
            )),
        ),
    })
    .await;
    let first = referrers(&server.url, None).await.unwrap();
    assert!(first.entries.is_empty());
    let second = referrers(&server.url, first.next.as_ref()).await.unwrap();
    assert_eq!(second.entries.iter().collect::<Vec<_>>(), [DESCRIPTOR]);
    let seen = &server.seen()[0];
    assert_eq!(
        seen.target,
        format!("/v2/library/alpine/referrers/{}", digest())
    );
    assert_eq!(seen.header("accept"), Some(OCI_INDEX));
}

#[tokio::test]
async fn an_upstream_without_the_referrers_api_says_so_in_many_ways() {
    let page = Server::start(|_| {
        reply(
            200,
            &[("content-type", "text/html; charset=utf-8")],
            "<html>sign in</html>",
        )
    })
    .await;
    let to = page.at("/");
    let gone = Server::start(|_| status(404)).await;
    let away = gone.at("/");
    let html = [("content-type", "text/html")];
    let answers: Vec<Box<dyn Fn() -> Reply + Send + Sync>> = vec![
        Box::new(|| status(400)),
        Box::new(|| status(404)),
        Box::new(|| status(405)),
        Box::new(|| status(406)),
        Box::new(|| status(415)),
        Box::new(|| status(501)),
        Box::new(move || reply(404, &html, "<html>")),
        Box::new(move || reply(200, &html, "<html>")),
        Box::new(move || redirect(&to)),
        Box::new(move || redirect(&away)),
        Box::new(|| reply(200, &[], "<html>")),
        Box::new(|| reply(200, &[], "")),
        Box::new(|| reply(200, &[], "[]")),
        Box::new(|| reply(200, &[], r#"{"errors":[]}"#)),
        Box::new(|| reply(200, &[], r#"{"manifests":{}}"#)),
        Box::new(|| reply(200, &[], r#"{"manifests":[7]}"#)),
        Box::new(|| reply(200, &[], r#"{"schemaVersion":2,"config":{},"layers":[]}"#)),
    ];
    for (index, answer) in answers.into_iter().enumerate() {
        let server = Server::start(move |_: &Seen| answer()).await;
        let error = referrers(&server.url, None).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{index}: {error}");
    }
}

/// The fallback tag's list in its place would lack what the torn one holds.
#[tokio::test]
async fn a_torn_list_does_not_pass_for_an_upstream_without_the_referrers_api() {
    let whole = format!(r#"{{"schemaVersion":2,"manifests":[{DESCRIPTOR}]}}"#);
    let cuts = [1, 20, 40, whole.len() - 1].map(|end| whole.get(..end).unwrap());
    let broken = ["", "[]", r#"{"manifests":{}}"#, r#"{"manifests":[7]}"#, "x"];
    for media_type in [
        OCI_INDEX,
        "Application/vnd.OCI.image.index.v1+JSON",
        DOCKER_MANIFEST_LIST,
    ] {
        for body in cuts.iter().chain(&broken) {
            is_invalid(media_type, body).await;
        }
    }
    for body in cuts {
        is_invalid("application/json", body).await;
    }
}

async fn is_invalid(media_type: &'static str, body: &str) {
    let sent = body.to_owned();
    let answer = move |_: &Seen| reply(200, &[("content-type", media_type)], sent.clone());
    let server = Server::start(answer).await;
    let error = referrers(&server.url, None).await.unwrap_err();
    assert_eq!(error.kind, Kind::Invalid, "{media_type}, {body}: {error}");
}

#[tokio::test]
async fn an_index_that_leaves_its_empty_list_out_is_an_empty_list() {
    let body = r#"{"schemaVersion":2}"#;
    let answer = move |_: &Seen| reply(200, &[("content-type", OCI_INDEX)], body);
    let server = Server::start(answer).await;
    let page = referrers(&server.url, None).await.unwrap();
    assert!(page.entries.is_empty() && page.next.is_none());
}

#[tokio::test]
async fn an_upstream_in_trouble_does_not_pass_for_one_without_the_api() {
    for (code, kind) in [
        (401, Kind::Refused),
        (403, Kind::Refused),
        (429, Kind::RateLimited),
        (500, Kind::Unavailable),
        (502, Kind::Unavailable),
        (503, Kind::Unavailable),
    ] {
        let server = Server::start(move |_: &Seen| status(code)).await;
        let error = referrers(&server.url, None).await.unwrap_err();
        assert_eq!(error.kind, kind, "{code}");
    }
}

#[tokio::test]
async fn a_later_page_that_is_none_is_an_error_and_never_the_end() {
    for code in [200, 400, 404, 405, 406, 415, 501] {
        let server = Server::start(move |_: &Seen| reply(code, &[], "{}")).await;
        let next = NextPage::new("page=2", false);
        let error = referrers(&server.url, Some(&next)).await.unwrap_err();
        assert!(
            matches!(
                error.kind,
                Kind::Invalid | Kind::NotFound | Kind::Unavailable
            ),
            "{code}"
        );
    }
}
