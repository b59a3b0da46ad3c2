//! Numbers that others keep and that are read at each scrape.
//!
//! Owns their names. A part of the program brings a closure for one of them; without it the number is not on the page.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// A number that somebody else keeps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reading {
    /// Instances of plugins alive.
    PoolInUse,
    /// Instances of plugins that may be alive at once.
    PoolSize,
    /// Password checks that run or wait.
    PasswordChecks,
    /// Upload sessions open, as far as this process has seen them.
    Uploads,
    /// Fills under way.
    Fills,
    /// Bytes written into the blob store.
    BlobBytes,
    /// Panics outside requests.
    BackgroundPanics,
    /// Audit lines that could not be written.
    AuditErrors,
}

/// Name, help, and whether it only grows.
const READINGS: [(Reading, &str, &str, bool); 8] = [
    (
        Reading::PoolInUse,
        "plugin_instances",
        "Plugin instances alive",
        false,
    ),
    (
        Reading::PoolSize,
        "plugin_instances_max",
        "Plugin instances that may be alive at once",
        false,
    ),
    (
        Reading::PasswordChecks,
        "password_checks",
        "Password checks that run or wait",
        false,
    ),
    (
        Reading::Uploads,
        "uploads_open",
        "Upload sessions open, as far as this process has seen them",
        false,
    ),
    (Reading::Fills, "fills_running", "Fills under way", false),
    (
        Reading::BlobBytes,
        "blob_written_bytes",
        "Bytes written into the blob store, by pushes and fills",
        true,
    ),
    (
        Reading::BackgroundPanics,
        "background_panics",
        "Panics outside requests",
        true,
    ),
    (
        Reading::AuditErrors,
        "audit_errors",
        "Audit lines that could not be written to their file",
        true,
    ),
];

type Source = Box<dyn Fn() -> u64 + Send + Sync>;

/// Where each number comes from.
#[derive(Default)]
pub(super) struct Readings {
    /// Held for a scrape or a change of sources.
    sources: Mutex<[Option<Source>; READINGS.len()]>,
}

impl fmt::Debug for Readings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Readings")
    }
}

impl Readings {
    pub(super) fn set(&self, reading: Reading, source: Source) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = READINGS.iter().zip(sources.iter_mut());
        let mut slot = slot.filter(|((kind, ..), _)| *kind == reading);
        if let Some((_, slot)) = slot.next() {
            slot.replace(source);
        }
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for ((_, name, help, grows), source) in READINGS.iter().zip(sources.iter()) {
            let Some(source) = source else { continue };
            let number = source();
            if *grows {
                let counter = ConstCounter::new(number);
                let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
                counter.encode(metric)?;
            } else {
                let gauge = ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX));
                let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
                gauge.encode(metric)?;
            }
        }
        Ok(())
    }
}
