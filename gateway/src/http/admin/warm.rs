//! `POST /admin/v1/cache/warm`: pulls images into the cache, as whoever asks would pull them.
//!
//! Owns what belongs to an image and in which order it is pulled. Each manifest and blob is an ordinary operation of the registry, with
//! a permit of its own: authorizers, admissions and fills are those of a client, and so is what a refusal says.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt as _, stream::BoxStream};
use gantry_model::{
    AcceptedTypes, Cause, Descriptor, Digest, Document, Manifest, ManifestKind, Operation,
    Reference, Repository, Requester, Source, Tag, WrittenDescriptor, namespace::Address,
};
use gantry_registry::{
    Arrived, BlobContent, Body, Error as RegistryError, Outcome, ServedManifest,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, LineRoute, Lines, Problem,
    lines::{self, Gone, Teller},
};
use crate::{
    app::Generation,
    auth::Identified,
    http::error::Error,
    policy,
    telemetry::{CacheChange, audit_cache},
};

pub(super) const WARM: LineRoute = LineRoute {
    path: "/admin/v1/cache/warm",
    run: warm,
};

/// Images of one request at most, and so questions of it for what an upstream may not have: the first one in vain ends an image,
/// unless it was whether the child of an index is a manifest.
const MAX_IMAGES: usize = 1000;
/// Manifests of one image that are asked for at most, over all its indexes.
const MAX_MANIFESTS: u64 = 1000;
/// Blobs of an image that are fetched at once, as many as docker does.
const BLOBS_AT_ONCE: usize = 3;
/// How the registry says that there is no such content.
const MANIFEST_UNKNOWN: &str = "MANIFEST_UNKNOWN";
const NAME_UNKNOWN: &str = "NAME_UNKNOWN";
const BLOB_UNKNOWN: &str = "BLOB_UNKNOWN";
/// Progress is told after so many bytes.
const TOLD_EVERY: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    images: Vec<String>,
    /// `os/architecture[/variant]`; none = every platform.
    platforms: Option<Vec<String>>,
}

fn warm(call: Call) -> Result<Lines, Problem> {
    let asked: Asked = serde_json::from_slice(&call.body.clone()?)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    if asked.images.is_empty() || asked.images.len() > MAX_IMAGES {
        let message = format!("images: 1 to {MAX_IMAGES} of them");
        return Err(Problem::bad_request(message));
    }
    let platforms = asked.platforms.iter().flatten();
    for platform in platforms {
        if !matches!(platform.split('/').count(), 2 | 3) {
            let message = format!("`{platform}` is no platform: os/architecture[/variant]");
            return Err(Problem::bad_request(message));
        }
    }
    lines::start(|teller| {
        Box::pin(async move {
            let warming = Warming {
                generation: call.generation,
                identified: call.identified,
                requester: Requester {
                    cause: Cause::CacheWarm,
                    ..call.requester
                },
                platforms: asked.platforms,
                teller,
            };
            warming.all(&asked.images).await
        })
    })
}

/// One request's work.
struct Warming {
    generation: Arc<Generation>,
    identified: Identified,
    requester: Requester,
    platforms: Option<Vec<String>>,
    teller: Teller,
}

/// An image that is pulled.
struct Image<'a> {
    spelled: &'a str,
    repository: Repository,
}

/// Why an image is not warm.
enum Stop {
    Gone,
    /// As a client would be told.
    Failed {
        code: &'static str,
        message: String,
    },
}

impl From<Gone> for Stop {
    fn from(_left: Gone) -> Self {
        Self::Gone
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        tracing::info!(error = &error as &dyn std::error::Error, "not warmed");
        let answer = error.answer();
        Self::Failed {
            code: answer.code,
            message: answer.message,
        }
    }
}

impl Stop {
    fn failed(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::Failed { code, message }
    }
}

/// What an image was.
#[derive(Default)]
struct Totals {
    manifests: u64,
    blobs: u64,
    bytes: u64,
    fetched_bytes: u64,
}

/// Content that an image lists as a blob: a blob, or a manifest where the upstream stores it as one.
struct Fetched {
    is_manifest: bool,
    bytes: u64,
    /// How much of it came from the upstream for this.
    from_upstream: u64,
}

/// A manifest of an image that is to be pulled.
struct Wanted {
    reference: Reference,
    /// The child of an index, whose type does not say that it is a manifest.
    blob: Option<Named>,
}

impl Wanted {
    fn named(reference: Reference) -> Self {
        let blob = None;
        Self { reference, blob }
    }

    fn child(descriptor: &Descriptor) -> Self {
        let blob = Named {
            blob: descriptor.clone(),
            is_child: false,
        };
        Self {
            reference: Reference::Digest(descriptor.digest.clone()),
            blob: Some(blob),
        }
    }

