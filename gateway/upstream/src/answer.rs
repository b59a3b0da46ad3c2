//! What an upstream's response head means: which failure a status is, and what the headers say.
//!
//! Pure over `http` types. The only place of this crate that maps statuses to [`Kind`].

use std::time::Duration;

use gantry_model::{Digest, MediaType, digest::DigestError};
use http::{HeaderMap, HeaderName, StatusCode, header};

use crate::{
    error::{Call, Cause, Kind, UpstreamError},
    rate::{self, Word},
};

/// No upstream is left alone longer because it said so.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// The failure that an unwanted status means. `is_foreign` says that a redirect led to another origin, whose word about the
/// registry's content counts less: an object store's 404 is no proof that the registry has no such blob. Another registry's is, because
/// the upstream left the answer to it.
pub(crate) fn failure(
    call: &Call,
    status: StatusCode,
    headers: &HeaderMap,
    is_foreign: bool,
) -> UpstreamError {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => Kind::RateLimited,
        StatusCode::REQUEST_TIMEOUT => Kind::Unavailable,
        _ if status.is_server_error() => Kind::Unavailable,
        StatusCode::NOT_FOUND if is_foreign && is_registry(headers) => Kind::NotFound,
        _ if is_foreign => Kind::Invalid,
        // A page for people, of a proxy or of a firewall in between: no registry says "not found" in HTML.
        StatusCode::NOT_FOUND | StatusCode::FORBIDDEN if is_html(headers) => Kind::Unavailable,
        StatusCode::NOT_FOUND if is_router_answer(headers) => Kind::Unavailable,
        // A registry's 401 names what it wants (RFC 9110 section 15.5.2).
        StatusCode::UNAUTHORIZED
            if is_html(headers) && !headers.contains_key(header::WWW_AUTHENTICATE) =>
        {
            Kind::Unavailable
        }
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Kind::Refused,
        _ => Kind::Invalid,
    };
    let place = if is_foreign { " after a redirect" } else { "" };
    let answer = format_args!("{}{place}", status.as_u16());
    let cause = match kind {
        Kind::RateLimited => Cause::RateLimit,
        _ => Cause::Answer,
    };
    UpstreamError {
        retry_after: retry_after(headers),
        cause,
        ..call.fail(kind, answer)
    }
}

/// What is said of an answer that is a page.
pub(crate) const HTML: &str = "an HTML page instead of an answer";

/// Whether the body is a page for people.
pub(crate) fn is_html(headers: &HeaderMap) -> bool {
    let text = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default().trim();
    ["text/html", "application/xhtml+xml"]
        .iter()
        .any(|html| media_type.eq_ignore_ascii_case(html))
}

/// Whether a 404 is the answer of a Go server or load balancer to a path that leads nowhere: `404 page not found` and a line end. No
/// registry answers so about its content, and Traefik does while the registry behind it is away.
fn is_router_answer(headers: &HeaderMap) -> bool {
    const LENGTH: u64 = "404 page not found\n".len() as u64;
    let content_type = text(headers, &header::CONTENT_TYPE).unwrap_or_default();
    content_type.starts_with("text/plain")
        && content_length(headers) == Some(LENGTH)
        && !is_registry(headers)
}

/// Whether the answer is a registry's, as far as it says.
fn is_registry(headers: &HeaderMap) -> bool {
    const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
    text(headers, &API_VERSION).is_some_and(|version| version.contains("registry/2.0"))
}

/// What the response says about how often we may ask.
pub(crate) fn word(status: StatusCode, headers: &HeaderMap, is_foreign: bool) -> Word {
    const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
    const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
    let retry_after = retry_after(headers);
    let refusal = match status {
        StatusCode::TOO_MANY_REQUESTS => Some(Kind::RateLimited),
        StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => Some(Kind::Unavailable),
        _ => None,
    };
    let quota = || rate::quota(text(headers, &LIMIT)?, text(headers, &REMAINING)?);
    Word {
        refusal,
        retry_after,
        quota: quota(),
        is_foreign,
    }
}

/// `Retry-After`, in seconds or as a date, which is held against the response's own `Date`: our clock may differ.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text(headers, &header::RETRY_AFTER)?;
    let delay = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let then = httpdate::parse_http_date(text).ok()?;
        let now = httpdate::parse_http_date(self::text(headers, &header::DATE)?).ok()?;
        then.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(LONGEST_RETRY_AFTER))
}

