//! Blobs in a folder: the suite, Distribution's layout, healing, and what a reopened folder shows.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use gantry_model::Algorithm::{Sha256, Sha512};
use gantry_model::Digest;
use gantry_storage::{
    BlobStore, FsBlobStore, Kind, digest_of,
    suite::{
        Checked,
        blob::{content, publish, read_from, upload},
    },
};
use tempfile::TempDir;

gantry_storage::blob_suite! { make }

fn make() -> (TempDir, Arc<dyn BlobStore>) {
    let folder = tempfile::tempdir().unwrap();
    let store = FsBlobStore::open(folder.path()).unwrap();
    (folder, Arc::new(store))
}

/// Where Distribution keeps a blob.
fn path_of(root: &Path, digest: &Digest) -> PathBuf {
    let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
    let blobs = root.join("docker/registry/v2/blobs");
    blobs
        .join(algorithm)
        .join(hex.split_at(2).0)
        .join(hex)
        .join("data")
}

/// Every file under a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn a_blob_lies_where_distribution_looks_for_it_and_nothing_else_does() -> Checked {
    let (folder, store) = make();
    let bytes = content(100_000);
    let digest = publish(&store, upload(1), &bytes).await?;
    let path = path_of(folder.path(), &digest);
    assert_eq!(fs::read(&path)?, bytes);
    assert_eq!(files(folder.path()), [path]);
    Ok(())
}

#[tokio::test]
async fn blobs_beside_another_registrys_repositories_are_not_listed_for_the_sweep() -> Checked {
    let (folder, store) = make();
    let digest = publish(&store, upload(1), &content(100)).await?;
    let listed = store.published(None, 10).await?;
    assert_eq!(listed.len(), 1);
    let written = fs::metadata(path_of(folder.path(), &digest))?.modified()?;
    let age = written.duration_since(std::time::UNIX_EPOCH)?;
    assert_eq!(listed[0].written_at_ms, u64::try_from(age.as_millis())?);
    let repositories = folder.path().join("docker/registry/v2/repositories");
    fs::create_dir(&repositories)?;
    assert_eq!(store.published(None, 10).await?.len(), 1);
    fs::create_dir(repositories.join("web"))?;
    assert_eq!(store.published(None, 10).await?, []);
    assert!(store.stat(&digest).await?.is_some());
    Ok(())
}

#[tokio::test]
async fn blobs_that_distribution_stored_are_served() -> Checked {
    let (folder, store) = make();
    for algorithm in [Sha256, Sha512] {
        let bytes = content(70_000);
        let digest = digest_of(algorithm, &bytes);
        let path = path_of(folder.path(), &digest);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(&path, &bytes)?;
        assert_eq!(store.stat(&digest).await?, Some(70_000));
        let blob = store.open(&digest).await?.unwrap();
        assert_eq!(read_from(blob.as_ref(), 0).await?, bytes);
        assert_eq!(blob.file().unwrap().metadata()?.len(), 70_000);
    }
    Ok(())
}

#[tokio::test]
async fn a_stored_blob_of_the_wrong_size_is_healed_by_a_push() -> Checked {
    let (folder, store) = make();
    let bytes = content(70_000);
    let digest = publish(&store, upload(1), &bytes).await?;
    let path = path_of(folder.path(), &digest);
    for damaged in [0, 69_999] {
        fs::write(&path, &bytes[..damaged])?;
        publish(&store, upload(2), &bytes).await?;
        assert_eq!(fs::read(&path)?, bytes);
        assert_eq!(store.staged().await?, []);
    }
    Ok(())
}

#[tokio::test]
async fn a_blob_that_shrinks_while_it_is_read_is_corrupt() -> Checked {
    let (folder, store) = make();
    let bytes = content(70_000);
    let digest = publish(&store, upload(1), &bytes).await?;
    let blob = store.open(&digest).await?.unwrap();
    let file = fs::OpenOptions::new()
        .write(true)
        .open(path_of(folder.path(), &digest))?;
    file.set_len(60_000)?;
    assert_eq!(blob.read_at(59_000, 1_000).await?, bytes[59_000..60_000]);
    for (offset, length) in [(0, 70_000), (59_999, 2), (60_000, 1)] {
        let error = blob.read_at(offset, length).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt);
    }
    Ok(())
}

