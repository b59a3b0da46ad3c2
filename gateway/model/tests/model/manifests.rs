//! A manifest has one meaning: what is ambiguous, mistyped or broken is refused with a sentence.

use gantry_model::{
    Manifest, ManifestError, ManifestKind, MediaType,
    media_type::{DOCKER_MANIFEST, DOCKER_MANIFEST_LIST, OCI_INDEX, OCI_MANIFEST},
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
        (
            "no layers",
            broken(|d| drop(d.as_object_mut().unwrap().remove("layers"))),
        ),
        ("null layers", broken(|d| d["layers"] = Value::Null)),
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
            "unknown digest algorithm",
            broken(|d| d["config"]["digest"] = json!("md5:d41d8cd98f00b204e9800998ecf8427e")),
        ),
        (
            "digest as number",
            broken(|d| d["config"]["digest"] = json!(1)),
        ),
        (
            "bad descriptor media type",
            broken(|d| d["config"]["mediaType"] = json!("x")),
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
    assert!(parse(Some(OCI_INDEX), &json!({"schemaVersion": 2})).is_err());
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
