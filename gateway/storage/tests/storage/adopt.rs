//! A folder that another registry wrote is adopted whole or not at all, and once.

use std::{fs, path::Path};

use gantry_model::{Algorithm, Digest, Page};
use gantry_storage::{
    AdoptAs, Adopted, BlobStore as _, Commit, ContentOrigin, FsBlobStore, MetadataStore as _,
    SqliteStore, adopt, check_adoption, digest_of, repositories_in, suite::Checked,
};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/x.c","digest":"CONFIG","size":2},"layers":[]}"#;

fn write(path: &Path, text: &str) -> Checked {
    fs::create_dir_all(path.parent().ok_or("a folder")?)?;
    fs::write(path, text)?;
    Ok(())
}

fn store_blob(root: &Path, text: &str) -> Result<Digest, Box<dyn std::error::Error + Send + Sync>> {
    let digest = digest_of(Algorithm::Sha256, text.as_bytes());
    let shelf: String = digest.hex().chars().take(2).collect();
    let blobs = root.join("docker/registry/v2/blobs/sha256");
    write(&blobs.join(shelf).join(digest.hex()).join("data"), text)?;
    Ok(digest)
}

/// An image with a config and no layers, whose manifest does not say what it is, under the tag `v1`.
fn store_image(root: &Path, repository: &str) -> Checked {
    let config = store_blob(root, "{}")?;
    let manifest = store_blob(root, &MANIFEST.replace("CONFIG", config.as_str()))?;
    let folder = root
        .join("docker/registry/v2/repositories")
        .join(repository);
    let link = |part: &str, digest: &Digest| {
        let path = folder.join(part).join("sha256").join(digest.hex());
        write(&path.join("link"), digest.as_str())
    };
    link("_layers", &config)?;
    link("_manifests/revisions", &manifest)?;
    let tag = folder.join("_manifests/tags/v1/current/link");
    write(&tag, manifest.as_str())
}

#[tokio::test]
async fn a_folder_is_adopted_once_and_what_leads_in_a_circle_is_left_out() -> Checked {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir()?;
    for repository in ["a/b", "a", "z"] {
        store_image(folder.path(), repository)?;
    }
    let repositories = folder.path().join("docker/registry/v2/repositories");
    let strange = repositories.join("a/_manifests/tags/strange/current/link");
    fs::create_dir_all(strange.parent().ok_or("a folder")?)?;
    symlink(&strange, &strange)?;
    for (name, target) in [
        ("a/up", ".."),
        ("a/other", "../a"),
        ("itself", "itself"),
        ("machine", "/"),
        ("alias", "z"),
    ] {
        symlink(target, repositories.join(name))?;
    }
    let before = check_adoption(folder.path(), AdoptAs::Pushed)?;
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!(before, adoption);
    let expected = Adopted {
        repositories: 4,
        manifests: 4,
        tags: 4,
        blobs: 4,
        skipped: 5,
    };
    assert_eq!(adoption.adopted, expected, "{:?}", adoption.left_out);
    let mut what: Vec<&str> = adoption.left_out.iter().map(|it| &*it.what).collect();
    what.sort_unstable();
    assert_eq!(
        what,
        ["a/other/", "a/up/", "a:strange", "itself/", "machine/"]
    );
    let names = metadata.repositories(&Page::default()).await?;
    let expected = ["a", "a/b", "alias", "z"].map(|name| name.parse().unwrap());
    assert_eq!(names, expected);
    assert!(metadata.tag(&"z".parse()?, &"v1".parse()?).await?.is_some());
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);

    // A folder that was left out is adopted when it is one, with what is below it; what was made elsewhere since is not.
    fs::remove_file(repositories.join("itself"))?;
    for repository in ["itself/deep/er", "itself", "later"] {
        store_image(folder.path(), repository)?;
    }
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    let adopted = &adoption.adopted;
    assert_eq!((adopted.repositories, adopted.tags), (2, 2));
    assert_eq!((adopted.manifests, adopted.blobs), (2, 2));
    let deeper = "itself/deep/er".parse()?;
    assert!(metadata.tag(&deeper, &"v1".parse()?).await?.is_some());
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);
    Ok(())
}

