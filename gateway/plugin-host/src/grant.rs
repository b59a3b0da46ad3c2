//! What a binding's `http` grants allow: addresses as `scheme://host[:port]/path-prefix`, compared after normalization.
//!
//! Owns the comparison of a URL with the grants and how far away the address behind a granted name may be. Dials nothing.
//! Invariant: a URL is compared in the very form in which it is sent.

use std::{fmt, str::FromStr};

use url::{Host, Url};

use crate::ports::Reach;

/// Longest URL that a guest may ask for, in bytes.
const MAX_URL_BYTES: usize = 8 << 10;

/// One granted address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpGrant {
    origin: Origin,
    /// Whole segments that the path begins with.
    path: Vec<String>,
    /// Whether a name may resolve to a private address.
    private: bool,
}

/// Scheme, host and port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Origin {
    scheme: String,
    host: Host<String>,
    port: u16,
}

/// A granted URL, and how far away it may lead.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) url: Url,
    pub(crate) origin: Origin,
    pub(crate) reach: Reach,
}

/// Why a text is no grant, or a URL is not granted. A phrase for a person; holds nothing of a query.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct NotAnAddress(&'static str);

impl HttpGrant {
    /// The grant, whose name may resolve to private addresses: loopback, RFC 1918, unique local, shared. Link-local addresses and the
    /// metadata services of clouds stay out of reach for names.
    #[must_use]
    pub fn private(self, private: bool) -> Self {
        Self { private, ..self }
    }

    fn covers(&self, origin: &Origin, path: &[&str]) -> bool {
        self.origin == *origin
            && path.len() >= self.path.len()
            && self.path.iter().zip(path).all(|(own, asked)| own == asked)
    }

    /// An address that is written as one, and `localhost`, mean what they say; any other name is judged by what it resolves to.
    fn reach(&self) -> Reach {
        match &self.origin.host {
            Host::Ipv4(_) | Host::Ipv6(_) => Reach::Literal,
            Host::Domain(name) if is_localhost(name) => Reach::Loopback,
            Host::Domain(_) if self.private => Reach::Private,
            Host::Domain(_) => Reach::Public,
        }
    }
}

impl FromStr for HttpGrant {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let url = parse(text)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err(NotAnAddress("has a query or a fragment"));
        }
        let mut path: Vec<String> = segments(&url)?.into_iter().map(str::to_owned).collect();
        if path.last().is_some_and(String::is_empty) {
            path.pop();
        }
        Ok(Self {
            origin: Origin::of(&url)?,
            path,
            private: false,
        })
    }
}

