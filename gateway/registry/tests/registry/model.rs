//! Any sequence of operations does what a reference of a few sets says, and leaves nothing listed that cannot be pulled.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use gantry_model::{Operation, UploadId};
use gantry_registry::{Body, Error, Outcome};
use proptest::{collection::vec, prelude::*};

use crate::harness::{
    Client, Content, World, artifact, bytes_of, hosted, image, index, name, page, sha256,
};

const REPOSITORIES: [&str; 2] = ["apps/web", "apps/api"];
const BLOBS: [&str; 3] = ["{}", "one", "two"];
const TAGS: [&str; 3] = ["latest", "v1", "v2"];

/// Manifests by index, with the blobs each requires.
fn manifests() -> Vec<(Content, Vec<usize>)> {
    let first = image("{}", &["one"]);
    let second = image("{}", &["one", "two"]);
    let both = index(&[&first, &second]);
    let signature = artifact("{}", "application/x.signature", &first);
    vec![
        (first, vec![0, 1]),
        (second, vec![0, 1, 2]),
        (both, vec![]),
        (signature, vec![0]),
    ]
}

const SUBJECT: usize = 0;
const SIGNATURE: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    PushBlob {
        repository: usize,
        blob: usize,
    },
    DeleteBlob {
        repository: usize,
        blob: usize,
    },
    MountBlob {
        repository: usize,
        blob: usize,
    },
    PushByTag {
        repository: usize,
        manifest: usize,
        tag: usize,
    },
    PushByDigest {
        repository: usize,
        manifest: usize,
        tags: Vec<usize>,
    },
    DeleteTag {
        repository: usize,
        tag: usize,
    },
    DeleteManifest {
        repository: usize,
        manifest: usize,
    },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let repository = 0..REPOSITORIES.len();
    let blob = 0..BLOBS.len();
    let manifest = 0..4_usize;
    let tag = 0..TAGS.len();
    prop_oneof![
        4 => (repository.clone(), blob.clone())
            .prop_map(|(repository, blob)| Step::PushBlob { repository, blob }),
        1 => (repository.clone(), blob.clone())
            .prop_map(|(repository, blob)| Step::DeleteBlob { repository, blob }),
        2 => (repository.clone(), blob)
            .prop_map(|(repository, blob)| Step::MountBlob { repository, blob }),
        5 => (repository.clone(), manifest.clone(), tag.clone())
            .prop_map(|(repository, manifest, tag)| Step::PushByTag { repository, manifest, tag }),
        3 => (repository.clone(), manifest.clone(), vec(tag.clone(), 0..3))
            .prop_map(|(repository, manifest, tags)| Step::PushByDigest { repository, manifest, tags }),
        2 => (repository.clone(), tag)
            .prop_map(|(repository, tag)| Step::DeleteTag { repository, tag }),
        2 => (repository, manifest)
            .prop_map(|(repository, manifest)| Step::DeleteManifest { repository, manifest }),
        1 => Just(Step::Restart),
    ]
}

/// What a repository must hold.
#[derive(Debug, Default)]
struct Reference {
    exists: bool,
    blobs: BTreeSet<usize>,
    manifests: BTreeSet<usize>,
    tags: BTreeMap<usize, usize>,
}

/// What a step must come to.
#[derive(Debug, Eq, PartialEq)]
enum Expect {
    Done,
    Upload,
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    ContentUnknown,
    StillNamed,
}

fn seen(result: &Result<Outcome, Error>) -> Expect {
    match result {
        Ok(Outcome::UploadAccepted(_)) => Expect::Upload,
        Ok(_) => Expect::Done,
        Err(Error::BlobUnknown { .. }) => Expect::BlobUnknown,
        Err(Error::ManifestUnknown) => Expect::ManifestUnknown,
        Err(Error::NameUnknown) => Expect::NameUnknown,
        Err(Error::ManifestBlobUnknown { .. }) => Expect::ContentUnknown,
        Err(Error::Unsupported(_)) => Expect::StillNamed,
        Err(error) => panic!("{error:?}"),
    }
}

impl Reference {
    fn unknown(&self) -> Expect {
        if self.exists {
            Expect::ManifestUnknown
        } else {
            Expect::NameUnknown
        }
    }

    fn push_manifest(&mut self, manifest: usize, required: &[usize], tags: &[usize]) -> Expect {
        if !required.iter().all(|blob| self.blobs.contains(blob)) {
            return Expect::ContentUnknown;
        }
        self.exists = true;
        self.manifests.insert(manifest);
        self.tags.extend(tags.iter().map(|tag| (*tag, manifest)));
        Expect::Done
    }

