//! Made once per process: the wasmtime engine, its epoch ticker, the linker, and the count of instance slots.
//!
//! Owns every engine-wide setting. Knows no plugin. The ticker is never conditional: with epochs on and no tick, no deadline fires.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::Semaphore;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    component::{HasSelf, Linker},
};

use crate::{bindings::Host_, host::CallState, limits};

/// Instances alive at once, over all plugins.
pub(crate) const SLOTS: u32 = 256;
/// What a memory limit may be at most: the size of a pool slot.
pub(crate) const MAX_MEMORY_BYTES: usize = 256 << 20;
const MEMORIES: u32 = SLOTS * 4;
const TABLES: u32 = SLOTS * 4;
const TICK: Duration = Duration::from_millis(5);

/// Everything that all plugins of a process share.
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<CallState>,
    pub(crate) slots: Arc<Semaphore>,
}

impl Runtime {
    /// The process's runtime. A pool reserves terabytes of address space, so there is one.
    pub(crate) fn shared() -> Result<Arc<Self>, String> {
        static SHARED: OnceLock<Result<Arc<Runtime>, String>> = OnceLock::new();
        SHARED
            .get_or_init(|| {
                Self::make()
                    .map(Arc::new)
                    .map_err(|error| format!("cannot start the WebAssembly engine: {error:#}"))
            })
            .clone()
    }

    fn make() -> wasmtime::Result<Self> {
        let engine = Engine::new(&config(true)).or_else(|error| {
            tracing::error!(
                error = format!("{error:#}"),
                "cannot reserve the pool of plugin instances (is address space limited?); plugins run on demand, about three times slower"
            );
            Engine::new(&config(false))
        })?;
        tick(&engine)?;
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        Host_::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        Ok(Self {
            engine,
            linker,
            slots: Arc::new(Semaphore::new(SLOTS as usize)),
        })
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// How many calls of a component may run at once so that it never holds more than half of the pool.
pub(crate) fn most_at_once(memories: u32, tables: u32, wanted: usize) -> usize {
    let half = |total: u32, each: u32| (total / 2 / each.max(1)) as usize;
    wanted
        .min(half(SLOTS, 1))
        .min(half(MEMORIES, memories))
        .min(half(TABLES, tables))
        .max(1)
}

fn config(pooled: bool) -> Config {
    let mut config = Config::new();
    config
        // The component model's own concurrency costs half of a call, and no import here needs it.
        .concurrency_support(false)
        .epoch_interruption(true)
        .wasm_memory64(false)
        // Same bits on every machine, so that a recorded decision replays.
        .wasm_relaxed_simd(false)
        .cranelift_nan_canonicalization(true)
        .max_wasm_stack(512 << 10)
        .async_stack_size(1 << 20);
    if pooled {
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    }
    config
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    let per_component = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
    pool.total_component_instances(SLOTS)
        .total_stacks(SLOTS)
        .total_core_instances(SLOTS * per_component(limits::MAX_CORE_INSTANCES))
        .total_memories(MEMORIES)
        .total_tables(TABLES)
        .total_gc_heaps(SLOTS)
        .max_memory_size(MAX_MEMORY_BYTES)
        .max_core_instances_per_component(per_component(limits::MAX_CORE_INSTANCES))
        .max_memories_per_component(per_component(limits::MAX_MEMORIES))
        .max_tables_per_component(per_component(limits::MAX_TABLES))
        // One table per module, the default, refuses some toolchains.
        .max_tables_per_module(4)
        .table_elements(limits::MAX_TABLE_ELEMENTS)
        // At least a guest's initial memory: Rust puts its stack first, so less would reset pages that nobody touched.
        .linear_memory_keep_resident(2 << 20)
        .table_keep_resident(512 << 10)
        .async_stack_keep_resident(64 << 10)
        .max_unused_warm_slots(64)
        .pagemap_scan(Enabled::Auto);
    pool
}

/// Starts the thread that raises the epoch. It is a thread because an executor may be busy, and it ends with the engine.
fn tick(engine: &Engine) -> wasmtime::Result<()> {
    let engine = engine.weak();
    std::thread::Builder::new()
        .name("plugin-epoch".to_owned())
        .spawn(move || {
            while let Some(engine) = engine.upgrade() {
                engine.increment_epoch();
                drop(engine);
                std::thread::park_timeout(TICK);
            }
        })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_gets_what_it_wants_up_to_half_of_the_pool() {
        assert_eq!(most_at_once(1, 2, 64), 64);
        assert_eq!(most_at_once(1, 2, 10_000), 128);
        assert_eq!(most_at_once(4, 2, 10_000), 128);
        assert_eq!(most_at_once(1, 8, 10_000), 64);
        assert_eq!(most_at_once(0, 0, 0), 1);
    }

    #[test]
    fn without_a_pool_the_engine_takes_the_same_code() {
        use std::hash::{BuildHasher as _, RandomState};
        let (pooled, on_demand) = (config(true), config(false));
        let (pooled, on_demand) = (
            Engine::new(&pooled).unwrap(),
            Engine::new(&on_demand).unwrap(),
        );
        let state = RandomState::new();
        assert_eq!(
            state.hash_one(pooled.precompile_compatibility_hash()),
            state.hash_one(on_demand.precompile_compatibility_hash())
        );
    }
}
