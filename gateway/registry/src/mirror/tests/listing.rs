//! Lists are the upstream's; what is known here stands in while it cannot answer.

use bytes::Bytes;
use gantry_model::{Digest, Page, Tag, media_type::OCI_INDEX};
use gantry_upstream::Kind;
use serde_json::{Value, json};

use super::{
    upstream::Call,
    world::{FRESH_FOR, World, image, repository, sha256, tagged},
};
use crate::{error::Error, ports::Settings};

const NAME: &str = "library/alpine";

fn page(limit: Option<usize>, after: Option<&str>) -> Page {
    Page {
        limit,
        after: after.map(str::to_owned),
    }
}

async fn tags(world: &World, page: &Page) -> Result<(Vec<String>, bool), Error> {
    let (tags, more) = world.mirrors.tags(&repository(NAME), page).await?;
    Ok((tags.iter().map(Tag::to_string).collect(), more))
}

fn named(tags: &[&str]) -> Vec<Tag> {
    tags.iter().map(|tag| tag.parse().unwrap()).collect()
}

fn texts(tags: &[&str]) -> Vec<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn tags_are_the_upstreams() {
    let world = World::new();
    world.upstream.script().tags = named(&["a", "b", "c"]);
    let all = tags(&world, &page(None, None)).await.unwrap();
    assert_eq!(all, (texts(&["a", "b", "c"]), false));
    let first = tags(&world, &page(Some(2), None)).await.unwrap();
    assert_eq!(first, (texts(&["a", "b"]), true));
    let rest = tags(&world, &page(Some(2), Some("b"))).await.unwrap();
    assert_eq!(rest, (texts(&["c"]), false));
}

#[tokio::test(start_paused = true)]
async fn no_page_is_longer_than_the_registry_allows() {
    let mut world = World::new();
    let settings = Settings {
        max_page_entries: 2,
        ..Settings::default()
    };
    world.restart_with(&settings);
    world.upstream.script().tags = named(&["a", "b", "c"]);
    for limit in [None, Some(3)] {
        let first = tags(&world, &page(limit, None)).await.unwrap();
        assert_eq!(first, (texts(&["a", "b"]), true));
    }
    let none = tags(&world, &page(Some(0), None)).await.unwrap();
    assert_eq!(none, (Vec::new(), false));
}

#[test]
fn an_upstream_that_ignores_pages_is_still_paged() {
    use crate::mirror::listing::cut;
    let all = || named(&["c", "a", "b"]);
    assert_eq!(cut(all(), false, 2, None), (named(&["c", "a"]), true));
    assert_eq!(cut(all(), false, 2, Some("a")), (named(&["b"]), false));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_repository_is_unknown() {
    let world = World::new();
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::NameUnknown), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn known_tags_stand_in_for_an_upstream_in_trouble() {
    let world = World::new();
    for tag in ["b", "a", "c"] {
        world.manifest(NAME, tag, &image(&[]));
    }
    world.upstream.fail(Kind::RateLimited);
    let error = tags(&world, &page(None, None)).await.unwrap_err();
    assert!(matches!(error, Error::TooManyRequests { .. }), "{error:?}");
    world.upstream.recover();
    for tag in ["b", "a", "c"] {
        world.pull(NAME, tag).await.unwrap();
    }
    world.upstream.fail(Kind::Unavailable);
    let first = tags(&world, &page(Some(2), None)).await.unwrap();
    assert_eq!(first, (texts(&["a", "b"]), true));
    let rest = tags(&world, &page(Some(2), Some("b"))).await.unwrap();
    assert_eq!(rest, (texts(&["c"]), false));
    let end = tags(&world, &page(Some(2), Some("c"))).await.unwrap();
    assert_eq!(end, (Vec::new(), false));
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
    world.mirrors.referrers(&repository(NAME), digest).await
}

#[tokio::test(start_paused = true)]
async fn referrers_are_the_upstreams_and_kept_while_fresh() {
    let world = World::new();
    let subject = sha256(b"subject");
    let listed = [descriptor(&sha256(b"signature"))];
    let answer = index(&listed);
    world
        .upstream
        .script()
        .referrers
        .insert(subject.clone(), answer);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), [Call::Referrers]);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), []);
    world.clock.advance(FRESH_FOR);
    assert_eq!(referrers(&world, &subject).await.unwrap(), listed);
    assert_eq!(world.upstream.calls(), [Call::Referrers]);
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
async fn an_answer_that_is_no_index_is_refused() {
    for answer in ["[]", "<html>", r#"{"errors":[]}"#, r#"{"manifests":{}}"#] {
        let world = World::new();
        let subject = sha256(b"subject");
        let answer = Bytes::from_static(answer.as_bytes());
        world
            .upstream
            .script()
            .referrers
            .insert(subject.clone(), answer);
        let error = referrers(&world, &subject).await.unwrap_err();
        assert!(matches!(error, Error::UpstreamInvalid { .. }), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn known_referrers_stand_in_for_an_upstream_in_trouble() {
    let world = World::new();
    let subject = sha256(b"subject");
    world.upstream.fail(Kind::Unavailable);
    let error = referrers(&world, &subject).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    world.upstream.recover();
    let mut signature: Value = serde_json::from_slice(&image(&[])).unwrap();
    signature["artifactType"] = json!("application/vnd.test.signature");
    signature["subject"] = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject, "size": 7});
    signature["annotations"] = json!({"made": "today"});
    let digest = world.manifest(NAME, "signature", &signature.to_string().into());
    world.pull(NAME, "signature").await.unwrap();
    world.upstream.fail(Kind::Unavailable);
    let known = referrers(&world, &subject).await.unwrap();
    assert_eq!(known.len(), 1);
    assert_eq!(known[0]["digest"], json!(digest));
    assert_eq!(known[0]["artifactType"], "application/vnd.test.signature");
    assert_eq!(known[0]["annotations"]["made"], "today");
}
