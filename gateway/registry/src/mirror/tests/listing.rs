//! Lists are the upstream's, read to the end that it says; one that was whole stands in while it cannot answer.

use std::time::Duration;

use bytes::Bytes;
use gantry_model::{Digest, Page, Tag, media_type::OCI_INDEX};
use gantry_upstream::Kind;
use serde_json::{Value, json};

use super::{
    upstream::Call,
    world::{FRESH_FOR, STALE_IF_ERROR, World, image, repository, sha256, tagged},
};
use crate::{error::Error, mirror::Derived, ports::Settings};

const NAME: &str = "library/alpine";
const MANY: u32 = 64;

fn page(limit: Option<usize>, after: Option<&str>) -> Page {
    Page {
        limit,
        after: after.map(str::to_owned),
    }
}

/// A page of tags, whether there are more, and its age when it is stale.
async fn asked(
    world: &World,
    page: &Page,
    most: u32,
) -> Result<(Vec<String>, bool, Option<Duration>), Error> {
    let derived = Derived::new(most);
    let found = world
        .mirrors
        .tags(&repository(NAME), page, &derived)
        .await?;
    let tags = found.tags.iter().map(Tag::to_string).collect();
    Ok((tags, found.more, found.stale))
}

async fn tags(world: &World, page: &Page) -> Result<(Vec<String>, bool), Error> {
    let (tags, more, stale) = asked(world, page, MANY).await?;
    assert_eq!(stale, None);
    Ok((tags, more))
}

fn texts(tags: &[&str]) -> Vec<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

