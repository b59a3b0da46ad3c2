//! Every path asks before anything is visible or leaves, and says what it is about.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use gantry_model::{
    AdmissionRequest, Admitted, Change, DenialCode, Refusal, Repository, media_type,
};
use gantry_registry::{Admission, Error, Outcome, Ports};

use serde_json::json;

use crate::harness::{
    CONFIG, Content, Hooks, LAYER, World, denied, hosted, image, image_document, index, page,
    sha256, tag,
};

const REPOSITORY: &str = "apps/web";

#[tokio::test]
async fn a_push_is_asked_about_once_per_tag_with_what_it_names() {
    let hooks = Hooks::recording();
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let first = alice.push_image(REPOSITORY, "v1", "one").await;
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].change, Change::CreateTag);
    assert_eq!(asked[0].repository, hosted(REPOSITORY));
    assert_eq!(asked[0].requester.principal.id, "alice");
    assert_eq!(asked[0].tag, Some(tag("v1")));
    assert_eq!(asked[0].previous, None);
    assert_eq!(asked[0].manifest.as_ref(), Some(&first.bytes));
    let target = asked[0].target.as_ref().unwrap();
    assert_eq!(target.digest, first.digest);
    assert_eq!(target.media_type.as_str(), media_type::OCI_MANIFEST);
    assert_eq!(target.size, first.bytes.len() as u64);
    assert_eq!(target.artifact_type.as_deref(), Some(CONFIG));

    world.clock.advance_ms(5);
    let bob = world.client("bob");
    let second = bob.push_image(REPOSITORY, "v1", "two").await;
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].change, Change::MoveTag);
    let previous = asked[0].previous.as_ref().unwrap();
    assert_eq!(previous.digest, first.digest);
    assert_eq!(previous.pushed_by, "alice");

    let tags = ["v1", "v2"];
    bob.push_tagged(REPOSITORY, second.digest.as_str(), &tags, &second)
        .await
        .unwrap();
    let asked: Vec<_> = hooks.take_seen().iter().map(|asked| asked.change).collect();
    assert_eq!(asked, [Change::MoveTag, Change::CreateTag]);

    bob.push(REPOSITORY, second.digest.as_str(), &second)
        .await
        .unwrap();
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(
        (asked[0].change, &asked[0].tag),
        (Change::PushByDigest, &None)
    );
}

#[tokio::test]
async fn a_serve_is_asked_about_on_every_path() {
    let hooks = Hooks::recording();
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let child = alice.push_image(REPOSITORY, "child", "one").await;
    let parent = index(&[&child]);
    alice.push(REPOSITORY, "v1", &parent).await.unwrap();
    hooks.take_seen();

    for (reference, expect) in [
        ("v1", &parent),
        (parent.digest.as_str(), &parent),
        (child.digest.as_str(), &child),
    ] {
        let pulled = alice.pull(REPOSITORY, reference).await.unwrap();
        let head = alice.head(REPOSITORY, reference).await.unwrap();
        assert_eq!(
            (&pulled.digest, &head.digest),
            (&expect.digest, &expect.digest)
        );
        let asked = hooks.take_seen();
        assert_eq!(asked.len(), 2, "{reference}");
        for asked in asked {
            let by_tag = reference == "v1";
            assert_eq!(asked.change, Change::ServeManifest);
            assert_eq!(asked.target.as_ref().unwrap().digest, expect.digest);
            assert_eq!(asked.manifest.as_ref(), Some(&expect.bytes));
            assert_eq!(asked.tag.is_some(), by_tag);
            assert_eq!(asked.previous.is_some(), by_tag);
            let is_child = expect.digest == child.digest;
            let parents = is_child.then(|| parent.digest.clone());
            assert_eq!(asked.parents, Vec::from_iter(parents));
        }
    }

    let layer = sha256(b"layer of one");
    alice.pull_blob(REPOSITORY, &layer, None).await.unwrap();
    alice
        .pull_blob(REPOSITORY, &layer, Some("0-1"))
        .await
        .unwrap();
    alice.head_blob(REPOSITORY, &layer).await.unwrap();
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 3);
    for asked in asked {
        assert_eq!(asked.change, Change::ServeBlob);
        let target = asked.target.as_ref().unwrap();
        assert_eq!(target.media_type.as_str(), LAYER);
        assert_eq!((&target.digest, target.size), (&layer, 12));
        assert_eq!(asked.parents, std::slice::from_ref(&child.digest));
        assert_eq!(asked.manifest, None);
    }
    let orphan = alice.push_blob(REPOSITORY, b"orphan").await.unwrap();
    alice.pull_blob(REPOSITORY, &orphan, None).await.unwrap();
    let asked = hooks.take_seen();
    assert_eq!(
        asked[0].target.as_ref().unwrap().media_type.as_str(),
        media_type::OCTET_STREAM
    );
    assert!(asked[0].parents.is_empty());
}

