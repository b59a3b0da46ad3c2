//! What was adopted of a registry's folder, and the choice of what an adoption that is repeated adds.

use std::collections::BTreeSet;

use gantry_model::{Digest, RepositoryName, Tag};
use rusqlite::Connection;

use super::read::{self, all, one};
use crate::{
    adopt::{Adopted, Before, LeftOut, blob_key, is_below_left_out, manifest_key, tag_key},
    metadata::{Commit, PushManifest},
};

/// What is known of a folder's adoption.
pub(super) fn before(connection: &Connection, folder: &str) -> rusqlite::Result<Before> {
    let sql = "SELECT 1 FROM adoptions WHERE folder = ?1";
    let is_recorded: Option<i64> = one(connection, sql, [folder], |row| row.get(0))?;
    if is_recorded.is_some() {
        let sql = "SELECT repository, what FROM adoption_left_out WHERE folder = ?1";
        let left_out = all(connection, sql, [folder], |row| {
            let repository: Option<String> = row.get(0)?;
            Ok((repository.and_then(|name| name.parse().ok()), row.get(1)?))
        })?;
        return Ok(Before::Recorded(left_out.into_iter().collect()));
    }
    if !read::has_repositories(connection)? {
        return Ok(Before::Nothing);
    }
    let sql = "SELECT 1 FROM manifests WHERE pushed_by = 'adopted' LIMIT 1";
    let was_adopted: Option<i64> = one(connection, sql, [], |row| row.get(0))?;
    Ok(match was_adopted {
        Some(_) => Before::Unrecorded,
        None => Before::Foreign,
    })
}

/// Records what is left out of a folder: all of it the first time, later only what was left out before.
pub(super) fn record(
    connection: &Connection,
    folder: &str,
    before: &Before,
    left_out: &[LeftOut],
) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO adoptions VALUES (?1) ON CONFLICT DO NOTHING",
        [folder],
    )?;
    let mut still = BTreeSet::new();
    for it in left_out {
        let key = (it.repository.clone(), it.what.clone());
        let was = match before {
            Before::Recorded(before) => {
                let mut repositories = it.repository.iter();
                before.contains(&key) || repositories.any(|it| is_below_left_out(before, it))
            }
            Before::Nothing | Before::Foreign | Before::Unrecorded => true,
        };
        if was {
            still.insert(key);
        }
    }
    if let Before::Recorded(before) = before {
        // What belongs to no repository was not looked at again.
        still.extend(before.iter().filter(|(name, _)| name.is_none()).cloned());
    }
    connection.execute("DELETE FROM adoption_left_out WHERE folder = ?1", [folder])?;
    let sql = "INSERT INTO adoption_left_out VALUES (?1, ?2, ?3)";
    let mut insert = connection.prepare_cached(sql)?;
    for (repository, what) in still {
        let repository = repository.as_ref().map(RepositoryName::as_str);
        insert.execute((folder, repository, what))?;
    }
    Ok(())
}

/// Chooses what an adoption adds.
pub(super) struct Choice<'a> {
    before: &'a Before,
    adopted: Adopted,
    repositories: BTreeSet<RepositoryName>,
    /// What the manifests name that this adoption added.
    reached: BTreeSet<(RepositoryName, Digest)>,
    ever_here: Option<BTreeSet<(String, String)>>,
}

impl<'a> Choice<'a> {
    pub(super) fn new(before: &'a Before) -> Self {
        Self {
            before,
            adopted: Adopted::default(),
            repositories: BTreeSet::new(),
            reached: BTreeSet::new(),
            ever_here: None,
        }
    }

    /// How much was chosen.
    pub(super) fn adopted(self) -> Adopted {
        Adopted {
            repositories: self.repositories.len() as u64,
            ..self.adopted
        }
    }

    /// The commit, or the part of it that is to be added.
    pub(super) fn pick(
        &mut self,
        connection: &Connection,
        commit: Commit,
    ) -> rusqlite::Result<Option<Commit>> {
        let picked = match commit {
            Commit::PushManifest(push) => {
                let push = self.pick_manifest(connection, *push)?;
                push.map(|push| Commit::PushManifest(Box::new(push)))
            }
            Commit::LinkBlob { .. } if !self.is_blob_new(&commit) => None,
            other => Some(other),
        };
        if let Some(commit) = &picked {
            self.count(commit);
        }
        Ok(picked)
    }

    fn count(&mut self, commit: &Commit) {
        self.repositories.insert(commit.repository().clone());
        if let Commit::PushManifest(push) = commit {
            self.adopted.manifests += 1;
            self.adopted.tags += push.tags.len() as u64;
        } else {
            self.adopted.blobs += 1;
        }
    }

    fn is_blob_new(&self, commit: &Commit) -> bool {
        match (self.before, commit) {
            (
                Before::Recorded(left_out),
                Commit::LinkBlob {
                    repository, digest, ..
                },
            ) => {
                left_out.contains(&(Some(repository.clone()), blob_key(repository, digest)))
                    || is_below_left_out(left_out, repository)
            }
            (before, _) => *before == Before::Nothing,
        }
    }

    fn pick_manifest(
        &mut self,
        connection: &Connection,
        mut push: PushManifest,
    ) -> rusqlite::Result<Option<PushManifest>> {
        if *self.before == Before::Nothing {
            return Ok(Some(push));
        }
        let repository = push.repository.clone();
        let mut tags = Vec::new();
        for to in push.tags {
            if self.was_left_out(&repository, &tag_key(&repository, to.tag.as_str()))
                && !self.was_here(connection, &repository, &to.tag)?
            {
                tags.push(to);
            }
        }
        push.tags = tags;
        let digest = &push.manifest.digest;
        let is_here = read::manifest(connection, &repository, &push.origin, digest)?.is_some();
        let is_new = match self.before {
            Before::Recorded(left_out) => {
                let key = manifest_key(&repository, digest);
                left_out.contains(&(Some(repository.clone()), key))
                    || is_below_left_out(left_out, &repository)
            }
            _ => self.reached.contains(&(repository.clone(), digest.clone())),
        };
        if push.tags.is_empty() && (is_here || !is_new) {
            return Ok(None);
        }
        // The first adoption brought the manifest, and it was deleted here since: its tag does not bring it back.
        if matches!(self.before, Before::Recorded(_)) && !is_here && !is_new {
            return Ok(None);
        }
        let references = push.references.iter();
        let reached = references.map(|it| (repository.clone(), it.digest.clone()));
        self.reached.extend(reached);
        Ok(Some(push))
    }

    /// The journal has no index by tag, so it is read once.
    fn was_here(
        &mut self,
        connection: &Connection,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> rusqlite::Result<bool> {
        if self.ever_here.is_none() {
            self.ever_here = Some(ever_here(connection)?);
        }
        let key = (repository.to_string(), tag.to_string());
        let known = self.ever_here.as_ref();
        Ok(known.is_some_and(|known| known.contains(&key)))
    }

    fn was_left_out(&self, repository: &RepositoryName, what: &str) -> bool {
        match self.before {
            Before::Recorded(left_out) => {
                left_out.contains(&(Some(repository.clone()), what.to_owned()))
                    || is_below_left_out(left_out, repository)
            }
            _ => true,
        }
    }
}

/// Every tag that was ever here: what was deleted or moved since does not come back.
fn ever_here(connection: &Connection) -> rusqlite::Result<BTreeSet<(String, String)>> {
    let sql = "SELECT DISTINCT repository, tag FROM tag_journal";
    let tags = all(connection, sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(tags.into_iter().collect())
}
