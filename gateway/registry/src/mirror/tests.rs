//! The mirror on real stores against a scripted upstream.

mod durable;
mod errors;
mod fill;
mod freshness;
mod keep;
mod listing;
mod operator;
mod panicking;
mod rights;
mod upstream;
mod world;
