//! A manifest has one meaning: what is ambiguous, mistyped or broken is refused with a sentence.

use gantry_model::{
    AnyDigest, Document, Form, Manifest, ManifestError, ManifestKind, MediaType,
    media_type::{
        DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_SCHEMA1, OCI_ARTIFACT, OCI_INDEX,
        OCI_MANIFEST, ORAS_ARTIFACT,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

const DIGEST: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

fn descriptor() -> Value {
    json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": DIGEST, "size": 2 })
}

fn image() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(), "layers": [descriptor()] })
}

fn index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor()] })
}

fn parse(declared: Option<&str>, document: &Value) -> Result<Manifest, ManifestError> {
    let declared: Option<MediaType> = declared.map(|text| text.parse().unwrap());
    Manifest::parse(declared.as_ref(), &serde_json::to_vec(document).unwrap())
}

#[test]
fn the_four_types_are_images_and_indexes() {
    for (media_type, kind) in [
        (OCI_MANIFEST, ManifestKind::Image),
        (DOCKER_MANIFEST, ManifestKind::Image),
        (OCI_INDEX, ManifestKind::Index),
        (DOCKER_MANIFEST_LIST, ManifestKind::Index),
    ] {
        let mut document = if kind == ManifestKind::Image {
            image()
        } else {
            index()
        };
        document["mediaType"] = json!(media_type);
        assert_eq!(parse(Some(media_type), &document).unwrap().kind, kind);
        assert_eq!(
            parse(None, &document).unwrap().media_type.as_str(),
            media_type,
            "the document's own type counts"
        );
        document.as_object_mut().unwrap().remove("mediaType");
        assert_eq!(
            parse(Some(media_type), &document)
                .unwrap()
                .media_type
                .as_str(),
            media_type
        );
        assert_eq!(parse(None, &document), Err(ManifestError::Untyped));
    }
}

#[test]
fn a_declared_type_that_the_document_contradicts_is_refused() {
    assert!(matches!(
        parse(Some(DOCKER_MANIFEST), &image()),
        Err(ManifestError::TypeMismatch { .. })
    ));
    let mut document = image();
    document["mediaType"] = json!("");
    assert!(parse(Some(OCI_MANIFEST), &document).is_ok(), "no type");
    assert_eq!(parse(None, &document), Err(ManifestError::Untyped));
    assert!(matches!(
        parse(Some("application/json"), &json!({"schemaVersion": 2})),
        Err(ManifestError::UnsupportedType(_))
    ));
}

#[test]
fn every_broken_shape_is_refused() {
    let broken = |change: fn(&mut Value)| {
        let mut document = image();
        change(&mut document);
        document
    };
    let table: Vec<(&str, Value)> = vec![
        (
            "both layers and manifests (CVE-2021-41190)",
            broken(|d| d["manifests"] = json!([])),
        ),
        (
            "schema version 1",
            broken(|d| d["schemaVersion"] = json!(1)),
        ),
        (
            "schema version as text",
            broken(|d| d["schemaVersion"] = json!("2")),
        ),
        ("fsLayers", broken(|d| d["fsLayers"] = json!([]))),
        (
            "no config",
            broken(|d| drop(d.as_object_mut().unwrap().remove("config"))),
        ),
        ("layers as object", broken(|d| d["layers"] = json!({}))),
        (
            "negative size",
            broken(|d| d["layers"][0]["size"] = json!(-1)),
        ),
        (
            "huge size",
            broken(|d| d["layers"][0]["size"] = json!(u64::MAX)),
        ),
        (
            "fractional size",
            broken(|d| d["layers"][0]["size"] = json!(1.5)),
        ),
        (
            "size as text",
            broken(|d| d["layers"][0]["size"] = json!("2")),
        ),
        (
            "no size",
            broken(|d| drop(d["layers"][0].as_object_mut().unwrap().remove("size"))),
        ),
        (
            "bad digest",
            broken(|d| d["config"]["digest"] = json!("sha256:zz")),
        ),
        (
            "a digest in capitals",
            broken(|d| d["config"]["digest"] = json!(DIGEST.to_uppercase())),
        ),
        (
            "no digest",
            broken(|d| drop(d["config"].as_object_mut().unwrap().remove("digest"))),
        ),
        (
            "a platform that is a text",
            broken(|d| d["config"]["platform"] = json!("linux/amd64")),
        ),
        (
            "digest as number",
            broken(|d| d["config"]["digest"] = json!(1)),
        ),
        (
            "descriptor media type as number",
            broken(|d| d["config"]["mediaType"] = json!(1)),
        ),
        (
            "annotations as list",
            broken(|d| d["annotations"] = json!([])),
        ),
        (
            "annotation value as number",
            broken(|d| d["annotations"] = json!({"a": 1})),
        ),
        ("subject as text", broken(|d| d["subject"] = json!("x"))),
        ("a list", json!([])),
        ("a text", json!("manifest")),
        ("null", Value::Null),
        ("empty object", json!({})),
    ];
    for (what, document) in table {
        assert!(parse(Some(OCI_MANIFEST), &document).is_err(), "{what}");
    }
    let mut both = index();
    both["layers"] = json!([]);
    assert!(parse(Some(OCI_INDEX), &both).is_err());
}