/// `Content-Length`, also of a HEAD.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    text(headers, &header::CONTENT_LENGTH)?.parse().ok()
}

/// `Content-Type` without its parameters; `None` when it is absent or no media type.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<MediaType> {
    let text = text(headers, &header::CONTENT_TYPE)?;
    text.split(';').next()?.trim().parse().ok()
}

/// `Docker-Content-Digest`; an empty one is none, and so is one of an algorithm that we do not compute.
pub(crate) fn content_digest(
    call: &Call,
    headers: &HeaderMap,
) -> Result<Option<Digest>, UpstreamError> {
    const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("not ASCII").trim();
    match text.parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(DigestError::UnsupportedAlgorithm) => Ok(None),
        Err(DigestError::Malformed) if text.is_empty() => Ok(None),
        Err(DigestError::Malformed) => {
            Err(call.fail(Kind::Invalid, "Docker-Content-Digest is not a digest"))
        }
    }
}

/// Refuses a coded body. We ask for `identity`, so a coding is either a broken server or a bomb.
pub(crate) fn check_encoding(call: &Call, headers: &HeaderMap) -> Result<(), UpstreamError> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    if codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        Ok(())
    } else {
        Err(call.fail(Kind::Invalid, "a Content-Encoding that was not asked for"))
    }
}

/// `ETag`, as it is.
pub(crate) fn etag(headers: &HeaderMap) -> Option<String> {
    text(headers, &header::ETAG).map(str::to_owned)
}

