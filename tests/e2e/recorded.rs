//! What clients send that are not on every machine: oras 1.2, helm 3.18, cosign 2.5 and buildkitd 0.23 as recorded against the gateway;
//! kaniko, which shares cosign's registry client, as its source sends it. Each story is a table of requests.
//!
//! A line is `STATUS METHOD PATH key=value…`. PATH is below `/v2/REPOSITORY/`, or absolute when it begins with a slash. `{NAME}` is the digest of a
//! content, `{NAME-}` the same with a dash for its colon, `{at}` the last `Location`; `body=NAME` sends a content, `is=NAME` expects one back.

use std::{collections::BTreeMap, fs};

use bytes::Bytes;
use serde_json::{Value, json};
use tests::{
    Gateway, Origin, Wire,
    gateway::{USER, usual_config},
    image::{Content, INDEX, MANIFEST},
    wire::{Answer, with_query},
};

const ARTIFACTS: &str = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.oci.artifact.manifest.v1+json";
const GGCR: &str = "application/vnd.docker.distribution.manifest.v1+json,application/vnd.docker.distribution.manifest.v1+prettyjws,application/vnd.docker.distribution.manifest.v2+json,application/vnd.oci.image.manifest.v1+json,application/vnd.docker.distribution.manifest.list.v2+json,application/vnd.oci.image.index.v1+json";
const CONTAINERD: &str = "application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
const BYTES: &str = "application/octet-stream";

const ORAS_PUSH: &str = "
404 HEAD manifests/{artifact} accept=ARTIFACTS
404 HEAD blobs/{empty}
404 HEAD blobs/{file}
202 POST blobs/uploads/
201 PUT {at} digest={empty} type=BYTES body=empty
202 POST blobs/uploads/
201 PUT {at} digest={file} type=BYTES body=file
201 PUT manifests/v1 type=MANIFEST body=artifact
200 HEAD manifests/v1 accept=ARTIFACTS
201 PUT manifests/v2 type=MANIFEST body=artifact";
const ORAS_ATTACH: &str = "
200 HEAD manifests/v1 accept=ARTIFACTS
404 HEAD manifests/{attached} accept=ARTIFACTS
200 HEAD blobs/{empty}
404 HEAD blobs/{note}
202 POST blobs/uploads/
201 PUT {at} digest={note} type=BYTES body=note
201 PUT manifests/{attached} type=MANIFEST body=attached subject={artifact}";
/// `oras attach --distribution-spec v1.1-referrers-tag`, and what oras does at a registry without the referrers API.
const ORAS_ATTACH_BY_TAG: &str = "
200 HEAD manifests/v1 accept=ARTIFACTS
404 HEAD manifests/{attached} accept=ARTIFACTS
202 POST blobs/uploads/
201 PUT {at} digest={note} type=BYTES body=note
201 PUT manifests/{attached} type=MANIFEST body=attached
404 GET manifests/{artifact-} accept=ARTIFACTS
201 PUT manifests/{artifact-} type=INDEX body=referrers";
const ORAS_READ: &str = "
200 HEAD manifests/v1 accept=ARTIFACTS
200 GET referrers/{artifact} lists={attached}
200 GET manifests/v1 accept=ARTIFACTS is=artifact
200 GET manifests/{attached} accept=MANIFEST is=attached
200 GET blobs/{file} is=file
200 GET blobs/{note} is=note
200 GET tags/list";
const ORAS_COPY: &str = "
404 HEAD blobs/{file}
201 POST blobs/uploads/?mount={file}&from=SOURCE
201 POST blobs/uploads/?mount={empty}&from=SOURCE
201 PUT manifests/{artifact} type=MANIFEST body=artifact
200 GET manifests/{artifact} accept=MANIFEST is=artifact
201 PUT manifests/v1 type=MANIFEST body=artifact
202 DELETE manifests/{artifact}
404 GET manifests/v1 accept=ARTIFACTS";

const HELM_PUSH: &str = "
404 HEAD manifests/{chart} accept=ARTIFACTS
404 HEAD blobs/{package}
202 POST blobs/uploads/
201 PUT {at} digest={package} type=BYTES body=package
404 HEAD blobs/{helm}
202 POST blobs/uploads/
201 PUT {at} digest={helm} type=BYTES body=helm
201 PUT manifests/{chart} type=MANIFEST body=chart
200 GET manifests/{chart} accept=MANIFEST is=chart
201 PUT manifests/0.1.0 type=MANIFEST body=chart";
const HELM_READ: &str = "
200 GET tags/list
200 HEAD manifests/0.1.0 accept=ARTIFACTS
200 GET manifests/0.1.0 accept=ARTIFACTS is=chart
200 GET manifests/{chart} accept=MANIFEST is=chart
200 GET blobs/{helm} is=helm
200 GET blobs/{package} is=package";

