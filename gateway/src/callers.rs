//! Caller-authorized mirrors: what an upstream says about those who ask for its repositories here.
//!
//! Owns who an upstream may be asked about, which of its answers counts for whom, and for how long. Map: `memory` is what was answered.
//! Knows neither authenticators nor authorizers: `auth` comes here with a credential that nobody here claims, `policy` with what the
//! authorizers granted.
//! Invariants: a credential goes to the upstream of the one mirror it was shown for; an upstream's word is about its own mirror's
//! repositories, and about pulling; an upstream that did not answer has said neither yes nor no.

pub(crate) mod memory;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use gantry_model::{
    Confirmed, Denial, DenialCode, Namespaces, Operation, Page, Principal, Reference, Repository,
    RepositoryName, Scope, Source, namespace::Address,
};
use gantry_storage::MetadataStore;
use gantry_upstream::{CallerRights, Credentials};
use tokio::time::Instant;

use self::memory::{Memory, Question, Word};
use crate::{auth::Identified, http::error::Error};

/// How long a caller's token lives at least, as docker's token protocol has it.
pub(crate) const SHORTEST_TOKEN: Duration = Duration::from_secs(60);

/// What passes between an answer and the token that rests on it.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Longest name that a principal's is made of.
const MAX_USERNAME_BYTES: usize = 128;

/// The caller-authorized mirrors of one configuration.
#[derive(Debug)]
pub(crate) struct Callers {
    mirrors: Vec<AskedMirror>,
    namespaces: Namespaces,
    metadata: Arc<dyn MetadataStore>,
    memory: Memory,
    /// Scopes of one token request that upstreams are asked about.
    pub(crate) max_confirmations: usize,
}

/// A mirror whose upstream decides about each caller.
#[derive(Debug)]
pub(crate) struct AskedMirror {
    /// Its name.
    pub(crate) name: Arc<str>,
    /// Where its upstream is: what another one said is not remembered as its word.
    pub(crate) upstream: String,
    /// How long its yes is believed.
    pub(crate) remember_for: Duration,
    /// Its upstream.
    pub(crate) rights: Arc<dyn CallerRights>,
}

/// Somebody whom an upstream vouches for.
#[derive(Clone, Debug)]
pub struct UpstreamCaller {
    /// What was confirmed before.
    pub(crate) confirmed: Arc<Confirmed>,
    /// What was shown now, to be asked about; `None` for a token of ours. `Debug` shows stars.
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// How long a token of his may live.
    pub(crate) remember_for: Duration,
}

/// Which upstream a credential is shown for, should nobody here claim it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ShownFor {
    /// None.
    Nobody,
    /// This mirror's.
    Mirror(Arc<str>),
    /// One of several, and nothing says which.
    Several,
}

/// What an upstream's word is needed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Needed {
    /// A read, now.
    Now,
    /// A token, which is to be good for so long.
    ForToken,
}

/// Who asks, as far as upstreams are concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Standing<'a> {
    /// Nobody, or somebody this gateway knows itself: what is public upstream.
    Local,
    /// Somebody whom an upstream vouches for.
    Of(&'a Confirmed, Option<&'a Credentials>),
}

/// What became of a scope that the authorizers granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Confirmation {
    /// No upstream is concerned.
    Unconcerned(Scope),
    /// An upstream allows it, and its word is good until then.
    Allowed(Scope, Instant),
    /// An upstream does not, or it is none of its business.
    Refused,
}

impl UpstreamCaller {
    /// Who comes with a token of ours: what it holds was confirmed when it was issued.
    pub(crate) fn by_token(mirror: &str, at_most: &[Scope]) -> Self {
        let pulls = at_most.iter().filter(|scope| is_pull(scope));
        Self {
            confirmed: Arc::new(Confirmed {
                mirror: mirror.into(),
                repositories: pulls.map(|scope| scope.name.clone()).collect(),
            }),
            credentials: None,
            remember_for: SHORTEST_TOKEN,
        }
    }

    pub(crate) fn standing(&self) -> Standing<'_> {
        Standing::Of(&self.confirmed, self.credentials.as_deref())
    }

    /// What is confirmed once this repository is.
    pub(crate) fn with(&self, repositories: Vec<String>) -> Arc<Confirmed> {
        Arc::new(Confirmed {
            mirror: Arc::clone(&self.confirmed.mirror),
            repositories,
        })
    }
}

impl Callers {
    /// Whether any upstream has a say about what somebody asks for.
    pub(crate) fn are_concerned_by(&self, identified: &Identified) -> bool {
        !self.mirrors.is_empty() || identified.upstream.is_some()
    }

    pub(crate) fn new(
        mirrors: Vec<AskedMirror>,
        namespaces: Namespaces,
        metadata: Arc<dyn MetadataStore>,
        memory: Memory,
    ) -> Self {
        Self {
            mirrors,
            namespaces,
            metadata,
            memory,
            max_confirmations: 8,
        }
    }

    /// The same, asking about so many scopes of one token request.
    pub(crate) fn asking_at_most(self, max_confirmations: usize) -> Self {
        Self {
            max_confirmations,
            ..self
        }
    }

