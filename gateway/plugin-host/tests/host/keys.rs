//! Key sets behind a URL: asked for when needed, kept, refreshed for an unknown key, and believed for a while when the issuer is down.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use gantry_plugin_host::{Grants, HostPorts, PluginHost};
use serde_json::{Value, json};

use crate::{
    guest::{self, generous, source},
    isolation::told,
    ports::NOW_MS,
    tokens::Issuer,
    wire::{self, Receiver, Wire, status},
};

/// An issuer that serves `keys`, or nothing when there are none; a clock; and the host that asks.
struct World {
    receiver: Receiver,
    keys: Arc<Mutex<Option<Value>>>,
    clock: Arc<AtomicU64>,
    host: PluginHost,
}

impl World {
    async fn new(keys: &[&Issuer]) -> Self {
        let keys = Arc::new(Mutex::new(Some(set(keys))));
        let served = Arc::clone(&keys);
        let receiver = Receiver::start(move |_| match &*served.lock().unwrap() {
            Some(set) => status(200, set.to_string()),
            None => status(500, "down"),
        })
        .await;
        let clock = Arc::new(AtomicU64::new(NOW_MS));
        let now = Arc::clone(&clock);
        let host = PluginHost::new(HostPorts {
            cache_directory: guest::kept(),
            now_ms: Arc::new(move || now.load(Ordering::Relaxed)),
            ..wire::ports(&Arc::<Wire>::default())
        });
        Self {
            receiver,
            keys,
            clock,
            host: host.unwrap(),
        }
    }

    async fn check(&self, token: &str, granted: bool) -> String {
        let url = self.receiver.url("/jwks");
        let config = json!({
            "do": "jwt", "issuer": "issuer", "audience": "gantry", "algs": "ES256", "tokens": [token], "jwks-url": url,
        });
        let mut source = source(config, generous());
        let addresses = granted.then(|| url.parse().unwrap());
        source.grants = Grants {
            http: addresses.into_iter().collect(),
            ..Grants::default()
        };
        let told = told(&self.host.load(source).await.unwrap()).await;
        told.split(' ').next().unwrap().to_owned()
    }

    fn later(&self, seconds: u64) {
        self.clock.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    fn asked(&self) -> usize {
        self.receiver.got().len()
    }
}

fn set(keys: &[&Issuer]) -> Value {
    json!({ "keys": keys.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() })
}

/// A token that outlives the test's clock.
fn lasting(issuer: &Issuer) -> String {
    issuer.token(|claims| claims["exp"] = json!(NOW_MS / 1000 + 10 * 24 * 3600))
}

#[tokio::test]
async fn a_set_is_fetched_once_for_many_tokens() {
    let one = Issuer::new("one");
    let world = World::new(&[&one]).await;
    for _ in 0..3 {
        assert_eq!(world.check(&lasting(&one), true).await, "ok");
    }
    assert_eq!(world.asked(), 1);
    world.later(11 * 60);
    assert_eq!(world.check(&lasting(&one), true).await, "ok");
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn an_unknown_key_asks_again_and_not_more_than_once_in_half_a_minute() {
    let (one, two) = (Issuer::new("one"), Issuer::new("two"));
    let world = World::new(&[&one]).await;
    assert_eq!(
        world.check(&lasting(&two), true).await,
        "JwtError::UnknownKey"
    );
    assert_eq!(world.asked(), 1);
    *world.keys.lock().unwrap() = Some(set(&[&one, &two]));
    world.later(29);
    assert_eq!(
        world.check(&lasting(&two), true).await,
        "JwtError::UnknownKey"
    );
    assert_eq!(world.asked(), 0);
    world.later(1);
    assert_eq!(world.check(&lasting(&two), true).await, "ok");
    assert_eq!(world.asked(), 1);
}

#[tokio::test]
async fn an_issuer_that_is_down_is_believed_for_a_day_and_not_asked_by_everybody() {
    let one = Issuer::new("one");
    let world = World::new(&[&one]).await;
    assert_eq!(world.check(&lasting(&one), true).await, "ok");
    *world.keys.lock().unwrap() = None;
    world.later(60 * 60);
    for _ in 0..3 {
        assert_eq!(world.check(&lasting(&one), true).await, "ok");
    }
    assert_eq!(world.asked(), 2, "once when it was there, once in vain");
    world.later(24 * 60 * 60);
    let unavailable = world.check(&lasting(&one), true).await;
    assert_eq!(unavailable, "JwtError::JwksUnavailable");
}

#[tokio::test]
async fn keys_that_cannot_be_had_are_not_a_bad_signature() {
    let one = Issuer::new("one");
    let world = World::new(&[&one]).await;
    let refused = world.check(&lasting(&one), false).await;
    assert_eq!(refused, "JwtError::JwksUnavailable");
    assert_eq!(world.asked(), 0, "what is not granted is not asked");
    for broken in [
        json!("keys"),
        json!({ "keys": {} }),
        json!({ "keys": "x".repeat(1 << 20) }),
    ] {
        world.later(60);
        *world.keys.lock().unwrap() = Some(broken);
        let refused = world.check(&lasting(&one), true).await;
        assert_eq!(refused, "JwtError::JwksUnavailable");
        assert_eq!(world.asked(), 1);
    }
    let unsigned = format!("{}.x.y", "a".repeat(20));
    world.later(60);
    assert_eq!(world.check(&unsigned, true).await, "JwtError::Malformed");
    assert_eq!(world.asked(), 0, "no key could have signed it");
}
