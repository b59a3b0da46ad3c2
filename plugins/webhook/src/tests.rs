//! What receivers get, byte for byte, and what each event's outcome is when they do not take it.

use std::cell::{Cell, RefCell};

use gantry_plugin::{http, parse_config};

use super::*;
use crate::{deliver::World, format};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn endpoints(config: &str) -> Vec<Endpoint> {
    let mut issues = Issues::default();
    let plugin = Webhook::new(parse_config(config, &mut issues), &mut issues);
    let found: Vec<_> = issues.iter().collect();
    assert!(found.is_empty(), "{config}: {found:?}");
    plugin.endpoints
}

fn event(id: &str, kind: &str, repository: &str) -> Event {
    let payload = serde_json::json!({
        "media_type": "application/vnd.oci.image.manifest.v1+json",
        "size": 708,
        "url": format!("https://registry.example/v2/{repository}/manifests/{DIGEST}"),
        "references": [{ "media_type": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 7 }],
        "request": { "id": "6df24a34", "addr": "192.0.2.7", "host": "registry.example", "method": "PUT", "useragent": "docker/29" },
        "source": { "addr": "registry.example:443", "instance_id": "a53db899-3b4b-4a62-a067-8dd013beaca4" },
    });
    Event {
        id: id.to_owned(),
        kind: kind.to_owned(),
        at: 1_457_534_666_402,
        repository: repository.to_owned(),
        digest: Some(DIGEST.to_owned()),
        tag: Some("latest".to_owned()),
        actor: "user:test-actor".to_owned(),
        payload: payload.to_string(),
    }
}

fn pushed() -> Event {
    event(
        "320678d8-ca14-430f-8bb6-4ca139cd83f7",
        "manifest.pushed",
        "hello-world",
    )
}

fn body_text(config: &str, events: &[&Event]) -> String {
    let body = format::body(&endpoints(config)[0], events);
    String::from_utf8(body.bytes).unwrap()
}

const TO_A: &str = r#"{"endpoints":[{"url":"https://a.example/x"}]}"#;

// --- bodies ---

#[test]
fn the_envelope_is_distributions_byte_for_byte() {
    let expected = r#"{
   "events": [
      {
         "id": "320678d8-ca14-430f-8bb6-4ca139cd83f7",
         "timestamp": "2016-03-09T14:44:26.402000000Z",
         "action": "push",
         "target": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "DIGEST",
            "size": 708,
            "length": 708,
            "repository": "hello-world",
            "url": "https://registry.example/v2/hello-world/manifests/DIGEST",
            "tag": "latest"
         },
         "request": {
            "id": "6df24a34",
            "addr": "192.0.2.7",
            "host": "registry.example",
            "method": "PUT",
            "useragent": "docker/29"
         },
         "actor": {
            "name": "test-actor"
         },
         "source": {
            "addr": "registry.example:443",
            "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4"
         }
      }
   ]
}"#;
    assert_eq!(
        body_text(TO_A, &[&pushed()]),
        expected.replace("DIGEST", DIGEST)
    );
    let body = format::body(&endpoints(TO_A)[0], &[&pushed()]);
    assert_eq!(
        body.content_type,
        "application/vnd.docker.distribution.events.v1+json"
    );
}

#[test]
fn an_envelope_lists_references_when_told_to() {
    let config = r#"{"endpoints":[{"url":"https://a.example/x","references":true}]}"#;
    let body: serde_json::Value = serde_json::from_str(&body_text(config, &[&pushed()])).unwrap();
    let expected = serde_json::json!([
        { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 7 }
    ]);
    assert_eq!(body["events"][0]["target"]["references"], expected);
}

#[test]
fn each_kind_is_an_action_that_receivers_know() {
    for (kind, action) in [
        ("manifest.pushed", "push"),
        ("blob.pushed", "push"),
        ("manifest.pulled", "pull"),
        ("blob.pulled", "pull"),
        ("blob.mounted", "mount"),
        ("manifest.deleted", "delete"),
        ("tag.deleted", "delete"),
        ("blob.deleted", "delete"),
    ] {
        let text = body_text(TO_A, &[&event("1", kind, "apps/web")]);
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(body["events"][0]["action"], action, "{kind}");
    }
}

#[test]
fn a_deleted_tag_has_a_name_and_no_digest() {
    let text = body_text(TO_A, &[&event("1", "tag.deleted", "apps/web")]);
    let body: serde_json::Value = serde_json::from_str(&text).unwrap();
    let target = &body["events"][0]["target"];
    assert_eq!(target["tag"], "latest");
    assert!(target.get("digest").is_none() && target.get("size").is_none());
}

