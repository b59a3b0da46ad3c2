//! Password checks: bcrypt and argon2 on a bounded pool of blocking threads.
//!
//! Owns the bounds on what a stored hash may cost. An unknown user costs what a known one does. Never logs or keeps a password.

use std::{sync::Arc, time::Duration};

use argon2::{
    Argon2, PasswordVerifier,
    password_hash::{PasswordHasher, phc::PasswordHash},
};
use tokio::sync::Semaphore;

/// What bcrypt looks at; a longer password would match by its beginning alone.
const BCRYPT_MAX_BYTES: usize = 72;
/// About 1.2 s of one core; each step doubles it.
const BCRYPT_MAX_COST: u32 = 14;
const BCRYPT_COST: u32 = 10;
/// Checked for users that do not exist. Nothing matches: the answer is ignored.
const NOBODY: &str = "$2b$10$L6Bc/AlTQHyd9liGgGEZyOFLPHNgyxeEPfgYfBCVxJ7JIlwxyVU3u";
/// Memory of one argon2 check, in KiB.
const ARGON2_MAX_KIB: u32 = 128 << 10;
const ARGON2_MAX_PASSES: u32 = 16;
const ARGON2_MAX_LANES: u32 = 16;
/// Checks that may wait for each one that runs.
const WAITING_PER_CHECK: usize = 32;
/// A check that has not begun after this long is refused.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// An answer about a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Checked {
    Match,
    Mismatch,
    Unsupported,
    Throttled,
}

/// Bounds how many checks run and how many wait.
#[derive(Debug)]
pub(crate) struct PasswordPool {
    running: Arc<Semaphore>,
    places: Arc<Semaphore>,
    /// Places when nothing waits.
    most: usize,
}

impl PasswordPool {
    pub(crate) fn new(checks: usize) -> Self {
        let checks = checks.clamp(1, 64);
        let most = checks * (1 + WAITING_PER_CHECK);
        Self {
            running: Arc::new(Semaphore::new(checks)),
            places: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// Checks that run or wait.
    pub(crate) fn busy_count(&self) -> usize {
        self.most.saturating_sub(self.places.available_permits())
    }

    /// Whether `password` is the one behind `stored`.
    pub(crate) async fn verify(&self, stored: Option<String>, password: Vec<u8>) -> Checked {
        let scheme = Scheme::of(stored);
        if matches!(scheme, Scheme::Unsupported) {
            return Checked::Unsupported;
        }
        self.run(move || scheme.check(&password))
            .await
            .unwrap_or(Checked::Throttled)
    }

    /// A new hash; `None` when too much waits already.
    pub(crate) async fn hash(&self, password: Vec<u8>) -> Option<String> {
        self.run(move || {
            if password.len() > BCRYPT_MAX_BYTES {
                let hash: Result<PasswordHash, _> = Argon2::default().hash_password(&password);
                return hash.ok().map(|hash| hash.to_string());
            }
            bcrypt::hash(password, BCRYPT_COST).ok()
        })
        .await
        .flatten()
    }

    /// Runs `work` on a blocking thread. The places are held by the thread, so a caller that goes away frees nothing early.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        let turn = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.running).acquire_owned())
            .await
            .ok()?
            .ok()?;
        tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            drop(place);
            done
        })
        .await
        .ok()
    }
}

/// How a stored hash is checked.
#[derive(Debug)]
enum Scheme {
    Bcrypt(String),
    Argon2(Box<PasswordHash>),
    /// There is no such user: spend the time, match nothing.
    Nobody,
    Unsupported,
}

impl Scheme {
    fn of(stored: Option<String>) -> Self {
        let Some(stored) = stored else {
            return Self::Nobody;
        };
        if stored.starts_with("$argon2") {
            return Self::argon2(&stored).unwrap_or(Self::Unsupported);
        }
        if Self::is_bcrypt(&stored) {
            return Self::Bcrypt(stored);
        }
        Self::Unsupported
    }

    fn is_bcrypt(stored: &str) -> bool {
        let versions = ["$2a$", "$2b$", "$2y$"];
        versions.iter().any(|version| stored.starts_with(version))
            && stored
                .parse::<bcrypt::HashParts>()
                .is_ok_and(|parts| (4..=BCRYPT_MAX_COST).contains(&parts.get_cost()))
    }

    fn argon2(stored: &str) -> Option<Self> {
        let hash = PasswordHash::new(stored).ok()?;
        let params = argon2::Params::try_from(&hash).ok()?;
        let bounded = params.m_cost() <= ARGON2_MAX_KIB
            && params.t_cost() <= ARGON2_MAX_PASSES
            && params.p_cost() <= ARGON2_MAX_LANES
            && hash.hash.is_some()
            && hash.salt.is_some();
        bounded.then(|| Self::Argon2(Box::new(hash)))
    }

