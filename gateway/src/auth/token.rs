//! Our own tokens: ES256 JWTs that hold an identity and the most it may do.
//!
//! A token never decides, and buys no longer one: what is got with a token ends with it, and names what the first credential proved.
//! Whoever verifies a token issued it, so no clock differs and no leeway is given. A token never decides: authorization runs on every request, so that revoking is fast. `access` is in the client's spelling, as
//! docker's token specification has it; `gantry.names` holds the canonical names that count, where they differ.
//! Invariant: only a key of the key folder verifies a token; no key is ever taken from a token's header.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use aws_lc_rs::{
    digest,
    encoding::AsDer as _,
    rand,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gantry_model::{AttributeValue, Principal, Scope};
use gantry_registry::Clock as _;
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, decode_header, encode,
};
use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::{
    Identified, IssuedToken,
    revocation::{ProofParts, Revocation},
};
use crate::{
    callers::UpstreamCaller,
    clock::SystemClock,
    files,
    http::{credential::MAX_CREDENTIAL_BYTES, error::Error},
};

/// Good tokens kept at most.
const MAX_GOOD_TOKENS: u64 = 10_000;

/// Bytes of a token that are not its claims: header, signature and two dots.
const MAX_FRAME_BYTES: usize = 256;

/// Bytes of a token's claims as JSON at most. Base64 makes four of three, and the token is a credential that this registry accepts.
const MAX_CLAIMS_BYTES: usize = (MAX_CREDENTIAL_BYTES - MAX_FRAME_BYTES) / 4 * 3;

/// Length of a coordinate on P-256.
const COORDINATE_BYTES: usize = 32;

/// Why a token of ours is not good.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its principal is gone, disabled, or has another secret.
    #[error("the token was revoked")]
    Revoked,
    /// Not a token this registry gave out.
    #[error("the token was not issued by this registry")]
    Unknown,
}

/// Issues and verifies tokens.
pub struct Tokens {
    issuer: String,
    lifetime: Duration,
    signing: (String, EncodingKey),
    verifying: Vec<(String, DecodingKey)>,
    published: String,
    revocation: Arc<Revocation>,
    /// Tokens found good, by their digest: a client shows one with each of its requests, and to verify one costs more than all the rest
    /// of a small answer.
    good: Cache<[u8; 32], GoodToken>,
}

/// What a good token says.
#[derive(Clone, Debug)]
struct GoodToken {
    identified: Identified,
    /// Seconds since 1970: from then on it is good no more.
    ends: u64,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokens")
            .field("issuer", &self.issuer)
            .field("kid", &self.signing.0)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    iat: u64,
    nbf: u64,
    exp: u64,
    jti: String,
    access: Vec<Scope>,
    gantry: Inside,
}

/// What only this gateway reads.
#[derive(Debug, Deserialize, Serialize)]
struct Inside {
    kind: String,
    issuer: String,
    groups: Vec<String>,
    attributes: Vec<(String, Attribute)>,
    /// Canonical names by place in `access`, of scopes that the client spells otherwise.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    names: BTreeMap<usize, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_ends_at_ms: Option<u64>,
    /// `None` = the token is anonymous.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proved: Option<Proved>,
    /// The mirror whose upstream vouches for the identity, and confirmed what `access` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upstream: Option<String>,
}

/// What the first credential proved.
#[derive(Debug, Deserialize, Serialize)]
struct Proved {
    /// The binding that vouched; `None` = an upstream did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<Arc<str>>,
    generation: Arc<str>,
    at_ms: u64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(untagged)]
enum Attribute {
    Flag(bool),
    Number(i64),
    Text(String),
    Texts(Vec<String>),
}

