//! What one client was told of a repository, and whether that is what is there after the gateway died.
//!
//! An acknowledged change must be there. One that was not answered may have happened or not, but never by halves; what is found then is
//! known from there on.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    image::{Content, Image, sha256},
    wire::{Answer, Wire, with_query},
};

/// How the gateway ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// Its process was killed; what the kernel was given is there.
    Kill,
    /// The machine lost its power; what was not synced may be gone.
    PowerCut,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// It was acknowledged.
    There,
    /// Its removal was acknowledged.
    Gone,
    /// The last request about it was not answered.
    Unknown,
}

/// An upload that was left open.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Where it continues.
    pub location: String,
    /// What it is to become.
    pub content: Content,
    /// Bytes that were acknowledged.
    pub acknowledged: usize,
    /// Bytes that were sent.
    pub sent: usize,
}

/// What one client knows of one repository. Only this client changes what is in here.
#[derive(Debug)]
pub struct Ledger {
    /// Which.
    pub repository: String,
    /// Open uploads.
    pub uploads: Vec<Upload>,
    blobs: BTreeMap<String, (Content, Known)>,
    images: BTreeMap<String, (Image, Known)>,
    /// What each tag may name; several when a request was not answered.
    tags: BTreeMap<String, BTreeSet<Option<String>>>,
    /// What changed since the last check.
    fresh: BTreeSet<String>,
}

impl Ledger {
    /// Of an empty repository.
    #[must_use]
    pub fn new(repository: String) -> Self {
        Self {
            repository,
            uploads: Vec::new(),
            blobs: BTreeMap::new(),
            images: BTreeMap::new(),
            tags: BTreeMap::new(),
            fresh: BTreeSet::new(),
        }
    }

    /// A blob is, is not, or may be there.
    pub fn blob(&mut self, content: &Content, known: Known) {
        self.fresh.insert(content.digest.clone());
        let entry = (content.clone(), known);
        self.blobs.insert(content.digest.clone(), entry);
    }

    /// A manifest is, is not, or may be there; its deletion takes its tags along.
    pub fn image(&mut self, image: &Image, known: Known) {
        let digest = &image.manifest.digest;
        self.fresh.insert(digest.clone());
        self.images.insert(digest.clone(), (image.clone(), known));
        let named = Some(digest.clone());
        for targets in self.tags.values_mut().filter(|it| it.contains(&named)) {
            if known == Known::Gone {
                targets.remove(&named);
            }
            if known != Known::There {
                targets.insert(None);
            }
        }
    }

    /// A tag names this.
    pub fn tag(&mut self, tag: &str, digest: Option<&str>) {
        let target = BTreeSet::from([digest.map(str::to_owned)]);
        self.tags.insert(tag.to_owned(), target);
    }

    /// A tag may name this, or still what it named.
    pub fn tag_may(&mut self, tag: &str, digest: Option<&str>) {
        let targets = self.tags.entry(tag.to_owned());
        let targets = targets.or_insert_with(|| BTreeSet::from([None]));
        targets.insert(digest.map(str::to_owned));
    }

    /// A tag that is there.
    #[must_use]
    pub fn some_tag(&self, nth: usize) -> Option<String> {
        let there = |targets: &BTreeSet<_>| !targets.contains(&None);
        let mut tags = self.tags.iter().filter(|(_, targets)| there(targets));
        let count = tags.clone().count();
        (count > 0).then(|| tags.nth(nth % count).expect("it is there").0.clone())
    }

    /// An image that is there.
    #[must_use]
    pub fn some_image(&self, nth: usize) -> Option<Image> {
        let there = |known: Known| known == Known::There;
        let mut images = self.images.values().filter(|(_, known)| there(*known));
        let count = images.clone().count();
        (count > 0).then(|| images.nth(nth % count).expect("it is there").0.clone())
    }

