//! The closed set of things a client may ask. After `route::parse` nothing is a string.
//!
//! Adding a variant makes the compiler list every place that has to decide about it.

use crate::{
    accept::AcceptedTypes,
    digest::{Algorithm, Digest},
    media_type::MediaType,
    name::RepositoryName,
    namespace::Repository,
    range::{ByteRange, ContentRange},
    reference::{Reference, Tag},
    scope::Scope,
    upload::UploadId,
};

/// A page of a list (distribution-spec, "Listing Tags").
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Page {
    /// At most so many entries; `None` = the server's own page size. Zero is legal and gives an empty list.
    pub limit: Option<usize>,
    /// Only entries after this one; need not exist.
    pub after: Option<String>,
}

/// A parsed request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Operation {
    /// `GET /v2/`.
    Ping,
    /// `GET /v2/_catalog`.
    ListCatalog {
        /// Which page.
        page: Page,
    },
    /// `GET` or `HEAD` of a manifest.
    PullManifest {
        /// Where.
        repository: Repository,
        /// Tag or digest.
        reference: Reference,
        /// Whether the bytes are wanted: false for `HEAD`.
        body: bool,
        /// The types that the client accepts.
        accepts: AcceptedTypes,
    },
    /// `PUT` of a manifest.
    PushManifest {
        /// Where.
        repository: Repository,
        /// Tag or digest in the path.
        reference: Reference,
        /// Further tags, from `?tag=` (distribution-spec end-7b).
        tags: Vec<Tag>,
        /// The declared `Content-Type`.
        media_type: Option<MediaType>,
    },
    /// `DELETE` of a manifest by digest, with every tag that names it.
    DeleteManifest {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// `DELETE` of a tag.
    DeleteTag {
        /// Where.
        repository: Repository,
        /// Which.
        tag: Tag,
    },
    /// `GET` or `HEAD` of a blob.
    PullBlob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
        /// The part that is wanted, when not the whole.
        range: Option<ByteRange>,
        /// Whether the bytes are wanted: false for `HEAD`.
        body: bool,
    },
    /// `DELETE` of a blob.
    DeleteBlob {
        /// Where.
        repository: Repository,
        /// Which.
        digest: Digest,
    },
    /// `POST` that opens an upload session.
    StartUpload {
        /// Where.
        repository: Repository,
        /// The algorithm the client will commit with (`?digest-algorithm=`).
        algorithm: Algorithm,
    },
    /// `POST ?digest=` with the whole blob as body.
    PushBlob {
        /// Where.
        repository: Repository,
        /// What the body must hash to.
        digest: Digest,
    },
    /// `POST ?mount=&from=`.
    MountBlob {
        /// Where to.
        repository: Repository,
        /// Which blob.
        digest: Digest,
        /// Where from; `None` asks the registry to find it.
        from: Option<Repository>,
    },
    /// `GET` of an upload session.
    UploadStatus {
        /// Where.
        repository: Repository,
        /// Which session.
        upload: UploadId,
    },
    /// `PATCH` of an upload session.
    AppendChunk {
        /// Where.
        repository: Repository,
        /// Which session.
        upload: UploadId,
        /// What the chunk says it carries; `None` = append what comes.
        range: Option<ContentRange>,
    },
    /// `PUT` that closes an upload session, perhaps with a last chunk.
    CommitUpload {
        /// Where.
        repository: Repository,
        /// Which session.
        upload: UploadId,
        /// What the whole must hash to.
        digest: Digest,
        /// What the last chunk says it carries.
        range: Option<ContentRange>,
    },
    /// `DELETE` of an upload session.
    CancelUpload {
        /// Where.
        repository: Repository,
        /// Which session.
        upload: UploadId,
    },
    /// `GET /tags/list`.
    ListTags {
        /// Where.
        repository: Repository,
        /// Which page.
        page: Page,
    },
    /// `GET /referrers/<digest>`.
    ListReferrers {
        /// Where.
        repository: Repository,
        /// The subject.
        digest: Digest,
        /// Only this artifact type.
        artifact_type: Option<String>,
        /// Which page: after which digest.
        page: Page,
    },
}

/// An operation without its operands: the policy's view, one per entry of the WIT enum `operation`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum OperationKind {
    /// See [`Operation::Ping`].
    Ping,
    /// See [`Operation::ListCatalog`].
    Catalog,
    /// See [`Operation::ListTags`].
    ListTags,
    /// See [`Operation::ListReferrers`].
    ListReferrers,
    /// See [`Operation::PullManifest`].
    PullManifest,
    /// See [`Operation::PushManifest`].
    PushManifest,
    /// See [`Operation::DeleteManifest`].
    DeleteManifest,
    /// See [`Operation::DeleteTag`].
    DeleteTag,
    /// See [`Operation::PullBlob`].
    PullBlob,
    /// Every step of an upload.
    PushBlob,
    /// See [`Operation::MountBlob`].
    MountBlob,
    /// See [`Operation::DeleteBlob`].
    DeleteBlob,
    /// The token endpoint asks what a token may hold.
    Token,
    /// The admin API.
    Admin,
}

impl OperationKind {
    /// Every kind, in the WIT's order.
    pub const ALL: [Self; 14] = [
        Self::Ping,
        Self::Catalog,
        Self::ListTags,
        Self::ListReferrers,
        Self::PullManifest,
        Self::PushManifest,
        Self::DeleteManifest,
        Self::DeleteTag,
        Self::PullBlob,
        Self::PushBlob,
        Self::MountBlob,
        Self::DeleteBlob,
        Self::Token,
        Self::Admin,
    ];

