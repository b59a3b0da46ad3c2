//! What a push of a manifest does to tags, and what it requires.

use futures_util::future::try_join_all;
use gantry_model::{MediaType, RepositoryName, Tag, TagState};

use super::{Failure, Stores, digest, everything, moved, push, push_tag, reference};
use crate::{
    Commit, CommitError, ContentOrigin, ManifestRecord, TagMove, TagRecord, suite::Checked,
};

pub async fn a_push_makes_the_repository_and_everything_of_the_manifest(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "v1".parse()?);
    let mut push = push_tag(&name, "m", 1_000, &tag, None)?;
    push.manifest.artifact_type = Some("application/x.example".to_owned());
    push.manifest.subject = Some(digest("subject"));
    push.annotations = r#"{"a":"\u0000 and 'quotes'"}"#.to_owned();
    push.references = vec![reference("layer", "application/x.layer")?];
    stores.push(push.clone()).await?;

    let store = &stores.metadata;
    let repository = store.repository(&name).await?.ok_or("no repository")?;
    assert_eq!(repository.generation, 1);
    let stored = store
        .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
        .await?;
    assert_eq!(stored.as_ref(), Some(&push.manifest));
    let expected = TagRecord {
        tag: tag.clone(),
        state: TagState {
            digest: digest("m"),
            pushed_at_ms: 1_000,
            pushed_by: "pusher at 1000".to_owned(),
            immutable: false,
        },
        checked_at_ms: 0,
    };
    assert_eq!(stores.state(&name, &tag).await?, expected);
    let referrers = store
        .referrers(&name, &ContentOrigin::Pushed, &digest("subject"))
        .await?;
    let referring: Vec<&ManifestRecord> = referrers.iter().map(|it| &it.manifest).collect();
    assert_eq!(referring, [&push.manifest]);
    let parents = store
        .parents(&name, &ContentOrigin::Pushed, &digest("layer"))
        .await?;
    let layer = reference("layer", "application/x.layer")?;
    assert_eq!(parents, [(digest("m"), layer)]);
    assert_eq!(store.repositories(&everything()).await?, [name]);
    Ok(())
}

pub async fn a_manifest_pushed_again_keeps_its_first_record(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let first = push(&name, "m", 1_000)?;
    stores.push(first.clone()).await?;
    let mut again = push(&name, "m", 2_000)?;
    again.manifest.media_type = MediaType::octet_stream();
    again.references = vec![reference("layer", "application/x.layer")?];
    stores.push(again).await?;
    let stored = stores
        .metadata
        .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
        .await?;
    assert_eq!(stored, Some(first.manifest));
    let parents = stores
        .metadata
        .parents(&name, &ContentOrigin::Pushed, &digest("layer"))
        .await?;
    assert_eq!(parents, []);
    Ok(())
}

pub async fn a_tag_pushed_again_keeps_who_pushed_it_and_when(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "v1".parse()?);
    stores
        .push(push_tag(&name, "m", 1_000, &tag, None)?)
        .await?;
    let mut again = push_tag(&name, "m", 2_000, &tag, Some("m"))?;
    for to in &mut again.tags {
        to.checked_at_ms = 2_000;
    }
    stores.push(again).await?;
    let record = stores.state(&name, &tag).await?;
    assert_eq!(record.state.pushed_at_ms, 1_000);
    assert_eq!(record.state.pushed_by, "pusher at 1000");
    assert_eq!(record.checked_at_ms, 2_000);
    Ok(())
}

pub async fn a_tag_moves_only_from_what_was_expected(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "latest".parse()?);
    let early = stores
        .push(push_tag(&name, "one", 1_000, &tag, Some("zero"))?)
        .await;
    assert_eq!(moved(early)?, (tag.clone(), None));
    stores
        .push(push_tag(&name, "one", 1_000, &tag, None)?)
        .await?;
    let before = stores.state(&name, &tag).await?;
    for expected in [None, Some("two")] {
        let refused = stores
            .push(push_tag(&name, "two", 2_000, &tag, expected)?)
            .await;
        assert_eq!(moved(refused)?, (tag.clone(), Some(before.clone())));
    }
    stores
        .push(push_tag(&name, "two", 2_000, &tag, Some("one"))?)
        .await?;
    let after = stores.state(&name, &tag).await?;
    assert_eq!(after.state.digest, digest("two"));
    assert_eq!(after.state.pushed_at_ms, 2_000);
    assert_eq!(after.state.pushed_by, "pusher at 2000");
    Ok(())
}

