//! A denied image is denied whichever way it is asked for.

use gantry_plugin::{
    admission::Change,
    parse_config,
    registry::{ReadError, StoredManifest},
    serve::Stored,
    types::{
        Client, Descriptor, Document, ManifestFacts, ManifestKind, OpaqueDocument, PluginError,
        Principal,
    },
};

use super::*;

const INDEX: &str = "sha256:index";
const ENDED_INDEX: &str = "sha256:ended-index";
const PART: &str = "sha256:part";
const CHILD: &str = "sha256:child";
const OLD: &str = "sha256:old";
const FINE: &str = "sha256:fine";
const LAYER: &str = "sha256:layer";
const UNREAD: &str = "sha256:unread";
/// Another name of what [`INDEX`] names.
const INDEX_512: &str = "sha512:index";

fn descriptor(digest: &str) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest: digest.to_owned(),
        size: 2,
        artifact_type: None,
        annotations: Vec::new(),
        urls: Vec::new(),
        platform: None,
    }
}

fn manifest(children: &[&str], support: Option<&str>) -> Document {
    let annotation = |text: &str| ("org.example.support".to_owned(), text.to_owned());
    Document::Manifest(ManifestFacts {
        kind: ManifestKind::Index,
        artifact_type: None,
        config: None,
        layers: Vec::new(),
        manifests: children.iter().map(|child| descriptor(child)).collect(),
        subject: None,
        annotations: support.map(annotation).into_iter().collect(),
        text: "not to be read".to_owned(),
    })
}

/// What is stored: an index with one child, an image that says it has ended, an index that says so of all its parts, and an image
/// without a word.
struct Shelf;

impl Stored for Shelf {
    fn manifest(&self, digest: &str) -> Result<StoredManifest, ReadError> {
        let document = match digest {
            INDEX | INDEX_512 => manifest(&[CHILD], None),
            OLD | ENDED_INDEX => manifest(&[], Some("ended-2024")),
            CHILD | PART | FINE => manifest(&[], None),
            UNREAD => Document::Opaque(OpaqueDocument {
                why: "`layers` is there twice".to_owned(),
                mentions: vec![LAYER.to_owned()],
            }),
            _ => return Err(ReadError::NotFound),
        };
        let digests = match digest {
            INDEX | INDEX_512 => vec![INDEX.to_owned(), INDEX_512.to_owned()],
            other => vec![other.to_owned()],
        };
        Ok(StoredManifest {
            target: descriptor(digest),
            digests,
            document,
        })
    }

    fn parents(&self, digest: &str) -> Result<Vec<String>, ReadError> {
        Ok(match digest {
            CHILD => vec![INDEX.to_owned()],
            PART => vec![ENDED_INDEX.to_owned()],
            _ => Vec::new(),
        })
    }
}

/// A store that gives nothing away.
struct Closed;

impl Stored for Closed {
    fn manifest(&self, _digest: &str) -> Result<StoredManifest, ReadError> {
        Err(ReadError::NotGranted)
    }

    fn parents(&self, _digest: &str) -> Result<Vec<String>, ReadError> {
        Err(ReadError::NotGranted)
    }
}

fn decide(request: &AdmissionRequest, stored: &dyn Stored) -> Answer<Decision> {
    decide_as(request, stored, Opaque::default())
}

fn decide_as(request: &AdmissionRequest, stored: &dyn Stored, opaque: Opaque) -> Answer<Decision> {
    let plugin = plugin();
    let denies = |image: &Image<'_>| plugin.denies(image);
    serve::decide_with(request, MESSAGE, opaque, denies, stored)
}

fn plugin() -> DenyImage {
    let mut issues = Issues::default();
    let config = format!(
        r#"{{"repositories":["docker.io/evil/**"],"digests":["{INDEX}","sha256:absent"],"annotations":{{"org.example.support":"ended*"}}}}"#
    );
    let config = parse_config(&config, &mut issues);
    assert_eq!(issues.iter().count(), 0);
    DenyImage::new(config, &mut issues)
}

fn request(change: Change, target: &str, parents: &[&str]) -> AdmissionRequest {
    let stored = Shelf.manifest(target).ok();
    let stored = stored.filter(|_| change == Change::ServeManifest);
    AdmissionRequest {
        request_id: "1".to_owned(),
        client: Client {
            remote_addr: "192.0.2.1".to_owned(),
            user_agent: None,
            tls_peer_subject: None,
        },
        principal: Principal::new("anonymous", "anonymous", "gantry"),
        repository: "docker.io/library/web".to_owned(),
        mirror: Some("docker.io".to_owned()),
        change,
        tag: None,
        previous: None,
        target: descriptor(target),
        digests: match &stored {
            Some(stored) => stored.digests.clone(),
            None => vec![target.to_owned()],
        },
        document: stored.map(|stored| stored.document),
        parents: parents.iter().map(|parent| (*parent).to_owned()).collect(),
        attributes: Vec::new(),
    }
}

