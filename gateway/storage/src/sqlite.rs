//! Metadata in an SQLite file (WAL, `synchronous=FULL`): one thread writes, several connections read.
//!
//! `connect` opens files, `migrations` brings them up to date, `writer` groups commits, `commit` and `read` hold the statements,
//! `outbox` the events that wait, `kv` is the second file, for plugins' own data.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use gantry_model::{Digest, Page, RepositoryName, Tag, UploadId, Version};
use tracing::Instrument as _;

use self::{
    connect::{Readers, open_writer},
    failure::Stop,
    migrations::METADATA,
    outbox::Bounds,
    row::int,
    versions::Versions,
    writer::Writer,
};
use crate::{
    adopt::{Adopted, Before, LeftOut},
    blocking::lock,
    error::StorageError,
    metadata::{
        Commit, CommitError, ContentOrigin, ManifestRecord, MetadataStore, ReferenceRecord,
        ReferrerRecord, RepositoryRecord, TagRecord, UploadRecord, UploadSessions,
    },
};

mod adoption;
mod cache;
mod commit;
mod connect;
mod failure;
mod kv;
mod migrations;
mod origins;
mod outbox;
mod read;
mod row;
mod versions;
mod writer;

pub use kv::SqliteKv;
pub use origins::{DecidedOrigins, NameOwner};

/// Metadata and upload sessions in an SQLite file.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: Writer,
    readers: Readers,
    versions: Arc<Versions>,
    outbox: Bounds,
}

impl SqliteStore {
    /// Opens the file, making it when it does not exist, and brings it to this version. Blocks: call it before serving.
    ///
    /// # Errors
    /// [`StorageError`]; [`crate::Kind::Corrupt`] when the file is damaged or is no database, [`crate::Kind::Internal`] when a newer
    /// version or another program wrote it.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let connection = open_writer(path, &METADATA)?;
        outbox::mend(&connection).map_err(failure::in_open)?;
        Ok(Self {
            writer: Writer::start(connection)?,
            readers: Readers::new(path, &METADATA),
            versions: Arc::default(),
            outbox: Bounds::default(),
        })
    }

    /// Whether anything was ever stored.
    pub(crate) async fn has_repositories(&self) -> Result<bool, StorageError> {
        let read = |connection: &_| read::has_repositories(connection);
        self.readers.read("look for repositories", read).await
    }

    /// What is known of the adoption of a registry's folder.
    pub(crate) async fn adoption_before(&self, folder: &str) -> Result<Before, StorageError> {
        let folder = folder.to_owned();
        let read = move |connection: &_| adoption::before(connection, &folder);
        self.readers
            .read("read what was adopted of a folder", read)
            .await
    }

    /// Performs the commits that a folder amounts to in one transaction: all of them, when the store knows no repository yet, or those for
    /// what an earlier adoption left out. Records what is left out still. What was adopted; `None` when the store has got
    /// repositories meanwhile.
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    pub(crate) async fn import(
        &self,
        folder: String,
        before: Before,
        commits: impl Iterator<Item = Result<Commit, StorageError>> + Send + 'static,
        left_out: Arc<Mutex<Vec<LeftOut>>>,
    ) -> Result<Option<Adopted>, CommitError> {
        let (bounds, versions) = (self.outbox.clone(), Arc::clone(&self.versions));
        let import = move |connection: &_| {
            if before == Before::Nothing && read::has_repositories(connection)? {
                return Ok(None);
            }
            let mut choice = adoption::Choice::new(&before);
            for commit in commits {
                let commit = commit.map_err(|error| Stop::Refused(error.into()))?;
                if let Some(commit) = choice.pick(connection, commit)? {
                    commit::apply(connection, &bounds, &commit)?;
                }
            }
            adoption::record(connection, &folder, &before, &lock(&left_out))?;
            Ok(Some(choice.adopted()))
        };
        let imported = move || versions.all_moved();
        self.writer
            .run_then("import repositories", import, imported)
            .await
    }
}

impl SqliteStore {
    /// Tells `observer` how many writes each transaction served and how long it took; the first observer stays. It runs on the
    /// writer's thread.
    pub fn on_commit(&self, observer: impl Fn(usize, Duration) + Send + Sync + 'static) {
        self.writer.observe(OnCommit(Box::new(observer)));
    }
}

/// Who is told of transactions.
struct OnCommit(Box<dyn Fn(usize, Duration) + Send + Sync>);

impl fmt::Debug for OnCommit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("OnCommit")
    }
}

#[async_trait]
impl MetadataStore for SqliteStore {
    async fn repository(
        &self,
        name: &RepositoryName,
    ) -> Result<Option<RepositoryRecord>, StorageError> {
        let name = name.clone();
        let read = move |connection: &_| read::repository(connection, &name);
        self.readers.read("read a repository", read).await
    }

    async fn repositories(&self, page: &Page) -> Result<Vec<RepositoryName>, StorageError> {
        let page = page.clone();
        let read = move |connection: &_| read::repositories(connection, &page);
        self.readers.read("list repositories", read).await
    }

