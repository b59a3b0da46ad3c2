//! A repository answers from bytes that are here only when they were pushed to it or its own upstream delivered them: whoever names a
//! digest, in whatever way, reads nothing of what lies in another place.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{OTHER, USER, program},
    guests::component,
    image::{Content, INDEX, MANIFEST},
    tools::run,
    wire::Answer,
};

use crate::reload;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// From here on a blob comes in parts.
const LARGE: usize = 17 << 20;
/// May pull from the caller-authorized mirror.
const CAROL: (&str, &str) = ("carol", "Zeisig-4711");
const GATEWAY: (&str, &str) = ("gateway", "Gruenfink-42");

// --- an upstream that does what an attacker wants ---

type Place = (String, String);

/// What the stranger's registry has and says.
#[derive(Debug, Default)]
struct Script {
    /// Manifests by repository and reference.
    manifests: HashMap<Place, (String, Bytes)>,
    /// Blobs by repository and digest.
    blobs: HashMap<Place, Bytes>,
    /// What HEAD says of blobs that it does not have: their length.
    heads: HashMap<Place, usize>,
    /// Requests, as `METHOD path`.
    seen: Vec<String>,
}

/// A registry of an attacker's making.
struct Stranger {
    port: u16,
    script: Arc<Mutex<Script>>,
}

impl Stranger {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::<Mutex<Script>>::default();
        let shared = Arc::clone(&script);
        // Ends with the process, as its only state is the test's.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let script = Arc::clone(&shared);
                thread::spawn(move || answer(&stream, &script));
            }
        });
        Self { port, script }
    }

    fn manifest(&self, repository: &str, tag: &str, media_type: &str, content: &Content) {
        let mut script = self.script.lock().unwrap();
        for reference in [tag, &content.digest] {
            let place = (repository.to_owned(), reference.to_owned());
            let manifest = (media_type.to_owned(), content.bytes.clone());
            script.manifests.insert(place, manifest);
        }
    }

    fn blob(&self, repository: &str, content: &Content) {
        let place = (repository.to_owned(), content.digest.clone());
        let mut script = self.script.lock().unwrap();
        script.blobs.insert(place, content.bytes.clone());
    }

    fn lie(&self, repository: &str, content: &Content, size: usize) {
        let place = (repository.to_owned(), content.digest.clone());
        self.script.lock().unwrap().heads.insert(place, size);
    }

    fn asked(&self, what: &str) -> usize {
        let script = self.script.lock().unwrap();
        script.seen.iter().filter(|line| *line == what).count()
    }
}

fn answer(stream: &TcpStream, script: &Mutex<Script>) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let headers: Vec<String> = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .collect();
    let (method, path) = first.split_once(' ')?;
    let path = path.split_whitespace().next()?.to_owned();
    let mut script = script.lock().unwrap();
    script.seen.push(format!("{method} {path}"));
    let rest = path.strip_prefix("/v2/")?;
    let (status, media_type, digest, body, length) = respond(&script, method, rest);
    drop(script);
    let range = headers.iter().find_map(|line| {
        let range = line.to_ascii_lowercase();
        let (from, to) = range.strip_prefix("range: bytes=")?.split_once('-')?;
        let from: usize = from.parse().ok()?;
        Some((from, to.parse().unwrap_or(usize::MAX)))
    });
    let mut out = stream;
    let mut head = format!("content-type: {media_type}\r\nconnection: close\r\n");
    if !digest.is_empty() {
        head += &format!("docker-content-digest: {digest}\r\n");
    }
    let whole = body.len();
    let part = match range.filter(|_| status == 200 && method == "GET") {
        Some((from, to)) if from < whole => {
            let to = to.min(whole - 1);
            head += &format!("content-range: bytes {from}-{to}/{whole}\r\n");
            Some(body.slice(from..=to))
        }
        _ => None,
    };
    let status = if part.is_some() { 206 } else { status };
    let body = part.unwrap_or(body);
    let length = if method == "HEAD" { length } else { body.len() };
    let answer = format!("HTTP/1.1 {status} X\r\n{head}content-length: {length}\r\n\r\n");
    out.write_all(answer.as_bytes()).ok()?;
    if method != "HEAD" {
        out.write_all(&body).ok()?;
    }
    out.flush().ok()?;
    out.shutdown(std::net::Shutdown::Write).ok()?;
    let mut rest = [0; 64];
    out.read(&mut rest).ok().map(|_| ())
}

