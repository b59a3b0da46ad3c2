//! Mirrors: names that mean exactly one of them, and hosted patterns that none of them swallows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gantry_model::{RepositoryName, glob::Glob, namespace::MirrorNames};
use url::Url;

use super::Context;
use crate::config::{
    Credentials, Hosted, Mirror,
    file::{CredentialsFile, MirrorEntry, MirrorFile, TagsFile},
};

/// Docker Hub's registry, where `alpine` is `library/alpine`.
const DOCKER_HUB: [&str; 3] = ["registry-1.docker.io", "index.docker.io", "docker.io"];

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

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
                implied.push((mirrors.len(), authority(&mirror.url)));
            }
            mirrors.push(mirror);
        }
        imply_hosts(&mut mirrors, &implied);
        self.hosted(hosted, &mirrors);
        mirrors
    }

    fn mirror(&mut self, name: &str, file: MirrorFile) -> Option<Mirror> {
        let prefix = match (file.prefix, name.parse::<RepositoryName>()) {
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
        let keys = ["mirrors", name, "tags"];
        let tags = file.tags.unwrap_or_default();
        let (fresh_for, stale_if_error, not_found_for) = self.freshness(&keys, &tags);
        let credentials = file
            .credentials
            .and_then(|written| self.credentials(name, written));
        let url = file.url?.0;
        let hub = prefix.as_str() == "docker.io"
            || url
                .host_str()
                .is_some_and(|host| DOCKER_HUB.contains(&host));
        let names = MirrorNames {
            mirror: Arc::from(name),
            prefix,
            namespaces: match file.ns {
                Some(written) => written.into_iter().map(|host| host.0).collect(),
                None => vec![name.to_ascii_lowercase()],
            },
            hosts: file
                .hosts
                .unwrap_or_default()
                .into_iter()
                .map(|host| host.0)
                .collect(),
            library: file.library.unwrap_or(hub),
        };
        Some(Mirror {
            name: Arc::clone(&names.mirror),
            names,
            url,
            alternatives: file
                .alternatives
                .unwrap_or_default()
                .into_iter()
                .map(|url| url.0)
                .collect(),
            default: file.default.unwrap_or(false),
            credentials,
            fresh_for,
            stale_if_error,
            not_found_for,
        })
    }

    fn freshness(&mut self, keys: &[&str; 3], tags: &TagsFile) -> (Duration, Duration, Duration) {
        let [mirrors, name, section] = *keys;
        let bounds = || Duration::ZERO..=DAY * 3650;
        let minutes = |count: u64| Duration::from_secs(count * 60);
        (
            self.duration(
                &[mirrors, name, section, "fresh_for"],
                tags.fresh_for.as_ref(),
                minutes(10),
                bounds(),
            ),
            self.duration(
                &[mirrors, name, section, "stale_if_error"],
                tags.stale_if_error.as_ref(),
                DAY * 7,
                bounds(),
            ),
            self.duration(
                &[mirrors, name, section, "not_found_for"],
                tags.not_found_for.as_ref(),
                Duration::from_secs(30),
                bounds(),
            ),
        )
    }

    fn credentials(&mut self, mirror: &str, file: CredentialsFile) -> Option<Credentials> {
        let keys = ["mirrors", mirror, "credentials", "password"];
        let password = self.secret(&keys, &file.password?);
        let username = file.username?;
        // RFC 7617: the first colon ends the user name.
        if username.is_empty() || username.contains(':') {
            self.refuse(
                &["mirrors", mirror, "credentials", "username"],
                "a user name is not empty and holds no colon",
                None,
            );
        }
        Some(Credentials {
            username,
            password: password?,
        })
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

    /// Whether every hosted pattern can match, and the default mirror can be reached.
    fn hosted(&mut self, hosted: &Hosted, mirrors: &[Mirror]) {
        for (index, pattern) in hosted.names.iter().enumerate() {
            let keys = ["hosted", "names", &index.to_string()];
            if let Some(mirror) = mirrors
                .iter()
                .find(|mirror| covers(&mirror.names.prefix, pattern))
            {
                let message = format!(
                    "never matches: such names belong to mirror `{}`",
                    mirror.name
                );
                self.refuse(&keys, message, None);
            }
            let default = mirrors.iter().find(|mirror| mirror.default);
            if let (Some(default), "**") = (default, pattern.as_str()) {
                let message = format!(
                    "covers every name, so the default mirror `{}` would never be asked",
                    default.name
                );
                let hint = "name what is pushed here, such as \"apps/**\", or take `default` from the mirror".to_owned();
                self.refuse(&keys, message, hint);
            }
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
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether every name the pattern matches lies below the prefix, or is the prefix itself.
fn covers(prefix: &RepositoryName, pattern: &Glob) -> bool {
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
