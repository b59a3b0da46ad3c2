//! What a component is before it runs: its exports, its imports, and why this host would not load it.
//!
//! Owns the sentences about what does not fit. Nothing of the component runs.

use gantry_model::{Algorithm, Digest};
use wasmtime::{Engine, component::Component};

use crate::hook::{Hook, Hooks};

/// A component's size at most.
pub(crate) const MAX_COMPONENT_BYTES: usize = 32 << 20;
/// The track of the contract that this host speaks.
const TRACK: &str = "0.1";
const PACKAGE: &str = "gantry:plugin";
const WASI_PACKAGES: [&str; 6] = [
    "wasi:cli",
    "wasi:clocks",
    "wasi:filesystem",
    "wasi:io",
    "wasi:random",
    "wasi:sockets",
];

/// What a component says about itself.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The component's digest.
    pub digest: Digest,
    /// Its length.
    pub size_bytes: u64,
    /// The hooks it takes part in.
    pub hooks: Hooks,
    /// Every exported interface, with its version.
    pub exports: Vec<String>,
    /// Every imported interface, with its version, WASI's excepted.
    pub imports: Vec<String>,
    /// What a binding may have to grant for those imports.
    pub capabilities: Vec<Capability>,
    /// Imported WASI interfaces: linked, and inert.
    pub wasi: Vec<String>,
    /// Why this host would not load it, one sentence each; empty when it would.
    pub problems: Vec<String>,
}

/// What an import can do, and the grant it takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capability {
    /// The interface.
    pub interface: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// The key under the binding's `grants`; `None` when nothing is to be granted.
    pub grant: Option<&'static str>,
}

/// Every interface this host offers.
const CAPABILITIES: [Capability; 9] = [
    capability("types", "shared words", None),
    capability("logging", "writes to the log", None),
    capability(
        "config",
        "reads its configuration and granted secrets",
        Some("secrets"),
    ),
    capability("clock", "tells the time of the call", None),
    capability("kv", "keeps values between calls", Some("kv")),
    capability("random", "gets random bytes", None),
    capability(
        "crypto",
        "checks passwords, tokens and signatures",
        Some("secrets"),
    ),
    capability("http", "asks other services", Some("http")),
    capability(
        "registry",
        "reads stored content as the requester",
        Some("registry"),
    ),
];

const fn capability(
    interface: &'static str,
    purpose: &'static str,
    grant: Option<&'static str>,
) -> Capability {
    Capability {
        interface,
        purpose,
        grant,
    }
}

const HOOKS: [(&str, Hook); 6] = [
    ("authenticator", Hook::Authenticate),
    ("authorizer", Hook::Authorize),
    ("admission", Hook::Admit),
    ("scanner", Hook::Scan),
    ("events", Hook::Observe),
    ("management", Hook::Manage),
];

/// Why bytes cannot be compiled, as far as their first bytes tell.
pub(crate) fn refuse_bytes(bytes: &[u8]) -> Option<String> {
    if bytes.len() > MAX_COMPONENT_BYTES {
        return Some(format!(
            "has {} bytes; a component may have {MAX_COMPONENT_BYTES}",
            bytes.len()
        ));
    }
    if Engine::detect_precompiled(bytes).is_some() {
        return Some(
            "is machine code compiled ahead of time, which is never taken from outside; give the .wasm component it was made from"
                .to_owned(),
        );
    }
    match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Some(
            "is a core module, not a component; build it for wasm32-wasip2, or make one of it with `gantry plugin build MODULE --hook HOOK --output FILE`"
                .to_owned(),
        ),
        [0, b'a', b's', b'm', ..] => None,
        [] => Some("is empty".to_owned()),
        _ => Some("is not WebAssembly: it does not begin with \\0asm".to_owned()),
    }
}

/// The SHA-256 digest of the bytes.
pub(crate) fn digest_of(bytes: &[u8]) -> Option<Digest> {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Digest::from_bytes(Algorithm::Sha256, hash.as_ref())
}

impl Inspection {
    /// Reads the types of a compiled component.
    pub(crate) fn of(engine: &Engine, component: &Component, digest: Digest, size: usize) -> Self {
        let shape = component.component_type();
        let owned = |name: &str| name.to_owned();
        let exports: Vec<String> = shape.exports(engine).map(|(name, _)| owned(name)).collect();
        let (wasi, imports): (Vec<String>, Vec<String>) = shape
            .imports(engine)
            .map(|(name, _)| owned(name))
            .partition(|name| name.starts_with("wasi:"));
        let problems = problems(&exports, &imports, &wasi);
        Self {
            digest,
            size_bytes: size as u64,
            hooks: hooks(&exports),
            capabilities: CAPABILITIES
                .into_iter()
                .filter(|capability| {
                    let named = |name: &String| own(name) == Some(capability.interface);
                    capability.interface != "types" && imports.iter().any(named)
                })
                .collect(),
            exports,
            imports,
            wasi,
            problems,
        }
    }

    /// Whether it exports `gantry:plugin/<interface>` in any version.
    pub(crate) fn exports_own(&self, interface: &str) -> bool {
        self.exports.iter().any(|name| own(name) == Some(interface))
    }
}

fn hooks(exports: &[String]) -> Hooks {
    let exported = |interface: &str| exports.iter().any(|name| own(name) == Some(interface));
    Hooks(
        HOOKS
            .into_iter()
            .filter(|(interface, _)| exported(interface))
            .map(|(_, hook)| hook)
            .collect(),
    )
}