impl Origin {
    fn of(url: &Url) -> Result<Self, NotAnAddress> {
        let host = url.host().ok_or(NotAnAddress("has no host"))?;
        let port = url
            .port_or_known_default()
            .ok_or(NotAnAddress("has no port"))?;
        Ok(Self {
            scheme: url.scheme().to_owned(),
            host: host.to_owned(),
            port,
        })
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.scheme == "https"
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// The URL that `text` names, when one of `grants` covers it.
pub(crate) fn granted(grants: &[HttpGrant], text: &str) -> Result<Target, String> {
    let mut url = parse(text).map_err(|problem| format!("the URL {problem}"))?;
    url.set_fragment(None);
    let origin = Origin::of(&url).map_err(|problem| format!("the URL {problem}"))?;
    let path = segments(&url).map_err(|problem| format!("the URL {problem}"))?;
    let grant = grants.iter().find(|grant| grant.covers(&origin, &path));
    let Some(grant) = grant else {
        return Err(format!("{origin} with this path is not granted"));
    };
    let reach = grant.reach();
    Ok(Target { url, origin, reach })
}

fn parse(text: &str) -> Result<Url, NotAnAddress> {
    if text.len() > MAX_URL_BYTES {
        return Err(NotAnAddress("is too long"));
    }
    // The parser takes blanks and line breaks away and turns backslashes around; whoever writes them means something else.
    let odd = |byte: u8| byte <= b' ' || byte == b'\\' || byte == 0x7f;
    if text.bytes().any(odd) {
        return Err(NotAnAddress(
            "holds blanks, control characters or backslashes",
        ));
    }
    let url: Url = text
        .parse()
        .map_err(|_error| NotAnAddress("is not an absolute URL"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(NotAnAddress("is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(NotAnAddress("holds a user name or a password"));
    }
    Ok(url)
}

/// The segments of a normalized path; refuses what a server behind us might read as another path than we do.
fn segments(url: &Url) -> Result<Vec<&str>, NotAnAddress> {
    let segments: Vec<&str> = url.path_segments().into_iter().flatten().collect();
    if segments.iter().any(|segment| is_ambiguous(segment)) {
        return Err(NotAnAddress(
            "has a path with encoded slashes, dots or percent signs",
        ));
    }
    Ok(segments)
}

/// Encoded separators and dots, twice encoded characters, and `..;` of servlet containers.
fn is_ambiguous(segment: &str) -> bool {
    let lower = segment.to_ascii_lowercase();
    let encoded = ["%2f", "%5c", "%2e", "%25", "%00"];
    let name = lower.split(';').next().unwrap_or_default();
    encoded.iter().any(|code| lower.contains(code)) || (lower.contains(';') && is_dots(name))
}

fn is_dots(name: &str) -> bool {
    matches!(name, "." | "..")
}

fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(texts: &[&str]) -> Vec<HttpGrant> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn allows(grant: &str, url: &str) -> bool {
        granted(&grants(&[grant]), url).is_ok()
    }

    #[test]
    fn a_grant_covers_its_origin_and_whole_segments_of_its_path() {
        let grant = "https://hooks.example/in/team";
        for url in [
            "https://hooks.example/in/team",
            "https://hooks.example/in/team/",
            "https://hooks.example:443/in/team/x?y=../z",
            "HTTPS://Hooks.Example/in/team/a%20b",
            "https://hooks.example/in/x/../team/y",
            "https://hooks.example/in/team#fragment",
        ] {
            assert!(allows(grant, url), "{url}");
        }
        for url in [
            "http://hooks.example/in/team",
            "https://hooks.example:8443/in/team",
            "https://other.example/in/team",
            "https://hooks.example.other.example/in/team",
            "https://hooks.example./in/team",
            "https://hooks.example/in/teams",
            "https://hooks.example/in",
            "https://hooks.example/",
            "https://hooks.example/IN/team",
            "https://hooks.example/in/team/../other",
            "https://hooks.example/in/team/../../other",
            "https://hooks.example/in/team/..",
            "https://hooks.example//in/team",
        ] {
            assert!(!allows(grant, url), "{url}");
        }
    }

    #[test]
    fn tricks_that_another_reader_might_read_otherwise_are_refused() {
        for url in [
            "https://user@hooks.example/in/x",
            "https://user:password@hooks.example/in/x",
            "https://hooks.example@other.example/in/x",
            "https://hooks.example/in/%2e%2e/out",
            "https://hooks.example/in/%2E%2E%2Fout",
            "https://hooks.example/in/..%2fout",
            "https://hooks.example/in/..%5cout",
            "https://hooks.example/in/%252e%252e/out",
            "https://hooks.example/in/..;/out",
            "https://hooks.example/in/..;a=b/out",
            "https://hooks.example/in/a%00",
            "https://hooks.example/in\\..\\out",
            "https:\\\\hooks.example/in",
            " https://hooks.example/in",
            "https://hooks.exam\nple/in",
            "https://hooks.example/in/\tx",
            "//hooks.example/in",
            "/in",
            "file:///in",
            "ftp://hooks.example/in",
            "gopher://hooks.example/in",
            "",
        ] {
            assert!(!allows("https://hooks.example/in", url), "{url:?}");
        }
        let long = format!("https://hooks.example/in/{}", "x".repeat(MAX_URL_BYTES));
        assert!(!allows("https://hooks.example/in", &long));
    }

    #[test]
    fn an_address_in_disguise_is_the_address() {
        assert!(allows("http://127.0.0.1:8080", "http://0x7f.1:8080/x"));
        assert!(!allows("http://127.0.0.1:8080", "http://127.0.0.2:8080/x"));
        assert!(!allows("https://hooks.example", "https://2130706433/"));
        assert!(!allows("http://127.0.0.1", "http://[::ffff:127.0.0.1]/"));
        assert!(!allows("http://localhost", "http://127.0.0.1/"));
    }

    #[test]
    fn only_what_the_operator_wrote_leads_to_private_addresses() {
        let reach = |grant: HttpGrant, url: &str| granted(&[grant], url).unwrap().reach;
        let parse = |text: &str| text.parse::<HttpGrant>().unwrap();
        assert_eq!(
            reach(parse("https://a.example"), "https://a.example/"),
            Reach::Public
        );
        assert_eq!(
            reach(
                parse("https://a.example").private(true),
                "https://a.example/"
            ),
            Reach::Private
        );
        assert_eq!(
            reach(parse("http://localhost:1"), "http://localhost:1/"),
            Reach::Loopback
        );
        assert_eq!(
            reach(parse("http://10.0.0.1"), "http://10.0.0.1/"),
            Reach::Literal
        );
        assert_eq!(
            reach(parse("http://[::1]"), "http://[::1]/"),
            Reach::Literal
        );
    }

    #[test]
    fn what_is_no_address_is_no_grant() {
        for (text, problem) in [
            ("hooks.example", "is not an absolute URL"),
            ("ftp://hooks.example", "is neither http nor https"),
            (
                "https://u:p@hooks.example",
                "holds a user name or a password",
            ),
            ("https://hooks.example/?x", "has a query or a fragment"),
            ("https://hooks.example/#x", "has a query or a fragment"),
            (
                "https://hooks.example/a%2fb",
                "has a path with encoded slashes, dots or percent signs",
            ),
            (
                "https://hooks.example/ a",
                "holds blanks, control characters or backslashes",
            ),
        ] {
            let error = text.parse::<HttpGrant>().unwrap_err();
            assert_eq!(error.to_string(), problem, "{text}");
        }
    }
}
