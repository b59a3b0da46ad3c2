//! Method, path, query and headers → `Operation`. Pure.
//!
//! Owns the URL grammar of the distribution spec, both path forms (`/v2/<name>/…` and `/<prefix>/v2/<name>/…`) and every rule about
//! encodings. Knows nothing of credentials, bodies or stores. Paths are read from the right, because a name may hold `blobs`,
//! `manifests`, `tags` or `uploads`; every part is decoded exactly once, so what is authorized is what is performed.

mod endpoint;
mod query;
#[cfg(test)]
#[expect(clippy::too_many_lines, reason = "tables")]
mod tests;

use gantry_model::{
    AcceptedTypes, Algorithm, ByteRange, ContentRange, Digest, MediaType, Namespaces, Operation,
    Page, Reference, Repository, Tag, UploadId,
    digest::DigestError,
    name::NameError,
    namespace::{Address, ResolveError},
    reference::ReferenceError,
};
use http::{HeaderMap, Method, header, request::Parts};

use self::endpoint::{Endpoint, Target};
pub use self::query::Query;

/// Entries of a list page at most; a larger `n` is cut.
pub const MAX_PAGE_ENTRIES: usize = 1000;

/// `?tag=` parameters of one push at most (distribution-spec end-7b asks for at least ten).
pub const MAX_TAGS: usize = 32;

/// What a request to `/v2/` asks.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one per request, which is taken apart at once"
)]
pub enum Routed {
    /// Something to authorize and perform.
    Operation(Operation),
    /// `OPTIONS`: which methods the path takes. GitLab probes for tag deletion with it.
    Options(&'static str),
}

/// The request means no operation.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RouteError {
    /// No such path.
    #[error("no such endpoint")]
    NotFound,
    /// The path exists, the method does not.
    #[error("method not allowed here")]
    MethodNotAllowed {
        /// What is offered.
        allow: &'static str,
    },
    /// The path or a query value is not percent-encoded UTF-8, or hides a separator.
    #[error("path or query is not valid: {0}")]
    Encoding(&'static str),
    /// Breaks the grammar of names.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Nothing configured covers the name.
    #[error("no hosted pattern or mirror covers {name}")]
    NameUnknown {
        /// As the client spelled it.
        name: String,
    },
    /// Not a digest, or not one that can be verified.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// `PUT` that closes an upload without saying what it is.
    #[error("the digest parameter is missing")]
    DigestMissing,
    /// Not a tag.
    #[error("{0}")]
    Tag(ReferenceError),
    /// More than [`MAX_TAGS`].
    #[error("more than {MAX_TAGS} tag parameters")]
    TooManyTags,
    /// Not the name of an upload session, so there is none.
    #[error("blob upload unknown to registry")]
    UploadUnknown,
    /// `n` is not a number from 0 to 9223372036854775807, as in registry:2.
    #[error("n must be a number from 0 to 9223372036854775807")]
    Page,
    /// `Range` or `Content-Range` is malformed.
    #[error("malformed range")]
    Range,
    /// `Content-Type` is not a media type.
    #[error("Content-Type is not a media type")]
    MediaType,
    /// A parameter that may appear once appears twice.
    #[error("the {0} parameter appears more than once")]
    Repeated(&'static str),
    /// The request names a host with characters that no host has.
    #[error("the Host header is malformed")]
    Host,
}

/// Parses a request to `/v2/`. `address` says at which mirror's listener it arrived, if at one, and the host that the client addresses,
/// after trusted proxies were taken off.
///
/// # Errors
/// [`RouteError`]; all of them are the client's fault.
pub fn parse(
    parts: &Parts,
    address: Address<'_>,
    namespaces: &Namespaces,
) -> Result<Routed, RouteError> {
    let target = endpoint::parse(parts.uri.path(), namespaces)?;
    let allow = target.endpoint.allow();
    if parts.method == Method::OPTIONS {
        return Ok(Routed::Options(allow));
    }
    let known = allow
        .split(", ")
        .any(|method| method == parts.method.as_str());
    if !known {
        return Err(RouteError::MethodNotAllowed { allow });
    }
    let request = Request {
        method: &parts.method,
        headers: &parts.headers,
        query: Query::parse(parts.uri.query().unwrap_or_default())?,
        address,
        namespaces,
    };
    request.operation(target).map(Routed::Operation)
}

struct Request<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    query: Query,
    address: Address<'a>,
    namespaces: &'a Namespaces,
}

impl Request<'_> {
    fn operation(&self, target: Target) -> Result<Operation, RouteError> {
        let prefix = target.prefix.as_deref();
        match target.endpoint {
            Endpoint::Ping => Ok(Operation::Ping),
            // Its names mean other repositories here.
            Endpoint::Catalog if self.address.mirror.is_some() => Err(RouteError::NotFound),
            Endpoint::Catalog => Ok(Operation::ListCatalog { page: self.page()? }),
            Endpoint::Tags { name } => Ok(Operation::ListTags {
                repository: self.repository(prefix, &name)?,
                page: self.page()?,
            }),
            Endpoint::Referrers { name, digest } => Ok(Operation::ListReferrers {
                repository: self.repository(prefix, &name)?,
                digest: digest.parse()?,
                artifact_type: self.artifact_type()?,
                page: self.page()?,
            }),
            Endpoint::Manifest { name, reference } => {
                self.manifest(self.repository(prefix, &name)?, &reference)
            }
            Endpoint::Blob { name, digest } => self.blob(self.repository(prefix, &name)?, &digest),
            Endpoint::Uploads { name } => {
                let repository = self.repository(prefix, &name)?;
                self.start_upload(prefix, repository)
            }
            Endpoint::Upload { name, upload } => {
                self.upload(self.repository(prefix, &name)?, &upload)
            }
        }
    }

