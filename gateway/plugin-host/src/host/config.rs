//! The import `config`: the binding's configuration, and granted secrets by reference.

use wasmtime::component::Resource;

use crate::{
    bindings::gantry::plugin::config, error::Failure, host::CallState, limits::Stop, ports::Secret,
};

/// A secret that the guest holds a handle to. `Debug` never shows it, because [`Secret`]'s does not.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct GrantedSecret(Secret);

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        Ok(self.context.config.clone())
    }

    fn secret(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<GrantedSecret>, config::SecretError>> {
        match self.context.grants.secrets.get(&name).cloned() {
            Some(secret) => Ok(Ok(self.push(GrantedSecret(secret))?)),
            None => Ok(Err(config::SecretError::NotGranted)),
        }
    }
}

impl config::HostSecretRef for CallState {
    fn reveal(&mut self, secret: Resource<GrantedSecret>) -> wasmtime::Result<Vec<u8>> {
        // The function has no error of its own: a guest that asks for bytes it was not granted is stopped.
        if !self.context.grants.secret_reveal {
            return Err(Stop::new(
                Failure::Contract,
                "asked for a secret's bytes, and the binding does not grant `secret_reveal`",
            )
            .into());
        }
        Ok(self.table.get(&secret)?.0.0.to_vec())
    }

    fn drop(&mut self, secret: Resource<GrantedSecret>) -> wasmtime::Result<()> {
        drop(self.table.delete(secret)?);
        Ok(())
    }
}
