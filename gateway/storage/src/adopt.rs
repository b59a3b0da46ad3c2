//! Adopts the folder of a Distribution registry: what its repositories link to becomes what ours hold.
//!
//! Happens once, in one transaction, when a folder has repositories and the database knows none. Links that are empty, broken, or lead
//! to nothing are listed and left out, as Distribution treats them as absent; so is what this process may not read, and folders that
//! are links in a circle. A repository with a folder that cannot be read is left out whole. Nothing of Distribution's is changed.
//!
//! What was left out is recorded for the folder, and looked at again at each start: it is adopted when it has become whole, and nothing else
//! is, so that what was deleted or moved here since stays so. Of a folder that was adopted before there was a record, tags are adopted
//! that never existed here, with the manifests they lead to: the tag journal remembers the others.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::UNIX_EPOCH,
};

use gantry_model::{Digest, Document, Form, RepositoryName, Tag, manifest::MAX_MANIFEST_BYTES};
use rustix::io::Errno;

use crate::{
    Commit, CommitError, ContentOrigin, FsBlobStore, ManifestRecord, Named, PushManifest,
    ReferenceRecord, SqliteStore, Stored, TagMove, annotations_in, blocking::lock,
    error::StorageError, fs::Layout,
};

/// Something of the folder that is not adopted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeftOut {
    /// The repository; `None` when the folder's name is none.
    pub repository: Option<RepositoryName>,
    /// `NAME:TAG`, `NAME@DIGEST` of a manifest, `NAME/_layers/DIGEST` of a blob, `NAME/` of a folder with all that is below it, or a path.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// What became of a folder.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Adoption {
    /// What was adopted.
    pub adopted: Adopted,
    /// What was not.
    pub left_out: Vec<LeftOut>,
    /// What a check did not hash for its length, as `NAME/_layers/DIGEST`, and how many bytes it has: the adoption will.
    pub unhashed: Vec<(String, u64)>,
    /// What was adopted without being understood, as `NAME@DIGEST`, and why it is not: policies take it for opaque.
    pub opaque: Vec<(String, String)>,
}

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

    /// The folder of a repository.
    fn folder(&self, name: &RepositoryName) -> Option<String> {
        match self {
            Self::Pushed => Some(name.to_string()),
            Self::Mirrored { prefix, .. } => name.strip_prefix(prefix).map(|it| it.to_string()),
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
    Ok(!metadata.has_repositories().await? && !root_entries(&blobs.repositories())?.is_empty())
}

/// The repositories that a registry's folder has, by their names in it, in order. Folders that cannot be read have none. Blocks.
///
/// # Errors
/// [`StorageError`] when the folder cannot be read to its end.
pub fn repositories_in(root: &Path) -> Result<Vec<RepositoryName>, StorageError> {
    let mut walk = Walk::of(Content::Look(Layout::of(root)), AdoptAs::Pushed);
    let mut names = Vec::new();
    while let Some((folder, _deeply)) = walk.folders.pop() {
        match walk.look_for(&folder) {
            Ok(name) => names.extend(name),
            Err(Unread::LeftOut(_)) => {}
            Err(Unread::Failed(error)) => return Err(error),
        }
    }
    names.sort();
    Ok(names)
}

/// Says what [`adopt`] would make of a registry's folder that was never adopted, and changes nothing. Blocks.
///
/// # Errors
/// [`StorageError`] when the folder cannot be read to its end.
pub fn check_adoption(root: &Path, adopt_as: AdoptAs) -> Result<Adoption, StorageError> {
    let mut walk = Walk::of(Content::Look(Layout::of(root)), adopt_as);
    let shared = walk.shared();
    for commit in &mut walk {
        drop(commit?);
    }
    Ok(shared.into_adoption())
}

/// Repositories and [`LeftOut::what`].
pub(crate) type LeftOutKeys = BTreeSet<(Option<RepositoryName>, String)>;

/// What the database knows of a folder's adoption.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Before {
    /// Nothing, and it knows no repository.
    Nothing,
    /// Nothing, and what it knows is from elsewhere.
    Foreign,
    /// It was adopted when nothing was recorded yet.
    Unrecorded,
    /// It was adopted, and this was left out.
    Recorded(LeftOutKeys),
}