/// Status, media type, digest, body, and the length that HEAD says.
fn respond(script: &Script, method: &str, rest: &str) -> (u16, String, String, Bytes, usize) {
    let json = "application/json".to_owned();
    for kind in ["/manifests/", "/blobs/"] {
        let Some((repository, reference)) = rest.split_once(kind) else {
            continue;
        };
        let place = (repository.to_owned(), reference.to_owned());
        if let Some((media_type, bytes)) = script.manifests.get(&place)
            && kind == "/manifests/"
        {
            let digest = Content::new(bytes.clone()).digest;
            let length = bytes.len();
            return (200, media_type.clone(), digest, bytes.clone(), length);
        }
        let blob = script.blobs.get(&place).filter(|_| kind == "/blobs/");
        if let Some(bytes) = blob {
            let binary = "application/octet-stream".to_owned();
            return (
                200,
                binary,
                reference.to_owned(),
                bytes.clone(),
                bytes.len(),
            );
        }
        let lie = script.heads.get(&place).filter(|_| method == "HEAD");
        if let Some(length) = lie {
            let binary = "application/octet-stream".to_owned();
            return (200, binary, reference.to_owned(), Bytes::new(), *length);
        }
    }
    if rest.is_empty() {
        return (200, json, String::new(), Bytes::from_static(b"{}"), 2);
    }
    let body = Bytes::from_static(br#"{"errors":[{"code":"NOT_FOUND","message":"not here"}]}"#);
    let length = body.len();
    (404, json, String::new(), body, length)
}

// --- secrets ---

/// Where a secret lives.
const PLACES: [&str; 4] = ["hosted", "other-mirror", "callers-mirror", "same-mirror"];
/// The ways to name it elsewhere.
const NAMINGS: [&str; 15] = [
    "config",
    "config-urls",
    "layer",
    "layer-urls",
    "index-child",
    "nested-index",
    "subject",
    "head-lie",
    "head-lie-named",
    "mount",
    "prefetch",
    "warm",
    "parallel",
    "or-upstream",
    "changed-url",
];

/// An image nobody but its readers may see, with a mark in each of its parts.
struct Secret {
    place: &'static str,
    mark: String,
    image: Image,
    subject: Content,
}

impl Secret {
    fn new(place: &'static str) -> Self {
        let mark = format!("SECRET-OF-{place}-");
        let subject = Content::random(20);
        let layer = Content::new(mark.repeat(200));
        let mut large = mark.repeat(LARGE / mark.len() + 1).into_bytes();
        large.truncate(LARGE);
        let config = Content::new(json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": { "is": mark } } }).to_string());
        let large = Content::new(large);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.descriptor(LAYER), large.descriptor(LAYER)],
            "subject": subject.descriptor(MANIFEST),
            "annotations": { "is": mark },
        });
        let image = Image {
            manifest: Content::new(manifest.to_string()),
            config,
            layers: vec![layer, large],
        };
        Self {
            place,
            mark,
            image,
            subject,
        }
    }

    /// Everything that is to stay secret.
    fn parts(&self) -> Vec<&Content> {
        self.image.blobs().chain([&self.image.manifest]).collect()
    }

    fn is_shown(&self, answer: &Answer) -> bool {
        let body = String::from_utf8_lossy(&answer.body);
        body.contains(&self.mark) || format!("{:?}", answer.headers).contains(&self.mark)
    }
}

fn with_urls(mut descriptor: Value) -> Value {
    descriptor["urls"] = json!(["https://example.invalid/layer"]);
    descriptor
}

fn image_of(config: &Value, layers: &[Value]) -> Content {
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    });
    Content::new(manifest.to_string())
}

fn index_of(children: &[Value]) -> Content {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
    Content::new(index.to_string())
}

fn empty() -> Content {
    Content::new("{}")
}

