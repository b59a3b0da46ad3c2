//! What every outbox must pass. The store is a metadata store too, because events are written with commits.

#![expect(
    clippy::indexing_slicing,
    clippy::unreachable,
    reason = "a sentence that does not hold panics: this is test code"
)]

use std::sync::Arc;

use gantry_model::{Event, EventKind, event::Payload};

use super::{
    Checked,
    metadata::{digest, push_tag},
};
use crate::{
    Commit, CommitError, ContentOrigin, EventFilter, EventOutbox, MetadataStore, OutboxSettings,
    Settled, Settlement, StorageError, Take, Taken,
    outbox::{EventCursor, EventEntry, MAX_CHANGED},
};

/// Tests an outbox; see [`crate::suite`]. The store is an `Arc` of one that is a metadata store and an outbox.
#[macro_export]
macro_rules! outbox_suite {
    ($make:path) => {
        $crate::suite_tests! { $make, outbox,
            without_a_sink_nothing_is_written
            an_event_is_written_with_its_commit
            a_refused_commit_writes_no_event
            an_event_that_comes_again_is_kept_once
            each_sink_gets_every_event
            what_waits_for_a_sink_that_is_gone_waits_on
            what_waits_for_a_sink_that_is_gone_makes_room_first
            what_is_too_old_of_a_sink_that_is_gone_is_forgotten
            a_new_part_of_a_receiver_gets_what_a_former_part_left
            a_receiver_is_named_for_all_its_parts
            a_repository_gives_one_event_at_a_time_in_order
            an_event_that_fails_holds_back_its_repository_only
            a_repository_that_was_served_goes_behind_the_others
            an_attempt_is_counted_when_it_is_taken
            a_dead_letter_lets_its_repository_go_on
            a_replayed_letter_comes_before_what_is_younger
            what_is_dropped_is_gone
            a_full_outbox_first_loses_what_changed_nothing
            a_full_outbox_loses_the_oldest_change_and_never_refuses
            bytes_are_bounded_too
            the_list_is_filtered_and_paged
            a_change_of_many_letters_is_done_in_parts
            an_event_comes_back_as_it_was_written
        }
    };
}

/// What the suite needs of a store.
pub trait Store: EventOutbox + MetadataStore {}

impl<S: EventOutbox + MetadataStore> Store for S {}

/// A push of `repository` that happened at `at_ms`.
///
/// # Panics
/// When the name is none.
#[must_use]
pub fn event(id: &str, repository: &str, at_ms: u64) -> Event {
    Event {
        id: id.to_owned(),
        kind: EventKind::ManifestPushed,
        at_ms,
        repository: match repository.parse() {
            Ok(name) => name,
            Err(error) => unreachable!("{error}"),
        },
        digest: None,
        tag: None,
        actor: "user:alice".to_owned(),
        payload: Payload::default(),
    }
}

fn pull(id: &str, repository: &str, at_ms: u64) -> Event {
    Event {
        kind: EventKind::BlobPulled,
        ..event(id, repository, at_ms)
    }
}

fn settings(sinks: &[&str]) -> OutboxSettings {
    OutboxSettings {
        sinks: sinks.iter().map(|&sink| sink.to_owned()).collect(),
        max_events: 10_000,
        max_bytes: 1 << 30,
    }
}

fn take_of(sink: &str, now_ms: u64) -> Take {
    Take {
        sink: sink.to_owned(),
        settled: Vec::new(),
        limit: 100,
        now_ms,
    }
}

async fn take<S: Store>(store: &S, now_ms: u64) -> Result<Taken, StorageError> {
    store.take(take_of("hook", now_ms)).await
}

/// Settles everything that was taken, and takes again.
async fn settle<S: Store>(
    store: &S,
    taken: Taken,
    settlement: &Settlement,
    now_ms: u64,
) -> Result<Taken, StorageError> {
    let settled = taken.batch.into_iter().map(|waiting| Settled {
        sequence: waiting.sequence,
        settlement: settlement.clone(),
    });
    let settled = settled.collect();
    let take = take_of("hook", now_ms);
    store.take(Take { settled, ..take }).await
}

fn of(sink: &str) -> EventFilter {
    EventFilter {
        sink: Some(sink.to_owned()),
        ..EventFilter::default()
    }
}

fn again(due_at_ms: u64) -> Settlement {
    Settlement::Again {
        due_at_ms,
        error: "refused".to_owned(),
    }
}

fn dead() -> Settlement {
    Settlement::Dead {
        error: "gone".to_owned(),
    }
}