    fn delete_manifest(&mut self, manifest: usize) -> Expect {
        if !self.manifests.remove(&manifest) {
            return self.unknown();
        }
        self.tags.retain(|_tag, named| *named != manifest);
        Expect::Done
    }
}

/// The reference's answer to a step.
fn expect(references: &mut [Reference], step: &Step, required: &[Vec<usize>]) -> Expect {
    match step {
        Step::Restart => Expect::Done,
        Step::PushBlob { repository, blob } => {
            references[*repository].exists = true;
            references[*repository].blobs.insert(*blob);
            Expect::Done
        }
        Step::DeleteBlob { repository, blob } => {
            let reference = &mut references[*repository];
            let names = |manifest: &usize| required[*manifest].contains(blob);
            if reference.blobs.contains(blob) && reference.manifests.iter().any(names) {
                return Expect::StillNamed;
            }
            match reference.blobs.remove(blob) {
                true => Expect::Done,
                false => Expect::BlobUnknown,
            }
        }
        Step::MountBlob { repository, blob } => {
            if !references[1 - *repository].blobs.contains(blob) {
                return Expect::Upload;
            }
            references[*repository].exists = true;
            references[*repository].blobs.insert(*blob);
            Expect::Done
        }
        Step::PushByTag {
            repository,
            manifest,
            tag,
        } => references[*repository].push_manifest(*manifest, &required[*manifest], &[*tag]),
        Step::PushByDigest {
            repository,
            manifest,
            tags,
        } => references[*repository].push_manifest(*manifest, &required[*manifest], tags),
        Step::DeleteTag { repository, tag } => {
            let reference = &mut references[*repository];
            match reference.tags.remove(tag) {
                Some(_) => Expect::Done,
                None => reference.unknown(),
            }
        }
        Step::DeleteManifest {
            repository,
            manifest,
        } => references[*repository].delete_manifest(*manifest),
    }
}

async fn perform(
    client: &Client,
    step: &Step,
    manifests: &[(Content, Vec<usize>)],
) -> Result<Outcome, Error> {
    match step {
        Step::Restart => Ok(Outcome::Alive),
        Step::PushBlob { repository, blob } => {
            let bytes = BLOBS[*blob].as_bytes();
            let pushed = client.push_blob(REPOSITORIES[*repository], bytes).await;
            pushed.map(|_digest| Outcome::Alive)
        }
        Step::DeleteBlob { repository, blob } => {
            let digest = sha256(BLOBS[*blob].as_bytes());
            client.delete_blob(REPOSITORIES[*repository], &digest).await
        }
        Step::MountBlob { repository, blob } => {
            let digest = sha256(BLOBS[*blob].as_bytes());
            let from = hosted(REPOSITORIES[1 - *repository]);
            let repository = REPOSITORIES[*repository];
            client.mount(repository, &digest, Some(from)).await
        }
        Step::PushByTag {
            repository,
            manifest,
            tag,
        } => {
            let (content, _) = &manifests[*manifest];
            let repository = REPOSITORIES[*repository];
            client.push(repository, TAGS[*tag], content).await
        }
        Step::PushByDigest {
            repository,
            manifest,
            tags,
        } => {
            let (content, _) = &manifests[*manifest];
            let tags: Vec<&str> = tags.iter().map(|tag| TAGS[*tag]).collect();
            let repository = REPOSITORIES[*repository];
            let digest = content.digest.as_str();
            client.push_tagged(repository, digest, &tags, content).await
        }
        Step::DeleteTag { repository, tag } => {
            let repository = REPOSITORIES[*repository];
            client.delete_tag(repository, TAGS[*tag]).await
        }
        Step::DeleteManifest {
            repository,
            manifest,
        } => {
            let (content, _) = &manifests[*manifest];
            let repository = REPOSITORIES[*repository];
            client.delete_manifest(repository, &content.digest).await
        }
    }
}

