//! Policies about images, asked at every serve: closes the side doors, so that a policy only says whether it denies an image.
//!
//! A part that only denied images name (a child of an index, a layer, a config) is denied with them; a part that an allowed image shares
//! is not. A blob that no stored manifest names could be anything, so it waits for its manifest. Needs `registry` granted.

use serde_json::Value;

use crate::{
    admission::{AdmissionRequest, Change, Decision},
    plugin::Answer,
    registry::{ReadError, get_manifest},
};

/// Reads a stored manifest of the request's repository by digest.
type Read<'a> = &'a dyn Fn(&str) -> Result<String, ReadError>;

/// A manifest or an index, as a policy sees it.
pub struct Image<'a> {
    /// The canonical name of its repository.
    pub repository: &'a str,
    /// Its digest.
    pub digest: &'a str,
    /// Its document.
    pub manifest: Value,
    read: Read<'a>,
}

impl std::fmt::Debug for Image<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}@{}", self.repository, self.digest)
    }
}

impl Image<'_> {
    /// An annotation of the document.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.manifest.get("annotations")?.get(key)?.as_str()
    }

    /// Whether it is the manifest or index `digest`, or a child of that index as far as the index is stored here.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn is_or_is_in(&self, digest: &str) -> Answer<bool> {
        if self.digest == digest {
            return Ok(true);
        }
        match (self.read)(digest) {
            Ok(index) => Ok(names(&index, self.digest)),
            Err(ReadError::NotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Decides about a serve: rejected with `message` when `denies` the image, or every image that the content is a part of. Abstains for
/// everything that is no serve.
///
/// # Errors
/// A manifest cannot be read, or `denies` fails.
pub fn decide(
    request: &AdmissionRequest,
    message: &str,
    denies: impl Fn(&Image<'_>) -> Answer<bool>,
) -> Answer<Decision> {
    decide_with(request, message, denies, &|digest| {
        get_manifest(&request.repository, digest).map(|(_, manifest)| manifest)
    })
}

/// [`decide`] with stored manifests from elsewhere, for native tests.
///
/// # Errors
/// As [`decide`].
pub fn decide_with(
    request: &AdmissionRequest,
    message: &str,
    denies: impl Fn(&Image<'_>) -> Answer<bool>,
    read: Read<'_>,
) -> Answer<Decision> {
    let is_serve = matches!(request.change, Change::ServeManifest | Change::ServeBlob);
    if !is_serve {
        return Ok(Decision::abstain());
    }
    let is_denied = |digest: &str, document: &str| {
        denies(&Image {
            repository: &request.repository,
            digest,
            manifest: serde_json::from_str(document).unwrap_or_default(),
            read,
        })
    };
    let refused = Ok(Decision::reject(message).code("denied-image"));
    match &request.manifest {
        Some(document) if is_denied(&request.target.digest, document)? => return refused,
        None if request.parents.is_empty() => {
            return Ok(Decision::reject("pull the image's manifest first").code("blob-first"));
        }
        Some(_) | None => {}
    }
    for parent in &request.parents {
        if !is_denied(parent, &read(parent)?)? {
            return Ok(Decision::accept());
        }
    }
    if request.parents.is_empty() {
        Ok(Decision::accept())
    } else {
        refused
    }
}

/// Whether an index names a manifest.
fn names(index: &str, digest: &str) -> bool {
    let index: Value = serde_json::from_str(index).unwrap_or_default();
    let children = index.get("manifests").and_then(Value::as_array);
    let is_it = |child: &Value| child.get("digest").and_then(Value::as_str) == Some(digest);
    children.is_some_and(|children| children.iter().any(is_it))
}
