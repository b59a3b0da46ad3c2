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
use gantry_model::{AcceptedTypes, Change, Digest, Operation, Reference, RepositoryName};
use gantry_registry::{
    Admission, Arrived, BlobContent, Body, Error, Freshness, Keep, ListedReferrers, MirrorSettings,
    Moves, Outcome, ServedBlob, Settings,
};
use gantry_storage::{Commit, ContentOrigin};
use gantry_upstream::{
    BlobStream, FetchedManifest, Kind, ListPage, ListRoom, ManifestHead, NextPage, Part, Upstream,
    UpstreamError,
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
        _accepts: &AcceptedTypes,
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
        _accepts: &AcceptedTypes,
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
        _next: Option<&NextPage>,
        _room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        Ok(ListPage {
            entries: ["v1", "v2", "v3"].into_iter().collect(),
            ..ListPage::default()
        })
    }

    async fn referrers(
        &self,
        _repository: &RepositoryName,
        _digest: &Digest,
        _next: Option<&NextPage>,
        _room: &ListRoom,
    ) -> Result<ListPage, UpstreamError> {
        let entry = |kind: &String| {
            let entry = serde_json::json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(kind.as_bytes()).to_string(),
                "size": 2,
                "artifactType": kind,
            });
            entry.to_string()
        };
        let entries: Vec<String> = self.referrers.iter().map(entry).collect();
        Ok(ListPage {
            entries: entries.iter().map(String::as_str).collect(),
            ..ListPage::default()
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
    assert_eq!(
        serves[2].target.as_ref().unwrap().media_type.as_str(),
        crate::harness::LAYER
    );
    assert_eq!(serves[2].target.as_ref().unwrap().size, 10);
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
        page: page(None, None),
    };
    let listed = alice.referrers_page(operation).await.unwrap();
    let index: serde_json::Value = serde_json::from_slice(&listed.index).unwrap();
    assert_eq!(listed.artifact_type.as_deref(), Some("application/x.sbom"));
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["artifactType"], "application/x.sbom");
}

/// Lists what refers to the subject, a page.
async fn listed(
    client: &crate::harness::Client,
    limit: Option<usize>,
    after: Option<&str>,
) -> ListedReferrers {
    let operation = Operation::ListReferrers {
        repository: mirrored(MIRRORED),
        digest: sha256(b"subject"),
        artifact_type: None,
        page: page(limit, after),
    };
    client.referrers_page(operation).await.unwrap()
}

fn digests(listed: &ListedReferrers) -> Vec<String> {
    let index: serde_json::Value = serde_json::from_slice(&listed.index).unwrap();
    let manifests = index["manifests"].as_array().unwrap().iter();
    let digest = |it: &serde_json::Value| it["digest"].as_str().unwrap().to_owned();
    manifests.map(digest).collect()
}

fn many(count: usize) -> Static {
    Static {
        referrers: (0..count)
            .map(|number| format!("application/x.{number}"))
            .collect(),
        ..Static::new()
    }
}

#[tokio::test]
async fn a_mirrors_list_that_policy_judges_is_never_cut_and_fetches_so_many_for_a_page() {
    let hooks = Hooks::on(&[Change::ServeManifest], |_| {
        panic!("there is nothing to judge")
    });
    let (world, upstream) = world_of(many(250), Arc::new(hooks));
    let alice = world.client("alice");
    let (mut after, mut pages) = (None::<String>, 0);
    loop {
        let before = upstream.manifest_gets.load(Ordering::SeqCst);
        let page = listed(&alice, None, after.as_deref()).await;
        // None of them can be pulled, so that none is listed.
        assert_eq!(digests(&page), [] as [String; 0]);
        let fetched = upstream.manifest_gets.load(Ordering::SeqCst) - before;
        assert!(fetched <= 64, "{fetched} for one page");
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(upstream.manifest_gets.load(Ordering::SeqCst), 250);
    assert!((4..=5).contains(&pages), "{pages} pages");
}

#[tokio::test]
async fn a_mirrors_referrers_are_paged_by_number_and_every_one_comes_once() {
    let (world, _upstream) = world_of(many(25), Arc::new(Hooks::none()));
    let alice = world.client("alice");
    let (mut all, mut after, mut sizes) = (Vec::new(), None::<String>, Vec::new());
    loop {
        let page = listed(&alice, Some(10), after.as_deref()).await;
        sizes.push(digests(&page).len());
        all.extend(digests(&page));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let mut expect: Vec<String> = (0..25)
        .map(|number| sha256(format!("application/x.{number}").as_bytes()).to_string())
        .collect();
    expect.sort();
    assert_eq!(all, expect);
    assert_eq!(sizes, [10, 10, 5]);
}

#[tokio::test]
async fn a_page_of_referrers_has_four_mib_or_one_entry() {
    let upstream = Static {
        referrers: (0..5)
            .map(|number| format!("x/{number}{}", "y".repeat(1_800_000)))
            .collect(),
        ..Static::new()
    };
    let (world, _upstream) = world_of(upstream, Arc::new(Hooks::none()));
    let alice = world.client("alice");
    let first = listed(&alice, None, None).await;
    assert_eq!(digests(&first).len(), 2);
    let second = listed(&alice, None, first.next.as_deref()).await;
    let third = listed(&alice, None, second.next.as_deref()).await;
    assert_eq!((digests(&second).len(), digests(&third).len()), (2, 1));
    assert_eq!(third.next, None);
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
