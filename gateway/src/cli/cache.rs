//! `gantry cache`: what the mirrors of a running gateway hold, what stays, what goes, and what comes before anybody asks.
//!
//! Owns how the admin API's documents look to a person. `warm` shows progress.

mod warm;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::anyhow;
use clap::{Args, Subcommand};
use indicatif::BinaryBytes;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    Failure,
    admin::{Output, Target, aligned, at, cell, pretty},
};

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List mirrored repositories: tags, bytes, when they were last used, what is pinned.
    Ls(Ls),
    /// Say how much each mirror holds and how often it could answer by itself.
    Stats(Look),
    /// List what was pinned by `gantry cache pin`.
    Pins(Look),
    /// Keep content whatever its age and the cache's size, now and when it comes.
    Pin(Change),
    /// Take a pin away.
    Unpin(Change),
    /// Take content out now. What is pinned stays; what another repository holds keeps its bytes.
    Evict(Evict),
    /// Pull images into the cache, as the user would be allowed to.
    Warm(warm::Warm),
}

/// Arguments of `gantry cache ls`.
#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// Only repositories with such a name, such as `docker.io/library/*`.
    repository: Option<String>,
    #[command(flatten)]
    target: Target,
    /// How to print them.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Arguments of what only looks.
#[derive(Args, Debug)]
pub(crate) struct Look {
    #[command(flatten)]
    target: Target,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Arguments of `gantry cache pin` and `unpin`.
#[derive(Args, Debug)]
pub(crate) struct Change {
    /// `REPOSITORY[:TAG][@DIGEST]` by its full name, such as `docker.io/library/alpine:3.*`; both parts may be globs.
    what: String,
    #[command(flatten)]
    target: Target,
    /// How to print what was done.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// Arguments of `gantry cache evict`.
#[derive(Args, Debug)]
pub(crate) struct Evict {
    #[command(flatten)]
    change: Change,
    /// Only what nobody asked for in so long, such as 7d, 12h or 30m.
    #[arg(long, value_name = "AGE", value_parser = age)]
    older_than: Option<Duration>,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
}

/// Does it.
pub(super) fn run(command: &CacheCommand) -> Result<(), Failure> {
    let text = match command {
        CacheCommand::Ls(arguments) => list(arguments)?,
        CacheCommand::Stats(look) => look.show("/admin/v1/cache/stats", stats)?,
        CacheCommand::Pins(look) => look.show("/admin/v1/cache/pins", pins)?,
        CacheCommand::Pin(change) => change.send(Method::POST, pinned)?,
        CacheCommand::Unpin(change) => change.send(Method::DELETE, |done| {
            format!("unpinned: {}\n", text_at(done, "/unpinned"))
        })?,
        CacheCommand::Evict(arguments) => return evict(arguments),
        CacheCommand::Warm(arguments) => return warm::run(arguments),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl Look {
    fn show(&self, path: &str, text: fn(&Value) -> String) -> Result<String, Failure> {
        let document = self.target.send(Method::GET, path, &[], None)?;
        shown(&document, self.output, text)
    }
}

impl Change {
    fn send(&self, method: Method, text: fn(&Value) -> String) -> Result<String, Failure> {
        let body = json!({ "what": self.what });
        let path = "/admin/v1/cache/pins";
        let done = self.target.send(method, path, &[], Some(&body))?;
        shown(&done, self.output, text)
    }
}

fn shown(document: &Value, output: Output, text: fn(&Value) -> String) -> Result<String, Failure> {
    match output {
        Output::Json => pretty(document),
        Output::Text => Ok(text(document)),
    }
}

/// Page by page, until there is no more.
fn list(arguments: &Ls) -> Result<String, Failure> {
    let mut repositories: Vec<Value> = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let mut query = vec![("limit", "1000")];
        let glob = arguments.repository.as_deref();
        query.extend(glob.map(|glob| ("match", glob)));
        query.extend(after.as_deref().map(|after| ("after", after)));
        let target = &arguments.target;
        let page = target.send(Method::GET, "/admin/v1/cache", &query, None)?;
        repositories.extend(
            at(&page, "/repositories")
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
        match at(&page, "/next").as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    let document = json!({ "repositories": repositories });
    shown(&document, arguments.output, table)
}

fn table(document: &Value) -> String {
    let head = ["REPOSITORY", "TAGS", "SIZE", "LAST USE", "PINNED"];
    let mut rows = vec![head.map(str::to_owned)];
    for repository in array(document, "/repositories") {
        let tags: Vec<String> = array(repository, "/tags")
            .map(|tag| text_at(tag, "/tag"))
            .collect();
        let pinned = array(repository, "/tags").filter(|tag| *at(tag, "/pinned") == json!(true));
        let pinned: Vec<String> = pinned.map(|tag| text_at(tag, "/tag")).collect();
        rows.push([
            text_at(repository, "/repository"),
            some_of(&tags),
            size(at(repository, "/bytes")),
            moment(at(repository, "/used_at")),
            match (pinned.is_empty(), at(repository, "/pinned")) {
                (true, Value::Bool(true)) => "yes".to_owned(),
                (true, _) => "-".to_owned(),
                (false, _) => some_of(&pinned),
            },
        ]);
    }
    aligned(&rows)
}

/// The first few, and how many more there are.
fn some_of(tags: &[String]) -> String {
    const SHOWN: usize = 4;
    let first: Vec<&str> = tags.iter().take(SHOWN).map(String::as_str).collect();
    match tags.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{} +{more}", first.join(",")),
        _ if first.is_empty() => "-".to_owned(),
        _ => first.join(","),
    }
}

fn stats(document: &Value) -> String {
    let head = [
        "MIRROR",
        "SIZE",
        "AT MOST",
        "FULL",
        "BLOBS",
        "REPOSITORIES",
        "HIT RATIO",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let row = |name: String, of: &Value| {
        [
            name,
            size(at(of, "/bytes")),
            size(at(of, "/max_bytes")),
            percent(at(of, "/full")),
            cell(at(of, "/blobs")),
            cell(at(of, "/repositories")),
            percent(at(of, "/hit_ratio")),
        ]
    };
    for mirror in array(document, "/mirrors") {
        rows.push(row(text_at(mirror, "/mirror"), mirror));
    }
    rows.push(row("all".to_owned(), document));
    aligned(&rows)
}

fn pins(document: &Value) -> String {
    let mut rows = vec![["WHAT", "SINCE", "BY"].map(str::to_owned)];
    for pin in array(document, "/pins") {
        rows.push([
            text_at(pin, "/what"),
            moment(at(pin, "/at")),
            text_at(pin, "/by"),
        ]);
    }
    aligned(&rows)
}

fn pinned(done: &Value) -> String {
    let what = text_at(done, "/pinned");
    let known = if *at(done, "/new") == json!(true) {
        "pinned"
    } else {
        "pinned already"
    };
    match at(done, "/repositories").as_u64() {
        Some(0) => format!("{known}: {what}; nothing in the cache has that name yet\n"),
        Some(count) => format!(
            "{known}: {what}, in {}\n",
            counted(count, "repository", "repositories")
        ),
        None => format!("{known}: {what}\n"),
    }
}

fn evict(arguments: &Evict) -> Result<(), Failure> {
    let change = &arguments.change;
    let body = json!({
        "what": change.what,
        "older_than_seconds": arguments.older_than.map(|age| age.as_secs()),
        "dry_run": arguments.dry_run,
    });
    let mut end = None;
    change
        .target
        .stream("/admin/v1/cache/evict", &body, &mut |line| {
            let text = match change.output {
                Output::Json => format!("{line}\n"),
                Output::Text => evicted(&line),
            };
            if text_at(&line, "/event") != "evicted" {
                end = Some(line);
            }
            Ok(io::stdout().write_all(text.as_bytes())?)
        })?;
    match end {
        Some(end) if text_at(&end, "/event") == "end" => Ok(()),
        Some(end) => Err(anyhow!("{}", text_at(&end, "/message")).into()),
        None => Err(anyhow!("the gateway ended before it was done").into()),
    }
}

fn evicted(line: &Value) -> String {
    let bytes = size(at(line, "/bytes"));
    if text_at(line, "/event") == "end" {
        let verb = if *at(line, "/dry_run") == json!(true) {
            "would go"
        } else {
            "gone"
        };
        let count = |key| at(line, key).as_u64().unwrap_or(0);
        let mut text = format!(
            "{verb}: {}, {}, {bytes}",
            counted(count("/manifests"), "manifest", "manifests"),
            counted(count("/blobs"), "blob", "blobs")
        );
        if count("/pinned") > 0 {
            text.push_str(&format!(
                "; {} stay, because they are pinned",
                count("/pinned")
            ));
        }
        return text + "\n";
    }
    let kinds = ["tag", "manifest", "blob"].into_iter();
    let named = kinds.filter_map(|kind| Some((kind, at(line, &format!("/{kind}")).as_str()?)));
    let named: Vec<String> = named.map(|(kind, name)| format!("{kind} {name}")).collect();
    let tags: Vec<&str> = array(line, "/tags").filter_map(Value::as_str).collect();
    let tags = match tags.is_empty() {
        true => String::new(),
        false => format!(" ({})", tags.join(", ")),
    };
    format!(
        "{}  {}{tags}  {bytes}\n",
        text_at(line, "/repository"),
        named.join(" ")
    )
}

fn array<'a>(document: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> {
    at(document, pointer).as_array().into_iter().flatten()
}

fn text_at(document: &Value, pointer: &str) -> String {
    at(document, pointer)
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn size(bytes: &Value) -> String {
    bytes
        .as_u64()
        .map_or_else(|| "-".to_owned(), |bytes| BinaryBytes(bytes).to_string())
}

fn percent(ratio: &Value) -> String {
    ratio
        .as_f64()
        .map_or_else(|| "-".to_owned(), |ratio| format!("{:.1}%", ratio * 100.0))
}

/// To the second.
fn moment(at: &Value) -> String {
    match at.as_str() {
        Some(text) => match text.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z"),
            None => text.to_owned(),
        },
        None => "-".to_owned(),
    }
}

fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `7d`, `12h`, `30m`, `45s`.
fn age(text: &str) -> Result<Duration, String> {
    let wrong = || "an age is a number and one of d, h, m and s, such as 7d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let number = text.strip_suffix(unit).unwrap_or_default();
    let seconds = match unit {
        'd' => 24 * 60 * 60,
        'h' => 60 * 60,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_not_a_number| wrong())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_is_cached() {
        let tag = |tag, pinned| json!({ "tag": tag, "digest": "sha256:0", "pinned": pinned });
        let document = json!({ "repositories": [
            { "repository": "docker.io/library/alpine", "mirror": "docker.io", "bytes": 3_670_016, "used_at": "2026-01-01T00:00:00.123Z",
              "tags": [tag("3.18", false), tag("3.19", true)], "pinned": true },
            { "repository": "ghcr.io/a/b", "mirror": "ghcr.io", "bytes": 0, "used_at": null,
              "tags": [tag("1", false), tag("2", false), tag("3", false), tag("4", false), tag("5", false)], "pinned": false },
        ]});
        assert_eq!(
            table(&document),
            "REPOSITORY                TAGS        SIZE      LAST USE              PINNED\n\
             docker.io/library/alpine  3.18,3.19   3.50 MiB  2026-01-01T00:00:00Z  3.19\n\
             ghcr.io/a/b               1,2,3,4 +1  0 B       -                     -\n"
        );
    }

    #[test]
    fn the_figures_say_how_full_and_how_useful_each_mirror_is() {
        let document = json!({
            "bytes": 1024, "blobs": 2, "repositories": 1, "hit_ratio": 0.75,
            "mirrors": [{ "mirror": "docker.io", "bytes": 1024, "max_bytes": 4096, "full": 0.25, "blobs": 2, "repositories": 1, "hit_ratio": null }],
        });
        assert_eq!(
            stats(&document),
            "MIRROR     SIZE      AT MOST   FULL   BLOBS  REPOSITORIES  HIT RATIO\n\
             docker.io  1.00 KiB  4.00 KiB  25.0%  2      1             -\n\
             all        1.00 KiB  -         -      2      1             75.0%\n"
        );
    }

    #[test]
    fn an_eviction_says_what_went_and_what_stayed() {
        let manifest = json!({ "event": "evicted", "repository": "up/a", "manifest": "sha256:1", "tags": ["v1"], "bytes": 512 });
        assert_eq!(evicted(&manifest), "up/a  manifest sha256:1 (v1)  512 B\n");
        let end = json!({ "event": "end", "dry_run": false, "manifests": 1, "blobs": 2, "bytes": 2048, "pinned": 3 });
        assert_eq!(
            evicted(&end),
            "gone: 1 manifest, 2 blobs, 2.00 KiB; 3 stay, because they are pinned\n"
        );
    }

    #[test]
    fn an_age_is_a_number_and_a_unit() {
        assert_eq!(age("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(age("90s"), Ok(Duration::from_secs(90)));
        for wrong in [
            "",
            "d",
            "7",
            "7w",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999d",
        ] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }
}
