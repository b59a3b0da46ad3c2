//! What was acknowledged is told: also after `kill -9`, also when the receiver was away, and never at a push's cost.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    Gateway, Image, Wire,
    gateway::{USER, program, usual_config},
    image::{Content, MANIFEST},
    tools::{free_port, run, wait_until},
    wire::{runtime, whole},
};

/// A receiver of webhooks: remembers everything, and takes it unless it was told to answer otherwise.
struct Receiver {
    port: u16,
    taken: Arc<Mutex<Vec<Value>>>,
    /// What it answers; 0: nothing, and the connection stays open; 429: with a pause of ten minutes.
    status: Arc<AtomicU16>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    fn start(port: u16) -> Self {
        Self::answering(port, 200)
    }

    fn answering(port: u16, status: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (taken, stop) = (Arc::default(), Arc::default());
        let status = Arc::new(AtomicU16::new(status));
        let thread = thread::spawn({
            let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
            let status = Arc::clone(&status);
            move || serve(&listener, &taken, &status, &stop)
        });
        Self {
            port,
            taken,
            status,
            stop,
            thread: Some(thread),
        }
    }

    fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Every event that arrived.
    fn events(&self) -> Vec<Value> {
        self.taken.lock().unwrap().clone()
    }

    fn pushes_of(&self, tag: &str) -> usize {
        let is_push = |event: &&Value| event["action"] == "push" && event["target"]["tag"] == tag;
        self.events().iter().filter(is_push).count()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(std::net::TcpStream::connect(("127.0.0.1", self.port)));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(listener: &TcpListener, taken: &Mutex<Vec<Value>>, status: &AtomicU16, stop: &AtomicBool) {
    let mut held = Vec::new();
    for stream in listener.incoming() {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let mut stream = stream.unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut length = 0;
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            continue;
        }
        if let Ok(envelope) = serde_json::from_slice::<Value>(&body) {
            let events = envelope["events"].as_array().cloned();
            taken.lock().unwrap().extend(events.unwrap_or_default());
        }
        let status = status.load(Ordering::SeqCst);
        if status == 0 {
            held.push(stream);
            continue;
        }
        let pause = match status {
            429 => "Retry-After: 600\r\n",
            _ => "",
        };
        drop(write!(
            stream,
            "HTTP/1.1 {status} Told\r\n{pause}Content-Length: 0\r\nConnection: close\r\n\r\n"
        ));
    }
}

/// The usual configuration, whose admin API alice may use.
fn config(plugins: &str) -> String {
    usual_config("", plugins).replace(
        "        - { who: [\"user:*\"]",
        "        - { who: [\"user:alice\"], may: [admin] }\n        - { who: [\"user:*\"]",
    )
}

fn telling(receiver: u16) -> String {
    config(&format!(
        r#"
  - name: hook
    from: builtin:webhook
    grants: {{ http: ["http://127.0.0.1:{receiver}/"] }}
    config: {{ endpoints: [{{ url: "http://127.0.0.1:{receiver}/hook" }}] }}
"#
    ))
}

/// `gantry events`, as an operator calls it; its document.
fn events(gateway: &Gateway, arguments: &[&str]) -> Value {
    let file = gateway.folder().join("password");
    fs::write(&file, USER.1).unwrap();
    let done = run(Command::new(program())
        .arg("events")
        .args(arguments)
        .args(["--output", "json", "--user", USER.0, "--config"])
        .arg(gateway.config_path())
        .arg("--password-file")
        .arg(&file));
    serde_json::from_str(&done.ok()).unwrap()
}

/// The delivery of this tag's push, when it is still there.
fn delivery(gateway: &Gateway, tag: &str) -> Option<Value> {
    let listed = events(gateway, &["list", "--receiver", "hook"]);
    let mut listed = listed["events"].as_array()?.iter();
    let is_push = |event: &&Value| event["tag"] == tag && event["kind"] == "manifest.pushed";
    listed.find(is_push).cloned()
}

fn ids_of(receiver: &Receiver, tag: &str) -> HashSet<String> {
    let events = receiver.events().into_iter();
    let told = events.filter(|event| event["action"] == "push" && event["target"]["tag"] == tag);
    told.map(|event| event["id"].as_str().unwrap().to_owned())
        .collect()
}

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_push_is_told_as_distribution_tells_it() {
    let receiver = Receiver::start(free_port());
    let gateway = Gateway::start(&telling(receiver.port));
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(1000);
    wire.push_image("team/web", "v1", &image);
    wait_until("the push", PATIENCE, || receiver.pushes_of("v1") > 0);
    let events = receiver.events();
    let push = events.iter().find(|event| event["target"]["tag"] == "v1");
    let push = push.unwrap();
    assert_eq!(push["target"]["repository"], "team/web");
    assert_eq!(push["target"]["digest"], image.manifest.digest);
    assert_eq!(push["request"]["method"], "PUT");
    assert_eq!(push["request"]["host"], gateway.host());
    let url = format!(
        "http://{}/v2/team/web/manifests/{}",
        gateway.host(),
        image.manifest.digest
    );
    assert_eq!(push["target"]["url"], url);
    let actor = push["actor"]["name"].as_str().unwrap();
    assert!(actor.ends_with(USER.0), "{actor}");
}

#[test]
fn a_push_that_was_acknowledged_before_kill_9_is_told_after_the_restart() {
    let port = free_port();
    let mut gateway = Gateway::start(&telling(port));
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("team/web", "v1", &Image::random(1000));
    // The receiver was away all the time, and is for the restart too.
    gateway.kill9();
    gateway.restart();
    wire.push_image("team/web", "v2", &Image::random(1000));
    let receiver = Receiver::start(port);
    wait_until("both pushes", PATIENCE, || {
        receiver.pushes_of("v1") > 0 && receiver.pushes_of("v2") > 0
    });
    let tags: Vec<String> = receiver
        .events()
        .iter()
        .filter_map(|event| event["target"]["tag"].as_str().map(str::to_owned))
        .collect();
    let first = |tag: &str| tags.iter().position(|told| told == tag);
    assert!(first("v1") < first("v2"), "{tags:?}");
}

#[test]
fn a_delivery_that_kill_9_cut_off_is_made_again_and_both_attempts_are_counted() {
    let receiver = Receiver::answering(free_port(), 0);
    let mut gateway = Gateway::start(&telling(receiver.port));
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(1000);
    wire.push_image("team/web", "v1", &image);
    // The first event of the repository is with the receiver, which says nothing.
    wait_until("the first attempt", PATIENCE, || {
        !receiver.events().is_empty()
    });
    gateway.kill9();
    receiver.answer(503);
    gateway.restart();
    let tried_twice = || {
        let listed = events(&gateway, &["list", "--state", "waiting"]);
        listed["events"][0]["attempts"].as_u64() >= Some(2)
    };
    wait_until("the second attempt", PATIENCE, tried_twice);
    assert!(delivery(&gateway, "v1").is_some());
    receiver.answer(200);
    wait_until("nothing to wait", PATIENCE, || {
        let listed = events(&gateway, &["list"]);
        listed["events"].as_array().unwrap().is_empty()
    });
    assert_eq!(ids_of(&receiver, "v1").len(), 1);
    let delivered = "gantry_deliveries_total{receiver=\"hook\",outcome=\"delivered\"}";
    assert!(gateway.metric(delivered) >= 3.0, "{}", gateway.metrics());
}

#[test]
fn a_dead_letter_is_listed_and_delivered_when_the_operator_replays_it() {
    let receiver = Receiver::answering(free_port(), 503);
    let gateway = Gateway::start(&(telling(receiver.port) + "events: { max_attempts: 1 }\n"));
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("team/web", "v1", &Image::random(1000));
    wait_until("the dead letter", PATIENCE, || {
        delivery(&gateway, "v1").is_some_and(|letter| letter["state"] == "dead")
    });
    let letter = delivery(&gateway, "v1").unwrap();
    assert_eq!(letter["receiver"], "hook");
    assert_eq!(letter["repository"], "team/web");
    assert_eq!(letter["attempts"], 1);
    assert!(letter["error"].is_string(), "{letter}");
    let dead = "gantry_outbox_events{receiver=\"hook\",state=\"dead\"}";
    wait_until("the letter to be counted", PATIENCE, || {
        gateway.metric(dead) >= 1.0
    });
    let one_page = events(&gateway, &["list", "--limit", "1"]);
    let next = one_page["next"].as_str().unwrap();
    let second = events(&gateway, &["list", "--limit", "1", "--after", next]);
    assert_ne!(one_page["events"][0]["id"], second["events"][0]["id"]);

    receiver.answer(200);
    let before = receiver.pushes_of("v1");
    let id = letter["id"].as_str().unwrap();
    assert_eq!(events(&gateway, &["replay", "--id", id])["replayed"], 1);
    wait_until("the replayed letter", PATIENCE, || {
        receiver.pushes_of("v1") > before && delivery(&gateway, "v1").is_none()
    });
    assert_eq!(ids_of(&receiver, "v1"), HashSet::from([id.to_owned()]));

    let dropped = events(&gateway, &["drop", "--receiver", "hook"]);
    assert!(dropped["dropped"].as_u64() >= Some(1), "{dropped}");
    assert_eq!(events(&gateway, &["list"])["events"], serde_json::json!([]));
    let admin = Wire::basic(gateway.admin_port, USER);
    let gone = format!("{{\"id\":\"{id}\"}}");
    let replay = "/admin/v1/events/replay";
    admin.send("POST", replay, &[], gone.clone()).expect(404);
    admin.send("POST", replay, &[], "{}").expect(400);
    Wire::anonymous(gateway.admin_port)
        .send("POST", replay, &[], gone)
        .expect(401);
}

#[test]
fn a_stuck_endpoint_holds_back_no_other_of_its_binding() {
    let stuck = Receiver::answering(free_port(), 0);
    let honest = Receiver::start(free_port());
    let (first, second) = (stuck.port, honest.port);
    let gateway = Gateway::start(&config(&format!(
        r#"
  - name: hook
    from: builtin:webhook
    grants: {{ http: ["http://127.0.0.1:{first}/", "http://127.0.0.1:{second}/"] }}
    config:
      endpoints:
        - {{ url: "http://127.0.0.1:{first}/hook", blobs: false }}
        - {{ url: "http://127.0.0.1:{second}/hook", blobs: false }}
"#
    )));
    let wire = Wire::basic(gateway.port, USER);
    let tags = [0, 1, 2, 3, 4, 5].map(|number| format!("v{number}"));
    for tag in &tags {
        wire.push_image("team/web", tag, &Image::random(100));
    }
    wait_until("every push at the honest endpoint", PATIENCE, || {
        tags.iter().all(|tag| honest.pushes_of(tag) > 0)
    });
    // The stuck endpoint has seen the first push and nothing else, and takes the others in order once it answers.
    let tag_of = |event: &Value| event["target"]["tag"].as_str().unwrap().to_owned();
    assert!(stuck.events().iter().all(|event| tag_of(event) == "v0"));
    let marks = |events: Value| -> HashSet<String> {
        let events = events["events"].as_array().unwrap().clone();
        let mark = |event: Value| event["endpoint"].as_str().unwrap().to_owned();
        events.into_iter().map(mark).collect()
    };
    let mut left = HashSet::new();
    wait_until(
        "the stuck endpoint alone to have events waiting",
        PATIENCE,
        || {
            left = marks(events(&gateway, &["list", "--receiver", "hook"]));
            left.len() == 1
        },
    );
    let one = format!("hook/{}", left.iter().next().unwrap());
    assert_eq!(marks(events(&gateway, &["list", "--receiver", &one])), left);
    stuck.answer(200);
    wait_until("every push at the other endpoint", PATIENCE, || {
        tags.iter().all(|tag| stuck.pushes_of(tag) > 0)
    });
    let mut order: Vec<String> = stuck.events().iter().map(tag_of).collect();
    order.dedup();
    assert_eq!(order, tags);
    assert!(tags.iter().all(|tag| honest.pushes_of(tag) == 1));
}

#[test]
fn a_receiver_that_asks_for_silence_gets_it_from_every_repository() {
    const REPOSITORIES: usize = 30;
    let receiver = Receiver::answering(free_port(), 429);
    let gateway = Gateway::start(&telling(receiver.port));
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(100);
    wire.push_image("team/web", "v1", &image);
    wait_until("the first attempt", PATIENCE, || {
        !receiver.events().is_empty()
    });
    // The pause begins when the answer is read.
    wait_until("the pause", PATIENCE, || {
        let again = "gantry_deliveries_total{receiver=\"hook\",outcome=\"again\"}";
        gateway.metric(again) >= 1.0
    });
    for number in 0..REPOSITORIES {
        wire.push_image(&format!("team/{number}"), "v1", &image);
    }
    let waiting = "gantry_outbox_events{receiver=\"hook\",state=\"waiting\"}";
    wait_until("the events to wait", PATIENCE, || {
        gateway.metric(waiting) >= REPOSITORIES as f64
    });
    assert_eq!(receiver.events().len(), 1);
}

#[test]
fn a_reload_that_adds_a_receiver_tells_it_of_what_comes_next() {
    let receiver = Receiver::start(free_port());
    let gateway = Gateway::start(&config(""));
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("team/web", "before", &Image::random(1000));
    gateway.write_config(&telling(receiver.port));
    let mut pushes = 0;
    // The file's change counts when it is seen.
    wait_until("a push to be told", PATIENCE, || {
        pushes += 1;
        wire.push_image("team/web", &format!("v{pushes}"), &Image::random(100));
        !receiver.events().is_empty()
    });
    assert_eq!(receiver.pushes_of("before"), 0);
}

#[test]
fn a_receiver_that_is_away_does_not_slow_pushes() {
    let config = telling(free_port()) + "events: { max_events: 500 }\n";
    let gateway = Gateway::start(&config);
    let wire = Wire::basic(gateway.port, USER);
    let push = |count: usize| {
        let began = Instant::now();
        for _ in 0..count {
            wire.push_blob("team/web", &Content::random(64)).expect(201);
        }
        began.elapsed()
    };
    let first = push(200);
    push(600);
    let full = push(200);
    assert!(
        full < first * 3 + Duration::from_secs(2),
        "{first:?}, then {full:?}"
    );
    let waiting = "gantry_outbox_events{receiver=\"hook\",state=\"waiting\"}";
    wait_until("what was pushed out to be counted", PATIENCE, || {
        gateway.metric("gantry_events_evicted_total") >= 500.0
    });
    assert!((1.0..=500.0).contains(&gateway.metric(waiting)));
    assert!(gateway.log().contains("the outbox is full"));
}

#[test]
fn ten_thousand_events_for_a_dead_receiver_fail_no_push_and_stay_within_their_bound() {
    const EVENTS: usize = 10_000;
    const BOUND: f64 = 2_000.0;
    let bounded = format!("events: {{ max_events: {BOUND}, pulls: all }}\n");
    let gateway = Gateway::start(&(telling(free_port()) + &bounded));
    let wire = Wire::basic(gateway.port, USER);
    wire.push_image("team/web", "v1", &Image::random(100));
    let push = |name: &str| {
        let began = Instant::now();
        for _ in 0..20 {
            wire.push_image(name, "v1", &Image::random(100));
        }
        began.elapsed()
    };
    let before = push("team/before");
    runtime().block_on(async {
        let pulls = (0..16).map(|_client| {
            let wire = wire.clone();
            runtime().spawn(async move {
                for _ in 0..EVENTS / 16 {
                    let pull = wire.request("GET", "/v2/team/web/manifests/v1", &[]);
                    assert_eq!(whole(pull).await.unwrap().status, 200);
                }
            })
        });
        for pull in pulls.collect::<Vec<_>>() {
            pull.await.unwrap();
        }
    });
    let after = push("team/after");
    assert!(
        after < before * 3 + Duration::from_secs(2),
        "{before:?}, then {after:?}"
    );
    let told = || {
        gateway.metric("gantry_events_evicted_total") + gateway.metric("gantry_events_lost_total")
    };
    wait_until("ten thousand events to be accounted for", PATIENCE, || {
        told() + BOUND >= EVENTS as f64
    });
    let waiting = gateway.metric("gantry_outbox_events{receiver=\"hook\",state=\"waiting\"}");
    assert!((1.0..=BOUND).contains(&waiting), "{waiting}");
    // Pulls make room for pushes, never the other way round.
    assert!(delivery(&gateway, "v1").is_some());
}

#[test]
fn what_waited_for_a_receiver_is_told_in_order_once_it_is_back() {
    const PUSHES: usize = 300;
    const REPOSITORIES: usize = 3;
    let port = free_port();
    let gateway = Gateway::start(&telling(port));
    let wire = Wire::basic(gateway.port, USER);
    let image = Image::random(100);
    for repository in 0..REPOSITORIES {
        wire.push_image(&format!("team/{repository}"), "first", &image);
    }
    for number in 0..PUSHES {
        let repository = format!("team/{}", number % REPOSITORIES);
        let bytes = image.manifest.bytes.clone();
        let pushed = wire.push_manifest(&repository, &number.to_string(), MANIFEST, bytes);
        pushed.expect(201);
    }
    let receiver = Receiver::start(port);
    let pushes = || {
        let is_push = |event: &Value| event["action"] == "push";
        let mut arrived = vec![Vec::new(); REPOSITORIES];
        for event in receiver.events().iter().filter(|event| is_push(event)) {
            let target = &event["target"];
            let tag = target["tag"]
                .as_str()
                .and_then(|tag| tag.parse::<usize>().ok());
            if let Some(number) = tag {
                assert_eq!(
                    target["repository"],
                    format!("team/{}", number % REPOSITORIES)
                );
                arrived[number % REPOSITORIES].push(number);
            }
        }
        arrived
    };
    wait_until("all of them", PATIENCE, || {
        pushes().iter().map(Vec::len).sum::<usize>() >= PUSHES
    });
    for (repository, arrived) in pushes().into_iter().enumerate() {
        let expect: Vec<usize> = (repository..PUSHES).step_by(REPOSITORIES).collect();
        assert_eq!(arrived, expect, "team/{repository}");
    }
    assert_eq!(gateway.metric("gantry_events_evicted_total"), 0.0);
}

#[test]
fn what_waits_may_be_dropped_while_it_is_being_delivered() {
    let receiver = Receiver::answering(free_port(), 503);
    let gateway = Gateway::start(&telling(receiver.port));
    let wire = Wire::basic(gateway.port, USER);
    let waiting = ["drop", "--receiver", "hook", "--state", "waiting"];
    let mut dropped = 0;
    for round in 0..10 {
        wire.push_image("team/web", &format!("v{round}"), &Image::random(100));
        wait_until("an attempt", PATIENCE, || {
            receiver.pushes_of(&format!("v{round}")) > 0 || !receiver.events().is_empty()
        });
        let answer = events(&gateway, &waiting);
        dropped += answer["dropped"].as_u64().unwrap();
    }
    assert!(dropped > 0);
    wait_until("nothing to wait", PATIENCE, || {
        events(&gateway, &waiting);
        events(&gateway, &["list"])["events"] == serde_json::json!([])
    });
    receiver.answer(200);
    wire.push_image("team/web", "last", &Image::random(100));
    wait_until("the next push to be told", PATIENCE, || {
        receiver.pushes_of("last") == 1
    });
    assert_eq!(gateway.metric("gantry_background_panics_total"), 0.0);
}
