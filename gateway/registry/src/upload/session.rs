//! Upload sessions: who may continue one, whose turn it is, and the writer between two requests.
//!
//! Owns the table of sessions this process has seen. The truth is the store's: a session that is not in the table is looked up there,
//! and a writer that was put away is made again from the staging file.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use gantry_model::{Algorithm, RepositoryName, UploadId};
use gantry_storage::{BlobWriter, UploadRecord};

use crate::{
    error::Error,
    registry::{Call, Shared},
    staging::new_upload_id,
};

/// Writers kept between requests at most, each with its running hash and an open file.
const MAX_PARKED: usize = 256;
/// How long a writer waits for its session's next request before the sweep closes it, in milliseconds.
const PARKED_FOR_MS: u64 = 300_000;

/// The sessions this process has seen.
pub(crate) struct Uploads {
    /// Held for single operations on the table, never over an await.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    sessions: HashMap<UploadId, Arc<Session>>,
    counts: HashMap<String, usize>,
    parked: HashMap<UploadId, Parked>,
}

/// A flushed writer between two requests. It is the only one of its session: a store may refuse a second.
struct Parked {
    writer: Box<dyn BlobWriter>,
    since_ms: u64,
}

/// One session.
pub(crate) struct Session {
    record: UploadRecord,
    received: AtomicU64,
    busy: AtomicBool,
}

/// The right to write to a session: one at a time.
pub(crate) struct Turn(Arc<Session>);

impl Session {
    fn new(record: UploadRecord) -> Arc<Self> {
        Arc::new(Self {
            record,
            received: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        })
    }

    /// Bytes that were acknowledged, as far as this process knows.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }
}

impl Turn {
    /// Takes the turn; `None` while another request has it.
    pub(crate) fn take(session: &Arc<Session>) -> Option<Self> {
        let taken = session.busy.swap(true, Ordering::AcqRel);
        (!taken).then(|| Self(Arc::clone(session)))
    }

    pub(crate) fn upload(&self) -> UploadId {
        self.0.record.upload
    }

    pub(crate) fn received(&self) -> u64 {
        self.0.received()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Table {
    /// The entry of a session: the one that is there already, so that there is one turn.
    fn insert(&mut self, record: UploadRecord) -> Arc<Session> {
        if let Some(session) = self.sessions.get(&record.upload) {
            return Arc::clone(session);
        }
        *self.counts.entry(record.principal.clone()).or_default() += 1;
        let session = Session::new(record);
        self.sessions
            .insert(session.record.upload, Arc::clone(&session));
        session
    }

    fn remove(&mut self, upload: UploadId) {
        let Some(session) = self.sessions.remove(&upload) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&session.record.principal) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&session.record.principal);
            }
        }
    }
}

