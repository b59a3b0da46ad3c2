//! A process that is killed while it writes. The test starts itself again as the writer, reads what it acknowledged, and kills it.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use gantry_model::{Algorithm::Sha256, Digest, RepositoryName, Tag, UploadId};
use gantry_storage::{
    BlobStore, Commit, FsBlobStore, MetadataStore, SqliteStore, digest_of,
    suite::{
        Checked,
        blob::{content, publish},
        metadata::push_tag,
    },
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const FOLDER: &str = "GANTRY_TEST_KILLED_FOLDER";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_writer_leaves_only_whole_and_acknowledged_content() -> Checked {
    if let Some(folder) = env::var_os(FOLDER) {
        return write_until_killed(&PathBuf::from(folder)).await;
    }
    let folder = tempfile::tempdir()?;
    let mut acknowledged = BTreeMap::new();
    for round in 1..=8_usize {
        acknowledged.extend(run_and_kill(folder.path(), round * 3)?);
        check(folder.path(), &acknowledged).await?;
    }
    assert!(acknowledged.len() >= 8 * 3);
    Ok(())
}

/// Starts the writer and kills it after so many acknowledgements.
fn run_and_kill(folder: &Path, count: usize) -> Result<Vec<(Tag, Digest)>, Failure> {
    let mut writer = Command::new(env::current_exe()?)
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg("killed::a_killed_writer_leaves_only_whole_and_acknowledged_content")
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let output = BufReader::new(writer.stdout.take().ok_or("no output")?);
    let mut acknowledged = Vec::new();
    for line in output.lines() {
        let line = line?;
        if let Some((_, told)) = line.split_once("acknowledged ") {
            let (tag, digest) = told.split_once(' ').ok_or("half a line")?;
            acknowledged.push((tag.parse()?, digest.parse()?));
        }
        if acknowledged.len() == count {
            writer.kill()?;
        }
    }
    writer.wait()?;
    Ok(acknowledged)
}

/// The writer: six pushers, each telling what was acknowledged. Never returns.
async fn write_until_killed(folder: &Path) -> Checked {
    let blobs: Arc<dyn BlobStore> = Arc::new(FsBlobStore::open(folder)?);
    let metadata = Arc::new(SqliteStore::open(&folder.join("metadata.sqlite"))?);
    let pushers = (0..6).map(|pusher| {
        let (blobs, metadata) = (Arc::clone(&blobs), Arc::clone(&metadata));
        tokio::spawn(async move {
            for number in 0_u32.. {
                push_one(&blobs, metadata.as_ref(), pusher, number).await?;
            }
            Checked::Ok(())
        })
    });
    for pusher in futures_util::future::join_all(pushers).await {
        pusher??;
    }
    Ok(())
}

async fn push_one(
    blobs: &Arc<dyn BlobStore>,
    metadata: &SqliteStore,
    pusher: u32,
    number: u32,
) -> Checked {
    let identity = (std::process::id(), pusher, number);
    let text = format!("{identity:?}");
    let mut bytes = content(200_000).to_vec();
    bytes.extend_from_slice(text.as_bytes());
    let mut random = [0; 16];
    random.copy_from_slice(&digest_of(Sha256, text.as_bytes()).hex().as_bytes()[..16]);
    let digest = publish(blobs, UploadId::from_random(random), &bytes.into()).await?;
    let tag: Tag = format!("{}-{pusher}-{number}", identity.0).parse()?;
    let mut push = push_tag(&"apps/web".parse()?, &text, 1_000, &tag, None)?;
    push.manifest.digest = digest.clone();
    metadata
        .commit(Commit::PushManifest(Box::new(push)))
        .await?;
    let mut output = std::io::stdout().lock();
    writeln!(output, "acknowledged {tag} {digest}")?;
    output.flush()?;
    Ok(())
}

/// What was acknowledged is there, what is there is whole, and what is left of uploads can be swept.
async fn check(folder: &Path, acknowledged: &BTreeMap<Tag, Digest>) -> Checked {
    let blobs = FsBlobStore::open(folder)?;
    let metadata = SqliteStore::open(&folder.join("metadata.sqlite"))?;
    let name: RepositoryName = "apps/web".parse()?;
    for (tag, digest) in acknowledged {
        let record = metadata.tag(&name, tag).await?.unwrap();
        assert_eq!(record.state.digest, *digest);
    }
    let everything = gantry_model::Page::default();
    for record in metadata.tags(&name, None, &everything).await? {
        let digest = record.state.digest;
        assert!(blobs.stat(&digest).await?.is_some(), "{}", record.tag);
    }
    for path in super::folder::files(&folder.join("docker/registry/v2/blobs")) {
        let bytes = std::fs::read(&path)?;
        let named = path.parent().unwrap().file_name().unwrap();
        assert_eq!(digest_of(Sha256, &bytes).hex(), named.to_str().unwrap());
    }
    for upload in blobs.staged().await? {
        let resumed = blobs.resume(upload, Sha256).await?;
        drop(resumed.unwrap());
        blobs.discard(upload).await?;
    }
    assert_eq!(blobs.staged().await?, []);
    Ok(())
}
