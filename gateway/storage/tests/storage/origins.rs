//! What an upgrade makes of content that earlier versions stored without saying how they came to have it.

use std::path::Path;

use gantry_model::{RepositoryName, media_type::OCI_MANIFEST};
use gantry_storage::{
    ContentOrigin, DecidedOrigins, MetadataStore as _, NameOwner, SqliteStore,
    suite::{
        Checked,
        metadata::{digest, upstream},
    },
};
use rusqlite::Connection;

const STEPS: [&str; 5] = [
    include_str!("../../src/sqlite/migrations/metadata_1.sql"),
    include_str!("../../src/sqlite/migrations/metadata_2.sql"),
    include_str!("../../src/sqlite/migrations/metadata_3.sql"),
    include_str!("../../src/sqlite/migrations/metadata_4.sql"),
    include_str!("../../src/sqlite/migrations/metadata_5.sql"),
];

/// A file as an earlier version made it.
pub(crate) fn old_database(path: &Path, version: u32) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    for step in STEPS.iter().take(version as usize) {
        connection.execute_batch(step)?;
    }
    connection.pragma_update(None, "user_version", version)?;
    connection.pragma_update(None, "application_id", i32::from_be_bytes(*b"Gmet"))?;
    Ok(connection)
}

pub(crate) fn old_repository(old: &Connection, id: i64, name: &str) -> rusqlite::Result<usize> {
    old.execute(
        "INSERT INTO repositories (id, name) VALUES (?1, ?2)",
        (id, name),
    )
}

pub(crate) fn old_manifest(
    old: &Connection,
    (repository, text): (i64, &str),
    media_type: &str,
    by: &str,
) -> rusqlite::Result<usize> {
    old.execute(
        "INSERT INTO manifests VALUES (?1, ?2, ?3, 1, NULL, NULL, '{}', 1000, ?4)",
        (repository, digest(text).as_str(), media_type, by),
    )
}

fn old_blob(old: &Connection, repository: i64, text: &str) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO blob_links VALUES (?1, ?2, 7)";
    old.execute(sql, (repository, digest(text).as_str()))
}

fn elsewhere() -> ContentOrigin {
    ContentOrigin::Upstream("https://elsewhere.test".into())
}

fn owner_of(name: &RepositoryName) -> NameOwner {
    match name.as_str().split('/').next() {
        Some("apps" | "layered") => NameOwner::Hosted,
        Some("hub") => NameOwner::Mirror(upstream()),
        Some("quay") => NameOwner::Mirror(elsewhere()),
        _ => NameOwner::Unconfigured,
    }
}

/// Repositories of an old database, with their blobs and their manifests' pushers: `own` is nobody else's, `shared` is also elsewhere.
#[expect(clippy::type_complexity, reason = "a table")]
const REPOSITORIES: [(&str, &[&str], &[(&str, &str)]); 8] = [
    ("apps/web", &["secret", "hosted"], &[("app", "alice")]),
    (
        "hub/app",
        &["secret", "base", "own", "app"],
        &[("image", "mirror:hub"), ("app", "mirror:hub")],
    ),
    ("hub/twin", &["own"], &[]),
    (
        "quay/app",
        &["base", "theirs"],
        &[("theirs", "mirror:quay")],
    ),
    (
        "layered/app",
        &["pushed"],
        &[("cached", "mirror:hub"), ("mine", "alice")],
    ),
    ("layered/cold", &["cold"], &[("cool", "mirror:hub")]),
    ("former/app", &["gone"], &[("gone", "mirror:former")]),
    ("lost/app", &["kept"], &[("kept", "alice")]),
];

#[expect(
    clippy::unused_async,
    reason = "its callers await what the store will do"
)]
async fn upgraded(path: &Path) -> Result<SqliteStore, Box<dyn std::error::Error + Send + Sync>> {
    let old = old_database(path, 5)?;
    for (id, (name, blobs, manifests)) in (1..).zip(REPOSITORIES) {
        old_repository(&old, id, name)?;
        for blob in blobs {
            old_blob(&old, id, blob)?;
        }
        for (text, by) in manifests {
            old_manifest(&old, (id, text), OCI_MANIFEST, by)?;
        }
    }
    drop(old);
    Ok(SqliteStore::open(path)?)
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table, or a story told in order")]
async fn an_upgrade_gives_a_mirror_only_what_nobody_else_holds() -> Checked {
    let folder = tempfile::tempdir()?;
    let store = upgraded(&folder.path().join("metadata.sqlite")).await?;
    let decided = store.decide_origins(owner_of).await?;
    let expected = DecidedOrigins {
        delivered: 5,
        pushed: 8,
        undecided: 9,
    };
    assert_eq!(decided, Some(expected));
    let (pushed, hub, quay) = (&ContentOrigin::Pushed, &upstream(), &elsewhere());
    for (repository, blob, by) in [
        ("apps/web", "secret", Some(pushed)),
        ("apps/web", "hosted", Some(pushed)),
        ("hub/app", "secret", None),
        ("hub/app", "base", None),
        ("hub/app", "app", None),
        ("hub/app", "own", Some(hub)),
        ("hub/twin", "own", Some(hub)),
        ("quay/app", "base", None),
        ("quay/app", "theirs", Some(quay)),
        ("layered/app", "pushed", Some(pushed)),
        ("layered/cold", "cold", Some(pushed)),
        ("former/app", "gone", None),
        ("lost/app", "kept", Some(pushed)),
    ] {
        for origin in [pushed, hub, quay] {
            let size = store
                .blob(&repository.parse()?, origin, &digest(blob))
                .await?;
            let expected = (by == Some(origin)).then_some(7);
            assert_eq!(size, expected, "{repository} {blob} {origin:?}");
        }
    }
    for (repository, text, by) in [
        ("apps/web", "app", Some(pushed)),
        ("hub/app", "image", Some(hub)),
        ("hub/app", "app", None),
        ("quay/app", "theirs", Some(quay)),
        ("layered/app", "cached", None),
        ("layered/app", "mine", Some(pushed)),
        ("layered/cold", "cool", None),
        ("lost/app", "kept", Some(pushed)),
    ] {
        for origin in [pushed, hub, quay] {
            let record = store
                .manifest(&repository.parse()?, origin, &digest(text))
                .await?;
            assert_eq!(
                record.is_some(),
                by == Some(origin),
                "{repository} {text} {origin:?}"
            );
        }
    }
    for (repository, claimed) in [
        ("apps/web", true),
        ("layered/app", true),
        ("layered/cold", false),
        ("hub/app", false),
    ] {
        let record = store.repository(&repository.parse()?).await?;
        assert_eq!(record.map(|it| it.claimed), Some(claimed), "{repository}");
    }
    Ok(())
}

#[tokio::test]
async fn an_upgrade_decides_once() -> Checked {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("metadata.sqlite");
    let store = upgraded(&path).await?;
    assert!(store.decide_origins(owner_of).await?.is_some());
    drop(store);
    let store = SqliteStore::open(&path)?;
    // Another configuration changes nothing any more.
    let decided = store
        .decide_origins(|_| NameOwner::Mirror(upstream()))
        .await?;
    assert_eq!(decided, None);
    let secret = store
        .blob(&"hub/app".parse()?, &upstream(), &digest("secret"))
        .await?;
    assert_eq!(secret, None);
    Ok(())
}

#[tokio::test]
async fn a_new_database_has_nothing_to_decide() -> Checked {
    let folder = tempfile::tempdir()?;
    let store = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    assert_eq!(store.decide_origins(owner_of).await?, None);
    Ok(())
}
