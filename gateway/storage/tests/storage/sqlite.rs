//! Metadata and values in SQLite files: the suite, the journal, what a reopened file shows, and files that are refused.

use std::{error::Error, fs, path::Path, sync::Arc, time::Instant};

use gantry_model::{Page, RepositoryName, Tag, media_type};
use gantry_storage::{
    Commit, ContentOrigin, KeyValueStore, Kind, MetadataStore, NameOwner, Named, SqliteKv,
    SqliteStore, StorageError, UploadSessions,
    kv::{KvPut, KvWrite},
    naming,
    suite::{
        Checked,
        metadata::{Stores, digest, push, push_tag},
    },
};
use rusqlite::Connection;
use tempfile::TempDir;

mod metadata {
    use super::{Arc, SqliteStore, Stores, TempDir};

    gantry_storage::metadata_suite! { make }

    fn make() -> (TempDir, Stores) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap();
        (folder, Stores::new(Arc::new(store)))
    }
}

mod outbox {
    use super::{Arc, SqliteStore, TempDir};

    gantry_storage::outbox_suite! { make }

    fn make() -> (TempDir, Arc<SqliteStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("metadata.sqlite")).unwrap();
        (folder, Arc::new(store))
    }
}

mod kv {
    use super::{Arc, KeyValueStore, SqliteKv, TempDir};

    gantry_storage::kv_suite! { make }

    fn make() -> (TempDir, Arc<dyn KeyValueStore>) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteKv::open(&folder.path().join("kv.sqlite")).unwrap();
        (folder, Arc::new(store))
    }
}

async fn push_to(store: &SqliteStore, text: &str, tag: &Tag, expected: Option<&str>) -> Checked {
    let push = push_tag(&"apps/web".parse()?, text, 1_000, tag, expected)?;
    store.commit(Commit::PushManifest(Box::new(push))).await?;
    Ok(())
}

#[tokio::test]
async fn a_reopened_file_keeps_everything() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("deep/er/metadata.sqlite");
    let (name, tag): (RepositoryName, Tag) = ("apps/web".parse()?, "v1".parse()?);
    let before = {
        let store = SqliteStore::open(&path)?;
        push_to(&store, "m", &tag, None).await?;
        let manifest = store
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?;
        (manifest, store.tag(&name, &tag).await?)
    };
    let store = SqliteStore::open(&path)?;
    let manifest = store
        .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
        .await?;
    assert!(manifest.is_some());
    assert_eq!((manifest, store.tag(&name, &tag).await?), before);
    Ok(())
}

#[tokio::test]
async fn a_reopened_file_keeps_values_and_versions() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("kv.sqlite");
    let put = KvPut {
        bucket: "b",
        key: "k",
        value: b"v",
        expected: None,
        expires_at_ms: Some(5_000),
        now_ms: 1_000,
        max_bytes: None,
    };
    let version = |written| match written {
        KvWrite::Written(version) => Some(version),
        KvWrite::Lost | KvWrite::Full => None,
    };
    let store = SqliteKv::open(&path)?;
    let first = version(store.put(put).await?);
    let used = store.used_bytes("b").await?;
    drop(store);
    // What a bucket takes is counted anew: a damaged count locks nobody out and lets nobody exceed.
    Connection::open(&path)?.execute("UPDATE usage SET bytes = -1000000", [])?;
    let store = SqliteKv::open(&path)?;
    assert_eq!(store.used_bytes("b").await?, used);
    let entry = store.get("b", "k", 1_000).await?.unwrap();
    assert_eq!(
        (Some(entry.version), entry.expires_at_ms),
        (first, Some(5_000))
    );
    assert!(version(store.put(put).await?) > first);
    Ok(())
}

