//! How often the cache is enough: a seeded trace of pulls whose popularity is Zipf's, against a cap of a fifth of everything.
//!
//! Owns the trace and what it is held against: the same requests on a simulated LRU of the same size, and on one that knows the future
//! (Belady: what is needed last goes first), which no cache can beat by much. Real are the gateway's code and stores, the registry
//! behind, and every byte; the eviction that runs once a minute is run after every few pulls, as if they took that long.

use std::{collections::HashMap, sync::Arc};

use gantry::{
    app::App,
    config::Config,
    server::{self, Listener, Stage},
};
use tests::{
    Image, Origin, Wire, dice::Dice, gateway::usual_config, image::Content, tools::free_port,
    wire::runtime,
};

use crate::table::Table;

const SEED: u64 = 5;
const IMAGES: usize = 120;
const PULLS: usize = 1_500;
/// Pulls between two evictions.
const EVICT_EVERY: usize = 5;
/// Popularity of the image on place `n` is `1 / n^EXPONENT`, as traces of registries show it.
const EXPONENT: f64 = 0.9;

pub(crate) fn measure(table: &mut Table) {
    let mut dice = Dice::new(SEED);
    let images = images(&mut dice);
    let trace = trace(&mut dice);
    let blobs: Vec<(usize, u64)> = requests(&images, &trace);
    let sizes: HashMap<usize, u64> = blobs.iter().copied().collect();
    let cap = sizes.values().sum::<u64>() / 5;
    let ours = run(&images, &trace, cap);
    let per_batch = batches(&images, &trace);
    let lru = simulate(&per_batch, cap, |_now, last, _next| last);
    let ideal = simulate(&per_batch, cap, |_now, _last, next| usize::MAX - next);
    let what =
        format!("blobs that came from upstream, {PULLS} pulls of {IMAGES} images by Zipf, cap 1/5");
    let share = |it: Missed| it.count as f64 / blobs.len() as f64 * 100.0;
    table.ratio(
        &format!("{what}, % of requests"),
        share(ours),
        ("a simulated LRU", share(lru)),
        1.05,
        &[("knowing the future", share(ideal))],
    );
    let all: u64 = blobs.iter().map(|(_, size)| size).sum();
    let share = |it: Missed| it.bytes as f64 / all as f64 * 100.0;
    table.ratio(
        "the same, % of bytes",
        share(ours),
        ("a simulated LRU", share(lru)),
        1.05,
        &[("knowing the future", share(ideal))],
    );
}

/// Images of one to five layers; a third of the layers are of a few bases that images share. Sizes spread over three orders.
fn images(dice: &mut Dice) -> Vec<Image> {
    let layer = |dice: &mut Dice| {
        let size = 1 << (10 + dice.below(10));
        Content::new(dice.bytes(size))
    };
    let bases: Vec<Content> = (0..8).map(|_base| layer(dice)).collect();
    let image = |dice: &mut Dice| {
        let last = dice.below(5);
        let layers = (0..=last).map(|place| match place {
            0 => {
                let base = bases.get(dice.below(bases.len()));
                base.expect("there are bases").clone()
            }
            _ => layer(dice),
        });
        let layers: Vec<Content> = layers.collect();
        Image::of_layers(layers)
    };
    (0..IMAGES).map(|_image| image(dice)).collect()
}

/// Which image each pull is of.
fn trace(dice: &mut Dice) -> Vec<usize> {
    let weights = (1..=IMAGES).map(|place| (place as f64).powf(-EXPONENT));
    let sums: Vec<f64> = weights
        .scan(0.0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        })
        .collect();
    let all = sums.last().copied().unwrap_or_default();
    let pull = |_pull| {
        let thrown = dice.below(1 << 30) as f64 / f64::from(1 << 30) * all;
        sums.partition_point(|sum| *sum <= thrown).min(IMAGES - 1)
    };
    (0..PULLS).map(pull).collect()
}

/// What a trace had to fetch.
#[derive(Clone, Copy, Debug, Default)]
struct Missed {
    count: usize,
    bytes: u64,
}

/// Blobs by number, with their lengths, in the order of the requests. Every blob is linked per repository, and has its bytes once.
fn requests(images: &[Image], trace: &[usize]) -> Vec<(usize, u64)> {
    batches(images, trace).into_iter().flatten().collect()
}

