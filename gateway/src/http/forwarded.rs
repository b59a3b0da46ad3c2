//! Who the client is and how it addresses us, after trusted proxies are taken off.
//!
//! Invariant: a forwarding header counts only when the peer that sent it is trusted, and is read from the right, because everything left of
//! the last trusted hop is whatever the client wrote. Only one kind of headers is read: a proxy passes on the other as the client wrote it.

mod rfc7239;

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
};

use http::{HeaderMap, header, request::Parts};

use crate::{
    app::EdgeSettings,
    config::{Network, ProxyHeaders},
};

/// The client's side of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The client's address.
    pub address: IpAddr,
    /// Host and port as the client addresses us; `None` when it does not say, or says nonsense.
    pub host: Option<String>,
    /// `https` or `http`, as the client sees it.
    pub scheme: &'static str,
    /// Whether a trusted proxy brought the request.
    pub by_proxy: bool,
}

/// Reads the origin of a request that came from `peer` over TLS or not.
#[must_use]
pub fn origin(parts: &Parts, peer: IpAddr, tls: bool, edge: &EdgeSettings) -> Origin {
    let peer = peer.to_canonical();
    let own = Origin {
        address: peer,
        host: own_host(parts),
        scheme: if tls { "https" } else { "http" },
        by_proxy: false,
    };
    let trusted = &edge.trusted_proxies;
    if !is_trusted(peer, trusted) {
        warn_once(&parts.headers, peer);
        return own;
    }
    match edge.proxy_headers {
        ProxyHeaders::XForwarded => x_forwarded(&parts.headers, own, trusted),
        ProxyHeaders::Forwarded => rfc7239::forwarded(&parts.headers, own, trusted),
    }
}

/// Without its address in `trusted_proxies` a proxy's clients all look like the proxy, and nothing else tells the operator.
fn warn_once(headers: &HeaderMap, peer: IpAddr) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    const SENT: [&str; 5] = [
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
    ];
    if WARNED.load(Ordering::Relaxed) {
        return;
    }
    let Some(header) = SENT.iter().find(|name| headers.contains_key(**name)) else {
        return;
    };
    if !WARNED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            client.address = %peer,
            header,
            "a peer that is not in `trusted_proxies` sends forwarding headers, which are ignored; if it is your proxy, add its address there \
             (said once)"
        );
    }
}

fn x_forwarded(headers: &HeaderMap, own: Origin, trusted: &[Network]) -> Origin {
    let scheme = scheme(last(headers, "x-forwarded-proto").as_deref()).unwrap_or(own.scheme);
    let host = last(headers, "x-forwarded-host").filter(|host| is_host(host));
    let port = last(headers, "x-forwarded-port").and_then(|port| port.parse().ok());
    Origin {
        address: forwarded_for(headers, own.address, trusted),
        host: host.or(own.host).map(|host| with_port(host, port)),
        scheme,
        by_proxy: true,
    }
}

fn scheme(text: Option<&str>) -> Option<&'static str> {
    match text {
        Some("https") => Some("https"),
        Some("http") => Some("http"),
        _ => None,
    }
}

/// Names the port of a host that names none. The usual port of either scheme says nothing: it is the scheme's, or the proxy's own.
fn with_port(host: String, port: Option<u16>) -> String {
    let bare = host.rsplit_once(']').map_or(&*host, |(_, behind)| behind);
    match port {
        Some(port) if !matches!(port, 0 | 80 | 443) && !bare.contains(':') => {
            format!("{host}:{port}")
        }
        _ => host,
    }
}

/// The right-most address that is not a trusted proxy's.
fn forwarded_for(headers: &HeaderMap, peer: IpAddr, trusted: &[Network]) -> IpAddr {
    let mut client = peer;
    let lines: Vec<&str> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let Some(address) = parse_address(hop.trim()) else {
            break;
        };
        client = address;
        if !is_trusted(client, trusted) {
            break;
        }
    }
    client
}

/// An address, perhaps with a port, perhaps in brackets.
fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Some(socket.ip().to_canonical());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
}

fn last(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    let value = value.rsplit(',').next()?.trim().to_ascii_lowercase();
    (!value.is_empty()).then_some(value)
}

fn own_host(parts: &Parts) -> Option<String> {
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    let host = match authority {
        Some(authority) => authority,
        None => parts.headers.get(header::HOST)?.to_str().ok()?,
    };
    is_host(host).then(|| host.to_ascii_lowercase())
}

/// Whether the request names a host at all, be it nonsense.
#[must_use]
pub fn says_host(parts: &Parts) -> bool {
    let header = parts.headers.get(header::HOST);
    parts.uri.authority().is_some() || header.is_some_and(|host| !host.is_empty())
}

/// Only characters that may stand in a quoted challenge and in a URL's authority, without user information.
fn is_host(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= 255
        && host
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte))
}

/// Whether a peer's forwarding headers are believed.
#[must_use]
pub fn is_trusted(address: IpAddr, trusted: &[Network]) -> bool {
    trusted.iter().any(|network| covers(network, address))
}

