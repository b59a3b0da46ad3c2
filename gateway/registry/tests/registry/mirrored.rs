//! A policy binds on the very first proxied pull, on every path, before a byte of the content is fetched for the client.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use gantry_model::{Change, Digest, Operation, Page, Reference, RepositoryName, Tag};
use gantry_registry::{
    Admission, Arrived, BlobContent, Body, Error, Freshness, Keep, MirrorSettings, Moves, Outcome,
    ServedBlob, Settings,
};
use gantry_storage::{Commit, ContentOrigin};
use gantry_upstream::{
    BlobStream, FetchedManifest, Kind, ManifestHead, Part, TagPage, Upstream, UpstreamError,
};

use crate::harness::{
    Content, Hooks, MIRRORED, World, bytes_of, denied, image, index, mirrored, name, page, sha256,
    tag,
};

/// An upstream that has an index `v1` with one child, lists referrers it does not have, and counts GETs.
#[derive(Debug)]
struct Static {
    manifests: HashMap<String, Content>,
    blobs: HashMap<Digest, Bytes>,
    referrers: Vec<String>,
    blob_gets: AtomicUsize,
    manifest_gets: AtomicUsize,
}

impl Static {
    fn new() -> Self {
        let (child, parent) = contents();
        let named = [
            ("v1".to_owned(), parent.clone()),
            (parent.digest.to_string(), parent),
            (child.digest.to_string(), child),
        ];
        let blob =
            |text: &'static str| (sha256(text.as_bytes()), Bytes::from_static(text.as_bytes()));
        Self {
            manifests: named.into(),
            blobs: [blob("config"), blob("0123456789")].into(),
            referrers: ["application/x.sbom", "application/x.signature"]
                .map(str::to_owned)
                .into(),
            blob_gets: AtomicUsize::new(0),
            manifest_gets: AtomicUsize::new(0),
        }
    }

    fn find(&self, reference: &Reference) -> Result<&Content, UpstreamError> {
        let found = self.manifests.get(&reference.to_string());
        found.ok_or_else(not_found)
    }

    fn bytes(&self, digest: &Digest) -> Result<&Bytes, UpstreamError> {
        self.blobs.get(digest).ok_or_else(not_found)
    }
}

fn not_found() -> UpstreamError {
    UpstreamError {
        kind: Kind::NotFound,
        upstream: "hub".to_owned(),
        attempt: "GET: 404".to_owned(),
        cause: gantry_upstream::Cause::Answer,
        retry_after: None,
        source: None,
    }
}

fn contents() -> (Content, Content) {
    let child = image("config", &["0123456789"]);
    let parent = index(&[&child]);
    (child, parent)
}

#[async_trait]
impl Upstream for Static {
    async fn head_manifest(
        &self,
        _repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<ManifestHead, UpstreamError> {
        let content = self.find(reference)?;
        Ok(ManifestHead {
            digest: Some(content.digest.clone()),
            media_type: Some(content.media_type.clone()),
            size: Some(content.bytes.len() as u64),
        })
    }

    async fn manifest(
        &self,
        _repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, UpstreamError> {
        self.manifest_gets.fetch_add(1, Ordering::SeqCst);
        let content = self.find(reference)?;
        Ok(FetchedManifest {
            media_type: Some(content.media_type.clone()),
            digest: Some(content.digest.clone()),
            bytes: content.bytes.clone(),
        })
    }

    async fn stat_blob(
        &self,
        _repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<u64>, UpstreamError> {
        Ok(Some(self.bytes(digest)?.len() as u64))
    }

    async fn blob(
        &self,
        _repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<BlobStream, UpstreamError> {
        self.blob_gets.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes(digest)?.clone();
        let rest = bytes.slice(usize::try_from(offset).expect("small")..);
        Ok(BlobStream {
            size: Some(bytes.len() as u64),
            offset,
            last: None,
            etag: None,
            bytes: stream::iter([Ok(rest)]).boxed(),
        })
    }

    async fn blob_part(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        _part: Part,
    ) -> Result<BlobStream, UpstreamError> {
        self.blob(repository, digest, 0).await
    }

    async fn tags(
        &self,
        _repository: &RepositoryName,
        page: &Page,
    ) -> Result<TagPage, UpstreamError> {
        let all = ["v1", "v2", "v3"];
        let tags = all.iter().map(|text| tag(text));
        let tags = tags.filter(|tag| {
            page.after
                .as_deref()
                .is_none_or(|after| tag.as_str() > after)
        });
        let tags: Vec<Tag> = tags.collect();
        let limit = page.limit.unwrap_or(usize::MAX);
        Ok(TagPage {
            more: tags.len() > limit,
            tags: tags.into_iter().take(limit).collect(),
        })
    }

    async fn referrers(
        &self,
        _repository: &RepositoryName,
        _digest: &Digest,
    ) -> Result<FetchedManifest, UpstreamError> {
        let entry = |kind: &String| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(kind.as_bytes()).to_string(),
                "size": 2,
                "artifactType": kind,
            })
        };
        let document = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.referrers.iter().map(entry).collect::<Vec<_>>(),
        });
        Ok(FetchedManifest {
            media_type: None,
            digest: None,
            bytes: document.to_string().into(),
        })
    }
}