fn problems(exports: &[String], imports: &[String], wasi: &[String]) -> Vec<String> {
    let mut problems: Vec<String> = Vec::new();
    let all = exports.iter().chain(imports);
    // One sentence about the version says it all: nothing else fits either.
    if let Some(version) = all.filter_map(|name| foreign_track(name)).next() {
        return vec![format!(
            "is built for {PACKAGE}@{version}; this host speaks {TRACK}"
        )];
    }
    problems.extend(imports.iter().filter(|name| !offered(name)).map(|name| {
        let offers: Vec<&str> = CAPABILITIES
            .iter()
            .map(|capability| capability.interface)
            .collect();
        format!(
            "imports {name}, which this host does not offer; it offers {PACKAGE}@{TRACK} ({}) and an inert WASI 0.2",
            offers.join(", ")
        )
    }));
    problems.extend(wasi.iter().filter(|name| !offered_wasi(name)).map(|name| {
        format!(
            "imports {name}, which this host does not offer; of WASI it offers 0.2 of {}, all of them inert",
            WASI_PACKAGES.join(", ")
        )
    }));
    if !exports.iter().any(|name| own(name) == Some("lifecycle")) {
        problems.push(format!(
            "does not export {PACKAGE}/lifecycle, which every plugin has"
        ));
    }
    let exported = |interface: &str| exports.iter().any(|name| own(name) == Some(interface));
    if exported("principals") && !exported("authenticator") {
        problems.push(format!(
            "exports {PACKAGE}/principals without {PACKAGE}/authenticator, and so has made no principals"
        ));
    }
    if hooks(exports).0.is_empty() {
        let names: Vec<&str> = HOOKS.iter().map(|(interface, _)| *interface).collect();
        problems.push(format!(
            "exports no hook; a plugin exports at least one of {}",
            names.join(", ")
        ));
    }
    problems
}

/// `kv` of `gantry:plugin/kv@0.1.0`.
fn own(name: &str) -> Option<&str> {
    let interface = name.strip_prefix(PACKAGE)?.strip_prefix('/')?;
    Some(
        interface
            .split_once('@')
            .map_or(interface, |(interface, _)| interface),
    )
}

/// The version of an interface of ours, when it is not of this host's track.
fn foreign_track(name: &str) -> Option<&str> {
    own(name)?;
    let (_, version) = name.split_once('@')?;
    let same = version == TRACK
        || version
            .strip_prefix(TRACK)
            .is_some_and(|rest| rest.starts_with('.'));
    (!same).then_some(version)
}

fn offered(import: &str) -> bool {
    own(import).is_some_and(|interface| {
        CAPABILITIES
            .iter()
            .any(|capability| capability.interface == interface)
    })
}

fn offered_wasi(import: &str) -> bool {
    let Some((package, rest)) = import.split_once('/') else {
        return false;
    };
    let version = rest.split_once('@').map_or("", |(_, version)| version);
    WASI_PACKAGES.contains(&package) && version.starts_with("0.2.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(exports: &[&str], imports: &[&str]) -> String {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let imports: Vec<String> = owned(imports);
        let (wasi, imports): (Vec<_>, Vec<_>) = imports
            .into_iter()
            .partition(|name| name.starts_with("wasi:"));
        let exports: Vec<String> = owned(exports);
        problems(&exports, &imports, &wasi).join("\n")
    }

    const GOOD: [&str; 2] = [
        "gantry:plugin/lifecycle@0.1.0",
        "gantry:plugin/admission@0.1.3",
    ];

    #[test]
    fn a_component_of_this_track_fits() {
        let imports = ["gantry:plugin/kv@0.1.9", "wasi:cli/stderr@0.2.6"];
        assert_eq!(said(&GOOD, &imports), "");
    }

    #[test]
    fn a_newer_contract_is_named_with_both_versions() {
        assert_eq!(
            said(
                &["gantry:plugin/lifecycle@0.3.0"],
                &["gantry:plugin/ai@0.3.0"]
            ),
            "is built for gantry:plugin@0.3.0; this host speaks 0.1"
        );
        assert!(said(&["gantry:plugin/lifecycle@0.10.0"], &[]).contains("0.10.0"));
    }

    #[test]
    fn an_unknown_import_is_named_with_what_there_is() {
        for import in [
            "gantry:plugin/ai@0.1.0",
            "wasi:http/outgoing-handler@0.2.0",
            "wasi:cli/stdin@0.3.0",
            "acme:db/sql@1.0.0",
            "run",
        ] {
            let said = said(&GOOD, &[import]);
            assert!(
                said.starts_with(&format!(
                    "imports {import}, which this host does not offer; "
                )),
                "{said}"
            );
            assert!(said.contains("it offers"), "{said}");
        }
    }

    #[test]
    fn a_component_without_lifecycle_or_hook_says_so() {
        assert!(said(&GOOD[1..], &[]).contains("does not export gantry:plugin/lifecycle"));
        assert!(said(&GOOD[..1], &[]).contains("exports no hook"));
        let principals = [GOOD[0], GOOD[1], "gantry:plugin/principals@0.1.0"];
        assert!(said(&principals, &[]).contains("principals without"));
    }

    #[test]
    fn bytes_that_are_no_component_get_a_sentence() {
        let said = |bytes: &[u8]| refuse_bytes(bytes).unwrap_or_default();
        assert!(said(b"\0asm\x01\0\0\0").contains("core module"));
        assert!(said(b"").contains("empty"));
        assert!(said(b"#!/bin/sh").contains("not WebAssembly"));
        assert!(said(&vec![0; MAX_COMPONENT_BYTES + 1]).contains("bytes"));
        assert_eq!(said(b"\0asm\x0d\0\x01\0"), "");
    }
}
