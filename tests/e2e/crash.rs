//! What was acknowledged survives `kill -9` and power cuts, and nothing is half visible afterwards.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use tests::{
    Gateway, Wire,
    dice::Dice,
    disk::{Cut, Disk},
    gateway::{USER, usual_config},
    image::{sha256, sha512},
    ledger::{End, listed_tags},
    pusher::Pusher,
    tools::wait_until,
};

const PUSHERS: usize = 6;
const ROUNDS: usize = 20;
/// Repeats a run; printed by every run.
const SEED: &str = "CRASH_SEED";

/// Pushers and the chance that decides when they are interrupted.
struct Crowd {
    pushers: Vec<Pusher>,
    dice: Dice,
    acknowledged: usize,
}

impl Crowd {
    fn new() -> Self {
        let seed = Dice::seed(SEED);
        Self {
            pushers: (0..PUSHERS)
                .map(|number| Pusher::new(number, seed))
                .collect(),
            dice: Dice::new(seed),
            acknowledged: 0,
        }
    }

    /// Lets everybody work, calls `interrupt` at some moment, and returns when nobody gets an answer any more.
    fn work(&mut self, port: u16, interrupt: impl FnOnce()) {
        let (stop, acknowledged) = (AtomicBool::new(false), AtomicUsize::new(0));
        let wanted = self.dice.below(60);
        let more = Duration::from_micros(self.dice.below(20_000) as u64);
        thread::scope(|scope| {
            for pusher in &mut self.pushers {
                let (stop, acknowledged) = (&stop, &acknowledged);
                scope.spawn(move || pusher.work(port, stop, acknowledged));
            }
            wait_until("some changes", Duration::from_secs(60), || {
                acknowledged.load(Ordering::Relaxed) >= wanted
            });
            #[expect(
                clippy::disallowed_methods,
                reason = "a crash comes at a moment of its own, in the middle of whatever is done then"
            )]
            thread::sleep(more);
            interrupt();
        });
        self.acknowledged += acknowledged.into_inner();
    }

    /// Everything the pushers were told is so, every listed tag is readable, files are what their names say, and the journal tells how
    /// the tags came to be what they are.
    fn check(&mut self, gateway: &Gateway, end: End, everything: bool) {
        let port = gateway.port;
        thread::scope(|scope| {
            for pusher in &mut self.pushers {
                scope.spawn(move || pusher.check(port, end, everything));
            }
        });
        let wire = Wire::basic(port, USER);
        for repository in wire.get("/v2/_catalog?n=1000").has(200).json()["repositories"]
            .as_array()
            .unwrap()
        {
            drop(listed_tags(&wire, repository.as_str().unwrap()));
        }
        let data = gateway.folder().join("data");
        check_files(&data.join("docker/registry/v2/blobs"));
        check_database(&data);
    }
}

#[test]
fn twenty_kills_under_six_pushers_lose_nothing_acknowledged() {
    let mut crowd = Crowd::new();
    let mut gateway = Gateway::usual();
    for round in 1..=ROUNDS {
        let port = gateway.port;
        crowd.work(port, || gateway.kill9());
        gateway.restart();
        crowd.check(&gateway, End::Kill, round == ROUNDS);
    }
    assert!(crowd.acknowledged >= ROUNDS, "{}", crowd.acknowledged);
}

#[test]
fn twenty_power_cuts_under_six_pushers_lose_nothing_acknowledged() {
    let mut crowd = Crowd::new();
    let disk = Disk::ext4(256 << 20);
    let mut gateway = Gateway::start_with(&usual_config("", ""), |folder| disk.as_data_of(folder));
    for round in 1..=ROUNDS {
        let cut = match crowd.dice.below(2) {
            0 => Cut::JournalWritten,
            _ => Cut::JournalLost,
        };
        // The gateway goes on without a disk until every pusher was refused: whatever it acknowledged meanwhile is lost.
        crowd.work(gateway.port, || disk.cut_power(cut));
        gateway.kill9();
        disk.mount_again();
        gateway.restart();
        crowd.check(&gateway, End::PowerCut, round == ROUNDS);
    }
    assert!(crowd.acknowledged >= ROUNDS, "{}", crowd.acknowledged);
}

/// Every blob's content hashes to its name.
fn check_files(blobs: &Path) {
    for algorithm in fs::read_dir(blobs).unwrap() {
        let algorithm = algorithm.unwrap();
        let name = algorithm.file_name().into_string().unwrap();
        for shelf in fs::read_dir(algorithm.path()).unwrap() {
            for blob in fs::read_dir(shelf.unwrap().path()).unwrap() {
                let blob = blob.unwrap();
                // A folder whose file was never moved in, or not yet made durable.
                let Ok(bytes) = fs::read(blob.path().join("data")) else {
                    continue;
                };
                let found = match name.as_str() {
                    "sha256" => sha256(&bytes),
                    _ => sha512(&bytes),
                };
                let hex = blob.file_name().into_string().unwrap();
                assert_eq!(found, format!("{name}:{hex}"));
            }
        }
    }
}

type State = Option<(String, bool)>;

/// The journal, replayed, is what the tags are; every step begins where the one before ended; and no staging file lacks its session.
fn check_database(data: &Path) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let database = Connection::open_with_flags(data.join("gantry.db"), flags).unwrap();
    let mut replayed: BTreeMap<(String, String), State> = BTreeMap::new();
    let sql =
        "SELECT repository, tag, digest, immutable, previous FROM tag_journal ORDER BY sequence";
    let mut journal = database.prepare(sql).unwrap();
    let mut rows = journal.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        let digest: Option<String> = row.get(2).unwrap();
        let state = digest.map(|digest| (digest, row.get(3).unwrap()));
        let key = (row.get(0).unwrap(), row.get(1).unwrap());
        let before = replayed.insert(key, state).flatten();
        let previous: Option<String> = row.get(4).unwrap();
        assert_eq!(before.map(|(digest, _)| digest), previous);
    }
    replayed.retain(|_, state| state.is_some());
    let sql = "SELECT name, tag, digest, immutable FROM tags JOIN repositories ON id = repository";
    let mut tags = database.prepare(sql).unwrap();
    let tags = tags.query_map([], |row| {
        let key = (row.get(0)?, row.get(1)?);
        Ok((key, Some((row.get(2)?, row.get(3)?))))
    });
    let tags: BTreeMap<(String, String), State> = tags.unwrap().map(Result::unwrap).collect();
    assert_eq!(replayed, tags);
    let staged = data.join("docker/registry/_gantry/uploads");
    wait_until(
        "the sweep of staging files",
        Duration::from_secs(10),
        || {
            fs::read_dir(&staged).unwrap().all(|file| {
                let upload = file.unwrap().file_name().into_string().unwrap();
                let sql = "SELECT EXISTS (SELECT 1 FROM uploads WHERE upload = ?1)";
                database.query_row(sql, [upload], |row| row.get(0)).unwrap()
            })
        },
    );
}
