//! Verifies JSON Web Tokens (RFC 7519) against inline key sets and PEM, and plain signatures.
//!
//! Owns which key may verify which algorithm: never `none`, never HMAC with a public key. Claims are checked against the call's
//! frozen clock. Key sets behind a URL are `jwks`'s: here they are inline.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, jwk::Jwk};
use serde_json::Value;

use crate::bindings::gantry::plugin::crypto::{Alg, JwksSource, JwtError, JwtPolicy};

/// Keys of one set that are looked at.
const MAX_KEYS: usize = 64;
const MAX_TOKEN_BYTES: usize = 64 << 10;
/// Clocks may differ by so much at most, whatever the guest says.
const MAX_LEEWAY_MS: u32 = 10 * 60 * 1000;

/// A key that may have signed a token.
struct Candidate {
    id: Option<String>,
    /// What the key set says it is for.
    only: Option<Algorithm>,
    key: DecodingKey,
}

/// A token whose parts and header are as they must be, whoever signed it.
struct Formed<'a> {
    header: Header,
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

fn form<'a>(token: &'a str, policy: &JwtPolicy) -> Result<Formed<'a>, JwtError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(JwtError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let (_header, payload) = signed.split_once('.').ok_or(JwtError::Malformed)?;
    let header = jsonwebtoken::decode_header(token).map_err(|_error| JwtError::Malformed)?;
    if payload.contains('.') || header.crit.is_some() {
        return Err(JwtError::Malformed);
    }
    let allowed = policy.algs.iter().any(|alg| algorithm(*alg) == header.alg);
    if !allowed {
        return Err(JwtError::BadSignature);
    }
    Ok(Formed {
        header,
        signed,
        payload,
        signature,
    })
}

/// Whether any key could verify `token`.
pub(crate) fn check_form(token: &str, policy: &JwtPolicy) -> Result<(), JwtError> {
    form(token, policy).map(drop)
}

/// Parses, verifies and checks `token`; answers its claims as JSON text.
pub(crate) fn verify(token: &str, policy: &JwtPolicy, now_ms: u64) -> Result<String, JwtError> {
    let Formed {
        header,
        signed,
        payload,
        signature,
    } = form(token, policy)?;
    let keys = usable(candidates(&policy.jwks)?, &header)?;
    let good = keys.iter().any(|candidate| {
        jsonwebtoken::crypto::verify(signature, signed.as_bytes(), &candidate.key, header.alg)
            .unwrap_or(false)
    });
    if !good {
        return Err(JwtError::BadSignature);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD
        .decode(payload)
        .map_err(|_error| JwtError::Malformed)?;
    let claims: Value = serde_json::from_slice(&bytes).map_err(|_error| JwtError::Malformed)?;
    check_claims(&claims, policy, now_ms)?;
    Ok(claims.to_string())
}

fn candidates(source: &JwksSource) -> Result<Vec<Candidate>, JwtError> {
    match source {
        JwksSource::Url(_) => Err(JwtError::JwksUnavailable),
        JwksSource::Inline(text) => {
            let set: Value =
                serde_json::from_str(text).map_err(|_error| JwtError::JwksUnavailable)?;
            let keys = set
                .get("keys")
                .and_then(Value::as_array)
                .ok_or(JwtError::JwksUnavailable)?;
            // A key of a kind unknown here does not spoil the others (RFC 7517 section 5).
            Ok(keys
                .iter()
                .take(MAX_KEYS)
                .filter_map(|key| from_jwk(serde_json::from_value(key.clone()).ok()?))
                .collect())
        }
        JwksSource::Pem(texts) => Ok(texts
            .iter()
            .take(MAX_KEYS)
            .filter_map(|text| from_pem(text.as_bytes()))
            .collect()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the key is read once")]
fn from_jwk(jwk: Jwk) -> Option<Candidate> {
    let encrypts = jwk.common.public_key_use.as_ref();
    if encrypts.is_some_and(|usage| *usage == jsonwebtoken::jwk::PublicKeyUse::Encryption) {
        return None;
    }
    let only = match jwk.common.key_algorithm {
        Some(named) => Some(Algorithm::try_from(named).ok()?),
        None => None,
    };
    Some(Candidate {
        id: jwk.common.key_id.clone(),
        only,
        key: DecodingKey::from_jwk(&jwk).ok()?,
    })
}

/// A public key or certificate. Its `kid` may be written in three ways, so every key is tried instead of naming it.
fn from_pem(text: &[u8]) -> Option<Candidate> {
    let key = DecodingKey::from_rsa_pem(text)
        .or_else(|_other| DecodingKey::from_ec_pem(text))
        .or_else(|_other| DecodingKey::from_ed_pem(text))
        .ok()?;
    Some(Candidate {
        id: None,
        only: None,
        key,
    })
}

/// The keys that may have signed a token with this header.
fn usable(candidates: Vec<Candidate>, header: &Header) -> Result<Vec<Candidate>, JwtError> {
    let usable: Vec<Candidate> = candidates
        .into_iter()
        .filter(|candidate| {
            let named = match (&candidate.id, &header.kid) {
                (Some(own), Some(wanted)) => own == wanted,
                _ => true,
            };
            named
                && candidate.key.family() == header.alg.family()
                && candidate.only.is_none_or(|only| only == header.alg)
        })
        .collect();
    if usable.is_empty() {
        return Err(JwtError::UnknownKey);
    }
    Ok(usable)
}

fn check_claims(claims: &Value, policy: &JwtPolicy, now_ms: u64) -> Result<(), JwtError> {
    if !claims.is_object() {
        return Err(JwtError::Malformed);
    }
    let leeway = u64::from(policy.leeway_ms.min(MAX_LEEWAY_MS));
    let expires = time_ms(claims, "exp")?.ok_or(JwtError::Malformed)?;
    if expires.saturating_add(leeway) <= now_ms {
        return Err(JwtError::Expired);
    }
    if time_ms(claims, "nbf")?.is_some_and(|begins| begins > now_ms.saturating_add(leeway)) {
        return Err(JwtError::NotYetValid);
    }
    if claims.get("iss").and_then(Value::as_str) != Some(policy.issuer.as_str()) {
        return Err(JwtError::WrongIssuer);
    }
    let meant = |audience: &Value| {
        audience
            .as_str()
            .is_some_and(|audience| policy.audiences.iter().any(|own| own == audience))
    };
    let for_us = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(meant),
        Some(audience) => meant(audience),
        None => false,
    };
    if !for_us {
        return Err(JwtError::WrongAudience);
    }
    Ok(())
}

/// A `NumericDate`: seconds, perhaps with a fraction (RFC 7519 section 2).
fn time_ms(claims: &Value, name: &str) -> Result<Option<u64>, JwtError> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(seconds.saturating_mul(1000)));
    }
    let seconds = value.as_f64().ok_or(JwtError::Malformed)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates: times before 1970 are 0, times past the end of u64 are its end"
    )]
    let milliseconds = (seconds * 1000.0) as u64;
    Ok(Some(milliseconds))
}

