//! Talks to the admin API of a running gateway: `gantry reload`, `gantry plugin list`, and for `gantry events` and `gantry cache`.
//!
//! Owns how the gateway is found and how the password comes in: never as an argument, which others on the machine could read.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use clap::{Args, ValueEnum};
use gantry::config::Config;
use gantry_plugin_host::Credential;
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::Value;

use super::{Failure, htpasswd};

/// A reload may compile plugins.
const PATIENCE: Duration = Duration::from_secs(300);

/// Which gateway, and who asks.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The configuration of the gateway: its `admin` says where to ask. Without one, gantry.yaml here, or 127.0.0.1:5001.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the admin listener is, such as <http://127.0.0.1:5001>.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    admin: Option<Url>,
    /// Who asks.
    #[arg(short, long, default_value = "admin")]
    user: String,
    /// Take the password from the first line of standard input.
    #[arg(long, conflicts_with = "password_file")]
    password_stdin: bool,
    /// Take the password from the first line of a file.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// A table.
    #[default]
    Text,
    /// The API's own document.
    Json,
}

/// Arguments of `gantry revoke`.
#[derive(Args, Debug)]
pub(crate) struct Revoke {
    /// Whose: an id as the audit log has it, such as user:alice.
    id: String,
    #[command(flatten)]
    target: Target,
}

/// `gantry revoke`.
pub(super) fn revoke(revoke: &Revoke) -> Result<(), Failure> {
    let path = "/admin/v1/principals/revoke";
    let body = serde_json::json!({ "id": revoke.id });
    let done = revoke.target.send(Method::POST, path, &[], Some(&body))?;
    let id = at(&done, "/id").as_str().unwrap_or_default();
    let text = format!(
        "revoked everything that was proved for {id} until now; a credential that is still good proves it anew\n"
    );
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// `gantry reload`.
pub(super) fn reload(target: &Target) -> Result<(), Failure> {
    let done = target.ask(Method::POST, "/admin/v1/reload")?;
    let changed: Vec<&str> = strings(at(&done, "/changed"));
    let changed = match changed.as_slice() {
        [] => "no plugin changed".to_owned(),
        names => format!("changed: {}", names.join(", ")),
    };
    let text = format!(
        "reloaded: generation {}, {changed}\n",
        at(&done, "/generation")
    );
    Ok(io::stdout().write_all(text.as_bytes())?)
}

/// `gantry plugin list`.
pub(super) fn list(target: &Target, output: Output) -> Result<(), Failure> {
    let document = target.ask(Method::GET, "/admin/v1/plugins")?;
    let text = match output {
        Output::Json => pretty(&document)?,
        Output::Text => table(&document),
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

impl Target {
    /// One request, and its document.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] when nothing answers, [`Failure::Refused`] when the answer is 422, else what it said.
    pub(super) fn ask(&self, method: Method, path: &str) -> Result<Value, Failure> {
        self.send(method, path, &[], None)
    }

    /// As [`Target::ask`], with a query and a body.
    ///
    /// # Errors
    /// As [`Target::ask`].
    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let mut url = self.base()?.join(path).map_err(anyhow::Error::from)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let password = self.password()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let asked = (method, url, body.map(Value::to_string));
        runtime.block_on(async {
            let (place, answer) = request(asked, Some(PATIENCE), &self.user, &password).await?;
            document(&place, answer, &self.user).await
        })
    }

    /// A POST that is answered by JSON lines, as they come; each is given to `take`, whose failure ends it. Takes as long as it takes.
    ///
    /// # Errors
    /// As [`Target::ask`], also when the connection breaks.
    pub(super) fn stream(
        &self,
        path: &str,
        body: &Value,
        take: &mut dyn FnMut(Value) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let url = self.base()?.join(path).map_err(anyhow::Error::from)?;
        let password = self.password()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let asked = (Method::POST, url, Some(body.to_string()));
        runtime.block_on(async {
            let (place, answer) = request(asked, None, &self.user, &password).await?;
            if !answer.status().is_success() {
                return document(&place, answer, &self.user).await.map(drop);
            }
            lines(&place, answer, take).await
        })
    }

    fn base(&self) -> anyhow::Result<Url> {
        if let Some(url) = &self.admin {
            return Ok(url.clone());
        }
        let beside = PathBuf::from("gantry.yaml");
        let file = match &self.config {
            Some(file) => Some(file),
            None => Some(&beside).filter(|file| file.is_file()),
        };
        let address = match file {
            Some(file) => Config::admin_address(file).with_context(|| {
                format!("{} has no admin listener; say --admin URL", file.display())
            })?,
            None => ([127, 0, 0, 1], 5001).into(),
        };
        Ok(Url::parse(&format!("http://{address}"))?)
    }

    fn password(&self) -> anyhow::Result<String> {
        if let Some(file) = &self.password_file {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            return htpasswd::first_line(text.as_bytes());
        }
        if self.password_stdin {
            return htpasswd::first_line(io::stdin().lock());
        }
        if io::stdin().is_terminal() {
            return htpasswd::prompt(&format!("Password of {}: ", self.user));
        }
        Err(anyhow!(
            "no password: use --password-stdin or --password-file"
        ))
    }
}

/// The head of the answer, and where it came from.
async fn request(
    (method, url, body): (Method, Url, Option<String>),
    patience: Option<Duration>,
    user: &str,
    password: &str,
) -> Result<(String, Response), Failure> {
    let client = reqwest::Client::builder()
        // The password is for this address and no other.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    let client = match patience {
        Some(patience) => client.timeout(patience),
        None => client,
    };
    let client = client.build().map_err(anyhow::Error::from)?;
    Credential::basic(user, password).map_err(anyhow::Error::from)?;
    let place = url.origin().ascii_serialization();
    let mut request = client
        .request(method, url)
        .basic_auth(user, Some(password))
        // Also without a body: a page of another site cannot make a browser send this.
        .header("content-type", "application/json");
    if let Some(body) = body {
        request = request.body(body);
    }
    let asked = request.send().await;
    let unreachable = |error: reqwest::Error| {
        let error = anyhow::Error::from(error.without_url());
        Failure::Unreachable(error.context(format!("no gateway answers at {place}")))
    };
    let answer = asked.map_err(unreachable)?;
    Ok((place, answer))
}

async fn document(place: &str, answer: Response, user: &str) -> Result<Value, Failure> {
    let status = answer.status();
    let document: Value = answer.json().await.map_err(|error| {
        let error = anyhow::Error::from(error.without_url());
        Failure::Unreachable(error.context(format!("{place} is no admin listener ({status})")))
    })?;
    said(status, document, user)
}

async fn lines(
    place: &str,
    mut answer: Response,
    take: &mut dyn FnMut(Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let broken = |error: reqwest::Error| {
        let error = anyhow::Error::from(error.without_url());
        Failure::Unreachable(error.context(format!("{place} broke off")))
    };
    let mut rest = Vec::new();
    while let Some(bytes) = answer.chunk().await.map_err(broken)? {
        rest.extend_from_slice(&bytes);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            take(serde_json::from_slice(&line).map_err(anyhow::Error::from)?)?;
        }
    }
    Ok(())
}

/// The document, or its errors as what they mean here.
fn said(status: StatusCode, document: Value, user: &str) -> Result<Value, Failure> {
    if status.is_success() {
        return Ok(document);
    }
    let messages = at(&document, "/errors")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|error| at(error, "/message").as_str())
        .collect::<Vec<_>>()
        .join("\n");
    Err(match status {
        StatusCode::UNPROCESSABLE_ENTITY => Failure::Refused(messages),
        StatusCode::FORBIDDEN => {
            anyhow!("{user} may not use the admin API; a rule of builtin:access gives it with `may: [admin]`").into()
        }
        _ => anyhow!("{messages} ({status})").into(),
    })
}