/// Every tag, by pages of so many.
async fn all(world: &World, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), None::<String>);
    loop {
        let (tags, more) = tags(world, &page(Some(limit), after.as_deref()))
            .await
            .unwrap();
        after = tags.last().cloned();
        all.extend(tags);
        if !more {
            return all;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tags_are_the_upstreams() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a", "b", "c"]];
    assert_eq!(
        tags(&world, &page(None, None)).await.unwrap(),
        (texts(&["a", "b", "c"]), false)
    );
    let first = tags(&world, &page(Some(2), None)).await.unwrap();
    assert_eq!(first, (texts(&["a", "b"]), true));
    let rest = tags(&world, &page(Some(2), Some("b"))).await.unwrap();
    assert_eq!(rest, (texts(&["c"]), false));
    assert_eq!(world.upstream.calls(), [Call::Tags(0)]);
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_pages_are_read_as_far_as_somebody_needs_them_and_once() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a", "b"], vec!["c"], vec![], vec!["d", "e"]];
    let first = tags(&world, &page(Some(1), None)).await.unwrap();
    assert_eq!(first, (texts(&["a"]), true));
    assert_eq!(world.upstream.calls(), [Call::Tags(0)]);
    for limit in [1, 2, 3, 100] {
        assert_eq!(all(&world, limit).await, ["a", "b", "c", "d", "e"]);
    }
    assert_eq!(
        world.upstream.calls(),
        [Call::Tags(1), Call::Tags(2), Call::Tags(3)]
    );
}

#[tokio::test(start_paused = true)]
async fn a_list_without_an_order_is_paged_too() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["v1.9", "v1.10", "v1.11"], vec!["a", "v1.2"]];
    for limit in [1, 2, 4] {
        assert_eq!(
            all(&world, limit).await,
            ["v1.9", "v1.10", "v1.11", "a", "v1.2"]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_not_there_is_a_place_all_the_same() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a", "c"], vec!["e"]];
    let after = tags(&world, &page(None, Some("b"))).await.unwrap();
    assert_eq!(after, (texts(&["c", "e"]), false));
    let end = tags(&world, &page(None, Some("x"))).await.unwrap();
    assert_eq!(end, (Vec::new(), false));
    // Without an order, better twice than never.
    let world = World::new();
    world.upstream.script().tags = vec![vec!["c", "a"]];
    let after = tags(&world, &page(None, Some("b"))).await.unwrap();
    assert_eq!(after, (texts(&["c", "a"]), false));
}

#[tokio::test(start_paused = true)]
async fn no_page_is_longer_than_the_registry_allows() {
    let mut world = World::new();
    let settings = Settings {
        max_page_entries: 2,
        ..Settings::default()
    };
    world.restart_with(&settings);
    world.upstream.script().tags = vec![vec!["a", "b", "c"]];
    for limit in [None, Some(3)] {
        let first = tags(&world, &page(limit, None)).await.unwrap();
        assert_eq!(first, (texts(&["a", "b"]), true));
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_repository_is_unknown() {
    let world = World::new();
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::NameUnknown), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_list_is_read_by_whoever_begins_after_half_a_minute() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a"], vec!["b"]];
    assert_eq!(all(&world, 1).await, ["a", "b"]);
    world.upstream.script().tags = vec![vec!["a"], vec!["b", "c"]];
    world.clock.advance(Duration::from_secs(31));
    // Who is in the middle goes on in the list that was begun.
    assert_eq!(
        tags(&world, &page(None, Some("b"))).await.unwrap(),
        (Vec::new(), false)
    );
    assert_eq!(all(&world, 5).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn one_request_causes_so_many_and_the_next_one_goes_on() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a"], vec!["b"], vec!["c"], vec!["d"], vec!["e"]];
    let whole = page(None, None);
    let error = asked(&world, &whole, 2).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Unavailable {
                retry_after: Some(_),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.upstream().unwrap().setting, "limits.derived_requests");
    asked(&world, &whole, 2).await.unwrap_err();
    let (found, more, _) = asked(&world, &whole, 2).await.unwrap();
    assert_eq!((found, more), (texts(&["a", "b", "c", "d", "e"]), false));
    assert_eq!(world.upstream.calls().len(), 5);
}

#[tokio::test(start_paused = true)]
async fn links_that_lead_in_a_circle_are_an_error_and_no_end() {
    let world = World::new();
    {
        let mut script = world.upstream.script();
        script.tags = vec![vec!["a"], vec!["b"]];
        script.tags_lead_to = Some("1");
    }
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    assert!(world.upstream.calls().len() <= 4);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_was_whole_stands_in_for_an_upstream_in_trouble() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["b", "c"], vec!["d"]];
    assert_eq!(all(&world, 2).await, ["b", "c", "d"]);
    for kind in [
        Kind::Unavailable,
        Kind::RateLimited,
        Kind::Refused,
        Kind::Invalid,
    ] {
        world.upstream.fail(kind);
        world.clock.advance(FRESH_FOR * 2);
        let (found, more, stale) = asked(&world, &page(Some(2), None), MANY).await.unwrap();
        assert_eq!((found, more), (texts(&["b", "c"]), true));
        assert!(stale.unwrap() >= FRESH_FOR * 2);
        let (rest, more, stale) = asked(&world, &page(Some(2), Some("c")), MANY)
            .await
            .unwrap();
        assert_eq!((rest, more), (texts(&["d"]), false));
        assert!(stale.is_some());
        world.upstream.recover();
        world.clock.advance(FRESH_FOR);
        assert_eq!(all(&world, 2).await, ["b", "c", "d"]);
    }
    world.upstream.fail(Kind::Unavailable);
    world
        .clock
        .advance(FRESH_FOR + STALE_IF_ERROR + Duration::from_secs(1));
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn tags_known_from_pulls_and_a_part_of_a_list_are_no_list() {
    let world = World::new();
    for tag in ["b", "a", "c"] {
        world.manifest(NAME, tag, &image(&[]));
        world.pull(NAME, tag).await.unwrap();
    }
    world.upstream.script().tags = vec![vec!["a"], vec!["b"]];
    let first = tags(&world, &page(Some(0), None)).await.unwrap();
    assert_eq!(first, (Vec::new(), true));
    world.upstream.fail(Kind::Unavailable);
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    // What was read of it is not read again.
    world.upstream.recover();
    world.upstream.calls();
    assert_eq!(all(&world, 5).await, ["a", "b"]);
    assert_eq!(world.upstream.calls(), [Call::Tags(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_next_page_is_gone_is_read_from_the_start() {
    let world = World::new();
    world.upstream.script().tags = vec![vec!["a"], vec!["b"]];
    tags(&world, &page(Some(0), None)).await.unwrap();
    world.upstream.script().tags = vec![vec!["a", "b"]];
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    assert_eq!(all(&world, 5).await, ["a", "b"]);
}

// --- referrers ---

fn descriptor(digest: &Digest) -> Value {
    json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7, "x-own": true})
}

fn index(descriptors: &[Value]) -> Bytes {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors});
    index.to_string().into()
}

async fn referrers(world: &World, digest: &Digest) -> Result<Vec<Value>, Error> {
    let derived = Derived::new(MANY);
    let found = world
        .mirrors
        .referrers(&repository(NAME), digest, &derived)
        .await?;
    let descriptor = |entry: &str| serde_json::from_str(entry.split_once(' ').unwrap().1).unwrap();
    Ok(found.entries.iter().map(descriptor).collect())
}

fn list(world: &World, subject: &Digest, pages: &[&[Value]]) {
    let page = |page: &&[Value]| page.iter().map(Value::to_string).collect();
    let pages = pages.iter().map(page).collect();
    world
        .upstream
        .script()
        .referrers
        .insert(subject.clone(), pages);
}

#[tokio::test(start_paused = true)]
async fn referrers_are_the_upstreams_and_kept_while_fresh() {
    let world = World::new();
    let subject = sha256(b"subject");
    let listed = [descriptor(&sha256(b"signature"))];
    list(&world, &subject, &[&listed]);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), [Call::Referrers]);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), []);
    world.clock.advance(FRESH_FOR);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), [Call::Referrers]);
}

