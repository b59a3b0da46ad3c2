//! The harness: the real gateway as its own process, a real registry as upstream, real clients, and a raw HTTP client for the wire.
//!
//! Map: `gateway` starts and kills the program; `origin` is Debian's docker-registry behind a proxy that counts and misbehaves;
//! `doors` its accounts; `scripted` a registry that answers as a test says; `dockerd` a private docker daemon; `tools` finds programs or fails by name; `wire` speaks the distribution API; `image` makes
//! images; `guests` builds components; `pusher` changes repositories until the gateway dies, `ledger` holds what it was told against what
//! is there, `disk` is a file system that fills up or loses its power, `dice` is chance from a seed. Every port and folder is the test's own, so tests run side by side.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a harness fails the test that uses it, and waits for other processes"
)]

mod compiled;
pub mod dice;
pub mod disk;
pub mod dockerd;
pub mod doors;
pub mod gateway;
pub mod guests;
pub mod image;
pub mod ledger;
pub mod origin;
pub mod pusher;
pub mod scripted;
pub mod strace;
pub mod tools;
pub mod wire;

pub use gateway::Gateway;
pub use image::Image;
pub use origin::Origin;
pub use scripted::Scripted;
pub use wire::Wire;
