//! What every metadata store must pass, with its upload sessions.

use std::{error::Error, fmt, sync::Arc};

use gantry_model::{Algorithm, Digest, Page, RepositoryName, Tag, UploadId, media_type};

use crate::{
    CacheIndex, Commit, CommitError, ContentOrigin, ManifestRecord, MetadataStore, Named,
    PushManifest, ReferenceRecord, TagMove, TagRecord, UploadRecord, UploadSessions, digest_of,
};

mod cache;
mod deletes;
mod lists;
mod origins;
mod pushes;
mod uploads;

pub use cache::*;
pub use deletes::*;
pub use lists::*;
pub use origins::*;
pub use pushes::*;
pub use uploads::*;

type Failure = Box<dyn Error + Send + Sync>;

/// Tests a metadata store; see [`crate::suite`]. The store is a [`Stores`].
#[macro_export]
macro_rules! metadata_suite {
    ($make:path) => {
        $crate::suite_tests! { $make, metadata,
            an_unknown_repository_holds_nothing
            a_push_makes_the_repository_and_everything_of_the_manifest
            a_manifest_pushed_again_keeps_its_first_record
            a_tag_pushed_again_keeps_who_pushed_it_and_when
            a_tag_moves_only_from_what_was_expected
            a_refused_push_changes_nothing
            one_push_moves_several_tags
            immutability_is_only_ever_set
            a_tag_marked_immutable_moves_nowhere_and_stays
            of_racing_pushes_to_one_tag_exactly_one_wins
            racing_pushes_by_digest_all_succeed
            what_is_required_must_be_in_the_same_repository
            content_is_found_by_its_own_origin_only
            what_is_required_must_have_the_same_origin
            a_pushed_manifest_claims_its_repository_until_it_is_released
            a_release_leaves_what_an_upstream_delivered
            a_release_stops_at_an_immutable_tag
            who_uploaded_a_blob_is_remembered_while_it_is_linked
            a_linked_blob_is_readable_in_its_repository_only
            linking_a_blob_ends_its_upload
            a_blob_is_unlinked_once
            a_blob_is_deleted_only_when_no_pushed_manifest_names_it
            a_manifest_goes_with_exactly_its_tags
            a_manifest_stays_when_another_tag_appeared
            a_manifest_stays_when_a_tag_moved_away
            deleting_what_is_not_there_says_so
            a_tag_is_deleted_only_from_what_was_expected
            a_confirmation_only_moves_the_time_of_the_named_digest
            referrers_are_listed_whether_or_not_the_subject_exists
            referrers_are_read_a_few_at_a_time
            parents_say_what_they_call_the_content
            lists_are_sorted_by_bytes_and_paged
            a_repository_is_listed_while_it_holds_a_manifest
            tags_of_one_manifest_are_paged_too
            an_upload_is_known_until_it_ends
            stale_uploads_come_oldest_first
            a_cache_is_measured_below_its_prefix_and_counts_shared_blobs_once
            what_lies_below_the_prefix_and_is_no_cache_is_left_out
            content_is_as_recent_as_what_names_it
            facts_begin_with_the_first_change_of_a_tag
            a_use_goes_with_what_was_used
            content_is_held_while_any_repository_has_it
            one_repository_is_asked_about_without_those_below_it
            repositories_that_hold_something_are_listed_by_name
            a_pin_stays_as_it_was_made_until_it_is_taken_away
        }
    };
}

/// One store, by its ports.
#[derive(Clone, Debug)]
pub struct Stores {
    /// The facts.
    pub metadata: Arc<dyn MetadataStore>,
    /// The sessions.
    pub uploads: Arc<dyn UploadSessions>,
    /// What eviction asks.
    pub cache: Arc<dyn CacheIndex>,
}