    fn accepts(&self) -> AcceptedTypes {
        let named = self.blob.as_ref();
        named.map_or_else(AcceptedTypes::default, |named| {
            AcceptedTypes::with(&named.blob.media_type)
        })
    }

    /// Whether a failure to pull it as a manifest leaves open that it is a blob.
    fn may_be_blob(&self, code: &str) -> bool {
        self.blob.is_some() && [MANIFEST_UNKNOWN, NAME_UNKNOWN].contains(&code)
    }
}

/// Content that a manifest names as a blob.
struct Named {
    blob: Descriptor,
    /// By an index, which may call a manifest by any type.
    is_child: bool,
}

/// What is known of an image so far.
#[derive(Default)]
struct Found {
    /// Manifests that were asked for.
    asked: u64,
    seen: HashSet<Digest>,
    manifests: Vec<Wanted>,
    blobs: Vec<Named>,
}

impl Found {
    /// Adds what a manifest names; of its children that are manifests only those.
    fn add(&mut self, manifest: &Manifest, children: Vec<Digest>) {
        let children = children.into_iter().map(Reference::Digest);
        self.manifests.extend(children.map(Wanted::named));
        for (digest, written) in manifest.blobs() {
            let is_child = manifest.kind == ManifestKind::Index;
            let blob = self.unseen(digest, written);
            self.blobs.extend(blob.map(|blob| Named { blob, is_child }));
        }
        for (digest, written) in manifest.children_of_unknown_type() {
            let child = self.unseen(digest, written);
            self.manifests.extend(child.as_ref().map(Wanted::child));
        }
    }

    /// The descriptor of content that was not named before.
    fn unseen(&mut self, digest: &Digest, written: &WrittenDescriptor) -> Option<Descriptor> {
        let media_type = written.media_type.clone();
        let is_new = self.seen.insert(digest.clone());
        is_new.then(|| Descriptor::new(media_type, digest.clone(), written.size))
    }
}

impl Totals {
    fn add(&mut self, fetched: &Fetched) {
        match fetched.is_manifest {
            true => self.manifests += 1,
            false => {
                self.blobs += 1;
                self.bytes += fetched.bytes;
                self.fetched_bytes += fetched.from_upstream;
            }
        }
    }

    fn line(&self, image: &str) -> Value {
        json!({
            "event": "warmed", "image": image, "manifests": self.manifests, "blobs": self.blobs,
            "bytes": self.bytes, "fetched_bytes": self.fetched_bytes,
        })
    }
}

/// The audit's word for a failure.
fn decision(code: &str) -> &'static str {
    if code == "DENIED" { "deny" } else { "fail" }
}

fn failed_line(image: &str, code: &str, message: &str) -> Value {
    json!({ "event": "failed", "image": image, "code": code, "message": message })
}

impl Warming {
    async fn all(&self, images: &[String]) -> Result<(), Gone> {
        let (mut warmed, mut failed) = (0_u64, 0_u64);
        for spelled in images {
            let line = match self.image(spelled).await {
                Ok(totals) => {
                    warmed += 1;
                    self.audit(spelled, "allow", "");
                    totals.line(spelled)
                }
                Err(Stop::Gone) => return Err(Gone),
                Err(Stop::Failed { code, message }) => {
                    failed += 1;
                    self.audit(spelled, decision(code), &message);
                    failed_line(spelled, code, &message)
                }
            };
            self.teller.tell(line).await?;
        }
        let end = json!({ "event": "end", "warmed": warmed, "failed": failed });
        self.teller.tell(end).await
    }

    fn audit(&self, image: &str, decision: &'static str, text: &str) {
        audit_cache(CacheChange::Warm, &self.requester, image, (decision, text));
    }

    /// Every manifest of the image, each before what it names, and then the blobs.
    async fn image(&self, spelled: &str) -> Result<Totals, Stop> {
        let (repository, reference) = self.resolve(spelled)?;
        let image = Image {
            spelled,
            repository,
        };
        let mut totals = Totals::default();
        let mut found = Found::default();
        found.manifests.push(Wanted::named(reference));
        while let Some(wanted) = found.manifests.pop() {
            found.asked += 1;
            if found.asked > MAX_MANIFESTS {
                let message = format!("an image of more than {MAX_MANIFESTS} manifests");
                return Err(Stop::failed("MANIFEST_INVALID", message));
            }
            let served = match self.manifest(&image, &wanted).await {
                Err(Stop::Failed { code, .. }) if wanted.may_be_blob(code) => {
                    found.blobs.extend(wanted.blob);
                    continue;
                }
                served => served?,
            };
            if !found.seen.insert(served.digest.clone()) && wanted.blob.is_none() {
                continue;
            }
            totals.manifests += 1;
            // What a document names that is not read here is for those to fetch who can read it.
            let document = Document::read(&served.media_type, &served.bytes);
            if let Some(manifest) = document.manifest() {
                found.add(manifest, self.children(manifest)?);
            }
        }
        let image = &image;
        let fetches = found
            .blobs
            .into_iter()
            .map(|blob| async move { self.blob_or_manifest(image, &blob).await });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(BLOBS_AT_ONCE);
        while let Some(fetched) = fetches.next().await {
            totals.add(&fetched?);
        }
        Ok(totals)
    }