    // --- for whom a credential is ---

    /// For whom a request shows its credential: the repository's mirror; without one, whoever logs in here.
    pub(crate) fn of_operation(&self, operation: &Operation, address: Address<'_>) -> ShownFor {
        match (operation.repository(), operation) {
            (Some(repository), _) => self.of_repositories([repository]),
            (None, Operation::Ping) => self.of_login(address),
            (None, _) => ShownFor::Nobody,
        }
    }

    /// For whom a token request shows its credential.
    pub(crate) fn of_scopes(
        &self,
        scopes: &[(Scope, Option<Repository>)],
        address: Address<'_>,
    ) -> ShownFor {
        if scopes.is_empty() {
            return self.of_login(address);
        }
        self.of_repositories(
            scopes
                .iter()
                .filter_map(|(_, repository)| repository.as_ref()),
        )
    }

    fn of_repositories<'a>(
        &self,
        repositories: impl IntoIterator<Item = &'a Repository>,
    ) -> ShownFor {
        let asked = repositories
            .into_iter()
            .filter_map(|repository| self.asked(repository))
            .map(|(mirror, _remote)| mirror);
        one_of(asked)
    }

    /// `docker login` names no repository: the mirror that everything here belongs to, else the only one there is.
    fn of_login(&self, address: Address<'_>) -> ShownFor {
        match self.namespaces.mirror_at(address) {
            Some(here) => one_of(self.mirror(&here.mirror).into_iter()),
            None => one_of(self.mirrors.iter()),
        }
    }

    fn mirror(&self, name: &str) -> Option<&AskedMirror> {
        self.mirrors.iter().find(|mirror| &*mirror.name == name)
    }

    /// The mirror whose upstream decides about a repository, and the upstream's name for it.
    fn asked<'a>(&self, repository: &'a Repository) -> Option<(&AskedMirror, &'a RepositoryName)> {
        match &repository.source {
            Source::Hosted => None,
            Source::Mirror { mirror, remote } | Source::Layered { mirror, remote } => {
                Some((self.mirror(mirror)?, remote))
            }
        }
    }

    // --- who it is ---

    /// Asks a mirror's upstream whose credential it is; `None` when it is nobody's.
    ///
    /// # Errors
    /// As [`open_question`].
    pub(crate) async fn identify(
        &self,
        mirror: &str,
        username: &str,
        password: &str,
    ) -> Result<Option<(Principal, UpstreamCaller)>, Error> {
        let Some(mirror) = self.mirror(mirror).filter(|_| is_username(username)) else {
            return Ok(None);
        };
        let credentials = Credentials {
            username: username.to_owned(),
            password: password.to_owned().into(),
        };
        let question = Question::whose(mirror, &credentials);
        let said = self
            .memory
            .ask(&question, Duration::ZERO, mirror.remember_for, async {
                mirror.rights.knows(&credentials).await
            });
        match said.await.word {
            Word::Open(open) => return Err(open_question(&open)),
            Word::No => return Ok(None),
            Word::Yes => {}
        }
        let caller = UpstreamCaller {
            confirmed: Arc::new(Confirmed {
                mirror: Arc::clone(&mirror.name),
                repositories: Vec::new(),
            }),
            credentials: Some(Arc::new(credentials)),
            remember_for: mirror.remember_for,
        };
        Ok(Some((principal(&mirror.name, username), caller)))
    }

    // --- what he may ---

    /// Holds a granted scope against the upstream whose repository it names.
    ///
    /// # Errors
    /// As [`open_question`].
    pub(crate) async fn confirm(
        &self,
        standing: Standing<'_>,
        needed: Needed,
        scope: Scope,
    ) -> Result<Confirmation, Error> {
        let repository = self.repository(&scope);
        let asked = repository.as_ref().and_then(|it| self.asked(it));
        let (Some((mirror, remote)), Some(repository)) = (asked, &repository) else {
            return Ok(match standing {
                Standing::Local => Confirmation::Unconcerned(scope),
                Standing::Of(..) => Confirmation::Refused,
            });
        };
        let scope = match standing {
            Standing::Of(confirmed, _) if confirmed.mirror != mirror.name => {
                return Ok(Confirmation::Refused);
            }
            Standing::Of(..) => match pull_only(scope) {
                Some(scope) => scope,
                None => return Ok(Confirmation::Refused),
            },
            Standing::Local => scope,
        };
        let credentials = match standing {
            Standing::Of(confirmed, _)
                if needed == Needed::Now && confirmed.repositories.contains(&scope.name) =>
            {
                return Ok(Confirmation::Allowed(scope, Instant::now()));
            }
            Standing::Of(_, credentials) => credentials,
            Standing::Local => None,
        };
        let pulls = Pulls {
            mirror,
            remote,
            name: &repository.name,
            credentials,
        };
        Ok(match self.may_pull(pulls, needed).await? {
            Some(until) => Confirmation::Allowed(scope, until),
            None => Confirmation::Refused,
        })
    }

    /// Whether an upstream has a say about the scope.
    pub(crate) fn are_asked_about(&self, scope: &Scope) -> bool {
        let repository = self.repository(scope);
        repository.is_some_and(|repository| self.asked(&repository).is_some())
    }

    /// The repository that a scope names; nothing when it names none here.
    fn repository(&self, scope: &Scope) -> Option<Repository> {
        // A canonical name resolves to itself, whatever way it was spelled on.
        let resolve = || {
            self.namespaces
                .resolve(Address::default(), &scope.name)
                .ok()
        };
        let is_repository = scope.kind == "repository" && !self.mirrors.is_empty();
        let repository = is_repository.then(resolve).flatten();
        repository.filter(|repository| repository.name.as_str() == scope.name)
    }

    /// Until when the upstream's yes is good; `None` is its no.
    async fn may_pull(&self, pulls: Pulls<'_>, needed: Needed) -> Result<Option<Instant>, Error> {
        let mirror = pulls.mirror;
        let lasting = match needed {
            Needed::Now => Duration::ZERO,
            Needed::ForToken => SHORTEST_TOKEN,
        };
        // What everybody may needs no caller's credential.
        let open_to_all = Question::pulls(mirror, None, pulls.remote);
        if pulls.credentials.is_some()
            && let Some(until) = self.memory.yes(&open_to_all, lasting).await
        {
            return Ok(Some(until));
        }
        let question = Question::pulls(mirror, pulls.credentials, pulls.remote);
        let said = self
            .memory
            .ask(&question, lasting, mirror.remember_for, async {
                let known = self.known_manifest(pulls.name).await;
                let rights = &mirror.rights;
                rights
                    .may_pull(pulls.credentials, pulls.remote, known.as_ref())
                    .await
            });
        let said = said.await;
        match said.word {
            Word::Yes if said.is_good_for(lasting.saturating_sub(A_MOMENT)) => Ok(Some(said.until)),
            Word::Yes => Err(Error::unavailable(
                "the upstream cannot be asked again for a token",
            )),
            Word::No => Ok(None),
            Word::Open(open) => Err(open_question(&open)),
        }
    }

    /// Something that the repository had lately, which costs the upstream less than a list.
    async fn known_manifest(&self, name: &RepositoryName) -> Option<Reference> {
        let page = Page {
            limit: Some(1),
            after: None,
        };
        let tags = self.metadata.tags(name, None, &page).await.ok()?;
        tags.into_iter()
            .next()
            .map(|record| Reference::Tag(record.tag))
    }
}

