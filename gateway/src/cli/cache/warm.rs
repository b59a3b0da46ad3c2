//! `gantry cache warm`: bars on a terminal, one line per image elsewhere, JSON lines when asked for.

use std::{
    collections::HashMap,
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{
    super::{
        Failure,
        admin::{Output, Target, at},
    },
    counted, size, text_at,
};

/// Images of one request at most, as the API has it.
const IMAGES_AT_ONCE: usize = 1000;

/// Arguments of `gantry cache warm`.
#[derive(Args, Debug)]
pub(crate) struct Warm {
    /// Images by their full names, such as docker.io/library/alpine:3.19.
    #[arg(required_unless_present = "file")]
    images: Vec<String>,
    /// A file with one image per line; what follows a # is no part of it.
    #[arg(long, value_name = "LIST")]
    file: Option<PathBuf>,
    /// Only for this platform, such as linux/arm64; `all` for every one. May be said more than once. Default: linux on this machine's
    /// processor.
    #[arg(long, value_name = "OS/ARCH")]
    platform: Vec<String>,
    #[command(flatten)]
    target: Target,
    /// How to print progress: for people, or the API's own lines.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(arguments: &Warm) -> Result<(), Failure> {
    let images = arguments.all_images()?;
    let mut shown = Shown::new(arguments.output);
    for some in images.chunks(IMAGES_AT_ONCE) {
        let body = json!({ "images": some, "platforms": arguments.platforms() });
        let path = "/admin/v1/cache/warm";
        let each = &mut |line: Value| shown.take(&line);
        arguments.target.stream(path, &body, each)?;
        if !std::mem::take(&mut shown.ended) {
            return Err(anyhow!("the gateway ended before it was done").into());
        }
    }
    match shown.failed {
        0 => Ok(()),
        failed => {
            let all = images.len() as u64;
            let of = counted(all, "image", "images");
            Err(anyhow!("{failed} of {of} could not be pulled").into())
        }
    }
}

impl Warm {
    fn all_images(&self) -> anyhow::Result<Vec<String>> {
        let mut images = self.images.clone();
        if let Some(file) = &self.file {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            images.extend(listed(&text));
        }
        if images.is_empty() {
            return Err(anyhow!("the list names no image"));
        }
        Ok(images)
    }

    fn platforms(&self) -> Option<Vec<String>> {
        if self.platform.iter().any(|platform| platform == "all") {
            return None;
        }
        Some(match self.platform.is_empty() {
            true => vec![own_platform()],
            false => self.platform.clone(),
        })
    }
}

fn listed(text: &str) -> impl Iterator<Item = String> {
    let lines = text.lines().map(|line| {
        let image = line.split_once('#').map_or(line, |(image, _)| image);
        image.trim().to_owned()
    });
    lines.filter(|image| !image.is_empty())
}

/// Go's names of processors, which images use.
fn own_platform() -> String {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    format!("linux/{architecture}")
}

/// What was printed so far.
struct Shown {
    output: Output,
    /// On a terminal.
    bars: Option<MultiProgress>,
    by_digest: HashMap<String, ProgressBar>,
    failed: u64,
    ended: bool,
}

impl Shown {
    fn new(output: Output) -> Self {
        let is_watched = output == Output::Text && io::stderr().is_terminal();
        Self {
            output,
            bars: is_watched.then(MultiProgress::new),
            by_digest: HashMap::new(),
            failed: 0,
            ended: false,
        }
    }

    fn take(&mut self, line: &Value) -> Result<(), Failure> {
        let event = text_at(line, "/event");
        self.ended |= event == "end";
        self.failed += u64::from(event == "failed");
        if self.output == Output::Json {
            return Ok(writeln!(io::stdout(), "{line}")?);
        }
        match event.as_str() {
            "progress" => self.advance(line),
            "blob" => {
                if let Some(bar) = self.by_digest.remove(&text_at(line, "/digest")) {
                    bar.finish_and_clear();
                }
            }
            "warmed" | "failed" => self.say(&told(line))?,
            _ => {}
        }
        Ok(())
    }

    fn advance(&mut self, line: &Value) {
        let Some(bars) = &self.bars else { return };
        let digest = text_at(line, "/digest");
        let name: String = digest
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        let bar = self.by_digest.entry(digest).or_insert_with(|| {
            let bar = bars.add(ProgressBar::new(at(line, "/bytes").as_u64().unwrap_or(0)));
            let style = ProgressStyle::with_template(
                "{prefix} {bar:32} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            );
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.with_prefix(name)
        });
        bar.set_position(at(line, "/received").as_u64().unwrap_or(0));
    }

    /// Above the bars.
    fn say(&self, text: &str) -> Result<(), Failure> {
        let print = || writeln!(io::stdout(), "{text}");
        match &self.bars {
            Some(bars) => bars.suspend(print)?,
            None => print()?,
        }
        Ok(())
    }
}

fn told(line: &Value) -> String {
    let image = text_at(line, "/image");
    if text_at(line, "/event") == "failed" {
        let (code, message) = (text_at(line, "/code"), text_at(line, "/message"));
        return format!("{image}: {code}: {message}");
    }
    let count = |key| at(line, key).as_u64().unwrap_or(0);
    format!(
        "{image}: {}, {}, {}, of which {} came from the upstream",
        counted(count("/manifests"), "manifest", "manifests"),
        counted(count("/blobs"), "blob", "blobs"),
        size(at(line, "/bytes")),
        size(at(line, "/fetched_bytes")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_an_image_per_line() {
        let text = "# base images\ndocker.io/library/alpine:3.19\n\n  ghcr.io/a/b # ours\n";
        let images: Vec<String> = listed(text).collect();
        assert_eq!(images, ["docker.io/library/alpine:3.19", "ghcr.io/a/b"]);
    }

    #[test]
    fn an_image_is_told_in_a_line() {
        let warmed = json!({ "event": "warmed", "image": "up/a:1", "manifests": 1, "blobs": 2, "bytes": 2048, "fetched_bytes": 1024 });
        assert_eq!(
            told(&warmed),
            "up/a:1: 1 manifest, 2 blobs, 2.00 KiB, of which 1.00 KiB came from the upstream"
        );
        let failed = json!({ "event": "failed", "image": "up/a:1", "code": "DENIED", "message": "not here" });
        assert_eq!(told(&failed), "up/a:1: DENIED: not here");
    }
}
