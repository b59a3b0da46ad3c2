//! What was acknowledged survives `kill -9`, and nothing is half visible afterwards.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use tests::{
    Gateway, Image, Wire,
    gateway::USER,
    image::{MANIFEST, sha256},
    tools::wait_until,
};

const PUSHERS: usize = 6;
const ROUNDS: usize = 20;

/// Pushes images until the gateway stops answering; remembers what was acknowledged.
fn push_until_killed(
    port: u16,
    pusher: usize,
    round: usize,
    stop: &AtomicBool,
    pushed: &AtomicUsize,
    acknowledged: &Mutex<Vec<(String, Image)>>,
) {
    let wire = Wire::basic(port, USER);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let image = Image::random(20_000 + 7 * pusher);
        let tag = format!("r{round}p{pusher}n{number}");
        number += 1;
        if push(&wire, "apps/crash", &tag, &image).is_none() {
            return;
        }
        acknowledged.lock().unwrap().push((tag, image));
        pushed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A push whose every step may meet a dead gateway.
fn push(wire: &Wire, repository: &str, tag: &str, image: &Image) -> Option<()> {
    for blob in image.blobs() {
        let opened = wire
            .try_send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "")
            .ok()?
            .expect(202);
        let half = blob.bytes.len() / 2;
        let patched = wire
            .try_send("PATCH", &opened.location(), &[], blob.bytes.slice(..half))
            .ok()?
            .expect(202);
        let closing =
            tests::wire::with_query(&patched.location(), &format!("digest={}", blob.digest));
        wire.try_send("PUT", &closing, &[], blob.bytes.slice(half..))
            .ok()?
            .expect(201);
    }
    let path = format!("/v2/{repository}/manifests/{tag}");
    wire.try_send(
        "PUT",
        &path,
        &[("content-type", MANIFEST)],
        image.manifest.bytes.clone(),
    )
    .ok()?
    .expect(201);
    Some(())
}

#[test]
fn twenty_kills_under_six_pushers_lose_nothing_acknowledged() {
    let mut gateway = Gateway::usual();
    let acknowledged = Mutex::new(Vec::new());
    for round in 0..ROUNDS {
        let (stop, pushed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let port = gateway.port;
        thread::scope(|scope| {
            for pusher in 0..PUSHERS {
                let (stop, pushed, acknowledged) = (&stop, &pushed, &acknowledged);
                scope.spawn(move || {
                    push_until_killed(port, pusher, round, stop, pushed, acknowledged);
                });
            }
            // A different point of the work in every round: the count of pushes is the clock.
            wait_until("some pushes", Duration::from_secs(60), || {
                pushed.load(Ordering::Relaxed) > round % 5
            });
            gateway.kill9();
            stop.store(true, Ordering::Relaxed);
        });
        gateway.restart();
        check(&gateway, &acknowledged.lock().unwrap());
    }
    assert!(
        acknowledged.lock().unwrap().len() >= ROUNDS,
        "every round acknowledged something"
    );
}

/// I1 to I5: acknowledged pushes are whole, listed tags are readable, HEAD tells what GET does, files are what their names say.
fn check(gateway: &Gateway, acknowledged: &[(String, Image)]) {
    let wire = Wire::basic(gateway.port, USER);
    for (tag, image) in acknowledged {
        wire.pull_image("apps/crash", tag, image);
    }
    let mut path = "/v2/apps/crash/tags/list?n=1000".to_owned();
    loop {
        let page = wire.get(&path).expect(200);
        for tag in page.json()["tags"].as_array().unwrap() {
            let path = format!("/v2/apps/crash/manifests/{}", tag.as_str().unwrap());
            let (get, head) = (wire.get(&path).expect(200), wire.head(&path).expect(200));
            assert_eq!(get.header("docker-content-digest"), sha256(&get.body));
            assert_eq!(head.header("content-length"), get.body.len().to_string());
        }
        let link = page.header("link");
        let Some((next, _)) = link.split_once('>') else {
            break;
        };
        path = next.trim_start_matches('<').to_owned();
    }
    check_files(
        &gateway
            .folder()
            .join("data/docker/registry/v2/blobs/sha256"),
    );
}

fn check_files(folder: &Path) {
    for shard in fs::read_dir(folder).unwrap() {
        for blob in fs::read_dir(shard.unwrap().path()).unwrap() {
            let blob = blob.unwrap();
            let data = blob.path().join("data");
            if data.exists() {
                assert_eq!(
                    sha256(&fs::read(&data).unwrap()),
                    format!("sha256:{}", blob.file_name().to_str().unwrap())
                );
            }
        }
    }
}
