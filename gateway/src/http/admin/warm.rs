//! `POST /admin/v1/cache/warm`: pulls images into the cache, as whoever asks would pull them.
//!
//! Owns what belongs to an image and in which order it is pulled. Each manifest and blob is an ordinary operation of the registry, with
//! a permit of its own: authorizers, admissions and fills are those of a client, and so is what a refusal says.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt as _, stream::BoxStream};
use gantry_model::{
    Cause, Descriptor, Digest, Document, Manifest, Operation, Reference, Repository, Requester,
    Source, Tag, WrittenDescriptor, namespace::Address,
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

/// Images of one request at most, and so questions of it for what an upstream may not have: the first one in vain ends an image.
const MAX_IMAGES: usize = 1000;
/// Manifests of one image at most, over all its indexes.
const MAX_MANIFESTS: usize = 1000;
/// Blobs of an image that are fetched at once, as many as docker does.
const BLOBS_AT_ONCE: usize = 3;
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

impl Totals {
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
        let mut wanted = vec![reference];
        let (mut seen, mut blobs) = (HashSet::new(), Vec::new());
        while let Some(reference) = wanted.pop() {
            let served = self.manifest(&image, reference).await?;
            if !seen.insert(served.digest.clone()) {
                continue;
            }
            if seen.len() > MAX_MANIFESTS {
                let message = format!("an image of more than {MAX_MANIFESTS} manifests");
                return Err(Stop::failed("MANIFEST_INVALID", message));
            }
            totals.manifests += 1;
            let Document::Manifest(manifest) = Document::read(&served.media_type, &served.bytes)
            else {
                // It is here now; what it names is for those to fetch who can read it.
                continue;
            };
            let children = self.children(&manifest)?;
            wanted.extend(children.into_iter().map(Reference::Digest));
            let named = manifest.blobs();
            let new = named.filter(|(digest, _)| seen.insert((*digest).clone()));
            blobs.extend(new.map(|(digest, blob)| {
                Descriptor::new(blob.media_type.clone(), digest.clone(), blob.size)
            }));
        }
        let image = &image;
        let fetches = blobs
            .into_iter()
            .map(|blob| async move { self.blob(image, &blob).await });
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(BLOBS_AT_ONCE);
        while let Some(fetched) = fetches.next().await {
            let (size, fetched) = fetched?;
            totals.blobs += 1;
            totals.bytes += size;
            totals.fetched_bytes += fetched;
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
        reference: Reference,
    ) -> Result<Box<ServedManifest>, Stop> {
        let operation = Operation::PullManifest {
            repository: image.repository.clone(),
            reference,
            body: true,
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

    /// Its length, and how much of it came from the upstream for this.
    async fn blob(&self, image: &Image<'_>, blob: &Descriptor) -> Result<(u64, u64), Stop> {
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
        Ok((size, fetched))
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
