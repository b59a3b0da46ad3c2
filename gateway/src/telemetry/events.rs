//! What waits for receivers of events, what they took, and what was lost.
//!
//! Owns the names. A receiver is named by its plugin, which the operator wrote: bounded.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use gantry_storage::outbox::{Depth, receiver_of};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::Registry,
};

/// The counters of events. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct EventMeter {
    deliveries: Family<DeliveryLabels, Counter>,
    lost: Counter,
    depth: LastDepth,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DeliveryLabels {
    receiver: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct DepthLabels {
    receiver: String,
    state: &'static str,
}

/// What was last measured; written and read whole.
#[derive(Clone, Debug, Default)]
struct LastDepth(Arc<Mutex<Depth>>);

/// What became of an attempt to deliver one event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DeliveryOutcome {
    /// It arrived.
    Delivered,
    /// It is tried again.
    Again,
    /// It is a dead letter.
    Dead,
}

impl DeliveryOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Again => "again",
            Self::Dead => "dead",
        }
    }
}

impl EventMeter {
    /// Puts the counters on the page.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "deliveries",
            "Attempts to deliver an event, by what became of it",
            self.deliveries.clone(),
        );
        registry.register(
            "events_lost",
            "Pulls and denials that were not written down, for want of space or of a working store",
            self.lost.clone(),
        );
        registry.register_collector(Box::new(self.depth.clone()));
    }

    /// Counts an attempt.
    pub fn count_attempt(&self, receiver: &str, outcome: DeliveryOutcome) {
        let labels = DeliveryLabels {
            receiver: receiver.to_owned(),
            outcome: outcome.as_str(),
        };
        self.deliveries.get_or_create(&labels).inc();
    }

    /// Counts facts that were not written down.
    pub fn count_lost(&self, count: u64) {
        self.lost.inc_by(count);
    }

    /// Facts that were not written down since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Keeps what waits now for the page. Returns how many events were pushed out since the last time.
    pub fn measured(&self, depth: Depth) -> u64 {
        let mut last = self.depth.0.lock().unwrap_or_else(PoisonError::into_inner);
        let evicted = depth.evicted.saturating_sub(last.evicted);
        // Two that measure at once may come in the wrong order; what was pushed out is told once.
        let most = depth.evicted.max(last.evicted);
        *last = Depth {
            evicted: most,
            ..depth
        };
        evicted
    }
}

impl Collector for LastDepth {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let depth = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Events that wait for a receiver, and those given up";
        let mut metric =
            encoder.encode_descriptor("outbox_events", help, None, MetricType::Gauge)?;
        let mut receivers: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for sink in &depth.sinks {
            let (waiting, dead) = receivers.entry(receiver_of(&sink.sink)).or_default();
            *waiting += sink.waiting;
            *dead += sink.dead;
        }
        for (receiver, (waiting, dead)) in receivers {
            for (state, count) in [("waiting", waiting), ("dead", dead)] {
                let labels = DepthLabels {
                    receiver: receiver.to_owned(),
                    state,
                };
                let gauge = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
                gauge.encode(metric.encode_family(&labels)?)?;
            }
        }
        let gauge = ConstGauge::new(i64::try_from(depth.bytes).unwrap_or(i64::MAX));
        let help = "Bytes of the events that are kept, about";
        let metric = encoder.encode_descriptor("outbox_bytes", help, None, MetricType::Gauge)?;
        gauge.encode(metric)?;
        let help = "Events pushed out of the full outbox";
        let metric =
            encoder.encode_descriptor("events_evicted", help, None, MetricType::Counter)?;
        ConstCounter::new(depth.evicted).encode(metric)?;
        let help = "Deliveries given up because their rows in the database could not be read";
        let metric =
            encoder.encode_descriptor("events_unreadable", help, None, MetricType::Counter)?;
        ConstCounter::new(depth.unreadable).encode(metric)
    }
}
