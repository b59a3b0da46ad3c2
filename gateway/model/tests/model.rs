//! The grammar holds on tables of good and bad texts, and on whatever proptest invents.
#![expect(
    clippy::cast_possible_truncation,
    clippy::string_slice,
    clippy::too_many_lines,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test may panic, and a table may be long"
)]

#[path = "model/grammar.rs"]
mod grammar;
#[path = "model/manifests.rs"]
mod manifests;
#[path = "model/names.rs"]
mod names;
#[path = "model/policy.rs"]
mod policy;