fn world(admission: Arc<dyn Admission>) -> (World, Arc<Static>) {
    world_of(Static::new(), admission)
}

fn world_of(upstream: Static, admission: Arc<dyn Admission>) -> (World, Arc<Static>) {
    let upstream = Arc::new(upstream);
    let mirror = MirrorSettings {
        counts: Arc::default(),
        upstream: Arc::clone(&upstream) as _,
        prefix: "hub".parse().unwrap(),
        keep: Keep::default(),
        freshness: Freshness {
            fresh_for: Duration::from_secs(60),
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::from_secs(3600),
            moves: Moves::Follow,
            min_age: Duration::ZERO,
        },
        rules: Vec::new(),
        prefetch: false,
        parallel: None,
        not_found_for: Duration::from_secs(10),
        is_listed: true,
        origin: ContentOrigin::Upstream("https://hub.test".into()),
    };
    let mut world = World::build(admission, Settings::default());
    world.ports.mirrors.insert("hub".into(), mirror);
    (world.restarted(), upstream)
}

/// The bytes a served blob would send, also while they arrive.
async fn drain(served: ServedBlob) -> Bytes {
    match served.content {
        BlobContent::Filling(stream) => {
            let arrived: Vec<Arrived> = stream.try_collect().await.unwrap();
            let mut whole = Vec::new();
            for arrived in arrived {
                match arrived {
                    Arrived::Loose(bytes) => whole.extend_from_slice(&bytes),
                    Arrived::Stored {
                        blob,
                        offset,
                        length,
                    } => {
                        let length = usize::try_from(length).unwrap();
                        whole.extend_from_slice(&blob.read_at(offset, length).await.unwrap());
                    }
                }
            }
            whole.into()
        }
        BlobContent::Published(_) | BlobContent::HeadersOnly => bytes_of(&served).await,
    }
}

#[tokio::test]
async fn a_denied_image_is_denied_on_its_first_pull_on_every_path() {
    let (child, parent) = contents();
    let references = ["v1", parent.digest.as_str(), child.digest.as_str()];
    for (reference, body) in references
        .into_iter()
        .flat_map(|it| [(it, true), (it, false)])
    {
        let (world, upstream) = world(serves_nothing());
        let pulled = world.client("alice").pull_mirrored(reference, body).await;
        assert!(
            matches!(pulled, Err(Error::Denied(_))),
            "{reference} {body}"
        );
        assert_eq!(upstream.blob_gets.load(Ordering::SeqCst), 0);
    }
    let layer = sha256(b"0123456789");
    for (range, body) in [(None, true), (None, false), (Some("0-1"), true)] {
        let (world, upstream) = world(serves_nothing());
        let alice = world.client("alice");
        let pulled = alice.pull_mirrored_blob(&layer, range, body).await;
        assert!(matches!(pulled, Err(Error::Denied(_))), "{range:?} {body}");
        assert_eq!(upstream.blob_gets.load(Ordering::SeqCst), 0);
    }
}

fn serves_nothing() -> Arc<Hooks> {
    let serves = [Change::ServeManifest, Change::ServeBlob];
    Arc::new(Hooks::on(&serves, |_| Err(denied("scan"))))
}

