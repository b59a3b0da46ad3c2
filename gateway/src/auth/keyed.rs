//! Keys of what is remembered about credentials: an HMAC under a secret that this process made and never shows, so that neither a
//! password nor a hash of one is kept.

use std::sync::Arc;

use aws_lc_rs::{hmac, rand};

/// The secret. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Keyed(Arc<hmac::Key>);

impl Keyed {
    /// A secret of its own.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let mut secret = [0_u8; 32];
        rand::fill(&mut secret)
            .map_err(|_unspecified| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret))))
    }

    /// The key of these parts; where one ends and the next begins counts.
    pub(crate) fn of<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Option<[u8; 32]> {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        context.sign().as_ref().try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_its_parts_and_of_its_process() {
        let keyed = Keyed::new().unwrap();
        assert_eq!(keyed.of(["ab", "c"]), keyed.clone().of(["ab", "c"]));
        assert_ne!(keyed.of(["ab", "c"]), keyed.of(["a", "bc"]));
        assert_ne!(keyed.of(["ab", "c"]), keyed.of(["ab", "c", ""]));
        assert_ne!(keyed.of(["ab"]), Keyed::new().unwrap().of(["ab"]));
    }
}
