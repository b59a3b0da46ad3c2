//! How a mirror's upstream is reached: account, TLS, proxy, limits.
//!
//! Owns their defaults and mistakes of meaning. Builds a client once where TLS or a proxy is configured, so that a certificate
//! without its key is said by `gantry check`; a client sends nothing until it is asked.

use std::{collections::BTreeMap, ffi::OsString, path::Path, time::Duration};

use gantry_plugin_host::Secret;
use gantry_upstream::{
    BuildError, ClientSettings, CredentialSource, Credentials, Helper, Proxy, RegistryClient, Tls,
};
use http::{HeaderName, HeaderValue};
use url::Url;
use zeroize::Zeroizing;

use super::Context;
use crate::config::{
    file::{
        CredentialsFile, HeaderEntry, MirrorFile, ProxyEntry, ProxyFile, TlsMinimum,
        UpstreamLimitsFile, UpstreamTlsFile,
    },
    text::ProxyText,
};

/// What docker's helpers know Docker Hub as.
const HUB_SERVER: &str = "https://index.docker.io/v1/";
/// Variables a credential helper sees without being told.
const HELPER_VARIABLES: [&str; 2] = ["PATH", "HOME"];
/// Headers that a request to an upstream has anyway, or that would change what it means.
const OWN_HEADERS: [&str; 16] = [
    "accept",
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];
/// Longest file of certificates.
const MAX_PEM_BYTES: usize = 1 << 20;

/// Where an upstream is, as far as the mirror's names have settled it.
pub(super) struct Place<'a> {
    pub(super) mirror: &'a str,
    pub(super) url: Url,
    pub(super) is_hub: bool,
}

