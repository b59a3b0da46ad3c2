//! Metadata behind its cache: the suite, answers without the store, and no answer from before an acknowledged commit.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use gantry_model::{Digest, RepositoryName, Tag};
use gantry_storage::{
    CachedMetadata, Commit, MemoryMetadata, MetadataStore, SqliteStore,
    faulty::{Call, Faults, FaultyMetadata},
    suite::{
        Checked,
        metadata::{Stores, digest, push_tag},
    },
};
use tempfile::TempDir;

mod metadata {
    use super::{Arc, CachedMetadata, SqliteStore, Stores, TempDir, open};

    gantry_storage::metadata_suite! { make }

    fn make() -> (TempDir, Stores) {
        let (folder, store) = open();
        let cached = CachedMetadata::new(Arc::<SqliteStore>::clone(&store));
        let stores = Stores {
            metadata: Arc::new(cached),
            ..Stores::new(store)
        };
        (folder, stores)
    }
}

mod unversioned {
    use super::{Arc, CachedMetadata, MemoryMetadata, Stores};

    gantry_storage::metadata_suite! { make }

    fn make() -> ((), Stores) {
        let store = Arc::new(MemoryMetadata::new());
        let cached = CachedMetadata::new(Arc::<MemoryMetadata>::clone(&store));
        let stores = Stores {
            metadata: Arc::new(cached),
            ..Stores::new(store)
        };
        ((), stores)
    }
}

#[tokio::test]
async fn nothing_is_kept_of_a_store_that_others_may_change_unseen() -> Checked {
    let store = Arc::new(MemoryMetadata::new());
    let [here, elsewhere] =
        [0, 1].map(|_| CachedMetadata::new(Arc::<MemoryMetadata>::clone(&store)));
    move_tag(&here, "one", None).await?;
    assert_eq!(named(&here).await, Some(digest("one")));
    move_tag(&elsewhere, "two", Some("one")).await?;
    assert_eq!(named(&here).await, Some(digest("two")));
    Ok(())
}

fn open() -> (TempDir, Arc<SqliteStore>) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap();
    (folder, Arc::new(store))
}

fn name() -> RepositoryName {
    "apps/web".parse().unwrap()
}

fn tag() -> Tag {
    "latest".parse().unwrap()
}

async fn move_tag(store: &dyn MetadataStore, to: &str, expected: Option<&str>) -> Checked {
    let push = push_tag(&name(), to, 1_000, &tag(), expected)?;
    store.commit(Commit::PushManifest(Box::new(push))).await?;
    Ok(())
}

async fn named(store: &dyn MetadataStore) -> Option<Digest> {
    let record = store.tag(&name(), &tag()).await.unwrap();
    record.map(|record| record.state.digest)
}

#[tokio::test]
async fn an_answer_is_given_again_without_the_store() -> Checked {
    let (_folder, store) = open();
    let faults = Faults::none();
    let faulty = FaultyMetadata::new(store, faults.clone());
    let cached = CachedMetadata::new(Arc::new(faulty));
    move_tag(&cached, "one", None).await?;
    assert_eq!(named(&cached).await, Some(digest("one")));
    let before = faults.count(Call::Tag);
    assert_eq!(named(&cached).await, Some(digest("one")));
    assert_eq!(faults.count(Call::Tag), before);
    Ok(())
}

#[tokio::test]
async fn a_commit_that_nobody_waited_for_counts() -> Checked {
    let (_folder, store) = open();
    let cached = CachedMetadata::new(Arc::<SqliteStore>::clone(&store));
    move_tag(&cached, "one", None).await?;
    assert_eq!(named(&cached).await, Some(digest("one")));
    // Its caller is gone once the work is handed over; the next commit tells when it is done.
    let abandoned = move_tag(&cached, "two", Some("one"));
    drop(futures_util::poll!(Box::pin(abandoned)));
    let unrelated = push_tag(&"other".parse()?, "m", 1, &tag(), None)?;
    cached
        .commit(Commit::PushManifest(Box::new(unrelated)))
        .await?;
    assert_eq!(named(&cached).await, named(&*store).await);
    Ok(())
}

/// The promise to a client: what was acknowledged before it asked is what it sees, or something later.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_answered_from_before_an_acknowledged_commit() -> Checked {
    const MOVES: u64 = 400;
    let (_folder, store) = open();
    let cached = Arc::new(CachedMetadata::new(store));
    let acknowledged = Arc::new(AtomicU64::new(0));
    move_tag(&*cached, "0", None).await?;
    let numbers: Arc<Vec<Digest>> =
        Arc::new((0..=MOVES).map(|at| digest(&at.to_string())).collect());
    let readers: Vec<_> = (0..8)
        .map(|_reader| {
            let (cached, numbers) = (Arc::clone(&cached), Arc::clone(&numbers));
            tokio::spawn(read(cached, numbers, Arc::clone(&acknowledged)))
        })
        .collect();
    for at in 1..=MOVES {
        let before = (at - 1).to_string();
        move_tag(&*cached, &at.to_string(), Some(&before)).await?;
        acknowledged.store(at, Ordering::SeqCst);
    }
    for reader in readers {
        assert!(reader.await? > 0);
    }
    Ok(())
}

/// Reads until the last move was acknowledged; how often.
async fn read(
    cached: Arc<CachedMetadata>,
    numbers: Arc<Vec<Digest>>,
    acknowledged: Arc<AtomicU64>,
) -> u64 {
    let last = numbers.len() as u64 - 1;
    let mut answers = 0;
    loop {
        answers += 1;
        let least = acknowledged.load(Ordering::SeqCst);
        let found = named(&*cached).await.unwrap();
        let found = numbers.iter().position(|digest| *digest == found).unwrap() as u64;
        assert!(found >= least, "{found} after {least} was acknowledged");
        if least == last {
            return answers;
        }
        tokio::task::yield_now().await;
    }
}