#[test]
fn an_error_names_the_field_and_its_value() {
    let check = |change: fn(&mut Value), expect: &str| {
        let mut document = image();
        change(&mut document);
        let error = parse(Some(OCI_MANIFEST), &document).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} lacks {expect}");
    };
    check(
        |d| d["layers"][0]["size"] = json!(-1),
        "layers[0].size: a size is not negative: -1",
    );
    check(
        |d| d["config"]["digest"] = json!("sha256:zz"),
        "config.digest: not a digest: expected <algorithm>:<lower-case hex>, not `sha256:zz`",
    );
    check(
        |d| d["layers"][0]["annotations"] = json!({"a": 1}),
        "layers[0].annotations",
    );
    check(
        |d| d["schemaVersion"] = json!(3),
        "schemaVersion is 3, not 2",
    );
    check(|d| d["mediaType"] = json!("x/y"), "mediaType is x/y");
    check(
        |d| d["schemaVersion"] = json!(1),
        "schema 1 is not supported",
    );
    check(|d| d["subject"] = json!("x"), "subject: ");
}

#[test]
fn what_go_writes_for_nothing_is_nothing() {
    for nothing in [
        "layers",
        "annotations",
        "subject",
        "mediaType",
        "artifactType",
        "manifests",
    ] {
        let mut document = image();
        document[nothing] = Value::Null;
        assert!(
            parse(Some(OCI_MANIFEST), &document).is_ok(),
            "null {nothing}"
        );
        document.as_object_mut().unwrap().remove(nothing);
        assert!(parse(Some(OCI_MANIFEST), &document).is_ok(), "no {nothing}");
    }
    let mut document = index();
    document["manifests"] = Value::Null;
    assert_eq!(parse(None, &document).unwrap().manifests, []);
    document.as_object_mut().unwrap().remove("manifests");
    assert_eq!(parse(None, &document).unwrap().manifests, []);
    let mut document = image();
    document["annotations"] = json!({ "a": null });
    assert_eq!(parse(None, &document).unwrap().annotations["a"], "");
}

#[test]
fn a_descriptors_media_type_is_text() {
    for written in [
        "application/vnd.dev.sigstore.bundle+json;version=0.2",
        "spdx+json",
        "",
        "a b/c",
    ] {
        let mut document = image();
        document["layers"][0]["mediaType"] = json!(written);
        let manifest = parse(None, &document).unwrap();
        assert_eq!(manifest.layers[0].media_type.as_str(), written);
    }
    let mut document = image();
    document["layers"][0]
        .as_object_mut()
        .unwrap()
        .remove("mediaType");
    assert_eq!(
        parse(None, &document).unwrap().layers[0]
            .media_type
            .as_str(),
        ""
    );
}