    fn resolve(&self, spelled: &str) -> Result<(Repository, Reference), Stop> {
        let invalid = |why: String| Stop::failed("NAME_INVALID", why);
        let (name, reference) = split(spelled).map_err(invalid)?;
        let namespaces = &self.generation.namespaces;
        let repository = namespaces.resolve(Address::default(), name);
        let repository =
            repository.map_err(|error| Stop::failed("NAME_UNKNOWN", error.to_string()))?;
        if repository.source == Source::Hosted {
            let message = "it is pushed here: there is no upstream to fetch it from";
            return Err(Stop::failed("UNSUPPORTED", message));
        }
        Ok((repository, reference))
    }

    /// The children for the platforms that are wanted; all of them when nobody said.
    fn children(&self, manifest: &Manifest) -> Result<Vec<Digest>, Stop> {
        let digests = manifest.children().map(|(digest, _)| digest.clone());
        let Some(platforms) = &self.platforms else {
            return Ok(digests.collect());
        };
        let children = manifest.children();
        let of: Vec<Option<String>> = children.map(|(_, child)| platform(child)).collect();
        let wanted = |platform: &Option<String>| {
            let platform = platform.as_deref();
            platform.is_none_or(|it| platforms.iter().any(|wanted| is_of(wanted, it)))
        };
        let chosen: Vec<Digest> = digests
            .zip(&of)
            .filter(|(_, platform)| wanted(platform))
            .map(|(digest, _)| digest)
            .collect();
        if chosen.is_empty() && !of.is_empty() {
            let has: Vec<&str> = of.iter().flatten().map(String::as_str).collect();
            let (asked, has) = (platforms.join(", "), has.join(", "));
            let message = format!("the index has no {asked}; it has {has}");
            return Err(Stop::failed("MANIFEST_UNKNOWN", message));
        }
        Ok(chosen)
    }

    async fn manifest(
        &self,
        image: &Image<'_>,
        wanted: &Wanted,
    ) -> Result<Box<ServedManifest>, Stop> {
        let operation = Operation::PullManifest {
            repository: image.repository.clone(),
            reference: wanted.reference.clone(),
            body: true,
            accepts: wanted.accepts(),
        };
        let Outcome::Manifest(served) = self.perform(operation).await? else {
            return Err(Stop::failed("UNKNOWN", "no manifest"));
        };
        let line = json!({
            "event": "manifest", "image": image.spelled, "digest": served.digest.as_str(), "bytes": served.bytes.len(),
        });
        self.teller.tell(line).await?;
        Ok(served)
    }

    /// What a manifest names as a blob. The child of an index may be a manifest all the same.
    async fn blob_or_manifest(&self, image: &Image<'_>, named: &Named) -> Result<Fetched, Stop> {
        match self.blob(image, &named.blob).await {
            Err(Stop::Failed { code, .. }) if named.is_child && code == BLOB_UNKNOWN => {}
            blob => return blob,
        }
        let wanted = Wanted::child(&named.blob);
        let served = self.manifest(image, &wanted).await?;
        Ok(Fetched {
            is_manifest: true,
            bytes: served.bytes.len() as u64,
            from_upstream: 0,
        })
    }

    async fn blob(&self, image: &Image<'_>, blob: &Descriptor) -> Result<Fetched, Stop> {
        // Asked before: what another fill brought meanwhile is served as one that was here already.
        let was_here = self
            .generation
            .registry
            .holds(&image.repository, &blob.digest);
        let was_here = was_here.await.map_err(Error::from)?;
        let operation = Operation::PullBlob {
            repository: image.repository.clone(),
            digest: blob.digest.clone(),
            range: None,
            body: true,
        };
        let Outcome::Blob(served) = self.perform(operation).await? else {
            return Err(Stop::failed("UNKNOWN", "no blob"));
        };
        let size = served.size.unwrap_or(blob.size);
        let fetched = match served.content {
            BlobContent::Filling(stream) => {
                let received = self.receive(image, blob, stream).await?;
                let kept = self
                    .generation
                    .registry
                    .kept(&image.repository, &blob.digest);
                kept.await.map_err(Error::from)?;
                received
            }
            BlobContent::Published(_) if !was_here => size,
            BlobContent::Published(_) | BlobContent::HeadersOnly => 0,
        };
        let line = json!({
            "event": "blob", "image": image.spelled, "digest": blob.digest.as_str(), "bytes": size, "fetched_bytes": fetched,
        });
        self.teller.tell(line).await?;
        Ok(Fetched {
            is_manifest: false,
            bytes: size,
            from_upstream: fetched,
        })
    }

