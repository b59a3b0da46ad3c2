//! (Principal, Operation) → decision → permit. Authorizer plugins in order: any deny wins, all abstain = denied.

use gantry_model::{Operation, Permit, Requester};

use crate::{app::App, auth::Identified, http::error::Error};

/// Authorizer and admission bindings, and the decision cache.
#[derive(Debug)]
pub struct Policy {}

/// Decides, and makes the permit.
///
/// # Errors
/// [`Error::Unauthorized`] when an anonymous caller or a too narrow token could do better with another credential;
/// [`Error::Denied`] when no credential helps; [`Error::Unavailable`] when a hook failed.
pub async fn authorize(
    _app: &App,
    _requester: Requester,
    _identified: &Identified,
    _operation: Operation,
) -> Result<Permit, Error> {
    Err(Error::not_built())
}