#[test]
fn content_under_an_unknown_algorithm_is_named_and_never_asked_for() {
    let blake3 = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
    let mut document = image();
    document["layers"][0]["digest"] = json!(blake3);
    let manifest = parse(None, &document).unwrap();
    assert_eq!(manifest.layers[0].digest.as_str(), blake3);
    assert_eq!(manifest.required_blobs().count(), 1, "the config");
    assert_eq!(manifest.references().count(), 1);
    for good in [
        blake3,
        "sha384:ab",
        "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8",
    ] {
        assert!(matches!(good.parse(), Ok(AnyDigest::Other(_))), "{good}");
    }
    for bad in [
        "blake3:",
        "blake3",
        ":ab",
        "Blake3:ab",
        "blake3:a/b",
        "sha256:ab",
    ] {
        assert!(bad.parse::<AnyDigest>().is_err(), "{bad}");
    }
}

#[test]
fn artifact_manifests_are_blobs_without_a_config() {
    for media_type in [OCI_ARTIFACT, ORAS_ARTIFACT] {
        let document = json!({
            "mediaType": media_type, "artifactType": "application/vnd.example", "blobs": [descriptor()],
            "subject": descriptor(), "annotations": { "a": "b" },
        });
        let manifest = parse(Some(media_type), &document).unwrap();
        assert_eq!(manifest.kind, ManifestKind::Artifact);
        assert_eq!(manifest.layers.len(), 1);
        assert_eq!(manifest.required_blobs().count(), 1);
        assert!(manifest.subject.is_some());
        let mut ambiguous = document.clone();
        ambiguous["layers"] = json!([descriptor()]);
        assert!(parse(Some(media_type), &ambiguous).is_err());
    }
}

