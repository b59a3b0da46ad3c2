//! What every key-value store must pass.

use std::sync::Arc;

use futures_util::future::try_join_all;

use super::Checked;
use crate::{KeyValueStore, kv::KvPut};

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
            a_bucket_weighs_its_keys_and_values
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
    }
}

pub async fn a_value_reads_back_until_it_is_deleted(store: Store) -> Checked {
    assert_eq!(store.get("b", "k", 1_000).await?, None);
    let version = store.put(put("k", b"\0bytes\xff")).await?;
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
    let first = store.put(only_new).await?.ok_or("not written")?;
    assert_eq!(store.put(only_new).await?, None);
    let mut over = put("k", b"two");
    over.expected = Some(Some(first));
    let second = store.put(over).await?.ok_or("not written")?;
    assert!(second > first);
    assert_eq!(store.put(over).await?, None);
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
        seen.push(store.put(put("k", b"v")).await?);
        seen.push(store.put(put("k", b"v")).await?);
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
            store.put(only_new).await
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
    assert_eq!(store.used_bytes("b").await?, 6);
    assert_eq!(store.get("b", "k", 2_000).await?, None);
    assert_eq!(store.used_bytes("b").await?, 0);
    let mut only_new = put("k", b"new");
    only_new.expected = Some(None);
    only_new.now_ms = 2_000;
    assert!(store.put(only_new).await?.is_some());
    assert_eq!(store.used_bytes("b").await?, 4);
    Ok(())
}

pub async fn a_counter_starts_anew_each_window(store: Store) -> Checked {
    assert_eq!(store.increment("b", "k", 2, 1_000, 5_000).await?, 2);
    assert_eq!(store.increment("b", "k", 3, 1_000, 5_999).await?, 5);
    assert_eq!(store.increment("b", "k", 1, 1_000, 6_000).await?, 1);
    assert_eq!(store.increment("b", "other", 9, 1_000, 6_000).await?, 9);
    assert_eq!(store.increment("b", "k", 4, 500, 6_000).await?, 4);
    assert_eq!(store.get("b", "k", 6_000).await?, None);
    assert!(store.delete("b", "k").await?);
    assert_eq!(store.increment("b", "k", 1, 500, 6_000).await?, 1);
    Ok(())
}

pub async fn concurrent_increments_all_count(store: Store) -> Checked {
    let adds = (0..64).map(|_number| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.increment("b", "k", 1, 60_000, 1_000).await })
    });
    let mut sums = Vec::new();
    for sum in try_join_all(adds).await? {
        sums.push(sum?);
    }
    sums.sort_unstable();
    assert_eq!(sums, (1..=64).collect::<Vec<u64>>());
    Ok(())
}

pub async fn a_bucket_weighs_its_keys_and_values(store: Store) -> Checked {
    assert_eq!(store.used_bytes("b").await?, 0);
    store.put(put("key", b"12345")).await?;
    assert_eq!(store.used_bytes("b").await?, 8);
    store.put(put("key", b"1")).await?;
    store.put(put("\u{e4}", b"")).await?;
    assert_eq!(store.used_bytes("b").await?, 4 + 2);
    store.increment("b", "n", 1, 1_000, 1_000).await?;
    assert_eq!(store.used_bytes("b").await?, 6 + 9);
    store.increment("b", "n", 1, 1_000, 1_000).await?;
    assert_eq!(store.used_bytes("b").await?, 15);
    for key in ["key", "\u{e4}", "n"] {
        store.delete("b", key).await?;
    }
    assert_eq!(store.used_bytes("b").await?, 0);
    Ok(())
}