/// As `cosign sign`: the signature lies under a tag that is made of the digest. `cosign attest` does the same with `.att`.
const COSIGN_SIGN: &str = "
200 GET manifests/v1 accept=GGCR is=artifact
404 GET manifests/{artifact-}.sig accept=GGCR
404 HEAD blobs/{payload}
202 POST blobs/uploads/ type=application/json
202 PATCH {at} type=BYTES body=payload
201 PUT {at} digest={payload} type=BYTES
404 HEAD blobs/{signer}
202 POST blobs/uploads/ type=application/json
202 PATCH {at} type=BYTES body=signer
201 PUT {at} digest={signer} type=BYTES
404 HEAD manifests/{artifact-}.sig accept=GGCR
201 PUT manifests/{artifact-}.sig type=MANIFEST body=signature";
const COSIGN_VERIFY: &str = "
200 HEAD manifests/v1 accept=GGCR
200 GET manifests/{artifact-}.sig accept=GGCR is=signature
200 GET blobs/{payload} is=payload
200 GET blobs/{signer} is=signer
404 GET manifests/{artifact-}.att accept=GGCR
200 GET referrers/{artifact} accept=INDEX";

/// kaniko's layer cache: an image of one layer under a tag that is a hash, mounted or pushed in one piece.
const KANIKO_PUSH: &str = "
404 GET manifests/8ba28bcee7b2bfa8a10bbd1b6ae2a8f3 accept=GGCR
404 HEAD blobs/{layer}
202 POST blobs/uploads/?from=SOURCE&mount={layer} type=application/json
202 PATCH {at} type=BYTES body=layer
201 PUT {at} digest={layer} type=BYTES
404 HEAD blobs/{config}
202 POST blobs/uploads/ type=application/json
202 PATCH {at} type=BYTES body=config
201 PUT {at} digest={config} type=BYTES
404 HEAD manifests/8ba28bcee7b2bfa8a10bbd1b6ae2a8f3 accept=GGCR
201 PUT manifests/8ba28bcee7b2bfa8a10bbd1b6ae2a8f3 type=DOCKER body=cached";
const KANIKO_READ: &str = "
200 GET manifests/8ba28bcee7b2bfa8a10bbd1b6ae2a8f3 accept=GGCR is=cached
200 GET blobs/{config} is=config
200 GET blobs/{layer} is=layer";

/// The export of `cache-to=type=registry`: an index whose children are blobs.
const BUILDKIT_EXPORT: &str = "
404 HEAD blobs/{layer} accept=LAYER
202 POST blobs/uploads/
201 PUT {at} digest={layer} type=BYTES body=layer
404 HEAD blobs/{state} accept=STATE
202 POST blobs/uploads/
201 PUT {at} digest={state} type=BYTES body=state
404 HEAD manifests/cache accept=INDEX_OR_ANY
201 PUT manifests/cache type=INDEX body=cache";
const BUILDKIT_IMPORT: &str = "
200 HEAD manifests/cache accept=CONTAINERD
200 GET manifests/{cache} accept=INDEX_OR_ANY is=cache
200 GET blobs/{state} accept=STATE is=state
200 GET blobs/{layer} accept=LAYER is=layer
206 GET blobs/{layer} range=bytes=0- is=layer";

const DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";

