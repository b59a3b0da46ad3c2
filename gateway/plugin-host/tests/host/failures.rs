//! Every way to fail has one name, in every hook, and costs at most what the binding allows.

use std::time::{Duration, Instant};

use gantry_plugin_host::{AuthorizeAnswer, CallError, Failure, Plugin};
use serde_json::json;

use crate::guest::{
    Limits, admit, answering, authenticate, authorize, doing, generous, host, source,
};

/// Asks every hook and gives the three failures.
async fn all_hooks(plugin: &Plugin) -> [CallError; 3] {
    [
        plugin.authenticate(&authenticate()).await.unwrap_err(),
        plugin.authorize(&authorize()).await.unwrap_err(),
        plugin.admit(&admit()).await.unwrap_err(),
    ]
}

async fn every_hook_fails(what: &str, limits: Limits, failure: Failure, detail: &str) {
    let plugin = doing(what, limits).await;
    for failed in all_hooks(&plugin).await {
        assert_eq!(failed.failure, failure, "{what}: {failed}");
        assert!(failed.detail.contains(detail), "{what}: {failed}");
        assert_eq!(&*failed.plugin, "hostile");
    }
    assert_eq!(plugin.stats().failed(failure), 3, "{what}");
    assert_eq!(plugin.stats().live_count, 0, "{what}");
}

/// Little CPU time, much wall time: what fails, fails for computing.
fn little_cpu() -> Limits {
    Limits {
        cpu: Duration::from_millis(50),
        ..generous()
    }
}

/// Much CPU time, little wall time: what fails, fails for waiting.
fn little_wall() -> Limits {
    Limits {
        deadline: Duration::from_millis(200),
        cpu: Duration::from_secs(10),
        ..generous()
    }
}

#[tokio::test]
async fn a_panic_is_a_trap_and_its_message_is_in_the_log_line() {
    every_hook_fails("trap", generous(), Failure::Trap, "told to trap").await;
}

#[tokio::test]
async fn endless_recursion_is_a_trap() {
    every_hook_fails("stack", generous(), Failure::Trap, "wasm trap: ").await;
}

#[tokio::test]
async fn leaving_the_process_is_a_trap() {
    every_hook_fails("exit", generous(), Failure::Trap, "exit").await;
}

#[tokio::test]
async fn an_endless_loop_is_ended_by_its_cpu_time() {
    every_hook_fails("loop", little_cpu(), Failure::Deadline, "computed for").await;
}

#[tokio::test]
async fn an_endless_loop_inside_one_instruction_is_ended_too() {
    every_hook_fails("fill", little_cpu(), Failure::Deadline, "computed for").await;
}

#[tokio::test]
async fn an_endless_loop_is_ended_by_its_wall_time() {
    every_hook_fails("loop", little_wall(), Failure::Deadline, "no answer within").await;
}

#[tokio::test]
async fn sleeping_is_ended_by_the_wall_time() {
    every_hook_fails(
        "sleep",
        little_wall(),
        Failure::Deadline,
        "no answer within",
    )
    .await;
}

#[tokio::test]
async fn a_host_call_that_never_comes_back_is_ended_by_the_wall_time() {
    every_hook_fails(
        "kv-block",
        little_wall(),
        Failure::Deadline,
        "no answer within",
    )
    .await;
}

#[tokio::test]
async fn taking_too_much_memory_is_named_so() {
    every_hook_fails("memory", generous(), Failure::Memory, "bytes of memory").await;
}

#[tokio::test]
async fn taking_too_many_handles_is_a_quota() {
    every_hook_fails("handles", generous(), Failure::HostQuota, "").await;
}

#[tokio::test]
async fn asking_the_host_too_often_is_a_quota() {
    every_hook_fails(
        "kv-flood",
        generous(),
        Failure::HostQuota,
        "64 key-value calls",
    )
    .await;
}

#[tokio::test]
async fn an_answer_too_large_to_hold_is_a_quota() {
    let plugin = answering("huge").await;
    for failed in all_hooks(&plugin).await {
        assert_eq!(failed.failure, Failure::HostQuota, "{failed}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_of_its_type_breaks_the_contract() {
    let plugin = answering("not-text").await;
    for failed in all_hooks(&plugin).await {
        assert_eq!(failed.failure, Failure::Contract, "{failed}");
    }
}

#[tokio::test]
async fn a_plugins_own_failure_is_no_decision() {
    let plugin = answering("fail").await;
    for failed in all_hooks(&plugin).await {
        assert_eq!(failed.failure, Failure::Plugin, "{failed}");
        assert_eq!(failed.detail, "upstream: the directory is down");
    }
}

#[tokio::test]
async fn a_deadline_is_kept_within_ten_times() {
    let limits = Limits {
        deadline: Duration::from_millis(200),
        cpu: Duration::from_millis(20),
        ..generous()
    };
    let plugin = doing("loop", limits).await;
    let began = Instant::now();
    plugin.authorize(&authorize()).await.unwrap_err();
    let took = began.elapsed();
    assert!(took < Duration::from_millis(2000), "{took:?}");
}

#[tokio::test]
async fn without_a_free_place_a_call_is_turned_away_at_its_deadline() {
    let limits = Limits {
        concurrency: 1,
        ..little_wall()
    };
    let plugin = doing("kv-block", limits).await;
    let request = authorize();
    let (first, second, third) = tokio::join!(
        plugin.authorize(&request),
        plugin.authorize(&request),
        plugin.authorize(&request)
    );
    let kind =
        |answer: Result<_, CallError>| answer.map(|_: AuthorizeAnswer| ()).unwrap_err().failure;
    assert_eq!(kind(first), Failure::Deadline);
    // The second may get the place in the instant in which the first gives it back; then the third does not.
    let others = [kind(second), kind(third)];
    assert!(others.contains(&Failure::Saturated), "{others:?}");
    assert!(plugin.stats().failed(Failure::Saturated) > 0);
}

#[tokio::test]
async fn a_loop_or_trap_in_configure_or_self_test_is_a_reason_not_to_load() {
    for (at, what, said) in [
        (
            "configure",
            "loop",
            "its configure failed (deadline): computed for",
        ),
        ("configure", "trap", "its configure failed (trap): "),
        ("configure", "memory", "its configure failed (memory): "),
        ("self-test", "trap", "its self-test failed (trap): "),
        (
            "self-test",
            "loop",
            "its self-test failed (deadline): computed for",
        ),
        ("self-test", "", "fails its self-test: two and two is five"),
    ] {
        let config = json!({ "at": at, "do": what });
        // Only a loop may meet the limit of computing: the first touch of 64 MiB takes some machines 50 ms too.
        let limits = match what {
            "loop" => little_cpu(),
            _ => generous(),
        };
        let error = host().load(source(config, limits)).await.unwrap_err();
        assert!(error.reason.starts_with(said), "{at} {what}: {error}");
    }
}
