//! A full disk, for real: a small tmpfs that the test mounts and unmounts. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use gantry_model::{Algorithm::Sha256, RepositoryName};
use gantry_storage::{
    BlobStore, Commit, CommitError, ContentOrigin, FsBlobStore, Kind, MetadataStore, PublishError,
    SqliteStore, StorageError, digest_of,
    suite::{
        Checked,
        blob::{content, publish, read_from, upload},
        metadata::{digest, push},
    },
};
use tempfile::TempDir;

/// A file system of 4 MiB.
struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"])
            .arg(folder.path())
            .output()
            .expect("this test runs `mount`");
        assert!(
            mount.status.success(),
            "this test mounts a small tmpfs, so it must run as root: {}",
            String::from_utf8_lossy(&mount.stderr)
        );
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file that takes so much of it.
    fn fill(&self, bytes: usize) -> PathBuf {
        let filler = self.path().join("filler");
        fs::write(&filler, vec![1; bytes]).unwrap();
        filler
    }

    fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.path()).unwrap();
        disk.f_bavail * disk.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(unmount.is_ok_and(|status| status.success()), "umount");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_bytes_and_keeps_those_before() -> Checked {
    let disk = SmallDisk::mount();
    let store = FsBlobStore::open(disk.path())?;
    let bytes = content(6 << 20);
    let mut writer = store.create(upload(1), Sha256).await?;
    let mut full = None;
    for start in (0..bytes.len()).step_by(300_000) {
        let end = bytes.len().min(start + 300_000);
        if let Err(error) = writer.write(bytes.slice(start..end)).await {
            full = Some(error);
            break;
        }
    }
    let full: StorageError = full.unwrap();
    assert_eq!(full.kind(), Kind::Full);
    assert_eq!(full.to_string(), "cannot write an upload");
    let kept = writer.written();
    assert_eq!(kept, writer.tail().size());
    let used = (4 << 20) - disk.free_bytes();
    assert!(used < kept + (64 << 10), "{used} bytes used for {kept}");
    assert_eq!(
        writer.write(content(1)).await.unwrap_err().kind(),
        Kind::Full
    );
    assert_eq!(writer.flush().await.unwrap_err().kind(), Kind::Full);
    let tail = read_from(writer.tail().as_ref(), 0).await?;
    assert!(tail == bytes[..usize::try_from(kept)?]);
    drop(writer);

    let writer = store.resume(upload(1), Sha256).await?.unwrap();
    assert_eq!(writer.written(), kept);
    let digest = digest_of(Sha256, &tail);
    assert_eq!(writer.digest(), digest);
    assert_eq!(writer.commit(&digest).await?, kept);
    Ok(())
}

#[tokio::test]
async fn a_commit_on_a_full_disk_frees_the_staging_bytes_and_space_heals_it() -> Checked {
    let disk = SmallDisk::mount();
    let store: Arc<dyn BlobStore> = Arc::new(FsBlobStore::open(disk.path())?);
    let small = content(1_000);
    let kept = publish(&store, upload(1), &small).await?;
    let bytes = content(3 << 20);
    let filler = disk.fill(2 << 20);
    let before = disk.free_bytes();
    let failed = publish(&store, upload(2), &bytes).await;
    match failed {
        Err(PublishError::Storage(error)) => assert_eq!(error.kind(), Kind::Full),
        other => panic!("not full: {other:?}"),
    }
    store.discard(upload(2)).await?;
    assert_eq!(disk.free_bytes(), before);
    assert_eq!(store.stat(&kept).await?, Some(1_000));
    fs::remove_file(filler)?;
    publish(&store, upload(3), &bytes).await?;
    Ok(())
}

#[tokio::test]
async fn metadata_on_a_full_disk_refuses_and_recovers() -> Checked {
    let disk = SmallDisk::mount();
    let path = disk.path().join("metadata.sqlite");
    let store = SqliteStore::open(&path)?;
    let name: RepositoryName = "apps/web".parse()?;
    let filler = disk.fill((4 << 20) - (600 << 10));
    let mut stored = 0;
    let full = loop {
        let mut push = push(&name, &format!("m{stored}"), 1_000)?;
        push.annotations = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
        match store.commit(Commit::PushManifest(Box::new(push))).await {
            Ok(()) => stored += 1,
            Err(CommitError::Storage(error)) => break error,
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(full.kind(), Kind::Full);
    assert_eq!(full.to_string(), "cannot commit");
    assert!(stored > 0);
    let refused = digest(&format!("m{stored}"));
    assert_eq!(
        store
            .manifest(&name, &ContentOrigin::Pushed, &refused)
            .await?,
        None
    );

    fs::remove_file(filler)?;
    let again = push(&name, &format!("m{stored}"), 1_000)?;
    store.commit(Commit::PushManifest(Box::new(again))).await?;
    drop(store);
    let store = SqliteStore::open(&path)?;
    for number in 0..=stored {
        let digest = digest(&format!("m{number}"));
        assert!(
            store
                .manifest(&name, &ContentOrigin::Pushed, &digest)
                .await?
                .is_some()
        );
    }
    Ok(())
}
