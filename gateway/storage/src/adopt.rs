//! Adopts the folder of a Distribution registry: what its repositories link to becomes what ours hold.
//!
//! Happens once, in one transaction, when a folder has repositories and the database knows none. Links that are empty, broken, or lead
//! to nothing are counted and left out, as Distribution treats them as absent. Nothing of Distribution's is changed.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::UNIX_EPOCH,
};

use gantry_model::{
    Digest, Manifest, ManifestError, MediaType, RepositoryName, Tag, manifest::MAX_MANIFEST_BYTES,
    media_type,
};

use crate::{
    Commit, CommitError, ContentOrigin, FsBlobStore, ManifestRecord, PushManifest, ReferenceRecord,
    SqliteStore, TagMove, blocking::lock, error::StorageError,
};

/// What was adopted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Adopted {
    /// Repositories.
    pub repositories: u64,
    /// Manifests, each counted in every repository.
    pub manifests: u64,
    /// Tags.
    pub tags: u64,
    /// Blobs, each counted in every repository.
    pub blobs: u64,
    /// Links that led to nothing that can be served.
    pub skipped: u64,
}

/// What the repositories of a folder become.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AdoptAs {
    /// Hosted repositories of the same names.
    Pushed,
    /// A mirror's repositories: Distribution filled them as a pull-through cache.
    Mirrored {
        /// The first part of their names here.
        prefix: RepositoryName,
        /// The mirror's upstream.
        origin: ContentOrigin,
    },
}

impl AdoptAs {
    fn origin(&self) -> ContentOrigin {
        match self {
            Self::Pushed => ContentOrigin::Pushed,
            Self::Mirrored { origin, .. } => origin.clone(),
        }
    }

    fn name(&self, folder: &str) -> Option<RepositoryName> {
        let name = folder.parse().ok()?;
        match self {
            Self::Pushed => Some(name),
            Self::Mirrored { prefix, .. } => prefix.join(&name).ok(),
        }
    }
}

/// Whether [`adopt`] would find repositories to adopt.
///
/// # Errors
/// [`StorageError`].
pub async fn would_adopt(
    blobs: &FsBlobStore,
    metadata: &SqliteStore,
) -> Result<bool, StorageError> {
    Ok(!metadata.has_repositories().await? && !entries(&blobs.repositories())?.is_empty())
}

/// Adopts what lies in the folder of `blobs`; `None` when there is nothing, or the database has repositories already.
///
/// # Errors
/// [`StorageError`], and then nothing is adopted.
pub async fn adopt(
    blobs: &FsBlobStore,
    metadata: &SqliteStore,
    adopt_as: AdoptAs,
) -> Result<Option<Adopted>, StorageError> {
    let root = blobs.repositories();
    let adopted = Arc::new(Mutex::new(Adopted::default()));
    let walk = Walk {
        blobs: blobs.clone(),
        folders: vec![root.clone()],
        root,
        adopt_as,
        found: VecDeque::new(),
        adopted: Arc::clone(&adopted),
    };
    let imported = metadata.import(walk).await.map_err(|error| match error {
        CommitError::Storage(error) => error,
        refused => StorageError::new(crate::Kind::Internal, ATTEMPT, refused),
    })?;
    let adopted = *lock(&adopted);
    Ok((imported && adopted != Adopted::default()).then_some(adopted))
}

/// The commits that a folder amounts to, found while they are asked for.
struct Walk {
    blobs: FsBlobStore,
    root: PathBuf,
    adopt_as: AdoptAs,
    /// Folders to look into.
    folders: Vec<PathBuf>,
    found: VecDeque<Commit>,
    /// Counted here for the caller, who gave the walk away.
    adopted: Arc<Mutex<Adopted>>,
}

impl Iterator for Walk {
    type Item = Result<Commit, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(commit) = self.found.pop_front() {
                return Some(Ok(commit));
            }
            let folder = self.folders.pop()?;
            if let Err(error) = self.look_into(&folder) {
                return Some(Err(error));
            }
        }
    }
}

impl Walk {
    /// A repository, or a part of the names of some, or both.
    fn look_into(&mut self, folder: &Path) -> Result<(), StorageError> {
        let mut is_repository = false;
        for entry in entries(folder)? {
            match entry.as_str() {
                "_layers" | "_manifests" => is_repository = true,
                name if name.starts_with('_') => {}
                name => self.folders.push(folder.join(name)),
            }
        }
        if !is_repository {
            return Ok(());
        }
        let name = folder.strip_prefix(&self.root).ok().and_then(Path::to_str);
        match name.and_then(|name| self.adopt_as.name(name)) {
            Some(name) => self.repository(&name, folder),
            None => {
                self.leave_out(folder);
                Ok(())
            }
        }
    }

    fn repository(&mut self, name: &RepositoryName, folder: &Path) -> Result<(), StorageError> {
        lock(&self.adopted).repositories += 1;
        for link in self.links(&folder.join("_layers"))? {
            let size = match self.blobs.name_now(&link.target, &link.digest)? {
                true => self.blobs.size_now(&link.digest)?,
                false => None,
            };
            let Some(size) = size else {
                self.leave_out(&link.path);
                continue;
            };
            lock(&self.adopted).blobs += 1;
            self.found.push_back(Commit::LinkBlob {
                repository: name.clone(),
                origin: self.adopt_as.origin(),
                digest: link.digest,
                size,
                upload: None,
                principal: None,
            });
        }
        let manifests = folder.join("_manifests");
        let mut tags = self.tags(&manifests.join("tags"))?;
        for link in self.links(&manifests.join("revisions"))? {
            match self.manifest(&link)? {
                Some((manifest, references)) => {
                    let tags = tags.remove(&link.digest).unwrap_or_default();
                    self.push(name, manifest, references, tags);
                }
                None => self.leave_out(&link.path),
            }
        }
        for _tag_of_nothing in tags.into_values().flatten() {
            self.leave_out(&manifests);
        }
        Ok(())
    }

