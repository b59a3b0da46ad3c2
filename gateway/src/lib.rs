//! Gantry: policy in the data path of a correct proxy cache.
//!
//! Start reading at `http.rs`, the life of a request. Map: `server` accepts connections, `http` turns bytes into an operation and an
//! outcome into bytes, `auth` finds the principal, `policy` decides and makes the permit, `hooks` joins the registry's ports to the
//! plugin host, `events` delivers what happened, `outbound` is the plugins' way to other services, `config` reads gantry.yaml, `app`
//! builds everything, `run` serves it until told to stop, `reload` replaces it while it serves, `author` is for
//! those who write plugins, `telemetry` logs, measures and audits.

mod address;
pub mod app;
pub mod auth;
pub mod author;
pub mod builtin;
pub mod callers;
pub mod clock;
pub mod config;
pub mod events;
mod files;
pub mod hooks;
pub mod http;
mod modes;
pub mod origins;
pub mod outbound;
pub mod policy;
pub mod reload;
pub mod run;
pub mod server;
pub mod telemetry;

pub use app::App;
