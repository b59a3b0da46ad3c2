//! A mount links what its principal could pull, and is an upload otherwise.

use std::sync::Arc;

use gantry_model::{Admitted, Change, Operation};
use gantry_registry::{Error, Outcome};

use crate::harness::{Client, Hooks, World, bytes_of, denied, hosted, name, sha256};

fn reader_of(client: Client, source: &str) -> Client {
    client.granted(Operation::pull_scope(&name(source)))
}

#[tokio::test]
async fn a_blob_is_mounted_from_a_repository_that_may_be_pulled() {
    let world = World::new();
    let alice = reader_of(world.client("alice"), "apps/web");
    let digest = alice.push_blob("apps/web", b"layer").await.unwrap();
    let mounted = alice
        .mount("apps/api", &digest, Some(hosted("apps/web")))
        .await
        .unwrap();
    assert!(matches!(mounted, Outcome::BlobPushed { digest: told, .. } if told == digest));
    let served = alice.pull_blob("apps/api", &digest, None).await.unwrap();
    assert_eq!(bytes_of(&served).await, "layer");
}

#[tokio::test]
async fn without_the_right_or_the_blob_or_a_source_a_mount_is_an_upload() {
    let world = World::new();
    let alice = reader_of(world.client("alice"), "apps/web");
    let digest = alice.push_blob("apps/web", b"layer").await.unwrap();
    let secret = world.client("bob").push_blob("secret/app", b"secret").await;
    let secret = secret.unwrap();
    let lost = alice.push_blob("apps/web", b"lost").await.unwrap();
    world.ports.blobs.delete(&lost).await.unwrap();
    for (digest, from) in [
        (&secret, Some(hosted("secret/app"))),
        (&secret, Some(hosted("apps/web"))),
        (&lost, Some(hosted("apps/web"))),
        (&sha256(b"nowhere"), Some(hosted("apps/web"))),
        (&digest, None),
    ] {
        let mounted = alice.mount("apps/api", digest, from).await.unwrap();
        let Outcome::UploadAccepted(state) = mounted else {
            panic!("{digest}: {mounted:?}");
        };
        let status = alice.status("apps/api", state.upload).await.unwrap();
        assert_eq!(status, 0);
        let error = alice.head_blob("apps/api", digest).await.unwrap_err();
        assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_refused_mount_is_an_error_and_links_nothing() {
    let hooks = Hooks::on(&[Change::Mount], |_| Err(denied("mount")));
    let hooks = Arc::new(hooks);
    let world = World::with_admission(Arc::clone(&hooks) as _);
    let alice = reader_of(world.client("alice"), "apps/web");
    let digest = alice.push_blob("apps/web", b"layer").await.unwrap();
    let error = alice
        .mount("apps/api", &digest, Some(hosted("apps/web")))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied(_)), "{error:?}");
    let error = alice.head_blob("apps/api", &digest).await.unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
    let asked = hooks.take_seen();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].repository, hosted("apps/api"));
    assert_eq!(asked[0].target.as_ref().unwrap().digest, digest);
    assert_eq!(asked[0].target.as_ref().unwrap().size, 5);
}

#[tokio::test]
async fn what_the_source_would_not_serve_is_not_mounted_from_it() {
    let changes = [Change::Mount, Change::ServeBlob];
    let hooks = Hooks::on(&changes, |request| match request.repository.name.as_str() {
        "secret/app" => Err(denied("secret")),
        _ => Ok(Admitted::default()),
    });
    let world = World::with_admission(Arc::new(hooks));
    let alice = reader_of(world.client("alice"), "secret/app");
    let digest = alice.push_blob("secret/app", b"layer").await.unwrap();
    let mounted = alice
        .mount("apps/api", &digest, Some(hosted("secret/app")))
        .await;
    assert!(matches!(mounted, Ok(Outcome::UploadAccepted(_))));
    let error = alice
        .pull_blob("apps/api", &digest, None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::BlobUnknown { .. }), "{error:?}");
}
