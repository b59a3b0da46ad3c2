//! Receivers are told of everything, in order, until they took it or it died.

use std::collections::VecDeque;

use gantry_storage::{EventFilter, MemoryMetadata, outbox::EventCursor};
use tokio::{sync::Notify, time::Instant};

use super::*;

const START_MS: u64 = 1_700_000_000_000;

/// Moves with tokio's paused clock.
#[derive(Debug)]
struct PausedClock(Instant);

impl Clock for PausedClock {
    fn now_ms(&self) -> u64 {
        START_MS + u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }
}

type Answer = Result<Vec<Delivery>, String>;

/// Answers as it was told to, else takes everything.
#[derive(Debug, Default)]
struct Scripted {
    script: Mutex<VecDeque<Answer>>,
    down: AtomicBool,
    is_one_endpoint: AtomicBool,
    calls: Mutex<Vec<Vec<String>>>,
    shown: Mutex<Vec<Event>>,
    called: Notify,
}

impl Scripted {
    fn calls(&self) -> Vec<Vec<String>> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.clone()
    }

    async fn called(&self, times: usize) -> Vec<Vec<String>> {
        loop {
            let called = self.called.notified();
            let calls = self.calls();
            if calls.len() >= times {
                return calls;
            }
            called.await;
        }
    }

    fn answer(&self, count: usize) -> Answer {
        if self.down.load(Ordering::Relaxed) {
            return Ok(vec![Delivery::Retry(Duration::ZERO); count]);
        }
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let scripted = script.pop_front();
        scripted.unwrap_or_else(|| Ok(vec![Delivery::Delivered; count]))
    }
}

#[derive(Debug)]
struct Hook(Arc<Scripted>);

#[async_trait]
impl Receiver for Hook {
    fn name(&self) -> &'static str {
        "hook"
    }

    fn covers(&self, repository: &RepositoryName) -> bool {
        repository.as_str() != "private"
    }

    fn is_one_endpoint(&self) -> bool {
        self.0.is_one_endpoint.load(Ordering::Relaxed)
    }

    async fn observe(&self, events: &[Event]) -> Answer {
        let answer = self.0.answer(events.len());
        self.0.shown.lock().unwrap().extend_from_slice(events);
        let ids = events.iter().map(|event| event.id.clone()).collect();
        self.0.calls.lock().unwrap().push(ids);
        self.0.called.notify_waiters();
        answer
    }
}

struct World {
    store: Arc<MemoryMetadata>,
    events: Arc<Events>,
    hook: Arc<Scripted>,
}

impl World {
    fn new(script: impl IntoIterator<Item = Answer>) -> Self {
        let store = Arc::new(MemoryMetadata::new());
        let clock = Arc::new(PausedClock(Instant::now()));
        let events = Events::new(
            Arc::clone(&store) as _,
            clock,
            SourceFacts::default(),
            EventMeter::default(),
        );
        let hook = Scripted {
            script: Mutex::new(script.into_iter().collect()),
            ..Scripted::default()
        };
        Self {
            store,
            events,
            hook: Arc::new(hook),
        }
    }

    async fn start(&self, settings: EventSettings) -> Dispatchers {
        let hook: Arc<dyn Receiver> = Arc::new(Hook(Arc::clone(&self.hook)));
        self.events.start(vec![hook], &settings).await.unwrap()
    }

    async fn tell(&self, events: impl IntoIterator<Item = (&str, &str)>) {
        let events = events.into_iter();
        let events = events.map(|(id, repository)| event(id, repository));
        self.store.append(events.collect()).await.unwrap();
        self.events.committed();
    }

