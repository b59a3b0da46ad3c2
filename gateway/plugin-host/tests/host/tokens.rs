//! JSON Web Tokens: what verifies, and every way in which one does not.

use aws_lc_rs::{
    encoding::AsDer as _,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use crate::{
    guest::{generous, host, source},
    isolation::told,
    ports::NOW_MS,
};

pub(crate) struct Issuer {
    key: EcdsaKeyPair,
    id: &'static str,
}

impl Issuer {
    pub(crate) fn new(id: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { key, id }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let random = aws_lc_rs::rand::SystemRandom::new();
        let signature = self.key.sign(&random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    pub(crate) fn token(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut claims = claims();
        change(&mut claims);
        self.sign(&json!({ "alg": "ES256", "kid": self.id }), &claims)
    }

    pub(crate) fn jwk(&self) -> Value {
        let point = self.key.public_key().as_ref();
        let part = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({
            "kty": "EC", "crv": "P-256", "kid": self.id, "use": "sig",
            "x": part(&point[1..33]), "y": part(&point[33..65]),
        })
    }

    fn pem(&self) -> String {
        let der = self.key.public_key().as_der().unwrap();
        let text = BASE64_STANDARD.encode(der.as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{text}\n-----END PUBLIC KEY-----\n")
    }
}

fn claims() -> Value {
    let now = NOW_MS / 1000;
    json!({ "iss": "issuer", "aud": ["other", "gantry"], "sub": "alice", "exp": now + 60, "nbf": now - 60 })
}

/// What the guest gets for each token.
async fn verified(keys: Value, tokens: &[String]) -> Vec<String> {
    let mut config = json!({
        "do": "jwt", "issuer": "issuer", "audience": "gantry", "algs": "ES256", "tokens": tokens,
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    let plugin = host().load(source(config, generous())).await.unwrap();
    // A line break is a space by the time it is a reason.
    let told = told(&plugin).await;
    told.replace(" JwtError", "\nJwtError")
        .replace(" ok", "\nok")
        .lines()
        .map(str::to_owned)
        .collect()
}

fn set(keys: &[Value]) -> Value {
    json!({ "jwks": json!({ "keys": keys }).to_string() })
}

#[tokio::test]
async fn a_good_token_gives_its_claims() {
    let issuer = Issuer::new("one");
    let token = issuer.token(|_| ());
    let strange = json!({ "kty": "quantum", "kid": "q" });
    let jwks = set(&[strange, Issuer::new("two").jwk(), issuer.jwk()]);
    for keys in [jwks, json!({ "pem": issuer.pem() })] {
        let answers = verified(keys, std::slice::from_ref(&token)).await;
        assert_eq!(answers, [format!("ok {}", claims())]);
    }
}

/// Each token against the key of `issuer`, and the error it must give.
async fn all_refused(issuer: &Issuer, cases: &[(String, &str)]) {
    let tokens: Vec<String> = cases.iter().map(|(token, _)| token.clone()).collect();
    let answers = verified(set(&[issuer.jwk()]), &tokens).await;
    let expected: Vec<String> = cases
        .iter()
        .map(|(_, error)| format!("JwtError::{error}"))
        .collect();
    assert_eq!(answers, expected);
}

#[tokio::test]
async fn a_token_that_was_tampered_with_is_refused() {
    let issuer = Issuer::new("one");
    let good = issuer.token(|_| ());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let mut other = BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap();
    other[10] ^= 1;
    let other = BASE64_URL_SAFE_NO_PAD.encode(other);
    let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let admin = BASE64_URL_SAFE_NO_PAD.encode(claims().to_string().replace("alice", "admin"));
    let critical = json!({ "alg": "ES256", "kid": "one", "crit": ["b64"], "b64": false });
    let cases = [
        (String::new(), "Malformed"),
        ("a.b.c".to_owned(), "Malformed"),
        (format!("{header}.{payload}"), "Malformed"),
        (format!("{good}.x"), "Malformed"),
        (format!("{none}.{payload}."), "Malformed"),
        (issuer.sign(&critical, &claims()), "Malformed"),
        (format!("{header}.{payload}.{other}"), "BadSignature"),
        (format!("{header}.{payload}."), "BadSignature"),
        (format!("{header}.{admin}.{signature}"), "BadSignature"),
        (Issuer::new("one").token(|_| ()), "BadSignature"),
        (Issuer::new("other").token(|_| ()), "UnknownKey"),
    ];
    all_refused(&issuer, &cases).await;
}

#[tokio::test]
async fn a_token_with_wrong_claims_is_refused_for_what_is_wrong() {
    let issuer = Issuer::new("one");
    let now = NOW_MS / 1000;
    let claiming = |name: &str, value: Value| issuer.token(|claims| claims[name] = value);
    let cases = [
        (claiming("exp", json!(now - 2)), "Expired"),
        (claiming("exp", json!(-5)), "Expired"),
        (claiming("exp", json!("soon")), "Malformed"),
        (claiming("exp", Value::Null), "Malformed"),
        (claiming("nbf", json!(now + 2)), "NotYetValid"),
        (claiming("iss", json!("Issuer")), "WrongIssuer"),
        (claiming("iss", json!(["issuer"])), "WrongIssuer"),
        (claiming("aud", json!("other")), "WrongAudience"),
        (claiming("aud", json!([])), "WrongAudience"),
        (claiming("aud", Value::Null), "WrongAudience"),
    ];
    all_refused(&issuer, &cases).await;
}

#[tokio::test]
async fn clocks_may_differ_by_the_leeway() {
    let issuer = Issuer::new("one");
    let now = NOW_MS / 1000;
    let tokens = [
        issuer.token(|claims| claims["exp"] = json!(now)),
        issuer.token(|claims| claims["nbf"] = json!(now + 1)),
    ];
    let answers = verified(set(&[issuer.jwk()]), &tokens).await;
    assert!(
        answers.iter().all(|answer| answer.starts_with("ok")),
        "{answers:?}"
    );
}

#[tokio::test]
async fn a_public_key_never_verifies_an_hmac() {
    let issuer = Issuer::new("one");
    // The classic forgery: the public key's text, which everybody has, as the HMAC's key.
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"one"}"#);
    let signed = format!(
        "{header}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(claims().to_string())
    );
    let forged = |secret: &[u8]| {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret);
        let tag = aws_lc_rs::hmac::sign(&key, signed.as_bytes());
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(tag))
    };
    let tokens = [
        forged(issuer.pem().as_bytes()),
        forged(issuer.key.public_key().as_ref()),
        forged(issuer.jwk().to_string().as_bytes()),
    ];
    for mut keys in [set(&[issuer.jwk()]), json!({ "pem": issuer.pem() })] {
        let answers = verified(keys.clone(), &tokens).await;
        assert_eq!(
            answers, ["JwtError::BadSignature"; 3],
            "HS256 is not allowed"
        );
        keys["algs"] = json!("ES256 HS256");
        let answers = verified(keys, &tokens).await;
        assert_eq!(
            answers, ["JwtError::UnknownKey"; 3],
            "no key is of that kind"
        );
    }
}
