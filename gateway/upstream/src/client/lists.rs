//! Reads pages of an upstream's lists as their bytes arrive.
//!
//! Owns what an absent list looks like and how a page without a `Link` is followed. Holds one element at a time beside what it keeps.

use std::sync::Arc;

use gantry_model::{Tag, manifest::MAX_MANIFEST_BYTES};
use http::StatusCode;
use reqwest::Response;

use super::{RegistryClient, SATURATED_PAUSE};
use crate::{
    ListPage, ListRoom, NextPage, Texts, answer,
    body::Body,
    elements::{Elements, NotElements},
    endpoint::{Ask, Endpoint},
    error::{Call, Cause, Kind, UpstreamError},
    list::next_query,
    transport::drain,
};

/// Entries asked for in one page of tags: more than that, some registries refuse.
pub(super) const TAGS_PER_PAGE: usize = 1000;
/// The longest tag in a list, quotes and escapes included. Longer ones are no tags.
const MAX_TAG_BYTES: usize = 4 << 10;
/// The longest descriptor in a list of referrers: it repeats a manifest's annotations.
const MAX_DESCRIPTOR_BYTES: usize = MAX_MANIFEST_BYTES + (64 << 10);
/// How a registry without the referrers API answers.
const NO_REFERRERS: [StatusCode; 6] = [
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::NOT_ACCEPTABLE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::NOT_IMPLEMENTED,
];

impl RegistryClient {
    /// A page of a list: the first one of whichever base URL answers, or the next one of the base URL that had the one before.
    pub(super) async fn list_page(
        &self,
        ask: &Ask<'_>,
        list: &List<'_>,
        next: Option<&NextPage>,
    ) -> Result<ListPage, UpstreamError> {
        if let Some(next) = next {
            let page = self.page_at(next.endpoint, ask, list, false);
            let endpoint = self.endpoint(next.endpoint, ask)?;
            return endpoint.guarded(ask, page).await;
        }
        self.first_of(ask, |endpoint| {
            let same = |one: &Arc<Endpoint>| Arc::ptr_eq(one, endpoint);
            let index = self.endpoints.iter().position(same).unwrap_or(0);
            Box::pin(self.page_at(index, ask, list, true))
        })
        .await
    }

    async fn page_at(
        &self,
        index: usize,
        ask: &Ask<'_>,
        list: &List<'_>,
        is_first: bool,
    ) -> Result<ListPage, UpstreamError> {
        let endpoint = self.endpoint(index, ask)?;
        let mut page = read_page(endpoint, ask, list, is_first).await?;
        if let Some(next) = &mut page.next {
            next.endpoint = index;
        }
        Ok(page)
    }

    fn endpoint(&self, index: usize, ask: &Ask<'_>) -> Result<&Arc<Endpoint>, UpstreamError> {
        let endpoint = self.endpoints.get(index);
        endpoint.ok_or_else(|| ask.call.fail(Kind::Invalid, "a page of nowhere"))
    }
}

/// How a list is read.
pub(super) struct List<'a> {
    /// The member that is the list.
    name: &'static str,
    max_element_bytes: usize,
    room: &'a ListRoom,
    /// Statuses by which a registry says that it has no such list; so does, where there are any, a first page that is none.
    absent: &'static [StatusCode],
    /// So many entries without a `Link` may not be all: some registries send none.
    full: Option<usize>,
    /// Takes the JSON text of an element in.
    read: fn(&[u8], &mut Texts) -> Result<(), NotElements>,
}

impl<'a> List<'a> {
    /// A list of tags.
    pub(super) fn tags(room: &'a ListRoom) -> Self {
        Self {
            name: "tags",
            max_element_bytes: MAX_TAG_BYTES,
            room,
            absent: &[],
            full: Some(TAGS_PER_PAGE),
            read: read_tag,
        }
    }

    /// What refers to a manifest.
    pub(super) fn referrers(room: &'a ListRoom) -> Self {
        Self {
            name: "manifests",
            max_element_bytes: MAX_DESCRIPTOR_BYTES,
            room,
            absent: &NO_REFERRERS,
            full: None,
            read: read_descriptor,
        }
    }

    fn may_be_absent(&self, is_first: bool) -> bool {
        is_first && !self.absent.is_empty()
    }
}

