//! Makes a component of a core module, which is what C and Go compilers write.
//!
//! Owns which world of the contract a module is held against, and the adapter for modules that use WASI preview 1. Both are in the binary,
//! so neither `wasm-tools` nor a copy of the contract is needed.

use anyhow::{Context as _, bail};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

use super::{docs, template};

/// The first bytes of a core module.
const CORE_MODULE: [u8; 8] = *b"\0asm\x01\0\0\0";

/// Whether the bytes are a core module's; a component's differ from the fifth on.
#[must_use]
pub fn is_core_module(bytes: &[u8]) -> bool {
    bytes.starts_with(&CORE_MODULE)
}

/// The component of a core module.
///
/// With a hook the module is held against that hook's world of the contract; without one it must say its world itself, as the object file
/// of `wit-bindgen c` does.
///
/// # Errors
/// There is no such hook, or the module does not fit its world; as a sentence.
pub fn of_module(module: &[u8], hook: Option<&str>) -> anyhow::Result<Vec<u8>> {
    let mut module = module.to_vec();
    if let Some(hook) = hook {
        let (resolve, world) = world_of(hook)?;
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)
            .context("the module cannot be read")?;
    }
    ComponentEncoder::default()
        .module(&module)
        .context("the module cannot be read")?
        .adapter(
            WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
            WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
        )
        .context("the adapter for WASI preview 1 cannot be read")?
        .validate(true)
        .encode()
        .context("the module does not fit the contract")
}

/// The contract, and the world of a hook in it.
/// The hooks of [`template::hooks`], and authenticators with a further export: `principals` or `management`.
pub(super) fn hooks() -> impl Iterator<Item = &'static str> {
    template::hooks().chain(["revoking-authenticator", "managed-authenticator"])
}

pub(super) fn world_of(hook: &str) -> anyhow::Result<(Resolve, WorldId)> {
    if !hooks().any(|known| known == hook) {
        let known: Vec<&str> = hooks().collect();
        let known = known.join(", ");
        bail!("no such hook: {hook}; there are: {known}");
    }
    let (resolve, package) = docs::contract()?;
    let world = resolve.select_world(&[package], Some(&format!("{hook}-plugin")))?;
    Ok((resolve, world))
}