fn ids(taken: &Taken) -> Vec<&str> {
    let ids = taken.batch.iter().map(|waiting| waiting.event.id.as_str());
    ids.collect()
}

async fn listed<S: Store>(
    store: &S,
    filter: &EventFilter,
) -> Result<Vec<EventEntry>, StorageError> {
    store
        .list(filter, &EventCursor::default(), usize::MAX >> 1)
        .await
}

async fn listed_ids<S: Store>(store: &S) -> Result<Vec<String>, StorageError> {
    let entries = listed(store, &EventFilter::default()).await?;
    let ids = entries.into_iter().map(|entry| entry.waiting.event.id);
    Ok(ids.collect())
}

fn push(
    text: &str,
    expected: Option<&str>,
) -> Result<Commit, Box<dyn std::error::Error + Send + Sync>> {
    let push = push_tag(&"apps/web".parse()?, text, 1_000, &"v1".parse()?, expected)?;
    Ok(Commit::PushManifest(Box::new(push)))
}

pub async fn without_a_sink_nothing_is_written<S: Store>(store: Arc<S>) -> Checked {
    store.append(vec![event("a", "apps/web", 1)]).await?;
    store
        .commit(push("m", None)?.telling(vec![event("b", "apps/web", 1)]))
        .await?;
    store.register(&settings(&["hook"])).await?;
    assert_eq!(take(&*store, 9).await?, Taken::default());
    assert_eq!(store.depth().await?.events, 0);
    Ok(())
}

pub async fn an_event_is_written_with_its_commit<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = vec![event("a", "apps/web", 1), event("b", "apps/api", 1)];
    store.commit(push("m", None)?.telling(events)).await?;
    let mut taken = take(&*store, 1).await?;
    taken.batch.sort_by_key(|waiting| waiting.sequence);
    assert_eq!(ids(&taken), ["a", "b"]);
    let name = "apps/web".parse()?;
    assert!(
        store
            .manifest(&name, &ContentOrigin::Pushed, &digest("m"))
            .await?
            .is_some()
    );
    Ok(())
}

pub async fn a_refused_commit_writes_no_event<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let commit = push("m", Some("other"))?.telling(vec![event("a", "apps/web", 1)]);
    let refused = store.commit(commit).await;
    assert!(
        matches!(refused, Err(CommitError::TagMoved { .. })),
        "{refused:?}"
    );
    assert_eq!(take(&*store, 9).await?, Taken::default());
    assert_eq!(store.depth().await?.events, 0);
    Ok(())
}

pub async fn an_event_that_comes_again_is_kept_once<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    assert_eq!(listed_ids(&*store).await?, ["a"]);
    Ok(())
}

pub async fn each_sink_gets_every_event<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook", "other"])).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    let taken = take(&*store, 1).await?;
    assert_eq!(ids(&taken), ["a"]);
    settle(&*store, taken, &Settlement::Done, 1).await?;
    assert_eq!(ids(&store.take(take_of("other", 1)).await?), ["a"]);
    assert_eq!(store.depth().await?.events, 1);
    Ok(())
}

pub async fn what_waits_for_a_sink_that_is_gone_waits_on<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    store.register(&settings(&["other"])).await?;
    store.append(vec![event("b", "apps/web", 2)]).await?;
    store.register(&settings(&["hook", "other"])).await?;
    let taken = take(&*store, 9).await?;
    assert_eq!(ids(&taken), ["a"]);
    let taken = settle(&*store, taken, &Settlement::Done, 9).await?;
    assert_eq!(ids(&taken), [""; 0]);
    Ok(())
}

pub async fn what_waits_for_a_sink_that_is_gone_makes_room_first<S: Store>(
    store: Arc<S>,
) -> Checked {
    let bounded = |sinks: &[&str]| OutboxSettings {
        max_events: 3,
        ..settings(sinks)
    };
    store.register(&bounded(&["old"])).await?;
    let left = ["a", "b", "c"].map(|id| event(id, "apps/web", 1));
    store.append(left.to_vec()).await?;
    store.register(&bounded(&["hook"])).await?;
    store
        .append(vec![pull("d", "a", 2), pull("e", "a", 3)])
        .await?;
    store.append(vec![pull("f", "b", 4)]).await?;
    let of_hook = listed(&*store, &of("hook")).await?;
    assert_eq!(of_hook.len(), 3, "{of_hook:?}");
    let depth = store.depth().await?;
    assert_eq!((depth.events, depth.evicted), (3, 3));
    // Now its own are the oldest.
    store.append(vec![event("g", "b", 5)]).await?;
    assert_eq!(listed_ids(&*store).await?, ["e", "f", "g"]);
    Ok(())
}