async fn read_page(
    endpoint: &Arc<Endpoint>,
    ask: &Ask<'_>,
    list: &List<'_>,
    is_first: bool,
) -> Result<ListPage, UpstreamError> {
    let may_be_absent = list.may_be_absent(is_first);
    let absent = || ask.call.fail(Kind::NotFound, "there is no such list");
    let absences = match may_be_absent {
        true => list.absent,
        false => &[],
    };
    let response = fetch_page(endpoint, ask, absences).await?;
    let headers = response.headers().clone();
    if response.status() != StatusCode::OK || may_be_absent && answer::is_html(&headers) {
        drain(response).await;
        return Err(absent());
    } else if answer::is_html(&headers) {
        drain(response).await;
        return Err(ask.call.fail(Kind::Unavailable, answer::HTML));
    }
    answer::check_encoding(&ask.call, &headers)?;
    let query = next_query(&headers, response.url());
    let query = query.map_err(|error| ask.call.fail(Kind::Invalid, error))?;
    let length = answer::content_length(&headers);
    let body = endpoint.body(&ask.call, response, length);
    // What is sent as an index is the list, whole or torn.
    let is_index = answer::media_type(&headers).is_some_and(|it| it.is_index());
    let mut page = match read_elements(body, &ask.call, list, is_index).await {
        Err(error) if may_be_absent && !is_index && error.kind == Kind::NotFound => {
            return Err(absent());
        }
        Err(error) if error.kind == Kind::NotFound => {
            return Err(UpstreamError {
                kind: Kind::Invalid,
                ..error
            });
        }
        read => read?,
    };
    page.next = match query {
        Some(query) => Some(NextPage::new(query, false)),
        None => guessed(&page.entries, list),
    };
    Ok(page)
}

/// The head of a page. Some registries refuse the number of entries that is asked for at first: then they choose.
async fn fetch_page(
    endpoint: &Arc<Endpoint>,
    ask: &Ask<'_>,
    absences: &[StatusCode],
) -> Result<Response, UpstreamError> {
    let wanted = [&[StatusCode::OK], absences].concat();
    let is_numbered = ask.raw_query.is_none() && !ask.query.is_empty();
    if !is_numbered {
        return endpoint.fetch(ask, &wanted).await;
    }
    let refusal = [StatusCode::OK, StatusCode::BAD_REQUEST];
    let response = endpoint.fetch(ask, &refusal).await?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    drain(response).await;
    let plain = Ask {
        query: Vec::new(),
        ..ask.clone()
    };
    endpoint.fetch(&plain, &wanted).await
}

/// The query of the next page where the upstream sends no `Link` and this page has as many entries as were requested.
fn guessed(entries: &Texts, list: &List<'_>) -> Option<NextPage> {
    let number = list.full.filter(|full| *full == entries.len())?;
    let last = entries.iter().next_back()?;
    Some(NextPage::new(format!("n={number}&last={last}"), true))
}

/// [`Kind::NotFound`] for a body that is no such list.
async fn read_elements(
    mut body: Body,
    call: &Call,
    list: &List<'_>,
    is_index: bool,
) -> Result<ListPage, UpstreamError> {
    let broken = |error: NotElements| match error {
        NotElements::TooLarge | NotElements::Cut => call.fail(Kind::Invalid, error),
        NotElements::NoObject | NotElements::NoArray => call.fail(Kind::NotFound, error),
    };
    let mut elements = Elements::of(list.name, list.max_element_bytes);
    let mut page = ListPage::default();
    while let Some(part) = body.next().await? {
        page.bytes = page.bytes.saturating_add(part.len() as u64);
        if page.bytes > list.room.max_bytes {
            return Err(call.fail(Kind::Invalid, "the list is larger than allowed"));
        }
        let read = elements.push(&part, |element| (list.read)(element, &mut page.entries));
        read.map_err(broken)?;
        if !list.room.has_memory(&page).await {
            let answer = "not read on, other large lists take the memory";
            let busy = call.fail(Kind::Unavailable, answer);
            return Err(busy.because(Cause::Memory).retry_after(SATURATED_PAUSE));
        }
    }
    let found = elements.finish().map_err(broken)?;
    // Go leaves an empty list out. What else is there must say that it is the list: an upstream's errors are a JSON object, too.
    let is_list = found.list || is_index || list.absent.is_empty() && found.name;
    match is_list {
        true => Ok(page),
        false => Err(broken(NotElements::NoArray)),
    }
}

/// A tag that we could not address is of no use to anybody behind us.
fn read_tag(element: &[u8], tags: &mut Texts) -> Result<(), NotElements> {
    let tag: String = serde_json::from_slice(element).map_err(|_json| NotElements::NoArray)?;
    if tag.parse::<Tag>().is_ok() {
        tags.push(&tag);
    }
    Ok(())
}

/// A descriptor as the upstream wrote it: fields that this registry does not know are the client's.
fn read_descriptor(element: &[u8], descriptors: &mut Texts) -> Result<(), NotElements> {
    #[derive(serde::Deserialize)]
    struct Descriptor {
        #[serde(rename = "digest")]
        _digest: String,
    }
    let is_descriptor = serde_json::from_slice::<Descriptor>(element).is_ok();
    match std::str::from_utf8(element) {
        Ok(text) if is_descriptor => {
            descriptors.push(text);
            Ok(())
        }
        _ => Err(NotElements::NoArray),
    }
}