impl Tokens {
    /// Opens the key folder: the newest key signs, all verify. An empty or missing folder gets a first key, readable by its owner only.
    ///
    /// # Errors
    /// When the folder cannot be read or written, or holds a file that is not a P-256 key in PKCS#8 PEM.
    pub(crate) fn open(
        folder: &Path,
        issuer: &str,
        lifetime: Duration,
        revocation: Arc<Revocation>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the token key folder {}", folder.display()))?;
        let mut keys = key_files(folder)?;
        if keys.is_empty() {
            let path = folder.join("token-1.pem");
            make_key(&path)
                .with_context(|| format!("cannot make the token key {}", path.display()))?;
            keys = key_files(folder)?;
        }
        let keys = keys
            .iter()
            .map(|path| read_key(path))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut verifying = Vec::new();
        let mut signing = None;
        let mut published = Vec::new();
        for key in keys {
            published.push(key.public);
            verifying.push((key.kid.clone(), key.decoding));
            signing = Some((key.kid, key.encoding));
        }
        let signing = signing.context("the token key folder holds no key")?;
        Ok(Self {
            issuer: issuer.to_owned(),
            lifetime: lifetime.max(Duration::from_secs(60)),
            signing,
            verifying,
            published: serde_json::json!({ "keys": published }).to_string(),
            good: Cache::new(MAX_GOOD_TOKENS),
            revocation,
        })
    }

    /// The public keys, as a JWK set (RFC 7517 section 5): who gets our tokens may verify them.
    pub(crate) fn published(&self) -> &str {
        &self.published
    }

    /// Begins a token for `identified`, which holds nothing yet.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the identity alone is larger than a token can be, or the system has no randomness.
    pub(crate) fn draft(&self, identified: &Identified, service: &str) -> Result<Draft, Error> {
        let principal = &identified.principal;
        let now = SystemClock.now_ms() / 1000;
        let mut jti = [0_u8; 16];
        rand::fill(&mut jti).map_err(|unspecified| Error::unavailable(unspecified.to_string()))?;
        let claims = Claims {
            iss: self.issuer.clone(),
            sub: principal.id.clone(),
            aud: service.to_owned(),
            iat: now,
            nbf: now,
            exp: now,
            jti: URL_SAFE_NO_PAD.encode(jti),
            access: Vec::new(),
            gantry: Inside::of(identified),
        };
        let length = json_bytes(&claims)?;
        // `"names":{},` comes with the first name.
        let left = MAX_CLAIMS_BYTES.checked_sub(length + 11);
        let left = left.ok_or_else(|| {
            Error::unavailable(format!(
                "groups and attributes make the identity of {} {length} bytes long; a token holds {MAX_CLAIMS_BYTES}",
                principal.id
            ))
        })?;
        Ok(Draft {
            claims,
            left,
            ends: identified.token_ends,
        })
    }

    /// Signs a token. It lives for `longest` at most, but no client is given less than a minute, unless the identity, or the token that
    /// was shown for it, ends before.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot be signed.
    pub(crate) fn sign(
        &self,
        draft: Draft,
        longest: Option<Duration>,
    ) -> Result<IssuedToken, Error> {
        let Draft {
            mut claims, ends, ..
        } = draft;
        let now = claims.iat;
        let lifetime = longest.map_or(self.lifetime, |longest| longest.min(self.lifetime));
        let mut expires_in = lifetime.as_secs().max(60);
        let identity_ends = claims.gantry.identity_ends_at_ms.map(|end| end / 1000);
        for end in [identity_ends, ends].into_iter().flatten() {
            expires_in = expires_in.min(end.saturating_sub(now));
        }
        claims.exp = now + expires_in;
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.signing.0.clone());
        let token = encode(&header, &claims, &self.signing.1)
            .map_err(|error| Error::unavailable(error.to_string()))?;
        Ok(IssuedToken {
            token,
            expires_in,
            issued_at: now,
            scopes: claims.access,
        })
    }

    /// Verifies a token; `None` when it was not made with any of our keys and may be somebody else's.
    #[must_use]
    pub(crate) fn verify(&self, token: &str) -> Option<Result<Identified, TokenError>> {
        let digest: [u8; 32] = digest::digest(&digest::SHA256, token.as_bytes())
            .as_ref()
            .try_into()
            .ok()?;
        let now = SystemClock.now_ms() / 1000;
        if let Some(good) = self.good.get(&digest)
            && now < good.ends
        {
            return Some(Ok(good.identified));
        }
        let verdict = self.examine(token)?;
        Some(verdict.map(|good| {
            self.good.insert(digest, good.clone());
            good.identified
        }))
    }

    fn examine(&self, token: &str) -> Option<Result<GoodToken, TokenError>> {
        let header = decode_header(token).ok()?;
        let kid = header.kid?;
        let (_, key) = self.verifying.iter().find(|(known, _)| *known == kid)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = 0;
        // Nothing is issued for later.
        validation.validate_nbf = false;
        validation.set_issuer(&[&self.issuer]);
        // A realm answers to several host names; a token is bound to canonical names, not to one of them.
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
        use jsonwebtoken::errors::ErrorKind;
        Some(match decode::<Claims>(token, key, &validation) {
            Ok(data) if data.claims.exp <= SystemClock.now_ms() / 1000 => Err(TokenError::Expired),
            Ok(data) => data
                .claims
                .good(&self.revocation)
                .ok_or(TokenError::Unknown),
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                Err(TokenError::Expired)
            }
            Err(_other) => Err(TokenError::Unknown),
        })
    }
}

