//! Which tags may move or go, decided natively.

use gantry_plugin::{
    parse_config,
    types::{Client, Descriptor, Principal},
};

use super::*;

const OLD: &str = "sha256:old";
const NEW: &str = "sha256:new";

fn plugin(config: &str) -> ImmutableTags {
    let mut issues = Issues::default();
    let config = parse_config(config, &mut issues);
    let plugin = ImmutableTags::new(config, &mut issues);
    assert_eq!(
        issues.iter().count(),
        0,
        "{config}",
        config = plugin.message
    );
    plugin
}

fn request(
    change: Change,
    tag: Option<&str>,
    previous: Option<&str>,
    target: &str,
) -> AdmissionRequest {
    AdmissionRequest {
        request_id: "1".to_owned(),
        client: Client {
            remote_addr: "192.0.2.1".to_owned(),
            user_agent: None,
            tls_peer_subject: None,
        },
        principal: Principal::new("user:alice", "user", "test"),
        repository: "apps/web".to_owned(),
        mirror: None,
        change,
        tag: tag.map(str::to_owned),
        previous: previous.map(|digest| TagState {
            digest: digest.to_owned(),
            pushed_at_ms: 0,
            pushed_by: "user:alice".to_owned(),
            immutable: false,
        }),
        target: Descriptor {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            digest: target.to_owned(),
            size: 2,
            artifact_type: None,
            annotations: Vec::new(),
            urls: Vec::new(),
            platform: None,
        },
        digests: vec![target.to_owned()],
        document: None,
        parents: Vec::new(),
        attributes: Vec::new(),
    }
}

fn outcome(decision: Answer<Decision>) -> String {
    match decision {
        Ok(Decision::Accept(accepted)) => format!("accept{}", accepted.warnings.concat()),
        Ok(Decision::Reject(denial)) => format!("{}: {}", denial.reason.code, denial.message),
        Ok(Decision::Abstain) => "abstain".to_owned(),
        Ok(Decision::Hold(_)) => "hold".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_immutable_tag_is_made_once_and_neither_moves_nor_goes() {
    let plugin = plugin(r#"{"immutable":["v*"],"except":["*-rc*"],"message":"no"}"#);
    for (change, tag, previous, target, expected) in [
        (Change::CreateTag, Some("v1"), None, NEW, "accept"),
        (
            Change::MoveTag,
            Some("v1"),
            Some(OLD),
            NEW,
            "immutable-tags: no",
        ),
        (Change::MoveTag, Some("v1"), Some(OLD), OLD, "accept"),
        (Change::MoveTag, Some("v1"), None, NEW, "accept"),
        (
            Change::DeleteTag,
            Some("v1"),
            Some(OLD),
            OLD,
            "immutable-tags: no",
        ),
        (
            Change::DeleteManifest,
            Some("v1"),
            Some(OLD),
            OLD,
            "immutable-tags: no",
        ),
        (Change::DeleteManifest, None, None, OLD, "accept"),
        (Change::MoveTag, Some("latest"), Some(OLD), NEW, "abstain"),
        (Change::DeleteTag, Some("latest"), Some(OLD), OLD, "abstain"),
        (Change::MoveTag, Some("v1-rc1"), Some(OLD), NEW, "abstain"),
        (Change::PushByDigest, None, None, NEW, "abstain"),
        (Change::Mount, None, None, NEW, "abstain"),
        (Change::Fill, Some("v1"), Some(OLD), NEW, "abstain"),
        (Change::ServeManifest, Some("v1"), Some(OLD), OLD, "abstain"),
    ] {
        let request = request(change, tag, previous, target);
        assert_eq!(
            outcome(plugin.admit(&request)),
            expected,
            "{change:?} {tag:?} {target}"
        );
    }
}

#[test]
fn every_tag_is_immutable_by_default_but_signatures() {
    let sha256 = "a1".repeat(32);
    let sha512 = "a1".repeat(64);
    let strict = plugin(r#"{"exempt_signatures":false}"#);
    let plugin = plugin("");
    for (tag, exempt) in [
        ("latest".to_owned(), false),
        (format!("sha256-{sha256}"), true),
        (format!("sha256-{sha256}.sig"), true),
        (format!("sha256-{sha256}.att"), true),
        (format!("sha512-{sha512}.sbom"), true),
        (format!("sha256-{sha512}.sig"), false),
        (format!("sha256-{sha256}.sig.sig"), false),
        (format!("sha256-{}", sha256.to_uppercase()), false),
        (format!("v1-{sha256}"), false),
    ] {
        let moved = request(Change::MoveTag, Some(&tag), Some(OLD), NEW);
        assert_eq!(outcome(plugin.admit(&moved)) == "abstain", exempt, "{tag}");
        assert_ne!(outcome(strict.admit(&moved)), "abstain", "{tag}");
    }
}

#[test]
fn a_tag_that_an_admission_marked_is_immutable_whatever_its_name() {
    let plugin = plugin(r#"{"immutable":[],"message":"no"}"#);
    let mut moved = request(Change::MoveTag, Some("latest"), Some(OLD), NEW);
    assert_eq!(outcome(plugin.admit(&moved)), "abstain");
    moved.previous.as_mut().unwrap().immutable = true;
    assert_eq!(outcome(plugin.admit(&moved)), "immutable-tags: no");
}

#[test]
fn audit_mode_lets_it_happen_and_warns() {
    let plugin = plugin(r#"{"mode":"audit","message":" would be refused"}"#);
    let moved = request(Change::MoveTag, Some("v1"), Some(OLD), NEW);
    assert_eq!(outcome(plugin.admit(&moved)), "accept would be refused");
}

#[test]
fn the_message_names_tag_repository_and_what_the_tag_names() {
    let plugin = plugin(r#"{"message":"{{tag}} of {{repository}} is {{digest}}"}"#);
    let moved = request(Change::MoveTag, Some("v1"), Some(OLD), NEW);
    assert_eq!(
        outcome(plugin.admit(&moved)),
        "immutable-tags: v1 of apps/web is sha256:old"
    );
}

#[test]
fn a_misspelled_placeholder_is_a_warning_and_an_unknown_mode_is_fatal() {
    for (config, expected) in [
        (r#"{"message":"{{tga}}"}"#, ("/message", false)),
        (r#"{"mode":"shadow"}"#, ("/mode", true)),
        (r#"{"immutable":"v*"}"#, ("/immutable", true)),
        (r#"{"excpet":[]}"#, ("/excpet", true)),
    ] {
        let mut issues = Issues::default();
        let parsed = parse_config(config, &mut issues);
        ImmutableTags::new(parsed, &mut issues);
        let found: Vec<_> = issues
            .iter()
            .map(|(pointer, _, fatal)| (pointer, fatal))
            .collect();
        assert_eq!(found, [expected], "{config}");
    }
}

#[test]
fn the_schema_describes_every_key() {
    let schema: serde_json::Value = serde_json::from_str(ImmutableTags::CONFIG_SCHEMA).unwrap();
    let keys = schema["properties"].as_object().unwrap().keys();
    assert_eq!(
        keys.map(String::as_str).collect::<Vec<_>>(),
        [
            "immutable",
            "except",
            "exempt_signatures",
            "mode",
            "message"
        ]
    );
}