    /// Holds the repository against all this: what changed since the last check, or everything.
    ///
    /// # Panics
    /// When something acknowledged is lost, or something is there by halves.
    pub fn check(&mut self, wire: &Wire, end: End, everything: bool) {
        self.resume_uploads(wire, end);
        let fresh = std::mem::take(&mut self.fresh);
        let asked = |digest: &String| everything || fresh.contains(digest);
        let base = format!("/v2/{}", self.repository);
        for (digest, (content, known)) in &mut self.blobs {
            if asked(digest) {
                let path = format!("{base}/blobs/{digest}");
                *known = settle(*known, found(wire, &path, &content.bytes), &path);
            }
        }
        for (digest, (image, known)) in &mut self.images {
            if asked(digest) {
                let path = format!("{base}/manifests/{digest}");
                *known = settle(*known, found(wire, &path, &image.manifest.bytes), &path);
            }
        }
        for (tag, targets) in &mut self.tags {
            let answer = wire.get(&format!("{base}/manifests/{tag}"));
            let named = match answer.status.as_u16() {
                404 => None,
                _ => Some(answer.has(200).header("docker-content-digest")),
            };
            assert!(targets.contains(&named), "{tag}: {named:?} of {targets:?}");
            let image = named.as_ref().map(|digest| self.images[digest].1);
            assert!(image.is_none_or(|known| known == Known::There), "{tag}");
            *targets = BTreeSet::from([named]);
        }
        let named = |targets: &BTreeSet<Option<String>>| !targets.contains(&None);
        let named = self.tags.iter().filter(|(_, targets)| named(targets));
        let named: Vec<String> = named.map(|(tag, _)| tag.clone()).collect();
        assert_eq!(listed_tags(wire, &self.repository), named);
    }

    /// Finishes the open uploads from where the gateway says they stand.
    fn resume_uploads(&mut self, wire: &Wire, end: End) {
        for upload in std::mem::take(&mut self.uploads) {
            let status = wire.get(&upload.location);
            if status.status == 404 && end == End::PowerCut {
                continue;
            }
            let received = received(&status.has(204));
            assert!(received <= upload.sent, "{received} bytes in {upload:?}");
            let kept = received >= upload.acknowledged;
            assert!(kept || end == End::PowerCut, "{received} in {upload:?}");
            let path = with_query(
                &upload.location,
                &format!("digest={}", upload.content.digest),
            );
            let rest = upload.content.bytes.slice(received..);
            wire.send("PUT", &path, &[], rest).expect(201);
            self.blob(&upload.content, Known::There);
        }
    }
}

/// How many bytes an upload has. `0-0` is none: no test sends a single byte.
fn received(status: &Answer) -> usize {
    let range = status.header("range");
    let last = range.strip_prefix("0-").map(str::parse::<usize>);
    match last {
        Some(Ok(0)) => 0,
        Some(Ok(last)) => last + 1,
        _ => panic!("range {range:?}"),
    }
}

/// Whether content is there, whole, and HEAD says of it what GET does.
fn found(wire: &Wire, path: &str, bytes: &[u8]) -> bool {
    let (get, head) = (wire.get(path), wire.head(path));
    assert_eq!(get.status, head.status, "{path}");
    if get.status == 404 {
        return false;
    }
    let get = get.has(200);
    assert!(get.body == bytes, "{path} came back other");
    for name in ["content-length", "docker-content-digest", "content-type"] {
        assert_eq!(get.header(name), head.header(name), "{path}: {name}");
    }
    true
}

fn settle(known: Known, found: bool, path: &str) -> Known {
    match (known, found) {
        (Known::There, false) => panic!("{path} was acknowledged and is lost"),
        (Known::Gone, true) => panic!("the removal of {path} was acknowledged and is lost"),
        (_, true) => Known::There,
        (_, false) => Known::Gone,
    }
}

/// The tags of a repository, over all pages; each of them readable, by GET as by HEAD.
///
/// # Panics
/// When one is not.
#[must_use]
pub fn listed_tags(wire: &Wire, repository: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut next = Some(format!("/v2/{repository}/tags/list?n=100"));
    while let Some(path) = next.take() {
        let page = wire.get(&path);
        if page.status == 404 {
            break;
        }
        let page = page.has(200);
        for tag in page.json()["tags"].as_array().expect("a list") {
            let tag = tag.as_str().expect("a tag").to_owned();
            let path = format!("/v2/{repository}/manifests/{tag}");
            let (get, head) = (wire.get(&path).has(200), wire.head(&path).has(200));
            let digest = sha256(&get.body);
            for answer in [&get, &head] {
                assert_eq!(answer.header("docker-content-digest"), digest, "{path}");
                assert_eq!(
                    answer.header("content-length"),
                    get.body.len().to_string(),
                    "{path}"
                );
            }
            tags.push(tag);
        }
        let link = page.header("link");
        let target = link.split_once('>').map(|(target, _)| target);
        next = target.map(|target| target.trim_start_matches('<').to_owned());
    }
    tags
}
