//! What a process took: processor time of it and its children, and its memory, from /proc.

use std::fs;

/// `sysconf(_SC_CLK_TCK)`, which Linux keeps at 100 for programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// utime + stime in seconds, of a process and everything below it.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let ticks: u64 = tree(pid).into_iter().map(ticks_of).sum();
    ticks as f64 / TICKS_PER_SECOND
}

fn ticks_of(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is a name in parentheses and may hold anything.
    let Some((_name, rest)) = stat.rsplit_once(") ") else {
        return 0;
    };
    let mut fields = rest.split(' ').skip(11);
    let mut next = || {
        fields
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    };
    next() + next()
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
