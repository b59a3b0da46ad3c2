//! The one thread that writes: pending work shares a transaction, so that one fsync serves many.
//!
//! Each piece of work has its own savepoint. Nobody is answered before the transaction is committed; when it cannot be, everybody in it
//! is told so, also those who were refused, because what refused them may not have happened.

use std::{fmt, thread};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use super::failure::{Shared, Stop, failed};
use crate::error::{Kind, StorageError};

/// A handle to the thread, which ends with the last handle.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
}

impl Writer {
    /// Starts the thread.
    pub(super) fn start(connection: Connection) -> Result<Self, StorageError> {
        let (queue, jobs) = mpsc::channel(MAX_QUEUED);
        thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || serve(&connection, jobs))
            .map_err(|error| StorageError::io("start the database's writer", error))?;
        Ok(Self { queue })
    }

    /// Does the work in a transaction and returns after that is durable. Work that returns [`Stop`] changed nothing.
    pub(super) async fn run<T, E>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Stop<E>> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StorageError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Task {
            attempt,
            work: Some(work),
            result: None,
            reply,
        };
        let gone = || {
            E::from(StorageError::new(
                Kind::Unavailable,
                attempt,
                "the writer ended",
            ))
        };
        if self.queue.send(Box::new(task)).await.is_err() {
            return Err(gone());
        }
        answer.await.unwrap_or_else(|_dropped| Err(gone()))
    }
}

/// Work that somebody waits for.
trait Job: Send {
    /// Nobody waits any more.
    fn is_abandoned(&self) -> bool;

    /// Does the work and keeps its result; whether what it changed is to stay.
    fn perform(&mut self, connection: &Connection) -> bool;

    /// Answers: with the result, or with the failure of the transaction.
    fn answer(self: Box<Self>, failure: Option<&Shared>);
}

struct Task<F, T, E> {
    attempt: &'static str,
    work: Option<F>,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Task<F, T, E>
where
    F: FnOnce(&Connection) -> Result<T, Stop<E>> + Send,
    T: Send,
    E: From<StorageError> + Send,
{
    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn perform(&mut self, connection: &Connection) -> bool {
        let result = match self.work.take().map(|work| work(connection)) {
            Some(Ok(value)) => Some(Ok(value)),
            Some(Err(Stop::Refused(refusal))) => Some(Err(refusal)),
            Some(Err(Stop::Sql(error))) => Some(Err(failed(self.attempt, error).into())),
            None => None,
        };
        self.result = result;
        matches!(self.result, Some(Ok(_)))
    }

    fn answer(self: Box<Self>, failure: Option<&Shared>) {
        let result = match failure {
            Some(failure) => Some(Err(failure.told(self.attempt).into())),
            None => self.result,
        };
        if let Some(result) = result {
            // Whoever stopped waiting meanwhile is in the state of a client whose connection broke.
            self.reply.send(result).ok();
        }
    }
}

impl fmt::Debug for dyn Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Job")
    }
}

fn serve(connection: &Connection, mut queue: mpsc::Receiver<Box<dyn Job>>) {
    while let Some(first) = queue.blocking_recv() {
        let mut group = vec![first];
        while group.len() < MAX_GROUP
            && let Ok(next) = queue.try_recv()
        {
            group.push(next);
        }
        group.retain(|job| !job.is_abandoned());
        if group.is_empty() {
            continue;
        }
        let failure = commit(connection, &mut group)
            .err()
            .map(Shared::of_transaction);
        if let Some(failure) = &failure {
            tracing::error!(error = ?failure, jobs = group.len(), "a transaction failed");
        }
        for job in group {
            job.answer(failure.as_ref());
        }
    }
}

fn commit(connection: &Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    let result = perform(connection, group);
    if result.is_err() && !connection.is_autocommit() {
        // Without this the next transaction could not begin; when it fails too, that one says so.
        if let Err(error) = connection.execute_batch("ROLLBACK") {
            tracing::error!(%error, "a transaction could not be rolled back");
        }
    }
    result
}

fn perform(connection: &Connection, group: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
    let execute = |statement: &str| {
        connection
            .prepare_cached(statement)?
            .execute([])
            .map(|_rows| ())
    };
    execute("BEGIN IMMEDIATE")?;
    for job in group {
        execute("SAVEPOINT job")?;
        if !job.perform(connection) {
            // Fails when SQLite gave up the whole transaction, after an I/O error for example.
            execute("ROLLBACK TO job")?;
        }
        execute("RELEASE job")?;
    }
    execute("COMMIT")
}

/// Callers beyond these wait for a place.
const MAX_QUEUED: usize = 1024;
/// The first caller of a group waits for the work of the last: about 100 us each.
const MAX_GROUP: usize = 64;