#[test]
fn links_beside_each_other_do_not_make_more_paths_than_there_is_time_for() -> Checked {
    let folder = tempfile::tempdir()?;
    store_image(folder.path(), "f40")?;
    let repositories = folder.path().join("docker/registry/v2/repositories");
    for number in 0..40 {
        let from = repositories.join(format!("f{number}"));
        fs::create_dir_all(&from)?;
        for side in ["l", "r"] {
            let next = repositories.join(format!("f{}", number + 1));
            std::os::unix::fs::symlink(next, from.join(side))?;
        }
    }
    let adoption = check_adoption(folder.path(), AdoptAs::Pushed)?;
    assert!((1..100).contains(&adoption.adopted.repositories));
    assert!(adoption.left_out[0].reason.contains("links lead to"));
    Ok(())
}

#[tokio::test]
async fn links_to_content_that_is_missing_or_other_are_left_out() -> Checked {
    let folder = tempfile::tempdir()?;
    for repository in ["whole", "damaged"] {
        store_image(folder.path(), repository)?;
    }
    let missing = digest_of(Algorithm::Sha256, b"missing");
    let other = digest_of(Algorithm::Sha512, b"other");
    let config = digest_of(Algorithm::Sha256, b"{}");
    let layers = "docker/registry/v2/repositories/damaged/_layers";
    let layers = folder.path().join(layers);
    for (digest, target) in [(&missing, &missing), (&other, &config)] {
        let algorithm = layers.join(digest.algorithm().as_str());
        write(&algorithm.join(digest.hex()).join("link"), target.as_str())?;
    }
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let before = check_adoption(folder.path(), AdoptAs::Pushed)?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!(before, adoption, "also content of another digest");
    let adopted = adoption.adopted;
    assert_eq!((adopted.blobs, adopted.skipped), (2, 2));
    let damaged = "damaged".parse()?;
    assert_eq!(
        metadata
            .blob(&damaged, &ContentOrigin::Pushed, &config)
            .await?,
        Some(2)
    );
    assert_eq!(
        metadata
            .blob(&damaged, &ContentOrigin::Pushed, &missing)
            .await?,
        None
    );
    assert_eq!(
        metadata
            .blob(&damaged, &ContentOrigin::Pushed, &other)
            .await?,
        None
    );
    let staged = folder.path().join("docker/registry/_gantry/uploads");
    assert_eq!(fs::read_dir(staged)?.count(), 0);
    Ok(())
}

#[tokio::test]
async fn what_is_no_plain_file_is_left_out_and_never_waited_for() -> Checked {
    let folder = tempfile::tempdir()?;
    for repository in ["whole", "odd"] {
        store_image(folder.path(), repository)?;
    }
    let root = folder.path().join("docker/registry/v2/repositories/odd");
    let outside = folder.path().join("outside");
    fs::write(&outside, "a file of the machine")?;
    let pipe = |path: &Path| -> Checked {
        fs::create_dir_all(path.parent().ok_or("a folder")?)?;
        let made = std::process::Command::new("mkfifo").arg(path).status()?;
        assert!(made.success());
        Ok(())
    };
    let link_of = |digest: &Digest, kind: &str| root.join(kind).join("sha256").join(digest.hex());
    let digest = |text: &str| digest_of(Algorithm::Sha256, text.as_bytes());
    // Links that are no files, or far too large for one.
    pipe(&link_of(&digest("pipe"), "_layers").join("link"))?;
    fs::create_dir_all(link_of(&digest("folder"), "_layers").join("link"))?;
    pipe(&root.join("_manifests/tags/pipe/current/link"))?;
    let large = link_of(&digest("large"), "_layers").join("link");
    write(&large, &"x".repeat(10_000))?;
    // Content that is a pipe, and content that is a file elsewhere.
    for (text, kind) in [("a pipe", "_manifests/revisions"), ("elsewhere", "_layers")] {
        let digest = digest(text);
        write(&link_of(&digest, kind).join("link"), digest.as_str())?;
        let path = data(folder.path(), &digest);
        match kind {
            "_layers" => {
                fs::create_dir_all(path.parent().ok_or("a folder")?)?;
                std::os::unix::fs::symlink(&outside, &path)?;
            }
            _ => pipe(&path)?,
        }
    }
    let before = check_adoption(folder.path(), AdoptAs::Pushed)?;
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!(before, adoption);
    assert_eq!((adoption.adopted.tags, adoption.adopted.skipped), (2, 6));
    let elsewhere = blobs.stat(&digest("elsewhere")).await?;
    assert_eq!(elsewhere, None);
    Ok(())
}

