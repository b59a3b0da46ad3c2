//! A path → which endpoint of the distribution spec, with its parts decoded but not yet parsed.
//!
//! Read from the right: the last two or three parts decide, everything before them is the name.

use gantry_model::Namespaces;

use super::{RouteError, query};

/// An endpoint and the mirror prefix in front of `/v2`, when there is one.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) prefix: Option<String>,
    pub(super) endpoint: Endpoint,
}

/// The endpoints.
#[derive(Debug)]
pub(super) enum Endpoint {
    Ping,
    Catalog,
    Tags { name: String },
    Referrers { name: String, digest: String },
    Manifest { name: String, reference: String },
    Blob { name: String, digest: String },
    Uploads { name: String },
    Upload { name: String, upload: String },
}

impl Endpoint {
    /// The methods it takes, as the `Allow` header says it.
    pub(super) fn allow(&self) -> &'static str {
        match self {
            Self::Ping | Self::Catalog | Self::Tags { .. } | Self::Referrers { .. } => "GET, HEAD",
            Self::Manifest { .. } => "GET, HEAD, PUT, DELETE",
            Self::Blob { .. } => "GET, HEAD, DELETE",
            Self::Uploads { .. } => "POST",
            Self::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
        }
    }
}

pub(super) fn parse(path: &str, namespaces: &Namespaces) -> Result<Target, RouteError> {
    let path = path.strip_prefix('/').ok_or(RouteError::NotFound)?;
    // Old docker joins a mirror's URL and a path without a look at the slash that both have.
    let path = match path.strip_prefix('/') {
        Some(single) if single == "v2" || single.starts_with("v2/") => single,
        _ => path,
    };
    let raw: Vec<&str> = path.split('/').collect();
    let (prefix, rest) = split_prefix(&raw, namespaces)?;
    let mut parts = Vec::with_capacity(rest.len());
    for (index, part) in rest.iter().enumerate() {
        if part.is_empty() && index + 1 == rest.len() {
            parts.push(String::new());
        } else {
            parts.push(segment(part)?);
        }
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Ok(Target {
        prefix,
        endpoint: endpoint(&parts)?,
    })
}

/// Finds `v2`: first, or after the prefix of a configured mirror.
fn split_prefix<'a, 'p>(
    raw: &'a [&'p str],
    namespaces: &Namespaces,
) -> Result<(Option<String>, &'a [&'p str]), RouteError> {
    if let Some((&"v2", rest)) = raw.split_first() {
        return Ok((None, rest));
    }
    raw.iter()
        .enumerate()
        .filter(|(_, part)| **part == "v2")
        .find_map(|(index, _)| {
            let prefix = raw.get(..index)?.join("/");
            let known = namespaces
                .mirrors
                .iter()
                .any(|mirror| mirror.prefix.as_str() == prefix);
            known.then_some((Some(prefix), raw.get(index + 1..)?))
        })
        .ok_or(RouteError::NotFound)
}

fn endpoint(parts: &[&str]) -> Result<Endpoint, RouteError> {
    let owned = |part: &str| part.to_owned();
    Ok(match parts {
        [] | [""] => Endpoint::Ping,
        ["_catalog"] => Endpoint::Catalog,
        [name @ .., "tags", "list"] => Endpoint::Tags { name: join(name)? },
        [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
            Endpoint::Uploads { name: join(name)? }
        }
        [.., ""] => return Err(RouteError::NotFound),
        [name @ .., "manifests", reference] => Endpoint::Manifest {
            name: join(name)?,
            reference: owned(reference),
        },
        [name @ .., "referrers", digest] => Endpoint::Referrers {
            name: join(name)?,
            digest: owned(digest),
        },
        [name @ .., "blobs", "uploads", upload] => Endpoint::Upload {
            name: join(name)?,
            upload: owned(upload),
        },
        [name @ .., "blobs", digest] => Endpoint::Blob {
            name: join(name)?,
            digest: owned(digest),
        },
        _ => return Err(RouteError::NotFound),
    })
}

fn join(name: &[&str]) -> Result<String, RouteError> {
    if name.is_empty() {
        return Err(RouteError::NotFound);
    }
    Ok(name.join("/"))
}

/// Decodes one part of a path, once. A part that hides a separator or climbs is refused, whatever a later layer would make of it.
fn segment(raw: &str) -> Result<String, RouteError> {
    let part = query::decode(raw, false)?;
    if part.is_empty() || part == "." || part == ".." {
        return Err(RouteError::Encoding("empty or relative path segment"));
    }
    if part.contains(['/', '\\']) || part.chars().any(char::is_control) {
        return Err(RouteError::Encoding("separator or control character"));
    }
    Ok(part)
}
