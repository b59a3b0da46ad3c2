//! What every backend must pass: one function per sentence, each on an empty store of its own.
//!
//! A backend runs them with [`blob_suite!`](crate::blob_suite), [`metadata_suite!`](crate::metadata_suite),
//! [`outbox_suite!`](crate::outbox_suite) and [`kv_suite!`](crate::kv_suite),
//! which make one test per sentence, so that none can be left out.

use std::error::Error;

pub mod blob;
pub mod kv;
pub mod metadata;
pub mod outbox;

/// What a sentence returns: a failed assertion panics, a store that failed is an error.
pub type Checked = Result<(), Box<dyn Error + Send + Sync>>;

/// Makes one test per sentence. `$make` is a function that returns something to keep until the test ends, and
/// an empty store.
#[doc(hidden)]
#[macro_export]
macro_rules! suite_tests {
    ($make:path, $module:ident, $($sentence:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $sentence() -> $crate::suite::Checked {
                let (_kept, store) = $make();
                $crate::suite::$module::$sentence(store).await
            }
        )*
    };
}
