//! Who may do what, decided natively.

use gantry_plugin::parse_config;

use super::*;

fn access(config: &str) -> (Access, Issues) {
    let mut issues = Issues::default();
    let config = parse_config(config, &mut issues);
    let access = Access::new(config, &mut issues);
    (access, issues)
}

fn principal(id: &str, groups: &[&str]) -> Principal {
    let kind = if id == "anonymous" {
        "anonymous"
    } else {
        "user"
    };
    let mut principal = Principal::new(id, kind, "test");
    principal.groups = groups.iter().map(|group| (*group).to_owned()).collect();
    principal
}

fn scope(text: &str) -> Scope {
    let mut parts = text.splitn(3, ':');
    let mut next = || parts.next().unwrap().to_owned();
    Scope {
        kind: next(),
        name: next(),
        actions: next().split(',').map(str::to_owned).collect(),
    }
}

/// `+scope…` granted, `-code` denied, nothing when abstained.
fn outcome(access: &Access, who: &Principal, operation: Operation, asked: &str) -> String {
    let asked: Vec<Scope> = asked.split_whitespace().map(scope).collect();
    match access.decide(who, operation, &asked) {
        Decision::Allow(grant) => grant.granted.iter().fold(String::new(), |text, scope| {
            format!("{text}+{}:{}", scope.name, scope.actions.join(","))
        }),
        Decision::Deny((denial, _)) => format!("-{}", denial.reason.code),
        Decision::Abstain(_) => String::new(),
    }
}

const RULES: &str = r#"{"rules":[
    {"name":"public","who":["anonymous","*"],"may":["pull"],"what":["docker.io/**","apps/public/*"]},
    {"name":"writers","who":["user:alice","group:dev/*"],"may":["pull","push"],"what":["apps/**"]},
    {"who":["user:root"],"may":["*"],"what":["**"]},
    {"name":"browse","who":["robot:*"],"may":["catalog"]},
    {"name":"frozen","who":["*"],"may":["push","delete"],"what":["apps/frozen"],"deny":true}
]}"#;

#[test]
fn an_action_is_allowed_when_a_rule_names_principal_action_and_repository() {
    let (access, issues) = access(RULES);
    assert_eq!(issues.iter().count(), 0);
    for (who, groups, asked, expected) in [
        (
            "anonymous",
            &[][..],
            "repository:docker.io/library/alpine:pull",
            "+docker.io/library/alpine:pull",
        ),
        (
            "anonymous",
            &[],
            "repository:apps/public/web:pull,push",
            "+apps/public/web:pull",
        ),
        ("anonymous", &[], "repository:apps/web:pull", ""),
        (
            "user:alice",
            &[],
            "repository:apps/a/b:pull,push",
            "+apps/a/b:pull,push",
        ),
        ("user:alice", &[], "repository:apps/web:delete", ""),
        (
            "user:bob",
            &["dev/web"],
            "repository:apps/web:push",
            "+apps/web:push",
        ),
        ("user:bob", &["ops"], "repository:apps/web:push", ""),
        ("group:dev/web", &[], "repository:apps/web:push", ""),
        ("user:root", &[], "repository:x:*", "+x:*"),
        (
            "user:root",
            &[],
            "repository:x:pull,invented",
            "+x:pull,invented",
        ),
        (
            "user:alice",
            &[],
            "repository:apps/web:*",
            "+apps/web:pull,push",
        ),
        ("user:alice", &[], "project:apps:member.create", ""),
        (
            "user:alice",
            &[],
            "repository:apps/a:push repository:other/b:pull",
            "+apps/a:push",
        ),
    ] {
        let who = principal(who, groups);
        assert_eq!(
            outcome(&access, &who, Operation::PullManifest, asked),
            expected,
            "{} {asked}",
            who.id
        );
    }
}

#[test]
fn the_catalog_is_open_to_those_who_may_see_every_name() {
    let (access, _) = access(RULES);
    for (who, expected) in [
        ("robot:ci", "+catalog:*"),
        ("user:root", "+catalog:*"),
        ("user:alice", ""),
        ("anonymous", ""),
    ] {
        let who = principal(who, &[]);
        assert_eq!(
            outcome(&access, &who, Operation::Catalog, "registry:catalog:*"),
            expected,
            "{}",
            who.id
        );
    }
}

