//! Random histories on the SQLite store, with and without a cache, and on the memory store: the same answers, and the same facts after every step.

use std::{mem::discriminant, sync::Arc};

use gantry_model::{Digest, Page, RepositoryName, Tag, UploadId};
use gantry_storage::{
    CachedMetadata, Commit, CommitError, ContentOrigin, MemoryMetadata, MetadataStore, Named,
    PushManifest, ReferenceRecord, SqliteStore, TagMove,
    suite::metadata::{digest, manifest},
};
use proptest::prelude::*;

const REPOSITORIES: [&str; 3] = ["a", "a-b", "a/b"];
const TAGS: [&str; 3] = ["v1", "V1", "v1-1"];
const ORIGINS: [&str; 3] = ["", "https://a.test", "https://b.test"];
const CONTENT: [&str; 4] = ["m", "n", "o", "p"];

fn repository() -> impl Strategy<Value = RepositoryName> {
    prop::sample::select(&REPOSITORIES[..]).prop_map(|name| name.parse().unwrap())
}

fn tag() -> impl Strategy<Value = Tag> {
    prop::sample::select(&TAGS[..]).prop_map(|tag| tag.parse().unwrap())
}

fn content() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&CONTENT[..])
}

fn some_digest() -> impl Strategy<Value = Digest> {
    content().prop_map(digest)
}

fn origin() -> impl Strategy<Value = ContentOrigin> {
    let upstream = |url: &str| ContentOrigin::Upstream(url.into());
    let upstreams =
        prop::sample::select(vec![upstream("https://a.test"), upstream("https://b.test")]);
    prop_oneof![3 => Just(ContentOrigin::Pushed), 1 => upstreams]
}

fn tag_move() -> impl Strategy<Value = TagMove> {
    let expected = prop::option::of(some_digest());
    (tag(), expected, any::<bool>(), 0..5_u64).prop_map(
        |(tag, expected, set_immutable, checked_at_ms)| TagMove {
            tag,
            expected,
            set_immutable,
            checked_at_ms,
        },
    )
}

