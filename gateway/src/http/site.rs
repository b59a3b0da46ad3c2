//! Requests that a browser sends for a page of another site: recognized by their head, refused before authentication.
//!
//! Owns which names the gateway answers to when a request may change something. A page that an operator opens can make the
//! browser send requests to this machine, by its address (`Origin` and `Sec-Fetch-Site` say so) or by a name of the page's own that resolves
//! to it (DNS rebinding: only `Host` says so).

use std::net::IpAddr;

use http::{HeaderMap, Method, StatusCode, header, request::Parts};
use url::Url;

use crate::app::EdgeSettings;

/// Why a request is refused: the status and a sentence that names the header and, where one helps, the configuration key.
pub(crate) type Refusal = (StatusCode, String);

/// The names a request that may change something can be sent to, besides IP addresses and `localhost`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnNames<'a> {
    /// `external_url`.
    pub(crate) external_url: Option<&'a Url>,
    /// `admin.hosts`: names without a port, in lower case.
    pub(crate) hosts: &'a [String],
}

impl<'a> From<&'a EdgeSettings> for OwnNames<'a> {
    fn from(edge: &'a EdgeSettings) -> Self {
        Self {
            external_url: edge.external_url.as_ref(),
            hosts: &edge.admin_hosts,
        }
    }
}

/// Whether a request to the admin API may go on.
///
/// # Errors
/// 403 when a page of another site made the browser send it, 421 (RFC 9110 15.5.20) when it names a host that is not ours, 415 when it
/// changes something and is not JSON, which a page could send without asking first (a "simple request" of the Fetch standard).
pub(crate) fn admin(parts: &Parts, names: OwnNames<'_>) -> Result<(), Refusal> {
    let host = host(parts);
    same_site(&parts.headers, host)?;
    own_name(host, names)?;
    let changes = parts.method != Method::GET && parts.method != Method::HEAD;
    let has_body = parts.headers.contains_key(header::CONTENT_LENGTH)
        || parts.headers.contains_key(header::TRANSFER_ENCODING);
    if changes && (parts.method == Method::POST || has_body) && !is_json(&parts.headers) {
        let text = "the admin API takes requests with `Content-Type: application/json` only";
        return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, text.to_owned()));
    }
    Ok(())
}

/// Whether a request to a registry's listener may go on; `host` is host and port as the client addresses us.
///
/// Only a browser can be made to send what its user did not ask for, and it adds `Origin` to every request but GET and HEAD (Fetch
/// standard, 3.2), so requests without `Origin` and `Sec-Fetch-Site` pass under any name, as those of docker do. A page of `external_url`
/// passes, and one of an origin that `http.headers` allow.
///
/// # Errors
/// 403 when a page of another site made the browser send a change, 421 when it names a host that is not ours.
pub(crate) fn traffic(
    parts: &Parts,
    host: Option<&str>,
    names: OwnNames<'_>,
    allowed: &HeaderMap,
) -> Result<(), Refusal> {
    let changes = !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    let mut marks = parts
        .headers
        .keys()
        .filter(|name| *name == header::ORIGIN || *name == "sec-fetch-site");
    if !changes || marks.next().is_none() || is_allowed_page(&parts.headers, names, allowed) {
        return Ok(());
    }
    same_site(&parts.headers, host)?;
    own_name(host, names)
}

/// Whether the one `Origin` of the request is that of `external_url`, or one that the operator's headers let read answers.
fn is_allowed_page(headers: &HeaderMap, names: OwnNames<'_>, allowed: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (Some(origin), None) = (origins.next(), origins.next()) else {
        return false;
    };
    let own = names
        .external_url
        .map(|url| url.origin().ascii_serialization());
    let is_own = own.is_some_and(|own| own.as_bytes() == origin.as_bytes());
    let mut allowed = allowed.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter();
    is_own || allowed.any(|value| value == origin || value == "*")
}

/// Host and port as the request names them; `None` when it names none, or nonsense.
fn host(parts: &Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| parts.headers.get(header::HOST)?.to_str().ok())
}