impl Uploads {
    pub(crate) fn new() -> Self {
        Self {
            table: Mutex::default(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sessions in the table.
    pub(crate) fn open_count(&self) -> usize {
        self.table().sessions.len()
    }

    /// Enters a session that the store knows.
    pub(crate) fn enter(&self, record: UploadRecord) -> Arc<Session> {
        self.table().insert(record)
    }

    /// Enters a new session, unless its principal has `max` open already.
    fn enter_new(&self, record: UploadRecord, max: usize) -> Option<Arc<Session>> {
        let mut table = self.table();
        let open = table.counts.get(&record.principal).copied();
        (open.unwrap_or(0) < max).then(|| table.insert(record))
    }

    /// Takes a session that is over out of the table.
    pub(crate) fn forget(&self, upload: UploadId) {
        drop(self.take_parked(upload));
        self.table().remove(upload);
    }

    /// Forgets sessions opened before `before_ms` that the store no longer has.
    pub(crate) fn forget_expired(&self, before_ms: u64) {
        let mut table = self.table();
        // One that a request holds keeps its entry, or the session would get a second turn.
        let expired = |session: &&Arc<Session>| {
            session.record.started_at_ms < before_ms && Arc::strong_count(session) == 1
        };
        let expired = table.sessions.values().filter(expired);
        let expired: Vec<UploadId> = expired.map(|session| session.record.upload).collect();
        for upload in expired {
            table.remove(upload);
        }
    }

    /// Closes writers that waited too long.
    pub(crate) fn close_idle(&self, now_ms: u64) {
        let idle = |_upload: &UploadId, parked: &mut Parked| {
            now_ms.saturating_sub(parked.since_ms) > PARKED_FOR_MS
        };
        let closed: Vec<_> = self.table().parked.extract_if(idle).collect();
        drop(closed);
    }

    /// Puts a flushed writer away, and closes the one that waited longest when there are too many.
    fn park(&self, upload: UploadId, parked: Parked) {
        let closed = {
            let parked_writers = &mut self.table().parked;
            let oldest = parked_writers
                .iter()
                .min_by_key(|(_upload, parked)| parked.since_ms)
                .filter(|_| parked_writers.len() >= MAX_PARKED)
                .map(|(upload, _parked)| *upload);
            let closed = oldest.and_then(|oldest| parked_writers.remove(&oldest));
            parked_writers.insert(upload, parked);
            closed
        };
        drop(closed);
    }

    fn take_parked(&self, upload: UploadId) -> Option<Box<dyn BlobWriter>> {
        let parked = self.table().parked.remove(&upload);
        parked.map(|parked| parked.writer)
    }
}

impl Call {
    /// Opens a session: its staging file, then its record, so that a crash between the two leaves only a file for the sweep.
    pub(crate) async fn open_session(
        &self,
        name: &RepositoryName,
        algorithm: Algorithm,
    ) -> Result<UploadId, Error> {
        let ports = &self.shared.ports;
        let record = UploadRecord {
            upload: new_upload_id()?,
            repository: name.clone(),
            principal: self.requester.principal.id.clone(),
            algorithm,
            started_at_ms: ports.clock.now_ms(),
        };
        let upload = record.upload;
        let max = self.shared.settings.max_uploads_per_principal;
        let session = self.shared.uploads.enter_new(record.clone(), max);
        let turn = session
            .and_then(|session| Turn::take(&session))
            .ok_or(Error::TooManyRequests { retry_after: None })?;
        let started = match ports.blobs.create(upload, algorithm).await {
            Ok(writer) => {
                let started = ports.uploads.start_upload(&record).await;
                started.map(|()| self.park(&turn, writer))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            self.shared.uploads.forget(upload);
            self.shared.discard(upload).await;
            return Err(error.into());
        }
        Ok(upload)
    }

    /// A session of this principal in this repository. Whatever does not fit is as unknown as what never was.
    pub(crate) async fn find_session(
        &self,
        name: &RepositoryName,
        upload: UploadId,
    ) -> Result<Arc<Session>, Error> {
        let record = self.shared.ports.uploads.upload(upload).await?;
        let own = |record: &UploadRecord| {
            record.repository == *name && record.principal == self.requester.principal.id
        };
        match record.filter(own) {
            Some(record) => Ok(self.shared.uploads.enter(record)),
            None => Err(Error::BlobUploadUnknown),
        }
    }

    /// The session's writer: the one that was put away, or one made again from the staging file.
    pub(crate) async fn open_writer(&self, turn: &Turn) -> Result<Box<dyn BlobWriter>, Error> {
        let record = &turn.0.record;
        let writer = match self.shared.uploads.take_parked(record.upload) {
            Some(writer) => Some(writer),
            None => {
                let blobs = &self.shared.ports.blobs;
                blobs.resume(record.upload, record.algorithm).await?
            }
        };
        let Some(writer) = writer else {
            self.shared.end_session(turn).await?;
            return Err(Error::BlobUploadUnknown);
        };
        turn.0.received.store(writer.written(), Ordering::Release);
        Ok(writer)
    }

    /// Puts a flushed writer away until the session's next request.
    pub(crate) fn park(&self, turn: &Turn, writer: Box<dyn BlobWriter>) {
        turn.0.received.store(writer.written(), Ordering::Release);
        let since_ms = self.shared.ports.clock.now_ms();
        let parked = Parked { writer, since_ms };
        self.shared.uploads.park(turn.upload(), parked);
    }
}

impl Shared {
    /// Ends a session: first its record, so that a failure in between leaves only a file for the sweep.
    pub(crate) async fn end_session(&self, turn: &Turn) -> Result<(), Error> {
        let upload = turn.upload();
        drop(self.uploads.take_parked(upload));
        self.ports.uploads.end_upload(upload).await?;
        self.uploads.forget(upload);
        self.discard(upload).await;
        Ok(())
    }

    /// Ends a session whose request failed already: that failure is the answer, and the sweep takes what stays.
    pub(crate) async fn drop_session(&self, turn: &Turn) {
        if let Err(error) = self.end_session(turn).await {
            tracing::warn!(upload = %turn.upload(), error = &error as &dyn std::error::Error, "an upload session stays until the sweep");
        }
    }
}
