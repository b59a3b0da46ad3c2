//! A damaged row of the outbox holds nothing else back: not its receiver, not a push, not the operator's list.

use std::path::Path;

use gantry_storage::{
    EventFilter, EventOutbox, OutboxSettings, Settled, Settlement, SqliteStore, Take,
    outbox::EventCursor,
    suite::{Checked, outbox::event},
};
use rusqlite::Connection;

fn settings() -> OutboxSettings {
    OutboxSettings {
        sinks: vec!["hook".to_owned()],
        max_events: 100,
        max_bytes: 1 << 20,
    }
}

fn damage(path: &Path, sql: &str) -> Checked {
    let connection = Connection::open(path)?;
    connection.execute_batch("PRAGMA foreign_keys = OFF")?;
    connection.execute_batch(sql)?;
    Ok(())
}

/// Takes and settles until nothing is left; the ids in their order.
async fn taken(
    store: &SqliteStore,
) -> Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let mut ids = Vec::new();
    let mut settled = Vec::new();
    loop {
        let take = Take {
            sink: "hook".to_owned(),
            settled: std::mem::take(&mut settled),
            limit: 16,
            now_ms: 1_000,
        };
        let taken = store.take(take).await?;
        if taken.batch.is_empty() {
            assert_eq!(taken.next_due_at_ms, None, "{ids:?}");
            return Ok(ids);
        }
        for waiting in taken.batch {
            settled.push(Settled {
                sequence: waiting.sequence,
                settlement: Settlement::Done,
            });
            ids.push(waiting.event.id);
        }
    }
}

#[tokio::test]
async fn a_damaged_row_is_given_up_and_counted_and_everything_else_arrives() -> Checked {
    for sql in [
        "UPDATE events SET payload = '{' WHERE id = 'bad'",
        "UPDATE events SET kind = 'x.y' WHERE id = 'bad'",
        "UPDATE events SET repository = '../BAD' WHERE id = 'bad'",
        "UPDATE events SET repository = 'apps/other' WHERE id = 'bad'",
        "UPDATE events SET digest = 'sha256:zz' WHERE id = 'bad'",
        "UPDATE events SET at_ms = -5 WHERE id = 'bad'",
        "UPDATE deliveries SET attempts = 9999999999999 WHERE sequence = (SELECT sequence FROM events WHERE id = 'bad')",
        "DELETE FROM events WHERE id = 'bad'",
    ] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metadata.sqlite");
        let store = SqliteStore::open(&path)?;
        store.register(&settings()).await?;
        let events = vec![
            event("bad", "apps/bad", 1),
            event("after", "apps/bad", 2),
            event("good", "apps/good", 3),
        ];
        store.append(events).await?;
        damage(&path, sql)?;
        let all = EventFilter::default();
        let listed = store.list(&all, &EventCursor::default(), 2).await?;
        assert_eq!(listed.len(), 2, "{sql}");
        store.depth().await?;
        let mut ids = taken(&store).await?;
        ids.sort();
        assert_eq!(ids, ["after", "good"], "{sql}");
        store.append(vec![event("later", "apps/bad", 4)]).await?;
        assert_eq!(taken(&store).await?, ["later"], "{sql}");
        let depth = store.depth().await?;
        assert_eq!(depth.unreadable, 1, "{sql}");
        assert_eq!((depth.events, depth.sinks.len()), (0, 0), "{sql}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_outbox_counts_is_put_right_when_it_is_opened() -> Checked {
    for sql in [
        "DELETE FROM event_usage",
        "UPDATE event_usage SET events = -7, bytes = 9000000000",
        "INSERT INTO delivery_lanes VALUES ('hook', 'apps/ghost', 0)",
        "DELETE FROM delivery_lanes",
    ] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("metadata.sqlite");
        let store = SqliteStore::open(&path)?;
        store.register(&settings()).await?;
        store.append(vec![event("a", "apps/web", 1)]).await?;
        let before = store.depth().await?;
        drop(store);
        damage(&path, sql)?;
        let store = SqliteStore::open(&path)?;
        store.register(&settings()).await?;
        assert_eq!(store.depth().await?, before, "{sql}");
        store.append(vec![event("b", "apps/api", 2)]).await?;
        let mut ids = taken(&store).await?;
        ids.sort();
        assert_eq!(ids, ["a", "b"], "{sql}");
    }
    Ok(())
}
