//! The plugins inside the binary: what `from: builtin:NAME` means. Built by `build.rs` from `plugins/`.
//!
//! Bytes like those of a file: they are loaded, granted and limited as any other component.

/// The component of that name.
#[must_use]
pub fn builtin(name: &str) -> Option<&'static [u8]> {
    BUILTINS
        .iter()
        .find(|(builtin, _)| *builtin == name)
        .map(|(_, component)| *component)
}

/// The pattern of ids that a built-in makes; only authenticators make any.
#[must_use]
pub fn ids(name: &str) -> Option<&'static str> {
    (name == "htpasswd").then_some("user:*")
}

/// Every name, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILTINS.iter().map(|(name, _)| *name)
}

const BUILTINS: [(&str, &[u8]); 4] = [
    (
        "access",
        include_bytes!(concat!(env!("OUT_DIR"), "/access.wasm")),
    ),
    (
        "htpasswd",
        include_bytes!(concat!(env!("OUT_DIR"), "/htpasswd.wasm")),
    ),
    (
        "immutable-tags",
        include_bytes!(concat!(env!("OUT_DIR"), "/immutable-tags.wasm")),
    ),
    (
        "webhook",
        include_bytes!(concat!(env!("OUT_DIR"), "/webhook.wasm")),
    ),
];

#[cfg(test)]
mod tests {
    use wit_parser::decoding::{DecodedWasm, decode};

    use super::*;

    /// Interfaces of `gantry:plugin` that the component exports and imports. WASI is linked and inert.
    fn interfaces(component: &[u8]) -> [Vec<String>; 2] {
        let DecodedWasm::Component(resolve, world) = decode(component).unwrap() else {
            panic!("not a component")
        };
        let world = &resolve.worlds[world];
        [&world.exports, &world.imports].map(|side| {
            let mut names: Vec<String> = side
                .keys()
                .map(|key| resolve.name_world_key(key))
                .filter_map(|name| name.strip_prefix("gantry:plugin/").map(str::to_owned))
                .filter(|name| name != "types@0.1.0")
                .collect();
            names.sort();
            names
        })
    }

    #[test]
    fn a_builtin_exports_its_hook_and_imports_only_what_it_uses() {
        for (name, exports, imports) in [
            (
                "access",
                &["authorizer@0.1.0", "lifecycle@0.1.0"][..],
                &[][..],
            ),
            (
                "htpasswd",
                &["authenticator@0.1.0", "lifecycle@0.1.0", "principals@0.1.0"],
                &["crypto@0.1.0"],
            ),
            (
                "immutable-tags",
                &["admission@0.1.0", "lifecycle@0.1.0"],
                &["logging@0.1.0"],
            ),
            (
                "webhook",
                &["events@0.1.0", "lifecycle@0.1.0"],
                &[
                    "clock@0.1.0",
                    "config@0.1.0",
                    "crypto@0.1.0",
                    "http@0.1.0",
                    "logging@0.1.0",
                ],
            ),
        ] {
            let [exported, imported] = interfaces(builtin(name).unwrap());
            assert_eq!(exported, exports, "{name}");
            assert_eq!(imported, imports, "{name}");
        }
    }

    #[test]
    fn every_name_has_a_component_and_no_other_name_has() {
        assert_eq!(names().count(), 4);
        assert!(names().all(|name| builtin(name).is_some()));
        assert_eq!(builtin("scanner"), None);
    }
}