/// The whole length that a `Content-Range` tells which starts at `first` and ends at `last`, or else at the blob's end; `None` for
/// any other.
pub(crate) fn range_size(headers: &HeaderMap, first: u64, last: Option<u64>) -> Option<u64> {
    let range = text(headers, &header::CONTENT_RANGE)?.strip_prefix("bytes ")?;
    let (range, size) = range.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    // RFC 9110 section 14.4: `*` when the server does not know; the end it names is then taken as the last byte.
    let size = match size.trim() {
        "*" if last.is_none() => end.checked_add(1)?,
        size => size.parse().ok()?,
    };
    let ends = last.or_else(|| size.checked_sub(1)) == Some(end) && end < size;
    (start == first && start <= end && ends).then_some(size)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn check(status: u16, is_foreign: bool, expect: Kind) {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        let status = StatusCode::from_u16(status).unwrap();
        let error = failure(&call, status, &HeaderMap::new(), is_foreign);
        assert_eq!(error.kind, expect, "{error}");
    }

    #[test]
    fn a_status_means_what_the_caller_can_do_about_it() {
        for (status, kind) in [
            (404, Kind::NotFound),
            (401, Kind::Refused),
            (403, Kind::Refused),
            (429, Kind::RateLimited),
            (500, Kind::Unavailable),
            (502, Kind::Unavailable),
            (503, Kind::Unavailable),
            (408, Kind::Unavailable),
            (400, Kind::Invalid),
            (405, Kind::Invalid),
            (416, Kind::Invalid),
            (204, Kind::Invalid),
            (304, Kind::Invalid),
        ] {
            check(status, false, kind);
        }
    }

    #[test]
    fn the_place_a_redirect_led_to_cannot_say_not_found_or_refused() {
        check(404, true, Kind::Invalid);
        check(403, true, Kind::Invalid);
        check(429, true, Kind::RateLimited);
        check(503, true, Kind::Unavailable);
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let date = "Tue, 15 Nov 1994 08:12:31 GMT";
        let check = |pairs: &[(&'static str, &str)], expect: Option<u64>| {
            assert_eq!(
                retry_after(&headers(pairs)),
                expect.map(Duration::from_secs),
                "{pairs:?}"
            );
        };
        check(&[], None);
        check(&[("retry-after", "17")], Some(17));
        check(&[("retry-after", "999999999999")], Some(86_400));
        check(&[("retry-after", "soon")], None);
        check(
            &[
                ("retry-after", "Tue, 15 Nov 1994 08:13:01 GMT"),
                ("date", date),
            ],
            Some(30),
        );
        check(
            &[
                ("retry-after", "Tue, 15 Nov 1994 08:00:00 GMT"),
                ("date", date),
            ],
            Some(0),
        );
        check(&[("retry-after", date)], None);
    }

    #[test]
    fn a_content_range_must_reach_from_the_offset_to_the_end() {
        let check = |range: &str, first: u64, expect: Option<u64>| {
            assert_eq!(
                range_size(&headers(&[("content-range", range)]), first, None),
                expect,
                "{range}"
            );
        };
        check("bytes 5-9/10", 5, Some(10));
        check("bytes 5-9/*", 5, Some(10));
        check("bytes 4-9/10", 5, None);
        check("bytes 5-8/10", 5, None);
        check("bytes 5-9/9", 5, None);
        check("bytes 5-4/5", 5, None);
        check("bytes 5-18446744073709551615/*", 5, None);
        check("bytes */10", 5, None);
        check("items 5-9/10", 5, None);
        check("", 5, None);
    }

    #[test]
    fn a_content_range_of_a_part_is_that_part_of_a_known_length() {
        let check = |range: &str, expect: Option<u64>| {
            let headers = headers(&[("content-range", range)]);
            assert_eq!(range_size(&headers, 5, Some(9)), expect, "{range}");
        };
        check("bytes 5-9/100", Some(100));
        check("bytes 5-9/10", Some(10));
        check("bytes 5-9/9", None);
        check("bytes 5-9/*", None);
        check("bytes 5-8/100", None);
        check("bytes 5-99/100", None);
        check("bytes 4-9/100", None);
    }

    #[test]
    fn a_page_for_people_is_an_outage_and_neither_not_found_nor_refused() {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        for html in [
            "text/html",
            "Text/HTML; charset=utf-8",
            "application/xhtml+xml",
        ] {
            let headers = headers(&[("content-type", html)]);
            let kind = |status: u16| {
                let status = StatusCode::from_u16(status).unwrap();
                failure(&call, status, &headers, false).kind
            };
            assert_eq!(kind(404), Kind::Unavailable);
            assert_eq!(kind(403), Kind::Unavailable);
            assert_eq!(kind(503), Kind::Unavailable);
            assert_eq!(kind(429), Kind::RateLimited);
            assert_eq!(kind(401), Kind::Unavailable);
            let mut challenged = headers.clone();
            challenged.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
            let refused = failure(&call, StatusCode::UNAUTHORIZED, &challenged, false);
            assert_eq!(refused.kind, Kind::Refused);
        }
    }

    #[test]
    fn a_404_of_a_router_without_a_registry_is_an_outage() {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        let plain = ("content-type", "text/plain; charset=utf-8");
        let registry = ("docker-distribution-api-version", "registry/2.0");
        for (pairs, kind) in [
            (vec![plain, ("content-length", "19")], Kind::Unavailable),
            (vec![plain, ("content-length", "20")], Kind::NotFound),
            (vec![plain], Kind::NotFound),
            (
                vec![plain, ("content-length", "19"), registry],
                Kind::NotFound,
            ),
            (vec![("content-length", "19")], Kind::NotFound),
        ] {
            let error = failure(&call, StatusCode::NOT_FOUND, &headers(&pairs), false);
            assert_eq!(error.kind, kind, "{pairs:?}");
        }
    }

    #[test]
    fn a_registry_that_a_redirect_led_to_can_say_not_found() {
        let call = Call::new(&Arc::from("hub"), "GET manifest");
        let headers = headers(&[("docker-distribution-api-version", "registry/2.0")]);
        let error = failure(&call, StatusCode::NOT_FOUND, &headers, true);
        assert_eq!(error.kind, Kind::NotFound);
        let error = failure(&call, StatusCode::FORBIDDEN, &headers, true);
        assert_eq!(error.kind, Kind::Invalid);
    }

    #[test]
    fn an_empty_digest_is_none() {
        let call = Call::new(&Arc::from("hub"), "HEAD manifest");
        for empty in ["", "  ", "blake3:0123456789abcdef0123456789abcdef"] {
            let headers = headers(&[("docker-content-digest", empty)]);
            assert_eq!(content_digest(&call, &headers).unwrap(), None);
        }
        let headers = headers(&[("docker-content-digest", "sha256:x")]);
        content_digest(&call, &headers).unwrap_err();
    }

    #[test]
    fn a_media_type_loses_its_parameters() {
        let of = |text: &str| {
            media_type(&headers(&[("content-type", text)])).map(|found| found.to_string())
        };
        assert_eq!(
            of("application/json; charset=utf-8").as_deref(),
            Some("application/json")
        );
        assert_eq!(of("nonsense"), None);
    }
}