#[tokio::test]
async fn a_serve_from_a_mirror_tells_tag_parents_and_type() {
    let hooks = Hooks::recording();
    let (world, _upstream) = world(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let (child, parent) = contents();
    alice.pull_mirrored("v1", true).await.unwrap();
    alice
        .pull_mirrored(child.digest.as_str(), false)
        .await
        .unwrap();
    let layer = sha256(b"0123456789");
    alice.pull_mirrored_blob(&layer, None, false).await.unwrap();
    let mut serves = hooks.take_seen();
    serves.retain(|asked| asked.change.is_serve());
    assert_eq!(serves.len(), 3);
    assert_eq!(serves[0].repository.name.as_str(), MIRRORED);
    assert_eq!(serves[0].tag, Some(tag("v1")));
    let named = serves[0].previous.as_ref().map(|state| &state.digest);
    assert_eq!(named, Some(&parent.digest));
    assert_eq!(serves[1].parents, [parent.digest]);
    assert_eq!(serves[2].parents, [child.digest]);
    assert_eq!(serves[2].target.media_type.as_str(), crate::harness::LAYER);
    assert_eq!(serves[2].target.size, 10);
}

#[tokio::test]
async fn an_admitted_blob_arrives_whole_and_in_parts_and_is_fetched_once() {
    let (world, upstream) = world(Arc::new(Hooks::none()));
    let alice = world.client("alice");
    let layer = sha256(b"0123456789");
    let head = alice.pull_mirrored_blob(&layer, None, false).await.unwrap();
    assert_eq!(head.size, Some(10));
    assert!(matches!(head.content, BlobContent::HeadersOnly));
    assert_eq!(upstream.blob_gets.load(Ordering::SeqCst), 0);
    for (range, expect) in [
        (Some("2-4"), "234"),
        (None, "0123456789"),
        (Some("-3"), "789"),
    ] {
        let served = alice.pull_mirrored_blob(&layer, range, true).await.unwrap();
        assert_eq!(served.size, Some(10));
        assert_eq!(served.range.is_some(), range.is_some());
        assert_eq!(drain(served).await, expect);
    }
    let outside = alice.pull_mirrored_blob(&layer, Some("10-"), true).await;
    assert!(matches!(
        outside,
        Err(Error::RangeUnsatisfiable { size: 10 })
    ));
    assert_eq!(upstream.blob_gets.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn tags_and_referrers_of_a_mirror_are_paged_and_filtered() {
    let (world, _upstream) = world(Arc::new(Hooks::none()));
    let alice = world.client("alice");
    for (limit, count, expect) in [(Some(2), 2, Some(2)), (None, 3, None), (Some(0), 0, None)] {
        let operation = Operation::ListTags {
            repository: mirrored(MIRRORED),
            page: page(limit, None),
        };
        let listed = alice.perform(operation, Body::empty()).await.unwrap();
        let Outcome::Tags { tags, next, .. } = listed else {
            panic!("{listed:?}");
        };
        assert_eq!((tags.len(), next), (count, expect));
    }
    let operation = Operation::ListReferrers {
        repository: mirrored(MIRRORED),
        digest: sha256(b"subject"),
        artifact_type: Some("application/x.sbom".to_owned()),
    };
    let listed = alice.perform(operation, Body::empty()).await.unwrap();
    let Outcome::Referrers { index, filtered } = listed else {
        panic!("{listed:?}");
    };
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert!(filtered);
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["artifactType"], "application/x.sbom");
}

#[tokio::test]
async fn a_mirrors_list_that_policy_judges_fetches_so_many_and_lists_what_can_be_pulled() {
    let upstream = Static {
        referrers: (0..250)
            .map(|number| format!("application/x.{number}"))
            .collect(),
        ..Static::new()
    };
    let hooks = Hooks::on(&[Change::ServeManifest], |_| {
        panic!("there is nothing to judge")
    });
    let (world, upstream) = world_of(upstream, Arc::new(hooks));
    let operation = Operation::ListReferrers {
        repository: mirrored(MIRRORED),
        digest: sha256(b"subject"),
        artifact_type: None,
    };
    let alice = world.client("alice");
    let listed = alice.perform(operation, Body::empty()).await.unwrap();
    let Outcome::Referrers { index, .. } = listed else {
        panic!("{listed:?}");
    };
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"], serde_json::json!([]));
    assert_eq!(upstream.manifest_gets.load(Ordering::SeqCst), 200);
}

#[tokio::test]
async fn a_blob_that_the_upstream_delivered_is_mounted_and_no_other() {
    let (world, _upstream) = world(Arc::new(Hooks::none()));
    let alice = world.client("alice");
    let alice = alice.granted(Operation::pull_scope(&name(MIRRORED)));
    let secret = alice.push_blob("secret/app", b"secret").await.unwrap();
    let layer = sha256(b"0123456789");
    let link = |digest: &Digest, size, origin| Commit::LinkBlob {
        repository: name(MIRRORED),
        origin,
        digest: digest.clone(),
        size,
        upload: None,
        principal: None,
    };
    let elsewhere = ContentOrigin::Upstream("https://elsewhere.test".into());
    for origin in [ContentOrigin::Pushed, elsewhere] {
        let commit = world.ports.metadata.commit(link(&secret, 6, origin));
        commit.await.unwrap();
    }
    let served = alice.pull_mirrored_blob(&layer, None, true).await.unwrap();
    drain(served).await;
    for (digest, is_mounted) in [(&layer, true), (&secret, false)] {
        let source = Some(mirrored(MIRRORED));
        let outcome = alice.mount("apps/api", digest, source).await.unwrap();
        let mounted = matches!(outcome, Outcome::BlobPushed { .. });
        assert_eq!(mounted, is_mounted, "{digest}");
    }
}