/// Adopts what lies in the folder of `blobs`; `None` when nothing is adopted, because there is nothing, it was adopted already, or the
/// database has repositories from elsewhere.
///
/// # Errors
/// [`StorageError`], and then nothing is adopted.
pub async fn adopt(
    blobs: &FsBlobStore,
    metadata: &SqliteStore,
    adopt_as: AdoptAs,
) -> Result<Option<Adoption>, StorageError> {
    let mut walk = Walk::of(Content::Store(blobs.clone()), adopt_as);
    if root_entries(&walk.root)?.is_empty() {
        return Ok(None);
    }
    let folder = walk.root.canonicalize();
    let folder = folder.map_err(|error| StorageError::file(ATTEMPT, &walk.root, error))?;
    let folder = folder.to_string_lossy().into_owned();
    let before = metadata.adoption_before(&folder).await?;
    match &before {
        Before::Foreign => return Ok(None),
        Before::Recorded(left_out) => walk.only(left_out.clone()),
        Before::Nothing | Before::Unrecorded => {}
    }
    let shared = walk.shared();
    let import = metadata.import(folder, before.clone(), walk, Arc::clone(&shared.left_out));
    let imported = import.await.map_err(|error| match error {
        CommitError::Storage(error) => error,
        refused => StorageError::new(crate::Kind::Internal, ATTEMPT, refused),
    })?;
    let mut adoption = shared.into_adoption();
    let Some(again) = imported else {
        return Ok(None);
    };
    if before != Before::Nothing {
        adoption.adopted = again;
    }
    let is_empty = adoption.adopted == Adopted::default();
    Ok((!is_empty).then_some(adoption))
}

/// The key of a tag in [`LeftOut::what`].
pub(crate) fn tag_key(repository: &RepositoryName, tag: &str) -> String {
    format!("{repository}:{tag}")
}

/// The key of a manifest.
pub(crate) fn manifest_key(repository: &RepositoryName, digest: &Digest) -> String {
    format!("{repository}@{digest}")
}

/// The key of a blob.
pub(crate) fn blob_key(repository: &RepositoryName, digest: &Digest) -> String {
    format!("{repository}/_layers/{digest}")
}

/// The key of a folder and all that is below it.
pub(crate) fn folder_key(repository: &RepositoryName) -> String {
    format!("{repository}/")
}

/// Whether a repository lies in a folder that was left out.
pub(crate) fn is_below_left_out(left_out: &LeftOutKeys, repository: &RepositoryName) -> bool {
    let mut folders = Path::new(repository.as_str()).ancestors();
    folders.any(|folder| {
        let name: Option<RepositoryName> = folder.to_str().and_then(|it| it.parse().ok());
        name.is_some_and(|name| {
            let key = folder_key(&name);
            left_out.contains(&(Some(name), key))
        })
    })
}

/// What a walk tells beside its commits.
#[derive(Clone, Debug, Default)]
struct Shared {
    adopted: Arc<Mutex<Adopted>>,
    left_out: Arc<Mutex<Vec<LeftOut>>>,
    unhashed: Arc<Mutex<Vec<(String, u64)>>>,
    opaque: Arc<Mutex<Vec<(String, String)>>>,
}

impl Shared {
    fn into_adoption(self) -> Adoption {
        Adoption {
            adopted: *lock(&self.adopted),
            left_out: std::mem::take(&mut *lock(&self.left_out)),
            unhashed: std::mem::take(&mut *lock(&self.unhashed)),
            opaque: std::mem::take(&mut *lock(&self.opaque)),
        }
    }
}

/// The content of the folder: of a store that may give it further names, or only looked at.
enum Content {
    Store(FsBlobStore),
    Look(Layout),
}

impl Content {
    fn repositories(&self) -> PathBuf {
        match self {
            Self::Store(blobs) => blobs.repositories(),
            Self::Look(layout) => layout.repositories(),
        }
    }

