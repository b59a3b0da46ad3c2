//! What real clients put into registries, and what is broken: each kind is pushed, mirrored, adopted and judged as the table says.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tests::{
    Gateway, Scripted, Wire,
    gateway::{USER, usual_config},
    guests::component,
    image::{Content, INDEX, MANIFEST, sha512},
    scripted::Reply,
};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
const ORAS_ARTIFACT: &str = "application/vnd.cncf.oras.artifact.manifest.v1+json";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";
const THING: &str = "application/vnd.example.thing.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// One kind of document, and what becomes of it.
struct Kind {
    name: &'static str,
    media_type: &'static str,
    content: Content,
    /// Whether a push of it is accepted.
    pushed: bool,
    /// Whether a mirror passes it on.
    mirrored: bool,
    /// Whether policies see what it says; otherwise it is opaque to them.
    read: bool,
}

impl Kind {
    /// One that everybody understands.
    fn read(name: &'static str, media_type: &'static str, document: &Value) -> Self {
        Self {
            name,
            media_type,
            content: Content::new(document.to_string()),
            pushed: true,
            mirrored: true,
            read: true,
        }
    }

    /// One that is passed on and not understood.
    fn opaque(name: &'static str, media_type: &'static str, document: impl Into<String>) -> Self {
        Self {
            name,
            media_type,
            content: Content::new(document.into()),
            pushed: false,
            mirrored: true,
            read: false,
        }
    }

    fn tag(&self) -> String {
        self.name.replace([' ', '\'', ',', '(', ')'], "_")
    }
}

fn config() -> Content {
    Content::new("{}")
}

fn layer() -> Content {
    Content::new("a layer")
}

fn image() -> Value {
    json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config().descriptor(EMPTY),
        "layers": [layer().descriptor("application/vnd.oci.image.layer.v1.tar")] })
}

fn with(mut document: Value, changes: &Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        document[field] = value.clone();
    }
    document
}

fn without(mut document: Value, field: &str) -> Value {
    document.as_object_mut().unwrap().remove(field).unwrap();
    document
}

/// An artifact of a tool: its config's and its layer's type.
fn artifact(config_type: &str, layer_type: &str) -> Value {
    with(
        image(),
        &json!({ "config": config().descriptor(config_type), "layers": [layer().descriptor(layer_type)] }),
    )
}

