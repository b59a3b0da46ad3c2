//! Docker's token flow: the challenge, the endpoint, what a token holds and what it does not.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use tests::{
    Gateway, Image, Origin, Wire,
    gateway::{OTHER, USER, usual_config},
};

#[test]
fn whoever_shows_nothing_is_challenged_by_bearer_alone() {
    let gateway = Gateway::usual();
    let answer = Wire::anonymous(gateway.port).get("/v2/").expect(401);
    let challenges: Vec<_> = answer
        .headers
        .get_all("www-authenticate")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"{}\"",
        gateway.host(),
        gateway.host()
    );
    assert_eq!(challenges, [realm.as_str()]);
    assert_eq!(
        answer.header("docker-distribution-api-version"),
        "registry/2.0"
    );
    assert_eq!(answer.code(), "UNAUTHORIZED");
    let head = Wire::anonymous(gateway.port).head("/v2/").expect(401);
    assert!(head.header("www-authenticate").starts_with("Bearer"));
}

#[test]
fn a_refused_anonymous_is_told_the_scope_to_ask_for() {
    let gateway = Gateway::usual();
    let answer = Wire::anonymous(gateway.port)
        .send("POST", "/v2/apps/web/blobs/uploads/", &[], "")
        .expect(401);
    let challenge = answer.header("www-authenticate");
    assert!(
        challenge.contains(",scope=\"repository:apps/web:pull,push\""),
        "{challenge}"
    );
    assert!(
        !challenge.contains("error="),
        "nothing was shown, so nothing was wrong with it: {challenge}"
    );
}

#[test]
fn the_token_answer_suits_every_client() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let answer = wire.get("/token?service=x&account=alice&client_id=docker&offline_token=true&scope=repository:apps/web:push,pull").expect(200);
    let json = answer.json();
    assert_eq!(json["token"], json["access_token"]);
    assert!(json["expires_in"].as_u64().unwrap() >= 60);
    assert!(json["issued_at"].as_str().unwrap().ends_with('Z'), "{json}");
    assert!(json.get("refresh_token").is_none());
    Wire::bearer(gateway.port, json["token"].as_str().unwrap())
        .get("/v2/")
        .expect(200);
}

#[test]
fn a_posted_password_gets_a_token_and_a_refresh_token_is_not_offered() {
    let gateway = Gateway::usual();
    let wire = Wire::anonymous(gateway.port);
    let form = [(
        "content-type",
        "application/x-www-form-urlencoded; charset=utf-8",
    )];
    let body = "grant_type=password&service=x&client_id=containerd-client&username=alice&password=correct+horse&scope=repository%3Aapps%2Fweb%3Apull+repository%3Aapps%2Fweb%3Apull%2Cpush";
    let token = wire.send("POST", "/token", &form, body).expect(200).json()["access_token"]
        .as_str()
        .unwrap()
        .to_owned();
    Wire::bearer(gateway.port, &token)
        .send("POST", "/v2/apps/web/blobs/uploads/", &[], "")
        .expect(202);
    wire.send(
        "POST",
        "/token",
        &form,
        "grant_type=refresh_token&refresh_token=x&service=x",
    )
    .expect(404);
    wire.send(
        "POST",
        "/token",
        &form,
        "grant_type=password&username=alice&password=wrong&service=x",
    )
    .expect(401);
}

#[test]
fn granting_less_than_asked_is_no_error_and_strange_scopes_are_dropped() {
    let gateway = Gateway::usual();
    let wire = Wire::anonymous(gateway.port);
    let token = wire.token(&[
        "repository:apps/public/x:pull,push",
        "repository:apps/secret:pull",
        "nonsense",
        "a:b:c",
        "repository:UPPER:pull",
    ]);
    let bearer = Wire::bearer(gateway.port, &token);
    bearer.get("/v2/apps/public/x/tags/list").expect(404);
    let answer = bearer
        .send("POST", "/v2/apps/public/x/blobs/uploads/", &[], "")
        .expect(401);
    assert!(
        answer
            .header("www-authenticate")
            .contains("error=\"insufficient_scope\""),
        "{:?}",
        answer.headers
    );
    bearer.get("/v2/apps/secret/tags/list").expect(401);
}

