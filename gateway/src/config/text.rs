//! What a scalar of gantry.yaml may say: durations, sizes, addresses, URLs, globs, names.
//!
//! Owns each grammar once: the JSON Schema names it by `format`, the check of the written tree and serde both call the same
//! function here. Messages never repeat the text they refuse: it may come from the environment.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use gantry_model::{Change, RepositoryName, glob::Glob};
use gantry_plugin_host::HttpGrant;
use url::Url;

use super::{ListenAddress, Network, suggest};
use crate::{auth::ids::IdPattern, builtin};

/// Why a text is refused, in words for the operator.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The text itself must not be shown, not even as a quotation of the file.
    pub(crate) secret: bool,
}

impl Refusal {
    fn new(message: &str) -> Self {
        Self {
            message: message.to_owned(),
            hint: None,
            secret: false,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

/// Declares a text with a grammar: serde by `$parse`, the schema by `format`.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal, $parse:path, $description:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, serde::Deserialize)]
        #[serde(try_from = "String")]
        pub(crate) struct $name(pub(crate) $inner);

        impl TryFrom<String> for $name {
            type Error = Refusal;

            fn try_from(text: String) -> Result<Self, Refusal> {
                $parse(&text).map(Self)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "format": $format, "description": $description })
            }
        }
    };
}

text!(
    /// `250ms`, `10m`, `1h30m`, `7d`.
    DurationText(Duration), "duration", duration, "A duration such as 250ms, 10s, 10m, 1h30m or 7d."
);
text!(
    /// `4MiB`, or bytes.
    SizeString(u64), "size", size, "A size such as 4KiB, 64MiB or 2GB."
);
text!(
    /// `1KiB/s`.
    RateText(u64), "rate", rate, "A rate such as 1KiB/s."
);
text!(
    /// A pattern over repository names.
    GlobText(Glob), "glob", glob, "A glob: `*` within a path segment, `**` across segments, `?`, `[a-z]`, `{one,two}`."
);
text!(
    /// `IP:PORT` or `unix:/path`.
    ListenText(ListenAddress), "listen-address", listen_address, "IP:PORT, [IPv6]:PORT or unix:/path/to/socket."
);
text!(
    /// `IP:PORT`.
    SocketText(SocketAddr), "socket-address", socket_address, "IP:PORT or [IPv6]:PORT."
);
text!(
    /// An address range.
    NetworkText(Network), "network", network, "An address or a range such as 10.0.0.0/8."
);
text!(
    /// `http(s)://host[:port][/path]`.
    UrlText(Url), "web-url", web_url, "An http or https URL without user name, query and fragment."
);
text!(
    /// A proxy's URL, or `None` for those of the environment.
    ProxyText(Option<Url>), "proxy", proxy, "The URL of a proxy without user name, or `environment`."
);
text!(
    /// What a plugin may call.
    HttpAddress(HttpGrant), "http-grant", http_grant, "An address such as https://hooks.example/in: scheme, host, port and whole segments of the path's beginning."
);
text!(
    /// A repository name, or the first components of some.
    PrefixText(RepositoryName), "repository-name", repository_name, "A repository name: lower-case components joined by /."
);
text!(
    /// `host[:port]`, lower-cased.
    HostText(String), "host", host, "A host name, with a port where it is not the usual one."
);
text!(
    /// The name of a binding.
    BindingName(String), "binding-name", binding_name, "Lower-case letters, digits and dashes; at most 64."
);
text!(
    /// A pattern of principals' ids.
    IdText(IdPattern), "id-pattern", id_pattern, "An id such as user:root, or the beginning of some and a star: user:*."
);
text!(
    /// Where a component comes from.
    FromText(Origin), "plugin-origin", plugin_origin, "builtin:NAME or the path of a .wasm file."
);
text!(
    /// `info`, or tracing directives.
    LevelText(String), "log-level", log_level, "error, warn, info, debug, trace, or directives such as info,gantry=debug."
);

/// Where a component comes from, as written.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// `builtin:NAME`.
    Builtin(String),
    /// Relative to the configuration file's folder.
    File(PathBuf),
    /// `oci://…`.
    Artifact,
}