    /// See [`FsBlobStore::name_now`].
    fn name_now(&self, stored: &Digest, digest: &Digest) -> Result<bool, StorageError> {
        match self {
            Self::Store(blobs) => blobs.name_now(stored, digest),
            Self::Look(layout) => layout.would_name(stored, digest),
        }
    }

    /// The length of content that would have to be hashed for its other digest, where that takes too long for a look.
    fn too_large_to_hash(&self, link: &Link) -> Result<Option<u64>, StorageError> {
        let Self::Look(layout) = self else {
            return Ok(None);
        };
        if link.digest == link.target || layout.size_now(&link.digest)?.is_some() {
            return Ok(None);
        }
        let size = layout.size_now(&link.target)?;
        Ok(size.filter(|size| *size >= MANY_BYTES))
    }

    /// The length of content that `digest` names, or will name when it is adopted.
    fn size_now(&self, link: &Link) -> Result<Option<u64>, StorageError> {
        match self {
            Self::Store(blobs) => blobs.size_now(&link.digest),
            Self::Look(layout) => layout.size_now(&link.target),
        }
    }

    fn read_now(&self, link: &Link) -> Result<Option<Vec<u8>>, StorageError> {
        match self {
            Self::Store(blobs) => blobs.read_now(&link.digest, MAX_MANIFEST_BYTES),
            Self::Look(layout) => layout.read_now(&link.target, MAX_MANIFEST_BYTES),
        }
    }
}

/// The commits that a folder amounts to, found while they are asked for.
struct Walk {
    blobs: Content,
    root: PathBuf,
    adopt_as: AdoptAs,
    /// What is looked at; all of the folder when there is none.
    only: Option<LeftOutKeys>,
    /// Folders to look into, and whether those below them are looked into as well.
    folders: Vec<(PathBuf, bool)>,
    /// How many symbolic links lead to a folder, by its device and inode.
    linked: HashMap<(u64, u64), u32>,
    found: VecDeque<Commit>,
    /// Told here to the caller, who gave the walk away.
    adopted: Arc<Mutex<Adopted>>,
    left_out: Arc<Mutex<Vec<LeftOut>>>,
    unhashed: Arc<Mutex<Vec<(String, u64)>>>,
    opaque: Arc<Mutex<Vec<(String, String)>>>,
}

impl Iterator for Walk {
    type Item = Result<Commit, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(commit) = self.found.pop_front() {
                return Some(Ok(commit));
            }
            let (folder, deeply) = self.folders.pop()?;
            match self.look_into(&folder, deeply) {
                Ok(()) => {}
                Err(Unread::LeftOut(reason)) => self.leave_out_folder(&folder, reason),
                Err(Unread::Failed(error)) => return Some(Err(error)),
            }
        }
    }
}

impl Walk {
    fn of(blobs: Content, adopt_as: AdoptAs) -> Self {
        let root = blobs.repositories();
        let shared = Shared::default();
        Self {
            blobs,
            folders: vec![(root.clone(), true)],
            root,
            adopt_as,
            only: None,
            linked: HashMap::new(),
            found: VecDeque::new(),
            adopted: shared.adopted,
            left_out: shared.left_out,
            unhashed: shared.unhashed,
            opaque: shared.opaque,
        }
    }

    fn shared(&self) -> Shared {
        Shared {
            adopted: Arc::clone(&self.adopted),
            left_out: Arc::clone(&self.left_out),
            unhashed: Arc::clone(&self.unhashed),
            opaque: Arc::clone(&self.opaque),
        }
    }

    /// Looks only at what was left out.
    fn only(&mut self, left_out: LeftOutKeys) {
        self.folders.clear();
        let names: BTreeSet<_> = left_out.iter().flat_map(|(name, _)| name).collect();
        for name in names {
            let deeply = left_out.contains(&(Some(name.clone()), folder_key(name)));
            if let Some(folder) = self.adopt_as.folder(name) {
                self.descend(self.root.join(folder), deeply);
            }
        }
        self.only = Some(left_out);
    }

    /// Whether something of a repository, or the repository, is looked at.
    fn concerns(&self, repository: &RepositoryName, what: &str) -> bool {
        self.only.as_ref().is_none_or(|only| {
            let key = (Some(repository.clone()), what.to_owned());
            only.contains(&key) || is_below_left_out(only, repository)
        })
    }

