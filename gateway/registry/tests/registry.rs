//! The domain on real stores: every operation, its races, its faults.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::unreachable,
    reason = "a test fails by a panic"
)]

#[path = "registry/harness.rs"]
mod harness;

#[path = "registry/admission.rs"]
mod admission;
#[path = "registry/delete.rs"]
mod delete;
#[path = "registry/events.rs"]
mod events;
#[path = "registry/faults.rs"]
mod faults;
#[path = "registry/list.rs"]
mod list;
#[path = "registry/mirrored.rs"]
mod mirrored;
#[path = "registry/model.rs"]
mod model;
#[path = "registry/mount.rs"]
mod mount;
#[path = "registry/pull.rs"]
mod pull;
#[path = "registry/push.rs"]
mod push;
#[path = "registry/race.rs"]
mod race;
#[path = "registry/referrers.rs"]
mod referrers;
#[path = "registry/upload.rs"]
mod upload;