#[test]
fn a_deny_rule_overrides_and_narrows_a_token() {
    let (access, _) = access(RULES);
    let root = principal("user:root", &[]);
    let push = "repository:apps/frozen:pull,push";
    assert_eq!(
        outcome(&access, &root, Operation::PushManifest, push),
        "-frozen"
    );
    assert_eq!(
        outcome(
            &access,
            &root,
            Operation::PullManifest,
            "repository:apps/frozen:pull"
        ),
        "+apps/frozen:pull"
    );
    assert_eq!(
        outcome(&access, &root, Operation::Token, push),
        "+apps/frozen:pull"
    );
    assert_eq!(
        outcome(&access, &root, Operation::Token, "repository:apps/frozen:*"),
        "+apps/frozen:pull"
    );
    assert_eq!(
        outcome(
            &access,
            &root,
            Operation::Token,
            "repository:apps/frozen:push"
        ),
        ""
    );
}

#[test]
fn no_pattern_takes_in_somebody_without_a_credential() {
    for who in ["*", "**", "a*", "authenticated", "anon{ymous,x}"] {
        let (access, _) = access(&format!(
            r#"{{"rules":[{{"who":["{who}"],"may":["*"],"what":["**"]}}]}}"#
        ));
        let anonymous = principal("anonymous", &[]);
        assert_eq!(
            outcome(
                &access,
                &anonymous,
                Operation::PullManifest,
                "repository:x:pull"
            ),
            "",
            "{who}"
        );
        assert_eq!(
            outcome(&access, &anonymous, Operation::Ping, ""),
            "",
            "{who}"
        );
    }
}

#[test]
fn a_question_for_nothing_but_an_identity_is_allowed_to_the_known() {
    let (access, _) = access(r#"{"rules":[{"who":["user:a"],"may":["pull"],"what":["x"]}]}"#);
    let known = access.decide(&principal("user:b", &[]), Operation::Token, &[]);
    assert!(matches!(known, Decision::Allow(_)));
    let admin = access.decide(&principal("user:b", &[]), Operation::Admin, &[]);
    assert!(matches!(admin, Decision::Abstain(_)));
}

#[test]
fn the_admin_api_is_given_by_name_only_and_taken_away_with_everything() {
    let (access, issues) = access(
        r#"{"rules":[
            {"who":["user:*"],"may":["*"],"what":["**"]},
            {"who":["user:root","user:gone"],"may":["admin"]},
            {"name":"gone","who":["user:gone"],"may":["*"],"what":["**"],"deny":true}
        ]}"#,
    );
    assert_eq!(issues.iter().count(), 0);
    for (who, expect) in [
        ("user:alice", ""),
        ("user:root", "+admin:*"),
        ("user:gone", "-gone"),
        ("anonymous", ""),
    ] {
        let asked = "registry:admin:*";
        let who = principal(who, &[]);
        assert_eq!(
            outcome(&access, &who, Operation::Admin, asked),
            expect,
            "{}",
            who.id
        );
    }
}

#[test]
fn the_reason_names_the_rule_and_the_decision_may_be_reused() {
    let (access, _) = access(RULES);
    for (who, code) in [("user:alice", "writers"), ("user:root", "rules/2")] {
        let decision = access.decide(
            &principal(who, &[]),
            Operation::PullManifest,
            &[scope("repository:apps/x:pull")],
        );
        let Decision::Allow(grant) = decision else {
            panic!("{who} is not allowed")
        };
        assert_eq!(grant.reason.code, code);
        assert_eq!(grant.cache.ttl_ms, 60_000);
    }
}

#[test]
fn every_mistake_in_the_rules_is_reported_with_its_place() {
    let (_, issues) = access(
        r#"{"rules":[{"who":[],"may":["pul","administer"],"what":["**"]},{"who":["*"],"may":["push"],"wat":[]}]}"#,
    );
    let found: Vec<_> = issues.iter().collect();
    assert_eq!(
        found,
        [
            ("/rules/1/wat", "unknown key wat", true),
            ("/rules/0/who", "names nobody", true),
            (
                "/rules/0/may/0",
                "unknown action pul; did you mean pull?",
                true
            ),
            (
                "/rules/0/may/1",
                "unknown action administer; there are pull, push, delete, catalog, admin, *",
                true
            ),
            (
                "/rules/1/what",
                "names no repository; \"**\" means every repository",
                true
            ),
        ]
    );
}

#[test]
fn the_schema_describes_every_key() {
    let schema: serde_json::Value = serde_json::from_str(Access::CONFIG_SCHEMA).unwrap();
    let rule = &schema["properties"]["rules"]["items"]["properties"];
    let mut keys: Vec<_> = rule
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    keys.sort_unstable();
    assert_eq!(keys, ["deny", "may", "name", "what", "who"]);
}
