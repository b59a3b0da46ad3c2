//! The words of the registry: OCI grammar, operations, principals, decisions, permits.
//!
//! Pure: no I/O, no clock, no async, no HTTP. Everything here is parsed once at the edge and trusted after that.
//!
//! Map: `digest` `name` `reference` `media_type` `accept` `descriptor` `manifest` `range` are OCI grammar (`json` is the reader's rules); `namespace` says which
//! repository a spelled name means; `operation` is the closed set of things a client may ask; `scope` `principal` `decision`
//! `admission` are policy's words, `event` what is told afterwards, and `decision::Permit` the proof that an operation was allowed.

mod accept;
pub mod admission;
pub mod decision;
pub mod descriptor;
pub mod digest;
pub mod event;
pub mod glob;
mod json;
pub mod manifest;
pub mod media_type;
pub mod name;
pub mod namespace;
pub mod operation;
pub mod principal;
pub mod range;
pub mod reference;
pub mod scope;
pub mod upload;
pub mod version;

pub use accept::AcceptedTypes;
pub use admission::{AdmissionRequest, Admitted, Change, Refusal, TagState};
pub use decision::{
    Cause, Confirmed, Decision, Denial, DenialCode, Grant, Permit, Reason, Requester,
};
pub use descriptor::{Descriptor, Platform, WrittenDescriptor};
pub use digest::{Algorithm, AnyDigest, Digest};
pub use event::{Arrival, Delivery, Event, EventKind};
pub use manifest::{Document, Form, Manifest, ManifestError, ManifestKind, Opaque};
pub use media_type::MediaType;
pub use name::RepositoryName;
pub use namespace::{Namespaces, Repository, Source};
pub use operation::{Operation, OperationKind, Page};
pub use principal::{AttributeValue, Client, Principal};
pub use range::{ByteRange, ContentRange};
pub use reference::{Reference, Tag};
pub use scope::Scope;
pub use upload::UploadId;
pub use version::Version;