impl Context<'_> {
    /// The settings of a mirror's client.
    pub(super) fn upstream(&mut self, place: &Place<'_>, file: &mut MirrorFile) -> ClientSettings {
        let limits = file.limits.take().unwrap_or_default();
        let credentials = file.credentials.take();
        let tls = file.tls.take();
        let proxy = file.proxy.take();
        let is_special = tls.is_some() || proxy.is_some();
        let alternatives = file.alternatives.take().unwrap_or_default();
        let realms = file.token_realms.take().unwrap_or_default();
        let headers = file.headers.take().unwrap_or_default();
        let settings = ClientSettings {
            name: place.mirror.to_owned(),
            url: place.url.clone(),
            alternatives: alternatives.into_iter().map(|url| url.0).collect(),
            credentials: credentials.and_then(|written| self.credentials(place, written)),
            token_realms: realms.into_iter().map(|url| url.0).collect(),
            headers: self.headers(place.mirror, headers),
            tls: self.upstream_tls(place.mirror, tls.unwrap_or_default()),
            proxy: proxy.and_then(|written| self.proxy(place.mirror, written)),
            ..self.upstream_limits(place, &limits)
        };
        if is_special && self.findings.is_empty() {
            self.try_client(place.mirror, &settings);
        }
        settings
    }

    fn upstream_limits(&mut self, place: &Place<'_>, file: &UpstreamLimitsFile) -> ClientSettings {
        let mut duration = |key, written, default, most| {
            let keys = ["mirrors", place.mirror, "limits", key];
            let bounds = Duration::from_millis(100)..=Duration::from_secs(most);
            self.duration(&keys, written, Duration::from_secs(default), bounds)
        };
        ClientSettings {
            name: place.mirror.to_owned(),
            url: place.url.clone(),
            alternatives: Vec::new(),
            credentials: None,
            token_realms: Vec::new(),
            headers: Vec::new(),
            connect_timeout: duration("connect_timeout", file.connect_timeout.as_ref(), 10, 300),
            idle_timeout: duration("silence_timeout", file.silence_timeout.as_ref(), 30, 3600),
            minimum_rate: file.slowest_rate.as_ref().map_or(1 << 10, |rate| rate.0),
            max_concurrency: file.concurrency.unwrap_or(64) as usize,
            queue_timeout: duration("queue_timeout", file.queue_timeout.as_ref(), 30, 3600),
            requests_per_second: file.requests_per_second,
            tls: Tls::default(),
            proxy: None,
            user_agent: concat!("gantry/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    fn headers(
        &mut self,
        mirror: &str,
        written: BTreeMap<String, HeaderEntry>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, entry) in written {
            let keys = ["mirrors", mirror, "headers", &name];
            let value = match &entry {
                HeaderEntry::Text(text) => Zeroizing::new(text.clone()),
                HeaderEntry::Secret(file) => match self.secret(&keys, file) {
                    Some(secret) => text(&secret),
                    None => continue,
                },
            };
            let Ok(parsed) = name.parse::<HeaderName>() else {
                self.refuse(&keys, "not the name of a header", None);
                continue;
            };
            if OWN_HEADERS.contains(&parsed.as_str()) {
                let message = "this header is Gantry's own";
                let hint = match parsed.as_str() {
                    "authorization" => Some("an account is `credentials`".to_owned()),
                    _ => None,
                };
                self.refuse(&keys, message, hint);
                continue;
            }
            let Ok(mut value) = HeaderValue::from_str(&value) else {
                self.refuse(&keys, "not the value of a header", None);
                continue;
            };
            value.set_sensitive(true);
            headers.push((parsed, value));
        }
        headers
    }

    /// Says which address was meant where one is written that is known to be no registry.
    pub(super) fn known_mistake(&mut self, keys: &[&str], url: &Url, is_library: bool) {
        if let Some((message, hint)) = mistake(url, is_library) {
            self.refuse(keys, message, hint.to_owned());
        }
    }

    // --- who we are ---

    fn credentials(
        &mut self,
        place: &Place<'_>,
        file: CredentialsFile,
    ) -> Option<CredentialSource> {
        let at = |key| ["mirrors", place.mirror, "credentials", key];
        let is_account = file.username.is_some() || file.password.is_some();
        let others = [
            file.identity_token.is_some(),
            file.helper.is_some(),
            file.exec.is_some(),
        ];
        let given = others.iter().filter(|given| **given).count() + usize::from(is_account);
        if given != 1 {
            let message = "exactly one of `username` with `password`, `identity_token`, `helper` and `exec` is expected here";
            self.refuse_once(&["mirrors", place.mirror, "credentials"], message);
            return None;
        }
        if file.helper.is_some() || file.exec.is_some() {
            return self.helper(place, file).map(CredentialSource::Helper);
        }
        self.refuse_helper_keys(place.mirror, &file);
        if let Some(written) = &file.identity_token {
            let token = self.secret(&at("identity_token"), written)?;
            return Some(Credentials::identity_token(text(&token)).into());
        }
        let Some(username) = file.username else {
            self.refuse_missing(&at("username"));
            return None;
        };
        let Some(password) = &file.password else {
            self.refuse_missing(&at("password"));
            return None;
        };
        let password = self.secret(&at("password"), password);
        // RFC 7617: the first colon ends the user name.
        if username.is_empty() || username.contains(':') {
            let message = "a user name is not empty and holds no colon";
            self.refuse(&at("username"), message, None);
        }
        let password = text(&password?);
        Some(Credentials { username, password }.into())
    }

    fn refuse_helper_keys(&mut self, mirror: &str, file: &CredentialsFile) {
        let given = [
            ("server", file.server.is_some()),
            ("pass_environment", file.pass_environment.is_some()),
            ("timeout", file.timeout.is_some()),
            ("refresh", file.refresh.is_some()),
        ];
        for (key, _) in given.iter().filter(|(_, is_given)| *is_given) {
            let keys = ["mirrors", mirror, "credentials", key];
            self.refuse(&keys, "only with `helper` or `exec`", None);
        }
    }

    fn helper(&mut self, place: &Place<'_>, file: CredentialsFile) -> Option<Helper> {
        let at = |key| ["mirrors", place.mirror, "credentials", key];
        let (key, program, arguments) = match (file.helper, file.exec) {
            (Some(name), _) => (
                "helper",
                OsString::from(format!("docker-credential-{}", name.0)),
                vec!["get".into()],
            ),
            (None, exec) => {
                let mut words = exec.unwrap_or_default().into_iter();
                let Some(program) = words.next() else {
                    let message = "a program and its arguments are expected here";
                    self.refuse(&at("exec"), message, None);
                    return None;
                };
                let program = match program.contains('/') {
                    true => self.path(&program).into_os_string(),
                    false => program.into(),
                };
                ("exec", program, words.map(OsString::from).collect())
            }
        };
        let environment = self.helper_environment(&file.pass_environment.unwrap_or_default());
        if !is_program(&program, &environment) {
            let message = "there is no such program";
            let hint = format!("looked for {}", Path::new(&program).display());
            self.refuse(&at(key), message, hint);
        }
        let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
        let (timeout, refresh) = (file.timeout.as_ref(), file.refresh.as_ref());
        Some(Helper {
            program,
            arguments,
            server: file.server.unwrap_or_else(|| server(place)),
            environment,
            timeout: self.duration(
                &at("timeout"),
                timeout,
                Duration::from_secs(10),
                seconds(1, 300),
            ),
            refresh: self.duration(
                &at("refresh"),
                refresh,
                Duration::from_secs(900),
                seconds(1, 604_800),
            ),
        })
    }

    fn helper_environment(&self, passed: &[String]) -> Vec<(OsString, OsString)> {
        let names = HELPER_VARIABLES.iter().copied();
        let names = names.chain(passed.iter().map(String::as_str));
        names
            .filter_map(|name| Some((name.into(), self.environment.get(name)?.into())))
            .collect()
    }

    // --- TLS and proxies ---

    fn upstream_tls(&mut self, mirror: &str, file: UpstreamTlsFile) -> Tls {
        let keys = ["mirrors", mirror, "tls"];
        let alone = match (&file.certificate, &file.key) {
            (Some(_), None) => Some("key"),
            (None, Some(_)) => Some("certificate"),
            _ => None,
        };
        if let Some(missing) = alone {
            let message = format!("missing key `{missing}`");
            self.refuse(&[&keys[..], &[missing]].concat(), message, None);
        }
        let roots = self.pem_text(&keys, "ca", file.ca, "CERTIFICATE");
        let certificate = self.pem_text(&keys, "certificate", file.certificate, "CERTIFICATE");
        let key = self.pem_text(&keys, "key", file.key, "PRIVATE KEY");
        let identity = certificate.zip(key).map(|(certificate, key)| {
            let whole = [certificate.as_bytes(), b"\n", key.as_bytes()].concat();
            Zeroizing::new(whole)
        });
        Tls {
            roots: roots.map(|roots| roots.as_bytes().to_vec()),
            identity,
            only_1_3: matches!(file.minimum, Some(TlsMinimum::Tls13)),
        }
    }

    fn pem_text(
        &mut self,
        keys: &[&str],
        key: &str,
        written: Option<String>,
        kind: &str,
    ) -> Option<Zeroizing<String>> {
        let path = self.pem(keys, key, written, kind)?;
        let keys = [keys, &[key]].concat();
        self.text(&keys, &path, MAX_PEM_BYTES).map(Zeroizing::new)
    }

    fn proxy(&mut self, mirror: &str, entry: ProxyEntry) -> Option<Proxy> {
        let file = match entry {
            ProxyEntry::Text(ProxyText(None)) => return Some(self.environment_proxy(mirror)),
            ProxyEntry::Text(ProxyText(Some(url))) => return Some(both(url, String::new())),
            ProxyEntry::Full(file) => file,
        };
        let ProxyFile {
            url,
            username,
            password,
            bypass,
        } = file;
        let mut url = url?.0;
        let at = |key| ["mirrors", mirror, "proxy", key];
        let password = password.and_then(|written| self.secret(&at("password"), &written));
        match (&username, &password) {
            (None, Some(_)) => self.refuse(&at("username"), "missing key `username`", None),
            (Some(username), password) => {
                // Setting them fails only for URLs without a host.
                let password = password.as_ref().map(text);
                let password = password.as_ref().map(|password| password.as_str());
                if url.set_username(username).is_err() || url.set_password(password).is_err() {
                    self.refuse(&at("url"), "not a proxy's URL", None);
                }
            }
            (None, None) => {}
        }
        let bypass = bypass.unwrap_or_default().into_iter().map(|host| host.0);
        let bypass: Vec<String> = bypass.collect();
        Some(both(url, bypass.join(",")))
    }

    /// The proxies of the environment, small letters first, as curl and everybody after it read them.
    fn environment_proxy(&mut self, mirror: &str) -> Proxy {
        let https = self.environment_url(mirror, ["https_proxy", "HTTPS_PROXY"]);
        let http = self.environment_url(mirror, ["http_proxy", "HTTP_PROXY"]);
        let all = self.environment_url(mirror, ["all_proxy", "ALL_PROXY"]);
        let bypass = self.variable(["no_proxy", "NO_PROXY"]);
        Proxy {
            https: https.or_else(|| all.clone()),
            http: http.or(all),
            bypass: bypass.unwrap_or_default().1,
        }
    }

    fn environment_url(&mut self, mirror: &str, names: [&str; 2]) -> Option<Url> {
        let (name, value) = self.variable(names)?;
        let written = match value.contains("://") {
            true => value,
            false => format!("http://{value}"),
        };
        let url = Url::parse(&written).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            // The value may hold a password.
            let message = format!("the environment variable {name} is not an http or https URL");
            self.refuse(&["mirrors", mirror, "proxy"], message, None);
        }
        url
    }

    fn variable(&self, names: [&str; 2]) -> Option<(String, String)> {
        let found = names
            .iter()
            .find_map(|name| Some((name, self.environment.get(*name)?)));
        let (name, value) = found.filter(|(_, value)| !value.is_empty())?;
        Some(((*name).to_owned(), value.clone()))
    }

    fn try_client(&mut self, mirror: &str, settings: &ClientSettings) {
        let Err(error) = RegistryClient::new(settings.clone()) else {
            return;
        };
        let key = match error {
            BuildError::Url | BuildError::Client(_) => "url",
            BuildError::Proxy => "proxy",
            BuildError::Identity(_) | BuildError::RootCertificates(_) => "tls",
        };
        self.refuse(&["mirrors", mirror, key], error.to_string(), None);
    }
}

