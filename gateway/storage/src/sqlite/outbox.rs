//! The outbox's statements: fan-out with the commit, taking by lanes, dead letters.
//!
//! A lane is a sink and a repository for which something waits; its first event is the only one that can be taken. Everything that
//! writes runs in a savepoint of the writer's transaction.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use gantry_model::{Digest, Event, RepositoryName, Tag};
use rusqlite::{Connection, Error, Row, params, types::Type};

use super::{
    SqliteStore,
    commit::execute,
    failure::Stop,
    read::{all, one},
    row::{int, parsed, unsigned},
};
use crate::{
    error::StorageError,
    outbox::{
        Depth, EventCursor, EventEntry, EventFilter, EventOutbox, MAX_CHANGED, OutboxSettings,
        Settled, Settlement, SinkDepth, Take, Taken, Waiting, weight,
    },
};

/// What the outbox remembers beside its tables. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Bounds(Arc<State>);

#[derive(Debug)]
struct State {
    max_events: AtomicU64,
    max_bytes: AtomicU64,
    evicted: AtomicU64,
}

impl Default for State {
    /// Until somebody registers, nothing may be pushed out.
    fn default() -> Self {
        Self {
            max_events: AtomicU64::new(u64::MAX),
            max_bytes: AtomicU64::new(u64::MAX),
            evicted: AtomicU64::new(0),
        }
    }
}

#[async_trait]
impl EventOutbox for SqliteStore {
    async fn register(&self, settings: &OutboxSettings) -> Result<(), StorageError> {
        let (settings, bounds) = (settings.clone(), self.outbox.clone());
        let register = move |connection: &_| -> Result<(), Stop<StorageError>> {
            let state = &bounds.0;
            state
                .max_events
                .store(settings.max_events, Ordering::Relaxed);
            state.max_bytes.store(settings.max_bytes, Ordering::Relaxed);
            execute(connection, "DELETE FROM event_sinks", [])?;
            for sink in &settings.sinks {
                let sql = "INSERT INTO event_sinks VALUES (?1) ON CONFLICT DO NOTHING";
                execute(connection, sql, [sink])?;
            }
            Ok(evict(connection, &bounds)?)
        };
        self.writer.run("register receivers", register).await
    }

    async fn append(&self, events: Vec<Event>) -> Result<(), StorageError> {
        let bounds = self.outbox.clone();
        let append = move |connection: &_| Ok(insert(connection, &bounds, &events)?);
        self.writer.run("write events", append).await
    }

    async fn take(&self, wanted: Take) -> Result<Taken, StorageError> {
        let work = move |connection: &_| -> Result<Taken, Stop<StorageError>> {
            for settled in &wanted.settled {
                settle(connection, &wanted, settled)?;
            }
            Ok(take(connection, &wanted)?)
        };
        self.writer.run("take events", work).await
    }

    async fn list(
        &self,
        filter: &EventFilter,
        after: &EventCursor,
        limit: usize,
    ) -> Result<Vec<EventEntry>, StorageError> {
        let (filter, after) = (filter.clone(), after.clone());
        let read = move |connection: &_| list(connection, &filter, &after, limit);
        self.readers.read("list events", read).await
    }

    async fn replay(&self, filter: &EventFilter) -> Result<u64, StorageError> {
        let filter = EventFilter {
            dead: Some(true),
            ..filter.clone()
        };
        let work = move |connection: &_| Ok(replay(connection, &filter)?);
        self.writer.run("replay events", work).await
    }

    async fn discard(&self, filter: &EventFilter) -> Result<u64, StorageError> {
        let filter = filter.clone();
        let work = move |connection: &_| Ok(discard(connection, &filter)?);
        self.writer.run("drop events", work).await
    }

    async fn depth(&self) -> Result<Depth, StorageError> {
        let evicted = self.outbox.0.evicted.load(Ordering::Relaxed);
        let read = move |connection: &_| depth(connection, evicted);
        self.readers.read("count events", read).await
    }
}

// --- writing ---

/// Writes events for every registered sink; nothing when there is none.
pub(super) fn insert(
    connection: &Connection,
    bounds: &Bounds,
    events: &[Event],
) -> rusqlite::Result<()> {
    let any = "SELECT 1 FROM event_sinks LIMIT 1";
    if events.is_empty() || one(connection, any, [], |_row| Ok(()))?.is_none() {
        return Ok(());
    }
    for event in events {
        insert_one(connection, event)?;
    }
    evict(connection, bounds)
}

