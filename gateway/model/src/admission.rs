//! What an admission hook is asked, and what it may answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    decision::{Denial, Requester},
    descriptor::Descriptor,
    digest::Digest,
    namespace::Repository,
    reference::Tag,
    version::Version,
};

/// What is about to happen.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Change {
    /// A tag that does not exist is made.
    CreateTag,
    /// A tag is pointed elsewhere, or at the same digest again.
    MoveTag,
    /// A manifest arrives without a tag.
    PushByDigest,
    /// A blob of another repository is linked.
    Mount,
    /// A tag is deleted.
    DeleteTag,
    /// A manifest is deleted by digest.
    DeleteManifest,
    /// A blob that no manifest of the repository names is deleted.
    DeleteBlob,
    /// An upstream's content enters the cache.
    Fill,
    /// A manifest leaves, also as a HEAD's headers.
    ServeManifest,
    /// A blob leaves, also as a HEAD's headers.
    ServeBlob,
    /// The client learns what a repository has and what it lacks: a list of tags or referrers, or an answer "not found".
    ServeList,
}

impl Change {
    /// Every change, in the WIT's order.
    pub const ALL: [Self; 11] = [
        Self::CreateTag,
        Self::MoveTag,
        Self::PushByDigest,
        Self::Mount,
        Self::DeleteTag,
        Self::DeleteManifest,
        Self::DeleteBlob,
        Self::Fill,
        Self::ServeManifest,
        Self::ServeBlob,
        Self::ServeList,
    ];

    /// The WIT's and the configuration's spelling.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateTag => "create-tag",
            Self::MoveTag => "move-tag",
            Self::PushByDigest => "push-by-digest",
            Self::Mount => "mount",
            Self::DeleteTag => "delete-tag",
            Self::DeleteManifest => "delete-manifest",
            Self::DeleteBlob => "delete-blob",
            Self::Fill => "fill",
            Self::ServeManifest => "serve-manifest",
            Self::ServeBlob => "serve-blob",
            Self::ServeList => "serve-list",
        }
    }

    /// Whether content or a list leaves, rather than something changes.
    #[must_use]
    pub fn is_serve(self) -> bool {
        matches!(
            self,
            Self::ServeManifest | Self::ServeBlob | Self::ServeList
        )
    }
}

/// What a tag names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TagState {
    /// The manifest.
    pub digest: Digest,
    /// When the tag was last pointed there, in milliseconds since 1970.
    pub pushed_at_ms: u64,
    /// The principal that did.
    pub pushed_by: String,
    /// Whether an admission marked it immutable.
    pub immutable: bool,
}

/// A question to the admission hooks.
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// Who causes it.
    pub requester: Requester,
    /// Where.
    pub repository: Repository,
    /// What.
    pub change: Change,
    /// The tag concerned, when one is.
    pub tag: Option<Tag>,
    /// What that tag names now.
    pub previous: Option<TagState>,
    /// The content: the new target of a tag, the deleted manifest or blob, the served content. Size 0 when it is not known yet. For
    /// [`Change::ServeList`] the digest that the client named, and nothing where it named none.
    pub target: Option<Descriptor>,
    /// The manifest's bytes, verified; `None` for blobs.
    pub manifest: Option<Bytes>,
    /// Stored manifests of this repository that name the content.
    pub parents: Vec<Digest>,
    /// The repository's version, taken before the rest was looked up. An answer may be reused only while it stays.
    pub version: Version,
}

/// Every hook accepted or abstained.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Admitted {
    /// Told to the client in `Warning` headers.
    pub warnings: Vec<String>,
    /// Mark the tag immutable with the same commit.
    pub set_immutable: bool,
}

/// A hook did not accept.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Refused.
    Denied(Box<Denial>),
    /// Not decided yet: try again after this long.
    Held {
        /// How long.
        retry_after: Duration,
        /// Why, shown to the client.
        reason: String,
        /// The plugin that holds.
        plugin: Arc<str>,
    },
    /// A hook failed, and its binding says that this denies. Answered 503 without text.
    Failed {
        /// The plugin that failed.
        plugin: Arc<str>,
        /// How, for logs.
        failure: String,
    },
}
