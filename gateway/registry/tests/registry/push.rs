//! A push is acknowledged only when everything it names is there, under the digest it has.

use gantry_model::{Digest, ManifestError, Operation, media_type};
use gantry_registry::{Body, BodyError, Error, Outcome, Settings};
use serde_json::json;

use crate::harness::{
    CONFIG, Content, World, artifact, descriptor, hosted, image, image_document, index, mirrored,
    name, reference, sha256, sha512, streamed, tag, unreadable,
};

#[tokio::test]
async fn a_pushed_image_is_pulled_byte_for_byte_by_tag_and_by_digest() {
    let world = World::new();
    let alice = world.client("user:alice");
    let image = alice.push_image("apps/web", "v1", "one").await;
    let digest = image.digest.to_string();
    for reference in ["v1", digest.as_str()] {
        let served = alice.pull("apps/web", reference).await.unwrap();
        assert_eq!(served.bytes, image.bytes);
        assert_eq!(served.digest, image.digest);
        assert_eq!(served.media_type.as_str(), media_type::OCI_MANIFEST);
        assert!(served.body && served.stale.is_none() && served.warnings.is_empty());
        let head = alice.head("apps/web", reference).await.unwrap();
        assert_eq!(head.bytes.len(), image.bytes.len());
        assert!(!head.body);
    }
}

#[tokio::test]
async fn a_manifest_survives_a_restart() {
    let world = World::new();
    let image = world.client("a").push_image("apps/web", "v1", "one").await;
    let world = world.restarted();
    let served = world.client("b").pull("apps/web", "v1").await.unwrap();
    assert_eq!(served.bytes, image.bytes);
}

#[tokio::test]
async fn all_missing_blobs_are_named_at_once() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"there").await.unwrap();
    let image = image("no config", &["there", "no layer"]);
    let refused = alice.push("apps/web", "v1", &image).await.unwrap_err();
    let Error::ManifestBlobUnknown { mut digests } = refused else {
        panic!("{refused:?}");
    };
    digests.sort();
    let mut missing = [sha256(b"no config"), sha256(b"no layer")];
    missing.sort();
    assert_eq!(digests, missing);
    let gone = alice.pull("apps/web", "v1").await.unwrap_err();
    assert!(matches!(gone, Error::ManifestUnknown), "{gone:?}");
}

#[tokio::test]
async fn a_blob_of_another_repository_does_not_count() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_image("apps/web", "v1", "one").await;
    let image = image("config of one", &["layer of one"]);
    let refused = alice.push("apps/api", "v1", &image).await.unwrap_err();
    assert!(
        matches!(refused, Error::ManifestBlobUnknown { .. }),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_layer_with_urls_may_be_absent() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let mut document = image_document("{}", &["foreign"]);
    document["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    let image = Content::new(media_type::OCI_MANIFEST, &document);
    alice.push("apps/web", "v1", &image).await.unwrap();
}

#[tokio::test]
async fn a_descriptor_with_the_wrong_size_is_refused() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let mut document = image_document("{}", &[]);
    document["config"]["size"] = json!(3);
    let lying = Content::new(media_type::OCI_MANIFEST, &document);
    let refused = alice.push("apps/web", "v1", &lying).await.unwrap_err();
    let Error::ManifestInvalid(ManifestError::Malformed(sentence)) = &refused else {
        panic!("{refused:?}");
    };
    assert!(sentence.ends_with("has 2 bytes, not 3"), "{sentence}");
}

#[tokio::test]
async fn an_index_may_be_sparse_but_not_lie_about_a_child_that_is_there() {
    let world = World::new();
    let alice = world.client("user:alice");
    let child = alice.push_image("apps/web", "child", "one").await;
    let absent = image("absent", &[]);
    let sparse = index(&[&child, &absent]);
    alice.push("apps/web", "v1", &sparse).await.unwrap();
    let mut descriptor = child.descriptor();
    descriptor["size"] = json!(1);
    let lying = Content::new(
        media_type::OCI_INDEX,
        &json!({ "schemaVersion": 2, "manifests": [descriptor] }),
    );
    let refused = alice.push("apps/web", "v2", &lying).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestInvalid(_)), "{refused:?}");
}

#[tokio::test]
async fn a_digest_reference_must_be_the_contents_own_under_its_algorithm() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let image = image("{}", &[]);
    let good = sha512(&image.bytes).to_string();
    alice.push("apps/web", &good, &image).await.unwrap();
    assert_eq!(
        alice.pull("apps/web", &good).await.unwrap().bytes,
        image.bytes
    );
    for wrong in [sha512(b"other").to_string(), sha256(b"other").to_string()] {
        let refused = alice.push("apps/web", &wrong, &image).await.unwrap_err();
        let Error::DigestInvalid { found: Some(found) } = refused else {
            panic!("{refused:?}");
        };
        let parsed: Digest = wrong.parse().unwrap();
        assert_eq!(found.algorithm(), parsed.algorithm());
        assert_ne!(found, parsed);
    }
}