    /// Will look into a folder, unless it is a link that would not end.
    fn descend(&mut self, folder: PathBuf, deeply: bool) {
        match self.circle(&folder) {
            Some(reason) => self.leave_out_folder(&folder, reason),
            None => self.folders.push((folder, deeply)),
        }
    }

    /// Why a folder that is a symbolic link is not looked into.
    fn circle(&mut self, folder: &Path) -> Option<String> {
        let is_link = fs::symlink_metadata(folder).is_ok_and(|it| it.is_symlink());
        if !is_link {
            return None;
        }
        let place = |path: &Path| fs::metadata(path).ok().map(|it| (it.dev(), it.ino()));
        // Looking into a link that leads nowhere reports it.
        let led_to = place(folder)?;
        let root = self.root.canonicalize().ok();
        let above = root.iter().flat_map(|root| root.ancestors());
        let mut above = folder.ancestors().skip(1).chain(above);
        if let Some(above) = above.find(|above| place(above) == Some(led_to)) {
            return Some(format!(
                "it is a link that leads back to {}",
                above.display()
            ));
        }
        let links = self.linked.entry(led_to).or_default();
        *links += 1;
        (*links > MAX_LINKS).then(|| format!("more than {MAX_LINKS} links lead to its folder"))
    }

    /// The name of the repository that the folder is, if it is one.
    fn look_for(&mut self, folder: &Path) -> Result<Option<RepositoryName>, Unread> {
        let mut is_repository = false;
        for entry in entries(folder)? {
            match entry.as_str() {
                "_layers" | "_manifests" => is_repository = true,
                name if name.starts_with('_') => {}
                name if self.circle(&folder.join(name)).is_some() => {}
                name => self.folders.push((folder.join(name), true)),
            }
        }
        let name = self.relative(folder);
        Ok(self.adopt_as.name(&name).filter(|_| is_repository))
    }

    /// A repository, or a part of the names of some, or both.
    fn look_into(&mut self, folder: &Path, deeply: bool) -> Result<(), Unread> {
        let mut is_repository = false;
        for entry in entries(folder)? {
            match entry.as_str() {
                "_layers" | "_manifests" => is_repository = true,
                name if name.starts_with('_') || !deeply => {}
                name => self.descend(folder.join(name), true),
            }
        }
        if !is_repository {
            return Ok(());
        }
        let name = folder.strip_prefix(&self.root).ok().and_then(Path::to_str);
        match name.and_then(|name| self.adopt_as.name(name)) {
            Some(name) => self.repository(&name, folder),
            None => {
                let what = self.relative(folder);
                self.leave_out(None, what, "its name is none of a repository".to_owned());
                Ok(())
            }
        }
    }

    fn repository(&mut self, name: &RepositoryName, folder: &Path) -> Result<(), Unread> {
        // All of its folders first: one that cannot be read leaves the repository out as a whole.
        let manifests = folder.join("_manifests");
        let layers = self.links(name, &folder.join("_layers"), |digest| {
            self.concerns(name, &blob_key(name, digest))
        })?;
        let tags = self.tags(name, &manifests.join("tags"))?;
        let revisions = self.links(name, &manifests.join("revisions"), |digest| {
            tags.contains_key(digest) || self.concerns(name, &manifest_key(name, digest))
        })?;
        lock(&self.adopted).repositories += 1;
        for link in layers {
            self.layer(name, link)?;
        }
        self.manifests(name, revisions, tags)?;
        // Whoever takes only a part of these has seen a parent when its children come.
        self.found.make_contiguous().sort_by_key(rank);
        Ok(())
    }

