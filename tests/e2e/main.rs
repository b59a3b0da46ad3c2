//! End to end: the real program, real clients, real bytes. One binary; each module is one promise.
#![expect(
    clippy::excessive_nesting,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    clippy::unwrap_used,
    reason = "a test may panic, and a story with real clients has many steps"
)]

mod adopted;
mod author;
mod bad_requests;
mod cache;
mod callers;
mod canary;
mod client_files;
mod client_times;
mod clients;
mod crash;
mod damaged;
mod denied_downloads;
mod disk_errors;
mod disk_full;
mod documents;
mod edge;
mod events;
mod exhaustion;
mod herd;
mod hostile;
mod immutable;
mod logins;
mod many_images;
mod mirror;
mod names;
mod outage;
mod own_layers;
mod plugins_fail;
mod policy;
mod possession;
mod presence;
mod promises;
mod quickstart;
mod recorded;
mod registries;
mod reload;
mod reload_mirror;
mod replaced;
mod revocation;
mod seen;
mod shutdown;
mod structure;
mod tokens;
mod upstreams;
mod wire;