#[test]
fn a_token_for_many_scopes_is_accepted_and_grants_exactly_what_its_answer_says() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    for (count, length, all_fit) in [(64, 240, true), (100, 62, true), (200, 200, false)] {
        let name = |index| format!("apps/{index:03}{}", "x".repeat(length - 8));
        let asked: Vec<String> = (0..count)
            .map(|index| format!("repository:{}:pull,push", name(index)))
            .collect();
        let query = format!("service=x&scope={}", asked.join("&scope="));
        for answer in [
            wire.get(&format!("/token?{query}")),
            wire.send("POST", "/token", &form, query.clone()),
        ] {
            let json = answer.expect(200).json();
            let granted: Vec<&str> = json["scope"].as_str().unwrap().split(' ').collect();
            assert_eq!(granted, asked.get(..granted.len()).unwrap(), "{count}");
            assert_eq!(granted.len() == count, all_fit, "{}", granted.len());
            assert!(granted.len() >= 64, "{}", granted.len());
            let bearer = Wire::bearer(gateway.port, json["token"].as_str().unwrap());
            let upload = |index| {
                let path = format!("/v2/{}/blobs/uploads/", name(index));
                bearer.send("POST", &path, &[], "")
            };
            upload(0).expect(202);
            upload(granted.len() - 1).expect(202);
            if !all_fit {
                let refused = upload(granted.len()).expect(401);
                let challenge = refused.header("www-authenticate");
                assert!(challenge.contains("insufficient_scope"), "{challenge}");
            }
        }
    }
}

#[test]
fn a_wrong_password_is_refused_at_the_endpoint_and_on_the_api() {
    let gateway = Gateway::usual();
    for credentials in [(USER.0, "wrong"), ("nobody", "x"), (USER.0, ""), ("", "")] {
        let wire = Wire::basic(gateway.port, credentials);
        let refused = wire.get("/token?service=x").expect(401);
        assert_eq!(
            (refused.code().as_str(), refused.message().as_str()),
            ("UNAUTHORIZED", "invalid username or password")
        );
        wire.get("/v2/").expect(401);
        wire.get("/v2/apps/public/x/tags/list").expect(401);
    }
}

#[test]
fn a_password_works_without_a_token() {
    let gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    wire.get("/v2/").expect(200);
    wire.push_image("apps/web", "latest", &Image::random(10));
    wire.get("/v2/_catalog").expect(200);
}

#[test]
fn a_token_allows_no_more_than_it_holds() {
    let gateway = Gateway::usual();
    let token = Wire::basic(gateway.port, USER).token(&["repository:apps/web:pull"]);
    let bearer = Wire::bearer(gateway.port, &token);
    for (method, path) in [
        ("POST", "/v2/apps/web/blobs/uploads/"),
        ("DELETE", "/v2/apps/web/manifests/latest"),
        ("GET", "/v2/apps/other/tags/list"),
        ("GET", "/v2/_catalog"),
    ] {
        let answer = bearer.send(method, path, &[], "").expect(401);
        assert!(
            answer
                .header("www-authenticate")
                .contains("insufficient_scope"),
            "{method} {path}"
        );
    }
}

#[test]
fn what_is_not_a_token_of_ours_is_an_invalid_token() {
    let gateway = Gateway::usual();
    let good = Wire::basic(gateway.port, USER).token(&[]);
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let forged = [
        "x".to_owned(),
        "a.b.c".to_owned(),
        format!("{head}.{claims}."),
        format!("{none}.{claims}."),
        format!(
            "{head}.{claims}.{}",
            signature.chars().rev().collect::<String>()
        ),
        format!("{good}x"),
    ];
    for token in forged {
        let answer = Wire::bearer(gateway.port, &token).get("/v2/").expect(401);
        assert!(
            answer
                .header("www-authenticate")
                .contains("error=\"invalid_token\""),
            "{:?}",
            answer.headers
        );
    }
}

