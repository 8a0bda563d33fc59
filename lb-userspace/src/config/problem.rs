//! What is wrong with a configuration: where, what, and what to do about it.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
};

/// One thing that is wrong, or deserves a second look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where in the file; nowhere if that could not be read.
    pub place: Option<Place>,
    /// What of the configuration it concerns, for example `service "chat"`.
    pub object: String,
    /// What is wrong with that.
    pub wrong: String,
    /// What to do.
    pub remedy: String,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column, in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file,
            place,
            object,
            wrong,
            remedy,
        } = self;
        write!(f, "{}:", file.display())?;
        if let Some(Place { line, column }) = place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {object}: {wrong}; {remedy}")
    }
}

/// Everything that is wrong, in the order of the file; one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The one problem of a file that cannot be read.
    pub fn unreadable(file: &Path, error: &std::io::Error) -> Self {
        Self(vec![Problem {
            file: file.to_owned(),
            place: None,
            object: "configuration".to_owned(),
            wrong: format!("cannot be read: {error}"),
            remedy: "name a readable file of UTF-8 text with --config".to_owned(),
        }])
    }

    /// The problems, at least one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems while a text is read.
pub(super) struct Findings<'a> {
    file: &'a Path,
    text: &'a str,
    line_starts: Vec<usize>,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl<'a> Findings<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        let newlines = text.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            file,
            text,
            line_starts: std::iter::once(0).chain(newlines).collect(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Notes an error at a place of the text, given in bytes.
    pub(super) fn error(
        &mut self,
        span: &Range<usize>,
        object: &str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = self.problem(span, object, wrong.into(), remedy.into());
        self.errors.push(problem);
    }

    /// Notes a warning at a place of the text, given in bytes.
    pub(super) fn warning(
        &mut self,
        span: &Range<usize>,
        object: &str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = self.problem(span, object, wrong.into(), remedy.into());
        self.warnings.push(problem);
    }

    /// Notes an error on a line of another file, counted from 1.
    pub(super) fn error_in(
        &mut self,
        file: &Path,
        line: usize,
        object: &str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = elsewhere(file, line, object, wrong.into(), remedy.into());
        self.errors.push(problem);
    }

    /// Notes a warning on a line of another file, counted from 1.
    pub(super) fn warning_in(
        &mut self,
        file: &Path,
        line: usize,
        object: &str,
        wrong: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let problem = elsewhere(file, line, object, wrong.into(), remedy.into());
        self.warnings.push(problem);
    }

    /// A place of the text, given in bytes.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let offset = span.start.min(self.text.len());
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = self.line_starts[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        Place {
            line,
            column: before.chars().count() + 1,
        }
    }

    fn problem(&self, span: &Range<usize>, object: &str, wrong: String, remedy: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            place: Some(self.place(span)),
            object: object.to_owned(),
            wrong,
            remedy,
        }
    }

    /// The warnings if there was no error, else the errors; both in the order of the file, and then those of files that it names.
    pub(super) fn conclude(mut self) -> Result<Vec<Problem>, Problems> {
        if !self.errors.is_empty() {
            return Err(self.into_problems());
        }
        in_order(self.file, &mut self.warnings);
        Ok(self.warnings)
    }

    /// The errors, in the same order.
    pub(super) fn into_problems(mut self) -> Problems {
        in_order(self.file, &mut self.errors);
        Problems(self.errors)
    }
}

/// Those of a file come first.
fn in_order(file: &Path, problems: &mut [Problem]) {
    problems.sort_by(|a, b| {
        let is_other = |problem: &Problem| problem.file != file;
        (is_other(a), &a.file, a.place).cmp(&(is_other(b), &b.file, b.place))
    });
}

/// A problem on a line of another file than the configuration.
fn elsewhere(file: &Path, line: usize, object: &str, wrong: String, remedy: String) -> Problem {
    Problem {
        file: file.to_owned(),
        place: Some(Place { line, column: 1 }),
        object: object.to_owned(),
        wrong,
        remedy,
    }
}