/// Everything that can be asked answers as the reference says.
async fn check(client: &Client, references: &[Reference], manifests: &[(Content, Vec<usize>)]) {
    let mut catalog = Vec::new();
    for (repository, reference) in REPOSITORIES.into_iter().zip(references) {
        if !reference.manifests.is_empty() {
            catalog.push(repository.to_owned());
        }
        let tags = client.tags(repository, page(None, None)).await;
        match tags {
            Ok((tags, None)) => {
                let expect: Vec<_> = reference.tags.keys().map(|tag| TAGS[*tag]).collect();
                assert_eq!(tags, expect);
                assert!(reference.exists);
            }
            Err(Error::NameUnknown) => assert!(!reference.exists),
            other => panic!("{other:?}"),
        }
        for (tag, manifest) in &reference.tags {
            let served = client.pull(repository, TAGS[*tag]).await.unwrap();
            assert_eq!(served.bytes, manifests[*manifest].0.bytes);
        }
        for (number, (content, _)) in manifests.iter().enumerate() {
            let served = client.pull(repository, content.digest.as_str()).await;
            assert_eq!(served.is_ok(), reference.manifests.contains(&number));
        }
        for (number, text) in BLOBS.into_iter().enumerate() {
            let digest = sha256(text.as_bytes());
            let head = client.head_blob(repository, &digest).await;
            assert_eq!(head.is_ok(), reference.blobs.contains(&number));
            if let Ok(served) = client.pull_blob(repository, &digest, None).await {
                assert_eq!(bytes_of(&served).await, text);
            }
        }
        let subject = &manifests[SUBJECT].0.digest;
        let (listed, _) = client.referrers(repository, subject, None).await.unwrap();
        let listed = listed["manifests"].as_array().unwrap().len();
        let expect = usize::from(reference.manifests.contains(&SIGNATURE));
        assert_eq!(listed, expect);
    }
    catalog.sort();
    let (listed, _) = client.catalog(page(None, None)).await.unwrap();
    assert_eq!(listed, catalog);
}

fn client_of(world: &World) -> Client {
    let readable = REPOSITORIES.map(|repository| Operation::pull_scope(&name(repository)));
    readable
        .into_iter()
        .fold(world.client("alice"), Client::granted)
}

async fn run(mut world: World, steps: Vec<Step>) {
    let manifests = manifests();
    let required: Vec<_> = manifests.iter().map(|(_, blobs)| blobs.clone()).collect();
    let mut references = [Reference::default(), Reference::default()];
    for step in &steps {
        if matches!(step, Step::Restart) {
            world = world.restarted();
        }
        let client = client_of(&world);
        let result = perform(&client, step, &manifests).await;
        let expect = expect(&mut references, step, &required);
        assert_eq!(seen(&result), expect, "{step:?}");
        if let Ok(Outcome::UploadAccepted(state)) = &result {
            let repository = state.repository.name.as_str();
            client.cancel(repository, state.upload).await.unwrap();
        }
        check(&client, &references, &manifests).await;
    }
    assert!(world.ports.blobs.staged().await.unwrap().is_empty());
}

// --- upload sessions ---

const SESSIONS: usize = 2;
const OWNERS: [&str; SESSIONS] = ["alice", "bob"];

#[derive(Clone, Debug)]
enum UploadStep {
    Start {
        session: usize,
    },
    /// A chunk of so many bytes, said to start so many bytes after where the upload stands.
    Append {
        session: usize,
        length: usize,
        ahead: Option<u64>,
    },
    Status {
        session: usize,
    },
    Commit {
        session: usize,
        honest: bool,
    },
    Cancel {
        session: usize,
    },
    /// Somebody else's attempt at it.
    Steal {
        session: usize,
    },
    Restart,
}

fn upload_step() -> impl Strategy<Value = UploadStep> {
    let session = 0..SESSIONS;
    let ahead = prop_oneof![
        3 => Just(None),
        3 => Just(Some(0)),
        1 => (1..3_u64).prop_map(Some),
    ];
    prop_oneof![
        3 => session.clone().prop_map(|session| UploadStep::Start { session }),
        6 => (session.clone(), 1..9_usize, ahead)
            .prop_map(|(session, length, ahead)| UploadStep::Append { session, length, ahead }),
        2 => session.clone().prop_map(|session| UploadStep::Status { session }),
        2 => (session.clone(), any::<bool>())
            .prop_map(|(session, honest)| UploadStep::Commit { session, honest }),
        1 => session.clone().prop_map(|session| UploadStep::Cancel { session }),
        1 => session.prop_map(|session| UploadStep::Steal { session }),
        1 => Just(UploadStep::Restart),
    ]
}

/// A session as it must be.
struct Open {
    upload: UploadId,
    bytes: Vec<u8>,
}

fn chunk(start: usize, length: usize) -> Bytes {
    let byte = |offset: usize| u8::try_from(offset % 251).expect("small");
    (start..start + length).map(byte).collect()
}

