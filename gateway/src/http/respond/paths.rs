//! Relative URLs: what `Location` and `Link` say, in the form the client used.

use gantry_model::{Digest, Repository, RepositoryName, Tag, UploadId};
use gantry_registry::ListedReferrers;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What stays as it is in a query value.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// `<base>/<name>`. A name that was addressed as `/<prefix>/v2/…` is spelled with its prefix, which the base already holds.
fn root(repository: &Repository) -> String {
    let base = &*repository.base;
    let spelled = repository.spelled.as_str();
    let prefix = base
        .strip_suffix("/v2")
        .and_then(|prefix| prefix.strip_prefix('/'));
    let name = prefix
        .and_then(|prefix| spelled.strip_prefix(prefix)?.strip_prefix('/'))
        .unwrap_or(spelled);
    format!("{base}/{name}")
}

pub(super) fn manifest(repository: &Repository, digest: &Digest) -> String {
    format!("{}/manifests/{digest}", root(repository))
}

pub(super) fn blob(repository: &Repository, digest: &Digest) -> String {
    format!("{}/blobs/{digest}", root(repository))
}

pub(super) fn upload(repository: &Repository, upload: UploadId) -> String {
    format!("{}/blobs/uploads/{upload}", root(repository))
}

pub(super) fn next_tags(repository: &Repository, last: &Tag, size: usize) -> String {
    let mut link = format!(
        "<{}/tags/list?last={}&n={size}",
        root(repository),
        encode(last.as_str())
    );
    if let Some(namespace) = &repository.namespace {
        link.push_str("&ns=");
        link.push_str(&encode(namespace));
    }
    link.push_str(">; rel=\"next\"");
    link
}

/// `Link` goes on after a digest; what else was asked is asked again.
pub(super) fn next_referrers(listed: &ListedReferrers, last: &str) -> String {
    let repository = &listed.repository;
    let subject = &listed.subject;
    let mut link = format!(
        "<{}/referrers/{subject}?last={}",
        root(repository),
        encode(last)
    );
    if let Some(artifact_type) = &listed.artifact_type {
        link.push_str("&artifactType=");
        link.push_str(&encode(artifact_type));
    }
    if let Some(namespace) = &repository.namespace {
        link.push_str("&ns=");
        link.push_str(&encode(namespace));
    }
    link.push_str(">; rel=\"next\"");
    link
}

pub(super) fn next_catalog(last: &RepositoryName, size: usize) -> String {
    let last = encode(last.as_str());
    format!("</v2/_catalog?last={last}&n={size}>; rel=\"next\"")
}

/// A query value.
pub(in crate::http) fn encode(text: &str) -> String {
    utf8_percent_encode(text, QUERY).to_string()
}