#[tokio::test]
async fn tags_in_the_query_are_moved_together_with_the_path() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let image = image("{}", &[]);
    let pushed = alice
        .push_tagged("apps/web", &image.digest.to_string(), &["a", "b"], &image)
        .await
        .unwrap();
    let Outcome::ManifestPushed { tags, digest, .. } = pushed else {
        panic!("{pushed:?}");
    };
    assert_eq!(tags, [tag("a"), tag("b")]);
    assert_eq!(digest, image.digest);
    let pushed = alice
        .push_tagged("apps/web", "c", &["c", "d"], &image)
        .await
        .unwrap();
    let Outcome::ManifestPushed { tags, .. } = pushed else {
        panic!("{pushed:?}");
    };
    assert_eq!(tags, [tag("c"), tag("d")]);
    for text in ["a", "b", "c", "d"] {
        assert_eq!(
            alice.pull("apps/web", text).await.unwrap().digest,
            image.digest
        );
    }
}

#[tokio::test]
async fn a_subject_is_told_and_may_be_missing() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let subject = image("never pushed", &[]);
    let signature = artifact("{}", "application/x.signature", &subject);
    let pushed = alice
        .push("apps/web", &signature.digest.to_string(), &signature)
        .await
        .unwrap();
    let Outcome::ManifestPushed { subject: told, .. } = pushed else {
        panic!("{pushed:?}");
    };
    assert_eq!(told, Some(subject.digest));
}

#[tokio::test]
async fn a_manifest_over_the_limit_is_refused_declared_or_not() {
    let settings = Settings {
        max_manifest_bytes: 10,
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("user:alice");
    let operation = || Operation::PushManifest {
        repository: hosted("apps/web"),
        reference: reference("v1"),
        tags: Vec::new(),
        media_type: None,
    };
    let declared = Body::new(Some(11), futures_util::stream::pending());
    let endless = streamed(vec![
        Ok("0123456789"),
        Ok("0"),
        Err(BodyError::Disconnected),
    ]);
    for body in [declared, endless] {
        let refused = alice.perform(operation(), body).await.unwrap_err();
        assert!(
            matches!(refused, Error::ManifestTooLarge { max_bytes: 10 }),
            "{refused:?}"
        );
    }
    let broken = streamed(vec![Ok("{"), Err(BodyError::Disconnected)]);
    let refused = alice.perform(operation(), broken).await.unwrap_err();
    assert!(
        matches!(refused, Error::Body(BodyError::Disconnected)),
        "{refused:?}"
    );
}

#[tokio::test]
async fn an_ambiguous_manifest_is_refused_and_nothing_of_it_is_stored() {
    let world = World::new();
    let alice = world.client("user:alice");
    alice.push_blob("apps/web", b"{}").await.unwrap();
    let mut document = image_document("{}", &[]);
    document["manifests"] = json!([descriptor(CONFIG, b"{}")]);
    let both = Content::new(media_type::OCI_MANIFEST, &document);
    let refused = alice.push("apps/web", "v1", &both).await.unwrap_err();
    assert!(matches!(refused, Error::ManifestInvalid(_)), "{refused:?}");
    assert_eq!(world.ports.blobs.stat(&both.digest).await.unwrap(), None);
}

#[tokio::test]
async fn a_repeated_push_keeps_who_pushed_first() {
    let world = World::new();
    let image = world.client("a").push_image("apps/web", "v1", "one").await;
    world.clock.advance_ms(1000);
    let bob = world.client("b");
    bob.push("apps/web", "v1", &image).await.unwrap();
    let record = world
        .ports
        .metadata
        .manifest(
            &name("apps/web"),
            &gantry_storage::ContentOrigin::Pushed,
            &image.digest,
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.pushed_by, "a");
}

#[tokio::test]
async fn every_write_to_a_mirror_is_refused_before_its_body_is_read() {
    let world = World::new();
    let alice = world.client("user:alice");
    let repository = mirrored("docker.io/library/alpine");
    let digest = sha256(b"x");
    let upload = gantry_model::UploadId::from_random([7; 16]);
    let operations = [
        Operation::PushManifest {
            repository: repository.clone(),
            reference: reference("v1"),
            tags: Vec::new(),
            media_type: None,
        },
        Operation::PushBlob {
            repository: repository.clone(),
            digest: digest.clone(),
        },
        Operation::StartUpload {
            repository: repository.clone(),
            algorithm: digest.algorithm(),
        },
        Operation::AppendChunk {
            repository: repository.clone(),
            upload,
            range: None,
        },
        Operation::CommitUpload {
            repository: repository.clone(),
            upload,
            digest: digest.clone(),
            range: None,
        },
        Operation::MountBlob {
            repository: repository.clone(),
            digest: digest.clone(),
            from: Some(hosted("apps/web")),
        },
        Operation::DeleteManifest {
            repository: repository.clone(),
            digest: digest.clone(),
        },
        Operation::DeleteTag {
            repository: repository.clone(),
            tag: tag("v1"),
        },
        Operation::DeleteBlob { repository, digest },
    ];
    for operation in operations {
        let kind = operation.kind();
        let refused = alice.perform(operation, unreadable()).await.unwrap_err();
        let Error::Unsupported(sentence) = refused else {
            panic!("{kind:?}: {refused:?}");
        };
        assert_eq!(
            sentence,
            "docker.io/library/alpine is a mirror of hub; push to a hosted name instead"
        );
    }
}
