//! Decides, once after an upgrade, how repositories came to have what earlier versions stored without saying so.
//!
//! Owns the rule: a mirrored repository keeps what nobody else holds at that moment, as its upstream's; what was pushed stays pushed; the
//! rest loses its link and is fetched again before it is served. Bytes are not touched.

use gantry_model::RepositoryName;
use rusqlite::Connection;

use super::{
    SqliteStore,
    commit::{execute, make_origin},
    failure::Stop,
    read::all,
    row,
};
use crate::{error::StorageError, metadata::ContentOrigin};

/// What the configuration says of a repository's name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NameOwner {
    /// Clients push there, also below a mirror's prefix.
    Hosted,
    /// A mirror's upstream.
    Mirror(ContentOrigin),
    /// No key of the configuration leads to it.
    Unconfigured,
}

/// What was decided.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DecidedOrigins {
    /// Blobs and manifests that count as delivered by their mirror's upstream.
    pub delivered: u64,
    /// Blobs and manifests that count as pushed.
    pub pushed: u64,
    /// Blobs and manifests of mirrors that are fetched again before they are served.
    pub undecided: u64,
}

impl SqliteStore {
    /// Decides about content that an earlier version stored; `None` when there is none, which is always so after the first time.
    ///
    /// # Errors
    /// [`StorageError`]; then nothing is decided.
    pub async fn decide_origins(
        &self,
        owner_of: impl Fn(&RepositoryName) -> NameOwner + Send + 'static,
    ) -> Result<Option<DecidedOrigins>, StorageError> {
        let versions = std::sync::Arc::clone(&self.versions);
        let decide = move |connection: &Connection| {
            let waiting = all(
                connection,
                "SELECT 1 FROM undecided_origins",
                (),
                |_| Ok(()),
            )?;
            if waiting.is_empty() {
                return Ok(None);
            }
            decide(connection, &owner_of).map(Some)
        };
        let decided = move || versions.all_moved();
        self.writer
            .run_then::<_, StorageError>("decide where content came from", decide, decided)
            .await
    }

    /// Whether a repository holds a manifest that was adopted from another registry's folder as pushed.
    ///
    /// # Errors
    /// [`StorageError`].
    pub async fn has_adopted(&self) -> Result<bool, StorageError> {
        let read = |connection: &Connection| {
            let sql = "SELECT 1 FROM manifests m JOIN manifest_origins o \
                ON o.repository = m.repository AND o.digest = m.digest AND o.origin = 0 \
                WHERE m.pushed_by = 'adopted' LIMIT 1";
            Ok(!all(connection, sql, (), |_| Ok(()))?.is_empty())
        };
        self.readers.read("look for adopted manifests", read).await
    }
}

fn decide(
    connection: &Connection,
    owner_of: &impl Fn(&RepositoryName) -> NameOwner,
) -> Result<DecidedOrigins, Stop<StorageError>> {
    name_owners(connection, owner_of)?;
    let mut decided = DecidedOrigins::default();
    let tables = ["blob_links", "manifest_origins"];
    for table in tables {
        let ours = format!("o.repository = {table}.repository");
        let delivered = format!(
            "UPDATE {table} SET origin = (SELECT origin FROM temp.owners o WHERE {ours}) \
            WHERE origin = -1 AND EXISTS (SELECT 1 FROM temp.owners o WHERE {ours} AND o.origin > 0 \
                AND NOT EXISTS (SELECT 1 FROM blob_links b JOIN temp.owners t ON t.repository = b.repository \
                    WHERE b.digest = {table}.digest AND t.origin <> o.origin) \
                AND NOT EXISTS (SELECT 1 FROM manifests m JOIN temp.owners t ON t.repository = m.repository \
                    WHERE m.digest = {table}.digest AND t.origin <> o.origin))"
        );
        decided.delivered += execute(connection, &delivered, ())? as u64;
        let own = match table {
            "blob_links" => "1",
            _ => {
                "(SELECT pushed_by NOT LIKE 'mirror:%' FROM manifests m \
                WHERE m.repository = manifest_origins.repository AND m.digest = manifest_origins.digest)"
            }
        };
        let pushed = format!(
            "UPDATE {table} SET origin = 0 WHERE origin = -1 AND {own} \
            AND EXISTS (SELECT 1 FROM temp.owners o WHERE {ours} AND o.origin = 0)"
        );
        decided.pushed += execute(connection, &pushed, ())? as u64;
    }
    // After both: what loses its link here still counts as held above.
    for table in tables {
        let rest = format!("DELETE FROM {table} WHERE origin = -1");
        decided.undecided += execute(connection, &rest, ())? as u64;
    }
    execute(connection, CLAIM, ())?;
    execute(connection, "DROP TABLE temp.owners", ())?;
    execute(connection, "DELETE FROM undecided_origins", ())?;
    Ok(decided)
}

/// The origin of each repository's content: an upstream's, 0 for what was pushed, -2 for what a mirror left that is not configured now.
fn name_owners(
    connection: &Connection,
    owner_of: &impl Fn(&RepositoryName) -> NameOwner,
) -> Result<(), Stop<StorageError>> {
    let table =
        "CREATE TEMP TABLE owners (repository INTEGER PRIMARY KEY, origin INTEGER NOT NULL)";
    execute(connection, table, ())?;
    let sql = "SELECT r.id, r.name, \
        EXISTS (SELECT 1 FROM manifests WHERE repository = r.id AND pushed_by NOT LIKE 'mirror:%'), \
        EXISTS (SELECT 1 FROM manifests WHERE repository = r.id) FROM repositories r";
    let repositories = all(connection, sql, (), |row| {
        let name: RepositoryName = row::parsed(row, 1)?;
        let (was_pushed, has_manifests): (bool, bool) = (row.get(2)?, row.get(3)?);
        Ok((row.get::<_, i64>(0)?, name, was_pushed, has_manifests))
    })?;
    for (id, name, was_pushed, has_manifests) in repositories {
        let origin = match owner_of(&name) {
            NameOwner::Mirror(origin) if !was_pushed => make_origin(connection, &origin)?,
            NameOwner::Unconfigured if has_manifests && !was_pushed => -2,
            NameOwner::Hosted | NameOwner::Mirror(_) | NameOwner::Unconfigured => 0,
        };
        let sql = "INSERT INTO temp.owners VALUES (?1, ?2)";
        execute(connection, sql, (id, origin))?;
    }
    Ok(())
}

const CLAIM: &str = "UPDATE repositories SET claimed = 1 WHERE EXISTS \
    (SELECT 1 FROM manifest_origins WHERE repository = repositories.id AND origin = 0)";
