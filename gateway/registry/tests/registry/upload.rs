//! A session takes its bytes in order, from its owner alone, and keeps them over a restart.

use std::time::Duration;

use bytes::Bytes;
use gantry_model::{Algorithm, ContentRange, Operation, UploadId};
use gantry_registry::{Body, BodyError, Error, Outcome, Settings};
use tokio::sync::mpsc;

use crate::harness::{Client, World, bytes_of, hosted, sha256, sha512, streamed, whole};

const REPOSITORY: &str = "apps/web";

async fn pulled(client: &Client, text: &str) -> Bytes {
    let digest = sha256(text.as_bytes());
    let served = client.pull_blob(REPOSITORY, &digest, None).await.unwrap();
    bytes_of(&served).await
}

#[tokio::test]
async fn chunks_are_put_together_and_verified() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 0);
    let received = alice.append(REPOSITORY, upload, Some("0-4"), whole("hello"));
    assert_eq!(received.await.unwrap(), 5);
    let received = alice.append(REPOSITORY, upload, None, whole(", "));
    assert_eq!(received.await.unwrap(), 7);
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 7);
    let digest = sha256(b"hello, world");
    let pushed = alice
        .commit(REPOSITORY, upload, &digest, whole("world"))
        .await
        .unwrap();
    assert!(matches!(pushed, Outcome::BlobPushed { digest: told, .. } if told == digest));
    assert_eq!(pulled(&alice, "hello, world").await, "hello, world");
    let error = alice.status(REPOSITORY, upload).await.unwrap_err();
    assert!(matches!(error, Error::BlobUploadUnknown), "{error:?}");
}

#[tokio::test]
async fn a_chunk_out_of_order_changes_nothing_and_says_where_the_upload_stands() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    alice
        .append(REPOSITORY, upload, None, whole("hello"))
        .await
        .unwrap();
    for range in ["0-4", "4-8", "6-10"] {
        let error = alice
            .append(REPOSITORY, upload, Some(range), whole("world"))
            .await
            .unwrap_err();
        let Error::ChunkOutOfOrder(state) = error else {
            panic!("{range}: {error:?}");
        };
        assert_eq!((state.upload, state.received), (upload, 5));
    }
    let closing = Operation::CommitUpload {
        repository: hosted(REPOSITORY),
        upload,
        digest: sha256(b"helloworld"),
        range: Some(ContentRange { first: 4, last: 8 }),
    };
    let error = alice.perform(closing, whole("world")).await.unwrap_err();
    assert!(matches!(error, Error::ChunkOutOfOrder(_)), "{error:?}");
    let digest = sha256(b"helloworld");
    alice
        .commit(REPOSITORY, upload, &digest, whole("world"))
        .await
        .unwrap();
    assert_eq!(pulled(&alice, "helloworld").await, "helloworld");
}

#[tokio::test]
async fn a_chunk_whose_declared_length_is_not_its_range_is_refused_unread() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    for range in ["0-3", "0-5"] {
        let error = alice
            .append(REPOSITORY, upload, Some(range), whole("hello"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::SizeInvalid), "{error:?}");
        assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn a_streamed_chunk_that_is_not_its_range_ends_the_session() {
    let world = World::new();
    let alice = world.client("alice");
    for pieces in [vec![Ok("hell")], vec![Ok("hello"), Ok("!")]] {
        let upload = alice.start(REPOSITORY).await.unwrap();
        let error = alice
            .append(REPOSITORY, upload, Some("0-4"), streamed(pieces))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::SizeInvalid), "{error:?}");
        let error = alice.status(REPOSITORY, upload).await.unwrap_err();
        assert!(matches!(error, Error::BlobUploadUnknown), "{error:?}");
    }
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_arrived_before_the_client_went_away_is_kept() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    let broken = streamed(vec![Ok("hel"), Err(BodyError::Disconnected)]);
    let error = alice.append(REPOSITORY, upload, Some("0-4"), broken).await;
    assert!(matches!(error, Err(Error::Body(BodyError::Disconnected))));
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 3);
    drop(alice);
    let world = world.restarted();
    let alice = world.client("alice");
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 3);
    let digest = sha256(b"hello");
    alice
        .commit(REPOSITORY, upload, &digest, whole("lo"))
        .await
        .unwrap();
    assert_eq!(pulled(&alice, "hello").await, "hello");
}

