//! Caller-authorized mirrors: what does not go together with asking the upstream about each caller.
//!
//! Owns the mistakes that would let something else than the caller speak for the caller.

use std::time::Duration;

use gantry_model::{RepositoryName, glob::Glob};
use gantry_upstream::ClientSettings;

use super::{Context, mirrors::covers};
use crate::config::{
    Callers, Hosted, Mirror,
    file::{AuthorizedByText, CallersFile},
};

/// What docker's token protocol has a token live at least.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

impl Context<'_> {
    pub(super) fn callers(
        &mut self,
        mirror: &str,
        file: Option<CallersFile>,
        upstream: &ClientSettings,
    ) -> Callers {
        let CallersFile {
            authorized_by,
            remember_for,
        } = file.unwrap_or_default();
        let keys = ["mirrors", mirror, "callers", "remember_for"];
        match authorized_by.unwrap_or(AuthorizedByText::Plugins) {
            AuthorizedByText::Plugins => {
                if remember_for.is_some() {
                    self.refuse(&keys, "only with `authorized_by: upstream`", None);
                }
                Callers::ByPlugins
            }
            AuthorizedByText::Upstream => {
                if upstream.tls.identity.is_some() {
                    let keys = ["mirrors", mirror, "tls", "certificate"];
                    let message = "not with `callers.authorized_by: upstream`: callers are asked about without it, and an upstream that wants it would know none of them";
                    self.refuse(&keys, message, None);
                }
                let bounds = SHORTEST..=LONGEST;
                Callers::ByUpstream {
                    remember_for: self.duration(&keys, remember_for.as_ref(), SHORTEST, bounds),
                }
            }
        }
    }

    /// Whether the names of every caller-authorized mirror are its alone.
    pub(super) fn callers_names(&mut self, mirrors: &[Mirror], hosted: &Hosted) {
        let asked = |mirror: &&Mirror| mirror.callers != Callers::ByPlugins;
        for mirror in mirrors.iter().filter(asked) {
            for (index, pattern) in hosted.or_upstream.iter().enumerate() {
                self.not_below(mirror, index, pattern);
            }
            let others = mirrors.iter().filter(|other| other.name != mirror.name);
            for other in others {
                self.not_shared(mirror, other);
            }
        }
    }

    fn not_below(&mut self, mirror: &Mirror, index: usize, pattern: &Glob) {
        if !covers(&mirror.names.prefix, pattern) {
            return;
        }
        let message = format!(
            "lies below mirror `{}`, whose upstream decides who may read: what is pushed here would be its secret",
            mirror.name
        );
        let keys = ["hosted", "or_upstream", &index.to_string()];
        self.refuse(&keys, message, "put it into `names`".to_owned());
    }

    fn not_shared(&mut self, mirror: &Mirror, other: &Mirror) {
        let (prefix, theirs) = (&mirror.names.prefix, &other.names.prefix);
        if !overlap(prefix, theirs) {
            return;
        }
        let message = format!(
            "one of `{prefix}` and `{theirs}` (mirror `{}`) lies below the other, so a name could be either's and one upstream would decide about the other's content",
            other.name
        );
        self.refuse(&["mirrors", &mirror.name, "prefix"], message, None);
    }
}

/// Whether one is a part of the other's names. Equal ones are a mistake of their own.
fn overlap(one: &RepositoryName, other: &RepositoryName) -> bool {
    one.strip_prefix(other).is_some() || other.strip_prefix(one).is_some()
}
