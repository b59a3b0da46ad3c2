//! A list names every entry once, in order, page after page.

use gantry_registry::{Error, Settings};

use crate::harness::{Client, World, image, page};

async fn push_tags(client: &Client, repository: &str, tags: &[&str]) {
    client.push_blob(repository, b"{}").await.unwrap();
    let image = image("{}", &[]);
    let digest = image.digest.to_string();
    client
        .push_tagged(repository, &digest, tags, &image)
        .await
        .unwrap();
}

#[tokio::test]
async fn tags_come_in_pages_sorted_by_their_bytes() {
    let world = World::new();
    let alice = world.client("alice");
    push_tags(&alice, "apps/web", &["b", "a-b", "B", "a", "a.b", "_"]).await;
    let sorted = ["B", "_", "a", "a-b", "a.b", "b"];
    let (tags, next) = alice.tags("apps/web", page(None, None)).await.unwrap();
    assert_eq!(
        (tags.as_slice(), next),
        (&sorted.map(str::to_owned)[..], None)
    );
    let mut seen: Vec<String> = Vec::new();
    loop {
        let after = seen.last().cloned();
        let (tags, next) = alice
            .tags("apps/web", page(Some(2), after.as_deref()))
            .await
            .unwrap();
        seen.extend(tags);
        match next {
            Some(limit) => assert_eq!(limit, 2),
            None => break,
        }
    }
    assert_eq!(seen, sorted);
    let (tags, next) = alice
        .tags("apps/web", page(None, Some("a-a")))
        .await
        .unwrap();
    assert_eq!((tags.len(), next), (3, None));
}

#[tokio::test]
async fn no_page_passes_the_servers_own_size_and_zero_is_a_page() {
    let settings = Settings {
        max_page_entries: 3,
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("alice");
    push_tags(&alice, "apps/web", &["a", "b", "c", "d"]).await;
    for limit in [None, Some(99), Some(usize::MAX)] {
        let (tags, next) = alice.tags("apps/web", page(limit, None)).await.unwrap();
        assert_eq!((tags.len(), next), (3, Some(3)));
    }
    let zero = alice.tags("apps/web", page(Some(0), None)).await.unwrap();
    assert_eq!(zero, (Vec::new(), None));
    let zero = alice.catalog(page(Some(0), None)).await.unwrap();
    assert_eq!(zero, (Vec::new(), None));
}

#[tokio::test]
async fn tags_of_an_unknown_repository_are_unknown_and_of_an_empty_one_empty() {
    let world = World::new();
    let alice = world.client("alice");
    for limit in [None, Some(0)] {
        let error = alice.tags("apps/web", page(limit, None)).await.unwrap_err();
        assert!(matches!(error, Error::NameUnknown), "{error:?}");
    }
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let empty = alice.tags("apps/web", page(None, None)).await.unwrap();
    assert_eq!(empty, (Vec::new(), None));
}

#[tokio::test]
async fn the_catalog_names_repositories_that_hold_a_manifest() {
    let world = World::new();
    let alice = world.client("alice");
    for repository in ["b", "a/b", "a-b", "a"] {
        push_tags(&alice, repository, &["v1"]).await;
    }
    alice.push_blob("only/blobs", b"{}").await.unwrap();
    let (all, next) = alice.catalog(page(None, None)).await.unwrap();
    assert_eq!(
        (all, next),
        (["a", "a-b", "a/b", "b"].map(str::to_owned).into(), None)
    );
    let (first, next) = alice.catalog(page(Some(3), None)).await.unwrap();
    assert_eq!((first.len(), next), (3, Some(3)));
    let (rest, next) = alice.catalog(page(Some(3), Some("a/b"))).await.unwrap();
    assert_eq!((rest, next), (vec!["b".to_owned()], None));
}