#[tokio::test]
async fn whoever_only_writes_a_digest_down_is_no_parent() {
    let hooks = Hooks::recording();
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = world.client("alice");
    let owner = alice.push_image(REPOSITORY, "v1", "one").await;
    let layer = sha256(b"layer of one");
    let mut document = image_document("config of one", &["layer of one"]);
    document["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    document["layers"][0]["mediaType"] = json!("application/x.elsewhere");
    let elsewhere = Content::new(media_type::OCI_MANIFEST, &document);
    let listing = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [{ "mediaType": media_type::OCI_MANIFEST, "digest": layer.to_string(), "size": 12 }],
    });
    let listing = Content::new(media_type::OCI_INDEX, &listing);
    for (tag, content) in [("v2", &elsewhere), ("v3", &listing)] {
        alice.push(REPOSITORY, tag, content).await.unwrap();
    }
    hooks.take_seen();
    alice.pull_blob(REPOSITORY, &layer, None).await.unwrap();
    let asked = hooks.take_seen();
    assert_eq!(asked[0].parents, std::slice::from_ref(&owner.digest));
    assert_eq!(asked[0].target.as_ref().unwrap().media_type.as_str(), LAYER);
    // A layer named twice, once as the image's own, is its own.
    let mut both = image_document("config of one", &["layer of one", "layer of one"]);
    both["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    let both = Content::new(media_type::OCI_MANIFEST, &both);
    alice.push(REPOSITORY, "v4", &both).await.unwrap();
    hooks.take_seen();
    alice.head_blob(REPOSITORY, &layer).await.unwrap();
    let mut owners = [owner.digest.clone(), both.digest.clone()];
    owners.sort();
    assert_eq!(hooks.take_seen()[0].parents, owners);
}

#[tokio::test]
async fn a_refused_serve_gives_out_nothing_on_any_path() {
    let serves = [Change::ServeManifest, Change::ServeBlob];
    let hooks = Hooks::on(&serves, |_| Err(denied("scan")));
    let world = World::with_admission(Arc::new(hooks));
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    let layer = sha256(b"layer of one");
    let digest = image.digest.as_str();
    let refused = [
        alice.pull(REPOSITORY, "v1").await.err(),
        alice.head(REPOSITORY, "v1").await.err(),
        alice.pull(REPOSITORY, digest).await.err(),
        alice.head(REPOSITORY, digest).await.err(),
        alice.pull_blob(REPOSITORY, &layer, None).await.err(),
        alice.pull_blob(REPOSITORY, &layer, Some("0-0")).await.err(),
        // Not even how long it is.
        alice.pull_blob(REPOSITORY, &layer, Some("99-")).await.err(),
        alice.head_blob(REPOSITORY, &layer).await.err(),
    ];
    for (path, error) in refused.into_iter().enumerate() {
        let Some(Error::Denied(denial)) = error else {
            panic!("path {path}: {error:?}");
        };
        assert_eq!(&*denial.reason.code, "scan");
    }
}

#[tokio::test]
async fn one_refused_tag_refuses_the_whole_push() {
    let hooks = Hooks::on(&[Change::CreateTag], |request| {
        match request.tag.as_ref().map(gantry_model::Tag::as_str) {
            Some("bad") => Err(denied("name")),
            _ => Ok(Admitted::default()),
        }
    });
    let world = World::with_admission(Arc::new(hooks));
    let alice = world.client("alice");
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    let image = image("{}", &[]);
    for (reference, tags) in [
        ("good", vec!["bad"]),
        ("bad", vec!["good"]),
        (image.digest.as_str(), vec!["a", "bad", "z"]),
    ] {
        let pushed = alice
            .push_tagged(REPOSITORY, reference, &tags, &image)
            .await;
        assert!(matches!(pushed, Err(Error::Denied(_))), "{pushed:?}");
        let (tags, _) = alice.tags(REPOSITORY, page(None, None)).await.unwrap();
        assert!(tags.is_empty());
        let error = alice.pull(REPOSITORY, image.digest.as_str()).await;
        assert!(matches!(error, Err(Error::ManifestUnknown)), "{error:?}");
    }
}

#[tokio::test]
async fn warnings_reach_the_client() {
    let warned = Admitted {
        warnings: vec!["soon deprecated".to_owned()],
        set_immutable: false,
    };
    let hooks = Hooks::on(&Change::ALL, move |_| Ok(warned.clone()));
    let world = World::with_admission(Arc::new(hooks));
    let alice = world.client("alice");
    let image = alice.push_image(REPOSITORY, "v1", "one").await;
    let pushed = alice.push(REPOSITORY, "v1", &image).await.unwrap();
    let Outcome::ManifestPushed { warnings, .. } = pushed else {
        panic!("{pushed:?}");
    };
    assert_eq!(warnings, ["soon deprecated"]);
    let served = alice.pull(REPOSITORY, "v1").await.unwrap();
    assert_eq!(served.warnings, ["soon deprecated"]);
    let layer = sha256(b"layer of one");
    let served = alice.pull_blob(REPOSITORY, &layer, None).await.unwrap();
    assert_eq!(served.warnings, ["soon deprecated"]);
}

