//! Of two that race for a tag, what admission would not let follow each other does not.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use gantry_model::{AdmissionRequest, Admitted, Change, Refusal, Repository};
use gantry_registry::{Admission, Error, Outcome};
use tokio::{sync::Barrier, task::JoinHandle};

use crate::harness::{Client, Content, Hooks, World, image, page};

const REPOSITORY: &str = "apps/web";

/// Lets both racers be admitted before either commits, then refuses every move.
#[derive(Debug)]
struct Starter {
    hooks: Arc<Hooks>,
    line: Barrier,
    asked_again: AtomicUsize,
}

#[async_trait]
impl Admission for Starter {
    fn asks(&self, repository: &Repository, change: Change) -> bool {
        self.hooks.asks(repository, change)
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        if request.change == Change::CreateTag {
            self.line.wait().await;
        } else {
            self.asked_again.fetch_add(1, Ordering::SeqCst);
        }
        self.hooks.admit(request).await
    }
}

/// Pushes in a task of its own.
fn push(client: &Client, tag: &str, image: &Content) -> JoinHandle<Result<Outcome, Error>> {
    let (client, tag, image) = (client.clone(), tag.to_owned(), image.clone());
    tokio::spawn(async move { client.push(REPOSITORY, &tag, &image).await })
}

/// Whether a push won; it may only have lost to admission.
fn won(pushed: &Result<Outcome, Error>) -> bool {
    match pushed {
        Ok(_) => true,
        Err(Error::Denied(_)) => false,
        Err(error) => panic!("{error:?}"),
    }
}

