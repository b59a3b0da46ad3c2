//! One canonical name per repository, however the client spelled it; nothing unlisted is resolved.

use gantry_model::{
    Namespaces, Repository, Source,
    glob::Glob,
    namespace::{Address, MirrorNames, ResolveError},
};

fn namespaces() -> Namespaces {
    let mirror = |name: &str, library: bool| MirrorNames {
        mirror: name.into(),
        prefix: name.parse().unwrap(),
        namespaces: vec![name.to_owned()],
        hosts: vec![format!("{name}.mirror.example")],
        library,
        hosted: Vec::new(),
        layered: Vec::new(),
    };
    let mut local = mirror("reg", false);
    local.namespaces = vec!["reg.example.com:8443".to_owned()];
    Namespaces {
        mirrors: vec![
            mirror("docker.io", true),
            mirror("ghcr.io", false),
            mirror("ghcr.io/team", false),
            local,
        ],
        hosted: vec![Glob::parse("apps/**").unwrap()],
        default_mirror: Some("docker.io".into()),
    }
}

fn resolve(
    host: &str,
    prefix: Option<&str>,
    ns: Option<&str>,
    name: &str,
) -> Result<Repository, ResolveError> {
    namespaces().resolve(
        Address {
            mirror: None,
            host: Some(host),
            path_prefix: prefix,
            namespace: ns,
        },
        name,
    )
}

fn canonical(host: &str, prefix: Option<&str>, ns: Option<&str>, name: &str) -> String {
    resolve(host, prefix, ns, name).map_or_else(
        |error| error.to_string(),
        |repository| repository.name.to_string(),
    )
}

#[test]
fn every_spelling_of_alpine_is_one_repository() {
    let expected = "docker.io/library/alpine";
    assert_eq!(canonical("gw", None, None, "alpine"), expected);
    assert_eq!(canonical("gw", None, None, "library/alpine"), expected);
    assert_eq!(canonical("gw", None, None, "docker.io/alpine"), expected);
    assert_eq!(
        canonical("gw", None, None, "docker.io/library/alpine"),
        expected
    );
    assert_eq!(
        canonical("gw", Some("docker.io"), None, "library/alpine"),
        expected
    );
    assert_eq!(
        canonical("gw", Some("docker.io"), Some("docker.io"), "library/alpine"),
        expected
    );
    assert_eq!(
        canonical("gw", None, Some("docker.io"), "library/alpine"),
        expected
    );
    assert_eq!(
        canonical("gw", None, Some("docker.io"), "docker.io/library/alpine"),
        expected
    );
    assert_eq!(
        canonical("docker.io.mirror.example", None, None, "library/alpine"),
        expected
    );
    assert_eq!(
        canonical("DOCKER.IO.mirror.example:443", None, None, "alpine"),
        expected
    );
}

#[test]
fn the_same_path_under_another_namespace_is_another_repository() {
    assert_eq!(
        canonical("gw", None, Some("ghcr.io"), "library/alpine"),
        "ghcr.io/library/alpine"
    );
    assert_eq!(
        canonical("gw", None, Some("reg.example.com:8443"), "library/alpine"),
        "reg/library/alpine"
    );
}

#[test]
fn an_unlisted_namespace_or_prefix_is_never_looked_up_elsewhere() {
    assert_eq!(
        resolve("gw", None, Some("evil.example"), "library/alpine"),
        Err(ResolveError::Unknown)
    );
    assert_eq!(
        resolve("gw", None, Some(""), "library/alpine"),
        Err(ResolveError::Unknown)
    );
    assert_eq!(
        resolve("gw", Some("evil"), None, "library/alpine"),
        Err(ResolveError::Unknown)
    );
    assert_eq!(
        resolve("gw", Some("apps"), None, "web"),
        Err(ResolveError::Unknown)
    );
    let closed = Namespaces {
        default_mirror: None,
        ..namespaces()
    };
    assert_eq!(
        closed.resolve(Address::default(), "library/alpine"),
        Err(ResolveError::Unknown)
    );
}