/// The documents by which a naming names the secret: media type, content.
fn documents(naming: &str, secret: &Secret) -> Vec<(&'static str, Content)> {
    let own = empty().descriptor("application/vnd.oci.empty.v1+json");
    let as_layers: Vec<Value> = secret
        .parts()
        .iter()
        .map(|part| part.descriptor(LAYER))
        .collect();
    let elsewhere: Vec<Value> = as_layers.iter().cloned().map(with_urls).collect();
    let as_children: Vec<Value> = secret
        .parts()
        .iter()
        .map(|part| part.descriptor(MANIFEST))
        .collect();
    let as_config = |part: &&Content| part.descriptor("application/vnd.oci.image.config.v1+json");
    match naming {
        "config" => secret
            .parts()
            .iter()
            .map(as_config)
            .map(|it| (MANIFEST, image_of(&it, &[])))
            .collect(),
        "config-urls" => secret
            .parts()
            .iter()
            .map(as_config)
            .map(|it| (MANIFEST, image_of(&with_urls(it), &[])))
            .collect(),
        "layer-urls" => vec![(MANIFEST, image_of(&own, &elsewhere))],
        "index-child" => vec![(INDEX, index_of(&as_children))],
        "nested-index" => {
            let inner = index_of(&as_children);
            let outer = index_of(&[inner.descriptor(INDEX)]);
            vec![(INDEX, inner), (INDEX, outer)]
        }
        "subject" => {
            let mut manifest: Value = serde_json::from_slice(&image_of(&own, &[]).bytes).unwrap();
            manifest["subject"] = secret.image.manifest.descriptor(MANIFEST);
            vec![(MANIFEST, Content::new(manifest.to_string()))]
        }
        "or-upstream" => vec![
            (INDEX, index_of(&as_children)),
            (MANIFEST, image_of(&own, &elsewhere)),
        ],
        "head-lie" => Vec::new(),
        _ => vec![(MANIFEST, image_of(&own, &as_layers))],
    }
}

// --- the world ---

struct World {
    stranger: Stranger,
    other: Origin,
    closed: Origin,
    gateway: Gateway,
    secrets: Vec<Secret>,
}

fn config(
    stranger: u16,
    other: &Origin,
    closed: &Origin,
    moved: u16,
    digests: &[String],
) -> String {
    let digests = digests.join(", ");
    let strange = |name: &str, more: &str| {
        format!("  {name}: {{ url: \"http://127.0.0.1:{stranger}\"{more} }}\n")
    };
    let mirrors = [
        strange("strange", ""),
        strange("early", ", prefetch: true"),
        strange("wide", ", parallel: { ranges: 2, from: 16MiB }"),
        format!("  moved: {{ url: \"http://127.0.0.1:{moved}\" }}\n"),
        other.mirror_entry("other", ""),
        closed.mirror_entry("closed", ", credentials: { username: gateway, password: { file: ./own } }, callers: { authorized_by: upstream, remember_for: 60s }"),
    ]
    .concat();
    format!(
        r#"
audit: {{ file: ./audit.jsonl }}
hosted: {{ names: ["apps/**"], or_upstream: ["strange/layered/**"] }}
mirrors:
{mirrors}
plugins:
  - name: people
    from: builtin:htpasswd
    config: {{ users: {{ file: ./htpasswd }} }}
  - name: access
    from: builtin:access
    config:
      rules:
        - {{ who: [anonymous], may: [pull], what: ["strange/**", "early/**", "wide/**", "moved/**"] }}
        - {{ who: ["user:{mallory}"], may: [pull, push], what: ["apps/mine/**", "strange/**"] }}
        - {{ who: ["user:{owner}", "upstream:*"], may: [pull, push, delete, catalog, admin], what: ["**"] }}
  - name: curious
    from: ./curious.wasm
    repositories: ["strange/**", "early/**", "wide/**", "moved/**"]
    changes: [serve-manifest]
    grants: {{ registry: ["**"] }}
    config: {{ digests: [{digests}] }}
"#,
        mallory = OTHER.0,
        owner = USER.0,
    )
}

