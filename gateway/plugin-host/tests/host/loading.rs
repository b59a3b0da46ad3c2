//! Why a component is not taken, in sentences; and that compiled code is trusted only when this node made it.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use gantry_model::Digest;
use gantry_plugin_host::{Grants, HostPorts, PluginHost, PluginSource};
use serde_json::{Value, json};

use crate::{
    guest::{self, Limits, component, generous, host, source},
    isolation::told,
    ports,
};

async fn refused(component: impl Into<Bytes>) -> String {
    let source = PluginSource {
        component: component.into(),
        ..source(json!({}), generous())
    };
    host().load(source).await.unwrap_err().to_string()
}

#[tokio::test]
async fn bytes_that_are_no_component_are_refused_with_what_they_are() {
    let said = refused("").await;
    assert_eq!(said, "plugin hostile: is empty");
    let said = refused(&b"\0asm\x01\0\0\0"[..]).await;
    assert!(said.contains("is a core module, not a component"), "{said}");
    let said = refused("FROM scratch").await;
    assert!(said.contains("is not WebAssembly"), "{said}");
    let said = refused(vec![0; (32 << 20) + 1]).await;
    assert!(said.contains("a component may have 33554432"), "{said}");
    let said = refused(&b"\0asm\x0d\0\x01\0"[..]).await;
    assert!(
        said.contains("does not export gantry:plugin/lifecycle"),
        "{said}"
    );
}

#[tokio::test]
async fn machine_code_from_outside_is_never_taken() {
    let directory = tempfile::tempdir().unwrap();
    cached_host(directory.path())
        .load(source(json!({}), generous()))
        .await
        .unwrap();
    let file = compiled_file(directory.path());
    // Without the MAC in front, this is what `Component::serialize` gave.
    let code = fs::read(file).unwrap()[32..].to_vec();
    let said = refused(code).await;
    assert!(
        said.contains("is machine code compiled ahead of time"),
        "{said}"
    );
}

#[tokio::test]
async fn a_truncated_component_is_refused_at_every_length() {
    let whole = component();
    for part in 1..50 {
        let said = refused(whole.slice(..whole.len() * part / 50)).await;
        assert!(
            said.starts_with("plugin hostile: is not a valid component: "),
            "{part}: {said}"
        );
    }
    let said = refused(whole.slice(..whole.len() - 1)).await;
    assert!(said.contains("is not a valid component"), "{said}");
}

#[tokio::test]
async fn a_damaged_component_never_takes_the_host_down() {
    let whole = component();
    for seed in 0..20_usize {
        let mut damaged = whole.to_vec();
        for step in 0..8 {
            let place = (seed * 7919 + step * 104_729) % damaged.len();
            damaged[place] ^= 0x55;
        }
        let damaged = PluginSource {
            component: damaged.into(),
            ..source(json!({}), generous())
        };
        // A change in a text leaves a good component; whatever it is, it is an answer.
        if let Err(error) = host().load(damaged).await {
            assert!(!error.reason.is_empty());
        }
    }
    assert_eq!(
        told(&guest::load(json!({ "do": "count" })).await.unwrap()).await,
        "1"
    );
}

/// The guest with every mention of the contract's version changed: same length, same structure.
fn with_version(version: &str) -> Vec<u8> {
    replaced(&component(), "@0.1.0", version)
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut changed = bytes.to_vec();
    let mut count = 0;
    for start in 0..changed.len() - from.len() {
        if changed[start..].starts_with(from.as_bytes()) {
            changed[start..start + from.len()].copy_from_slice(to.as_bytes());
            count += 1;
        }
    }
    assert!(count > 0, "{from} is there");
    changed
}

#[tokio::test]
async fn a_component_for_another_contract_is_told_both_versions() {
    let said = refused(with_version("@0.3.0")).await;
    assert_eq!(
        said,
        "plugin hostile: is built for gantry:plugin@0.3.0; this host speaks 0.1"
    );
}

#[tokio::test]
async fn a_later_patch_of_the_same_contract_loads() {
    let source = PluginSource {
        component: with_version("@0.1.7").into(),
        ..source(json!({ "do": "count" }), generous())
    };
    let plugin = host().load(source).await.unwrap();
    assert_eq!(told(&plugin).await, "1");
}

#[tokio::test]
async fn an_unknown_import_is_named_with_what_the_host_offers() {
    let said = refused(replaced(
        &component(),
        "gantry:plugin/random@",
        "gantry:plugin/wisdom@",
    ))
    .await;
    assert_eq!(
        said,
        "plugin hostile: imports gantry:plugin/wisdom@0.1.0, which this host does not offer; it offers gantry:plugin@0.1 (types, logging, config, clock, kv, random, crypto, http, registry) and an inert WASI 0.2"
    );
}

#[tokio::test]
async fn a_refused_configuration_is_reported_with_pointer_and_sentence() {
    let error = guest::load(json!({ "issue": "fatal" })).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "plugin hostile: refuses its config: /users/0: nobody is called that"
    );
    guest::load(json!({ "issue": "warn" }))
        .await
        .expect("what is not fatal is a warning");
}

#[tokio::test]
async fn no_configuration_is_an_empty_object() {
    let plugin = guest::load(Value::Null).await.unwrap();
    assert_eq!(told(&plugin).await, "");
}

