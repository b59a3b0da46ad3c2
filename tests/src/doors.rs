//! The doors of an upstream: real token authentication before the proxy of `origin`, with accounts that may pull some repositories.
//!
//! A token holds what its owner may do when it is asked for, as registries' tokens do. Every `Authorization` that came is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Who may pull what.
#[derive(Debug, Default)]
pub struct Doors {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    accounts: BTreeMap<String, Account>,
    public: BTreeSet<String>,
    shown: Vec<(String, String)>,
}

#[derive(Debug)]
struct Account {
    password: String,
    repositories: BTreeSet<String>,
}

/// What a door answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Door {
    /// Go on.
    Open,
    /// The token endpoint's answer.
    Token(String),
    /// 401, with what to ask a token for.
    Challenge(String),
    /// 401 of the token endpoint.
    Unknown,
}

impl Doors {
    /// Lets everybody pull a repository.
    pub fn publish(&self, repository: &str) {
        self.state().public.insert(repository.to_owned());
    }

    /// Makes or replaces an account; `**` is every repository.
    pub fn account(&self, (user, password): (&str, &str), repositories: &[&str]) {
        let account = Account {
            password: password.to_owned(),
            repositories: repositories.iter().map(|it| (*it).to_owned()).collect(),
        };
        self.state().accounts.insert(user.to_owned(), account);
    }

    /// Every `Authorization` that came, with its path.
    #[must_use]
    pub fn shown(&self) -> Vec<(String, String)> {
        self.state().shown.clone()
    }

    /// How often somebody's password came, whatever it was.
    #[must_use]
    pub fn passwords_of(&self, user: &str) -> usize {
        let shown = self.shown();
        let users = shown.iter().filter_map(|(_, header)| basic(header));
        users.filter(|(name, _)| name == user).count()
    }

    pub(crate) fn answer(&self, path: &str, authorization: Option<&str>) -> Door {
        let mut state = self.state();
        if let Some(header) = authorization {
            state.shown.push((path.to_owned(), header.to_owned()));
        }
        let (place, query) = path.split_once('?').unwrap_or((path, ""));
        if place == "/token" {
            return state.token(query, authorization);
        }
        let repository = repository(place);
        let token = authorization.and_then(|header| header.strip_prefix("Bearer "));
        let held = token.and_then(|token| String::from_utf8(STANDARD.decode(token).ok()?).ok());
        match (held, repository) {
            (Some(_), None) => Door::Open,
            (Some(held), Some(asked)) if held.split(' ').any(|it| it == asked) => Door::Open,
            (_, None) => Door::Challenge(String::new()),
            (_, Some(asked)) => Door::Challenge(format!("repository:{asked}:pull")),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no request panicked")
    }
}

impl State {
    fn token(&self, query: &str, authorization: Option<&str>) -> Door {
        let account = match authorization.map(basic) {
            None => None,
            Some(Some((user, password))) => match self.accounts.get(&user) {
                Some(account) if account.password == password => Some(account),
                _ => return Door::Unknown,
            },
            Some(None) => return Door::Unknown,
        };
        let asked = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("scope="))
            .map(|scope| scope.replace("%3A", ":").replace("%2F", "/"))
            .filter_map(|scope| {
                let name = scope.strip_prefix("repository:")?.strip_suffix(":pull");
                name.map(str::to_owned)
            });
        let may = |name: &String| {
            let of_account = account.is_some_and(|account| {
                account.repositories.contains(name) || account.repositories.contains("**")
            });
            of_account || self.public.contains(name)
        };
        let held: Vec<String> = asked.filter(may).collect();
        Door::Token(STANDARD.encode(format!("token {}", held.join(" "))))
    }
}

fn basic(header: &str) -> Option<(String, String)> {
    let text = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(text).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

fn repository(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    ends.iter()
        .find_map(|end| rest.split_once(end))
        .map(|(name, _)| name)
}