    fn repository(&self, prefix: Option<&str>, name: &str) -> Result<Repository, RouteError> {
        let address = Address {
            path_prefix: prefix,
            namespace: self.query.single("ns")?,
            ..self.address
        };
        self.namespaces
            .resolve(address, name)
            .map_err(|error| match error {
                ResolveError::Name(error) => RouteError::Name(error),
                ResolveError::Unknown => RouteError::NameUnknown {
                    name: name.to_owned(),
                },
            })
    }

    fn manifest(&self, repository: Repository, reference: &str) -> Result<Operation, RouteError> {
        let reference: Reference = reference.parse().map_err(tag_error)?;
        Ok(match (self.method, reference) {
            (&Method::PUT, reference) => Operation::PushManifest {
                repository,
                reference,
                tags: self.tags()?,
                media_type: self.media_type()?,
            },
            (&Method::DELETE, Reference::Digest(digest)) => {
                Operation::DeleteManifest { repository, digest }
            }
            (&Method::DELETE, Reference::Tag(tag)) => Operation::DeleteTag { repository, tag },
            (method, reference) => Operation::PullManifest {
                repository,
                reference,
                body: method != Method::HEAD,
                accepts: self.accepts(),
            },
        })
    }

    fn accepts(&self) -> AcceptedTypes {
        let values = self.headers.get_all(header::ACCEPT).iter();
        AcceptedTypes::read(values.filter_map(|value| value.to_str().ok()))
    }

    fn blob(&self, repository: Repository, digest: &str) -> Result<Operation, RouteError> {
        let digest: Digest = digest.parse()?;
        if self.method == Method::DELETE {
            return Ok(Operation::DeleteBlob { repository, digest });
        }
        let body = self.method != Method::HEAD;
        // RFC 9110 section 14.2 defines Range for GET alone.
        let range = if body { self.range(&digest)? } else { None };
        Ok(Operation::PullBlob {
            repository,
            digest,
            range,
            body,
        })
    }

    fn start_upload(
        &self,
        prefix: Option<&str>,
        repository: Repository,
    ) -> Result<Operation, RouteError> {
        let algorithm = match self.query.single("digest-algorithm")? {
            Some(name) => name.parse()?,
            None => Algorithm::Sha256,
        };
        if let Some(digest) = self.query.single("mount")? {
            let digest = digest.parse()?;
            let from = match self.query.single("from")? {
                None | Some("") => None,
                Some(name) => match self.repository(prefix, name) {
                    // A source that is not here cannot be mounted from: an ordinary upload, as the spec has it.
                    Err(RouteError::NameUnknown { .. }) => {
                        return Ok(Operation::StartUpload {
                            repository,
                            algorithm,
                        });
                    }
                    found => Some(found?),
                },
            };
            return Ok(Operation::MountBlob {
                repository,
                digest,
                from,
            });
        }
        Ok(match self.query.single("digest")? {
            Some(digest) => Operation::PushBlob {
                repository,
                digest: digest.parse()?,
            },
            None => Operation::StartUpload {
                repository,
                algorithm,
            },
        })
    }

