//! Two hundred clients on one cold blob: one fetch, whole bodies, flat memory, whoever goes away.

use futures_util::{StreamExt as _, future::join_all};
use tests::{
    Gateway, Image, Origin, Wire, gateway::usual_config, image::sha256, origin::Fault,
    wire::runtime,
};

const CLIENTS: usize = 200;
const BLOB: usize = 64 << 20;
const GROWTH: u64 = 64 << 20;

fn cold(origin: &Origin, image: &Image) -> (Gateway, String) {
    origin.push("big/blob", "latest", image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    Wire::anonymous(gateway.port)
        .get("/v2/up/big/blob/manifests/latest")
        .expect(200);
    let path = format!("/v2/up/big/blob/blobs/{}", image.layers[0].digest);
    (gateway, path)
}

/// Pulls the blob and hashes it while it passes; whether it came whole.
async fn pull(wire: &Wire, path: &str) -> Result<String, reqwest::Error> {
    let response = wire
        .request("GET", path, &[])
        .send()
        .await?
        .error_for_status()?;
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        context.update(&piece?);
    }
    Ok(context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[test]
fn two_hundred_clients_make_one_fetch_and_the_first_may_die() {
    let origin = Origin::start();
    for first_dies in [false, true] {
        let image = Image::random(BLOB);
        let digest = &image.layers[0].digest;
        let (gateway, path) = cold(&origin, &image);
        let before = gateway.peak_memory();
        let wire = Wire::anonymous(gateway.port);
        let held = first_dies.then(|| origin.break_paths(digest, Fault::HoldAt(BLOB / 2)));
        let bodies = runtime().block_on(async {
            if held.is_some() {
                // The first client is given half of the body, and goes.
                let mut pieces = wire
                    .request("GET", &path, &[])
                    .send()
                    .await
                    .unwrap()
                    .bytes_stream();
                let mut got = 0;
                while got < BLOB / 4 {
                    got += pieces.next().await.unwrap().unwrap().len();
                }
            }
            let others = join_all((0..CLIENTS).map(|_client| pull(&wire, &path)));
            let release = async { origin.release() };
            futures_util::future::join(others, release).await.0
        });
        for body in bodies {
            assert_eq!(format!("sha256:{}", body.unwrap()), *digest);
        }
        assert_eq!(
            origin.count("GET", digest),
            1,
            "by the upstream's own count"
        );
        let growth = gateway.peak_memory() - before;
        assert!(growth < GROWTH, "VmHWM grew by {} MiB", growth >> 20);
        origin.heal();
        assert_eq!(sha256(&image.layers[0].bytes), *digest);
    }
}

#[test]
fn a_hundred_clients_on_a_cold_tag_make_one_fetch() {
    let origin = Origin::start();
    let image = Image::random(10);
    origin.push("a/b", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("up", ""), ""));
    let wire = Wire::anonymous(gateway.port);
    let answers = runtime().block_on(join_all((0..100).map(|_client| {
        let request = wire.request("GET", "/v2/up/a/b/manifests/latest", &[]);
        async { tests::wire::whole(request).await }
    })));
    for answer in answers {
        assert_eq!(answer.unwrap().body, image.manifest.bytes);
    }
    assert_eq!(origin.count("GET", "/v2/a/b/manifests/"), 1);
    assert!(origin.count("HEAD", "/v2/a/b/manifests/") <= 1);
}
