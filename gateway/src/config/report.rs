//! Everything that is wrong with a configuration, said at once: place, path, sentence, hint, three lines of the file.
//!
//! Owns what a message may quote: no byte of a masked range, and never a value from the environment or a secret's file.

use std::{fmt, ops::Range, path::PathBuf};

use granit_parser::{Marker, Span};

use super::tree::is_sensitive;

/// Where something was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Place {
    /// In the file; line and column count from 1.
    File {
        line: usize,
        column: usize,
        bytes: Range<usize>,
    },
    /// In an environment variable.
    Variable(String),
    /// Nowhere: something is missing from an empty file, or the file itself cannot be read.
    Nowhere,
}

impl Place {
    pub(crate) fn mark(mark: &Marker) -> Self {
        let at = mark.byte_offset().unwrap_or_default();
        Self::File {
            line: mark.line().max(1),
            column: mark.col() + 1,
            bytes: at..at,
        }
    }

    pub(crate) fn span(span: &Span) -> Self {
        let start = span.start;
        Self::File {
            line: start.line().max(1),
            column: start.col() + 1,
            bytes: span.byte_range().unwrap_or_default(),
        }
    }
}

/// A problem before it is rendered.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) place: Place,
    pub(crate) path: Box<str>,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    /// The text at the place must not be quoted.
    pub(crate) secret: bool,
    /// Nor the text at this other place.
    pub(crate) masked: Option<Box<Place>>,
    /// The text around was not understood: lines are masked by their look.
    syntax: bool,
}

impl Finding {
    pub(crate) fn new(place: Place, path: &str, message: impl Into<String>) -> Self {
        Self {
            place,
            path: path.into(),
            message: message.into(),
            hint: None,
            secret: false,
            masked: None,
            syntax: false,
        }
    }

    pub(crate) fn syntax(place: Place, message: String) -> Self {
        Self {
            syntax: true,
            ..Self::new(place, "", message)
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<Option<String>>) -> Self {
        self.hint = hint.into();
        self
    }

    pub(crate) fn secret(mut self, secret: bool) -> Self {
        self.secret = secret;
        self
    }
}

/// One mistake.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Line in the file, from 1; `None` for what stands in the environment or nowhere.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The key's path, `mirrors.docker.io.tags.fresh_for`; empty for the whole file.
    pub path: String,
    /// The environment variable that is wrong.
    pub variable: Option<String>,
    /// What is wrong. Never holds a secret or a value from the environment.
    pub message: String,
    /// What to write instead.
    pub hint: Option<String>,
    /// Up to three lines of the file with a caret.
    pub snippet: Option<String>,
}

/// All mistakes of a configuration. `Display` is for people. Neither form names the watched files: a path may come from the environment.
#[derive(Clone, Eq, PartialEq)]
pub struct Report {
    /// The file, as it was named.
    pub file: String,
    /// By line; what has none comes last.
    pub problems: Vec<Problem>,
    /// The files that were read or looked for until then, besides the configuration itself: a change of one may mend it.
    pub files: Vec<PathBuf>,
}

impl std::error::Error for Report {}

impl fmt::Debug for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Report")
            .field("file", &self.file)
            .field("problems", &self.problems)
            .finish_non_exhaustive()
    }
}

impl Report {
    /// The file itself cannot be read.
    pub(crate) fn unreadable(file: &str, reason: &str) -> Self {
        let finding = Finding::new(
            Place::Nowhere,
            "",
            format!("cannot read the file: {reason}"),
        );
        Self::new(file, "", Vec::new(), vec![finding])
    }

    pub(crate) fn new(
        file: &str,
        text: &str,
        mut masks: Vec<Range<usize>>,
        mut findings: Vec<Finding>,
    ) -> Self {
        for finding in &findings {
            if let (true, Place::File { bytes, .. }) = (finding.secret, &finding.place) {
                masks.push(bytes.clone());
            }
            if let Some(Place::File { bytes, .. }) = finding.masked.as_deref() {
                masks.push(bytes.clone());
            }
        }
        findings.sort_by_key(|finding| match finding.place {
            Place::File { line, column, .. } => (line, column),
            _ => (usize::MAX, 0),
        });
        let quotation = Quotation::new(text, &masks);
        Self {
            file: file.to_owned(),
            problems: findings
                .into_iter()
                .map(|finding| quotation.problem(finding))
                .collect(),
            files: Vec::new(),
        }
    }
}

/// What a valid configuration should say differently. `Display` is for people.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Warnings {
    /// The file, as it was named.
    pub file: String,
    /// By line; what has none comes last.
    pub problems: Vec<Problem>,
}

impl Warnings {
    /// Writes each warning into the log.
    pub fn log(&self) {
        for problem in &self.problems {
            tracing::warn!(
                file = self.file,
                line = problem.line,
                path = problem.path,
                variable = problem.variable,
                hint = problem.hint,
                "{}",
                problem.message
            );
        }
    }
}

