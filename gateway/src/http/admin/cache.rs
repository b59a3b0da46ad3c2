//! `/admin/v1/cache…`: what the mirrors' caches hold, what is pinned, and what is to go.
//!
//! Owns the documents. What a pin or an order means is the registry's; `warm` is a file of its own.

use std::time::Duration;

use futures_util::future::BoxFuture;
use gantry_model::glob::Glob;
use gantry_registry::{
    CacheEntry, CacheUsage, Error as RegistryError, EvictOrder, EvictedItem, EvictedWhat, Selection,
};
use gantry_storage::Pin;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::{
    Answered, Call, LineRoute, Lines, Problem, Route,
    lines::{self, Gone, Teller},
    plugins::rfc3339,
};
use crate::{
    http::route::Query,
    telemetry::{CacheChange, audit_cache},
};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Method::GET,
        path: "/admin/v1/cache",
        run: list,
    },
    Route {
        method: Method::GET,
        path: "/admin/v1/cache/stats",
        run: stats,
    },
    Route {
        method: Method::GET,
        path: "/admin/v1/cache/pins",
        run: pins,
    },
    Route {
        method: Method::POST,
        path: "/admin/v1/cache/pins",
        run: pin,
    },
    Route {
        method: Method::DELETE,
        path: "/admin/v1/cache/pins",
        run: unpin,
    },
];

pub(super) const EVICT: LineRoute = LineRoute {
    path: "/admin/v1/cache/evict",
    run: evict,
};

/// Repositories of one answer, unless `limit` says otherwise.
const PAGE: usize = 100;
/// Repositories of one answer at most.
const MAX_PAGE: usize = 1000;
/// Pins at most: each is looked at for every repository, once a minute.
const MAX_PINS: usize = 1000;

// --- looking ---

fn list(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let (glob, after, limit) = listing(&call.query).map_err(Problem::bad_request)?;
        let registry = &call.generation.registry;
        let entries = registry.cached(glob.as_ref(), after, limit).await;
        let entries = entries.map_err(|error| failed(&error))?;
        let next = entries.last().filter(|_| entries.len() == limit);
        let document = json!({
            "repositories": entries.iter().map(entry).collect::<Vec<_>>(),
            "next": next.map(|entry| entry.holds.repository.as_str()),
        });
        Ok((StatusCode::OK, document))
    })
}

type Listing = (Option<Glob>, Option<gantry_model::RepositoryName>, usize);

fn listing(query: &str) -> Result<Listing, String> {
    let query = Query::parse(query).map_err(|error| error.to_string())?;
    let one = |key| query.single(key).map_err(|error| error.to_string());
    let glob = one("match")?.map(Glob::parse);
    let glob = glob
        .transpose()
        .map_err(|error| format!("match: {error}"))?;
    let after = one("after")?.map(str::parse);
    let after = after
        .transpose()
        .map_err(|error| format!("after: {error}"))?;
    let limit = one("limit")?.map(|text| {
        let limit = text.parse::<usize>().ok();
        limit
            .filter(|limit| (1..=MAX_PAGE).contains(limit))
            .ok_or_else(|| format!("limit is 1 to {MAX_PAGE}"))
    });
    Ok((glob, after, limit.transpose()?.unwrap_or(PAGE)))
}

fn entry(entry: &CacheEntry) -> Value {
    let holds = &entry.holds;
    let tags = entry.tags.iter().map(|(record, pinned)| {
        json!({
            "tag": record.tag.as_str(),
            "digest": record.state.digest.as_str(),
            "confirmed_at": rfc3339(record.checked_at_ms),
            "pinned": pinned,
        })
    });
    json!({
        "repository": holds.repository.as_str(),
        "mirror": entry.mirror,
        "tags": tags.collect::<Vec<_>>(),
        "manifests": holds.manifests,
        "blobs": holds.blobs,
        "bytes": holds.bytes,
        "used_at": rfc3339(holds.used_at_ms),
        "pinned": entry.pinned,
    })
}