#[test]
fn an_event_of_which_little_is_known_is_still_an_envelope() {
    let mut bare = event("1", "manifest.deleted", "apps/web");
    bare.payload = "{}".to_owned();
    bare.tag = None;
    bare.actor = "anonymous".to_owned();
    let body: serde_json::Value = serde_json::from_str(&body_text(TO_A, &[&bare])).unwrap();
    let expected = serde_json::json!({
        "id": "1", "timestamp": "2016-03-09T14:44:26.402000000Z", "action": "delete",
        "target": { "digest": DIGEST, "repository": "apps/web" },
        "request": { "id": "", "addr": "", "host": "", "method": "", "useragent": "" },
        "actor": {}, "source": {},
    });
    assert_eq!(body["events"][0], expected);
}

#[test]
fn a_cloud_event_has_every_required_attribute() {
    let config = r#"{"endpoints":[{"url":"https://a.example/x","format":"cloudevents"}]}"#;
    let body: serde_json::Value = serde_json::from_str(&body_text(config, &[&pushed()])).unwrap();
    let head = [
        ("specversion", "1.0"),
        ("id", "320678d8-ca14-430f-8bb6-4ca139cd83f7"),
        ("source", "//registry.example:443"),
        ("type", "gantry.manifest.pushed"),
        ("subject", "hello-world:latest"),
        ("time", "2016-03-09T14:44:26.402Z"),
        ("datacontenttype", "application/json"),
        ("requestid", "6df24a34"),
    ];
    for (name, value) in head {
        assert_eq!(body[name], value, "{name}");
    }
    assert_eq!(body["data"]["digest"], DIGEST);
    assert_eq!(body["data"]["actor"], "user:test-actor");
    assert_eq!(body["data"]["size"], 708);
    // CloudEvents 1.0 section 3.1: attribute names are lower-case letters and digits.
    for name in body.as_object().unwrap().keys() {
        assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{name}"
        );
    }
}

#[test]
fn a_cloud_events_batch_is_a_list_in_order() {
    let config = r#"{"endpoints":[{"url":"https://a.example/x","format":"cloudevents-batch"}]}"#;
    let (one, two) = (
        event("1", "manifest.pushed", "a"),
        event("2", "tag.moved", "b"),
    );
    let body: serde_json::Value = serde_json::from_str(&body_text(config, &[&one, &two])).unwrap();
    let ids: Vec<_> = body
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["id"])
        .collect();
    assert_eq!(ids, ["1", "2"]);
}

#[test]
fn a_slack_text_cannot_be_made_to_call_everybody() {
    let config = r#"{"endpoints":[{"url":"https://a.example/x","format":"slack"}]}"#;
    let mut odd = pushed();
    odd.actor = "<!channel> & co".to_owned();
    assert_eq!(
        body_text(config, &[&odd]),
        r#"{"text":"*hello-world:latest* pushed by &lt;!channel&gt; &amp; co (`sha256:0123456789ab`)"}"#
    );
    let mut denied = event("1", "request.denied", "apps/web");
    denied.digest = None;
    denied.payload = r#"{"reason":{"code":"x","text":"not <here>"}}"#.to_owned();
    assert_eq!(
        body_text(config, &[&denied]),
        r#"{"text":"*apps/web:latest* refused for user:test-actor: not &lt;here&gt;"}"#
    );
}

// --- deliveries ---

/// A receiver's answers by URL, and everything that was asked of the host.
#[derive(Default)]
struct Fake {
    answers: RefCell<Vec<(&'static str, Result<u16, http::Error>)>>,
    sent: RefCell<Vec<http::Request>>,
    retry_after: Cell<Option<u32>>,
    remaining_ms: Cell<Option<u32>>,
}

impl World for Fake {
    fn send(&self, request: &http::Request) -> Result<http::Response, http::Error> {
        self.sent.borrow_mut().push(request.clone());
        let answers = self.answers.borrow();
        let found = answers.iter().find(|(url, _)| *url == request.url);
        let status = found.map_or(Ok(200), |(_, answer)| answer.clone())?;
        let pause = self.retry_after.get();
        Ok(http::Response {
            status,
            headers: pause
                .map(|seconds| ("retry-after".to_owned(), seconds.to_string()))
                .into_iter()
                .collect(),
            body: Vec::new(),
        })
    }

    fn sign(&self, secret: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let low = |length: usize| length.to_le_bytes()[0];
        Ok(vec![0xab, low(secret.len()), low(body.len())])
    }

    fn now_ms(&self) -> u64 {
        0
    }

