//! The types of manifests that a client accepts, as far as an upstream's answer depends on them.
//!
//! A mirror asks its upstream for every type in [`MANIFEST_TYPES`] whatever the client accepts, so that clients share its answer. Types beyond
//! those are asked for when a client lists them by name. A wildcard names no type, and a type that says nothing of manifests
//! (`application/json`) or that is not passed on (schema 1) is no further type.

use std::sync::Arc;

use crate::media_type::{MANIFEST_TYPES, MediaType};

/// Further types of one client at most. Those that it lists first count.
const MAX_FURTHER_TYPES: usize = 8;
/// Bytes of one client's further types at most, with what separates them.
const MAX_FURTHER_BYTES: usize = 1024;
/// Entries of `Accept` that are read at most.
const MAX_ENTRIES: usize = 64;

/// What a client accepts. Cheap to clone; the default accepts every type.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AcceptedTypes {
    further: Option<Arc<str>>,
    /// Of [`MANIFEST_TYPES`], by their places; everything when the client lists no type by name or accepts any.
    named: Option<u8>,
}

impl AcceptedTypes {
    /// Reads the values of `Accept` headers. Entries that cannot be read count as absent.
    pub fn read<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let entries = values.into_iter().flat_map(|value| value.split(','));
        let mut further: Vec<&str> = Vec::new();
        let (mut named, mut bytes, mut is_any) = (0_u8, 0, false);
        for entry in entries.take(MAX_ENTRIES) {
            let Some(media_type) = accepted(entry) else {
                continue;
            };
            is_any |= matches!(media_type, "*/*" | "application/*");
            if let Some(place) = MANIFEST_TYPES.iter().position(|it| *it == media_type) {
                named |= 1 << place;
                continue;
            }
            let room = further.len() < MAX_FURTHER_TYPES
                && bytes + media_type.len() + 2 <= MAX_FURTHER_BYTES;
            if room && is_further(media_type) && !further.contains(&media_type) {
                bytes += media_type.len() + 2;
                further.push(media_type);
            }
        }
        further.sort_unstable();
        Self {
            further: (!further.is_empty()).then(|| further.join(", ").into()),
            named: (!is_any && !further.is_empty()).then_some(named),
        }
    }

    /// Everything, and one type by name: for content that is fetched because a document says that it is of that type.
    #[must_use]
    pub fn with(media_type: &MediaType) -> Self {
        Self::read([media_type.as_str(), "*/*"])
    }

    /// The further types, sorted, as an `Accept` header lists them.
    #[must_use]
    pub fn further(&self) -> Option<&Arc<str>> {
        self.further.as_ref()
    }

    /// Whether the type is one of the further ones.
    #[must_use]
    pub fn is_further(&self, media_type: &MediaType) -> bool {
        let further = self.further.as_deref().unwrap_or_default();
        further.split(", ").any(|it| it == media_type.as_str())
    }

    /// Whether the client takes a manifest of this type.
    #[must_use]
    pub fn takes(&self, media_type: &MediaType) -> bool {
        let Some(named) = self.named else {
            return true;
        };
        let mut types = MANIFEST_TYPES.iter();
        match types.position(|it| *it == media_type.as_str()) {
            Some(place) => named & (1 << place) != 0,
            None => self.is_further(media_type),
        }
    }
}

/// The media range of an entry of `Accept`, without its parameters; `None` when its weight is zero.
fn accepted(entry: &str) -> Option<&str> {
    let mut parts = entry.split(';').map(str::trim);
    let media_range = parts.next()?;
    let refused = parts.any(|parameter| {
        let weight = parameter.split_once('=');
        weight.is_some_and(|(name, weight)| {
            name.trim().eq_ignore_ascii_case("q") && weight.trim().parse() == Ok(0.0_f32)
        })
    });
    (!refused).then_some(media_range)
}

fn is_further(text: &str) -> bool {
    let media_type = text.parse::<MediaType>();
    media_type.is_ok_and(|it| !it.is_generic() && !it.is_schema1())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media_type::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

    const OWN: &str = "application/vnd.example.own+json";
    const OTHER: &str = "application/vnd.example.other+json";

    #[test]
    fn what_a_client_lists_beyond_the_types_that_are_asked_for_anyway_is_kept() {
        let known = MANIFEST_TYPES.join(", ");
        let both = format!("{OTHER}, {OWN}");
        let table: [(&[&str], &str); 11] = [
            (&[], ""),
            (&["*/*"], ""),
            (&[&known, "*/*"], ""),
            (
                &["application/json, text/html, application/octet-stream"],
                "",
            ),
            (
                &["application/vnd.docker.distribution.manifest.v1+prettyjws"],
                "",
            ),
            (&[OWN], OWN),
            (&[&known, OWN], OWN),
            (&[&format!("{OWN};q=0.5 , {OTHER};version=1")], &both),
            (&[&format!("{OTHER};q=0, {OWN}; Q = 0.0 ")], ""),
            (&[OWN, OTHER, OWN], &both),
            (&["no type, /, a/b c, \u{7f}"], ""),
        ];
        for (values, further) in table {
            let accepted = AcceptedTypes::read(values.iter().copied());
            let found = accepted.further().map_or("", |further| further);
            assert_eq!(found, further, "{values:?}");
        }
    }

    #[test]
    fn many_further_types_are_bounded_in_number_and_bytes() {
        let many: Vec<String> = (0..100)
            .map(|i| format!("application/vnd.t{i:03}"))
            .collect();
        let many = AcceptedTypes::read([many.join(",").as_str()]);
        let count = many.further().unwrap().split(", ").count();
        assert_eq!(count, MAX_FURTHER_TYPES);
        let long: Vec<String> = (0..20)
            .map(|i| format!("application/{}{i}", "a".repeat(120)))
            .collect();
        let long = AcceptedTypes::read(long.iter().map(String::as_str));
        assert!(long.further().unwrap().len() <= MAX_FURTHER_BYTES);
    }

    #[test]
    fn only_a_client_that_lists_further_types_and_no_wildcard_is_particular() {
        let takes = |values: &[&str], media_type: &str| {
            AcceptedTypes::read(values.iter().copied()).takes(&media_type.parse().unwrap())
        };
        assert!(takes(&[], OCI_INDEX) && takes(&[], OWN));
        // Registries send what they have to clients that list the common types; so does a mirror.
        assert!(takes(&[DOCKER_MANIFEST], OCI_INDEX));
        assert!(takes(&[OWN, "*/*"], OCI_INDEX));
        assert!(takes(&[OWN, OCI_INDEX], OCI_INDEX) && takes(&[OWN], OWN));
        assert!(!takes(&[OWN, OCI_INDEX], OCI_MANIFEST));
        assert!(!takes(&[OWN], OCI_INDEX) && !takes(&[OWN], OTHER));
    }
}
