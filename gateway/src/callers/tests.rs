//! What an upstream says about callers counts for whom it said it, for as long as it may, and is asked once.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use gantry_model::namespace::MirrorNames;
use gantry_storage::MemoryMetadata;
use gantry_upstream::{Cause, Kind, UpstreamError};
use tokio::sync::Notify;

use super::*;

const REMEMBER_FOR: Duration = Duration::from_secs(120);

/// An upstream that answers as a test says.
#[derive(Debug, Default)]
struct Scripted {
    /// Guards the answer to everything.
    answer: Mutex<Answer>,
    asked: AtomicUsize,
    /// Who was asked about, and which repository.
    seen: Mutex<Vec<String>>,
    /// Set to hold answers back.
    held: Mutex<Option<Arc<Notify>>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Answer {
    #[default]
    Yes,
    No,
    Fails(Kind),
}

impl Scripted {
    fn says(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn answer(&self, line: String) -> Result<bool, UpstreamError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.seen.lock().unwrap().push(line);
        let held = self.held.lock().unwrap().clone();
        if let Some(held) = held {
            held.notified().await;
        }
        let answer = *self.answer.lock().unwrap();
        match answer {
            Answer::Yes => Ok(true),
            Answer::No => Ok(false),
            Answer::Fails(kind) => Err(UpstreamError {
                kind,
                cause: Cause::Answer,
                upstream: "up".to_owned(),
                attempt: "GET: scripted".to_owned(),
                retry_after: None,
                source: None,
            }),
        }
    }
}

#[async_trait]
impl CallerRights for Scripted {
    async fn knows(&self, caller: &Credentials) -> Result<bool, UpstreamError> {
        self.answer(format!("{}?", caller.username)).await
    }

    async fn may_pull(
        &self,
        caller: Option<&Credentials>,
        repository: &RepositoryName,
        known: Option<&Reference>,
    ) -> Result<bool, UpstreamError> {
        let who = caller.map_or("everybody", |caller| caller.username.as_str());
        let by = known.map_or_else(|| "list".to_owned(), ToString::to_string);
        self.answer(format!("{who} {repository} by {by}")).await
    }
}

fn names(mirror: &str) -> MirrorNames {
    MirrorNames {
        mirror: mirror.into(),
        prefix: mirror.parse().unwrap(),
        namespaces: vec![mirror.to_owned()],
        hosts: vec![format!("{mirror}.example")],
        library: false,
        hosted: Vec::new(),
        layered: Vec::new(),
    }
}

/// Caller-authorized mirrors of these names, and `plain`, which is none.
fn world(mirrors: &[&str]) -> (Arc<Callers>, Arc<Scripted>) {
    let upstream = Arc::new(Scripted::default());
    let asked = mirrors.iter().map(|name| AskedMirror {
        name: (*name).into(),
        upstream: format!("https://{name}.example"),
        remember_for: REMEMBER_FOR,
        rights: Arc::clone(&upstream) as _,
    });
    let namespaces = Namespaces {
        mirrors: mirrors
            .iter()
            .chain(&["plain"])
            .map(|it| names(it))
            .collect(),
        hosted: vec![gantry_model::glob::Glob::parse("apps/**").unwrap()],
        default_mirror: None,
    };
    let metadata = Arc::new(MemoryMetadata::default());
    let memory = Memory::new().unwrap();
    let callers = Callers::new(asked.collect(), namespaces, metadata, memory);
    (Arc::new(callers), upstream)
}

fn scope(text: &str) -> Scope {
    text.parse().unwrap()
}

async fn carol(callers: &Callers) -> UpstreamCaller {
    let known = callers.identify("up", "carol", "secret").await;
    known.ok().unwrap().unwrap().1
}

/// What a confirmation comes to: the scope, `-` for a refusal, or the status of an open question.
async fn confirm(callers: &Callers, standing: Standing<'_>, needed: Needed, text: &str) -> String {
    match callers.confirm(standing, needed, scope(text)).await {
        Ok(Confirmation::Allowed(scope, _)) => format!("allowed {scope}"),
        Ok(Confirmation::Unconcerned(scope)) => format!("unconcerned {scope}"),
        Ok(Confirmation::Refused) => "refused".to_owned(),
        Err(error) => error.answer().status.as_u16().to_string(),
    }
}

const PULL: &str = "repository:up/team/app:pull";

/// A scope, and what becomes of it for who is known here, and for whom the upstream of `up` vouches.
#[rustfmt::skip]
const SCOPES: &[(&str, &str, &str)] = &[
    ("repository:apps/web:pull", "unconcerned repository:apps/web:pull", "refused"),
    ("repository:plain/app:pull", "unconcerned repository:plain/app:pull", "refused"),
    ("repository:nobodys:pull", "unconcerned repository:nobodys:pull", "refused"),
    ("registry:catalog:*", "unconcerned registry:catalog:*", "refused"),
    ("repository:up/team/app:push", "allowed repository:up/team/app:push", "refused"),
    ("repository:up/team/app:pull,push", "allowed repository:up/team/app:pull,push", "allowed repository:up/team/app:pull"),
    ("repository:other/app:pull", "allowed repository:other/app:pull", "refused"),
];

#[tokio::test]
async fn an_upstream_is_asked_about_its_own_repositories_alone() {
    let (callers, upstream) = world(&["up", "other"]);
    let carol = carol(&callers).await;
    let token = UpstreamCaller::by_token("up", &[scope(PULL)]);
    let before = upstream.asked();
    for (text, local, vouched) in SCOPES {
        for (standing, expect) in [
            (Standing::Local, local),
            (carol.standing(), vouched),
            (token.standing(), vouched),
        ] {
            let found = confirm(&callers, standing, Needed::Now, text).await;
            assert_eq!(found, *expect, "{text}: {standing:?}");
        }
    }
    let asked = upstream.asked() - before;
    assert_eq!(asked, 2, "about two repositories: {:?}", upstream.seen);
}

#[tokio::test]
async fn a_users_question_is_what_everybody_may_and_a_callers_is_his_own() {
    let (callers, upstream) = world(&["up"]);
    let carol = carol(&callers).await;
    let other = "repository:up/team/other:pull";
    confirm(&callers, carol.standing(), Needed::Now, PULL).await;
    confirm(&callers, Standing::Local, Needed::Now, PULL).await;
    confirm(&callers, Standing::Local, Needed::Now, other).await;
    // What everybody may is no question about her.
    confirm(&callers, carol.standing(), Needed::Now, other).await;
    let seen = upstream.seen.lock().unwrap().clone();
    let expected = [
        "carol?",
        "carol team/app by list",
        "everybody team/app by list",
        "everybody team/other by list",
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_right_that_was_taken_away_is_gone_when_its_time_is_over() {
    let (callers, upstream) = world(&["up"]);
    let carol = carol(&callers).await;
    let now = Needed::Now;
    let allowed = format!("allowed {PULL}");
    assert_eq!(
        confirm(&callers, carol.standing(), now, PULL).await,
        allowed
    );
    upstream.says(Answer::No);
    tokio::time::advance(REMEMBER_FOR - Duration::from_millis(1)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), now, PULL).await,
        allowed
    );
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), now, PULL).await,
        "refused"
    );
    // And one that was given counts soon.
    upstream.says(Answer::Yes);
    assert_eq!(
        confirm(&callers, carol.standing(), now, PULL).await,
        "refused"
    );
    tokio::time::advance(memory::NO_FOR).await;
    assert_eq!(
        confirm(&callers, carol.standing(), now, PULL).await,
        allowed
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_rests_on_a_yes_that_lasts_as_long_as_it() {
    let (callers, upstream) = world(&["up"]);
    let carol = carol(&callers).await;
    let token = Needed::ForToken;
    let allowed = format!("allowed {PULL}");
    assert_eq!(
        confirm(&callers, carol.standing(), token, PULL).await,
        allowed
    );
    upstream.says(Answer::No);
    tokio::time::advance(REMEMBER_FOR - SHORTEST_TOKEN - Duration::from_secs(1)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), token, PULL).await,
        allowed
    );
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::Now, PULL).await,
        allowed
    );
    assert_eq!(
        confirm(&callers, carol.standing(), token, PULL).await,
        "refused"
    );
    // It was asked, so that it is known.
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::Now, PULL).await,
        "refused"
    );
}