    async fn receive(
        &self,
        image: &Image<'_>,
        blob: &Descriptor,
        mut stream: BoxStream<'static, Result<Arrived, RegistryError>>,
    ) -> Result<u64, Stop> {
        let (mut received, mut told) = (0_u64, 0_u64);
        while let Some(arrived) = stream.next().await {
            received += arrived.map_err(Error::from)?.length();
            if received - told >= TOLD_EVERY {
                told = received;
                self.teller.mention(json!({
                    "event": "progress", "image": image.spelled, "digest": blob.digest.as_str(), "bytes": blob.size, "received": received,
                }));
            }
        }
        Ok(received)
    }

    /// As a request of this principal: a permit, and then the registry.
    async fn perform(&self, operation: Operation) -> Result<Outcome, Error> {
        let generation = &self.generation;
        let requester = self.requester.clone();
        let decision = policy::authorize(generation, requester, &self.identified, operation);
        let deadline = generation.edge.decision_deadline;
        let permit = tokio::time::timeout(deadline, decision).await;
        let late = || Error::unavailable("the decision took longer than its deadline");
        let permit = permit.unwrap_or_else(|_elapsed| Err(late()))?;
        Ok(generation.registry.perform(permit, Body::empty()).await?)
    }
}

/// `NAME[:TAG][@DIGEST]`: without both, the tag `latest`, as docker has it.
fn split(spelled: &str) -> Result<(&str, Reference), String> {
    if let Some((name, digest)) = spelled.split_once('@') {
        let digest: Digest = digest.parse().map_err(|error| format!("{error}"))?;
        return Ok((split_tag(name).0, Reference::Digest(digest)));
    }
    let (name, tag) = split_tag(spelled);
    let tag: Tag = tag
        .unwrap_or("latest")
        .parse()
        .map_err(|error| format!("{error}"))?;
    Ok((name, Reference::Tag(tag)))
}

/// The tag is what follows the last colon, when no slash follows that.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

/// What a child of an index says of itself; nothing when it says nothing.
fn platform(child: &WrittenDescriptor) -> Option<String> {
    let platform = child.platform.as_ref()?;
    if platform.os.is_empty() || platform.architecture.is_empty() {
        return None;
    }
    let both = format!("{}/{}", platform.os, platform.architecture);
    Some(match &platform.variant {
        Some(variant) => format!("{both}/{variant}"),
        None => both,
    })
}

/// Whether a platform is the wanted one; without a variant, any variant of it.
fn is_of(wanted: &str, platform: &str) -> bool {
    let rest = platform.strip_prefix(wanted);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_as_docker_names_it() {
        const DIGEST: &str =
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let check = |spelled: &str, name: &str, reference: &str| {
            let (found, named) = split(spelled).unwrap();
            assert_eq!(
                (found, named.to_string().as_str()),
                (name, reference),
                "{spelled}"
            );
        };
        check(
            "docker.io/library/alpine",
            "docker.io/library/alpine",
            "latest",
        );
        check("docker.io/alpine:3.19", "docker.io/alpine", "3.19");
        check("host:5000/alpine", "host:5000/alpine", "latest");
        check("host:5000/alpine:v1", "host:5000/alpine", "v1");
        check(&format!("ghcr.io/a/b@{DIGEST}"), "ghcr.io/a/b", DIGEST);
        check(&format!("ghcr.io/a/b:v1@{DIGEST}"), "ghcr.io/a/b", DIGEST);
        for wrong in ["a:", "a@sha256:1", "a:b c"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_platform_without_a_variant_means_every_variant() {
        for (wanted, platform, expect) in [
            ("linux/arm", "linux/arm/v7", true),
            ("linux/arm", "linux/arm64", false),
            ("linux/arm/v6", "linux/arm/v7", false),
            ("linux/amd64", "linux/amd64", true),
        ] {
            assert_eq!(is_of(wanted, platform), expect, "{wanted} {platform}");
        }
    }
}
