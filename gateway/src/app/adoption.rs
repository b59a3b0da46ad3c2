//! Adopts, at the first start, what another registry left in the folder of the blobs.
//!
//! Owns whose that content is: a folder that clients pushed to becomes hosted repositories, one that a pull-through cache filled becomes
//! its mirror's, because an upstream's content under a hosted name would be a stranger's image under a local name.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use gantry_model::{RepositoryName, Source, namespace::Address};
use gantry_storage::{
    AdoptAs, Adoption, FsBlobStore, SqliteStore, StorageError, adopt as adopt_folder,
    repositories_in, would_adopt,
};

use crate::{
    config::{BlobStorage, Config, Mirror},
    origins::Origins,
};

/// What Distribution's pull-through cache keeps in the root of its folder.
const PULL_THROUGH_MARK: &str = "scheduler-state.json";
const NO_MIRROR: &str = "a pull-through cache filled it (scheduler-state.json), and there is no mirror to give its repositories to: add its \
     upstream to `mirrors`; if clients pushed its repositories, write `adopt: hosted` below `storage`";
const WHICH_MIRROR: &str = "a pull-through cache filled it (scheduler-state.json), and it is not known which mirror its repositories belong to: \
     write `default: true` at that one; if clients pushed its repositories, write `adopt: hosted` below `storage`";

/// What the first start makes of another registry's folder.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AdoptionPlan {
    /// Hosted repositories of the same names.
    Hosted,
    /// Repositories of a mirror.
    Mirrored {
        /// The mirror's name.
        mirror: Arc<str>,
        /// The same for the store.
        adopt_as: AdoptAs,
    },
    /// Nothing: the start fails, for this reason.
    Refused(&'static str),
}

impl AdoptionPlan {
    /// The plan for the folder `root` under this configuration.
    #[must_use]
    pub fn of(config: &Config, root: &Path) -> Self {
        match is_pull_through(root) && !config.storage.adopt_as_hosted {
            false => Self::Hosted,
            true => mirrored(config, &Origins::new(config)),
        }
    }
}

/// Why the folder's repositories would not all be hosted ones: clients reach a repository by a name of `hosted.names`, and under
/// another name they get a mirror's image, or nothing.
///
/// # Errors
/// When the folder cannot be read.
pub fn uncovered(config: &Config, root: &Path) -> Result<Option<String>, StorageError> {
    let namespaces = config.namespaces();
    let is_hosted = |name: &RepositoryName| {
        let repository = namespaces.resolve(Address::default(), name.as_str());
        repository.is_ok_and(|it| it.name == *name && !matches!(it.source, Source::Mirror { .. }))
    };
    let mut names = repositories_in(root)?;
    names.retain(|name| !is_hosted(name));
    let (shown, more) = names.split_at(names.len().min(SHOWN_NAMES));
    if shown.is_empty() {
        return Ok(None);
    }
    let shown: Vec<&str> = shown.iter().map(RepositoryName::as_str).collect();
    let more = match more.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Ok(Some(format!(
        "no pattern of `hosted.names` covers {}{more}: under these names clients would get a mirror's images, or nothing; add patterns that cover \
         them, or move them out of the folder",
        shown.join(", ")
    )))
}

/// Names that a message lists.
const SHOWN_NAMES: usize = 10;

/// Whether a pull-through cache of Distribution's filled the folder.
#[must_use]
pub fn is_pull_through(root: &Path) -> bool {
    root.join(PULL_THROUGH_MARK).exists()
}

pub(super) async fn adopt(
    config: &Config,
    blobs: &FsBlobStore,
    database: &SqliteStore,
) -> anyhow::Result<()> {
    const ATTEMPT: &str = "cannot adopt the repositories in the blob folder";
    let BlobStorage::Filesystem(root) = &config.storage.blobs;
    let (adopt_as, is_hosted) = match AdoptionPlan::of(config, root) {
        AdoptionPlan::Hosted => (AdoptAs::Pushed, true),
        AdoptionPlan::Mirrored { adopt_as, .. } => (adopt_as, false),
        AdoptionPlan::Refused(why) => {
            if would_adopt(blobs, database).await.context(ATTEMPT)? {
                anyhow::bail!("{ATTEMPT} {}: {why}", root.display());
            }
            return warn_of_earlier(root, database).await;
        }
    };
    if is_hosted && would_adopt(blobs, database).await.context(ATTEMPT)? {
        let (config, folder) = (config.clone(), root.clone());
        let uncovered = tokio::task::spawn_blocking(move || uncovered(&config, &folder));
        if let Some(why) = uncovered.await?.context(ATTEMPT)? {
            anyhow::bail!("{ATTEMPT} {}: {why}", root.display());
        }
    }
    let adopted = adopt_folder(blobs, database, adopt_as).await;
    if let Some(Adoption {
        adopted,
        left_out,
        opaque,
        ..
    }) = adopted.context(ATTEMPT)?
    {
        tracing::info!(
            repositories = adopted.repositories,
            manifests = adopted.manifests,
            tags = adopted.tags,
            blobs = adopted.blobs,
            opaque = opaque.len(),
            left_out = left_out.len(),
            "adopted the repositories that another registry left in the blob folder"
        );
    }
    match is_hosted {
        true => Ok(()),
        false => warn_of_earlier(root, database).await,
    }
}

/// The mirror that the folder's names belong to: the default, or the only one.
fn mirrored(config: &Config, origins: &Origins) -> AdoptionPlan {
    let default = config.mirrors.iter().find(|mirror| mirror.default);
    let only = match config.mirrors.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    let found: Option<&Mirror> = default.or(only);
    let found = found.and_then(|mirror| Some((mirror, origins.of_mirror(&mirror.name)?)));
    match found {
        Some((mirror, origin)) => AdoptionPlan::Mirrored {
            mirror: Arc::clone(&mirror.name),
            adopt_as: AdoptAs::Mirrored {
                prefix: mirror.names.prefix.clone(),
                origin: origin.clone(),
            },
        },
        None if config.mirrors.is_empty() => AdoptionPlan::Refused(NO_MIRROR),
        None => AdoptionPlan::Refused(WHICH_MIRROR),
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