    fn upload(&self, repository: Repository, upload: &str) -> Result<Operation, RouteError> {
        let upload: UploadId = upload
            .parse()
            .map_err(|_not_an_id| RouteError::UploadUnknown)?;
        Ok(match *self.method {
            Method::PATCH => Operation::AppendChunk {
                repository,
                upload,
                range: self.content_range()?,
            },
            Method::PUT => Operation::CommitUpload {
                repository,
                upload,
                digest: self
                    .query
                    .single("digest")?
                    .ok_or(RouteError::DigestMissing)?
                    .parse()?,
                range: self.content_range()?,
            },
            Method::DELETE => Operation::CancelUpload { repository, upload },
            _ => Operation::UploadStatus { repository, upload },
        })
    }

    fn page(&self) -> Result<Page, RouteError> {
        let limit = self.query.single("n")?.map(number).transpose()?;
        let after = self.query.single("last")?.filter(|last| !last.is_empty());
        Ok(Page {
            limit,
            after: after.map(str::to_owned),
        })
    }

    fn tags(&self) -> Result<Vec<Tag>, RouteError> {
        let mut tags = Vec::new();
        for tag in self.query.all("tag") {
            let tag: Tag = tag.parse().map_err(tag_error)?;
            if !tags.contains(&tag) {
                tags.push(tag);
            }
            if tags.len() > MAX_TAGS {
                return Err(RouteError::TooManyTags);
            }
        }
        Ok(tags)
    }

    /// Media types have `+` and never a space; a client that forgets to encode the `+` means it.
    fn artifact_type(&self) -> Result<Option<String>, RouteError> {
        let filter = self.query.single("artifactType")?;
        Ok(filter
            .filter(|filter| !filter.is_empty())
            .map(|filter| filter.replace(' ', "+")))
    }

    fn media_type(&self) -> Result<Option<MediaType>, RouteError> {
        let mut values = self.headers.get_all(header::CONTENT_TYPE).iter();
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(RouteError::MediaType);
        }
        let text = value.to_str().map_err(|_bytes| RouteError::MediaType)?;
        let text = text.split(';').next().unwrap_or_default().trim();
        text.parse()
            .map(Some)
            .map_err(|_malformed| RouteError::MediaType)
    }

    fn range(&self, digest: &Digest) -> Result<Option<ByteRange>, RouteError> {
        let Some(value) = self.headers.get(header::RANGE) else {
            return Ok(None);
        };
        if let Some(condition) = self.headers.get(header::IF_RANGE) {
            let same = condition
                .to_str()
                .is_ok_and(|condition| condition.trim_matches('"') == digest.as_str());
            if !same {
                return Ok(None);
            }
        }
        let text = value.to_str().map_err(|_bytes| RouteError::Range)?;
        ByteRange::parse_header(text).map_err(|_malformed| RouteError::Range)
    }

    fn content_range(&self) -> Result<Option<ContentRange>, RouteError> {
        let Some(value) = self.headers.get(header::CONTENT_RANGE) else {
            return Ok(None);
        };
        let text = value.to_str().map_err(|_bytes| RouteError::Range)?;
        text.parse()
            .map(Some)
            .map_err(|_malformed| RouteError::Range)
    }
}

fn tag_error(error: ReferenceError) -> RouteError {
    match error {
        ReferenceError::Digest(error) => RouteError::Digest(error),
        ReferenceError::Tag => RouteError::Tag(error),
    }
}

/// Digits only, at most 31 bits; cut to [`MAX_PAGE_ENTRIES`].
fn number(text: &str) -> Result<usize, RouteError> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RouteError::Page);
    }
    let number: i64 = text.parse().map_err(|_too_large| RouteError::Page)?;
    Ok(usize::try_from(number)
        .unwrap_or_default()
        .min(MAX_PAGE_ENTRIES))
}
