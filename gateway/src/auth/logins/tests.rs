//! A guess waits and is refused; a good credential is neither, and nobody waits for another's guesses.

use std::net::IpAddr;

use gantry_model::Principal;

use super::*;

fn client(address: &str) -> Client {
    Client {
        address: address.parse::<IpAddr>().unwrap(),
        user_agent: None,
        tls_subject: None,
    }
}

fn wrong() -> Result<Identified, Error> {
    Err(Error::Unauthorized {
        scopes: Vec::new(),
        error: None,
        message: String::new(),
    })
}

fn right() -> Result<Identified, Error> {
    Ok(Identified {
        principal: Arc::new(Principal::anonymous()),
        at_most: None,
        by_token: false,
        token_ends: None,
        proof: None,
        upstream: None,
    })
}

/// How long a try waited, or when it may come back.
async fn attempt(
    logins: &Logins,
    address: &str,
    user: &str,
    password: &str,
) -> Result<Duration, Option<Duration>> {
    let credential = Credential::basic(user, password).unwrap();
    let began = Instant::now();
    let outcome = match password {
        "right" => right(),
        _ => wrong(),
    };
    match logins.begin(&client(address), &credential).await {
        Ok(attempt) => {
            let waited = began.elapsed();
            logins.settle(attempt, &outcome);
            Ok(waited)
        }
        Err(error) => Err(error.answer().retry_after),
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_passwords_of_a_pair_wait_ever_longer_and_then_are_refused_for_the_rest_of_the_minute()
 {
    let logins = Logins::new().unwrap();
    let began = Instant::now();
    let mut waits = Vec::new();
    for guess in 0..MAX_WRONG {
        let waited = attempt(&logins, "192.0.2.1", "alice", &guess.to_string()).await;
        waits.push(waited.unwrap().as_millis());
    }
    assert_eq!(waits, [0, 100, 200, 400, 800, 1000, 1000, 1000, 1000, 1000]);
    let refused = attempt(&logins, "192.0.2.1", "alice", "one more").await;
    let retry_after = refused.unwrap_err().unwrap();
    assert_eq!(retry_after, WINDOW - began.elapsed());
    // Other users, other addresses: nobody waits for these guesses.
    for (address, user) in [("192.0.2.1", "bob"), ("192.0.2.2", "alice")] {
        let waited = attempt(&logins, address, user, "guess").await;
        assert_eq!(waited, Ok(Duration::ZERO), "{address} {user}");
    }
    tokio::time::sleep(retry_after).await;
    let again = attempt(&logins, "192.0.2.1", "alice", "one more").await;
    assert!(again.is_ok(), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_was_good_is_never_delayed_and_never_refused() {
    let logins = Logins::new().unwrap();
    assert_eq!(
        attempt(&logins, "192.0.2.1", "alice", "right").await,
        Ok(Duration::ZERO)
    );
    for guess in 0..=MAX_WRONG {
        attempt(&logins, "192.0.2.1", "alice", &guess.to_string())
            .await
            .ok();
        let waited = attempt(&logins, "192.0.2.1", "alice", "right").await;
        assert_eq!(waited, Ok(Duration::ZERO), "{guess}");
    }
}

#[tokio::test(start_paused = true)]
async fn guesses_that_come_at_once_are_judged_one_after_the_other() {
    let logins = Logins::new().unwrap();
    let guesses = (0..200).map(|guess| {
        let logins = logins.clone();
        async move {
            attempt(&logins, "192.0.2.1", "alice", &guess.to_string())
                .await
                .is_ok()
        }
    });
    let judged = futures_util::future::join_all(guesses).await;
    let judged = judged.into_iter().filter(|judged| *judged).count();
    assert!(judged <= MAX_WRONG, "{judged}");
}

#[tokio::test(start_paused = true)]
async fn the_same_good_credential_shown_at_once_waits_for_one_check_alone() {
    let logins = Logins::new().unwrap();
    let began = Instant::now();
    let shown = (0..50).map(|_| attempt(&logins, "192.0.2.1", "alice", "right"));
    for waited in futures_util::future::join_all(shown).await {
        waited.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_credential_shown_by_hundreds_at_once_is_checked_once_and_none_of_them_is_refused() {
    let logins = Logins::new().unwrap();
    let checks = AtomicUsize::new(0);
    let shown = (0..500).map(|_| async {
        let credential = Credential::basic("alice", "right").unwrap();
        let attempt = logins.begin(&client("192.0.2.1"), &credential).await;
        let attempt = attempt.unwrap_or_else(|_refused| panic!("nobody is refused"));
        if attempt.turn.is_some() {
            checks.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PATIENCE * 2).await;
        }
        logins.settle(attempt, &right());
    });
    futures_util::future::join_all(shown).await;
    assert_eq!(checks.into_inner(), 1);
}