#[tokio::test]
async fn a_session_is_continued_after_a_restart() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    alice
        .append(REPOSITORY, upload, None, whole("hello"))
        .await
        .unwrap();
    drop(alice);
    let world = world.restarted();
    let alice = world.client("alice");
    let received = alice.append(REPOSITORY, upload, Some("5-9"), whole("world"));
    assert_eq!(received.await.unwrap(), 10);
    drop(alice);
    let world = world.restarted();
    let alice = world.client("alice");
    let digest = sha256(b"helloworld");
    alice
        .commit(REPOSITORY, upload, &digest, Body::empty())
        .await
        .unwrap();
    assert_eq!(pulled(&alice, "helloworld").await, "helloworld");
}

#[tokio::test]
async fn a_session_is_unknown_to_other_principals_and_other_repositories() {
    let world = World::new();
    let alice = world.client("alice");
    let mallory = world.client("mallory");
    let upload = alice.start(REPOSITORY).await.unwrap();
    alice
        .append(REPOSITORY, upload, None, whole("hello"))
        .await
        .unwrap();
    let digest = sha256(b"hello");
    let never = UploadId::from_random([9; 16]);
    for (client, repository, upload) in [
        (&mallory, REPOSITORY, upload),
        (&alice, "apps/api", upload),
        (&alice, REPOSITORY, never),
    ] {
        let status = client.status(repository, upload).await.err();
        let append = client.append(repository, upload, None, whole("x")).await;
        let commit = client
            .commit(repository, upload, &digest, Body::empty())
            .await;
        let cancel = client.cancel(repository, upload).await;
        for error in [status, append.err(), commit.err(), cancel.err()] {
            assert!(matches!(error, Some(Error::BlobUploadUnknown)), "{error:?}");
        }
    }
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 5);
    alice
        .commit(REPOSITORY, upload, &digest, Body::empty())
        .await
        .unwrap();
}

#[tokio::test]
async fn only_one_request_writes_to_a_session_at_a_time() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    let (sender, receiver) = mpsc::channel(1);
    let (reading, read) = tokio::sync::oneshot::channel();
    let slow = slow_body(reading, receiver);
    let first = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.append(REPOSITORY, upload, None, slow).await })
    };
    read.await.unwrap();
    let error = alice.append(REPOSITORY, upload, None, whole("xxx")).await;
    assert!(matches!(error, Err(Error::Conflict)), "{error:?}");
    let digest = sha256(b"");
    let commit = alice
        .commit(REPOSITORY, upload, &digest, Body::empty())
        .await;
    assert!(matches!(commit, Err(Error::Conflict)), "{commit:?}");
    assert!(matches!(
        alice.cancel(REPOSITORY, upload).await,
        Err(Error::Conflict)
    ));
    assert_eq!(alice.status(REPOSITORY, upload).await.unwrap(), 0);
    sender.send(Bytes::from_static(b"hello")).await.unwrap();
    drop(sender);
    assert_eq!(first.await.unwrap().unwrap(), 5);
    let digest = sha256(b"hello");
    alice
        .commit(REPOSITORY, upload, &digest, Body::empty())
        .await
        .unwrap();
    assert_eq!(pulled(&alice, "hello").await, "hello");
}

/// A body that says when it is first read, and then gives what it is sent.
fn slow_body(reading: tokio::sync::oneshot::Sender<()>, receiver: mpsc::Receiver<Bytes>) -> Body {
    let state = (Some(reading), receiver);
    let stream = futures_util::stream::unfold(state, |(mut reading, mut receiver)| async move {
        if let Some(reading) = reading.take() {
            reading.send(()).unwrap();
        }
        let bytes = receiver.recv().await?;
        Some((Ok(bytes), (reading, receiver)))
    });
    Body::new(None, stream)
}

