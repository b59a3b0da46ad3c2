//! The first start of the quickstart: a user `admin` with a random password, shown once.
//!
//! Owns what is made and what is shown; every later start finds the password file and says nothing.

use std::{fmt, fs, path::Path};

use anyhow::Context;
use aws_lc_rs::rand;
use gantry::config::{Config, ListenAddress, PluginFrom};

use super::htpasswd;

/// The user that is made.
const USER: &str = "admin";
/// 32 letters and digits, none taken for another: 5 bits each.
const ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// 100 bits.
const PASSWORD_LETTERS: usize = 20;

/// What the operator is shown once.
pub(crate) struct Banner {
    address: String,
    password: String,
    file: String,
}

impl fmt::Debug for Banner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Banner")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Banner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            password,
            file,
        } = self;
        write!(
            formatter,
            "
Gantry serves http://{address}

  user      {USER}
  password  {password}

This is shown once; {file} keeps its hash. Try:

  docker login {address} --username {USER}
  docker pull {address}/docker.io/library/alpine
  docker tag {address}/docker.io/library/alpine {address}/apps/alpine:v1 && docker push {address}/apps/alpine:v1

"
        )
    }
}

/// Makes the quickstart's password file when it is not there. The configuration must be read again after that.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn prepare(config: &Config, quickstart: bool) -> anyhow::Result<Option<Banner>> {
    if !quickstart {
        return Ok(None);
    }
    let Some(file) = password_file(config).filter(|file| !file.exists()) else {
        return Ok(None);
    };
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let password = random_password()?;
    htpasswd::set(file, USER, &password)?;
    Ok(Some(Banner {
        address: address(config),
        password,
        file: file.display().to_string(),
    }))
}

/// The file of the plugin `builtin:htpasswd`.
fn password_file(config: &Config) -> Option<&Path> {
    let people = config
        .plugins
        .iter()
        .find(|binding| binding.from == PluginFrom::Builtin("htpasswd".to_owned()))?;
    people.files.first().map(std::path::PathBuf::as_path)
}

/// Where this machine reaches the first listener; no client connects to "every address".
fn address(config: &Config) -> String {
    let first = config
        .listen
        .iter()
        .find_map(|listener| match listener.address {
            ListenAddress::Tcp(address) => Some(address),
            ListenAddress::Unix(_) => None,
        });
    match first {
        Some(address) if address.ip().is_unspecified() => format!("127.0.0.1:{}", address.port()),
        Some(address) => address.to_string(),
        None => "127.0.0.1:5000".to_owned(),
    }
}

fn random_password() -> anyhow::Result<String> {
    let mut bytes = [0_u8; PASSWORD_LETTERS];
    rand::fill(&mut bytes)
        .map_err(|_unspecified| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(bytes
        .iter()
        .filter_map(|byte| ALPHABET.get(usize::from(byte % 32)).copied())
        .map(char::from)
        .collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use gantry::config::{Config, Environment};

    use super::prepare;

    fn quickstart(folder: &Path) -> Config {
        Config::quickstart_in(folder, &Environment::new()).unwrap()
    }

    #[test]
    fn the_first_start_makes_an_admin_shows_the_password_once_and_the_next_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let banner = prepare(&quickstart(folder.path()), true).unwrap().unwrap();
        let shown = banner.to_string();
        let password = shown
            .lines()
            .find_map(|line| line.trim().strip_prefix("password  "))
            .unwrap();
        assert_eq!(password.len(), 20);
        assert!(!format!("{banner:?}").contains(password));
        for command in [
            "docker login 127.0.0.1:5000 --username admin".to_owned(),
            "docker pull 127.0.0.1:5000/docker.io/library/alpine".to_owned(),
            "docker push 127.0.0.1:5000/apps/alpine:v1".to_owned(),
        ] {
            assert!(shown.contains(&command), "{shown}");
        }

        let again = quickstart(folder.path());
        let users = again.plugins[0].config["users"].as_str().unwrap();
        let hash = users.trim_end().strip_prefix("admin:").unwrap();
        assert!(bcrypt::verify(password, hash).unwrap());
        assert!(!users.contains(password));
        assert!(prepare(&again, true).unwrap().is_none());
    }

    #[test]
    fn only_the_quickstart_makes_users() {
        let folder = tempfile::tempdir().unwrap();
        let config = quickstart(folder.path());
        assert!(prepare(&config, false).unwrap().is_none());
        assert!(!folder.path().join("data").exists());
    }

    #[test]
    fn two_first_starts_make_two_passwords() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let shown = folders.each_ref().map(|folder| {
            prepare(&quickstart(folder.path()), true)
                .unwrap()
                .unwrap()
                .password
        });
        assert_ne!(shown[0], shown[1]);
    }
}
