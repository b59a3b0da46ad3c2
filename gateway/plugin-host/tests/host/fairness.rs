//! A plugin that hogs does not starve another, and waiting for a password check is nobody's fault.

use std::time::{Duration, Instant};

use gantry_plugin_host::Failure;
use serde_json::json;

use crate::{
    guest::{Limits, authorize, doing, generous, host, source},
    isolation::told,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_loops_do_not_starve_another_plugin() {
    let limits = Limits {
        cpu: Duration::from_millis(20),
        ..generous()
    };
    let looping = doing("loop", limits).await;
    let good = doing("count", generous()).await;
    let loops: Vec<_> = (0..200)
        .map(|_| {
            let looping = looping.clone();
            tokio::spawn(async move { looping.authorize(&authorize()).await })
        })
        .collect();
    let mut answered_meanwhile = 0;
    for _ in 0..20 {
        assert_eq!(told(&good).await, "1");
        if !loops.iter().all(tokio::task::JoinHandle::is_finished) {
            answered_meanwhile += 1;
        }
    }
    assert!(answered_meanwhile > 0, "the loops still ran meanwhile");
    for ended in loops {
        let failed = ended.await.unwrap().unwrap_err();
        assert_eq!(failed.failure, Failure::Deadline, "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_plugin_holds_more_than_half_of_the_pool() {
    let limits = Limits {
        concurrency: 10_000,
        deadline: Duration::from_secs(60),
        ..generous()
    };
    let blocked = doing("kv-block", limits).await;
    let good = doing("count", generous()).await;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let blocked = blocked.clone();
            tokio::spawn(async move { blocked.authorize(&authorize()).await })
        })
        .collect();
    while blocked.stats().live_count < 128 {
        tokio::task::yield_now().await;
    }
    for _ in 0..50 {
        assert_eq!(told(&good).await, "1");
        assert!(blocked.stats().live_count <= 128, "half of 256");
    }
    for call in &calls {
        call.abort();
    }
    for call in calls {
        assert!(call.await.unwrap_err().is_cancelled());
    }
    assert_eq!(blocked.stats().live_count, 0);
}

/// A hash that takes several hundred milliseconds.
fn slow_hash() -> String {
    bcrypt::hash_with_salt("wonder", 12, [9; 16])
        .unwrap()
        .format_for_version(bcrypt::Version::TwoB)
}

#[tokio::test]
async fn a_password_check_longer_than_the_deadline_still_answers() {
    let limits = Limits {
        deadline: Duration::from_millis(100),
        cpu: Duration::from_secs(1),
        ..Limits::default()
    };
    for (password, said) in [
        ("wonder", "PasswordResult::Match"),
        ("Wonder", "PasswordResult::Mismatch"),
    ] {
        let config = json!({ "do": "password", "stored": slow_hash(), "password": password });
        let plugin = host().load(source(config, limits)).await.unwrap();
        let began = Instant::now();
        assert_eq!(told(&plugin).await, said);
        let took = began.elapsed();
        assert!(took > limits.deadline, "{took:?}: the check was no test");
    }
}

#[tokio::test]
async fn an_unknown_user_costs_what_a_known_one_does() {
    let cost = |stored: serde_json::Value| async move {
        let config = json!({ "do": "password", "stored": stored, "password": "x" });
        let plugin = host().load(source(config, generous())).await.unwrap();
        let mut fastest = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            assert_eq!(told(&plugin).await, "PasswordResult::Mismatch");
            fastest = fastest.min(began.elapsed());
        }
        fastest
    };
    let known = cost(json!(bcrypt::hash("other", 10).unwrap())).await;
    let unknown = cost(serde_json::Value::Null).await;
    // The fastest of five is nearly free of other work on the machine; a skipped check would be a hundred times faster.
    assert!(
        unknown * 3 > known && known * 3 > unknown,
        "{known:?} {unknown:?}"
    );
}

#[tokio::test]
async fn password_checks_of_one_call_are_counted() {
    let config = json!({ "do": "password", "password": "x", "stored": "$2b$04$", "times": 5 });
    let plugin = host().load(source(config, generous())).await.unwrap();
    let failed = plugin.authorize(&authorize()).await.unwrap_err();
    assert_eq!(failed.failure, Failure::HostQuota);
}