fn stats(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let registry = &call.generation.registry;
        let usage = registry
            .cache_usage()
            .await
            .map_err(|error| failed(&error))?;
        let pins = registry.pins().await.map_err(|error| failed(&error))?;
        let sum = |of: fn(&CacheUsage) -> u64| usage.iter().map(of).sum::<u64>();
        let (hits, misses) = (sum(|it| it.hits), sum(|it| it.misses));
        let document = json!({
            "bytes": sum(|it| it.size.bytes),
            "blobs": sum(|it| it.size.blobs),
            "manifests": sum(|it| it.size.manifests),
            "repositories": sum(|it| it.size.repositories),
            "hits": hits,
            "misses": misses,
            "hit_ratio": ratio(hits, hits + misses),
            "pins": pins.len(),
            "mirrors": usage.iter().map(mirror).collect::<Vec<_>>(),
        });
        Ok((StatusCode::OK, document))
    })
}

fn mirror(usage: &CacheUsage) -> Value {
    json!({
        "mirror": usage.mirror,
        "bytes": usage.size.bytes,
        "max_bytes": usage.max_bytes,
        "full": usage.max_bytes.and_then(|most| ratio(usage.size.bytes, most)),
        "blobs": usage.size.blobs,
        "manifests": usage.size.manifests,
        "repositories": usage.size.repositories,
        "hits": usage.hits,
        "misses": usage.misses,
        "hit_ratio": ratio(usage.hits, usage.hits + usage.misses),
    })
}

/// To three digits; nothing of nothing.
fn ratio(part: u64, whole: u64) -> Option<f64> {
    let thousandths = u128::from(part) * 1000 / u128::from(whole.max(1));
    let thousandths = u32::try_from(thousandths).unwrap_or(u32::MAX);
    (whole > 0).then(|| f64::from(thousandths) / 1000.0)
}

// --- pins ---

fn pins(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let pins = call.generation.registry.pins().await;
        let pins = pins.map_err(|error| failed(&error))?;
        let document =
            |pin: &Pin| json!({ "what": pin.pattern, "at": rfc3339(pin.at_ms), "by": pin.by });
        let pins: Vec<Value> = pins.iter().map(document).collect();
        Ok((StatusCode::OK, json!({ "pins": pins })))
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    what: String,
}

impl Which {
    fn parse(body: &[u8]) -> Result<Self, Problem> {
        let which = serde_json::from_slice(body);
        which.map_err(|error| Problem::bad_request(format!("body: {error}")))
    }
}

fn pin(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let which = Which::parse(&call.body?)?;
        let selection = Selection::parse(&which.what).map_err(Problem::bad_request)?;
        let registry = &call.generation.registry;
        let pins = registry.pins().await.map_err(|error| failed(&error))?;
        if pins.len() >= MAX_PINS {
            let full = format!("there are {MAX_PINS} pins already; a glob may say more with one");
            return Err(Problem::refused(vec![full]));
        }
        let pinned = registry.pin(&selection, &call.principal.id).await;
        let (is_new, repositories) = pinned.map_err(|error| failed(&error))?;
        if is_new {
            let said = ("allow", "");
            audit_cache(CacheChange::Pin, &call.requester, selection.as_str(), said);
        }
        let document =
            json!({ "pinned": selection.as_str(), "new": is_new, "repositories": repositories });
        Ok((StatusCode::OK, document))
    })
}

fn unpin(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let which = Which::parse(&call.body?)?;
        let unpinned = call.generation.registry.unpin(&which.what).await;
        if !unpinned.map_err(|error| failed(&error))? {
            return Err(Problem::not_found(format!("no pin says `{}`", which.what)));
        }
        let said = ("allow", "");
        audit_cache(CacheChange::Unpin, &call.requester, &which.what, said);
        Ok((StatusCode::OK, json!({ "unpinned": which.what })))
    })
}

