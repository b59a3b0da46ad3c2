//! A folder that another registry wrote is adopted whole or not at all, and once.

use std::{fs, path::Path};

use gantry_model::{Algorithm, Digest, Page};
use gantry_storage::{
    AdoptAs, Adopted, ContentOrigin, FsBlobStore, MetadataStore as _, SqliteStore, adopt,
    digest_of, suite::Checked,
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
async fn a_folder_that_cannot_be_read_to_its_end_is_not_adopted_by_halves() -> Checked {
    let folder = tempfile::tempdir()?;
    for repository in ["a/b", "a", "z"] {
        store_image(folder.path(), repository)?;
    }
    // A link that is a folder is no torn file: something is wrong that nobody foresaw.
    let tags = "docker/registry/v2/repositories/a/_manifests/tags";
    let strange = folder.path().join(tags).join("strange/current/link");
    fs::create_dir_all(&strange)?;
    let blobs = FsBlobStore::open(folder.path())?;
    let metadata = SqliteStore::open(&folder.path().join("metadata.sqlite"))?;
    let error = adopt(&blobs, &metadata, AdoptAs::Pushed).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot adopt a registry's folder");
    assert_eq!(metadata.repositories(&Page::default()).await?, []);

    fs::remove_dir(&strange)?;
    let expected = Adopted {
        repositories: 3,
        manifests: 3,
        tags: 3,
        blobs: 3,
        skipped: 1,
    };
    assert_eq!(
        adopt(&blobs, &metadata, AdoptAs::Pushed).await?,
        Some(expected)
    );
    let names = metadata.repositories(&Page::default()).await?;
    assert_eq!(names, ["a".parse()?, "a/b".parse()?, "z".parse()?]);
    assert!(metadata.tag(&"z".parse()?, &"v1".parse()?).await?.is_some());
    assert_eq!(adopt(&blobs, &metadata, AdoptAs::Pushed).await?, None);
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
    let adopted = adopt(&blobs, &metadata, AdoptAs::Pushed)
        .await?
        .ok_or("nothing adopted")?;
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