pub async fn what_is_too_old_of_a_sink_that_is_gone_is_forgotten<S: Store>(
    store: Arc<S>,
) -> Checked {
    store.register(&settings(&["hook", "old"])).await?;
    let events = vec![event("a", "a", 1), event("b", "a", 5), event("c", "b", 9)];
    store.append(events).await?;
    assert_eq!(store.forget_unclaimed(6).await?, 0, "both are registered");
    store.register(&settings(&["hook"])).await?;
    assert_eq!(store.forget_unclaimed(6).await?, 2);
    assert_eq!(store.forget_unclaimed(6).await?, 0);
    let left = listed(&*store, &of("old")).await?;
    assert_eq!(left.len(), 1);
    assert_eq!(listed(&*store, &of("hook")).await?.len(), 3);
    assert_eq!(store.depth().await?.events, 3);
    Ok(())
}

pub async fn a_new_part_of_a_receiver_gets_what_a_former_part_left<S: Store>(
    store: Arc<S>,
) -> Checked {
    store.register(&settings(&["hook", "other"])).await?;
    store
        .append(vec![event("a", "a", 1), event("b", "a", 2)])
        .await?;
    let taken = take(&*store, 1).await?;
    settle(&*store, taken, &dead(), 1).await?;
    // The receiver is divided: both parts get what it left, in order, and the dead letter.
    store
        .register(&settings(&["hook/x", "hook/y", "other"]))
        .await?;
    for part in ["hook/x", "hook/y"] {
        assert_eq!(ids(&store.take(take_of(part, 2)).await?), ["b"], "{part}");
        let entries = listed(&*store, &of(part)).await?;
        assert_eq!(entries.len(), 2, "{part}");
        assert!(entries[0].dead && !entries[1].dead, "{part}");
    }
    // One part has another address, the other has gone; what stays has no more than its own.
    store.register(&settings(&["hook/x", "hook/z"])).await?;
    assert_eq!(ids(&store.take(take_of("hook/z", 3)).await?), ["b"]);
    store.register(&settings(&["hook/x"])).await?;
    assert_eq!(listed(&*store, &of("hook/x")).await?.len(), 2);
    let waiting = listed(&*store, &of("hook/z")).await?;
    assert_eq!(waiting.len(), 2, "it waits for the part to come back");
    assert_eq!(listed(&*store, &of("hook/y")).await?.len(), 0);
    Ok(())
}

pub async fn a_receiver_is_named_for_all_its_parts<S: Store>(store: Arc<S>) -> Checked {
    store
        .register(&settings(&["hook/x", "hook/y", "hooks"]))
        .await?;
    store.append(vec![event("a", "a", 1)]).await?;
    assert_eq!(listed(&*store, &of("hook")).await?.len(), 2);
    assert_eq!(listed(&*store, &of("hook/y")).await?.len(), 1);
    assert_eq!(store.discard(&of("hook")).await?, 2);
    assert_eq!(listed(&*store, &of("hooks")).await?.len(), 1);
    Ok(())
}

pub async fn a_repository_gives_one_event_at_a_time_in_order<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = ["a", "b", "c"].map(|id| event(id, "apps/web", 1));
    store.append(events.to_vec()).await?;
    let mut taken = take(&*store, 1).await?;
    for id in ["a", "b", "c"] {
        assert_eq!(ids(&taken), [id]);
        taken = settle(&*store, taken, &Settlement::Done, 1).await?;
    }
    assert_eq!(taken, Taken::default());
    assert_eq!(store.depth().await?, crate::Depth::default());
    Ok(())
}

pub async fn an_event_that_fails_holds_back_its_repository_only<S: Store>(
    store: Arc<S>,
) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = vec![
        event("a1", "a", 1),
        event("a2", "a", 1),
        event("b1", "b", 2),
        event("b2", "b", 2),
    ];
    store.append(events).await?;
    let mut taken = take(&*store, 1).await?;
    assert_eq!(ids(&taken), ["a1"]);
    taken = settle(&*store, taken, &again(50), 2).await?;
    assert_eq!(ids(&taken), ["b1"]);
    taken = settle(&*store, taken, &Settlement::Done, 3).await?;
    assert_eq!(ids(&taken), ["b2"]);
    taken = settle(&*store, taken, &Settlement::Done, 49).await?;
    assert_eq!(taken.batch, []);
    assert_eq!(taken.next_due_at_ms, Some(50));
    taken = take(&*store, 50).await?;
    assert_eq!(ids(&taken), ["a1"]);
    taken = settle(&*store, taken, &Settlement::Done, 51).await?;
    assert_eq!(ids(&taken), ["a2"]);
    Ok(())
}

