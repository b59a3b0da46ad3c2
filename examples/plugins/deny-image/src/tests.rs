//! A denied image is denied whichever way it is asked for.

use gantry_plugin::{
    admission::Change,
    parse_config,
    registry::ReadError,
    serve::Stored,
    types::{Client, Descriptor, PluginError, Principal},
};

use super::*;

const INDEX: &str = "sha256:index";
const ENDED_INDEX: &str = "sha256:ended-index";
const PART: &str = "sha256:part";
const CHILD: &str = "sha256:child";
const OLD: &str = "sha256:old";
const FINE: &str = "sha256:fine";
const LAYER: &str = "sha256:layer";

/// What is stored: an index with one child, an image that says it has ended, an index that says so of all its parts, and an image
/// without a word.
struct Shelf;

impl Stored for Shelf {
    fn manifest(&self, digest: &str) -> Result<String, ReadError> {
        match digest {
            INDEX => Ok(format!(r#"{{"manifests":[{{"digest":"{CHILD}"}}]}}"#)),
            OLD | ENDED_INDEX => {
                Ok(r#"{"annotations":{"org.example.support":"ended-2024"}}"#.to_owned())
            }
            CHILD | PART | FINE => Ok("{}".to_owned()),
            _ => Err(ReadError::NotFound),
        }
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
    fn manifest(&self, _digest: &str) -> Result<String, ReadError> {
        Err(ReadError::NotGranted)
    }

    fn parents(&self, _digest: &str) -> Result<Vec<String>, ReadError> {
        Err(ReadError::NotGranted)
    }
}

fn decide(request: &AdmissionRequest, stored: &dyn Stored) -> Answer<Decision> {
    let plugin = plugin();
    serve::decide_with(request, MESSAGE, |image| plugin.denies(image), stored)
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
        target: Descriptor {
            media_type: "application/octet-stream".to_owned(),
            digest: target.to_owned(),
            size: 2,
            artifact_type: None,
            annotations: Vec::new(),
        },
        manifest: (change == Change::ServeManifest)
            .then(|| Shelf.manifest(target).ok())
            .flatten(),
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
