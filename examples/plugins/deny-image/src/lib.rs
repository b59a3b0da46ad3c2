//! Decides whether an image may leave: not when its repository, its digest or an annotation of its manifest is denied.
//!
//! | key | what it is |
//! |---|---|
//! | `repositories` | globs on canonical repository names |
//! | `digests` | digests of manifests or indexes |
//! | `annotations` | annotation → glob on its value |
//! | `hide` | whether a client can tell a denied image from a missing one: not when `true`, and then lists are denied too; `false` |
//! | `opaque` | what becomes of a manifest that the gateway does not read: `deny` (the default), or `allow`, by repository and digest alone |
//!
//! `serve::decide` asks it about every image that the served content belongs to; when a manifest cannot be read the plugin fails, and the
//! binding's `on_error` denies.

use std::collections::BTreeMap;

use gantry_plugin::{
    Admission, Answer, Issues, Plugin,
    admission::{AdmissionRequest, Decision},
    glob::{Glob, any_matches},
    serve::{self, Image, Opaque},
};

/// The plugin, which is its configuration.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
pub struct DenyImage {
    repositories: Vec<Glob>,
    digests: Vec<String>,
    annotations: BTreeMap<String, Glob>,
    hide: bool,
    opaque: Opaque,
}

impl Plugin for DenyImage {
    type Config = Self;

    fn new(config: Self, _issues: &mut Issues) -> Self {
        config
    }
}

impl Admission for DenyImage {
    fn admit(&self, request: &AdmissionRequest) -> Answer<Decision> {
        if self.hide
            && let Some(hidden) = serve::hide(request, MESSAGE)
        {
            return Ok(hidden);
        }
        serve::decide(request, MESSAGE, self.opaque, |image| self.denies(image))
    }
}

gantry_plugin::export!(DenyImage: admission);

const MESSAGE: &str = "this image is denied here";

impl DenyImage {
    fn denies(&self, image: &Image<'_>) -> Answer<bool> {
        for digest in &self.digests {
            if image.is_or_is_in(digest)? {
                return Ok(true);
            }
        }
        let is_annotated = |(key, glob): (&String, &Glob)| {
            image
                .annotation(key)
                .is_some_and(|value| glob.matches(value))
        };
        Ok(any_matches(&self.repositories, image.repository)
            || self.annotations.iter().any(is_annotated))
    }
}

#[cfg(test)]
mod tests;