    fn check(&self, password: &[u8]) -> Checked {
        let matches = match self {
            Self::Bcrypt(hash) => check_bcrypt(password, hash),
            Self::Argon2(hash) => Argon2::default().verify_password(password, &**hash).is_ok(),
            Self::Nobody => {
                check_bcrypt(password, NOBODY);
                false
            }
            Self::Unsupported => return Checked::Unsupported,
        };
        if matches {
            Checked::Match
        } else {
            Checked::Mismatch
        }
    }
}

/// Computes the hash also for a password that is too long, so that the clock does not tell.
fn check_bcrypt(password: &[u8], hash: &str) -> bool {
    let matches = bcrypt::verify(password, hash).unwrap_or(false);
    matches && password.len() <= BCRYPT_MAX_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(stored: Option<&str>, password: &[u8]) -> Checked {
        PasswordPool::new(1)
            .verify(stored.map(str::to_owned), password.to_vec())
            .await
    }

    #[tokio::test]
    async fn bcrypt_hashes_of_each_current_version_match_their_password() {
        let hash = bcrypt::hash_with_salt("secret", 4, [7; 16]).unwrap();
        for version in [
            bcrypt::Version::TwoA,
            bcrypt::Version::TwoB,
            bcrypt::Version::TwoY,
        ] {
            let stored = hash.format_for_version(version);
            assert_eq!(check(Some(&stored), b"secret").await, Checked::Match);
            assert_eq!(check(Some(&stored), b"Secret").await, Checked::Mismatch);
        }
        let broken = hash.format_for_version(bcrypt::Version::TwoX);
        assert_eq!(check(Some(&broken), b"secret").await, Checked::Unsupported);
    }

    #[tokio::test]
    async fn a_password_over_72_bytes_never_matches_by_its_beginning() {
        let stored = bcrypt::hash([b'a'; 72], 4).unwrap();
        assert_eq!(check(Some(&stored), &[b'a'; 72]).await, Checked::Match);
        assert_eq!(check(Some(&stored), &[b'a'; 73]).await, Checked::Mismatch);
    }

    #[tokio::test]
    async fn argon2_strings_match_within_bounds() {
        let stored: PasswordHash = Argon2::default().hash_password(b"secret").unwrap();
        let stored = stored.to_string();
        assert_eq!(check(Some(&stored), b"secret").await, Checked::Match);
        assert_eq!(check(Some(&stored), b"other").await, Checked::Mismatch);
        let dear = stored.replace("m=19456", "m=4194304");
        assert_ne!(dear, stored);
        assert_eq!(check(Some(&dear), b"secret").await, Checked::Unsupported);
        let dear = stored.replace("t=2", "t=1000000");
        assert_ne!(dear, stored);
        assert_eq!(check(Some(&dear), b"secret").await, Checked::Unsupported);
    }

    #[tokio::test]
    async fn what_is_no_hash_is_unsupported_and_never_a_panic() {
        let good = bcrypt::hash("secret", 4).unwrap();
        let mut cases = vec![
            String::new(),
            "secret".to_owned(),
            "{SHA}fEqNCco3Yq9h5ZUglD3CZJT4lBs=".to_owned(),
            "$apr1$x$y".to_owned(),
            "$argon2id$".to_owned(),
            "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ".to_owned(),
            "$argon2id$v=19$m=x,t=2,p=1$c2FsdHNhbHQ$aGFzaA".to_owned(),
            good.replace("$04$", "$15$"),
            good.replace("$04$", "$03$"),
            good.replace("$04$", "$99$"),
            good.replace("$04$", "$é$"),
            "é".repeat(30),
            format!("$2b$04$é{}", "a".repeat(51)),
        ];
        cases.extend((0..good.len()).map(|end| good.chars().take(end).collect()));
        for stored in cases {
            assert_eq!(
                check(Some(&stored), b"secret").await,
                Checked::Unsupported,
                "{stored}"
            );
        }
    }

    #[tokio::test]
    async fn nobody_matches_nothing_and_costs_a_check() {
        assert!(
            Scheme::is_bcrypt(NOBODY),
            "the dummy is a real bcrypt hash of the usual cost"
        );
        assert!(NOBODY.contains("$10$"));
        assert_eq!(check(None, b"").await, Checked::Mismatch);
    }

    #[tokio::test]
    async fn new_hashes_match_also_for_long_passwords() {
        let pool = PasswordPool::new(1);
        for password in [b"secret".to_vec(), vec![b'x'; 100]] {
            let stored = pool.hash(password.clone()).await;
            assert_eq!(pool.verify(stored, password).await, Checked::Match);
        }
    }

    #[tokio::test]
    async fn a_full_queue_throttles() {
        let pool = PasswordPool::new(1);
        let all = u32::try_from(1 + WAITING_PER_CHECK).unwrap();
        let places = pool.places.try_acquire_many(all).unwrap();
        assert_eq!(pool.verify(None, b"x".to_vec()).await, Checked::Throttled);
        drop(places);
        assert_eq!(pool.verify(None, b"x".to_vec()).await, Checked::Mismatch);
    }
}