#[tokio::test]
async fn a_hook_that_holds_or_fails_is_not_a_denial() {
    let hooks = Hooks::on(&Change::ALL, |request| {
        Err(match request.change {
            Change::PushByDigest => Refusal::Failed {
                plugin: "scan".into(),
                failure: "deadline".to_owned(),
            },
            _ => Refusal::Held {
                retry_after: Duration::from_secs(7),
                reason: "scanning".to_owned(),
                plugin: "scan".into(),
            },
        })
    });
    let world = World::with_admission(Arc::new(hooks));
    let alice = world.client("alice");
    alice.push_blob(REPOSITORY, b"{}").await.unwrap();
    let image = image("{}", &[]);
    let held = alice.push(REPOSITORY, "v1", &image).await.unwrap_err();
    let Error::Held {
        retry_after,
        reason,
    } = held
    else {
        panic!("{held:?}");
    };
    assert_eq!((retry_after.as_secs(), reason.as_str()), (7, "scanning"));
    let digest = image.digest.as_str();
    let failed = alice.push(REPOSITORY, digest, &image).await.unwrap_err();
    assert!(matches!(failed, Error::Unavailable { .. }), "{failed:?}");
    assert!(!failed.to_string().contains("deadline"));
}

#[tokio::test]
async fn a_tag_marked_immutable_stays_without_any_hook() {
    let mark = Admitted {
        warnings: Vec::new(),
        set_immutable: true,
    };
    let hooks = Hooks::on(&[Change::CreateTag], move |_| Ok(mark.clone()));
    let world = World::with_admission(Arc::new(hooks));
    let alice = world.client("alice");
    let first = alice.push_image(REPOSITORY, "v1", "one").await;
    alice.push(REPOSITORY, "v1", &first).await.unwrap();
    let second = alice.push_image(REPOSITORY, "v2", "two").await;
    let digest = second.digest.as_str();
    for refused in [
        alice.push(REPOSITORY, "v1", &second).await,
        alice
            .push_tagged(REPOSITORY, digest, &["v1"], &second)
            .await,
        alice.delete_tag(REPOSITORY, "v1").await,
        alice.delete_manifest(REPOSITORY, &first.digest).await,
    ] {
        let Err(Error::Denied(denial)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(denial.code, DenialCode::Denied);
        assert_eq!(&*denial.reason.code, "immutable");
        assert_eq!(denial.message, "tag v1 is immutable");
    }
    let served = alice.pull(REPOSITORY, "v1").await.unwrap();
    assert_eq!(served.digest, first.digest);
}

/// Looks at the stores when it is asked.
#[derive(Debug, Default)]
struct Witness {
    ports: OnceLock<Ports>,
}

#[async_trait]
impl Admission for Witness {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        change == Change::CreateTag
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        let ports = self.ports.get().expect("set");
        let name = &request.repository.name;
        let manifest = ports.metadata.manifest(
            name,
            &gantry_storage::ContentOrigin::Pushed,
            &request.target.as_ref().unwrap().digest,
        );
        assert_eq!(
            manifest.await.unwrap(),
            None,
            "visible before it is admitted"
        );
        let tag = ports.metadata.tag(name, &request.tag.unwrap()).await;
        assert_eq!(tag.unwrap(), None, "visible before it is admitted");
        let found = gantry_storage::digest_of(
            request.target.as_ref().unwrap().digest.algorithm(),
            &request.manifest.unwrap(),
        );
        assert_eq!(
            found,
            request.target.as_ref().unwrap().digest,
            "asked before it is verified"
        );
        Ok(Admitted::default())
    }
}

#[tokio::test]
async fn admission_comes_after_the_digest_and_before_the_commit() {
    let witness = Arc::new(Witness::default());
    let world = World::with_admission(Arc::clone(&witness) as _);
    witness.ports.set(world.ports.clone()).unwrap();
    let alice = world.client("alice");
    alice.push_image(REPOSITORY, "v1", "one").await;
    alice.pull(REPOSITORY, "v1").await.unwrap();
}

#[tokio::test]
async fn a_manifest_names_only_blobs_that_its_pusher_brought_or_may_pull() {
    let hooks = Hooks::on(&[Change::ServeBlob], |request| {
        match request.requester.principal.id.as_str() {
            "mallory" => Err(denied("scan")),
            _ => Ok(Admitted::default()),
        }
    });
    let hooks = Arc::new(hooks);
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let image = world
        .client("alice")
        .push_image(REPOSITORY, "v1", "one")
        .await;
    assert!(hooks.take_seen().is_empty(), "what alice brought is hers");
    let mallory = world.client("mallory");
    let refused = mallory.push(REPOSITORY, "mine", &image).await;
    let Err(Error::ManifestBlobUnknown { digests }) = &refused else {
        panic!("{refused:?}");
    };
    assert_eq!(digests.len(), 2);
    let blobs: Vec<_> = hooks
        .take_seen()
        .into_iter()
        .map(|it| it.target.unwrap().digest)
        .collect();
    assert_eq!(&blobs, digests);
    world
        .client("bob")
        .push(REPOSITORY, "bobs", &image)
        .await
        .unwrap();
    mallory.push_image(REPOSITORY, "mine", "one").await;
    let error = mallory
        .pull_blob(REPOSITORY, &digests[0], None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
}
