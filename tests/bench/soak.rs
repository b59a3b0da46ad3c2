//! `make soak`: pushes with deletes, first and later pulls through a mirror, logins and reloads for an hour, and the memory of the process.
//!
//! Named parts only: a plain `make bench` leaves it out. `SOAK_MINUTES` shortens it.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{USER, usual_config},
    image::MANIFEST,
};

use crate::table::{Table, median};

/// Images of the upstream; each is fetched again after every eviction.
const IMAGES: usize = 200;
const PUSHERS: usize = 2;
const RELOAD_EVERY: Duration = Duration::from_secs(15);
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What was done.
#[derive(Debug, Default)]
struct Counts {
    pushes: AtomicUsize,
    pulls: AtomicUsize,
    reloads: AtomicUsize,
}

pub(crate) fn measure(table: &mut Table) {
    let minutes = std::env::var("SOAK_MINUTES").ok();
    let minutes: f64 = minutes.map_or(60.0, |text| text.parse().expect("a number of minutes"));
    let origin = Origin::start();
    let upstream = Wire::anonymous(origin.port);
    for index in 0..IMAGES {
        upstream.push_image("library/soak", &format!("t{index}"), &Image::random(20_000));
    }
    let config = |message: &str| {
        let mirrors = format!("  up: {{ url: \"http://127.0.0.1:{}\" }}\n", origin.port);
        usual_config(&mirrors, "")
            .replace(
                "        - { who: [\"user:*\"]",
                "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]",
            )
            .replace("push a new version", message)
    };
    let gateway = Gateway::start(&config("0"));
    let (stop, counts) = (AtomicBool::new(false), Counts::default());
    let samples = std::thread::scope(|scope| {
        for number in 0..PUSHERS {
            let (gateway, stop, counts) = (&gateway, &stop, &counts);
            scope.spawn(move || push(gateway.port, number, stop, counts));
        }
        scope.spawn(|| pull(&gateway, &stop, &counts));
        scope.spawn(|| reload(&gateway, &config, &stop, &counts));
        let samples = sample(gateway.pid(), Duration::from_secs_f64(minutes * 60.0));
        stop.store(true, Ordering::Relaxed);
        samples
    });
    let quarter = |number: usize| {
        let length = samples.len() / 4;
        median(samples[number * length..(number + 1) * length].to_vec())
    };
    let most = samples.iter().copied().fold(0.0, f64::max);
    let Counts {
        pushes,
        pulls,
        reloads,
    } = counts;
    let what = format!(
        "{minutes} min, {} pushes, {} pulls, {} reloads; quarters {:.0}, {:.0}, {:.0}, {:.0} MiB",
        pushes.into_inner(),
        pulls.into_inner(),
        reloads.into_inner(),
        quarter(0),
        quarter(1),
        quarter(2),
        quarter(3),
    );
    table.limit("soak: most memory", "MiB", most, 160.0, &what);
    let growth = quarter(3) - quarter(2);
    table.limit(
        "soak: growth from the third quarter to the fourth",
        "MiB",
        growth,
        8.0,
        "RssAnon, medians",
    );
}

/// Pushes an image of new bytes, moves a tag, and deletes the image, over and over.
fn push(port: u16, number: usize, stop: &AtomicBool, counts: &Counts) {
    let wire = Wire::basic(port, USER);
    let mut nth = 0_usize;
    while !stop.load(Ordering::Relaxed) {
        nth += 1;
        let repository = format!("team/soak-{number}-{}", nth % 50);
        let image = Image::random(4_000);
        wire.push_image(&repository, "latest", &image);
        let path = format!("/v2/{repository}/manifests/{}", image.manifest.digest);
        wire.get(&path).expect(200);
        wire.delete(&path).expect(202);
        counts.pushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Pulls every image of the mirror, and has the cache emptied after each round.
fn pull(gateway: &Gateway, stop: &AtomicBool, counts: &Counts) {
    let (anonymous, admin) = (
        Wire::anonymous(gateway.port),
        Wire::basic(gateway.admin_port, USER),
    );
    while !stop.load(Ordering::Relaxed) {
        let token = anonymous.token(&["repository:up/library/soak:pull"]);
        let wire = Wire::bearer(gateway.port, &token);
        for index in 0..IMAGES {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let path = format!("/v2/up/library/soak/manifests/t{index}");
            let answer = wire.send("GET", &path, &[("accept", MANIFEST)], "");
            let manifest = answer.has(200).json();
            for blob in [&manifest["config"], &manifest["layers"][0]] {
                let digest = blob["digest"].as_str().expect("a digest");
                wire.get(&format!("/v2/up/library/soak/blobs/{digest}"))
                    .expect(200);
            }
            counts.pulls.fetch_add(1, Ordering::Relaxed);
        }
        let order = r#"{"what":"up/**"}"#;
        let evicted = admin.send("POST", "/admin/v1/cache/evict", &[], order);
        evicted.expect(200);
    }
}

/// Another message of a plugin every few seconds: a new generation each.
fn reload(gateway: &Gateway, config: &dyn Fn(&str) -> String, stop: &AtomicBool, counts: &Counts) {
    let admin = Wire::basic(gateway.admin_port, USER);
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(200));
        if Instant::now() < next {
            continue;
        }
        next += RELOAD_EVERY;
        let nth = counts.reloads.fetch_add(1, Ordering::Relaxed) + 1;
        gateway.write_config(&config(&nth.to_string()));
        admin.send("POST", "/admin/v1/reload", &[], "").expect(200);
    }
}

/// The process's own memory in MiB, once a second.
fn sample(pid: u32, during: Duration) -> Vec<f64> {
    let ends = Instant::now() + during;
    let mut samples = Vec::new();
    while Instant::now() < ends {
        std::thread::sleep(SAMPLE_EVERY);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kilobytes =
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        samples.push(kilobytes.expect("the kernel counts") / 1024.0);
        if samples.len().is_multiple_of(60) {
            let now = samples.last().expect("a sample was taken");
            eprintln!("minute {}: {now:.0} MiB", samples.len() / 60);
        }
    }
    samples
}
