//! The domain: push, pull, upload, mount, referrers, tags, delete, and the proxy cache. No HTTP, no wasm.
//!
//! Map: `registry` is the struct and the one entry [`Registry::perform`]; `pull` `push` `upload` `mount` `list` `referrers` `delete`
//! hold one family of operations each; `admit` asks the hooks; `events` tells what happened; `staging` knows which staging files are in
//! use; `mirror` fills the cache; `layered` is what is hosted over it and `release` gives that back; `ports` is what the binary must bring; `cache` is what operators do
//! with the mirrors' cache, `cache_counts` counts what the mirrors did;
//! `outcome` and `error` are what comes out.
//! Invariant: nothing here runs without a [`gantry_model::Permit`].

mod admit;
pub mod body;
mod cache;
pub mod cache_counts;
mod delete;
pub mod error;
mod events;
mod layered;
mod leases;
mod list;
mod mirror;
mod mount;
pub mod outcome;
pub mod ports;
mod presence;
mod pull;
mod push;
mod referrers;
pub mod registry;
mod release;
mod staging;
mod upload;

pub use body::{Body, BodyError};
pub use cache_counts::{CacheContent, CacheCounts, CacheOutcome, EvictionReason};
pub use error::{Error, UpstreamFailure};
pub use events::random_uuid;
pub use leases::Leases;
pub use mirror::{
    CacheEntry, CacheUsage, EvictOrder, Evicted, EvictedItem, EvictedWhat, Selection, Swept,
};
pub use outcome::{
    Arrived, BlobContent, ListedReferrers, Outcome, ServedBlob, ServedManifest, Stale, Staleness,
    UploadState,
};
pub use ports::{
    Admission, Clock, EventSink, Freshness, Keep, MirrorSettings, Moves, NoEvents, Parallel, Ports,
    Settings, TagRule,
};
pub use registry::{Registry, RegistryStats};