    fn remaining_ms(&self) -> u32 {
        self.remaining_ms.get().unwrap_or(30_000)
    }
}

impl Fake {
    fn answering(answers: &[(&'static str, Result<u16, http::Error>)]) -> Self {
        Self {
            answers: RefCell::new(answers.to_vec()),
            ..Self::default()
        }
    }

    fn run(&self, config: &str, events: &[Event]) -> Vec<Outcome> {
        Delivery::new(self, &endpoints(config), events).run()
    }

    fn urls(&self) -> Vec<String> {
        let sent = self.sent.take();
        sent.into_iter().map(|request| request.url).collect()
    }
}

const A: &str = "https://a.example/x";
const TO_BOTH: &str =
    r#"{"endpoints":[{"url":"https://a.example/x"},{"url":"https://b.example/x"}]}"#;

fn header<'a>(request: &'a http::Request, wanted: &str) -> Option<&'a http::HeaderValue> {
    let mut found = request.headers.iter().filter(|(name, _)| name == wanted);
    let first = found.next();
    assert!(found.next().is_none(), "{wanted} twice");
    first.map(|(_, value)| value)
}

#[test]
fn a_delivery_is_one_signed_post_with_the_configured_headers() {
    let config = r#"{"endpoints":[{"url":"https://a.example/x","sign_with":"hmac","timeout_ms":700,
        "headers":{"Authorization":{"secret":"gitlab"},"X-Team":"web","Content-Type":"application/json"}}]}"#;
    let fake = Fake::default();
    assert_eq!(fake.run(config, &[pushed()]), [Outcome::Delivered]);
    let sent = fake.sent.take();
    let [request] = sent.as_slice() else {
        panic!("{} requests", sent.len())
    };
    let text = |value: &str| Some(http::HeaderValue::Text(value.to_owned()));
    assert_eq!((&*request.method, &*request.url), ("POST", A));
    assert_eq!(request.timeout_ms, Some(700));
    assert_eq!(
        header(request, "Authorization"),
        Some(&http::HeaderValue::Secret("gitlab".to_owned()))
    );
    assert_eq!(header(request, "X-Team").cloned(), text("web"));
    assert_eq!(
        header(request, "Content-Type").cloned(),
        text("application/json")
    );
    assert_eq!(header(request, "content-type"), None);
    assert_eq!(
        header(request, "x-gantry-event").cloned(),
        text("manifest.pushed")
    );
    assert_eq!(
        header(request, "x-gantry-delivery").cloned(),
        text("320678d8-ca14-430f-8bb6-4ca139cd83f7")
    );
    let mac = format!("sha256=ab04{:02x}", request.body.len() % 256);
    assert_eq!(header(request, "x-gantry-signature").cloned(), text(&mac));
}