pub async fn a_refused_push_changes_nothing(stores: Stores) -> Checked {
    let (name, tag): (_, Tag) = ("apps/web".parse()?, "v1".parse()?);
    let mut refused = push_tag(&name, "m", 1_000, &tag, None)?;
    refused.required = vec![digest("missing")];
    assert!(stores.push(refused).await.is_err());
    assert_eq!(stores.metadata.repository(&name).await?, None);

    stores
        .push(push_tag(&name, "one", 1_000, &tag, None)?)
        .await?;
    let mut refused = push_tag(&name, "two", 2_000, &"new".parse()?, None)?;
    refused.tags.push(TagMove {
        tag,
        expected: None,
        set_immutable: false,
        checked_at_ms: 0,
    });
    assert!(stores.push(refused).await.is_err());
    assert_eq!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("two"))
            .await?,
        None
    );
    assert_eq!(stores.tag_names(&name, None, &everything()).await?, ["v1"]);
    Ok(())
}

pub async fn one_push_moves_several_tags(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let mut push = push(&name, "m", 1_000)?;
    for tag in ["1", "1.2", "1.2.3", "1"] {
        push.tags.push(TagMove {
            tag: tag.parse()?,
            expected: None,
            set_immutable: tag == "1.2.3",
            checked_at_ms: 0,
        });
    }
    stores.push(push).await?;
    let named = stores
        .metadata
        .tags(&name, Some(&digest("m")), &everything())
        .await;
    let named: Vec<(String, bool)> = named?
        .into_iter()
        .map(|record| (record.tag.to_string(), record.state.immutable))
        .collect();
    let expected = [("1", false), ("1.2", false), ("1.2.3", true)];
    assert_eq!(named, expected.map(|(tag, mark)| (tag.to_owned(), mark)));
    Ok(())
}

pub async fn immutability_is_only_ever_set(stores: Stores) -> Checked {
    let (name, tag) = ("apps/web".parse()?, "v1".parse()?);
    stores
        .push(push_tag(&name, "m", 1_000, &tag, None)?)
        .await?;
    let mut mark = push_tag(&name, "m", 2_000, &tag, Some("m"))?;
    for to in &mut mark.tags {
        to.set_immutable = true;
    }
    stores.push(mark).await?;
    assert!(stores.state(&name, &tag).await?.state.immutable);
    stores
        .push(push_tag(&name, "m", 3_000, &tag, Some("m"))?)
        .await?;
    assert!(stores.state(&name, &tag).await?.state.immutable);
    Ok(())
}

/// An admission that marks a tag may come between the question whether it may move and the commit of the move.
pub async fn a_tag_marked_immutable_moves_nowhere_and_stays(stores: Stores) -> Checked {
    let (name, tag): (RepositoryName, Tag) = ("apps/web".parse()?, "v1".parse()?);
    let mut mark = push_tag(&name, "m", 1_000, &tag, None)?;
    for to in &mut mark.tags {
        to.set_immutable = true;
    }
    stores.push(mark).await?;
    let marked = stores.state(&name, &tag).await?;
    let refused = [
        stores
            .push(push_tag(&name, "n", 2_000, &tag, Some("m"))?)
            .await,
        stores.delete_tag(&name, &tag, &digest("m")).await,
        stores
            .delete_manifest(&name, &digest("m"), std::slice::from_ref(&tag))
            .await,
    ];
    for refused in refused {
        assert_eq!(moved(refused)?, (tag.clone(), Some(marked.clone())));
    }
    assert_eq!(stores.state(&name, &tag).await?, marked);
    assert_eq!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("n"))
            .await?,
        None
    );
    stores
        .push(push_tag(&name, "m", 3_000, &tag, Some("m"))?)
        .await?;
    Ok(())
}

