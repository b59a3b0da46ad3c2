//! What every blob store must pass.

use std::{error::Error, sync::Arc};

use bytes::Bytes;
use futures_util::future::try_join_all;
use gantry_model::{Algorithm, Digest, UploadId};

use super::Checked;
use crate::{Blob, BlobStore, BlobWriter, Kind, PublishError, StorageError, digest_of};

use Algorithm::{Sha256, Sha512};

type Store = Arc<dyn BlobStore>;

/// Tests a blob store; see [`crate::suite`]. The store is an `Arc<dyn BlobStore>`.
#[macro_export]
macro_rules! blob_suite {
    ($make:path) => {
        $crate::suite_tests! { $make, blob,
            a_missing_blob_is_none
            a_published_blob_reads_back_at_any_offset
            an_empty_blob_can_be_published
            content_is_not_found_before_its_commit
            a_mismatch_publishes_nothing_and_keeps_the_staging_bytes
            publishing_what_is_there_succeeds_and_frees_the_staging_bytes
            concurrent_commits_of_one_digest_all_succeed
            content_is_verified_under_the_algorithm_it_is_published_by
            a_tail_reads_what_was_flushed_and_outlives_the_writer
            a_tail_outlives_the_dropped_upload
            a_dropped_writer_keeps_its_bytes_and_a_resume_rebuilds_the_hash
            an_upload_has_one_writer_at_a_time
            an_upload_is_made_once_and_dropped_any_number_of_times
            a_commit_after_the_upload_was_dropped_fails
            staged_lists_exactly_the_uploads_with_staging_bytes
            an_open_blob_outlives_its_deletion
            a_deleted_blob_can_be_published_again
            published_blobs_are_listed_in_order_and_in_pages
        }
    };
}

/// An upload's name.
#[must_use]
pub fn upload(number: u8) -> UploadId {
    UploadId::from_random([number; 16])
}

/// So many bytes that do not repeat every power of two.
#[must_use]
pub fn content(length: usize) -> Bytes {
    let period = (0..251_u8).cycle();
    period.take(length).collect::<Vec<u8>>().into()
}

/// Publishes content.
///
/// # Errors
/// As [`BlobWriter::commit`].
pub async fn publish(
    store: &Store,
    upload: UploadId,
    bytes: &Bytes,
) -> Result<Digest, PublishError> {
    let mut writer = store.create(upload, Sha256).await?;
    writer.write(bytes.clone()).await?;
    let digest = digest_of(Sha256, bytes);
    writer.commit(&digest).await?;
    Ok(digest)
}

/// Reads from `offset` to the end.
///
/// # Errors
/// As [`Blob::read_at`].
pub async fn read_from(blob: &dyn Blob, mut offset: u64) -> Result<Vec<u8>, StorageError> {
    let mut read = Vec::new();
    loop {
        let bytes = blob.read_at(offset, 300_000).await?;
        if bytes.is_empty() {
            return Ok(read);
        }
        offset += bytes.len() as u64;
        read.extend_from_slice(&bytes);
    }
}

async fn opened(
    store: &Store,
    digest: &Digest,
) -> Result<Arc<dyn Blob>, Box<dyn Error + Send + Sync>> {
    Ok(store.open(digest).await?.ok_or("the blob is not there")?)
}

async fn resumed(
    store: &Store,
    upload: UploadId,
) -> Result<Box<dyn BlobWriter>, Box<dyn Error + Send + Sync>> {
    let writer = store.resume(upload, Sha256).await?;
    Ok(writer.ok_or("the upload is not there")?)
}

pub async fn a_missing_blob_is_none(store: Store) -> Checked {
    let digest = digest_of(Sha256, b"nobody stored this");
    assert_eq!(store.stat(&digest).await?, None);
    assert!(store.open(&digest).await?.is_none());
    assert!(!store.delete(&digest).await?);
    Ok(())
}