#[tokio::test]
async fn every_change_of_a_tag_is_in_the_journal_and_stays_there() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let store = SqliteStore::open(&path)?;
    let tag: Tag = "v1".parse()?;
    push_to(&store, "m", &tag, None).await?;
    push_to(&store, "m", &tag, Some("m")).await?;
    push_to(&store, "n", &tag, Some("m")).await?;
    assert!(push_to(&store, "o", &tag, Some("m")).await.is_err());
    let kept: Tag = "kept".parse()?;
    push_to(&store, "m", &kept, None).await?;
    let mut mark = push_tag(&"apps/web".parse()?, "m", 3_000, &kept, Some("m"))?;
    mark.tags[0].set_immutable = true;
    store.commit(Commit::PushManifest(Box::new(mark))).await?;
    let gone = Commit::DeleteManifest {
        repository: "apps/web".parse()?,
        digest: digest("n"),
        tags: vec![tag],
        at_ms: 9_000,
        by: "deleter".to_owned(),
    };
    store.commit(gone).await?;

    let connection = Connection::open(&path)?;
    let columns = "coalesce(digest, '-'), coalesce(previous, '-'), immutable, at_ms, by";
    let sql = format!("SELECT {columns} FROM tag_journal ORDER BY sequence");
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], |row| {
        let digests: (String, String) = (row.get(0)?, row.get(1)?);
        Ok((digests, row.get(2)?, row.get(3)?, row.get(4)?))
    })?;
    let found: Vec<((String, String), bool, u64, String)> = rows
        .map(|row| row.map(|(digests, mark, at, by)| (digests, mark, at_ms(at), by)))
        .collect::<Result<_, _>>()?;
    let [m, n] = ["m", "n"].map(|text| digest(text).to_string());
    let row = |now: &str, before: &str, mark, at, by: &str| {
        ((now.to_owned(), before.to_owned()), mark, at, by.to_owned())
    };
    let expected = [
        row(&m, "-", false, 1_000, "pusher at 1000"),
        row(&n, &m, false, 1_000, "pusher at 1000"),
        row(&m, "-", false, 1_000, "pusher at 1000"),
        row(&m, &m, true, 3_000, "pusher at 3000"),
        row("-", &n, false, 9_000, "deleter"),
    ];
    assert_eq!(found, expected);
    for change in ["DELETE FROM tag_journal", "UPDATE tag_journal SET by = ''"] {
        let refused = connection.execute(change, []).unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{refused}");
    }
    Ok(())
}

fn at_ms(number: i64) -> u64 {
    number.unsigned_abs()
}

fn refusal(path: &Path) -> StorageError {
    let error = SqliteStore::open(path).unwrap_err();
    let shown = error.to_string();
    assert!(!shown.contains(path.to_str().unwrap()), "{shown}");
    error
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    fs::write(&path, "this is a letter, not a database".repeat(200))?;
    let error = refusal(&path);
    assert_eq!(error.kind(), Kind::Corrupt);
    let expected = "cannot open the database: the file is damaged or is no database";
    assert_eq!(error.to_string(), expected);
    Ok(())
}

#[tokio::test]
async fn a_file_with_damaged_pages_is_refused() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let store = SqliteStore::open(&path)?;
    for number in 0..200 {
        push_to(&store, "m", &format!("v{number}").parse()?, None).await?;
    }
    drop(store);
    let connection = Connection::open(&path)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(()))?;
    drop(connection);
    let mut bytes = fs::read(&path)?;
    let pages = bytes.len() / 4096;
    for page in 2..pages {
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
    }
    fs::write(&path, bytes)?;
    let error = refusal(&path);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("damaged"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_and_left_alone() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    drop(SqliteStore::open(&path)?);
    Connection::open(&path)?.pragma_update(None, "user_version", 99)?;
    let error = refusal(&path);
    assert_eq!(error.kind(), Kind::Internal);
    assert!(error.to_string().contains("newer version"), "{error}");
    let source = error.source().unwrap().to_string();
    assert!(source.contains("99"), "{source}");
    let version: u32 =
        Connection::open(&path)?.pragma_query_value(None, "user_version", |row| row.get(0))?;
    assert_eq!(version, 99);
    Ok(())
}