/// A document as it is printed.
pub(super) fn pretty(document: &Value) -> Result<String, Failure> {
    let mut text = serde_json::to_string_pretty(document).map_err(anyhow::Error::from)?;
    text.push('\n');
    Ok(text)
}

/// The part of a document at a JSON pointer; null when there is none.
pub(super) fn at<'a>(document: &'a Value, pointer: &str) -> &'a Value {
    document.pointer(pointer).unwrap_or(&Value::Null)
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// A value as one line of a cell; a dash when there is none.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.lines().collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// One line per plugin, and what went wrong below.
fn table(document: &Value) -> String {
    let mut rows = vec![
        [
            "NAME",
            "FROM",
            "DIGEST",
            "GENERATION",
            "STATE",
            "FAILURES",
            "LAST ERROR",
        ]
        .map(str::to_owned),
    ];
    for plugin in at(document, "/plugins").as_array().into_iter().flatten() {
        let text = |key: &str| {
            at(plugin, &format!("/{key}"))
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let digest: String = text("digest")
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        let failures: u64 = at(plugin, "/failed")
            .as_object()
            .into_iter()
            .flat_map(|counts| counts.values())
            .filter_map(Value::as_u64)
            .sum();
        let error = at(plugin, "/last_error/text").as_str().unwrap_or("-");
        rows.push([
            text("name"),
            text("from"),
            digest,
            at(plugin, "/generation").to_string(),
            text("state"),
            failures.to_string(),
            error.lines().collect::<Vec<_>>().join(" "),
        ]);
    }
    let mut text = aligned(&rows);
    let last = at(document, "/last_reload");
    if *at(last, "/taken") == Value::Bool(false) {
        text.push_str(&format!(
            "\nThe newest reload ({}, {}) was refused; generation {} stays:\n",
            at(last, "/trigger").as_str().unwrap_or_default(),
            at(last, "/at").as_str().unwrap_or_default(),
            at(document, "/generation")
        ));
        for problem in strings(at(last, "/problems")) {
            text.push_str(problem);
            text.push('\n');
        }
    }
    text
}

/// Columns as wide as their widest cell.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_table_says_what_runs_and_what_was_refused() {
        let document = json!({
            "generation": 3,
            "last_reload": { "at": "2026-01-01T00:00:00Z", "trigger": "file", "taken": false, "problems": ["plugin gate: no"] },
            "plugins": [
                { "name": "access", "from": "builtin:access", "digest": "sha256:0123456789abcdef", "generation": 1, "state": "active", "failed": {}, "last_error": null },
                { "name": "gate", "from": "/x.wasm", "digest": "sha256:fedcba9876543210", "generation": 2, "state": "kept", "failed": { "trap": 2, "deadline": 1 }, "last_error": { "text": "plugin gate: no" } },
            ],
        });
        assert_eq!(
            table(&document),
            "NAME    FROM            DIGEST        GENERATION  STATE   FAILURES  LAST ERROR\n\
             access  builtin:access  0123456789ab  1           active  0         -\n\
             gate    /x.wasm         fedcba987654  2           kept    3         plugin gate: no\n\
             \n\
             The newest reload (file, 2026-01-01T00:00:00Z) was refused; generation 3 stays:\n\
             plugin gate: no\n"
        );
    }
}