fn a_push() -> impl Strategy<Value = Commit> {
    let lists = (
        prop::collection::vec(some_digest(), 0..3),
        prop::collection::vec(tag_move(), 0..3),
        prop::collection::vec(some_digest(), 0..2),
        origin(),
    );
    let subject = prop::option::of(some_digest());
    (repository(), content(), subject, 0..100_u64, lists).prop_map(
        |(repository, text, subject, at_ms, (references, tags, required, origin))| {
            let mut manifest = manifest(text, at_ms).unwrap();
            manifest.subject = subject;
            let references = references.into_iter().map(|digest| ReferenceRecord {
                digest,
                media_type: "application/x.layer".parse().unwrap(),
                size: 1,
                named: Named::Blob,
            });
            Commit::PushManifest(Box::new(PushManifest {
                repository,
                origin,
                manifest,
                annotations: format!(r#"{{"at":"{at_ms}"}}"#),
                references: references.collect(),
                tags,
                required,
            }))
        },
    )
}

fn a_deletion() -> impl Strategy<Value = Commit> {
    let tags = prop::collection::vec(tag(), 0..3);
    let manifest = (repository(), some_digest(), tags).prop_map(|(repository, digest, tags)| {
        Commit::DeleteManifest {
            repository,
            digest,
            tags,
            at_ms: 1,
            by: "d".to_owned(),
        }
    });
    let tag = (repository(), tag(), some_digest()).prop_map(|(repository, tag, expected)| {
        Commit::DeleteTag {
            repository,
            tag,
            expected,
            at_ms: 1,
            by: "d".to_owned(),
        }
    });
    let blob = (repository(), some_digest())
        .prop_map(|(repository, digest)| Commit::UnlinkBlob { repository, digest });
    let pushed = (repository(), some_digest())
        .prop_map(|(repository, digest)| Commit::DeleteBlob { repository, digest });
    prop_oneof![manifest, tag, blob, pushed]
}

fn another() -> impl Strategy<Value = Commit> {
    let principal = prop::option::of(Just("alice".to_owned()));
    let link = (repository(), origin(), some_digest(), 0..9_u64, principal).prop_map(
        |(repository, origin, digest, size, principal)| Commit::LinkBlob {
            repository,
            origin,
            digest,
            size,
            upload: Some(UploadId::from_random([1; 16])),
            principal,
        },
    );
    let release = repository().prop_map(|repository| Commit::ReleaseRepository {
        repository,
        at_ms: 1,
        by: "r".to_owned(),
    });
    let confirm = (repository(), tag(), some_digest(), 0..9_u64).prop_map(
        |(repository, tag, digest, checked_at_ms)| Commit::ConfirmTag {
            repository,
            tag,
            digest,
            checked_at_ms,
        },
    );
    prop_oneof![4 => link, 4 => confirm, 1 => release]
}

/// Everything a store can be asked, as text.
async fn facts(store: &dyn MetadataStore) -> Vec<String> {
    let everything = Page::default();
    let mut facts = vec![format!("{:?}", store.repositories(&everything).await)];
    for name in REPOSITORIES.map(|name| name.parse().unwrap()) {
        facts.push(format!("{:?}", store.repository(&name).await));
        facts.push(format!("{:?}", store.tags(&name, None, &everything).await));
        for tag in TAGS.map(|tag| tag.parse().unwrap()) {
            facts.push(format!("{:?}", store.tag(&name, &tag).await));
        }
        for digest in CONTENT.map(digest) {
            for origin in ORIGINS {
                let origin = match origin {
                    "" => ContentOrigin::Pushed,
                    url => ContentOrigin::Upstream(url.into()),
                };
                facts.push(format!(
                    "{:?}",
                    store.manifest(&name, &origin, &digest).await
                ));
                facts.push(format!("{:?}", store.blob(&name, &origin, &digest).await));
                facts.push(format!(
                    "{:?}",
                    store.parents(&name, &origin, &digest).await
                ));
                facts.push(format!(
                    "{:?}",
                    store.referrers(&name, &origin, &digest).await
                ));
                facts.push(format!(
                    "{:?}",
                    store.referrer(&name, &origin, &digest).await
                ));
                let delivered = store.delivered(&origin, &digest).await;
                facts.push(format!("{:?}", delivered.map(|size| size.is_some())));
            }
            facts.push(format!(
                "{:?}",
                store.has_pushed(&name, &digest, "alice").await
            ));
            let page = Page {
                limit: Some(2),
                after: Some("V".to_owned()),
            };
            let tags = store.tags(&name, Some(&digest), &page).await;
            facts.push(format!("{tags:?}"));
        }
    }
    facts
}

/// Which of several moved tags is told is the store's own choice; everything else is not.
fn agree(one: &Result<(), CommitError>, other: &Result<(), CommitError>) -> bool {
    match (one, other) {
        (Ok(()), Ok(())) => true,
        (Err(one), Err(other)) => discriminant(one) == discriminant(other),
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_a_cache_before_it_and_memory_tell_the_same_story(
        history in prop::collection::vec(prop_oneof![4 => a_push(), 2 => a_deletion(), 2 => another()], 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let sqlite = SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap();
            let cached = CachedMetadata::new(Arc::new(sqlite.clone()));
            let memory = MemoryMetadata::new();
            for commit in history {
                let (one, other) = (sqlite.commit(commit.clone()).await, memory.commit(commit.clone()).await);
                prop_assert!(agree(&one, &other), "{commit:?}: {one:?} but {other:?}");
                prop_assert!(!matches!(one, Err(CommitError::Storage(_))), "{one:?}");
                let expected = facts(&memory).await;
                prop_assert_eq!(&facts(&sqlite).await, &expected);
                for _asked in ["the store", "the cache"] {
                    prop_assert_eq!(&facts(&cached).await, &expected);
                }
            }
            Ok(())
        })?;
    }
}
