//! Who a password belongs to, decided natively: the check itself is the host's.

use gantry_plugin::parse_config;

use super::*;

const BCRYPT: &str = "$2y$05$abcdefghijklmnopqrstuuMTn8nJ5Ev2yKKsb1t5zVLPz0J1uTbPq";
const ARGON2: &str = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo";

fn htpasswd(users: &str) -> (Htpasswd, Vec<String>) {
    let mut issues = Issues::default();
    let config = serde_json::json!({ "users": users }).to_string();
    let config = parse_config(&config, &mut issues);
    let htpasswd = Htpasswd::new(config, &mut issues);
    assert!(!issues.are_fatal());
    let messages = issues.iter().map(|(_, message, _)| message.to_owned());
    (htpasswd, messages.collect())
}

fn outcome(plugin: &Htpasswd, user: &str, password: &str, result: PasswordResult) -> String {
    match plugin.check(user, password, |_| result) {
        Ok(Outcome::Authenticated(identity)) => format!("+{}", identity.principal.id),
        Ok(Outcome::NotMine) => "not mine".to_owned(),
        Ok(Outcome::Rejected(denial)) => format!("-{}", denial.message),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_known_user_is_authenticated_or_rejected_and_an_unknown_one_is_left_to_the_next() {
    let (plugin, messages) = htpasswd(&format!("# people\n\nalice:{BCRYPT}\r\n  bob:{ARGON2}  \n"));
    assert_eq!(messages, Vec::<String>::new());
    for (user, result, expected) in [
        ("alice", PasswordResult::Match, "+user:alice"),
        ("bob", PasswordResult::Match, "+user:bob"),
        (
            "alice",
            PasswordResult::Mismatch,
            "-invalid username or password",
        ),
        (
            "alice",
            PasswordResult::UnsupportedHash,
            "-invalid username or password",
        ),
        ("carol", PasswordResult::Mismatch, "not mine"),
        ("carol", PasswordResult::Match, "not mine"),
        ("Alice", PasswordResult::Match, "not mine"),
        ("", PasswordResult::Mismatch, "not mine"),
    ] {
        assert_eq!(
            outcome(&plugin, user, "secret", result),
            expected,
            "{user} {result:?}"
        );
    }
}

#[test]
fn the_password_of_an_unknown_user_is_checked_too() {
    let (plugin, _) = htpasswd(&format!("alice:{BCRYPT}"));
    for (user, expected) in [("alice", Some(BCRYPT)), ("carol", None)] {
        let mut asked = Vec::new();
        plugin
            .check(user, "secret", |stored| {
                asked.push(stored.map(str::to_owned));
                PasswordResult::Mismatch
            })
            .unwrap();
        assert_eq!(asked, [expected.map(str::to_owned)], "{user}");
    }
}

#[test]
fn a_check_that_cannot_run_now_is_a_failure_and_never_a_decision() {
    let (plugin, _) = htpasswd(&format!("alice:{BCRYPT}"));
    for user in ["alice", "carol"] {
        let answer = plugin.check(user, "secret", |_| PasswordResult::Throttled);
        assert!(matches!(answer, Err(PluginError::Upstream(_))), "{user}");
    }
}

#[test]
fn a_password_over_72_bytes_never_matches_bcrypt() {
    let (plugin, _) = htpasswd(&format!("alice:{BCRYPT}\nbob:{ARGON2}"));
    let (longest, long) = ("a".repeat(72), "a".repeat(73));
    for (user, password, expected) in [
        ("alice", &long, "-invalid username or password"),
        ("alice", &longest, "+user:alice"),
        ("bob", &long, "+user:bob"),
    ] {
        assert_eq!(
            outcome(&plugin, user, password, PasswordResult::Match),
            expected
        );
    }
}

#[test]
fn a_bad_line_is_reported_by_number_and_costs_only_its_user() {
    let text = format!(
        "nonsense\n:{BCRYPT}\nold:$apr1$abc$def\nsha:{{SHA}}W6ph5Mm5Pz8GgiULbPgzG37mj9g=\nplain:secret\nshort:$2y$05$abc\nalice:{BCRYPT}\nalice:{ARGON2}\n"
    );
    let (plugin, messages) = htpasswd(&text);
    let ending = "only bcrypt and argon2 are accepted, `gantry htpasswd FILE USER` writes one";
    assert_eq!(
        messages,
        [
            "line 1: is not name:hash".to_owned(),
            "line 2: is not name:hash".to_owned(),
            format!("line 3: user old has an MD5 hash; {ending}"),
            format!("line 4: user sha has a SHA-1 hash; {ending}"),
            format!("line 5: user plain has plain text or a crypt hash; {ending}"),
            format!("line 6: user short has a damaged bcrypt hash; {ending}"),
            "line 8: names the user alice again; the first line counts".to_owned(),
        ]
    );
    assert_eq!(plugin.hashes.len(), 1);
    assert_eq!(plugin.hashes["alice"], BCRYPT);
}

#[test]
fn the_identity_may_be_reused_for_a_minute_and_names_its_realm() {
    let mut issues = Issues::default();
    let config = serde_json::json!({ "users": format!("alice:{BCRYPT}"), "realm": "office" });
    let plugin = Htpasswd::new(parse_config(&config.to_string(), &mut issues), &mut issues);
    let Ok(Outcome::Authenticated(identity)) =
        plugin.check("alice", "x", |_| PasswordResult::Match)
    else {
        panic!("not authenticated")
    };
    assert_eq!(identity.principal.issuer, "office");
    assert_eq!(identity.principal.kind, "user");
    assert_eq!(identity.cache.ttl_ms, 60_000);
    assert_eq!(identity.at_most, None);
}

#[test]
fn a_principals_generation_is_its_entrys_and_ends_with_it() {
    let current = |users: &str, id: &str| htpasswd(users).0.current(id).unwrap();
    let (plugin, _) = htpasswd(&format!("alice:{BCRYPT}"));
    let Ok(Outcome::Authenticated(identity)) =
        plugin.check("alice", "x", |_| PasswordResult::Match)
    else {
        panic!("not authenticated")
    };
    let generation = Some(identity.generation);
    let same = format!("bob:{ARGON2}\nalice:{BCRYPT}\n");
    assert_eq!(current(&same, "user:alice"), generation);
    let other = current(&format!("alice:{ARGON2}"), "user:alice");
    assert!(other.is_some() && other != generation, "{other:?}");
    assert!(generation.is_some_and(|it| !it.contains('$')));
    for gone in ["user:carol", "alice", "robot:alice", "user:", ""] {
        assert_eq!(current(&same, gone), None, "{gone}");
    }
}

#[test]
fn the_schema_describes_every_key() {
    let schema: serde_json::Value = serde_json::from_str(Htpasswd::CONFIG_SCHEMA).unwrap();
    let keys = schema["properties"].as_object().unwrap().keys();
    assert_eq!(
        keys.map(String::as_str).collect::<Vec<_>>(),
        ["users", "realm", "prefix"]
    );
}