fn same_site(headers: &HeaderMap, host: Option<&str>) -> Result<(), Refusal> {
    let refuse = |text: &str| Err((StatusCode::FORBIDDEN, text.to_owned()));
    for site in headers.get_all("sec-fetch-site") {
        if !matches!(site.as_bytes(), b"same-origin" | b"none") {
            return refuse("`Sec-Fetch-Site`: a page of another site sent this request");
        }
    }
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let of_page = origin
            .strip_prefix("http://")
            .or_else(|| origin.strip_prefix("https://"));
        let is_own =
            matches!((of_page, host), (Some(page), Some(host)) if page.eq_ignore_ascii_case(host));
        if !is_own {
            return refuse("`Origin`: a page of another site sent this request");
        }
    }
    Ok(())
}

fn own_name(host: Option<&str>, names: OwnNames<'_>) -> Result<(), Refusal> {
    let name = host.map(without_port).unwrap_or_default();
    let external = names.external_url.and_then(Url::host_str);
    let is_own = name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || external.is_some_and(|own| own.eq_ignore_ascii_case(name))
        || names.hosts.iter().any(|own| own.eq_ignore_ascii_case(name));
    if is_own {
        return Ok(());
    }
    let text = match name.chars().all(is_of_a_name) && !name.is_empty() {
        true => format!(
            "`Host`: {name} is no name of this gateway; if it is, set `external_url` or add `admin: {{ hosts: [{name}] }}`"
        ),
        false => "`Host`: the request names no host".to_owned(),
    };
    Err((StatusCode::MISDIRECTED_REQUEST, text))
}

fn is_of_a_name(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_')
}