impl fmt::Display for Warnings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut problems = self.problems.iter();
        problems.try_for_each(|problem| problem.write(formatter, "warning", &self.file))
    }
}

impl Problem {
    fn write(&self, formatter: &mut fmt::Formatter<'_>, level: &str, file: &str) -> fmt::Result {
        writeln!(formatter, "{level}: {}", self.message)?;
        match (&self.variable, self.line, self.column) {
            (Some(variable), ..) => write!(formatter, "  --> environment variable {variable}")?,
            (None, Some(line), Some(column)) => {
                write!(formatter, "  --> {file}:{line}:{column}")?;
            }
            _ => write!(formatter, "  --> {file}")?,
        }
        if self.path.is_empty() {
            writeln!(formatter)?;
        } else {
            writeln!(formatter, "  {}", self.path)?;
        }
        if let Some(snippet) = &self.snippet {
            formatter.write_str(snippet)?;
        }
        if let Some(hint) = &self.hint {
            writeln!(formatter, "  = {hint}")?;
        }
        writeln!(formatter)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            problem.write(formatter, "error", &self.file)?;
        }
        let count = self.problems.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(formatter, "{}: {count} {noun}", self.file)
    }
}

/// The file's lines, and what of them may be shown.
struct Quotation<'text> {
    lines: Vec<(usize, &'text str)>,
    masks: &'text [Range<usize>],
}

impl<'text> Quotation<'text> {
    fn new(text: &'text str, masks: &'text [Range<usize>]) -> Self {
        let mut offset = 0;
        let lines = text
            .split_inclusive('\n')
            .map(|line| {
                let start = offset;
                offset += line.len();
                (start, line.trim_end_matches(['\n', '\r']))
            })
            .collect();
        Self { lines, masks }
    }

    fn problem(&self, finding: Finding) -> Problem {
        let (line, column, variable, snippet) = match &finding.place {
            Place::File {
                line,
                column,
                bytes,
            } => {
                let snippet = self.snippet(*line, bytes, finding.syntax);
                (Some(*line), Some(*column), None, snippet)
            }
            Place::Variable(name) => (None, None, Some(name.clone()), None),
            Place::Nowhere => (None, None, None, None),
        };
        Problem {
            line,
            column,
            path: finding.path.into(),
            variable,
            message: finding.message,
            hint: finding.hint,
            snippet,
        }
    }

    fn snippet(&self, line: usize, bytes: &Range<usize>, syntax: bool) -> Option<String> {
        let width = (line + 1).to_string().len();
        let mut snippet = format!("{:width$} |\n", "");
        for number in line.saturating_sub(1).max(1)..=line + 1 {
            let Some((start, text)) = self.lines.get(number - 1).copied() else {
                continue;
            };
            let shown = self.masked(start, text, bytes, syntax);
            snippet.push_str(format!("{number:width$} | {}", shown.text).trim_end());
            snippet.push('\n');
            if number == line {
                let blank = " ".repeat(shown.caret);
                let carets = "^".repeat(shown.marked.max(1));
                snippet.push_str(&format!("{:width$} | {blank}{carets}\n", ""));
            }
        }
        self.lines.get(line - 1).map(|_line| snippet)
    }

    /// A line without what must not be shown, and where the marked bytes are in it.
    fn masked(&self, start: usize, text: &str, bytes: &Range<usize>, syntax: bool) -> Shown {
        let sensitive_from = (syntax && is_sensitive(text))
            .then(|| text.find(':').map_or(0, |colon| colon + 1))
            .map_or(usize::MAX, |from| start + from);
        let mut shown = Shown::default();
        let mut masking = false;
        for (offset, letter) in text.char_indices().map(|(at, letter)| (start + at, letter)) {
            let secret =
                offset >= sensitive_from || self.masks.iter().any(|mask| mask.contains(&offset));
            let new = match (secret, masking) {
                (true, true) => "",
                (true, false) => "***",
                (false, _) if shown.text.chars().count() >= 160 => "",
                (false, _) => &String::from(printable(letter)),
            };
            masking = secret;
            let count = new.chars().count();
            shown.text.push_str(new);
            if offset < bytes.start {
                shown.caret += count;
            } else if offset < bytes.end {
                shown.marked += count;
            }
        }
        shown
    }
}

/// A line as it is shown.
#[derive(Default)]
struct Shown {
    text: String,
    /// Characters before the caret.
    caret: usize,
    /// Characters under carets.
    marked: usize,
}

/// A file must not steer the terminal.
fn printable(letter: char) -> char {
    match letter {
        '\t' => ' ',
        letter if letter.is_control() => '\u{fffd}',
        letter => letter,
    }
}
