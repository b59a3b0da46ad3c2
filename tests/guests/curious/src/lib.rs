//! Reads the configured digests through the served repository, as blobs, as manifests and as referrers, and rejects with all it could read:
//! what a plugin may read of a repository is the test's question.

use gantry_plugin::{
    Admission, Answer, Issues, Plugin,
    admission::{AdmissionRequest, Decision},
    registry,
};

/// What is tried.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Digests {
    digests: Vec<String>,
}

/// The plugin.
#[derive(Debug)]
pub struct Curious(Digests);

impl Plugin for Curious {
    type Config = Digests;

    fn new(config: Digests, _issues: &mut Issues) -> Self {
        Self(config)
    }
}

impl Admission for Curious {
    fn admit(&self, request: &AdmissionRequest) -> Answer<Decision> {
        let mut shown = String::new();
        for digest in &self.0.digests {
            let repository = &request.repository;
            if let Ok(blob) = registry::open_blob(repository, digest)
                && let Ok(bytes) = blob.read(0, 512)
            {
                shown.push_str(&String::from_utf8_lossy(&bytes));
            }
            if let Ok(stored) = registry::get_manifest(repository, digest) {
                shown.push_str(&format!("{stored:?}"));
            }
            for found in registry::list_referrers(repository, digest, None).unwrap_or_default() {
                shown.push_str(&format!("{found:?}"));
            }
        }
        Ok(match shown.is_empty() {
            true => Decision::accept(),
            false => Decision::reject(format!("curious: {shown}")),
        })
    }
}

gantry_plugin::export!(Curious: admission);
