//! The domain: push, pull, upload, mount, referrers, tags, delete, and the proxy cache. No HTTP, no wasm.
//!
//! Map: `registry` is the struct and the one entry [`Registry::perform`]; `pull` `push` `upload` `list` `delete` hold one family of
//! operations each; `mirror` fills the cache; `ports` is what the binary must bring; `outcome` and `error` are what comes out.
//! Invariant: nothing here runs without a [`gantry_model::Permit`].

pub mod body;
pub mod error;
pub mod outcome;
pub mod ports;
pub mod registry;

pub use body::{Body, BodyError};
pub use error::Error;
pub use outcome::{BlobContent, Outcome, ServedBlob, ServedManifest, Staleness, UploadState};
pub use ports::{Admission, Clock, MirrorSettings, Ports, Settings};
pub use registry::Registry;
