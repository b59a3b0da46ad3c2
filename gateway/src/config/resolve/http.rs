//! `http`: headers in both directions.

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::Context;
use crate::config::{
    Http, ProxyHeaders,
    file::{HttpFile, OneOrMany, ProxyHeadersText},
    text::UrlText,
};

/// Headers that say what a response is: only the response can.
const OWN: [&str; 16] = [
    "accept-ranges",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "date",
    "etag",
    "keep-alive",
    "link",
    "location",
    "range",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "www-authenticate",
];

impl Context<'_> {
    #[expect(
        clippy::excessive_nesting,
        reason = "each level is one case, and a function for one would hide the order"
    )]
    pub(super) fn http(&mut self, file: HttpFile) -> Http {
        let mut headers = HeaderMap::new();
        for (written, values) in file.headers.unwrap_or_default() {
            let values = match values {
                OneOrMany::One(value) => vec![value],
                OneOrMany::Many(values) => values,
            };
            if written.eq_ignore_ascii_case("access-control-allow-origin") && values.len() > 1 {
                let keys = ["http", "headers", &*written];
                let message = "browsers accept one origin, or `*`, and refuse a list";
                self.refuse(&keys, message, None);
            }
            if let Some(name) = self.header_name(&written) {
                for value in values {
                    headers.extend(
                        self.header_value(&written, &value)
                            .map(|value| (name.clone(), value)),
                    );
                }
            }
        }
        Http {
            headers,
            proxy_headers: match file.proxy_headers {
                Some(ProxyHeadersText::Forwarded) => ProxyHeaders::Forwarded,
                Some(ProxyHeadersText::XForwarded) | None => ProxyHeaders::XForwarded,
            },
        }
    }

    /// Where clients reach the gateway: everything before `/v2/`.
    pub(super) fn external_url(&mut self, url: Option<UrlText>) -> Option<Url> {
        let url = url?.0;
        if url.path().trim_end_matches('/').ends_with("/v2") {
            self.refuse(
                &["external_url"],
                "`/v2/` is the registry's own path, which clients add themselves",
                "leave /v2 out".to_owned(),
            );
        }
        Some(url)
    }

    fn header_name(&mut self, written: &str) -> Option<HeaderName> {
        let keys = ["http", "headers", written];
        let Ok(name) = HeaderName::try_from(written) else {
            self.refuse(&keys, "not the name of a header", None);
            return None;
        };
        let is_own = OWN.contains(&name.as_str())
            || ["docker-", "oci-"]
                .iter()
                .any(|own| name.as_str().starts_with(own));
        if is_own {
            self.refuse(
                &keys,
                "this header says what a response is, and Gantry sets it",
                None,
            );
            return None;
        }
        Some(name)
    }

    fn header_value(&mut self, written: &str, value: &str) -> Option<HeaderValue> {
        let value = HeaderValue::try_from(value);
        if value.is_err() {
            let keys = ["http", "headers", written];
            self.refuse(&keys, "a header's value holds no control characters", None);
        }
        value.ok()
    }
}