fn insert_one(connection: &Connection, event: &Event) -> rusqlite::Result<()> {
    let payload = serde_json::to_string(&event.payload)
        .map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))?;
    // A commit whose answer got lost comes again with the same event.
    let sql = "INSERT INTO events (id, rank, kind, at_ms, repository, digest, tag, actor, payload, bytes) \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT DO NOTHING";
    let (at_ms, repository) = (int(event.at_ms)?, event.repository.as_str());
    let columns = params![
        event.id,
        i64::from(!event.kind.is_droppable()),
        event.kind.as_str(),
        at_ms,
        repository,
        event.digest.as_ref().map(Digest::as_str),
        event.tag.as_ref().map(Tag::as_str),
        event.actor,
        payload,
        int(weight(event, &payload))?,
    ];
    if execute(connection, sql, columns)? == 0 {
        return Ok(());
    }
    let sequence = connection.last_insert_rowid();
    let sql =
        "INSERT INTO deliveries (sink, sequence, repository) SELECT name, ?1, ?2 FROM event_sinks";
    execute(connection, sql, (sequence, repository))?;
    let sql = "INSERT INTO delivery_lanes (sink, repository, due_at_ms) \
        SELECT name, ?1, ?2 FROM event_sinks WHERE true ON CONFLICT DO NOTHING";
    execute(connection, sql, (repository, at_ms))?;
    Ok(())
}

/// Makes space: first for what changed the registry, then for what is younger.
fn evict(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<()> {
    let max_events = bounds.0.max_events.load(Ordering::Relaxed);
    let max_bytes = bounds.0.max_bytes.load(Ordering::Relaxed);
    loop {
        let (events, bytes) = usage(connection)?;
        if events == 0 || (events <= max_events && bytes <= max_bytes) {
            return Ok(());
        }
        let sql = "DELETE FROM events \
            WHERE sequence = (SELECT sequence FROM events ORDER BY rank, sequence LIMIT 1)";
        execute(connection, sql, [])?;
        bounds.0.evicted.fetch_add(1, Ordering::Relaxed);
    }
}

fn usage(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let sql = "SELECT events, bytes FROM event_usage";
    let read = |row: &Row<'_>| Ok((unsigned(row, 0)?, unsigned(row, 1)?));
    Ok(one(connection, sql, [], read)?.unwrap_or_default())
}

// --- taking ---

fn settle(connection: &Connection, wanted: &Take, settled: &Settled) -> rusqlite::Result<()> {
    let key = (&wanted.sink, int(settled.sequence)?);
    let due_at_ms = match &settled.settlement {
        Settlement::Again { due_at_ms, .. } => *due_at_ms,
        // Behind the repositories that wait already.
        Settlement::Done | Settlement::Dead { .. } => wanted.now_ms,
    };
    let sql = "UPDATE delivery_lanes SET due_at_ms = ?3 WHERE sink = ?1 \
        AND repository = (SELECT repository FROM deliveries WHERE sink = ?1 AND sequence = ?2)";
    execute(connection, sql, (key.0, key.1, int(due_at_ms)?))?;
    match &settled.settlement {
        Settlement::Done => {
            let sql = "DELETE FROM deliveries WHERE sink = ?1 AND sequence = ?2";
            execute(connection, sql, key)?;
        }
        Settlement::Again { error, .. } => {
            let sql = "UPDATE deliveries SET error = ?3 WHERE sink = ?1 AND sequence = ?2";
            execute(connection, sql, (key.0, key.1, error))?;
        }
        Settlement::Dead { error } => {
            let sql =
                "UPDATE deliveries SET error = ?3, dead = 1 WHERE sink = ?1 AND sequence = ?2";
            execute(connection, sql, (key.0, key.1, error))?;
        }
    }
    Ok(())
}

fn take(connection: &Connection, wanted: &Take) -> rusqlite::Result<Taken> {
    let now_ms = int(wanted.now_ms)?;
    let sql = "SELECT repository FROM delivery_lanes WHERE sink = ?1 AND due_at_ms <= ?2 \
        ORDER BY due_at_ms LIMIT ?3";
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let columns = (&wanted.sink, now_ms, limit);
    let lanes: Vec<String> = all(connection, sql, columns, |row| row.get(0))?;
    let mut batch = Vec::with_capacity(lanes.len());
    for repository in &lanes {
        let sql = "SELECT sequence, attempts + 1, id, kind, at_ms, repository, digest, tag, actor, payload \
            FROM events JOIN deliveries USING (sequence, repository) \
            WHERE sink = ?1 AND repository = ?2 AND dead = 0 ORDER BY sequence LIMIT 1";
        let first = one(connection, sql, (&wanted.sink, repository), waiting)?;
        if let Some(first) = first {
            let sql = "UPDATE deliveries SET attempts = ?3, attempted_at_ms = ?4 \
                WHERE sink = ?1 AND sequence = ?2";
            let columns = (&wanted.sink, int(first.sequence)?, first.attempts, now_ms);
            execute(connection, sql, columns)?;
            batch.push(first);
        }
    }
    let sql = "SELECT due_at_ms FROM delivery_lanes WHERE sink = ?1 ORDER BY due_at_ms LIMIT 1";
    let next_due_at_ms = match batch.is_empty() {
        true => one(connection, sql, [&wanted.sink], |row| unsigned(row, 0))?,
        false => None,
    };
    Ok(Taken {
        batch,
        next_due_at_ms,
    })
}

// --- the operator ---

/// The condition of an [`EventFilter`] on `deliveries`, for parameters 1 to 4.
const MATCHES: &str = "(?1 IS NULL OR deliveries.sink = ?1) AND (?2 IS NULL OR dead = ?2) \
    AND (?3 IS NULL OR deliveries.repository = ?3) \
    AND (?4 IS NULL OR deliveries.sequence = (SELECT sequence FROM events WHERE id = ?4))";

type Columns<'a> = (
    Option<&'a str>,
    Option<bool>,
    Option<&'a str>,
    Option<&'a str>,
);