#[test]
fn anybody_may_verify_a_token_with_the_published_keys() {
    let gateway = Gateway::usual();
    let token = Wire::basic(gateway.port, USER).token(&["repository:apps/web:pull"]);
    let published = Wire::anonymous(gateway.port)
        .get("/.well-known/jwks.json")
        .expect(200);
    let keys: JwkSet = serde_json::from_slice(&published.body).unwrap();
    let kid = decode_header(&token).unwrap().kid.unwrap();
    let key = DecodingKey::from_jwk(keys.find(&kid).unwrap()).unwrap();
    let mut rules = Validation::new(Algorithm::ES256);
    rules.validate_aud = false;
    let claims = decode::<serde_json::Value>(&token, &key, &rules)
        .unwrap()
        .claims;
    assert_eq!(claims["access"][0]["name"], "apps/web");
    let text = String::from_utf8(published.body.to_vec()).unwrap();
    assert!(!text.contains("\"d\""), "a private key left: {text}");
}

#[test]
fn a_token_outlives_a_restart_and_an_upload_outlives_its_token() {
    let mut gateway = Gateway::usual();
    let wire = Wire::basic(gateway.port, USER);
    let token = wire.token(&["repository:apps/web:pull,push"]);
    let location = Wire::bearer(gateway.port, &token).start_upload("apps/web");
    gateway.restart();
    Wire::bearer(gateway.port, &token).get("/v2/").expect(200);
    wire.get(&location).expect(204);
}

#[test]
fn an_upload_session_belongs_to_its_principal_and_repository() {
    let gateway = Gateway::usual();
    let location = Wire::basic(gateway.port, USER).start_upload("apps/web");
    let other = Wire::basic(gateway.port, OTHER);
    for method in ["GET", "PATCH", "DELETE"] {
        assert_eq!(
            other.send(method, &location, &[], "x").expect(404).code(),
            "BLOB_UPLOAD_UNKNOWN",
            "{method}"
        );
    }
    let elsewhere = location.replace("/apps/web/", "/apps/other/");
    Wire::basic(gateway.port, USER).get(&elsewhere).expect(404);
    Wire::basic(gateway.port, USER).get(&location).expect(204);
}

#[test]
fn a_token_for_one_upstream_opens_no_other() {
    let (first, second) = (Origin::start(), Origin::start());
    let image = Image::random(10);
    second.push("library/x", "latest", &image);
    let mirrors = first.mirror_entry("up", ", default: true") + &second.mirror_entry("private", "");
    let gateway = Gateway::start(&usual_config(&mirrors, ""));
    let user = Wire::basic(gateway.port, USER);
    let token = user.token(&["repository:library/x:pull"]);
    Wire::bearer(gateway.port, &token)
        .get("/v2/library/x/manifests/latest?ns=private")
        .expect(401);
    Wire::bearer(gateway.port, &token)
        .get("/v2/private/library/x/manifests/latest")
        .expect(401);
    user.pull_image("private/library/x", "latest", &image);
}

#[test]
fn the_challenge_of_a_namespace_leads_to_a_token_that_opens_it() {
    let origin = Origin::start();
    let image = Image::random(10);
    origin.push("library/x", "latest", &image);
    let gateway = Gateway::start(&usual_config(&origin.mirror_entry("private", ""), ""));
    let path = "/v2/library/x/manifests/latest?ns=private";
    let challenge = Wire::anonymous(gateway.port)
        .get(path)
        .expect(401)
        .header("www-authenticate");
    let part = |name: &str| {
        challenge
            .split(&format!("{name}=\""))
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap()
            .to_owned()
    };
    let separator = if part("realm").contains('?') {
        '&'
    } else {
        '?'
    };
    let url = format!(
        "{}{separator}service={}&scope={}",
        part("realm"),
        part("service"),
        part("scope")
    );
    let token = Wire::basic(gateway.port, USER).get(&url).expect(200).json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = Wire::bearer(gateway.port, &token).get(path).expect(200);
    assert_eq!(answer.body, image.manifest.bytes);
    assert_eq!(answer.header("oci-namespace"), "private");
}