#[tokio::test]
async fn a_reopened_folder_shows_blobs_and_resumes_uploads() -> Checked {
    let (folder, store) = make();
    let bytes = content(2_000_000);
    let digest = publish(&store, upload(1), &bytes).await?;
    let mut writer = store.create(upload(2), Sha256).await?;
    let longer = content(2_500_000);
    writer.write(longer.slice(..1_700_000)).await?;
    writer.flush().await?;
    // As after the process died: nobody dropped the writer.
    std::mem::forget(writer);

    let store = FsBlobStore::open(folder.path())?;
    assert_eq!(store.stat(&digest).await?, Some(2_000_000));
    assert_eq!(store.staged().await?, [upload(2)]);
    let mut writer = store.resume(upload(2), Sha256).await?.unwrap();
    assert_eq!(writer.written(), 1_700_000);
    writer.write(longer.slice(1_700_000..)).await?;
    let digest = digest_of(Sha256, &longer);
    assert_eq!(writer.commit(&digest).await?, 2_500_000);
    Ok(())
}

#[tokio::test]
async fn foreign_files_among_the_uploads_are_left_alone() -> Checked {
    let (folder, store) = make();
    let uploads = folder.path().join("docker/registry/_gantry/uploads");
    fs::write(uploads.join("README"), "by hand")?;
    drop(store.create(upload(1), Sha256).await?);
    assert_eq!(store.staged().await?, [upload(1)]);
    Ok(())
}

#[tokio::test]
async fn tiny_frames_cost_no_more_than_their_bytes() -> Checked {
    let (_folder, store) = make();
    let bytes = content(300_000);
    let mut writer = store.create(upload(1), Sha256).await?;
    for index in 0..bytes.len() {
        writer.write(bytes.slice(index..=index)).await?;
    }
    let digest = digest_of(Sha256, &bytes);
    assert_eq!(writer.commit(&digest).await?, 300_000);
    let blob = store.open(&digest).await?.unwrap();
    assert_eq!(read_from(blob.as_ref(), 0).await?, bytes);
    Ok(())
}

#[tokio::test]
async fn a_write_whose_caller_gives_up_is_not_lost() -> Checked {
    let (_folder, store) = make();
    let bytes = content(6_000_000);
    let mut writer = store.create(upload(1), Sha256).await?;
    for start in (0..6_000_000).step_by(1_500_000) {
        let frame = bytes.slice(start..start + 1_500_000);
        // Polled once, then dropped: the frame was accepted before the first wait.
        let polled = writer.write(frame).now_or_never();
        assert!(polled.is_none_or(|written| written.is_ok()));
    }
    assert_eq!(writer.written(), 6_000_000);
    let digest = digest_of(Sha256, &bytes);
    assert_eq!(writer.commit(&digest).await?, 6_000_000);
    let blob = store.open(&digest).await?.unwrap();
    assert!(read_from(blob.as_ref(), 0).await? == bytes);
    Ok(())
}

#[tokio::test]
async fn an_error_shows_no_path() -> Checked {
    let (folder, store) = make();
    fs::remove_dir_all(folder.path().join("docker/registry/_gantry"))?;
    let error = store.create(upload(1), Sha256).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert_eq!(error.to_string(), "cannot start an upload");
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains(folder.path().to_str().unwrap()), "{source}");
    Ok(())
}

#[tokio::test]
async fn a_commit_that_cannot_be_made_visible_frees_the_staging_bytes() -> Checked {
    let (folder, store) = make();
    let bytes = Bytes::from_static(b"content");
    let digest = digest_of(Sha256, &bytes);
    // A file where the blob's folder would have to be.
    let blobs = folder.path().join("docker/registry/v2/blobs");
    fs::write(blobs.join("sha256"), "in the way")?;
    let error = publish(&store, upload(1), &bytes).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot publish a blob");
    assert_eq!(store.staged().await?, []);
    fs::remove_file(blobs.join("sha256"))?;
    assert_eq!(publish(&store, upload(1), &bytes).await?, digest);
    Ok(())
}

#[tokio::test]
async fn a_commit_whose_caller_gives_up_is_done_or_can_be_repeated() -> Checked {
    for polls in 0..12 {
        let (_folder, store) = make();
        let bytes = content(1_500_000);
        let digest = digest_of(Sha256, &bytes);
        let mut writer = store.create(upload(1), Sha256).await?;
        writer.write(bytes.clone()).await?;
        let mut commit = writer.commit(&digest);
        let mut is_done = false;
        for _poll in 0..polls {
            is_done = is_done || (&mut commit).now_or_never().is_some();
            tokio::task::yield_now().await;
        }
        drop(commit);
        if let Some(writer) = store.resume(upload(1), Sha256).await? {
            assert_eq!(writer.commit(&digest).await?, 1_500_000);
        }
        let blob = store.open(&digest).await?.unwrap();
        assert!(read_from(blob.as_ref(), 0).await? == bytes, "{polls} polls");
        assert_eq!(store.staged().await?, []);
    }
    Ok(())
}
