//! Writes facts that have no commit: many in one transaction, so that a thousand pulls are not a thousand fsyncs.

use std::{sync::Arc, time::Duration};

use gantry_model::Event;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::Events;

/// Facts in one transaction at most.
const MAX_GROUP: usize = 512;
/// How long the first of a group waits for others.
const GROUP_FOR: Duration = Duration::from_millis(500);

pub(super) async fn gather(
    events: &Arc<Events>,
    mut facts: mpsc::Receiver<Event>,
    mut stop: watch::Receiver<bool>,
) {
    let mut group = Vec::with_capacity(MAX_GROUP);
    loop {
        let stopped = tokio::select! {
            received = facts.recv_many(&mut group, MAX_GROUP) => received == 0,
            _stopped = stop.wait_for(|stop| *stop) => true,
        };
        let until = Instant::now() + GROUP_FOR;
        while !stopped && group.len() < MAX_GROUP {
            let space = MAX_GROUP - group.len();
            tokio::select! {
                received = facts.recv_many(&mut group, space) => if received == 0 { break },
                _stopped = stop.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep_until(until) => break,
            }
        }
        if stopped {
            facts.close();
            while let Ok(event) = facts.try_recv() {
                group.push(event);
            }
        }
        write(events, &mut group).await;
        if stopped {
            return;
        }
    }
}

/// A group that cannot be written is lost: to keep it would only lose the next.
async fn write(events: &Arc<Events>, group: &mut Vec<Event>) {
    if group.is_empty() {
        return;
    }
    let count = group.len();
    match events.outbox.append(std::mem::take(group)).await {
        Ok(()) => events.wake(),
        Err(error) => {
            let lost = u64::try_from(count).unwrap_or(u64::MAX);
            events.meter.count_lost(lost);
            tracing::warn!(error = ?error, count, "pulls and denials could not be written down");
        }
    }
}
