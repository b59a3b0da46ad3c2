//! A list of an upstream, page by page: its entries, and where the upstream's own `Link` says that the next page is.
//!
//! Owns that a `Link` leads to another page of the same list and to nothing else. Sends nothing itself.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use url::Url;

use crate::credential::Origin;

/// The longest query of a next page. Tokens of cloud registries have a few hundred bytes.
const MAX_QUERY_BYTES: usize = 8 << 10;

/// Texts in one piece of memory: a list may have a million entries.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Texts {
    text: String,
    /// A list is far from 4 GiB.
    ends: Vec<u32>,
}

impl Texts {
    /// Adds one.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        let end = u32::try_from(self.text.len());
        self.ends.push(end.unwrap_or(u32::MAX));
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &str> + ExactSizeIterator {
        (0..self.ends.len()).map(|index| self.get(index).unwrap_or_default())
    }

    /// The one at that place.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = |index: usize| Some(*self.ends.get(index)? as usize);
        let start = index.checked_sub(1).map_or(Some(0), end)?;
        self.text.get(start..end(index)?)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The memory they take, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.text.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}

impl<'a> Extend<&'a str> for Texts {
    fn extend<T: IntoIterator<Item = &'a str>>(&mut self, texts: T) {
        for text in texts {
            self.push(text);
        }
    }
}

impl<'a> FromIterator<&'a str> for Texts {
    fn from_iter<T: IntoIterator<Item = &'a str>>(texts: T) -> Self {
        let mut all = Self::default();
        all.extend(texts);
        all
    }
}

/// Memory that a list may take before it needs a turn of large lists.
const SMALL_BYTES: usize = 4 << 20;
/// How long a list waits for such a turn.
const TURN_PATIENCE: Duration = Duration::from_secs(20);

/// The memory of one list. A list that grows beyond a few MiB takes one of the turns of large lists, and has it while the list is in use.
#[derive(Debug)]
pub struct ListMemory {
    turns: Arc<Semaphore>,
    /// Held for a look, never over an await.
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    /// How many requests read the list or look at it.
    users: usize,
    turn: Option<OwnedSemaphorePermit>,
}

/// A request's use of a list. The last one that ends gives the list's turn back.
#[derive(Debug)]
pub struct ListUse(Arc<ListMemory>);

impl Drop for ListUse {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.users = state.users.saturating_sub(1);
        if state.users == 0 {
            state.turn = None;
        }
    }
}

impl ListMemory {
    /// A new list's. `turns` has a permit for each large list that may be read at once.
    #[must_use]
    pub fn new(turns: &Arc<Semaphore>) -> Arc<Self> {
        Arc::new(Self {
            turns: Arc::clone(turns),
            state: Mutex::default(),
        })
    }

    /// Begins a use of the list.
    #[must_use]
    pub fn in_use(self: &Arc<Self>) -> ListUse {
        self.state().users += 1;
        ListUse(Arc::clone(self))
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the list may have so many bytes; `false` when that takes too long. The caller holds a [`ListUse`].
    async fn grow(&self, bytes: usize) -> bool {
        if bytes <= SMALL_BYTES || self.state().turn.is_some() {
            return true;
        }
        let turn = timeout(TURN_PATIENCE, Arc::clone(&self.turns).acquire_owned());
        let Ok(Ok(turn)) = turn.await else {
            return false;
        };
        self.state().turn = Some(turn);
        true
    }
}

/// What a page of a list may take.
#[derive(Clone, Debug)]
pub struct ListRoom {
    /// Bytes of its document.
    pub max_bytes: u64,
    /// Bytes of memory that earlier pages take.
    pub taken_bytes: usize,
    /// The list's memory.
    pub memory: Arc<ListMemory>,
}

impl ListRoom {
    /// Room for a list that is alone.
    #[must_use]
    pub fn of(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            taken_bytes: 0,
            memory: ListMemory::new(&Arc::new(Semaphore::new(1))),
        }
    }

    /// Waits until there is memory for what was read of the page; `false` when that takes too long.
    pub(crate) async fn has_memory(&self, page: &ListPage) -> bool {
        let bytes = self.taken_bytes.saturating_add(page.entries.weight());
        self.memory.grow(bytes).await
    }
}

/// Where an upstream says that the next page is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NextPage {
    /// The base URL that has it: a page's place means nothing elsewhere.
    pub(crate) endpoint: usize,
    query: Arc<str>,
    is_guess: bool,
}

