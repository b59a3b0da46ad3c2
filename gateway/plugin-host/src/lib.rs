//! Runs WebAssembly components behind `gantry:plugin`. The only crate that names wasmtime.
//!
//! Map: `hook` is the vocabulary of calls (model types in, model types out), `ports` what the binary brings, `error` how a call or
//! a load fails. `engine` is made once; `load` turns bytes into a plugin (`inspect` says what they are, `cache` keeps what was
//! compiled, `code` shares what is loaded); `call` runs one call in a fresh instance under `limits`; `convert` is the only place where WIT types and model types
//! meet; `receivers` finds those that a binding lists; `host` holds the imports, `record` notes what goes through them, `grant` says which addresses a binding may ask; `stats` counts.
//! Knows nothing of OCI flow, chains, modes or caches of decisions: the binary's `policy` and `auth` own those.

mod bindings;
mod cache;
pub mod call;
mod code;
mod convert;
mod engine;
pub mod error;
pub mod grant;
pub mod hook;
mod host;
pub mod inspect;
mod limits;
pub mod load;
pub mod ports;
pub mod receivers;
pub mod record;
pub mod redaction;
pub mod stats;

pub use call::Plugin;
pub use error::{CallError, Failure, LoadError};
pub use grant::HttpGrant;
pub use hook::{
    AdmitAnswer, AuthenticateAnswer, AuthenticateRequest, AuthorizeAnswer, AuthorizeRequest, Basic,
    CacheHint, Credential, Hook, Hooks, Identity, MalformedBasic, Varies,
};
pub use inspect::{Capability, Inspection};
pub use load::{HostUsage, PluginHost};
pub use ports::{
    Grants, HostPorts, KeyValue, Limits, Outbound, PluginSource, RegistryReads, Secret,
};
pub use receivers::EventReceiver;
pub use record::{HostCall, Recorder};
pub use redaction::Redaction;
pub use stats::Stats;