    fn layer(&mut self, name: &RepositoryName, link: Link) -> Result<(), StorageError> {
        let size = match unread_content(self.layer_size(name, &link))? {
            Ok(Some(size)) => size,
            Ok(None) => {
                self.leave_out(Some(name), blob_key(name, &link.digest), not_stored(&link));
                return Ok(());
            }
            Err(reason) => {
                self.leave_out(Some(name), blob_key(name, &link.digest), reason);
                return Ok(());
            }
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
        Ok(())
    }

    fn layer_size(&self, name: &RepositoryName, link: &Link) -> Result<Option<u64>, StorageError> {
        if let Some(size) = self.blobs.too_large_to_hash(link)? {
            lock(&self.unhashed).push((blob_key(name, &link.digest), size));
            return Ok(Some(size));
        }
        match self.blobs.name_now(&link.target, &link.digest)? {
            true => self.blobs.size_now(link),
            false => Ok(None),
        }
    }

    fn manifests(
        &mut self,
        name: &RepositoryName,
        revisions: Vec<Link>,
        mut tags: BTreeMap<Digest, Vec<Tag>>,
    ) -> Result<(), StorageError> {
        for link in revisions {
            let tags = tags.remove(&link.digest).unwrap_or_default();
            let reason = match unread_content(self.manifest(name, &link))? {
                Ok(Ok(revision)) => {
                    self.push(name, revision, tags);
                    continue;
                }
                Ok(Err(reason)) | Err(reason) => reason,
            };
            for tag in tags {
                self.leave_out(Some(name), tag_key(name, tag.as_str()), reason.clone());
            }
            self.leave_out(Some(name), manifest_key(name, &link.digest), reason);
        }
        for (digest, tags) in tags {
            let reason = format!("it names {digest}, which is no manifest of the repository");
            for tag in tags {
                self.leave_out(Some(name), tag_key(name, tag.as_str()), reason.clone());
            }
        }
        Ok(())
    }

    fn push(&mut self, name: &RepositoryName, revision: Revision, tags: Vec<Tag>) {
        let mut adopted = lock(&self.adopted);
        adopted.manifests += 1;
        adopted.tags += tags.len() as u64;
        // A mirror's tag was confirmed when Distribution stored its manifest; never 0, which would make it one that was pushed.
        let checked_at_ms = match &self.adopt_as {
            AdoptAs::Pushed => 0,
            AdoptAs::Mirrored { .. } => revision.manifest.pushed_at_ms.max(1),
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
                manifest: revision.manifest,
                annotations: revision.annotations,
                references: revision.references,
                tags: moves.collect(),
                required: Vec::new(),
            })));
    }

    /// A revision, or why its bytes are not here or are not what they should be. What cannot be read
    /// is adopted all the same: the other registry served it.
    fn manifest(
        &self,
        name: &RepositoryName,
        link: &Link,
    ) -> Result<Result<Revision, String>, StorageError> {
        if !self.blobs.name_now(&link.target, &link.digest)? {
            return Ok(Err(not_stored(link)));
        }
        let Some(bytes) = self.blobs.read_now(link)? else {
            let (limit, digest) = (MAX_MANIFEST_BYTES >> 20, &link.digest);
            let reason =
                format!("what is stored as {digest} is damaged, or larger than {limit} MiB");
            return Ok(Err(reason));
        };
        let media_type = Form::adopted_type(&bytes);
        if media_type.is_schema1() {
            let reason = "it is of docker's schema 1, which Gantry does not serve";
            return Ok(Err(reason.to_owned()));
        }
        let document = Document::read(&media_type, &bytes);
        if let Document::Opaque(opaque) = &document {
            let what = (manifest_key(name, &link.digest), opaque.why.to_string());
            lock(&self.opaque).push(what);
        }
        let stored = Stored {
            digest: link.digest.clone(),
            media_type,
            size: bytes.len() as u64,
        };
        let pushed_at_ms = modified_at_ms(&link.path)?;
        Ok(Ok(Revision {
            manifest: ManifestRecord::of(&document, stored, pushed_at_ms, PUSHED_BY.to_owned()),
            annotations: annotations_in(&document),
            references: ReferenceRecord::all_in(&document),
        }))
    }

    /// What the tags name now.
    fn tags(
        &self,
        repository: &RepositoryName,
        folder: &Path,
    ) -> Result<BTreeMap<Digest, Vec<Tag>>, Unread> {
        let mut tags: BTreeMap<Digest, Vec<Tag>> = BTreeMap::new();
        for name in entries(folder)? {
            let path = folder.join(&name).join("current").join("link");
            let what = tag_key(repository, &name);
            if !self.concerns(repository, &what) {
                continue;
            }
            match (name.parse(), target(&path)?) {
                (Ok(tag), Ok(digest)) => tags.entry(digest).or_default().push(tag),
                (Err(_), _) => {
                    let reason = "its name is none of a tag".to_owned();
                    self.leave_out(Some(repository), what, reason);
                }
                (Ok(_), Err(reason)) => self.leave_out(Some(repository), what, reason),
            }
        }
        Ok(tags)
    }

    /// The links of a folder `<algorithm>/<hex>/link`, of the digests that are wanted. A folder without its link is what a deletion
    /// leaves behind.
    fn links(
        &self,
        name: &RepositoryName,
        folder: &Path,
        is_wanted: impl Fn(&Digest) -> bool,
    ) -> Result<Vec<Link>, Unread> {
        let mut found = Vec::new();
        for algorithm in entries(folder)? {
            let names = entries(&folder.join(&algorithm))?.into_iter();
            found.extend(names.map(|hex| (algorithm.clone(), hex)));
        }
        let mut links = Vec::new();
        for (algorithm, hex) in found {
            let path = folder.join(&algorithm).join(&hex).join("link");
            let digest: Option<Digest> = format!("{algorithm}:{hex}").parse().ok();
            let is_skipped = digest.as_ref().is_some_and(|digest| !is_wanted(digest));
            if !is_skipped && !is_deleted(&path) {
                links.extend(self.link(name, folder, digest, path)?);
            }
        }
        Ok(links)
    }

    /// One of them; `None` when it is left out.
    fn link(
        &self,
        name: &RepositoryName,
        folder: &Path,
        digest: Option<Digest>,
        path: PathBuf,
    ) -> Result<Option<Link>, StorageError> {
        let Some(digest) = digest else {
            let reason = "its name is none of a digest".to_owned();
            self.leave_out(Some(name), self.relative(&path), reason);
            return Ok(None);
        };
        match target(&path)? {
            Ok(target) => Ok(Some(Link {
                path,
                digest,
                target,
            })),
            Err(reason) => {
                self.leave_out(Some(name), key(name, folder, &digest), reason);
                Ok(None)
            }
        }
    }

    /// Leaves out a folder with all that is below it.
    fn leave_out_folder(&self, folder: &Path, reason: String) {
        let relative = self.relative(folder);
        match self.adopt_as.name(&relative) {
            Some(name) => self.leave_out(Some(&name), folder_key(&name), reason),
            None => self.leave_out(None, relative, reason),
        }
    }

    fn leave_out(&self, repository: Option<&RepositoryName>, what: String, reason: String) {
        let mut adopted = lock(&self.adopted);
        adopted.skipped += 1;
        match adopted.skipped {
            ..=MOST_WARNINGS => tracing::warn!(what, reason, "not adopted"),
            _ if adopted.skipped == MOST_WARNINGS + 1 => tracing::warn!(
                "more is not adopted; `gantry import --adopt --check FOLDER` lists all of it"
            ),
            _ => {}
        }
        drop(adopted);
        lock(&self.left_out).push(LeftOut {
            repository: repository.cloned(),
            what,
            reason,
        });
    }

    fn relative(&self, path: &Path) -> String {
        let relative = path.strip_prefix(&self.root).unwrap_or(path);
        relative.display().to_string()
    }
}