impl NextPage {
    /// A place in the list of the first base URL.
    #[must_use]
    pub fn new(query: impl Into<Arc<str>>, is_guess: bool) -> Self {
        Self {
            endpoint: 0,
            query: query.into(),
            is_guess,
        }
    }

    /// Whether the upstream did not name it, so that there may be none.
    #[must_use]
    pub fn is_guess(&self) -> bool {
        self.is_guess
    }

    /// The query, as the upstream wrote it.
    #[must_use]
    pub fn query(&self) -> &str {
        &self.query
    }
}

/// A page of an upstream's list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ListPage {
    /// Tags, or the JSON texts of descriptors, in the upstream's order.
    pub entries: Texts,
    /// The page after it; `None` at the end.
    pub next: Option<NextPage>,
    /// How long the document was.
    pub bytes: u64,
}

/// Why a `Link` is not followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadLink {
    #[error("a Link to the next page that is no link")]
    Malformed,
    #[error("a Link to another origin")]
    Origin,
    #[error("a Link to something else than the next page of this list")]
    Path,
}

/// The query of the next page that an answer of `answered` names; nothing when it names none.
pub(crate) fn next_query(headers: &HeaderMap, answered: &Url) -> Result<Option<String>, BadLink> {
    let lines = headers.get_all(header::LINK).iter();
    for line in lines {
        let line = String::from_utf8_lossy(line.as_bytes());
        for link in links(&line) {
            if link.is_next {
                let target = link.target.ok_or(BadLink::Malformed)?;
                return query_of(target, answered).map(Some);
            }
        }
    }
    Ok(None)
}

fn query_of(target: &str, answered: &Url) -> Result<String, BadLink> {
    let target = answered
        .join(target.trim())
        .map_err(|_parse| BadLink::Malformed)?;
    let is_plain = target.username().is_empty() && target.password().is_none();
    if !is_plain || !is_same_place(&target, answered) {
        return Err(BadLink::Origin);
    }
    let (path, asked) = (decoded(target.path()), decoded(answered.path()));
    // A registry behind a proxy may not know the path in front of its own, or may know another one.
    if path != asked
        && within(&path)
            .zip(within(&asked))
            .is_none_or(|(a, b)| a != b)
    {
        return Err(BadLink::Path);
    }
    match target.query() {
        Some(query) if !query.is_empty() && query.len() <= MAX_QUERY_BYTES => Ok(query.to_owned()),
        _ => Err(BadLink::Malformed),
    }
}

/// Whether a link means the origin that answered. A registry behind a proxy that terminates TLS writes `http` in its links. The next page
/// is requested from the origin that answered in either case: only the link's query is used.
fn is_same_place(target: &Url, answered: &Url) -> bool {
    let is_web = |url: &Url| ["http", "https"].contains(&url.scheme());
    Origin::of(target) == Origin::of(answered)
        || is_web(target)
            && target.host() == answered.host()
            && (target.port() == answered.port()
                || target.port_or_known_default() == answered.port_or_known_default())
}

/// The part of a path that the registry protocol defines.
fn within(path: &str) -> Option<&str> {
    path.find("/v2/").and_then(|at| path.get(at..))
}

fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// One link of a header (RFC 8288 section 3).
struct Link<'a> {
    target: Option<&'a str>,
    is_next: bool,
}

/// The links of a line. A comma or semicolon between angle brackets or quotes separates nothing.
fn links(line: &str) -> impl Iterator<Item = Link<'_>> {
    separated(line, ',').map(|link| {
        let link = link.trim();
        let (target, parameters) =
            match link.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
                Some((target, parameters)) => (Some(target), parameters),
                // A target without an end is none, and no reason to miss that there is a next page.
                None => (None, link.strip_prefix('<').unwrap_or(link)),
            };
        Link {
            target,
            is_next: separated(parameters, ';').any(is_next),
        }
    })
}

fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let relations = value.trim().trim_matches('"').split_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations
            .into_iter()
            .any(|it| it.eq_ignore_ascii_case("next"))
}