/// Whether `text` fits the grammar called `format` by the schema; an unknown format fits anything.
pub(crate) fn check(format: &str, text: &str) -> Result<(), Refusal> {
    match format {
        "duration" => duration(text).map(drop),
        "size" => size(text).map(drop),
        "rate" => rate(text).map(drop),
        "glob" => glob(text).map(drop),
        "listen-address" => listen_address(text).map(drop),
        "socket-address" => socket_address(text).map(drop),
        "network" => network(text).map(drop),
        "web-url" => web_url(text).map(drop),
        "proxy" => proxy(text).map(drop),
        "http-grant" => http_grant(text).map(drop),
        "repository-name" => repository_name(text).map(drop),
        "host" => host(text).map(drop),
        "binding-name" => binding_name(text).map(drop),
        "id-pattern" => id_pattern(text).map(drop),
        "plugin-origin" => plugin_origin(text).map(drop),
        "log-level" => log_level(text).map(drop),
        _ => Ok(()),
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, Refusal> {
    let refuse = || Refusal::new("not a duration").hint("write 250ms, 10s, 10m, 1h30m or 7d");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (count, after) = leading_number(rest).ok_or_else(refuse)?;
        let (milliseconds, after) = [
            ("ms", 1),
            ("s", 1_000),
            ("m", 60_000),
            ("h", 3_600_000),
            ("d", 86_400_000),
        ]
        .into_iter()
        .find_map(|(unit, worth)| Some((worth, after.strip_prefix(unit)?)))
        .ok_or_else(refuse)?;
        total = count
            .checked_mul(milliseconds)
            .and_then(|part| total.checked_add(Duration::from_millis(part)))
            .ok_or_else(refuse)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(refuse());
    }
    Ok(total)
}

pub(crate) fn size(text: &str) -> Result<u64, Refusal> {
    let refuse = || Refusal::new("not a size").hint("write 4KiB, 64MiB or 200GiB");
    let (count, unit) = leading_number(text).ok_or_else(refuse)?;
    let worth = match unit.trim_start_matches(' ') {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(refuse()),
    };
    count.checked_mul(worth).ok_or_else(refuse)
}

fn rate(text: &str) -> Result<u64, Refusal> {
    text.strip_suffix("/s")
        .and_then(|size_text| size(size_text).ok())
        .ok_or_else(|| Refusal::new("not a rate").hint("write 1KiB/s"))
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, rest))
}

fn glob(text: &str) -> Result<Glob, Refusal> {
    Glob::parse(text).map_err(|error| Refusal::new(&format!("not a glob: {error}")))
}

fn http_grant(text: &str) -> Result<HttpGrant, Refusal> {
    text.parse().map_err(|error| {
        Refusal::new(&format!("not an address to grant: it {error}"))
            .hint("write https://HOST/PATH-PREFIX or http://HOST:PORT")
    })
}

fn socket_address(text: &str) -> Result<SocketAddr, Refusal> {
    text.parse().map_err(|_malformed| {
        Refusal::new("not an address").hint(
            "write IP:PORT such as 127.0.0.1:5001; all interfaces are 0.0.0.0:PORT or [::]:PORT",
        )
    })
}

fn listen_address(text: &str) -> Result<ListenAddress, Refusal> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(ListenAddress::Unix(path.into())),
        Some(_relative) => {
            Err(Refusal::new("not an absolute path").hint("write unix:/run/gantry.sock"))
        }
        None => socket_address(text).map(ListenAddress::Tcp),
    }
}

fn network(text: &str) -> Result<Network, Refusal> {
    let refuse =
        || Refusal::new("not an address range").hint("write 10.0.0.0/8, 2001:db8::/32 or 10.1.2.3");
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: std::net::IpAddr = address.parse().map_err(|_malformed| refuse())?;
    let widest = if address.is_ipv4() { 32 } else { 128 };
    let prefix: u8 = match prefix {
        Some(prefix) => prefix.parse().map_err(|_malformed| refuse())?,
        None => widest,
    };
    if prefix > widest {
        return Err(refuse());
    }
    // A range of IPv4 addresses in IPv6 form is a range of IPv4 addresses: peers are compared in their canonical form.
    let (address, prefix) = match (address.to_canonical(), prefix.checked_sub(96)) {
        (canonical, Some(shorter)) if canonical != address => (canonical, shorter),
        _ => (address, prefix),
    };
    Ok(Network { address, prefix })
}

fn web_url(text: &str) -> Result<Url, Refusal> {
    let is_hub = ["docker.io", "index.docker.io", "hub.docker.com"]
        .iter()
        .any(|hub| text.split('/').next() == Some(hub));
    let hint = match is_hub {
        true => "write https://registry-1.docker.io",
        false => "write https://HOST or http://HOST:PORT",
    };
    let malformed = || Refusal {
        secret: text.contains('@'),
        ..Refusal::new("not a URL").hint(hint)
    };
    let url = Url::parse(text).map_err(|_malformed| malformed())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refusal {
            secret: true,
            ..Refusal::new("a URL holds no user name and no password")
                .hint("a mirror's go under `credentials`, the password as { file: PATH }")
        });
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Refusal::new("neither an http nor an https URL")
            .hint("write https://HOST or http://HOST:PORT"));
    }
    if url.host().is_none() {
        return Err(malformed());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Refusal::new("a URL with a query or a fragment"));
    }
    Ok(url)
}