pub async fn a_repository_that_was_served_goes_behind_the_others<S: Store>(
    store: Arc<S>,
) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = vec![
        event("a1", "a", 1),
        event("a2", "a", 1),
        event("b1", "b", 2),
        event("c1", "c", 3),
    ];
    store.append(events).await?;
    let mut order = Vec::new();
    let mut settled = Vec::new();
    for now_ms in 10..14 {
        let take = take_of("hook", now_ms);
        let limit = 1;
        let taken = store
            .take(Take {
                settled,
                limit,
                ..take
            })
            .await?;
        order.extend(taken.batch.iter().map(|waiting| waiting.event.id.clone()));
        let done = taken.batch.iter().map(|waiting| Settled {
            sequence: waiting.sequence,
            settlement: Settlement::Done,
        });
        settled = done.collect();
    }
    assert_eq!(order, ["a1", "b1", "c1", "a2"]);
    Ok(())
}

pub async fn an_attempt_is_counted_when_it_is_taken<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    assert_eq!(take(&*store, 5).await?.batch[0].attempts, 1);
    // Whoever took it died: nothing was settled.
    assert_eq!(take(&*store, 6).await?.batch[0].attempts, 2);
    let entries = listed(&*store, &EventFilter::default()).await?;
    assert_eq!(entries[0].waiting.attempts, 2);
    assert_eq!(entries[0].attempted_at_ms, Some(6));
    assert_eq!(entries[0].error, None);
    Ok(())
}

pub async fn a_dead_letter_lets_its_repository_go_on<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = ["a", "b"].map(|id| event(id, "apps/web", 1));
    store.append(events.to_vec()).await?;
    let taken = take(&*store, 1).await?;
    let taken = settle(&*store, taken, &dead(), 2).await?;
    assert_eq!(ids(&taken), ["b"]);
    assert_eq!(settle(&*store, taken, &dead(), 3).await?, Taken::default());
    let depth = store.depth().await?;
    let sink = &depth.sinks[0];
    assert_eq!((sink.waiting, sink.dead, sink.oldest_at_ms), (0, 2, None));
    let entries = listed(&*store, &EventFilter::default()).await?;
    assert!(entries.iter().all(|entry| entry.dead));
    assert_eq!(entries[0].error.as_deref(), Some("gone"));
    Ok(())
}

pub async fn a_replayed_letter_comes_before_what_is_younger<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    store.append(vec![event("a", "apps/web", 1)]).await?;
    let taken = take(&*store, 1).await?;
    settle(&*store, taken, &dead(), 2).await?;
    store.append(vec![event("b", "apps/web", 3)]).await?;
    assert_eq!(store.replay(&EventFilter::default()).await?, 1);
    assert_eq!(store.replay(&EventFilter::default()).await?, 0);
    let taken = take(&*store, 4).await?;
    assert_eq!(ids(&taken), ["a"]);
    assert_eq!(taken.batch[0].attempts, 1);
    let taken = settle(&*store, taken, &Settlement::Done, 5).await?;
    assert_eq!(ids(&taken), ["b"]);
    Ok(())
}

pub async fn what_is_dropped_is_gone<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = vec![event("a", "a", 1), event("b", "b", 2), event("c", "b", 3)];
    store.append(events).await?;
    let taken = take(&*store, 1).await?;
    let filter = EventFilter {
        repository: Some("a".parse()?),
        ..EventFilter::default()
    };
    assert_eq!(store.discard(&filter).await?, 1);
    // Its taker comes late, and finds nothing to settle.
    let taken = settle(&*store, taken, &again(9), 3).await?;
    assert_eq!(ids(&taken), ["b"]);
    assert_eq!(store.discard(&EventFilter::default()).await?, 2);
    assert_eq!(store.depth().await?, crate::Depth::default());
    assert_eq!(take(&*store, 9).await?, Taken::default());
    Ok(())
}

pub async fn a_full_outbox_first_loses_what_changed_nothing<S: Store>(store: Arc<S>) -> Checked {
    let settings = OutboxSettings {
        max_events: 3,
        ..settings(&["hook"])
    };
    store.register(&settings).await?;
    let events = vec![event("a", "a", 1), pull("b", "a", 2), pull("c", "a", 3)];
    store.append(events).await?;
    store.append(vec![event("d", "a", 4)]).await?;
    assert_eq!(listed_ids(&*store).await?, ["a", "c", "d"]);
    store.append(vec![event("e", "a", 5)]).await?;
    assert_eq!(listed_ids(&*store).await?, ["a", "d", "e"]);
    store.append(vec![pull("f", "b", 6)]).await?;
    assert_eq!(listed_ids(&*store).await?, ["a", "d", "e"]);
    assert_eq!(store.depth().await?.evicted, 3);
    Ok(())
}