    fn push(
        &mut self,
        name: &RepositoryName,
        manifest: ManifestRecord,
        references: Vec<ReferenceRecord>,
        tags: Vec<Tag>,
    ) {
        let mut adopted = lock(&self.adopted);
        adopted.manifests += 1;
        adopted.tags += tags.len() as u64;
        // A mirror's tag was confirmed when Distribution stored its manifest; never 0, which would make it one that was pushed.
        let checked_at_ms = match &self.adopt_as {
            AdoptAs::Pushed => 0,
            AdoptAs::Mirrored { .. } => manifest.pushed_at_ms.max(1),
        };
        let moves = tags.into_iter().map(|tag| TagMove {
            tag,
            expected: None,
            set_immutable: false,
            checked_at_ms,
        });
        self.found
            .push_back(Commit::PushManifest(Box::new(PushManifest {
                repository: name.clone(),
                origin: self.adopt_as.origin(),
                manifest,
                references,
                tags: moves.collect(),
                required: Vec::new(),
            })));
    }

    /// A revision's record and what it names; `None` when its bytes are not here, are not what they should be, or are no manifest
    /// that is served here (docker's schema 1).
    fn manifest(
        &self,
        link: &Link,
    ) -> Result<Option<(ManifestRecord, Vec<ReferenceRecord>)>, StorageError> {
        if !self.blobs.name_now(&link.target, &link.digest)? {
            return Ok(None);
        }
        let Some(bytes) = self.blobs.read_now(&link.digest, MAX_MANIFEST_BYTES)? else {
            return Ok(None);
        };
        let Some(manifest) = parse(&bytes) else {
            return Ok(None);
        };
        let references = ReferenceRecord::all_of(&manifest);
        let annotations = serde_json::to_string(&manifest.annotations)
            .map_err(|error| StorageError::new(crate::Kind::Internal, ATTEMPT, error))?;
        let record = ManifestRecord {
            digest: link.digest.clone(),
            media_type: manifest.media_type,
            size: bytes.len() as u64,
            artifact_type: manifest.artifact_type,
            subject: manifest.subject.map(|subject| subject.digest),
            annotations,
            pushed_at_ms: modified_at_ms(&link.path)?,
            pushed_by: PUSHED_BY.to_owned(),
        };
        Ok(Some((record, references)))
    }

    /// What the tags name now.
    fn tags(&self, folder: &Path) -> Result<BTreeMap<Digest, Vec<Tag>>, StorageError> {
        let mut tags: BTreeMap<Digest, Vec<Tag>> = BTreeMap::new();
        for name in entries(folder)? {
            let path = folder.join(&name).join("current").join("link");
            match (name.parse(), target(&path)?) {
                (Ok(tag), Some(digest)) => tags.entry(digest).or_default().push(tag),
                _ => self.leave_out(&path),
            }
        }
        Ok(tags)
    }

    /// The links of a folder `<algorithm>/<hex>/link`.
    fn links(&self, folder: &Path) -> Result<Vec<Link>, StorageError> {
        let mut links = Vec::new();
        for algorithm in entries(folder)? {
            for hex in entries(&folder.join(&algorithm))? {
                let path = folder.join(&algorithm).join(&hex).join("link");
                match (format!("{algorithm}:{hex}").parse(), target(&path)?) {
                    (Ok(digest), Some(target)) => links.push(Link {
                        path,
                        digest,
                        target,
                    }),
                    _ => self.leave_out(&path),
                }
            }
        }
        Ok(links)
    }

    fn leave_out(&self, path: &Path) {
        lock(&self.adopted).skipped += 1;
        tracing::warn!(path = %path.display(), "not adopted: it leads to nothing that can be served");
    }
}

/// A file that makes content part of a repository.
struct Link {
    path: PathBuf,
    /// What clients call the content.
    digest: Digest,
    /// What it is stored under.
    target: Digest,
}

/// A manifest whose bytes may not say what they are: OCI does not ask for `mediaType`, and Distribution keeps no other record.
fn parse(bytes: &[u8]) -> Option<Manifest> {
    match Manifest::parse(None, bytes) {
        Err(ManifestError::Untyped) => [media_type::OCI_MANIFEST, media_type::OCI_INDEX]
            .into_iter()
            .filter_map(|text| text.parse::<MediaType>().ok())
            .find_map(|declared| Manifest::parse(Some(&declared), bytes).ok()),
        parsed => parsed.ok(),
    }
}

/// The names in a folder, sorted; none when there is no such folder.
fn entries(folder: &Path) -> Result<Vec<String>, StorageError> {
    let in_list = |error| StorageError::file(ATTEMPT, folder, error);
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(in_list(error)),
    };
    let mut names = Vec::new();
    for entry in listed {
        // A name that is no text is none of Distribution's.
        names.extend(entry.map_err(in_list)?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// What a link file names; `None` when it is missing, empty or torn.
fn target(path: &Path) -> Result<Option<Digest>, StorageError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.parse().ok()),
        Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(StorageError::file(ATTEMPT, path, error)),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn modified_at_ms(path: &Path) -> Result<u64, StorageError> {
    let modified = fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .map_err(|error| StorageError::file(ATTEMPT, path, error))?;
    let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

const ATTEMPT: &str = "adopt a registry's folder";
/// Distribution does not say who.
const PUSHED_BY: &str = "adopted";