pub async fn a_published_blob_reads_back_at_any_offset(store: Store) -> Checked {
    let bytes = content(3 * 1024 * 1024 + 17);
    let size = bytes.len() as u64;
    let mut writer = store.create(upload(1), Sha256).await?;
    let mut rest = bytes.clone();
    for length in [1, 100, 16 * 1024, 0, 700_000, 5, 1_500_000, 40_000] {
        writer.write(rest.split_to(length)).await?;
    }
    writer.write(rest).await?;
    assert_eq!(writer.written(), size);
    let digest = writer.digest();
    assert_eq!(digest, digest_of(Sha256, &bytes));
    assert_eq!(writer.commit(&digest).await?, size);

    assert_eq!(store.stat(&digest).await?, Some(size));
    let blob = opened(&store, &digest).await?;
    assert_eq!(blob.size(), size);
    for offset in [0, 1, 65_535, 1 << 20, 3 << 20, size - 1] {
        let expected = bytes.slice(usize::try_from(offset)?..);
        assert!(
            read_from(blob.as_ref(), offset).await? == expected,
            "from {offset}"
        );
    }
    assert_eq!(blob.read_at(7, 3).await?, bytes.slice(7..10));
    assert_eq!(blob.read_at(7, 0).await?, Bytes::new());
    for beyond in [size, size + 1, u64::MAX] {
        assert_eq!(blob.read_at(beyond, 10).await?, Bytes::new());
    }
    assert!(!blob.read_at(0, usize::MAX).await?.is_empty());
    Ok(())
}

pub async fn an_empty_blob_can_be_published(store: Store) -> Checked {
    let writer = store.create(upload(1), Sha256).await?;
    let digest = digest_of(Sha256, b"");
    assert_eq!(writer.commit(&digest).await?, 0);
    let blob = opened(&store, &digest).await?;
    assert_eq!(blob.size(), 0);
    assert_eq!(blob.read_at(0, 10).await?, Bytes::new());
    Ok(())
}

pub async fn content_is_not_found_before_its_commit(store: Store) -> Checked {
    let bytes = content(2_000_000);
    let digest = digest_of(Sha256, &bytes);
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(bytes).await?;
    writer.flush().await?;
    assert_eq!(store.stat(&digest).await?, None);
    writer.commit(&digest).await?;
    assert_eq!(store.stat(&digest).await?, Some(2_000_000));
    Ok(())
}

pub async fn a_mismatch_publishes_nothing_and_keeps_the_staging_bytes(store: Store) -> Checked {
    let bytes = content(100_000);
    let claimed = digest_of(Sha256, b"something else");
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(bytes.clone()).await?;
    let digest = writer.digest();
    match writer.commit(&claimed).await {
        Err(PublishError::Mismatch { found }) => assert_eq!(found, digest),
        other => return Err(format!("not a mismatch: {other:?}").into()),
    }
    assert_eq!(store.stat(&claimed).await?, None);
    assert_eq!(store.stat(&digest).await?, None);
    let writer = resumed(&store, upload(1)).await?;
    assert_eq!(writer.written(), 100_000);
    writer.commit(&digest).await?;
    let blob = opened(&store, &digest).await?;
    assert_eq!(read_from(blob.as_ref(), 0).await?, bytes);
    Ok(())
}

pub async fn publishing_what_is_there_succeeds_and_frees_the_staging_bytes(
    store: Store,
) -> Checked {
    let bytes = content(50_000);
    let first = publish(&store, upload(1), &bytes).await?;
    let second = publish(&store, upload(2), &bytes).await?;
    assert_eq!(first, second);
    assert_eq!(store.staged().await?, Vec::new());
    let blob = opened(&store, &first).await?;
    assert_eq!(read_from(blob.as_ref(), 0).await?, bytes);
    Ok(())
}