/// Whether somebody may pull from a repository.
#[derive(Clone, Copy)]
struct Pulls<'a> {
    mirror: &'a AskedMirror,
    remote: &'a RepositoryName,
    name: &'a RepositoryName,
    credentials: Option<&'a Credentials>,
}

/// The refusal of somebody whose right an upstream does not confirm. Whether the repository is here, or there, it does not tell.
pub(crate) fn refusal() -> Denial {
    let mut denial = Denial::new(
        DenialCode::Denied,
        "upstream-denied",
        "requested access to the resource is denied",
    );
    denial.reason.text = "the upstream does not let the caller pull this".into();
    denial
}

/// The upstream has not answered: 429 when it limits, else 503, and never a refusal.
fn open_question(open: &memory::Open) -> Error {
    let (retry_after, source) = (open.retry_after, open.why.to_string().into());
    match open.is_limited {
        true => Error::Limited {
            retry_after,
            source,
        },
        false => Error::Unavailable {
            retry_after: Some(retry_after),
            source,
        },
    }
}

fn principal(mirror: &str, username: &str) -> Principal {
    Principal {
        id: format!("upstream:{mirror}:{username}"),
        kind: "user".to_owned(),
        issuer: format!("upstream:{mirror}"),
        groups: Vec::new(),
        attributes: Vec::new(),
        expires_at_ms: None,
    }
}

/// Names that upstreams give. `<token>` is how docker marks an identity token, which is no name.
fn is_username(name: &str) -> bool {
    let is_plain = |letter: char| !letter.is_control() && !letter.is_whitespace();
    !name.is_empty()
        && name.len() <= MAX_USERNAME_BYTES
        && name.chars().all(is_plain)
        && !name.starts_with('<')
}

fn one_of<'a>(mirrors: impl Iterator<Item = &'a AskedMirror>) -> ShownFor {
    mirrors.fold(ShownFor::Nobody, |before, mirror| match before {
        ShownFor::Nobody => ShownFor::Mirror(Arc::clone(&mirror.name)),
        ShownFor::Mirror(name) if name == mirror.name => ShownFor::Mirror(name),
        ShownFor::Mirror(_) | ShownFor::Several => ShownFor::Several,
    })
}

fn is_pull(scope: &Scope) -> bool {
    let is = |action: &String| action == "pull" || action == "*";
    scope.kind == "repository" && scope.actions.iter().any(is)
}

/// What of a scope is about pulling.
fn pull_only(mut scope: Scope) -> Option<Scope> {
    is_pull(&scope).then(|| {
        scope.actions = ["pull".to_owned()].into();
        scope
    })
}