async fn two_images(client: &Client) -> [Content; 2] {
    client.push_blob(REPOSITORY, b"{}").await.unwrap();
    client.push_blob(REPOSITORY, b"layer").await.unwrap();
    [image("{}", &[]), image("{}", &["layer"])]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_pushes_racing_for_an_immutable_tag_one_wins_every_time() {
    let starter = Arc::new(Starter {
        hooks: Hooks::immutable_tags(),
        line: Barrier::new(2),
        asked_again: AtomicUsize::new(0),
    });
    let world = World::with_admission(Arc::clone(&starter) as _);
    let alice = world.client("alice");
    let images = two_images(&alice).await;
    for round in 0..1000 {
        let tag = format!("v{round}");
        let racers = images.each_ref().map(|image| push(&alice, &tag, image));
        let mut winners = Vec::new();
        for (racer, image) in racers.into_iter().zip(&images) {
            let pushed = racer.await.unwrap();
            winners.extend(won(&pushed).then(|| image.digest.clone()));
        }
        let named = alice.pull(REPOSITORY, &tag).await.unwrap().digest;
        assert_eq!(winners, [named], "round {round}");
    }
    assert_eq!(starter.asked_again.load(Ordering::SeqCst), 1000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_deletion_racing_with_new_tags_never_leaves_a_tag_without_its_manifest() {
    let world = World::new();
    let alice = world.client("alice");
    let [image, _] = two_images(&alice).await;
    for round in 0..200 {
        alice.push(REPOSITORY, "v0", &image).await.unwrap();
        let pusher = push(&alice, "v1", &image);
        let deleted = alice.delete_manifest(REPOSITORY, &image.digest).await;
        deleted.unwrap();
        pusher.await.unwrap().unwrap();
        let (tags, _) = alice.tags(REPOSITORY, page(None, None)).await.unwrap();
        for tag in tags {
            let served = alice.pull(REPOSITORY, &tag).await.unwrap();
            assert_eq!(served.bytes, image.bytes, "round {round}");
        }
    }
}

/// Moves the tag whenever it is asked about a move.
#[derive(Debug, Default)]
struct Meddler {
    client: OnceLock<(Client, [Content; 2])>,
    asked: AtomicUsize,
}

#[async_trait]
impl Admission for Meddler {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        change == Change::MoveTag || change == Change::DeleteTag
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        if request.requester.principal.id != "meddler" {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let (client, images) = self.client.get().expect("set");
            let previous = request.previous.expect("a moved tag").digest;
            let other = images.iter().find(|image| image.digest != previous);
            client
                .push(REPOSITORY, "latest", other.expect("two images"))
                .await
                .expect("a move");
        }
        Ok(Admitted::default())
    }
}

/// Marks the tag the moment somebody else was admitted to change it: between that answer and the commit.
#[derive(Debug, Default)]
struct Sealer {
    client: OnceLock<(Client, Content)>,
    asked: AtomicUsize,
}

#[async_trait]
impl Admission for Sealer {
    fn asks(&self, _repository: &Repository, change: Change) -> bool {
        change == Change::MoveTag || change == Change::DeleteTag
    }

    async fn admit(&self, request: AdmissionRequest) -> Result<Admitted, Refusal> {
        let seals = request.requester.principal.id == "sealer";
        if !seals {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let (client, image) = self.client.get().expect("set");
            let tag = request.tag.expect("a tag").to_string();
            client
                .push(REPOSITORY, &tag, image)
                .await
                .expect("it names this already");
        }
        Ok(Admitted {
            set_immutable: seals,
            ..Admitted::default()
        })
    }
}

#[tokio::test]
async fn a_tag_marked_immutable_after_the_question_is_neither_moved_nor_deleted() {
    for change in ["move", "delete the tag", "delete the manifest"] {
        let sealer = Arc::new(Sealer::default());
        let world = World::with_admission(Arc::clone(&sealer) as _);
        let alice = world.client("alice");
        let [first, second] = two_images(&alice).await;
        let client = world.client("sealer");
        sealer.client.set((client, first.clone())).unwrap();
        alice.push(REPOSITORY, "v1", &first).await.unwrap();
        let changed = match change {
            "move" => alice.push(REPOSITORY, "v1", &second).await.map(drop),
            "delete the tag" => alice.delete_tag(REPOSITORY, "v1").await.map(drop),
            _ => {
                let deleted = alice.delete_manifest(REPOSITORY, &first.digest);
                deleted.await.map(drop)
            }
        };
        match changed {
            Err(Error::Denied(denial)) => {
                assert_eq!(&*denial.reason.code, "immutable");
                assert_eq!(denial.message, "tag v1 is immutable");
            }
            other => panic!("{change}: {other:?}"),
        }
        let named = alice.pull(REPOSITORY, "v1").await.unwrap().digest;
        assert_eq!(named, first.digest, "{change}");
        // Asked once: the commit found the mark, and the second round refused by itself.
        assert_eq!(sealer.asked.load(Ordering::SeqCst), 1, "{change}");
    }
}

#[tokio::test]
async fn a_tag_that_never_stands_still_is_a_conflict_after_some_rounds() {
    let meddler = Arc::new(Meddler::default());
    let world = World::with_admission(Arc::clone(&meddler) as _);
    let alice = world.client("alice");
    let images = two_images(&alice).await;
    let client = world.client("meddler");
    meddler.client.set((client, images.clone())).unwrap();
    let [first, _] = &images;
    alice.push(REPOSITORY, "latest", first).await.unwrap();
    let error = alice.push(REPOSITORY, "latest", first).await;
    assert!(matches!(error, Err(Error::Conflict)), "{error:?}");
    assert_eq!(meddler.asked.swap(0, Ordering::SeqCst), 16);
    let error = alice.delete_tag(REPOSITORY, "latest").await;
    assert!(matches!(error, Err(Error::Conflict)), "{error:?}");
    assert_eq!(meddler.asked.load(Ordering::SeqCst), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_pushes_of_one_manifest_to_one_tag_all_succeed() {
    let world = World::with_admission(Hooks::immutable_tags());
    let alice = world.client("alice");
    let [image, _] = two_images(&alice).await;
    let pushes: Vec<_> = (0..64).map(|_| push(&alice, "v1", &image)).collect();
    for push in pushes {
        push.await.unwrap().unwrap();
    }
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_uploads_of_one_blob_all_succeed() {
    let world = World::new();
    let alice = world.client("alice");
    let uploads: Vec<_> = (0..64)
        .map(|_| {
            let alice = alice.clone();
            tokio::spawn(async move { alice.push_blob(REPOSITORY, b"blob").await })
        })
        .collect();
    for upload in uploads {
        let digest = upload.await.unwrap().unwrap();
        alice.head_blob(REPOSITORY, &digest).await.unwrap();
    }
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}
