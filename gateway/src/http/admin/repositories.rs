//! `/admin/v1/repositories…`: what an operator orders about one repository.
//!
//! Owns the documents. What a release means is the registry's.

use futures_util::future::BoxFuture;
use gantry_model::namespace::Address;
use gantry_registry::Error as RegistryError;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{Answered, Call, Problem, Route};
use crate::telemetry::{CacheChange, audit_cache};

pub(super) const ROUTES: &[Route] = &[Route {
    method: Method::POST,
    path: "/admin/v1/repositories/release",
    run: release,
}];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    /// The canonical name.
    repository: String,
}

fn release(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let which: Which = serde_json::from_slice(&call.body?)
            .map_err(|error| Problem::bad_request(format!("body: {error}")))?;
        let generation = &call.generation;
        let resolved = generation
            .namespaces
            .resolve(Address::default(), &which.repository);
        let repository = resolved
            .map_err(|error| Problem::not_found(format!("`{}`: {error}", which.repository)))?;
        let released = generation.registry.release(&repository, &call.principal.id);
        released.await.map_err(|error| problem(&error))?;
        let name = repository.name.as_str();
        audit_cache(CacheChange::Release, &call.requester, name, ("allow", ""));
        Ok((StatusCode::OK, json!({ "released": name })))
    })
}

fn problem(error: &RegistryError) -> Problem {
    match error {
        RegistryError::NameUnknown => Problem::not_found(
            "nothing was pushed to the repository: it is its upstream's already".to_owned(),
        ),
        RegistryError::Unsupported(text) => Problem::refused(vec![text.clone()]),
        RegistryError::Denied(denial) => {
            let text = format!("{}, and a release would take it away", denial.message);
            Problem::refused(vec![text])
        }
        error => {
            tracing::warn!(error = ?error, "a repository cannot be released");
            Problem::unavailable()
        }
    }
}