pub async fn a_full_outbox_loses_the_oldest_change_and_never_refuses<S: Store>(
    store: Arc<S>,
) -> Checked {
    let settings = OutboxSettings {
        max_events: 2,
        ..settings(&["hook", "other"])
    };
    store.register(&settings).await?;
    store.append(vec![event("a", "a", 1)]).await?;
    let taken = take(&*store, 1).await?;
    store.append(vec![event("b", "a", 2)]).await?;
    let commit = push("m", None)?.telling(vec![event("c", "a", 3)]);
    store.commit(commit).await?;
    let depth = store.depth().await?;
    assert_eq!((depth.events, depth.evicted), (2, 1));
    // What was in flight is settled late, and nothing else changes.
    let taken = settle(&*store, taken, &Settlement::Done, 4).await?;
    assert_eq!(ids(&taken), ["b"]);
    Ok(())
}

pub async fn bytes_are_bounded_too<S: Store>(store: Arc<S>) -> Checked {
    let settings = OutboxSettings {
        max_bytes: 2_000,
        ..settings(&["hook"])
    };
    store.register(&settings).await?;
    for number in 0..50 {
        store
            .append(vec![event(&number.to_string(), "a", number)])
            .await?;
        assert!(store.depth().await?.bytes <= 2_000);
    }
    let left = listed_ids(&*store).await?;
    assert!((3..10).contains(&left.len()), "{left:?}");
    assert_eq!(left.last().map(String::as_str), Some("49"));
    Ok(())
}

pub async fn the_list_is_filtered_and_paged<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook", "other"])).await?;
    let events = vec![event("a", "a", 1), event("b", "b", 2)];
    store.append(events).await?;
    let taken = take(&*store, 1).await?;
    settle(&*store, taken, &dead(), 1).await?;
    let all = listed(&*store, &EventFilter::default()).await?;
    let shown = all
        .iter()
        .map(|it| (it.waiting.event.id.as_str(), it.sink.as_str(), it.dead));
    let shown: Vec<_> = shown.collect();
    let expected = [
        ("a", "hook", true),
        ("a", "other", false),
        ("b", "hook", false),
        ("b", "other", false),
    ];
    assert_eq!(shown, expected);
    let mut paged = Vec::new();
    let mut after = EventCursor::default();
    loop {
        let page = store.list(&EventFilter::default(), &after, 3).await?;
        let Some(last) = page.last() else { break };
        after = EventCursor {
            sequence: last.waiting.sequence,
            sink: last.sink.clone(),
        };
        paged.extend(page);
    }
    assert_eq!(paged, all);
    let only = |sink: Option<&str>, dead, repository: Option<&str>, id: Option<&str>| EventFilter {
        sink: sink.map(str::to_owned),
        dead,
        repository: repository.and_then(|name| name.parse().ok()),
        id: id.map(str::to_owned),
    };
    for (filter, count) in [
        (only(Some("hook"), None, None, None), 2),
        (only(None, Some(true), None, None), 1),
        (only(None, Some(false), None, None), 3),
        (only(None, None, Some("b"), None), 2),
        (only(None, None, None, Some("b")), 2),
        (only(Some("other"), Some(false), Some("a"), Some("a")), 1),
        (only(None, None, None, Some("nothing")), 0),
    ] {
        assert_eq!(listed(&*store, &filter).await?.len(), count, "{filter:?}");
    }
    Ok(())
}

pub async fn a_change_of_many_letters_is_done_in_parts<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let events = (0..=MAX_CHANGED).map(|number| event(&number.to_string(), "a", number));
    store.append(events.collect()).await?;
    assert_eq!(store.discard(&EventFilter::default()).await?, MAX_CHANGED);
    assert_eq!(store.discard(&EventFilter::default()).await?, 1);
    Ok(())
}

pub async fn an_event_comes_back_as_it_was_written<S: Store>(store: Arc<S>) -> Checked {
    store.register(&settings(&["hook"])).await?;
    let whole = Event {
        kind: EventKind::TagMoved,
        digest: Some(digest("m")),
        tag: Some("v1".parse()?),
        payload: Payload {
            size: Some(3),
            previous: Some(digest("l").to_string()),
            ..Payload::default()
        },
        ..event("a", "apps/web", 1)
    };
    store.append(vec![whole.clone()]).await?;
    assert_eq!(take(&*store, 1).await?.batch[0].event, whole);
    Ok(())
}
