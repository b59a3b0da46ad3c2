//! The written configuration → the valid one: defaults, paths, files, secrets, and every mistake of meaning.
//!
//! Owns the sections that are small; `resolve/mirrors.rs`, `resolve/upstream.rs` and `resolve/plugins.rs` own those that are not. A section with a
//! mistake still yields a value, so that the others are checked too; the value is thrown away with the report.

mod callers;
mod http;
mod listen;
mod mirrors;
mod plugins;
mod upstream;

use std::{
    io::Read,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use gantry_model::manifest::{MAX_ANNOTATION_BYTES, MAX_MANIFEST_BYTES};
use gantry_plugin_host::Secret;

pub(crate) use self::listen::admin_address;
use super::{
    Amplification, AuditTo, BlobStorage, Config, Environment, Hosted, Limits, Log, LogFormat,
    MetadataStorage, Otlp, Report, Storage, Tokens, Warnings, check, environment,
    file::{
        AuditFile, ConfigFile, DeniedDownloadsText, EventsFile, LimitsFile, LogFormatText,
        PullsEntry, PullsSampled, PullsText, SecretFile, SizeEntry, StorageFile, TokensFile,
    },
    report::{Finding, Place},
    text::DurationText,
    tree::{self, Node},
};
use crate::{
    events::{EventSettings, Pulls},
    files,
};

/// What a file that a plugin's configuration names, and that is not there, means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum MissingFiles {
    /// A mistake.
    AreMistakes,
    /// An empty text: the quickstart's password file is made at first start.
    AreEmpty,
}

/// Longest file of a secret.
const MAX_SECRET_BYTES: usize = 64 << 10;

/// All of the way from text to [`Config`].
pub(crate) fn config(
    name: &str,
    text: &str,
    folder: &Path,
    environment: &Environment,
    missing_files: MissingFiles,
) -> Result<Config, Report> {
    let parsed = tree::parse(text);
    let mut findings = parsed.findings;
    let Some(mut root) = parsed.root else {
        return Err(Report::new(name, text, parsed.masks, findings));
    };
    let mut warnings = Vec::new();
    environment::apply(&mut root, environment, &mut findings, &mut warnings);
    let root = check::check(root, &mut findings);
    let mut context = Context {
        root: &root,
        folder: absolute(folder),
        environment,
        missing_files,
        findings,
        warnings,
        files: Vec::new(),
    };
    let config = match serde_json::from_value(root.to_json()) {
        Ok(file) => Some(context.resolve(file)),
        Err(error) => {
            // Only if check and types disagree. The error's own text may hold a value.
            let message = format!("not understood ({:?})", error.classify());
            context
                .findings
                .push(Finding::new(Place::Nowhere, "", message));
            None
        }
    };
    let Context {
        findings,
        warnings,
        files,
        ..
    } = context;
    match config {
        Some(config) if findings.is_empty() => {
            let Report { file, problems, .. } = Report::new(name, text, parsed.masks, warnings);
            let warnings = Warnings { file, problems };
            Ok(Config {
                files,
                warnings,
                ..config
            })
        }
        _ => Err(Report {
            files,
            ..Report::new(name, text, parsed.masks, findings)
        }),
    }
}

/// What every section needs.
struct Context<'a> {
    /// What was written and fits the schema.
    root: &'a Node,
    folder: PathBuf,
    environment: &'a Environment,
    missing_files: MissingFiles,
    findings: Vec<Finding>,
    /// What is legal and probably not meant.
    warnings: Vec<Finding>,
    /// What was read or looked for.
    files: Vec<PathBuf>,
}

