//! Small answers: a manifest by tag and by digest, with authentication, authorization and admission bound, against nginx and a file.

use std::fs;

use base64::Engine as _;
use tests::{Image, Wire, gateway::USER};

use crate::{
    load::{fetch, hammer},
    peers,
    table::{Table, in_turn, median},
    usage::Meter,
};

const SECONDS: u32 = 2;
const ROUNDS: usize = 5;
/// What clients say they take.
const ACCEPT: &str = "Accept: application/vnd.oci.image.manifest.v1+json";

pub(crate) fn measure(table: &mut Table) {
    let nginx = peers::nginx();
    let registry = peers::registry();
    let (gateway, _tls) = peers::gantry("", "");
    let image = Image::random(1000);
    fs::write(
        nginx.folder.path().join("files/manifest"),
        &image.manifest.bytes,
    )
    .expect("the folder is ours");
    Wire::basic(gateway.port, USER).push_image("apps/web", "latest", &image);
    Wire::anonymous(registry.port).push_image("apps/web", "latest", &image);
    let encoded = base64::engine::general_purpose::STANDARD.encode(peers::user());
    let header = format!("Authorization: Basic {encoded}");
    let by_tag = "/v2/apps/web/manifests/latest";
    let by_digest = format!("/v2/apps/web/manifests/{}", image.manifest.digest);
    let targets = [
        (nginx.pid(), nginx.url("/manifest")),
        (gateway.pid(), format!("http://{}{by_tag}", gateway.host())),
        (
            gateway.pid(),
            format!("http://{}{by_digest}", gateway.host()),
        ),
        (registry.pid(), registry.url(by_tag)),
    ];
    // The warm-up, and the proof that all of them answer the same bytes.
    for (_pid, url) in &targets {
        assert!(
            fetch(url, &["-H", &header, "-H", ACCEPT]) == image.manifest.bytes,
            "{url}"
        );
        hammer(url, 1, &[&header, ACCEPT]);
    }
    let mut micros = vec![Vec::new(); targets.len()];
    for round in 0..ROUNDS {
        for index in in_turn(round, targets.len()) {
            let ((pid, url), figures) = (&targets[index], &mut micros[index]);
            let meter = Meter::start(*pid);
            let answers = hammer(url, SECONDS, &[&header, ACCEPT]);
            figures.push(meter.seconds() * 1e6 / answers);
        }
    }
    let middles: Vec<f64> = micros.into_iter().map(median).collect();
    let [nginx, tag, digest, registry] = middles.as_slice() else {
        panic!("four servers were measured");
    };
    table.ratio(
        "manifest by tag, CPU-us/request",
        *tag,
        ("nginx", *nginx),
        1.0,
        &[("docker-registry", *registry)],
    );
    table.ratio(
        "manifest by digest, CPU-us/request",
        *digest,
        ("nginx", *nginx),
        1.0,
        &[],
    );
}
