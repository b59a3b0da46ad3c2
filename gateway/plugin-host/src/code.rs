//! The machine code that is loaded now, by component: bindings of one component share it, and loads at once make it once.
//!
//! Owns no code: whoever was given some holds it, and it is unmapped when the last of them is gone.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OnceCell;
use wasmtime::component::Component;

/// Which components are loaded.
#[derive(Debug, Default)]
pub(crate) struct LoadedCode {
    /// Held for single operations on the map, never over an await.
    held: Mutex<HashMap<String, Weak<Shared>>>,
}

/// A component that somebody runs.
#[derive(Default)]
pub(crate) struct Shared(OnceCell<Component>);

impl fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl LoadedCode {
    /// The component of a digest: somebody's, or made by `make`, by one of those who ask at once. It is shared as long as somebody
    /// keeps the first value.
    pub(crate) async fn get_or_make(
        &self,
        digest: &str,
        make: impl Future<Output = Result<Component, String>>,
    ) -> Result<(Arc<Shared>, Component), String> {
        let shared = self.shared(digest);
        let component = shared.0.get_or_try_init(|| make).await?.clone();
        Ok((shared, component))
    }

    fn shared(&self, digest: &str) -> Arc<Shared> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = held.get(digest).and_then(Weak::upgrade) {
            return shared;
        }
        held.retain(|_digest, shared| shared.strong_count() > 0);
        let shared = Arc::<Shared>::default();
        held.insert(digest.to_owned(), Arc::downgrade(&shared));
        shared
    }
}