fn not_stored(link: &Link) -> String {
    format!("{} is not stored", link.target)
}

/// The key of a link in a folder of blobs or of manifests.
fn key(name: &RepositoryName, folder: &Path, digest: &Digest) -> String {
    match folder.ends_with("_layers") {
        true => blob_key(name, digest),
        false => manifest_key(name, digest),
    }
}

/// Why something could not be read.
enum Unread {
    /// Of it alone: it is left out.
    LeftOut(String),
    /// Of the machine, perhaps: nothing is adopted.
    Failed(StorageError),
}

impl From<StorageError> for Unread {
    fn from(error: StorageError) -> Self {
        Self::Failed(error)
    }
}

impl Unread {
    fn of(path: &Path, error: io::Error) -> Self {
        let why = match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => "the gateway's user may not read it",
            Some(Errno::LOOP) => "its links lead in a circle",
            Some(Errno::NAMETOOLONG) => "its path is too long",
            _ => return Self::Failed(StorageError::file(ATTEMPT, path, error)),
        };
        Self::LeftOut(format!("{}: {why}", path.display()))
    }
}

/// What was found of content, or why it is left out.
fn unread_content<T>(found: Result<T, StorageError>) -> Result<Result<T, String>, StorageError> {
    let error = match found {
        Ok(found) => return Ok(Ok(found)),
        Err(error) => error,
    };
    let (path, error) = error.into_file_error()?;
    match Unread::of(&path, error) {
        Unread::LeftOut(reason) => Ok(Err(reason)),
        Unread::Failed(error) => Err(error),
    }
}

