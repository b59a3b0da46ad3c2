//! What every key-value store must pass.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::Checked;
use crate::{
    KeyValueStore, StorageError,
    kv::{KvAdd, KvPut, KvWrite, ROW_BYTES},
};

type Store = Arc<dyn KeyValueStore>;

/// Tests a key-value store; see [`crate::suite`]. The store is an `Arc<dyn KeyValueStore>`.
#[macro_export]
macro_rules! kv_suite {
    ($make:path) => {
        $crate::suite_tests! { $make, kv,
            a_value_reads_back_until_it_is_deleted
            buckets_do_not_see_each_other
            a_condition_on_the_version_is_kept
            versions_are_never_used_twice
            of_racing_writers_one_wins
            an_expired_value_is_absent
            a_counter_starts_anew_each_window
            concurrent_increments_all_count
            a_bucket_weighs_its_rows
            a_full_bucket_refuses_what_grows_and_nothing_else
            what_ended_makes_room_for_a_write
            a_full_bucket_takes_no_new_counter
            a_clock_that_was_ahead_keeps_no_window
        }
    };
}

fn put<'a>(key: &'a str, value: &'a [u8]) -> KvPut<'a> {
    KvPut {
        bucket: "b",
        key,
        value,
        expected: None,
        expires_at_ms: None,
        now_ms: 1_000,
        max_bytes: None,
    }
}

/// The version of a write without a quota, none when its condition did not hold.
async fn written(store: &Store, put: KvPut<'_>) -> Result<Option<u64>, StorageError> {
    Ok(match store.put(put).await? {
        KvWrite::Written(version) => Some(version),
        KvWrite::Lost | KvWrite::Full => None,
    })
}

async fn add(
    store: &Store,
    key: &str,
    by: u32,
    window_ms: u32,
    now_ms: u64,
) -> Result<Option<u64>, StorageError> {
    let add = KvAdd {
        bucket: "b",
        key,
        by,
        window_ms,
        now_ms,
        max_bytes: None,
    };
    store.increment(add).await
}

pub async fn a_value_reads_back_until_it_is_deleted(store: Store) -> Checked {
    assert_eq!(store.get("b", "k", 1_000).await?, None);
    let version = written(&store, put("k", b"\0bytes\xff")).await?;
    let entry = store.get("b", "k", 1_000).await?.ok_or("absent")?;
    assert_eq!(entry.value, b"\0bytes\xff");
    assert_eq!(Some(entry.version), version);
    assert_eq!(entry.expires_at_ms, None);
    store.put(put("k", b"")).await?;
    let entry = store.get("b", "k", 1_000).await?.ok_or("absent")?;
    assert_eq!(entry.value, b"");
    assert!(store.delete("b", "k").await?);
    assert!(!store.delete("b", "k").await?);
    assert_eq!(store.get("b", "k", 1_000).await?, None);
    Ok(())
}

pub async fn buckets_do_not_see_each_other(store: Store) -> Checked {
    store.put(put("k", b"one")).await?;
    let mut other = put("k", b"two");
    other.bucket = "b2";
    store.put(other).await?;
    assert!(store.delete("b2", "k").await?);
    let entry = store.get("b", "k", 1_000).await?.ok_or("absent")?;
    assert_eq!(entry.value, b"one");
    assert_eq!(store.used_bytes("b2").await?, 0);
    Ok(())
}

pub async fn a_condition_on_the_version_is_kept(store: Store) -> Checked {
    let mut only_new = put("k", b"one");
    only_new.expected = Some(None);
    let first = written(&store, only_new).await?.ok_or("not written")?;
    assert_eq!(written(&store, only_new).await?, None);
    let mut over = put("k", b"two");
    over.expected = Some(Some(first));
    let second = written(&store, over).await?.ok_or("not written")?;
    assert!(second > first);
    assert_eq!(written(&store, over).await?, None);
    let entry = store.get("b", "k", 1_000).await?.ok_or("absent")?;
    assert_eq!(
        (entry.value.as_slice(), entry.version),
        (&b"two"[..], second)
    );
    Ok(())
}

