//! Decides what may be tagged, cached and served here: repositories on a list, and images that say where they come from.
//!
//! | key | what it is |
//! |---|---|
//! | `allowed` | prefixes of repositories; at least one |
//! | `annotation` | the annotation that an image must carry |
//!
//! When a manifest cannot be read the plugin fails, and the binding's `on_error` says what follows.

use gantry_plugin::{
    Admission, Answer, Issues, Plugin,
    admission::{AdmissionRequest, Change, Decision},
    log,
    registry::get_manifest,
    types::Document,
};

/// The plugin, which is its configuration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct Provenance {
    allowed: Vec<String>,
    annotation: String,
}

impl Plugin for Provenance {
    type Config = Self;

    fn new(config: Self, issues: &mut Issues) -> Self {
        if config.allowed.is_empty() {
            issues.fatal("/allowed", "no repository is allowed");
        }
        if config.annotation.is_empty() {
            issues.fatal("/annotation", "no annotation is named");
        }
        config
    }
}

impl Admission for Provenance {
    fn admit(&self, request: &AdmissionRequest) -> Answer<Decision> {
        let repository = &request.repository;
        let good = match request.change {
            Change::CreateTag | Change::MoveTag | Change::PushByDigest | Change::Fill => {
                if !self
                    .allowed
                    .iter()
                    .any(|prefix| repository.starts_with(prefix))
                {
                    let message = format!("{repository} is not on the list");
                    return Ok(reject(repository, "repository-not-allowed", message));
                }
                let document = request.document.as_ref();
                request.change == Change::Fill
                    || document.is_some_and(|document| self.says_source(document))
            }
            Change::ServeBlob => self.is_of_a_good_image(request)?,
            _ => return Ok(Decision::abstain()),
        };
        if good {
            return Ok(Decision::accept());
        }
        let message = format!("the image does not say {}", self.annotation);
        Ok(reject(repository, "annotation-missing", message))
    }
}

gantry_plugin::export!(Provenance: admission);

impl Provenance {
    /// A document that the gateway does not read says nothing.
    fn says_source(&self, document: &Document) -> bool {
        let manifest = document.manifest();
        let source = manifest.and_then(|manifest| manifest.annotation(&self.annotation));
        source.is_some_and(|source| !source.is_empty())
    }

    fn is_of_a_good_image(&self, request: &AdmissionRequest) -> Answer<bool> {
        for parent in &request.parents {
            let stored = get_manifest(&request.repository, parent)?;
            if self.says_source(&stored.document) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn reject(repository: &str, code: &str, message: String) -> Decision {
    log::info("refused", &[("repository", repository), ("reason", code)]);
    Decision::reject(message).code(code)
}