/// The path of a stored blob.
fn data(root: &Path, digest: &Digest) -> std::path::PathBuf {
    let shelf: String = digest.hex().chars().take(2).collect();
    root.join("docker/registry/v2/blobs/sha256")
        .join(shelf)
        .join(digest.hex())
        .join("data")
}

async fn delete_tag(metadata: &SqliteStore, tag: &str, expected: &Digest) -> Checked {
    let delete = Commit::DeleteTag {
        repository: "a".parse()?,
        tag: tag.parse()?,
        expected: expected.clone(),
        at_ms: 1,
        by: "user:alice".to_owned(),
    };
    Ok(metadata.commit(delete).await?)
}

#[tokio::test]
async fn what_was_left_out_is_adopted_when_it_is_whole_and_nothing_comes_back() -> Checked {
    let folder = tempfile::tempdir()?;
    store_image(folder.path(), "a")?;
    store_image(folder.path(), "z")?;
    let tags = "docker/registry/v2/repositories/a/_manifests/tags";
    let tags = folder.path().join(tags);
    let manifest: Digest = fs::read_to_string(tags.join("v1/current/link"))?.parse()?;
    let (file, away) = (data(folder.path(), &manifest), folder.path().join("away"));
    fs::rename(&file, &away)?;
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let checked = check_adoption(folder.path(), AdoptAs::Pushed)?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!(checked, adoption);
    let what: Vec<&str> = adoption.left_out.iter().map(|it| &*it.what).collect();
    assert!(what.contains(&"a:v1") && what.contains(&"z:v1"), "{what:?}");
    assert!(adoption.left_out[0].reason.ends_with("is not stored"));
    assert_eq!(
        adopt(&blobs, &metadata, AdoptAs::Pushed).await?,
        None,
        "still away"
    );

    fs::rename(&away, &file)?;
    // Made by the other registry since: no part of what was left out.
    write(&tags.join("later/current/link"), manifest.as_str())?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    let expected = Adopted {
        repositories: 2,
        manifests: 2,
        tags: 2,
        blobs: 0,
        skipped: 0,
    };
    assert_eq!(adoption.adopted, expected);
    let a = "a".parse()?;
    assert!(metadata.tag(&a, &"v1".parse()?).await?.is_some());
    assert_eq!(metadata.tag(&a, &"later".parse()?).await?, None);
    delete_tag(&metadata, "v1", &manifest).await?;
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);
    assert_eq!(metadata.tag(&a, &"v1".parse()?).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_tag_that_became_whole_does_not_bring_back_a_manifest_that_was_deleted_here() -> Checked {
    let folder = tempfile::tempdir()?;
    store_image(folder.path(), "a")?;
    let tags = "docker/registry/v2/repositories/a/_manifests/tags";
    let link = folder.path().join(tags).join("v1/current/link");
    let manifest: Digest = fs::read_to_string(&link)?.parse()?;
    write(&link, "torn")?;
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!((adoption.adopted.tags, adoption.adopted.manifests), (0, 1));
    let delete = Commit::DeleteManifest {
        repository: "a".parse()?,
        digest: manifest.clone(),
        tags: Vec::new(),
        at_ms: 1,
        by: "user:alice".to_owned(),
    };
    metadata.commit(delete).await?;
    write(&link, manifest.as_str())?;
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);
    let a = "a".parse()?;
    assert_eq!(metadata.tag(&a, &"v1".parse()?).await?, None);
    let pushed = &ContentOrigin::Pushed;
    assert_eq!(metadata.manifest(&a, pushed, &manifest).await?, None);
    Ok(())
}

