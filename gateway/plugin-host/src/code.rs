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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use wasmtime::Engine;

    use super::*;

    /// Makes the smallest component there is, not before others had their turn, and counts how often.
    #[derive(Default)]
    struct Maker {
        engine: Engine,
        made: AtomicUsize,
    }

    impl Maker {
        async fn make(&self) -> Result<Component, String> {
            tokio::task::yield_now().await;
            self.made.fetch_add(1, Ordering::Relaxed);
            let empty = b"\0asm\x0d\0\x01\0";
            Component::new(&self.engine, empty).map_err(|error| error.to_string())
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn loads_at_once_make_the_code_of_a_component_once() {
        let (code, maker) = (LoadedCode::default(), Maker::default());
        let get = |digest| code.get_or_make(digest, maker.make());
        let (one, two, other) = tokio::join!(get("a"), get("a"), get("b"));
        let (one, two, other) = (one.unwrap(), two.unwrap(), other.unwrap());
        assert_eq!(maker.made(), 2);
        assert!(Arc::ptr_eq(&one.0, &two.0));
        assert!(!Arc::ptr_eq(&one.0, &other.0));
        let later = get("a").await.unwrap();
        assert!(Arc::ptr_eq(&one.0, &later.0));
        assert_eq!(maker.made(), 2);
    }

    #[tokio::test]
    async fn code_goes_with_its_last_user_and_leaves_no_entry() {
        let (code, maker) = (LoadedCode::default(), Maker::default());
        for round in 0..3 {
            let (first, _) = code.get_or_make("a", maker.make()).await.unwrap();
            let (second, _) = code.get_or_make("a", maker.make()).await.unwrap();
            let weak = Arc::downgrade(&first);
            drop(first);
            assert!(weak.upgrade().is_some(), "the second holds it");
            drop(second);
            assert!(weak.upgrade().is_none());
            assert_eq!(maker.made(), round + 1);
            let other = format!("b{round}");
            code.get_or_make(&other, maker.make())
                .await
                .map(drop)
                .unwrap();
            maker.made.fetch_sub(1, Ordering::Relaxed);
            assert_eq!(code.held.lock().unwrap().len(), 1);
        }
    }

    #[tokio::test]
    async fn a_load_that_failed_or_was_given_up_is_the_next_ones_to_make() {
        let (code, maker) = (LoadedCode::default(), Maker::default());
        let failed = async { Err("no space".to_owned()) };
        let (failed, made) = tokio::join!(
            code.get_or_make("a", failed),
            code.get_or_make("a", maker.make())
        );
        assert_eq!(failed.unwrap_err(), "no space");
        made.unwrap();
        assert_eq!(maker.made(), 1);
        let never = std::future::pending::<Result<Component, String>>();
        let mut given_up = Box::pin(code.get_or_make("b", never));
        assert!(poll_once(&mut given_up).is_pending());
        drop(given_up);
        code.get_or_make("b", maker.make()).await.map(drop).unwrap();
        assert_eq!(maker.made(), 2);
    }

    /// One poll, so that the load has begun.
    fn poll_once<F: Future + Unpin>(future: &mut F) -> std::task::Poll<F::Output> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        std::pin::Pin::new(future).poll(&mut context)
    }
}