pub async fn versions_are_never_used_twice(store: Store) -> Checked {
    let mut seen = Vec::new();
    for _round in 0..5 {
        seen.push(written(&store, put("k", b"v")).await?);
        seen.push(written(&store, put("k", b"v")).await?);
        store.delete("b", "k").await?;
    }
    assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    Ok(())
}

pub async fn of_racing_writers_one_wins(store: Store) -> Checked {
    let races = (0..32_u8).map(|number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let value = [number];
            let mut only_new = put("k", &value);
            only_new.expected = Some(None);
            written(&store, only_new).await
        })
    });
    let mut winners = 0;
    for result in try_join_all(races).await? {
        winners += usize::from(result?.is_some());
    }
    assert_eq!(winners, 1);
    Ok(())
}

pub async fn an_expired_value_is_absent(store: Store) -> Checked {
    let mut short = put("k", b"value");
    short.expires_at_ms = Some(2_000);
    store.put(short).await?;
    assert!(store.get("b", "k", 1_999).await?.is_some());
    assert_eq!(store.used_bytes("b").await?, 6 + ROW_BYTES);
    assert_eq!(store.get("b", "k", 2_000).await?, None);
    let mut only_new = put("k", b"new");
    only_new.expected = Some(None);
    only_new.now_ms = 2_000;
    assert!(written(&store, only_new).await?.is_some());
    assert_eq!(store.used_bytes("b").await?, 4 + ROW_BYTES);
    Ok(())
}

pub async fn a_counter_starts_anew_each_window(store: Store) -> Checked {
    assert_eq!(add(&store, "k", 2, 1_000, 5_000).await?, Some(2));
    assert_eq!(add(&store, "k", 3, 1_000, 5_999).await?, Some(5));
    assert_eq!(add(&store, "k", 1, 1_000, 6_000).await?, Some(1));
    assert_eq!(add(&store, "other", 9, 1_000, 6_000).await?, Some(9));
    assert_eq!(add(&store, "k", 4, 500, 6_000).await?, Some(4));
    assert_eq!(store.get("b", "k", 6_000).await?, None);
    assert!(store.delete("b", "k").await?);
    assert_eq!(add(&store, "k", 1, 500, 6_000).await?, Some(1));
    Ok(())
}

pub async fn concurrent_increments_all_count(store: Store) -> Checked {
    let adds = (0..64).map(|_number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { add(&store, "k", 1, 60_000, 1_000).await })
    });
    let mut sums = Vec::new();
    for sum in try_join_all(adds).await? {
        sums.extend(sum?);
    }
    sums.sort_unstable();
    assert_eq!(sums, (1..=64).collect::<Vec<u64>>());
    Ok(())
}

pub async fn a_bucket_weighs_its_rows(store: Store) -> Checked {
    assert_eq!(store.used_bytes("b").await?, 0);
    store.put(put("key", b"12345")).await?;
    assert_eq!(store.used_bytes("b").await?, 8 + ROW_BYTES);
    store.put(put("key", b"1")).await?;
    store.put(put("\u{e4}", b"")).await?;
    assert_eq!(store.used_bytes("b").await?, 4 + 2 + 2 * ROW_BYTES);
    for _time in 0..2 {
        add(&store, "n", 1, 1_000, 1_000).await?;
        assert_eq!(store.used_bytes("b").await?, 7 + 3 * ROW_BYTES);
    }
    for key in ["key", "\u{e4}", "n"] {
        store.delete("b", key).await?;
    }
    assert_eq!(store.used_bytes("b").await?, 0);
    Ok(())
}

/// Room for three rows with a key of one byte and a value of five.
const THREE_ROWS: u64 = 3 * (6 + ROW_BYTES);