impl Stores {
    /// Of a store that is all of them.
    pub fn new<S: CacheIndex + MetadataStore + UploadSessions + 'static>(store: Arc<S>) -> Self {
        let metadata: Arc<dyn MetadataStore> = Arc::<S>::clone(&store);
        let cache: Arc<dyn CacheIndex> = Arc::<S>::clone(&store);
        Self {
            metadata,
            uploads: store,
            cache,
        }
    }

    async fn unlink(&self, repository: &RepositoryName, blob: &Digest) -> Result<(), CommitError> {
        let commit = Commit::UnlinkBlob {
            repository: repository.clone(),
            digest: blob.clone(),
        };
        self.metadata.commit(commit).await
    }

    async fn push(&self, push: PushManifest) -> Result<(), CommitError> {
        let commit = Commit::PushManifest(Box::new(push));
        self.metadata.commit(commit).await
    }

    async fn link(&self, repository: &RepositoryName, blob: &Digest) -> Result<(), CommitError> {
        let commit = Commit::LinkBlob {
            repository: repository.clone(),
            digest: blob.clone(),
            size: 7,
            origin: ContentOrigin::Pushed,
            upload: None,
            principal: None,
        };
        self.metadata.commit(commit).await
    }

    async fn deliver(&self, repository: &RepositoryName, blob: &Digest) -> Result<(), CommitError> {
        let commit = Commit::LinkBlob {
            repository: repository.clone(),
            origin: upstream(),
            digest: blob.clone(),
            size: 9,
            upload: None,
            principal: None,
        };
        self.metadata.commit(commit).await
    }

    async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
        tags: &[Tag],
    ) -> Result<(), CommitError> {
        let commit = Commit::DeleteManifest {
            repository: repository.clone(),
            digest: manifest.clone(),
            tags: tags.to_vec(),
            at_ms: 9_000,
            by: "deleter".to_owned(),
        };
        self.metadata.commit(commit).await
    }

    async fn delete_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        expected: &Digest,
    ) -> Result<(), CommitError> {
        let commit = Commit::DeleteTag {
            repository: repository.clone(),
            tag: tag.clone(),
            expected: expected.clone(),
            at_ms: 9_000,
            by: "deleter".to_owned(),
        };
        self.metadata.commit(commit).await
    }

    async fn state(&self, repository: &RepositoryName, tag: &Tag) -> Result<TagRecord, Failure> {
        let record = self.metadata.tag(repository, tag).await?;
        Ok(record.ok_or("the tag is not there")?)
    }

    async fn tag_names(
        &self,
        repository: &RepositoryName,
        manifest: Option<&Digest>,
        page: &Page,
    ) -> Result<Vec<String>, Failure> {
        let tags = self.metadata.tags(repository, manifest, page).await?;
        Ok(names(tags.iter().map(|record| &record.tag)))
    }
}

/// An upstream.
#[must_use]
pub fn upstream() -> ContentOrigin {
    ContentOrigin::Upstream("https://upstream.test".into())
}

/// A digest that belongs to this text.
#[must_use]
pub fn digest(text: &str) -> Digest {
    digest_of(Algorithm::Sha256, text.as_bytes())
}

/// A manifest's record at a time, by `pusher`.
///
/// # Errors
/// None that can happen.
pub fn manifest(text: &str, pushed_at_ms: u64) -> Result<ManifestRecord, Failure> {
    Ok(ManifestRecord {
        digest: digest(text),
        media_type: media_type::OCI_MANIFEST.parse()?,
        size: text.len() as u64,
        artifact_type: None,
        subject: None,
        pushed_at_ms,
        pushed_by: format!("pusher at {pushed_at_ms}"),
    })
}

/// A push of that manifest, with no tags and no references.
///
/// # Errors
/// None that can happen.
pub fn push(repository: &RepositoryName, text: &str, at_ms: u64) -> Result<PushManifest, Failure> {
    Ok(PushManifest {
        repository: repository.clone(),
        origin: ContentOrigin::Pushed,
        manifest: manifest(text, at_ms)?,
        annotations: "{}".to_owned(),
        references: Vec::new(),
        tags: Vec::new(),
        required: Vec::new(),
    })
}

/// A push that points a tag, which names `expected` now.
///
/// # Errors
/// None that can happen.
pub fn push_tag(
    repository: &RepositoryName,
    text: &str,
    at_ms: u64,
    tag: &Tag,
    expected: Option<&str>,
) -> Result<PushManifest, Failure> {
    let mut push = push(repository, text, at_ms)?;
    push.tags = vec![TagMove {
        tag: tag.clone(),
        expected: expected.map(digest),
        set_immutable: false,
        checked_at_ms: 0,
    }];
    Ok(push)
}

fn names(names: impl Iterator<Item = impl fmt::Display>) -> Vec<String> {
    names.map(|name| name.to_string()).collect()
}

fn everything() -> Page {
    Page::default()
}

fn page(limit: usize, after: &str) -> Page {
    Page {
        limit: Some(limit),
        after: Some(after.to_owned()),
    }
}

fn reference(text: &str, media_type: &str) -> Result<ReferenceRecord, Failure> {
    Ok(ReferenceRecord {
        digest: digest(text),
        media_type: media_type.parse()?,
        size: 5,
        named: Named::Blob,
    })
}

/// The tag that moved, and what it names now.
fn moved(result: Result<(), CommitError>) -> Result<(Tag, Option<TagRecord>), Failure> {
    match result {
        Err(CommitError::TagMoved { tag, current }) => Ok((tag, current.map(|record| *record))),
        other => Err(format!("not a moved tag: {other:?}").into()),
    }
}

fn is_absent(result: &Result<(), CommitError>) -> bool {
    matches!(result, Err(CommitError::Absent))
}

fn upload_id(number: u8) -> UploadId {
    UploadId::from_random([number; 16])
}

fn session(repository: &RepositoryName, number: u8, started_at_ms: u64) -> UploadRecord {
    UploadRecord {
        upload: upload_id(number),
        repository: repository.clone(),
        principal: "somebody".to_owned(),
        algorithm: Algorithm::Sha512,
        started_at_ms,
    }
}
