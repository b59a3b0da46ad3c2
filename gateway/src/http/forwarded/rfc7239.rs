//! `Forwarded` (RFC 7239): one element for each hop, the last written by the peer.
//!
//! A header that is malformed anywhere says nothing: where one reader sees an end, another may see more. Empty elements of the list are
//! none (RFC 9110 section 5.6.1.2).

use http::HeaderMap;

use super::{Network, Origin, is_host, is_trusted, parse_address, scheme};

/// One hop: what a proxy says of the side that asked it.
#[derive(Debug, Default)]
struct Hop {
    address: Option<String>,
    host: Option<String>,
    scheme: Option<String>,
}

/// What the trusted hops say. Host and scheme are those of the hop that stands nearest to the client.
pub(super) fn forwarded(headers: &HeaderMap, own: Origin, trusted: &[Network]) -> Origin {
    let lines: Option<Vec<&str>> = headers
        .get_all("forwarded")
        .iter()
        .map(|line| line.to_str().ok())
        .collect();
    let hops = lines.and_then(|lines| hops(&lines.join(",")));
    let mut origin = Origin {
        by_proxy: true,
        ..own
    };
    for hop in hops.unwrap_or_default().into_iter().rev() {
        if let Some(host) = hop.host.filter(|host| is_host(host)) {
            origin.host = Some(host);
        }
        if let Some(scheme) = scheme(hop.scheme.as_deref()) {
            origin.scheme = scheme;
        }
        let Some(address) = hop.address.as_deref().and_then(parse_address) else {
            break;
        };
        origin.address = address;
        if !is_trusted(address, trusted) {
            break;
        }
    }
    origin
}

/// The elements of a list; `None` when any of it is malformed.
fn hops(text: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    let mut rest = text.trim_matches(IS_BETWEEN);
    while !rest.is_empty() {
        let (hop, behind) = hop(rest)?;
        hops.push(hop);
        rest = behind.trim_start_matches(IS_BETWEEN);
    }
    Some(hops)
}

/// What may stand between two elements.
const IS_BETWEEN: [char; 3] = [' ', '\t', ','];

/// The first element, and what stands behind it.
fn hop(text: &str) -> Option<(Hop, &str)> {
    let mut hop = Hop::default();
    let mut rest = text;
    loop {
        let (name, behind) = rest.split_once('=')?;
        let (value, behind) = value(behind)?;
        let place = match name.to_ascii_lowercase().as_str() {
            "for" => Some(&mut hop.address),
            "host" => Some(&mut hop.host),
            "proto" => Some(&mut hop.scheme),
            name if is_token(name) => None,
            _ => return None,
        };
        if place.is_some_and(|place| place.replace(value.to_ascii_lowercase()).is_some()) {
            return None;
        }
        let behind = behind.trim_start();
        match behind.chars().next() {
            None | Some(',') => return Some((hop, behind)),
            Some(';') => rest = behind.get(1..)?.trim_start(),
            Some(_) => return None,
        }
        // A proxy may end an element with a semicolon.
        if rest.is_empty() || rest.starts_with(',') {
            return Some((hop, rest));
        }
    }
}

/// Whether the text is a token (RFC 9110 section 5.6.2).
fn is_token(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(legal)
}

/// A token or a quoted string, and what stands behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t']).unwrap_or(text.len());
        let (token, behind) = text.split_at_checked(end)?;
        let is_token = !token.is_empty() && !token.contains(['"', '=', '\\']);
        return is_token.then(|| (token.to_owned(), behind));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, quoted.get(index + 1..)?)),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}