#[tokio::test]
async fn what_was_deleted_in_the_other_registry_is_not_left_out_and_schema_1_is() -> Checked {
    let folder = tempfile::tempdir()?;
    store_image(folder.path(), "a")?;
    let repositories = folder.path().join("docker/registry/v2/repositories");
    for part in ["_layers", "_manifests/revisions"] {
        let deleted = format!("a/{part}/sha256/{}", "0".repeat(64));
        fs::create_dir_all(repositories.join(deleted))?;
    }
    let schema1 = r#"{"schemaVersion":1,"name":"a","tag":"old","architecture":"amd64","fsLayers":[],"history":[]}"#;
    let schema1 = store_blob(folder.path(), schema1)?;
    let revision = format!("a/_manifests/revisions/sha256/{}/link", schema1.hex());
    write(&repositories.join(revision), schema1.as_str())?;
    let tag = repositories.join("a/_manifests/tags/old/current/link");
    write(&tag, schema1.as_str())?;
    let adoption = check_adoption(folder.path(), AdoptAs::Pushed)?;
    let what: Vec<&str> = adoption.left_out.iter().map(|it| &*it.what).collect();
    assert_eq!(what, ["a:old", &format!("a@{schema1}")]);
    assert!(adoption.left_out[0].reason.contains("schema 1"));
    assert_eq!((adoption.adopted.tags, adoption.adopted.manifests), (1, 1));
    Ok(())
}

#[test]
fn the_repositories_of_a_folder_are_found_by_their_names() -> Checked {
    let folder = tempfile::tempdir()?;
    assert_eq!(repositories_in(folder.path())?, []);
    for repository in ["web", "team/api", "team", "a/b/c"] {
        store_image(folder.path(), repository)?;
    }
    let repositories = folder.path().join("docker/registry/v2/repositories");
    std::os::unix::fs::symlink("..", repositories.join("team/up"))?;
    fs::create_dir_all(repositories.join("empty/folder"))?;
    let names = repositories_in(folder.path())?;
    let expected = ["a/b/c", "team", "team/api", "web"].map(|name| name.parse().unwrap());
    assert_eq!(names, expected);
    Ok(())
}

#[tokio::test]
async fn a_folder_that_was_adopted_before_there_was_a_record_gets_the_tags_that_never_were_here()
-> Checked {
    let folder = tempfile::tempdir()?;
    store_image(folder.path(), "a")?;
    let blobs = FsBlobStore::open(folder.path())?;
    let database = folder.path().join("metadata.sqlite");
    let metadata = SqliteStore::open(&database)?;
    adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    let a = "a".parse()?;
    let v1 = metadata.tag(&a, &"v1".parse()?).await?.ok_or("no tag")?;
    delete_tag(&metadata, "v1", &v1.state.digest).await?;
    rusqlite::Connection::open(&database)?
        .execute_batch("DELETE FROM adoption_left_out; DELETE FROM adoptions;")?;
    // What an older version took for no manifest.
    let odd = store_blob(
        folder.path(),
        r#"{"schemaVersion":2,"layers":null,"layers":[]}"#,
    )?;
    let manifests = "docker/registry/v2/repositories/a/_manifests";
    let manifests = folder.path().join(manifests);
    let revision = manifests.join("revisions/sha256").join(odd.hex());
    write(&revision.join("link"), odd.as_str())?;
    write(&manifests.join("tags/odd/current/link"), odd.as_str())?;
    let adoption = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
    assert_eq!((adoption.adopted.manifests, adoption.adopted.tags), (1, 1));
    let opaque: Vec<&str> = adoption.opaque.iter().map(|(what, _)| &**what).collect();
    assert_eq!(opaque, [format!("a@{odd}")]);
    assert!(metadata.tag(&a, &"odd".parse()?).await?.is_some());
    assert_eq!(
        metadata.tag(&a, &"v1".parse()?).await?,
        None,
        "it was deleted"
    );
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);
    Ok(())
}