async fn run_uploads(mut world: World, steps: Vec<UploadStep>) {
    let mut open: [Option<Open>; SESSIONS] = [None, None];
    for step in steps {
        match step {
            UploadStep::Restart => world = world.restarted(),
            UploadStep::Start { session } => {
                let client = world.client(OWNERS[session]);
                if let Some(former) = open[session].take() {
                    client.cancel(REPOSITORIES[0], former.upload).await.unwrap();
                }
                let upload = client.start(REPOSITORIES[0]).await.unwrap();
                open[session] = Some(Open {
                    upload,
                    bytes: Vec::new(),
                });
            }
            UploadStep::Append { session, .. }
            | UploadStep::Status { session }
            | UploadStep::Commit { session, .. }
            | UploadStep::Cancel { session }
            | UploadStep::Steal { session } => {
                if let Some(state) = open[session].take() {
                    open[session] = continue_upload(&world, &step, session, state).await;
                }
            }
        }
    }
    let staged = world.ports.blobs.staged().await.unwrap();
    assert_eq!(staged.len(), open.iter().flatten().count());
}

/// Performs a step on an open session and holds it against the bytes it must have; what the session is after it.
async fn continue_upload(
    world: &World,
    step: &UploadStep,
    session: usize,
    mut state: Open,
) -> Option<Open> {
    let client = world.client(OWNERS[session]);
    let repository = REPOSITORIES[0];
    let stands = state.bytes.len() as u64;
    match step {
        UploadStep::Append { length, ahead, .. } => {
            append(&client, &mut state, *length, *ahead).await;
        }
        UploadStep::Status { .. } => {
            let received = client.status(repository, state.upload).await.unwrap();
            assert_eq!(received, stands);
        }
        UploadStep::Commit { honest: true, .. } => {
            let digest = sha256(&state.bytes);
            let body = Body::empty();
            client
                .commit(repository, state.upload, &digest, body)
                .await
                .unwrap();
            let served = client.pull_blob(repository, &digest, None).await.unwrap();
            assert_eq!(bytes_of(&served).await, state.bytes);
            return None;
        }
        UploadStep::Commit { honest: false, .. } => {
            let digest = sha256(b"something else");
            let body = Body::empty();
            let refused = client.commit(repository, state.upload, &digest, body).await;
            let Err(Error::DigestInvalid { found }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(found, Some(sha256(&state.bytes)));
            return None;
        }
        UploadStep::Cancel { .. } => {
            client.cancel(repository, state.upload).await.unwrap();
            return None;
        }
        UploadStep::Steal { .. } => {
            let thief = world.client(OWNERS[1 - session]);
            let stolen = thief.status(repository, state.upload).await;
            assert!(matches!(stolen, Err(Error::BlobUploadUnknown)));
        }
        UploadStep::Start { .. } | UploadStep::Restart => unreachable!("not a session's step"),
    }
    Some(state)
}

async fn append(client: &Client, state: &mut Open, length: usize, ahead: Option<u64>) {
    let stands = state.bytes.len() as u64;
    let bytes = chunk(state.bytes.len(), length);
    let first = stands + ahead.unwrap_or(0);
    let last = first + bytes.len() as u64 - 1;
    let range = ahead.map(|_| format!("{first}-{last}"));
    let body = Body::from_bytes(bytes.clone());
    let appended = client.append(REPOSITORIES[0], state.upload, range.as_deref(), body);
    match (appended.await, ahead) {
        (Ok(received), None | Some(0)) => {
            state.bytes.extend_from_slice(&bytes);
            assert_eq!(received, state.bytes.len() as u64);
        }
        (Err(Error::ChunkOutOfOrder(told)), Some(1..)) => assert_eq!(told.received, stands),
        (other, _) => panic!("{other:?}"),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future);
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn any_sequence_of_operations_does_what_the_reference_says(steps in vec(step(), 1..40)) {
        block_on(run(World::new(), steps));
    }

    #[test]
    fn any_sequence_of_chunks_builds_the_bytes_that_were_acknowledged(steps in vec(upload_step(), 1..60)) {
        block_on(run_uploads(World::new(), steps));
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn durable_stores_do_what_the_reference_says(steps in vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        block_on(run(World::durable(folder.path()), steps));
    }

    #[test]
    fn durable_stores_build_the_bytes_that_were_acknowledged(steps in vec(upload_step(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        block_on(run_uploads(World::durable(folder.path()), steps));
    }
}
