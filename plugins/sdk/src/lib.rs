//! Guest SDK for Gantry plugins: write a policy in Rust, run it as a WebAssembly component behind `gantry:plugin`.
//!
//! A plugin is a type built from its configuration ([`Plugin`]) that takes part in one or more hooks ([`Authenticator`],
//! [`Authorizer`], [`Admission`], [`Events`]); [`export!`] makes it a component. Questions and answers are the contract's own types from `wit/`,
//! with helpers to make the common answers.
//!
//! ```
//! use gantry_plugin::{Admission, Answer, Issues, Plugin, admission::{AdmissionRequest, Change, Decision}, glob::Glob};
//!
//! #[derive(Default, serde::Deserialize)]
//! #[serde(default)]
//! struct Frozen {
//!     repositories: Vec<Glob>,
//! }
//!
//! impl Plugin for Frozen {
//!     type Config = Self;
//!     fn new(config: Self, _issues: &mut Issues) -> Self {
//!         config
//!     }
//! }
//!
//! impl Admission for Frozen {
//!     fn admit(&self, request: &AdmissionRequest) -> Answer<Decision> {
//!         Ok(match request.change {
//!             Change::CreateTag | Change::MoveTag if self.repositories.iter().any(|glob| glob.matches(&request.repository)) => {
//!                 Decision::reject("this repository is frozen").code("frozen")
//!             }
//!             _ => Decision::abstain(),
//!         })
//!     }
//! }
//!
//! gantry_plugin::export!(Frozen: admission);
//! ```
//!
//! Build it with `cargo build --release --target wasm32-wasip2` from a crate with `crate-type = ["cdylib", "rlib"]`; the rlib is for
//! `cargo test`, which runs decisions on the machine itself. Host imports ([`crypto`], [`registry`], …) answer only inside a host.
//!
//! Map: `plugin` is what every plugin has, `admission`, `authenticator`, `authorizer` and `events` are the hooks, `types` the words they share,
//! `serve` closes the side doors of policies about images; `glob`, `log` and `nearest` are tools; `bindings` is generated, `glue` joins it to the traits.

#![warn(missing_docs)]

pub mod admission;
pub mod authenticator;
pub mod authorizer;
pub mod events;
pub mod glob;
pub mod log;
pub mod nearest;
mod plugin;
pub mod serve;
pub mod types;

#[doc(hidden)]
pub mod bindings;
#[doc(hidden)]
pub mod glue;

#[doc(inline)]
pub use admission::Admission;
#[doc(inline)]
pub use authenticator::{Authenticator, Principals};
#[doc(inline)]
pub use authorizer::Authorizer;
pub use bindings::imports::gantry::plugin::{clock, config, crypto, http, kv, random, registry};
#[doc(inline)]
pub use events::Events;
pub use plugin::{Answer, Issues, Plugin, parse_config};

/// Makes a type the component: `export!(MyPolicy: admission);` or `export!(MyPolicy: authenticator, authorizer);`.
///
/// Once per crate. The type implements [`Plugin`] and the trait of each hook it names; the component imports only what is used.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($hook:ident),+ $(,)?) => {
        const _: () = {
            impl $crate::glue::Exported for $plugin {
                fn slot<T>(visit: impl FnOnce(&$crate::glue::Slot<Self>) -> T) -> T {
                    ::std::thread_local! {
                        static SLOT: $crate::glue::Slot<$plugin> = const { $crate::glue::Slot::new() };
                    }
                    SLOT.with(visit)
                }
            }
            #[allow(dead_code, reason = "named by the exports below, which exist only in a guest")]
            type Glue = $crate::glue::Glue<$plugin>;
            $crate::__export_hook!(Glue lifecycle);
            $($crate::__export_hook!(Glue $hook);)+
        };
    };
}

/// One exported interface. A native build checks the bounds only: its linker reads `@` in a symbol as a version.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    ($glue:ident $hook:ident) => {
        const _: fn() = $crate::glue::$hook::<$glue>;
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::$hook::export!($glue with_types_in $crate::bindings::$hook);
    };
}
