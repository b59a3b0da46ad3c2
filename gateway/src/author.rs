//! What a plugin's author needs: templates, the contract as Markdown, and decisions tried on the real plugin host.
//!
//! Map: `cases` reads a case file, `question` and `answer` are the short forms of what a hook is asked and says, `world` is the registry,
//! the values, the time and the secrets that a tried plugin meets; `trial` puts a component into it; `template` writes a new plugin;
//! `bindings` and `component` are for languages whose compilers write core modules; `docs` renders the contract. Owns no output: the command
//! line prints. Nothing here runs in a serving gateway.

pub mod answer;
pub mod bindings;
pub mod cases;
pub mod component;
pub mod docs;
pub mod question;
pub mod template;
pub mod trial;
mod world;

use std::fmt;

/// Something in a file or an argument is wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// The line, from 1, when it is in a file.
    pub line: Option<usize>,
    /// The path of the key, such as `cases[1].request.change`; may be empty.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl Mistake {
    fn new(message: impl Into<String>) -> Self {
        Self {
            line: None,
            path: String::new(),
            message: message.into(),
        }
    }
}

impl fmt::Display for Mistake {
    /// Without the line, which stands best behind the file's name.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(formatter, "{}: ", self.path)?;
        }
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}
