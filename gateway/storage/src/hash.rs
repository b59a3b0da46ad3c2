//! Hashes content while it passes, with aws-lc-rs (1.4 to 1.7 times the sha2 crate where the processor has no SHA extensions).

use aws_lc_rs::digest::{Context, SHA256, SHA512};
use gantry_model::{Algorithm, Digest};

/// A running hash.
#[derive(Clone)]
pub struct Hasher {
    algorithm: Algorithm,
    context: Context,
}

impl std::fmt::Debug for Hasher {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Hasher")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

impl Hasher {
    /// Starts a hash.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        let context = match algorithm {
            Algorithm::Sha256 => Context::new(&SHA256),
            Algorithm::Sha512 => Context::new(&SHA512),
        };
        Self { algorithm, context }
    }

    /// The algorithm it was started with.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    /// The digest of everything added.
    #[must_use]
    pub fn finish(self) -> Digest {
        let output = self.context.finish();
        #[expect(
            clippy::expect_used,
            reason = "the hash function's output has its own length"
        )]
        Digest::from_bytes(self.algorithm, output.as_ref())
            .expect("an algorithm's output has its length")
    }
}

/// The digest of `bytes`.
#[must_use]
pub fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}