/// Whether `signature` is `key`'s over `message`. ECDSA signatures may be written as JOSE's fixed form or as ASN.1.
///
/// # Errors
/// What is wrong with the key.
pub(crate) fn verify_signature(
    alg: Alg,
    key: &DecodingKey,
    message: &[u8],
    signature: &[u8],
) -> Result<bool, String> {
    let algorithm = algorithm(alg);
    if key.family() != algorithm.family() {
        return Err("the key is not of this algorithm's kind".to_owned());
    }
    let asn1 = match alg {
        Alg::Es256 if signature.len() != 64 => Some(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1),
        Alg::Es384 if signature.len() != 96 => Some(&aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1),
        _ => None,
    };
    if let Some(asn1) = asn1 {
        let bytes = key.try_get_as_bytes().map_err(|error| error.to_string())?;
        let key = aws_lc_rs::signature::UnparsedPublicKey::new(asn1, bytes);
        return Ok(key.verify(message, signature).is_ok());
    }
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
    jsonwebtoken::crypto::verify(&signature, message, key, algorithm)
        .map_err(|error| error.to_string())
}

/// A key from `SubjectPublicKeyInfo` in DER, of the kind `alg` needs.
pub(crate) fn from_spki(alg: Alg, der: &[u8]) -> Result<DecodingKey, String> {
    match algorithm(alg).family() {
        AlgorithmFamily::Rsa => Ok(DecodingKey::from_rsa_der(der)),
        AlgorithmFamily::Ec => Ok(DecodingKey::from_ec_der(der)),
        AlgorithmFamily::Ed => Ok(DecodingKey::from_ed_der(der)),
        AlgorithmFamily::Hmac => Err("HMAC needs a granted secret, not a public key".to_owned()),
    }
}

/// A key from a JSON Web Key.
pub(crate) fn from_jwk_text(text: &str) -> Result<DecodingKey, String> {
    let jwk: Jwk = serde_json::from_str(text).map_err(|error| format!("not a JWK: {error}"))?;
    DecodingKey::from_jwk(&jwk).map_err(|error| format!("not a usable JWK: {error}"))
}

fn algorithm(alg: Alg) -> Algorithm {
    match alg {
        Alg::Rs256 => Algorithm::RS256,
        Alg::Rs384 => Algorithm::RS384,
        Alg::Rs512 => Algorithm::RS512,
        Alg::Ps256 => Algorithm::PS256,
        Alg::Es256 => Algorithm::ES256,
        Alg::Es384 => Algorithm::ES384,
        Alg::Eddsa => Algorithm::EdDSA,
        Alg::Hs256 => Algorithm::HS256,
    }
}
