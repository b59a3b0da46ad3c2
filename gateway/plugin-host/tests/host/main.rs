//! The host with real guests: every hook, every way to fail, and what a guest can and cannot reach.
//!
//! Map: `guest` builds and loads the guest, `ports` is what a binary would bring; the rest are tests by promise.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "also the functions beside the tests are tests"
)]

mod answers;
mod capabilities;
mod failures;
mod fairness;
mod guest;
mod http;
mod isolation;
mod keys;
mod loading;
mod logs;
mod observe;
mod ports;
mod recording;
mod tokens;
mod webhook;
mod wire;
