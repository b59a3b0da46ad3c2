//! What asks for a reload, where from, and how it ends.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    app::plugins::Mistakes,
    config::{Config, Report},
    policy::binding::LastError,
};

/// Where the configuration is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A file.
    File(PathBuf),
    /// Inside the binary.
    Quickstart,
}

impl Source {
    /// Reads it.
    ///
    /// # Errors
    /// A [`Report`] with every mistake.
    pub fn load(&self) -> Result<Config, Report> {
        match self {
            Self::File(path) => Config::load(path),
            Self::Quickstart => Config::quickstart(),
        }
    }

    /// The file itself and those it names.
    pub(crate) fn with_own(&self, named: &[PathBuf]) -> BTreeSet<PathBuf> {
        let own = match self {
            Self::File(path) => Some(absolute(path)),
            Self::Quickstart => None,
        };
        named.iter().cloned().chain(own).collect()
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_no_working_directory| path.to_owned())
}

/// What asked for a reload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// A file changed.
    File,
    /// The admin API.
    Admin,
}

impl Trigger {
    /// In logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::File => "file",
            Self::Admin => "admin",
        }
    }
}

/// A reload that was done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reloaded {
    /// The generation that serves now.
    pub generation: u64,
    /// Names of the plugins that are new or changed.
    pub changed: Vec<String>,
}

/// A reload that was not done, with every reason.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Refused {
    /// A sentence each; those of the configuration as `gantry check` prints them.
    pub problems: Vec<String>,
    /// The plugins that were refused, and why.
    pub plugins: Vec<(Arc<str>, String)>,
}

impl Refused {
    pub(super) fn because(problems: Vec<String>) -> Self {
        Self {
            problems,
            plugins: Vec::new(),
        }
    }

    pub(super) fn config(report: &Report) -> Self {
        Self::because(vec![report.to_string()])
    }

    pub(super) fn plugins(mistakes: Mistakes) -> Self {
        let plugins: Vec<_> = mistakes
            .0
            .into_iter()
            .map(|mistake| (mistake.plugin, mistake.message))
            .collect();
        Self {
            problems: plugins.iter().map(|(_, text)| text.clone()).collect(),
            plugins,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for Refused {}

/// An attempt, as operators see it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Milliseconds since 1970.
    pub at_ms: u64,
    /// What asked for it.
    pub trigger: Trigger,
    /// Why it was not done; `None` = it was.
    pub refused: Option<Refused>,
}

/// What operators are told.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The newest attempt; `None` = only the start.
    pub last: Option<Attempt>,
    /// Plugins whose new version was refused by the newest attempt, and why: the one before still runs.
    pub kept: HashMap<Arc<str>, LastError>,
    /// Plugins that were put back since the newest reload, and why.
    pub rolled_back: HashMap<Arc<str>, LastError>,
}
