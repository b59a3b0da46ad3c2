//! Mirrors: names that mean exactly one of them, and hosted patterns that hide some of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gantry_model::{RepositoryName, glob::Glob, namespace::MirrorNames};
use gantry_registry::{Freshness, Keep, Moves, Parallel, TagRule};
use url::Url;

use super::{Context, upstream::Place};
use crate::config::{
    Hosted, Listen, Mirror,
    file::{KeepFile, MirrorEntry, MirrorFile, MovesText, ParallelFile, TagRuleFile, TagsFile},
    text::{DurationText, HostText},
};

/// Docker Hub's registry, where `alpine` is `library/alpine`.
const DOCKER_HUB: [&str; 3] = ["registry-1.docker.io", "index.docker.io", "docker.io"];

/// What one of several requests for a blob asks for: enough that the next one is not asked for all the time, little enough to keep in memory.
const PART_BYTES: u64 = 8 << 20;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is believed of a tag unless the file says otherwise.
const DEFAULT_FRESHNESS: Freshness = Freshness {
    fresh_for: Duration::from_secs(10 * 60),
    stale_while_revalidate: Duration::ZERO,
    stale_if_error: Duration::from_secs(7 * 24 * 60 * 60),
    moves: Moves::Follow,
    min_age: Duration::ZERO,
};

/// What `tags` and a tag rule have in common.
struct Written {
    fresh_for: Option<DurationText>,
    stale_while_revalidate: Option<DurationText>,
    stale_if_error: Option<DurationText>,
    moves: Option<MovesText>,
    min_age: Option<DurationText>,
}