fn contents() -> BTreeMap<&'static str, Content> {
    let empty = Content::new("{}");
    let text = |text: &str| Content::new(text.to_owned());
    let mut all = BTreeMap::from([
        ("empty", empty.clone()),
        ("file", text("hello\n")),
        ("note", text("a note\n")),
        (
            "helm",
            text(r#"{"name":"app","version":"0.1.0","apiVersion":"v2"}"#),
        ),
        ("package", Content::random(4162)),
        (
            "payload",
            text(r#"{"critical":{"type":"cosign container image signature"}}"#),
        ),
        (
            "signer",
            text(r#"{"architecture":"","rootfs":{"type":"layers","diff_ids":[]}}"#),
        ),
        ("layer", Content::random(300_000)),
        (
            "config",
            text(r#"{"architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}"#),
        ),
        (
            "state",
            text(r#"{"layers":[{"blob":"sha256:0","parent":-1}],"records":[]}"#),
        ),
    ]);
    let image = |all: &BTreeMap<_, Content>,
                 (config, kind): (&str, &str),
                 (layer, of): (&str, &str),
                 more: Value| {
        let mut image = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": all[config].descriptor(kind), "layers": [all[layer].descriptor(of)] });
        for (field, value) in more.as_object().unwrap() {
            image[field] = value.clone();
        }
        Content::new(image.to_string())
    };
    let none = ("empty", "application/vnd.oci.empty.v1+json");
    let artifact = image(
        &all,
        none,
        ("file", "text/plain"),
        json!({ "artifactType": "application/vnd.acme.x" }),
    );
    let subject = artifact.descriptor(MANIFEST);
    let attached = json!({ "artifactType": "application/vnd.acme.note", "subject": subject });
    let attached = image(
        &all,
        none,
        ("note", "application/vnd.oci.image.layer.v1.tar"),
        attached,
    );
    let mut referrer = attached.descriptor(MANIFEST);
    referrer["artifactType"] = json!("application/vnd.acme.note");
    let referrers = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [referrer] });
    let helm = ("helm", "application/vnd.cncf.helm.config.v1+json");
    let package = (
        "package",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
    );
    let signer = ("signer", "application/vnd.oci.image.config.v1+json");
    let payload = (
        "payload",
        "application/vnd.dev.cosign.simplesigning.v1+json",
    );
    let config = ("config", "application/vnd.docker.container.image.v1+json");
    let layer = ("layer", "application/vnd.docker.image.rootfs.diff.tar.gzip");
    let docker = json!({ "mediaType": DOCKER });
    let cache = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        all["layer"].descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
        all["state"].descriptor("application/vnd.buildkit.cacheconfig.v0"),
    ] });
    let documents = [
        ("chart", image(&all, helm, package, json!({}))),
        ("signature", image(&all, signer, payload, json!({}))),
        ("cached", image(&all, config, layer, docker)),
        ("artifact", artifact),
        ("attached", attached),
        ("referrers", Content::new(referrers.to_string())),
        ("cache", Content::new(cache.to_string())),
    ];
    all.extend(documents);
    all
}

fn named(text: &str) -> &str {
    match text {
        "ARTIFACTS" => ARTIFACTS,
        "GGCR" => GGCR,
        "CONTAINERD" => CONTAINERD,
        "LAYER" => "application/vnd.oci.image.layer.v1.tar+gzip, */*",
        "STATE" => "application/vnd.buildkit.cacheconfig.v0, */*",
        "INDEX_OR_ANY" => "application/vnd.oci.image.index.v1+json, */*",
        "BYTES" => BYTES,
        "MANIFEST" => MANIFEST,
        "INDEX" => INDEX,
        "DOCKER" => DOCKER,
        other => other,
    }
}

/// A client that tells its stories to a repository.
struct Teller<'a> {
    contents: &'a BTreeMap<&'static str, Content>,
    wire: Wire,
    repository: String,
}

impl<'a> Teller<'a> {
    /// With a token of the scopes that the client asks for.
    fn new(port: u16, repository: &str, contents: &'a BTreeMap<&'static str, Content>) -> Self {
        let scope = format!("repository:{repository}:pull,push,delete");
        let source = "repository:apps/source:pull";
        let token = Wire::basic(port, USER).token(&[&scope, source]);
        Self {
            contents,
            wire: Wire::bearer(port, &token),
            repository: repository.to_owned(),
        }
    }

    fn filled(&self, text: &str, at: &str) -> String {
        let mut text = text.replace("{at}", at).replace("SOURCE", "apps/source");
        for (name, content) in self.contents {
            text = text.replace(&format!("{{{name}}}"), &content.digest);
            text = text.replace(&format!("{{{name}-}}"), &content.digest.replace(':', "-"));
        }
        text
    }

    fn tells(&self, story: &str) {
        let mut at = String::new();
        for line in story.lines().filter(|line| !line.is_empty()) {
            let answer = self.sends(line, &at);
            if !answer.header("location").is_empty() {
                at = answer.location();
            }
        }
    }

    fn sends(&self, line: &str, at: &str) -> Answer {
        let mut words = line.split(' ');
        let (status, method, path) = (
            words.next().unwrap(),
            words.next().unwrap(),
            words.next().unwrap(),
        );
        let facts: BTreeMap<&str, &str> = words.map(|word| word.split_once('=').unwrap()).collect();
        let mut path = self.filled(path, at);
        if !path.starts_with('/') && !path.starts_with("http") {
            path = format!("/v2/{}/{path}", self.repository);
        }
        if let Some(digest) = facts.get("digest") {
            let digest = self.filled(digest, at).replace(':', "%3A");
            path = with_query(&path, &format!("digest={digest}"));
        }
        let headers = [
            ("accept", "accept"),
            ("type", "content-type"),
            ("range", "range"),
        ];
        let headers = headers
            .into_iter()
            .filter_map(|(fact, header)| Some((header, named(facts.get(fact)?))));
        let headers: Vec<(&str, &str)> = headers.collect();
        let body = facts
            .get("body")
            .map_or_else(Bytes::new, |name| self.contents[name].bytes.clone());
        let answer = self.wire.send(method, &path, &headers, body);
        assert_eq!(
            answer.status.as_u16().to_string(),
            status,
            "{}: {line}: {answer:?}",
            self.repository
        );
        if let Some(name) = facts.get("is") {
            assert!(
                answer.body == self.contents[name].bytes,
                "{line}: {answer:?}"
            );
        }
        if let Some(subject) = facts.get("subject") {
            assert_eq!(
                answer.header("oci-subject"),
                self.filled(subject, at),
                "{line}"
            );
        }
        if let Some(listed) = facts.get("lists") {
            let found = answer.json()["manifests"][0]["digest"].clone();
            assert_eq!(found, self.filled(listed, at), "{line}");
        }
        answer
    }
}