fn covers(network: &Network, address: IpAddr) -> bool {
    let (own, other, width) = match (network.address.to_canonical(), address) {
        (IpAddr::V4(own), IpAddr::V4(other)) => {
            (u128::from(own.to_bits()), u128::from(other.to_bits()), 32)
        }
        (IpAddr::V6(own), IpAddr::V6(other)) => (own.to_bits(), other.to_bits(), 128),
        _ => return false,
    };
    let ignored = u32::from(width - network.prefix.min(width));
    own.checked_shr(ignored) == other.checked_shr(ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        let (address, prefix) = text.split_once('/').unwrap();
        Network {
            address: address.parse().unwrap(),
            prefix: prefix.parse().unwrap(),
        }
    }

    fn read(peer: &str, headers: &[(&str, &str)]) -> Origin {
        read_as(ProxyHeaders::XForwarded, peer, headers)
    }

    fn read_as(kind: ProxyHeaders, peer: &str, headers: &[(&str, &str)]) -> Origin {
        let mut request = http::Request::builder().uri("/v2/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let trusted = [network("10.0.0.0/8"), network("fd00::/8")];
        let own = Origin {
            address: peer.parse::<IpAddr>().unwrap().to_canonical(),
            host: own_host(&parts),
            scheme: "http",
            by_proxy: false,
        };
        if !is_trusted(own.address, &trusted) {
            return own;
        }
        match kind {
            ProxyHeaders::XForwarded => x_forwarded(&parts.headers, own, &trusted),
            ProxyHeaders::Forwarded => rfc7239::forwarded(&parts.headers, own, &trusted),
        }
    }

    fn address(peer: &str, forwarded: &str) -> String {
        read(peer, &[("x-forwarded-for", forwarded)])
            .address
            .to_string()
    }

    #[test]
    fn a_strangers_forwarded_headers_are_ignored() {
        let origin = read(
            "192.0.2.1",
            &[
                ("host", "gw.example"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil.example"),
            ],
        );
        assert_eq!(origin.address.to_string(), "192.0.2.1");
        assert_eq!(origin.host.as_deref(), Some("gw.example"));
        assert_eq!(origin.scheme, "http");
    }

    #[test]
    fn a_trusted_proxy_says_scheme_host_and_address() {
        let origin = read(
            "10.1.2.3",
            &[
                ("host", "inner:5000"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "HTTPS"),
                ("x-forwarded-host", "GW.example:8443"),
            ],
        );
        assert_eq!(origin.address.to_string(), "1.1.1.1");
        assert_eq!(origin.host.as_deref(), Some("gw.example:8443"));
        assert_eq!(origin.scheme, "https");
    }

    #[test]
    fn a_port_is_named_where_the_host_names_none() {
        for (host, port, expected) in [
            ("gw.example", "8443", "gw.example:8443"),
            ("gw.example:5000", "8443", "gw.example:5000"),
            ("[2001:db8::1]", "8443", "[2001:db8::1]:8443"),
            ("[2001:db8::1]:5000", "8443", "[2001:db8::1]:5000"),
            ("gw.example", "443", "gw.example"),
            ("gw.example", "80", "gw.example"),
            ("gw.example", "0", "gw.example"),
            ("gw.example", "65536", "gw.example"),
            ("gw.example", "x", "gw.example"),
            ("gw.example", "443, 8443", "gw.example:8443"),
        ] {
            for name in ["host", "x-forwarded-host"] {
                let origin = read("10.1.2.3", &[(name, host), ("x-forwarded-port", port)]);
                assert_eq!(origin.host.as_deref(), Some(expected), "{host} {port}");
            }
        }
        let stranger = read("192.0.2.1", &[("host", "gw"), ("x-forwarded-port", "1")]);
        assert_eq!(stranger.host.as_deref(), Some("gw"));
    }

    #[test]
    fn only_the_chosen_kind_of_headers_is_read() {
        let both = [
            ("host", "inner"),
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "x.example"),
            ("forwarded", "for=2.2.2.2;proto=https;host=f.example"),
        ];
        let x = read_as(ProxyHeaders::XForwarded, "10.0.0.1", &both);
        assert_eq!(
            (x.address.to_string(), x.host.as_deref()),
            ("1.1.1.1".into(), Some("x.example"))
        );
        let rfc = read_as(ProxyHeaders::Forwarded, "10.0.0.1", &both);
        assert_eq!(
            (rfc.address.to_string(), rfc.host.as_deref()),
            ("2.2.2.2".into(), Some("f.example"))
        );
        let without = read_as(ProxyHeaders::Forwarded, "10.0.0.1", &both[..4]);
        assert_eq!(
            (
                without.address.to_string(),
                without.host.as_deref(),
                without.scheme
            ),
            ("10.0.0.1".into(), Some("inner"), "http")
        );
    }

    #[test]
    fn forwarded_is_read_from_the_right_up_to_the_first_stranger() {
        for (forwarded, address, host, scheme) in [
            ("for=1.1.1.1", "1.1.1.1", "inner", "http"),
            (
                "For=\"1.1.1.1:47\";Proto=HTTPS",
                "1.1.1.1",
                "inner",
                "https",
            ),
            ("for=\"[2001:db8::1]:47\"", "2001:db8::1", "inner", "http"),
            (
                "for=6.6.6.6;host=evil, for=1.1.1.1;host=gw",
                "1.1.1.1",
                "gw",
                "http",
            ),
            (
                "for=1.1.1.1;host=gw;proto=https, for=10.2.2.2;host=b;proto=http",
                "1.1.1.1",
                "gw",
                "https",
            ),
            ("for=1.1.1.1, for=unknown", "10.0.0.1", "inner", "http"),
            ("for=1.1.1.1;x-id=7;by=_a", "1.1.1.1", "inner", "http"),
            (", for=1.1.1.1,, ,", "1.1.1.1", "inner", "http"),
            ("for=1.1.1.1; proto=https;", "1.1.1.1", "inner", "https"),
            ("for=1.1.1.1;;proto=https", "10.0.0.1", "inner", "http"),
            ("a b=c, for=1.1.1.1", "10.0.0.1", "inner", "http"),
            ("for=_hidden;host=gw", "10.0.0.1", "gw", "http"),
            ("for=1.1.1.1;host=\"a\\\"b\"", "1.1.1.1", "inner", "http"),
            ("for=\"1.1.1.1", "10.0.0.1", "inner", "http"),
            ("for=\"6.6.6.6, for=1.1.1.1\"", "10.0.0.1", "inner", "http"),
            ("nonsense", "10.0.0.1", "inner", "http"),
            ("", "10.0.0.1", "inner", "http"),
        ] {
            let headers = [("host", "inner"), ("forwarded", forwarded)];
            let origin = read_as(ProxyHeaders::Forwarded, "10.0.0.1", &headers);
            let found = (origin.address.to_string(), origin.host, origin.scheme);
            assert_eq!(
                found,
                (address.into(), Some(host.into()), scheme),
                "{forwarded}"
            );
        }
        let lines = [("forwarded", ""), ("forwarded", "for=1.1.1.1")];
        let origin = read_as(ProxyHeaders::Forwarded, "10.0.0.1", &lines);
        assert_eq!(origin.address.to_string(), "1.1.1.1");
        let lines = [("forwarded", "for=6.6.6.6"), ("forwarded", "for=1.1.1.1")];
        let origin = read_as(ProxyHeaders::Forwarded, "10.0.0.1", &lines);
        assert_eq!(origin.address.to_string(), "1.1.1.1");
    }

    #[test]
    fn addresses_are_read_from_the_right_up_to_the_first_stranger() {
        for (peer, forwarded, expected) in [
            ("10.0.0.1", "6.6.6.6, 1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "6.6.6.6, 1.1.1.1, 10.9.9.9", "1.1.1.1"),
            ("10.0.0.1", "1.1.1.1, junk", "10.0.0.1"),
            ("10.0.0.1", "junk, 1.1.1.1", "1.1.1.1"),
            ("10.0.0.1", "10.2.2.2", "10.2.2.2"),
            ("10.0.0.1", "1.1.1.1:4711", "1.1.1.1"),
            ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
            ("10.0.0.1", "[2001:db8::1]", "2001:db8::1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("::ffff:10.0.0.1", "1.1.1.1", "1.1.1.1"),
            ("fd00::1", "1.1.1.1", "1.1.1.1"),
            ("fe80::1", "1.1.1.1", "fe80::1"),
        ] {
            assert_eq!(address(peer, forwarded), expected, "{peer} {forwarded}");
        }
    }

    #[test]
    fn two_lines_are_one_list() {
        let headers = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "1.1.1.1"),
        ];
        assert_eq!(read("10.0.0.1", &headers).address.to_string(), "1.1.1.1");
    }

    #[test]
    fn a_host_that_could_break_out_of_a_challenge_is_no_host() {
        for host in ["a\"b", "a b", "user@host", "a/b", "a,b", ""] {
            assert_eq!(read("192.0.2.1", &[("host", host)]).host, None, "{host}");
        }
    }

    #[test]
    fn networks_cover_by_their_leading_bits() {
        for (net, address, expected) in [
            ("0.0.0.0/0", "8.8.8.8", true),
            ("127.0.0.1/32", "127.0.0.1", true),
            ("127.0.0.1/32", "127.0.0.2", false),
            ("10.0.0.0/9", "10.127.0.1", true),
            ("10.0.0.0/9", "10.128.0.1", false),
            ("::/0", "::1", true),
            ("::/0", "127.0.0.1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
        ] {
            assert_eq!(
                covers(&network(net), address.parse().unwrap()),
                expected,
                "{net} {address}"
            );
        }
    }
}