fn both(url: Url, bypass: String) -> Proxy {
    Proxy {
        https: Some(url.clone()),
        http: Some(url),
        bypass,
    }
}

fn text(secret: &Secret) -> Zeroizing<String> {
    Zeroizing::new(String::from_utf8_lossy(&secret.0).into_owned())
}

/// Why a URL is no registry's, and what was meant.
fn mistake(url: &Url, is_library: bool) -> Option<(&'static str, &'static str)> {
    let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
    let path = url.path().trim_matches('/');
    let is_hub = matches!(
        &*host,
        "registry-1.docker.io" | "index.docker.io" | "registry.hub.docker.com"
    );
    if is_hub {
        return hub_mistake(url.scheme(), path, is_library);
    }
    let first = path.split('/').next().unwrap_or_default();
    match (&*host, first) {
        ("docker.io" | "www.docker.io" | "docker.com" | "www.docker.com", _) => {
            Some(("this is Docker's web site, and no registry", HUB))
        }
        ("hub.docker.com", _) => Some(("this is Docker Hub's web site, and no registry", HUB)),
        ("auth.docker.io", _) => {
            Some(("this is Docker Hub's token endpoint, and no registry", HUB))
        }
        ("registry.docker.io" | "registry.docker.com", _) => {
            Some(("Docker Hub's registry has another name", HUB))
        }
        ("quay.io" | "www.quay.io", "repository" | "organization" | "user" | "search") => Some((
            "this is a page of quay.io's web site, and no registry",
            "write https://quay.io",
        )),
        ("github.com" | "www.github.com", _) => Some((
            "this is GitHub's web site, and no registry",
            "write https://ghcr.io",
        )),
        ("gitlab.com" | "www.gitlab.com", _) => Some((
            "this is GitLab's web site, and no registry",
            "write https://registry.gitlab.com",
        )),
        (_, "harbor") => Some((
            "this is a page of Harbor's web site, and no registry",
            "leave the path out",
        )),
        (_, "v1") => Some((
            "this is the first version of the registry protocol, which Gantry does not speak",
            "leave the path out",
        )),
        _ => None,
    }
}