#[tokio::test]
async fn what_an_earlier_version_stored_is_a_child_in_an_index_and_a_blob_elsewhere() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let old = super::origins::old_database(&path, 4)?;
    let name: RepositoryName = "apps/web".parse()?;
    super::origins::old_repository(&old, 1, "apps/web")?;
    for (text, media_type) in [
        ("image", media_type::OCI_MANIFEST),
        ("index", media_type::OCI_INDEX),
    ] {
        super::origins::old_manifest(&old, (1, text), media_type, "alice")?;
        old.execute(
            "INSERT INTO manifest_references VALUES (1, ?1, ?2, 'application/x.any', 1)",
            (digest(text).as_str(), digest("content").as_str()),
        )?;
    }
    drop(old);
    let store = SqliteStore::open(&path)?;
    store.decide_origins(|_| NameOwner::Hosted).await?;
    let parents = store
        .parents(&name, &ContentOrigin::Pushed, &digest("content"))
        .await?;
    assert_eq!(naming(parents.clone(), Named::Blob), [digest("image")]);
    assert_eq!(naming(parents, Named::Child), [digest("index")]);
    Ok(())
}

#[tokio::test]
async fn files_of_others_are_refused() -> Checked {
    let folder = tempfile::tempdir()?;
    let theirs = folder.path().join("theirs.sqlite");
    Connection::open(&theirs)?.execute_batch("CREATE TABLE theirs (a)")?;
    let values = folder.path().join("kv.sqlite");
    drop(SqliteKv::open(&values)?);
    for path in [theirs, values] {
        let error = refusal(&path);
        assert!(error.to_string().contains("another program"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn the_files_are_its_owners_to_write_and_its_groups_to_read() -> Checked {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let store = SqliteStore::open(&path)?;
    push_to(&store, "m", &"v1".parse()?, None).await?;
    for file in super::folder::files(folder.path()) {
        let mode = fs::metadata(&file)?.permissions().mode();
        assert_eq!(mode & 0o137, 0, "{}", file.display());
    }
    Ok(())
}

#[tokio::test]
async fn ten_thousand_tags_page_quickly() -> Checked {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let name: RepositoryName = "apps/web".parse()?;
    for chunk in 0..10_000 / 500 {
        let mut many = push(&name, "m", 1_000)?;
        for number in 0..500 {
            let tag = format!("v{:05}", chunk * 500 + number).parse()?;
            many.tags
                .extend(push_tag(&name, "m", 1_000, &tag, None)?.tags);
        }
        store.commit(Commit::PushManifest(Box::new(many))).await?;
    }
    let started = Instant::now();
    let mut walked: Vec<String> = Vec::new();
    loop {
        let page = Page {
            limit: Some(100),
            after: walked.last().cloned(),
        };
        let tags = store.tags(&name, None, &page).await?;
        if tags.is_empty() {
            break;
        }
        walked.extend(tags.into_iter().map(|record| record.tag.to_string()));
    }
    let took = started.elapsed();
    assert_eq!(walked.len(), 10_000);
    assert!(walked.is_sorted());
    // A page that looked at all tags would take a hundred times as long as one that looks at its own.
    assert!(took.as_secs() < 5, "{took:?}");
    Ok(())
}

#[tokio::test]
async fn concurrent_commits_share_transactions() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let store = Arc::new(SqliteStore::open(&path)?);
    let commits = (0..2_000).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let tag = format!("v{number}").parse()?;
            push_to(&store, "m", &tag, None).await
        })
    });
    for done in futures_util::future::join_all(commits).await {
        done??;
    }
    let count: u32 =
        Connection::open(&path)?
            .query_row("SELECT count(*) FROM tag_journal", [], |row| row.get(0))?;
    assert_eq!(count, 2_000);
    Ok(())
}

#[tokio::test]
async fn a_number_beyond_the_databases_is_refused_and_changes_nothing() -> Checked {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let name: RepositoryName = "apps/web".parse()?;
    let huge = Commit::LinkBlob {
        repository: name.clone(),
        origin: ContentOrigin::Pushed,
        principal: None,
        digest: digest("b"),
        size: u64::MAX,
        upload: None,
    };
    assert!(store.commit(huge).await.is_err());
    assert_eq!(store.repository(&name).await?, None);
    assert_eq!(store.stale_uploads(u64::MAX, usize::MAX).await?, []);
    Ok(())
}
