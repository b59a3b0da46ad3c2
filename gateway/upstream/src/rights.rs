//! What the upstream lets others do: who a credential belongs to, and whether its owner may pull.
//!
//! Owns which question is asked for that, and which answers are a word about rights. Asks the mirror's own base URL only, with the
//! caller's credential or none, never with ours: an alternative may lack content, and may be somebody else's server.
//! Invariant: only 401, 403 and 404 mean "no"; whatever else goes wrong leaves the question open.

use std::{borrow::Cow, sync::Arc};

use async_trait::async_trait;
use gantry_model::{Reference, RepositoryName};
use http::{Method, StatusCode};

use crate::{
    CallerRights, RegistryClient,
    client::MANIFEST_TYPES,
    credential::Credentials,
    endpoint::Ask,
    error::{Call, Cause, Kind, UpstreamError},
    session::Session,
};

impl RegistryClient {
    fn caller_session(&self, caller: Option<&Credentials>) -> Result<Arc<Session>, UpstreamError> {
        let call = Call::new(self.name(), "GET base for a caller");
        Ok(self.home_endpoint(&call)?.caller_session(caller))
    }

    /// Asks as somebody else. Whether a proof was asked for and given.
    async fn question(&self, ask: &Ask<'_>) -> Result<bool, UpstreamError> {
        let _permit = self.permit(&ask.call).await?;
        let home = self.home_endpoint(&ask.call)?;
        Box::pin(home.guarded(ask, home.accepts(ask, StatusCode::OK))).await
    }

    fn question_about<'a>(
        &self,
        verb: &'static str,
        session: &'a Arc<Session>,
        about: Option<(&'a RepositoryName, [&'a str; 2])>,
    ) -> Ask<'a> {
        Ask {
            call: Call::new(self.name(), verb),
            method: Method::GET,
            about,
            query: Vec::new(),
            raw_query: None,
            accept: None,
            offset: 0,
            last: None,
            session: Some(session),
        }
    }

    async fn has_manifest(
        &self,
        session: &Arc<Session>,
        repository: &RepositoryName,
        known: &Reference,
    ) -> Result<bool, UpstreamError> {
        let known = known.to_string();
        let about = Some((repository, ["manifests", known.as_str()]));
        let ask = Ask {
            method: Method::HEAD,
            accept: Some(Cow::Borrowed(MANIFEST_TYPES)),
            ..self.question_about("HEAD manifest for a caller", session, about)
        };
        self.question(&ask).await.map(|_proven| true)
    }

    async fn has_tags(
        &self,
        session: &Arc<Session>,
        repository: &RepositoryName,
    ) -> Result<bool, UpstreamError> {
        let about = Some((repository, ["tags", "list"]));
        let ask = Ask {
            query: vec![("n", "1".to_owned())],
            ..self.question_about("GET tags for a caller", session, about)
        };
        self.question(&ask).await.map(|_proven| true)
    }
}

#[async_trait]
impl CallerRights for RegistryClient {
    async fn knows(&self, caller: &Credentials) -> Result<bool, UpstreamError> {
        let session = self.caller_session(Some(caller))?;
        let ask = self.question_about("GET base for a caller", &session, None);
        word(self.question(&ask).await)
    }

    async fn may_pull(
        &self,
        caller: Option<&Credentials>,
        repository: &RepositoryName,
        known: Option<&Reference>,
    ) -> Result<bool, UpstreamError> {
        let session = self.caller_session(caller)?;
        if let Some(known) = known {
            match self.has_manifest(&session, repository, known).await {
                // It may have gone upstream meanwhile, and not everybody answers a HEAD: neither is about rights.
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Invalid) => {}
                answer => return word(answer),
            }
        }
        word(self.has_tags(&session, repository).await)
    }
}

/// What of an answer is a word about rights.
fn word(answer: Result<bool, UpstreamError>) -> Result<bool, UpstreamError> {
    match answer {
        Err(error)
            if matches!(error.kind, Kind::NotFound | Kind::Refused)
                && matches!(error.cause, Cause::Answer | Cause::Token) =>
        {
            Ok(false)
        }
        other => other,
    }
}
