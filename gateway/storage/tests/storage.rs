//! Every backend passes the suite; the durable ones also survive what memory never meets: a killed process, a full disk, a damaged file.

#![cfg(test)]

#[path = "storage/adopt.rs"]
mod adopt;
#[path = "storage/cached.rs"]
mod cached;
#[path = "storage/damaged_outbox.rs"]
mod damaged_outbox;
#[path = "storage/faulty.rs"]
mod faulty;
#[path = "storage/folder.rs"]
mod folder;
#[path = "storage/full.rs"]
mod full;
#[path = "storage/killed.rs"]
mod killed;
#[path = "storage/memory.rs"]
mod memory;
#[path = "storage/model.rs"]
mod model;
#[path = "storage/origins.rs"]
mod origins;
#[path = "storage/sqlite.rs"]
mod sqlite;