    async fn manifest(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ManifestRecord>, StorageError> {
        let (repository, origin, digest) = (repository.clone(), origin.clone(), digest.clone());
        let read = move |connection: &_| read::manifest(connection, &repository, &origin, &digest);
        self.readers.read("read a manifest's record", read).await
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<TagRecord>, StorageError> {
        let (repository, tag) = (repository.clone(), tag.clone());
        let read = move |connection: &_| read::tag(connection, &repository, &tag);
        self.readers.read("read a tag", read).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        digest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<TagRecord>, StorageError> {
        let (repository, digest, page) = (repository.clone(), digest.cloned(), page.clone());
        let read = move |connection: &_| match digest {
            Some(digest) => read::tags_of(connection, &repository, &digest, &page),
            None => read::tags(connection, &repository, &page),
        };
        self.readers.read("list tags", read).await
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let (repository, origin, subject) = (repository.clone(), origin.clone(), subject.clone());
        let read =
            move |connection: &_| read::referrers(connection, &repository, &origin, &subject);
        self.readers.read("list referrers", read).await
    }

    async fn referrer(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<ReferrerRecord>, StorageError> {
        let (repository, origin, digest) = (repository.clone(), origin.clone(), digest.clone());
        let read = move |connection: &_| read::referrer(connection, &repository, &origin, &digest);
        self.readers.read("read a referrer", read).await
    }

    async fn referrers_after(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        subject: &Digest,
        after: Option<&str>,
        max_bytes: usize,
    ) -> Result<Vec<ReferrerRecord>, StorageError> {
        let place = (repository.clone(), origin.clone());
        let (subject, after) = (subject.clone(), after.unwrap_or_default().to_owned());
        let read = move |connection: &_| {
            read::referrers_after(connection, &place, &subject, &after, max_bytes)
        };
        self.readers.read("list referrers", read).await
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let (repository, origin, digest) = (repository.clone(), origin.clone(), digest.clone());
        let read = move |connection: &_| read::blob(connection, &repository, &origin, &digest);
        self.readers.read("read a blob's link", read).await
    }

    async fn parents(
        &self,
        repository: &RepositoryName,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Vec<(Digest, ReferenceRecord)>, StorageError> {
        let (repository, origin, digest) = (repository.clone(), origin.clone(), digest.clone());
        let read = move |connection: &_| read::parents(connection, &repository, &origin, &digest);
        self.readers.read("list parents", read).await
    }

    async fn delivered(
        &self,
        origin: &ContentOrigin,
        digest: &Digest,
    ) -> Result<Option<u64>, StorageError> {
        let (origin, digest) = (origin.clone(), digest.clone());
        let read = move |connection: &_| read::delivered(connection, &origin, &digest);
        self.readers.read("look for a delivered blob", read).await
    }

    async fn has_pushed(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        principal: &str,
    ) -> Result<bool, StorageError> {
        let (repository, digest) = (repository.clone(), digest.clone());
        let principal = principal.to_owned();
        let read =
            move |connection: &_| read::has_pushed(connection, &repository, &digest, &principal);
        self.readers.read("look for a blob's pusher", read).await
    }

    async fn commit(&self, commit: Commit) -> Result<(), CommitError> {
        let (versions, repository) = (Arc::clone(&self.versions), commit.repository().clone());
        let bounds = self.outbox.clone();
        let apply = move |connection: &_| commit::apply(connection, &bounds, &commit);
        // By the thread that commits: whoever waits here may go away before that.
        let committed = move || versions.moved(&repository);
        let committed = self.writer.run_then("commit", apply, committed);
        committed.instrument(tracing::debug_span!("commit")).await
    }

    async fn version(&self, repository: &RepositoryName) -> Result<Version, StorageError> {
        Ok(Version::Known(self.versions.of(repository)))
    }
}

#[async_trait]
impl UploadSessions for SqliteStore {
    async fn start_upload(&self, record: &UploadRecord) -> Result<(), StorageError> {
        let record = record.clone();
        let start = move |connection: &_| {
            let sql = "INSERT INTO uploads (upload, repository, principal, algorithm, started_at_ms) \
                VALUES (?1, ?2, ?3, ?4, ?5)";
            let columns = (
                record.upload.to_string(),
                record.repository.as_str(),
                &record.principal,
                record.algorithm.as_str(),
                int(record.started_at_ms)?,
            );
            commit::execute(connection, sql, columns)?;
            Ok(())
        };
        self.writer.run("record an upload", start).await
    }

    async fn upload(&self, upload: UploadId) -> Result<Option<UploadRecord>, StorageError> {
        let read = move |connection: &_| read::upload(connection, upload);
        self.readers.read("read an upload", read).await
    }

    async fn end_upload(&self, upload: UploadId) -> Result<(), StorageError> {
        let end = move |connection: &_| Ok(commit::end_upload(connection, &upload.to_string())?);
        self.writer.run("forget an upload", end).await
    }

    async fn stale_uploads(
        &self,
        before_ms: u64,
        limit: usize,
    ) -> Result<Vec<UploadRecord>, StorageError> {
        let before_ms = i64::try_from(before_ms).unwrap_or(i64::MAX);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = move |connection: &_| read::stale_uploads(connection, before_ms, limit);
        self.readers.read("list stale uploads", read).await
    }
}
