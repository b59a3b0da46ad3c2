//! Backends that keep everything in memory, with the meaning of the durable ones: for tests, model checks and throw-away caches.

mod blob;
mod cache;
mod kv;
mod metadata;

pub use blob::MemoryBlobStore;
pub use kv::MemoryKv;
pub use metadata::MemoryMetadata;
