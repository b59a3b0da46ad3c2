//! `RegistryClient` against a real HTTP server that misbehaves on request.
//!
//! Promise under test: whatever the other side answers, credentials reach only the origin they belong to, bytes and time are bounded,
//! and the error says what the caller can do about it.

#[cfg(test)]
#[path = "upstream"]
mod upstream {
    mod accounts;
    mod answers;
    mod away;
    mod bodies;
    mod failures;
    mod limits;
    mod lists;
    mod matrix;
    mod parts;
    mod proxies;
    mod redirects;
    mod rights;
    mod secrets;
    mod server;
    mod tls;
    mod tokens;
}
