//! By which origin a repository has content, who may read it through which, and what a claim and its release change.

use gantry_model::{RepositoryName, Tag};

use super::{Stores, digest, everything, moved, push, push_tag, upstream};
use crate::{Commit, CommitError, ContentOrigin, suite::Checked};

const PUSHED: ContentOrigin = ContentOrigin::Pushed;

pub async fn content_is_found_by_its_own_origin_only(stores: Stores) -> Checked {
    let (name, other) = ("hub/app".parse()?, "hub/other".parse()?);
    let (store, blob) = (&stores.metadata, digest("b"));
    let elsewhere = ContentOrigin::Upstream("https://elsewhere.test".into());
    stores.deliver(&name, &blob).await?;
    let mut delivered = push(&name, "m", 1_000)?;
    delivered.manifest.subject = Some(digest("subject"));
    delivered.references = vec![super::reference("layer", "application/x.layer")?];
    delivered.origin = upstream();
    stores.push(delivered).await?;
    for (origin, has) in [(&upstream(), true), (&PUSHED, false), (&elsewhere, false)] {
        let size = store.blob(&name, origin, &blob).await?;
        assert_eq!(size, has.then_some(9), "{origin:?}");
        assert_eq!(store.delivered(origin, &blob).await?, has.then_some(9));
        let manifest = store.manifest(&name, origin, &digest("m")).await?;
        assert_eq!(manifest.is_some(), has, "{origin:?}");
        let referrers = store.referrers(&name, origin, &digest("subject")).await?;
        assert_eq!(referrers.len(), usize::from(has));
        let parents = store.parents(&name, origin, &digest("layer")).await?;
        assert_eq!(parents.len(), usize::from(has));
        assert_eq!(store.blob(&other, origin, &blob).await?, None);
    }
    stores.link(&name, &blob).await?;
    assert_eq!(store.blob(&name, &PUSHED, &blob).await?, Some(7));
    assert_eq!(store.blob(&name, &upstream(), &blob).await?, Some(9));
    stores.unlink(&name, &blob).await?;
    for origin in [PUSHED, upstream()] {
        assert_eq!(store.blob(&name, &origin, &blob).await?, None);
        assert_eq!(store.delivered(&origin, &blob).await?, None);
    }
    Ok(())
}

pub async fn what_is_required_must_have_the_same_origin(stores: Stores) -> Checked {
    let name = "hub/app".parse()?;
    stores.deliver(&name, &digest("b")).await?;
    let mut pushed = push(&name, "m", 1_000)?;
    pushed.required = vec![digest("b")];
    let refused = stores.push(pushed.clone()).await;
    let missing = matches!(refused, Err(CommitError::MissingReference { .. }));
    assert!(missing, "{refused:?}");
    stores.link(&name, &digest("b")).await?;
    stores.push(pushed).await?;
    Ok(())
}

fn release(repository: &RepositoryName) -> Commit {
    Commit::ReleaseRepository {
        repository: repository.clone(),
        at_ms: 9_000,
        by: "operator".to_owned(),
    }
}

pub async fn a_pushed_manifest_claims_its_repository_until_it_is_released(
    stores: Stores,
) -> Checked {
    let name: RepositoryName = "hub/app".parse()?;
    let store = &stores.metadata;
    let claimed = async || -> Result<bool, super::Failure> {
        let record = store.repository(&name).await?;
        Ok(record.is_some_and(|record| record.claimed))
    };
    let mut delivered = push(&name, "m", 1_000)?;
    delivered.origin = upstream();
    stores.push(delivered).await?;
    stores.link(&name, &digest("b")).await?;
    assert!(!claimed().await?, "a blob is no claim");
    assert!(super::is_absent(&store.commit(release(&name)).await));
    stores.push(push(&name, "n", 1_000)?).await?;
    assert!(claimed().await?, "a push by digest is one");
    stores.delete_manifest(&name, &digest("n"), &[]).await?;
    assert!(claimed().await?, "for good");
    let before = store.repository(&name).await?.ok_or("no repository")?;
    store.commit(release(&name)).await?;
    assert!(!claimed().await?);
    let after = store.repository(&name).await?.ok_or("no repository")?;
    assert_eq!(after.generation, before.generation + 1);
    Ok(())
}

pub async fn a_release_leaves_what_an_upstream_delivered(stores: Stores) -> Checked {
    let (name, tag): (RepositoryName, Tag) = ("hub/app".parse()?, "theirs".parse()?);
    let store = &stores.metadata;
    let mut theirs = push_tag(&name, "m", 1_000, &tag, None)?;
    theirs.origin = upstream();
    theirs.tags.iter_mut().for_each(|to| to.checked_at_ms = 5);
    stores.push(theirs).await?;
    stores.deliver(&name, &digest("both")).await?;
    for text in ["both", "ours"] {
        stores.link(&name, &digest(text)).await?;
    }
    stores
        .push(push_tag(&name, "n", 2_000, &"v1".parse()?, None)?)
        .await?;
    stores.push(push(&name, "m", 2_000)?).await?;
    store.commit(release(&name)).await?;
    let tags = stores.tag_names(&name, None, &everything()).await?;
    assert_eq!(tags, ["theirs"]);
    for (text, left) in [("m", true), ("n", false)] {
        assert_eq!(store.manifest(&name, &PUSHED, &digest(text)).await?, None);
        let theirs = store.manifest(&name, &upstream(), &digest(text)).await?;
        assert_eq!(theirs.is_some(), left, "{text}");
        assert_eq!(stores.cache.is_held(&digest(text)).await?, left, "{text}");
    }
    for (text, left) in [("both", Some(9)), ("ours", None)] {
        assert_eq!(store.blob(&name, &PUSHED, &digest(text)).await?, None);
        assert_eq!(store.blob(&name, &upstream(), &digest(text)).await?, left);
    }
    Ok(())
}

pub async fn a_release_stops_at_an_immutable_tag(stores: Stores) -> Checked {
    let (name, tag): (RepositoryName, Tag) = ("hub/app".parse()?, "v1".parse()?);
    let mut pushed = push_tag(&name, "m", 1_000, &tag, None)?;
    pushed
        .tags
        .iter_mut()
        .for_each(|to| to.set_immutable = true);
    stores.push(pushed).await?;
    let (kept, _) = moved(stores.metadata.commit(release(&name)).await)?;
    assert_eq!(kept, tag);
    assert!(
        stores
            .metadata
            .manifest(&name, &PUSHED, &digest("m"))
            .await?
            .is_some()
    );
    Ok(())
}

pub async fn who_uploaded_a_blob_is_remembered_while_it_is_linked(stores: Stores) -> Checked {
    let (name, other): (RepositoryName, RepositoryName) = ("apps/web".parse()?, "apps/b".parse()?);
    let (store, blob) = (&stores.metadata, digest("b"));
    stores.link(&name, &blob).await?;
    for principal in ["alice", "bob"] {
        assert!(!store.has_pushed(&name, &blob, principal).await?);
        let commit = Commit::LinkBlob {
            repository: name.clone(),
            origin: PUSHED,
            digest: blob.clone(),
            size: 7,
            upload: None,
            principal: Some(principal.to_owned()),
        };
        store.commit(commit).await?;
        assert!(store.has_pushed(&name, &blob, principal).await?);
        assert!(!store.has_pushed(&other, &blob, principal).await?);
    }
    stores.unlink(&name, &blob).await?;
    stores.link(&name, &blob).await?;
    assert!(!store.has_pushed(&name, &blob, "alice").await?);
    Ok(())
}