fn understood() -> Vec<Kind> {
    let child = Content::new("a manifest elsewhere");
    let platform = |os: &str| {
        let mut child = child.descriptor(MANIFEST);
        child["platform"] = json!({ "os": os, "architecture": os });
        child["annotations"] = json!({ "vnd.docker.reference.type": "attestation-manifest" });
        child
    };
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [platform("linux"), platform("unknown")] });
    let mut typeless = layer().descriptor("x");
    typeless.as_object_mut().unwrap().remove("mediaType");
    let mut foreign = Content::new("elsewhere")
        .descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    foreign["urls"] = json!(["https://example.com/layer"]);
    let blake3 = json!({ "mediaType": "x/y", "size": 3, "digest": "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" });
    let cache = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        layer().descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
        config().descriptor("application/vnd.buildkit.cacheconfig.v0"),
    ] });
    let blobs = json!({ "artifactType": "application/vnd.example.sbom", "blobs": [layer().descriptor("spdx+json")],
        "subject": child.descriptor(MANIFEST), "annotations": { "a": "b" } });
    let typed = |media_type: &str| with(blobs.clone(), &json!({ "mediaType": media_type }));
    let layers = |layers: Value| with(image(), &json!({ "layers": layers }));
    vec![
        Kind::read("image", MANIFEST, &image()),
        Kind::read(
            "image without its type",
            MANIFEST,
            &without(image(), "mediaType"),
        ),
        Kind::read(
            "image with an empty type",
            MANIFEST,
            &with(image(), &json!({ "mediaType": "" })),
        ),
        Kind::read(
            "docker image",
            DOCKER_MANIFEST,
            &with(image(), &json!({ "mediaType": DOCKER_MANIFEST })),
        ),
        Kind::read("index with an attestation", INDEX, &index),
        Kind::read(
            "docker list",
            DOCKER_LIST,
            &with(index.clone(), &json!({ "mediaType": DOCKER_LIST })),
        ),
        Kind::read(
            "index of nothing",
            INDEX,
            &with(index.clone(), &json!({ "manifests": null })),
        ),
        Kind::read(
            "image whose layers are null",
            MANIFEST,
            &layers(Value::Null),
        ),
        Kind::read(
            "image without layers",
            MANIFEST,
            &without(image(), "layers"),
        ),
        Kind::read(
            "image whose annotations are null",
            MANIFEST,
            &with(image(), &json!({ "annotations": null })),
        ),
        Kind::read(
            "annotation that is null",
            MANIFEST,
            &with(image(), &json!({ "annotations": { "a": null } })),
        ),
        Kind::read(
            "sigstore bundle",
            MANIFEST,
            &layers(json!([layer().descriptor(
                "application/vnd.dev.sigstore.bundle+json;version=0.2"
            )])),
        ),
        Kind::read(
            "sbom without a slash",
            MANIFEST,
            &layers(json!([layer().descriptor("spdx+json")])),
        ),
        Kind::read(
            "layer of an empty type",
            MANIFEST,
            &layers(json!([layer().descriptor("")])),
        ),
        Kind::read("layer without a type", MANIFEST, &layers(json!([typeless]))),
        Kind::read("layer under blake3", MANIFEST, &layers(json!([blake3]))),
        Kind::read("foreign layer", MANIFEST, &layers(json!([foreign]))),
        Kind::read(
            "artifact of OCI's drafts",
            OCI_ARTIFACT,
            &typed(OCI_ARTIFACT),
        ),
        Kind::read("artifact of ORAS", ORAS_ARTIFACT, &typed(ORAS_ARTIFACT)),
        Kind::read("build cache", INDEX, &cache),
        Kind::read(
            "cosign signature",
            MANIFEST,
            &artifact(
                "application/vnd.oci.image.config.v1+json",
                "application/vnd.dev.cosign.simplesigning.v1+json",
            ),
        ),
        Kind::read(
            "referrer",
            MANIFEST,
            &with(
                image(),
                &json!({ "artifactType": "application/vnd.example", "subject": child.descriptor(MANIFEST) }),
            ),
        ),
        Kind::read(
            "helm chart",
            MANIFEST,
            &artifact(
                "application/vnd.cncf.helm.config.v1+json",
                "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            ),
        ),
        Kind::read(
            "wasm component",
            MANIFEST,
            &artifact("application/vnd.wasm.config.v0+json", "application/wasm"),
        ),
        Kind::read(
            "singularity image",
            MANIFEST,
            &artifact(
                "application/vnd.sylabs.sif.config.v1+json",
                "application/vnd.sylabs.sif.layer.v1.sif",
            ),
        ),
        Kind::read(
            "docker plugin",
            DOCKER_MANIFEST,
            &with(
                artifact(
                    "application/vnd.docker.plugin.v1+json",
                    "application/vnd.docker.image.rootfs.diff.tar.gzip",
                ),
                &json!({ "mediaType": DOCKER_MANIFEST }),
            ),
        ),
        Kind::read(
            "flatpak",
            MANIFEST,
            &with(
                image(),
                &json!({ "annotations": { "org.flatpak.ref": "app/org.example/x86_64/stable" } }),
            ),
        ),
    ]
}

