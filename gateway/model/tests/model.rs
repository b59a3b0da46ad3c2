//! The grammar holds on tables of good and bad texts, and on whatever proptest invents.
#![expect(
    clippy::string_slice,
    clippy::cast_possible_truncation,
    reason = "a test may panic"
)]

#[path = "model/grammar.rs"]
mod grammar;
#[path = "model/manifests.rs"]
mod manifests;
#[path = "model/names.rs"]
mod names;
#[path = "model/policy.rs"]
mod policy;
