//! Runs WebAssembly components behind `gantry:plugin`. The only crate that names wasmtime.
//!
//! Map: `hook` is the vocabulary of calls (model types in, model types out), `ports` what the binary brings, `error` how a call or
//! a load fails. `engine` is made once; `load` turns bytes into a plugin; `call` runs one call in a fresh instance; `convert` is
//! the only place where WIT types and model types meet; `host` holds the imports.
//! Knows nothing of OCI flow, chains, modes or caches of decisions: the binary's `policy` and `auth` own those.

pub mod error;
pub mod hook;
pub mod ports;

pub use error::{CallError, Failure, LoadError};
pub use hook::{
    AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest,
    CacheHint, Credential, Hook, Hooks, Identity, Varies,
};
pub use ports::{Grants, HostPorts, KeyValue, Limits, PluginSource, RegistryReads, Secret};
