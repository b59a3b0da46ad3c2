//! Whether a principal is still what it was when it showed its credential: asked of its authenticator, and ended where it is not.
//!
//! Owns floors (everything proved before is void), what authenticators answered about principals, and the transfers that run for them.
//! Lasts over reloads. Invariants: an answer is believed for less than [`KEEP`]; a failure of the authenticator revokes nothing; together
//! with [`LOOK_EVERY`] a transfer outlives its principal by less than five seconds.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use gantry_plugin_host::CallError;
use gantry_registry::Clock as _;
use gantry_storage::{KeyValueStore, kv::KvPut};
use moka::future::Cache;
use tokio::{sync::Notify, time::Instant};

use crate::{
    app::App,
    clock::SystemClock,
    policy::{
        binding::Binding,
        downloads::{self, Download},
    },
};

/// How long an authenticator's answer about a principal is believed.
const KEEP: Duration = Duration::from_secs(2);
/// How often the principals of running transfers are looked at; a new configuration is a reason too.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Answers kept at most, each of at most 600 bytes.
const MAX_ANSWERS: u64 = 10_000;
/// Authenticators asked at once about principals of running transfers.
const MAX_ASKED_AT_ONCE: usize = 16;
/// Floors kept at most: more revocations than that within a day are refused.
const MAX_FLOORS: usize = 100_000;
/// How long a floor is kept: no token lives longer.
const FLOOR_FOR_MS: u64 = 24 * 60 * 60 * 1000;
/// Where floors are kept. No plugin's bucket has a name without a slash.
const BUCKET: &str = "gantry";
const KEY: &str = "revoked";

/// What a principal was proved with.
pub struct Proof {
    revocation: Arc<Revocation>,
    /// The principal.
    pub(crate) id: String,
    /// The binding that vouched for it; `None` = an upstream did.
    pub(crate) authenticator: Option<Arc<str>>,
    /// The principal's generation then.
    pub(crate) generation: Arc<str>,
    /// When the credential was checked, in milliseconds since 1970. A token got with a token keeps the first one's.
    pub(crate) since_ms: u64,
    /// The epoch in which it was last seen to stand, and until when that is believed.
    seen_epoch: AtomicU64,
    seen_until_ms: AtomicU64,
}

impl fmt::Debug for Proof {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Proof")
            .field("id", &self.id)
            .field("authenticator", &self.authenticator)
            .field("since_ms", &self.since_ms)
            .finish_non_exhaustive()
    }
}

/// What of a proof a token carries.
#[derive(Clone, Debug)]
pub(crate) struct ProofParts {
    pub(crate) id: String,
    pub(crate) authenticator: Option<Arc<str>>,
    pub(crate) generation: Arc<str>,
    pub(crate) since_ms: u64,
}

impl Proof {
    /// Registers a transfer that runs for the principal; `end` is called when the principal is revoked, and must not block.
    pub(crate) fn transfer(self: &Arc<Self>, end: impl Fn() + Send + Sync + 'static) -> Transfer {
        let running = Running {
            proof: Some(Arc::clone(self)),
            download: None,
            end: Box::new(end),
        };
        Arc::clone(&self.revocation).register(running)
    }
}

/// What a response rests on.
#[derive(Debug)]
pub(crate) struct Grounds {
    /// What its principal was proved with.
    proof: Option<Arc<Proof>>,
    /// Which content a configuration allowed.
    download: Option<Arc<Download>>,
}

impl Grounds {
    /// `None` where nothing can end the response.
    pub(crate) fn of(proof: Option<Arc<Proof>>, download: Option<Arc<Download>>) -> Option<Self> {
        (proof.is_some() || download.is_some()).then_some(Self { proof, download })
    }

    /// Registers a transfer that rests on them; `end` is called when one of them is gone, and must not block.
    pub(crate) fn transfer(self, end: impl Fn() + Send + Sync + 'static) -> Option<Transfer> {
        let of_download = self.download.as_ref().map(|it| it.revocation());
        let of_proof = self.proof.as_ref().map(|it| &it.revocation);
        let revocation = Arc::clone(of_download.or(of_proof)?);
        Some(revocation.register(Running {
            proof: self.proof,
            download: self.download,
            end: Box::new(end),
        }))
    }
}

/// A transfer that runs for a principal, until it is dropped.
pub(crate) struct Transfer {
    revocation: Arc<Revocation>,
    number: u64,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_tuple("Transfer")
            .field(&self.number)
            .finish()
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let ended = self.revocation.transfers().remove(&self.number);
        drop(ended);
    }
}

struct Running {
    proof: Option<Arc<Proof>>,
    download: Option<Arc<Download>>,
    end: Box<dyn Fn() + Send + Sync>,
}

/// An authenticator's answer about an id.
#[derive(Clone, Debug)]
struct Answer {
    generation: Option<Arc<str>>,
    until_ms: u64,
}