impl Context<'_> {
    fn resolve(&mut self, file: ConfigFile) -> Config {
        let storage = self.storage(file.storage.unwrap_or_default());
        let listen = self.listen(file.listen);
        let (admin, admin_hosts) = self.admin(file.admin, &listen);
        let hosted = file.hosted.unwrap_or_default();
        let hosted = Hosted {
            names: hosted
                .names
                .unwrap_or_default()
                .into_iter()
                .map(|name| name.0)
                .collect(),
            or_upstream: hosted
                .or_upstream
                .unwrap_or_default()
                .into_iter()
                .map(|name| name.0)
                .collect(),
            delete: hosted.delete.unwrap_or(true),
        };
        let mirrors = self.mirrors(file.mirrors.unwrap_or_default(), &hosted);
        self.listeners_of(&mirrors, &listen);
        let log = file.log.unwrap_or_default();
        let otlp = file.telemetry.unwrap_or_default().otlp;
        Config {
            listen,
            admin,
            admin_hosts,
            external_url: self.external_url(file.external_url),
            http: self.http(file.http.unwrap_or_default()),
            trusted_proxies: file
                .trusted_proxies
                .unwrap_or_default()
                .into_iter()
                .map(|network| network.0)
                .collect(),
            hosted,
            mirrors,
            plugins: self.plugins(file.plugins),
            tokens: self.tokens(file.tokens.unwrap_or_default(), storage.blobs.folder()),
            limits: self.limits(&file.limits.unwrap_or_default()),
            events: self.events(&file.events.unwrap_or_default()),
            log: Log {
                format: match log.format {
                    Some(LogFormatText::Json) => LogFormat::Json,
                    Some(LogFormatText::Human) | None => LogFormat::Human,
                },
                level: log.level.map_or_else(|| "info".to_owned(), |level| level.0),
            },
            audit: self.audit(file.audit.unwrap_or_default()),
            otlp: otlp.and_then(|otlp| {
                Some(Otlp {
                    endpoint: otlp.endpoint?.0,
                    one_in: otlp.one_in.unwrap_or(1),
                })
            }),
            storage,
            // Known when every section has been read.
            files: Vec::new(),
            warnings: Warnings::default(),
        }
    }

    fn audit(&mut self, file: AuditFile) -> Option<AuditTo> {
        let written = file.file?;
        if written == "stdout" {
            return Some(AuditTo::Stdout);
        }
        let path = self.path(&written);
        if path.is_dir() {
            self.refuse(&["audit", "file"], "a folder, not a file", None);
        }
        Some(AuditTo::File(path))
    }

    fn storage(&mut self, file: StorageFile) -> Storage {
        let blobs = file.blobs.and_then(|blobs| blobs.filesystem);
        let folder = self.path(&blobs.unwrap_or_else(|| "data".to_owned()));
        if folder.exists() && !folder.is_dir() {
            self.refuse(&["storage", "blobs", "filesystem"], "not a folder", None);
        }
        let database = match file.metadata.and_then(|metadata| metadata.sqlite) {
            Some(path) => self.path(&path),
            None => folder.join("gantry.db"),
        };
        if database.is_dir() {
            self.refuse(
                &["storage", "metadata", "sqlite"],
                "a folder, not a file",
                None,
            );
        }
        Storage {
            blobs: BlobStorage::Filesystem(folder),
            metadata: MetadataStorage::Sqlite(database),
            adopt_as_hosted: file.adopt.is_some(),
        }
    }

    fn tokens(&mut self, file: TokensFile, data: &Path) -> Tokens {
        let issuer = file.issuer.unwrap_or_else(|| "gantry".to_owned());
        if issuer.is_empty() {
            self.refuse(&["tokens", "issuer"], "an empty text", None);
        }
        let keys = file
            .keys
            .map_or_else(|| data.join("keys"), |path| self.path(&path));
        if keys.is_file() {
            self.refuse(&["tokens", "keys"], "a file, not a folder", None);
        }
        let bounds = Duration::from_secs(60)..=Duration::from_secs(24 * 60 * 60);
        Tokens {
            issuer,
            keys,
            lifetime: self.duration(
                &["tokens", "lifetime"],
                file.lifetime.as_ref(),
                Duration::from_secs(300),
                bounds,
            ),
        }
    }

    fn events(&mut self, file: &EventsFile) -> EventSettings {
        let default = EventSettings::default();
        let whole_day = Duration::from_secs(86_400);
        EventSettings {
            pulls: match file.pulls {
                None | Some(PullsEntry::Word(PullsText::Off)) => Pulls::Off,
                Some(PullsEntry::Word(PullsText::All)) => Pulls::All,
                Some(PullsEntry::Sampled(PullsSampled { one_of })) => {
                    Pulls::Sample(1.0 / f64::from(one_of.max(1)))
                }
            },
            max_events: file.max_events.map_or(default.max_events, u64::from),
            max_bytes: self
                .size(
                    &["events", "max_size"],
                    file.max_size.as_ref(),
                    1 << 20..=u64::MAX,
                )
                .unwrap_or(default.max_bytes),
            max_attempts: file.max_attempts.unwrap_or(default.max_attempts),
            max_age: self.duration(
                &["events", "max_age"],
                file.max_age.as_ref(),
                default.max_age,
                Duration::from_secs(60)..=whole_day * 365,
            ),
        }
    }

    fn limits(&mut self, file: &LimitsFile) -> Limits {
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let default = Duration::from_secs;
        let manifest = MAX_MANIFEST_BYTES as u64;
        Limits {
            max_manifest_bytes: self
                .size(
                    &["limits", "manifest"],
                    file.manifest.as_ref(),
                    64 << 10..=manifest,
                )
                .unwrap_or(manifest),
            max_annotation_bytes: self
                .size(
                    &["limits", "annotations"],
                    file.annotations.as_ref(),
                    64 << 10..=manifest,
                )
                .unwrap_or(MAX_ANNOTATION_BYTES as u64),
            max_blob_bytes: self.size(&["limits", "blob"], file.blob.as_ref(), 1 << 20..=u64::MAX),
            uploads_per_client: file.uploads_per_client.unwrap_or(256),
            header_timeout: self.duration(
                &["limits", "header_timeout"],
                file.header_timeout.as_ref(),
                default(10),
                seconds(1, 300),
            ),
            idle_timeout: self.duration(
                &["limits", "idle_timeout"],
                file.idle_timeout.as_ref(),
                default(120),
                seconds(1, 86_400),
            ),
            minimum_rate: file.minimum_rate.as_ref().map_or(1 << 10, |rate| rate.0),
            max_connections: file.connections.unwrap_or(10_000) as usize,
            decision_deadline: self.duration(
                &["limits", "decision_deadline"],
                file.decision_deadline.as_ref(),
                default(5),
                seconds(1, 120),
            ),
            ends_denied_downloads: !matches!(
                file.denied_downloads,
                Some(DeniedDownloadsText::Keep)
            ),
            drain_timeout: self.duration(
                &["limits", "drain_timeout"],
                file.drain_timeout.as_ref(),
                default(30),
                seconds(0, 86_400),
            ),
            upstream: Amplification {
                derived_requests: file.derived_requests.unwrap_or(64),
                prefetched_blobs: file.prefetched_blobs.unwrap_or(64) as usize,
                scope_confirmations: file.scope_confirmations.unwrap_or(8) as usize,
                not_found_per_address: file.not_found_per_address.unwrap_or(600),
                not_found_per_repository: file.not_found_per_repository.unwrap_or(60),
            },
        }
    }

    /// A mistake at the nearest written place on the way to `keys`.
    fn refuse(
        &mut self,
        keys: &[&str],
        message: impl Into<String>,
        hint: impl Into<Option<String>>,
    ) {
        let mut node = self.root;
        let mut path = String::new();
        for key in keys {
            path = node.path_of(key);
            let Some(child) = node.get(key) else {
                break;
            };
            node = child;
            path.clone_from(&node.path);
        }
        self.findings
            .push(Finding::new(node.place.clone(), &path, message).hint(hint));
    }

    /// A required key is not there. Nothing is said when what was written there is refused already.
    fn refuse_missing(&mut self, keys: &[&str]) {
        let key = keys.last().copied().unwrap_or_default();
        self.refuse_once(keys, format!("missing key `{key}`"));
    }

    /// Says it only when nothing is said yet about the place or what is in it: a value that was refused is not there any more.
    fn refuse_once(&mut self, keys: &[&str], message: impl Into<String>) {
        let said = self.findings.len();
        self.refuse(keys, message, None);
        let (before, now) = self.findings.split_at(said);
        let covers = |now: &Finding, before: &Finding| {
            let rest = before.path.strip_prefix(&*now.path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let again = now
            .first()
            .is_some_and(|now| before.iter().any(|before| covers(now, before)));
        if again {
            self.findings.truncate(said);
        }
    }

    fn duration(
        &mut self,
        keys: &[&str],
        written: Option<&DurationText>,
        default: Duration,
        bounds: RangeInclusive<Duration>,
    ) -> Duration {
        let Some(written) = written else {
            return default;
        };
        if !bounds.contains(&written.0) {
            let message = format!(
                "between {} and {} is expected here",
                words(*bounds.start()),
                words(*bounds.end())
            );
            self.refuse(keys, message, None);
        }
        written.0
    }

    fn size(
        &mut self,
        keys: &[&str],
        written: Option<&SizeEntry>,
        bounds: RangeInclusive<u64>,
    ) -> Option<u64> {
        let bytes = written?.bytes();
        let unit = |bytes: u64| match bytes {
            bytes if bytes >= 1 << 20 => format!("{}MiB", bytes >> 20),
            bytes => format!("{}KiB", bytes >> 10),
        };
        if bytes < *bounds.start() {
            self.refuse(
                keys,
                format!("at least {} is expected here", unit(*bounds.start())),
                None,
            );
        } else if bytes > *bounds.end() {
            self.refuse(
                keys,
                format!("at most {} is expected here", unit(*bounds.end())),
                None,
            );
        }
        Some(bytes)
    }

    /// A written path, from the file's folder.
    fn path(&self, written: &str) -> PathBuf {
        // Components again, so that `./data` reads `data` in messages and logs.
        self.folder.join(written).components().collect()
    }

    /// A file that must be readable, as text.
    fn text(&mut self, keys: &[&str], path: &Path, limit: usize) -> Option<String> {
        self.files.push(path.to_owned());
        match read_text(path, limit) {
            Ok(text) => Some(text),
            Err(reason) => {
                self.unreadable(keys, path, &reason);
                None
            }
        }
    }

    /// A written file that cannot be read.
    fn unreadable(&mut self, keys: &[&str], path: &Path, reason: &str) {
        let written = keys.iter().try_fold(self.root, |node, key| node.get(key));
        // A path from the environment is a value, and no message shows those.
        let hint = match written.map(|node| &node.place) {
            Some(Place::File { .. }) => Some(format!("looked for {}", path.display())),
            _ => None,
        };
        self.refuse(keys, format!("cannot read the file: {reason}"), hint);
    }

    /// A secret's bytes; `None` is already reported.
    fn secret(&mut self, keys: &[&str], file: &SecretFile) -> Option<Secret> {
        let mut bytes = match (&file.file, &file.env) {
            (Some(path), None) => {
                let keys = [keys, &["file"]].concat();
                let path = self.path(path);
                self.text(&keys, &path, MAX_SECRET_BYTES)?
            }
            (None, Some(variable)) => {
                let keys = [keys, &["env"]].concat();
                let Some(value) = self.environment.get(variable) else {
                    self.refuse(&keys, "the environment variable is not set", None);
                    return None;
                };
                value.clone()
            }
            _ => return None,
        };
        if bytes.ends_with('\n') {
            bytes.pop();
            if bytes.ends_with('\r') {
                bytes.pop();
            }
        }
        if bytes.is_empty() {
            self.refuse(keys, "the secret is empty", None);
            return None;
        }
        Some(Secret(Arc::from(bytes.into_bytes())))
    }
}

/// Reads a text of at most `limit` bytes. The error is for people and holds nothing of the content.
pub(crate) fn read_text(path: &Path, limit: usize) -> Result<String, String> {
    let file = files::open(path).map_err(|error| reason(&error))?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| reason(&error))?;
    if bytes.len() > limit {
        return Err(format!("it is longer than {limit} bytes"));
    }
    String::from_utf8(bytes).map_err(|_malformed| "it is not UTF-8 text".to_owned())
}

/// The system's words without its number.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "it does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::Other => error.to_string(),
        kind => kind.to_string(),
    }
}

fn absolute(folder: &Path) -> PathBuf {
    std::path::absolute(if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    })
    .unwrap_or_else(|_no_working_directory| folder.to_owned())
}

fn words(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    match milliseconds {
        0 => "0s".to_owned(),
        whole if whole % 86_400_000 == 0 => format!("{}d", whole / 86_400_000),
        whole if whole % 3_600_000 == 0 => format!("{}h", whole / 3_600_000),
        whole if whole % 60_000 == 0 => format!("{}m", whole / 60_000),
        whole if whole % 1_000 == 0 => format!("{}s", whole / 1_000),
        whole => format!("{whole}ms"),
    }
}