const HUB: &str = "write https://registry-1.docker.io";

/// What is wrong with a URL of Docker Hub's registry.
fn hub_mistake(scheme: &str, path: &str, is_library: bool) -> Option<(&'static str, &'static str)> {
    if scheme == "http" {
        return Some(("Docker Hub answers over https only", HUB));
    }
    match path.split('/').next() {
        Some("v1") => Some((
            "this is the name that docker's password files have for Docker Hub, and no registry",
            HUB,
        )),
        Some("library") => Some((
            "`library` is the first part of names such as library/alpine, and no part of the URL",
            HUB,
        )),
        Some("v2") if path == "v2/library" && is_library => Some((
            "`library` would be in front of every name twice",
            "write https://registry-1.docker.io, or set `library: false`",
        )),
        _ => None,
    }
}

/// What a helper knows the upstream as.
fn server(place: &Place<'_>) -> String {
    if place.is_hub {
        HUB_SERVER.to_owned()
    } else {
        super::mirrors::authority(&place.url)
    }
}

/// Whether there is a file to run, found as the system would.
fn is_program(program: &OsString, environment: &[(OsString, OsString)]) -> bool {
    let program = Path::new(program);
    if program.is_absolute() {
        return program.is_file();
    }
    let path = environment.iter().find(|(name, _)| name == "PATH");
    let folders = path
        .into_iter()
        .flat_map(|(_, value)| std::env::split_paths(value));
    folders
        .map(|folder| folder.join(program))
        .any(|file| file.is_file())
}