/// A token that is not signed yet.
#[derive(Debug)]
pub(crate) struct Draft {
    claims: Claims,
    /// Bytes of JSON that there is room for.
    left: usize,
    /// When the token that was shown for it ends.
    ends: Option<u64>,
}

impl Draft {
    /// Adds a scope, in the client's spelling and with the canonical name that counts. A token that has no room for it stays as it is.
    ///
    /// # Errors
    /// [`TokenFull`]: there is no room for it.
    pub(crate) fn hold(&mut self, spelled: Scope, canonical: &str) -> Result<(), TokenFull> {
        let index = self.claims.access.len();
        let name = (spelled.name != canonical).then(|| canonical.to_owned());
        let scope = json_bytes(&spelled).map_err(|_never| TokenFull)?;
        let entry = name.as_ref().map(|name| BTreeMap::from([(index, name)]));
        let entry = entry.map_or(Ok(0), |entry| json_bytes(&entry));
        let bytes = scope + 1 + entry.map_err(|_never| TokenFull)?;
        self.left = self.left.checked_sub(bytes).ok_or(TokenFull)?;
        self.claims.access.push(spelled);
        if let Some(name) = name {
            self.claims.gantry.names.insert(index, name);
        }
        Ok(())
    }
}

/// A token has no room for another scope.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TokenFull;

/// Whether scopes of so many bytes may still be for one token: what is longer cannot be held, whoever asks.
pub(crate) fn may_fit(scopes: &[Scope]) -> bool {
    let bytes: usize = scopes
        .iter()
        .map(|scope| scope.kind.len() + scope.name.len() + MIN_SCOPE_BYTES)
        .sum();
    bytes < MAX_CLAIMS_BYTES
}

/// `{"type":"","name":"","actions":[]},`.
const MIN_SCOPE_BYTES: usize = 35;

fn json_bytes(value: &impl Serialize) -> Result<usize, Error> {
    let text = serde_json::to_vec(value);
    let text = text.map_err(|error| Error::unavailable(error.to_string()))?;
    Ok(text.len())
}

impl Inside {
    fn of(identified: &Identified) -> Self {
        let principal = &identified.principal;
        let upstream = identified.upstream.as_ref();
        let attribute = |value: &AttributeValue| match value {
            AttributeValue::Flag(flag) => Attribute::Flag(*flag),
            AttributeValue::Number(number) => Attribute::Number(*number),
            AttributeValue::Text(text) => Attribute::Text(text.clone()),
            AttributeValue::Texts(texts) => Attribute::Texts(texts.clone()),
        };
        Self {
            kind: principal.kind.clone(),
            issuer: principal.issuer.clone(),
            groups: principal.groups.clone(),
            attributes: principal
                .attributes
                .iter()
                .map(|(name, value)| (name.clone(), attribute(value)))
                .collect(),
            names: BTreeMap::new(),
            identity_ends_at_ms: principal.expires_at_ms,
            proved: identified.proof.as_ref().map(|proof| Proved {
                by: proof.authenticator.clone(),
                generation: Arc::clone(&proof.generation),
                at_ms: proof.since_ms,
            }),
            upstream: upstream.map(|caller| caller.confirmed.mirror.to_string()),
        }
    }
}

