//! What authorizers granted, held against the upstreams of caller-authorized mirrors: the last step before a permit.
//!
//! Owns what a missing right means to an operation. Here and nowhere else, so that no way of reading misses it.

use std::{sync::Arc, time::Duration};

use gantry_model::{Grant, Operation, Requester, Scope};
use tokio::time::Instant;

use super::{Policy, refused};
use crate::{
    auth::Identified,
    callers::{self, Confirmation, Needed, Standing},
    http::error::Error,
};

impl Policy {
    /// Takes out of the grant what an upstream does not confirm; the requester with what it does.
    ///
    /// # Errors
    /// A refusal when what the operation requires is not confirmed; 429 or 503 when the upstream left that open.
    pub(super) async fn confirm(
        &self,
        identified: &Identified,
        operation: &Operation,
        mut requester: Requester,
        grant: &mut Grant,
    ) -> Result<Requester, Error> {
        let required = operation.required_scopes();
        let mut names = Vec::new();
        for scope in std::mem::take(&mut grant.granted) {
            let is_same = |it: &Scope| it.kind == scope.kind && it.name == scope.name;
            let is_required = required.iter().any(is_same);
            let standing = identified.standing();
            match self.callers.confirm(standing, Needed::Now, scope).await {
                Ok(Confirmation::Unconcerned(scope)) => grant.granted.push(scope),
                Ok(Confirmation::Allowed(scope, _)) => {
                    names.push(scope.name.clone());
                    grant.granted.push(scope);
                }
                Ok(Confirmation::Refused) if is_required => {
                    return Err(refused(operation, identified, callers::refusal()));
                }
                Err(error) if is_required => return Err(error),
                // A mount whose source may not be read is a plain upload.
                Ok(Confirmation::Refused) | Err(_) => {}
            }
        }
        if let Some(caller) = &identified.upstream {
            requester.confirmed = Some(caller.with(names));
        }
        Ok(requester)
    }

    /// What of a scope a token may hold, and how long that may be.
    ///
    /// # Errors
    /// 429 or 503 when the upstream left it open.
    pub(crate) async fn confirm_for_token(
        &self,
        identified: &Identified,
        scope: Scope,
    ) -> Result<Option<(Scope, Option<Duration>)>, Error> {
        let standing = identified.standing();
        let confirmation = self
            .callers
            .confirm(standing, Needed::ForToken, scope)
            .await?;
        Ok(match confirmation {
            Confirmation::Unconcerned(scope) => Some((scope, None)),
            Confirmation::Allowed(scope, until) => {
                let left = until.saturating_duration_since(Instant::now());
                Some((scope, Some(left)))
            }
            Confirmation::Refused => None,
        })
    }

    /// Whether the upstream, if one is concerned, lets the requester pull what a plugin reads in its name.
    ///
    /// # Errors
    /// As [`Policy::confirm`].
    pub(super) async fn is_confirmed(
        &self,
        requester: &Requester,
        scope: Scope,
    ) -> Result<bool, Error> {
        let standing = match requester.confirmed.as_deref() {
            Some(confirmed) => Standing::Of(confirmed, None),
            None => Standing::Local,
        };
        let confirmation = self.callers.confirm(standing, Needed::Now, scope).await?;
        Ok(confirmation != Confirmation::Refused)
    }

    /// The caller-authorized mirrors.
    pub(crate) fn callers(&self) -> &Arc<callers::Callers> {
        &self.callers
    }
}