pub async fn of_racing_pushes_to_one_tag_exactly_one_wins(stores: Stores) -> Checked {
    let (name, tag): (RepositoryName, Tag) = ("apps/web".parse()?, "v1".parse()?);
    let racers = (0..64).map(|number: u64| {
        let (stores, name, tag) = (stores.clone(), name.clone(), tag.clone());
        tokio::spawn(async move {
            let push = push_tag(&name, &format!("m{number}"), number, &tag, None)?;
            let digest = push.manifest.digest.clone();
            Ok::<_, Failure>((digest, stores.push(push).await))
        })
    });
    let mut winners = Vec::new();
    let mut losers = Vec::new();
    for raced in try_join_all(racers).await? {
        match raced? {
            (digest, Ok(())) => winners.push(digest),
            (_, refused) => losers.push(moved(refused)?.1),
        }
    }
    let record = stores.state(&name, &tag).await?;
    assert_eq!(winners, std::slice::from_ref(&record.state.digest));
    assert_eq!(losers, vec![Some(record); 63]);
    Ok(())
}

pub async fn racing_pushes_by_digest_all_succeed(stores: Stores) -> Checked {
    let name: RepositoryName = "apps/web".parse()?;
    let racers = (0..32).map(|number: u64| {
        let (stores, name) = (stores.clone(), name.clone());
        tokio::spawn(async move {
            let text = format!("m{}", number / 2);
            Ok::<_, Failure>(stores.push(push(&name, &text, number)?).await?)
        })
    });
    for raced in try_join_all(racers).await? {
        raced?;
    }
    for number in 0..16 {
        let stored = stores
            .metadata
            .manifest(
                &name,
                &ContentOrigin::Pushed,
                &digest(&format!("m{number}")),
            )
            .await;
        assert!(stored?.is_some());
    }
    Ok(())
}

pub async fn what_is_required_must_be_in_the_same_repository(stores: Stores) -> Checked {
    let (name, other) = ("apps/web".parse()?, "apps/other".parse()?);
    stores.link(&other, &digest("layer")).await?;
    stores.push(push(&other, "child", 1_000)?).await?;
    stores.link(&name, &digest("config")).await?;
    for missing in ["layer", "child"] {
        let mut push = push(&name, "m", 1_000)?;
        push.required = vec![digest("config"), digest(missing)];
        match stores.push(push).await {
            Err(CommitError::MissingReference { digest: found }) => {
                assert_eq!(found, digest(missing));
            }
            other => return Err(format!("not a missing reference: {other:?}").into()),
        }
    }
    assert_eq!(
        stores
            .metadata
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?,
        None
    );
    stores.link(&name, &digest("layer")).await?;
    stores.push(push(&name, "child", 1_000)?).await?;
    let mut complete = push(&name, "m", 1_000)?;
    complete.required = vec![digest("config"), digest("layer"), digest("child")];
    stores.push(complete).await?;
    Ok(())
}

pub async fn a_confirmation_only_moves_the_time_of_the_named_digest(stores: Stores) -> Checked {
    let (name, tag): (RepositoryName, Tag) = ("mirror/web".parse()?, "v1".parse()?);
    let confirm = |text: &str, checked_at_ms| Commit::ConfirmTag {
        repository: name.clone(),
        tag: tag.clone(),
        digest: digest(text),
        checked_at_ms,
    };
    stores.metadata.commit(confirm("m", 1_000)).await?;
    assert_eq!(stores.metadata.repository(&name).await?, None);
    stores
        .push(push_tag(&name, "m", 1_000, &tag, None)?)
        .await?;
    let before = stores.state(&name, &tag).await?;
    stores.metadata.commit(confirm("n", 2_000)).await?;
    assert_eq!(stores.state(&name, &tag).await?, before);
    stores.metadata.commit(confirm("m", 3_000)).await?;
    let expected = TagRecord {
        checked_at_ms: 3_000,
        ..before
    };
    assert_eq!(stores.state(&name, &tag).await?, expected);
    Ok(())
}