#[tokio::test(start_paused = true)]
async fn a_token_is_no_ground_for_another_token() {
    let (callers, upstream) = world(&["up"]);
    let token = UpstreamCaller::by_token("up", &[scope(PULL)]);
    upstream.says(Answer::No);
    let now = confirm(&callers, token.standing(), Needed::Now, PULL).await;
    assert_eq!((now, upstream.asked()), (format!("allowed {PULL}"), 0));
    let renewed = confirm(&callers, token.standing(), Needed::ForToken, PULL).await;
    assert_eq!(renewed, "refused");
    assert_eq!(
        *upstream.seen.lock().unwrap(),
        ["everybody team/app by list"]
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_does_not_answer_is_an_open_question_and_no_refusal() {
    let (callers, upstream) = world(&["up"]);
    let carol = carol(&callers).await;
    for (kind, status) in [
        (Kind::Unavailable, "503"),
        (Kind::Invalid, "503"),
        (Kind::Refused, "503"),
        (Kind::RateLimited, "429"),
    ] {
        upstream.says(Answer::Fails(kind));
        tokio::time::advance(Duration::from_secs(100)).await;
        for standing in [carol.standing(), Standing::Local] {
            assert_eq!(
                confirm(&callers, standing, Needed::Now, PULL).await,
                status,
                "{kind:?}"
            );
        }
        let identified = callers.identify("up", "dave", "x").await;
        assert_eq!(
            identified
                .err()
                .unwrap()
                .answer()
                .status
                .as_u16()
                .to_string(),
            status
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_remembered_yes_is_served_while_the_upstream_is_down_and_is_good_for_no_new_token() {
    let (callers, upstream) = world(&["up"]);
    let carol = carol(&callers).await;
    let allowed = format!("allowed {PULL}");
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::Now, PULL).await,
        allowed
    );
    upstream.says(Answer::Fails(Kind::Unavailable));
    tokio::time::advance(Duration::from_secs(70)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::ForToken, PULL).await,
        "503"
    );
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::Now, PULL).await,
        allowed
    );
    tokio::time::advance(Duration::from_secs(50)).await;
    assert_eq!(
        confirm(&callers, carol.standing(), Needed::Now, PULL).await,
        "503"
    );
}