#[tokio::test]
async fn a_binding_that_cannot_work_is_refused() {
    let with = |limits: Limits| PluginSource {
        limits,
        ..source(json!({}), generous())
    };
    let small = Limits {
        memory_bytes: 64 << 10,
        ..generous()
    };
    let large = Limits {
        memory_bytes: 1 << 30,
        ..generous()
    };
    let none = Limits {
        concurrency: 0,
        ..generous()
    };
    let named = |name: &str| PluginSource {
        name: name.into(),
        ..source(json!({}), generous())
    };
    for (source, said) in [
        (with(small), "bytes of memory; its binding allows 65536"),
        (with(large), "is over the host's"),
        (with(none), "must not be zero"),
        (named("a/b"), "must not contain `/`"),
        (named(""), "must not be empty"),
    ] {
        let error = host().load(source).await.unwrap_err();
        assert!(error.reason.contains(said), "{said}: {error}");
    }
}

#[tokio::test]
async fn an_inspection_says_what_a_component_exports_imports_and_needs() {
    let inspection = PluginHost::inspect(&component()).unwrap();
    let digest: Digest = inspection.digest.clone();
    let plugin = guest::load(json!({})).await.unwrap();
    assert_eq!(&digest, plugin.digest());
    assert_eq!(inspection.hooks, *plugin.hooks());
    assert_eq!(inspection.size_bytes, component().len() as u64);
    assert!(inspection.problems.is_empty(), "{:?}", inspection.problems);
    let export = "gantry:plugin/authorizer@0.1.0".to_owned();
    assert!(
        inspection.exports.contains(&export),
        "{:?}",
        inspection.exports
    );
    let interfaces: Vec<_> = inspection
        .capabilities
        .iter()
        .map(|one| one.interface)
        .collect();
    for interface in ["kv", "registry", "crypto", "http", "config"] {
        assert!(interfaces.contains(&interface), "{interfaces:?}");
    }
    assert!(inspection.wasi.iter().all(|name| name.starts_with("wasi:")));
    assert!(!inspection.wasi.is_empty());

    let newer = PluginHost::inspect(&with_version("@0.3.0")).unwrap();
    assert_eq!(
        newer.problems.len(),
        1,
        "an inspection shows also what would not load"
    );
    assert!(PluginHost::inspect(b"\0asm\x01\0\0\0").is_err());
}

// --- compiled code on disk ---

fn cached_host(directory: &Path) -> PluginHost {
    PluginHost::new(HostPorts {
        cache_directory: Some(directory.to_owned()),
        ..ports::ports()
    })
    .unwrap()
}

fn compiled_file(directory: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "cwasm")
        })
        .collect();
    assert_eq!(files.len(), 1, "one component, one file");
    files.remove(0)
}

#[tokio::test]
async fn compiled_code_is_kept_and_used_again() {
    let directory = tempfile::tempdir().unwrap();
    let counting = || source(json!({ "do": "count" }), generous());
    let plugin = cached_host(directory.path())
        .load(counting())
        .await
        .unwrap();
    let file = compiled_file(directory.path());
    let (written, kept) = (
        fs::metadata(&file).unwrap().modified().unwrap(),
        fs::read(&file).unwrap(),
    );
    assert_eq!(told(&plugin).await, "1");
    let again = cached_host(directory.path())
        .load(counting())
        .await
        .unwrap();
    assert_eq!(told(&again).await, "1");
    assert_eq!(fs::metadata(&file).unwrap().modified().unwrap(), written);
    assert_eq!(fs::read(&file).unwrap(), kept);
}

#[tokio::test]
async fn compiled_code_that_was_changed_is_compiled_again() {
    let directory = tempfile::tempdir().unwrap();
    let counting = || source(json!({ "do": "count" }), generous());
    cached_host(directory.path())
        .load(counting())
        .await
        .unwrap();
    let file = compiled_file(directory.path());
    let good = fs::read(&file).unwrap();
    let middle = good.len() / 2;
    let mut flipped = good.clone();
    flipped[middle] ^= 1;
    for bad in [
        flipped,
        good[..middle].to_vec(),
        Vec::new(),
        good[32..].to_vec(),
    ] {
        fs::write(&file, &bad).unwrap();
        let plugin = cached_host(directory.path())
            .load(counting())
            .await
            .unwrap();
        assert_eq!(told(&plugin).await, "1");
        let replaced = fs::read(&file).unwrap();
        assert_ne!(replaced, bad);
        assert_eq!(replaced.len(), good.len());
    }
}

#[tokio::test]
async fn a_cache_directory_that_cannot_be_made_is_an_error_at_start() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = PluginHost::new(HostPorts {
        cache_directory: Some(file.path().join("below")),
        ..ports::ports()
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("for compiled plugins"), "{error}");
}

#[tokio::test]
async fn a_host_and_its_plugins_may_be_used_from_any_thread() {
    fn anywhere<T: Send + Sync + 'static>(_: &T) {}
    let host = host();
    anywhere(&host);
    let plugin = Arc::new(host.load(source(json!({}), generous())).await.unwrap());
    anywhere(&plugin);
    assert_eq!(Grants::default().kv.len(), 0);
}