fn not_understood() -> Vec<Kind> {
    let good = image().to_string();
    let begun = |fields: &str| good.replacen('{', &format!("{{{fields},"), 1);
    let nested = format!(r#""x":{}{}"#, "[".repeat(200), "]".repeat(200));
    let two = with(image(), &json!({ "manifests": [] }));
    vec![
        Kind::opaque("byte-order mark", MANIFEST, format!("\u{feff}{good}")),
        Kind::opaque("field twice", MANIFEST, begun(r#""layers":[]"#)),
        Kind::opaque("unread field twice", MANIFEST, begun(r#""x":1,"x":2"#)),
        Kind::opaque("field in capitals", MANIFEST, begun(r#""Layers":[]"#)),
        Kind::opaque(
            "number that no reader holds",
            MANIFEST,
            begun(r#""x":1e999"#),
        ),
        Kind::opaque(
            "half of a surrogate pair",
            MANIFEST,
            begun(r#""x":"\ud800""#),
        ),
        Kind::opaque("nested", MANIFEST, begun(&nested)),
        Kind::opaque("image and index", MANIFEST, two.to_string()),
        Kind::opaque(
            "size that is negative",
            MANIFEST,
            good.replace(r#""size":7"#, r#""size":-7"#),
        ),
        Kind::opaque(
            "thing",
            THING,
            json!({ "mediaType": THING, "config": 7 }).to_string(),
        ),
        Kind {
            mirrored: false,
            ..Kind::opaque(
                "schema 1",
                SCHEMA_1,
                r#"{"schemaVersion":1,"fsLayers":[],"history":[]}"#,
            )
        },
    ]
}

fn kinds() -> Vec<Kind> {
    understood().into_iter().chain(not_understood()).collect()
}

/// A registry that has every kind under its tag and its digest.
fn upstream() -> Scripted {
    let mut served = BTreeMap::new();
    for kind in kinds() {
        let document = Reply::new(200, kind.content.bytes.clone())
            .with("Content-Type", kind.media_type)
            .with("Docker-Content-Digest", &kind.content.digest);
        for reference in [kind.tag(), kind.content.digest.clone()] {
            served.insert(reference, document.clone());
        }
    }
    Scripted::start(move |asked| {
        let reference = asked.target.rsplit('/').next().unwrap();
        let found = served.get(reference).cloned();
        found.unwrap_or_else(|| Reply::new(404, ""))
    })
}

#[test]
fn what_can_be_pushed_is_stored_and_the_rest_is_refused_with_a_sentence() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    for blob in [config(), layer()] {
        wire.push_blob("apps/web", &blob).expect(201);
    }
    for kind in kinds() {
        let bytes = kind.content.bytes.clone();
        let answer = wire.push_manifest("apps/web", &kind.tag(), kind.media_type, bytes);
        let path = format!("/v2/apps/web/manifests/{}", kind.tag());
        if kind.pushed {
            assert_eq!(answer.status, 201, "{}: {answer:?}", kind.name);
            let pulled = wire.get(&path).expect(200);
            assert_eq!(pulled.body, kind.content.bytes, "{}", kind.name);
            assert_eq!(
                pulled.header("content-type"),
                kind.media_type,
                "{}",
                kind.name
            );
        } else {
            assert_eq!(answer.status, 400, "{}: {answer:?}", kind.name);
            assert_eq!(answer.code(), "MANIFEST_INVALID", "{}", kind.name);
            assert!(answer.message().len() > 30, "{}: {answer:?}", kind.name);
            wire.get(&path).expect(404);
        }
    }
    let mut foreign = Content::new("nowhere")
        .descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    foreign["urls"] = json!([]);
    let document = with(image(), &json!({ "layers": [foreign] })).to_string();
    let answer = wire.push_manifest("apps/web", "foreign", MANIFEST, document);
    assert!(answer.expect(400).message().contains("has no `urls`"));
}

#[test]
fn a_mirror_passes_on_whatever_has_the_digest_and_a_type_that_clients_ask_for() {
    let gateway = Gateway::start(&usual_config(&upstream().mirror_entry("up", ""), ""));
    let wire = Wire::basic(gateway.port, USER);
    for kind in kinds() {
        for reference in [kind.tag(), kind.content.digest.clone()] {
            let answer = wire.get(&format!("/v2/up/lib/a/manifests/{reference}"));
            if kind.mirrored {
                assert_eq!(answer.status, 200, "{}: {answer:?}", kind.name);
                assert_eq!(answer.body, kind.content.bytes, "{}", kind.name);
                assert_eq!(
                    answer.header("content-type"),
                    kind.media_type,
                    "{}",
                    kind.name
                );
            } else {
                assert_eq!(answer.status, 400, "{}: {answer:?}", kind.name);
                assert!(answer.message().contains("schema 1"), "{answer:?}");
            }
        }
    }
}

#[test]
fn a_policy_about_images_denies_what_is_not_read_unless_it_is_told_otherwise() {
    let registry = upstream();
    for (config, opaque) in [
        ("{ annotations: { org.example: \"*\" } }", 403),
        (
            "{ annotations: { org.example: \"*\" }, opaque: allow }",
            200,
        ),
    ] {
        let gate = format!(
            r#"
  - name: gate
    from: ./deny_image.wasm
    repositories: ["up/**"]
    changes: [serve-manifest, serve-blob]
    grants: {{ registry: ["up/**"] }}
    config: {config}
"#
        );
        let gateway = Gateway::start_with(
            &usual_config(&registry.mirror_entry("up", ""), &gate),
            |folder| {
                fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
            },
        );
        let wire = Wire::basic(gateway.port, USER);
        for kind in kinds().iter().filter(|kind| kind.mirrored) {
            let expected = if kind.read { 200 } else { opaque };
            for reference in [kind.tag(), kind.content.digest.clone()] {
                let answer = wire.get(&format!("/v2/up/lib/a/manifests/{reference}"));
                assert_eq!(answer.status, expected, "{}: {answer:?}", kind.name);
            }
        }
    }
}

/// Writes what a docker registry would have on its disk.
fn write_registry(root: &Path) {
    let root = root.join("docker/registry/v2");
    let write = |path: &Path, bytes: &[u8]| {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let store = |content: &Content| {
        let hex = content.digest.strip_prefix("sha256:").unwrap();
        let folder = root
            .join("blobs/sha256")
            .join(hex.get(..2).unwrap())
            .join(hex);
        write(&folder.join("data"), &content.bytes);
        hex.to_owned()
    };
    let repository = root.join("repositories/apps/web");
    let link = |path: &str, content: &Content| {
        write(
            &repository.join(path).join("link"),
            content.digest.as_bytes(),
        );
    };
    for blob in [config(), layer()] {
        let hex = store(&blob);
        link(&format!("_layers/sha256/{hex}"), &blob);
    }
    for kind in kinds() {
        let hex = store(&kind.content);
        link(&format!("_manifests/revisions/sha256/{hex}"), &kind.content);
        link(
            &format!("_manifests/tags/{}/current", kind.tag()),
            &kind.content,
        );
    }
}

#[test]
fn a_folder_of_another_registry_keeps_every_kind_but_schema_1_under_its_tag() {
    let gateway = Gateway::start_with(&usual_config("", ""), |folder| {
        write_registry(&folder.join("data"));
    });
    let wire = Wire::basic(gateway.port, USER);
    let (schema1, kinds): (Vec<_>, Vec<_>) = kinds()
        .into_iter()
        .partition(|kind| kind.name == "schema 1");
    let left_out = format!("apps/web:{}", schema1[0].tag());
    assert!(gateway.log().contains(&left_out), "{}", gateway.log());
    for kind in kinds {
        for reference in [kind.tag(), kind.content.digest.clone()] {
            let answer = wire.get(&format!("/v2/apps/web/manifests/{reference}"));
            assert_eq!(answer.status, 200, "{}: {answer:?}", kind.name);
            assert_eq!(answer.body, kind.content.bytes, "{}", kind.name);
            assert_eq!(
                answer.header("content-type"),
                kind.media_type,
                "{}",
                kind.name
            );
        }
    }
}

#[test]
fn a_digest_under_another_algorithm_is_no_way_around_a_rule() {
    let image = Content::new(image().to_string());
    let gate = format!(
        r#"
  - name: gate
    from: ./deny_image.wasm
    repositories: ["apps/**"]
    changes: [serve-manifest, serve-blob]
    grants: {{ registry: ["apps/**"] }}
    config: {{ digests: ["{}"] }}
"#,
        image.digest
    );
    let gateway = Gateway::start_with(&usual_config("", &gate), |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    });
    let wire = Wire::basic(gateway.port, USER);
    for blob in [config(), layer()] {
        wire.push_blob("apps/web", &blob).expect(201);
    }
    let other = sha512(&image.bytes);
    for reference in [image.digest.as_str(), other.as_str(), "latest"] {
        wire.push_manifest("apps/web", reference, MANIFEST, image.bytes.clone())
            .expect(201);
    }
    for reference in [image.digest.as_str(), other.as_str(), "latest"] {
        wire.get(&format!("/v2/apps/web/manifests/{reference}"))
            .expect(403);
    }
}
