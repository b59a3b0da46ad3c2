//! What was acknowledged is told: also after `kill -9`, also when the receiver was away, and never at a push's cost.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::{
    Gateway, Image, Wire,
    gateway::{USER, usual_config},
    image::Content,
    tools::{free_port, wait_until},
};

/// A receiver of webhooks: takes everything, and remembers it.
struct Receiver {
    port: u16,
    taken: Arc<Mutex<Vec<Value>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    fn start(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let (taken, stop) = (Arc::default(), Arc::default());
        let thread = thread::spawn({
            let (taken, stop) = (Arc::clone(&taken), Arc::clone(&stop));
            move || serve(&listener, &taken, &stop)
        });
        Self {
            port,
            taken,
            stop,
            thread: Some(thread),
        }
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

fn serve(listener: &TcpListener, taken: &Mutex<Vec<Value>>, stop: &AtomicBool) {
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
        drop(write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ));
    }
}

fn telling(receiver: u16) -> String {
    usual_config(
        "",
        &format!(
            r#"
  - name: hook
    from: builtin:webhook
    grants: {{ http: ["http://127.0.0.1:{receiver}/"] }}
    config: {{ endpoints: [{{ url: "http://127.0.0.1:{receiver}/hook" }}] }}
"#
        ),
    )
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
}