#[tokio::test]
async fn a_request_that_is_dropped_half_way_keeps_its_session_whole() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    let (sender, receiver) = mpsc::channel(1);
    let (reading, read) = tokio::sync::oneshot::channel();
    let slow = slow_body(reading, receiver);
    let request = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.append(REPOSITORY, upload, None, slow).await })
    };
    read.await.unwrap();
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    sender.send(Bytes::from_static(b"hello")).await.unwrap();
    drop(sender);
    // The write goes on without its request; a later one is told to come again until it is done.
    let digest = sha256(b"hello");
    loop {
        match alice
            .commit(REPOSITORY, upload, &digest, Body::empty())
            .await
        {
            Ok(_) => break,
            Err(Error::Conflict) => tokio::task::yield_now().await,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(pulled(&alice, "hello").await, "hello");
}

#[tokio::test]
async fn a_wrong_digest_ends_the_session_and_frees_its_bytes() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    let error = alice
        .commit(REPOSITORY, upload, &sha256(b"other"), whole("hello"))
        .await
        .unwrap_err();
    let Error::DigestInvalid { found } = error else {
        panic!("{error:?}");
    };
    assert_eq!(found, Some(sha256(b"hello")));
    let error = alice.status(REPOSITORY, upload).await.unwrap_err();
    assert!(matches!(error, Error::BlobUploadUnknown), "{error:?}");
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_session_of_one_algorithm_commits_under_another() {
    let world = World::new();
    let alice = world.client("alice");
    let digest = sha512(b"hello");
    let upload = alice.start(REPOSITORY).await.unwrap();
    alice
        .commit(REPOSITORY, upload, &digest, whole("hello"))
        .await
        .unwrap();
    let served = alice.pull_blob(REPOSITORY, &digest, None).await.unwrap();
    assert_eq!(bytes_of(&served).await, "hello");
    let declared = Operation::StartUpload {
        repository: hosted(REPOSITORY),
        algorithm: Algorithm::Sha512,
    };
    let Outcome::UploadAccepted(state) = alice.perform(declared, Body::empty()).await.unwrap()
    else {
        panic!("not accepted");
    };
    alice
        .commit(REPOSITORY, state.upload, &sha512(b"other"), whole("other"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_single_request_is_verified_and_leaves_nothing_behind() {
    let world = World::new();
    let alice = world.client("alice");
    let operation = |digest| Operation::PushBlob {
        repository: hosted(REPOSITORY),
        digest,
    };
    let wrong = alice.perform(operation(sha256(b"other")), whole("hello"));
    let error = wrong.await.unwrap_err();
    assert!(matches!(error, Error::DigestInvalid { .. }), "{error:?}");
    let broken = streamed(vec![Ok("hel"), Err(BodyError::TooSlow)]);
    let error = alice.perform(operation(sha256(b"hello")), broken).await;
    assert!(matches!(error, Err(Error::Body(BodyError::TooSlow))));
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
    let error = alice.head_blob(REPOSITORY, &sha256(b"hello")).await;
    assert!(matches!(error, Err(Error::BlobUnknown { .. })));
}

#[tokio::test]
async fn a_cancelled_session_is_gone() {
    let world = World::new();
    let alice = world.client("alice");
    let upload = alice.start(REPOSITORY).await.unwrap();
    let cancelled = alice.cancel(REPOSITORY, upload).await.unwrap();
    assert!(matches!(cancelled, Outcome::UploadCancelled));
    let error = alice.cancel(REPOSITORY, upload).await.unwrap_err();
    assert!(matches!(error, Error::BlobUploadUnknown), "{error:?}");
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_principal_has_so_many_sessions_open_and_those_before_a_restart_do_not_count() {
    let settings = Settings {
        max_uploads_per_principal: 2,
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("alice");
    alice.start(REPOSITORY).await.unwrap();
    alice.start(REPOSITORY).await.unwrap();
    let error = alice.start(REPOSITORY).await.unwrap_err();
    assert!(matches!(error, Error::TooManyRequests { .. }), "{error:?}");
    world.client("bob").start(REPOSITORY).await.unwrap();
    drop(alice);
    // Clients that a crash cut off never close their sessions: they must not lock their principal out.
    let world = world.restarted();
    let alice = world.client("alice");
    let first = alice.start(REPOSITORY).await.unwrap();
    alice.cancel(REPOSITORY, first).await.unwrap();
    let second = alice.start(REPOSITORY).await.unwrap();
    let digest = sha256(b"hello");
    alice
        .commit(REPOSITORY, second, &digest, whole("hello"))
        .await
        .unwrap();
    alice.start(REPOSITORY).await.unwrap();
    alice.start(REPOSITORY).await.unwrap();
    let error = alice.start(REPOSITORY).await.unwrap_err();
    assert!(matches!(error, Error::TooManyRequests { .. }), "{error:?}");
}

#[tokio::test]
async fn the_sweep_takes_expired_sessions_and_forgotten_files_and_nothing_else() {
    let settings = Settings {
        upload_lifetime: Duration::from_secs(60),
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("alice");
    let old = alice.start(REPOSITORY).await.unwrap();
    let forgotten = UploadId::from_random([3; 16]);
    let writer = world.ports.blobs.create(forgotten, Algorithm::Sha256).await;
    drop(writer.unwrap());
    world.clock.advance_ms(59_000);
    let young = alice.start(REPOSITORY).await.unwrap();
    world.clock.advance_ms(2_000);
    assert_eq!(world.registry.sweep_uploads().await.unwrap(), 2);
    let error = alice.status(REPOSITORY, old).await.unwrap_err();
    assert!(matches!(error, Error::BlobUploadUnknown), "{error:?}");
    assert_eq!(alice.status(REPOSITORY, young).await.unwrap(), 0);
    assert_eq!(world.ports.blobs.staged().await.unwrap(), [young]);
    assert_eq!(world.registry.sweep_uploads().await.unwrap(), 0);
    drop(alice);
    let world = world.restarted();
    assert_eq!(world.registry.sweep_uploads().await.unwrap(), 0);
    let alice = world.client("alice");
    assert_eq!(alice.status(REPOSITORY, young).await.unwrap(), 0);
}

#[tokio::test]
async fn the_sweep_leaves_a_push_under_way_alone() {
    let world = World::new();
    let alice = world.client("alice");
    let (sender, receiver) = mpsc::channel(1);
    let (reading, read) = tokio::sync::oneshot::channel();
    let slow = slow_body(reading, receiver);
    let push = {
        let alice = alice.clone();
        let operation = Operation::PushBlob {
            repository: hosted(REPOSITORY),
            digest: sha256(b"hello"),
        };
        tokio::spawn(async move { alice.perform(operation, slow).await })
    };
    read.await.unwrap();
    assert_eq!(world.registry.sweep_uploads().await.unwrap(), 0);
    sender.send(Bytes::from_static(b"hello")).await.unwrap();
    drop(sender);
    push.await.unwrap().unwrap();
    assert_eq!(pulled(&alice, "hello").await, "hello");
}

#[tokio::test]
async fn more_sessions_than_writers_kept_open_are_all_continued() {
    let settings = Settings {
        max_uploads_per_principal: 400,
        ..Settings::default()
    };
    let world = World::with_settings(settings);
    let alice = world.client("alice");
    let mut uploads = Vec::new();
    for _ in 0..300 {
        let upload = alice.start(REPOSITORY).await.unwrap();
        alice
            .append(REPOSITORY, upload, None, whole("hel"))
            .await
            .unwrap();
        uploads.push(upload);
    }
    let digest = sha256(b"hello");
    let (first, last) = uploads.split_at(280);
    for upload in first {
        alice
            .commit(REPOSITORY, *upload, &digest, whole("lo"))
            .await
            .unwrap();
    }
    world.clock.advance_ms(3_600_000);
    assert_eq!(world.registry.sweep_uploads().await.unwrap(), 0);
    for upload in last {
        alice
            .commit(REPOSITORY, *upload, &digest, whole("lo"))
            .await
            .unwrap();
    }
    assert_eq!(pulled(&alice, "hello").await, "hello");
}
