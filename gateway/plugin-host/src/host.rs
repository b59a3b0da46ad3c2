//! The imports: what a guest may ask of the host, and the state of one call behind them.
//!
//! Map: one file per interface. What a binding does not grant is answered with the interface's own error; only what has no error of
//! its own, or goes over a budget, stops the call. Nothing here outlives a call except what the ports keep.

pub(crate) mod clock;
pub(crate) mod config;
pub(crate) mod crypto;
pub(crate) mod http;
pub(crate) mod jwks;
pub(crate) mod jwt;
pub(crate) mod kv;
pub(crate) mod log;
pub(crate) mod password;
pub(crate) mod random;
pub(crate) mod registry;
pub(crate) mod wasi;

use std::sync::Arc;

use gantry_model::Requester;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::{
    bindings::gantry::plugin::types,
    error::CallError,
    host::{jwks::KeySets, log::LogBudget, password::PasswordPool, wasi::Output},
    limits::{Budgets, CallClock, Limiter, Stop},
    ports::{Grants, HostPorts, Limits},
    record::Recorder,
    redaction::Redaction,
};

/// What every call of a plugin shares.
#[derive(Clone)]
pub(crate) struct PluginContext {
    pub(crate) name: Arc<str>,
    /// The binding's configuration as JSON text.
    pub(crate) config: String,
    pub(crate) grants: Grants,
    pub(crate) limits: Limits,
    pub(crate) redaction: Redaction,
    pub(crate) ports: HostPorts,
    pub(crate) passwords: Arc<PasswordPool>,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) key_sets: Arc<KeySets>,
}

impl PluginContext {
    pub(crate) fn error(&self, stop: Stop) -> CallError {
        CallError {
            plugin: Arc::clone(&self.name),
            failure: stop.failure,
            detail: stop.detail,
        }
    }
}

/// The data of one store: one call.
pub(crate) struct CallState {
    pub(crate) context: Arc<PluginContext>,
    /// Who causes the call; none for authenticators, which therefore read nothing of the registry.
    pub(crate) requester: Option<Requester>,
    pub(crate) clock: Arc<CallClock>,
    /// Frozen, so that a recorded call replays.
    pub(crate) now_ms: u64,
    pub(crate) limiter: Limiter,
    pub(crate) budgets: Budgets,
    pub(crate) logged: LogBudget,
    /// What the guest wrote to its standard error: a panic's message.
    pub(crate) output: Output,
    wasi: WasiCtx,
    table: ResourceTable,
}

impl CallState {
    pub(crate) fn new(
        context: &Arc<PluginContext>,
        requester: Option<Requester>,
        clock: Arc<CallClock>,
        of_batch: bool,
    ) -> Self {
        let now_ms = (context.ports.now_ms)();
        let output = Output::default();
        let mut table = ResourceTable::new();
        table.set_max_capacity(context.limits.handles);
        Self {
            requester,
            clock,
            now_ms,
            limiter: Limiter::new(&context.limits),
            budgets: Budgets::new(of_batch),
            logged: LogBudget::default(),
            wasi: wasi::inert(now_ms, &output),
            output,
            table,
            context: Arc::clone(context),
        }
    }

    pub(crate) fn request_id(&self) -> &str {
        self.requester
            .as_ref()
            .map_or("", |requester| &*requester.request_id)
    }

    fn push<T: Send + 'static>(&mut self, resource: T) -> wasmtime::Result<Resource<T>> {
        Ok(self.table.push(resource)?)
    }
}

impl WasiView for CallState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl types::Host for CallState {}
