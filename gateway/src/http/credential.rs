//! The `Authorization` header → credential. Text only; who it belongs to is `auth`'s business.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use gantry_plugin_host::Credential;
use http::{HeaderMap, header};

use super::error::{ChallengeError, Error};
use crate::app::Generation;

/// Bytes of a credential at most: half of what a request's head may have. Our tokens have no more, and hold 64 scopes of any length.
pub const MAX_CREDENTIAL_BYTES: usize = 32 << 10;

/// Clients disagree about padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// As [`parse`]. An open registry looks at no credential, as registry:2 without `auth` does not: clients show what they have for its host.
///
/// # Errors
/// Those of [`parse`].
pub fn shown_to(generation: &Generation, headers: &HeaderMap) -> Result<Credential, Error> {
    match generation.is_open {
        true => Ok(Credential::Anonymous),
        false => parse(headers),
    }
}

/// Reads the credential; none is [`Credential::Anonymous`].
///
/// # Errors
/// [`Error::Unauthorized`] when there is one that cannot be read: it is never taken for none.
pub fn parse(headers: &HeaderMap) -> Result<Credential, Error> {
    let mut lines = headers.get_all(header::AUTHORIZATION).iter();
    let Some(line) = lines.next() else {
        return Ok(Credential::Anonymous);
    };
    let text = line.to_str().ok().filter(|_| lines.next().is_none());
    let (scheme, proof) = text
        .and_then(|text| text.trim().split_once(' '))
        .ok_or_else(|| malformed(None))?;
    let proof = proof.trim();
    if proof.len() > MAX_CREDENTIAL_BYTES {
        return Err(malformed(None));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        basic(proof).ok_or_else(|| malformed(None))
    } else if scheme.eq_ignore_ascii_case("bearer") {
        bearer(proof).ok_or_else(|| malformed(Some(ChallengeError::InvalidToken)))
    } else {
        Err(malformed(None))
    }
}

/// RFC 7617: everything before the first colon is the name.
fn basic(proof: &str) -> Option<Credential> {
    let text = String::from_utf8(BASE64.decode(proof).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Credential::basic(username, password).ok()
}

/// RFC 6750's `b64token`.
fn bearer(proof: &str) -> Option<Credential> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (!proof.is_empty() && proof.bytes().all(legal)).then(|| Credential::Bearer(proof.to_owned()))
}

fn malformed(error: Option<ChallengeError>) -> Error {
    Error::Unauthorized {
        scopes: Vec::new(),
        error,
        message: "the Authorization header is malformed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|line| line.parse().unwrap());
        lines.map(|line| (header::AUTHORIZATION, line)).collect()
    }

    fn read(lines: &[&str]) -> Result<Credential, Option<ChallengeError>> {
        parse(&headers(lines)).map_err(|error| match error {
            Error::Unauthorized { error, .. } => error,
            other => panic!("{other}"),
        })
    }

    fn user(username: &str, password: &str) -> Result<Credential, Option<ChallengeError>> {
        Credential::basic(username, password).map_err(|_malformed| None)
    }

    #[test]
    fn no_header_is_anonymous() {
        assert!(read(&[]) == Ok(Credential::Anonymous));
    }

    #[test]
    fn basic_is_read_whatever_its_case_and_padding() {
        for line in [
            "Basic YTpiOmM=",
            "basic YTpiOmM=",
            "BASIC YTpiOmM",
            "Basic   YTpiOmM= ",
        ] {
            assert!(read(&[line]) == user("a", "b:c"), "{line}");
        }
        assert!(read(&["Basic YTo="]) == user("a", ""));
    }

    #[test]
    fn bearer_is_read_whatever_its_case() {
        for line in ["Bearer abc.d-e_f~+/=", "bearer abc.d-e_f~+/="] {
            assert!(read(&[line]) == Ok(Credential::Bearer("abc.d-e_f~+/=".to_owned())));
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_never_anonymous() {
        let long = format!("Bearer {}", "a".repeat(MAX_CREDENTIAL_BYTES + 1));
        for line in [
            "",
            "Basic",
            "Basic !!!",
            "Basic YWJj",
            "Basic /w==",
            "Basic YQo6Yg==",
            "Negotiate abc",
            "Digest username=\"a\"",
            long.as_str(),
        ] {
            assert!(read(&[line]) == Err(None), "{line}");
        }
        for line in ["Bearer a b", "Bearer a,b", "Bearer \"a\""] {
            assert!(
                read(&[line]) == Err(Some(ChallengeError::InvalidToken)),
                "{line}"
            );
        }
        assert!(read(&["Basic YTpi", "Basic YTpi"]) == Err(None));
    }
}
