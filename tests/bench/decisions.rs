//! One decision of a Rust guest (`builtin:access`), asked in this process as the gateway asks it: uncached, and from the cache.

use std::{fs, sync::Arc, time::Instant};

use gantry::{
    App,
    config::Config,
    policy::{Policy, Request},
};
use gantry_model::{Cause, Client, Decision, OperationKind, Principal, Requester, Scope};
use tests::{gateway::usual_config, wire::runtime};

use crate::table::{Table, median};

const UNCACHED: usize = 4000;
const BATCHES: usize = 2000;
const OF_BATCH: usize = 50;

pub(crate) fn measure(table: &mut Table) {
    let folder = tempfile::TempDir::new().expect("the system has a temporary folder");
    fs::write(folder.path().join("htpasswd"), "").expect("the folder is ours");
    let path = folder.path().join("gantry.yaml");
    let config = format!(
        "listen: {{ address: 127.0.0.1:1 }}\nstorage:\n  blobs: {{ filesystem: ./data }}\n  metadata: {{ sqlite: ./data/gantry.db }}\n{}",
        usual_config("", "")
    );
    fs::write(&path, config).expect("the folder is ours");
    let config = Config::load(&path).unwrap_or_else(|report| panic!("{report:?}"));
    let (uncached, cached) = runtime().block_on(async {
        let (app, _tripped) = App::build(&config).await.expect("the gateway can be built");
        let policy = Arc::clone(&app.current().policy);
        (uncached(&policy).await, cached(&policy).await)
    });
    table.limit(
        "uncached decision, p50",
        "us",
        uncached,
        20.0,
        "a fresh instance each time",
    );
    table.limit(
        "cached decision",
        "us",
        cached,
        1.0,
        "key, lookup and answer",
    );
}

fn requester() -> Requester {
    let mut principal = Principal::anonymous();
    "user:alice".clone_into(&mut principal.id);
    "user".clone_into(&mut principal.kind);
    Requester {
        request_id: "0".into(),
        client: Arc::new(Client {
            address: [127, 0, 0, 1].into(),
            user_agent: None,
            tls_subject: None,
        }),
        principal: Arc::new(principal),
        arrival: None,
        confirmed: None,
        cause: Cause::Request,
    }
}

/// A question that nobody asked before, because of its reference.
fn request(requester: &Requester, number: usize) -> Request<'_> {
    Request {
        requester,
        operation: OperationKind::PullManifest,
        scopes: vec![Scope {
            kind: "repository".to_owned(),
            name: "apps/web".to_owned(),
            actions: ["pull".to_owned()].into(),
        }],
        reference: Some(format!("v{number}")),
        repository: None,
    }
}

async fn uncached(policy: &Policy) -> f64 {
    let requester = requester();
    let mut micros = Vec::with_capacity(UNCACHED);
    for number in 0..UNCACHED {
        let request = request(&requester, number);
        let started = Instant::now();
        let decision = policy.decide(&request).await;
        micros.push(started.elapsed().as_secs_f64() * 1e6);
        decision.expect("the plugin decides");
    }
    median(micros)
}

/// The middle of batches: one that was interrupted tells of the machine.
async fn cached(policy: &Policy) -> f64 {
    let requester = requester();
    let request = request(&requester, 0);
    let mut micros = Vec::with_capacity(BATCHES);
    for _batch in 0..BATCHES {
        let started = Instant::now();
        for _time in 0..OF_BATCH {
            let decision = policy.decide(&request).await;
            assert!(matches!(decision, Ok(Decision::Allow(_))), "{decision:?}");
        }
        micros.push(started.elapsed().as_secs_f64() * 1e6 / OF_BATCH as f64);
    }
    median(micros)
}
