//! Adopts, at the first start, what another registry left in the folder of the blobs.
//!
//! Owns whose that content is: a folder that clients pushed to becomes hosted repositories, one that a pull-through cache filled becomes
//! its mirror's, because an upstream's content under a hosted name would be a stranger's image under a local name.

use std::path::Path;

use anyhow::Context as _;
use gantry_storage::{AdoptAs, FsBlobStore, SqliteStore, adopt as adopt_folder, would_adopt};

use crate::{
    config::{BlobStorage, Config, Mirror},
    origins::Origins,
};

/// What Distribution's pull-through cache keeps in the root of its folder.
const PULL_THROUGH_MARK: &str = "scheduler-state.json";

pub(super) async fn adopt(
    config: &Config,
    origins: &Origins,
    blobs: &FsBlobStore,
    database: &SqliteStore,
) -> anyhow::Result<()> {
    const ATTEMPT: &str = "cannot adopt the repositories in the blob folder";
    let BlobStorage::Filesystem(root) = &config.storage.blobs;
    let is_pull_through = !config.storage.adopt_as_hosted && has_mark(root).await;
    let adopt_as = match is_pull_through {
        false => Some(AdoptAs::Pushed),
        true => mirrored(config, origins),
    };
    let Some(adopt_as) = adopt_as else {
        if would_adopt(blobs, database).await.context(ATTEMPT)? {
            anyhow::bail!(
                "{ATTEMPT} {}: a pull-through cache filled it ({PULL_THROUGH_MARK}), and {}; if clients pushed its repositories, write `adopt: hosted` below `storage`",
                root.display(),
                missing_mirror(config),
            );
        }
        return warn_of_earlier(root, database).await;
    };
    let adopted = adopt_folder(blobs, database, adopt_as).await;
    if let Some(adopted) = adopted.context(ATTEMPT)? {
        tracing::info!(
            ?adopted,
            "adopted the repositories that another registry left in the blob folder"
        );
    }
    match is_pull_through {
        true => warn_of_earlier(root, database).await,
        false => Ok(()),
    }
}

async fn has_mark(root: &Path) -> bool {
    let mark = root.join(PULL_THROUGH_MARK);
    tokio::fs::try_exists(mark).await.unwrap_or(false)
}

/// The mirror that the folder's names belong to: the default, or the only one.
fn mirrored(config: &Config, origins: &Origins) -> Option<AdoptAs> {
    let default = config.mirrors.iter().find(|mirror| mirror.default);
    let only = match config.mirrors.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    let mirror: &Mirror = default.or(only)?;
    Some(AdoptAs::Mirrored {
        prefix: mirror.names.prefix.clone(),
        origin: origins.of_mirror(&mirror.name)?.clone(),
    })
}

fn missing_mirror(config: &Config) -> &'static str {
    match config.mirrors.is_empty() {
        true => "there is no mirror to give its repositories to: add its upstream to `mirrors`",
        false => {
            "it is not known which mirror its repositories belong to: write `default: true` at that one"
        }
    }
}

/// Earlier versions adopted a pull-through cache's folder as hosted repositories, which stay what they are.
async fn warn_of_earlier(root: &Path, database: &SqliteStore) -> anyhow::Result<()> {
    if database.has_adopted().await? {
        tracing::warn!(
            folder = %root.display(),
            "the blob folder was a pull-through cache's ({PULL_THROUGH_MARK}), and its repositories were adopted as hosted ones by an earlier version: what its upstream delivered counts as pushed; write `adopt: hosted` below `storage` if that is right"
        );
    }
    Ok(())
}