fn start(secrets: Vec<Secret>) -> World {
    let (stranger, other, closed) = (Stranger::start(), Origin::start(), Origin::start());
    for secret in &secrets {
        let image = &secret.image;
        let moved = format!("moved-{}", secret.place);
        other.push(&moved, "v1", image);
        match secret.place {
            "other-mirror" => other.push("team/secret", "v1", image),
            "callers-mirror" => closed.push("team/secret", "v1", image),
            "same-mirror" => {
                image
                    .blobs()
                    .for_each(|blob| stranger.blob("own/secret", blob));
                stranger.manifest("own/secret", "v1", MANIFEST, &image.manifest);
            }
            _ => {}
        }
    }
    let doors = closed.guard();
    doors.account(GATEWAY, &["**"]);
    doors.account(CAROL, &["team/secret"]);
    let digests: Vec<String> = secrets
        .iter()
        .flat_map(|secret| secret.parts().into_iter().chain([&secret.subject]))
        .map(|part| format!("\"{}\"", part.digest))
        .collect();
    let configured = |moved| config(stranger.port, &other, &closed, moved, &digests);
    let gateway = Gateway::start_with(&configured(other.port), |folder| {
        fs::write(folder.join("own"), GATEWAY.1).unwrap();
        fs::copy(component("curious"), folder.join("curious.wasm")).unwrap();
    });
    let owner = Wire::basic(gateway.port, USER);
    for secret in &secrets {
        let image = &secret.image;
        let (wire, name) = match secret.place {
            "hosted" => {
                owner.push_image("apps/secret", "v1", image);
                (owner.clone(), "apps/secret")
            }
            "other-mirror" => (owner.clone(), "other/team/secret"),
            "callers-mirror" => (Wire::basic(gateway.port, CAROL), "closed/team/secret"),
            // The plugin shows what its owner may see there, so only the blobs are pulled.
            _ => {
                for blob in image.blobs() {
                    let path = format!("/v2/strange/own/secret/blobs/{}", blob.digest);
                    assert!(owner.get(&path).expect(200).body == blob.bytes);
                }
                continue;
            }
        };
        wire.pull_image(name, "v1", image);
        // The plugin refuses it with what it may read there; it is stored all the same.
        drop(owner.get(&format!("/v2/moved/moved-{}/manifests/v1", secret.place)));
        for blob in image.blobs() {
            let path = format!("/v2/moved/moved-{}/blobs/{}", secret.place, blob.digest);
            assert!(owner.get(&path).expect(200).body == blob.bytes);
        }
    }
    gateway.settled();
    gateway.write_config(&configured(stranger.port));
    reload::wait_generation(&gateway, 2);
    World {
        stranger,
        other,
        closed,
        gateway,
        secrets,
    }
}

impl World {
    /// Names the secret in a repository of the attacker's; the repository and who reads it.
    fn name_it(&self, naming: &str, secret: &Secret) -> (String, Wire) {
        let remote = match naming {
            "or-upstream" => format!("layered/{}", secret.place),
            "changed-url" => format!("moved-{}", secret.place),
            naming => format!("pub/{}-{naming}", secret.place),
        };
        let mirror = match naming {
            "prefetch" => "early",
            "parallel" => "wide",
            "changed-url" => "moved",
            _ => "strange",
        };
        let repository = format!("{mirror}/{remote}");
        let anonymous = Wire::anonymous(self.gateway.port);
        let documents = documents(naming, secret);
        self.stranger.blob(&remote, &empty());
        if matches!(
            naming,
            "head-lie" | "head-lie-named" | "prefetch" | "parallel"
        ) {
            // Of its own content a HEAD is the upstream's word, unless it gets the length wrong.
            let more = usize::from(secret.place == "same-mirror");
            for part in secret.parts() {
                self.stranger.lie(&remote, part, part.bytes.len() + more);
            }
        }
        let mallory = Wire::basic(self.gateway.port, OTHER);
        if naming == "or-upstream" {
            mallory.push_blob(&repository, &empty()).expect(201);
            for (media_type, content) in &documents {
                let path = &content.digest;
                mallory
                    .push_manifest(&repository, path, media_type, content.bytes.clone())
                    .expect(201);
            }
            return (repository, mallory);
        }
        for (number, (media_type, content)) in documents.iter().enumerate() {
            let tag = format!("v{number}");
            self.stranger.manifest(&remote, &tag, media_type, content);
            if naming == "warm" {
                self.warm(&format!("{repository}:{tag}"));
            }
            let answer = anonymous.get(&format!("/v2/{repository}/manifests/{tag}"));
            self.check(&answer, &format!("{naming} {tag} names what"), false);
            let digest = &content.digest;
            drop(anonymous.get(&format!("/v2/{repository}/manifests/{digest}")));
        }
        if naming == "mount" {
            let mine = format!("apps/mine/{}", secret.place);
            for part in secret.parts() {
                for from in [&repository, self.home(secret)] {
                    let path = format!(
                        "/v2/{mine}/blobs/uploads/?mount={}&from={from}",
                        part.digest
                    );
                    let mounted = mallory.send("POST", &path, &[], "");
                    assert_ne!(mounted.status, 201, "mounted {} from {from}", part.digest);
                }
            }
            return (mine, mallory);
        }
        (repository, anonymous)
    }

