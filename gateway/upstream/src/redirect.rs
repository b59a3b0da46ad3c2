//! The redirect policy: which redirect of a registry is followed.
//!
//! Pure; `endpoint` sends the requests and drops `Authorization` where the origin changes. The HTTP client's own redirects are
//! off. Names are judged when they are resolved (`address`).

use http::{HeaderMap, StatusCode, header::LOCATION};
use url::Url;

use crate::{
    address::{Blocked, Bounds},
    credential::Origin,
};

/// Hubs need one, mirrors of mirrors two; a loop needs an end.
pub(crate) const MAX_REDIRECTS: usize = 5;

/// Why a redirect is not followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum RedirectError {
    #[error("a redirect without a usable Location")]
    Malformed,
    #[error("a redirect to a URL with a user or password")]
    Userinfo,
    #[error("a redirect from https to http")]
    Downgrade,
    #[error(transparent)]
    Blocked(#[from] Blocked),
}

/// Whether the status asks a GET or HEAD to go elsewhere.
pub(crate) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Where a redirect answered at `from` leads.
pub(crate) fn target(
    from: &Url,
    headers: &HeaderMap,
    bounds: &Bounds,
) -> Result<Url, RedirectError> {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let mut to = location
        .and_then(|location| from.join(location).ok())
        .ok_or(RedirectError::Malformed)?;
    to.set_fragment(None);
    let (Some(here), Some(there)) = (Origin::of(from), Origin::of(&to)) else {
        return Err(RedirectError::Malformed);
    };
    if !to.username().is_empty() || to.password().is_some() {
        return Err(RedirectError::Userinfo);
    }
    if here.is_secure() && !there.is_secure() {
        return Err(RedirectError::Downgrade);
    }
    bounds.check(&to)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(from: &str, location: &str, expect: Result<&str, RedirectError>) {
        let from: Url = from.parse().unwrap();
        let bounds = Bounds::around(&from.host().unwrap().to_owned());
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())]);
        let target = target(&from, &headers, &bounds);
        assert_eq!(
            target.as_ref().map(Url::as_str).map_err(|error| *error),
            expect,
            "{location}"
        );
    }

    #[test]
    fn redirects_to_public_places_are_followed() {
        let hub = "https://registry-1.docker.io/v2/library/alpine/blobs/x";
        check(
            hub,
            "https://cdn.example/b?sig=1#f",
            Ok("https://cdn.example/b?sig=1"),
        );
        check(
            hub,
            "/elsewhere",
            Ok("https://registry-1.docker.io/elsewhere"),
        );
        check(hub, "//cdn.example/b", Ok("https://cdn.example/b"));
        check(
            "http://127.0.0.1:5000/v2/",
            "http://127.0.0.1:9000/b",
            Ok("http://127.0.0.1:9000/b"),
        );
    }

    #[test]
    fn redirects_that_weaken_or_aim_inside_are_refused() {
        let hub = "https://registry-1.docker.io/v2/library/alpine/blobs/x";
        check(hub, "http://cdn.example/b", Err(RedirectError::Downgrade));
        check(
            hub,
            "http://registry-1.docker.io/b",
            Err(RedirectError::Downgrade),
        );
        check(
            hub,
            "https://u:p@cdn.example/b",
            Err(RedirectError::Userinfo),
        );
        check(hub, "file:///etc/passwd", Err(RedirectError::Malformed));
        check(hub, "https://", Err(RedirectError::Malformed));
        for inside in [
            "10.0.0.1",
            "127.0.0.1:5001",
            "[::1]",
            "169.254.169.254",
            "2852039166",
        ] {
            check(
                hub,
                &format!("https://{inside}/b"),
                Err(RedirectError::Blocked(Blocked)),
            );
        }
    }

    #[test]
    fn a_redirect_without_location_is_malformed() {
        let from: Url = "https://r.example/".parse().unwrap();
        let bounds = Bounds::around(&from.host().unwrap().to_owned());
        assert_eq!(
            target(&from, &HeaderMap::new(), &bounds),
            Err(RedirectError::Malformed)
        );
    }
}