/// What each client pushes, and what it reads afterwards.
const STORIES: [(&str, &[&str], &[&str]); 6] = [
    ("oras", &[ORAS_PUSH, ORAS_ATTACH], &[ORAS_READ]),
    (
        "oras-by-tag",
        &[ORAS_PUSH, ORAS_ATTACH_BY_TAG],
        &[ORAS_READ],
    ),
    ("helm", &[HELM_PUSH], &[HELM_READ]),
    ("cosign", &[ORAS_PUSH, COSIGN_SIGN], &[COSIGN_VERIFY]),
    ("kaniko", &[KANIKO_PUSH], &[KANIKO_READ]),
    ("buildkit", &[BUILDKIT_EXPORT], &[BUILDKIT_IMPORT]),
];

fn config(mirrors: &str) -> String {
    let config = usual_config(mirrors, "");
    config.replace(
        r#""team/**"] }"#,
        r#""team/**"], or_upstream: ["up/own/**"] }"#,
    )
}

#[test]
fn what_artifact_and_build_clients_send_works_hosted_claimed_and_mirrored() {
    let contents = contents();
    let upstream = Gateway::usual();
    let entry = format!(
        "  up: {{ url: \"http://{}\", credentials: {{ username: {}, password: {{ file: ./upstream.password }} }} }}\n",
        upstream.host(),
        USER.0
    );
    let gateway = Gateway::start_with(&config(&entry), |folder| {
        fs::write(folder.join("upstream.password"), USER.1).unwrap();
    });
    for (client, pushes, reads) in STORIES {
        let there = Teller::new(upstream.port, &format!("team/{client}"), &contents);
        let hosted = Teller::new(gateway.port, &format!("team/{client}"), &contents);
        let claimed = Teller::new(gateway.port, &format!("up/own/{client}"), &contents);
        let mirrored = Teller::new(gateway.port, &format!("up/team/{client}"), &contents);
        for teller in [&there, &hosted, &claimed] {
            pushes
                .iter()
                .chain(reads)
                .for_each(|story| teller.tells(story));
        }
        reads.iter().for_each(|story| mirrored.tells(story));
    }
    let source = Teller::new(gateway.port, "apps/source", &contents);
    source.tells(ORAS_PUSH);
    Teller::new(gateway.port, "team/copy", &contents).tells(ORAS_COPY);
}

#[test]
fn a_registry_without_the_referrers_api_is_mirrored_for_artifact_clients() {
    let contents = contents();
    let origin = Origin::start();
    let gateway = Gateway::start(&config(&origin.mirror_entry("up", "")));
    let direct = origin.direct();
    for (name, media_type, reference) in [
        ("artifact", MANIFEST, "v1"),
        ("attached", MANIFEST, ""),
        ("referrers", INDEX, "fallback"),
    ] {
        for blob in ["empty", "file", "note"] {
            direct.push_blob("team/oras", &contents[blob]).expect(201);
        }
        let reference = match reference {
            "" => contents[name].digest.clone(),
            "fallback" => contents["artifact"].digest.replace(':', "-"),
            tag => tag.to_owned(),
        };
        let bytes = contents[name].bytes.clone();
        direct
            .push_manifest("team/oras", &reference, media_type, bytes)
            .expect(201);
    }
    Teller::new(gateway.port, "up/team/oras", &contents).tells(ORAS_READ);
}

#[test]
fn clients_log_in_by_the_challenge_with_get_and_with_a_form() {
    let gateway = Gateway::usual();
    let challenge = Wire::anonymous(gateway.port)
        .get("/v2/")
        .has(401)
        .header("www-authenticate");
    let realm = challenge.split('"').nth(1).unwrap().to_owned();
    let (user, password) = USER;
    let form = format!(
        "client_id=helm&grant_type=password&password={password}&service=test&username={user}"
    );
    let wire = Wire::anonymous(gateway.port);
    let by_form = wire.send(
        "POST",
        &realm,
        &[("content-type", "application/x-www-form-urlencoded")],
        form,
    );
    let by_form = by_form.has(200).json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let by_get = Wire::basic(gateway.port, USER).token(&[]);
    for token in [by_form, by_get] {
        Wire::bearer(gateway.port, &token).get("/v2/").expect(200);
    }
}
