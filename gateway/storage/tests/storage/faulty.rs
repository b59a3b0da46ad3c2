//! The stores that fail on purpose fail where they were told to, and nowhere else.

use std::sync::Arc;

use bytes::Bytes;
use gantry_model::Algorithm::Sha256;
use gantry_storage::{
    BlobStore, Commit, CommitError, ContentOrigin, Kind, MemoryBlobStore, MemoryMetadata,
    MetadataStore, PublishError,
    faulty::{Call, Faults, FaultyBlobStore, FaultyMetadata},
    suite::{
        Checked,
        blob::{content, publish, upload},
        metadata::{Stores, digest, push},
    },
};

mod blobs_without_faults {
    use super::{Arc, BlobStore, Faults, FaultyBlobStore, MemoryBlobStore};

    gantry_storage::blob_suite! { make }

    fn make() -> ((), Arc<dyn BlobStore>) {
        let behind = Arc::new(MemoryBlobStore::new());
        ((), Arc::new(FaultyBlobStore::new(behind, Faults::none())))
    }
}

mod metadata_without_faults {
    use super::{Arc, Faults, FaultyMetadata, MemoryMetadata, Stores};

    gantry_storage::metadata_suite! { make }

    fn make() -> ((), Stores) {
        let behind = Arc::new(MemoryMetadata::new());
        let store = FaultyMetadata::new(behind, Faults::none());
        ((), Stores::new(Arc::new(store)))
    }
}

fn faulty_blobs() -> (Faults, Arc<dyn BlobStore>) {
    let faults = Faults::none();
    let behind = Arc::new(MemoryBlobStore::new());
    let store = FaultyBlobStore::new(behind, faults.clone());
    (faults, Arc::new(store))
}

#[tokio::test]
async fn the_named_call_fails_once() -> Checked {
    let (faults, store) = faulty_blobs();
    let missing = digest("missing");
    store.stat(&missing).await?;
    faults.fail(Call::Stat, 2, Kind::Unavailable);
    store.stat(&missing).await?;
    assert_eq!(faults.left(), 1);
    let error = store.stat(&missing).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(faults.left(), 0);
    store.stat(&missing).await?;
    assert_eq!(faults.count(Call::Stat), 4);
    assert_eq!(faults.count(Call::Open), 0);
    Ok(())
}

#[tokio::test]
async fn a_failed_write_breaks_the_writer_and_its_commit_frees_the_bytes() -> Checked {
    let (faults, store) = faulty_blobs();
    faults.fail(Call::Write, 2, Kind::Full);
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(content(10)).await?;
    let error = writer.write(content(10)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Full);
    assert!(writer.write(content(10)).await.is_err());
    let digest = writer.digest();
    let failed = writer.commit(&digest).await;
    assert!(matches!(failed, Err(PublishError::Storage(_))));
    assert_eq!(store.staged().await?, []);
    Ok(())
}

#[tokio::test]
async fn a_failed_publication_frees_the_bytes_and_the_next_one_works() -> Checked {
    let (faults, store) = faulty_blobs();
    let bytes = Bytes::from_static(b"content");
    faults.fail(Call::Publish, 1, Kind::Unavailable);
    assert!(publish(&store, upload(1), &bytes).await.is_err());
    assert_eq!(store.staged().await?, []);
    let digest = publish(&store, upload(1), &bytes).await?;
    faults.fail(Call::ReadAt, 1, Kind::Corrupt);
    let blob = store.open(&digest).await?.unwrap();
    assert_eq!(blob.read_at(0, 9).await.unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(blob.read_at(0, 9).await?, bytes);
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_leaves_the_work_done() -> Checked {
    let faults = Faults::none();
    let store = FaultyMetadata::new(Arc::new(MemoryMetadata::new()), faults.clone());
    let name = "apps/web".parse()?;
    let commit = Commit::PushManifest(Box::new(push(&name, "m", 1_000)?));
    faults.fail(Call::Commit, 1, Kind::Unavailable);
    faults.fail_after(Call::Commit, 2, Kind::Unavailable);
    for is_done in [false, true] {
        let failed = store.commit(commit.clone()).await;
        assert!(matches!(failed, Err(CommitError::Storage(_))));
        let stored = store
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?;
        assert_eq!(stored.is_some(), is_done);
    }
    Ok(())
}
