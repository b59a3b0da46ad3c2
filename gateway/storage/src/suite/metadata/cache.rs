//! What eviction is told: how much there is, what nobody asked for longest, and who still holds it.

use gantry_model::{Digest, RepositoryName};

use super::{Failure, Stores, digest, push, reference};
use crate::{
    cache::{CacheQuery, CacheSize, Cached, Use},
    suite::Checked,
};

const LAYER: &str = "application/x.layer";

fn used(repository: &RepositoryName, text: &str, at_ms: u64) -> Use {
    Use {
        repository: repository.clone(),
        digest: digest(text),
        at_ms,
    }
}

fn query(prefix: &str) -> Result<CacheQuery, Failure> {
    Ok(CacheQuery {
        prefix: prefix.parse()?,
        except: Vec::new(),
        before_ms: u64::MAX,
        limit: 100,
    })
}

fn uses(cached: &[Cached]) -> Vec<(Digest, u64)> {
    let pair = |it: &Cached| (it.digest.clone(), it.used_at_ms);
    cached.iter().map(pair).collect()
}

/// A repository with an image `image` of a layer `layer`, and a blob `loose` that nothing names.
async fn filled(stores: &Stores, name: &RepositoryName) -> Checked {
    let mut image = push(name, "image", 1_000)?;
    image.references = vec![reference("layer", LAYER)?];
    stores.push(image).await?;
    stores.link(name, &digest("layer")).await?;
    stores.link(name, &digest("loose")).await?;
    Ok(())
}

pub async fn a_cache_is_measured_below_its_prefix_and_counts_shared_blobs_once(
    stores: Stores,
) -> Checked {
    let prefix = "hub".parse()?;
    assert_eq!(
        stores.cache.cache_size(&prefix, &[]).await?,
        CacheSize::default()
    );
    for name in ["hub/a", "hub/b", "hub-not", "hub0/c", "other/d"] {
        filled(&stores, &name.parse()?).await?;
    }
    let expected = CacheSize {
        bytes: 14,
        blobs: 2,
        manifests: 2,
        repositories: 2,
    };
    assert_eq!(stores.cache.cache_size(&prefix, &[]).await?, expected);
    Ok(())
}

pub async fn what_lies_below_the_prefix_and_is_no_cache_is_left_out(stores: Stores) -> Checked {
    for name in ["hub/a", "hub/b"] {
        filled(&stores, &name.parse()?).await?;
    }
    let (pushed, prefix) = ("hub/b".parse()?, "hub".parse()?);
    let except = [pushed, "hub/never".parse()?];
    let expected = CacheSize {
        bytes: 14,
        blobs: 2,
        manifests: 1,
        repositories: 1,
    };
    assert_eq!(stores.cache.cache_size(&prefix, &except).await?, expected);
    let query = CacheQuery {
        except: except.to_vec(),
        ..query("hub")?
    };
    let mut rest = stores.cache.least_used_blobs(&query).await?;
    rest.extend(stores.cache.least_used_manifests(&query).await?);
    assert_eq!(rest.len(), 3);
    assert!(
        rest.iter()
            .all(|cached| cached.repository.as_str() == "hub/a")
    );
    Ok(())
}

pub async fn content_is_as_recent_as_what_names_it(stores: Stores) -> Checked {
    let name: RepositoryName = "hub/a".parse()?;
    filled(&stores, &name).await?;
    let mut index = push(&name, "index", 2_000)?;
    index.references = vec![reference("image", "application/x.manifest")?];
    stores.push(index).await?;
    let blobs = stores.cache.least_used_blobs(&query("hub")?).await?;
    let expected = [(digest("loose"), 0), (digest("layer"), 1_000)];
    assert_eq!(uses(&blobs), expected);
    let recorded = vec![used(&name, "index", 9_000), used(&name, "loose", 5_000)];
    stores.cache.record_uses(recorded).await?;
    stores
        .cache
        .record_uses(vec![used(&name, "index", 3)])
        .await?;
    let blobs = stores.cache.least_used_blobs(&query("hub")?).await?;
    let expected = [(digest("loose"), 5_000), (digest("layer"), 9_000)];
    assert_eq!(uses(&blobs), expected);
    let manifests = stores.cache.least_used_manifests(&query("hub")?).await?;
    let mut expected = [(digest("image"), 9_000), (digest("index"), 9_000)];
    let mut found = uses(&manifests);
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    let recent = CacheQuery {
        before_ms: 9_000,
        ..query("hub")?
    };
    assert_eq!(stores.cache.least_used_manifests(&recent).await?, []);
    let first = CacheQuery {
        limit: 1,
        ..query("hub")?
    };
    let blobs = stores.cache.least_used_blobs(&first).await?;
    assert_eq!(uses(&blobs), [(digest("loose"), 5_000)]);
    Ok(())
}

pub async fn a_use_goes_with_what_was_used(stores: Stores) -> Checked {
    let name: RepositoryName = "hub/a".parse()?;
    filled(&stores, &name).await?;
    let recorded = ["image", "loose", "never"].map(|text| used(&name, text, 9_000));
    stores.cache.record_uses(recorded.to_vec()).await?;
    let nowhere = used(&"hub/none".parse()?, "image", 9_000);
    stores.cache.record_uses(vec![nowhere]).await?;
    stores.unlink(&name, &digest("loose")).await?;
    stores.delete_manifest(&name, &digest("image"), &[]).await?;
    filled(&stores, &name).await?;
    let blobs = stores.cache.least_used_blobs(&query("hub")?).await?;
    assert_eq!(
        uses(&blobs),
        [(digest("loose"), 0), (digest("layer"), 1_000)]
    );
    Ok(())
}

pub async fn content_is_held_while_any_repository_has_it(stores: Stores) -> Checked {
    let (name, other): (RepositoryName, RepositoryName) = ("hub/a".parse()?, "apps/b".parse()?);
    for held in ["layer", "image"] {
        assert!(!stores.cache.is_held(&digest(held)).await?, "{held}");
    }
    filled(&stores, &name).await?;
    filled(&stores, &other).await?;
    stores.unlink(&name, &digest("layer")).await?;
    stores.delete_manifest(&name, &digest("image"), &[]).await?;
    for held in ["layer", "image"] {
        assert!(stores.cache.is_held(&digest(held)).await?, "{held}");
    }
    stores
        .delete_manifest(&other, &digest("image"), &[])
        .await?;
    stores.unlink(&other, &digest("layer")).await?;
    for held in ["layer", "image"] {
        assert!(!stores.cache.is_held(&digest(held)).await?, "{held}");
    }
    Ok(())
}
