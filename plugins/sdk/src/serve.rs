//! Policies about images, asked at every serve: closes the side doors, so that a policy only says whether it denies an image.
//!
//! A part that only denied images name (a child of an index, a layer, a config) is denied with them; a part that an allowed image shares
//! is not. That holds on every level: a layer of a child of a denied index is denied as well. A blob that no stored manifest names could
//! be anything, so it waits for its manifest. Needs `registry` granted.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    admission::{AdmissionRequest, Change, Decision},
    plugin::Answer,
    registry::{ReadError, get_manifest, list_parents},
};

/// What is stored of one repository.
pub trait Stored {
    /// A stored manifest's text by digest.
    ///
    /// # Errors
    /// [`ReadError`].
    fn manifest(&self, digest: &str) -> Result<String, ReadError>;
    /// Stored manifests that name the digest.
    ///
    /// # Errors
    /// [`ReadError`].
    fn parents(&self, digest: &str) -> Result<Vec<String>, ReadError>;
}

/// The host's own.
struct Here<'a>(&'a str);

impl Stored for Here<'_> {
    fn manifest(&self, digest: &str) -> Result<String, ReadError> {
        get_manifest(self.0, digest).map(|(_, manifest)| manifest)
    }

    fn parents(&self, digest: &str) -> Result<Vec<String>, ReadError> {
        list_parents(self.0, digest)
    }
}

/// A manifest or an index, as a policy sees it.
pub struct Image<'a> {
    /// The canonical name of its repository.
    pub repository: &'a str,
    /// Its digest.
    pub digest: &'a str,
    /// Its document.
    pub manifest: Value,
    stored: &'a dyn Stored,
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
        match self.stored.manifest(digest) {
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
    decide_with(request, message, denies, &Here(&request.repository))
}

/// [`decide`] with stored manifests from elsewhere, for native tests.
///
/// # Errors
/// As [`decide`].
pub fn decide_with(
    request: &AdmissionRequest,
    message: &str,
    denies: impl Fn(&Image<'_>) -> Answer<bool>,
    stored: &dyn Stored,
) -> Answer<Decision> {
    if !matches!(request.change, Change::ServeManifest | Change::ServeBlob) {
        return Ok(Decision::abstain());
    }
    if request.manifest.is_none() && request.parents.is_empty() {
        return Ok(Decision::reject("pull the image's manifest first").code("blob-first"));
    }
    let mut question = Question {
        repository: &request.repository,
        denies: &denies,
        stored,
        answered: BTreeMap::new(),
    };
    let denied_itself = match &request.manifest {
        Some(document) => question.is_denied_itself(&request.target.digest, document)?,
        None => false,
    };
    if denied_itself || question.are_all_denied(&request.parents, 0)? {
        return Ok(Decision::reject(message).code("denied-image"));
    }
    Ok(Decision::accept())
}

/// How far up is looked: an index in an index in an index is more than anybody publishes. What is nested deeper is denied.
const MAX_LEVELS: usize = 8;

/// One decision under way.
struct Question<'a> {
    repository: &'a str,
    denies: &'a dyn Fn(&Image<'_>) -> Answer<bool>,
    stored: &'a dyn Stored,
    /// What is known already: a layer's images often share their indexes.
    answered: BTreeMap<String, bool>,
}

impl Question<'_> {
    fn is_denied_itself(&self, digest: &str, document: &str) -> Answer<bool> {
        (self.denies)(&Image {
            repository: self.repository,
            digest,
            manifest: serde_json::from_str(document).unwrap_or_default(),
            stored: self.stored,
        })
    }

    /// Whether there are parents, and each is denied, or a part of denied ones only.
    fn are_all_denied(&mut self, parents: &[String], level: usize) -> Answer<bool> {
        for parent in parents {
            if !self.is_denied(parent, level)? {
                return Ok(false);
            }
        }
        Ok(!parents.is_empty())
    }

    fn is_denied(&mut self, digest: &str, level: usize) -> Answer<bool> {
        if let Some(denied) = self.answered.get(digest) {
            return Ok(*denied);
        }
        let denied = self.is_denied_itself(digest, &self.stored.manifest(digest)?)?
            || level >= MAX_LEVELS
            || self.are_all_denied(&self.stored.parents(digest)?, level + 1)?;
        self.answered.insert(digest.to_owned(), denied);
        Ok(denied)
    }
}

/// Whether an index names a manifest.
fn names(index: &str, digest: &str) -> bool {
    let index: Value = serde_json::from_str(index).unwrap_or_default();
    let children = index.get("manifests").and_then(Value::as_array);
    let is_it = |child: &Value| child.get("digest").and_then(Value::as_str) == Some(digest);
    children.is_some_and(|children| children.iter().any(is_it))
}