/// The requests of the pulls between two evictions.
fn batches(images: &[Image], trace: &[usize]) -> Vec<Vec<(usize, u64)>> {
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    let mut batch = |pulls: &[usize]| {
        let blobs = pulls
            .iter()
            .filter_map(|pull| images.get(*pull))
            .flat_map(Image::blobs);
        let numbered = blobs.map(|blob| {
            let next = numbers.len();
            let number = *numbers.entry(&blob.digest).or_insert(next);
            (number, blob.bytes.len() as u64)
        });
        numbered.collect()
    };
    trace.chunks(EVICT_EVERY).map(&mut batch).collect()
}

/// A cache that keeps what has the highest `worth`, told the time, the last and the next use.
fn simulate(
    batches: &[Vec<(usize, u64)>],
    cap: u64,
    worth: impl Fn(usize, usize, usize) -> usize,
) -> Missed {
    let requests: Vec<(usize, u64)> = batches.iter().flatten().copied().collect();
    let mut uses: HashMap<usize, Vec<usize>> = HashMap::new();
    for (time, (blob, _)) in requests.iter().enumerate() {
        uses.entry(*blob).or_default().push(time);
    }
    let next = |blob: usize, now: usize| {
        let uses = &uses[&blob];
        uses.get(uses.partition_point(|time| *time < now))
            .copied()
            .unwrap_or(usize::MAX)
    };
    let (mut held, mut missed, mut now) = (HashMap::new(), Missed::default(), 0);
    for batch in batches {
        for (blob, size) in batch {
            if held.insert(*blob, (*size, now)).is_none() {
                missed.count += 1;
                missed.bytes += size;
            }
            now += 1;
        }
        let mut bytes: u64 = held.values().map(|(size, _)| size).sum();
        while bytes > cap {
            let least = held
                .iter()
                .min_by_key(|(blob, (_, last))| worth(now, *last, next(**blob, now)));
            let Some((blob, (size, _))) = least.map(|(blob, it)| (*blob, *it)) else {
                break;
            };
            bytes -= size;
            held.remove(&blob);
        }
    }
    missed
}

/// The same pulls through a gateway in this process, by the upstream's own count.
fn run(images: &[Image], trace: &[usize], cap: u64) -> Missed {
    let origin = Origin::start();
    for (number, image) in images.iter().enumerate() {
        origin.push(&format!("z/{number}"), "v1", image);
    }
    let folder = tempfile::tempdir().expect("the system has a temporary folder");
    let port = free_port();
    let entry = origin.mirror_entry("up", &format!(", keep: {{ at_most: {cap} }}"));
    let path = folder.path().join("gantry.yaml");
    let users = "nobody:$2y$05$abcdefghijklmnopqrstuuKCm1cP4FzpBWOHRgwm4sFUKUBv5ZFmK\n";
    std::fs::write(folder.path().join("htpasswd"), users).expect("the folder is ours");
    let text = format!(
        "listen: {{ address: 127.0.0.1:{port} }}\nstorage:\n  blobs: {{ filesystem: ./data }}\n  metadata: {{ sqlite: ./data/gantry.db }}\n{}",
        usual_config(&entry, "")
    );
    std::fs::write(&path, text).expect("the folder is ours");
    let config = Config::load(&path).unwrap_or_else(|report| panic!("{report}"));
    let app = runtime().block_on(async { App::build(&config).await.expect("it starts").0 });
    let listener = runtime().block_on(async { Listener::tcp(([127, 0, 0, 1], port).into(), None) });
    let listener = listener.expect("the port is ours");
    let stage = tokio::sync::watch::Sender::new(Stage::Run);
    let serving = {
        let (app, watched) = (Arc::clone(&app), stage.subscribe());
        let (edge, telemetry) = (Arc::clone(&app.current().edge), Arc::clone(&app.telemetry));
        runtime().spawn(async move {
            server::serve(app, vec![listener], &edge, &telemetry, watched).await;
        })
    };
    origin.reset_counts();
    let wire = Wire::anonymous(port);
    for pulls in trace.chunks(EVICT_EVERY) {
        for pull in pulls {
            let image = images.get(*pull).expect("an image of the trace");
            wire.pull_image(&format!("up/z/{pull}"), "v1", image);
        }
        let evict = async { app.current().registry.evict().await };
        runtime().block_on(evict).expect("an eviction works");
    }
    stage.send_replace(Stage::Abort);
    drop(serving);
    Missed {
        count: origin.count("GET", "/blobs/"),
        bytes: origin.sent("/blobs/") as u64,
    }
}
