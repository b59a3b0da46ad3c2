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
        self.run_then(attempt, work, || {}).await
    }

    /// As [`Writer::run`]; `then` runs after the transaction and before the answer, whatever that is and whoever still waits for it.
    pub(super) async fn run_then<T, E>(
        &self,
        attempt: &'static str,
        work: impl FnOnce(&Connection) -> Result<T, Stop<E>> + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StorageError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let task = Task {
            attempt,
            work: Some(work),
            then,
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

struct Task<F, C, T, E> {
    attempt: &'static str,
    work: Option<F>,
    then: C,
    result: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, C, T, E> Job for Task<F, C, T, E>
where
    F: FnOnce(&Connection) -> Result<T, Stop<E>> + Send,
    C: FnOnce() + Send,
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
        (self.then)();
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

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::mpsc::{Sender, channel},
    };

    use futures_util::{FutureExt as _, future::join};

    use super::*;
    use crate::metadata::CommitError;

    fn writer(path: &Path) -> Writer {
        let connection = Connection::open(path).unwrap();
        let tables = "CREATE TABLE parents (id INTEGER PRIMARY KEY); \
            CREATE TABLE children (parent INTEGER REFERENCES parents (id) DEFERRABLE INITIALLY DEFERRED);";
        connection.execute_batch(tables).unwrap();
        connection
            .pragma_update(None, "foreign_keys", true)
            .unwrap();
        Writer::start(connection).unwrap()
    }

    type Done = Result<(), Stop<CommitError>>;

    fn sql(statement: &'static str) -> impl FnOnce(&Connection) -> Done + Send {
        move |connection| Ok(connection.execute_batch(statement)?)
    }

    fn count(path: &Path, table: &str) -> u32 {
        let connection = Connection::open(path).unwrap();
        let statement = format!("SELECT count(*) FROM {table}");
        connection
            .query_row(&statement, [], |row| row.get(0))
            .unwrap()
    }

    /// Keeps the thread busy until the sender is dropped; what is queued meanwhile shares the next transaction.
    fn hold(writer: &Writer) -> (Sender<()>, impl Future<Output = Result<(), CommitError>>) {
        let (began, begins) = channel();
        let (release, held) = channel::<()>();
        let work = move |_connection: &Connection| {
            began.send(()).ok();
            held.recv().ok();
            Done::Ok(())
        };
        let writer = writer.clone();
        let mut hold = Box::pin(async move { writer.run("hold", work).await });
        assert!(hold.as_mut().now_or_never().is_none());
        begins.recv().unwrap();
        (release, hold)
    }

    /// Runs two pieces of work in one transaction.
    async fn together(
        writer: &Writer,
        one: impl FnOnce(&Connection) -> Done + Send + 'static,
        two: impl FnOnce(&Connection) -> Done + Send + 'static,
    ) -> (Result<(), CommitError>, Result<(), CommitError>) {
        let (release, hold) = hold(writer);
        let mut both = Box::pin(join(writer.run("one", one), writer.run("two", two)));
        assert!(both.as_mut().now_or_never().is_none());
        drop(release);
        hold.await.unwrap();
        both.await
    }

    fn storage_error(result: Result<(), CommitError>) -> StorageError {
        match result {
            Err(CommitError::Storage(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_transaction_that_cannot_be_committed_fails_everybody_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = writer(&path);
        let good = sql("INSERT INTO parents VALUES (1)");
        let orphan = sql("INSERT INTO children VALUES (99)");
        let (one, two) = together(&writer, good, orphan).await;
        for (result, shown) in [(one, "cannot one"), (two, "cannot two")] {
            let error = storage_error(result);
            assert_eq!(error.kind(), Kind::Unavailable);
            assert_eq!(error.to_string(), shown);
        }
        assert_eq!(count(&path, "parents") + count(&path, "children"), 0);
        let again = writer.run("again", sql("INSERT INTO parents VALUES (2)"));
        again.await.unwrap();
        assert_eq!(count(&path, "parents"), 1);
    }

    #[tokio::test]
    async fn work_that_is_refused_leaves_its_neighbours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = writer(&path);
        let refused = |connection: &Connection| {
            connection.execute_batch("INSERT INTO parents VALUES (1)")?;
            Done::Err(Stop::Refused(CommitError::Absent))
        };
        let (one, two) = together(&writer, refused, sql("INSERT INTO parents VALUES (2)")).await;
        assert!(matches!(one, Err(CommitError::Absent)));
        two.unwrap();
        let failed = sql("INSERT INTO parents VALUES (3); INSERT INTO parents VALUES (2)");
        let (one, two) = together(&writer, failed, sql("INSERT INTO parents VALUES (4)")).await;
        assert_eq!(storage_error(one).kind(), Kind::Internal);
        two.unwrap();
        assert_eq!(count(&path, "parents"), 2);
    }

    #[tokio::test]
    async fn work_nobody_waits_for_is_not_begun() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let writer = writer(&path);
        let (release, hold) = hold(&writer);
        let given_up = writer.run("give up", sql("INSERT INTO parents VALUES (1)"));
        assert!(given_up.now_or_never().is_none());
        drop(release);
        hold.await.unwrap();
        writer
            .run("last", sql("INSERT INTO parents VALUES (2)"))
            .await
            .unwrap();
        assert_eq!(count(&path, "parents"), 1);
    }
}
