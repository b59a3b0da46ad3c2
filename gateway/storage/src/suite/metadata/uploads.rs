//! Blobs linked to repositories, and the upload sessions they came by.

use gantry_model::{RepositoryName, UploadId};

use super::{Stores, digest, is_absent, push, session, upload_id};
use crate::{Commit, ContentOrigin, suite::Checked};

pub async fn a_linked_blob_is_readable_in_its_repository_only(stores: Stores) -> Checked {
    let (name, other) = ("apps/web".parse()?, "apps/other".parse()?);
    stores.push(push(&other, "m", 1_000)?).await?;
    stores.link(&name, &digest("b")).await?;
    stores.link(&name, &digest("b")).await?;
    assert_eq!(
        stores
            .metadata
            .blob(&name, &ContentOrigin::Pushed, &digest("b"))
            .await?,
        Some(7)
    );
    assert_eq!(
        stores
            .metadata
            .blob(&other, &ContentOrigin::Pushed, &digest("b"))
            .await?,
        None
    );
    assert_eq!(
        stores
            .metadata
            .blob(&other, &ContentOrigin::Pushed, &digest("m"))
            .await?,
        None
    );
    let repository = stores.metadata.repository(&name).await?;
    assert_eq!(repository.map(|it| it.generation), Some(1));
    Ok(())
}

pub async fn linking_a_blob_ends_its_upload(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    for number in [1, 2] {
        stores
            .uploads
            .start_upload(&session(&name, number, 1_000))
            .await?;
    }
    let commit = Commit::LinkBlob {
        repository: name,
        origin: ContentOrigin::Pushed,
        principal: None,
        digest: digest("b"),
        size: 7,
        upload: Some(upload_id(1)),
    };
    stores.metadata.commit(commit.clone()).await?;
    assert_eq!(stores.uploads.upload(upload_id(1)).await?, None);
    assert!(stores.uploads.upload(upload_id(2)).await?.is_some());
    stores.metadata.commit(commit).await?;
    Ok(())
}

pub async fn a_blob_is_unlinked_once(stores: Stores) -> Checked {
    let name: RepositoryName = "apps/web".parse()?;
    let unlink = Commit::UnlinkBlob {
        repository: name.clone(),
        digest: digest("b"),
    };
    assert!(is_absent(&stores.metadata.commit(unlink.clone()).await));
    stores.link(&name, &digest("b")).await?;
    stores.metadata.commit(unlink.clone()).await?;
    assert_eq!(
        stores
            .metadata
            .blob(&name, &ContentOrigin::Pushed, &digest("b"))
            .await?,
        None
    );
    assert!(is_absent(&stores.metadata.commit(unlink).await));
    Ok(())
}

pub async fn an_upload_is_known_until_it_ends(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    let uploads = &stores.uploads;
    let record = session(&name, 1, 1_000);
    assert_eq!(uploads.upload(upload_id(1)).await?, None);
    uploads.start_upload(&record).await?;
    assert!(uploads.start_upload(&record).await.is_err());
    assert_eq!(uploads.upload(upload_id(1)).await?, Some(record));
    uploads.end_upload(upload_id(1)).await?;
    uploads.end_upload(upload_id(1)).await?;
    assert_eq!(uploads.upload(upload_id(1)).await?, None);
    assert_eq!(stores.metadata.repository(&name).await?, None);
    Ok(())
}

pub async fn stale_uploads_come_oldest_first(stores: Stores) -> Checked {
    let name = "apps/web".parse()?;
    for (number, started_at_ms) in [(1, 3_000), (2, 1_000), (3, 2_000), (4, 4_000)] {
        let record = session(&name, number, started_at_ms);
        stores.uploads.start_upload(&record).await?;
    }
    for (before_ms, limit, expected) in [
        (4_000, 9, vec![2, 3, 1]),
        (4_001, 2, vec![2, 3]),
        (1_000, 9, vec![]),
        (u64::MAX, 9, vec![2, 3, 1, 4]),
    ] {
        let stale = stores.uploads.stale_uploads(before_ms, limit).await?;
        let stale: Vec<UploadId> = stale.into_iter().map(|record| record.upload).collect();
        let expected: Vec<UploadId> = expected.into_iter().map(upload_id).collect();
        assert_eq!(stale, expected);
    }
    Ok(())
}