impl Context<'_> {
    pub(super) fn mirrors(
        &mut self,
        file: BTreeMap<String, MirrorEntry>,
        hosted: &Hosted,
    ) -> Vec<Mirror> {
        let mut mirrors: Vec<Mirror> = Vec::new();
        let mut implied = Vec::new();
        for (name, entry) in file {
            let written = match entry {
                MirrorEntry::Url(url) => MirrorFile::short(url),
                MirrorEntry::Full(written) => *written,
            };
            let explicit = written.ns.is_some();
            let Some(mirror) = self.mirror(&name, written) else {
                continue;
            };
            self.distinct(&mirror, &mirrors);
            if !explicit {
                implied.push((mirrors.len(), authority(&mirror.upstream.url)));
            }
            mirrors.push(mirror);
        }
        imply_hosts(&mut mirrors, &implied);
        self.hosted(hosted, &mut mirrors);
        self.callers_names(&mirrors, hosted);
        mirrors
    }

    fn mirror(&mut self, name: &str, mut file: MirrorFile) -> Option<Mirror> {
        let prefix = match (file.prefix.take(), name.parse::<RepositoryName>()) {
            (Some(prefix), _) => prefix.0,
            (None, Ok(name)) => name,
            (None, Err(error)) => {
                let hint =
                    "give it a `prefix`: the first part of its repositories' names".to_owned();
                self.refuse(
                    &["mirrors", name],
                    format!("the mirror's name cannot be its prefix: {error}"),
                    hint,
                );
                return None;
            }
        };
        let (freshness, not_found_for) = self.freshness(name, file.tags.take().unwrap_or_default());
        let rules = file.tag_rules.take().unwrap_or_default();
        let rules = rules.into_iter().enumerate();
        let tag_rules = rules
            .filter_map(|(index, rule)| self.tag_rule(name, index, rule, freshness))
            .collect();
        let url = file.url.take()?.0;
        let is_hub = prefix.as_str() == "docker.io"
            || url
                .host_str()
                .is_some_and(|host| DOCKER_HUB.contains(&host));
        let is_library = file.library.unwrap_or(is_hub);
        self.known_mistake(&["mirrors", name, "url"], &url, is_library);
        for (index, other) in file.alternatives.iter().flatten().enumerate() {
            let keys = ["mirrors", name, "alternatives", &index.to_string()];
            self.known_mistake(&keys, &other.0, is_library);
        }
        let place = Place {
            mirror: name,
            url,
            is_hub,
        };
        let upstream = self.upstream(&place, &mut file);
        let names = MirrorNames {
            mirror: Arc::from(name),
            prefix,
            namespaces: written_hosts(file.ns.take())
                .unwrap_or_else(|| vec![name.to_ascii_lowercase()]),
            hosts: written_hosts(file.hosts.take()).unwrap_or_default(),
            library: is_library,
            hosted: Vec::new(),
            layered: Vec::new(),
        };
        Some(Mirror {
            name: Arc::clone(&names.mirror),
            names,
            callers: self.callers(name, file.callers.take(), &upstream),
            upstream,
            default: file.default.unwrap_or(false),
            keep: self.keep(name, file.keep.take().unwrap_or_default()),
            prefetch: file.prefetch.unwrap_or(false),
            parallel: file.parallel.take().map(|file| self.parallel(name, &file)),
            freshness,
            tag_rules,
            not_found_for,
        })
    }

    fn keep(&mut self, mirror: &str, file: KeepFile) -> Keep {
        let keys = ["mirrors", mirror, "keep"];
        let section = keys.as_slice();
        let pinned = file.pinned.unwrap_or_default();
        Keep {
            keep_for: file.keep_for.map(|written| {
                let keys = [section, &["for"]].concat();
                let bounds = Duration::from_secs(60)..=DAY * 3650;
                self.duration(&keys, Some(&written), written.0, bounds)
            }),
            max_bytes: self.size(
                &[section, &["at_most"]].concat(),
                file.at_most.as_ref(),
                1 << 20..=u64::MAX,
            ),
            pinned: pinned.into_iter().map(|glob| glob.0).collect(),
            // Known when every mirror has been read.
            pushed: Vec::new(),
        }
    }

    fn parallel(&mut self, mirror: &str, file: &ParallelFile) -> Parallel {
        let keys = ["mirrors", mirror, "parallel", "from"];
        // Below two parts there is nothing to do at once.
        let from = self.size(&keys, file.from.as_ref(), 2 * PART_BYTES..=u64::MAX);
        Parallel {
            ranges: file.ranges.unwrap_or(4) as usize,
            from_bytes: from.unwrap_or(64 << 20),
            part_bytes: PART_BYTES,
        }
    }

    fn freshness(&mut self, mirror: &str, file: TagsFile) -> (Freshness, Duration) {
        let keys = ["mirrors", mirror, "tags"];
        let keys = keys.as_slice();
        let not_found_for = self.believed(keys, "not_found_for", file.not_found_for.as_ref());
        let written = Written {
            fresh_for: file.fresh_for,
            stale_while_revalidate: file.stale_while_revalidate,
            stale_if_error: file.stale_if_error,
            moves: file.moves,
            min_age: file.min_age,
        };
        (
            self.written(keys, written, DEFAULT_FRESHNESS),
            not_found_for.unwrap_or(Duration::from_secs(30)),
        )
    }

    fn tag_rule(
        &mut self,
        mirror: &str,
        index: usize,
        file: TagRuleFile,
        mut otherwise: Freshness,
    ) -> Option<TagRule> {
        let index = index.to_string();
        let keys = ["mirrors", mirror, "tag_rules", &index];
        if file.immutable == Some(true) {
            if file.fresh_for.is_some() {
                let message = "an immutable tag is always fresh".to_owned();
                let hint = "leave one of `immutable` and `fresh_for` out".to_owned();
                self.refuse(&[&keys[..], &["fresh_for"]].concat(), message, hint);
            }
            otherwise.fresh_for = Duration::MAX;
        }
        let written = Written {
            fresh_for: file.fresh_for,
            stale_while_revalidate: file.stale_while_revalidate,
            stale_if_error: file.stale_if_error,
            moves: file.moves,
            min_age: file.min_age,
        };
        let freshness = self.written(&keys, written, otherwise);
        let tags = file.tags?.into_iter().map(|glob| glob.0).collect();
        Some(TagRule { tags, freshness })
    }

    fn written(&mut self, keys: &[&str], file: Written, otherwise: Freshness) -> Freshness {
        let mut read = |key, written: Option<DurationText>, otherwise| {
            self.believed(keys, key, written.as_ref())
                .unwrap_or(otherwise)
        };
        Freshness {
            fresh_for: read("fresh_for", file.fresh_for, otherwise.fresh_for),
            stale_while_revalidate: read(
                "stale_while_revalidate",
                file.stale_while_revalidate,
                otherwise.stale_while_revalidate,
            ),
            stale_if_error: read(
                "stale_if_error",
                file.stale_if_error,
                otherwise.stale_if_error,
            ),
            min_age: read("min_age", file.min_age, otherwise.min_age),
            moves: file.moves.map_or(otherwise.moves, |moves| match moves {
                MovesText::Follow => Moves::Follow,
                MovesText::Alert => Moves::Alert,
                MovesText::Refuse => Moves::Refuse,
            }),
        }
    }

    fn believed(
        &mut self,
        keys: &[&str],
        key: &str,
        written: Option<&DurationText>,
    ) -> Option<Duration> {
        let bounds = Duration::ZERO..=DAY * 3650;
        let keys = [keys, &[key]].concat();
        written.map(|written| self.duration(&keys, Some(written), written.0, bounds))
    }

    /// Whether every name means one mirror.
    fn distinct(&mut self, mirror: &Mirror, others: &[Mirror]) {
        for other in others {
            let key = ["mirrors", &*mirror.name];
            let same = |what: &str| format!("mirror `{}` has the same {what}", other.name);
            if mirror.names.prefix == other.names.prefix {
                self.refuse(&[&key[..], &["prefix"]].concat(), same("prefix"), None);
            }
            if mirror
                .names
                .namespaces
                .iter()
                .any(|ns| other.names.namespaces.contains(ns))
            {
                self.refuse(&[&key[..], &["ns"]].concat(), same("ns"), None);
            }
            if mirror
                .names
                .hosts
                .iter()
                .any(|host| other.names.hosts.contains(host))
            {
                self.refuse(&[&key[..], &["hosts"]].concat(), same("host"), None);
            }
            if mirror.default && other.default {
                let message = format!(
                    "mirror `{}` is the default already; one mirror can be",
                    other.name
                );
                self.refuse(&[&key[..], &["default"]].concat(), message, None);
            }
        }
    }

    /// Whether every hosted pattern can match, and the default mirror can be reached; gives the mirrors the patterns below their prefixes.
    fn hosted(&mut self, hosted: &Hosted, mirrors: &mut [Mirror]) {
        let default = mirrors.iter().find(|mirror| mirror.default);
        let default = default.map(|mirror| Arc::clone(&mirror.name));
        let (mut over, mut layered) = (Vec::new(), Vec::new());
        for (index, pattern) in hosted.names.iter().enumerate() {
            let index = index.to_string();
            let keys = ["hosted", "names", &index];
            if self.hides_some(&keys, pattern, mirrors) {
                over.push(pattern.clone());
            }
            if let (Some(default), "**") = (&default, pattern.as_str()) {
                let message = format!(
                    "covers every name, so the default mirror `{default}` would never be asked"
                );
                let hint = "name what is pushed here, such as \"apps/**\", or take `default` from the mirror".to_owned();
                self.refuse(&keys, message, hint);
            }
        }
        for (index, pattern) in hosted.or_upstream.iter().enumerate() {
            let index = index.to_string();
            let keys = ["hosted", "or_upstream", &index];
            let below = mirrors.iter().find(|it| covers(&it.names.prefix, pattern));
            match below {
                Some(mirror) => self.can_match(&keys, pattern, mirror),
                None => self.refuse(
                    &keys,
                    "lies below no mirror's prefix, so there is no upstream for it",
                    "put it into `names`".to_owned(),
                ),
            }
            layered.push(pattern.clone());
        }
        // To all of them: a pattern may reach into a mirror whose prefix is longer than what the pattern spells out.
        for mirror in mirrors {
            mirror.keep.pushed = [over.clone(), layered.clone()].concat();
            mirror.names.hosted.clone_from(&over);
            mirror.names.layered.clone_from(&layered);
        }
    }

    /// Whether the pattern hides names of a mirror; all of them would be a mistake.
    fn hides_some(&mut self, keys: &[&str], pattern: &Glob, mirrors: &[Mirror]) -> bool {
        let mut below = mirrors.iter();
        let Some(mirror) = below.find(|it| covers(&it.names.prefix, pattern)) else {
            return false;
        };
        let prefix = mirror.names.prefix.as_str();
        let rest = pattern.as_str().strip_prefix(prefix).unwrap_or_default();
        match rest {
            "" => self.refuse(
                keys,
                format!(
                    "never matches: such names belong to mirror `{}`",
                    mirror.name
                ),
                None,
            ),
            "/**" => self.refuse(
                keys,
                format!("hides every name of mirror `{}`", mirror.name),
                format!("name what is pushed here, such as \"{prefix}/internal/**\""),
            ),
            _ => self.can_match(keys, pattern, mirror),
        }
        true
    }

    /// A pattern of one part says nothing where such names are `library/…`: whoever wrote it would take the upstream's for his own.
    fn can_match(&mut self, keys: &[&str], pattern: &Glob, mirror: &Mirror) {
        let prefix = mirror.names.prefix.as_str();
        let rest = pattern.as_str().strip_prefix(prefix);
        let rest = rest.and_then(|rest| rest.strip_prefix('/'));
        let one_part = rest.filter(|rest| !rest.contains('/') && !rest.contains("**"));
        if let (Some(part), true) = (one_part, mirror.names.library) {
            self.refuse(
                keys,
                format!("never matches: such names are `{prefix}/library/…`"),
                format!("write \"{prefix}/library/{part}\""),
            );
        }
    }

    /// Whether every listener's mirror is there.
    pub(super) fn listeners_of(&mut self, mirrors: &[Mirror], listeners: &[Listen]) {
        for (index, listen) in listeners.iter().enumerate() {
            let Some(named) = &listen.mirror else {
                continue;
            };
            if mirrors.iter().any(|mirror| mirror.name == *named) {
                continue;
            }
            let index = index.to_string();
            let many = ["listen", &index, "mirror"];
            let keys = match self.root.get("listen").map(|it| it.get("mirror").is_some()) {
                Some(true) => &["listen", "mirror"][..],
                _ => &many[..],
            };
            let names: Vec<&str> = mirrors.iter().map(|mirror| &*mirror.name).collect();
            let hint = match names.is_empty() {
                true => "there are no `mirrors`".to_owned(),
                false => format!("the mirrors are: {}", names.join(", ")),
            };
            self.refuse(keys, format!("no mirror is named `{named}`"), hint);
        }
    }
}

