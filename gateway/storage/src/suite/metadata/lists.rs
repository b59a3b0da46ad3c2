//! What is listed, in which order, and in which pages.

use gantry_model::{Digest, Page, RepositoryName};

use super::{Failure, Stores, digest, everything, names, page, push, push_tag, reference};
use crate::{ContentOrigin, Named, ReferenceRecord, suite::Checked};

pub async fn an_unknown_repository_holds_nothing(stores: Stores) -> Checked {
    let (name, store) = ("none".parse()?, &stores.metadata);
    assert_eq!(store.repository(&name).await?, None);
    assert_eq!(store.repositories(&everything()).await?, []);
    assert_eq!(
        store
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?,
        None
    );
    assert_eq!(store.tag(&name, &"t".parse()?).await?, None);
    assert_eq!(store.tags(&name, None, &everything()).await?, []);
    assert_eq!(
        store
            .referrers(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?,
        []
    );
    assert_eq!(
        store
            .blob(&name, &ContentOrigin::Pushed, &digest("b"))
            .await?,
        None
    );
    assert_eq!(
        store
            .parents(&name, &ContentOrigin::Pushed, &digest("b"))
            .await?,
        []
    );
    Ok(())
}

pub async fn referrers_are_listed_whether_or_not_the_subject_exists(stores: Stores) -> Checked {
    let (name, other) = ("apps/web".parse()?, "apps/other".parse()?);
    for (repository, text) in [(&name, "sig"), (&name, "sbom"), (&other, "elsewhere")] {
        let mut push = push(repository, text, 1_000)?;
        push.manifest.subject = Some(digest("m"));
        stores.push(push).await?;
    }
    let mut expected = [digest("sig"), digest("sbom")];
    expected.sort();
    for _round in 0..2 {
        let listed = stores
            .metadata
            .referrers(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?;
        let listed: Vec<Digest> = listed.into_iter().map(|it| it.manifest.digest).collect();
        assert_eq!(listed, expected);
        stores.push(push(&name, "m", 2_000)?).await?;
    }
    stores.delete_manifest(&name, &digest("sig"), &[]).await?;
    let left = stores
        .metadata
        .referrers(&name, &ContentOrigin::Pushed, &digest("m"))
        .await?;
    assert_eq!(left.len(), 1);
    Ok(())
}

pub async fn referrers_are_read_a_few_at_a_time(stores: Stores) -> Checked {
    let (name, subject) = ("apps/web".parse()?, digest("m"));
    let mut expected = Vec::new();
    for number in 0..5 {
        let mut push = push(&name, &format!("referrer {number}"), 1_000)?;
        push.manifest.subject = Some(digest("m"));
        push.annotations = format!(r#"{{"a":"{}"}}"#, "x".repeat(10_000));
        expected.push(push.manifest.digest.clone());
        stores.push(push).await?;
    }
    expected.sort();
    for (max_bytes, at_once) in [(1, 1), (15_000, 2), (1 << 20, 5)] {
        let (mut listed, mut after) = (Vec::new(), None::<String>);
        loop {
            let store = &stores.metadata;
            let some = store.referrers_after(
                &name,
                &ContentOrigin::Pushed,
                &subject,
                after.as_deref(),
                max_bytes,
            );
            let some = some.await?;
            assert!(some.len() <= at_once);
            let Some(last) = some.last() else { break };
            after = Some(last.manifest.digest.to_string());
            listed.extend(some.into_iter().map(|it| it.manifest.digest));
        }
        assert_eq!(listed, expected);
    }
    Ok(())
}

pub async fn parents_say_what_they_call_the_content(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let config = reference("shared", "application/x.config")?;
    let layer = reference("shared", "application/x.layer")?;
    let mut one = push(&name, "one", 1_000)?;
    one.references = vec![layer.clone(), config.clone(), layer.clone()];
    let mut two = push(&name, "two", 1_000)?;
    let elsewhere = ReferenceRecord {
        named: Named::Elsewhere,
        ..layer.clone()
    };
    let child = ReferenceRecord {
        named: Named::Child,
        ..reference("own", "application/x.index")?
    };
    two.references = vec![elsewhere.clone(), child.clone()];
    stores.push(one).await?;
    stores.push(two).await?;
    let mut expected = [
        (digest("one"), config),
        (digest("one"), layer),
        (digest("two"), elsewhere),
    ];
    expected.sort_by_key(|(parent, _)| parent.clone());
    let parents = stores
        .metadata
        .parents(&name, &ContentOrigin::Pushed, &digest("shared"))
        .await?;
    assert_eq!(parents, expected);
    let parents = stores
        .metadata
        .parents(&name, &ContentOrigin::Pushed, &digest("own"))
        .await?;
    assert_eq!(parents, [(digest("two"), child)]);
    Ok(())
}

/// Sorted by bytes: capitals before small letters, `-` before `.` before `/` before digits.
const SORTED: [&str; 7] = ["a", "a-b", "a.b", "a/b", "a/b/c", "a0", "b"];

pub async fn lists_are_sorted_by_bytes_and_paged(stores: Stores) -> Checked {
    for name in SORTED.iter().rev() {
        stores.push(push(&name.parse()?, "m", 1_000)?).await?;
    }
    let list = async |page: Page| -> Result<Vec<String>, Failure> {
        let listed = stores.metadata.repositories(&page).await?;
        Ok(names(listed.iter()))
    };
    assert_eq!(list(everything()).await?, SORTED);
    assert_eq!(list(page(0, "")).await?, [""; 0]);
    assert_eq!(list(page(2, "a-b")).await?, ["a.b", "a/b"]);
    assert_eq!(list(page(9, "a/aa")).await?, ["a/b", "a/b/c", "a0", "b"]);
    assert_eq!(list(page(9, "b")).await?, [""; 0]);
    assert_eq!(list(page(1, "A")).await?, ["a"]);

    let name = "apps/web".parse()?;
    let sorted = ["A", "B", "_a", "a", "a-1", "a.1", "a1", "aB", "aa"];
    for tag in sorted.iter().rev() {
        stores
            .push(push_tag(&name, "m", 1_000, &tag.parse()?, None)?)
            .await?;
    }
    assert_eq!(stores.tag_names(&name, None, &everything()).await?, sorted);
    let mut walked = Vec::new();
    let mut after = String::new();
    while let [.., last] = stores
        .tag_names(&name, None, &page(2, &after))
        .await?
        .as_slice()
    {
        walked.extend(stores.tag_names(&name, None, &page(2, &after)).await?);
        after.clone_from(last);
    }
    assert_eq!(walked, sorted);
    assert_eq!(stores.tag_names(&name, None, &page(0, "")).await?, [""; 0]);
    let between = stores.tag_names(&name, None, &page(1, "a-0")).await?;
    assert_eq!(between, ["a-1"]);
    Ok(())
}

pub async fn a_repository_is_listed_while_it_holds_a_manifest(stores: Stores) -> Checked {
    let name: RepositoryName = "apps/web".parse()?;
    stores.link(&name, &digest("b")).await?;
    assert_eq!(stores.metadata.repositories(&everything()).await?, []);
    stores.push(push(&name, "m", 1_000)?).await?;
    assert_eq!(
        stores.metadata.repositories(&everything()).await?,
        std::slice::from_ref(&name)
    );
    stores.delete_manifest(&name, &digest("m"), &[]).await?;
    assert_eq!(stores.metadata.repositories(&everything()).await?, []);
    assert!(stores.metadata.repository(&name).await?.is_some());
    Ok(())
}

pub async fn tags_of_one_manifest_are_paged_too(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    for (tag, text) in [("a", "m"), ("b", "n"), ("c", "m"), ("d", "m")] {
        stores
            .push(push_tag(&name, text, 1_000, &tag.parse()?, None)?)
            .await?;
    }
    let named = digest("m");
    let named = Some(&named);
    assert_eq!(
        stores.tag_names(&name, named, &everything()).await?,
        ["a", "c", "d"]
    );
    assert_eq!(stores.tag_names(&name, named, &page(1, "a")).await?, ["c"]);
    assert_eq!(stores.tag_names(&name, named, &page(9, "c")).await?, ["d"]);
    Ok(())
}
