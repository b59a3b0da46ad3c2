//! Lists: tags of a repository, and the repositories of the registry.
//!
//! Owns paging: one entry more than the page is asked for, to know whether there are more.

use gantry_model::{Page, Repository, Source, Tag};

use crate::{error::Error, outcome::Outcome, registry::Call};

impl Call {
    /// Repositories, hosted and mirrored, by their canonical names.
    pub(crate) async fn list_catalog(&self, page: Page) -> Result<Outcome, Error> {
        let limit = self.page_size(&page);
        let mut repositories = match limit {
            0 => Vec::new(),
            _ => {
                let page = one_more(limit, page);
                self.shared.ports.metadata.repositories(&page).await?
            }
        };
        let more = repositories.len() > limit;
        repositories.truncate(limit);
        Ok(Outcome::Catalog {
            repositories,
            next: more.then_some(limit),
        })
    }

    /// Tags of a repository.
    pub(crate) async fn list_tags(
        &self,
        repository: Repository,
        page: Page,
    ) -> Result<Outcome, Error> {
        let limit = self.page_size(&page);
        let (tags, more) = match &repository.source {
            Source::Hosted => self.hosted_tags(&repository, limit, page).await?,
            Source::Mirror { .. } if limit == 0 => (Vec::new(), false),
            Source::Mirror { .. } => {
                let page = Page {
                    limit: Some(limit),
                    after: page.after,
                };
                self.shared.mirrors.tags(&repository, &page).await?
            }
        };
        Ok(Outcome::Tags {
            repository,
            tags,
            next: more.then_some(limit),
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
        let page = one_more(limit, page);
        let mut records = metadata.tags(&repository.name, None, &page).await?;
        let more = records.len() > limit;
        records.truncate(limit);
        let tags = records.into_iter().map(|record| record.tag).collect();
        Ok((tags, more))
    }

    fn page_size(&self, page: &Page) -> usize {
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