impl Claims {
    /// `None` when it says of somebody known not how it was proved: no token of this version.
    fn good(self, revocation: &Arc<Revocation>) -> Option<GoodToken> {
        let ends = self.exp;
        let identified = self.identified(revocation);
        let is_proved = identified.proof.is_some() || identified.principal.is_anonymous();
        is_proved.then_some(GoodToken { identified, ends })
    }

    fn identified(self, revocation: &Arc<Revocation>) -> Identified {
        let attribute = |value| match value {
            Attribute::Flag(flag) => AttributeValue::Flag(flag),
            Attribute::Number(number) => AttributeValue::Number(number),
            Attribute::Text(text) => AttributeValue::Text(text),
            Attribute::Texts(texts) => AttributeValue::Texts(texts),
        };
        let proof = self.gantry.proved.map(|proved| {
            revocation.proof(ProofParts {
                id: self.sub.clone(),
                authenticator: proved.by,
                generation: proved.generation,
                since_ms: proved.at_ms,
            })
        });
        let principal = Principal {
            id: self.sub,
            kind: self.gantry.kind,
            issuer: self.gantry.issuer,
            groups: self.gantry.groups,
            attributes: self
                .gantry
                .attributes
                .into_iter()
                .map(|(name, value)| (name, attribute(value)))
                .collect(),
            expires_at_ms: self.gantry.identity_ends_at_ms,
        };
        let mut names = self.gantry.names;
        let at_most: Vec<Scope> = self
            .access
            .into_iter()
            .enumerate()
            .map(|(index, scope)| Scope {
                name: names.remove(&index).unwrap_or(scope.name),
                ..scope
            })
            .collect();
        let upstream = self.gantry.upstream.as_deref();
        let upstream = upstream.map(|it| UpstreamCaller::by_token(it, &at_most));
        Identified {
            principal: Arc::new(principal),
            upstream: upstream.map(Arc::new),
            at_most: Some(at_most.into()),
            by_token: true,
            token_ends: Some(self.exp),
            proof,
        }
    }
}

/// The key files, oldest first: shorter names, then by name (`token-9.pem`, `token-10.pem`, …; a date works too).
fn key_files(folder: &Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let listing = fs::read_dir(folder)
        .with_context(|| format!("cannot read the token key folder {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in listing {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            files.push(path);
        }
    }
    files.sort_by_cached_key(|path| (path.as_os_str().len(), path.clone()));
    Ok(files)
}

fn make_key(path: &Path) -> anyhow::Result<()> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    let document = pair.to_pkcs8v1()?;
    let body = base64::engine::general_purpose::STANDARD.encode(document.as_ref());
    let mut pem = String::from("-----BEGIN PRIVATE KEY-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line)?);
        pem.push('\n');
    }
    pem.push_str("-----END PRIVATE KEY-----\n");
    // Beside its place first: a crash leaves no half of a key.
    let beside = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let folder = path.parent().context("a key lies in a folder")?;
    fs::File::open(folder)?.sync_all()?;
    Ok(())
}

/// A key of the folder.
struct Key {
    kid: String,
    encoding: EncodingKey,
    decoding: DecodingKey,
    /// Its public half as a JWK (RFC 7518 section 6.2.1).
    public: serde_json::Value,
}

