//! What a command that waits says meanwhile: one line on standard error that changes in its place. Only on a terminal, so that no file and no program gets
//! any of it, and gone before anything else is said.

use std::{
    cell::RefCell,
    io::{self, IsTerminal as _, Write},
};

use ratatui::crossterm::terminal;

use crate::logging::is_dumb;

/// To the line's begin, and all of it erased (ECMA-48, 8.3.41).
const ERASE: &str = "\r\x1b[2K";

/// The line. Dropping it takes it away.
#[derive(Debug)]
pub(super) struct Progress {
    is_wanted: bool,
    /// What stands there.
    line: RefCell<String>,
}

impl Progress {
    /// Where standard error is a terminal that can erase.
    pub(super) fn on_stderr() -> Self {
        Self {
            is_wanted: io::stderr().is_terminal() && !is_dumb(),
            line: RefCell::default(),
        }
    }

    /// Nowhere.
    pub(super) fn none() -> Self {
        Self {
            is_wanted: false,
            line: RefCell::default(),
        }
    }

    /// Puts a line in the place of the one before.
    pub(super) fn say(&self, line: &str) {
        if self.is_wanted && self.line.replace(line.to_owned()) != line {
            show_in_place(&mut io::stderr(), line);
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&self) {
        if !self.line.take().is_empty() {
            show_in_place(&mut io::stderr(), "");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Puts a line in the place of the one that stands on a terminal.
pub(super) fn show_in_place(out: &mut impl Write, line: &str) {
    let columns = match terminal::size() {
        Ok((columns, _)) if columns > 0 => usize::from(columns),
        _ => 80,
    };
    // Nothing is lost with it. What is not flushed is shown with the next one.
    let _ = write!(out, "{ERASE}{}", fitting(line, columns)).and_then(|()| out.flush());
}

/// As much of a line as there is room for in so many columns: the rest would be in the next line, and not be taken away with this one.
fn fitting(line: &str, columns: usize) -> &str {
    let end = line.char_indices().nth(columns.saturating_sub(1));
    end.map_or(line, |(end, _)| &line[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_not_wider_than_the_terminal() {
        assert_eq!(fitting("drains: 7", 80), "drains: 7");
        assert_eq!(fitting("drains: 7", 10), "drains: 7");
        assert_eq!(fitting("drains: 7", 9), "drains: ");
        assert_eq!(fitting("\u{e4}\u{f6}\u{fc}", 3), "\u{e4}\u{f6}");
        assert_eq!(fitting("", 0), "");
        let mut shown = Vec::new();
        show_in_place(&mut shown, "waits");
        assert_eq!(shown, b"\r\x1b[2Kwaits");
    }
}