/// The host of `host[:port]`; an IPv6 address loses its brackets.
fn without_port(host: &str) -> &str {
    if let Some(inner) = host.strip_prefix('[') {
        return inner
            .split_once(']')
            .map_or(host, |(address, _port)| address);
    }
    host.rsplit_once(':').map_or(host, |(name, _port)| name)
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn judge(line: &str, headers: &[(&str, &str)]) -> u16 {
        let (method, uri) = line.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let external = Url::parse("https://registry.example:8443/").unwrap();
        let names = OwnNames {
            external_url: Some(&external),
            hosts: &["ops.example".to_owned()],
        };
        admin(&parts, names).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    const JSON: (&str, &str) = ("content-type", "application/json");

    #[test]
    fn a_request_counts_only_under_a_name_of_the_gateway() {
        let check = |host: &str, expect: u16| {
            let headers = [("host", host), JSON];
            assert_eq!(judge("POST /admin/v1/reload", &headers), expect, "{host}");
            assert_eq!(
                judge("GET /admin/v1/plugins", &headers[..1]),
                expect,
                "{host}"
            );
        };
        for own in [
            "127.0.0.1:5001",
            "127.0.0.1",
            "10.1.2.3:80",
            "[::1]:5001",
            "[2001:db8::1]",
            "localhost:5001",
            "LOCALHOST",
            "registry.example",
            "registry.example:8443",
            "Ops.Example:5001",
        ] {
            check(own, 200);
        }
        for other in [
            "rebound.example:5001",
            "localhost.rebound.example",
            "127.0.0.1.rebound.example",
            "evil.registry.example",
            "",
            "[::1",
            "a b",
        ] {
            check(other, 421);
        }
        assert_eq!(
            judge("GET http://rebound.example/admin/v1/plugins", &[]),
            421
        );
        assert_eq!(judge("GET /admin/v1/plugins", &[]), 421);
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let own = ("host", "127.0.0.1:5001");
        let check = |name: &str, value: &str, expect: u16| {
            let headers = [own, JSON, (name, value)];
            assert_eq!(
                judge("POST /admin/v1/reload", &headers),
                expect,
                "{name}: {value}"
            );
        };
        check("origin", "http://127.0.0.1:5001", 200);
        check("origin", "https://127.0.0.1:5001", 200);
        check("sec-fetch-site", "same-origin", 200);
        check("sec-fetch-site", "none", 200);
        for origin in [
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:5002",
            "http://evil.example",
            "file://",
        ] {
            check("origin", origin, 403);
        }
        check("sec-fetch-site", "cross-site", 403);
        check("sec-fetch-site", "same-site", 403);
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn a_page_changes_a_repository_only_where_the_operator_lets_it() {
        let allowed = |value: &'static str| {
            let value = http::HeaderValue::from_static(value);
            HeaderMap::from_iter([(header::ACCESS_CONTROL_ALLOW_ORIGIN, value)])
        };
        let check = |method: &str, host: &str, marks: &[(&str, &str)], cors: &HeaderMap| {
            let mut request = Request::builder().method(method).uri("/v2/a/manifests/b");
            for (name, value) in marks {
                request = request.header(*name, *value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let external = Url::parse("https://registry.example/").unwrap();
            let names = OwnNames {
                external_url: Some(&external),
                hosts: &[],
            };
            traffic(&parts, Some(host), names, cors)
                .map_or_else(|(status, _)| status.as_u16(), |()| 200)
        };
        let none = HeaderMap::new();
        for method in ["PUT", "POST", "PATCH", "DELETE"] {
            let of = |host: &str, marks: &[(&str, &str)]| check(method, host, marks, &none);
            // No browser: any name.
            assert_eq!(of("cache.svc:5000", &[]), 200);
            // Another page, by our address.
            assert_eq!(of("127.0.0.1", &[("origin", "http://evil.example")]), 403);
            assert_eq!(of("127.0.0.1", &[("origin", "null")]), 403);
            assert_eq!(of("127.0.0.1", &[("sec-fetch-site", "cross-site")]), 403);
            assert_eq!(of("127.0.0.1", &[("sec-fetch-site", "same-site")]), 403);
            // A page whose name resolves to us.
            assert_eq!(
                of("evil.example", &[("origin", "http://evil.example")]),
                421
            );
            assert_eq!(
                of("evil.example", &[("sec-fetch-site", "same-origin")]),
                421
            );
            // Pages of the gateway's own origins, and of an origin that the operator's headers allow.
            assert_eq!(
                of("127.0.0.1:5000", &[("origin", "http://127.0.0.1:5000")]),
                200
            );
            assert_eq!(of("inner", &[("origin", "https://registry.example")]), 200);
            let ui = ("origin", "https://ui.example");
            assert_eq!(
                check(method, "h", &[ui], &allowed("https://ui.example")),
                200
            );
            assert_eq!(
                check(
                    method,
                    "127.0.0.1",
                    &[ui],
                    &allowed("https://other.example")
                ),
                403
            );
            assert_eq!(check(method, "127.0.0.1", &[ui, ui], &allowed("*")), 403);
        }
        for method in ["GET", "HEAD", "OPTIONS"] {
            assert_eq!(
                check(
                    method,
                    "evil.example",
                    &[("origin", "http://evil.example")],
                    &none
                ),
                200
            );
        }
    }

    #[test]
    fn a_change_that_is_not_json_is_refused() {
        let check = |line: &str, headers: &[(&str, &str)], expect: u16| {
            let headers = [&[("host", "localhost")], headers].concat();
            assert_eq!(judge(line, &headers), expect, "{line} {headers:?}");
        };
        check("POST /admin/v1/reload", &[JSON], 200);
        check(
            "POST /admin/v1/reload",
            &[("content-type", "Application/JSON; charset=utf-8")],
            200,
        );
        check("POST /admin/v1/reload", &[], 415);
        for simple in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "text/plain; application/json",
        ] {
            check("POST /admin/v1/reload", &[("content-type", simple)], 415);
        }
        check("PUT /admin/v1/x", &[("content-length", "2")], 415);
        check("DELETE /admin/v1/x", &[], 200);
        check(
            "DELETE /admin/v1/x",
            &[("transfer-encoding", "chunked")],
            415,
        );
        check("GET /admin/v1/plugins", &[], 200);
    }
}