/// A mirror without `ns` also answers for its URL's host, unless another mirror claims that: then it would be a guess.
fn imply_hosts(mirrors: &mut [Mirror], implied: &[(usize, String)]) {
    for (index, host) in implied {
        let elsewhere = mirrors
            .iter()
            .enumerate()
            .any(|(other, mirror)| other != *index && mirror.names.namespaces.contains(host));
        let twice = implied.iter().filter(|(_, other)| other == host).count() > 1;
        if elsewhere || twice {
            continue;
        }
        if let Some(mirror) = mirrors.get_mut(*index)
            && !mirror.names.namespaces.contains(host)
        {
            mirror.names.namespaces.push(host.clone());
        }
    }
}

/// `host`, with the port where it is not the scheme's own.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether every name the pattern matches lies below the prefix, or is the prefix itself.
pub(super) fn covers(prefix: &RepositoryName, pattern: &Glob) -> bool {
    let pattern = pattern.as_str();
    let special = |letter: char| matches!(letter, '*' | '?' | '[' | '{' | '\\' | '!');
    let literal = pattern
        .split_once(special)
        .map_or(pattern, |(literal, _)| literal);
    pattern == prefix.as_str()
        || literal
            .strip_prefix(prefix.as_str())
            .is_some_and(|rest| rest.starts_with('/'))
}

fn written_hosts(written: Option<Vec<HostText>>) -> Option<Vec<String>> {
    Some(written?.into_iter().map(|host| host.0).collect())
}
