//! Scopes only ever shrink, and a permit needs a grant that covers the operation.

use std::{net::IpAddr, sync::Arc};

use gantry_model::{
    Client, DenialCode, Grant, Operation, OperationKind, Page, Permit, Principal, Reason,
    Repository, Requester, Scope, Source,
};
use proptest::prelude::*;

fn requester() -> Requester {
    let client = Client {
        address: IpAddr::from([127, 0, 0, 1]),
        user_agent: None,
        tls_subject: None,
    };
    Requester {
        request_id: "r".into(),
        client: Arc::new(client),
        principal: Arc::new(Principal::anonymous()),
        arrival: None,
        confirmed: None,
        cause: gantry_model::Cause::Request,
    }
}

fn repository(name: &str) -> Repository {
    let name: gantry_model::RepositoryName = name.parse().unwrap();
    Repository {
        spelled: name.clone(),
        name,
        base: "/v2".into(),
        source: Source::Hosted,
        namespace: None,
    }
}

fn grant(scopes: &[&str]) -> Grant {
    Grant {
        granted: scopes.iter().map(|scope| scope.parse().unwrap()).collect(),
        reason: Reason::new("t", "test"),
        plugin: None,
    }
}

#[test]
fn a_scope_is_split_at_the_first_and_the_last_colon() {
    let scope: Scope = "repository:host:5000/a/b:pull,push".parse().unwrap();
    assert_eq!(
        (scope.kind.as_str(), scope.name.as_str()),
        ("repository", "host:5000/a/b")
    );
    assert_eq!(scope.to_string(), "repository:host:5000/a/b:pull,push");
    assert_eq!(
        "repository(plugin):a:pull".parse::<Scope>().unwrap().kind,
        "repository"
    );
    for bad in ["", "repository", "repository:a", ":a:pull"] {
        assert!(bad.parse::<Scope>().is_err(), "{bad}");
    }
}

#[test]
fn a_permit_needs_every_required_action() {
    let operation = || Operation::StartUpload {
        repository: repository("a/b"),
        algorithm: gantry_model::Algorithm::Sha256,
    };
    for short in [
        vec![],
        vec!["repository:a/b:pull"],
        vec!["repository:a/c:pull,push"],
        vec!["registry:a/b:pull,push"],
    ] {
        let denial = Permit::new(operation(), requester(), grant(&short)).unwrap_err();
        assert_eq!(denial.code, DenialCode::Denied);
    }
    assert!(
        Permit::new(
            operation(),
            requester(),
            grant(&["repository:a/b:pull,push"])
        )
        .is_ok()
    );
    assert!(Permit::new(operation(), requester(), grant(&["repository:a/b:*"])).is_ok());
    assert!(
        Permit::new(
            operation(),
            requester(),
            grant(&["repository:a/b:pull", "repository:a/b:push"])
        )
        .is_ok()
    );
}

#[test]
fn a_mount_needs_its_target_and_only_wishes_for_its_source() {
    let digest =
        gantry_model::Digest::from_bytes(gantry_model::Algorithm::Sha256, &[0; 32]).unwrap();
    let mount = Operation::MountBlob {
        repository: repository("a/b"),
        digest,
        from: Some(repository("c/d")),
    };
    assert_eq!(
        mount.required_scopes(),
        vec!["repository:a/b:pull,push".parse().unwrap()]
    );
    let source = mount.optional_scope().unwrap();
    let without = Permit::new(
        mount.clone(),
        requester(),
        grant(&["repository:a/b:pull,push"]),
    )
    .unwrap();
    assert!(!without.allows(&source));
    let with = Permit::new(
        mount,
        requester(),
        grant(&["repository:a/b:pull,push", "repository:c/d:pull"]),
    )
    .unwrap();
    assert!(with.allows(&source));
}

#[test]
fn the_catalog_needs_a_scope_of_its_own() {
    let catalog = Operation::ListCatalog {
        page: Page::default(),
    };
    assert_eq!(catalog.kind(), OperationKind::Catalog);
    assert!(Permit::new(catalog.clone(), requester(), grant(&["repository:a:pull"])).is_err());
    assert!(Permit::new(catalog, requester(), grant(&["registry:catalog:*"])).is_ok());
}

fn scopes() -> impl Strategy<Value = Vec<Scope>> {
    let action = prop_oneof![Just("pull"), Just("push"), Just("delete"), Just("*")];
    let scope =
        ("[ab]", proptest::collection::btree_set(action, 0..3)).prop_map(|(name, actions)| Scope {
            kind: "repository".to_owned(),
            name,
            actions: actions.into_iter().map(str::to_owned).collect(),
        });
    proptest::collection::vec(scope, 0..4)
}

fn allows(scopes: &[Scope], name: &str, action: &str) -> bool {
    scopes.iter().any(|scope| {
        scope.name == name && (scope.actions.contains(action) || scope.actions.contains("*"))
    })
}

proptest! {
    #[test]
    fn an_intersection_allows_exactly_what_both_sides_allow(asked in scopes(), limits in scopes()) {
        let both = Scope::intersect(&asked, &limits);
        for name in ["a", "b"] {
            for action in ["pull", "push", "delete", "made-up"] {
                let expected = allows(&asked, name, action) && allows(&limits, name, action);
                prop_assert_eq!(allows(&both, name, action), expected, "{} {} in {:?}", name, action, both);
            }
        }
    }
}