fn proxy(text: &str) -> Result<Option<Url>, Refusal> {
    if text == "environment" {
        return Ok(None);
    }
    let url = web_url(text).map_err(|refusal| {
        let hint = "write http://HOST:PORT or `environment`; an account at the proxy as { url: …, username: …, password: { file: PATH } }";
        refusal.hint(hint)
    })?;
    Ok(Some(url))
}

fn repository_name(text: &str) -> Result<RepositoryName, Refusal> {
    text.parse()
        .map_err(|error: gantry_model::name::NameError| Refusal::new(&error.to_string()))
}

fn host(text: &str) -> Result<String, Refusal> {
    let lower = text.to_ascii_lowercase();
    let sound = Url::parse(&format!("https://{lower}")).is_ok_and(|url| {
        url.host_str().is_some() && url.path() == "/" && url.username().is_empty()
    });
    if !sound || lower.contains(['/', '@', '?', '#']) {
        return Err(
            Refusal::new("not a host").hint("write hub.example.com or hub.example.com:5000")
        );
    }
    Ok(lower)
}

fn binding_name(text: &str) -> Result<String, Refusal> {
    let sound = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if text.is_empty() || text.len() > 64 || !text.bytes().all(sound) {
        return Err(
            Refusal::new("not a name").hint("lower-case letters, digits and dashes; at most 64")
        );
    }
    Ok(text.to_owned())
}

fn id_pattern(text: &str) -> Result<IdPattern, Refusal> {
    IdPattern::parse(text).map_err(|reason| {
        Refusal::new("not a pattern of ids").hint(format!("{reason}; write user:*"))
    })
}

fn plugin_origin(text: &str) -> Result<Origin, Refusal> {
    if let Some(name) = text.strip_prefix("builtin:") {
        if builtin::builtin(name).is_some() {
            return Ok(Origin::Builtin(name.to_owned()));
        }
        let hint = match suggest::nearest(name, builtin::names()) {
            Some(nearest) => format!("did you mean builtin:{nearest}?"),
            None => {
                let names: Vec<&str> = builtin::names().collect();
                format!("there are builtin:{}", names.join(", builtin:"))
            }
        };
        return Err(Refusal::new("no built-in plugin has this name").hint(hint));
    }
    if text.starts_with("oci://") {
        return Ok(Origin::Artifact);
    }
    if text.is_empty() || text.contains("://") {
        return Err(Refusal::new("not a place a plugin can come from")
            .hint("write builtin:NAME or ./file.wasm"));
    }
    if builtin::builtin(text).is_some() {
        return Err(Refusal::new("not a file").hint(format!("did you mean builtin:{text}?")));
    }
    Ok(Origin::File(text.into()))
}

fn log_level(text: &str) -> Result<String, Refusal> {
    let words = ["error", "warn", "info", "debug", "trace", "off"];
    let hint = || match suggest::nearest(text, words) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "write error, warn, info, debug or trace, or directives such as info,gantry=debug"
            .to_owned(),
    };
    let lone_word = text.bytes().all(|byte| byte.is_ascii_alphabetic());
    // A lone unknown word is a target to `EnvFilter`: the log would fall silent.
    if (lone_word && !words.contains(&text))
        || tracing_subscriber::EnvFilter::try_new(text).is_err()
    {
        return Err(Refusal::new("not a log level").hint(hint()));
    }
    Ok(text.to_owned())
}

/// The name of a change, as the WIT spells it.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ChangeName(pub(crate) Change);

impl TryFrom<String> for ChangeName {
    type Error = Refusal;

    fn try_from(text: String) -> Result<Self, Refusal> {
        Change::ALL
            .into_iter()
            .find(|change| change.as_str() == text)
            .map(Self)
            .ok_or_else(|| Refusal::new("no such change"))
    }
}

impl schemars::JsonSchema for ChangeName {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Change".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let names: Vec<&str> = Change::ALL.iter().map(|change| change.as_str()).collect();
        schemars::json_schema!({ "type": "string", "enum": names, "description": "What is about to happen." })
    }
}
