//! What wit-bindgen makes of the crate's own copy of the contract: the imports once, and each exported interface by itself.
//!
//! Each exported interface is a world of its own, because a component must define every export of a world that it links; imports that
//! nothing calls are dropped when the component is made.

#![allow(
    missing_docs,
    missing_debug_implementations,
    unsafe_code,
    unreachable_pub,
    reason = "generated; wit-bindgen's exports and imports are foreign functions"
)]

/// Types and host functions.
pub mod imports {
    wit_bindgen::generate!({
        path: "wit",
        inline: "package gantry:sdk; world imports {
            import gantry:plugin/types@0.1.0;
            import gantry:plugin/logging@0.1.0;
            import gantry:plugin/config@0.1.0;
            import gantry:plugin/clock@0.1.0;
            import gantry:plugin/kv@0.1.0;
            import gantry:plugin/random@0.1.0;
            import gantry:plugin/crypto@0.1.0;
            import gantry:plugin/http@0.1.0;
            import gantry:plugin/registry@0.1.0;
        }",
        world: "gantry:sdk/imports",
        additional_derives: [PartialEq],
        generate_unused_types: true,
        generate_all,
    });
}

macro_rules! exported {
    ($module:ident, $inline:literal, $world:literal) => {
        #[doc(hidden)]
        pub mod $module {
            wit_bindgen::generate!({
                path: "wit",
                inline: $inline,
                world: $world,
                with: { "gantry:plugin/types@0.1.0": crate::bindings::imports::gantry::plugin::types },
                additional_derives: [PartialEq],
                pub_export_macro: true,
                generate_all,
            });
        }
    };
}

exported!(
    lifecycle,
    "package gantry:sdk; world exports-lifecycle { export gantry:plugin/lifecycle@0.1.0; }",
    "gantry:sdk/exports-lifecycle"
);
exported!(
    authenticator,
    "package gantry:sdk; world exports-authenticator { export gantry:plugin/authenticator@0.1.0; }",
    "gantry:sdk/exports-authenticator"
);
exported!(
    principals,
    "package gantry:sdk; world exports-principals { export gantry:plugin/principals@0.1.0; }",
    "gantry:sdk/exports-principals"
);
exported!(
    authorizer,
    "package gantry:sdk; world exports-authorizer { export gantry:plugin/authorizer@0.1.0; }",
    "gantry:sdk/exports-authorizer"
);
exported!(
    admission,
    "package gantry:sdk; world exports-admission { export gantry:plugin/admission@0.1.0; }",
    "gantry:sdk/exports-admission"
);
exported!(
    events,
    "package gantry:sdk; world exports-events { export gantry:plugin/events@0.1.0; }",
    "gantry:sdk/exports-events"
);

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, path::Path};

    fn read_folder(folder: &Path) -> BTreeMap<String, String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "wit"))
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_crates_copy_of_the_contract_is_byte_equal() {
        let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ours = read_folder(&crate_root.join("wit"));
        let contract = read_folder(&crate_root.join("../../wit"));
        assert!(!contract.is_empty());
        assert_eq!(
            ours, contract,
            "run: rm plugins/sdk/wit/*.wit && cp wit/*.wit plugins/sdk/wit/"
        );
    }
}
