//! Policies about images, asked at every serve: closes the side doors, so that a policy only says whether it denies an image.
//!
//! A part that only denied images name (a child of an index, a layer, a config) is denied with them; a part that an allowed image shares
//! is not. That holds on every level: a layer of a child of a denied index is denied as well. A blob that no stored manifest names could
//! be anything, so it waits for its manifest. A document that the gateway does not read is denied, unless the policy says [`Opaque::Allow`].
//! Needs `registry` granted.

use std::collections::BTreeMap;

use crate::{
    admission::{AdmissionRequest, Change, Decision},
    plugin::Answer,
    registry::{ReadError, StoredManifest, get_manifest, list_parents},
    types::{Document, ManifestFacts},
};

/// What becomes of a document that the gateway does not read, because clients differ about what it says. A policy's configuration has it as
/// `opaque: deny` or `opaque: allow`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Opaque {
    /// It is denied.
    #[default]
    Deny,
    /// The policy is asked, with no facts but the repository and the digests.
    Allow,
}

/// What is stored of one repository.
pub trait Stored {
    /// A stored manifest by digest.
    ///
    /// # Errors
    /// [`ReadError`].
    fn manifest(&self, digest: &str) -> Result<StoredManifest, ReadError>;
    /// Stored manifests that name the digest.
    ///
    /// # Errors
    /// [`ReadError`].
    fn parents(&self, digest: &str) -> Result<Vec<String>, ReadError>;
}

/// The host's own.
struct Here<'a>(&'a str);

impl Stored for Here<'_> {
    fn manifest(&self, digest: &str) -> Result<StoredManifest, ReadError> {
        get_manifest(self.0, digest)
    }

    fn parents(&self, digest: &str) -> Result<Vec<String>, ReadError> {
        list_parents(self.0, digest)
    }
}

/// A manifest or an index, as a policy sees it.
pub struct Image<'a> {
    /// The canonical name of its repository.
    pub repository: &'a str,
    /// Every digest of it that is known, its sha256 first.
    pub digests: &'a [String],
    /// What it says; none when its document is opaque.
    pub manifest: Option<&'a ManifestFacts>,
    stored: &'a dyn Stored,
}

impl std::fmt::Debug for Image<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = self.digests.first().map_or("", String::as_str);
        write!(formatter, "{}@{digest}", self.repository)
    }
}

impl Image<'_> {
    /// An annotation of the document.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.manifest?.annotation(key)
    }

    /// Whether it is the manifest or index `digest`, or a child of that index as far as the index is stored here.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn is_or_is_in(&self, digest: &str) -> Answer<bool> {
        if self.digests.iter().any(|own| own == digest) {
            return Ok(true);
        }
        match self.stored.manifest(digest) {
            Ok(index) => Ok(names(&index.document, self.digests)),
            Err(ReadError::NotFound) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Decides about a serve: rejected with `message` when `denies` the image, or every image that the content is a part of. An image whose
/// document is not read is denied as `opaque` says. Abstains for everything that is no serve.
///
/// # Errors
/// A manifest cannot be read, or `denies` fails.
pub fn decide(
    request: &AdmissionRequest,
    message: &str,
    opaque: Opaque,
    denies: impl Fn(&Image<'_>) -> Answer<bool>,
) -> Answer<Decision> {
    decide_with(request, message, opaque, denies, &Here(&request.repository))
}

/// Rejects a `serve-list` with `message`: then a client cannot tell content that the policy denies from content that is missing, and gets no
/// list of tags or referrers. `None` for every other change. The binding lists `serve-list` in its `changes`.
///
/// A policy hides what it denies with one line before it decides, and the same message, which both refusals show:
/// ```
/// # use gantry_plugin::{Answer, admission::{AdmissionRequest, Decision}, serve};
/// # fn admit(request: &AdmissionRequest) -> Answer<Decision> {
/// if let Some(hidden) = serve::hide(request, "this image is denied here") {
///     return Ok(hidden);
/// }
/// # Ok(Decision::abstain())
/// # }
/// ```
#[must_use]
pub fn hide(request: &AdmissionRequest, message: &str) -> Option<Decision> {
    let hides = request.change == Change::ServeList;
    hides.then(|| Decision::reject(message).code("hidden"))
}

/// [`decide`] with stored manifests from elsewhere, for native tests.
///
/// # Errors
/// As [`decide`].
pub fn decide_with(
    request: &AdmissionRequest,
    message: &str,
    opaque: Opaque,
    denies: impl Fn(&Image<'_>) -> Answer<bool>,
    stored: &dyn Stored,
) -> Answer<Decision> {
    if !matches!(request.change, Change::ServeManifest | Change::ServeBlob) {
        return Ok(Decision::abstain());
    }
    if request.document.is_none() && request.parents.is_empty() {
        return Ok(Decision::reject("pull the image's manifest first").code("blob-first"));
    }
    if opaque == Opaque::Deny
        && let Some(Document::Opaque(document)) = &request.document
    {
        let message = format!(
            "the manifest says no one thing to every client: {}",
            document.why
        );
        return Ok(Decision::reject(message).code("opaque-document"));
    }
    let mut question = Question {
        repository: &request.repository,
        opaque,
        denies: &denies,
        stored,
        answered: BTreeMap::new(),
    };
    let denied_itself = match &request.document {
        Some(document) => question.is_denied_itself(&request.digests, document)?,
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
    opaque: Opaque,
    denies: &'a dyn Fn(&Image<'_>) -> Answer<bool>,
    stored: &'a dyn Stored,
    /// What is known already: a layer's images often share their indexes.
    answered: BTreeMap<String, bool>,
}

impl Question<'_> {
    fn is_denied_itself(&self, digests: &[String], document: &Document) -> Answer<bool> {
        let manifest = document.manifest();
        if manifest.is_none() && self.opaque == Opaque::Deny {
            return Ok(true);
        }
        (self.denies)(&Image {
            repository: self.repository,
            digests,
            manifest,
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
        let stored = self.stored.manifest(digest)?;
        let denied = self.is_denied_itself(&stored.digests, &stored.document)?
            || level >= MAX_LEVELS
            || self.are_all_denied(&self.stored.parents(digest)?, level + 1)?;
        self.answered.insert(digest.to_owned(), denied);
        Ok(denied)
    }
}

/// Whether an index names a manifest, or may do so.
fn names(index: &Document, digests: &[String]) -> bool {
    match index {
        Document::Manifest(index) => {
            let mut children = index.manifests.iter();
            children.any(|child| digests.contains(&child.digest))
        }
        Document::Opaque(index) => index.mentions.iter().any(|digest| digests.contains(digest)),
    }
}