/// The code of the refusal, or nothing.
fn refusal(request: &AdmissionRequest) -> String {
    match decide(request, &Shelf).unwrap() {
        Decision::Reject(denial) => denial.reason.code,
        Decision::Accept(_) => String::new(),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_list_is_denied_only_where_denied_images_are_hidden() {
    let mut plugin = plugin();
    for hide in [false, true] {
        plugin.hide = hide;
        let answer = plugin.admit(&request(Change::ServeList, "", &[])).unwrap();
        match answer {
            Decision::Reject(denial) if hide => assert_eq!(denial.message, MESSAGE),
            Decision::Abstain if !hide => {}
            other => panic!("{hide}: {other:?}"),
        }
    }
}

#[test]
fn a_denied_image_is_denied_whole_and_in_its_parts() {
    for (change, target, parents, expected) in [
        (Change::ServeManifest, INDEX, &[][..], "denied-image"),
        (Change::ServeManifest, CHILD, &[INDEX], "denied-image"),
        (Change::ServeManifest, CHILD, &[], "denied-image"),
        (Change::ServeManifest, OLD, &[], "denied-image"),
        (Change::ServeManifest, FINE, &[], ""),
        (Change::ServeBlob, LAYER, &[], "blob-first"),
        (Change::ServeBlob, LAYER, &[CHILD], "denied-image"),
        (Change::ServeBlob, LAYER, &[OLD, CHILD], "denied-image"),
        (Change::ServeBlob, LAYER, &[PART], "denied-image"),
        (
            Change::ServeBlob,
            LAYER,
            &[PART, CHILD, OLD],
            "denied-image",
        ),
        (Change::ServeBlob, LAYER, &[PART, FINE], ""),
        (Change::ServeManifest, PART, &[ENDED_INDEX], "denied-image"),
        (Change::ServeManifest, PART, &[ENDED_INDEX, FINE], ""),
        (Change::ServeBlob, LAYER, &[FINE], ""),
        (Change::ServeBlob, LAYER, &[OLD, FINE], ""),
        (Change::ServeManifest, INDEX_512, &[], "denied-image"),
        (Change::ServeManifest, CHILD, &[INDEX_512], "denied-image"),
        (Change::ServeManifest, UNREAD, &[], "opaque-document"),
        (Change::ServeBlob, LAYER, &[UNREAD], "denied-image"),
        (Change::ServeBlob, LAYER, &[UNREAD, FINE], ""),
    ] {
        let request = request(change, target, parents);
        assert_eq!(
            refusal(&request),
            expected,
            "{change:?} {target} {parents:?}"
        );
    }
}

#[test]
fn everything_of_a_denied_repository_is_denied() {
    for (change, parents) in [
        (Change::ServeManifest, &[][..]),
        (Change::ServeBlob, &[FINE]),
    ] {
        let mut request = request(change, FINE, parents);
        request.repository = "docker.io/evil/web".to_owned();
        assert_eq!(refusal(&request), "denied-image", "{change:?}");
    }
}

#[test]
fn what_is_not_read_passes_where_the_policy_says_so_and_is_judged_by_its_name() {
    let unread = request(Change::ServeManifest, UNREAD, &[]);
    let decision = decide_as(&unread, &Shelf, Opaque::Allow).unwrap();
    assert!(matches!(decision, Decision::Accept(_)), "{decision:?}");
    let layer = request(Change::ServeBlob, LAYER, &[UNREAD]);
    let decision = decide_as(&layer, &Shelf, Opaque::Allow).unwrap();
    assert!(matches!(decision, Decision::Accept(_)), "{decision:?}");
    let mut evil = unread;
    evil.repository = "docker.io/evil/web".to_owned();
    let decision = decide_as(&evil, &Shelf, Opaque::Allow).unwrap();
    assert!(matches!(decision, Decision::Reject(_)), "{decision:?}");
}

#[test]
fn changes_are_left_to_others() {
    let request = request(Change::MoveTag, INDEX, &[]);
    assert_eq!(refusal(&request), "Decision::Abstain");
}

#[test]
fn a_read_that_fails_is_no_decision() {
    let request = request(Change::ServeBlob, LAYER, &[FINE]);
    let answer = decide(&request, &Closed);
    assert!(matches!(answer, Err(PluginError::Misconfigured(_))));
}