#[tokio::test(start_paused = true)]
async fn referrers_of_all_pages_are_one_list_by_digest_without_doubles() {
    let world = World::new();
    let subject = sha256(b"subject");
    let all: Vec<Value> = ["a", "b", "c"]
        .map(|text| descriptor(&sha256(text.as_bytes())))
        .into();
    list(&world, &subject, &[&all[..2], &[], &all[1..]]);
    let mut expect = all.clone();
    expect.sort_by_key(|it| it["digest"].as_str().unwrap().to_owned());
    assert_eq!(referrers(&world, &subject).await.unwrap(), expect);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_without_the_api_is_asked_for_the_fallback_tag() {
    let world = World::new();
    let subject = sha256(b"subject");
    let tag = format!("sha256-{}", subject.hex());
    assert_eq!(referrers(&world, &subject).await.unwrap(), [] as [Value; 0]);
    let asked = [Call::Referrers, Call::Manifest(tagged(&tag))];
    assert_eq!(world.upstream.calls(), asked);
    let listed = [descriptor(&sha256(b"signature"))];
    world.manifest_of(OCI_INDEX, NAME, &tag, &index(&listed));
    world.clock.advance(FRESH_FOR);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_tag_that_is_no_list_lists_nothing() {
    let world = World::new();
    let bytes = image(&[]);
    let subject = world.manifest(NAME, "v1", &bytes);
    // The subject itself, and another image.
    for content in [bytes, image(&[(&sha256(b"layer"), 7)])] {
        let tag = format!("sha256-{}", subject.hex());
        world.manifest(NAME, &tag, &content);
        assert_eq!(referrers(&world, &subject).await.unwrap(), [] as [Value; 0]);
        world.clock.advance(FRESH_FOR);
    }
    // An index that is the subject's own.
    let own = index(&[descriptor(&sha256(b"child"))]);
    let subject = world.manifest_of(OCI_INDEX, NAME, "v2", &own);
    world.manifest_of(OCI_INDEX, NAME, &format!("sha256-{}", subject.hex()), &own);
    assert_eq!(referrers(&world, &subject).await.unwrap(), [] as [Value; 0]);
}

#[tokio::test(start_paused = true)]
async fn referrers_known_from_pulls_are_no_list() {
    let world = World::new();
    let subject = sha256(b"subject");
    let mut signature: Value = serde_json::from_slice(&image(&[])).unwrap();
    signature["artifactType"] = json!("application/vnd.test.signature");
    signature["subject"] = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject, "size": 7});
    world.manifest(NAME, "signature", &signature.to_string().into());
    world.pull(NAME, "signature").await.unwrap();
    for kind in [
        Kind::Unavailable,
        Kind::RateLimited,
        Kind::Refused,
        Kind::Invalid,
    ] {
        world.upstream.fail(kind);
        let error = referrers(&world, &subject).await.unwrap_err();
        assert!(error.upstream().is_some(), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn referrers_that_were_whole_stand_in_for_an_upstream_in_trouble() {
    let world = World::new();
    let subject = sha256(b"subject");
    let listed = [descriptor(&sha256(b"signature"))];
    list(&world, &subject, &[&listed, &[]]);
    referrers(&world, &subject).await.unwrap();
    world.upstream.fail(Kind::Unavailable);
    world.clock.advance(FRESH_FOR * 2);
    let derived = Derived::new(MANY);
    let found = world
        .mirrors
        .referrers(&repository(NAME), &subject, &derived)
        .await
        .unwrap();
    assert_eq!(found.entries.len(), 1);
    assert_eq!(found.stale, Some(FRESH_FOR * 2));
}
