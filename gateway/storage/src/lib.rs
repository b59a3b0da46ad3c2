//! Where bytes and facts are kept: the ports and their backends.
//!
//! Map: `blob` is the port for content by digest, `metadata` the port for what repositories hold, `outbox` the one for events that
//! wait, `cache` the one for eviction, `kv` the port for plugins' own data; `cached` keeps metadata's answers in memory; `hash` hashes
//! while bytes pass; `adopt` takes over another registry's folder. Backends: `fs` (Distribution's layout), `sqlite`, `memory`. `suite` is what every
//! backend must pass and `faulty` the store that fails on purpose (feature `testing`).
//! Knows nothing of policy, HTTP or upstreams.

pub mod adopt;
pub mod blob;
mod blocking;
pub mod cache;
pub mod cached;
pub mod error;
#[cfg(feature = "testing")]
pub mod faulty;
mod folder;
pub mod fs;
pub mod hash;
pub mod kv;
pub mod memory;
pub mod metadata;
pub mod outbox;
pub mod sqlite;
#[cfg(feature = "testing")]
pub mod suite;

pub use adopt::{
    AdoptAs, Adopted, Adoption, LeftOut, adopt, check_adoption, repositories_in, would_adopt,
};
pub use blob::{Blob, BlobStore, BlobWriter, PublishError, StoredBlob};
pub use cache::{CacheIndex, CacheQuery, CacheSize, Cached, CachedRepository, Pin, Use, Within};
pub use cached::CachedMetadata;
pub use error::{Kind, StorageError};
pub use fs::FsBlobStore;
pub use hash::{Hasher, digest_of};
pub use kv::{KeyValueStore, KvEntry};
pub use memory::{MemoryBlobStore, MemoryKv, MemoryMetadata};
pub use metadata::{
    Commit, CommitError, ContentOrigin, ManifestRecord, MetadataStore, Named, PushManifest,
    ReferenceRecord, ReferrerRecord, RepositoryRecord, Stored, TagMove, TagRecord, UploadRecord,
    UploadSessions, annotations_in, indexes_of, naming,
};
pub use outbox::{
    Depth, EventFilter, EventOutbox, OutboxSettings, Settled, Settlement, Take, Taken,
};
pub use sqlite::{DecidedOrigins, NameOwner, SqliteKv, SqliteStore};
