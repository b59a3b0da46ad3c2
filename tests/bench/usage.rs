//! What a process took: processor time of it and its children, and its memory, from the kernel's accounts.

use std::{collections::HashMap, fs};

/// What threads had taken at one moment, in nanoseconds by their ids.
type Taken = HashMap<u32, u64>;

/// The processor time of a process and everything below it, from here on.
#[derive(Debug)]
pub(crate) struct Meter {
    pid: u32,
    before: Taken,
}

impl Meter {
    pub(crate) fn start(pid: u32) -> Self {
        let before = taken(pid);
        Self { pid, before }
    }

    /// Seconds taken since the start. A thread that ended meanwhile is not in it: those that do had nothing to do for ten seconds.
    pub(crate) fn seconds(&self) -> f64 {
        let since = |(thread, now): (u32, u64)| now - self.before.get(&thread).unwrap_or(&0);
        let nanos: u64 = taken(self.pid).into_iter().map(since).sum();
        nanos as f64 / 1e9
    }
}

/// `schedstat` counts what `utime` and `stime` do, in nanoseconds instead of hundredths of a second.
fn taken(pid: u32) -> Taken {
    let mut taken = Taken::new();
    for process in tree(pid) {
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("the process runs");
        for task in tasks.flatten() {
            // A thread may end between the list and the look.
            let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else {
                continue;
            };
            let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
            let thread = task.file_name().to_string_lossy().parse();
            taken.insert(
                thread.expect("a thread's id"),
                nanos.expect("a number of nanoseconds"),
            );
        }
    }
    taken
}

fn tree(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = fs::read_to_string(path).unwrap_or_default();
    let mut all = vec![pid];
    for child in children
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
    {
        all.extend(tree(child));
    }
    all
}

/// `VmRSS`, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kilobytes.expect("the process runs") * 1024.0
}