#[test]
fn a_hosted_name_never_falls_through_to_an_upstream() {
    let repository = resolve("gw", None, None, "apps/web").unwrap();
    assert_eq!(repository.source, Source::Hosted);
    assert_eq!(repository.mirror(), None);
}

#[test]
fn the_longest_prefix_wins_and_a_prefix_alone_is_no_repository_of_it() {
    assert_eq!(
        canonical("gw", None, None, "ghcr.io/team/x"),
        "ghcr.io/team/x"
    );
    assert_eq!(
        resolve("gw", None, None, "ghcr.io/team/x")
            .unwrap()
            .mirror(),
        Some("ghcr.io/team")
    );
    assert_eq!(
        resolve("gw", None, None, "ghcr.io/other/x")
            .unwrap()
            .mirror(),
        Some("ghcr.io")
    );
    assert_eq!(
        canonical("gw", None, None, "ghcr.iox/other"),
        "docker.io/ghcr.iox/other",
        "a prefix ends at a slash"
    );
}

#[test]
fn the_client_sees_its_own_spelling_and_paths() {
    let by_prefix_path = resolve("gw", Some("docker.io"), None, "library/alpine").unwrap();
    assert_eq!(by_prefix_path.spelled.as_str(), "docker.io/library/alpine");
    assert_eq!(&*by_prefix_path.base, "/docker.io/v2");
    let short = resolve("gw", None, None, "alpine").unwrap();
    assert_eq!((short.spelled.as_str(), &*short.base), ("alpine", "/v2"));
    let by_namespace = resolve("gw", None, Some("ghcr.io"), "a/b").unwrap();
    assert_eq!(by_namespace.namespace.as_deref(), Some("ghcr.io"));
}

#[test]
fn names_that_grow_too_long_are_refused() {
    let long = "a".repeat(250);
    assert!(matches!(
        resolve("gw", None, None, &long),
        Err(ResolveError::Name(_))
    ));
}

#[test]
fn at_a_listener_of_a_mirror_nothing_leads_elsewhere() {
    let check = |namespace, path_prefix, name: &str, expected: &str| {
        let address = Address {
            mirror: Some("ghcr.io"),
            host: Some("docker.io.mirror.example"),
            path_prefix,
            namespace,
        };
        let found = namespaces().resolve(address, name);
        let found = found.map_or_else(|error| error.to_string(), |it| it.name.to_string());
        assert_eq!(found, expected, "{name}");
    };
    let unknown = ResolveError::Unknown.to_string();
    check(None, None, "alpine", "ghcr.io/alpine");
    check(None, None, "apps/web", "ghcr.io/apps/web");
    check(None, None, "docker.io/alpine", "ghcr.io/docker.io/alpine");
    check(None, None, "ghcr.io/team/x", "ghcr.io/ghcr.io/team/x");
    check(Some("ghcr.io"), None, "x", "ghcr.io/x");
    check(Some("nobody.example"), None, "x", "ghcr.io/x");
    check(Some("docker.io"), None, "x", &unknown);
    check(None, Some("ghcr.io"), "x", &unknown);
}

#[test]
fn a_name_pushed_over_a_mirrors_is_hosted_under_its_canonical_name() {
    let mut names = namespaces();
    for mirror in &mut names.mirrors {
        mirror.hosted = vec![Glob::parse("docker.io/library/own-*").unwrap()];
        mirror.layered = vec![Glob::parse("docker.io/library/o*").unwrap()];
    }
    let resolve = |spelled: &str| names.resolve(Address::default(), spelled).unwrap();
    let own = resolve("own-tool");
    assert_eq!(own.name.as_str(), "docker.io/library/own-tool");
    assert_eq!(own.spelled.as_str(), "own-tool");
    assert_eq!(own.source, Source::Hosted);
    let layered = resolve("docker.io/other");
    assert!(
        matches!(&layered.source, Source::Layered { remote, .. } if remote.as_str() == "library/other")
    );
    assert_eq!(layered.mirror(), None);
    assert_eq!(resolve("alpine").mirror(), Some("docker.io"));
}
