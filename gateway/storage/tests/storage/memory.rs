//! The memory backends pass the suite.

use std::sync::Arc;

use gantry_storage::{
    BlobStore, KeyValueStore, MemoryBlobStore, MemoryKv, MemoryMetadata, suite::metadata::Stores,
};

mod blobs {
    use super::{Arc, BlobStore, MemoryBlobStore};

    gantry_storage::blob_suite! { make }

    fn make() -> ((), Arc<dyn BlobStore>) {
        ((), Arc::new(MemoryBlobStore::new()))
    }
}

mod metadata {
    use super::{Arc, MemoryMetadata, Stores};

    gantry_storage::metadata_suite! { make }

    fn make() -> ((), Stores) {
        ((), Stores::new(Arc::new(MemoryMetadata::new())))
    }
}

mod outbox {
    use super::{Arc, MemoryMetadata};

    gantry_storage::outbox_suite! { make }

    fn make() -> ((), Arc<MemoryMetadata>) {
        ((), Arc::new(MemoryMetadata::new()))
    }
}

mod kv {
    use super::{Arc, KeyValueStore, MemoryKv};

    gantry_storage::kv_suite! { make }

    fn make() -> ((), Arc<dyn KeyValueStore>) {
        ((), Arc::new(MemoryKv::new()))
    }
}