pub async fn concurrent_commits_of_one_digest_all_succeed(store: Store) -> Checked {
    let bytes = content(1_200_000);
    let pushes = (0..24).map(|number| {
        let (store, bytes) = (Arc::clone(&store), bytes.clone());
        tokio::spawn(async move { publish(&store, upload(number), &bytes).await })
    });
    for pushed in try_join_all(pushes).await? {
        assert_eq!(pushed?, digest_of(Sha256, &bytes));
    }
    assert_eq!(store.staged().await?, Vec::new());
    let blob = opened(&store, &digest_of(Sha256, &bytes)).await?;
    assert!(read_from(blob.as_ref(), 0).await? == bytes);
    Ok(())
}

pub async fn content_is_verified_under_the_algorithm_it_is_published_by(store: Store) -> Checked {
    let bytes = content(1_100_000);
    for (number, made, published) in [
        (1, Sha256, Sha512),
        (2, Sha512, Sha512),
        (3, Sha512, Sha256),
    ] {
        let mut writer = store.create(upload(number), made).await?;
        writer.write(bytes.clone()).await?;
        assert_eq!(writer.digest(), digest_of(made, &bytes));
        let digest = digest_of(published, &bytes);
        writer.commit(&digest).await?;
        let blob = opened(&store, &digest).await?;
        assert!(read_from(blob.as_ref(), 0).await? == bytes);
        assert!(store.delete(&digest).await?);
    }
    let mut writer = store.create(upload(4), Sha256).await?;
    writer.write(bytes).await?;
    let claimed = digest_of(Sha512, b"something else");
    let refused = writer.commit(&claimed).await;
    assert!(matches!(refused, Err(PublishError::Mismatch { .. })));
    Ok(())
}

pub async fn a_tail_reads_what_was_flushed_and_outlives_the_writer(store: Store) -> Checked {
    let bytes = content(2_500_000);
    let mut writer = store.create(upload(1), Sha256).await?;
    let tail = writer.tail();
    assert_eq!(tail.size(), 0);
    assert_eq!(tail.read_at(0, 10).await?, Bytes::new());
    for (from, to) in [(0, 10), (10, 1_500_000), (1_500_000, 2_500_000)] {
        writer.write(bytes.slice(from..to)).await?;
        writer.flush().await?;
        assert_eq!(tail.size(), to as u64);
        assert!(read_from(tail.as_ref(), 0).await? == bytes.slice(..to));
    }
    let digest = writer.digest();
    writer.commit(&digest).await?;
    assert!(read_from(tail.as_ref(), 0).await? == bytes);
    store.delete(&digest).await?;
    assert!(read_from(tail.as_ref(), 0).await? == bytes);
    Ok(())
}

pub async fn a_tail_outlives_the_dropped_upload(store: Store) -> Checked {
    let bytes = content(400_000);
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(bytes.clone()).await?;
    writer.flush().await?;
    let tail = writer.tail();
    drop(writer);
    store.discard(upload(1)).await?;
    assert!(read_from(tail.as_ref(), 0).await? == bytes);
    Ok(())
}

pub async fn a_dropped_writer_keeps_its_bytes_and_a_resume_rebuilds_the_hash(
    store: Store,
) -> Checked {
    let bytes = content(3_000_000);
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(bytes.slice(..1_200_000)).await?;
    writer.write(bytes.slice(1_200_000..1_300_000)).await?;
    drop(writer);
    let mut writer = resumed(&store, upload(1)).await?;
    assert_eq!(writer.written(), 1_300_000);
    assert_eq!(writer.tail().size(), 1_300_000);
    assert_eq!(
        writer.digest(),
        digest_of(Sha256, bytes.get(..1_300_000).unwrap_or_default())
    );
    writer.write(bytes.slice(1_300_000..)).await?;
    let digest = digest_of(Sha256, &bytes);
    assert_eq!(writer.commit(&digest).await?, 3_000_000);
    assert!(store.resume(upload(1), Sha256).await?.is_none());
    Ok(())
}

