//! The guest `hostile`, built once, and bindings of it.

use std::{
    path::PathBuf,
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use gantry_model::{
    AdmissionRequest, Change, Client, Descriptor, MediaType, OperationKind, Principal, Repository,
    Requester, Scope, TagState, Version, namespace::Source,
};
use gantry_plugin_host::{
    AuthenticateRequest, AuthorizeRequest, Credential, Grants, HostPorts, LoadError, Plugin,
    PluginHost, PluginSource, Secret,
};
use serde_json::{Value, json};

use crate::ports;

pub(crate) use gantry_plugin_host::Limits;

/// The component's bytes.
pub(crate) fn component() -> Bytes {
    static COMPONENT: OnceLock<Bytes> = OnceLock::new();
    COMPONENT.get_or_init(build).clone()
}

fn build() -> Bytes {
    built("hostile", "hostile.wasm")
}

/// A component of a package of the workspace.
pub(crate) fn built(package: &str, file: &str) -> Bytes {
    let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), PathBuf::from)
        .join("guests");
    let status = Command::new(env!("CARGO"))
        .current_dir(&workspace)
        .args(["build", "--package", package, "--target", "wasm32-wasip2"])
        .args(["--profile", "guest", "--target-dir"])
        .arg(&target)
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the guest builds");
    std::fs::read(target.join("wasm32-wasip2/guest").join(file))
        .expect("the guest is there")
        .into()
}

/// Where compiled code is kept.
pub(crate) fn kept() -> Option<PathBuf> {
    Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("compiled"))
}

/// A host. Compiled code is kept between tests and runs: compiling the guest is most of their time.
pub(crate) fn host() -> PluginHost {
    PluginHost::new(HostPorts {
        cache_directory: kept(),
        ..ports::ports()
    })
    .expect("a host")
}

/// Limits that no good guest meets, however busy the machine is.
pub(crate) fn generous() -> Limits {
    Limits {
        deadline: Duration::from_secs(30),
        cpu: Duration::from_secs(2),
        ..Limits::default()
    }
}

/// A binding of the guest.
pub(crate) fn source(config: Value, limits: Limits) -> PluginSource {
    PluginSource {
        name: "hostile".into(),
        component: component(),
        config,
        grants: Grants::default(),
        limits,
        redaction: gantry_plugin_host::Redaction::default(),
    }
}

/// The guest that does `what` in its hooks, with everything granted.
pub(crate) async fn doing(what: &str, limits: Limits) -> Plugin {
    let mut source = source(json!({ "do": what }), limits);
    source.grants = grants();
    host().load(source).await.expect("the guest loads")
}

/// The guest that answers `how`.
pub(crate) async fn answering(how: &str) -> Plugin {
    load(json!({ "answer": how }))
        .await
        .expect("the guest loads")
}

/// The guest with `config` and no grants.
pub(crate) async fn load(config: Value) -> Result<Plugin, LoadError> {
    host().load(source(config, generous())).await
}

pub(crate) const SECRET: &str = "hunter2-is-a-secret";

pub(crate) fn grants() -> Grants {
    Grants {
        kv: vec!["granted".to_owned()],
        registry: vec![gantry_model::glob::Glob::parse("apps/**").expect("a glob")],
        http: Vec::new(),
        secrets: [("token".to_owned(), Secret(Arc::from(SECRET.as_bytes())))].into(),
        secret_reveal: false,
    }
}

// --- questions ---

pub(crate) fn requester() -> Requester {
    Requester {
        request_id: "request-1".into(),
        arrival: None,
        confirmed: None,
        cause: gantry_model::Cause::Request,
        client: client(),
        principal: Arc::new(Principal {
            id: "user:alice".to_owned(),
            kind: "user".to_owned(),
            issuer: "test".to_owned(),
            groups: vec!["developers".to_owned()],
            attributes: vec![(
                "team".to_owned(),
                gantry_model::AttributeValue::Text("web".to_owned()),
            )],
            expires_at_ms: None,
        }),
    }
}

fn client() -> Arc<Client> {
    Arc::new(Client {
        address: "192.0.2.7".parse().expect("an address"),
        user_agent: Some("docker/29".to_owned()),
        tls_subject: None,
    })
}

pub(crate) fn scope(text: &str) -> Scope {
    text.parse().expect("a scope")
}

pub(crate) fn authenticate() -> AuthenticateRequest {
    AuthenticateRequest {
        client: client(),
        credential: Credential::basic("alice", "wonder").expect("a credential"),
        service: "gantry".to_owned(),
        scopes: vec![scope("repository:apps/web:pull")],
    }
}

pub(crate) fn authorize() -> AuthorizeRequest {
    AuthorizeRequest {
        requester: requester(),
        operation: OperationKind::PushManifest,
        scopes: vec![scope("repository:apps/web:pull,push")],
        reference: Some("v1".to_owned()),
        attributes: Vec::new(),
    }
}

pub(crate) fn admit() -> AdmissionRequest {
    let digest = ports::digest();
    AdmissionRequest {
        requester: requester(),
        repository: Repository {
            name: "apps/web".parse().expect("a name"),
            spelled: "apps/web".parse().expect("a name"),
            base: "/v2".into(),
            source: Source::Hosted,
            namespace: None,
        },
        change: Change::MoveTag,
        tag: Some("v1".parse().expect("a tag")),
        previous: Some(TagState {
            digest: digest.clone(),
            pushed_at_ms: 5,
            pushed_by: "user:bob".to_owned(),
            immutable: true,
        }),
        target: Some(Descriptor::new(
            MediaType::octet_stream(),
            digest.clone(),
            17,
        )),
        manifest: Some(Bytes::from_static(br#"{"schemaVersion":2}"#)),
        parents: vec![digest],
        version: Version::Unknown,
    }
}