    /// The WIT's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Catalog => "catalog",
            Self::ListTags => "list-tags",
            Self::ListReferrers => "list-referrers",
            Self::PullManifest => "pull-manifest",
            Self::PushManifest => "push-manifest",
            Self::DeleteManifest => "delete-manifest",
            Self::DeleteTag => "delete-tag",
            Self::PullBlob => "pull-blob",
            Self::PushBlob => "push-blob",
            Self::MountBlob => "mount-blob",
            Self::DeleteBlob => "delete-blob",
            Self::Token => "token",
            Self::Admin => "admin",
        }
    }
}

impl Operation {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> OperationKind {
        match self {
            Self::Ping => OperationKind::Ping,
            Self::ListCatalog { .. } => OperationKind::Catalog,
            Self::PullManifest { .. } => OperationKind::PullManifest,
            Self::PushManifest { .. } => OperationKind::PushManifest,
            Self::DeleteManifest { .. } => OperationKind::DeleteManifest,
            Self::DeleteTag { .. } => OperationKind::DeleteTag,
            Self::PullBlob { .. } => OperationKind::PullBlob,
            Self::DeleteBlob { .. } => OperationKind::DeleteBlob,
            Self::MountBlob { .. } => OperationKind::MountBlob,
            Self::StartUpload { .. }
            | Self::PushBlob { .. }
            | Self::UploadStatus { .. }
            | Self::AppendChunk { .. }
            | Self::CommitUpload { .. }
            | Self::CancelUpload { .. } => OperationKind::PushBlob,
            Self::ListTags { .. } => OperationKind::ListTags,
            Self::ListReferrers { .. } => OperationKind::ListReferrers,
        }
    }

    /// The repository it is about; `None` for the ping and the catalog.
    #[must_use]
    pub fn repository(&self) -> Option<&Repository> {
        match self {
            Self::Ping | Self::ListCatalog { .. } => None,
            Self::PullManifest { repository, .. }
            | Self::PushManifest { repository, .. }
            | Self::DeleteManifest { repository, .. }
            | Self::DeleteTag { repository, .. }
            | Self::PullBlob { repository, .. }
            | Self::DeleteBlob { repository, .. }
            | Self::StartUpload { repository, .. }
            | Self::PushBlob { repository, .. }
            | Self::MountBlob { repository, .. }
            | Self::UploadStatus { repository, .. }
            | Self::AppendChunk { repository, .. }
            | Self::CommitUpload { repository, .. }
            | Self::CancelUpload { repository, .. }
            | Self::ListTags { repository, .. }
            | Self::ListReferrers { repository, .. } => Some(repository),
        }
    }

    /// The tag or digest it names, as text for policies.
    #[must_use]
    pub fn reference(&self) -> Option<String> {
        match self {
            Self::PullManifest { reference, .. } | Self::PushManifest { reference, .. } => {
                Some(reference.to_string())
            }
            Self::DeleteTag { tag, .. } => Some(tag.to_string()),
            Self::DeleteManifest { digest, .. }
            | Self::PullBlob { digest, .. }
            | Self::DeleteBlob { digest, .. }
            | Self::PushBlob { digest, .. }
            | Self::MountBlob { digest, .. }
            | Self::CommitUpload { digest, .. }
            | Self::ListReferrers { digest, .. } => Some(digest.to_string()),
            Self::Ping
            | Self::ListCatalog { .. }
            | Self::StartUpload { .. }
            | Self::UploadStatus { .. }
            | Self::AppendChunk { .. }
            | Self::CancelUpload { .. }
            | Self::ListTags { .. } => None,
        }
    }

    /// What the caller must be granted, on canonical names. Cancelling an upload needs `push`, not `delete`, because clients
    /// cancel with the token they push with.
    #[must_use]
    pub fn required_scopes(&self) -> Vec<Scope> {
        let actions: &[&str] = match self.kind() {
            OperationKind::Ping | OperationKind::Token => return Vec::new(),
            OperationKind::Admin => return vec![Scope::admin()],
            OperationKind::Catalog => {
                return vec![Scope {
                    kind: "registry".to_owned(),
                    name: "catalog".to_owned(),
                    actions: ["*".to_owned()].into(),
                }];
            }
            OperationKind::ListTags
            | OperationKind::ListReferrers
            | OperationKind::PullManifest
            | OperationKind::PullBlob => &["pull"],
            OperationKind::PushManifest | OperationKind::PushBlob | OperationKind::MountBlob => {
                &["pull", "push"]
            }
            OperationKind::DeleteManifest
            | OperationKind::DeleteTag
            | OperationKind::DeleteBlob => &["delete"],
        };
        self.repository()
            .map(|repository| Scope::repository(&repository.name, actions))
            .into_iter()
            .collect()
    }

    /// What the operation would use but does without: `pull` on the source of a mount, whose lack makes it a plain upload.
    #[must_use]
    pub fn optional_scope(&self) -> Option<Scope> {
        match self {
            Self::MountBlob {
                from: Some(from), ..
            } => Some(Self::pull_scope(&from.name)),
            _ => None,
        }
    }

    /// `repository:<name>:pull`.
    #[must_use]
    pub fn pull_scope(name: &RepositoryName) -> Scope {
        Scope::repository(name, &["pull"])
    }
}