fn columns(filter: &EventFilter) -> Columns<'_> {
    (
        filter.sink.as_deref(),
        filter.dead,
        filter.repository.as_ref().map(RepositoryName::as_str),
        filter.id.as_deref(),
    )
}

fn list(
    connection: &Connection,
    filter: &EventFilter,
    after: &EventCursor,
    limit: usize,
) -> rusqlite::Result<Vec<EventEntry>> {
    let sql = format!(
        "SELECT events.sequence, attempts, id, kind, at_ms, events.repository, digest, tag, actor, payload, \
        sink, dead, attempted_at_ms, error FROM deliveries JOIN events ON events.sequence = deliveries.sequence \
        WHERE {MATCHES} AND (deliveries.sequence, sink) > (?5, ?6) \
        ORDER BY deliveries.sequence, sink LIMIT ?7"
    );
    let (sink, dead, repository, id) = columns(filter);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let keys = params![
        sink,
        dead,
        repository,
        id,
        int(after.sequence)?,
        after.sink,
        limit
    ];
    all(connection, &sql, keys, |row| {
        Ok(EventEntry {
            sink: row.get(10)?,
            dead: row.get(11)?,
            attempted_at_ms: optional_number(row, 12)?,
            error: row.get(13)?,
            waiting: waiting(row)?,
        })
    })
}

fn replay(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<u64> {
    let sql = format!(
        "UPDATE deliveries SET dead = 0, attempts = 0 WHERE (sink, sequence) IN \
        (SELECT sink, sequence FROM deliveries WHERE {MATCHES} ORDER BY sequence LIMIT {MAX_CHANGED})"
    );
    Ok(execute(connection, &sql, columns(filter))? as u64)
}

fn discard(connection: &Connection, filter: &EventFilter) -> rusqlite::Result<u64> {
    let sql = format!(
        "DELETE FROM deliveries WHERE (sink, sequence) IN \
        (SELECT sink, sequence FROM deliveries WHERE {MATCHES} ORDER BY sequence LIMIT {MAX_CHANGED})"
    );
    Ok(execute(connection, &sql, columns(filter))? as u64)
}

fn depth(connection: &Connection, evicted: u64) -> rusqlite::Result<Depth> {
    let (events, bytes) = usage(connection)?;
    let sql = "SELECT sink, waiting, dead, at_ms FROM (SELECT sink, count(*) - sum(dead) AS waiting, \
        sum(dead) AS dead, min(CASE dead WHEN 0 THEN sequence END) AS oldest FROM deliveries GROUP BY sink) \
        LEFT JOIN events ON sequence = oldest ORDER BY sink";
    let sinks = all(connection, sql, [], |row| {
        Ok(SinkDepth {
            sink: row.get(0)?,
            waiting: unsigned(row, 1)?,
            dead: unsigned(row, 2)?,
            oldest_at_ms: optional_number(row, 3)?,
        })
    })?;
    Ok(Depth {
        sinks,
        events,
        bytes,
        evicted,
    })
}

/// Columns 0 to 9.
fn waiting(row: &Row<'_>) -> rusqlite::Result<Waiting> {
    let payload = row.get_ref(9)?.as_str()?;
    let payload = serde_json::from_str(payload)
        .map_err(|error| Error::FromSqlConversionFailure(9, Type::Text, Box::new(error)))?;
    Ok(Waiting {
        sequence: unsigned(row, 0)?,
        attempts: row.get(1)?,
        event: Event {
            id: row.get(2)?,
            kind: parsed(row, 3)?,
            at_ms: unsigned(row, 4)?,
            repository: parsed(row, 5)?,
            digest: optional(row, 6)?,
            tag: optional(row, 7)?,
            actor: row.get(8)?,
            payload,
        },
    })
}

fn optional<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<T>>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match row.get_ref(index)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => parsed(row, index).map(Some),
    }
}

fn optional_number(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<u64>> {
    match row.get_ref(index)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => unsigned(row, index).map(Some),
    }
}
