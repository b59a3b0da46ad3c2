//! The clients: curl for bytes, wrk for requests. Both are the same for every server.

use std::{path::Path, process::Command};

use tests::tools::{require, run};

/// Pulls a URL so many times over one connection. Returns seconds to the first byte and in all, of the last pull.
pub(crate) fn pull(url: &str, times: usize, size: u64, more: &[&str]) -> (f64, f64) {
    let mut command = Command::new(require("curl"));
    command.args([
        "-s",
        "-k",
        "--http1.1",
        "--tls13-ciphers",
        "TLS_AES_256_GCM_SHA384",
    ]);
    command.args([
        "-w",
        "%{http_code} %{size_download} %{time_starttransfer} %{time_total}\n",
    ]);
    command.args(more);
    for _time in 0..times {
        command.args(["-o", "/dev/null", url]);
    }
    let text = run(&mut command).ok();
    let mut seconds = (0.0, 0.0);
    for line in text.lines() {
        let fields: Vec<f64> = line
            .split(' ')
            .map(|field| field.parse().expect("a number"))
            .collect();
        let [status, bytes, first, total] = fields.as_slice() else {
            panic!("curl printed {line}");
        };
        assert!(
            (*status - 200.0).abs() < 0.1 && (*bytes - size as f64).abs() < 0.5,
            "{url}: {line}"
        );
        seconds = (*first, *total);
    }
    seconds
}

/// What a URL answers, whole; the status must be 200.
pub(crate) fn fetch(url: &str, more: &[&str]) -> Vec<u8> {
    let mut command = Command::new(require("curl"));
    command.args(["-s", "-k", "-f", "--http1.1"]).args(more);
    let output = command.arg(url).output().expect("curl can be started");
    assert!(output.status.success(), "{url}: {output:?}");
    output.stdout
}

/// Puts a file; the status must be 201.
pub(crate) fn put(url: &str, file: &Path, more: &[&str]) {
    let mut command = Command::new(require("curl"));
    command.args(["-s", "--http1.1", "-o", "/dev/null", "-w", "%{http_code}"]);
    command.args([
        "-H",
        "Expect:",
        "-H",
        "Content-Type: application/octet-stream",
    ]);
    command.args(more).arg("-T").arg(file).arg(url);
    assert_eq!(run(&mut command).ok(), "201", "{url}");
}

/// Asks for a URL over and over on 16 connections for some seconds; how many answers came. Any answer but a 2xx is an error.
pub(crate) fn hammer(url: &str, seconds: u32, headers: &[&str]) -> f64 {
    let mut command = Command::new(require("wrk"));
    command.args(["-t1", "-c16", &format!("-d{seconds}s")]);
    for header in headers {
        command.args(["-H", header]);
    }
    let text = run(command.arg(url)).ok();
    assert!(
        !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "{url}: {text}"
    );
    let line = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "));
    let (count, _rest) = line.unwrap_or_else(|| panic!("wrk printed {text}"));
    count.parse().expect("a number of requests")
}
