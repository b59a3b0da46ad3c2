//! What deleting a manifest or a tag takes along, and when it is refused.

use gantry_model::{RepositoryName, Tag};

use super::{Stores, digest, everything, is_absent, moved, push, push_tag, reference};
use crate::{Commit, CommitError, ContentOrigin, suite::Checked};

pub async fn a_manifest_goes_with_exactly_its_tags(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let (one, two, other): (Tag, Tag, Tag) = ("one".parse()?, "two".parse()?, "other".parse()?);
    let mut first = push_tag(&name, "m", 1_000, &one, None)?;
    first.manifest.subject = Some(digest("subject"));
    first.references = vec![reference("layer", "application/x.layer")?];
    stores.push(first).await?;
    stores
        .push(push_tag(&name, "m", 1_000, &two, None)?)
        .await?;
    stores
        .push(push_tag(&name, "n", 1_000, &other, None)?)
        .await?;
    stores
        .delete_manifest(&name, &digest("m"), &[two, one])
        .await?;

    let store = &stores.metadata;
    assert_eq!(
        store
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?,
        None
    );
    assert_eq!(
        stores.tag_names(&name, None, &everything()).await?,
        ["other"]
    );
    assert_eq!(
        store
            .referrers(&name, &ContentOrigin::Pushed, &digest("subject"))
            .await?,
        []
    );
    assert_eq!(
        store
            .parents(&name, &ContentOrigin::Pushed, &digest("layer"))
            .await?,
        []
    );
    assert!(
        store
            .manifest(&name, &ContentOrigin::Pushed, &digest("n"))
            .await?
            .is_some()
    );
    Ok(())
}

pub async fn a_manifest_stays_when_another_tag_appeared(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let (told, appeared): (Tag, Tag) = ("told".parse()?, "appeared".parse()?);
    stores
        .push(push_tag(&name, "m", 1_000, &told, None)?)
        .await?;
    stores
        .push(push_tag(&name, "m", 2_000, &appeared, None)?)
        .await?;
    let refused = stores.delete_manifest(&name, &digest("m"), &[told]).await;
    let current = stores.state(&name, &appeared).await?;
    assert_eq!(moved(refused)?, (appeared, Some(current)));
    let left = stores
        .tag_names(&name, Some(&digest("m")), &everything())
        .await;
    assert_eq!(left?, ["appeared", "told"]);
    assert!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?
            .is_some()
    );
    Ok(())
}

pub async fn a_manifest_stays_when_a_tag_moved_away(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let (tag, gone): (Tag, Tag) = ("tag".parse()?, "gone".parse()?);
    stores.push(push(&name, "m", 1_000)?).await?;
    stores
        .push(push_tag(&name, "n", 1_000, &tag, None)?)
        .await?;
    let refused = stores
        .delete_manifest(&name, &digest("m"), std::slice::from_ref(&tag))
        .await;
    let current = stores.state(&name, &tag).await?;
    assert_eq!(moved(refused)?, (tag, Some(current)));
    let refused = stores
        .delete_manifest(&name, &digest("m"), std::slice::from_ref(&gone))
        .await;
    assert_eq!(moved(refused)?, (gone, None));
    assert!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?
            .is_some()
    );
    Ok(())
}

pub async fn deleting_what_is_not_there_says_so(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "v1".parse()?);
    for _round in 0..2 {
        assert!(is_absent(
            &stores.delete_manifest(&name, &digest("m"), &[]).await
        ));
        assert!(is_absent(
            &stores.delete_tag(&name, &tag, &digest("m")).await
        ));
        stores.push(push(&name, "other", 1_000)?).await?;
    }
    Ok(())
}

pub async fn a_tag_is_deleted_only_from_what_was_expected(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "v1".parse()?);
    stores
        .push(push_tag(&name, "m", 1_000, &tag, None)?)
        .await?;
    let current = stores.state(&name, &tag).await?;
    let refused = stores.delete_tag(&name, &tag, &digest("n")).await;
    assert_eq!(moved(refused)?, (tag.clone(), Some(current)));
    stores.delete_tag(&name, &tag, &digest("m")).await?;
    assert_eq!(stores.metadata.tag(&name, &tag).await?, None);
    assert!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?
            .is_some()
    );
    assert!(is_absent(
        &stores.delete_tag(&name, &tag, &digest("m")).await
    ));
    stores
        .push(push_tag(&name, "m", 2_000, &tag, None)?)
        .await?;
    assert_eq!(stores.state(&name, &tag).await?.state.pushed_at_ms, 2_000);
    Ok(())
}

pub async fn a_blob_is_deleted_only_when_no_pushed_manifest_names_it(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let delete = async || {
        let (repository, digest) = (RepositoryName::clone(&name), digest("layer"));
        let commit = Commit::DeleteBlob { repository, digest };
        stores.metadata.commit(commit).await
    };
    stores.link(&name, &digest("layer")).await?;
    stores.deliver(&name, &digest("layer")).await?;
    let mut image = push(&name, "m", 1_000)?;
    image.references = vec![reference("layer", "application/x.layer")?];
    stores.push(image).await?;
    let refused = delete().await;
    let names_it =
        matches!(&refused, Err(CommitError::StillNamed { manifest }) if *manifest == digest("m"));
    assert!(names_it, "{refused:?}");
    stores.delete_manifest(&name, &digest("m"), &[]).await?;
    delete().await?;
    assert!(is_absent(&delete().await));
    let (origin, layer) = (super::upstream(), digest("layer"));
    let left = stores.metadata.blob(&name, &origin, &layer).await?;
    assert_eq!(left, Some(9));
    Ok(())
}