    /// The secret's own repository.
    fn home(&self, secret: &Secret) -> &'static str {
        match secret.place {
            "hosted" => "apps/secret",
            "other-mirror" => "other/team/secret",
            "callers-mirror" => "closed/team/secret",
            _ => "strange/own/none",
        }
    }

    fn warm(&self, image: &str) {
        let password = self.gateway.folder().join("password");
        fs::write(&password, USER.1).unwrap();
        let mut command = Command::new(program());
        command.args(["cache", "warm", image, "--user", USER.0, "--config"]);
        command.arg(self.gateway.config_path());
        let warmed = run(command.arg("--password-file").arg(&password));
        let text = warmed.text();
        assert!(
            self.secrets.iter().all(|it| !text.contains(&it.mark)),
            "{text}"
        );
    }

    /// No answer shows any secret, and none says that a secret is here.
    fn check(&self, answer: &Answer, what: &str, names_a_secret: bool) {
        for secret in &self.secrets {
            assert!(
                !secret.is_shown(answer),
                "{what} shows the {} secret",
                secret.place
            );
        }
        assert!(
            !(names_a_secret && answer.status.is_success()),
            "{what}: {}",
            answer.status
        );
    }

    /// Every way to read the secret through a repository.
    fn read(&self, (repository, wire): &(String, Wire), naming: &str, secret: &Secret) {
        let lies = matches!(
            naming,
            "head-lie" | "head-lie-named" | "prefetch" | "parallel"
        );
        for part in secret.parts() {
            let path = format!("/v2/{repository}/blobs/{}", part.digest);
            for (method, range) in [
                ("GET", None),
                ("HEAD", None),
                ("GET", Some("bytes=0-99")),
                ("GET", Some("bytes=100-")),
                ("GET", Some("bytes=-50")),
            ] {
                let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
                // An upstream that has no bytes to send breaks off, and so do we.
                let Ok(answer) = wire.try_send(method, &path, &headers, "") else {
                    continue;
                };
                let what = format!("{naming} of {}: {method} {path} {range:?}", secret.place);
                self.check(&answer, &what, method != "HEAD" || !lies);
            }
        }
        let manifest = &secret.image.manifest.digest;
        for (method, rest, named) in [
            ("GET", format!("manifests/{manifest}"), true),
            ("HEAD", format!("manifests/{manifest}"), true),
            ("GET", format!("referrers/{manifest}"), false),
            ("GET", format!("referrers/{}", secret.subject.digest), false),
            ("GET", "manifests/v0".to_owned(), false),
            ("GET", "tags/list".to_owned(), false),
        ] {
            let path = format!("/v2/{repository}/{rest}");
            let answer = wire.send(method, &path, &[("accept", "*/*")], "");
            let what = format!("{naming} of {}: {method} {path}", secret.place);
            self.check(&answer, &what, named);
        }
    }
}