/// What is known about principals.
pub(crate) struct Revocation {
    values: Arc<dyn KeyValueStore>,
    began: Instant,
    /// Raised by everything that may end a principal at once, which is then told by `changed`.
    epoch: AtomicU64,
    changed: Notify,
    /// By id, in milliseconds since 1970. Held for single operations, never over an await.
    floors: Mutex<BTreeMap<String, u64>>,
    /// Held while floors are written.
    writing: tokio::sync::Mutex<()>,
    /// By the binding's fingerprint and the id.
    answers: Cache<(Arc<str>, String), Answer>,
    transfers_begun: AtomicU64,
    /// Held for single operations, never over an await.
    transfers: Mutex<HashMap<u64, Running>>,
}

impl fmt::Debug for Revocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Revocation").finish_non_exhaustive()
    }
}

impl Revocation {
    /// Knows the floors that were kept.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) async fn open(values: Arc<dyn KeyValueStore>) -> anyhow::Result<Arc<Self>> {
        let kept = values.get(BUCKET, KEY, SystemClock.now_ms()).await;
        let kept = kept.context("cannot read which principals were revoked")?;
        let floors = kept.map(|entry| serde_json::from_slice(&entry.value));
        let floors = floors
            .transpose()
            .context("the list of revoked principals in plugins.db is damaged")?;
        Ok(Self::new(values, floors.unwrap_or_default()))
    }

    pub(crate) fn new(values: Arc<dyn KeyValueStore>, floors: BTreeMap<String, u64>) -> Arc<Self> {
        Arc::new(Self {
            values,
            began: Instant::now(),
            epoch: AtomicU64::new(1),
            changed: Notify::new(),
            floors: Mutex::new(floors),
            writing: tokio::sync::Mutex::default(),
            answers: Cache::builder()
                .max_capacity(MAX_ANSWERS)
                .time_to_live(KEEP)
                .build(),
            transfers_begun: AtomicU64::new(0),
            transfers: Mutex::default(),
        })
    }

    /// A proof that was made now, and so stands above every floor.
    pub(crate) fn prove(
        self: &Arc<Self>,
        authenticator: Option<Arc<str>>,
        id: &str,
        generation: Arc<str>,
    ) -> Arc<Proof> {
        let floor = self.floor(id);
        self.proof(ProofParts {
            id: id.to_owned(),
            authenticator,
            generation,
            // The clock may have been put back.
            since_ms: SystemClock.now_ms().max(floor.map_or(0, |floor| floor + 1)),
        })
    }

    /// A proof that a token carries.
    pub(crate) fn proof(self: &Arc<Self>, parts: ProofParts) -> Arc<Proof> {
        Arc::new(Proof {
            revocation: Arc::clone(self),
            id: parts.id,
            authenticator: parts.authenticator,
            generation: parts.generation,
            since_ms: parts.since_ms,
            seen_epoch: AtomicU64::new(0),
            seen_until_ms: AtomicU64::new(0),
        })
    }

    /// Another configuration serves: every principal is asked about anew.
    pub(crate) fn reconfigured(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// Voids everything that was proved for an id until now. Whoever still has a good credential logs in anew.
    ///
    /// # Errors
    /// It cannot be written; it holds until the process ends.
    pub(crate) async fn revoke(&self, id: &str) -> anyhow::Result<()> {
        let _turn = self.writing.lock().await;
        let now_ms = SystemClock.now_ms();
        let text = {
            let mut floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
            floors.retain(|_id, floor| now_ms.saturating_sub(*floor) < FLOOR_FOR_MS);
            anyhow::ensure!(
                floors.len() < MAX_FLOORS || floors.contains_key(id),
                "{MAX_FLOORS} principals were revoked within a day: no more fit"
            );
            let floor = floors.entry(id.to_owned()).or_default();
            *floor = now_ms.max(*floor);
            serde_json::to_vec(&*floors)?
        };
        self.reconfigured();
        let put = KvPut {
            bucket: BUCKET,
            key: KEY,
            value: &text,
            expected: None,
            expires_at_ms: Some(now_ms + FLOOR_FOR_MS),
            now_ms,
            max_bytes: None,
        };
        let written = self.values.put(put).await;
        written.context("the revocation holds until a restart: it cannot be written")?;
        Ok(())
    }

    fn floor(&self, id: &str) -> Option<u64> {
        let floors = self.floors.lock().unwrap_or_else(PoisonError::into_inner);
        floors.get(id).copied()
    }

    fn transfers(&self) -> MutexGuard<'_, HashMap<u64, Running>> {
        self.transfers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether what was proved still holds, as the chain knows.
    ///
    /// # Errors
    /// The authenticator failed: it is not known.
    pub(crate) async fn stands(
        &self,
        chain: &[Arc<Binding>],
        proof: &Proof,
    ) -> Result<bool, CallError> {
        let epoch = self.epoch.load(Ordering::Acquire);
        let is_seen = proof.seen_epoch.load(Ordering::Acquire) == epoch
            && self.elapsed_ms() < proof.seen_until_ms.load(Ordering::Acquire);
        if is_seen {
            return Ok(true);
        }
        // Boxed: rare, and whoever shows a good token need not keep room for it.
        let until_ms = Box::pin(self.stands_until(chain, proof)).await?;
        if let Some(until_ms) = until_ms {
            proof.seen_until_ms.store(until_ms, Ordering::Release);
            proof.seen_epoch.store(epoch, Ordering::Release);
        }
        Ok(until_ms.is_some())
    }

    async fn stands_until(
        &self,
        chain: &[Arc<Binding>],
        proof: &Proof,
    ) -> Result<Option<u64>, CallError> {
        if self
            .floor(&proof.id)
            .is_some_and(|floor| proof.since_ms <= floor)
        {
            return Ok(None);
        }
        let soon = self.elapsed_ms() + KEEP.as_secs() * 1000;
        let Some(name) = &proof.authenticator else {
            return Ok(Some(soon));
        };
        let binding = chain.iter().find(|binding| binding.name() == name);
        let Some(binding) = binding.filter(|binding| binding.makes(&proof.id)) else {
            return Ok(None);
        };
        if !binding.plugin.knows_principals() {
            return Ok(Some(soon));
        }
        let answer = self.ask(binding, &proof.id).await?;
        let same = answer.generation.as_ref() == Some(&proof.generation);
        Ok(same.then_some(answer.until_ms))
    }

    /// Asks once for all who wait.
    async fn ask(&self, binding: &Binding, id: &str) -> Result<Answer, CallError> {
        let key = (Arc::clone(&binding.fingerprint), id.to_owned());
        let began_ms = self.elapsed_ms();
        let ask = async {
            let generation = binding.current(id).await?;
            let until_ms = began_ms + KEEP.as_secs() * 1000;
            Ok::<_, CallError>(Answer {
                generation,
                until_ms,
            })
        };
        let answer = self.answers.try_get_with(key, ask).await;
        answer.map_err(|error| (*error).clone())
    }

    /// Ends the transfers whose principals no longer stand.
    async fn look(&self, chain: &[Arc<Binding>]) {
        let looks = futures_util::stream::iter(self.proofs_of_transfers());
        let looks = looks.map(|proof| async {
            let stands = self.stands(chain, &proof).await;
            // A failure is told where requests meet it, and revokes nothing.
            (!stands.unwrap_or(true)).then_some(proof)
        });
        let mut looks = std::pin::pin!(looks.buffer_unordered(MAX_ASKED_AT_ONCE));
        while let Some(revoked) = looks.next().await {
            if let Some(proof) = revoked {
                self.end_transfers(&proof);
            }
        }
    }

    /// Each once, however many transfers it has.
    fn proofs_of_transfers(&self) -> Vec<Arc<Proof>> {
        let mut proofs = HashMap::new();
        for running in self.transfers().values() {
            let Some(proof) = &running.proof else {
                continue;
            };
            proofs.insert(Arc::as_ptr(proof), Arc::clone(proof));
        }
        proofs.into_values().collect()
    }

    fn register(self: Arc<Self>, running: Running) -> Transfer {
        let number = self.transfers_begun.fetch_add(1, Ordering::Relaxed);
        self.transfers().insert(number, running);
        Transfer {
            revocation: self,
            number,
        }
    }

    /// The downloads that generations before this one allowed, by the number of their transfers.
    pub(crate) fn downloads_before(&self, generation: u64) -> Vec<(u64, Arc<Download>)> {
        let transfers = self.transfers();
        let downloads = transfers.iter().filter_map(|(number, running)| {
            let download = running.download.as_ref()?;
            let is_due = download.is_older_than(generation);
            is_due.then(|| (*number, Arc::clone(download)))
        });
        downloads.collect()
    }

    /// Ends a transfer, if it still runs.
    pub(crate) fn end(&self, transfer: u64) {
        if let Some(running) = self.transfers().get(&transfer) {
            (running.end)();
        }
    }

    fn end_transfers(&self, proof: &Arc<Proof>) {
        let mut ended = 0_usize;
        for running in self.transfers().values() {
            let own = running.proof.as_ref();
            if own.is_some_and(|own| Arc::ptr_eq(own, proof)) {
                (running.end)();
                ended += 1;
            }
        }
        tracing::info!(
            principal.subject = proof.id,
            transfer_count = ended,
            "a principal was revoked; its transfers end"
        );
    }
}

/// Ends the transfers of principals that are revoked, and downloads that a new configuration denies, until the process ends.
pub(crate) async fn follow(app: Arc<App>) {
    let revocation = Arc::clone(&app.lasting.revocation);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = revocation.changed.notified() => {}
        }
        let generation = app.current();
        let look = revocation.look(generation.authentication.chain());
        Box::pin(look).await;
        if generation.edge.ends_denied_downloads {
            Box::pin(downloads::judge_again(&revocation, &generation)).await;
        }
    }
}
