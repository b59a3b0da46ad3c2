//! The single `bindgen!`: the world `host`, with every import and every export. Nothing outside `convert` and `host` looks inside.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "host",
    imports: {
        "gantry:plugin/crypto.verify-password": async | trappable,
        "gantry:plugin/crypto.hash-password": async | trappable,
        "gantry:plugin/crypto.verify-jwt": async | trappable,
        "gantry:plugin/http": async | trappable,
        "gantry:plugin/kv": async | trappable,
        "gantry:plugin/registry": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: {
        "gantry:plugin/config.secret-ref": crate::host::config::GrantedSecret,
        "gantry:plugin/kv.bucket": crate::host::kv::OpenBucket,
        "gantry:plugin/registry.blob-reader": crate::host::registry::OpenBlob,
    },
});