#[test]
fn the_children_of_a_build_cache_are_blobs() {
    let mut document = index();
    document["manifests"] = json!([
        { "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 2 },
        { "mediaType": "application/vnd.buildkit.cacheconfig.v0", "digest": DIGEST, "size": 2 },
        { "mediaType": OCI_MANIFEST, "digest": DIGEST, "size": 2 },
        { "digest": DIGEST, "size": 2 },
    ]);
    let manifest = parse(None, &document).unwrap();
    assert_eq!(manifest.blobs().count(), 2);
    assert_eq!(manifest.children().count(), 2);
    assert_eq!(
        manifest.required_blobs().count(),
        0,
        "an index may be sparse"
    );
}

#[test]
fn a_document_without_a_declared_type_is_what_registries_take_it_for() {
    let manifest = |media_type: &str| Form::Manifest(media_type.parse().unwrap());
    let other = |media_type: &str| Form::Other(Some(media_type.parse().unwrap()));
    let table = [
        (
            r#"{"schemaVersion":2,"config":{},"layers":null}"#,
            manifest(OCI_MANIFEST),
        ),
        (r#"{"schemaVersion":2,"manifests":[]}"#, manifest(OCI_INDEX)),
        (
            r#"{"schemaVersion":2,"mediaType":"","layers":[]}"#,
            manifest(OCI_MANIFEST),
        ),
        (r#"{"SchemaVersion":2,"Layers":[]}"#, manifest(OCI_MANIFEST)),
        (
            "\u{feff}{\"schemaVersion\":2,\"layers\":[]}",
            manifest(OCI_MANIFEST),
        ),
        (
            r#"{"schemaVersion":1,"schemaVersion":2,"layers":[],"x":1e999,"\ud800":"\udc00"}"#,
            manifest(OCI_MANIFEST),
        ),
        (
            r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json"}"#,
            manifest(OCI_ARTIFACT),
        ),
        (
            r#"{"mediaType":"application/vnd.example.thing+json"}"#,
            other("application/vnd.example.thing+json"),
        ),
        (r#"{"schemaVersion":2}"#, Form::Other(None)),
        (r#"{"errors":[{"code":"DENIED"}]}"#, Form::Other(None)),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#, Form::Schema1),
        (
            r#"{"schemaVersion":2,"fsLayers":[{}],"layers":[]}"#,
            Form::Schema1,
        ),
        ("<html></html>", Form::NotJson),
        ("[]", Form::NotJson),
        ("", Form::NotJson),
        (r#"{"schemaVersion":2,"config":{},"lay"#, Form::NotJson),
    ];
    for (document, form) in table {
        assert_eq!(Form::of(document.as_bytes()), form, "{document}");
    }
    let deep = format!(
        r#"{{"schemaVersion":2,"layers":[],"x":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert_eq!(Form::of(deep.as_bytes()), manifest(OCI_MANIFEST));
    let schema1 = Form::adopted_type(br#"{"schemaVersion":1,"fsLayers":[]}"#);
    assert_eq!(schema1.as_str(), DOCKER_SCHEMA1);
}

#[test]
fn what_readers_read_differently_is_opaque() {
    let good = serde_json::to_string(&image()).unwrap();
    let declared: MediaType = OCI_MANIFEST.parse().unwrap();
    let read = |document: &str| Document::read(&declared, document.as_bytes());
    assert!(read(&good).manifest().is_some());
    for (what, document) in [
        ("twice", good.replacen('{', r#"{"layers":[],"#, 1)),
        ("a large number", good.replacen('{', r#"{"x":1e999,"#, 1)),
        ("half a pair", good.replacen('{', r#"{"x":"\ud800","#, 1)),
        ("a mark", format!("\u{feff}{good}")),
        ("capitals", good.replacen('{', r#"{"Layers":[],"#, 1)),
    ] {
        let Document::Opaque(opaque) = read(&document) else {
            panic!("{what} is read");
        };
        let mentions: Vec<_> = opaque.mentions.into_iter().collect();
        assert_eq!(mentions, [DIGEST.parse().unwrap()], "{what}");
    }
}

#[test]
fn annotations_are_weighed_wherever_they_are() {
    let mut document = index();
    document["annotations"] = json!({ "ab": "cd" });
    document["manifests"][0]["annotations"] = json!({ "e": "fg" });
    document["subject"] = descriptor();
    document["subject"]["annotations"] = json!({ "h": "" });
    assert_eq!(parse(None, &document).unwrap().annotation_bytes(), 8);
}

#[test]
fn bytes_that_are_not_one_json_document_are_refused() {
    let declared: MediaType = OCI_MANIFEST.parse().unwrap();
    let good = serde_json::to_string(&image()).unwrap();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let twice = good.replacen('{', r#"{"schemaVersion":2,"#, 1);
    let table = [
        String::new(),
        "{".to_owned(),
        format!("{good}x"),
        format!("{good}{good}"),
        format!("\u{feff}{good}"),
        deep,
        twice,
    ];
    for bytes in table {
        assert!(
            Manifest::parse(Some(&declared), bytes.as_bytes()).is_err(),
            "{}",
            &bytes[..bytes.len().min(60)]
        );
    }
    assert!(Manifest::parse(Some(&declared), b"\xff\xfe{}").is_err());
}

#[test]
fn unknown_fields_and_null_maps_are_tolerated() {
    let mut document = image();
    document["org.example.field"] = json!({"deep": [1, 2, 3]});
    document["annotations"] = Value::Null;
    document["subject"] = Value::Null;
    document["layers"][0]["annotations"] = Value::Null;
    document["layers"][0]["data"] = json!("e30=");
    assert!(parse(Some(OCI_MANIFEST), &document).is_ok());
}

#[test]
fn the_artifact_type_falls_back_to_the_config_type() {
    assert_eq!(
        parse(None, &image()).unwrap().artifact_type.as_deref(),
        Some("application/vnd.oci.empty.v1+json")
    );
    let mut document = image();
    document["artifactType"] = json!("application/vnd.example");
    assert_eq!(
        parse(None, &document).unwrap().artifact_type.as_deref(),
        Some("application/vnd.example")
    );
    assert_eq!(parse(None, &index()).unwrap().artifact_type, None);
}

#[test]
fn a_layer_with_urls_need_not_be_here() {
    let mut document = image();
    document["layers"][0]["urls"] = json!(["https://example.com/layer"]);
    let manifest = parse(None, &document).unwrap();
    assert_eq!(manifest.required_blobs().count(), 1, "only the config");
    assert_eq!(manifest.references().count(), 2);
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _result = Manifest::parse(None, &bytes);
    }

    #[test]
    fn a_changed_byte_is_an_error_or_another_manifest_never_a_panic(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&image()).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let _result = Manifest::parse(None, &bytes);
    }
}
