//! A credential helper: a program that prints credentials, as docker's `docker-credential-*` do.
//!
//! Owns how the program is run: with an environment of its own, for a bounded time, with a bounded answer. What it prints is never
//! part of an error; what it says on its standard error goes nowhere.

use std::{ffi::OsString, fmt, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};
use zeroize::Zeroizing;

use crate::credential::Credentials;

/// The largest answer that is read. Cloud registries' passwords are tokens of a few KiB.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// A program that says who we are to an upstream. It gets `server` on its standard input and prints
/// `{"Username": …, "Secret": …}`; the user name `<token>` says that the secret is an identity token.
#[derive(Clone, Eq, PartialEq)]
pub struct Helper {
    /// The program, a path or a name to be found in the `PATH` of `environment`.
    pub program: OsString,
    /// Its arguments; docker's helpers want `get`.
    pub arguments: Vec<OsString>,
    /// What is asked for: the registry's host, or `https://index.docker.io/v1/` for Docker Hub.
    pub server: String,
    /// All of its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// How long it may take.
    pub timeout: Duration,
    /// How long its answer is used before it is asked again. A refusal by the upstream asks it sooner.
    pub refresh: Duration,
}

impl fmt::Debug for Helper {
    /// Leaves out the arguments and the environment.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Helper")
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

/// A helper brought no credentials. Holds nothing of what it printed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperError {
    #[error("the credential helper cannot be run")]
    Run(#[source] std::io::Error),
    #[error("the credential helper took longer than {0:?}")]
    Timeout(Duration),
    #[error("the credential helper failed, with status {0}")]
    Failed(i32),
    #[error("the credential helper was killed")]
    Killed,
    #[error("the credential helper printed more than is read")]
    TooLong,
    #[error("the credential helper printed no JSON with Username and Secret")]
    Malformed,
}

impl Helper {
    /// Runs it once. Dropping the future ends the program.
    pub(crate) async fn run(&self) -> Result<Credentials, HelperError> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(HelperError::Run)?;
        timeout(self.timeout, self.talk(&mut child))
            .await
            .unwrap_or(Err(HelperError::Timeout(self.timeout)))
    }

    async fn talk(&self, child: &mut Child) -> Result<Credentials, HelperError> {
        if let Some(mut stdin) = child.stdin.take() {
            let question = format!("{}\n", self.server);
            // A helper may know the answer without reading the question.
            stdin
                .write_all(question.as_bytes())
                .await
                .unwrap_or_default();
        }
        let mut answer = Zeroizing::new(Vec::new());
        if let Some(stdout) = child.stdout.take() {
            let limit = u64::try_from(MAX_ANSWER_BYTES).unwrap_or(u64::MAX);
            let mut bounded = stdout.take(limit.saturating_add(1));
            bounded
                .read_to_end(&mut answer)
                .await
                .map_err(HelperError::Run)?;
        }
        if answer.len() > MAX_ANSWER_BYTES {
            return Err(HelperError::TooLong);
        }
        let status = child.wait().await.map_err(HelperError::Run)?;
        match status.code() {
            Some(0) => parse(&answer).ok_or(HelperError::Malformed),
            Some(code) => Err(HelperError::Failed(code)),
            None => Err(HelperError::Killed),
        }
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

fn parse(answer: &[u8]) -> Option<Credentials> {
    let Answer { username, secret } = serde_json::from_slice(answer).ok()?;
    let password = Zeroizing::new(secret);
    // RFC 7617: the first colon ends the user name.
    let is_usable = !username.is_empty() && !username.contains(':') && !password.is_empty();
    is_usable.then_some(Credentials { username, password })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Helper {
        Helper {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            server: "registry.example:5000".to_owned(),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            timeout: Duration::from_secs(20),
            refresh: Duration::from_secs(900),
        }
    }

    async fn failure(script: &str) -> String {
        let error = shell(script).run().await.err().unwrap();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("canary"), "{text}");
        error.to_string()
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server_and_its_answer_is_read() {
        let script = r#"read server; printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "${server%%:*}""#;
        let found = shell(script).run().await.unwrap();
        assert_eq!(found.username, "registry.example");
        assert_eq!(found.password.as_str(), "s");
    }

    #[tokio::test]
    async fn a_helper_sees_only_the_environment_it_was_given() {
        let script = r#"printf '{"Username":"u","Secret":"%s"}' "$(env | cut -d= -f1 | sort | tr '\n' ' ')""#;
        let found = shell(script).run().await.unwrap();
        assert_eq!(found.password.as_str(), "PATH PWD ");
    }

    #[tokio::test]
    async fn a_helper_may_know_the_answer_without_reading_the_question() {
        let script = r#"exec <&-; printf '{"Username":"u","Secret":"s"}'"#;
        shell(script).run().await.unwrap();
    }

    #[tokio::test]
    async fn a_failing_helper_is_an_error_that_holds_nothing_it_printed() {
        let status = failure("echo canary; echo canary >&2; exit 3").await;
        assert_eq!(status, "the credential helper failed, with status 3");
        for script in [
            "echo canary",
            r#"echo '{"Username":"","Secret":"canary"}'"#,
            r#"echo '{"Username":"a:b","Secret":"canary"}'"#,
            r#"echo '{"Username":"canary","Secret":""}'"#,
        ] {
            let malformed = failure(script).await;
            assert!(malformed.contains("no JSON"), "{script}: {malformed}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_never_stops_printing_is_stopped() {
        let endless = failure("while :; do echo canary; done").await;
        assert_eq!(endless, "the credential helper printed more than is read");
    }

    #[tokio::test]
    async fn a_helper_that_hangs_is_given_up() {
        let mut helper = shell("exec sleep 1000");
        helper.timeout = Duration::from_millis(50);
        let error = helper.run().await.err().unwrap();
        assert!(matches!(error, HelperError::Timeout(_)), "{error}");
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_cannot_be_run() {
        let mut helper = shell("");
        helper.program = "docker-credential-nowhere-to-be-found".into();
        let error = helper.run().await.err().unwrap();
        assert!(matches!(error, HelperError::Run(_)), "{error}");
    }
}
