//! Lists: tags of a repository, and the repositories of the registry.
//!
//! Owns paging: one entry more than the page is asked for, to know whether there are more.

use gantry_model::{Page, Repository, RepositoryName, Source, Tag};

use crate::{
    error::Error,
    mirror::{Derived, TagsFound},
    outcome::Outcome,
    registry::Call,
};

impl Call {
    /// Repositories, hosted and mirrored, by their canonical names; without those of mirrors that are not listed.
    pub(crate) async fn list_catalog(&self, page: Page) -> Result<Outcome, Error> {
        let limit = self.page_size(&page);
        let mut repositories = match limit {
            0 => Vec::new(),
            _ => self.listed_repositories(limit, page).await?,
        };
        let more = repositories.len() > limit;
        repositories.truncate(limit);
        Ok(Outcome::Catalog {
            repositories,
            next: more.then_some(limit),
        })
    }

    async fn listed_repositories(
        &self,
        limit: usize,
        page: Page,
    ) -> Result<Vec<RepositoryName>, Error> {
        let ports = &self.shared.ports;
        let is_hidden = |name: &RepositoryName| ports.mirrors.values().any(|it| it.hides(name));
        let mut page = one_more(limit, page);
        let mut listed = Vec::new();
        // What is left out must not end the list early.
        loop {
            let found = ports.metadata.repositories(&page).await?;
            let is_last = page.limit.is_some_and(|asked| found.len() < asked);
            page.after = found.last().map(ToString::to_string);
            listed.extend(found.into_iter().filter(|name| !is_hidden(name)));
            if is_last || listed.len() > limit {
                return Ok(listed);
            }
        }
    }

    /// Tags of a repository.
    pub(crate) async fn list_tags(
        &self,
        repository: Repository,
        page: Page,
    ) -> Result<Outcome, Error> {
        let limit = self.page_size(&page);
        let TagsFound { tags, more, stale } = match &repository.source {
            Source::Hosted | Source::Layered { .. } => {
                let (tags, more) = self.hosted_tags(&repository, limit, page).await?;
                let stale = None;
                TagsFound { tags, more, stale }
            }
            Source::Mirror { .. } if limit == 0 => TagsFound {
                tags: Vec::new(),
                more: false,
                stale: None,
            },
            Source::Mirror { .. } => {
                let page = Page {
                    limit: Some(limit),
                    after: page.after,
                };
                let derived = Derived::new(self.shared.settings.max_derived_requests);
                let mirrors = &self.shared.mirrors;
                mirrors.tags(&repository, &page, &derived).await?
            }
        };
        Ok(Outcome::Tags {
            repository,
            tags,
            next: more.then_some(limit),
            stale,
        })
    }

    async fn hosted_tags(
        &self,
        repository: &Repository,
        limit: usize,
        page: Page,
    ) -> Result<(Vec<Tag>, bool), Error> {
        let metadata = &self.shared.ports.metadata;
        if metadata.repository(&repository.name).await?.is_none() {
            return Err(Error::NameUnknown);
        }
        if limit == 0 {
            return Ok((Vec::new(), false));
        }
        let mut tags = Vec::new();
        let mut page = one_more(limit, page);
        // Tags that an upstream said before the name was hosted are left out, so that one look may not fill the page.
        loop {
            let asked = page.limit;
            let records = metadata.tags(&repository.name, None, &page).await?;
            let is_last = asked.is_some_and(|asked| records.len() < asked);
            page.after = records.last().map(|record| record.tag.to_string());
            let pushed = records.into_iter().filter(|record| !record.is_cached());
            tags.extend(pushed.map(|record| record.tag));
            if is_last || tags.len() > limit {
                break;
            }
        }
        let more = tags.len() > limit;
        tags.truncate(limit);
        Ok((tags, more))
    }

    pub(crate) fn page_size(&self, page: &Page) -> usize {
        let max = self.shared.settings.max_page_entries;
        page.limit.map_or(max, |limit| limit.min(max))
    }
}

fn one_more(limit: usize, page: Page) -> Page {
    Page {
        limit: Some(limit.saturating_add(1)),
        after: page.after,
    }
}