#[tokio::test]
async fn a_hundred_who_wait_are_one_question_also_when_the_first_goes_away() {
    let (callers, upstream) = world(&["up"]);
    let carol = Arc::new(carol(&callers).await);
    let held = Arc::new(Notify::new());
    *upstream.held.lock().unwrap() = Some(Arc::clone(&held));
    let before = upstream.asked();
    let ask = || {
        let (callers, carol) = (Arc::clone(&callers), Arc::clone(&carol));
        tokio::spawn(async move { confirm(&callers, carol.standing(), Needed::Now, PULL).await })
    };
    let first = ask();
    while upstream.asked() == before {
        tokio::task::yield_now().await;
    }
    let others: Vec<_> = (0..99).map(|_| ask()).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    while upstream.asked() == before + 1 {
        tokio::task::yield_now().await;
    }
    held.notify_one();
    for other in others {
        assert_eq!(other.await.unwrap(), format!("allowed {PULL}"));
    }
    assert_eq!(
        upstream.asked() - before,
        2,
        "the one that was given up, and one for all"
    );
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let (callers, upstream) = world(&["up"]);
    upstream.says(Answer::No);
    for _time in 0..3 {
        let known = callers.identify("up", "carol", "wrong").await;
        assert!(known.ok().unwrap().is_none());
    }
    assert_eq!(upstream.asked(), 1);
    // The right one is another question.
    upstream.says(Answer::Yes);
    let known = callers
        .identify("up", "carol", "secret")
        .await
        .ok()
        .unwrap();
    assert_eq!(known.unwrap().0.id, "upstream:up:carol");
}

#[tokio::test]
async fn what_is_no_name_is_shown_to_no_upstream() {
    let (callers, upstream) = world(&["up"]);
    let long = "a".repeat(MAX_USERNAME_BYTES + 1);
    for name in ["", "<token>", "a b", "a\tb", &long] {
        let known = callers.identify("up", name, "secret").await;
        assert!(known.ok().unwrap().is_none(), "{name}");
    }
    assert!(
        callers
            .identify("plain", "carol", "x")
            .await
            .ok()
            .unwrap()
            .is_none()
    );
    assert_eq!(upstream.asked(), 0);
}

#[tokio::test]
async fn a_credential_is_shown_for_the_one_mirror_that_is_meant() {
    let (two, _) = world(&["up", "other"]);
    let (one, _) = world(&["up"]);
    let (none, _) = world(&[]);
    let here = |mirror| Address {
        mirror,
        ..Address::default()
    };
    let host = |host| Address {
        host: Some(host),
        ..Address::default()
    };
    let up = || ShownFor::Mirror("up".into());
    let login = |callers: &Callers, address| callers.of_operation(&Operation::Ping, address);
    assert_eq!(login(&one, Address::default()), up());
    assert_eq!(login(&none, Address::default()), ShownFor::Nobody);
    assert_eq!(login(&two, Address::default()), ShownFor::Several);
    assert_eq!(login(&two, here(Some("up"))), up());
    assert_eq!(login(&two, host("up.example:5000")), up());
    assert_eq!(login(&two, host("plain.example")), ShownFor::Nobody);
    assert_eq!(login(&one, here(Some("plain"))), ShownFor::Nobody);
    let scopes = |names: &[&str]| -> Vec<(Scope, Option<Repository>)> {
        let resolve = |name: &&str| two.namespaces.resolve(Address::default(), name).ok();
        let scope = |name: &&str| Scope::repository(&name.parse().unwrap(), &["pull"]);
        names
            .iter()
            .map(|name| (scope(name), resolve(name)))
            .collect()
    };
    for (names, expect) in [
        (&["up/a"][..], up()),
        (&["up/a", "up/b", "apps/x", "plain/y"], up()),
        (&["up/a", "other/b"], ShownFor::Several),
        (&["apps/x", "plain/y"], ShownFor::Nobody),
        (&["unknown"], ShownFor::Nobody),
        (&[], ShownFor::Several),
    ] {
        assert_eq!(
            two.of_scopes(&scopes(names), Address::default()),
            expect,
            "{names:?}"
        );
    }
    let catalog = Operation::ListCatalog {
        page: Page::default(),
    };
    assert_eq!(
        one.of_operation(&catalog, Address::default()),
        ShownFor::Nobody
    );
}

#[tokio::test]
async fn no_password_is_in_what_debug_shows() {
    let (callers, _) = world(&["up"]);
    let known = callers.identify("up", "carol", "Kanarienvogel").await;
    let shown = format!("{known:?} {callers:?}");
    assert!(!shown.contains("Kanarienvogel"), "{shown}");
}
