//! The mirror on real stores against a scripted upstream.

mod age;
mod durable;
mod errors;
mod fill;
mod freshness;
mod keep;
mod listing;
mod negotiation;
mod operator;
mod panicking;
mod parts;
mod pass;
mod rights;
mod upstream;
mod verified;
mod world;
