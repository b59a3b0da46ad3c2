//! What a guest answers arrives as it meant it, cut to what it may say.

use std::time::Duration;

use gantry_model::{AttributeValue, Denial, DenialCode, Reason};
use gantry_plugin_host::{
    AdmitAnswer, AuthenticateAnswer, AuthorizeAnswer, CacheHint, Credential, Failure, Hook, Varies,
};
use serde_json::json;

use crate::guest::{admit, answering, authenticate, authorize, load, scope};

/// The guest asks to be cached for 49 days.
fn clamped(ttl_seconds: u64, stale_seconds: u64) -> CacheHint {
    CacheHint {
        ttl: Duration::from_secs(ttl_seconds),
        stale_if_error: Duration::from_secs(stale_seconds),
        varies: Varies {
            client_address: true,
            ..Varies::default()
        },
    }
}

fn refused() -> Denial {
    Denial {
        code: DenialCode::Denied,
        reason: Reason::new("hostile", ""),
        message: "no (see https://policy.example/why)".to_owned(),
        detail: Some("{\"rule\":1}".to_owned()),
        retry_after: Some(Duration::from_millis(1500)),
        plugin: Some("hostile".into()),
    }
}

#[tokio::test]
async fn a_plugin_says_its_name_digest_and_hooks() {
    let plugin = answering("").await;
    assert_eq!(&**plugin.name(), "hostile");
    assert_eq!(plugin.digest().as_str().len(), "sha256:".len() + 64);
    for hook in [Hook::Authenticate, Hook::Authorize, Hook::Admit] {
        assert!(plugin.hooks().has(hook), "{hook:?}");
    }
    assert!(!plugin.hooks().has(Hook::Scan));
}

#[tokio::test]
async fn a_good_credential_becomes_the_identity_the_guest_named() {
    let answer = answering("").await.authenticate(&authenticate()).await;
    let AuthenticateAnswer::Authenticated(identity) = answer.unwrap() else {
        panic!("not authenticated");
    };
    assert_eq!(identity.principal.id, "user:alice");
    assert_eq!(identity.principal.expires_at_ms, Some(1));
    let number = ("number".to_owned(), AttributeValue::Number(7));
    assert_eq!(identity.principal.attributes, [number]);
    let asked = vec![scope("repository:apps/web:pull")];
    assert_eq!(identity.at_most, Some(asked));
    assert_eq!(identity.cache, clamped(60, 3600));
}

#[tokio::test]
async fn a_credential_may_be_refused_or_not_the_guests() {
    let answer = answering("deny").await.authenticate(&authenticate()).await;
    assert_eq!(answer.unwrap(), AuthenticateAnswer::Rejected(refused()));
    let answer = answering("abstain").await;
    let answer = answer.authenticate(&authenticate()).await;
    assert_eq!(answer.unwrap(), AuthenticateAnswer::NotMine);
}

#[tokio::test]
async fn an_authorizer_allows_denies_and_abstains() {
    let answer = answering("").await.authorize(&authorize()).await;
    let AuthorizeAnswer::Allow(grant, hint) = answer.unwrap() else {
        panic!("not allowed");
    };
    assert_eq!(grant.granted, authorize().scopes);
    assert_eq!(grant.plugin.as_deref(), Some("hostile"));
    assert_eq!(hint, clamped(60, 3600));

    let answer = answering("deny").await.authorize(&authorize()).await;
    let denied = AuthorizeAnswer::Deny(refused(), clamped(5, 0));
    assert_eq!(answer.unwrap(), denied, "denials are cached 5 s at most");

    let answer = answering("abstain").await.authorize(&authorize()).await;
    let abstained = AuthorizeAnswer::Abstain(Some(Reason::new("hostile", "")));
    assert_eq!(answer.unwrap(), abstained);
}

#[tokio::test]
async fn an_admission_accepts_rejects_holds_and_abstains() {
    let answer = answering("").await.admit(&admit()).await;
    let AdmitAnswer::Accept {
        warnings,
        set_immutable: true,
        ..
    } = answer.unwrap()
    else {
        panic!("not accepted");
    };
    // The guest's whole view of the question, cut to a warning's length; an empty warning is none.
    let [seen] = &*warnings else {
        panic!("{warnings:?}");
    };
    assert!(seen.len() <= 512, "{}", seen.len());
    for part in ["request-1", "192.0.2.7", "user:alice", "developers"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    let answer = answering("deny").await.admit(&admit()).await;
    assert_eq!(answer.unwrap(), AdmitAnswer::Reject(refused()));
    let answer = answering("hold").await.admit(&admit()).await;
    let held = AdmitAnswer::Hold {
        retry_after: Duration::from_secs(5),
        reason: "being scanned".to_owned(),
    };
    assert_eq!(answer.unwrap(), held);
    let answer = answering("abstain").await.admit(&admit()).await;
    assert_eq!(answer.unwrap(), AdmitAnswer::Abstain);
}

#[tokio::test]
async fn a_grant_wider_than_asked_is_cut_to_what_was_asked() {
    let answer = answering("wide").await.authorize(&authorize()).await;
    let AuthorizeAnswer::Allow(grant, _) = answer.unwrap() else {
        panic!("not allowed");
    };
    assert_eq!(grant.granted, [scope("repository:apps/web:pull,push")]);
}

#[tokio::test]
async fn a_refusals_texts_are_cut_and_cleaned() {
    let answer = answering("long").await.admit(&admit()).await;
    let AdmitAnswer::Reject(denial) = answer.unwrap() else {
        panic!("not rejected");
    };
    assert!(denial.message.len() <= 512, "{}", denial.message.len());
    assert!(denial.message.starts_with("é é é"), "{}", denial.message);
    assert!(!denial.message.chars().any(char::is_control));
    assert_eq!(denial.detail, None, "a detail that is not JSON is dropped");
}

#[tokio::test]
async fn nobody_may_claim_to_be_nobody_or_the_gateway() {
    let long = "x".repeat(256);
    let cases = [
        json!({ "id": "" }),
        json!({ "id": "anonymous" }),
        json!({ "id": "System" }),
        json!({ "id": " anonymous" }),
        json!({ "id": "user:a\nb" }),
        json!({ "id": "user:\u{202e}a" }),
        json!({ "id": long }),
        json!({ "kind": "" }),
        json!({ "kind": "anonymous" }),
        json!({ "issuer": "a\u{1b}[0m" }),
    ];
    for config in cases {
        let plugin = load(config.clone()).await.unwrap();
        let failed = plugin.authenticate(&authenticate()).await.unwrap_err();
        assert_eq!(failed.failure, Failure::Contract, "{config}");
    }
}

#[tokio::test]
async fn credentials_never_show_in_debug() {
    let mut request = authenticate();
    assert!(!format!("{request:?}").contains("wonder"));
    request.credential = Credential::Bearer("wonder-token".to_owned());
    assert!(!format!("{request:?}").contains("wonder"));
}