pub async fn an_upload_has_one_writer_at_a_time(store: Store) -> Checked {
    let writer = store.create(upload(1), Sha256).await?;
    let second = store.resume(upload(1), Sha256).await;
    assert_eq!(
        second.err().map(|error| error.kind()),
        Some(Kind::Unavailable)
    );
    drop(writer);
    assert_eq!(resumed(&store, upload(1)).await?.written(), 0);
    Ok(())
}

pub async fn an_upload_is_made_once_and_dropped_any_number_of_times(store: Store) -> Checked {
    assert!(store.resume(upload(1), Sha256).await?.is_none());
    store.discard(upload(1)).await?;
    drop(store.create(upload(1), Sha256).await?);
    drop(resumed(&store, upload(1)).await?);
    let again = store.create(upload(1), Sha256).await;
    assert_eq!(again.err().map(|error| error.kind()), Some(Kind::Internal));
    store.discard(upload(1)).await?;
    store.discard(upload(1)).await?;
    assert!(store.resume(upload(1), Sha256).await?.is_none());
    Ok(())
}

pub async fn a_commit_after_the_upload_was_dropped_fails(store: Store) -> Checked {
    let mut writer = store.create(upload(1), Sha256).await?;
    writer.write(content(10)).await?;
    writer.flush().await?;
    store.discard(upload(1)).await?;
    let digest = writer.digest();
    let failed = writer.commit(&digest).await;
    assert!(matches!(failed, Err(PublishError::Storage(_))));
    assert_eq!(store.stat(&digest).await?, None);
    Ok(())
}

pub async fn staged_lists_exactly_the_uploads_with_staging_bytes(store: Store) -> Checked {
    publish(&store, upload(1), &content(10)).await?;
    let kept = store.create(upload(2), Sha256).await?;
    drop(store.create(upload(3), Sha256).await?);
    drop(store.create(upload(4), Sha256).await?);
    store.discard(upload(4)).await?;
    let mut staged = store.staged().await?;
    staged.sort_unstable();
    assert_eq!(staged, [upload(2), upload(3)]);
    drop(kept);
    Ok(())
}

pub async fn an_open_blob_outlives_its_deletion(store: Store) -> Checked {
    let bytes = content(300_000);
    let digest = publish(&store, upload(1), &bytes).await?;
    let blob = opened(&store, &digest).await?;
    assert!(store.delete(&digest).await?);
    assert!(!store.delete(&digest).await?);
    assert_eq!(store.stat(&digest).await?, None);
    assert!(store.open(&digest).await?.is_none());
    assert!(read_from(blob.as_ref(), 0).await? == bytes);
    Ok(())
}

pub async fn a_deleted_blob_can_be_published_again(store: Store) -> Checked {
    let bytes = content(300_000);
    for number in 1..4 {
        let digest = publish(&store, upload(number), &bytes).await?;
        let blob = opened(&store, &digest).await?;
        assert!(read_from(blob.as_ref(), 0).await? == bytes);
        assert!(store.delete(&digest).await?);
    }
    Ok(())
}

pub async fn published_blobs_are_listed_in_order_and_in_pages(store: Store) -> Checked {
    assert_eq!(store.published(None, 10).await?, []);
    let mut expected = Vec::new();
    for number in 1..=7_u8 {
        let bytes = content(usize::from(number));
        let digest = publish(&store, upload(number), &bytes).await?;
        expected.push((digest, u64::from(number)));
    }
    let mut writer = store.create(upload(8), Sha512).await?;
    writer.write(content(8)).await?;
    let digest = writer.digest();
    writer.commit(&digest).await?;
    expected.push((digest, 8));
    let staged = store.create(upload(9), Sha256).await?;
    expected.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.published(after.as_ref(), 3).await?;
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(last.digest.clone());
        found.extend(page.into_iter().map(|blob| (blob.digest, blob.size)));
    }
    drop(staged);
    assert_eq!(found, expected);
    for (first, _size) in expected.iter().take(1) {
        assert!(store.delete(first).await?);
    }
    assert_eq!(store.published(None, 10).await?.len(), 7);
    Ok(())
}