    /// Waits until nothing waits any more, and returns the dead.
    async fn settled(&self) -> Vec<(String, u32, String)> {
        loop {
            let depth = self.store.depth().await.unwrap();
            if depth.sinks.iter().all(|sink| sink.waiting == 0) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let all = EventFilter::default();
        let dead = self.store.list(&all, &EventCursor::default(), 100).await;
        let dead = dead.unwrap().into_iter().map(|entry| {
            let error = entry.error.unwrap_or_default();
            (entry.waiting.event.id, entry.waiting.attempts, error)
        });
        dead.collect()
    }
}

fn event(id: &str, repository: &str) -> Event {
    Event {
        id: id.to_owned(),
        kind: EventKind::ManifestPushed,
        at_ms: START_MS,
        repository: repository.parse().unwrap(),
        digest: None,
        tag: None,
        actor: "user:alice".to_owned(),
        payload: Payload::default(),
    }
}

fn retry() -> Answer {
    Ok(vec![Delivery::Retry(Duration::ZERO)])
}

#[tokio::test(start_paused = true)]
async fn events_are_handed_over_in_order_and_forgotten() {
    let world = World::new([]);
    let dispatchers = world.start(EventSettings::default()).await;
    world.tell([("a1", "a"), ("b1", "b"), ("a2", "a")]).await;
    assert_eq!(world.settled().await, []);
    assert_eq!(world.hook.calls(), [vec!["a1", "b1"], vec!["a2"]]);
    dispatchers.stop().await;
    assert_eq!(
        world.store.depth().await.unwrap(),
        gantry_storage::Depth::default()
    );
}

#[tokio::test(start_paused = true)]
async fn an_event_that_failed_comes_again_before_what_is_younger() {
    let world = World::new([retry(), retry()]);
    let _dispatchers = world.start(EventSettings::default()).await;
    let before = Instant::now();
    world.tell([("a1", "a"), ("a2", "a")]).await;
    assert_eq!(world.settled().await, []);
    assert_eq!(world.hook.calls(), [["a1"], ["a1"], ["a1"], ["a2"]]);
    assert!(
        before.elapsed() <= Duration::from_secs(4),
        "{:?}",
        before.elapsed()
    );
    assert!(before.elapsed() >= MIN_TOTAL, "{:?}", before.elapsed());
}

/// Two waits of the least length.
const MIN_TOTAL: Duration = Duration::from_millis(200);

#[tokio::test(start_paused = true)]
async fn what_waited_for_a_receiver_that_was_away_arrives_once_and_in_order() {
    const EVENTS: usize = 2_000;
    const REPOSITORIES: usize = 40;
    let world = World::new([]);
    world.hook.down.store(true, Ordering::Relaxed);
    let _dispatchers = world.start(EventSettings::default()).await;
    let events: Vec<(String, String)> = (0..EVENTS)
        .map(|number| {
            (
                number.to_string(),
                format!("team/{}", number % REPOSITORIES),
            )
        })
        .collect();
    for some in events.chunks(1_000) {
        let some = some.iter();
        world.tell(some.map(|(id, name)| (&**id, &**name))).await;
    }
    // Each repository's oldest was tried again and again, and nothing else was.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let failed = world.hook.calls();
    let tried = |id: &String| id.parse::<usize>().unwrap() < REPOSITORIES;
    assert!(failed.iter().flatten().count() > REPOSITORIES);
    assert!(failed.iter().flatten().all(tried));
    world.hook.down.store(false, Ordering::Relaxed);
    assert_eq!(world.settled().await, []);
    let calls = world.hook.calls().split_off(failed.len());
    let mut arrived = vec![Vec::new(); REPOSITORIES];
    for number in calls
        .iter()
        .flatten()
        .map(|id| id.parse::<usize>().unwrap())
    {
        arrived[number % REPOSITORIES].push(number);
    }
    assert_eq!(arrived.iter().map(Vec::len).sum::<usize>(), EVENTS);
    for of_one in &arrived {
        assert!(of_one.is_sorted(), "{of_one:?}");
        assert_eq!(of_one.len(), EVENTS / REPOSITORIES);
    }
}

#[tokio::test(start_paused = true)]
async fn the_receivers_own_wait_is_kept() {
    let asked = Duration::from_secs(120);
    let world = World::new([Ok(vec![Delivery::Retry(asked)])]);
    let _dispatchers = world.start(EventSettings::default()).await;
    let before = Instant::now();
    world.tell([("a1", "a")]).await;
    world.hook.called(2).await;
    let waited = before.elapsed();
    assert!(
        (asked..asked + Duration::from_secs(1)).contains(&waited),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_an_endpoint_names_holds_whatever_else_there_is_for_it() {
    let asked = Duration::from_secs(600);
    let world = World::new([Ok(vec![Delivery::Retry(asked)])]);
    world.hook.is_one_endpoint.store(true, Ordering::Relaxed);
    let dispatchers = world.start(EventSettings::default()).await;
    let before = Instant::now();
    world.tell([("a1", "a")]).await;
    world.hook.called(1).await;
    for number in 0..120 {
        let (id, name) = (format!("b{number}"), format!("b/{number}"));
        world.tell([(&*id, &*name)]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // A reload is no reason to try again.
    dispatchers.stop().await;
    let _dispatchers = world.start(EventSettings::default()).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.hook.calls(), [["a1"]]);
    world.hook.called(2).await;
    assert!(before.elapsed() >= asked, "{:?}", before.elapsed());
    assert_eq!(world.settled().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_one_event_of_a_receiver_of_many_holds_that_one_alone() {
    let asked = Duration::from_secs(600);
    let world = World::new([Ok(vec![Delivery::Retry(asked)])]);
    let _dispatchers = world.start(EventSettings::default()).await;
    let before = Instant::now();
    world.tell([("a1", "a")]).await;
    world.hook.called(1).await;
    world.tell([("b1", "b")]).await;
    world.hook.called(2).await;
    assert!(before.elapsed() < asked, "{:?}", before.elapsed());
    assert_eq!(world.hook.calls(), [["a1"], ["b1"]]);
}

#[tokio::test(start_paused = true)]
async fn the_source_of_a_mount_is_named_to_a_receiver_that_covers_it() {
    let world = World::new([]);
    let _dispatchers = world.start(EventSettings::default()).await;
    let mounted = |id: &str, source: &str| Event {
        kind: EventKind::BlobMounted,
        payload: Payload {
            from_repository: Some(source.to_owned()),
            ..Payload::default()
        },
        ..event(id, "public")
    };
    let events = vec![mounted("m1", "private"), mounted("m2", "open")];
    world.store.append(events).await.unwrap();
    world.events.committed();
    assert_eq!(world.settled().await, []);
    let shown = world.hook.shown.lock().unwrap().clone();
    let sources = shown
        .iter()
        .map(|event| event.payload.from_repository.as_deref());
    assert_eq!(sources.collect::<Vec<_>>(), [None, Some("open")]);
}

#[tokio::test(start_paused = true)]
async fn what_is_older_than_the_greatest_age_is_forgotten_with_its_receiver() {
    let settings = EventSettings::default();
    let world = World::new([]);
    world.hook.down.store(true, Ordering::Relaxed);
    let dispatchers = world.start(settings).await;
    world.tell([("a1", "a")]).await;
    dispatchers.stop().await;
    let _none = world.events.start(Vec::new(), &settings).await.unwrap();
    let stop = watch::Sender::new(false);
    let watching = tokio::spawn(Arc::clone(&world.events).watch(stop.subscribe()));
    tokio::time::sleep(settings.max_age / 2).await;
    assert_eq!(world.store.depth().await.unwrap().events, 1);
    tokio::time::sleep(settings.max_age / 2 + 2 * MEASURE_EVERY).await;
    assert_eq!(world.store.depth().await.unwrap().events, 0);
    stop.send_replace(true);
    watching.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_last_attempt_makes_a_dead_letter_and_the_repository_goes_on() {
    let settings = EventSettings {
        max_attempts: 3,
        ..EventSettings::default()
    };
    let world = World::new([retry(), retry(), retry()]);
    let _dispatchers = world.start(settings).await;
    world.tell([("a1", "a"), ("a2", "a")]).await;
    let [(id, attempts, error)] = world.settled().await.try_into().unwrap();
    assert_eq!((id.as_str(), attempts), ("a1", 3));
    assert!(error.starts_with("the last attempt failed"), "{error}");
    assert_eq!(world.hook.calls(), [["a1"], ["a1"], ["a1"], ["a2"]]);
    assert_eq!(
        world.store.replay(&EventFilter::default()).await.unwrap(),
        1
    );
    world.events.wake();
    assert_eq!(world.settled().await, []);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_too_old_dies() {
    let settings = EventSettings {
        max_age: Duration::from_secs(30),
        ..EventSettings::default()
    };
    let world = World::new([]);
    world.hook.down.store(true, Ordering::Relaxed);
    let _dispatchers = world.start(settings).await;
    let before = Instant::now();
    world.tell([("a1", "a")]).await;
    let [(_id, attempts, error)] = world.settled().await.try_into().unwrap();
    assert!(attempts >= 2, "{attempts}");
    assert!(error.starts_with("too old"), "{error}");
    // The attempt before the last came while the event was young; only the greatest wait after it may pass the age.
    let last_wait = dispatch::backoff(attempts - 1, u64::from(u32::MAX));
    let elapsed = before.elapsed();
    assert!(elapsed >= settings.max_age, "{elapsed:?}");
    assert!(
        elapsed <= settings.max_age + last_wait + Duration::from_secs(1),
        "{elapsed:?} after {attempts} attempts"
    );
}

#[tokio::test(start_paused = true)]
async fn what_the_receiver_drops_is_kept_with_its_reason() {
    let world = World::new([Ok(vec![Delivery::Drop("410".to_owned())])]);
    let _dispatchers = world.start(EventSettings::default()).await;
    world.tell([("a1", "a")]).await;
    let dead = world.settled().await;
    assert_eq!(dead, [("a1".to_owned(), 1, "dropped: 410".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn after_a_batch_that_failed_whole_each_event_comes_alone() {
    let world = World::new([Err("trapped".to_owned()), Ok(Vec::new())]);
    let _dispatchers = world.start(EventSettings::default()).await;
    world.tell([("a1", "a"), ("b1", "b")]).await;
    assert_eq!(world.settled().await, []);
    let calls = world.hook.calls();
    assert_eq!(calls[0], ["a1", "b1"]);
    assert!(calls[1..].iter().all(|ids| ids.len() == 1), "{calls:?}");
    assert_eq!(
        calls.len(),
        4,
        "a batch, a wrong answer, and both: {calls:?}"
    );
}

/// Never answers its first call, and takes all others.
#[derive(Debug)]
struct Stuck(Arc<Scripted>);

#[async_trait]
impl Receiver for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn is_one_endpoint(&self) -> bool {
        false
    }

    fn covers(&self, _repository: &RepositoryName) -> bool {
        true
    }

    async fn observe(&self, events: &[Event]) -> Answer {
        let is_first = self.0.calls().is_empty();
        let answer = Hook(Arc::clone(&self.0)).observe(events).await;
        if is_first {
            std::future::pending::<()>().await;
        }
        answer
    }
}

#[tokio::test(start_paused = true)]
async fn a_receiver_that_is_in_a_call_holds_up_no_other_at_a_reload() {
    let (world, stuck) = (World::new([]), Arc::new(Scripted::default()));
    let receivers = || -> Vec<Arc<dyn Receiver>> {
        vec![
            Arc::new(Stuck(Arc::clone(&stuck))),
            Arc::new(Hook(Arc::clone(&world.hook))),
        ]
    };
    let settings = EventSettings::default();
    let former = world.events.start(receivers(), &settings).await.unwrap();
    world.tell([("a1", "a")]).await;
    stuck.called(1).await;
    world.hook.called(1).await;
    let ending = tokio::spawn(former.stop());
    let _next = world.events.start(receivers(), &settings).await.unwrap();
    world.tell([("a2", "a")]).await;
    assert_eq!(world.hook.called(2).await, [["a1"], ["a2"]]);
    // The call goes on, and the next task of that receiver waits for it.
    assert!(!ending.is_finished());
    assert_eq!(stuck.calls(), [["a1"]]);
    ending.abort();
    assert_eq!(stuck.called(2).await[1], ["a1"]);
}

#[tokio::test(start_paused = true)]
async fn what_a_receiver_does_not_cover_is_not_shown_to_it() {
    let world = World::new([]);
    let _dispatchers = world.start(EventSettings::default()).await;
    world.tell([("p1", "private"), ("a1", "a")]).await;
    assert_eq!(world.settled().await, []);
    assert_eq!(world.hook.calls(), [["a1"]]);
}

#[tokio::test(start_paused = true)]
async fn a_stopped_dispatcher_writes_down_its_last_outcome_and_another_goes_on() {
    let world = World::new([]);
    let dispatchers = world.start(EventSettings::default()).await;
    world.tell([("a1", "a"), ("a2", "a")]).await;
    world.hook.called(1).await;
    dispatchers.stop().await;
    let told = world.hook.calls().len();
    let waiting = world.store.depth().await.unwrap();
    let waiting: u64 = waiting.sinks.iter().map(|sink| sink.waiting).sum();
    assert_eq!(told as u64 + waiting, 2);
    let _again = world.start(EventSettings::default()).await;
    assert_eq!(world.settled().await, []);
    assert_eq!(world.hook.calls(), [["a1"], ["a2"]]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_whose_process_died_is_counted() {
    let world = World::new([]);
    let settings = EventSettings::default();
    drop(world.start(settings).await);
    world.tell([("a1", "a")]).await;
    let died = gantry_storage::Take {
        sink: "hook".to_owned(),
        settled: Vec::new(),
        limit: 16,
        now_ms: START_MS,
    };
    assert_eq!(world.store.take(died).await.unwrap().batch.len(), 1);
    world
        .hook
        .script
        .lock()
        .unwrap()
        .push_back(Ok(vec![Delivery::Drop("seen".to_owned())]));
    let _dispatchers = world.start(settings).await;
    let dead = world.settled().await;
    assert_eq!(dead, [("a1".to_owned(), 2, "dropped: seen".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn pulls_are_told_as_configured() {
    let world = World::new([]);
    assert!(
        !world.events.wants(EventKind::ManifestPushed),
        "nobody listens"
    );
    for (pulls, least, most) in [
        (Pulls::Off, 0, 0),
        (Pulls::All, 10_000, 10_000),
        (Pulls::Sample(0.5), 4_500, 5_500),
        (Pulls::Sample(1.0), 10_000, 10_000),
    ] {
        let settings = EventSettings {
            pulls,
            ..EventSettings::default()
        };
        let _dispatchers = world.start(settings).await;
        let told = (0..10_000).filter(|_| world.events.wants(EventKind::BlobPulled));
        let told = told.count();
        assert!((least..=most).contains(&told), "{pulls:?}: {told}");
        assert!(world.events.wants(EventKind::TagMoved));
    }
}

#[tokio::test(start_paused = true)]
async fn facts_without_a_commit_are_written_together_and_the_last_before_the_end() {
    let world = World::new([]);
    let _dispatchers = world.start(EventSettings::default()).await;
    let stop = watch::Sender::new(false);
    let gather = Arc::clone(&world.events).gather(stop.subscribe());
    let gather = tokio::spawn(gather);
    let pull = |id: &str| Event {
        id: id.to_owned(),
        kind: EventKind::BlobPulled,
        at_ms: START_MS,
        repository: "a".parse().unwrap(),
        digest: None,
        tag: None,
        actor: "anonymous".to_owned(),
        payload: Payload::default(),
    };
    world.events.record(pull("p1"));
    world.hook.called(1).await;
    world.events.record(pull("p2"));
    stop.send_replace(true);
    gather.await.unwrap();
    assert_eq!(world.settled().await, []);
    assert_eq!(world.hook.calls(), [["p1"], ["p2"]]);
    world.events.record(pull("p3"));
    assert_eq!(world.events.lost(), 1);
}

#[test]
fn waits_grow_twofold_up_to_five_minutes_with_full_jitter() {
    let most = u64::from(u32::MAX);
    let waits = [1, 2, 3, 9, 10, 60].map(|attempts| dispatch::backoff(attempts, most).as_millis());
    assert_eq!(waits, [999, 1_999, 3_999, 255_999, 299_999, 299_999]);
    assert_eq!(dispatch::backoff(9, 0), Duration::ZERO);
}