#[test]
fn nobody_reads_through_a_repository_what_its_own_upstream_did_not_deliver() {
    let world = start(PLACES.into_iter().map(Secret::new).collect());
    let mut leaks = Vec::new();
    for naming in NAMINGS {
        for secret in &world.secrets {
            // What a mirror had of its former upstream is nobody's own.
            if (naming, secret.place) == ("changed-url", "same-mirror") {
                continue;
            }
            let attack = || {
                let named = world.name_it(naming, secret);
                // Twice: what the first read left behind is no possession either.
                world.read(&named, naming, secret);
                world.read(&named, naming, secret);
            };
            let attack = std::panic::AssertUnwindSafe(attack);
            if let Err(panic) = std::panic::catch_unwind(attack) {
                let text = panic.downcast_ref::<String>().cloned();
                leaks.push(format!(
                    "{naming} x {}: {}",
                    secret.place,
                    text.unwrap_or_default()
                ));
            }
        }
    }
    assert!(
        leaks.is_empty(),
        "{} of the cells:\n{}",
        leaks.len(),
        leaks.join("\n")
    );
    // They are all still there, for those who may read them.
    let owner = Wire::basic(world.gateway.port, USER);
    for secret in &world.secrets {
        let wire = match secret.place {
            "callers-mirror" => Wire::basic(world.gateway.port, CAROL),
            _ => owner.clone(),
        };
        let home = match secret.place {
            "same-mirror" => "strange/own/secret",
            _ => world.home(secret),
        };
        let layer = &secret.image.layers[0];
        let answer = wire.get(&format!("/v2/{home}/blobs/{}", layer.digest));
        assert!(secret.is_shown(&answer.expect(200)), "{home}");
    }
    assert!(world.other.count("GET", "team/secret") > 0);
    assert!(world.closed.count("GET", "team/secret") > 0);
}

#[test]
fn a_stock_registrys_manifest_with_a_foreign_config_gives_nothing_away() {
    let secret = Secret::new("hosted");
    let origin = Origin::start();
    let gateway = Gateway::start(&tests::gateway::usual_config(
        &origin.mirror_entry("up", ""),
        "",
    ));
    let owner = Wire::basic(gateway.port, USER);
    owner.push_image("team/secret", "v1", &secret.image);
    let direct = origin.direct();
    for (number, part) in secret.parts().into_iter().enumerate() {
        let config = part.descriptor("application/vnd.oci.image.config.v1+json");
        let manifest = image_of(&with_urls(config), &[]);
        let tag = format!("v{number}");
        direct
            .push_manifest("pub/app", &tag, MANIFEST, manifest.bytes)
            .expect(201);
        let anonymous = Wire::anonymous(gateway.port);
        anonymous
            .get(&format!("/v2/up/pub/app/manifests/{tag}"))
            .expect(200);
        let path = format!("/v2/up/pub/app/blobs/{}", part.digest);
        for headers in [&[][..], &[("range", "bytes=0-9")]] {
            let answer = anonymous.send("GET", &path, headers, "");
            assert!(!secret.is_shown(&answer), "{path}");
            assert_eq!(answer.status, 404, "{path}");
        }
        anonymous.head(&path).expect(404);
    }
}

#[test]
fn shared_content_is_fetched_once_for_each_upstream_and_stored_once() {
    let stranger = Stranger::start();
    let (one, two) = (Image::random(5000), Content::random(3000));
    let other = Origin::start();
    other.push("a/b", "v1", &one);
    let layer = &one.layers[0];
    for repository in ["x/one", "x/two"] {
        stranger.blob(repository, layer);
        stranger.blob(repository, &two);
    }
    let mirrors = other.mirror_entry("docker.io", "")
        + &format!("  up: {{ url: \"http://127.0.0.1:{}\" }}\n", stranger.port);
    let gateway = Gateway::start(&tests::gateway::usual_config(&mirrors, ""));
    let anonymous = Wire::anonymous(gateway.port);
    anonymous.pull_image("docker.io/a/b", "v1", &one);
    gateway.settled();
    for repository in ["x/one", "x/two"] {
        let path = format!("/v2/up/{repository}/blobs/{}", layer.digest);
        assert!(anonymous.get(&path).expect(200).body == layer.bytes);
        gateway.settled();
    }
    let asked = |method: &str, repository: &str| {
        stranger.asked(&format!("{method} /v2/{repository}/blobs/{}", layer.digest))
    };
    // In full from its own upstream, and then a HEAD is enough for that upstream's other repository.
    assert_eq!((asked("GET", "x/one"), asked("GET", "x/two")), (1, 0));
    assert_eq!(asked("HEAD", "x/two"), 2);
    let hex = layer.digest.trim_start_matches("sha256:");
    let folder = format!(
        "data/docker/registry/v2/blobs/sha256/{}/{hex}",
        hex.get(..2).unwrap()
    );
    let stored = fs::read_dir(gateway.folder().join(folder)).unwrap();
    assert_eq!(stored.count(), 1);
}