fn within<'a>(key: &'a str, value: &'a [u8], now_ms: u64) -> KvPut<'a> {
    KvPut {
        max_bytes: Some(THREE_ROWS),
        now_ms,
        ..put(key, value)
    }
}

pub async fn a_full_bucket_refuses_what_grows_and_nothing_else(store: Store) -> Checked {
    for key in ["x", "y", "z"] {
        let written = store.put(within(key, b"12345", 1_000)).await?;
        assert!(matches!(written, KvWrite::Written(_)), "{key}: {written:?}");
    }
    assert_eq!(store.put(within("n", b"", 1_000)).await?, KvWrite::Full);
    assert_eq!(
        store.put(within("x", b"123456", 1_000)).await?,
        KvWrite::Full
    );
    for value in [&b"54321"[..], b"1"] {
        let written = store.put(within("x", value, 1_000)).await?;
        assert!(matches!(written, KvWrite::Written(_)), "{written:?}");
    }
    let absent = KvPut {
        expected: Some(None),
        ..within("x", b"", 1_000)
    };
    assert_eq!(store.put(absent).await?, KvWrite::Lost);
    store.delete("b", "y").await?;
    let written = store.put(within("n", b"12345", 1_000)).await?;
    assert!(matches!(written, KvWrite::Written(_)), "{written:?}");
    assert!(store.used_bytes("b").await? <= THREE_ROWS);
    Ok(())
}

pub async fn what_ended_makes_room_for_a_write(store: Store) -> Checked {
    // More than one write deletes in passing.
    let names: Vec<String> = (0..100).map(|number| format!("{number:03}")).collect();
    let max_bytes = Some(names.len() as u64 * (3 + ROW_BYTES));
    for name in &names {
        let short = KvPut {
            expires_at_ms: Some(2_000),
            max_bytes,
            ..put(name, b"")
        };
        assert!(matches!(store.put(short).await?, KvWrite::Written(_)));
    }
    let large = [0; 5_000];
    let put_at = |now_ms| KvPut {
        now_ms,
        max_bytes,
        ..put("large", &large)
    };
    assert_eq!(store.put(put_at(1_999)).await?, KvWrite::Full);
    let written = store.put(put_at(2_000)).await?;
    assert!(matches!(written, KvWrite::Written(_)), "{written:?}");
    assert!(Some(store.used_bytes("b").await?) <= max_bytes);
    Ok(())
}

pub async fn a_full_bucket_takes_no_new_counter(store: Store) -> Checked {
    let increment = |key, now_ms| {
        store.increment(KvAdd {
            bucket: "b",
            key,
            by: 1,
            window_ms: 1_000,
            now_ms,
            max_bytes: Some(2 * (1 + ROW_BYTES)),
        })
    };
    assert_eq!(increment("x", 5_000).await?, Some(1));
    assert_eq!(increment("y", 5_000).await?, Some(1));
    assert_eq!(increment("z", 5_000).await?, None);
    assert_eq!(increment("x", 5_001).await?, Some(2), "it counts on");
    assert_eq!(increment("z", 6_000).await?, Some(1), "those before ended");
    Ok(())
}

pub async fn a_clock_that_was_ahead_keeps_no_window(store: Store) -> Checked {
    const MINUTE: u32 = 60_000;
    const DAY: u64 = 24 * 3_600_000;
    assert_eq!(add(&store, "k", 9, MINUTE, 30 * DAY).await?, Some(9));
    assert_eq!(add(&store, "k", 1, MINUTE, DAY).await?, Some(1));
    assert_eq!(add(&store, "k", 1, MINUTE, DAY + 1).await?, Some(2));
    let next = DAY + u64::from(MINUTE);
    assert_eq!(add(&store, "k", 1, MINUTE, next).await?, Some(1));
    // A call that began in the window before adds to this one.
    assert_eq!(add(&store, "k", 1, MINUTE, next - 1).await?, Some(2));
    Ok(())
}
