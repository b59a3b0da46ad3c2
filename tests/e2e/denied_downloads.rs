//! A download that is under way when a reload denies it breaks off soon, on HTTP/1 and HTTP/2, unless the configuration keeps it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tests::{
    Gateway, Image, Wire,
    gateway::{OTHER, USER, usual_config},
    guests::component,
    image::Content,
    tools::wait_until,
    wire::runtime,
};

/// Five seconds are promised; a machine that is busy with other tests takes longer. Without the promise it is half a minute.
const PATIENCE: Duration = Duration::from_secs(15);
const LAYER_BYTES: usize = 96 << 20;
/// At most so much arrives after the end: what the kernel had taken over.
const MOST: usize = 80 << 20;

/// The usual configuration with a policy that denies one digest.
fn denying(digest: &str, more: &str) -> String {
    let gate = format!(
        r#"  - name: gate
    from: ./deny_image.wasm
    repositories: ["team/**"]
    changes: [serve-manifest, serve-blob]
    grants: {{ registry: ["team/**"] }}
    config: {{ digests: ["{digest}"] }}
"#
    );
    format!("{more}\n{}", usual_config("", &gate))
}

fn start(config: &str) -> Gateway {
    Gateway::start_with(config, |folder| {
        fs::copy(component("deny-image"), folder.join("deny_image.wasm")).unwrap();
    })
}

fn reload(gateway: &Gateway, config: &str) {
    let taken = || gateway.metric("gantry_reloads_total{trigger=\"signal\",outcome=\"taken\"}");
    let before = taken();
    gateway.write_config(config);
    gateway.signal("HUP");
    wait_until("the reload", Duration::from_secs(60), || taken() > before);
}

fn basic((name, password): (&str, &str)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// A download that a client takes slowly until it ends. Its first bytes are there.
struct Slow(JoinHandle<(usize, Instant)>);

impl Slow {
    #[expect(
        clippy::disallowed_methods,
        reason = "a client that takes a response slowly"
    )]
    fn http1(gateway: &Gateway, user: (&str, &str), path: &str) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
        let (host, shown) = (gateway.host(), basic(user));
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {shown}\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut piece = vec![0; 64 << 10];
        let mut taken = stream.read(&mut piece).unwrap();
        assert!(piece.starts_with(b"HTTP/1.1 200"));
        Self(std::thread::spawn(move || {
            while let Ok(count @ 1..) = stream.read(&mut piece) {
                taken += count;
                std::thread::sleep(Duration::from_millis(15));
            }
            (taken, Instant::now())
        }))
    }

    fn http2(gateway: &Gateway, user: (&str, &str), path: &str) -> Self {
        let client = reqwest::Client::builder()
            .no_proxy()
            .http2_prior_knowledge()
            .build()
            .unwrap();
        let url = format!("http://127.0.0.1:{}{path}", gateway.port);
        let request = client.get(url).header("authorization", basic(user));
        let mut response = runtime().block_on(async { request.send().await.unwrap() });
        assert_eq!(response.status(), 200);
        Self(std::thread::spawn(move || {
            runtime().block_on(async {
                let mut taken = 0;
                let mut paused = 0;
                while let Ok(Some(piece)) = response.chunk().await {
                    taken += piece.len();
                    if taken - paused > 64 << 10 {
                        paused = taken;
                        tokio::time::sleep(Duration::from_millis(15)).await;
                    }
                }
                (taken, Instant::now())
            })
        }))
    }

    fn both(gateway: &Gateway, user: (&str, &str), path: &str) -> [Self; 2] {
        [
            Self::http1(gateway, user, path),
            Self::http2(gateway, user, path),
        ]
    }

    /// How many bytes came, and when the last did.
    fn ended(self) -> (usize, Instant) {
        self.0.join().unwrap()
    }
}

fn pushed(gateway: &Gateway) -> (Image, String) {
    let image = Image::of_layers(vec![Content::random(LAYER_BYTES)]);
    Wire::basic(gateway.port, USER).push_image("team/web", "v1", &image);
    let path = format!("/v2/team/web/blobs/{}", image.layers[0].digest);
    (image, path)
}

const NOTHING: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

#[test]
fn a_reload_whose_policy_denies_the_image_ends_its_downloads_and_no_other() {
    let gateway = start(&denying(NOTHING, ""));
    let (image, path) = pushed(&gateway);
    let (_other, other_path) = pushed(&gateway);
    let denied = Slow::both(&gateway, USER, &path);
    let allowed = Slow::both(&gateway, USER, &other_path);
    reload(&gateway, &denying(&image.manifest.digest, ""));
    let began = Instant::now();
    for download in denied {
        let (taken, at) = download.ended();
        let took = at.saturating_duration_since(began);
        assert!(took < PATIENCE && taken < MOST, "{taken} bytes, {took:?}");
    }
    for download in allowed {
        assert!(download.ended().0 >= LAYER_BYTES);
    }
    let log = gateway.log();
    assert!(log.contains("the new configuration denies a running download"));
    Wire::basic(gateway.port, USER).get(&path).expect(403);
}

#[test]
fn a_reload_whose_rules_deny_the_reader_ends_that_readers_downloads() {
    let gateway = start(&denying(NOTHING, ""));
    let (_image, path) = pushed(&gateway);
    let denied = Slow::both(&gateway, OTHER, &path);
    let allowed = Slow::both(&gateway, USER, &path);
    let rules = denying(NOTHING, "").replace("who: [\"user:*\"]", "who: [\"user:alice\"]");
    reload(&gateway, &rules);
    let began = Instant::now();
    for download in denied {
        let (taken, at) = download.ended();
        let took = at.saturating_duration_since(began);
        assert!(took < PATIENCE && taken < MOST, "{taken} bytes, {took:?}");
    }
    for download in allowed {
        assert!(download.ended().0 >= LAYER_BYTES);
    }
}

#[test]
fn a_denied_download_finishes_where_the_configuration_keeps_it() {
    let keep = "limits: { denied_downloads: keep }";
    let gateway = start(&denying(NOTHING, keep));
    let (image, path) = pushed(&gateway);
    let denied = Slow::both(&gateway, USER, &path);
    reload(&gateway, &denying(&image.manifest.digest, keep));
    Wire::basic(gateway.port, USER).get(&path).expect(403);
    for download in denied {
        assert!(download.ended().0 >= LAYER_BYTES);
    }
}
