//! What the kernel says of this process, under the names that every exporter uses, and which build it is.

use std::{fmt, fs};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Unit,
};

/// Reads `/proc/self` at each scrape; what it cannot read is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut put = |name: &str, help: &str, unit: Option<&Unit>, metric: &dyn Put| {
            metric.put(&mut encoder, name, help, unit)
        };
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        put("gantry_build", "The build", None, &build)?;
        if let Some(bytes) = resident_bytes() {
            let name = "process_resident_memory";
            put(name, "Resident memory", Some(&Unit::Bytes), &gauge(bytes))?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the folder itself.
            let open = (files.count() as u64).saturating_sub(1);
            put("process_open_fds", "Open files", None, &gauge(open))?;
        }
        if let Some(most) = max_files() {
            put(
                "process_max_fds",
                "Files that may be open",
                None,
                &gauge(most),
            )?;
        }
        if let Some(Times { started, cpu }) = times() {
            let (start, used) = (ConstGauge::new(started), ConstCounter::new(cpu));
            let seconds = Some(&Unit::Seconds);
            put("process_start_time", "Start, since 1970", seconds, &start)?;
            put("process_cpu", "CPU time", seconds, &used)?;
        }
        Ok(())
    }
}

/// A metric of any type.
trait Put {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> Result<(), fmt::Error>;
}

impl<M: EncodeMetric> Put for M {
    fn put(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
    ) -> Result<(), fmt::Error> {
        let metric = encoder.encode_descriptor(name, help, unit, self.metric_type())?;
        self.encode(metric)
    }
}

fn gauge(number: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(number).unwrap_or(i64::MAX))
}

fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn max_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// In seconds.
struct Times {
    started: f64,
    cpu: f64,
}

fn times() -> Option<Times> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The program's name is in parentheses and may hold anything; what follows is the state, field 3.
    let (_name, rest) = stat.rsplit_once(')')?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<f64>().ok();
    let per_second = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?);
    let system = fs::read_to_string("/proc/stat").ok()?;
    let boot = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(Times {
        started: boot.trim().parse::<f64>().ok()? + field(22)? / per_second,
        cpu: (field(14)? + field(15)?) / per_second,
    })
}