fn separated(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_target) = (false, false);
    text.split(move |letter| {
        match letter {
            '"' if !is_target => is_quoted = !is_quoted,
            '<' if !is_quoted => is_target = true,
            '>' if !is_quoted => is_target = false,
            _ => return letter == separator && !is_quoted && !is_target,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const ASKED: &str = "https://r.example/v2/library/alpine/tags/list?n=2";

    fn check_at(asked: &str, link: &str, expect: Result<Option<&str>, BadLink>) {
        let headers = HeaderMap::from_iter([(header::LINK, HeaderValue::from_str(link).unwrap())]);
        let found = next_query(&headers, &asked.parse().unwrap());
        assert_eq!(
            found.as_ref().map(Option::as_deref).map_err(|error| *error),
            expect,
            "{link}"
        );
    }

    fn check(link: &str, expect: Result<Option<&str>, BadLink>) {
        check_at(ASKED, link, expect);
    }

    #[test]
    fn the_upstreams_own_query_of_the_next_page_is_taken_as_it_is() {
        let path = "/v2/library/alpine/tags/list";
        check(
            &format!(r#"<{path}?n=2&last=b>; rel="next""#),
            Ok(Some("n=2&last=b")),
        );
        check(&format!("<{path}?last=b>;rel=next"), Ok(Some("last=b")));
        check(
            &format!(r#"<https://R.example:443{path}?next_page=gAAA%3D%3D>; rel="next""#),
            Ok(Some("next_page=gAAA%3D%3D")),
        );
        check(r#"<?last=a,b;c>; rel="next""#, Ok(Some("last=a,b;c")));
        check(
            r#"<list?page=2>; title="a, b; rel=next"; rel="last next""#,
            Ok(Some("page=2")),
        );
        check(
            &format!(r#"<x>; rel="prev", <{path}?last=b>; REL="Next""#),
            Ok(Some("last=b")),
        );
        check(
            &format!("<http://r.example{path}?p=2>; rel=next"),
            Ok(Some("p=2")),
        );
        check("<a>; rel=\"prev\"", Ok(None));
        check("<next>", Ok(None));
        check(r#"<a?b>; title="rel=next""#, Ok(None));
    }

    #[test]
    fn a_link_to_another_origin_list_or_repository_is_an_error() {
        for other in [
            "https://evil.example/v2/library/alpine/tags/list?n=2",
            "http://r.example:8080/v2/library/alpine/tags/list?n=2",
            "ftp://r.example/v2/library/alpine/tags/list?n=2",
            "https://r.example:444/v2/library/alpine/tags/list?n=2",
            "//evil.example/v2/library/alpine/tags/list?n=2",
            "https://u:p@r.example/v2/library/alpine/tags/list?n=2",
        ] {
            check(&format!("<{other}>; rel=next"), Err(BadLink::Origin));
        }
        for other in [
            "/v2/library/secret/tags/list?n=2",
            "/v2/library/alpine/manifests/latest?n=2",
            "/v2/_catalog?n=2",
            "/v2/library/alpine/tags/list/?n=2",
            "../../../library/secret/tags/list?n=2",
        ] {
            check(&format!("<{other}>; rel=next"), Err(BadLink::Path));
        }
        for broken in [
            "x; rel=next",
            "<; rel=next",
            "<>; rel=next",
            "</v2/library/alpine/tags/list>; rel=next",
        ] {
            let headers =
                HeaderMap::from_iter([(header::LINK, HeaderValue::from_str(broken).unwrap())]);
            let found = next_query(
                &headers,
                &"https://r.example/v2/library/alpine/tags/list"
                    .parse()
                    .unwrap(),
            );
            assert_eq!(found, Err(BadLink::Malformed), "{broken}");
        }
    }

    #[test]
    fn paths_are_compared_as_they_are_meant() {
        let asked = "https://r.example/cache/v2/a/referrers/sha256:ab";
        check_at(
            asked,
            "</cache/v2/a/referrers/sha256%3Aab?p=2>; rel=next",
            Ok(Some("p=2")),
        );
        check_at(
            asked,
            "</v2/a/referrers/sha256:ab?p=2>; rel=next",
            Ok(Some("p=2")),
        );
        check_at(
            asked,
            "</other/v2/a/referrers/sha256:ab?p=2>; rel=next",
            Ok(Some("p=2")),
        );
        check_at(
            "https://r.example/v2/a/referrers/sha256:ab",
            "</cache/v2/a/referrers/sha256:ab?p=2>; rel=next",
            Ok(Some("p=2")),
        );
        for other in [
            "</v2/b/referrers/sha256:ab?p=2>; rel=next",
            "</cache/v2/b/referrers/sha256:ab?p=2>; rel=next",
            "</cache/a/referrers/sha256:ab?p=2>; rel=next",
        ] {
            check_at(asked, other, Err(BadLink::Path));
        }
    }

    #[test]
    fn texts_are_given_back_as_they_were_put_in() {
        let texts: Texts = ["a", "", "bcd"].into_iter().collect();
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "bcd"]);
        assert_eq!(
            (texts.len(), texts.get(2), texts.get(3)),
            (3, Some("bcd"), None)
        );
    }
}
