//! `POST /admin/v1/reload`: takes what the files hold now. 200 with the new generation, or 422 with every reason why not.

use futures_util::future::BoxFuture;
use http::{Method, StatusCode};
use serde_json::json;

use super::{Answered, Call, Problem, Route};
use crate::reload::Trigger;

pub(super) const ROUTES: &[Route] = &[Route {
    method: Method::POST,
    path: "/admin/v1/reload",
    run: reload,
}];

fn reload(call: Call) -> BoxFuture<'static, Answered> {
    Box::pin(async move {
        let Call {
            reloader,
            generation,
            ..
        } = call;
        // Not held over the reload: the old generation is freed when its requests end.
        drop(generation);
        let reloaded = reloader
            .reload(Trigger::Admin)
            .await
            .map_err(|refused| Problem::refused(refused.problems))?;
        let document = json!({
            "generation": reloaded.generation,
            "changed": reloaded.changed,
        });
        Ok((StatusCode::OK, document))
    })
}