// --- evicting ---

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    what: String,
    older_than_seconds: Option<u64>,
    #[serde(default)]
    dry_run: bool,
}

fn evict(call: Call) -> Result<Lines, Problem> {
    let order: Order = serde_json::from_slice(&call.body.clone()?)
        .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
    let order = EvictOrder {
        selection: Selection::parse(&order.what).map_err(Problem::bad_request)?,
        older_than: order.older_than_seconds.map(Duration::from_secs),
        dry_run: order.dry_run,
    };
    lines::start(|teller| Box::pin(run_order(call, order, teller)))
}

/// The eviction is a task of its own: when the client leaves, it ends after the step it is at, never between a commit and its bytes.
async fn run_order(call: Call, order: EvictOrder, teller: Teller) -> Result<(), Gone> {
    let (tell, mut items) = mpsc::channel(1);
    let evicting = tokio::spawn(carry_out(call, order, tell).in_current_span());
    while let Some(item) = items.recv().await {
        teller.tell(line(&item)).await?;
    }
    let panicked = || json!({ "event": "failed", "message": "internal error" });
    let end = evicting.await.unwrap_or_else(|_panic| panicked());
    teller.tell(end).await
}

/// Gives the last line.
async fn carry_out(call: Call, order: EvictOrder, tell: mpsc::Sender<EvictedItem>) -> Value {
    let registry = &call.generation.registry;
    let end = match registry.evict_selected(&order, &tell).await {
        Ok(evicted) => json!({
            "event": "end",
            "dry_run": order.dry_run,
            "manifests": evicted.manifests,
            "blobs": evicted.blobs,
            "bytes": evicted.bytes,
            "pinned": evicted.pinned,
        }),
        Err(error) => {
            tracing::warn!(error = ?error, "an ordered eviction failed");
            json!({ "event": "failed", "message": "a store failed; the log says how" })
        }
    };
    if !order.dry_run {
        let (about, text) = (order.selection.as_str(), end.to_string());
        audit_cache(CacheChange::Evict, &call.requester, about, ("allow", &text));
    }
    end
}

fn line(item: &EvictedItem) -> Value {
    let (repository, bytes) = (item.repository.as_str(), item.bytes);
    match &item.what {
        EvictedWhat::Tag(tag) => {
            json!({ "event": "evicted", "repository": repository, "tag": tag.to_string(), "bytes": bytes })
        }
        EvictedWhat::Manifest(digest, tags) => {
            let tags: Vec<_> = tags.iter().map(ToString::to_string).collect();
            json!({
                "event": "evicted", "repository": repository, "manifest": digest.to_string(), "tags": tags, "bytes": bytes,
            })
        }
        EvictedWhat::Blob(digest) => {
            json!({ "event": "evicted", "repository": repository, "blob": digest.to_string(), "bytes": bytes })
        }
    }
}

fn failed(error: &RegistryError) -> Problem {
    tracing::warn!(error = ?error, "the cache cannot be asked");
    Problem::unavailable()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_something() {
        assert_eq!(ratio(0, 0), None);
        assert_eq!(ratio(2, 3), Some(0.666));
        assert_eq!(ratio(5, 5), Some(1.0));
        assert_eq!(ratio(u64::MAX, u64::MAX), Some(1.0));
    }

    #[test]
    fn a_listing_says_what_is_wrong_with_it() {
        let asked = listing("match=hub/**&after=hub/a&limit=7").unwrap();
        assert_eq!(asked.0.unwrap().as_str(), "hub/**");
        assert_eq!(asked.1.unwrap().as_str(), "hub/a");
        assert_eq!(asked.2, 7);
        assert_eq!(listing("").unwrap().2, PAGE);
        for wrong in [
            "limit=0",
            "limit=1001",
            "match=",
            "match=%7B",
            "after=UP",
            "limit=1&limit=2",
        ] {
            assert!(listing(wrong).is_err(), "{wrong}");
        }
    }
}
