//! The outbox's statements: fan-out with the commit, taking by lanes, dead letters.
//!
//! A lane is a sink and a repository for which something waits; its first event is the only one that can be taken. Everything that
//! writes runs in a savepoint of the writer's transaction. A row that is damaged is given up, never a reason to stop.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
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
        Settled, Settlement, SinkDepth, Take, Taken, Waiting, heirs, weight,
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
    unreadable: AtomicU64,
    /// Whether something may wait for a sink that is not registered.
    has_unclaimed: AtomicBool,
}

impl Default for State {
    /// Until somebody registers, nothing may be pushed out.
    fn default() -> Self {
        Self {
            max_events: AtomicU64::new(u64::MAX),
            max_bytes: AtomicU64::new(u64::MAX),
            evicted: AtomicU64::new(0),
            unreadable: AtomicU64::new(0),
            has_unclaimed: AtomicBool::new(true),
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
            register(connection, &settings.sinks)?;
            state.has_unclaimed.store(true, Ordering::Relaxed);
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
        let bounds = self.outbox.clone();
        let work = move |connection: &_| -> Result<Taken, Stop<StorageError>> {
            for settled in &wanted.settled {
                settle(connection, &wanted, settled)?;
            }
            Ok(take(connection, &bounds, &wanted)?)
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

    async fn forget_unclaimed(&self, before_ms: u64) -> Result<u64, StorageError> {
        if !self.outbox.0.has_unclaimed.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let work = move |connection: &_| Ok(forget_unclaimed(connection, before_ms)?);
        self.writer.run("forget unclaimed events", work).await
    }

    async fn depth(&self) -> Result<Depth, StorageError> {
        let state = &self.outbox.0;
        let given_up = (
            state.evicted.load(Ordering::Relaxed),
            state.unreadable.load(Ordering::Relaxed),
        );
        let read = move |connection: &_| depth(connection, given_up);
        self.readers.read("count events", read).await
    }
}

// --- registering ---

/// Puts right what the tables say of each other, after damage. Reads every event's size, so it runs once, when the file is opened.
pub(super) fn mend(connection: &Connection) -> rusqlite::Result<()> {
    let usage = "INSERT INTO event_usage SELECT 1, count(*), coalesce(sum(bytes), 0) FROM events WHERE true \
        ON CONFLICT DO UPDATE SET events = excluded.events, bytes = excluded.bytes";
    execute(connection, usage, [])?;
    let lanes = "INSERT INTO delivery_lanes (sink, repository, due_at_ms) \
        SELECT DISTINCT sink, repository, 0 FROM deliveries WHERE dead = 0 ON CONFLICT DO NOTHING";
    execute(connection, lanes, [])?;
    Ok(())
}

fn register(connection: &Connection, sinks: &[String]) -> rusqlite::Result<()> {
    let sql = "SELECT name FROM event_sinks";
    let former: Vec<String> = all(connection, sql, [], |row| row.get(0))?;
    let former = former.into_iter().collect();
    let new = sinks.iter().cloned().collect();
    for (gone, heirs) in heirs(&former, &new) {
        for heir in &heirs {
            let sql = "INSERT INTO deliveries (sink, sequence, repository, dead, attempts, attempted_at_ms, error) \
                SELECT ?2, sequence, repository, dead, attempts, attempted_at_ms, error \
                FROM deliveries WHERE sink = ?1 ON CONFLICT DO NOTHING";
            execute(connection, sql, (gone, heir))?;
            let sql = "INSERT INTO delivery_lanes (sink, repository, due_at_ms) \
                SELECT ?2, repository, due_at_ms FROM delivery_lanes WHERE sink = ?1 ON CONFLICT DO NOTHING";
            execute(connection, sql, (gone, heir))?;
        }
        if !heirs.is_empty() {
            execute(connection, "DELETE FROM deliveries WHERE sink = ?1", [gone])?;
        }
    }
    execute(connection, "DELETE FROM event_sinks", [])?;
    for sink in &new {
        let sql = "INSERT INTO event_sinks VALUES (?1)";
        execute(connection, sql, [sink])?;
    }
    Ok(())
}

/// Sinks that are not registered and have something left. One lookup for each sink, however much waits.
fn unclaimed_sinks(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "WITH RECURSIVE sinks (sink) AS (SELECT min(sink) FROM deliveries UNION ALL \
        SELECT (SELECT min(sink) FROM deliveries WHERE sink > sinks.sink) FROM sinks WHERE sink IS NOT NULL) \
        SELECT sink FROM sinks WHERE sink IS NOT NULL AND sink NOT IN (SELECT name FROM event_sinks)";
    all(connection, sql, [], |row| row.get(0))
}

/// Looks at the oldest of each sink only: sequences grow with time.
fn forget_unclaimed(connection: &Connection, before_ms: u64) -> rusqlite::Result<u64> {
    let mut forgotten = 0;
    for sink in unclaimed_sinks(connection)? {
        let sql = "DELETE FROM deliveries WHERE sink = ?1 AND sequence IN (SELECT sequence FROM events WHERE at_ms < ?2 \
            AND sequence IN (SELECT sequence FROM deliveries WHERE sink = ?1 ORDER BY sequence LIMIT ?3))";
        let columns = (&sink, int(before_ms)?, int(MAX_CHANGED)?);
        forgotten += execute(connection, sql, columns)? as u64;
    }
    Ok(forgotten)
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

/// Makes space: removes events of removed receivers first, then pulls and denials, then the oldest.
fn evict(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<()> {
    let max_events = bounds.0.max_events.load(Ordering::Relaxed);
    let max_bytes = bounds.0.max_bytes.load(Ordering::Relaxed);
    let mut unclaimed_steps = UNCLAIMED_STEPS;
    loop {
        let (events, bytes) = usage(connection)?;
        if events == 0 || (events <= max_events && bytes <= max_bytes) {
            return Ok(());
        }
        if unclaimed_steps == 0 || !evict_unclaimed(connection, bounds)? {
            let sql = "DELETE FROM events \
                WHERE sequence = (SELECT sequence FROM events ORDER BY rank, sequence LIMIT 1)";
            execute(connection, sql, [])?;
        } else {
            unclaimed_steps -= 1;
        }
        let (left, _bytes) = usage(connection)?;
        let evicted = events.saturating_sub(left);
        bounds.0.evicted.fetch_add(evicted, Ordering::Relaxed);
    }
}

/// Gives up the oldest deliveries of a sink that is not registered; whether there were any.
fn evict_unclaimed(connection: &Connection, bounds: &Bounds) -> rusqlite::Result<bool> {
    if !bounds.0.has_unclaimed.load(Ordering::Relaxed) {
        return Ok(false);
    }
    let Some(sink) = unclaimed_sinks(connection)?.into_iter().next() else {
        bounds.0.has_unclaimed.store(false, Ordering::Relaxed);
        return Ok(false);
    };
    let sql = "DELETE FROM deliveries WHERE sink = ?1 AND sequence IN \
        (SELECT sequence FROM deliveries WHERE sink = ?1 ORDER BY sequence LIMIT ?2)";
    execute(connection, sql, (&sink, UNCLAIMED_DELIVERIES))?;
    Ok(true)
}

/// Deliveries of a sink that is not registered that one step gives up, and such steps of one write at most: an event that a registered
/// sink waits for too gives no space, and a push does not wait for a hundred thousand of them.
const UNCLAIMED_DELIVERIES: u32 = 32;
const UNCLAIMED_STEPS: u32 = 16;

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

fn take(connection: &Connection, bounds: &Bounds, wanted: &Take) -> rusqlite::Result<Taken> {
    let now_ms = int(wanted.now_ms)?;
    let sql = "SELECT repository FROM delivery_lanes WHERE sink = ?1 AND due_at_ms <= ?2 \
        ORDER BY due_at_ms LIMIT ?3";
    let limit = i64::try_from(wanted.limit).unwrap_or(i64::MAX);
    let columns = (&wanted.sink, now_ms, limit);
    let lanes: Vec<String> = all(connection, sql, columns, |row| row.get(0))?;
    let mut batch = Vec::with_capacity(lanes.len());
    for repository in &lanes {
        let lane = (wanted.sink.as_str(), repository.as_str());
        if let Some(first) = first_of(connection, bounds, lane)? {
            let sql = "UPDATE deliveries SET attempts = ?3, attempted_at_ms = ?4 \
                WHERE sink = ?1 AND sequence = ?2";
            let columns = (&wanted.sink, int(first.sequence)?, first.attempts, now_ms);
            execute(connection, sql, columns)?;
            batch.push(first);
        }
    }
    let sql = "SELECT due_at_ms FROM delivery_lanes WHERE sink = ?1 ORDER BY due_at_ms LIMIT 1";
    let next_due_at_ms = match batch.is_empty() {
        true => one(connection, sql, [&wanted.sink], |row| row.get::<_, i64>(0))?,
        false => None,
    };
    Ok(Taken {
        batch,
        next_due_at_ms: next_due_at_ms.map(|due| u64::try_from(due).unwrap_or(0)),
    })
}

/// The first that waits in a lane and can be read. A lane in which nothing waits is removed.
fn first_of(
    connection: &Connection,
    bounds: &Bounds,
    lane: (&str, &str),
) -> rusqlite::Result<Option<Waiting>> {
    let sql = "SELECT deliveries.sequence, attempts + 1, id, kind, at_ms, events.repository, digest, tag, actor, payload \
        FROM deliveries LEFT JOIN events ON events.sequence = deliveries.sequence \
        WHERE sink = ?1 AND deliveries.repository = ?2 AND dead = 0 ORDER BY deliveries.sequence LIMIT 1";
    loop {
        let problem = match one(connection, sql, lane, waiting) {
            Ok(Some(first)) if first.event.repository.as_str() == lane.1 => {
                return Ok(Some(first));
            }
            Ok(Some(_)) => "it names another repository than its event".to_owned(),
            Ok(None) => break,
            Err(error) if is_damage(&error) => error.to_string(),
            Err(error) => return Err(error),
        };
        give_up_first(connection, bounds, lane, &problem)?;
    }
    let sql = "DELETE FROM delivery_lanes WHERE sink = ?1 AND repository = ?2";
    execute(connection, sql, lane)?;
    Ok(None)
}

/// Forgets the first delivery of a lane, which cannot be read: it would hold back the others for ever.
fn give_up_first(
    connection: &Connection,
    bounds: &Bounds,
    lane: (&str, &str),
    problem: &str,
) -> rusqlite::Result<()> {
    let first =
        "(SELECT min(sequence) FROM deliveries WHERE sink = ?1 AND repository = ?2 AND dead = 0)";
    let sql = format!("DELETE FROM deliveries WHERE sink = ?1 AND sequence = {first}");
    execute(connection, &sql, lane)?;
    bounds.0.unreadable.fetch_add(1, Ordering::Relaxed);
    tracing::error!(
        receiver = lane.0,
        repository.name = lane.1,
        problem,
        "a damaged event is given up: its row in the database cannot be read"
    );
    Ok(())
}

/// Whether a row holds something else than what was written, as opposed to a store that does not work.
fn is_damage(error: &Error) -> bool {
    matches!(
        error,
        Error::FromSqlConversionFailure(..)
            | Error::IntegralValueOutOfRange(..)
            | Error::InvalidColumnType(..)
            | Error::Utf8Error(..)
    )
}

// --- the operator ---

/// The condition of an [`EventFilter`] on `deliveries`, for parameters 1 to 4.
const MATCHES: &str = "(?1 IS NULL OR deliveries.sink = ?1 OR substr(deliveries.sink, 1, length(?1) + 1) = ?1 || '/') AND (?2 IS NULL OR dead = ?2) \
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
    let mut entries = Vec::new();
    let mut after = after.clone();
    while entries.len() < limit {
        let wanted = limit - entries.len();
        let rows = list_page(connection, filter, &after, wanted)?;
        let is_last = rows.len() < wanted;
        for (cursor, entry) in rows {
            after = cursor;
            entries.extend(entry);
        }
        if is_last {
            break;
        }
    }
    Ok(entries)
}

/// Rows after `after`, each with its place; those that are damaged without an entry.
fn list_page(
    connection: &Connection,
    filter: &EventFilter,
    after: &EventCursor,
    limit: usize,
) -> rusqlite::Result<Vec<(EventCursor, Option<EventEntry>)>> {
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
        let cursor = EventCursor {
            sequence: unsigned(row, 0)?,
            sink: row.get(10)?,
        };
        match entry(row) {
            Ok(entry) => Ok((cursor, Some(entry))),
            Err(error) if is_damage(&error) => Ok((cursor, None)),
            Err(error) => Err(error),
        }
    })
}

fn entry(row: &Row<'_>) -> rusqlite::Result<EventEntry> {
    Ok(EventEntry {
        sink: row.get(10)?,
        dead: row.get(11)?,
        attempted_at_ms: optional_number(row, 12)?,
        error: row.get(13)?,
        waiting: waiting(row)?,
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

/// `given_up` counts events pushed out and deliveries that could not be read.
fn depth(connection: &Connection, given_up: (u64, u64)) -> rusqlite::Result<Depth> {
    let (events, bytes) = usage(connection)?;
    let sql = "SELECT sink, waiting, dead, max(at_ms, 0) FROM (SELECT sink, count(*) - sum(dead) AS waiting, \
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
        evicted: given_up.0,
        unreadable: given_up.1,
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
