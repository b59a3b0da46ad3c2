//! What eviction is told: how much there is, what nobody asked for longest, and who still holds it.

use gantry_model::{Digest, RepositoryName};

use super::{Failure, Stores, digest, push, push_tag, reference};
use crate::{
    cache::{CacheQuery, CacheSize, Cached, CachedRepository, Pin, Use, Within},
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
        within: Within::Below(prefix.parse()?),
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

pub async fn facts_begin_with_the_first_change_of_a_tag(stores: Stores) -> Checked {
    let (name, tag) = ("hub/a".parse()?, "v1".parse()?);
    stores.push(push(&name, "untagged", 500)?).await?;
    assert_eq!(stores.cache.began_ms().await?, None);
    for (expected, text, at_ms) in [(None, "one", 1_000), (Some("one"), "two", 2_000)] {
        stores
            .push(push_tag(&name, text, at_ms, &tag, expected)?)
            .await?;
        assert_eq!(stores.cache.began_ms().await?, Some(1_000));
    }
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
    let asked = ["layer", "never", "image"].map(digest).to_vec();
    assert_eq!(stores.cache.unheld(asked).await?, [digest("never")]);
    stores
        .delete_manifest(&other, &digest("image"), &[])
        .await?;
    stores.unlink(&other, &digest("layer")).await?;
    for held in ["layer", "image"] {
        assert!(!stores.cache.is_held(&digest(held)).await?, "{held}");
    }
    Ok(())
}

pub async fn one_repository_is_asked_about_without_those_below_it(stores: Stores) -> Checked {
    for name in ["hub/a", "hub/a/b", "hub/a0", "hub/a-b"] {
        filled(&stores, &name.parse()?).await?;
    }
    let only = CacheQuery {
        within: Within::Only("hub/a".parse()?),
        ..query("hub")?
    };
    for found in [
        stores.cache.least_used_manifests(&only).await?,
        stores.cache.least_used_blobs(&only).await?,
    ] {
        assert!(!found.is_empty());
        assert!(found.iter().all(|it| it.repository.as_str() == "hub/a"));
    }
    Ok(())
}

pub async fn repositories_that_hold_something_are_listed_by_name(stores: Stores) -> Checked {
    let names = ["apps/x", "hub/a", "hub/a/b"];
    for name in names {
        filled(&stores, &name.parse()?).await?;
    }
    let (emptied, first): (RepositoryName, RepositoryName) = ("hub/z".parse()?, names[1].parse()?);
    stores.link(&emptied, &digest("layer")).await?;
    stores.unlink(&emptied, &digest("layer")).await?;
    stores
        .cache
        .record_uses(vec![used(&first, "layer", 9_000)])
        .await?;
    let listed = stores.cache.holding_repositories(None, 10).await?;
    let found: Vec<&str> = listed.iter().map(|it| it.repository.as_str()).collect();
    assert_eq!(found, names);
    let after = "apps/x".parse()?;
    let next = stores.cache.holding_repositories(Some(&after), 1).await?;
    let expected = CachedRepository {
        repository: first,
        tags: 0,
        manifests: 1,
        blobs: 2,
        bytes: 14,
        used_at_ms: 9_000,
    };
    assert_eq!(next, [expected]);
    Ok(())
}

pub async fn a_pin_stays_as_it_was_made_until_it_is_taken_away(stores: Stores) -> Checked {
    let pin = |pattern: &str, by: &str| Pin {
        pattern: pattern.to_owned(),
        at_ms: 5,
        by: by.to_owned(),
    };
    assert_eq!(stores.cache.pins().await?, []);
    assert!(stores.cache.pin(pin("hub/b:*", "alice")).await?);
    assert!(stores.cache.pin(pin("hub/a", "alice")).await?);
    assert!(!stores.cache.pin(pin("hub/a", "bob")).await?);
    let expected = [pin("hub/a", "alice"), pin("hub/b:*", "alice")];
    assert_eq!(stores.cache.pins().await?, expected);
    assert!(stores.cache.unpin("hub/a").await?);
    assert!(!stores.cache.unpin("hub/a").await?);
    assert_eq!(stores.cache.pins().await?, [pin("hub/b:*", "alice")]);
    Ok(())
}
