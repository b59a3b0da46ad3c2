//! `gantry htpasswd`: adds, changes or removes one user of a password file.
//!
//! Owns the file's form: `user:bcrypt-hash` lines; other lines and comments stay as they are. The file is replaced whole and
//! readable by its owner only, so that a reader never sees half of it.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufRead, IsTerminal, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use anyhow::{Context, bail, ensure};
use gantry_plugin_host::Credential;
use rustix::termios::{self, LocalModes, OptionalActions};

use super::Htpasswd;

/// 2^10 rounds: about 90 ms, what Apache's tool and registries take.
const COST: u32 = 10;
/// bcrypt reads no more, and would ignore the rest without a word.
const MAX_PASSWORD_BYTES: usize = 72;

/// Does what `gantry htpasswd` was asked.
pub(super) fn run(arguments: &Htpasswd) -> anyhow::Result<()> {
    let user = arguments.user.as_str();
    ensure!(
        !user.is_empty()
            && !user.starts_with('#')
            && !user.contains(|letter: char| letter == ':' || letter.is_control()),
        "a user name is not empty, holds no colon and does not begin with #"
    );
    let file = arguments.file.as_path();
    if arguments.remove {
        let before = read(file)?;
        let after = with_line(&before, user, None);
        ensure!(before != after, "{} holds no user {user}", file.display());
        replace(file, &after)?;
        return say(&format!("removed user {user} from {}\n", file.display()));
    }
    let password = ask()?;
    let added = set(file, user, &password)?;
    let verb = if added { "added" } else { "changed" };
    say(&format!("{verb} user {user} in {}\n", file.display()))
}

/// Gives `user` a password in `file`, which is made when it is not there. Says whether the user is new.
pub(super) fn set(file: &Path, user: &str, password: &str) -> anyhow::Result<bool> {
    ensure!(!password.is_empty(), "the password is empty");
    ensure!(
        password.len() <= MAX_PASSWORD_BYTES,
        "the password has {} bytes; bcrypt reads {MAX_PASSWORD_BYTES} at most",
        password.len()
    );
    // As for whoever shows them: a password that cannot be shown lets nobody in.
    Credential::basic(user, password)?;
    let before = if file.exists() {
        read(file)?
    } else {
        String::new()
    };
    let hash = bcrypt::hash_with_result(password, COST)
        .context("cannot hash the password")?
        .format_for_version(bcrypt::Version::TwoY);
    replace(
        file,
        &with_line(&before, user, Some(&format!("{user}:{hash}"))),
    )?;
    Ok(!before.lines().any(|line| belongs(line, user)))
}

fn belongs(line: &str, user: &str) -> bool {
    line.split_once(':')
        .is_some_and(|(name, _hash)| name == user)
}

/// `text` with the user's line replaced, added at the end, or taken away.
fn with_line(text: &str, user: &str, new: Option<&str>) -> String {
    let mut new = new;
    let mut lines = Vec::new();
    for line in text.lines() {
        if belongs(line, user) {
            lines.extend(new.take());
        } else {
            lines.push(line);
        }
    }
    lines.extend(new);
    lines.iter().flat_map(|line| [*line, "\n"]).collect()
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Replaces the file whole: a new one beside it, synced, readable by its owner only, renamed over it.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    // A link keeps pointing where it points: the file behind it is replaced.
    let target = fs::canonicalize(file).unwrap_or_else(|_not_there| file.to_owned());
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let write = || -> io::Result<()> {
        let mut temporary = tempfile::Builder::new()
            .prefix(".htpasswd-")
            .tempfile_in(folder)?;
        temporary
            .as_file()
            .set_permissions(Permissions::from_mode(0o600))?;
        temporary.write_all(text.as_bytes())?;
        temporary.as_file().sync_all()?;
        temporary.persist(&target).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// The password: from a prompt without echo, or the first line of what is piped in.
fn ask() -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return first_line(stdin.lock());
    }
    let first = prompt("Password: ")?;
    if prompt("Again: ")? != first {
        bail!("the two passwords differ");
    }
    Ok(first)
}

pub(super) fn prompt(question: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    io::stderr().write_all(question.as_bytes())?;
    let before = termios::tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    silent.local_modes.insert(LocalModes::ECHONL);
    termios::tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let line = first_line(stdin.lock());
    termios::tcsetattr(&stdin, OptionalActions::Now, &before)?;
    line
}

pub(super) fn first_line(input: impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    // Far more than a password may hold: what is longer is refused by its length.
    input
        .take(MAX_PASSWORD_BYTES as u64 * 64)
        .read_line(&mut line)
        .context("cannot read the password")?;
    if line.ends_with('\n') {
        line.pop();
        if line.ends_with('\r') {
            line.pop();
        }
    }
    Ok(line)
}

fn say(text: &str) -> anyhow::Result<()> {
    Ok(io::stdout().write_all(text.as_bytes())?)
}