#[test]
fn the_source_of_a_mount_is_named_to_who_covers_it_alone() {
    let mut mounted = event("1", "blob.mounted", "public/web");
    mounted.payload = r#"{"size":7,"from_repository":"private/topsecret"}"#.to_owned();
    for format in ["distribution", "cloudevents", "cloudevents-batch"] {
        let config = |repositories: &str| {
            format!(
                r#"{{"endpoints":[{{"url":"https://a.example/x","format":"{format}","blobs":true,"repositories":{repositories}}}]}}"#
            )
        };
        let body = body_text(&config(r#"["public/**"]"#), &[&mounted]);
        assert!(!body.contains("topsecret"), "{format}: {body}");
        assert!(body.contains("public/web"), "{format}: {body}");
        let body = body_text(&config(r#"["**"]"#), &[&mounted]);
        assert!(body.contains("private/topsecret"), "{format}: {body}");
    }
}

#[test]
fn an_event_never_overtakes_an_earlier_one_of_its_repository() {
    let fake = Fake::answering(&[(A, Ok(500))]);
    let events = ["a", "b", "a"].map(|name| event(name, "manifest.pushed", name));
    assert_eq!(
        fake.run(TO_A, &events),
        [1, 2, 3].map(|_| Outcome::Retry(0))
    );
    assert_eq!(fake.urls().len(), 2, "the second of a was held back");
}

#[test]
fn a_receiver_that_is_down_is_asked_once_and_its_pause_is_handed_on() {
    for (answer, pause, expected) in [
        (Err(http::Error::Connect), None, 0),
        (Err(http::Error::Timeout), None, 0),
        (Ok(503), Some(120), 120_000),
        (Ok(429), Some(7), 7_000),
    ] {
        let fake = Fake::answering(&[(A, answer)]);
        fake.retry_after.set(pause);
        let events = ["a", "b", "c"].map(|name| event(name, "manifest.pushed", name));
        assert_eq!(
            fake.run(TO_A, &events),
            [1, 2, 3].map(|_| Outcome::Retry(expected))
        );
        assert_eq!(fake.urls().len(), 1);
    }
}

#[test]
fn a_receiver_that_is_gone_drops_the_event_unless_another_took_it() {
    let fake = Fake::answering(&[(A, Ok(410))]);
    let dropped = Outcome::dropped("the receiver is gone (410)");
    assert_eq!(fake.run(TO_A, &[pushed()]), [dropped]);
    assert_eq!(fake.run(TO_BOTH, &[pushed()]), [Outcome::Delivered]);
}

#[test]
fn nothing_is_begun_that_the_call_has_no_time_for() {
    let fake = Fake::default();
    fake.remaining_ms.set(Some(200));
    assert_eq!(fake.run(TO_A, &[pushed()]), [Outcome::Retry(0)]);
    assert_eq!(fake.urls().len(), 0);
    fake.remaining_ms.set(Some(1250));
    assert_eq!(fake.run(TO_A, &[pushed()]), [Outcome::Delivered]);
    assert_eq!(fake.sent.take()[0].timeout_ms, Some(1000));
}

#[test]
fn an_endpoint_gets_what_it_asked_for() {
    let kinds = [
        "manifest.pushed",
        "tag.moved",
        "blob.pushed",
        "blob.mounted",
        "manifest.pulled",
        "blob.pulled",
        "manifest.deleted",
        "tag.deleted",
        "blob.deleted",
        "request.denied",
        "something.new",
    ];
    for (rest, expected) in [
        (r#""format":"distribution""#, "1 1111111  "),
        (r#""format":"cloudevents""#, "11  1 11 1 "),
        (r#""format":"cloudevents","blobs":true"#, "1111111111 "),
        (
            r#""format":"slack","events":["denial","tag"]"#,
            " 1       1 ",
        ),
        (r#""events":["pull"],"blobs":false"#, "    1      "),
        (r#""repositories":["apps/*"]"#, "           "),
    ] {
        let config = format!(r#"{{"endpoints":[{{"url":"https://a.example/x",{rest}}}]}}"#);
        let fake = Fake::default();
        let told: String = kinds
            .map(|kind| {
                let outcomes = fake.run(&config, &[event("1", kind, "other/web")]);
                assert_eq!(outcomes, [Outcome::Delivered], "{kind}");
                if fake.urls().is_empty() { ' ' } else { '1' }
            })
            .iter()
            .collect();
        assert_eq!(told, expected, "{rest}");
    }
}

#[test]
fn a_configuration_that_would_not_work_is_refused_with_its_place() {
    for (config, expected) in [
        ("{}", "/endpoints"),
        (r#"{"endpoints":[{"url":"hooks"}]}"#, "/endpoints/0/url"),
        (
            r#"{"endpoints":[{"url":"https://a/","events":["tag"]}]}"#,
            "/endpoints/0/events",
        ),
        (
            r#"{"endpoints":[{"url":"https://a/","events":["explosion"]}]}"#,
            "/endpoints/0/events/0",
        ),
        (
            r#"{"endpoints":[{"url":"https://a/","timeout_ms":0}]}"#,
            "/endpoints/0/timeout_ms",
        ),
        (
            r#"{"endpoints":[{"url":"https://a/","timout_ms":1}]}"#,
            "/endpoints/0/timout_ms",
        ),
    ] {
        let mut issues = Issues::default();
        Webhook::new(parse_config(config, &mut issues), &mut issues);
        let found: Vec<_> = issues.iter().map(|(pointer, ..)| pointer).collect();
        assert!(issues.are_fatal(), "{config}");
        assert!(found.contains(&expected), "{config}: {found:?}");
    }
}

#[test]
fn the_schema_says_that_each_endpoint_is_a_receiver_and_describes_its_keys() {
    let schema: serde_json::Value = serde_json::from_str(Webhook::CONFIG_SCHEMA).unwrap();
    assert_eq!(
        schema["properties"]["endpoints"]["x-gantry-receivers"],
        "url"
    );
    let keys = schema["properties"]["endpoints"]["items"]["properties"]
        .as_object()
        .unwrap()
        .keys();
    assert_eq!(
        keys.map(String::as_str).collect::<Vec<_>>(),
        [
            "url",
            "events",
            "repositories",
            "format",
            "blobs",
            "references",
            "headers",
            "sign_with",
            "timeout_ms"
        ]
    );
}