/// Blobs before tagged manifests, those before indexes, those before the rest.
fn rank(commit: &Commit) -> u8 {
    match commit {
        Commit::PushManifest(push) if !push.tags.is_empty() => 1,
        Commit::PushManifest(push) => {
            let mut references = push.references.iter();
            let is_index = references.any(|reference| reference.named == Named::Child);
            if is_index { 2 } else { 3 }
        }
        _ => 0,
    }
}

/// A manifest of a repository, with what it names.
struct Revision {
    manifest: ManifestRecord,
    annotations: String,
    references: Vec<ReferenceRecord>,
}

/// A file that makes content part of a repository.
struct Link {
    path: PathBuf,
    /// What clients call the content.
    digest: Digest,
    /// What it is stored under.
    target: Digest,
}

/// The names in a folder, sorted; none when there is no such folder.
fn entries(folder: &Path) -> Result<Vec<String>, Unread> {
    list(folder).map_err(|error| Unread::of(folder, error))
}

/// As [`entries`], of the folder of all repositories, which is not left out.
fn root_entries(root: &Path) -> Result<Vec<String>, StorageError> {
    list(root).map_err(|error| StorageError::file(ATTEMPT, root, error))
}

fn list(folder: &Path) -> io::Result<Vec<String>> {
    let listed = match fs::read_dir(folder) {
        Ok(listed) => listed,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in listed {
        // A name that is no text is none of Distribution's.
        names.extend(entry?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

/// Whether there is no such file, and nothing in its place.
fn is_deleted(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// What a link file names, or why it names nothing: it is missing, empty or torn, or too large, or no file (a pipe would be waited for),
/// or it cannot be read.
fn target(path: &Path) -> Result<Result<Digest, String>, StorageError> {
    let no_link = || Err(format!("{} is missing, empty or torn", path.display()));
    let is_link = fs::metadata(path).map(|it| it.is_file() && it.len() <= MAX_LINK_BYTES);
    let text = match is_link {
        Ok(true) => fs::read_to_string(path),
        Ok(false) => return Ok(no_link()),
        Err(error) => Err(error),
    };
    match text.map_err(|error| (is_no_text(&error), Unread::of(path, error))) {
        Ok(text) => Ok(text.parse().or_else(|_| no_link())),
        Err((true, _)) => Ok(no_link()),
        Err((false, Unread::LeftOut(reason))) => Ok(Err(reason)),
        Err((false, Unread::Failed(error))) => Err(error),
    }
}

fn is_no_text(error: &io::Error) -> bool {
    is_absent(error) || error.kind() == io::ErrorKind::InvalidData
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

/// More than a look hashes; a start says that it will.
pub(crate) const MANY_BYTES: u64 = 1 << 30;
/// Names that symbolic links may give one folder. Without a bound, links beside each other make more paths than there is time to walk.
const MAX_LINKS: u32 = 64;
/// A link file holds a digest; the longest one has 135 bytes.
const MAX_LINK_BYTES: u64 = 256;
const ATTEMPT: &str = "adopt a registry's folder";
/// Lines of the log about what is not adopted.
const MOST_WARNINGS: u64 = 20;
/// Distribution does not say who.
const PUSHED_BY: &str = "adopted";