fn read_key(path: &Path) -> anyhow::Result<Key> {
    let shown = path.display();
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("the token key {shown} is readable by others; chmod 600 it");
    }
    let pem = files::read(path).with_context(|| format!("cannot read the token key {shown}"))?;
    let not_a_key = || format!("{shown} is not a P-256 private key in PKCS#8 PEM");
    let encoding = EncodingKey::from_ec_pem(&pem).with_context(not_a_key)?;
    let text = String::from_utf8(pem).with_context(not_a_key)?;
    let body: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let der = base64::engine::general_purpose::STANDARD
        .decode(body)
        .with_context(not_a_key)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der)
        .map_err(|rejected| anyhow::anyhow!("{}: {rejected}", not_a_key()))?;
    let public = pair.public_key().as_ref();
    let spki = pair.public_key().as_der()?;
    let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, spki.as_ref()).as_ref());
    // An uncompressed point: 4, then both coordinates.
    let (x, y) = public
        .strip_prefix(&[4])
        .and_then(|point| point.split_at_checked(COORDINATE_BYTES))
        .with_context(not_a_key)?;
    Ok(Key {
        public: serde_json::json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }),
        decoding: DecodingKey::from_ec_der(public),
        kid,
        encoding,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PULL: &str = "repository:up/team/app:pull";

    fn tokens(folder: &Path) -> Tokens {
        Tokens::open(folder, "gantry", Duration::from_secs(300), revocation()).unwrap()
    }

    fn revocation() -> Arc<Revocation> {
        let values = Arc::new(gantry_storage::MemoryKv::default());
        Revocation::new(values, BTreeMap::new())
    }

    fn caller(mirror: Option<&str>) -> Identified {
        let at_most: Vec<Scope> = vec![PULL.parse().unwrap()];
        Identified {
            principal: Arc::new(Principal::anonymous()),
            upstream: mirror.map(|mirror| Arc::new(UpstreamCaller::by_token(mirror, &at_most))),
            at_most: None,
            by_token: false,
            token_ends: None,
            proof: None,
        }
    }

    fn issue(tokens: &Tokens, identified: &Identified, longest: Option<u64>) -> IssuedToken {
        let longest = longest.map(Duration::from_secs);
        let mut draft = tokens.draft(identified, "test").ok().unwrap();
        draft.hold(PULL.parse().unwrap(), "up/team/app").unwrap();
        tokens.sign(draft, longest).ok().unwrap()
    }

    #[test]
    fn a_token_lives_no_longer_than_the_word_it_rests_on_and_never_less_than_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        for (longest, expect) in [(None, 300), (Some(900), 300), (Some(90), 90), (Some(5), 60)] {
            let issued = issue(&tokens, &caller(Some("up")), longest);
            assert_eq!(issued.expires_in, expect, "{longest:?}");
        }
    }

    #[test]
    fn a_token_that_is_full_keeps_its_first_scopes_whole_and_is_accepted() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        // Names as clients spell them, and names that count: the same, or longer ones.
        for prefix in ["", "registry.example/"] {
            let mut draft = tokens.draft(&caller(None), "test").ok().unwrap();
            let mut canonical = Vec::new();
            let full = (0..1000).find(|index| {
                let name = format!("team/{index}/{}", "x".repeat(index % 200));
                let scope: Scope = format!("repository:{name}:pull,push").parse().unwrap();
                let counts = format!("{prefix}{name}");
                let held = draft.hold(scope.clone(), &counts);
                let counted = Scope {
                    name: counts,
                    ..scope
                };
                canonical.extend(held.is_ok().then_some(counted));
                held.is_err()
            });
            assert!(full.is_some_and(|index| index > 64), "{full:?}");
            let issued = tokens.sign(draft, None).ok().unwrap();
            let length = issued.token.len();
            let room = MAX_CREDENTIAL_BYTES - 1024;
            assert!((room..=MAX_CREDENTIAL_BYTES).contains(&length), "{length}");
            assert_eq!(issued.scopes.len(), canonical.len());
            let identified = tokens.verify(&issued.token).unwrap().unwrap();
            assert_eq!(identified.at_most.as_deref(), Some(&*canonical));
        }
    }

    #[test]
    fn an_identity_that_no_token_can_hold_is_an_error_and_no_token() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let mut identified = caller(None);
        let principal = Principal {
            groups: vec!["g".repeat(255); 200],
            ..Principal::anonymous()
        };
        identified.principal = Arc::new(principal);
        let refused = tokens.draft(&identified, "test").unwrap_err().chain();
        assert!(refused.contains("a token holds"), "{refused}");
    }

    #[test]
    fn an_upstreams_token_says_whose_word_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        for mirror in [Some("up"), None] {
            let issued = issue(&tokens, &caller(mirror), None);
            let identified = tokens.verify(&issued.token).unwrap().unwrap();
            let upstream = identified
                .upstream
                .map(|caller| Arc::clone(&caller.confirmed));
            assert_eq!(upstream.as_ref().map(|it| &*it.mirror), mirror);
            if let Some(confirmed) = upstream {
                assert_eq!(confirmed.repositories, ["up/team/app"]);
            }
        }
    }

    #[test]
    fn a_good_token_is_remembered_until_its_end_and_no_longer() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let now = SystemClock.now_ms() / 1000;
        for (ends, expect) in [(now + 30, true), (now, false)] {
            let digest = digest::digest(&digest::SHA256, b"not a token")
                .as_ref()
                .try_into()
                .unwrap();
            let identified = caller(None);
            tokens.good.insert(digest, GoodToken { identified, ends });
            assert_eq!(tokens.verify("not a token").is_some(), expect);
        }
        let issued = issue(&tokens, &caller(None), None);
        let first = tokens.verify(&issued.token).unwrap().unwrap();
        let again = tokens.verify(&issued.token).unwrap().unwrap();
        assert!(Arc::ptr_eq(&first.principal, &again.principal));
    }

    /// A token as another version, or another clock, would have made it.
    fn signed(tokens: &Tokens, identified: &Identified, ends_in: i64) -> String {
        let (kid, key) = &tokens.signing;
        let now = SystemClock.now_ms() / 1000;
        let claims = Claims {
            iss: "gantry".to_owned(),
            sub: identified.principal.id.clone(),
            aud: "test".to_owned(),
            iat: now - 70,
            nbf: now - 70,
            exp: now.saturating_add_signed(ends_in),
            jti: String::new(),
            access: Vec::new(),
            gantry: Inside::of(identified),
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(kid.clone());
        encode(&header, &claims, key).unwrap()
    }

    #[test]
    fn a_token_ends_when_it_says_whoever_vouched() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        for mirror in [None, Some("up")] {
            for (ends_in, expect) in [
                (5, None),
                (0, Some(TokenError::Expired)),
                (-5, Some(TokenError::Expired)),
            ] {
                let token = signed(&tokens, &caller(mirror), ends_in);
                let verdict = tokens.verify(&token).unwrap();
                assert_eq!(verdict.err(), expect, "{mirror:?} {ends_in}");
            }
        }
    }

    #[test]
    fn a_token_of_somebody_known_says_what_proved_it_and_keeps_it_when_it_buys_another() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let mut alice = caller(None);
        alice.principal = Arc::new(Principal {
            id: "user:alice".to_owned(),
            kind: "user".to_owned(),
            ..Principal::anonymous()
        });
        let unproved = signed(&tokens, &alice, 60);
        assert_eq!(
            tokens.verify(&unproved).unwrap().err(),
            Some(TokenError::Unknown)
        );
        let by = Some(Arc::from("people"));
        let proof = tokens.revocation.prove(by, "user:alice", Arc::from("g1"));
        alice.proof = Some(Arc::clone(&proof));
        let mut shown = alice;
        for lifetime in [300, 300] {
            let issued = issue(&tokens, &shown, None);
            assert!(issued.expires_in <= lifetime);
            shown = tokens.verify(&issued.token).unwrap().unwrap();
            let kept = shown.proof.as_ref().unwrap();
            assert_eq!(kept.since_ms, proof.since_ms);
            assert_eq!(
                (kept.authenticator.as_deref(), &*kept.generation),
                (Some("people"), "g1")
            );
            shown.token_ends = shown.token_ends.map(|ends| ends - 20);
        }
        let issued = issue(&tokens, &shown, None);
        assert_eq!(issued.expires_in, 260);
    }

    #[test]
    fn a_token_never_outlives_the_identity() {
        let folder = tempfile::tempdir().unwrap();
        let tokens = tokens(folder.path());
        let mut identified = caller(None);
        let now = SystemClock.now_ms();
        identified.principal = Arc::new(Principal {
            expires_at_ms: Some(now + 10_500),
            ..Principal::anonymous()
        });
        let issued = issue(&tokens, &identified, None);
        assert!(
            (9..=11).contains(&issued.expires_in),
            "{}",
            issued.expires_in
        );
    }
}
