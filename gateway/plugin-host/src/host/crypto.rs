//! The import `crypto`: password checks, token and signature checks, hashes. Keys and granted secrets stay in the host.

use aws_lc_rs::{constant_time, digest, hmac};
use jsonwebtoken::DecodingKey;

use crate::{
    bindings::gantry::plugin::crypto,
    error::Failure,
    host::{CallState, jwt, password::Checked},
    limits::Stop,
};

impl crypto::Host for CallState {
    async fn verify_password(
        &mut self,
        stored: Option<String>,
        password: Vec<u8>,
    ) -> wasmtime::Result<crypto::PasswordResult> {
        self.budgets.password.take()?;
        let waiting = self.clock.excuse();
        let checked = self.context.passwords.verify(stored, password).await;
        drop(waiting);
        Ok(match checked {
            Checked::Match => crypto::PasswordResult::Match,
            Checked::Mismatch => crypto::PasswordResult::Mismatch,
            Checked::Unsupported => crypto::PasswordResult::UnsupportedHash,
            Checked::Throttled => crypto::PasswordResult::Throttled,
        })
    }

    async fn hash_password(&mut self, password: Vec<u8>) -> wasmtime::Result<String> {
        self.budgets.password.take()?;
        let waiting = self.clock.excuse();
        let hash = self.context.passwords.hash(password).await;
        drop(waiting);
        // The function has no error of its own.
        Ok(hash.ok_or_else(|| Stop::new(Failure::Saturated, "too many password checks wait"))?)
    }

    fn verify_signature(
        &mut self,
        alg: crypto::Alg,
        key: crypto::Key,
        message: Vec<u8>,
        signature: Vec<u8>,
    ) -> wasmtime::Result<Result<bool, String>> {
        self.budgets.crypto.take()?;
        let key = match key {
            crypto::Key::Jwk(text) => jwt::from_jwk_text(&text),
            crypto::Key::Spki(der) => jwt::from_spki(alg, &der),
            crypto::Key::Secret(name) => self
                .granted(&name)
                .map(DecodingKey::from_secret)
                .ok_or_else(not_granted),
        };
        Ok(key.and_then(|key| jwt::verify_signature(alg, &key, &message, &signature)))
    }

    async fn verify_jwt(
        &mut self,
        token: String,
        mut policy: crypto::JwtPolicy,
    ) -> wasmtime::Result<Result<String, crypto::JwtError>> {
        self.budgets.crypto.take()?;
        let crypto::JwksSource::Url(url) = &policy.jwks else {
            return Ok(jwt::verify(&token, &policy, self.now_ms));
        };
        // What no key could have signed does not make the host ask anybody.
        if let Err(error) = jwt::check_form(&token, &policy) {
            return Ok(Err(error));
        }
        let Some(source) = self.key_source(url) else {
            return Ok(Err(crypto::JwtError::JwksUnavailable));
        };
        let Some(set) = source.keys().await else {
            return Ok(Err(crypto::JwtError::JwksUnavailable));
        };
        policy.jwks = crypto::JwksSource::Inline(set.to_string());
        let verified = jwt::verify(&token, &policy, self.now_ms);
        if !matches!(verified, Err(crypto::JwtError::UnknownKey)) {
            return Ok(verified);
        }
        match source.newer_keys().await {
            Some(newer) if newer != set => {
                policy.jwks = crypto::JwksSource::Inline(newer.to_string());
                Ok(jwt::verify(&token, &policy, self.now_ms))
            }
            _ => Ok(verified),
        }
    }

    fn sha256(&mut self, data: Vec<u8>) -> wasmtime::Result<Vec<u8>> {
        self.budgets.crypto.take()?;
        Ok(digest::digest(&digest::SHA256, &data).as_ref().to_vec())
    }

    fn hmac_sha256(
        &mut self,
        secret_name: String,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<Vec<u8>, String>> {
        self.budgets.crypto.take()?;
        Ok(self
            .granted(&secret_name)
            .map(|secret| {
                let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
                hmac::sign(&key, &data).as_ref().to_vec()
            })
            .ok_or_else(not_granted))
    }

    fn constant_time_eq(&mut self, a: Vec<u8>, b: Vec<u8>) -> wasmtime::Result<bool> {
        Ok(constant_time::verify_slices_are_equal(&a, &b).is_ok())
    }
}

impl CallState {
    fn granted(&self, name: &str) -> Option<&[u8]> {
        self.context
            .grants
            .secrets
            .get(name)
            .map(|secret| &*secret.0)
    }
}

fn not_granted() -> String {
    "the secret is not granted".to_owned()
}
